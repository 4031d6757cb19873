"""Tables of results, and what the overview run shows."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from matplotlib.colors import same_color

from reports import compare, figures, overview, tables
from reports.table import Table
from tests.result_frames import diverge, frames

NAN = float("nan")


# Tables

GOLDEN_RUNS = pd.DataFrame(
    {
        "run_key": ["a", "b", "c", "d"],
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
        ("a", "naive", 0, 1, 1, 0.9), ("a", "naive", 0, 2, 1, 0.2), ("a", "naive", 0, 2, 2, 0.8),
        ("b", "naive", 1, 1, 1, 0.9), ("b", "naive", 1, 2, 1, 0.4), ("b", "naive", 1, 2, 2, 1.0),
        ("c", "naive", 2, 1, 1, 0.9), ("c", "naive", 2, 2, 1, NAN), ("c", "naive", 2, 2, 2, NAN),
        ("d", "l2[lam=1]", 0, 1, 1, 0.9), ("d", "l2[lam=1]", 0, 2, 1, 0.7), ("d", "l2[lam=1]", 0, 2, 2, 0.9),
    ],
    columns=["run_key", "strategy", "seed", "after_task", "task", "accuracy"],
)  # fmt: skip
NAMES = {"naive": "fine-tuning", "l2[lam=1]": "L2"}


def cells(table: Table) -> list[list[str]]:
    lines = table.markdown().replace("\u00a0", " ").splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def main(runs: pd.DataFrame) -> list[list[str]]:
    return cells(tables.main(runs, {label: label for label in runs["strategy"]}))


def test_the_main_table_of_golden_runs() -> None:
    found = cells(tables.main(GOLDEN_RUNS, NAMES))
    assert found[0] == ["strategy", "n", "average accuracy", "forgetting", "BWT", "FWT", "learning accuracy", "lost"]
    assert set("".join(found[1])) <= set(":-")
    # Two seeds: half the interval is t(0.975, 1) s / √2 = 12.706 · 0.1; where they are equal there is none.
    assert found[2] == ["fine-tuning", "2", "60.0 ± 127.1", "30.0 ± 127.1", "−30.0 ± 127.1", "5.0 ± 63.5", "90.0", "1"]
    assert found[3] == ["L2", "1", "80.0", "10.0", "−10.0", "0.0", "85.0", ""]
    assert len(found) == 4


def test_accuracy_where_tasks_are_told_has_a_column_and_an_explanation_where_runs_have_it() -> None:
    told = GOLDEN_RUNS.assign(task_aware_accuracy=[0.9, 0.8, NAN, NAN])
    table = tables.main(told, NAMES)
    assert cells(table)[0][-2:] == ["task-aware accuracy", "lost"] and "Task-aware: " in table.caption
    assert [row[-2] for row in cells(table)[2:]] == ["85.0 ± 63.5", "–"]
    assert "Task-aware" not in tables.main(GOLDEN_RUNS, NAMES).caption


def test_final_accuracy_on_each_task_is_over_the_runs_that_finished() -> None:
    found = cells(tables.final(GOLDEN_RUNS, GOLDEN_ACCURACY, NAMES))
    assert found[0] == ["strategy", "n", "task 1", "task 2"]
    assert found[2:] == [["fine-tuning", "2", "30.0 ± 127.1", "90.0 ± 127.1"], ["L2", "1", "70.0", "90.0"]]


@pytest.mark.parametrize(
    ("images", "header"),
    [("mnist, fashion-mnist", ["MNIST", "Fashion-MNIST"]), ("digits, mine:sets", ["digits", "mine:sets"]),
     ("mnist", ["task 1", "task 2"])],
)  # fmt: skip
def test_tasks_of_a_set_each_have_its_name(images: str, header: list[str]) -> None:
    assert list(tables.final(GOLDEN_RUNS.assign(images=images), GOLDEN_ACCURACY, NAMES).header[2:]) == header


def test_the_column_of_lost_runs_is_there_only_if_some_are() -> None:
    runs, accuracy = frames()
    assert "lost" not in main(runs)[0]
    diverge(runs, accuracy, "naive", (1,))
    assert main(runs)[0][-1] == "lost" and [row[-1] for row in main(runs)[2:]] == ["1", ""]


def test_a_summary_is_over_the_runs_that_finished() -> None:
    summary = compare.summary(GOLDEN_RUNS, ["average_accuracy", "forgetting"]).set_index(["strategy", "metric"])
    naive, l2 = (summary.loc[label, "average_accuracy"] for label in NAMES)
    assert (naive["n"], naive["mean"], naive["iqm"]) == (2, pytest.approx(0.6), pytest.approx(0.6))
    assert naive["std"] == pytest.approx(math.sqrt(2) / 10)
    assert (l2["n"], l2["mean"], l2["kind"]) == (1, 0.8, "too few") and math.isnan(l2["low"])


def test_strategies_stand_in_the_order_of_the_experiment() -> None:
    labels = ("zeta", "naive", "alpha", "ewc")
    runs, accuracy = frames(labels=labels)
    names = {label: label for label in labels}
    assert tuple(row[0] for row in main(runs)[2:]) == labels
    assert tuple(row[0] for row in cells(tables.final(runs, accuracy, names))[2:]) == labels


def test_a_strategy_of_which_every_run_diverged_stays_in_the_table() -> None:
    runs, accuracy = frames()
    diverge(runs, accuracy, "naive", (0, 1, 2))
    assert main(runs)[2] == ["naive", "0", *["–"] * 5, "3"]


def test_a_table_where_every_run_diverged_can_still_be_made() -> None:
    runs, accuracy = frames(labels=("naive",))
    diverge(runs, accuracy, "naive", (0, 1, 2))
    assert main(runs)[2] == ["naive", "0", "–", "3"]


def test_of_many_tasks_the_first_and_the_last_have_columns() -> None:
    runs, accuracy = frames(tasks=12)
    table = tables.final(runs, accuracy, {label: label for label in runs["strategy"]})
    assert list(table.header[2:]) == [f"task {j}" for j in (1, 2, 3, 4, 5, 8, 9, 10, 11, 12)]
    assert "Those between tasks 5 and 8 are in the CSV." in table.caption and table.frame["task"].nunique() == 12


def test_a_single_task_has_no_columns_for_what_cannot_be_forgotten() -> None:
    runs, _ = frames(tasks=1, labels=("naive",))
    assert main(runs)[0] == ["strategy", "n", "average accuracy", "learning accuracy"]


# The overview


def test_an_overview_has_the_note_and_every_figure_with_its_caption() -> None:
    runs, accuracy = frames()
    note, drawn = overview.contents(runs, accuracy)
    wanted = figures.every(runs, accuracy)
    assert tables.main(runs, {label: label for label in runs["strategy"]}).markdown() in note
    assert list(drawn) == [f"figures/{name}.png" for name in wanted]
    for name, each in wanted.items():
        assert f"- `figures/{name}.png`: {each.caption}" in note.splitlines()


def test_the_overview_gives_strategies_the_colours_they_have_in_figures() -> None:
    labels = ["naive", "ewc[lam=10]"]
    found = overview.colours(labels)
    assert all(same_color(found[label], figures.colours(labels)[label]) for label in labels)
