"""A table that can be written as Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd


class Cell(NamedTuple):
    """What stands in a table.

    Attributes:
        text: plain, not escaped.
        bold: whether it stands out.
        mark: a sign after it, such as a dagger.
    """

    text: str
    bold: bool = False
    mark: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a report.

    Attributes:
        name: of its files.
        caption: what it shows, in plain text, with the kind of interval.
        header: one text a column; the first column is of names, the others are aligned to the right.
        rows: one cell or text a column.
        frame: the numbers behind it, as they are.
        left: columns beside the first that hold words.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    frame: pd.DataFrame
    left: frozenset[int] = field(default=frozenset())

    def markdown(self) -> str:
        """GitHub-flavoured, as pandoc reads it too."""
        from tabulate import tabulate

        rows = [[_markdown(_cell(cell)) for cell in row] for row in self.rows]
        header = [escape_markdown(text) for text in self.header]
        # Not padded: a table of long labels would be wider than any diff.
        return str(tabulate(rows, header, tablefmt="pipe", colalign=self._alignment(), disable_numparse=True))

    def latex(self) -> str:
        r"""A booktabs `tabular` to `\input`, with its caption as a comment."""
        lines = [" & ".join(_latex(_cell(cell)) for cell in row) + r" \\" for row in self.rows]
        columns = "".join("l" if side == "left" else "r" for side in self._alignment())
        head = " & ".join(escape_latex(text) for text in self.header) + r" \\"
        caption = "\n".join(f"% {line}" for line in self.caption.splitlines())
        body = [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join([caption, "% needs \\usepackage{booktabs}", *body, ""])

    def csv(self) -> str:
        """The numbers behind the table."""
        return str(self.frame.to_csv(index=False, lineterminator="\n"))

    def _alignment(self) -> list[str]:
        return ["left" if i == 0 or i in self.left else "right" for i in range(len(self.header))]


def escape_markdown(text: str) -> str:
    """Text that Markdown would take for markup, as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", text).replace("\n", " ")


def escape_latex(text: str) -> str:
    """Text as LaTeX sets it, whatever characters it has: λ and ± as commands, so that pdfLaTeX takes them too."""
    from pylatexenc.latexencode import unicode_to_latex

    narrow = r"\,".join(unicode_to_latex(part, unknown_char_policy="keep") for part in text.split("\u202f"))
    return narrow.replace("\n", " ")


def code(text: str) -> str:
    """Markdown for a text as it is typed, backticks and bars included."""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _markdown(cell: Cell) -> str:
    text = _unbroken(escape_markdown(cell.text))
    return f"**{text}**{cell.mark}" if cell.bold else f"{text}{cell.mark}"


def _unbroken(text: str) -> str:
    """With no-break spaces where a narrow column would tear a number from its interval's half or other end."""
    return re.sub(r"(?<=[\d]), (?=[\d−])", ",\u00a0", text.replace(" ± ", "\u00a0±\u00a0"))


def _latex(cell: Cell) -> str:
    text = escape_latex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    return text + (rf"\rlap{{\textsuperscript{{{escape_latex(cell.mark)}}}}}" if cell.mark else "")
