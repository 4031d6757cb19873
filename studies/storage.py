"""Where Optuna keeps its trials: a database or a journal file, opened with care, and named in every error."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import optuna
from optuna import Study
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from benchmark.errors import Explained
from benchmark.server import redacted
from studies import databases
from studies.pulse import Pulse

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="Stored")
JOURNALS = (".journal", ".log")
"""What the name of a journal file ends with."""
HEARTBEAT, GRACE = 20, 240
"""Seconds between the heartbeats of a trial in a database, and after how many without one its driver counts as gone:
longer than a database may be away, since nobody's heart beats then."""


class StudyError(Explained):
    """A study that cannot be opened or continued."""


class Stored(Protocol):
    """What is kept in a storage."""

    storage: Storage


@dataclass
class Storage:
    """An Optuna storage.

    Attributes:
        name: what messages call it, without secrets.
        optuna: the storage itself.
        seconds: spent in calls to Optuna.
        say: takes one line for each thing worth knowing.
        pulse: heartbeats of the trials in training.
    """

    name: str
    optuna: BaseStorage
    seconds: float = 0.0
    say: Callable[[str], None] = lambda line: None
    _depth: int = 0
    pulse: Pulse = field(init=False)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.beat, HEARTBEAT)

    @classmethod
    def of(cls, storage: str | BaseStorage | Storage) -> Storage:
        """Open a storage, and make it where there is none; what somebody else made is refused and left as it is.

        Args:
            storage: a database's URL, or the path of a journal file, which ends in `.journal` or `.log`; what is open
                already stays so.

        Raises:
            StudyError: it cannot be used.
        """
        if isinstance(storage, Storage):
            return storage
        if isinstance(storage, BaseStorage):
            return cls(type(storage).__name__, storage)
        name, began = redacted(storage), time.perf_counter()
        with _explained(name):
            opened = _opened(storage)
        made = cls(name, opened, seconds=time.perf_counter() - began)
        if isinstance(opened, RDBStorage) and not storage.startswith("sqlite"):
            databases.wait_for(opened.engine, lambda reason: made.say(f"the Optuna storage {name!r} {reason}"))
        return made

    @property
    def beats(self) -> bool:
        """Whether trials have heartbeats here, by which drivers on other machines see that one is alive."""
        return isinstance(self.optuna, RDBStorage) and self.optuna.get_heartbeat_interval() is not None

    def beat(self, trial: int) -> None:
        """Record that the driver of a trial is alive.

        Args:
            trial: its id.
        """
        if isinstance(self.optuna, RDBStorage) and self.beats:
            self.optuna.record_heartbeat(trial)

    def fail_stale(self, study: Study) -> None:
        """Fail the trials whose heartbeat has stopped; nothing where there are none.

        Args:
            study: of this storage.
        """
        if self.beats:
            self.pulse.beat()  # this driver may have been asleep itself, with its machine
            with unwarned():
                optuna.storages.fail_stale_trials(study)

    def names(self) -> list[str]:
        """Of the studies that are there.

        Raises:
            StudyError: the storage cannot be used.
        """
        return self.patiently(lambda: optuna.get_all_study_names(self.optuna))

    def patiently(self, call: Callable[[], T]) -> T:
        """What a call to Optuna returns; it is made again if the connection breaks in the middle.

        Args:
            call: may have had its effect already, or half of it, when it is made again.

        Raises:
            StudyError: whatever went wrong.
        """
        until = time.monotonic() + databases.PATIENCE
        with self.explained():
            while True:
                try:
                    return call()
                except Exception as error:
                    if isinstance(error, StudyError) or not databases.lost(error) or time.monotonic() > until:
                        raise
                    time.sleep(0.5)

    @contextlib.contextmanager
    def explained(self) -> Generator[None, None, None]:
        """Around calls to Optuna, which are timed; whatever goes wrong there becomes a `StudyError`."""
        began, self._depth = time.perf_counter(), self._depth + 1
        try:
            with _explained(self.name):
                yield
        finally:
            self._depth -= 1
            if not self._depth:  # of calls within calls the outer one counts
                self.seconds += time.perf_counter() - began


def patient(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that calls Optuna, as `Storage.patiently` does: what has a storage may be asked again.

    Args:
        method: of what has a storage.
    """

    @functools.wraps(method)
    def patiently(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.storage.patiently(lambda: method(self, *args, **kwargs))

    return patiently


@contextlib.contextmanager
def unwarned() -> Generator[None, None, None]:
    """Around uses of Optuna's heartbeat, which is experimental, and meant for `Study.optimize` alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield


@contextlib.contextmanager
def _explained(name: str) -> Generator[None, None, None]:
    """SQLAlchemy and drivers fail in their own ways: one error for all, without secrets.

    Args:
        name: of the storage.

    Raises:
        StudyError: whatever went wrong.
    """
    try:
        yield
    except StudyError:
        raise  # of studies, not of the storage
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # what is raised last says least: `an exception is raised during the commit`
            cause = cause.__cause__
        reason = redacted(" ".join(str(cause).split()))[:300] or type(cause).__name__
        if isinstance(cause, ModuleNotFoundError) and cause.name in databases.PACKAGES:
            reason += f" ({databases.PACKAGES[cause.name]})"
        raise StudyError(f"the Optuna storage {name!r} cannot be used: {reason}; --storage names another") from error


def _opened(where: str) -> BaseStorage:
    """A database by its URL, or a journal file by its path.

    Args:
        where: URL or path.

    Raises:
        ValueError: it is neither, or belongs to something else.
    """
    if "://" not in where:
        if where.endswith(JOURNALS):
            return _journal(Path(where))
        raise ValueError("expected a URL such as sqlite:///optuna.db, or a journal file that ends in .journal or .log")
    with unwarned():
        return databases.opened(
            where, lambda options: RDBStorage(where, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
        )


def _journal(path: Path) -> JournalStorage:
    """A journal file, without the half line that a killed command may have left at its end.

    Optuna would append to that line, and read nothing that comes after.

    Args:
        path: of the file.

    Raises:
        ValueError: the file is there and is no journal.
    """
    backend, lock = JournalFileBackend(str(path)), JournalFileSymlinkLock(str(path))
    lock.acquire()  # nobody is in the middle of a line now
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if content and not content.startswith(b'{"op_code":'):
            raise ValueError("it is a file of something else")
        if whole < len(content):
            os.truncate(path, whole)
    finally:
        lock.release()
    return JournalStorage(backend)
