"""What stands in and beside panels: names that fit, keys, names at the ends of lines, marks of what has no value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FixedLocator, Formatter, MaxNLocator, NullLocator

from reports import names
from reports.figures.style import COLUMN, FAINT, FONT, SIZE, Cast, Colour

BREAKS = (
    (r" (?=\()", " "),
    (r"(?<=,) | (?=\()", " "),
    (r"(?<!=) (?!=)", " "),
    (" ", " "),
    (r"(?<=\W|_)", ""),
    ("(?<=.)", ""),
)
"""Where names are broken, the next where that is not enough, and what joins the pieces."""
WHOLE = 3
"""As many of these keep options whole."""
LINE = 0.125
"""Height of a line of text in inches."""
HANDLE = {True: 0.38, False: 0.26}  # of a key's entry beside its text, with a line or a mark alone, inches
STEP = 0.07  # of a panel's height, for a row of marks at its foot
LOST = {"failed": "+", "diverged": "x", "pruned": "|"}
"""Marks of what has no value."""


@cache
def width(text: str) -> float:
    """Inches that a line of text takes."""
    wide, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(family=FONT, size=SIZE), ismath=False)
    return float(wide) / 72


def wrap(names: Sequence[str], inches: float) -> list[str]:
    """Names in lines that fit, broken alike: before their options, else between them, else each where it can be.

    Args:
        names: spoken.
        inches: room for a line.
    """
    for breaks in BREAKS[:WHOLE]:
        broken = [_fill(name, *breaks, inches) for name in names]
        if all(map(_fits(inches), broken)):
            break
    else:
        tried = [[_fill(name, *breaks, inches) for breaks in BREAKS] for name in names]
        broken = [next(filter(_fits(inches), own), own[-1]) for own in tried]
    return ["\n".join(own) for own in broken]


def whole(names: Sequence[str], inches: float) -> bool:
    """Whether the names fit without breaking `λ = 1 000`."""
    return all(_fits(inches)(_fill(name, *BREAKS[WHOLE - 1], inches)) for name in names)


def _fits(inches: float) -> Callable[[list[str]], bool]:
    return lambda broken: max(map(width, broken)) <= inches


def _fill(name: str, at: str, joint: str, inches: float) -> list[str]:
    """A name broken there, its pieces joined to lines as long as they fit."""
    found: list[str] = []
    for piece in re.split(at, name):
        if not found:
            found.append(piece)
            continue
        together = f"{found[-1]}{joint}{piece}"
        found[-1:] = [together] if width(together) <= inches else [found[-1], piece]
    return found


def lines(text: str) -> int:
    """How many lines a text has."""
    return 1 + text.count("\n")


@dataclass(frozen=True)
class Key:
    """Which strategy is which, to stand under the panels.

    Attributes:
        cast: of the report.
        strategies: those drawn.
        curves: they are lines with marks, not marks alone.
    """

    cast: Cast
    strategies: Sequence[str]
    curves: bool = True

    @property
    def names(self) -> list[str]:
        """As they are written."""
        return wrap([self.cast.names[s] for s in self.strategies], COLUMN - HANDLE[self.curves] - 0.1)

    @property
    def columns(self) -> int:
        """As many as fit beside each other."""
        wide = np.array([max(map(width, name.split("\n"))) + HANDLE[self.curves] for name in self.names])
        for columns in range(len(wide), 1, -1):
            if sum(column.max() for column in np.array_split(wide, columns)) <= COLUMN - 0.02:
                return columns
        return 1

    @property
    def height(self) -> float:
        """Inches."""
        rows = -(-len(self.strategies) // self.columns)
        return 0.12 + 0.14 * rows + LINE * sum(lines(name) - 1 for name in self.names)

    def draw(self, figure: Figure) -> None:
        """Put it under the panels of a figure, whose constrained layout makes room."""
        axis: Axes = figure.axes[0]
        for strategy, name in zip(self.strategies, self.names, strict=True):
            look = self.cast.looks[strategy]
            axis.plot([], [], ms=4, label=name, **(look.curve if self.curves else look.mark))
        handles, found = axis.get_legend_handles_labels()
        figure.legend(
            handles, found, loc="outside lower center", ncols=self.columns, frameon=False, borderpad=0.2,
            handlelength=2.2 if self.curves else 1, handletextpad=0.6, columnspacing=1, labelspacing=0.35,
        )  # fmt: skip


def ends_fit(cast: Cast, strategies: Sequence[str], height: float) -> bool:
    """Whether names have room at the ends of lines, beside a panel of that height in inches."""
    widest = max((width(cast.names[s]) for s in strategies), default=0)
    return widest <= 0.42 * COLUMN and len(strategies) * LINE <= height


def ends(axis: Axes, last: Mapping[str, tuple[float, float]], cast: Cast, height: float) -> None:
    """Name lines where they end, pushed apart so that no two names overlap.

    Args:
        axis: whose limits are final.
        last: x and y of each strategy's end, by label.
        cast: of the report.
        height: of the panel, inches.
    """
    axis.autoscale_view()  # or limits are found as late as when the figure is drawn
    to_panel = axis.transScale + axis.transLimits
    at = {strategy: to_panel.transform(point) for strategy, point in last.items()}
    order = sorted(at, key=lambda strategy: float(at[strategy][1]))
    places = apart([float(at[strategy][1]) for strategy in order], LINE / height)
    for strategy, place in zip(order, places, strict=True):
        look, (x, y) = cast.looks[strategy], at[strategy]
        beside: dict[str, Any] = {"transform": axis.transAxes, "clip_on": False}
        axis.plot([x, 1.01, 1.045], [y, y, place], color=look.colour, lw=0.5, **beside)
        axis.plot([1.055], [place], ms=4, **look.mark, **beside)
        axis.text(1.085, place, cast.names[strategy], va="center_baseline", transform=axis.transAxes)


def apart(places: Sequence[float], step: float) -> list[float]:
    """Sorted places pushed apart to at least `step`, within 0 to 1 as long as there is room, the rest below 0."""
    at = list(places)
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + step)
    if at:
        at[-1] = min(at[-1], 1.0)
    for i in range(len(at) - 1, 0, -1):
        at[i - 1] = min(at[i - 1], at[i] - step)
    return at


class PerCent(Formatter):
    """Shares in per cent without the sign, with as many decimals as the ticks need to be exact."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """One number alone."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """The texts of all ticks of an axis."""
        at = 100 * np.asarray(values, dtype=np.float64)
        decimals = next((d for d in range(6) if np.allclose(at, np.round(at, d), rtol=0, atol=1e-7)), 6)
        return [f"{x + 0.0:.{decimals}f}".replace("-", "−") for x in np.round(at, decimals)]


def per_cent(axis: Axes, side: str, ticks: int = 6) -> None:
    """Ticks in per cent without the sign, which belongs in the axis's label."""
    found = axis.xaxis if side == "x" else axis.yaxis
    found.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    found.set_major_formatter(PerCent())


def integers(axis: Axes, ticks: int = 5) -> None:
    """Whole numbers along x."""
    axis.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))


def strengths(axis: Axes, values: pd.Series, *, zero: bool, ticks: int = 5) -> None:
    """A logarithmic x axis for strengths such as λ; 0 may stand a step left of the others.

    Args:
        axis: whose x axis it is.
        values: that are shown, none below 0.
        zero: 0 has a place.
        ticks: at most, at powers of ten; where fewer than two are in the range, at its ends.
    """
    above = np.log10(values[values > 0])
    if above.empty:
        return  # 0 alone: nothing to spread
    if zero:
        # A quarter of the decades beside it keeps the tick at 0 clear of the next.
        axis.set_xscale("symlog", linthresh=10 ** above.min(), linscale=max(0.6, 0.25 * float(np.ptp(above))))
    else:
        axis.set_xscale("log")
    decades = np.arange(np.ceil(above.min() - 1e-9), above.max() + 1e-9)
    powers = 10.0 ** decades[:: max(1, -(-len(decades) // ticks))]
    ends = sorted({float(10 ** above.min()), float(10 ** above.max())})
    at = [0.0] * zero + (powers.tolist() if len(decades) > 1 else ends)
    axis.xaxis.set_major_locator(FixedLocator(at))
    axis.xaxis.set_major_formatter(FixedFormatter([names.number(f"{x:.6g}") for x in at]))
    axis.xaxis.set_minor_locator(NullLocator())


def lost(axis: Axes, rows: pd.DataFrame, colour: Colour, place: int = 0) -> None:
    """Marks at the foot of a panel for what has no value.

    Args:
        axis: with its x scale.
        rows: with columns `x` and `state`.
        colour: of the strategy.
        place: row of marks, from the bottom.
    """
    for state, mark in LOST.items():
        x = rows.loc[rows["state"] == state, "x"]
        y = [STEP * (place + 0.6)] * len(x)
        axis.plot(x, y, mark, ms=4, mew=1, color=colour, transform=axis.get_xaxis_transform())


def signs(states: pd.Series) -> dict[str, str]:
    """How the marks of what has no value are written, by state, of those there are."""
    return {state: mark.replace("x", "×") for state, mark in LOST.items() if (states == state).any()}


def foot(axes: Sequence[Axes], states: pd.Series, places: int = 1) -> None:
    """Set the marks of `lost` apart from what has a value, in panels that share their y axis.

    Args:
        axes: the panels.
        states: of everything drawn; without a lost one there is no foot.
        places: rows of marks.
    """
    if not states.isin(LOST.keys()).any():
        return
    height = STEP * (places + 0.2)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low - height / (1 - height) * (high - low), high)
    for axis in axes:
        axis.add_patch(Rectangle((0, 0), 1, height, transform=axis.transAxes, fc="0.93", ec="none", zorder=0))


def none(axis: Axes) -> None:
    """Say in an empty panel why it is empty."""
    axis.text(0.5, 0.5, "no run finished", ha="center", va="center", color=FAINT, transform=axis.transAxes)
