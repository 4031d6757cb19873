"""Tables of results, and what the overview run shows."""

from __future__ import annotations

import math
import subprocess
import sys

import pandas as pd
import pytest
from matplotlib.colors import same_color

from reports import figures, overview, tables
from tests.result_frames import diverge, frames

NAN = float("nan")


# Tables

GOLDEN_RUNS = pd.DataFrame(
    {
        "strategy": ["naive", "naive", "naive", "l2[lam=1]"],
        "seed": [0, 1, 2, 0],
        "status": ["finished", "finished", "diverged", "finished"],
        "average_accuracy": [0.5, 0.7, NAN, 0.8],
        "forgetting": [0.4, 0.2, NAN, 0.1],
        "bwt": [-0.4, -0.2, NAN, -0.1],
        "fwt": [0.0, 0.1, NAN, 0.0],
        "learning_accuracy": [0.9, 0.9, NAN, 0.85],
    }
)
GOLDEN_ACCURACY = pd.DataFrame(
    [
        ("naive", 0, 1, 1, 0.9), ("naive", 0, 2, 1, 0.2), ("naive", 0, 2, 2, 0.8),
        ("naive", 1, 1, 1, 0.9), ("naive", 1, 2, 1, 0.4), ("naive", 1, 2, 2, 1.0),
        ("naive", 2, 1, 1, 0.9), ("naive", 2, 2, 1, NAN), ("naive", 2, 2, 2, NAN),
        ("l2[lam=1]", 0, 1, 1, 0.9), ("l2[lam=1]", 0, 2, 1, 0.7), ("l2[lam=1]", 0, 2, 2, 0.9),
    ],
    columns=["strategy", "seed", "after_task", "task", "accuracy"],
)  # fmt: skip


def test_the_markdown_table_of_golden_runs() -> None:
    cells = [
        [c.strip() for c in line.strip("|").split("|")]
        for line in tables.markdown(GOLDEN_RUNS, GOLDEN_ACCURACY).splitlines()
    ]
    assert cells[0] == [
        "strategy", "n", "task 1", "task 2", "average accuracy", "forgetting", "BWT", "FWT", "learning accuracy", "diverged",
    ]  # fmt: skip
    assert set("".join(cells[1])) <= set(":-")
    assert cells[2] == ["`naive`", "2", "30.0", "90.0", "60.0 ± 14.1", "30.0 ± 14.1", "-30.0 ± 14.1", "5.0 ± 7.1", "90.0 ± 0.0", "1"]  # fmt: skip
    assert cells[3] == ["`l2[lam=1]`", "1", "70.0", "90.0", "80.0", "10.0", "-10.0", "0.0", "85.0", ""]
    assert len(cells) == 4


def test_the_column_of_diverged_runs_is_there_only_if_some_diverged() -> None:
    runs, accuracy = frames()
    assert "diverged" not in tables.markdown(runs, accuracy)
    diverge(runs, accuracy, "naive", (1,))
    assert "diverged" in tables.markdown(runs, accuracy)


def test_a_summary_is_mean_and_sample_deviation_over_the_runs_that_finished() -> None:
    naive, l2 = tables.summary(GOLDEN_RUNS).to_dict("records")
    assert (naive["strategy"], naive["n"], naive["diverged"]) == ("naive", 2, 1)
    assert naive["average_accuracy"] == pytest.approx(0.6)
    assert naive["average_accuracy_std"] == pytest.approx(math.sqrt(2) / 10)
    assert (l2["n"], l2["diverged"], l2["average_accuracy"]) == (1, 0, 0.8)
    assert math.isnan(l2["average_accuracy_std"])


def test_strategies_stand_in_the_order_of_the_experiment() -> None:
    labels = ("zeta", "naive", "alpha", "ewc")
    runs, accuracy = frames(labels=labels)
    assert tuple(tables.summary(runs)["strategy"]) == labels
    assert tuple(tables.final_by_task(accuracy).index) == labels


def test_a_strategy_of_which_every_run_diverged_stays_in_the_table() -> None:
    runs, accuracy = frames()
    diverge(runs, accuracy, "naive", (0, 1, 2))
    row = next(line for line in tables.markdown(runs, accuracy).splitlines() if "naive" in line)
    assert [c.strip() for c in row.strip("|").split("|")] == ["`naive`", "0", *["–"] * 8, "3"]


def test_a_table_where_every_run_diverged_can_still_be_made() -> None:
    runs, accuracy = frames(labels=("naive",))
    diverge(runs, accuracy, "naive", (0, 1, 2))
    assert "| `naive`" in tables.markdown(runs, accuracy)


def test_many_tasks_have_no_column_each() -> None:
    assert "task 5" in tables.markdown(*frames(tasks=5))
    assert "task 1" not in tables.markdown(*frames(tasks=6))


def test_a_single_task_has_dashes_where_nothing_can_be_forgotten() -> None:
    row = tables.markdown(*frames(tasks=1, labels=("naive",))).splitlines()[2]
    assert [c.strip() for c in row.strip("|").split("|")][4:7] == ["–", "–", "–"]


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [(0.9754, 0.0031, "97.5 ± 0.3"), (0.5, NAN, "50.0"), (NAN, NAN, "–"), (NAN, 0.1, "–"), (-0.2, 0.0, "-20.0 ± 0.0")],
)
def test_numbers_are_shown_in_per_cent_with_what_is_known_of_their_spread(mean: float, std: float, text: str) -> None:
    assert tables.percent(mean, std) == text


# The overview


def test_an_overview_has_the_note_and_every_figure_with_its_caption() -> None:
    runs, accuracy = frames()
    note, drawn = overview.contents(runs, accuracy)
    wanted = figures.every(runs, accuracy)
    assert tables.markdown(runs, accuracy) in note
    assert list(drawn) == [f"figures/{name}.png" for name in wanted]
    for name, each in wanted.items():
        assert f"- `figures/{name}.png`: {each.caption}" in note.splitlines()


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
