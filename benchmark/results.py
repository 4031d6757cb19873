"""Results on disk: tidy tables, written whole or not at all, from which a second command continues."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from benchmark import metrics
from benchmark.runs import Result, Run

METRICS = (
    "average_accuracy",
    "forgetting",
    "bwt",
    "fwt",
    "learning_accuracy",
    "average_incremental_accuracy",
    "min_acc",
    "wc_acc",
    "average_anytime_accuracy",
)
"""Columns of `runs.csv` that measure; the last three only where runs were evaluated during training."""
LEADING = ("run_key", "strategy", "seed", "status")
TRAILING = ("train_seconds", "stack_size", "trunk", "trunk_runs")
REASON = "reason"  # last, and only where a run failed


class ResultsError(Exception):
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
    """As a table shows it: empty for None, floats short but so that they read back equal."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)  # ruff: ignore[float-equality-comparison] (exactly)
    return "" if value is None else str(value)


class Store:
    """The folder of an experiment, held by one process at a time: use as a context manager.

    Args:
        folder: made if missing.

    Raises:
        ResultsError: on entering, if the folder cannot be written or another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._turn = threading.Lock()
        self.records: dict[str, Record] = {}

    def __enter__(self) -> Store:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.records = self._load()
        except Timeout:
            raise ResultsError(
                f"another forgetbench command is writing to {self.folder}; wait for it or choose --out"
            ) from None
        except OSError as error:
            raise ResultsError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose another --out"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

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
        new = [record(result) for result in results]
        with self._turn:
            self.records = self.records | {r.run_key: r for r in new}
            self._write_tables()
        return new

    def _write_tables(self) -> None:
        records = self.records.values()
        try:
            # A run counts once `runs.csv` names it, so that goes last.
            if any(r.trace for r in records):
                _write(self.folder / "anytime.csv", _anytime_rows(records))
            _write(self.folder / "accuracy.csv", _accuracy_rows(records))
            _write(self.folder / "runs.csv", _run_rows(records))
        except OSError as error:
            raise ResultsError(f"cannot write to {self.folder}: {error.strerror or error}") from None

    def describe(self, settings: dict[str, str], environment: dict[str, str]) -> None:
        """Note what is about to train here, and with what.

        Args:
            settings: what the runs have in common.
            environment: versions, device, revision, checksums.

        Raises:
            ResultsError: the disk does not take it.
        """
        content = {"settings": settings, "environment": environment}
        try:
            _replace(self.folder / "environment.json", json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise ResultsError(f"cannot write to {self.folder}: {error.strerror or error}") from None

    def description(self) -> tuple[dict[str, str], dict[str, str]]:
        """Settings and environment of the last command that trained here; empty where that is not known."""
        try:
            content = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
            return dict(content["settings"]), dict(content["environment"])
        except (OSError, ValueError, LookupError, TypeError):
            return {}, {}

    def _load(self) -> dict[str, Record]:
        """Every run that is there completely; others train again."""
        runs, accuracies = _read(self.folder / "runs.csv"), _read(self.folder / "accuracy.csv")
        anytime = _read(self.folder / "anytime.csv")
        cells: dict[str, list[dict[str, str]]] = {}
        for row in accuracies:
            cells.setdefault(row["run_key"], []).append(row)
        points: dict[str, list[dict[str, str]]] = {}
        for row in anytime:
            points.setdefault(row["run_key"], []).append(row)
        found = {}
        for row in runs:
            try:
                found[row["run_key"]] = _parse(row, cells[row["run_key"]], points.get(row["run_key"], []))
            except (LookupError, ValueError, TypeError):
                continue  # a damaged row: the run is not taken for finished
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


def _parse(row: dict[str, str], cells: list[dict[str, str]], points: list[dict[str, str]]) -> Record:
    tasks = max(int(cell["task"]) for cell in cells)
    accuracy = np.full((tasks + 1, tasks), np.inf)
    for cell in cells:
        accuracy[int(cell["after_task"]), int(cell["task"]) - 1] = float(cell["accuracy"])
    if np.isinf(accuracy).any():
        raise ValueError("incomplete accuracy matrix")
    if not np.array_equal(metrics.average_accuracy(accuracy), float(row["average_accuracy"]), equal_nan=True):
        raise ValueError("the accuracy matrix is not the one the metrics were computed from")
    trace: dict[tuple[int, int], dict[int, float]] = {}
    for point in points:
        place = int(point["training_task"]), int(point["step"])
        trace.setdefault(place, {})[int(point["task"])] = float(point["accuracy"])
    known = {*LEADING, *METRICS, *TRAILING, REASON}
    return Record(
        run_key=row["run_key"],
        strategy=row["strategy"],
        seed=int(row["seed"]),
        status=row["status"],
        fields={k: v for k, v in row.items() if k not in known},
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


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row.get("run_key")]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path} is damaged ({error}); move it away, and its runs train again") from None


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The whole table under a temporary name, then renamed: readers see the old one or the new one."""
    columns = dict.fromkeys(k for row in rows for k in row)
    # Columns that not every run has must not push these from their places.
    ends = [c for c in (*METRICS, *TRAILING, REASON) if c in columns]
    order = [c for c in columns if c not in ends] + ends
    text = io.StringIO()
    writer = csv.DictWriter(text, order, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(path, text.getvalue())


def _replace(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
