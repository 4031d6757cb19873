"""Studies that are killed, continued, refused, or have a storage that does not answer."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from benchmark.results import ResultsError, Store
from benchmark.server import redacted
from studies import databases, search
from studies import storage as storages
from studies.pruning import GivenUp
from studies.search import Searcher
from studies.storage import Storage, StudyError
from tests.test_end_to_end import environment, table
from tests.test_study_run import DOUBLE, Done, go, values
from tests.test_study_spec import LAM, changed, made

SIX = {"trials": 6, "batch": 2}


def sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def journal(path: Path) -> str:
    return str(path.with_suffix(".journal"))


# Killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return go(made(SIX, train=DOUBLE), tmp_path_factory.mktemp("undisturbed"))


def check_continued(done: Done, undisturbed: Done, kept: dict[str, dict[str, str]], trained: list[str]) -> None:
    """Nothing finished is run again, everything counts once, and all is as without the interruption."""
    rows, trials = done.rows(), done.trials()
    assert rows.keys() == undisturbed.rows().keys()
    assert not {*trained} & {*kept} and sorted([*trained, *kept]) == sorted(rows)
    for key, row in kept.items():
        assert {k: v for k, v in rows[key].items() if v} == {k: v for k, v in row.items() if v}
    counted = [trial for trial in trials if "seeds" in trial.user_attrs]
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 6
    assert {trial.state for trial in trials if trial not in counted} <= {TrialState.FAIL}
    assert done.answer.trials == {"complete": 6}
    assert sorted(trial.params["lam"] for trial in counted) == sorted(t.params["lam"] for t in undisturbed.trials())
    assert done.answer.params == undisturbed.answer.params
    assert done.answer.promised == pytest.approx(undisturbed.answer.promised, abs=1e-12)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from benchmark.results import Store
from benchmark.session import Session
from reports import studies as presentation
from studies import run, spec

content, out, storage, after = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
add, stacks = Store.add, []

def killing(self, results):
    add(self, results)
    stacks.extend(results)
    if len(stacks) >= after:
        os.kill(os.getpid(), signal.SIGKILL)

Store.add = killing
(study,) = spec.parse(content)
run.run(study, Session(out, torch.device("cpu")), storage=storage, tracker=None, presentation=presentation)
"""


@pytest.mark.parametrize("kind", [sqlite, journal])
def test_killed_in_the_middle_a_study_continues_and_runs_nothing_twice(
    kind: Callable[[Path], str], undisturbed: Done, trained: list[str], tmp_path: Path
) -> None:
    content, storage = changed(SIX, train=DOUBLE), kind(tmp_path / "optuna.db")
    # Two trials of two seeds a batch: killed in the second, when part of it is on disk.
    arguments = [json.dumps(content), str(tmp_path), storage, "5"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False, env=environment()
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = table(tmp_path / "trial" / "runs.csv")
    assert 4 < len(kept) < 12
    left = optuna.load_study(study_name="trial/ewc", storage=Storage.of(storage).optuna).trials
    assert [trial.state.name for trial in left] == ["COMPLETE"] * 2 + ["RUNNING"] * 2

    with pytest.raises(StudyError, match=r"there is a study 'trial/ewc'.*--resume.*--new"):
        go(made(SIX, train=DOUBLE), tmp_path, storage)
    assert trained == [] and table(tmp_path / "trial" / "runs.csv") == kept

    done = go(made(SIX, train=DOUBLE), tmp_path, storage, resume=True)
    check_continued(done, undisturbed, kept, trained)
    assert [trial.state.name for trial in done.trials()[:4]] == ["COMPLETE"] * 2 + ["FAIL"] * 2

    before, written = list(trained), (tmp_path / "trial" / "runs.csv").stat().st_mtime_ns
    nothing = go(made(SIX, train=DOUBLE), tmp_path, storage, resume=True)
    assert trained == before and (tmp_path / "trial" / "runs.csv").stat().st_mtime_ns == written
    assert nothing.outcome.answers == done.outcome.answers and len(nothing.trials()) == len(done.trials())


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it, and what was written stays."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the runs whose results this process kept."""
    keys, add = [], Store.add

    def watched(self: Store, results: Any) -> Any:
        records = add(self, results)
        keys.extend(record.run_key for record in records)
        return records

    monkeypatch.setattr(Store, "add", watched)
    return keys


def at_call(real: Callable[..., Any], n: int, *, before: bool = False) -> Callable[..., Any]:
    """A function whose n-th call is the last thing that happens, or the first that does not."""
    calls = itertools.count(1)

    def counted(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if call > n or (call == n and before):
            raise Killed
        found = real(*args, **kwargs)
        if call == n:
            raise Killed
        return found

    return counted


def at_run(n: int, *, before: bool = False) -> Callable[..., Any]:
    """A `Store.add` that keeps the n-th run, or all before it, and nothing else: stacks come in any number."""
    real, turn = Store.add, threading.Lock()

    def counted(self: Store, results: Any) -> Any:
        with turn:
            there = len(self.records)
            if there >= n or (there + len(results) >= n and before):
                raise Killed
            kept = real(self, results)
            if len(self.records) >= n:
                raise Killed
            return kept

    return counted


MOMENTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "while the first batch is asked": lambda p: p.setattr(
        optuna.Study, "ask", at_call(optuna.Study.ask, 2, before=True)
    ),
    "when the second batch is asked": lambda p: p.setattr(optuna.Study, "ask", at_call(optuna.Study.ask, 4)),
    "when the second batch is trained": lambda p: p.setattr(Store, "add", at_run(5, before=True)),
    "when part of the second batch is kept": lambda p: p.setattr(Store, "add", at_run(5)),
    "when one of the second batch is told": lambda p: p.setattr(optuna.Study, "tell", at_call(optuna.Study.tell, 3)),
    "while a trial is told": lambda p: p.setattr(optuna.Study, "tell", at_call(optuna.Study.tell, 4, before=True)),
    "after the last trial": lambda p: p.setattr(optuna.Study, "tell", at_call(optuna.Study.tell, 6)),
    "when the chosen setting is tested": lambda p: p.setattr(Store, "add", at_run(13, before=True)),
    "when part of the test is kept": lambda p: p.setattr(Store, "add", at_run(13)),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_whenever_it_is_killed_a_study_ends_as_undisturbed(
    moment: str, undisturbed: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    study, storage = made(SIX, train=DOUBLE), InMemoryStorage()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        MOMENTS[moment](patch)
        go(study, tmp_path, storage)
    runs = tmp_path / "trial" / "runs.csv"
    kept = table(runs) if runs.is_file() else {}
    trained.clear()
    check_continued(go(study, tmp_path, storage, resume=True), undisturbed, kept, trained)


def test_a_study_of_several_strategies_continues_with_equal_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made(SIX, strategy=[{"name": "ewc", "lam": LAM}, {"name": "l2"}])
    storage = InMemoryStorage()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optuna.Study, "tell", at_call(optuna.Study.tell, 5))  # one of four of the second batch
        go(study, tmp_path, storage)
    done = go(study, tmp_path, storage, resume=True)
    assert [answer.trials for answer in done.outcome.answers] == [{"complete": 6}] * 2
    assert len(done.rows()) == 2 * (6 * 2 + 2)


# Continued, or not


def test_a_study_that_is_there_is_neither_continued_nor_overwritten_unasked(tmp_path: Path) -> None:
    study, storage = made(), sqlite(tmp_path / "optuna.db")
    Searcher(study, study.searches[0], storage, resume=False).ask()
    with pytest.raises(StudyError) as caught:
        Searcher(study, study.searches[0], storage, resume=False)
    assert str(caught.value) == (
        "there is a study 'trial/ewc': --resume continues it, or joins those at work on it; --new starts another"
    )
    (running, *_) = optuna.load_study(study_name="trial/ewc", storage=storage).trials
    assert running.state == TrialState.RUNNING  # it may be another command's, at work


def test_another_study_of_the_name_runs_beside_the_first(tmp_path: Path) -> None:
    study, storage = made({"trials": 2, "seeds": 1, "test_seeds": 1}), InMemoryStorage()
    first = go(study, tmp_path, storage)
    name = search.free_name([study], storage)
    second = go(made({"trials": 2, "seeds": 1, "test_seeds": 1}, name=name), tmp_path, storage)
    assert (first.outcome.folder, second.outcome.folder) == (tmp_path / "trial", tmp_path / "trial-2")
    assert len({*optuna.get_all_study_names(storage)}) == 2
    assert values(first) == [
        (t.params, t.values, t.user_attrs["seeds"])
        for t in optuna.load_study(study_name="trial-2/ewc", storage=storage).trials
    ]


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "range": ({"strategy": [{"name": "ewc", "lam": LAM | {"high": 1e5}}]}, "space"),
    "another hyperparameter": ({"strategy": [{"name": "ewc", "decay": {"low": 0.1, "high": 1.0}}]}, "space"),
    "seeds": ({"study": {"seeds": 3}}, "seeds"),
    "objective": ({"study": {"objective": "bwt"}}, "objective"),
    "two objectives": ({"study": {"objective": ["bwt", "fwt"]}}, "objective"),
    "direction": ({"study": {"objective": "forgetting"}}, "objective"),
    "protocol": ({"study": {"protocol": "test-oracle"}}, "protocol"),
    "validation": ({"study": {"validation": 0.2}}, "validation"),
    "sampler": ({"study": {"sampler": "random"}}, "sampler"),
    "recipe": ({"train": {"lr": 1e-2}}, "train"),
    "scenario": ({"scenario": {"name": "permuted-digits", "tasks": 3}}, "scenario"),
    "model": ({"model": "mlp"}, "model"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_study_that_searches_something_else_is_refused_with_what_differs(case: str) -> None:
    changes, key = DIFFERENT[case]
    first, other, storage = made(), made(**changes), InMemoryStorage()
    asked = Searcher(first, first.searches[0], storage, resume=False).ask()
    with pytest.raises(StudyError) as caught:
        Searcher(other, other.searches[0], storage, resume=True)
    title, *lines = str(caught.value).splitlines()
    assert title == "the study 'trial/ewc' that is there is not what this command asks for; --new starts another:"
    (line,) = lines
    assert line.startswith(f"  {key}: ") and line.count(" there, ") == 1 and line.endswith(" here")
    there, here = (study.description(study.searches[0])[key] for study in (first, other))
    assert line == f"  {key}: {json.loads(json.dumps(there))!r} there, {json.loads(json.dumps(here))!r} here"
    trials = optuna.load_study(study_name="trial/ewc", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * len(asked)  # nothing was touched


def test_more_trials_seeds_of_the_test_and_time_are_the_same_study() -> None:
    first, storage = made(), InMemoryStorage()
    Searcher(first, first.searches[0], storage, resume=False)
    more = made({"trials": 50, "batch": 7, "test_seeds": 9, "timeout": 3600})
    assert Searcher(more, more.searches[0], storage, resume=True).ended == []


def test_a_study_of_somebody_else_is_not_taken_for_one_of_ours() -> None:
    study, storage = made(), InMemoryStorage()
    other = optuna.create_study(storage=storage, study_name="trial/ewc", direction="minimize")
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match=r"'trial/ewc' is not one of forgetbench's; --new starts"):
        Searcher(study, study.searches[0], storage, resume=True)


def test_resume_of_a_study_that_is_not_there_starts_it(tmp_path: Path) -> None:
    done = go(made({"trials": 2, "seeds": 1, "test_seeds": 1}), tmp_path, resume=True)
    assert done.answer.trials == {"complete": 2}


def test_a_second_command_leaves_the_trials_of_the_first_alone(tmp_path: Path) -> None:
    study, storage = made(), InMemoryStorage()
    asked = Searcher(study, study.searches[0], storage, resume=False).ask()
    with (
        Store(tmp_path / "trial"),
        pytest.raises(ResultsError, match=r"another forgetbench command \(process .*\) is writing"),
    ):
        go(study, tmp_path, storage, resume=True)
    trials = optuna.load_study(study_name="trial/ewc", storage=storage).trials
    assert [trial.state for trial in trials[: len(asked)]] == [TrialState.RUNNING] * len(asked)


# The storage


def opened(storage: str, *, resume: bool = False) -> Searcher:
    study = made()
    return Searcher(study, study.searches[0], storage, resume=resume)


def refusal(storage: str, *, resume: bool = False) -> str:
    """What is said of a storage that cannot be used: one line."""
    with pytest.raises(StudyError) as caught:
        opened(storage, resume=resume)
    with pytest.raises(StudyError) as again:
        search.free_name([made()], storage)
    for error in (caught, again):
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
        assert str(error.value).startswith(f"the Optuna storage {redacted(storage)!r} cannot be used: ")
        assert str(error.value).endswith("; --storage names another")
    return str(caught.value)


def test_a_storage_in_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    assert "unable to open database file" in refusal(sqlite(tmp_path / "no" / "such" / "optuna.db"))


def test_a_folder_is_no_storage(tmp_path: Path) -> None:
    assert "unable to open database file" in refusal(sqlite(tmp_path))


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 50, b"\x00\xff" * 4000])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    path.write_bytes(content)
    assert "file is not a database" in refusal(sqlite(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("url", ["nonsense", "", "foo://bar", "postgresql://localhost:1/x", "redis://localhost:1/x"])
def test_a_url_that_leads_nowhere_is_one_clear_line(url: str) -> None:
    refusal(url)


def test_a_database_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Optuna would make its tables there first."""
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.commit()
    before = path.read_bytes()
    assert "it is a database of something else, with tables experiments, runs" in refusal(sqlite(path))
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_storage(tmp_path: Path) -> None:
    for kind in (sqlite, journal):
        (tmp_path / "optuna.db").touch()
        (tmp_path / "optuna.journal").touch()
        assert opened(kind(tmp_path / "optuna.db")).ask()


@pytest.mark.parametrize(
    "content", [b"epoch 1 loss 0.3\nepoch 2 loss 0.2\n", b"half a line", b'{"loss": 1}\n', b"\x00\xff"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_bytes(content)
    assert "it is a file of something else" in refusal(str(path))
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["train.log"]


def test_a_journal_in_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(str(tmp_path / "no" / "such.journal"))


def test_half_a_line_that_a_kill_left_in_a_journal_costs_that_line_alone(tmp_path: Path) -> None:
    storage = journal(tmp_path / "optuna")
    first = opened(storage)
    asked = [trial.params for trial in first.ask()]
    whole = Path(storage).read_bytes()
    Path(storage).write_bytes(whole + b'{"op_code":6,"worker_id":"f7a')
    again = opened(storage, resume=True)
    assert [trial.params for trial in again.ask()] == asked
    # What comes after the cut is read by the next command.
    third = opened(storage, resume=True)
    assert [t.state.name for t in third.optuna.trials[:4]] == ["FAIL"] * 4


@pytest.mark.parametrize(
    ("package", "url", "advice"),
    [
        ("psycopg", "postgresql+psycopg://me:hunter2@localhost:1/x", "pip install 'forgetbench[postgres]'"),
        ("psycopg2", "postgresql+psycopg2://me:hunter2@localhost:1/x", "write postgresql+psycopg://"),
    ],
)
def test_a_database_whose_package_is_missing_says_what_to_install(
    package: str, url: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ModuleNotFoundError(f"No module named {package!r}", name=package)

    def importing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("Failed to import DB access module") from missing

    monkeypatch.setattr(storages, "RDBStorage", importing)
    said = refusal(url)
    assert f"No module named {package!r}" in said and advice in said and "hunter2" not in said


def test_a_password_in_what_a_driver_says_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://me:hunter2@host/db"

    def failing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"no connection to {url}\nafter 3 attempts")

    monkeypatch.setattr(storages, "RDBStorage", failing)
    said = refusal(url)
    assert "hunter2" not in said and "no connection to" in said and "after 3 attempts" in said


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[str, sqlite3.Connection]]:
    """A storage with a study, and a connection of somebody else to it."""
    path = tmp_path / "optuna.db"
    opened(sqlite(path))
    connection = sqlite3.connect(path, check_same_thread=False)
    yield sqlite(path), connection
    connection.close()


def impatient(storage: str) -> str:
    """Waits half a second for a lock and not five."""
    return f"{storage}?timeout=0.5"


def test_a_storage_that_another_program_has_locked_is_one_clear_line(database: tuple[str, sqlite3.Connection]) -> None:
    storage, other = database
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StudyError, match=r"^the Optuna storage .* cannot be used: database is locked; --storage"):
        opened(impatient(storage), resume=True)
    other.rollback()
    assert opened(storage, resume=True).ask()  # nothing is broken


def test_a_storage_that_another_driver_writes_to_for_long_is_waited_for(
    database: tuple[str, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, other = database
    asker = opened(storage, resume=True)
    monkeypatch.setattr(databases, "TURN", 0.2)
    hasty = opened(storage, resume=True)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StudyError, match="cannot be used: .*database is locked"):
        hasty.ask()
    done = threading.Timer(6, lambda: other.rollback())
    done.start()
    assert asker.ask()  # SQLite itself gives up after five seconds
    done.join()


def test_a_storage_locked_while_a_study_runs_is_the_same_clear_line(database: tuple[str, sqlite3.Connection]) -> None:
    storage, other = database
    asker = opened(impatient(storage), resume=True)
    trial, *_ = asker.ask()
    other.execute("BEGIN EXCLUSIVE")
    for call in (
        asker.ask,
        lambda: asker.tell(trial, [{"seed": 0, "run_key": "k", "status": "finished", "average_accuracy": 0.5}]),
        lambda: asker.prune(trial, [{"seed": 0, "run_key": "k", "status": "pruned"}], GivenUp(2, 0.5, 4, 1.5)),
    ):
        with pytest.raises(StudyError, match="cannot be used: .*database is locked"):
            call()
    other.rollback()
    assert len(opened(storage, resume=True).ask()) == 2


def test_a_storage_of_another_schema_is_refused_with_what_to_do(database: tuple[str, sqlite3.Connection]) -> None:
    storage, other = database
    other.execute("update alembic_version set version_num = 'v2.4.0.a'")
    other.execute("update version_info set library_version = '2.4.0', schema_version = 11")
    other.commit()
    said = refusal(storage, resume=True)
    assert "no longer compatible with the table schema" in said and "optuna storage upgrade" in said


def test_a_study_whose_storage_goes_away_keeps_its_finished_runs(tmp_path: Path) -> None:
    """Told at once, with what was trained on disk; when the storage is back the study goes on."""
    storage, study = sqlite(tmp_path / "optuna.db"), made({"seeds": 1})
    opened_at, others = time.perf_counter(), []

    def locking(made_plan: Any, tasks: Any) -> None:
        if not others:
            others.append(sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False))
            others[0].execute("BEGIN EXCLUSIVE")

    with pytest.raises(StudyError, match="cannot be used: .*database is locked"):
        go(study, tmp_path, impatient(storage), planned=locking)
    assert time.perf_counter() - opened_at < 60
    others[0].rollback()
    others[0].close()
    kept = table(tmp_path / "trial" / "runs.csv")
    assert len(kept) == 2
    done = go(study, tmp_path, storage, resume=True)
    assert done.answer.trials == {"complete": 4} and kept.keys() < done.rows().keys()


def test_an_unwritable_folder_is_refused_before_a_trial_is_asked(tmp_path: Path) -> None:
    (tmp_path / "trial").write_text("in the way")
    storage = InMemoryStorage()
    with pytest.raises(ResultsError, match="cannot write to"):
        go(made(), tmp_path, storage)
    assert all(
        trial.state == TrialState.WAITING
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    )
