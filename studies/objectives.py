"""What a study may optimise: a number a run, from its accuracy matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmark import metrics

Matrix = NDArray[np.float64]

Direction = Literal["maximize", "minimize"]

OBJECTIVES: dict[str, tuple[Callable[[Matrix], float], Direction]] = {
    "average_accuracy": (metrics.average_accuracy, "maximize"),
    "forgetting": (metrics.forgetting, "minimize"),
    "bwt": (metrics.bwt, "maximize"),
    "fwt": (metrics.fwt, "maximize"),
    "learning_accuracy": (metrics.learning_accuracy, "maximize"),
    "average_incremental_accuracy": (metrics.average_incremental_accuracy, "maximize"),
    "stability": (metrics.stability, "maximize"),
    "plasticity": (metrics.learning_accuracy, "maximize"),
}
"""Function of an accuracy matrix and the direction to push it, by name."""


def value(name: str, accuracy: Matrix) -> float:
    """An objective of one run.

    Args:
        name: a key of `OBJECTIVES`.
        accuracy: accuracy matrix, shape (T + 1, T).
    """
    return OBJECTIVES[name][0](accuracy)


def direction(name: str) -> Direction:
    """Which way is better."""
    return OBJECTIVES[name][1]


def worst(name: str) -> float:
    """A value that no run falls short of: transfer goes down to -1."""
    return 1.0 if direction(name) == "minimize" else -1.0 if name in {"bwt", "fwt"} else 0.0
