"""Results on disk: tables that read back equal, and that no crash, damage or second process can spoil."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from benchmark import config, experiment, metrics, results
from benchmark.results import ResultsError, Store
from benchmark.runs import Evaluation, Result, Run
from benchmark.session import Session
from reports import overview

ENTRIES = [{"name": "naive"}, {"name": "ewc", "lam": [10, 0.1]}]


def made(**changes: Any) -> config.Experiment:
    """An experiment of two tasks, two seeds and three strategies."""
    content = {"name": "trial", "scenario": {"name": "permuted-digits", "tasks": 2}, "seeds": 2, "strategy": ENTRIES}
    return config.parse(content | changes)


def result(run: Run, matrix: NDArray[np.float64] | None = None, **changes: Any) -> Result:
    """A result without training."""
    shape = (run.scenario.tasks + 1, run.scenario.tasks)
    accuracy = matrix if matrix is not None else np.random.default_rng(int(run.key, 16)).random(shape)
    given = Result(run, "finished", accuracy, train_seconds=1.25, stack_size=3, trunk_runs=2)
    return dataclasses.replace(given, **changes)


def kept(folder: Path, found: Sequence[Result]) -> None:
    with Store(folder) as store:
        store.add(found)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# What the tables hold


def test_runs_csv_has_one_row_a_run_with_every_hyperparameter_recipe_field_and_metric(tmp_path: Path) -> None:
    found = [result(run) for run in made().runs()]
    kept(tmp_path, found)
    table = rows(tmp_path / "runs.csv")
    assert [(r["run_key"], r["strategy"], int(r["seed"])) for r in table] == [
        (r.run.key, r.run.label, r.run.seed) for r in found
    ]
    first, last = table[0], table[-1]
    assert list(first)[:4] == ["run_key", "strategy", "seed", "status"]
    assert {*found[0].run.recipe.spec(), "lam", "estimator", "scenario", "model"} <= set(first)
    assert (first["lam"], last["lam"], last["estimator"], last["lr"]) == ("", "0.1", "empirical", "0.0001")
    for row, r in zip(table, found, strict=True):
        for name, value in metrics.summary(r.accuracy).items():
            assert float(row[name]) == value
    assert (first["train_seconds"], first["stack_size"], first["trunk_runs"]) == ("1.250", "3", "2")


def test_accuracy_csv_has_one_row_a_cell_tasks_counted_from_one(tmp_path: Path) -> None:
    (run, *_) = made().runs()
    kept(tmp_path, [result(run, np.array([[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]]))])
    table = rows(tmp_path / "accuracy.csv")
    assert [(int(r["after_task"]), int(r["task"]), float(r["accuracy"])) for r in table] == [
        (0, 1, 0.0), (0, 2, 0.1), (1, 1, 0.2), (1, 2, 0.3), (2, 1, 0.4), (2, 2, 0.5),
    ]  # fmt: skip
    assert {r["run_key"] for r in table} == {run.key}


def test_evaluations_during_training_go_to_a_table_of_their_own_and_into_three_metrics(tmp_path: Path) -> None:
    first, second, *_ = made().runs()
    points = [(1, 5, [0.9, 0.1]), (2, 3, [0.5, 0.2]), (2, 5, [0.7, 0.8])]
    trace = [Evaluation(task, step, np.array(accuracy)) for task, step, accuracy in points]
    kept(tmp_path, [result(first, trace=trace), result(second)])
    table = rows(tmp_path / "anytime.csv")
    assert [(int(r["training_task"]), int(r["step"]), int(r["task"]), float(r["accuracy"])) for r in table] == [
        (task, step, j, accuracy) for task, step, cells in points for j, accuracy in enumerate(cells, start=1)
    ]
    traced, plain = rows(tmp_path / "runs.csv")
    assert (float(traced["min_acc"]), float(traced["wc_acc"])) == pytest.approx((0.5, 0.8 / 2 + 0.5 / 2))
    assert float(traced["average_anytime_accuracy"]) == pytest.approx((0.9 + 0.35 + 0.75) / 3)
    assert plain["min_acc"] == plain["wc_acc"] == plain["average_anytime_accuracy"] == ""


def test_accuracy_where_tasks_are_told_is_a_metric_of_the_runs_that_have_it(tmp_path: Path) -> None:
    first, second, *_ = made().runs()
    kept(tmp_path, [result(first, told=np.array([0.5, 0.7])), result(second)])
    assert [row["task_aware_accuracy"] for row in rows(tmp_path / "runs.csv")] == ["0.6", ""]
    with Store(tmp_path) as store:
        assert store.records[first.key].values["task_aware_accuracy"] == 0.6
        assert "task_aware_accuracy" not in store.records[second.key].values


def test_without_evaluations_during_training_there_is_no_table_of_them(tmp_path: Path) -> None:
    kept(tmp_path, [result(run) for run in made().runs()])
    assert not (tmp_path / "anytime.csv").exists()


accuracies = st.one_of(st.floats(0, 1), st.just(math.nan))


@given(st.integers(1, 4).flatmap(lambda t: arrays(np.float64, (t + 1, t), elements=accuracies)), st.data())
def test_what_is_read_back_equals_what_was_kept(
    tmp_path_factory: pytest.TempPathFactory, matrix: NDArray[np.float64], draw: st.DataObject
) -> None:
    tasks = matrix.shape[1]
    evaluation = st.builds(
        Evaluation,
        task=st.integers(1, tasks),
        step=st.integers(1, 99),
        accuracy=arrays(np.float64, (tasks,), elements=accuracies),
    )
    trace = draw.draw(st.lists(evaluation, max_size=3, unique_by=lambda e: (e.task, e.step)))
    # Every task that comes before one with evaluations has some.
    trace = sorted(trace, key=lambda e: (e.task, e.step)) if {e.task for e in trace} == set(range(1, tasks + 1)) else []
    run = made(scenario={"name": "permuted-digits", "tasks": tasks}).runs()[-1]
    folder = tmp_path_factory.mktemp("results")
    with Store(folder) as store:
        (before,) = store.add([result(run, matrix, status="diverged", trace=trace)])
    with Store(folder) as store:
        (after,) = store.records.values()
    for name in ("run_key", "strategy", "seed", "status", "fields", "facts"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_equal(after.values, before.values)
    np.testing.assert_array_equal(after.accuracy, matrix)
    assert [(task, step) for task, step, _ in after.trace] == [(e.task, e.step) for e in trace]
    for (_, _, accuracy), e in zip(after.trace, trace, strict=True):
        np.testing.assert_array_equal(accuracy, e.accuracy)


def test_written_again_the_tables_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    found = [result(run) for run in made().runs()]
    kept(tmp_path, found)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    with Store(tmp_path) as store:
        store.add([])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before


def test_results_of_a_second_stack_join_those_of_the_first(tmp_path: Path) -> None:
    first, *others = [result(run) for run in made().runs()]
    kept(tmp_path, [first])
    kept(tmp_path, others)
    assert [r["run_key"] for r in rows(tmp_path / "runs.csv")] == [r.run.key for r in [first, *others]]
    assert len(rows(tmp_path / "accuracy.csv")) == 6 * len([first, *others])


def test_a_label_with_a_comma_stays_one_cell(tmp_path: Path) -> None:
    entry = {"name": "ewc", "estimator": ["exact"], "lam": 3}
    kept(tmp_path, [result(run) for run in made(strategy=[entry]).runs()])
    assert {r["strategy"] for r in rows(tmp_path / "accuracy.csv")} == {"ewc[estimator=exact,lam=3]"}


# Crashes and damage


@pytest.mark.parametrize("table", ["runs.csv", "accuracy.csv"])
def test_a_crash_while_writing_leaves_no_litter_and_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    replace = Path.replace

    def crash(path: Path, target: Path) -> Path:
        if target.name == table:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", crash)
    with Store(tmp_path) as store, pytest.raises(ResultsError, match="No space left on device"):
        store.add([result(run) for run in made().runs()])
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} <= {"accuracy.csv", ".lock"}
    with Store(tmp_path) as store:
        assert not store.records


@pytest.mark.parametrize("room", [0, 50, 400, 600])
def test_on_a_full_disk_runs_that_were_there_stay_and_others_are_whole_or_not_there(tmp_path: Path, room: int) -> None:
    first, *others = [result(run) for run in made().runs()]
    kept(tmp_path / "undisturbed", [first])
    kept(tmp_path / "undisturbed", others)
    kept(tmp_path / "trial", [first])
    before = {path.name: path.stat().st_size for path in (tmp_path / "trial").glob("*.csv")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(tmp_path / "trial") as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(before.values()) + room, hard))
        try:
            with pytest.raises(ResultsError, match=r"cannot write to .*trial: (File too large|No space left)"):
                store.add(others)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Store(tmp_path / "trial") as store:
        assert set(store.records) == {first.run.key}
        store.add(others)
    for name in before:
        assert (tmp_path / "trial" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


@pytest.mark.parametrize("table", ["runs.csv", "accuracy.csv"])
def test_killed_while_rows_are_appended_nothing_is_there_twice_afterwards(tmp_path: Path, table: str) -> None:
    found = [result(run) for run in made().runs()]
    kept(tmp_path, found)
    undisturbed = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    lines = undisturbed[table].splitlines(keepends=True)
    for cut in (1, len(lines[-1]) // 2, len(lines[-1]) - 1, len(lines[-1])):
        (tmp_path / table).write_bytes(undisturbed[table][:-cut])
        if table == "accuracy.csv":  # which comes first: nothing names its rows yet
            (tmp_path / "runs.csv").write_bytes(b"".join(undisturbed["runs.csv"].splitlines(keepends=True)[:-1]))
        with Store(tmp_path) as store:
            assert set(store.records) == {r.run.key for r in found[:-1]}
            store.add(found[-1:])
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == undisturbed


def test_a_row_cut_off_at_a_line_end_within_quotes_is_not_there(tmp_path: Path) -> None:
    first, last, *_ = [result(run) for run in made().runs()]
    kept(tmp_path, [first, dataclasses.replace(last, status="failed", reason="one line\nand another")])
    table = tmp_path / "runs.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[: whole.rindex(b"and another")])
    with Store(tmp_path) as store:
        assert set(store.records) == {first.run.key}
        store.add([last])
    with Store(tmp_path) as store:
        assert set(store.records) == {first.run.key, last.run.key}


def test_a_stack_that_ends_writes_its_own_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, *_ = [result(run) for run in made().runs()]
    kept(tmp_path, [first])
    written: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: written.append(target.name) or replace(path, target))
    with Store(tmp_path) as store:
        store.add([second])
        assert written == []
        trace = [Evaluation(1, 5, np.array([0.9, 0.1])), Evaluation(2, 5, np.array([0.9, 0.1]))]
        store.add([dataclasses.replace(third, trace=trace)])  # columns that were not there
        assert written == ["anytime.csv", "runs.csv"]
    with Store(tmp_path) as store:
        assert len(store.records) == 3 and len(store.records[third.run.key].trace) == 2


def test_a_run_that_failed_is_tried_again_and_its_result_takes_the_place_of_the_failure(tmp_path: Path) -> None:
    first, second, *_ = made().runs()
    lost = result(first, np.full((3, 2), np.nan), status="failed", reason="KeyError: 'x', \"y\"")
    kept(tmp_path, [lost, result(second)])
    with Store(tmp_path) as store:
        assert (store.settled(first), store.settled(second)) == (False, True)
        assert (store.records[first.key].status, store.records[first.key].reason) == ("failed", "KeyError: 'x', \"y\"")
        store.add([result(first)])
    assert [(r["status"], r.get("reason")) for r in rows(tmp_path / "runs.csv")] == [("finished", None)] * 2
    assert len(rows(tmp_path / "accuracy.csv")) == 12


def test_accuracies_are_on_disk_before_a_run_counts_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: order.append(target.name) or replace(path, target))
    kept(tmp_path, [result(run) for run in made().runs()])
    assert order == ["accuracy.csv", "runs.csv"]


@pytest.mark.parametrize("table", ["runs.csv", "accuracy.csv"])
def test_a_table_cut_off_anywhere_costs_only_the_runs_it_no_longer_holds(tmp_path: Path, table: str) -> None:
    found = [result(run) for run in made(seeds=1).runs()]
    kept(tmp_path, found)
    with Store(tmp_path) as store:
        whole = dict(store.records)
    text = (tmp_path / table).read_bytes()
    for end in range(0, len(text) - 1, 7):
        (tmp_path / table).write_bytes(text[:end])
        with Store(tmp_path) as store:
            for key, held in store.records.items():
                # A cut-off number reads as a shorter one: of the last row alone, and only in its last cell.
                if table == "accuracy.csv":
                    np.testing.assert_allclose(held.accuracy[:-1], whole[key].accuracy[:-1])
                else:
                    assert held.values == whole[key].values
        assert set(store.records) <= set(whole)


def test_a_cut_off_accuracy_is_not_taken_for_a_measured_one(tmp_path: Path) -> None:
    run, *_ = made().runs()
    kept(tmp_path, [result(run, np.full((3, 2), 0.9876))])
    text = (tmp_path / "accuracy.csv").read_text()
    assert text.endswith("0.9876\n")
    (tmp_path / "accuracy.csv").write_text(text[:-4])  # 0.98
    with Store(tmp_path) as store:
        assert run.key not in store.records


def test_a_table_cut_off_within_a_character_is_as_good_as_any(tmp_path: Path) -> None:
    found = [dataclasses.replace(result(run), reason="zu groß") for run in made(seeds=1).runs()]
    kept(tmp_path, found)
    text = (tmp_path / "runs.csv").read_bytes()
    (tmp_path / "runs.csv").write_bytes(text[: text.rindex("ß".encode()) + 1])
    with Store(tmp_path) as store:
        assert {*store.records} == {r.run.key for r in found[:-1]}


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        ("accuracy.csv", lambda row: row | {"after_task": "7"}),
        ("accuracy.csv", lambda row: row | {"after_task": "x"}),
        ("accuracy.csv", lambda row: row | {"accuracy": ""}),
        ("accuracy.csv", lambda row: None if row["task"] == "2" else row),
        ("accuracy.csv", lambda row: None),
        ("runs.csv", lambda row: row | {"seed": "x"}),
        ("runs.csv", lambda row: row | {"bwt": "x"}),
        ("runs.csv", lambda row: None),
    ],
)
def test_a_damaged_run_trains_again_and_the_others_stay(tmp_path: Path, table: str, damage: Any) -> None:
    first, *others = [result(run) for run in made().runs()]
    kept(tmp_path, [first, *others])
    lines = [damage(row) if row["run_key"] == first.run.key else row for row in rows(tmp_path / table)]
    pd.DataFrame([line for line in lines if line is not None]).to_csv(tmp_path / table, index=False)
    with Store(tmp_path) as store:
        assert set(store.records) == {r.run.key for r in others}


def test_a_table_that_is_no_text_is_said_in_one_message(tmp_path: Path) -> None:
    kept(tmp_path, [result(run) for run in made().runs()])
    (tmp_path / "runs.csv").write_bytes(b"run_key,\xff\xfe\x00\n\x80,1\n")
    with pytest.raises(ResultsError, match=r"runs\.csv"), Store(tmp_path):
        pass


# One process at a time


def test_a_folder_that_another_command_writes_to_is_refused_with_who_and_what_to_do(tmp_path: Path) -> None:
    who = rf"another forgetbench command \(process {os.getpid()} on {platform.node()}, since 20.*\) .* choose --out"
    with Store(tmp_path):
        for _ in range(2):  # who asks in vain changes nothing
            with pytest.raises(ResultsError, match=who), Store(tmp_path):
                pass
    with Store(tmp_path) as store:
        assert store.records == {}


HOLDS = """
import sys, time
from pathlib import Path
from benchmark.results import Store
with Store(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_command_that_was_killed_is_nobodys(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ResultsError, match=rf"process {holder.pid} on"), Store(tmp_path):
            pass
        holder.kill()
    with Store(tmp_path) as store:
        store.add([result(run) for run in made().runs()])
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "runs.csv", "accuracy.csv"}


@pytest.mark.parametrize("folder", ["/proc/forgetbench", "/sys/forgetbench"])
def test_a_place_that_cannot_be_written_to_is_refused_with_what_to_do(folder: str) -> None:
    with pytest.raises(ResultsError, match=rf"cannot write to {folder}: .*; choose another --out"), Store(Path(folder)):
        pass


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_is_a_file_is_refused_with_what_to_do(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match=r"cannot write to .*file.*; choose another --out"), Store(tmp_path / folder):
        pass


# An experiment whose runs are finished already: nothing trains


def again(found: config.Experiment, out: Path) -> experiment.Outcome:
    """Run an experiment that has nothing left to train."""

    def planned(plan: Any, experiment: config.Experiment) -> None:
        assert plan.runs == 0

    session = Session(out, torch.device("cpu"), planned=planned)
    return experiment.run(found, session, tracker=None, presentation=overview)


def test_finished_runs_are_not_run_again_and_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = made()
    kept(tmp_path / "trial", [result(run) for run in reversed(found.runs())])
    outcome = again(found, tmp_path)
    assert [(r.strategy, r.seed) for r in outcome.records] == [(r.label, r.seed) for r in found.runs()]
    runs, accuracy = outcome.frames()
    assert (len(runs), len(accuracy)) == (6, 36)


def test_a_folder_may_hold_runs_of_other_settings_which_this_experiment_leaves_out(tmp_path: Path) -> None:
    found, other = made(), made(train={"epochs": 9})
    kept(tmp_path / "trial", [result(run) for run in [*found.runs(), *other.runs()]])
    assert [r.run_key for r in again(found, tmp_path).records] == [r.key for r in found.runs()]
    assert len(rows(tmp_path / "trial" / "runs.csv")) == 12


def test_strategies_are_labelled_as_this_file_says_and_not_as_an_earlier_one_did(tmp_path: Path) -> None:
    earlier = made(train={"epochs": 1}, strategy=[{"name": "naive"}])
    now = made(train={"epochs": 2}, strategy=[{"name": "naive", "epochs": [1, 2]}])
    kept(tmp_path / "trial", [result(run) for run in earlier.runs()])
    kept(tmp_path / "trial", [result(run) for run in now.runs() if run.key not in {r.key for r in earlier.runs()}])
    labels = [r.strategy for r in again(now, tmp_path).records]
    assert labels == ["naive[epochs=1]", "naive[epochs=1]", "naive[epochs=2]", "naive[epochs=2]"]


# Text in cells


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_in_a_cell_reads_back_equal(value: float) -> None:
    assert float(results._text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (1000.0, "1000"), (1e-4, "0.0001"), (True, "True"), ("adam", "adam")]
)
def test_cells_are_short(value: object, text: str) -> None:
    assert results._text(value) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
@example("cut\u2028here").via("a line end to Python, and none in a table")
@example("two\nlines").via("a line end within quotes")
def test_text_in_a_cell_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder, found = tmp_path_factory.mktemp("results"), [result(run) for run in made().runs()]
    with Store(folder, {"note": text}) as store:
        store.add(found)
    with Store(folder) as store:
        assert [r.fields["note"] for r in store.records.values()] == [text] * len(found)


def test_tables_can_be_read_by_others(tmp_path: Path) -> None:
    kept(tmp_path, [result(run) for run in made().runs()])
    for path in tmp_path.glob("*.csv"):
        assert os.stat(path).st_mode & 0o777 == 0o644


def test_frames_are_tidy(tmp_path: Path) -> None:
    found = [result(run) for run in made().runs()]
    with Store(tmp_path) as store:
        runs, accuracy = experiment.frames(store.add(found))
    assert {"run_key", "strategy", "seed", "status", "forgetting"} <= set(runs.columns)
    cells = itertools.product(range(3), (1, 2))
    first = accuracy[(accuracy["strategy"] == "naive") & (accuracy["seed"] == 0)]
    assert list(zip(first["after_task"], first["task"], strict=True)) == list(cells)
    np.testing.assert_array_equal(first["accuracy"].to_numpy().reshape(3, 2), found[0].accuracy)


@pytest.mark.parametrize("study", [True, False])
def test_runs_of_a_study_and_of_an_experiment_do_not_mix(tmp_path: Path, study: bool) -> None:
    with Store(tmp_path, {"protocol": "validation"} if study else {}) as store:
        store.require(study=True)
        store.require(study=False)
        store.add([result(made().runs()[0])])
        store.require(study=study)
        with pytest.raises(ResultsError, match=f"holds the results of {'a study' if study else 'an experiment'}"):
            store.require(study=not study)
