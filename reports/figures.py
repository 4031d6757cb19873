"""Figures of results. Each takes the tidy frames of `reports.tables` and returns a matplotlib figure."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,
}
MARKERS = "osD^vPX<>*"


def colours(strategies: list[str]) -> dict[str, tuple[float, float, float]]:
    """One colour-blind safe colour a strategy, by its place in the list: the same in every figure."""
    palette = sns.color_palette("colorblind", 10)
    return {strategy: palette[i % len(palette)] for i, strategy in enumerate(strategies)}


def _strategies(frame: pd.DataFrame) -> list[str]:
    return [str(strategy) for strategy in frame["strategy"].unique()]


def _seeds(frame: pd.DataFrame) -> str:
    counts = frame.dropna(subset="accuracy").groupby(["strategy", "after_task"])["seed"].nunique()
    low, high = counts.min(), counts.max()
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)


def accuracy_over_tasks(accuracy: pd.DataFrame) -> Figure:
    """Test accuracy of each task as training proceeds: a panel a task, mean over seeds with the range as a band."""
    strategies, tasks = _strategies(accuracy), sorted(accuracy["task"].unique())
    columns = min(len(tasks), 5)
    rows = -(-len(tasks) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 * columns + 2.4, 2.0 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            cells = accuracy[accuracy["task"] == task]
            for i, (strategy, colour) in enumerate(colours(strategies).items()):
                curve = (
                    cells[cells["strategy"] == strategy].groupby("after_task")["accuracy"].agg(["mean", "min", "max"])
                )
                axis.plot(
                    curve.index, curve["mean"], MARKERS[i % 10], ls="-", ms=3, lw=1.2, color=colour, label=strategy
                )
                axis.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, lw=0)
            axis.axvline(task, color="0.6", lw=0.7, ls=":")
            axis.set_title(f"accuracy on task {task}")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axis.set_ylim(0, 1)
        for axis in axes[-1]:
            axis.set_xlabel("tasks trained")
        axes[0][0].set_ylabel(f"test accuracy\n(mean and range, {_seeds(accuracy)})")
        _legend(figure, axes[0][0])
    return figure


def accuracy_matrices(accuracy: pd.DataFrame) -> Figure:
    """The accuracy matrix of each strategy, mean over seeds: rows are tasks trained, columns tasks tested."""
    strategies, tasks = _strategies(accuracy), accuracy["task"].nunique()
    columns = min(len(strategies), 5)
    rows = -(-len(strategies) // columns)
    cell = 0.42 if tasks <= 10 else 4.0 / tasks
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        titles = max(len(parts(strategy)) for strategy in strategies)
        size = (columns * max(cell * tasks + 0.6, 1.5) + 0.8, rows * (cell * (tasks + 1) + 0.4 + 0.12 * titles) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(strategies) :]:
            axis.set_visible(False)
        for axis, strategy in zip(axes.flat, strategies, strict=False):
            matrix = accuracy[accuracy["strategy"] == strategy].pivot_table(
                index="after_task", columns="task", values="accuracy", aggfunc="mean", dropna=False
            )
            sns.heatmap(
                100 * matrix, ax=axis, vmin=0, vmax=100, cmap="cividis", cbar=False, square=True, linewidths=0.5,
                annot=tasks <= 10, fmt=".0f", annot_kws={"size": 6 if tasks > 5 else 7},
            )  # fmt: skip
            axis.set_title("\n".join(parts(strategy)), fontsize=6.5)
            axis.set(xlabel="", ylabel="")
            axis.tick_params(length=0, rotation=0)
        figure.supxlabel("tested on task", fontsize=8)
        figure.supylabel("tasks trained", fontsize=8)
        figure.colorbar(
            axes[0][0].collections[0], ax=axes, label=f"accuracy (%), mean, {_seeds(accuracy)}", shrink=0.8, aspect=30
        )
    return figure


def stability_plasticity(accuracy: pd.DataFrame) -> Figure:
    """Final accuracy on old tasks against accuracy on tasks when learned: a small mark a seed, a large one the mean."""
    tasks = int(accuracy["task"].max())
    final, learned = accuracy["after_task"] == tasks, accuracy["after_task"] == accuracy["task"]
    keys = ["strategy", "seed"]
    points = pd.DataFrame(
        {
            "stability": accuracy[final & (accuracy["task"] < tasks)].groupby(keys, sort=False)["accuracy"].mean(),
            "plasticity": accuracy[learned].groupby(keys, sort=False)["accuracy"].mean(),
        }
    ).dropna()
    strategies = _strategies(accuracy)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axis = figure.subplots()
        for i, (strategy, colour) in enumerate(colours(strategies).items()):
            if strategy not in points.index.get_level_values("strategy"):
                continue  # every run diverged
            own = points.loc[[strategy]]
            x, y = own["plasticity"], own["stability"]
            look: dict[str, Any] = {"marker": MARKERS[i % 10], "ls": "", "color": colour}
            axis.plot(x, y, ms=3, alpha=0.5, mew=0, **look)
            axis.plot(x.mean(), y.mean(), ms=6, mec="white", mew=0.5, label=strategy, **look)
        axis.set_xlabel("plasticity: accuracy on each task when learned")
        axis.set_ylabel("stability: final accuracy\non all tasks but the last")
        for formatted, column in ((axis.xaxis, "plasticity"), (axis.yaxis, "stability")):
            formatted.set_major_formatter(PercentFormatter(1, decimals=decimals(points[column])))
        axis.set_title(f"up and right is better ({_seeds(accuracy)})", loc="left", color="0.4")
        _legend(figure, axis)
    return figure


def parts(strategy: str) -> list[str]:
    """`ewc[estimator=exact,lam=10]` in lines short enough to stand over a small panel."""
    name, _, options = strategy.removesuffix("]").partition("[")
    return [name, *options.split(",")] if options else [name]


def decimals(values: pd.Series) -> int:
    """Enough that neighbouring ticks of an axis differ."""
    return 0 if len(values) < 2 or np.ptp(values) > 0.05 else 1 if np.ptp(values) > 0.005 else 2


def overview(accuracy: pd.DataFrame) -> dict[str, Figure]:
    """The figures of an experiment, by file name."""
    figures = {
        "figures/accuracy_over_tasks.png": accuracy_over_tasks(accuracy),
        "figures/accuracy_matrices.png": accuracy_matrices(accuracy),
    }
    if accuracy["task"].max() > 1:
        figures["figures/stability_plasticity.png"] = stability_plasticity(accuracy)
    return figures
