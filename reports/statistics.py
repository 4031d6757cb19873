"""Intervals and paired tests of runs: arrays in, small frozen results out. NumPy, SciPy and pandas only.

A run is the unit: one strategy trained with one seed. The T tasks of a run share its seed, its weights and its history,
so T accuracies are one observation, not T. Everything here takes one number a run, and nothing takes run x task cells:
average over the tasks of a run first. Runs that did not finish have no number: leave them out and say so
(`reports.density`). Comparisons over several scenarios are in `reports.ranks`.

Why these intervals and tests, and how well they hold, measured: docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from benchmark.intervals import Array, Interval, Kind, bounds, checked, mean_interval, rounding, student

__all__ = ["Array", "Interval", "Kind", "Paired", "holm", "iqm", "mean_interval", "paired"]

NAN = float("nan")
EXACT_UP_TO = 20  # differences: 2^19 sums, some milliseconds
DRAWS = 99_999  # random sign flips above that; the standard error of a p of 0.05 is then 0.0007
KEY = 1935  # of the generator that draws them
TOGETHER = 12  # differences whose signs are drawn as one: their 4 096 sums stay in a core's cache


@dataclass(frozen=True)
class Paired:
    """Mean difference over n common seeds, its 95% interval as in `Interval`, and the paired permutation test.

    `smallest_p` is the least p this test could have given: where it is above the level (with Holm: times the number of
    comparisons), the test cannot decide, whatever the difference. `exact` is False where signs were drawn.
    """

    difference: float
    low: float
    high: float
    n: int
    kind: Kind
    p: float
    smallest_p: float
    exact: bool


def iqm(values: ArrayLike) -> Interval:
    """Interquartile mean (Agarwal et al. 2021): the mean without the lowest and the highest ⌊n/4⌋ values.

    The interval is Tukey and McLaughlin's: IQM ± t_{h-1} s_w / (½√n), with h = n - 2⌊n/4⌋ values kept and s_w the
    standard deviation (ddof 1) of the values winsorised, that is clipped to the range of those kept. Fewer than four
    values are not trimmed: mean and interval are those of `mean_interval`, as `kind` says. It is about the mean of the
    middle half of all runs there could be, which for skewed values is not their mean.

    Args:
        values: as for `mean_interval`: one a run, not the run x task scores of the paper.

    Raises:
        ValueError: as for `mean_interval`.

    References:
        Agarwal et al. 2021, https://arxiv.org/abs/2108.13264; Tukey & McLaughlin 1963, Sankhyā A 25.
    """
    x = np.sort(checked(values))
    n, cut, resolution = len(x), len(x) // 4, rounding(x)
    if cut == 0:
        return student(x, resolution)
    kept = x[cut : n - cut]
    spread = np.clip(x, kept[0], kept[-1]).std(ddof=1) if np.ptp(kept) > resolution else 0.0
    return bounds(kept.mean(), spread / (0.5 * math.sqrt(n)), len(kept) - 1, n, "trimmed t")


def paired(treatment: ArrayLike, baseline: ArrayLike) -> Paired:
    """Treatment minus baseline, seed by seed: t interval of the mean, and the two-sided sign-flip permutation test.

    Under the null hypothesis the two values of a seed could as well be exchanged: each difference d_i has either sign.

        p = 2⁻ⁿ #{s ∈ {-1, 1}ⁿ : |Σ s_i d_i| ≥ |Σ d_i|}

    by enumeration for up to 20 differences that are not zero (a zero has no sign to flip, and drops out of p). For
    more, signs are drawn D = 99 999 times from a generator keyed by their number, and p = (1 + #{...}) / (1 + D)
    (Phipson & Smyth 2010). Sums that differ only by rounding count as equal.

    Args:
        treatment: one value a seed, shape (n,), finite.
        baseline: the same seeds in the same order; two pandas Series must have equal indexes.

    Returns:
        Without seeds, a difference and a p of NaN.

    Raises:
        ValueError: values that are not aligned, not finite or not one-dimensional.

    References:
        Fisher 1935, "The Design of Experiments"; Phipson & Smyth 2010, https://arxiv.org/abs/1603.05766
    """
    indexes = [values.index for values in (treatment, baseline) if isinstance(values, pd.Series)]
    if len(indexes) == 2 and not indexes[0].equals(indexes[1]):
        raise ValueError("paired values: the two Series have different indexes; index both by seed, the common ones")
    t, b = checked(treatment), checked(baseline)
    if t.shape != b.shape:
        raise ValueError(f"paired values: expected one of each for every seed, got {len(t)} and {len(b)}")
    resolution = rounding(np.concatenate([t, b]))
    mean = student(t - b, resolution)
    p, smallest_p, exact = _sign_flips(t - b, resolution)
    return Paired(mean.mean, mean.low, mean.high, mean.n, mean.kind, p if mean.n else NAN, smallest_p, exact)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjustment of m p-values: p̃_(i) = max_{j ≤ i} min(1, (m - j + 1) p_(j)), in the order given.

    Args:
        p_values: shape (any,). NaN stays NaN and does not count: m is the number of the others.

    Returns:
        Adjusted p-values: reject those at most α, and the probability of any false rejection is at most α.

    Raises:
        ValueError: a value outside [0, 1].

    References:
        Holm 1979, Scandinavian Journal of Statistics 6.
    """
    p = np.array(p_values, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p-values: expected numbers in [0, 1] or NaN, got {p.tolist()}")
    counted = np.flatnonzero(~np.isnan(p))
    ascending = counted[np.argsort(p[counted], kind="stable")]
    factors = np.arange(len(ascending), 0, -1)
    p[ascending] = np.minimum(np.maximum.accumulate(factors * p[ascending]), 1)
    return p


def _sign_flips(differences: Array, resolution: float) -> tuple[float, float, bool]:
    """The test's p, the smallest that could be, and whether they are exact."""
    d = differences[np.abs(differences) > resolution]
    m = len(d)
    if m == 0:
        return 1.0, 1.0, True
    least = abs(d.sum()) - m * resolution
    if m <= EXACT_UP_TO:
        sums = _signed_sums(d[1:], d[0])  # all signs turned give the same |sum|, so the first may stay as it is
        return float(np.mean(np.abs(sums) >= least)), 2.0 ** (1 - m), True
    draw = np.random.default_rng((KEY, m))
    sums = np.zeros(DRAWS)
    for start in range(0, m, TOGETHER):
        every = _signed_sums(d[start : start + TOGETHER])
        sums += every[draw.integers(len(every), size=DRAWS, dtype=np.uint16)]
    return float((1 + np.sum(np.abs(sums) >= least)) / (1 + DRAWS)), 1 / (1 + DRAWS), False


def _signed_sums(d: Array, start: float = 0.0) -> Array:
    """Σ s_i d_i + start for every s ∈ {-1, 1}^m, shape (2^m,)."""
    sums = np.array([start])
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return sums
