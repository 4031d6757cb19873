"""One style for every figure: sizes for a column of a paper, a colour-blind safe palette, and who looks how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports import names

COLUMN = 3.3
"""Width of a figure in inches: one column of a paper."""
FONT = "DejaVu Sans"  # comes with matplotlib, so figures do not depend on the machine
SIZE = 7
"""Of all text, in points."""
INK, FAINT = "0.15", "0.45"
# A name with dollar signs is a name, not a formula: no mathtext.
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.family": FONT,
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.labelsize": SIZE,
    "figure.labelsize": SIZE,
    "legend.fontsize": SIZE,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "savefig.dpi": 300,
}
# Petroff 2021, https://arxiv.org/abs/2107.02270: ten colours that colour-blind readers can tell apart; and black. His
# three palest are lines and small marks here: in their places stand darker ones, of a contrast with white of 3 : 1.
PALETTE = (
    "#3f90da", "#aa9350", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#085930", "#717581", "#222222",
    "#0d7091",
)  # fmt: skip
MOST = 16
"""Strategies in a figure that can still be told apart."""
MARKERS = "osD^vPX<>p"
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn, in every figure of a report.

    Attributes:
        colour: red, green and blue, 0 to 1.
        marker: as matplotlib names it.
        line: a line style.
    """

    colour: Colour
    marker: str
    line: Any

    @property
    def mark(self) -> dict[str, Any]:
        """For `plot`: marks without a line."""
        return {"color": self.colour, "marker": self.marker, "ls": "", "mew": 0}

    @property
    def curve(self) -> dict[str, Any]:
        """For `plot`: marks and a line."""
        return self.mark | {"ls": self.line}


@dataclass(frozen=True)
class Cast:
    """The strategies of a report: by their order they get their looks, and together names that tell them apart.

    Attributes:
        names: spoken, by label, in the order of the report.
        looks: by label.
    """

    names: Mapping[str, str]
    looks: Mapping[str, Look]

    @classmethod
    def of(cls, labels: Iterable[object]) -> Cast:
        """In the order in which labels appear, for instance in a column of a frame.

        Looks go by place. Of more than 16 strategies, those that differ in λ alone share a colour: one stands for all.
        """
        found = list(dict.fromkeys(map(str, labels)))
        if len(found) <= MOST:
            return cls(names.names(found), {label: look(i) for i, label in enumerate(found)})
        families: dict[str, list[str]] = {}
        for label in found:
            families.setdefault(names.family(label), []).append(label)
        looks = {label: look(place, i) for place, own in enumerate(families.values()) for i, label in enumerate(own)}
        return cls(names.names(found), {label: looks[label] for label in found})

    def among(self, labels: Iterable[object]) -> list[str]:
        """Those of its strategies that are among these labels, in its order."""
        found = set(map(str, labels))
        return [strategy for strategy in self.names if strategy in found]


def look(place: int, member: int = 0) -> Look:
    """Of the strategy at this place in a report's list, from 0.

    There are eleven colours; then they come again with another marker and line, so that forty strategies differ.

    Args:
        place: of the strategy, or of its family.
        member: place in its family, which changes the marker alone.
    """
    again, colour = divmod(place, len(PALETTE))
    marker = MARKERS[(colour + 3 * again + member) % len(MARKERS)]
    return Look(mpl.colors.to_rgb(PALETTE[colour]), marker, LINES[again % len(LINES)])


def colours(strategies: Sequence[str]) -> dict[str, Colour]:
    """The colour of each strategy in every figure, by label."""
    return {strategy: look.colour for strategy, look in Cast.of(strategies).looks.items()}


def figure(height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """An empty one, a column wide.

    Args:
        height: inches.
        layout: of its panels; `compressed` for those of a fixed shape.
    """
    return Figure(figsize=(COLUMN, height), layout=layout)


def panels(figure: Figure, rows: int = 1, columns: int = 1, **options: Any) -> NDArray[Any]:
    """Axes of a figure, shape (rows, columns)."""
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, **options)
    return axes


def panel(figure: Figure) -> Axes:
    """The one panel of a figure."""
    axis: Axes = panels(figure)[0, 0]
    return axis


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a figure as `stem.pdf`, `stem.png`, ...

    PDFs are vector graphics with TrueType fonts (type 42: text stays text, and publishers take it) and have no date, so
    equal figures are equal files; PNGs have 300 dots an inch.

    Args:
        figure: drawn by this package.
        stem: path without the ending; its folder exists.
        formats: endings that matplotlib knows.
    """
    written = [stem.with_name(f"{stem.name}.{ending}") for ending in formats]
    layout = figure.get_layout_engine()
    with mpl.rc_context(STYLE | {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "forgetbench"}):
        figure.draw_without_rendering()  # lays it out, once for all formats
        figure.set_layout_engine("none")
        for path in written:
            dated = {"pdf": "CreationDate", "svg": "Date"}.get(path.suffix[1:])
            figure.savefig(path, metadata={dated: None} if dated else None)
    figure.set_layout_engine(layout)
    return written
