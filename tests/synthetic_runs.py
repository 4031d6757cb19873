"""Runs whose accuracies are made up, tracked as real ones are, so that what a report says can be worked out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmark import metrics
from benchmark.keys import digest
from benchmark.results import Record
from benchmark.tracking import Tracker, start_times

TASKS = 3
RECIPE = {
    "scenario": "permuted-digits", "incremental": "domain", "tasks": "3", "images": "digits", "model": "mlp-bn",
    "optimizer": "adam", "lr": "0.001", "batch_size": "64", "epochs": "5", "iterations": "",
    "batchnorm": "freeze-after-first", "optimizer_state": "reset", "precision": "float32",
}  # fmt: skip
ENVIRONMENT = {"version.torch": "2", "device": "cpu", "git_revision": "abc", "command": "forgetbench run made-up"}


def matrix(keeps: float, learns: float, seed: int, tasks: int = TASKS) -> np.ndarray:
    """`learns` is the accuracy on a task when learned, `keeps` what is left of it, later, of each task before.

    Seeds differ a little, by another amount on each task.
    """
    noise = 0.01 * np.random.default_rng(seed).standard_normal(tasks)
    a = np.full((tasks + 1, tasks), 0.1)
    for after in range(1, tasks + 1):
        for task in range(1, after + 1):
            a[after, task - 1] = (learns + noise[task - 1]) * keeps ** (after - task)
    return a


def record(
    label: str = "naive", seed: int = 0, keeps: float = 0.5, learns: float = 0.9, status: str = "finished",
    tasks: int = TASKS, **fields: str,
) -> Record:  # fmt: skip
    """A run; `fields` are its options, and what its recipe has otherwise."""
    a = matrix(keeps, learns, seed, tasks)
    if status == "diverged":
        a[2:] = np.nan
    told = RECIPE | {"tasks": str(tasks), "strategy_name": label.partition("[")[0]} | fields
    return Record(
        run_key=digest([label, seed, keeps, learns, status, told]),
        strategy=label,
        seed=seed,
        status=status,
        fields=told,
        values=metrics.summary(a),
        facts={"train_seconds": "1.5", "stack_size": "6", "trunk": f"t{seed}", "trunk_runs": "6"},
        accuracy=a,
    )


def seeds(label: str, n: int, **given: float | str) -> list[Record]:
    """The same run with seeds 0 to n - 1."""
    return [record(label, seed, **given) for seed in range(n)]  # type: ignore[arg-type]


def track(uri: str, name: str, records: Iterable[Record], folder: Path, at: float = 1e6, **environment: str) -> str:
    """Deliver runs as an experiment does, which began at that time.

    Returns:
        The id of their overview run.
    """
    records, tracker = list(records), Tracker(uri, name, folder / "mlartifacts")
    common = {k: v for k, v in records[0].fields.items() if v and all(r.fields.get(k) == v for r in records)}
    tracker.open(common, at)
    tracker.deliver(records, start_times(((r.run_key, r.seed) for r in records), at))
    tracker.close(ENVIRONMENT | environment, "", {}, records[0].accuracy.shape[1], [r.strategy for r in records])
    return tracker._overview
