"""Tracked runs as frames."""

from __future__ import annotations

import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from mlflow import MlflowClient

from benchmark import tracking
from benchmark.server import TrackingError
from benchmark.tracking import Tracker
from reports import load, studies
from reports.load import ReportError
from studies.delivery import Delivery
from tests import synthetic_runs as made
from tests.synthetic_study import play

EWC = {"lam": "10", "estimator": "exact"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    """A database with two experiments and a study, beside what is not ours."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    runs = [*made.seeds("naive", 2), *made.seeds("ewc[estimator=exact,lam=10]", 2, keeps=0.9, **EWC)]
    made.track(uri, "first", [*runs, made.record("l2[lam=1]", 1, status="diverged", lam="1")], folder)
    made.track(uri, "second", made.seeds("naive", 2, tasks=2), folder)
    tracker = Tracker(uri, "made-up", folder / "mlartifacts")
    played = play()
    delivery = Delivery(tracker, played.study, studies, lambda line: None)
    played.all(delivery)
    delivery.close(played.searchers, played.records, "| answers |", played.tested(), {"command": "forgetbench study"})
    assert delivery.failure is None
    client = MlflowClient(tracking_uri=uri)
    client.create_run(client.create_experiment("somebody's"), run_name="theirs")
    return uri


def test_runs_come_in_the_order_of_the_experiment_with_params_and_metrics(uri: str) -> None:
    runs = load.runs(uri, experiments=["first"])
    first = made.record("naive", 0)
    assert runs[["strategy", "seed", "status"]].values.tolist() == [
        ["naive", 0, "finished"],
        ["ewc[estimator=exact,lam=10]", 0, "finished"],
        ["naive", 1, "finished"],
        ["ewc[estimator=exact,lam=10]", 1, "finished"],
        ["l2[lam=1]", 1, "diverged"],
    ]
    assert {*load.COLUMNS} <= {*runs}
    assert runs.loc[0, "average_accuracy"] == first.values["average_accuracy"]
    assert (runs.loc[1, "lam"], runs.loc[1, "estimator"], runs.loc[0, "epochs"]) == (10.0, "exact", 5)
    assert np.isnan(runs.loc[0, "lam"])
    assert "Fisher" in runs.loc[1, "what"] and "½·λ" in runs.loc[1, "lam_means"]
    assert not [c for c in runs if c.startswith("acc/")]  # curves are in the other frame


def test_accuracy_is_that_of_every_cell_row_0_included_and_nan_where_a_run_diverged(uri: str) -> None:
    tracked = load.load(uri, experiments=["first"])
    accuracy = tracked.accuracy
    assert tuple(accuracy) == load.CELLS
    for record in (made.record("naive", 1), made.record("l2[lam=1]", 1, status="diverged", lam="1")):
        cells = accuracy[accuracy["run_key"] == record.run_key].set_index(["after_task", "task"])["accuracy"]
        for (k, j), value in np.ndenumerate(record.accuracy):
            assert cells[k, j + 1] == pytest.approx(value, nan_ok=True), (k, j)
    assert len(accuracy) == len(tracked.runs) * (made.TASKS + 1) * made.TASKS


def test_an_overview_has_settings_and_environment(uri: str) -> None:
    (overview,) = load.load(uri, experiments=["first"]).overviews.values()
    assert overview.experiment == "first" and overview.settings["scenario"] == "permuted-digits"
    assert overview.environment == made.ENVIRONMENT  # without MLflow's own tags
    assert overview.study == "" and overview.trials == {}


def test_a_study_is_the_runs_that_tested_its_choice_and_the_tables_of_its_trials(uri: str) -> None:
    tracked = load.load(uri, studies=["made-up"])
    assert set(tracked.runs["phase"]) == {"test"} and len(tracked.runs) == 6
    (overview,) = tracked.overviews.values()
    assert overview.study == "made-up" and set(overview.trials) == set(load.TRIALS)
    assert len(overview.trials["trials"]) == 12


def test_an_overviews_id_stands_for_its_runs_and_a_runs_for_itself(uri: str) -> None:
    runs = load.runs(uri, experiments=["first"])
    (overview,) = set(runs["overview"])
    assert set(load.runs(uri, ids=[overview])["run_id"]) == set(runs["run_id"])
    chosen = list(runs["run_id"][:2])
    assert set(load.runs(uri, ids=chosen)["run_id"]) == set(chosen)
    assert len(load.runs(uri, ids=[overview, *chosen])) == len(runs)  # each once


def test_a_list_of_what_is_there_says_that_it_is_not_all() -> None:
    known = [f"set-{i}" for i in range(8)]
    assert load._did_you_mean("zzz", known) == "; there are set-0, set-1, set-2, set-3, set-4 and 3 more"
    assert (
        load._did_you_mean("set-9x", known).endswith(" and 5 more")
        and load._did_you_mean("x", []) == "; there are none"
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"experiments": ["frist"]}, "no experiment 'frist'; there are first"),
        ({"studies": ["made up"]}, "no study 'made up'; there are made-up"),
        ({"ids": ["nothing"]}, "no run 'nothing'; there are "),
        ({"experiments": ["made-up"]}, "it holds a study: --study made-up"),
        ({"experiments": ["somebody's"]}, "has no runs; run it first"),
        ({}, "say what to report on: --experiment first, --experiment second, --study made-up"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(uri: str, asked: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ReportError) as error:
        load.runs(uri, **asked)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_a_trial_and_a_run_of_somebody_elses_are_no_runs_to_report_on(uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    ids = [e.experiment_id for e in client.search_experiments()]
    trial = client.search_runs(ids, "tags.`forgetbench.kind` = 'trial'")[0].info.run_id
    seed = client.search_runs(ids, "tags.`forgetbench.kind` = 'seed'")[0].info.run_id
    theirs = client.search_runs(ids, "attributes.run_name = 'theirs'")[0].info.run_id
    for run_id, said in ((trial, "a trial of a study"), (seed, "a trial's run"), (theirs, "not forgetbench's")):
        with pytest.raises(ReportError, match=said):
            load.runs(uri, ids=[run_id])


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no tracking database"):
        load.runs(f"sqlite:///{tmp_path / 'none.db'}")
    assert not list(tmp_path.iterdir())


def test_the_only_experiment_need_not_be_named_and_an_empty_database_says_what_to_do(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker(uri, "empty", tmp_path)
    with pytest.raises(ReportError, match="no runs are tracked there yet"):
        load.runs(uri)
    made.track(uri, "alone", made.seeds("naive", 1), tmp_path)
    assert list(load.runs(uri)["experiment"]) == ["alone"]


def test_a_run_that_a_command_left_in_the_middle_is_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    made.track(uri, "cut", made.seeds("naive", 1), tmp_path)

    def killed(self: object, *args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking.Tracker, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        Tracker(uri, "cut", tmp_path).deliver([made.record("naive", 1)], {made.record("naive", 1).run_key: 1e6})
    assert sorted(load.runs(uri)["status"]) == ["finished", "unfinished"]


def test_artifacts_that_are_gone_leave_the_metrics(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    made.track(uri, "gone", made.seeds("naive", 2), tmp_path)
    shutil.rmtree(tmp_path / "mlartifacts")
    tracked = load.load(uri)
    assert tracked.accuracy.empty and tracked.runs["average_accuracy"].notna().all()


def test_a_server_that_does_not_answer_is_one_clear_message() -> None:
    with pytest.raises(TrackingError, match=r"http://\*\*\*@127\.0\.0\.1:9 does not answer"):
        load.runs("http://me:secret@127.0.0.1:9")


def test_a_server_that_wants_a_login_says_how_to_give_one() -> None:
    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.")

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(
            TrackingError,
            match="wants a login, and was given none: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ):
            load.runs(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
