"""What a study may optimise: a number a run, from its accuracy matrix or from evaluations while it trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmark import metrics
from benchmark.results import ANYTIME, Record

Matrix = NDArray[np.float64]

Direction = Literal["maximize", "minimize"]

AFTER_TASKS: dict[str, Callable[[Matrix], float]] = {
    "average_accuracy": metrics.average_accuracy,
    "forgetting": metrics.forgetting,
    "bwt": metrics.bwt,
    "fwt": metrics.fwt,
    "learning_accuracy": metrics.learning_accuracy,
    "average_incremental_accuracy": metrics.average_incremental_accuracy,
    "stability": metrics.stability,
    "plasticity": metrics.learning_accuracy,
}
"""Functions of an accuracy matrix, by name: also of the tasks so far, while others are to come."""
WHILE_TRAINING = ANYTIME
"""Names of metrics that need `train.evaluate_every`."""
OBJECTIVES = (*AFTER_TASKS, *WHILE_TRAINING)


def value(name: str, record: Record) -> float:
    """An objective of one run.

    Args:
        name: one of `OBJECTIVES`.
        record: of the run; NaN where it was not evaluated while it trained, and the metric needs that.
    """
    if name in AFTER_TASKS:
        return AFTER_TASKS[name](record.accuracy)
    return record.values.get(name, float("nan"))


def direction(name: str) -> Direction:
    """Which way is better."""
    return "minimize" if name == "forgetting" else "maximize"


def worst(name: str) -> float:
    """A value that no run falls short of: transfer goes down to -1."""
    return 1.0 if direction(name) == "minimize" else -1.0 if name in {"bwt", "fwt"} else 0.0
