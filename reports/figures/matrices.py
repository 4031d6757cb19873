"""The accuracy matrix of each strategy as a heatmap."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from reports.figures import labels
from reports.figures.drawn import Drawn, finished, mean_over, seeds, unfinished
from reports.figures.style import COLUMN, SIZE, STYLE, Cast, figure, panels

CELL = 0.24  # at most, inches
READABLE = 0.165  # a cell in which three digits of 6 points have room, inches
MISSING = "0.88"
TICK = 0.15  # between ticks, at least, inches
TALL = 5.5  # a figure with numbers, inches; beyond, colours must do


def accuracy_matrices(accuracy: pd.DataFrame, cast: Cast | None = None) -> Drawn:
    """Mean accuracy on every task after every task, in per cent: rows are tasks trained, columns tasks tested.

    Args:
        accuracy: one row a cell, see `reports.load`.
        cast: of the report; by default the strategies here.
    """
    cast = cast or Cast.of(accuracy["strategy"])
    shown = cast.among(accuracy["strategy"])
    tasks = int(accuracy["task"].max())
    grid = _grid(tasks, [cast.names[s] for s in shown])
    annotated = grid.cell >= READABLE
    means = {s: matrix(accuracy[accuracy["strategy"] == s], tasks) for s in shown}
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        made = figure(grid.height, "compressed" if grid.dense else "constrained")
        axes = panels(made, grid.rows, grid.columns)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, strategy, title in zip(axes.flat, shown, grid.titles, strict=False):
            _heatmap(axis, means[strategy], grid.cell)
            axis.set_title(title)
        made.supxlabel(f"tested on task{' (accuracy in %)' if annotated else ''}")
        made.supylabel("tasks trained")
        if not annotated:
            mesh = axes[0, 0].collections[0]
            bar = made.colorbar(mesh, ax=axes, label="accuracy (%)", location="top", aspect=40, shrink=0.8, pad=0.02)
            bar.outline.set_visible(False)
    lost = any(mean.isna().any(axis=None) for mean in means.values())
    counts = accuracy.dropna(subset="accuracy").groupby(["strategy", "after_task"])["seed"].nunique()
    how = f"mean over {seeds(counts)}" if counts.max() > 1 else mean_over(counts, "")
    caption = f"Test accuracy on every task (columns) after training every task (rows; 0: before any training): {how}."
    notes = {" Below the staircase: tasks already trained.": not annotated, " Grey: no run got there.": lost}
    caption += "".join(note for note, needed in notes.items() if needed)
    return Drawn(made, caption + unfinished(finished(accuracy), cast))


@dataclass(frozen=True)
class Grid:
    """Panels of heatmaps; lengths in inches."""

    tasks: int
    rows: int
    columns: int
    titles: list[str]
    cell: float
    height: float

    @property
    def dense(self) -> bool:
        """No title is wider than its panel, so that panels can move together."""
        panel = self.cell * self.tasks
        return all(labels.width(line) <= panel for title in self.titles for line in title.split("\n"))


def _grid(tasks: int, names: list[str]) -> Grid:
    """The fewest rows, then gaps, in which numbers can be read, up to a height from which on colours must do."""
    options = [_columns(tasks, names, columns) for columns in range(1, min(len(names), 4) + 1)]
    readable = [grid for grid in options if grid.cell >= READABLE and grid.height <= TALL]
    if readable:
        return min(readable, key=lambda grid: (grid.rows, grid.rows * grid.columns))
    return options[(2 if len(names) == 4 else min(len(names), 3)) - 1]


def _columns(tasks: int, names: list[str], columns: int) -> Grid:
    room = (COLUMN - 0.4) / columns - 0.12
    cell, titles = min(CELL, room / tasks), labels.wrap(names, room)
    rows = [titles[i : i + columns] for i in range(0, len(titles), columns)]
    above = sum(max(map(labels.lines, row)) for row in rows) * labels.LINE
    height = len(rows) * (cell * (tasks + 1) + 0.25) + above + (0.2 if cell >= READABLE else 0.5)
    # Four columns are for names that fit there as they are.
    return Grid(tasks, len(rows), columns, titles, cell, height if columns < 4 or labels.whole(names, room) else np.inf)


def matrix(own: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """Mean over seeds in per cent, shape (T + 1, T), NaN where every run diverged.

    Args:
        own: cells of one strategy.
        tasks: T.
    """
    means = own.pivot_table(index="after_task", columns="task", values="accuracy", aggfunc="mean")
    return 100 * means.reindex(index=range(tasks + 1), columns=range(1, tasks + 1))


def _heatmap(axis: Axes, means: pd.DataFrame, cell: float) -> None:
    tasks, annotated = means.shape[1], cell >= READABLE
    sns.heatmap(
        means, ax=axis, vmin=0, vmax=100, cmap="cividis", cbar=False, square=True, linewidths=0.5 if annotated else 0,
        annot=annotated, fmt=".0f", annot_kws={"size": min(SIZE, 36 * cell)}, xticklabels=False, yticklabels=False,
        rasterized=tasks > 20,
    )  # fmt: skip
    every = next(step for step in (1, 2, 5, 10, 25, 50, tasks) if step * cell >= TICK or step >= tasks)
    tested, trained = np.arange(every, tasks + 1, every), np.arange(0, tasks + 1, every)
    axis.set_xticks(tested - 0.5, [str(task) for task in tested])
    axis.set_yticks(trained + 0.5, [str(task) for task in trained], rotation=0)
    axis.set_facecolor(MISSING)
    axis.tick_params(length=0, pad=2)
    axis.set(xlabel="", ylabel="")
    stairs = np.repeat(np.arange(tasks + 1), 2)
    axis.plot(stairs[:-1], stairs[1:], color="white", lw=1.2 if tasks <= 10 else 0.7)
