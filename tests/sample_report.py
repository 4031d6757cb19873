"""The sample report of `docs/`, made again from the results that are stored here.

`tests/data/mnist-fashion` is what `forgetbench run mnist-fashion seeds=10` left in its folder. Delivered to a tracking
database of its own, it gives the report: `python -m tests.sample_report` writes it anew after a change of reports.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmark import experiment
from benchmark.tracking import Tracker
from reports import document, load, overview, write

HERE = Path(__file__).parent
STORED = HERE / "data" / "mnist-fashion"
STRUCTURE = STORED / "figures.json"
SAMPLE = HERE.parent / "docs" / "sample-report"
COMMAND = "forgetbench report --experiment mnist-fashion --format md -o docs/sample-report"


def made(folder: Path) -> document.Document:
    """The report's document, by way of a tracking database in this folder."""
    results = shutil.copytree(STORED, folder / "out" / STORED.name)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    experiment.sync(results, lambda: Tracker(uri, STORED.name, folder / "mlartifacts"), overview)
    return dataclasses.replace(document.build(_without_chance(load.load(uri))), uri="sqlite:///out/mlflow.db")


def _without_chance(tracked: load.Tracked) -> load.Tracked:
    """MLflow draws ids and the clock goes on: what stands for them here changes where a report does."""
    (overview,) = tracked.overviews.values()
    return dataclasses.replace(
        tracked,
        runs=tracked.runs.assign(
            run_id=tracked.runs["run_key"], overview="overview", started=pd.Timestamp("2026-01-01")
        ),
        accuracy=tracked.accuracy.assign(run_id=tracked.accuracy["run_key"]),
        overviews={"overview": dataclasses.replace(overview, run_id="overview")},
    )


def written(report: document.Document, folder: Path) -> None:
    write.write(report, folder, formats=("md",), command=COMMAND)


def structure(figure: Figure) -> list[dict[str, Any]]:
    """What a figure shows, whatever its pixels: of each panel its words and how many lines, bands and images it has."""
    return [
        {
            "title": axis.get_title() or axis.get_title(loc="left"),
            "x": axis.get_xlabel(),
            "y": axis.get_ylabel(),
            "words": sorted(text.get_text() for text in axis.texts if text.get_text()),
            "lines": len(axis.lines),
            "collections": len(axis.collections),
            "images": len(axis.images),
        }
        for axis in figure.axes
        if axis.get_visible()
    ]


def structures(report: document.Document) -> dict[str, Any]:
    return {name: structure(drawn.figure) for name, drawn in report.every_figure.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = made(Path(folder))
        written(report, SAMPLE)
    STRUCTURE.write_text(json.dumps(structures(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
