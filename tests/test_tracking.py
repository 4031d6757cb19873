"""MLflow: what arrives there, that delivering twice is delivering once, and servers that are not there."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import math
import os
import platform
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmark import data, environment, experiment, metrics, server, tracking
from benchmark.results import STUDY, Record, Store
from benchmark.server import TrackingError, redacted, typed
from benchmark.tracking import Tracker, Trial

MATRIX = np.array([[0.1, 0.2], [0.9, 0.3], [0.6, 0.8]])


def record(key: str = "k0", strategy: str = "ewc[lam=10]", seed: int = 0, **changes: object) -> Record:
    """A finished run as it stands on disk."""
    given: dict[str, object] = {
        "run_key": key,
        "strategy": strategy,
        "seed": seed,
        "status": "finished",
        "fields": {"strategy_name": "ewc", "lam": "10", "epochs": "2", "iterations": "", "scenario": "permuted-digits"},
        "values": metrics.summary(MATRIX),
        "facts": {"train_seconds": "1.250", "stack_size": "3", "trunk": "t0", "trunk_runs": "2"},
        "accuracy": MATRIX,
    }
    return Record(**(given | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests, each with an experiment of its own: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


class Place:
    """An experiment in the store, and what is in it."""

    def __init__(self, uri: str, name: str, folder: Path) -> None:
        self.uri, self.name, self.folder = uri, name, folder
        self.client = MlflowClient(tracking_uri=uri)

    def tracker(self) -> Tracker:
        return Tracker(self.uri, self.name, self.folder / "artifacts")

    def id(self) -> str:
        found = self.client.get_experiment_by_name(self.name)
        assert found is not None
        return str(found.experiment_id)

    def overview(
        self, params: dict[str, str], tags: dict[str, str], note: str, started: float, files: dict[str, Any]
    ) -> str:
        tracker = self.tracker()
        tracker.open(params, started)
        tracker.close(tags, note, files, 2, ["naive"])
        return str(max(self.runs("overview"), key=lambda run: run.info.start_time).info.run_id)

    def runs(self, kind: str = "run") -> list[Run]:
        found = self.client.search_runs([self.id()], f"tags.`forgetbench.kind` = '{kind}'", order_by=["start_time ASC"])
        return list(found)


@pytest.fixture
def place(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(database, request.node.name, tmp_path)


def times(*records: Record) -> dict[str, float]:
    return {r.run_key: 1_000_000.0 + i for i, r in enumerate(records)}


def deliver(place: Place, *records: Record) -> int:
    return place.tracker().deliver(records, times(*records))


# What arrives


def test_nothing_ends_before_it_began_where_the_clock_jumped_back(place: Place) -> None:
    tracker, later = place.tracker(), time.time() + 3600
    tracker.open({}, later)
    trial = Trial("t0", "ewc trial 0", "finished", "", {"strategy": "ewc"}, {}, later, later - 7200, [record("k0")])
    tracker.deliver_trials([trial])
    tracker.deliver([record("k1")], {"k1": later})
    tracker.close({}, "", {}, 2, ["ewc"])
    for kind in ("overview", "trial", "seed", "run"):
        (run,) = place.runs(kind)
        assert (run.info.status, run.info.start_time) == ("FINISHED", int(later * 1000))
        assert run.info.end_time >= run.info.start_time


def test_a_run_arrives_with_params_metrics_curves_and_its_matrix(place: Place) -> None:
    assert deliver(place, record()) == 1
    (run,) = place.runs()
    assert (run.info.status, run.info.run_name, run.info.start_time) == (
        "FINISHED",
        "ewc[lam=10] seed 0",
        1_000_000_000,
    )
    assert run.data.params == {
        "strategy": "ewc[lam=10]",
        "seed": "0",
        "strategy_name": "ewc",
        "lam": "10",
        "epochs": "2",
        "scenario": "permuted-digits",
        "trunk": "t0",
    }
    assert run.data.metrics == pytest.approx(
        metrics.summary(MATRIX) | {"train_seconds": 1.25, "acc/task_01": 0.6, "acc/task_02": 0.8}
    )
    curve = place.client.get_metric_history(run.info.run_id, "acc/task_01")
    assert [(point.step, point.value) for point in curve] == [(0, 0.1), (1, 0.9), (2, 0.6)]
    (summary,) = place.client.get_metric_history(run.info.run_id, "forgetting")
    assert summary.step == 0
    matrix = place.client.download_artifacts(run.info.run_id, "accuracy_matrix.json", str(place.folder))
    assert json.loads(Path(matrix).read_text())["accuracy"] == MATRIX.tolist()


def test_runs_are_flat_siblings_so_that_the_chart_view_shows_them(place: Place) -> None:
    deliver(place, record("a"), record("b", seed=1))
    place.overview({}, {}, "note", 1.0, {})
    for run in [*place.runs(), *place.runs("overview")]:
        assert "mlflow.parentRunId" not in run.data.tags
    assert len(place.runs()) == 2 and len(place.runs("overview")) == 1


def test_a_diverged_run_is_failed_and_its_undefined_numbers_are_left_out(place: Place) -> None:
    matrix = MATRIX.copy()
    matrix[2] = np.nan
    deliver(place, record(status="diverged", accuracy=matrix, values=metrics.summary(matrix)))
    (run,) = place.runs()
    assert (run.info.status, run.data.tags["forgetbench.status"]) == ("FAILED", "diverged")
    assert all(math.isfinite(value) for value in run.data.metrics.values())
    assert "average_accuracy" not in run.data.metrics and "fwt" in run.data.metrics
    assert run.data.metrics["acc/task_01"] == 0.9
    written = place.client.download_artifacts(run.info.run_id, "accuracy_matrix.json", str(place.folder))
    assert json.loads(Path(written).read_text())["accuracy"][2] == [None, None]


def test_a_long_sequence_of_more_points_than_a_request_takes_arrives_whole(place: Place) -> None:
    matrix = np.random.default_rng(0).random((36, 35))  # 1 260 points
    deliver(place, record(accuracy=matrix, values=metrics.summary(matrix)))
    (run,) = place.runs()
    for j in (0, 17, 34):
        curve = place.client.get_metric_history(run.info.run_id, f"acc/task_{j + 1:02d}")
        assert [point.value for point in sorted(curve, key=lambda p: p.step)] == pytest.approx(matrix[:, j].tolist())


def test_newest_first_the_runs_are_one_seed_of_every_strategy_in_the_order_of_the_experiment() -> None:
    runs = [(f"{strategy}{seed}", seed) for strategy in "abc" for seed in (4, 2, 9)]
    found = tracking.start_times(runs, 100.0)
    newest_first = sorted(found, key=found.__getitem__, reverse=True)
    assert newest_first == ["a4", "b4", "c4", "a2", "b2", "c2", "a9", "b9", "c9"]
    assert len(set(found.values())) == 9
    assert all(100.0 < value < 101.0 for value in found.values())


# Delivering again


def test_delivering_twice_is_the_same_as_once(place: Place) -> None:
    both = record("a"), record("b", seed=1)
    tracker = place.tracker()
    assert [tracker.deliver(both, times(*both)), tracker.deliver(both, times(*both))] == [2, 0]
    first = [run.info.run_id for run in place.runs()]
    assert deliver(place, *both) == 0  # another process
    assert [run.info.run_id for run in place.runs()] == first


def test_only_what_is_not_there_yet_is_delivered(place: Place) -> None:
    deliver(place, record("a"))
    assert deliver(place, record("a"), record("b", seed=1)) == 1
    assert [run.data.tags["forgetbench.run_key"] for run in place.runs()] == ["a", "b"]


def test_one_key_twice_in_a_delivery_arrives_once(place: Place) -> None:
    deliver(place, record("a"), record("a"))
    assert len(place.runs()) == 1


def test_a_run_cut_off_half_way_is_replaced(place: Place) -> None:
    tracker = place.tracker()
    tags = {"forgetbench.kind": "run", "forgetbench.run_key": "a"}
    half = place.client.create_run(tracker.experiment_id, tags=tags | {"forgetbench.owner": tracker.owner})
    others = place.client.create_run(tracker.experiment_id, tags=tags | {"forgetbench.owner": "somebody else"})
    assert half.info.status == "RUNNING"
    assert tracker.deliver([record("a")], times(record("a"))) == 1
    left = {run.info.run_id: run for run in place.runs()}
    assert half.info.run_id not in left and others.info.run_id in left  # another folder's delivery goes on
    (run,) = (run for run_id, run in left.items() if run_id != others.info.run_id)
    assert (run.info.status, run.data.metrics["forgetting"]) == ("FINISHED", pytest.approx(0.3))


def test_a_delivery_that_breaks_off_is_completed_by_the_next(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    both = record("a"), record("b", seed=1)
    log_batch, calls = MlflowClient.log_batch, []

    def breaking(client: MlflowClient, *args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise ConnectionError("the server went away")
        return log_batch(client, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", breaking)
    with pytest.raises(TrackingError, match="the server went away"):
        deliver(place, *both)
    monkeypatch.undo()
    assert deliver(place, *both) == 1
    assert [(r.data.tags["forgetbench.run_key"], r.info.status) for r in place.runs()] == [
        ("a", "FINISHED"),
        ("b", "FINISHED"),
    ]


def test_more_runs_than_a_page_of_the_server_are_all_found_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAGE", 2)
    five = [record(key) for key in "abcde"]
    deliver(place, *five)
    assert deliver(place, *five) == 0
    assert len(place.runs()) == 5


def test_runs_that_others_logged_into_the_experiment_stay(place: Place) -> None:
    tracker = place.tracker()
    other = place.client.create_run(tracker.experiment_id)
    tracker.deliver([record()], times(record()))
    assert place.client.get_run(other.info.run_id).info.lifecycle_stage == "active"


# The overview run


def test_the_overview_holds_note_tags_params_texts_and_figures(place: Place) -> None:
    figure = Figure(figsize=(1, 1))
    run_id = place.overview(
        {"lr": "0.1"}, {"device": "cpu"}, "a **note**", 5.0, {"runs.csv": "a,b\n", "figures/one.png": figure}
    )
    run = place.client.get_run(run_id)
    assert (run.info.status, run.info.run_name, run.info.start_time) == ("FINISHED", "overview", 5000)
    assert run.data.params == {"lr": "0.1"}
    assert (run.data.tags["device"], run.data.tags["mlflow.note.content"]) == ("cpu", "a **note**")
    assert {f.path for f in place.client.list_artifacts(run_id)} == {"runs.csv", "figures"}
    assert Path(place.client.download_artifacts(run_id, "runs.csv", str(place.folder))).read_text() == "a,b\n"
    png = Path(place.client.download_artifacts(run_id, "figures/one.png", str(place.folder)))
    assert png.read_bytes().startswith(b"\x89PNG")
    shown = place.client.get_experiment(place.id()).tags
    assert shown["mlflow.note.content"].endswith("a **note**")
    assert "Strategies compared" in shown["mlflow.sharedViewState.forgetbench"]


def test_the_overview_names_image_sets_of_ones_own_by_keys_that_mlflow_takes(place: Place) -> None:
    images = data.load("digits")
    other = dataclasses.replace(images, train_y=images.train_y.flip(0))
    names = ("~/mine.npz", "data/my set (1).npz", "x/../sets.npz", "my_package.sets:first", "digits")
    sets = [dataclasses.replace(images, name=name) for name in names]
    described = environment.describe(torch.device("cpu"), [*sets, dataclasses.replace(other, name="other/mine.npz")])
    run = place.client.get_run(place.overview({}, described, "", 5.0, {}))
    assert {k: v for k, v in run.data.tags.items() if k.startswith("data.")} == {
        "data.mine.1": images.checksum,
        "data.mine.2": other.checksum,
        "data.my-set-1-": images.checksum,
        "data.sets": images.checksum,
        "data.my-package-sets-first": images.checksum,
        "data.digits": images.checksum,
    }


def test_a_second_overview_renews_the_first(place: Place) -> None:
    first = place.overview({"lr": "0.1"}, {"device": "cpu"}, "old", 5.0, {"t.md": "old"})
    second = place.overview({"lr": "0.1"}, {"device": "cuda"}, "new", 9.0, {"t.md": "new"})
    assert first == second
    run = place.client.get_run(second)
    assert run.data.params == {"lr": "0.1"}
    assert (run.data.tags["device"], run.data.tags["mlflow.note.content"]) == ("cuda", "new")
    assert Path(place.client.download_artifacts(second, "t.md", str(place.folder))).read_text() == "new"


def test_an_overview_that_a_killed_command_left_without_params_is_filled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    first = place.tracker()
    monkeypatch.setattr(first, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        first.open({"lr": "0.1"}, 5.0)
    (left,) = place.runs("overview")
    assert place.overview({"lr": "0.1"}, {}, "a note", 9.0, {}) == left.info.run_id
    (run,) = place.runs("overview")
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})


def test_other_settings_have_an_overview_of_their_own(place: Place) -> None:
    first = place.overview({"lr": "0.1"}, {}, "old", 5.0, {})
    second = place.overview({"lr": "0.2"}, {}, "new", 9.0, {})
    assert first != second and place.client.get_run(first).data.params == {"lr": "0.1"}


def test_runs_are_tied_to_their_overview_by_a_tag(place: Place) -> None:
    tracker = place.tracker()
    tracker.open({"lr": "0.1"}, 5.0)
    tracker.deliver([record("a")], {"a": 6.0})
    (run,), (overview,) = place.runs(), place.runs("overview")
    assert run.data.tags["forgetbench.overview"] == overview.info.run_id


def test_runs_there_already_are_tied_to_the_overview_of_the_newest_settings(place: Place) -> None:
    for lr in ("0.1", "0.2"):
        tracker = place.tracker()
        tracker.open({"lr": lr}, 5.0)
        tracker.deliver([record("a")], {"a": 6.0})
    (run,) = place.runs()
    newest = next(r for r in place.runs("overview") if r.data.params == {"lr": "0.2"})
    assert run.data.tags["forgetbench.overview"] == newest.info.run_id


def test_a_note_longer_than_a_tag_may_be_is_no_reason_to_fail(place: Place) -> None:
    row = "| `ewc[estimator=exact,lam=1000]` | 3 | 97.1 ± 0.1 | 50.2 ± 3.0 | 71.1 ± 2.0 | 12.0 ± 0.4 |\n"
    run_id = place.overview({}, {}, row * 250, 1.0, {"result_table.md": row * 250})
    assert place.client.get_run(run_id).data.tags["mlflow.note.content"].startswith(row)
    assert Path(place.client.download_artifacts(run_id, "result_table.md", str(place.folder))).read_text() == row * 250


def test_a_run_that_failed_is_replaced_once_it_has_a_result(place: Place) -> None:
    lost = record("a", status="failed", reason="KeyError: 'x'", accuracy=np.full((3, 2), np.nan), values={})
    assert [deliver(place, lost) for _ in range(2)] == [1, 0]
    (run,) = place.runs()
    assert (run.info.status, run.data.tags["forgetbench.reason"]) == ("FAILED", "KeyError: 'x'")
    tracker = place.tracker()
    assert [tracker.deliver([r], times(r)) for r in (lost, record("a"), record("a"), lost)] == [0, 1, 0, 0]
    (run,) = place.runs()
    assert (run.info.status, run.data.tags["forgetbench.status"]) == ("FINISHED", "finished")


def test_a_failure_that_a_killed_command_left_beside_its_result_is_removed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = record("a", status="failed", reason="KeyError: 'x'")
    deliver(place, lost)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "delete_run", lambda *args: None)
        deliver(place, record("a"))
    assert len(place.runs()) == 2
    assert deliver(place, record("a")) == 0
    assert [run.info.status for run in place.runs()] == ["FINISHED"]


def test_somebody_elses_failure_is_left_to_them(place: Place, tmp_path: Path) -> None:
    deliver(place, record("a", status="failed", reason="KeyError: 'x'"))
    other = Tracker(place.uri, place.name, tmp_path / "elsewhere")
    assert other.deliver([record("a")], times(record("a"))) == 1
    assert sorted(run.info.status for run in place.runs()) == ["FAILED", "FINISHED"]


def test_a_clock_that_jumps_back_costs_no_run_and_no_run_ends_before_it_began(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, clock = [record(key, seed=seed) for seed, key in enumerate("abc")], iter(range(2 * 10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for some in (records[:1], records[:2], records):
        tracker = place.tracker()
        tracker.open({"epochs": "1"}, time.time())
        tracker.deliver(some, tracking.start_times(((r.run_key, r.seed) for r in some), time.time()))
    runs = place.runs()
    assert sorted(run.data.tags["forgetbench.run_key"] for run in runs) == ["a", "b", "c"]
    assert all(run.info.end_time >= run.info.start_time for run in runs) and len(place.runs("overview")) == 1


# sync


class Presented:
    """A presentation that remembers the runs it was to show."""

    def __init__(self) -> None:
        self.shown: list[pd.DataFrame] = []

    def contents(self, runs: pd.DataFrame, accuracy: pd.DataFrame) -> tuple[str, dict[str, Any]]:
        self.shown.append(runs)
        return "note", {}

    def colours(self, strategies: list[str]) -> dict[str, str]:
        return dict.fromkeys(strategies, "#123456")


def fill(folder: Path, *records: Record) -> None:
    with Store(folder) as store:
        store.records = {r.run_key: r for r in records}
        store.add([])


def test_sync_delivers_a_folder_and_draws_its_overview_once(place: Place) -> None:
    fill(place.folder, record("a"), record("b", seed=1), record("c", strategy="naive"))
    presented = Presented()
    assert experiment.sync(place.folder, place.tracker, presented) == (3, 3)
    assert experiment.sync(place.folder, place.tracker, presented) == (0, 3)
    assert [len(runs) for runs in presented.shown] == [3, 3]  # renewed: the overview may be what was missed
    assert {run.data.tags["mlflow.runColor"] for run in place.runs()} == {"#123456"}
    (overview,) = place.runs("overview")
    assert overview.data.params["scenario"] == "permuted-digits"
    assert {f.path for f in place.client.list_artifacts(overview.info.run_id)} >= {"runs.csv", "accuracy.csv"}


def test_what_is_delivered_late_is_as_old_as_its_training(place: Place) -> None:
    fill(place.folder, record("a"))
    with Store(place.folder) as store:
        store.describe({}, {})
    os.utime(place.folder / "environment.json", (1e9, 1e9))
    experiment.sync(place.folder, place.tracker, Presented())
    (run,) = place.runs()
    assert run.info.start_time // 1000 == 10**9


def test_sync_does_not_average_runs_of_two_settings_that_share_a_label(place: Place) -> None:
    """A folder holds the runs of every version of its file: here `naive` with one epoch, later with two."""
    one = [record(f"one{s}", strategy="naive", seed=s, fields={"epochs": "1"}) for s in (0, 1)]
    two = [record(f"two{s}", strategy="naive", seed=s, fields={"epochs": "2"}) for s in (0, 1)]
    fill(place.folder, *one, *two)
    presented = Presented()
    experiment.sync(place.folder, place.tracker, presented)
    (runs,) = presented.shown
    assert not runs.duplicated(["strategy", "seed"]).any()  # as many runs as seeds


def test_sync_delivers_what_newer_code_trained_again_once_and_the_newer(place: Place) -> None:
    fill(place.folder, record("old"), record("new"), record("b", seed=1))
    presented = Presented()
    assert experiment.sync(place.folder, place.tracker, presented) == (2, 2)
    assert {run.data.tags["forgetbench.run_key"] for run in place.runs()} == {"new", "b"}


def test_what_other_code_trained_leaves_the_overview_of_what_is_current(place: Place) -> None:
    """A strategy of the user's own changes and changes back: its label and settings stay the same."""
    tracker = place.tracker()
    tracker.open({"epochs": "2"}, 0.0)
    one, two, naive = record("v1"), record("v2"), record("n", strategy="naive")
    for current in (one, two, one):
        tracker.deliver([naive, current], times(naive, one, two))
        tied = [
            run.data.tags["forgetbench.run_key"] for run in place.runs() if run.data.tags.get("forgetbench.overview")
        ]
        assert sorted(tied) == sorted([naive.run_key, current.run_key])
    assert len(place.runs()) == 3


def test_sync_leaves_studies_to_their_command_and_has_nothing_of_an_empty_folder(place: Place) -> None:
    fill(place.folder)
    assert experiment.sync(place.folder, place.tracker, Presented()) == (0, 0)
    fill(place.folder, record("a"))
    with Store(place.folder) as store:
        store.describe({STUDY: "lambda"}, {})
    assert experiment.sync(place.folder, place.tracker, Presented()) is None
    assert place.client.get_experiment_by_name(place.name) is None


def test_a_command_on_another_machine_knows_its_folder_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's scheduler may start it again on any node."""
    first = place.tracker()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", lambda *args, **kwargs: None)  # killed in the middle of a run
        first.deliver([record("a")], {"a": 0.0})
    monkeypatch.setattr(platform, "node", lambda: "another-node")
    place.tracker().deliver([record("a")], {"a": 0.0})
    assert [run.info.status for run in place.runs()] == ["FINISHED"]
    assert Tracker(place.uri, place.name, place.folder / "another").owner != first.owner


# Servers that are not there


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def answers() -> Iterator[list[bytes]]:
    """A server of one's own: its address, then what it answers to everything."""
    given: list[bytes] = []

    with socket.create_server(("127.0.0.1", 0)) as server:
        given.append(b"127.0.0.1:%d" % server.getsockname()[1])

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(given[-1])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield given
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_that_refuses_is_said_to_be_down_with_what_to_do(closed_port: int, tmp_path: Path) -> None:
    with pytest.raises(TrackingError) as caught:
        Tracker(f"http://127.0.0.1:{closed_port}", "x", tmp_path)
    for part in (f"http://127.0.0.1:{closed_port}", "does not answer", "refused", "--offline", "forgetbench sync"):
        assert part in str(caught.value)


def test_whether_a_server_answers_is_found_out_before_mlflow_retries_for_minutes(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.MlflowClient", None)  # calling it would be another error
    with pytest.raises(TrackingError, match="does not answer"):
        Tracker(f"http://127.0.0.1:{closed_port}", "x", tmp_path)


def test_a_server_that_takes_the_call_and_says_nothing_is_said_to_be_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.server.TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(TrackingError, match="does not answer .*timed out.*forgetbench sync"),
    ):
        Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "x", tmp_path)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_in_trouble_is_said_to_be_down(answers: list[bytes], status: int, tmp_path: Path) -> None:
    reason = http.server.BaseHTTPRequestHandler.responses[status][0]
    answers.append(f"HTTP/1.0 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(TrackingError, match=f"does not answer .HTTP {status}"):
        Tracker(f"http://{answers[0].decode()}", "x", tmp_path)


def test_what_is_no_http_server_is_said_in_the_same_way(answers: list[bytes], tmp_path: Path) -> None:
    answers.append(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(TrackingError, match="the tracking server http://127"):
        Tracker(f"http://{answers[0].decode()}", "x", tmp_path)


@pytest.mark.parametrize("uri", ["http://", "http://127.0.0.1:port", "http://127.0.0.1:80 80", "https://[::1"])
def test_an_address_that_is_none_is_said_in_the_same_way(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        Tracker(uri, "x", tmp_path)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that something wanted to sleep for, without sleeping."""
    wanted: list[float] = []
    monkeypatch.setattr(time, "sleep", wanted.append)
    return wanted


def test_a_damaged_database_is_said_without_minutes_of_retries(slept: list[float], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match="not a database"):
        Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "x", tmp_path)
    assert sum(slept) < 30


@pytest.mark.parametrize(
    "use", [lambda uri, folder: Tracker(uri, "x", folder), lambda uri, _: tracking.links(uri)], ids=["runs", "ui"]
)
def test_a_database_server_that_refuses_is_said_without_minutes_of_retries(
    use: Callable[[str, Path], object], slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise ConnectionRefusedError("connection refused")

    # No database driver needs to be installed: what fails in real life is this call.
    (tmp_path / "other.db").write_bytes(b"there")
    monkeypatch.setattr("sqlalchemy.engine.Engine.connect", refused)
    with pytest.raises(TrackingError, match="refused"):
        use(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    assert sum(slept) < 30


def test_a_folder_in_the_place_of_the_database_is_said_in_one_message(slept: list[float], tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="unable to open database"):
        Tracker(f"sqlite:///{tmp_path}", "x", tmp_path)
    assert sum(slept) < 30


def test_a_kind_of_store_that_there_is_not_is_said_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="carrier-pigeon://home failed"):
        Tracker("carrier-pigeon://home", "x", tmp_path)


def test_a_deleted_experiment_is_said_with_what_to_do(place: Place) -> None:
    place.tracker()
    place.client.delete_experiment(place.id())
    with pytest.raises(TrackingError, match="was deleted.*restore it"):
        place.tracker()


def test_a_store_that_fails_in_the_middle_is_one_error_that_names_it(place: Place) -> None:
    tracker = place.tracker()
    with contextlib.closing(sqlite3.connect(place.uri.removeprefix("sqlite:///"))) as connection:
        connection.execute("ALTER TABLE params RENAME TO elsewhere")
        try:
            with pytest.raises(TrackingError, match=r"MLflow at sqlite:.* failed: .*params"):
                tracker.deliver([record()], times(record()))
        finally:
            connection.execute("ALTER TABLE elsewhere RENAME TO params")


# Secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/path", "http://***@host:5000/path"),
        ("https://secret@host", "https://***@host"),
        ("postgresql://user:secret@host/db", "postgresql://***@host/db"),
        ("postgresql+psycopg2://user:sec@ret@host/db", "postgresql+psycopg2://***@host/db"),
        ("http://user:sec ret@host", "http://***@host"),
        ("http://user:sec:ret@host", "http://***@host"),
        ("postgresql://user:sec/r@et@host/db", "postgresql://***@host/db"),
        ("postgresql://user:sec/ret@host/db", "postgresql://***@host/db"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("http://user:secret@host/a@b", "http://***@host/a@b"),
        ("sqlite:////home/me/out/mlflow.db", "sqlite:////home/me/out/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("mssql+pyodbc://host/db?uid=me&pwd=secret", "mssql+pyodbc://host/db?uid=me&pwd=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
    ],
)
def test_user_name_and_password_are_no_part_of_what_is_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


@pytest.mark.parametrize(
    ("program", "shown"),
    [("/usr/bin/forgetbench", "forgetbench"), ("benchmark/cli.py", "forgetbench"), ("mine/script.py", "script.py")],
)
def test_the_command_that_results_note_is_the_one_typed_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, program: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "run", "a b", "--tracking-uri", "http://me:secret@host"])
    assert typed() == f"{shown} run 'a b' --tracking-uri http://***@host"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--tracking-uri", "http://host", "--x", "a@b"], "--tracking-uri http://host --x a@b"),
        (["--tracking-uri=http://me:sec@ret@host", "a@b"], "--tracking-uri=http://***@host a@b"),
        (["http://me:sec ret@host", "a@b"], "'http://***@host' a@b"),
        (["http://me:it's/sec@host", "a@b"], "'http://***@host' a@b"),
    ],
)
def test_what_is_hidden_of_a_command_does_not_reach_beyond_an_argument(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], shown: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["forgetbench", *arguments])
    assert typed() == f"forgetbench {shown}"


@pytest.mark.parametrize("secret", ["secret", "se@cret", "se:cret", "se/cret"])
def test_the_message_about_a_server_that_is_down_keeps_the_password(
    closed_port: int, tmp_path: Path, secret: str
) -> None:
    with pytest.raises(TrackingError) as caught:
        Tracker(f"http://user:{secret}@127.0.0.1:{closed_port}", "x", tmp_path)
    assert "cret" not in str(caught.value) and "user" not in str(caught.value)


def test_an_error_of_mlflow_that_quotes_the_address_is_shown_without_the_password(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Max retries exceeded with url: http://user:secret@host/api and http://user:secret@host/b")

    tracker = place.tracker()
    monkeypatch.setattr(MlflowClient, "search_runs", failing)
    with pytest.raises(TrackingError, match="Max retries exceeded") as caught:
        tracker.deliver([record()], times(record()))
    assert "secret" not in str(caught.value)
