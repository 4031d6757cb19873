"""What was measured, for people: tables in the terminal and in Markdown, a CSV file, a figure."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.perf.measuring import Row


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        title: above it.
        unit: of the values.
        ratio: what the last column is; a `share` is shown in per cent.
        rows: in order.
        along: the size that each row stands for, where they are points of a curve, and what is counted.
    """

    title: str
    unit: str
    ratio: str
    rows: list[Row]
    along: tuple[str, Sequence[float]] | None = None

    def cells(self) -> list[tuple[str, str, str]]:
        """Every row as text."""
        show = {"share": "{:.0%}", "exponent": "{:.2f}"}.get(self.ratio, "{:.1f}")
        ratios = ["" if math.isnan(row.ratio) else show.format(row.ratio) for row in self.rows]
        return [(row.name, f"{row.value:.3g}", ratio) for row, ratio in zip(self.rows, ratios, strict=True)]


def printed(console: Console, section: Section) -> None:
    """Show a table in the terminal."""
    table = Table("", section.unit, section.ratio, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for cells in section.cells():
        table.add_row(*cells)
    console.print(section.title, style="italic", highlight=False)  # as a table's own it would wrap at its width
    console.print(table)
    console.print()


def markdown(section: Section) -> str:
    """The same, ready for `docs/performance.md`."""
    lines = [f"| | {section.unit} | {section.ratio} |", "|:--|--:|--:|"]
    return "\n".join([*lines, *(f"| {name} | {value} | {ratio} |" for name, value, ratio in section.cells())])


def written(folder: Path, sections: list[Section]) -> None:
    """Leave `perf.csv`, `perf.md` and `perf.pdf` in a folder.

    Args:
        folder: made where it is missing.
        sections: the first one is drawn, or all that are curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "perf.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("section", "name", "unit", "value", "ratio"))
        for s in sections:
            writer.writerows((s.title, row.name, s.unit, f"{row.value:.6g}", f"{row.ratio:.4g}") for row in s.rows)
    (folder / "perf.md").write_text("\n\n".join(f"## {s.title}\n\n{markdown(s)}" for s in sections) + "\n")
    if curves := [section for section in sections if section.along]:
        _curves(folder / "perf.pdf", curves)
    else:
        _bars(folder / "perf.pdf", sections[0])


def _bars(path: Path, section: Section) -> None:
    """Bars of the ratios, in the order of the table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 0.25 * len(section.rows) + 0.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.name for row in section.rows], [row.ratio for row in section.rows], color="#4477aa")
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlabel(f"{section.title}: {section.ratio}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _curves(path: Path, sections: list[Section]) -> None:
    """What grows with what, a panel a section, both axes logarithmic, beside a line of exponent 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullLocator

    along = list(dict.fromkeys(section.along[0] for section in sections if section.along))
    units = list(dict.fromkeys(section.unit for section in sections))
    figure = Figure(figsize=(6.75, 1.8 * len(units)), layout="constrained")
    panels = figure.subplots(len(units), len(along), squeeze=False)
    for section in sections:
        name, sizes = section.along or ("", ())
        axes = panels[units.index(section.unit)][along.index(name)]
        values = [row.value for row in section.rows]
        axes.loglog(sizes, [values[-1] * size / sizes[-1] for size in sizes], "--", color="#999999", linewidth=0.8)
        axes.loglog(sizes, values, "o-", color="#4477aa", markersize=3, linewidth=1.2)
        axes.set_ylim(min(values) / 2, max(values) * 2)
        axes.set_xlabel(name, fontsize=8)
        axes.set_ylabel(section.unit, fontsize=8)
        axes.set_xticks(sizes[:: -(-len(sizes) // 5)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(places=0))
        axes.tick_params(which="both", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
