"""Tidy frames of made-up results, as `reports.tables` describes them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from benchmark import metrics

NAN = float("nan")


def frames(
    tasks: int = 3, seeds: int = 3, labels: tuple[str, ...] = ("naive", "ewc[lam=10]")
) -> tuple[pd.DataFrame, ...]:
    """Tidy frames of runs with random accuracies."""
    rng, runs, cells = np.random.default_rng(0), [], []
    for label, seed in itertools.product(labels, range(seeds)):
        matrix = rng.random((tasks + 1, tasks))
        runs.append({"strategy": label, "seed": seed, "status": "finished", **metrics.summary(matrix)})
        cells += [(label, seed, k, j + 1, value) for (k, j), value in np.ndenumerate(matrix)]
    return pd.DataFrame(runs), pd.DataFrame(cells, columns=["strategy", "seed", "after_task", "task", "accuracy"])


def diverge(runs: pd.DataFrame, accuracy: pd.DataFrame, strategy: str, seeds: tuple[int, ...]) -> None:
    """Let runs diverge in the second task, or in the only one."""
    gone = (runs["strategy"] == strategy) & runs["seed"].isin(seeds)
    runs.loc[gone, "status"] = "diverged"
    runs.loc[gone, list(metrics.summary(np.eye(3)[:, :2]))] = NAN
    late = accuracy["after_task"] >= min(2, accuracy["task"].max())
    lost = (accuracy["strategy"] == strategy) & accuracy["seed"].isin(seeds) & late
    accuracy.loc[lost, "accuracy"] = NAN
