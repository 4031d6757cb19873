"""Intervals and paired tests of runs: against brute force, SciPy, hand-worked values and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reports import statistics
from reports.statistics import holm, iqm, mean_interval, paired
from tests import coverage_simulation

NAN = float("nan")
DOCS = Path(__file__).parent.parent / "docs" / "statistics.md"
IMAGES = 10_000  # of a test set: accuracies are counts of these

counts = st.integers(9_690, 9_710)  # close together, so that sums of differences tie
pairs_of_counts = st.lists(st.tuples(counts, counts), min_size=1, max_size=8)
samples = st.lists(st.integers(0, 1000), min_size=2, max_size=20)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def accuracies(pairs):
    treatment, baseline = np.array(pairs).T
    return treatment / IMAGES, baseline / IMAGES


def enumerated(pairs):
    """The sign-flip test by its definition, in integers."""
    differences = [a - b for a, b in pairs]
    flips = itertools.product((1, -1), repeat=len(pairs))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return Fraction(sum(s >= abs(sum(differences)) for s in sums), len(sums))


# Intervals


@given(values=samples)
def test_the_interval_of_a_mean_is_that_of_student(values):
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-300))
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), len(values))
    if len(set(values)) > 1:
        assert (found.low, found.high, found.kind) == (pytest.approx(low), pytest.approx(high), "t")


@pytest.mark.parametrize("estimate", [mean_interval, iqm])
@given(values=samples, scale=st.floats(0.01, 100), shift=st.integers(-1000, 1000))
def test_an_interval_moves_and_grows_with_the_values(estimate, values, scale, shift):
    before, after = estimate(values), estimate(scale * (np.array(values) + shift))
    assert after.kind == before.kind
    for bound in ("mean", "low", "high"):
        expected = scale * (getattr(before, bound) + shift)
        assert getattr(after, bound) == pytest.approx(expected, rel=1e-9, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("estimate", [mean_interval, iqm])
def test_one_value_has_no_interval_and_none_have_no_mean(estimate):
    one, none = estimate([0.9]), estimate([])
    assert (one.mean, one.n, one.kind) == (0.9, 1, "too few")
    assert math.isnan(none.mean) and (none.n, none.kind) == (0, "too few")
    assert all(math.isnan(bound) for found in (one, none) for bound in (found.low, found.high))


@pytest.mark.parametrize("estimate", [mean_interval, iqm])
@pytest.mark.parametrize("values", [[0.3] * 5, [0.1 + 0.2, 0.3, 0.3, 0.3], [0.0] * 3])
def test_equal_values_have_no_interval_of_zero_width(estimate, values):
    found = estimate(values)
    assert found.mean == pytest.approx(values[0])
    assert math.isnan(found.low) and math.isnan(found.high) and found.kind == "no spread"


@pytest.mark.parametrize("estimate", [mean_interval, iqm])
@pytest.mark.parametrize("values", [[0.1, NAN], [0.1, math.inf], [[0.1, 0.2], [0.3, 0.4]], 0.5])
def test_what_is_not_one_finite_number_a_run_is_refused(estimate, values):
    with pytest.raises(ValueError, match="one finite number a run"):
        estimate(values)


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_interquartile_mean_is_scipys_trimmed_mean(values):
    assert iqm(values).mean == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-12)


def test_the_interval_of_an_interquartile_mean_is_as_worked_out_by_hand():
    # n = 8 cuts two on either side: 3, 4, 6, 7 are kept, and 3, 3, 3, 4, 6, 7, 7, 7 are the winsorised values.
    found = iqm([100, 3, 7, 6, 4, 2, 1, 8])
    spread = np.sqrt(((3 - 5) ** 2 * 3 + (4 - 5) ** 2 + (6 - 5) ** 2 + (7 - 5) ** 2 * 3) / 7)
    half = stats.t.ppf(0.975, 3) * spread / (0.5 * np.sqrt(8))
    assert (found.mean, found.n, found.kind) == (5, 8, "trimmed t")
    assert (found.low, found.high) == (pytest.approx(5 - half), pytest.approx(5 + half))


def test_fewer_than_four_values_are_not_trimmed():
    assert iqm([0.1, 0.2, 0.9]) == mean_interval([0.1, 0.2, 0.9])
    assert iqm([0.1, 0.2, 0.3, 0.9]).kind == "trimmed t"


# Paired comparisons


@given(pairs=pairs_of_counts)
def test_p_is_that_of_every_sign_flip_in_exact_arithmetic(pairs):
    found = paired(*accuracies(pairs))
    moved = sum(a != b for a, b in pairs)
    assert found.p == float(enumerated(pairs)) and found.exact
    assert found.smallest_p == (2 / 2**moved if moved else 1.0) <= found.p


def test_sums_that_differ_by_rounding_are_ties():
    treatment, baseline = [9701, 9702, 9702, 9704, 9702, 9702], [9703, 9703, 9700, 9705, 9702, 9701]
    t, b = np.array(treatment) / IMAGES, np.array(baseline) / IMAGES
    flips = np.array(list(itertools.product((1, -1), repeat=6)))
    assert np.mean(abs((flips * (t - b)).mean(axis=1)) >= abs((t - b).mean())) == 0.6875  # what rounding makes of it
    assert enumerated(list(zip(treatment, baseline, strict=True))) == 1
    assert paired(t, b).p == 1


@pytest.mark.parametrize("n", [4, 7, 10])
def test_without_ties_p_is_scipys(n):
    x, y = np.random.default_rng(n).normal([[0.5], [0]], size=(2, n))
    reference = stats.permutation_test(
        (x, y), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert paired(x, y).p == reference.pvalue


@given(pairs=pairs_of_counts, scale=st.floats(1e-9, 1e9), data=st.data())
def test_p_does_not_depend_on_direction_scale_or_order_of_the_seeds(pairs, scale, data):
    treatment, baseline = accuracies(pairs)
    p = paired(treatment, baseline).p
    assert paired(baseline, treatment).p == p
    assert paired(scale * treatment, scale * baseline).p == p
    assert paired(*accuracies(data.draw(st.permutations(pairs)))).p == p


@given(pairs=pairs_of_counts)
def test_swapping_the_two_mirrors_difference_and_interval(pairs):
    treatment, baseline = accuracies(pairs)
    there, back = paired(treatment, baseline), paired(baseline, treatment)
    for one, other in [("difference", "difference"), ("low", "high"), ("high", "low")]:
        assert getattr(there, one) == pytest.approx(-getattr(back, other), abs=1e-15, nan_ok=True)
    within = mean_interval(treatment - baseline)
    if there.kind == "t":
        assert (there.low, there.high) == (within.low, within.high)


def test_three_seeds_and_five_cannot_decide_at_five_per_cent_and_six_can():
    smallest = {n: paired(np.arange(1, n + 1), np.zeros(n)) for n in (1, 2, 3, 5, 6)}
    assert {n: found.p for n, found in smallest.items()} == {1: 1, 2: 0.5, 3: 0.25, 5: 0.0625, 6: 0.03125}
    assert all(found.p == found.smallest_p for found in smallest.values())


def test_equal_differences_have_a_p_but_no_interval_and_no_difference_is_no_evidence():
    constant, none = paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]), paired([0.5, 0.6], [0.5, 0.6])
    assert (constant.kind, constant.p) == ("no spread", 0.25) and math.isnan(constant.low)
    assert (none.difference, none.p, none.smallest_p) == (0, 1, 1)


def test_without_common_seeds_there_is_no_p_to_count():
    found = paired([], [])
    assert found.n == 0 and math.isnan(found.p) and math.isnan(found.difference)


@pytest.mark.parametrize("together", [1, 5, 12])
def test_drawn_signs_come_to_the_exact_p(monkeypatch, together):
    rng = np.random.default_rng(4)
    examples = [rng.normal(shift, 1, 12) for shift in (0, 0.3, 0.7, 1)]
    exact = [paired(d, np.zeros(12)) for d in examples]
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 11)
    monkeypatch.setattr(statistics, "TOGETHER", together)
    drawn = [paired(d, np.zeros(12)) for d in examples]
    assert all(e.exact for e in exact) and not any(d.exact for d in drawn)
    for e, d in zip(exact, drawn, strict=True):
        assert abs(e.p - d.p) < 4 * math.sqrt(e.p * (1 - e.p) / statistics.DRAWS)
    assert drawn == [paired(d, np.zeros(12)) for d in examples]  # the generator is keyed


def test_many_seeds_are_tested_by_drawn_signs_and_p_is_never_zero():
    clear = paired(np.arange(1, 31), np.zeros(30))
    assert not clear.exact and clear.p == clear.smallest_p == 1e-5
    ties = paired(np.tile([1, -1], 15) / 3, np.zeros(30))
    assert ties.p == 1  # the observed sum is zero, which every other reaches
    few_moved = paired(np.r_[np.ones(5), np.zeros(40)], np.zeros(45))
    assert few_moved.exact and few_moved.p == 0.0625


def test_pairs_must_be_aligned_by_seed():
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired([1, 2, 3], [1, 2])
    one, other = pd.Series([1.0, 2.0], index=[0, 1]), pd.Series([1.0, 3.0], index=[1, 0])
    with pytest.raises(ValueError, match="index both by seed"):
        paired(one, other)
    assert paired(one, other.sort_index()).difference == -0.5
    with pytest.raises(ValueError, match="one finite number"):
        paired([1, NAN], [1, 2])


# Holm


def test_holm_is_as_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, NAN, 0.02]) == pytest.approx([0.02, NAN, 0.02], nan_ok=True)
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([]).shape == (0,) and np.isnan(holm([NAN])).all()


@given(p=p_values)
def test_holm_is_the_closed_test_of_bonferronis(p):
    """Adjusted p: the largest Bonferroni p of any set of hypotheses that this one belongs to."""
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    closed = [max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(len(p))]
    assert holm(p) == pytest.approx(closed)


@given(p=p_values)
def test_holm_keeps_the_order_and_never_lowers_a_p(p):
    adjusted = holm(p)
    assert np.all(adjusted >= p) and np.all(adjusted <= 1)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_holm_leaves_its_argument_alone_and_refuses_what_is_no_p():
    p = np.array([0.03, 0.5])
    holm(p)
    assert p.tolist() == [0.03, 0.5]
    with pytest.raises(ValueError, match=r"in \[0, 1\] or NaN"):
        holm([0.5, 1.5])


# Simulation: 2 000 repetitions each


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_the_interval_covers_what_it_says_on_normal_runs(n):
    assert 93 <= coverage_simulation.coverage("mean", "normal", n) <= 98


@pytest.mark.parametrize("name", coverage_simulation.DISTRIBUTIONS)
def test_the_paired_test_holds_its_level_whatever_the_distribution_of_the_runs(name):
    assert 2 <= coverage_simulation.exchangeable_rejections(name, 10) <= 6


def test_tests_done_all_at_once_are_the_paired_test_and_holms_adjustment():
    differences = np.random.default_rng(0).standard_normal((20, 4, 7)) + 0.5
    p = coverage_simulation.many_p(differences)
    assert p.tolist() == [[paired(d, np.zeros(7)).p for d in each] for each in differences]
    assert coverage_simulation.smallest_holm(p).tolist() == [holm(each).min() for each in p]


@pytest.mark.parametrize(("k", "low", "high"), [(2, 3, 6), (11, 8, 13)])
def test_of_many_strategies_alike_some_is_told_apart_from_the_best_too_often(k, low, high):
    assert low <= coverage_simulation.leader_rejections(k, 10) <= high


@pytest.mark.slow
def test_the_documented_tables_are_those_of_the_simulation():
    documented = [cells(line) for line in DOCS.read_text().splitlines() if line.startswith("|")]
    tables = (
        coverage_simulation.coverage_table(),
        coverage_simulation.rejection_table(),
        coverage_simulation.leader_table(),
    )
    for line in "\n".join(tables).splitlines():
        labels, numbers = cells(line)
        found = [row for name, row in documented if name == labels]
        assert len(found) == 1, labels
        assert found[0] == pytest.approx(numbers, abs=2), labels  # should another NumPy draw other samples


def cells(line):
    """Two labels and the numbers of a row of a Markdown table; rules and heads have no numbers."""
    first, second, *others = [cell.strip() for cell in line.strip().strip("|").split("|")]
    return (first, second), [float(cell) for cell in others if cell.replace(".", "").isdigit()]
