"""A report's folder: Markdown, tables, figures, and what pandoc makes of them; replaced as a whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

import jinja2

from reports import figures
from reports.document import Document
from reports.load import ReportError
from reports.numbers import p_said, p_value
from reports.table import code, escape_markdown

Format = Literal["md", "tex", "html", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)
TEMPLATE = "report.md.j2"
MARKER = "report.json"
"""Made by a report and by nothing else: a folder that has it may be replaced."""
ENGINES = ("tectonic", "xelatex", "lualatex")
"""LaTeX engines that set λ and ± as they stand."""
MOST_IDS = 20  # run ids a strategy; the rest are in the table of runs


def write(
    document: Document,
    folder: Path,
    *,
    formats: Iterable[Format] = ("md", "tex"),
    template: Path | None = None,
    command: str = "forgetbench report",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the report, in place of an older one.

    Args:
        document: what it says.
        folder: made, or replaced if it is an older report.
        formats: Markdown is always there; `tex` adds tables and vector figures, `html` and `pdf` need pandoc.
        template: a Jinja2 file in place of, or extending, `report.md.j2`.
        command: that makes this report, for the reader.
        say: takes one line for each thing worth knowing.

    Raises:
        ReportError: the folder is something else, or cannot be written; the template has an error.
    """
    wanted = set(formats)
    _replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary, "report")
            made.mkdir()
            _fill(made, document, wanted, render(document, template, command))
            _convert(made, wanted, document.title, say)
            _swap(made, folder, Path(temporary, "older"))
    except OSError as error:
        raise ReportError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder with -o"
        ) from None


def checked(formats: str) -> list[Format]:
    """Formats as a list.

    Args:
        formats: names with commas between.

    Raises:
        ReportError: one is not known.
    """
    found = [name.strip() for name in formats.split(",") if name.strip()]
    if unknown := [name for name in found if name not in FORMATS]:
        raise ReportError(f"unknown format {unknown[0]!r}: expected some of {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in found]


def render(document: Document, template: Path | None = None, command: str = "forgetbench report") -> str:
    """The report as Markdown.

    Args:
        document: what it says.
        template: a Jinja2 file in place of, or extending, `report.md.j2`.
        command: that makes this report, for the reader.

    Raises:
        ReportError: the template is not there or has an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"md": escape_markdown, "code": code, "p_value": p_value, "p_said": p_said}
    try:
        # A string, so that a file of the built-in one's name may extend it.
        made = environment.from_string(template.read_text("utf-8")) if template else environment.get_template(TEMPLATE)
        text = made.render(report=document, command=command, most_ids=MOST_IDS)
    except (OSError, UnicodeDecodeError, jinja2.TemplateError) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise ReportError(f"template {template or TEMPLATE}{line}: {error}") from None
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _fill(folder: Path, document: Document, wanted: set[Format], text: str) -> None:
    (folder / "report.md").write_text(text, encoding="utf-8")
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    for section in document.sections:
        section.runs.to_csv(folder / "tables" / f"{section.stem}runs.csv", index=False, lineterminator="\n")
        for table in section.every_table:
            stem = f"{section.stem}{table.name}"  # with dots perhaps, as names of studies may have
            (folder / "tables" / f"{stem}.csv").write_text(table.csv(), encoding="utf-8")
            if "tex" in wanted:
                (folder / "tables" / f"{stem}.tex").write_text(table.latex(), encoding="utf-8")
    for name, drawn in document.every_figure.items():
        figures.save(drawn.figure, folder / "figures" / name, ("pdf", "png") if "tex" in wanted else ("png",))
    about = {"runs": [i for section in document.sections for i in section.runs["run_id"]], "tracking": document.uri}
    (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _convert(folder: Path, wanted: set[Format], title: str, say: Callable[[str], None]) -> None:
    """HTML and PDF through pandoc; without it, or where it fails, the rest of the report stands."""
    options = ["--standalone", "--metadata", f"pagetitle={title}", "--resource-path", str(folder.resolve())]
    ways = {"html": _html(), "pdf": _pdf()}
    for ending in [ending for ending in ways if ending in wanted]:
        pandoc, engine = _pandoc(), next(filter(shutil.which, ENGINES), None)
        if pandoc is None:
            say(f"no report.{ending}: pandoc is not there; install it, or `pip install forgetbench[pandoc]`")
        elif ending == "pdf" and engine is None:
            say(f"no report.pdf: no LaTeX engine is there; install one of {', '.join(ENGINES)}")
        else:
            extra = [f"--pdf-engine={engine}"] if ending == "pdf" else []
            source, made = str(folder.resolve() / "report.md"), str(folder.resolve() / f"report.{ending}")
            command = [pandoc, source, "-o", made, *options, *ways[ending], *extra]
            with tempfile.TemporaryDirectory(prefix="forgetbench-") as scratch:  # LaTeX leaves logs where it runs
                done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                say(f"no report.{ending}: pandoc failed: {' '.join(done.stderr.split())[:300]}")


def _html() -> list[str]:
    """One file, as wide as the tables, figures not wider than they are on paper."""
    style = "<style>img { max-width: 30em; }</style>"
    return ["-f", "gfm", "--embed-resources", "-V", "maxwidth=56em", "-V", f"header-includes={style}"]


def _pdf() -> list[str]:
    """Fonts that have λ, and tables whose columns break their lines: pandoc's own Markdown gives columns widths."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    found = f"Path={fonts}/,Extension=.ttf,BoldFont=*-Bold,ItalicFont=*-"
    variables = {
        "mainfont": "DejaVuSerif",
        "mainfontoptions": f"{found}Italic",
        "monofont": "DejaVuSansMono",
        "monofontoptions": f"{found}Oblique,Scale=0.8",
        "geometry": "a4paper,margin=15mm",
    }
    return [
        "-f",
        "markdown-yaml_metadata_block-implicit_figures",
        *(text for k, v in variables.items() for text in ("-V", f"{k}={v}")),
    ]


def _pandoc() -> str | None:
    """The program on the path, or the one that the package pypandoc-binary brings."""
    if found := shutil.which("pandoc"):
        return found
    try:
        import pypandoc

        return str(pypandoc.get_pandoc_path())
    except (ImportError, OSError):
        return None


def _replaceable(folder: Path) -> None:
    """Whatever else a folder holds is not ours to remove.

    Raises:
        ReportError: the folder is there, and is no report.
    """
    if folder.exists() and not (folder / MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ReportError(f"{folder} is there and is no earlier report; choose another folder with -o, or remove it")


def _swap(made: Path, folder: Path, older: Path) -> None:
    if folder.exists():
        folder.rename(older)
    try:
        made.rename(folder)
    except OSError:
        if older.exists():
            older.rename(folder)
        raise
