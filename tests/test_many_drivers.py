"""Many drivers on one study, and MLflow, on a real PostgreSQL: killed, put to sleep, and cut off from it."""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from studies import databases
from studies.places import PLACE, SEEDS, counts, holders
from studies.storage import Storage
from tests.postgres import PASSWORD, Postgres, server
from tests.test_end_to_end import FORGETBENCH, environment, forgetbench, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TRIALS, TEST_SEEDS = 12, 3
NAMES = ("lambda-permuted-digits/ewc[estimator=empirical]", "lambda-permuted-digits/l2")
COMMAND = [
    "study", "lambda-permuted-digits", "train.epochs=2", "train.precision=float64", "model=mlp",
    f"study.trials={TRIALS}", "study.batch=2", f"study.test_seeds={TEST_SEEDS}", "study.sampler=random", "--resume",
]  # fmt: skip


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with server() as started:
        yield started


class Drivers:
    """Commands at work side by side, each with a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, **variables: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                [*FORGETBENCH, *COMMAND, "--out", name, *self.options],
                cwd=self.folder, stdout=log, stderr=log, text=True, env=environment() | {"OMP_NUM_THREADS": "1"} | variables,
            )  # fmt: skip

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def everything_said(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def wait(self, name: str) -> None:
        status = self.running[name].wait(timeout=900)
        assert status == 0, f"{name} ended with {status}: {self.said(name)[-3000:]}"

    def rows(self, name: str) -> dict[str, dict[str, str]]:
        path = self.folder / name / "lambda-permuted-digits" / "runs.csv"
        return table(path) if path.is_file() else {}


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Callable[..., Drivers]]:
    made = list[Drivers]()

    def make(*options: str) -> Drivers:
        made.append(Drivers(tmp_path, *options))
        return made[-1]

    yield make
    for process in [process for each in made for process in each.running.values()]:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


@functools.cache
def opened_once(storage: str) -> BaseStorage:
    return Storage.of(storage).optuna


def trials(storage: str) -> dict[str, list[FrozenTrial]]:
    opened = opened_once(storage)
    there = optuna.get_all_study_names(opened)
    return {name: optuna.load_study(study_name=name, storage=opened).trials for name in NAMES if name in there}


def until(condition: Callable[[], Any], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)


def held(storage: str, pid: int) -> list[FrozenTrial]:
    """Trials that a process is at, of those that fill a place: one of a place that another fills is nobody's loss."""
    found = [trial for each in trials(storage).values() for trial in holders(each).values()]
    running = [trial for trial in found if trial.state == TrialState.RUNNING]
    return [trial for trial in running if trial.user_attrs["driver"]["pid"] == pid]


def stopped_at_work(storage: str, process: subprocess.Popen[str], least: int = 1) -> list[FrozenTrial]:
    """Stop a process while it is at some trials, as many at least: those."""
    found = list[FrozenTrial]()

    def caught() -> bool:
        if len(held(storage, process.pid)) < least:
            return False
        process.send_signal(signal.SIGSTOP)  # before they are read, so that they stay what they are
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        time.sleep(2)  # what others have just taken out of its queue has its name until they sign
        found[:] = held(storage, process.pid)
        if len(found) < least:
            process.send_signal(signal.SIGCONT)
        return len(found) >= least

    until(caught)
    return found


def check(storage: str, work: Drivers) -> dict[str, list[FrozenTrial]]:
    """The budget is spent exactly, no setting trained as another trial, and what was told is in some driver's table."""
    counted = {name: [t for t in each if counts(t)] for name, each in trials(storage).items()}
    rows = [work.rows(path.name) for path in work.folder.iterdir() if path.is_dir()]
    for name in NAMES:
        assert sorted(t.user_attrs[PLACE] for t in counted[name]) == list(range(TRIALS))
        assert {t.state for t in counted[name]} == {TrialState.COMPLETE}
        left = [t.state for t in trials(storage)[name] if not counts(t)]
        assert {*left} <= {TrialState.FAIL}
        assert len({t.params["lam"] for t in counted[name]}) == TRIALS
        for trial in counted[name]:
            keys = [seed["run_key"] for seed in trial.user_attrs[SEEDS]]
            (found, *more) = [
                [float(each[key]["average_accuracy"]) for key in keys] for each in rows if {*keys} <= {*each}
            ]
            assert all(other == pytest.approx(found, abs=1e-12) for other in more)
            assert trial.values == [pytest.approx(sum(found) / len(found), abs=1e-12)]
    tested = collections.Counter(key for each in rows for key, row in each.items() if int(row["seed"]) >= 2)
    assert sorted(tested.values()) == [1] * (len(NAMES) * TEST_SEEDS)
    assert {*optuna.get_all_study_names(opened_once(storage))} == {*NAMES}
    return counted


def answers(said: str) -> list[str]:
    """The table at the end of a command."""
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("strategy "))
    return lines[start : lines.index("", start)]


def test_four_drivers_one_of_them_killed_spend_the_budget_exactly_once_and_deliver_it_once(
    postgres: Postgres, drivers: Callable[..., Drivers], tmp_path: Path
) -> None:
    storage = postgres.database("four")
    (tmp_path / "server").mkdir()
    with mlflow_server(postgres.database("mlflow"), tmp_path / "server") as address:
        work = drivers("--storage", storage, "--tracking-uri", address)
        for name in "abcd":
            work.start(name)
        killed = work.running["b"]
        left = stopped_at_work(storage, killed)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        for name in "acd":
            work.wait(name)
        delivered_once(address)
    counted = check(storage, work)
    # What it left was asked again.
    again = {t.params["lam"] for each in counted.values() for t in each}
    assert {trial.params["lam"] for trial in left if "lam" in trial.params} <= again
    assert f"process {killed.pid} on " in work.everything_said()
    # All say the same in the end; one of them found it.
    (ending,) = {tuple(answers(work.said(name))) for name in "acd"}
    assert len(ending) == 4
    assert work.everything_said().count("testing the best setting") == 1
    assert PASSWORD not in work.everything_said()

    # A single driver gives the same values for the same settings.
    alone = forgetbench(*COMMAND, "--out", "alone", "--offline", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    single = trials(f"sqlite:///{tmp_path / 'alone' / 'optuna.db'}")
    for name in NAMES:
        expected = {trial.params["lam"]: trial.values for trial in single[name]}
        shared = [trial for trial in counted[name] if trial.params["lam"] in expected]
        assert len(shared) == TRIALS  # each place has its own draw, whoever asks
        for trial in shared:
            assert trial.values == pytest.approx(expected[trial.params["lam"]], abs=1e-12)


def delivered_once(uri: str) -> None:
    """Trials, their seeds, tests and the overview are in MLflow once each."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "lambda-permuted-digits"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = collections.Counter(run.data.tags["forgetbench.kind"] for run in runs)
    assert kinds == {"trial": 2 * TRIALS, "seed": 4 * TRIALS, "run": 2 * TEST_SEEDS, "overview": 1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    keys = [run.data.tags["forgetbench.run_key"] for run in runs if run.data.tags["forgetbench.kind"] == "trial"]
    assert len({*keys}) == len(keys)
    (overview,) = [run for run in runs if run.data.tags["forgetbench.kind"] == "overview"]
    tied = [run for run in runs if run.data.tags["forgetbench.kind"] in {"trial", "run"}]
    assert {run.data.tags["forgetbench.overview"] for run in tied} == {overview.info.run_id}


def test_a_driver_put_to_sleep_finds_its_trials_trained_by_others_and_goes_on(
    postgres: Postgres, drivers: Callable[..., Drivers], tmp_path: Path
) -> None:
    """Not killed: its process is there, so only the heartbeat tells. It is short here, by a module at start-up."""
    (tmp_path / "sitecustomize.py").write_text(SHORT)
    short = {"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"}
    storage = postgres.database("asleep")
    work = drivers("--storage", storage, "--offline")
    work.start("a", **short)
    asleep = work.running["a"]
    # While it takes a batch it gives up without a word what is lost by the time it has it. With a third one in hand it
    # has taken the two of the first strategy, and trains them whatever became of them.
    assert stopped_at_work(storage, asleep, least=3)
    work.start("b", **short)
    until(lambda: not held(storage, asleep.pid))
    asleep.send_signal(signal.SIGCONT)
    work.wait("a")
    work.wait("b")
    check(storage, work)
    assert f"process {asleep.pid} on " in work.said("b")
    assert "was taken over meanwhile, and counts there" in work.said("a")


SHORT = """
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "studies.claims":
            sys.meta_path.remove(self)
            from studies import storage
            storage.HEARTBEAT, storage.GRACE = 1, 15
        return None

sys.meta_path.insert(0, Finder())
"""


def test_a_database_started_anew_is_waited_for(postgres: Postgres, drivers: Callable[..., Drivers]) -> None:
    storage = postgres.database("restarted")
    work = drivers("--storage", storage, "--offline")
    work.start("a")
    work.start("b")
    until(lambda: held(storage, work.running["a"].pid) and held(storage, work.running["b"].pid))
    postgres.control("stop", "-m", "fast")
    until(lambda: "does not answer; waiting for it" in work.everything_said())  # they may be training until then
    postgres.control("start")
    work.wait("a")
    work.wait("b")
    check(storage, work)
    said = work.everything_said()
    assert "answers again" in said
    assert PASSWORD not in said and "***@" in said


def test_who_gave_way_in_a_deadlock_may_ask_again(postgres: Postgres) -> None:
    engine = create_engine(postgres.database("deadlock"))
    update = text("UPDATE rows SET n = n + 1 WHERE id = :id")
    with engine.begin() as making:
        making.execute(text("CREATE TABLE rows AS SELECT id, 0 AS n FROM generate_series(1, 2) AS id"))

    def crossed(first: int, second: int) -> bool:
        """Whether it had to give way: the database ends one of the two."""
        try:
            with engine.begin() as connection:
                connection.execute(update, {"id": first})
                both.wait(60)
                connection.execute(update, {"id": second})
        except OperationalError as error:
            assert "deadlock detected" in str(error)
            return databases.lost(error)
        return False

    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(crossed, (1, 2), (2, 1))) == [False, True]
    engine.dispose()


def test_who_falls_asleep_in_a_transaction_keeps_nobody_waiting_and_may_ask_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.database("paused")
    optuna.create_study(storage=Storage.of(url).optuna, study_name="some")
    monkeypatch.setattr(databases, "PAUSE", 2)
    storage = Storage.of(url)
    assert isinstance(storage.optuna, RDBStorage)
    update = text("UPDATE studies SET study_name = 'another'")
    with pytest.raises(DBAPIError) as caught, storage.optuna.engine.begin() as asleep:
        began = time.monotonic()
        asleep.execute(update)
        with storage.optuna.engine.begin() as other:
            other.execute(update)
        assert time.monotonic() - began > 1.5  # it had to wait for the first one's end
        asleep.execute(update)
    assert databases.lost(caught.value)
    assert storage.names() == ["another"]


def test_a_study_of_several_drivers_needs_to_be_joined(postgres: Postgres, tmp_path: Path) -> None:
    storage = postgres.database("joined")
    small = [word for word in COMMAND if word != "--resume"] + ["study.trials=2", "--offline", "--storage", storage]
    first = forgetbench(*small, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = forgetbench(*small, cwd=tmp_path)
    assert again.returncode == 2 and "--resume continues it, or joins those at work on it" in again.stderr
    wrong = forgetbench(*small[:-1], storage.replace(PASSWORD, "wrong-one"), cwd=tmp_path)
    assert wrong.returncode == 2 and "password authentication failed" in wrong.stderr
    for done in (first, again, wrong):
        assert PASSWORD not in done.stdout + done.stderr and "wrong-one" not in done.stdout + done.stderr


# MLflow's server


@contextlib.contextmanager
def mlflow_server(backend: str, folder: Path, *options: str, **variables: str) -> Generator[str, None, None]:
    """Address of `mlflow server` on loopback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--artifacts-destination",
        str(folder / "artifacts"), "--host", "127.0.0.1", "--port", port, "--workers", "1", *options,
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=environment() | variables, start_new_session=True
        )
    try:
        for _ in range(480):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


SECRET, CHANGED = "a-secret-of-the-test", "another-secret-of-the-test"
SMALL = ["permuted-digits", "scenario.tasks=2", "train.epochs=2", "--max-stack", "2"]


def change_password(address: str, user: str, old: str, new: str) -> None:
    login = base64.b64encode(f"{user}:{old}".encode()).decode()
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/users/update-password",
        json.dumps({"username": user, "password": new, "current_password": old}).encode(),
        {"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        method="PATCH",
    )
    urllib.request.urlopen(request, timeout=30).close()


def test_a_server_that_wants_a_login_gets_it_and_its_refusal_costs_no_run(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="MLflow's login needs Flask-WTF: pip install 'mlflow[auth]'")
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {postgres.database('login')}\n"
        "admin_username = me\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    login = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": SECRET,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs cookies",
    }
    with mlflow_server(postgres.database("tracked"), tmp_path, "--app-name", "basic-auth", **login) as address:
        run = ["run", *SMALL, "--tracking-uri", address]
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
        nobody = forgetbench(*run, cwd=tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-secret")
        wrong = forgetbench(*run, cwd=tmp_path)
        for done in (nobody, wrong):
            assert done.returncode == 2 and not (tmp_path / "out" / "permuted-digits").exists()
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("forgetbench: ")]
            assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
            assert "not-the-secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr

        # The password is changed while it trains.
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        with subprocess.Popen(
            [*FORGETBENCH, *run],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        ) as process:
            until((tmp_path / "out" / "permuted-digits" / "runs.csv").is_file)
            change_password(address, "me", SECRET, CHANGED)
            said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said
        assert said.count("MLFLOW_TRACKING_PASSWORD") == 1 and "forgetbench sync" in said
        assert SECRET not in said
        there = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
        assert {row["status"] for row in there.values()} == {"finished"}

        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CHANGED)
        for new in (True, False):
            synced = forgetbench("sync", "--tracking-uri", address, cwd=tmp_path)
            assert synced.returncode == 0, synced.stderr
            assert (f"0 of {len(there)} runs delivered" in synced.stdout) != new
            assert CHANGED not in synced.stdout + synced.stderr
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=address)
        experiment = client.get_experiment_by_name("permuted-digits")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.`forgetbench.kind` = 'run'")
        assert sorted(r.data.tags["forgetbench.run_key"] for r in runs) == sorted(there)
        assert not [r for r in runs if SECRET in str(r.data.tags) + str(r.data.params)]
