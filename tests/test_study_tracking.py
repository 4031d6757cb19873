"""A study in MLflow: what arrives, that delivering twice is delivering once, and a server that goes away."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import InMemoryStorage

from benchmark import views
from benchmark.server import TrackingError
from benchmark.tracking import Tracker
from studies import objectives, plasticity
from studies.delivery import Delivery
from studies.places import PLACE
from studies.storage import Storage
from tests.synthetic_study import EWC, GIVEN_UP, L2, SEEDS, TASKS, Played, matrix, play, study

PARENT = "mlflow.parentRunId"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests, each with an experiment of its own: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


class Shown:
    """A presentation that draws next to nothing and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def contents(
        self, frames: Mapping[str, pd.DataFrame], objectives: Mapping[str, str], *, tuned_on_test: bool
    ) -> Mapping[str, Any]:
        self.given.append({**frames, "objectives": objectives, "tuned_on_test": tuned_on_test})
        return {"figures/history.png": Figure(figsize=(1, 1)), "trials.csv": "a,b\n"}

    def colours(self, strategies: list[str]) -> dict[str, str]:
        return {strategy: f"#00000{i}" for i, strategy in enumerate(strategies)}


class Place:
    """An experiment in the store, and what is in it."""

    def __init__(self, uri: str, name: str, folder: Path) -> None:
        self.uri, self.name, self.folder = uri, name, folder
        self.client = MlflowClient(tracking_uri=uri)
        self.shown, self.said = Shown(), list[str]()

    def tracker(self, whose: str = "artifacts") -> Tracker:
        return Tracker(self.uri, self.name, self.folder / whose)

    def delivery(self, played: Played, whose: str = "artifacts") -> Delivery:
        return Delivery(self.tracker(whose), played.study, self.shown, self.said.append)

    def id(self) -> str:
        return str(self.client.get_experiment_by_name(self.name).experiment_id)

    def runs(self, kind: str = "trial") -> list[Run]:
        """Newest first, as the page lists them."""
        of_kind = f"tags.`forgetbench.kind` = '{kind}'"
        return list(self.client.search_runs([self.id()], of_kind, order_by=["start_time DESC"]))

    def nested(self, run: Run) -> list[Run]:
        found = self.client.search_runs([self.id()], f"tags.`{PARENT}` = '{run.info.run_id}'")
        return sorted(found, key=lambda r: str(r.info.run_name))

    def trial(self, label: str, number: int) -> Run:
        (found,) = (r for r in self.runs() if r.info.run_name == f"{label} trial {number}")
        return found

    def view(self, key: str = views.VIEW) -> dict[str, Any]:
        tag = json.loads(self.client.get_experiment(self.id()).tags[f"mlflow.sharedViewState.{key}"])
        return dict(json.loads(zlib.decompress(base64.b64decode(tag["state"].removeprefix("deflate;")))))


@pytest.fixture
def place(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(database, request.node.name, tmp_path)


def close(delivery: Delivery, played: Played) -> None:
    delivery.close(played.searchers, played.records, "| the answers |", played.tested(), {"device": "cpu"})


# Trials and their seeds


def test_a_trial_arrives_with_what_was_tried_and_what_came_of_it(place: Place) -> None:
    played = play(study(EWC | {"estimator": "exact"}))
    played.batch(place.delivery(played))
    (searcher,) = played.searchers
    label, trial = searcher.search.label, searcher.ended[1]
    run = place.trial(label, 1)
    assert run.info.status == "FINISHED" and run.data.tags["forgetbench.status"] == "finished"
    assert run.data.params == {
        "strategy": label,
        "estimator": "exact",
        "lam": str(trial.params["lam"]),
        "trial": "1",
        "seeds": "2",
        "phase": "tuning",
        "protocol": "validation",
        "scenario": "permuted-digits",
        "objective": "average_accuracy",
    }
    lam = trial.params["lam"]
    seeds = [matrix(lam, seed) for seed in range(SEEDS)]
    means = {
        n: np.mean([objectives.AFTER_TASKS[n](a) for a in seeds])
        for n in ("average_accuracy", "stability", "plasticity")
    }
    assert means["average_accuracy"] == pytest.approx(trial.value)
    curves = {f"acc/task_{j + 1:02d}": np.mean([a[-1, j] for a in seeds]) for j in range(TASKS)}
    spread = np.std([objectives.AFTER_TASKS["average_accuracy"](a) for a in seeds], ddof=1)
    numbers = {"average_accuracy_std": spread, "lam": lam, "log10_lam": np.log10(lam), "train_seconds": 3.0}
    assert run.data.metrics == pytest.approx(means | curves | numbers)
    curve = place.client.get_metric_history(run.info.run_id, "acc/task_01")
    assert [point.step for point in curve] == [0, 1, 2, 3]
    (objective,) = place.client.get_metric_history(run.info.run_id, "average_accuracy")
    assert objective.step == 0


def test_a_trial_shows_the_plasticity_that_decides_where_it_does(place: Place) -> None:
    played = play(study(EWC, protocol="plasticity-first"))
    played.all(place.delivery(played))
    trials = {t.params["lam"]: t.user_attrs["seeds"] for t in played.searchers[0].ended}
    shown = {float(run.data.params["lam"]): run.data.metrics["plasticity_kept"] for run in place.runs()}
    assert len(shown) == 8 and shown == {lam: pytest.approx(plasticity.kept(seeds)) for lam, seeds in trials.items()}
    assert {run.data.params["protocol"] for run in place.runs()} == {"plasticity-first"}


def test_trials_are_flat_so_that_the_page_charts_them_and_their_seeds_nest_under_them(place: Place) -> None:
    played = play()
    played.all(place.delivery(played))
    assert len(place.runs()) == 12 and len(place.runs("seed")) == 12 * SEEDS
    for run in place.runs():
        assert PARENT not in run.data.tags
        first, second = place.nested(run)
        assert (first.data.params["seed"], second.data.params["seed"]) == ("0", "1")
        assert {first.data.params["strategy"], second.data.params["strategy"]} == {run.data.params["strategy"]}
        assert first.data.tags["forgetbench.run_key"] in played.records
        mean = np.mean([r.data.metrics["average_accuracy"] for r in (first, second)])
        assert run.data.metrics["average_accuracy"] == pytest.approx(mean)


def test_a_trial_in_optuna_names_the_runs_of_its_seeds(place: Place) -> None:
    played = play()
    played.batch(place.delivery(played))
    for searcher in played.searchers:
        for trial in searcher.ended:
            ids = [run.info.run_id for run in place.nested(place.trial(searcher.search.label, trial.number))]
            assert trial.user_attrs["mlflow_runs"] == ids and len(ids) == SEEDS


def test_a_diverged_trial_failed_and_says_why_and_has_no_value(place: Place) -> None:
    played = play(study(EWC, diverged="worst"))
    played.batch(place.delivery(played), diverges=lambda label, number, seed: (number, seed) == (2, 1))
    run = place.trial("ewc", 2)
    assert (run.info.status, run.data.tags["forgetbench.status"]) == ("FAILED", "diverged")
    assert run.data.tags["forgetbench.reason"] == "diverged with seeds 1"
    assert not {"average_accuracy", "stability", "average_accuracy_std"} & {*run.data.metrics}
    assert "log10_lam" in run.data.metrics
    assert [seed.info.status for seed in place.nested(run)] == ["FINISHED", "FAILED"]
    assert place.trial("ewc", 1).info.status == "FINISHED"


@pytest.mark.parametrize("first", ["delivered", "told"])
def test_a_pruned_trial_was_given_up_and_has_no_runs(place: Place, first: str) -> None:
    played = play(study(EWC))
    delivery = place.delivery(played)
    (searcher,) = played.searchers
    trial = searcher.ask()[0]
    seeds = played.seeds(searcher, trial, pruned=True)
    if first == "delivered":
        delivery.trial(searcher, trial, seeds, played.records)
    searcher.prune(trial, seeds, GIVEN_UP)
    delivery.trial(searcher, trial, seeds, played.records)
    run = place.trial("ewc", 0)
    assert (run.info.status, run.data.tags["forgetbench.status"]) == ("KILLED", "pruned")
    assert place.nested(run) == [] and "average_accuracy" not in run.data.metrics
    if first == "told":
        assert run.data.tags["forgetbench.reason"] == "pruned after task 2"
        assert run.data.metrics["saved_run_epochs"] == 4 and run.data.metrics["saved_seconds"] == 1.5


def test_newest_first_strategies_take_turns_and_tests_come_after_all_trials(place: Place) -> None:
    played = play(study(trials=3))
    delivery = place.delivery(played)
    played.all(delivery)
    close(delivery, played)
    listed = place.client.search_runs([place.id()], order_by=["start_time DESC"])
    names = [r.info.run_name for r in listed if r.data.tags["forgetbench.kind"] in {"trial", "run"}]
    assert names[:6] == [f"{label} trial {number}" for number in (2, 1, 0) for label in ("ewc", "l2")]
    assert names[6:] == [f"{label} seed {seed}" for seed in (2, 3, 4) for label in ("ewc", "l2")]


def test_trials_have_the_colour_of_their_strategy(place: Place) -> None:
    played = play()
    played.batch(place.delivery(played))
    colours = {run.data.params["strategy"]: run.data.tags["mlflow.runColor"] for run in place.runs()}
    assert colours == {"ewc": "#000000", "l2": "#000001"}


def test_without_a_tracker_nothing_is_delivered_and_nothing_said() -> None:
    played, said = play(), list[str]()
    delivery = Delivery(None, played.study, Shown(), said.append)
    played.all(delivery)
    close(delivery, played)
    assert (delivery.failure, delivery.seconds, said) == (None, 0.0, [])
    assert all("mlflow_runs" not in trial.user_attrs for s in played.searchers for trial in s.ended)


# Delivering again


def test_delivering_twice_is_the_same_as_once(place: Place) -> None:
    played = play()
    delivery = place.delivery(played)
    played.all(delivery)
    close(delivery, played)
    kinds = ("trial", "seed", "run", "overview")
    first = {kind: {run.info.run_id for run in place.runs(kind)} for kind in kinds}
    assert [len(first[kind]) for kind in kinds] == [12, 24, 6, 1]
    close(delivery, played)
    close(place.delivery(played), played)  # another process
    assert {kind: {run.info.run_id for run in place.runs(kind)} for kind in kinds} == first


def test_what_was_told_while_the_server_was_away_is_delivered_later(place: Place) -> None:
    played = play()
    played.batch()
    delivery = place.delivery(played)
    played.batch(delivery)
    assert len(place.runs()) == 12 and len(place.runs("seed")) == 24


def test_a_trial_cut_off_half_way_is_replaced_with_all_its_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    played = play(study(EWC))
    log_batch, calls = MlflowClient.log_batch, []

    def breaking(client: MlflowClient, *args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 3:  # overview, first seed, second seed
            raise ConnectionError("the server went away")
        return log_batch(client, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", breaking)
    played.batch(place.delivery(played))
    monkeypatch.undo()
    (half,) = place.runs()
    assert half.info.status == "RUNNING" and len(place.nested(half)) == 2
    place.delivery(played).trials(played.searchers, played.records)
    assert [run.info.status for run in place.runs()] == ["FINISHED"] * 3
    assert half.info.run_id not in {run.info.run_id for run in place.runs()}
    assert len(place.runs("seed")) == 3 * SEEDS


def test_a_trial_delivered_but_not_told_before_a_kill_is_not_there_twice(place: Place) -> None:
    storage, made = InMemoryStorage(), study(EWC)
    killed = play(made, storage)
    delivery = place.delivery(killed)
    (searcher,) = killed.searchers
    for trial in searcher.ask():
        delivery.trial(searcher, trial, killed.seeds(searcher, trial), killed.records)
    resumed = play(made, storage, resume=True)
    resumed.all(place.delivery(resumed))
    assert len(resumed.searchers[0].ended) == 6
    assert min(trial.number for trial in resumed.searchers[0].ended) == 3  # the first three were asked again
    assert len(place.runs()) == 6


def test_what_several_drivers_deliver_is_there_once_in_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """They know nothing of each other's runs until the last one looks."""
    played = play(study(EWC), owner=place.tracker("other").owner)
    (searcher,) = played.searchers
    mine, other = (place.delivery(played, who) for who in ("mine", "other"))
    with monkeypatch.context() as patch:  # both begin at once
        patch.setattr(Tracker, "_overviews", lambda self: {})
        for delivery in (mine, other):
            delivery.trials(played.searchers, played.records)
    assert len(place.runs("overview")) == 2

    first, second, third = searcher.ask()
    seeds = {trial.number: played.seeds(searcher, trial) for trial in (first, second, third)}
    for trial in (first, second):
        other.trial(searcher, trial, seeds[trial.number], played.records)
    mine.trial(searcher, first, seeds[first.number], played.records)  # taken over when it was delivered, not told
    with monkeypatch.context() as patch:  # the other one dies in the middle of the third
        patch.setattr(MlflowClient, "set_terminated", lambda *args, **kwargs: None)
        other.trial(searcher, third, seeds[third.number], played.records)
    mine.trial(searcher, third, seeds[third.number], played.records)
    for trial in (first, second, third):
        searcher.tell(trial, seeds[trial.number])
    assert len(place.runs()) == 5

    close(mine, played)
    (overview,) = place.runs("overview")
    assert sorted(str(run.info.run_name) for run in place.runs()) == [f"ewc trial {n}" for n in range(3)]
    assert len(place.runs("seed")) == 3 * SEEDS
    assert {run.info.status for run in place.runs() + place.runs("seed")} == {"FINISHED"}
    assert {r.data.tags["forgetbench.overview"] for r in place.runs() + place.runs("run")} == {overview.info.run_id}


def test_of_a_trial_that_failed_and_was_trained_again_elsewhere_the_result_stays(place: Place) -> None:
    """Its first driver went silent after it had delivered that a run failed, and before it told."""
    played = play(study(EWC, trials=3))
    (searcher,) = played.searchers
    silent, mine = place.delivery(played), place.delivery(played)
    first, *rest = searcher.ask()
    seeds = played.seeds(searcher, first)
    mine.trials(played.searchers, played.records)  # looks at what is there, before the other one delivers
    silent.trial(searcher, first, [each | {"status": "failed"} for each in seeds], played.records)
    mine.trial(searcher, first, seeds, played.records)
    searcher.tell(first, seeds)
    for trial in rest:
        searcher.tell(trial, played.seeds(searcher, trial))
    close(mine, played)
    assert {run.data.tags["forgetbench.status"] for run in place.runs()} == {"finished"}
    assert {run.info.run_id for run in place.nested(place.trial("ewc", first.number))} == {
        *searcher.ended[0].user_attrs["mlflow_runs"]
    }


def test_who_was_asleep_does_not_deliver_again_what_others_did(place: Place) -> None:
    """It trained the trials before they were taken over, so it has their runs."""
    played = play(study(EWC, trials=3))
    asleep, other = (place.delivery(played, who) for who in ("asleep", "other"))
    asleep.trials(played.searchers, played.records)  # looks at what is there
    played.all(other)
    close(other, played)
    asleep.own(played.searchers, played.records)
    assert len(place.runs()) == 3 and place.said == []


@pytest.mark.parametrize("gathers_first", [True, False])
def test_who_delivers_its_own_ties_it_to_the_overview_that_stays(
    gathers_first: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drivers began at once, with an overview each, and end at the same moment."""
    played = play(study(EWC, trials=3), owner=place.tracker("second").owner)
    first, second = (place.delivery(played, who) for who in ("first", "second"))
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "_overviews", lambda self: {})
        for delivery in (first, second):
            delivery.trials(played.searchers, played.records)
    played.all(second)
    if gathers_first:
        close(first, played)
    second.own(played.searchers, played.records)
    if not gathers_first:
        tied = {run.data.tags["forgetbench.overview"] for run in place.runs()}
        close(first, played)
    (overview,) = place.runs("overview")
    assert {r.data.tags["forgetbench.overview"] for r in place.runs()} == {overview.info.run_id}
    assert gathers_first or tied == {overview.info.run_id}


def test_two_studies_of_one_file_in_one_experiment_leave_each_other_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people with the same file, a storage each, and one server: their grids have trials in common."""
    one, two = play(study(EWC, trials=3)), play(study(EWC, trials=3))
    ours, theirs = (place.delivery(played, who) for who, played in (("ours", one), ("theirs", two)))
    with monkeypatch.context() as patch:  # both begin at once
        patch.setattr(Tracker, "_overviews", lambda self: {})
        for delivery, played in ((ours, one), (theirs, two)):
            delivery.trials(played.searchers, played.records)
    (searcher,) = two.searchers
    trial, *_ = searcher.ask()
    with monkeypatch.context() as patch:  # on its way while the other study ends
        patch.setattr(MlflowClient, "set_terminated", lambda *args, **kwargs: None)
        theirs.trial(searcher, trial, two.seeds(searcher, trial), two.records)
    before = {run.info.run_id for run in place.runs() + place.runs("overview") + place.runs("seed")}
    one.all(ours)
    close(ours, one)
    assert before <= {run.info.run_id for run in place.runs() + place.runs("overview") + place.runs("seed")}
    assert len(place.runs("overview")) == 2 and len(place.runs()) == 4 and place.said == []


def test_an_experiment_that_another_driver_makes_at_the_same_moment_is_the_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, found = place.tracker(), MlflowClient.get_experiment_by_name
    answers = [lambda client, name: None, found]
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda client, name: answers.pop(0)(client, name))
    assert place.tracker().experiment_id == first.experiment_id


def test_two_trials_of_one_setting_are_two(place: Place) -> None:
    played = play(study(EWC, trials=2, batch=2))
    (searcher,) = played.searchers
    delivery = place.delivery(played)
    for n in (2, 3):
        searcher.optuna.enqueue_trial({"lam": 10.0}, user_attrs={PLACE: n})
    for trial in [searcher.optuna.ask(searcher.search.space) for _ in range(4)][2:]:
        assert trial.params == {"lam": 10.0}
        seeds = played.seeds(searcher, trial)
        delivery.trial(searcher, trial, seeds, played.records)
        searcher.tell(trial, seeds)
    assert len(place.runs()) == 2
    place.delivery(played).trials(played.searchers, played.records)
    assert len(place.runs()) == 2


# A server that fails


def test_a_server_that_fails_costs_the_study_nothing_and_is_said_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = play()
    delivery = place.delivery(played)
    played.batch(delivery)

    def failing(*args: object, **kwargs: object) -> None:
        raise ConnectionError("the server went away")

    monkeypatch.setattr(MlflowClient, "create_run", failing)
    played.all(delivery)
    close(delivery, played)
    monkeypatch.undo()
    assert delivery.failure is not None and "the server went away" in delivery.failure
    (said,) = place.said
    assert "the server went away" in said and "--resume" in said
    assert all(len(searcher.complete) == 6 for searcher in played.searchers)
    again = place.delivery(played)
    close(again, played)
    assert again.failure is None and len(place.runs()) == 12


def test_an_error_of_anything_but_the_server_is_not_taken_for_one(place: Place) -> None:
    played = play()
    delivery = place.delivery(played)

    def broken(*args: object, **kwargs: object) -> Mapping[str, Any]:
        raise ZeroDivisionError

    place.shown.contents = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        close(delivery, played)


# The overview, and what it shows


def test_the_overview_says_what_was_asked_what_was_spent_and_what_was_found(place: Place) -> None:
    played = play()
    delivery = place.delivery(played)
    played.all(
        delivery,
        diverges=lambda label, number, seed: label == "l2" and number in {0, 4},
        fails=lambda label, number, seed: label == "l2" and number == 2,
    )
    close(delivery, played)
    (overview,) = place.runs("overview")
    note = overview.data.tags["mlflow.note.content"]
    assert "Protocol validation: chosen on 10% of each label's training images; 6 trials a strategy" in note
    assert "`ewc` 6 trials; `l2` 6 trials, 1 failed, 2 diverged" in note and "| the answers |" in note
    assert overview.info.status == "FINISHED" and overview.data.tags["device"] == "cpu"
    assert overview.data.params | {"description": ""} == {
        "study": "made-up",
        "protocol": "validation",
        "objective": "average_accuracy",
        "sampler": "tpe",
        "strategies": "ewc, l2",
        "scenario": "permuted-digits",
        "model": "mlp-bn",
        "description": "",
    }
    there = {f.path for f in place.client.list_artifacts(overview.info.run_id)}
    assert there == {"figures", "trials.csv", "result_table.md"}
    assert {run.data.tags["forgetbench.overview"] for run in place.runs()} == {overview.info.run_id}


def test_what_is_shown_is_made_of_all_trials(place: Place) -> None:
    played = play(study(EWC, protocol="test-oracle"))
    delivery = place.delivery(played)
    played.all(delivery)
    close(delivery, played)
    (given,) = place.shown.given
    assert given["tuned_on_test"] is True and given["objectives"] == {"average_accuracy": "maximize"}
    assert list(given["trials"]["average_accuracy"]) == pytest.approx([t.value for t in played.searchers[0].ended])
    assert len(given["seeds"]) == 6 * SEEDS and list(given["search_space"]["param"]) == ["lam"]
    assert "TUNED ON TEST" in place.runs("overview")[0].data.tags["mlflow.note.content"]


def test_the_tested_settings_are_flat_runs_of_their_strategies(place: Place) -> None:
    played = play()
    delivery = place.delivery(played)
    played.all(delivery)
    close(delivery, played)
    (overview,), tests = place.runs("overview"), place.runs("run")
    assert sorted(run.data.params["strategy"] for run in tests) == ["ewc"] * 3 + ["l2"] * 3
    for run in tests:
        assert PARENT not in run.data.tags and run.data.tags["forgetbench.overview"] == overview.info.run_id
        assert (run.data.params["phase"], run.data.params["protocol"]) == ("test", "validation")


def test_where_more_trials_find_a_better_setting_the_tests_of_the_former_are_no_answer_any_more(place: Place) -> None:
    played = play(study(EWC))
    delivery = place.delivery(played)
    played.batch(delivery)
    former = played.tested()
    delivery.close(played.searchers, played.records, "", former, {})
    played.batch(delivery)
    keys = {r.run_key for r in played.tested()["ewc"]}
    assert keys != {r.run_key for r in former["ewc"]}  # or this test tests nothing
    close(place.delivery(played), played)
    (overview,) = place.runs("overview")
    tied = {run.data.tags["forgetbench.run_key"]: run.data.tags["forgetbench.overview"] for run in place.runs("run")}
    assert {key for key, run_id in tied.items() if run_id == overview.info.run_id} == keys
    assert len(tied) == 6  # they stay, and are found by their keys


def test_another_study_of_the_same_file_has_an_overview_of_its_own(place: Place) -> None:
    for name in ("made-up", "made-up-2"):
        played = play(study(EWC, name=name))
        played.batch(place.delivery(played))
    assert sorted(run.data.params["study"] for run in place.runs("overview")) == ["made-up", "made-up-2"]
    assert len(place.runs()) == 6


def test_a_larger_budget_keeps_the_overview(place: Place) -> None:
    storage = InMemoryStorage()
    for trials in (3, 6):
        played = play(study(EWC, trials=trials), storage, resume=trials == 6)
        delivery = place.delivery(played)
        played.all(delivery)
        close(delivery, played)
    assert len(place.runs("overview")) == 1 and len(place.runs()) == 6


# Saved views


def test_the_view_of_trials_has_what_was_searched_against_what_came_of_it(place: Place) -> None:
    played = play(study(EWC | {"decay": {"low": 0.0, "high": 1.0}, "accumulate": "online"}, L2))
    delivery = place.delivery(played)
    played.batch(delivery)
    close(delivery, played)
    view = place.view()
    (overview,) = place.runs("overview")
    assert view["searchFilter"] == (
        f"tags.`forgetbench.kind` = 'trial' and tags.`forgetbench.overview` = '{overview.info.run_id}'"
    )
    assert len(place.client.search_runs([place.id()], view["searchFilter"])) == 6  # the filter is one
    charts = view["compareRunCharts"]
    axes = [(c["xaxis"]["key"], c["xaxis"]["type"], c["yaxis"]["key"]) for c in charts if c["type"] == "SCATTER"]
    assert axes == [
        ("log10_lam", "METRIC", "average_accuracy"),
        ("decay", "PARAM", "average_accuracy"),
        ("plasticity", "METRIC", "stability"),
    ]
    (parallel,) = [c for c in charts if c["type"] == "PARALLEL"]
    # decay is not: a line needs all of its points, and one strategy has none.
    assert parallel["selectedParams"] == ["strategy"]
    assert parallel["selectedMetrics"] == ["log10_lam", "average_accuracy"]
    run = place.trial(played.searchers[0].search.label, 0)
    used = {key for x, kind, y in axes for key in ((x, y) if kind == "METRIC" else (y,))}
    assert used <= {*run.data.metrics} and "decay" in run.data.params


def test_two_objectives_are_charted_against_each_other(place: Place) -> None:
    played = play(study(EWC, objective=["average_accuracy", "forgetting"]))
    delivery = place.delivery(played)
    played.batch(delivery)
    close(delivery, played)
    charts = place.view()["compareRunCharts"]
    axes = [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in charts if c["type"] == "SCATTER"]
    assert axes == [
        ("log10_lam", "average_accuracy"),
        ("log10_lam", "forgetting"),
        ("forgetting", "average_accuracy"),
    ]


def test_the_view_of_tests_compares_strategies_and_leaves_trials_out(place: Place) -> None:
    played = play()
    delivery = place.delivery(played)
    played.batch(delivery)
    close(delivery, played)
    view = place.view(views.TESTED)
    found = place.client.search_runs([place.id()], view["searchFilter"])
    assert {run.data.tags["forgetbench.kind"] for run in found} == {"run"} and len(found) == 6
    assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "strategy"}]
    note = place.client.get_experiment(place.id()).tags["mlflow.note.content"]
    assert views.path(place.id()).removeprefix("/") in note
    assert views.path(place.id(), views.TESTED).removeprefix("/") in note


# The database


def mode(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def test_a_database_made_here_commits_fast_and_one_that_was_there_stays_as_it_is(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "theirs.db")) as connection:
        connection.execute("CREATE TABLE experiments (id INTEGER)")
    with pytest.raises(TrackingError):  # no schema of MLflow's
        Tracker(f"sqlite:///{tmp_path / 'theirs.db'}", "x", tmp_path)
    Tracker(f"sqlite:///{tmp_path / 'ours.db'}", "x", tmp_path)
    Storage.of(f"sqlite:///{tmp_path / 'optuna.db'}")
    modes = {path.stem: mode(path) for path in tmp_path.glob("*.db")}
    assert modes == {"theirs": "delete", "ours": "wal", "optuna": "wal"}
