"""The sample report in `docs/` is what its stored runs give."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from reports import document
from tests import sample_report as sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sample")


@pytest.fixture(scope="module")
def report(folder: Path) -> document.Document:
    made = sample.made(folder)
    sample.written(made, folder / "report")
    return made


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.name: pd.read_csv(path) for path in sorted((folder / "tables").glob("*.csv"))}


def test_tables_are_the_same_to_the_last_digit(report: document.Document, folder: Path) -> None:
    found, kept = tables(folder / "report"), tables(sample.SAMPLE)
    assert list(found) == list(kept)
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, kept[name], check_exact=True)


def test_the_text_and_the_runs_it_names_are_the_same(report: document.Document, folder: Path) -> None:
    for name in ("report.md", "report.json"):
        assert (folder / "report" / name).read_text() == (sample.SAMPLE / name).read_text(), name


def test_figures_show_the_same(report: document.Document) -> None:
    kept = json.loads(sample.STRUCTURE.read_text())
    assert json.loads(json.dumps(sample.structures(report))) == kept
    assert {path.stem for path in (sample.SAMPLE / "figures").iterdir()} == set(kept)
