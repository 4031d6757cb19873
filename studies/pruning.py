"""Successive halving over tasks: after tasks 2, 4, 8, ... the worse half of a batch of trials leaves its stack.

Synchronous, unlike Optuna's pruner, which judges one trial at a time by those before it: trials of a stack reach a
task together. Each stack is judged by itself. So what is given up depends on how a batch was divided into stacks, which
follows from the number of processors and from memory: a study with pruning is repeated exactly on such a machine only.
Waiting for all stacks of a batch would need all of them in memory and in training at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmark.data import ImageSet
from benchmark.runs import Run
from studies import objectives

KEPT = 0.5  # of the trials of a stack


class Halving:
    """A `harness.Prune` for one batch of trials of one objective.

    A trial is judged by those of its seeds that are in the stack, against the trials of the same strategy there.

    Args:
        objective: a key of `objectives.OBJECTIVES`.
        trials: which trial each run belongs to, by run key: its strategy's label and its number.
        tasks: images of each task, to count what is saved.
    """

    def __init__(self, objective: str, trials: dict[str, tuple[str, int]], tasks: Sequence[ImageSet]) -> None:
        self._objective, self.trials, self._tasks = objective, trials, tasks
        self._turn = threading.Lock()  # stacks train side by side
        self.values: dict[tuple[str, int], tuple[int, float]] = {}
        """Task after which each pruned trial was given up, and the objective over the tasks so far."""
        self.saved = 0
        """Run-epochs that were not trained."""

    def __call__(self, task: int, runs: tuple[Run, ...], accuracy: NDArray[np.float64]) -> list[bool]:
        """Which runs to give up; see `benchmark.harness.Prune`."""
        if not math.log2(task).is_integer():
            return [False] * len(runs)
        trial_of = [self.trials[run.key] for run in runs]
        values = [objectives.value(self._objective, a[:, :task]) for a in accuracy]
        worse = self._worse(trial_of, values)
        given_up = [trial in worse for trial in trial_of]
        left = range(task + 1, len(self._tasks) + 1)
        with self._turn:
            self.values |= {trial: (task, value) for trial, value in worse.items()}
            self.saved += sum(
                run.epochs(t, self._tasks) for run, out in zip(runs, given_up, strict=True) if out for t in left
            )
        return given_up

    def _worse(self, trial_of: list[tuple[str, int]], values: list[float]) -> dict[tuple[str, int], float]:
        """The trials to give up, with their values; one that is NaN is the worst, its run diverges and is told so."""
        sign = 1 if objectives.direction(self._objective) == "maximize" else -1
        means = {t: float(np.mean([v for u, v in zip(trial_of, values, strict=True) if u == t])) for t in trial_of}
        worse: dict[tuple[str, int], float] = {}
        for label in dict.fromkeys(label for label, _ in means):
            own = [t for t in means if t[0] == label and math.isfinite(means[t])]
            ranked = sorted(own, key=lambda t: -sign * means[t])
            worse |= {t: means[t] for t in ranked[math.ceil(KEPT * len(ranked)) :]}
        return worse
