"""Successive halving over tasks: after tasks 2, 4, 8, ... the worse half of a batch of trials leaves its stack.

Synchronous, unlike Optuna's pruner, which judges one trial at a time by those before it: trials of a stack reach a
task together. Each stack is judged by itself. So what is given up depends on how a batch was divided into stacks, which
follows from the number of processors and from memory: a study with pruning is repeated exactly on such a machine only.
Waiting for all stacks of a batch would need all of them in memory and in training at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.data import ImageSet
from benchmark.runs import Result, Run
from studies import objectives

KEPT = 0.5  # of the trials of a stack


@dataclass(frozen=True)
class GivenUp:
    """A trial that was given up.

    Attributes:
        task: after which.
        value: of the objective over the tasks so far, averaged over its seeds.
        run_epochs: that were not trained.
        seconds: of training that they would have taken, as fast as those before: of stacks, each of which counts in
            full where they train side by side.
    """

    task: int
    value: float
    run_epochs: int
    seconds: float


class Halving:
    """A `harness.Prune` for one batch of trials of one objective.

    A trial is judged by those of its seeds that are in the stack, against the trials of the same strategy there.

    Args:
        objective: a key of `objectives.AFTER_TASKS`.
        trials: which trial each run belongs to, by run key: its strategy's label and its number.
        tasks: images of each task, to count what is saved.
    """

    def __init__(self, objective: str, trials: dict[str, tuple[str, int]], tasks: Sequence[ImageSet]) -> None:
        self._objective, self.trials, self._tasks = objective, trials, tasks
        self._pruned: dict[str, Result] = {}

    def __call__(self, task: int, runs: tuple[Run, ...], accuracy: NDArray[np.float64]) -> list[bool]:
        """Which runs to give up; see `benchmark.harness.Prune`."""
        if not math.log2(task).is_integer():
            return [False] * len(runs)
        trial_of = [self.trials[run.key] for run in runs]
        worse = self._worse(trial_of, [self._value(a, task) for a in accuracy])
        return [trial in worse for trial in trial_of]

    def note(self, results: Iterable[Result]) -> None:
        """Hear what came of a stack.

        What was decided is not enough: a stack that ran out of memory later is trained anew, in two, and judged anew.

        Args:
            results: of all its runs.
        """
        self._pruned |= {result.run.key: result for result in results if result.status == "pruned"}

    def given_up(self, trial: tuple[str, int], runs: Sequence[Run]) -> GivenUp | None:
        """What is known of a trial, if it was given up.

        Args:
            trial: its strategy's label and its number. What its runs saved counts for the trial they belong to.
            runs: its seeds.
        """
        found = {run.key: self._of(self._pruned[run.key]) for run in runs if run.key in self._pruned}
        if not found:
            return None
        own = [each for key, each in found.items() if self.trials[key] == trial]
        return GivenUp(
            task=min(each.task for each in found.values()),
            value=float(np.mean([each.value for each in found.values()])),
            run_epochs=sum(each.run_epochs for each in own),
            seconds=sum(each.seconds for each in own),
        )

    def _of(self, result: Result) -> GivenUp:
        run, task = result.run, int(np.isfinite(result.accuracy).any(axis=1).sum()) - 1
        epochs = [run.epochs(t, self._tasks) for t in range(1, len(self._tasks) + 1)]
        # As `train_seconds` counts them: the first task may have been trained for many.
        trained, saved = epochs[0] / result.trunk_runs + sum(epochs[1:task]), sum(epochs[task:])
        value = self._value(result.accuracy[: task + 1], task)
        return GivenUp(task, value, saved, result.train_seconds * saved / trained)

    def _value(self, accuracy: NDArray[np.float64], task: int) -> float:
        return objectives.AFTER_TASKS[self._objective](accuracy[:, :task])

    def _worse(self, trial_of: list[tuple[str, int]], values: list[float]) -> set[tuple[str, int]]:
        """The trials to give up; one whose value is NaN is not among them: its run diverges and is told so."""
        sign = 1 if objectives.direction(self._objective) == "maximize" else -1
        means = {t: float(np.mean([v for u, v in zip(trial_of, values, strict=True) if u == t])) for t in trial_of}
        worse: set[tuple[str, int]] = set()
        for label in dict.fromkeys(label for label, _ in means):
            own = [t for t in means if t[0] == label and math.isfinite(means[t])]
            ranked = sorted(own, key=lambda t: -sign * means[t])
            worse |= {*ranked[math.ceil(KEPT * len(ranked)) :]}
        return worse
