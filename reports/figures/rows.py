"""A row a strategy: every seed, their mean and its interval. Average accuracy, and forgetting of a few tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports.figures import labels
from reports.figures.drawn import Drawn, mean_over, unfinished
from reports.figures.style import COLUMN, FAINT, STYLE, Cast, figure, panels
from reports.statistics import Interval, mean_interval

NAMES = 0.4 * COLUMN  # room for names, inches
SEEDS = 0.075  # how far below a mean its seeds are drawn, inches
TICK = 0.04  # half the height of the tick that is a mean, inches
Values = Mapping[str, NDArray[np.float64]]


def seed_distribution(runs: pd.DataFrame, cast: Cast | None = None) -> Drawn:
    """Average accuracy of every seed, with mean and interval a strategy.

    Args:
        runs: one row a run, see `reports.load`.
        cast: of the report; by default the strategies here.
    """
    cast = cast or Cast.of(runs["strategy"])
    done = runs["status"] == "finished"
    shown = cast.among(runs["strategy"])
    measured = runs.loc[done, ["strategy", "average_accuracy"]].dropna()
    values = {s: measured.loc[measured["strategy"] == s, "average_accuracy"].to_numpy(float) for s in shown}
    counts = [len(seeds) for seeds in values.values()]
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        rows = row_panels(cast, shown)
        axis = rows.axes[0]
        draw_rows(axis, rows.at, values, cast, (0.0, 1.0))
        labels.per_cent(axis, "x")
        alike = len(set(counts)) == 1
        axis.set_xlabel(f"average accuracy (%){f', n = {counts[0]}' if alike else ''}")
        if not alike:
            _counts(rows, values)
    several = max(counts, default=0) > 1
    how = " (marks, below) and, as a tick, the " if several else ": "
    caption = f"Average accuracy of every seed{how}{mean_over(counts, 'bar')}."
    if not any(counts):
        caption = "Average accuracy: no run finished."
    return Drawn(rows.figure, caption + unfinished(runs.assign(finished=done), cast))


@dataclass(frozen=True)
class Rows:
    """Panels side by side whose rows are strategies, with their names at the left; along y they are laid out in inches.

    Attributes:
        figure: of these panels.
        axes: from the left.
        at: y of each strategy.
    """

    figure: Figure
    axes: list[Axes]
    at: dict[str, float]


def row_panels(cast: Cast, shown: list[str], columns: int = 1) -> Rows:
    """Empty rows.

    Args:
        cast: of the report.
        shown: strategies, from above.
        columns: panels.
    """
    written = labels.wrap([cast.names[s] for s in shown], NAMES)
    heights = [max(0.2, 0.06 + labels.LINE * labels.lines(name)) for name in written]
    ends = np.cumsum(heights)
    made = figure(float(ends[-1]) + 0.6)
    axes: list[Axes] = list(panels(made, 1, columns, sharey=True)[0])
    at = ends - np.array(heights) / 2
    axes[0].set_yticks(at, written)
    axes[0].set_ylim(ends[-1] + 0.02, -0.02)
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    return Rows(made, axes, dict(zip(shown, at.tolist(), strict=True)))


def draw_rows(axis: Axes, at: dict[str, float], values: Values, cast: Cast, bounds: tuple[float, float]) -> None:
    """Mean, as a tick, and interval on each row, seeds below.

    Args:
        axis: a panel of rows.
        at: y of each strategy.
        values: of every seed, shape (n,), by strategy.
        cast: of the report.
        bounds: no interval is drawn beyond what the measure can be.
    """
    found = {strategy: mean_interval(seeds) for strategy, seeds in values.items()}
    for strategy, seeds in values.items():
        look, interval, y = cast.looks[strategy], found[strategy], at[strategy]
        if not len(seeds):
            axis.text(0.02, y, "no run finished", color=FAINT, va="center", transform=axis.get_yaxis_transform())
            continue
        above, below = y - SEEDS / 2, y + SEEDS / 2
        axis.plot([interval.low, interval.high], [above, above], color=look.colour, lw=2.4, solid_capstyle="butt")
        axis.plot(seeds, np.full(len(seeds), below), ms=2.5, alpha=0.6, **look.mark)
        # A mark would hide an interval that is narrower than it.
        axis.plot([interval.mean] * 2, [above - TICK, above + TICK], color=look.colour, lw=0.8, solid_capstyle="butt")
    axis.set_xlim(*_limits([*values.values()], [*found.values()], bounds))


def share_x(rows: Rows, label: str) -> None:
    """One range for all panels, zero in it, and one label: lengths can be compared with those of other panels.

    Args:
        rows: drawn.
        label: of all panels.
    """
    limits = [axis.get_xlim() for axis in rows.axes]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for axis in rows.axes:
        axis.set_xlim(min(low, -0.01), max(high, 0.01))
    if len(rows.axes) == 1:
        rows.axes[0].set_xlabel(label)
        return
    below = rows.figure.supxlabel(label)
    rows.figure.draw_without_rendering()  # where panels begin, beside the names, is known then
    below.set_x((rows.axes[0].get_position().x0 + rows.axes[-1].get_position().x1) / 2)


def _limits(
    values: list[NDArray[np.float64]], found: list[Interval], bounds: tuple[float, float]
) -> tuple[float, float]:
    ends = np.array([[interval.low, interval.high] for interval in found]).ravel()
    shown = np.concatenate([*values, np.clip(ends[np.isfinite(ends)], *bounds)])
    if not len(shown):
        return bounds
    room = max(0.05 * float(np.ptp(shown)), 0.01)
    return float(shown.min()) - room, float(shown.max()) + room


def _counts(rows: Rows, values: Values) -> None:
    """How many seeds finished, at the right of each row."""
    beside: dict[str, Any] = {"transform": rows.axes[0].get_yaxis_transform(), "ha": "right", "color": FAINT}
    for strategy, seeds in values.items():
        rows.axes[0].text(1.07, rows.at[strategy], f"{len(seeds)}", va="center", **beside)
    rows.axes[0].text(1.07, -0.02, "n", va="bottom", **beside)
