"""Forgetting of each task before the last."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from reports.figures import labels
from reports.figures.curves import curve, curves, ends
from reports.figures.drawn import Drawn, finished, mean_over, unfinished
from reports.figures.rows import draw_rows, row_panels, share_x
from reports.figures.style import STYLE, Cast, figure, panel

ROWS = 3  # up to as many tasks are panels of rows, more are curves


def forgetting_by_task(accuracy: pd.DataFrame, cast: Cast | None = None) -> Drawn:
    """Drop from a task's best accuracy to its final one: a panel a task, or a curve over many tasks.

    Args:
        accuracy: one row a cell of two tasks or more, see `reports.load`.
        cast: of the report; by default the strategies here.
    """
    cast = cast or Cast.of(accuracy["strategy"])
    frame = dropped(accuracy)
    shown = cast.among(accuracy["strategy"])
    few = accuracy["task"].max() <= ROWS + 1
    made = _rows(frame, shown, cast) if few else _curves(frame, shown, cast)
    counts = frame.groupby(["strategy", "task"])["seed"].nunique()
    how = f"marks are seeds, ticks the {mean_over(counts, 'bar')}" if few else mean_over(counts, "band")
    if counts.empty or counts.max() == 1:
        how = mean_over(counts, "")
    caption = (
        "Forgetting of each task before the last: its best accuracy after it was learned and before the last task, "
        f"less its final accuracy; {how}. Lower is better."
    )
    return Drawn(made, caption + unfinished(finished(accuracy), cast))


def dropped(accuracy: pd.DataFrame) -> pd.DataFrame:
    """f_j = max_{j≤l<T} a[l, j] - a[T, j] of every run that finished: `strategy, seed, task (1..T-1), forgetting`.

    Args:
        accuracy: one row a cell, see `reports.load`.
    """
    last, keys = accuracy["task"].max(), ["strategy", "seed", "task"]
    old = accuracy[accuracy["task"] < last]
    learned = old[(old["after_task"] >= old["task"]) & (old["after_task"] < last)]
    best = learned.groupby(keys, sort=False)["accuracy"].max()
    final = old[old["after_task"] == last].groupby(keys, sort=False)["accuracy"].max()
    frame: pd.DataFrame = (best - final).dropna().rename("forgetting").reset_index()
    return frame


def _rows(frame: pd.DataFrame, shown: list[str], cast: Cast) -> Figure:
    tasks = sorted(frame["task"].unique()) or [1]
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        rows = row_panels(cast, shown, len(tasks))
        for axis, task in zip(rows.axes, tasks, strict=True):
            own = frame[frame["task"] == task]
            values = {s: own.loc[own["strategy"] == s, "forgetting"].to_numpy(float) for s in shown}
            draw_rows(axis, rows.at, values, cast, (-1.0, 1.0))
            labels.per_cent(axis, "x", 6 if len(tasks) == 1 else 3)
            axis.set_title(f"task {task}")
        share_x(rows, "forgetting (points)")
    return rows.figure


def _curves(frame: pd.DataFrame, shown: list[str], cast: Cast) -> Figure:
    means, height, key = curves(frame, "task", "forgetting"), 1.9, labels.Key(cast, shown)
    direct = labels.ends_fit(cast, shown, height)
    with mpl.rc_context(STYLE):
        made = figure(height + 0.4 + (0 if direct else key.height))
        axis = panel(made)
        for strategy in shown:
            curve(axis, means[means["strategy"] == strategy], cast.looks[strategy], len(shown))
        axis.set(xlabel="task", ylabel="forgetting (points)")
        labels.integers(axis, 8)
        labels.per_cent(axis, "y")
        if means.empty:
            labels.none(axis)
        elif direct:
            labels.ends(axis, ends(means), cast, height)
        else:
            key.draw(made)
    return made
