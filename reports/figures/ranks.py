"""Critical-difference diagram: mean ranks over several scenarios, and who is not told apart from whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from reports.figures.drawn import Drawn
from reports.figures.rows import row_panels
from reports.figures.style import INK, STYLE, Cast

BAR = 0.04  # between bars of groups, as a share of the axis


def critical_difference(
    mean_ranks: Mapping[str, float] | pd.Series,
    difference: float,
    groups: Iterable[Sequence[str]],
    scenarios: int,
    cast: Cast | None = None,
) -> Drawn:
    """A row a strategy, the best above, at its mean rank; bars at the right join strategies that are not told apart.

    It is the diagram of Demšar 2006 on its side, so that long names fit in a column.

    Args:
        mean_ranks: by label, 1 is best.
        difference: of mean ranks, from which on two strategies are told apart.
        groups: labels of strategies that are not told apart; groups may overlap.
        scenarios: over which ranks were averaged.
        cast: of the report; by default the strategies here, in their order.
    """
    cast = cast or Cast.of(mean_ranks.keys())
    ranks = pd.Series(mean_ranks).sort_values(kind="stable")
    order = [str(strategy) for strategy in ranks.index]
    last = len(order)
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        rows = row_panels(cast, order)
        axis = rows.axes[0]
        for strategy, y in rows.at.items():
            axis.plot([1, ranks[strategy]], [y, y], color="0.85", lw=0.8, zorder=1)
            axis.plot([ranks[strategy]], [y], ms=5, **cast.looks[strategy].mark)
        step = BAR * last
        bars = _packed(sorted(sorted(rows.at[s] for s in group) for group in groups if len(group) > 1))
        for column, own in enumerate(bars, start=1):
            for group in own:
                x = last + step * (column + 0.5)
                axis.plot([x, x], [group[0] - 0.06, group[-1] + 0.06], color=INK, lw=2.2, solid_capstyle="butt")
        axis.set_xlim(1 - 0.5 * step, last + step * (len(bars) + 1))
        axis.spines["bottom"].set_bounds(1, last)
        axis.set_xticks(range(1, last + 1, 1 if last <= 10 else 2))
        axis.set_xlabel(f"mean rank over {scenarios} scenarios (1: best)")
        _scale(axis, difference, last)
    caption = (
        f"Mean rank of each strategy over n = {scenarios} scenarios; the critical difference (Nemenyi, 5%) is "
        f"{difference:.2f}. Strategies joined by a bar are not told apart."
    )
    return Drawn(rows.figure, caption)


def _packed(groups: list[list[float]]) -> list[list[list[float]]]:
    """Groups of rows in columns of bars that do not touch."""
    columns: list[list[list[float]]] = []
    for group in groups:
        free = next((column for column in columns if column[-1][-1] < group[0]), None)
        if free is None:
            columns.append([group])
        else:
            free.append(group)
    return columns


def _scale(axis: Axes, difference: float, last: int) -> None:
    """How long the critical difference is on the axis."""
    ends, above = [1.0, 1.0 + min(difference, last - 1)], -0.07  # inches
    axis.plot(ends, [above, above], lw=1, marker="|", ms=5, mew=1, color=INK, clip_on=False)
    axis.text(1, above - 0.05, f"critical difference {difference:.2f}", va="bottom", color=INK)
