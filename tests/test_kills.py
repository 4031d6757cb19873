"""kill -9 at random moments, the same command again each time: every run once, with the values of an undisturbed run.

A few kills by default; `FORGETBENCH_KILLS=200 python -m pytest -m slow tests/test_kills.py` takes about 50 minutes on
two cores. `FORGETBENCH_KILLS_SEED` repeats a sequence of moments, as well as a busy
machine can.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.test_end_to_end import FORGETBENCH, environment, forgetbench, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6 * 3600)]

KILLS = int(os.environ.get("FORGETBENCH_KILLS", "4"))
SEED = int(os.environ.get("FORGETBENCH_KILLS_SEED", str(time.time_ns() % 10**6)))
# 64 runs in 16 stacks, without BatchNorm, whose biases no gradient decides.
COMMAND = [
    "run", "permuted-digits", "scenario.tasks=2", "seeds=16", "model=mlp", "train.epochs=2", "train.precision=float64",
    "strategy=[{name='naive'}, {name='l2', lam=[0.1, 1]}, {name='ewc', estimator='empirical', lam=100}]", "--max-stack", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], float]:
    """The table of runs, and how long the command takes."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    done = forgetbench(*COMMAND, cwd=folder)
    assert done.returncode == 0, done.stderr
    return table(folder / "out" / "permuted-digits" / "runs.csv"), time.monotonic() - began


def check(folder: Path, expected: dict[str, dict[str, str]]) -> None:
    """Every run is in the table and in MLflow once, and both have the values of the undisturbed command."""
    from mlflow import MlflowClient

    found = table(folder / "out" / "permuted-digits" / "runs.csv")
    assert found.keys() == expected.keys() and len(found) == 64
    for name in ("average_accuracy", "forgetting", "learning_accuracy"):
        values, wanted = ([float(rows[key][name]) for key in expected] for rows in (found, expected))
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-12)
    client = MlflowClient(f"sqlite:///{folder / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("permuted-digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`forgetbench.kind` = 'run'", max_results=1000)
    tracked = {run.data.tags["forgetbench.run_key"]: run.data.metrics["average_accuracy"] for run in runs}
    assert len(runs) == 64 and {run.info.status for run in runs} == {"FINISHED"}
    assert tracked == {key: float(row["average_accuracy"]) for key, row in found.items()}


def descendants(pid: int) -> dict[int, str]:
    """Names of a process's children, of theirs, and so on."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it has ended meanwhile
        number = int(status.parent.name)
        parents[number], names[number] = int(lines["PPid"]), lines["Name"].strip()

    def descends(number: int) -> bool:
        return number in parents and (parents[number] == pid or descends(parents[number]))

    return {number: name for number, name in names.items() if descends(number)}


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_killed_again_and_again_every_run_is_there_once_and_as_it_would_have_been(
    executor: str, undisturbed: tuple[dict[str, dict[str, str]], float], tmp_path: Path
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    (expected, seconds), moments, killed = undisturbed, random.Random(SEED), 0
    command = [*FORGETBENCH, *COMMAND, "--executor", executor]
    folder, part = tmp_path / "0", 0
    folder.mkdir()
    kills = KILLS if executor == "local" else -(-KILLS // 4)
    while killed < kills:
        log = (folder / "log").open("a")
        with log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment()) as running:
            deadline = time.monotonic() + moments.uniform(0, 1.2 * seconds)
            while time.monotonic() < deadline and running.poll() is None:
                time.sleep(0.02)
            workers = [pid for pid, name in descendants(running.pid).items() if name.startswith("ray::_work")]
            if running.poll() is None and workers and moments.random() < 0.5:
                os.kill(moments.choice(workers), 9)  # Ray replaces it
                killed += 1
            elif running.poll() is None:
                running.kill()
                killed += 1
            status = running.wait()
        if status == 0:
            check(folder, expected)
            part += 1
            folder = tmp_path / str(part)
            folder.mkdir()
        else:
            assert status == -9, f"seed {SEED}: {(folder / 'log').read_text()[-2000:]}"
    last = forgetbench(*COMMAND, cwd=folder)
    assert last.returncode == 0, last.stderr
    check(folder, expected)
