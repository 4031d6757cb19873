"""Metrics: against tables worked out by hand, and identities that hold on every matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from benchmark import metrics

Matrix = NDArray[np.float64]


def matrices(least: int = 1, most: int = 8) -> st.SearchStrategy[Matrix]:
    """Accuracy matrices of that many tasks."""
    accuracy = st.floats(0, 1, width=32)
    return st.integers(least, most).flatmap(lambda tasks: arrays(np.float64, (tasks + 1, tasks), elements=accuracy))


THREE = [
    [0.10, 0.12, 0.08],  # before training
    [0.90, 0.20, 0.10],
    [0.70, 0.80, 0.30],
    [0.60, 0.75, 0.95],
]
TWO = [[0.1, 0.1], [1.0, 0.3], [0.4, 0.9]]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (
            THREE,
            {
                "average_accuracy": (0.60 + 0.75 + 0.95) / 3,
                "forgetting": ((0.90 - 0.60) + (0.80 - 0.75)) / 2,
                "bwt": ((0.60 - 0.90) + (0.75 - 0.80)) / 2,
                "fwt": ((0.20 - 0.12) + (0.30 - 0.08)) / 2,
                "learning_accuracy": (0.90 + 0.80 + 0.95) / 3,
                "average_incremental_accuracy": (0.90 + (0.70 + 0.80) / 2 + (0.60 + 0.75 + 0.95) / 3) / 3,
            },
        ),
        (
            TWO,
            {
                "average_accuracy": 0.65,
                "forgetting": 0.6,
                "bwt": -0.6,
                "fwt": 0.2,
                "learning_accuracy": 0.95,
                "average_incremental_accuracy": (1.0 + 0.65) / 2,
            },
        ),
    ],
)
def test_the_summary_of_a_golden_matrix_is_as_worked_out_by_hand(
    matrix: list[list[float]], expected: dict[str, float]
) -> None:
    assert metrics.summary(matrix) == pytest.approx(expected)


def test_forgetting_counts_from_the_best_accuracy_and_bwt_from_the_one_when_learned() -> None:
    later_best = [[0.1, 0.1, 0.1], [0.5, 0.1, 0.1], [0.9, 0.6, 0.1], [0.4, 0.7, 0.8]]
    assert metrics.forgetting_by_task(later_best) == pytest.approx([0.9 - 0.4, 0.6 - 0.7])
    assert metrics.forgetting(later_best) == pytest.approx((0.5 - 0.1) / 2)
    assert metrics.bwt(later_best) == pytest.approx(((0.4 - 0.5) + (0.7 - 0.6)) / 2)


def test_accuracy_before_a_task_was_learned_is_no_forgetting() -> None:
    known_before = [[0.1, 1.0], [0.9, 1.0], [0.9, 0.5]]
    known_at_first = [[1.0, 0.1], [0.6, 0.1], [0.5, 0.5]]
    assert metrics.forgetting(known_before) == 0
    assert metrics.forgetting(known_at_first) == pytest.approx(0.1)


def test_a_single_task_has_neither_forgetting_nor_transfer() -> None:
    values = metrics.summary([[0.1], [0.8]])
    undefined = {"forgetting", "bwt", "fwt"}
    assert {k for k, v in values.items() if math.isnan(v)} == undefined
    assert {v for k, v in values.items() if k not in undefined} == {0.8}


def test_intransigence_is_what_joint_training_reaches_beyond() -> None:
    assert metrics.intransigence(TWO, [1.0, 0.95]) == pytest.approx([0.0, 0.05])


@given(matrices(least=2))
def test_final_accuracy_is_learning_accuracy_plus_backward_transfer(a: Matrix) -> None:
    tasks = a.shape[1]
    expected = metrics.learning_accuracy(a) + (tasks - 1) / tasks * metrics.bwt(a)
    assert metrics.average_accuracy(a) == pytest.approx(expected, abs=1e-12)


@given(matrices(least=2))
def test_forgetting_is_at_least_minus_backward_transfer(a: Matrix) -> None:
    assert metrics.forgetting(a) >= -metrics.bwt(a) - 1e-12


@given(matrices(least=2, most=2))
def test_forgetting_of_two_tasks_is_minus_backward_transfer(a: Matrix) -> None:
    assert metrics.forgetting(a) == pytest.approx(-metrics.bwt(a), abs=1e-12)


@given(matrices())
def test_every_metric_is_a_difference_or_a_mean_of_accuracies(a: Matrix) -> None:
    values = metrics.summary(a)
    for name in ("average_accuracy", "learning_accuracy", "average_incremental_accuracy"):
        assert -1e-12 <= values[name] <= 1 + 1e-12
    for name in ("forgetting", "bwt", "fwt"):
        assert math.isnan(values[name]) or -1 - 1e-12 <= values[name] <= 1 + 1e-12


@given(matrices(least=2), st.floats(-1, 1))
def test_a_network_that_is_better_everywhere_by_a_constant_forgets_the_same(a: Matrix, shift: float) -> None:
    moved = metrics.summary(a + shift)
    for name, value in metrics.summary(a).items():
        expected = value if name in {"forgetting", "bwt", "fwt"} else value + shift
        assert moved[name] == pytest.approx(expected, abs=1e-9)


def test_a_diverged_run_has_no_final_metrics_but_keeps_what_it_had() -> None:
    a = np.array(THREE)
    a[3] = np.nan
    values = metrics.summary(a)
    assert math.isnan(values["average_accuracy"]) and math.isnan(values["forgetting"]) and math.isnan(values["bwt"])
    assert values["fwt"] == pytest.approx(0.15)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (2, 3), (1, 0), (4,), (2, 2, 1)])
def test_a_matrix_without_the_row_before_training_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(T \+ 1, T\)"):
        metrics.average_accuracy(np.zeros(shape))


# Metrics of evaluations during training: three tasks, two points in each

TASKS = [1, 1, 2, 2, 3, 3]
POINTS = [
    [0.05, 0.90, 0.90],  # the first task's own low point is before it ended
    [0.80, 0.10, 0.10],
    [0.50, 0.40, 0.20],
    [0.60, 0.70, 0.20],
    [0.30, 0.75, 0.50],
    [0.40, 0.65, 0.90],
]


def test_min_acc_is_the_lowest_accuracy_from_the_end_of_each_earlier_task_on() -> None:
    assert metrics.min_acc(TASKS, POINTS) == pytest.approx((0.30 + 0.65) / 2)


def test_min_acc_counts_the_moment_a_task_ended() -> None:
    assert metrics.min_acc([1, 1, 2], [[0.9, 0.0], [0.2, 0.0], [0.6, 0.8]]) == pytest.approx(0.2)


def test_wc_acc_weighs_the_current_task_against_the_worst_case_of_the_others() -> None:
    assert metrics.wc_acc(TASKS, POINTS) == pytest.approx(0.90 / 3 + (1 - 1 / 3) * (0.30 + 0.65) / 2)


def test_of_a_single_task_there_is_no_min_acc_and_wc_acc_is_its_accuracy() -> None:
    assert math.isnan(metrics.min_acc([1, 1], [[0.4], [0.7]]))
    assert metrics.wc_acc([1, 1], [[0.4], [0.7]]) == 0.7


def test_average_anytime_accuracy_looks_at_the_tasks_seen_so_far() -> None:
    expected = (0.05 + 0.80 + (0.5 + 0.4) / 2 + (0.6 + 0.7) / 2 + (0.3 + 0.75 + 0.5) / 3 + (0.4 + 0.65 + 0.9) / 3) / 6
    assert metrics.average_anytime_accuracy(TASKS, POINTS) == pytest.approx(expected)


@given(matrices(least=2))
def test_evaluated_only_at_ends_of_tasks_min_acc_is_what_the_matrix_says(a: Matrix) -> None:
    tasks = a.shape[1]
    by_hand = np.mean([min(a[k, j] for k in range(j + 1, tasks + 1)) for j in range(tasks - 1)])
    assert metrics.min_acc(range(1, tasks + 1), a[1:]) == pytest.approx(by_hand)
    assert metrics.average_anytime_accuracy(range(1, tasks + 1), a[1:]) == pytest.approx(
        metrics.average_incremental_accuracy(a)
    )


@given(matrices(least=2), st.data())
def test_an_evaluation_more_cannot_raise_min_acc(a: Matrix, draw: st.DataObject) -> None:
    tasks = a.shape[1]
    after = draw.draw(st.integers(2, tasks))
    extra = draw.draw(arrays(np.float64, (tasks,), elements=st.floats(0, 1)))
    current = list(range(1, tasks + 1))
    more = [*current[: after - 1], after, *current[after - 1 :]]
    points = np.insert(a[1:], after - 1, extra, axis=0)
    assert metrics.min_acc(more, points) <= metrics.min_acc(current, a[1:]) + 1e-12
