"""Results on disk: tidy tables from which a second command continues.

New rows are appended, those of a stack in one write. A crash leaves at most a row that was cut off, which has no line
end and is not read; the next command then writes the tables anew, under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import json
import operator
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from benchmark import metrics
from benchmark.collection import uncollected
from benchmark.errors import Explained
from benchmark.files import replacing
from benchmark.keys import short
from benchmark.runs import Result, Run

ANYTIME = ("min_acc", "wc_acc", "average_anytime_accuracy")
"""Columns of `runs.csv` that measure, where runs were evaluated during training."""
METRICS = (
    "average_accuracy",
    "forgetting",
    "bwt",
    "fwt",
    "learning_accuracy",
    "average_incremental_accuracy",
    "task_aware_accuracy",
    *ANYTIME,
)
"""Columns of `runs.csv` that measure."""
LEADING = ("run_key", "strategy", "seed", "status")
STUDY = "study"
"""A setting of a study's folder: its runs are trials and tests, which an experiment's are not."""
TRAILING = ("train_seconds", "stack_size", "trunk", "trunk_runs")
REASON = "reason"  # last, and only where a run failed
KNOWN = frozenset({*LEADING, *METRICS, *TRAILING, REASON})


class ResultsError(Explained):
    """Results cannot be read or written."""


@dataclass(frozen=True)
class Record:
    """One run's results as they stand on disk.

    Attributes:
        run_key: identifies the run.
        strategy: its label.
        seed: of the run.
        status: `finished`, `diverged` or `failed`.
        fields: every hyperparameter and recipe field, as text.
        values: metrics, NaN where undefined.
        facts: `TRAILING`, as text.
        accuracy: accuracy matrix, shape (T + 1, T).
        trace: evaluations during training: task in training, step, accuracy on every task.
        reason: why it failed, or empty.
    """

    run_key: str
    strategy: str
    seed: int
    status: str
    fields: dict[str, str]
    values: dict[str, float]
    facts: dict[str, str]
    accuracy: NDArray[np.float64]
    trace: list[tuple[int, int, NDArray[np.float64]]] = field(default_factory=list)
    reason: str = ""


def record(result: Result) -> Record:
    """What is kept of a result."""
    run, trace = result.run, [(e.task, e.step, e.accuracy) for e in result.trace]
    values = metrics.summary(result.accuracy)
    if result.told is not None:
        values["task_aware_accuracy"] = float(result.told.mean())
    if trace:
        tasks, points = [task for task, _, _ in trace], np.stack([accuracy for _, _, accuracy in trace])
        values["min_acc"] = metrics.min_acc(tasks, points)
        values["wc_acc"] = metrics.wc_acc(tasks, points)
        values["average_anytime_accuracy"] = metrics.average_anytime_accuracy(tasks, points)
    return Record(
        run_key=run.key,
        strategy=run.label,
        seed=run.seed,
        status=result.status,
        fields=text_fields(run),
        values=values,
        facts={
            "train_seconds": f"{result.train_seconds:.3f}",
            "stack_size": str(result.stack_size),
            "trunk": run.trunk,
            "trunk_runs": str(result.trunk_runs),
        },
        accuracy=result.accuracy,
        trace=trace,
        reason=result.reason,
    )


def text_fields(run: Run) -> dict[str, str]:
    """Every hyperparameter and recipe field of a run, as tables and trackers hold them."""
    return {k: _text(v) for k, v in run.fields().items()}


def _text(value: Any) -> str:
    """As a table shows it: empty for None, floats short."""
    if isinstance(value, float):
        return short(value)
    return "" if value is None else str(value)


class Store:
    """The folder of an experiment, held by one process at a time: use as a context manager.

    Args:
        folder: made if missing.
        fields: of every run that is added, beside its own.

    Raises:
        ResultsError: on entering, if the folder cannot be written or another process holds it.
    """

    def __init__(self, folder: Path, fields: Mapping[str, str] | None = None) -> None:
        self.folder, self._fields = folder, fields or {}
        self._lock, self._owner = FileLock(folder / ".lock", timeout=0), folder / ".owner"
        self._turn = threading.Lock()
        self.records: dict[str, Record] = {}
        self._columns: dict[str, list[str]] = {}  # of each table on disk, where rows may be appended to it

    def __enter__(self) -> Store:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Its content says nothing: the kernel lets go of the lock of a process that died.
            self._lock.acquire()
            owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            self._owner.write_text(json.dumps(owner), encoding="utf-8")
            with uncollected():
                self.records = self._load()
        except Timeout:
            raise ResultsError(
                f"another forgetbench command{self._held_by()} is writing to {self.folder}; wait for it or choose --out"
            ) from None
        except ResultsError:
            self._let_go()
            raise
        except OSError as error:
            self._let_go()
            raise ResultsError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose another --out"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._owner.unlink()
            self._lock.release()

    def _held_by(self) -> str:
        """Who holds the lock, as far as it is known: it may have been taken a moment ago."""
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            return f" (process {owner['pid']} on {owner['host']}, since {owner['since']})"
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    @property
    def of_study(self) -> bool:
        """Whether runs of a study are here: trials, and tests of what it chose."""
        return STUDY in self.description()[0] or any(r.fields.get("protocol") for r in self.records.values())

    def require(self, *, study: bool) -> None:
        """Keep runs of a study and of an experiment apart: a trial's accuracies are of validation images.

        Args:
            study: whether it is a study's runs that are about to be added.

        Raises:
            ResultsError: the folder holds runs of the other kind.
        """
        if self.records and self.of_study != study:
            held, other = ("an experiment", "a study") if study else ("a study", "an experiment")
            raise ResultsError(
                f"{self.folder} holds the results of {held} of that name, and {other} must not mix with them; give it "
                "another name (name=...) or choose another --out"
            )

    def settled(self, run: Run) -> bool:
        """Whether a run has a result; one that failed is tried again."""
        return run.key in self.records and self.records[run.key].status != "failed"

    def add(self, results: Iterable[Result]) -> list[Record]:
        """Keep results, and write the tables; stacks that end together take turns.

        Args:
            results: of one stack.

        Returns:
            What was kept.

        Raises:
            ResultsError: the disk does not take them.
        """
        new = [dataclasses.replace(r, fields=r.fields | {**self._fields}) for r in map(record, results)]
        with self._turn:
            again = any(r.run_key in self.records for r in new)
            self.records = self.records | {r.run_key: r for r in new}
            if again or not new:
                self._columns = {}
            try:
                # A run counts once `runs.csv` names it, so that goes last.
                if any(r.trace for r in self.records.values()):
                    self._write("anytime.csv", _anytime_rows, new)
                self._write("accuracy.csv", _accuracy_rows, new)
                self._write("runs.csv", _run_rows, new)
            except OSError as error:
                self._columns = {}
                raise ResultsError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        return new

    def _write(self, name: str, rows: Callable[[Iterable[Record]], list[dict[str, Any]]], new: list[Record]) -> None:
        """Append rows of new records to a table, or write all of it where they do not fit."""
        path, added = self.folder / name, rows(new)
        columns = self._columns.get(name)
        if columns is not None and all(row.keys() <= {*columns} for row in added):
            _append(path, _text_of(added, columns))
            return
        whole = rows(self.records.values())
        columns = _ordered(whole)
        with replacing(path) as file:
            file.write(_text_of([dict(zip(columns, columns, strict=True)), *whole], columns).encode())
        self._columns[name] = columns

    def describe(self, settings: dict[str, str], environment: dict[str, str], strategies: Sequence[str] = ()) -> None:
        """Note what is about to train here, and with what.

        Args:
            settings: what the runs have in common.
            environment: versions, device, revision, checksums.
            strategies: labels in the order of the experiment.

        Raises:
            ResultsError: the disk does not take it.
        """
        content = {"settings": settings, "environment": environment, "strategies": list(strategies)}
        try:
            with replacing(self.folder / "environment.json") as file:
                file.write(json.dumps(content, indent=2).encode() + b"\n")
        except OSError as error:
            raise ResultsError(f"cannot write to {self.folder}: {error.strerror or error}") from None

    def description(self) -> tuple[dict[str, str], dict[str, str]]:
        """Settings and environment of the last command that trained here; empty where that is not known."""
        try:
            content = self._described()
            return dict(content["settings"]), dict(content["environment"])
        except (OSError, ValueError, LookupError, TypeError):
            return {}, {}

    def trained_at(self) -> float:
        """When the last command that trained here began to, in seconds since the epoch; now where that is not known."""
        try:
            return (self.folder / "environment.json").stat().st_mtime
        except OSError:
            return time.time()

    def in_order(self) -> list[Record]:
        """All runs, by strategy in the order of the experiment; tables have them as their stacks ended."""
        try:
            places = {str(label): i for i, label in enumerate(self._described()["strategies"])}
        except (OSError, ValueError, LookupError, TypeError):
            places = {}
        return sorted(self.records.values(), key=lambda r: places.get(r.strategy, len(places)))

    def _described(self) -> Any:
        return json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))

    def _load(self) -> dict[str, Record]:
        """Every run that is there completely; others train again."""
        tables = {name: _read(self.folder / name) for name in ("runs.csv", "accuracy.csv", "anytime.csv")}
        runs, accuracy, anytime = tables.values()
        cells = accuracy.by_run("after_task", "task", "accuracy")
        points = anytime.by_run("training_task", "step", "task", "accuracy")
        found = {}
        for values in runs.rows:
            row = dict(zip(runs.columns, values, strict=True))
            try:
                found[row["run_key"]] = _parse(row, cells[row["run_key"]], points.get(row["run_key"], []))
            except (LookupError, ValueError, TypeError):
                continue  # a damaged row: the run is not taken for finished
        # Rows that no record accounts for are what a crash left.
        expected = (
            len(found),
            sum(r.accuracy.size for r in found.values()),
            sum(len(r.trace) * r.accuracy.shape[1] for r in found.values()),
        )
        if found and expected == tuple(len(table.rows) for table in tables.values()):
            self._columns = {name: table.columns for name, table in tables.items() if table.whole}
        return found


def _run_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [
        {
            "run_key": r.run_key,
            "strategy": r.strategy,
            "seed": r.seed,
            "status": r.status,
            **r.fields,
            **{k: repr(r.values[k]) for k in METRICS if k in r.values},
            **r.facts,
            **({REASON: r.reason} if r.reason else {}),
        }
        for r in records
    ]


def _accuracy_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [
        {
            "run_key": r.run_key,
            "strategy": r.strategy,
            "seed": r.seed,
            "after_task": k,
            "task": j + 1,
            "accuracy": repr(float(value)),
        }
        for r in records
        for (k, j), value in np.ndenumerate(r.accuracy)
    ]


def _anytime_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [
        {
            "run_key": r.run_key,
            "strategy": r.strategy,
            "seed": r.seed,
            "training_task": task,
            "step": step,
            "task": j + 1,
            "accuracy": repr(float(value)),
        }
        for r in records
        for task, step, accuracy in r.trace
        for j, value in enumerate(accuracy)
    ]


def _parse(row: dict[str, str], cells: list[tuple[str, ...]], points: list[tuple[str, ...]]) -> Record:
    tasks = max(int(task) for _, task, _ in cells)
    accuracy = np.full((tasks + 1, tasks), np.inf)
    for after, task, value in cells:
        accuracy[int(after), int(task) - 1] = float(value)
    if np.isinf(accuracy).any():
        raise ValueError("incomplete accuracy matrix")
    if not np.array_equal(metrics.average_accuracy(accuracy), float(row["average_accuracy"]), equal_nan=True):
        raise ValueError("the accuracy matrix is not the one the metrics were computed from")
    trace: dict[tuple[int, int], dict[int, float]] = {}
    for training, step, task, value in points:
        trace.setdefault((int(training), int(step)), {})[int(task)] = float(value)
    return Record(
        run_key=row["run_key"],
        strategy=row["strategy"],
        seed=int(row["seed"]),
        status=row["status"],
        fields={k: v for k, v in row.items() if k not in KNOWN},
        values={k: float(row[k]) for k in METRICS if row.get(k)},
        facts={k: _present(row[k]) for k in TRAILING},
        accuracy=accuracy,
        trace=[(task, step, np.array([a[j + 1] for j in range(tasks)])) for (task, step), a in trace.items()],
        reason=row.get(REASON) or "",
    )


def _present(text: str | None) -> str:
    if text is None:
        raise ValueError("truncated row")
    return text


@dataclass(frozen=True)
class _Table:
    """A table as it lies on disk.

    Attributes:
        columns: of the head line.
        rows: that have a value for each of them.
        whole: whether every line is one of these.
    """

    columns: list[str]
    rows: list[list[str]]
    whole: bool

    def by_run(self, *names: str) -> dict[str, list[tuple[str, ...]]]:
        """These columns of each run's rows, by its key; a table that lacks one has none."""
        if not {"run_key", *names} <= {*self.columns}:
            return {}
        found: dict[str, list[tuple[str, ...]]] = {}
        key, places = self.columns.index("run_key"), [self.columns.index(name) for name in names]
        values = operator.itemgetter(*places)
        for row in self.rows:
            found.setdefault(row[key], []).append(values(row))
        return found


def _read(path: Path) -> _Table:
    if not path.is_file():
        return _Table([], [], False)
    try:
        content = path.read_bytes()
        # What has no line end was cut off, within a character perhaps: a number there would read as a shorter one.
        text = content[: content.rfind(b"\n") + 1].decode()
        columns, *listed = csv.reader(io.StringIO(text, newline="")) if text else [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path} is damaged ({error}); move it away, and its runs train again") from None
    closed = text.count('"') % 2 == 0  # else cut off at a line end within quotes, where its row goes on
    rows = [row for row in listed[: None if closed else -1] if len(row) == len(columns)] if "run_key" in columns else []
    return _Table(columns, rows, closed and content.endswith(b"\n") and len(rows) == len(listed))


def _ordered(rows: list[dict[str, Any]]) -> list[str]:
    """Every column; those that not every run has must not push the last ones from their places."""
    columns = dict.fromkeys(k for row in rows for k in row)
    ends = [c for c in (*METRICS, *TRAILING, REASON) if c in columns]
    return [c for c in columns if c not in ends] + ends


def _text_of(rows: list[dict[str, Any]], columns: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([row.get(c, "") for c in columns] for row in rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """All of it or, where the disk does not take it, nothing.

    Args:
        path: of a file that is there.
        text: to add.

    Raises:
        OSError: the disk does not take it.
    """
    with path.open("ab", buffering=0) as file:
        before, data = file.seek(0, os.SEEK_END), text.encode()
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise
