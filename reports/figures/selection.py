"""Which figures a report has, and which strategies they show."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from reports.figures.curves import accuracy_over_tasks
from reports.figures.drawn import Drawn
from reports.figures.forgetting import forgetting_by_task
from reports.figures.matrices import accuracy_matrices
from reports.figures.plane import stability_plasticity
from reports.figures.rows import seed_distribution
from reports.figures.style import MOST, Cast
from reports.figures.sweep import lambda_sweep, representatives

CHOSEN = (
    " Of strategies that differ in λ alone, the one with the highest mean average accuracy in these results is shown"
    " ({shown} of {all})."
)


def every(runs: pd.DataFrame, accuracy: pd.DataFrame, cast: Cast | None = None) -> dict[str, Drawn]:
    """All figures that these results have, by name, in the order of a report.

    Of more than 16 strategies, those that differ in λ alone are represented by the best, which the captions say.

    Args:
        runs: one row a run, see `reports.load`.
        accuracy: one row a cell, see `reports.load`; of no cells, figures are those that need none.
        cast: of the report; by default the strategies of `runs`.
    """
    cast = cast or Cast.of(runs["strategy"])
    sweep = lambda_sweep(runs, cast)
    strategies = cast.among(runs["strategy"])
    shown = strategies if len(strategies) <= MOST else list(representatives(runs, strategies).values())
    own, cells = runs[runs["strategy"].isin(shown)], accuracy[accuracy["strategy"].isin(shown)]
    there = not cells.empty  # matrices are files, which may be gone
    found = {"accuracy_over_tasks": accuracy_over_tasks(cells, cast)} if there else {}
    found["seed_distribution"] = seed_distribution(own, cast)
    if there and cells["task"].max() > 1:
        found["stability_plasticity"] = stability_plasticity(cells, cast)
        found["forgetting_by_task"] = forgetting_by_task(cells, cast)
    if there:
        found["accuracy_matrices"] = accuracy_matrices(cells, cast)
    if len(shown) < len(strategies):
        said = CHOSEN.format(shown=len(shown), all=len(strategies))
        found = {name: replace(drawn, caption=drawn.caption + said) for name, drawn in found.items()}
    return found | ({"lambda_sweep": sweep} if sweep else {})
