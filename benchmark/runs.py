"""What a run is, what identifies it, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.data import ImageSet
from benchmark.keys import digest
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.scenarios import Scenario
from strategies import registry
from strategies.base import Strategy

RESERVED = frozenset(
    {"scenario", "incremental", "tasks", "images", "permuted", "angles", "class_order", "labels", "data_version"}
    | {"model", "model_version", "strategy_name", "strategy_version", "protocol", "phase"}
)
"""Columns of results and params of runs that say what a run is, beside its recipe and its strategy's fields."""
NUMERICS = 7  # raised when a change of the code changes results, so that old results are not taken for new ones


@dataclass(frozen=True)
class Run:
    """One strategy with fixed hyperparameters, one seed, one scenario, one recipe.

    Attributes:
        scenario: the tasks.
        model: the network.
        recipe: how every task is trained.
        strategy: with its hyperparameters.
        strategy_name: what the registry knows the strategy by.
        label: the strategy and what distinguishes it within its experiment; for people, not part of the key.
        seed: of initial weights, batches and everything else that is drawn.
    """

    scenario: Scenario
    model: Model
    recipe: Recipe
    strategy: Strategy
    strategy_name: str
    label: str
    seed: int

    @functools.cached_property
    def key(self) -> str:
        """Identifies everything that determines the result."""
        return digest(
            {
                "numerics": NUMERICS,
                "scenario": self.scenario.spec(),
                "model": self.model.spec(),
                "recipe": self.recipe.spec(),
                "strategy": self.strategy_name,
                "options": self.strategy.options(),
                "code": registry.fingerprint(type(self.strategy)),
                "seed": self.seed,
            }
        )

    @functools.cached_property
    def trunk(self) -> str:
        """Runs of equal trunk train the first task alike; empty where this run trains it in its own way."""
        if not self.strategy.shares_first_task():
            return ""
        # Freezing BatchNorm begins after the first task.
        recipe = dataclasses.replace(self.recipe, batchnorm="update").spec()
        return digest([NUMERICS, self.scenario.spec(), self.model.spec(), recipe, self.seed])

    def images(self, task: int, tasks: Sequence[ImageSet]) -> int:
        """Training images by which steps are counted; arguments as for `steps`."""
        return sum(self.scenario.size(j, tasks[j - 1]) for j in self.strategy.trains_on(task))

    def steps(self, task: int, tasks: Sequence[ImageSet]) -> tuple[int, int]:
        """Optimiser steps an epoch and in all.

        Args:
            task: numbered from 1.
            tasks: images of each task.
        """
        an_epoch, steps = self.recipe.steps(self.images(task, tasks), len(self.strategy.trains_on(task)))
        return an_epoch, steps if self.strategy.learns(task) else 0

    def epochs(self, task: int, tasks: Sequence[ImageSet]) -> int:
        """Epochs begun; arguments as for `steps`."""
        an_epoch, steps = self.steps(task, tasks)
        return -(-steps // an_epoch)

    @property
    def _strategy_version(self) -> str:
        """Of a strategy of the user's own; empty for built-in ones."""
        code = registry.fingerprint(type(self.strategy))
        return digest(code) if code else ""

    def fields(self) -> dict[str, Any]:
        """Every hyperparameter and recipe field, flat, as tables and trackers show them.

        What is the user's own has a version, which changes with its code or content; what is built in has none.
        """
        return {
            **self.scenario.fields(),
            "model": self.model.label,
            "model_version": self.model.version or None,
            "strategy_name": self.strategy_name,
            "strategy_version": self._strategy_version or None,
            **self.strategy.options(),
            **self.recipe.spec(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on every task at one moment of training.

    Attributes:
        task: in training, from 1.
        step: optimiser steps taken on that task.
        accuracy: on each task, shape (T,).
    """

    task: int
    step: int
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        run: whose result this is.
        status: `finished`; `diverged` if loss, parameters or optimiser state stopped being finite; `pruned`; or
            `failed`.
        accuracy: accuracy matrix, shape (T + 1, T); NaN from the task on in which the run diverged or was pruned, and
            all of it if it failed.
        train_seconds: wall time of training (evaluations on the way and compiling included, importances not), divided
            by the runs of its stack, and the same of its trunk by `trunk_runs`; stacks side by side each count in full.
        stack_size: runs that trained together after the first task.
        trunk_runs: runs handed in together, by an experiment or for a batch of a study's trials, that shared the first
            task's training; 1 if it was this run's own. Each batch counts a trunk anew, also one that an earlier one
            trained: so runs are told what they would cost.
        trace: evaluations during training, if the recipe asks for them, ends of tasks included.
        reason: why the run failed, in one line; or empty.
        told: of a class-incremental scenario, accuracy on each task after the last one if it is told which task an
            image is of, shape (T,); else None.
    """

    run: Run
    status: str
    accuracy: NDArray[np.float64]
    train_seconds: float
    stack_size: int
    trunk_runs: int
    trace: list[Evaluation] = field(default_factory=list)
    reason: str = ""
    told: NDArray[np.float64] | None = None
