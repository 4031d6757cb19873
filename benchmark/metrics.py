"""Accuracy matrix -> numbers. NumPy only.

`a[k, j-1]` is the test accuracy on task j after training task k; row 0 is before any training. With T tasks the matrix
has shape (T + 1, T). A single task has no forgetting and no transfer: those are NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def _matrix(a: ArrayLike) -> Matrix:
    matrix = np.asarray(a, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] == 0:
        raise ValueError(f"accuracy matrix: expected shape (T + 1, T), row 0 before training, got {matrix.shape}")
    return matrix


def _learned(a: Matrix) -> Matrix:
    """a[j, j] for every task: accuracy on a task just after training it."""
    return a[1:].diagonal()


def average_accuracy(a: ArrayLike) -> float:
    """ACC_T = 1/T Σ_j a[T, j] (Lopez-Paz & Ranzato 2017)."""
    return float(_matrix(a)[-1].mean())


def average_incremental_accuracy(a: ArrayLike) -> float:
    """1/T Σ_k ACC_k, ACC_k the mean over tasks seen so far (Rebuffi et al. 2017)."""
    matrix = _matrix(a)
    return float(np.mean([matrix[k, :k].mean() for k in range(1, len(matrix))]))


def learning_accuracy(a: ArrayLike) -> float:
    """LA = 1/T Σ_j a[j, j] (Riemer et al. 2019)."""
    return float(_learned(_matrix(a)).mean())


def stability(a: ArrayLike) -> float:
    """Final accuracy on all tasks but the last: 1/(T−1) Σ_{j<T} a[T, j]; NaN for one task."""
    matrix = _matrix(a)
    return float(matrix[-1, :-1].mean()) if matrix.shape[1] > 1 else float("nan")


def bwt(a: ArrayLike) -> float:
    """Backward transfer: 1/(T-1) Σ_{j<T} (a[T, j] - a[j, j]) (Lopez-Paz & Ranzato 2017)."""
    matrix = _matrix(a)
    return float((matrix[-1] - _learned(matrix))[:-1].mean()) if matrix.shape[1] > 1 else float("nan")


def fwt(a: ArrayLike) -> float:
    """Forward transfer: 1/(T-1) Σ_{j=2..T} (a[j-1, j] - a[0, j]) (Lopez-Paz & Ranzato 2017)."""
    matrix = _matrix(a)
    if matrix.shape[1] == 1:
        return float("nan")
    before = matrix[1:-1, 1:].diagonal()  # a[j-1, j]
    return float((before - matrix[0, 1:]).mean())


def forgetting_by_task(a: ArrayLike) -> Matrix:
    """f_j = max_{j≤l<T} a[l, j] - a[T, j], shape (T - 1,) (Chaudhry et al. 2018)."""
    matrix = _matrix(a)
    tasks = matrix.shape[1]
    return np.array([matrix[j:tasks, j - 1].max() - matrix[-1, j - 1] for j in range(1, tasks)])


def forgetting(a: ArrayLike) -> float:
    """F = mean over j < T of f_j (Chaudhry et al. 2018)."""
    by_task = forgetting_by_task(a)
    return float(by_task.mean()) if len(by_task) else float("nan")


def intransigence(a: ArrayLike, reference: ArrayLike) -> Matrix:
    """I_k = a*_k - a[k, k], shape (T,) (Chaudhry et al. 2018).

    Args:
        a: accuracy matrix.
        reference: a*_k, accuracy on task k of a model trained jointly on tasks 1..k, shape (T,).
    """
    return np.asarray(reference, dtype=np.float64) - _learned(_matrix(a))


def summary(a: ArrayLike) -> dict[str, float]:
    """The metrics every run is recorded with."""
    return {
        "average_accuracy": average_accuracy(a),
        "forgetting": forgetting(a),
        "bwt": bwt(a),
        "fwt": fwt(a),
        "learning_accuracy": learning_accuracy(a),
        "average_incremental_accuracy": average_incremental_accuracy(a),
    }


def min_acc(tasks: ArrayLike, accuracies: ArrayLike) -> float:
    """min-ACC = 1/(k-1) Σ_{i<k} min over evaluation points after task i ended (De Lange et al. 2023).

    Depends on the evaluation period: report it beside.

    Args:
        tasks: the task in training at each evaluation point, in order, shape (P,); the point that ends a task is its.
        accuracies: accuracy on every task at each point, shape (P, T).
    """
    current = np.asarray(tasks)
    a = np.asarray(accuracies, dtype=np.float64)
    k = int(current.max())
    # The point that ends task i counts: "after" includes the moment the task was learned.
    ends = [int(np.flatnonzero(current == i).max()) for i in range(1, k)]
    return float(np.mean([a[end:, i].min() for i, end in enumerate(ends)])) if k > 1 else float("nan")


def wc_acc(tasks: ArrayLike, accuracies: ArrayLike) -> float:
    """WC-ACC = 1/k · accuracy on the current task + (1 - 1/k) · min-ACC (De Lange et al. 2023).

    Args:
        tasks: as for `min_acc`.
        accuracies: as for `min_acc`.
    """
    current = np.asarray(tasks)
    k = int(current.max())
    last = float(np.asarray(accuracies, dtype=np.float64)[-1, k - 1])
    return last if k == 1 else last / k + (1 - 1 / k) * min_acc(tasks, accuracies)


def average_anytime_accuracy(tasks: ArrayLike, accuracies: ArrayLike) -> float:
    """Mean over evaluation points of the mean accuracy on the tasks seen so far.

    Args:
        tasks: as for `min_acc`.
        accuracies: as for `min_acc`.
    """
    a = np.asarray(accuracies, dtype=np.float64)
    return float(np.mean([a[p, :k].mean() for p, k in enumerate(np.asarray(tasks))]))
