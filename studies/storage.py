"""Where Optuna keeps its trials: a database or a journal file, opened with care, and named in every error."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from benchmark.databases import prepared
from benchmark.server import redacted

JOURNALS = (".journal", ".log")
"""What the name of a journal file ends with."""


class StudyError(Exception):
    """A study that cannot be opened or continued."""


@dataclass
class Storage:
    """An Optuna storage.

    Attributes:
        name: what messages call it, without secrets.
        optuna: the storage itself.
        seconds: spent in calls to Optuna.
    """

    name: str
    optuna: BaseStorage
    seconds: float = 0.0
    _depth: int = 0

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
        return cls(name, opened, seconds=time.perf_counter() - began)

    def names(self) -> list[str]:
        """Of the studies that are there.

        Raises:
            StudyError: the storage cannot be used.
        """
        with self.explained():
            return optuna.get_all_study_names(self.optuna)

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
    if where.startswith("sqlite"):
        tables = prepared(where, _created)
        if tables and not {"studies", "trials"} <= {*tables}:  # Optuna would add its own
            raise ValueError(f"it is a database of something else, with tables {', '.join(tables[:3])}, ...")
    return RDBStorage(where)


def _created(url: str) -> None:
    RDBStorage(url).remove_session()


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
