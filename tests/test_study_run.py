"""A study from file to answer: what trials and the final evaluation see, what is told, and what comes out."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from benchmark import data, plan, schedule
from benchmark.data import ImageSet
from benchmark.feed import Feed
from benchmark.harness import Silent
from benchmark.results import METRICS
from benchmark.runs import Result, Run
from benchmark.scenarios import Scenario
from benchmark.session import Session
from benchmark.terminal import study_table
from reports import studies as presentation
from strategies import EWC, FinishedTask, Params
from studies import objectives, spec
from studies import run as studying
from studies.answers import Answer, markdown, shown
from studies.pruning import GivenUp, Halving
from studies.run import Outcome
from studies.spec import Study
from studies.storage import Storage
from tests.conftest import CPU, execute
from tests.test_study_spec import LAM, made

DOUBLE = {"lr": 1e-3, "batch_size": 32, "iterations": 6, "precision": "float64"}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "validation": {"study": {"protocol": "validation"}},
    "first-k": {"study": {"protocol": "first-k"}, "scenario": {"name": "permuted-digits", "tasks": 4}},
    "plasticity-first": {"study": {"protocol": "plasticity-first", "lam_decays": 3}},
    "two-dataset": {"study": {"protocol": "two-dataset", "tune_on": {"name": "rotated-digits", "tasks": 2}}},
    "test-oracle": {"study": {"protocol": "test-oracle"}},
}
HONEST = [protocol for protocol in PROTOCOLS if protocol != "test-oracle"]


def study_of(protocol: str, **study: Any) -> Study:
    changes = PROTOCOLS[protocol]
    return made(changes["study"] | study, **{k: v for k, v in changes.items() if k != "study"})


@dataclasses.dataclass
class Done:
    """A study that ran, and what it left."""

    study: Study
    outcome: Outcome
    storage: Any
    said: list[str]

    @property
    def answer(self) -> Answer:
        (answer,) = self.outcome.answers
        return answer

    def trials(self, label: str | None = None) -> list[FrozenTrial]:
        label = label or self.study.searches[0].label
        return optuna.load_study(
            study_name=f"{self.study.name}/{label}", storage=Storage.of(self.storage).optuna
        ).trials

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.outcome.folder / "runs.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len({row["run_key"] for row in rows}) == len(rows)
        return {row["run_key"]: row for row in rows}


def go(
    study: Study, out: Path, storage: Any = None, said: list[str] | None = None, *, resume: bool = False, **options: Any
) -> Done:
    """Run a study; options are those of a session."""
    storage, said = storage or InMemoryStorage(), [] if said is None else said
    session = Session(out, CPU, say=said.append, **options)
    outcome = studying.run(study, session, storage=storage, tracker=None, presentation=presentation, resume=resume)
    return Done(study, outcome, storage, said)


# What trials and the final evaluation see


def test_the_first_task_is_trained_once_a_seed_whatever_the_number_of_batches(tmp_path: Path) -> None:
    class Begun(Silent):
        firsts = 0

        def stack_started(self, number: int, runs: int, title: str) -> None:
            self.firsts += runs if not number else 0

    study, begun = study_of("validation", trials=6, batch=2), Begun()
    done = go(study, tmp_path, listener=begun)
    assert len(done.trials()) == 6
    assert begun.firsts == len(study.tuning_seeds) + len(study.test_seeds)


@dataclasses.dataclass
class Seen:
    """Every sample that a run was given, in the order of training."""

    trained: list[tuple[Scenario, int, frozenset[int]]] = dataclasses.field(default_factory=list)
    tested: list[tuple[Scenario, tuple[int, ...], ImageSet]] = dataclasses.field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, ids, test = Seen(), Feed.ids, Feed.test

    def watched_ids(self: Feed, task: int, run: int) -> torch.Tensor:
        result = ids(self, task, run)
        offset = (task - 1) * len(self.pool.y) + self.pool.offsets[task - 1]
        rows = frozenset((result - offset).tolist())
        found.trained.append((self.pool.scenario, self.seeds[run], rows))
        return result

    def watched_test(self: Feed, task: int, chunk: int) -> Any:
        found.tested.append((self.pool.scenario, self.seeds, self.pool.tasks[task - 1]))
        return test(self, task, chunk)

    monkeypatch.setattr(Feed, "ids", watched_ids)
    monkeypatch.setattr(Feed, "test", watched_test)
    return found


@pytest.mark.parametrize("protocol", HONEST)
def test_trials_are_tested_on_training_images_and_the_chosen_setting_once_on_the_test_set(
    protocol: str, seen: Seen, tmp_path: Path
) -> None:
    study = study_of(protocol)
    go(study, tmp_path)
    digits = data.load("digits")
    everything = frozenset(range(len(digits.train_y)))

    in_trials = [entry for entry in seen.trained if entry[0] == study.tuning]
    in_the_end = [entry for entry in seen.trained if entry[0] == study.reported]
    assert len(in_trials) + len(in_the_end) == len(seen.trained)
    assert {seed for _, seed, _ in in_trials} == {*study.tuning_seeds}
    assert {seed for _, seed, _ in in_the_end} == {*study.test_seeds}
    held_out = {seed: everything - rows for _, seed, rows in in_trials}
    assert all(0.09 < len(rows) / len(everything) < 0.11 for rows in held_out.values())
    assert all(rows == everything - held_out[seed] for _, seed, rows in in_trials)
    assert all(rows == everything for _, _, rows in in_the_end)  # train and validation

    scenarios = [scenario for scenario, _, _ in seen.tested]
    turn = scenarios.index(study.reported)
    assert turn > 0 and {*scenarios[:turn]} == {study.tuning} and {*scenarios[turn:]} == {study.reported}
    for scenario, seeds, images in seen.tested:
        final = scenario == study.reported
        assert {*seeds} <= {*(study.test_seeds if final else study.tuning_seeds)}
        assert len(images.test_y) == len(digits.test_y if final else digits.train_y)
        assert (images.test_x.data_ptr() == images.train_x.data_ptr()) == (not final)


def test_under_test_oracle_every_trial_sees_what_is_reported(seen: Seen, tmp_path: Path) -> None:
    study = study_of("test-oracle")
    done = go(study, tmp_path)
    assert (
        {scenario for scenario, _, _ in seen.trained}
        == {study.reported}
        == {scenario for scenario, _, _ in seen.tested}
    )
    assert {seed for _, seed, _ in seen.trained} == {*study.tuning_seeds}
    assert {row["protocol"] for row in done.rows().values()} == {"test-oracle, tuned on test"}
    assert all(len(images.test_y) == len(data.load("digits").test_y) for _, _, images in seen.tested)


def values(done: Done) -> list[tuple[dict[str, Any], list[float] | None, Any]]:
    return [(trial.params, trial.values, trial.user_attrs["seeds"]) for trial in done.trials()]


def poisoned(images: ImageSet) -> ImageSet:
    """Every test label wrong, and every test image another one."""
    return dataclasses.replace(
        images, test_x=images.scale - images.test_x.float(), test_y=(images.test_y + 1) % images.classes
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_test_image_reaches_a_trial_but_under_test_oracle(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, load = study_of(protocol), data.load
    clean = go(study, tmp_path / "clean")
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, say=print: poisoned(load(name)))
    other = go(study, tmp_path / "poisoned")
    assert len(values(clean)) == study.trials
    if protocol == "test-oracle":
        for (_, before, _), (_, after, _) in zip(values(clean), values(other), strict=True):
            assert before is not None and after is not None and before != after
    else:
        assert values(clean) == values(other)
        assert clean.answer.params == other.answer.params and clean.answer.promised == other.answer.promised
    # The poison works: what is tested in the end is another thing.
    assert clean.answer.tested != other.answer.tested


def test_a_choice_made_on_validation_images_is_that_of_its_seeds_alone(tmp_path: Path) -> None:
    """More test seeds, or none the same, change no trial."""
    few, many = (go(study_of("validation", test_seeds=n), tmp_path / str(n)) for n in (1, 3))
    assert values(few) == values(many)
    name = "average_accuracy"
    assert (len(few.answer.tested[name]), len(many.answer.tested[name])) == (1, 3)
    # In float32 a run in a stack of another size is the same but for rounding.
    assert few.answer.tested[name] == pytest.approx(many.answer.tested[name][:1], abs=0.005)


# What is told and what comes out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two strategies, six trials each, in batches of four."""
    strategies = [{"name": "ewc", "lam": LAM}, {"name": "l2", "lam": {"low": 0.0, "high": 100.0}}]
    study = made({"trials": 6, "batch": 4, "test_seeds": 3}, strategy=strategies)
    return go(study, tmp_path_factory.mktemp("two"))


def test_every_strategy_gets_the_same_number_of_trials_and_it_is_recorded(two: Done) -> None:
    assert [answer.label for answer in two.outcome.answers] == ["ewc", "l2"]
    assert [answer.trials for answer in two.outcome.answers] == [{"complete": 6}] * 2
    for search in two.study.searches:
        assert [trial.state for trial in two.trials(search.label)] == [TrialState.COMPLETE] * 6


def test_a_trial_is_the_mean_of_runs_that_are_in_the_tables(two: Done) -> None:
    rows = two.rows()
    for label in ("ewc", "l2"):
        for trial in two.trials(label):
            runs = [rows[seed["run_key"]] for seed in trial.user_attrs["seeds"]]
            assert [int(row["seed"]) for row in runs] == [0, 1]
            assert all(float(row["lam"]) == trial.params["lam"] and row["strategy_name"] == label for row in runs)
            accuracies = [float(row["average_accuracy"]) for row in runs]
            assert [seed["average_accuracy"] for seed in trial.user_attrs["seeds"]] == accuracies
            assert trial.values == [pytest.approx(np.mean(accuracies), abs=1e-12)]
    assert len(rows) == 2 * (6 * 2 + 3)


def test_the_answer_is_the_best_trial_tested_with_fresh_seeds(two: Done) -> None:
    rows = two.rows()
    for answer in two.outcome.answers:
        best = max(two.trials(answer.label), key=lambda trial: trial.values[0])
        assert answer.params == best.params and answer.promised == {"average_accuracy": best.values[0]}
        tested = [row for row in rows.values() if row["strategy_name"] == answer.label and int(row["seed"]) >= 2]
        assert sorted(int(row["seed"]) for row in tested) == [2, 3, 4]
        assert {float(row["lam"]) for row in tested} == {best.params["lam"]}
        assert sorted(answer.tested["average_accuracy"]) == sorted(float(row["average_accuracy"]) for row in tested)
        assert answer.protocol == "validation"


def test_how_flat_the_optimum_is_is_the_range_of_trials_within_a_point_of_the_best(two: Done) -> None:
    for answer in two.outcome.answers:
        trials, best = two.trials(answer.label), answer.promised["average_accuracy"]
        near = [trial.params["lam"] for trial in trials if best - trial.values[0] <= 0.01]
        assert answer.flat == {"lam": (min(near), max(near))}


def test_a_grid_that_begins_at_0_trains_fine_tuning_itself(two: Done) -> None:
    assert two.trials("l2")[0].params == {"lam": 0.0}


def test_the_time_is_divided_into_what_it_went_into(two: Done) -> None:
    seconds = dict(two.outcome.seconds)
    whole = seconds.pop("all")
    assert {*seconds} == {"training", "MLflow", "Optuna", "the rest"}
    assert all(0 < seconds[what] < whole for what in ("training", "Optuna", "the rest"))
    assert sum(seconds.values()) == pytest.approx(whole)
    assert re.fullmatch(
        r"time     \d+ s: training \d+ s \(\d+%\), MLflow 0 s \(0%\), Optuna \d+ s \(\d+%\), the rest .*",
        two.outcome.timing(),
    )


def test_of_two_studies_in_one_storage_each_has_its_own_share_of_the_time(tmp_path: Path) -> None:
    opened = Storage.of(InMemoryStorage())
    done = [go(made({"trials": 1, "seeds": 1}, name=name), tmp_path, opened) for name in ("one", "two")]
    assert sum(each.outcome.seconds["Optuna"] for each in done) == pytest.approx(opened.seconds)


def test_under_test_oracle_nothing_is_trained_again_and_nothing_is_between_promise_and_report(tmp_path: Path) -> None:
    done = go(study_of("test-oracle"), tmp_path)
    assert len(done.rows()) == 4 * 2
    (promised,), (tested,) = done.answer.promised.values(), done.answer.tested.values()
    assert promised == pytest.approx(np.mean(tested), abs=1e-12)
    assert done.answer.protocol == "test-oracle"


@pytest.mark.parametrize("diverged", ["fail", "worst"])
def test_trials_that_diverge_are_told_so_with_the_reason_and_never_chosen(diverged: str, tmp_path: Path) -> None:
    choices = {"name": "l2", "lam": [1e30, 1.0]}
    done = go(made({"diverged": diverged}, strategy=[choices]), tmp_path)
    trials = done.trials()
    assert len(trials) == 4 and {trial.params["lam"] for trial in trials} == {1e30, 1.0}
    for trial in trials:
        if trial.params["lam"] == 1.0:
            assert trial.state == TrialState.COMPLETE and "reason" not in trial.user_attrs
        else:
            assert trial.user_attrs["reason"] == "diverged with seeds 0, 1"
            # Nothing that is no number gets into the storage: JSON has none.
            told_of = {(seed["status"], seed["average_accuracy"]) for seed in trial.user_attrs["seeds"]}
            assert told_of == {("diverged", None)}
            told = (TrialState.FAIL, None) if diverged == "fail" else (TrialState.COMPLETE, [0.0])
            assert (trial.state, trial.values) == told
    assert done.answer.params == {"lam": 1.0} and len(done.answer.tested["average_accuracy"]) == 2
    lost = sum(trial.params["lam"] > 1 for trial in trials)
    assert lost > 0 and done.answer.trials == {"complete": 4 - lost, "diverged": lost}


@pytest.mark.parametrize("diverged", ["fail", "worst"])
def test_where_every_trial_diverges_the_answer_is_empty_and_nothing_is_tested(
    diverged: str, seen: Seen, tmp_path: Path
) -> None:
    study = made({"diverged": diverged, "trials": 2}, strategy=[{"name": "l2", "lam": [1e30, 1e31]}])
    done = go(study, tmp_path)
    assert (done.answer.params, done.answer.promised, done.answer.flat) == ({}, {}, {})
    assert done.answer.tested == {"average_accuracy": []}
    assert {scenario for scenario, _, _ in seen.tested} == {study.tuning}
    assert done.answer.trials == {"diverged": 2} and done.outcome.failed() == ""  # it is a result
    assert done.said[-1] == "no trial ended well: there is no setting to test"
    assert not any("testing the best" in line for line in done.said)


@dataclasses.dataclass(frozen=True)
class Fragile(EWC):
    """Diverges where it is trained on every image, as it is in the end."""

    def measure(self, model: torch.nn.Module, task: FinishedTask) -> Params:
        importance = super().measure(model, task)
        whole = len(task.y) == len(data.load("digits").train_y)
        return {k: v * torch.nan if whole else v for k, v in importance.items()}


def test_a_chosen_setting_that_diverges_in_the_end_has_a_promise_and_no_result(tmp_path: Path) -> None:
    fragile = {"name": "tests.test_study_run:Fragile", "lam": LAM}
    done = go(made({"trials": 2}, strategy=[fragile]), tmp_path)
    assert done.answer.trials == {"complete": 2} and done.answer.params and done.answer.promised["average_accuracy"] > 0
    assert done.answer.tested == {"average_accuracy": []} and done.answer.tests == {"diverged": 2}
    assert done.outcome.failed() == "" and " 2 2, 2 diverged " in printed(done.answer)
    statuses = {(int(row["seed"]) >= 2, row["status"]) for row in done.rows().values()}
    assert statuses == {(False, "finished"), (True, "diverged")}


def test_one_strategy_without_an_answer_takes_nothing_from_another(tmp_path: Path) -> None:
    strategies = [{"name": "l2", "lam": [1e30, 1e31]}, {"name": "ewc", "lam": LAM}]
    done = go(made({"trials": 2}, strategy=strategies), tmp_path)
    bad, good = done.outcome.answers
    assert (bad.params, bad.trials) == ({}, {"diverged": 2})
    assert (len(good.tested["average_accuracy"]), good.trials) == (2, {"complete": 2})


def test_two_objectives_end_with_a_front_and_one_setting_of_it(tmp_path: Path) -> None:
    done = go(made({"objective": ["stability", "plasticity"], "seeds": 1}), tmp_path)
    answer, trials = done.answer, done.trials()
    assert [*answer.promised] == [*answer.tested] == ["stability", "plasticity"]
    assert answer.flat == {}
    sums = {trial.number: sum(trial.values) for trial in trials}
    assert sum(answer.promised.values()) == max(sums.values())
    for trial in trials:
        (only,) = trial.user_attrs["seeds"]
        assert trial.values == [only["stability"], only["plasticity"]]
    assert all(len(tested) == 2 for tested in answer.tested.values())


@pytest.mark.parametrize("name", [name for name in METRICS[1:] if name in objectives.OBJECTIVES])
def test_metrics_of_runs_can_be_objectives(name: str, tmp_path: Path) -> None:
    evaluated = {"lr": 1e-3, "batch_size": 32, "iterations": 6, "evaluate_every": 4}
    done = go(made({"objective": name, "trials": 2, "seeds": 1}, train=evaluated), tmp_path)
    rows = done.rows()
    for trial in done.trials():
        (only,) = trial.user_attrs["seeds"]
        assert trial.values == [only[name]] == [float(rows[only["run_key"]][name])]
    ranked = sorted(trial.values[0] for trial in done.trials())
    assert done.answer.promised == {name: ranked[0] if name == "forgetting" else ranked[-1]}


def test_a_recipe_and_options_can_be_searched_together_with_a_strategy(tmp_path: Path) -> None:
    strategy = {
        "name": "ewc",
        "lam": LAM,
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "estimator": ["exact", "sampled"],
    }
    done = go(made({"seeds": 1}, strategy=[strategy]), tmp_path)
    rows = done.rows()
    for trial in done.trials():
        row = rows[trial.user_attrs["seeds"][0]["run_key"]]
        assert (float(row["lam"]), float(row["lr"]), row["estimator"]) == (
            trial.params["lam"], trial.params["lr"], trial.params["estimator"],
        )  # fmt: skip
    assert {*done.answer.flat} == {"lam", "lr"}


def test_when_the_time_is_up_the_trials_that_are_there_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = go(made({"timeout": 1e-9}), tmp_path / "none")
    assert (none.answer.params, none.answer.trials) == ({}, {})
    assert any("stopped after" in line for line in none.said)
    # The first batch takes an hour: the clock is looked at between batches.
    said: list[str] = []
    clock = types.SimpleNamespace(perf_counter=lambda: 3600.0 * any("2 of 4 trials" in line for line in said))
    monkeypatch.setattr(studying, "time", clock)
    some = go(made({"timeout": 60}), tmp_path / "some", said=said)
    assert some.answer.trials == {"complete": 2} and some.answer.params
    assert len(some.answer.tested["average_accuracy"]) == 2
    assert any("stopped after 60 s" in line for line in said)


def test_the_time_is_the_study_s_and_not_each_command_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = InMemoryStorage()
    first = go(made({"trials": 2}), tmp_path, storage)
    assert first.answer.trials == {"complete": 2}
    monkeypatch.setattr(studying.places, "seconds", lambda trials: 30.0 * len(list(trials)))
    spent = go(made({"timeout": 60}), tmp_path, storage, resume=True)
    assert spent.answer.trials == {"complete": 2} and any("stopped after 60 s" in line for line in spent.said)
    more = go(made({"timeout": 3600}), tmp_path, storage, resume=True)
    assert more.answer.trials == {"complete": 4}


def test_runs_that_are_on_disk_are_not_trained_again_by_a_new_study(tmp_path: Path, seen: Seen) -> None:
    study = made()
    first = go(study, tmp_path)
    seen.trained.clear()
    again = go(study, tmp_path)  # another storage, so every trial is asked again
    assert seen.trained == []
    assert again.outcome.answers == first.outcome.answers and values(again) == values(first)


# Trials given up early


FOUR = {"name": "permuted-digits", "tasks": 4}


@pytest.fixture
def one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of a batch in one stack, however many processors there are."""
    monkeypatch.setattr(plan, "workers_for", lambda device: 1)


@pytest.mark.usefixtures("one_stack")
def test_the_worse_half_is_given_up_and_the_others_are_what_they_would_have_been(tmp_path: Path) -> None:
    study = {"trials": 4, "batch": 4, "seeds": 1, "test_seeds": 1}
    whole = go(made(study, scenario=FOUR, train=DOUBLE), tmp_path / "whole")
    halved = go(made(study | {"pruning": "halving"}, scenario=FOUR, train=DOUBLE), tmp_path / "halved")
    assert [trial.params for trial in halved.trials()] == [trial.params for trial in whole.trials()]
    pruned = [trial for trial in halved.trials() if trial.state == TrialState.PRUNED]
    assert len(pruned) == 2 and halved.answer.trials == {"complete": 2, "pruned": 2}
    # Judged by accuracy on the first two tasks after the second, against the two that stay.
    after_two = [after(whole, trial, 2) for trial in whole.trials()]
    assert {trial.number for trial in pruned} == {*np.argsort(after_two)[:2]}
    for trial, before in zip(halved.trials(), whole.trials(), strict=True):
        if trial in pruned:
            assert trial.intermediate_values == {2: pytest.approx(after(whole, before, 2), abs=1e-12)}
            assert trial.user_attrs["reason"] == "pruned after task 2"
            assert {seed["status"] for seed in trial.user_attrs["seeds"]} == {"pruned"}
            assert not {seed["run_key"] for seed in trial.user_attrs["seeds"]} & {*halved.rows()}
        else:
            assert trial.values == pytest.approx(before.values, abs=1e-12)
    saved = [trial.user_attrs["saved"] for trial in pruned]
    assert [each["run_epochs"] for each in saved] == [2, 2]  # two tasks, of less than an epoch each
    seconds = sum(each["seconds"] for each in saved)
    assert seconds > 0 and halved.answer.saved == (4, seconds) and whole.answer.saved == (0, 0)
    said = f"4 run-epochs saved, about {seconds:.1f} s of training"
    assert f"pruned 2 of 4 trials: {said}" in halved.said
    assert halved.outcome.timing().endswith(f"\npruning  {said}") and "pruning" not in whole.outcome.timing()


def test_what_was_given_up_is_what_came_of_it_and_not_what_was_decided_first() -> None:
    """A stack that runs out of memory after it was judged is trained and judged anew, in two."""
    study = made({"pruning": "halving", "seeds": 1}, scenario=FOUR)
    entries = [study.entry(study.searches[0], {"lam": lam}) for lam in (1.0, 10.0)]
    good, bad = (study.runs(entry, study.tuning, (0,))[0] for entry in entries)
    trials = {run.key: ("ewc", number) for number, run in enumerate((good, bad))}
    halving = Halving("average_accuracy", trials, [data.load("digits")] * 4)
    accuracy = np.full((2, 5, 4), np.nan)
    accuracy[0, :3], accuracy[1, :3] = 0.9, 0.5
    assert halving(2, (good, bad), accuracy[:, :3]) == [False, True]
    assert halving(3, (good, bad), accuracy[:, :4]) == [False, False]  # not after every task
    finished = Result(bad, "finished", np.full((5, 4), 0.5), train_seconds=1.0, stack_size=1, trunk_runs=2)
    halving.note([finished])
    assert halving.given_up(("ewc", 1), [bad]) is None
    # Half of the first task's time is its own, and all of the second's: two tasks more would take 2 / 1.5 of that.
    halving.note([dataclasses.replace(finished, status="pruned", accuracy=accuracy[1], train_seconds=3.0)])
    assert halving.given_up(("ewc", 1), [bad]) == GivenUp(2, pytest.approx(0.5), 2, pytest.approx(4.0))
    # Another trial of the same setting is given up too, and what that saves counts once.
    assert halving.given_up(("ewc", 7), [bad]) == GivenUp(2, pytest.approx(0.5), 0, 0)


def after(done: Done, trial: FrozenTrial, task: int) -> float:
    """Accuracy on the tasks so far, after a task."""
    (seed,) = trial.user_attrs["seeds"]
    with (done.outcome.folder / "accuracy.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["run_key"] == seed["run_key"]]
    found = [row for row in cells if int(row["after_task"]) == task and int(row["task"]) <= task]
    return float(np.mean([float(row["accuracy"]) for row in found]))


@pytest.mark.usefixtures("one_stack")
def test_a_setting_that_is_asked_twice_may_be_given_up(tmp_path: Path) -> None:
    choices = {"name": "ewc", "lam": 1.0, "estimator": ["exact", "sampled"]}
    study = {"pruning": "halving", "trials": 8, "batch": 8, "seeds": 1, "test_seeds": 1}
    done = go(made(study, scenario=FOUR, strategy=[choices]), tmp_path)
    assert done.answer.trials == {"complete": 7, "pruned": 1}


# The number to reach


@pytest.mark.slow
def test_64_trials_find_a_lambda_within_a_point_of_the_best_of_a_fine_grid(tmp_path: Path) -> None:
    (study,) = spec.load("lambda-permuted-digits", ["study.trials=64", "study.batch=16"])
    study = dataclasses.replace(study, searches=study.searches[:1])  # EWC, λ from 1 to 1e6
    done = go(study, tmp_path)
    assert done.answer.trials == {"complete": 64}
    (promised,) = done.answer.promised.values()

    grid = [float(lam) for lam in np.geomspace(1.0, 1e6, 41)]
    entries = [study.entry(study.searches[0], {"lam": lam}) for lam in grid]
    runs = {
        lam: [
            Run(study.tuning, study.experiment.model, e.recipe, e.strategy, e.name, e.label, seed)
            for seed in study.tuning_seeds
        ]
        for lam, e in zip(grid, entries, strict=True)
    }
    results = execute(*(run for each in runs.values() for run in each))
    reference = {
        lam: float(np.mean([objectives.AFTER_TASKS["average_accuracy"](results[run.key].accuracy) for run in each]))
        for lam, each in runs.items()
    }
    best = max(reference.values())
    assert sum(value < best - 0.01 for value in reference.values()) > 15  # else anything would do
    assert promised >= best - 0.01
    # The same by the grid's own account: what it says of λ nearest to the one found.
    nearest = min(grid, key=lambda lam: abs(math.log(lam / done.answer.params["lam"])))
    assert reference[nearest] >= best - 0.02


# Runs that fail


def failing(monkeypatch: pytest.MonkeyPatch, which: Callable[[Run], bool]) -> None:
    """Let runs fail, as those of a stack do whose training raises."""
    execute = schedule.execute

    def failed(result: Result) -> Result:
        if not which(result.run):
            return result
        lost = np.full_like(result.accuracy, np.nan)
        return dataclasses.replace(result, status="failed", accuracy=lost, reason="RuntimeError: no luck")

    def executed(made: Any, tasks: Any, device: Any, listener: Any, keep: Any, **options: Any) -> Any:
        return execute(made, tasks, device, listener, lambda results: keep([*map(failed, results)]), **options)

    monkeypatch.setattr(schedule, "execute", executed)


def test_a_test_run_that_failed_is_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = InMemoryStorage()
    with monkeypatch.context() as patch:
        failing(patch, lambda run: run.seed == 3)
        done = go(made({"trials": 2}), tmp_path, storage)
    assert done.answer.tests == {"finished": 1, "failed": 1} and len(done.answer.tested["average_accuracy"]) == 1
    assert done.outcome.failed() == (
        "1 of 2 test runs failed; the same command with --resume tries them again:\n  RuntimeError: no luck (1 run)"
    )
    assert "2, 1 failed" in printed(done.answer) and "test runs" in printed(done.answer)
    assert "| 2, 1 failed |" in markdown([done.answer])
    again = go(made({"trials": 2}), tmp_path, storage, resume=True)
    assert again.answer.tests == {"finished": 2} and again.outcome.failed() == ""
    assert "test runs" not in printed(again.answer)


def test_where_every_trial_failed_that_is_said_and_nothing_about_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda run: run.strategy_name == "l2")
    done = go(made({"trials": 2}, strategy=[{"name": "l2"}, {"name": "ewc", "lam": LAM}]), tmp_path / "one")
    assert done.outcome.failed() == (
        "l2: all 2 trials failed, so no setting of it was tested; --new starts another study:\n"
        "  RuntimeError: no luck (4 runs)"
    )
    assert "| `l2` | none | | – | – | | validation |" in " ".join(markdown(done.outcome.answers).split())
    alone = go(made({"trials": 2}, strategy=[{"name": "l2"}]), tmp_path / "alone")
    assert alone.outcome.failed().startswith("l2: all 2 trials failed")
    assert not any("testing the best" in line for line in alone.said)
    assert "none 2, 2 failed" in printed(alone.answer)


# Words and numbers


def test_a_setting_is_shown_short() -> None:
    assert shown({"lam": 12345.678, "estimator": "exact", "draws": 3}) == "lam=1.23e+04, estimator=exact, draws=3"


def printed(*answers: Answer) -> str:
    console = Console(width=200, markup=False, file=io.StringIO())
    console.print(study_table(answers))
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_the_table_has_the_setting_what_was_promised_what_was_tested_the_gap_and_how_flat_it_is() -> None:
    answer = Answer(
        "ewc[estimator=exact]",
        {"lam": 1234.5},
        trials={"complete": 5, "failed": 1, "diverged": 2},
        promised={"average_accuracy": 0.9},
        tested={"average_accuracy": [0.8, 0.85, 0.9]},
        flat={"lam": (100.0, 2e4)},
    )
    said = printed(answer)
    row = "ewc[estimator=exact] lam=1.23e+03 average accuracy 90.0 85.0 ± 12.4 −5.0 lam 100 to 2e+04 8, 1 failed, 2 diverged"
    assert row in said and "n = 3 seeds" in said and "TUNED" not in said and "first-k" not in said


def test_a_setting_that_is_alone_within_a_point_is_no_range() -> None:
    answer = Answer("ewc", {"lam": 1.0}, {"complete": 8}, {"bwt": 0.0}, {"bwt": [0.0, 0.1]}, {"lam": (1.0, 1.0)})
    assert "lam 1 8 tested" in printed(answer)


def test_what_a_gap_is_not_made_of_the_same_tasks_by_is_said_under_the_table() -> None:
    answer = Answer("ewc", {"lam": 1.0}, {"complete": 8}, {"bwt": 0.0}, {"bwt": [0.0, 0.1]})
    notes = {
        "first-k": "first-k is tested on other tasks than it promises for",
        "two-dataset": "two-dataset promises for another dataset",
        "test-oracle": "test-oracle is TUNED ON TEST",
    }
    for protocol, note in notes.items():
        said = printed(dataclasses.replace(answer, protocol=protocol))
        assert note in said and sum(other in said for other in notes.values()) == 1
