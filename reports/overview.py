"""What an experiment's overview run shows: a note with the result table, and the figures."""

from __future__ import annotations

import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from reports import figures, tables


def contents(runs: pd.DataFrame, accuracy: pd.DataFrame) -> tuple[str, dict[str, Figure]]:
    """Markdown note and figures by file name.

    Args:
        runs: one row a run, see `reports.load`.
        accuracy: one row a cell of an accuracy matrix, see `reports.load`.
    """
    # By their labels, as the runs beside the note are.
    table = tables.main(runs, {label: label for label in runs["strategy"]})
    drawn = figures.every(runs, accuracy)
    captions = "\n".join(f"- `figures/{name}.png`: {each.caption}" for name, each in drawn.items())
    head = f"{table.caption} Tables and figures are among the artifacts."
    note = "\n\n".join([head, table.markdown(), captions])
    return note, {f"figures/{name}.png": each.figure for name, each in drawn.items()}


def colours(strategies: list[str]) -> dict[str, str]:
    """The colour a strategy has in every figure, as `#rrggbb` by label."""
    return {strategy: to_hex(colour) for strategy, colour in figures.colours(strategies).items()}
