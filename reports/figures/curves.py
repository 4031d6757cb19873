"""Accuracy as training proceeds: mean and band a strategy, a panel a task."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.figures import labels
from reports.figures.drawn import Drawn, finished, mean_over, unfinished
from reports.figures.style import FAINT, STYLE, Cast, Look, figure, panels
from reports.statistics import mean_interval

PANELS = 12  # at most
HEIGHTS = {1: 1.9, 2: 1.3, 3: 0.95}  # of a panel in inches, by the number of columns


def accuracy_over_tasks(accuracy: pd.DataFrame, cast: Cast | None = None) -> Drawn:
    """Test accuracy of each task as training proceeds, and from three tasks on the mean over the tasks so far.

    Of more than eleven tasks, eleven spread over the sequence have a panel.

    Args:
        accuracy: one row a cell, see `reports.load`.
        cast: of the report; by default the strategies here.
    """
    cast = cast or Cast.of(accuracy["strategy"])
    last = int(accuracy["task"].max())
    tasks = _spread(last)
    drawn: dict[str, tuple[pd.DataFrame, int | None]] = {
        f"task {task}": (accuracy[accuracy["task"] == task], task) for task in tasks
    }
    if last > 2:
        drawn["tasks so far, mean"] = (so_far(accuracy), None)
    means = {title: curves(cells, "after_task", "accuracy") for title, (cells, _) in drawn.items()}
    shown = cast.among(accuracy["strategy"])
    columns = 1 if len(drawn) == 1 else 2 if len(drawn) <= 4 else 3
    rows, height = -(-len(drawn) // columns), HEIGHTS[columns]
    key = labels.Key(cast, shown)
    direct = len(drawn) == 1 and labels.ends_fit(cast, shown, height)
    with mpl.rc_context(STYLE):
        below = 0.0 if direct else key.height
        made = figure(rows * (height + 0.2) + 0.35 + below)
        axes = panels(made, rows, columns, sharex=True, sharey=True)
        for axis, (title, (_, task)) in zip(axes.flat, drawn.items(), strict=False):
            for strategy in shown:
                own = means[title][means[title]["strategy"] == strategy]
                curve(axis, own, cast.looks[strategy], len(shown), (0.0, 1.0))
            _frame(axis, title, task, last)
        for axis in axes.flat[len(drawn) :]:
            axis.set_visible(False)
        for axis in axes.flat[max(0, len(drawn) - columns) : len(drawn)]:
            axis.xaxis.set_tick_params(labelbottom=True)
        for axis in axes[-1]:
            axis.set_xlabel("tasks trained")
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy (%)")
        if direct:
            labels.ends(axes[0, 0], ends(means["task 1"]), cast, height)
        else:
            key.draw(made)
    counts = pd.concat(means.values())["n"]
    return Drawn(made, _caption(last, tasks, mean_over(counts, "band")) + unfinished(finished(accuracy), cast))


def so_far(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over the tasks trained so far (ACC_k): `strategy, seed, after_task (from 1), accuracy`."""
    seen = accuracy[accuracy["task"] <= accuracy["after_task"]]
    return seen.groupby(["strategy", "seed", "after_task"], sort=False)["accuracy"].mean().reset_index()


def curves(frame: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Mean and interval over seeds at each place along a curve: `strategy, x, mean, low, high, n`.

    Args:
        frame: one row a seed and place.
        by: column of places.
        value: column of values, NaN for what diverged.
    """
    rows = []
    for (strategy, x), own in frame.groupby(["strategy", by], sort=False)[value]:
        found = mean_interval(own.dropna())
        rows.append((strategy, x, found.mean, found.low, found.high, found.n))
    made = pd.DataFrame(rows, columns=["strategy", "x", "mean", "low", "high", "n"])
    numbers = dict.fromkeys(["x", "mean", "low", "high"], float)  # also where there is no row
    return made.astype(numbers).sort_values("x", kind="stable", ignore_index=True)


def curve(axis: Axes, own: pd.DataFrame, look: Look, beside: int, bounds: tuple[float, float] = (-1.0, 1.0)) -> None:
    """Draw one strategy's mean and band.

    Args:
        axis: where.
        own: its rows of `curves`.
        look: its look.
        beside: how many are drawn in the panel, which makes bands fainter.
        bounds: no band is drawn beyond what the measure can be.
    """
    low, high = own["low"].clip(*bounds), own["high"].clip(*bounds)
    axis.fill_between(own["x"], low, high, color=look.colour, alpha=0.2 if beside <= 5 else 0.1, lw=0)
    axis.plot(own["x"], own["mean"], ms=2.5, markevery=max(1, len(own) // 8), **look.curve)


def ends(means: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Where each strategy's curve ends: x and y, by label.

    Args:
        means: rows of `curves`.
    """
    last = means.dropna(subset="mean").groupby("strategy")[["x", "mean"]].last()
    return {str(s): (float(x), float(y)) for s, x, y in last.itertuples(name=None)}


def _frame(axis: Axes, title: str, task: int | None, last: int) -> None:
    axis.set_title(title)
    if task:
        axis.axvline(task, color=FAINT, lw=0.7, ls=":", zorder=0.5)
    axis.set_xlim(-0.03 * last, 1.03 * last)
    axis.set_ylim(-0.03, 1.03)
    labels.per_cent(axis, "y", 4)
    labels.integers(axis)


def _spread(last: int) -> list[int]:
    """All tasks, or eleven over the whole sequence."""
    return [round(task) for task in np.linspace(1, last, min(last, PANELS - 1))]


def _caption(last: int, tasks: list[int], means: str) -> str:
    which = "each task" if len(tasks) == last else f"{len(tasks)} of the {last} tasks"
    after = "" if last < 3 else ", and mean over the tasks trained so far"
    return (
        f"Test accuracy on {which} as training proceeds{after}: {means}. Dotted: the end of the task's own training; "
        "0 tasks trained: before any training."
    )
