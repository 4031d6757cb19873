"""What a figure function returns, and the phrases that captions share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from reports.figures.style import Cast

KIND = "95% Student t interval"


@dataclass(frozen=True)
class Drawn:
    """A figure and what is to stand under it.

    Attributes:
        figure: a column wide.
        caption: one or a few sentences in plain text: what is shown, the kind of interval, n.
    """

    figure: Figure
    caption: str


def seeds(counts: Iterable[int]) -> str:
    """`n = 3 seeds`, or `n = 2 to 3 seeds`."""
    known = sorted(set(counts)) or [0]
    low, high = known[0], known[-1]
    return f"n = {low if low == high else f'{low} to {high}'} seed{'s' * (high != 1)}"


def mean_over(counts: Iterable[int], how: str) -> str:
    """`mean over seeds with its 95% Student t interval (band), n = 3 seeds`, or that there is none.

    Args:
        counts: seeds of each mean shown.
        how: the interval is drawn.
    """
    known = [n for n in counts if n]
    if not known:
        return "no run finished"
    if max(known) == 1:
        return "n = 1 seed, so without an interval"
    return f"mean over seeds with its {KIND} ({how}), {seeds(known)}"


def unfinished(states: pd.DataFrame, cast: Cast) -> str:
    """A sentence on runs without a final accuracy, empty if there are none.

    Args:
        states: one row a run with `strategy` and `finished`.
        cast: of the report.
    """
    said = []
    for strategy, own in states.groupby("strategy", sort=False)["finished"]:
        if not own.all():
            said.append(f"{cast.names[str(strategy)]} {int((~own).sum())} of {len(own)}")
    return f" Runs that did not finish: {'; '.join(said)}." if said else ""


def finished(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Which runs have a final accuracy on every task: `strategy, seed, finished`, one row a run."""
    final = accuracy[accuracy["after_task"] == accuracy["after_task"].max()]
    known = final["accuracy"].notna().groupby([final["strategy"], final["seed"]], sort=False).all()
    frame: pd.DataFrame = known.rename("finished").reset_index()
    return frame
