"""The report of ten thousand runs: as right as that of ten, and in little memory."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmark.keys import digest
from benchmark.results import Record
from benchmark.server import MATRIX
from reports.statistics import mean_interval, paired
from tests import synthetic_runs as made
from tests.test_end_to_end import environment

pytestmark = pytest.mark.slow

SEEDS, TASKS = 200, 2
LAMS = {f"ewc[estimator=exact,lam={10 * i}]": {"lam": f"{10 * i}", "estimator": "exact"} for i in range(1, 50)}
OPTIONS: dict[str, dict[str, str]] = {"naive": {}, **LAMS}
KEEPS = dict(zip(OPTIONS, np.linspace(0.5, 0.95, len(OPTIONS)), strict=True))
NAMES = ("runs", "main", "tasks", "paired")
GIBIBYTE = 2**20  # in kibibytes, as Linux tells what a process had


def test_ten_thousand_runs_are_reported_one_by_one_and_in_less_than_two_gibibytes(tmp_path: Path) -> None:
    runs = {label: [_record(label, seed) for seed in range(SEEDS)] for label in OPTIONS}
    _tracked(tmp_path / "out", runs)
    peak = _report(tmp_path)
    table = {name: pd.read_csv(tmp_path / "report" / "tables" / f"{name}.csv") for name in NAMES}
    assert len(table["runs"]) == len(OPTIONS) * SEEDS == 10_000
    assert {*table["runs"]["run_key"]} == {r.run_key for own in runs.values() for r in own}
    values = {label: np.array([r.values["forgetting"] for r in own]) for label, own in runs.items()}
    for found in _rows(table["main"], "forgetting"):
        mean = mean_interval(values[found["strategy"]])
        assert [found[k] for k in ("n", "mean", "low")] == pytest.approx([SEEDS, mean.mean, mean.low])
    for found in table["tasks"].to_dict("records"):
        final = [r.accuracy[-1, found["task"] - 1] for r in runs[found["strategy"]]]
        assert [found["n"], found["mean"]] == pytest.approx([SEEDS, np.mean(final)])
    for found in _rows(table["paired"], "forgetting"):
        pair = paired(values[found["strategy"]], values["naive"])
        assert [found[k] for k in ("n", "difference", "p")] == pytest.approx([SEEDS, pair.difference, pair.p])
    assert "None: every strategy finished with every seed." in (tmp_path / "report" / "report.md").read_text("utf-8")
    assert peak < 2 * GIBIBYTE


def _record(label: str, seed: int) -> Record:
    return made.record(label, seed, keeps=KEEPS[label], tasks=TASKS, **OPTIONS[label])


def _rows(frame: pd.DataFrame, metric: str) -> Iterable[dict[str, Any]]:
    own = frame[frame["metric"] == metric].to_dict("records")
    assert len(own) >= len(OPTIONS) - 1
    return own


def _tracked(out: Path, runs: dict[str, list[Record]]) -> None:
    """One seed of each strategy as an experiment delivers it, and the others copied in the database.

    To deliver all of them takes minutes.
    """
    out.mkdir()
    made.track(f"sqlite:///{out / 'mlflow.db'}", "many", [own[0] for own in runs.values()], out)
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as database, database:
        for first, *others in runs.values():
            (run_id,) = database.execute("SELECT run_uuid FROM tags WHERE value = ?", [first.run_key]).fetchone()
            for r in others:
                _copied(database, run_id, r)


def _copied(database: sqlite3.Connection, run_id: str, r: Record) -> None:
    new = digest(["run", r.run_key]) * 2
    own = {"seed": str(r.seed), "forgetbench.run_key": r.run_key, **r.values}
    for table in ("runs", "params", "tags", "latest_metrics"):
        cursor = database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", [run_id])
        columns = [name for name, *_ in cursor.description]
        for values in cursor.fetchall():
            row = dict(zip(columns, values, strict=True)) | {"run_uuid": new}
            if table == "runs":
                row["artifact_uri"] = row["artifact_uri"].replace(run_id, new)
                artifacts = Path(row["artifact_uri"].removeprefix("file://"))
                artifacts.mkdir(parents=True)
                (artifacts / MATRIX).write_text(json.dumps({"accuracy": r.accuracy.tolist()}), encoding="utf-8")
            elif row["key"] in own:
                row["value"] = own[row["key"]]
            database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", [*row.values()])


# What Linux tells of a child that has ended begins with its parent's peak.
MEASURED = """
import atexit, sys
from pathlib import Path
from benchmark import cli
atexit.register(lambda: Path("peak").write_text(Path("/proc/self/status").read_text()))
cli.main()
"""


def _report(folder: Path) -> int:
    """Run the command; the most memory it had, in kibibytes."""
    command = [sys.executable, "-c", MEASURED, "report", "--experiment", "many", "-o", "report"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":", 1) for line in (folder / "peak").read_text().splitlines())
    return int(status["VmHWM"].split()[0])
