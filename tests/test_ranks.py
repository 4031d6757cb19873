"""Ranks over scenarios: against Demšar's tables, brute force and cases worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.ranks import friedman

# Demšar 2006, table 5a: q for the Nemenyi test at 0.05 and k = 2..10; a rank of two has no Friedman test here.
Q = dict(zip(range(2, 11), (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164), strict=True))


def scores(*rows):
    return pd.DataFrame(rows, columns=list("abcdefghijkl"[: len(rows[0])]))


tables = st.integers(3, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 9), min_size=k, max_size=k), min_size=2, max_size=8)
)


@pytest.mark.parametrize("k", range(3, 11))
def test_the_critical_difference_is_demsars(k):
    n = 7
    found = friedman(scores(*np.arange(n * k).reshape(n, k)))
    assert found.critical_difference / math.sqrt(k * (k + 1) / (6 * n)) == pytest.approx(Q[k], abs=1e-3)


def test_statistic_and_groups_are_as_worked_out_by_hand():
    # Ranks a 1, b 2 or 3, c 3 or 2, d 4 in ten scenarios: means 1, 2.5, 2.5, 4.
    rows = [(0.9, 0.5, 0.4, 0.1), (0.9, 0.4, 0.5, 0.1)] * 5
    found = friedman(scores(*rows))
    chi2 = 12 * 10 / (4 * 5) * (1**2 + 2.5**2 * 2 + 4**2 - 4 * 5**2 / 4)
    assert found.mean_ranks == {"a": 1, "b": 2.5, "c": 2.5, "d": 4}
    assert found.statistic == pytest.approx(chi2) and found.p < 1e-4
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(20 / 60), abs=1e-3)  # 1.483
    assert found.groups == (("b", "c"),)


def test_a_strategy_may_be_in_two_groups_and_no_group_lies_in_another():
    # Means a 1.125, b 2.125, c 2.75, d 4 in sixteen scenarios; CD 1.173.
    rows = [(4, 3, 2, 1)] * 10 + [(4, 2, 3, 1)] * 4 + [(2, 4, 3, 1)] * 1 + [(3, 2, 4, 1)] * 1
    found = friedman(scores(*rows))
    ranks = found.mean_ranks
    assert list(ranks) == ["a", "b", "c", "d"]
    assert ranks["b"] - ranks["a"] < found.critical_difference and ranks["c"] - ranks["b"] < found.critical_difference
    assert ranks["c"] - ranks["a"] > found.critical_difference and ranks["d"] - ranks["c"] > found.critical_difference
    assert found.groups == (("a", "b"), ("b", "c"))


@given(rows=tables)
def test_groups_are_all_maximal_cliques(rows):
    found = friedman(scores(*rows))
    names, ranks = list(found.mean_ranks), found.mean_ranks
    if found.p > 0.05:
        assert found.groups == (tuple(names),)
        return
    near = [
        set(some)
        for size in range(2, len(names) + 1)
        for some in itertools.combinations(names, size)
        if max(ranks[s] for s in some) - min(ranks[s] for s in some) < found.critical_difference
    ]
    maximal = [some for some in near if not any(some < other for other in near)]
    assert sorted(map(sorted, found.groups)) == sorted(map(sorted, maximal))


def test_where_friedmans_test_does_not_reject_all_are_one_group():
    found = friedman(scores((3, 2, 1), (3, 2, 1)))
    assert found.p == found.smallest_p > 0.05  # two scenarios cannot decide among three strategies
    assert found.groups == (("a", "b", "c"),)


@given(rows=tables)
def test_no_p_is_below_the_smallest(rows):
    found = friedman(scores(*rows))
    assert found.smallest_p <= found.p * (1 + 1e-9) <= 1 + 1e-9
    assert sum(found.mean_ranks.values()) == pytest.approx(len(rows[0]) * (len(rows[0]) + 1) / 2)


def test_ties_have_the_average_rank_and_rounding_does_not_break_them():
    found = friedman(scores((0.1 + 0.2, 0.3, 0.1), (0.1 + 0.2, 0.3, 0.1)))
    assert found.mean_ranks == {"a": 1.5, "b": 1.5, "c": 3}
    assert friedman(scores((1, 1, 1), (0, 0, 0))).p == 1


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (scores((1, 2), (1, 2)), "at least 2 scenarios .* and 3 strategies .* got 2 and 2"),
        (scores((1, 2, 3)), "got 1 and 3"),
        (scores((1, 2, float("nan")), (1, 2, 3)), "missing cells"),
        (scores((1, 2, 3), (1, 2, 3)).set_axis(["mnist", "mnist"]), "each scenario and strategy once"),
        (scores((1, 2, 3), (1, 2, 3)).set_axis(["a", "a", "b"], axis=1), "each scenario and strategy once"),
    ],
)
def test_what_cannot_be_ranked_is_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        friedman(frame)
