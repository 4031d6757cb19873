"""What the overview run shows, and what reports import."""

from __future__ import annotations

import subprocess
import sys

from matplotlib.colors import same_color

from reports import figures, overview
from tests.result_frames import frames


def test_an_overview_has_the_note_and_every_figure() -> None:
    runs, accuracy = frames()
    note, drawn = overview.contents(runs, accuracy)
    assert "naive" in note and "ewc" in note
    assert list(drawn) == [f"figures/{name}.png" for name in figures.every(runs, accuracy)]


def test_the_overview_gives_strategies_the_colours_they_have_in_figures() -> None:
    labels = ["naive", "ewc[lam=10]"]
    found = overview.colours(labels)
    assert all(same_color(found[label], figures.colours(labels)[label]) for label in labels)


def test_reports_import_neither_torch_nor_the_harness() -> None:
    code = "import sys, reports.overview; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "reports.figures" in loaded
    assert not loaded & {"torch", "mlflow", "benchmark.harness", "benchmark.learner", "strategies"}
