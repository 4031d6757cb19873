"""Stability against plasticity."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd

from reports.figures import labels
from reports.figures.drawn import Drawn, finished, seeds, unfinished
from reports.figures.style import STYLE, Cast, figure, panel

AXES = {
    "plasticity": "plasticity: accuracy on each task\nwhen learned (%)",
    "stability": "stability: final accuracy\non all tasks but the last (%)",
}


def stability_plasticity(accuracy: pd.DataFrame, cast: Cast | None = None) -> Drawn:
    """Final accuracy on old tasks against accuracy on tasks when learned: a small mark a seed, a large one the mean.

    Args:
        accuracy: one row a cell of two tasks or more, see `reports.load`.
        cast: of the report; by default the strategies here.
    """
    cast = cast or Cast.of(accuracy["strategy"])
    found = points(accuracy)
    shown = cast.among(found["strategy"])
    key = labels.Key(cast, shown, curves=False)
    with mpl.rc_context(STYLE):
        made = figure(2.5 + key.height)
        axis = panel(made)
        for strategy in shown:
            own, look = found[found["strategy"] == strategy], cast.looks[strategy]
            axis.plot(own["plasticity"], own["stability"], ms=3, alpha=0.45, **look.mark)
            middle = look.mark | {"mec": "white", "mew": 0.6}
            axis.plot(own["plasticity"].mean(), own["stability"].mean(), ms=6.5, zorder=3, **middle)
        axis.set(xlabel=AXES["plasticity"].replace("\n", " "), ylabel=AXES["stability"])
        for side in "xy":
            labels.per_cent(axis, side)
        if shown:
            key.draw(made)
        else:
            labels.none(axis)
    counts = found.groupby("strategy")["seed"].nunique()
    caption = (
        "Stability (final accuracy on all tasks but the last) against plasticity (accuracy on each task just after "
        f"learning it), means over tasks: small marks are seeds, large ones their mean, {seeds(counts)}; up and "
        "right is better."
    )
    return Drawn(made, caption + unfinished(finished(accuracy), cast))


def points(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Both measures of every run that finished: `strategy, seed, stability, plasticity`."""
    tasks = accuracy["task"].max()
    final, learned = accuracy["after_task"] == tasks, accuracy["after_task"] == accuracy["task"]
    keys = ["strategy", "seed"]
    measured = {
        "stability": accuracy[final & (accuracy["task"] < tasks)].groupby(keys, sort=False)["accuracy"].mean(),
        "plasticity": accuracy[learned].groupby(keys, sort=False)["accuracy"].mean(),
    }
    return pd.DataFrame(measured).dropna().reset_index()
