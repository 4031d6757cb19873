"""A report's folder, and the command that writes it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pandas as pd
import pytest

from reports import document, load, write
from reports.load import ReportError
from reports.table import Cell, Table, escape_latex, escape_markdown
from tests import synthetic_runs as made
from tests.test_end_to_end import forgetbench

ODD = "l2[note=a|b_c*d`e$f%g&h#i\\{j}<k>]"
PANDOC = write._pandoc()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `out/mlflow.db` with one experiment, one label of which has every special character."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "out").mkdir()
    records = [
        *made.seeds("naive", 3),
        *made.seeds("ewc[lam=10]", 3, keeps=0.9, lam="10"),
        *made.seeds(ODD, 3, keeps=0.7),
    ]
    made.track(f"sqlite:///{folder / 'out' / 'mlflow.db'}", "first", records, folder / "out")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> document.Document:
    return document.build(load.load(f"sqlite:///{folder / 'out' / 'mlflow.db'}"))


def test_a_report_is_markdown_tables_and_figures(report: document.Document, tmp_path: Path) -> None:
    write.write(report, tmp_path / "made")
    files = {str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert {
        "report.md",
        "report.json",
        "tables/main.tex",
        "tables/main.csv",
        "tables/paired.csv",
        "tables/runs.csv",
    } <= files
    text = (tmp_path / "made" / "report.md").read_text()
    for path in re.findall(r"\]\((\S+\.png)\)", text):
        assert path in files and path.replace(".png", ".pdf") in files
    assert not {f for f in files if f.startswith(".")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_markdown_alone_has_no_latex_and_no_vector_figures(report: document.Document, tmp_path: Path) -> None:
    write.write(report, tmp_path / "made", formats=("md",))
    assert not [path for path in (tmp_path / "made").rglob("*") if path.suffix in {".tex", ".pdf"}]


def test_the_same_runs_give_the_same_report(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        found = load.load(f"sqlite:///{folder / 'out' / 'mlflow.db'}")
        write.write(document.build(found), tmp_path / name)
    for path in (tmp_path / "one").rglob("*"):
        if path.suffix in {".md", ".tex", ".csv", ".json", ".pdf"}:
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_numbers_lead_back_to_run_ids(report: document.Document) -> None:
    (section,) = report.sections
    text = write.render(report)
    assert all(f"`{run_id}`" in text for run_id in section.runs["run_id"])


def test_an_older_report_is_replaced_as_a_whole(report: document.Document, tmp_path: Path) -> None:
    write.write(report, tmp_path / "made")
    (tmp_path / "made" / "tables" / "left_over.csv").write_text("old")
    write.write(report, tmp_path / "made")
    assert not (tmp_path / "made" / "tables" / "left_over.csv").exists()


def test_a_folder_that_is_no_report_is_left_alone(report: document.Document, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ReportError, match="is there and is no earlier report"):
        write.write(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_report_that_fails_leaves_the_older_one(
    report: document.Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write.write(report, tmp_path / "made")
    before = (tmp_path / "made" / "report.md").read_bytes()

    def full(*args: object, **given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.figures, "save", full)
    with pytest.raises(ReportError, match="No space left on device; choose another folder"):
        write.write(report, tmp_path / "made")
    assert (tmp_path / "made" / "report.md").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_template_replaces_a_block_or_everything(report: document.Document, tmp_path: Path) -> None:
    mine = tmp_path / "report.md.j2"  # of the built-in one's name
    mine.write_text('{% extends "report.md.j2" %}{% block title %}Mine{% endblock %}')
    assert write.render(report, mine).startswith("# Mine\n") and "### Findings" in write.render(report, mine)
    mine.write_text("{{ report.sections[0].findings | length }} findings")
    assert write.render(report, mine) == "3 findings\n"


def test_the_readmes_template_adds_a_sentence_to_the_limitations(report: document.Document, tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```jinja\n(.*?)```", readme, flags=re.S)
    (mine := tmp_path / "mine.j2").write_text(example)
    made = write.render(report, mine)
    assert made.count("### ") == write.render(report).count("### ")
    assert "\n\nWe ran this on a Tuesday.\n\n### Runs\n" in made


BLOCKS = re.findall(r"{% block (\w+)", (Path(write.__file__).parent / "templates" / "report.md.j2").read_text("utf-8"))


@pytest.mark.parametrize("block", [name for name in BLOCKS if name != "title"])
def test_what_replaces_or_follows_a_block_stands_apart_from_its_neighbours(
    report: document.Document, tmp_path: Path, block: str
) -> None:
    (mine := tmp_path / "mine.j2").write_text(
        f'{{% extends "report.md.j2" %}}{{% block {block} %}}Ours.{{% endblock %}}'
    )
    whole, replaced = write.render(report), write.render(report, mine)
    mine.write_text(f'{{% extends "report.md.j2" %}}{{% block {block} %}}{{{{ super() }}}}Ours.{{% endblock %}}')
    assert write.render(report, mine).replace("\n\nOurs.\n", "\n", 1) == whole
    heads = [[line for line in text.splitlines() if line.startswith("#")] for text in (whole, replaced)]
    headless = block in {"question", "ablation", "tuning", "ranking"}  # all but the first: nothing to say of these runs
    assert "\n\nOurs.\n" in replaced and len(heads[0]) - len(heads[1]) == (not headless)


@pytest.mark.parametrize(
    ("text", "said"), [("{% if %}", r", line 1: "), ("{{ nothing.there }}", "'nothing' is undefined")]
)
def test_a_broken_template_is_one_clear_message(
    report: document.Document, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "mine.j2").write_text(text)
    with pytest.raises(ReportError, match=said):
        write.render(report, tmp_path / "mine.j2")


def test_a_template_that_is_no_text_is_one_clear_message(report: document.Document, tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_bytes(b"caf\xe9")
    with pytest.raises(ReportError, match=r"template .*mine\.j2: .*can't decode byte"):
        write.render(report, tmp_path / "mine.j2")


# Special characters


def test_a_label_of_special_characters_stays_one_cell_of_each_table(report: document.Document, tmp_path: Path) -> None:
    (section,) = report.sections
    table = section.tables["main"]
    lines = table.markdown().splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert set(cells) == {len(table.header) + 1}
    rows = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.header) - 1}


def test_latex_is_escaped_and_ascii() -> None:
    assert escape_latex("a_b & 50% #1 {x} λ ± −1") == (
        r"a\_b \& 50\% \#1 \{x\} \ensuremath{\lambda} \ensuremath{\pm} \ensuremath{-}1"
    )
    assert escape_latex("1\u202f000") == r"1\,000"
    assert escape_latex(ODD).isascii()


def test_markdown_is_escaped() -> None:
    assert escape_markdown("a|b_c*d[e]") == r"a\|b\_c\*d\[e\]"


def test_a_table_is_booktabs_with_its_numbers_beside() -> None:
    frame = pd.DataFrame({"strategy": ["a"], "mean": [0.12345]})
    table = Table("t", "What it shows.\nMore.", ["strategy", "mean"], [["a", Cell("12.3", bold=True, mark="†")]], frame)
    assert table.latex().splitlines() == [
        "% What it shows.",
        "% More.",
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"strategy & mean \\",
        r"\midrule",
        r"a & \textbf{12.3}\rlap{\textsuperscript{{\textdagger}}} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(table.csv())), frame)


# Pandoc


@pytest.mark.skipif(PANDOC is None, reason="pandoc is not there")
def test_html_is_one_file_with_tables_and_figures_in_it(report: document.Document, tmp_path: Path) -> None:
    write.write(report, tmp_path / "made", formats=("md", "html"), say=pytest.fail)
    html = (tmp_path / "made" / "report.html").read_text()
    assert html.count("<table") >= 5 and "data:image/png;base64," in html
    assert not re.findall(r'(?:src|href)="(?!data:|#|https://)[^"]+"', html)
    # The odd label as it is, where it is said how it was typed.
    assert f"<code>{escape(ODD, quote=False)}</code>" in html


@pytest.mark.skipif(PANDOC is None, reason="pandoc is not there")
def test_pandoc_reads_every_table_of_the_markdown(report: document.Document, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(write.render(report))
    command = [str(PANDOC), "-f", "gfm", "-t", "json", str(tmp_path / "report.md")]
    blocks = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["blocks"]
    (section,) = report.sections
    shown = {"main", "tasks", "paired", "strategies"} & set(section.tables)
    # And the recipe, and one environment.
    assert sum(block["t"] == "Table" for block in blocks) == len(shown) + 2


def test_without_pandoc_the_rest_is_written_and_it_is_said(
    report: document.Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_pandoc", lambda: None)
    said: list[str] = []
    write.write(report, tmp_path / "made", formats=("md", "html", "pdf"), say=said.append)
    assert [line.partition(":")[0] for line in said] == ["no report.html", "no report.pdf"]
    assert "pip install forgetbench[pandoc]" in said[0]
    assert (tmp_path / "made" / "report.md").is_file()


@pytest.mark.skipif(PANDOC is None, reason="pandoc is not there")
def test_without_a_latex_engine_there_is_no_pdf_and_it_is_said(
    report: document.Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in write.ENGINES else there(name))
    said: list[str] = []
    write.write(report, tmp_path / "made", formats=("pdf",), say=said.append)
    assert said == [f"no report.pdf: no LaTeX engine is there; install one of {', '.join(write.ENGINES)}"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is there")
def test_the_tables_compile(report: document.Document, tmp_path: Path) -> None:
    write.write(report, tmp_path / "made")
    inputs = "\n\n".join(rf"\input{{tables/{path.stem}}}" for path in (tmp_path / "made" / "tables").glob("*.tex"))
    source = (
        rf"\documentclass{{article}}\usepackage{{booktabs,amsmath,textcomp}}\begin{{document}}{inputs}\end{{document}}"
    )
    (tmp_path / "made" / "all.tex").write_text(source)
    subprocess.run(["pdflatex", "-halt-on-error", "all.tex"], cwd=tmp_path / "made", check=True, capture_output=True)


# The command


def test_the_command_writes_a_report_and_says_what_it_found(folder: Path) -> None:
    done = forgetbench("report", "--format", "md", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "- EWC (λ = 10) forgets " in done.stdout
    assert done.stdout.splitlines()[-1] == "report   out/reports/first/report.md"
    text = (folder / "out" / "reports" / "first" / "report.md").read_text()
    assert "$ forgetbench report --format md\n" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experiment", "frist"], "no experiment 'frist'; there are first"),
        (["--format", "docx"], "unknown format 'docx': expected some of md, tex, html, pdf"),
        (["--baseline", "nothing"], "no runs of a baseline 'nothing'; choose one of them with --baseline: naive, "),
        (["--out", "nowhere"], "there is no tracking database"),
        (["--tracking-uri", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_wrong_arguments_are_one_clear_line(folder: Path, arguments: list[str], said: str) -> None:
    done = forgetbench("report", *arguments, cwd=folder)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_report_is_made_without_torch_or_the_harness(folder: Path) -> None:
    code = (
        "import sys\n"
        "from reports import document, load, write\n"
        f"write.render(document.build(load.load('sqlite:///{folder}/out/mlflow.db')))\n"
        "print(sorted({'torch', 'optuna', 'benchmark.harness'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "[]"
