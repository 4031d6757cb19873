"""Means over runs with their intervals, for everything that shows one. NumPy and SciPy only.

A run is the unit, as in `reports.statistics`, which has the paired tests. Why these intervals: docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
Kind = Literal["t", "trimmed t", "too few", "no spread"]

NAN = float("nan")
NONE, MINUS = "–", "−"
CONFIDENCE = 0.95
# Accuracies are quotients: equal in exact arithmetic, they differ by rounding. What is closer than this share of the
# largest value is equal. One image of 10 000, averaged over 100 tasks, is a million times more.
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean over n runs with its 95% confidence interval.

    `kind` says where the bounds come from, `t` (Student) or `trimmed t` (Tukey and McLaughlin), or why they are NaN:
    `too few` values (n < 2), or `no spread`, all values equal. A width of zero would claim certainty, where n equal
    values say only that other values are not frequent.
    """

    mean: float
    low: float
    high: float
    n: int
    kind: Kind


def mean_interval(values: ArrayLike) -> Interval:
    """Mean with Student's t interval: x̄ ± t_{n-1} s / √n, s with ddof 1; not clipped to the range of an accuracy.

    Args:
        values: one a run, shape (n,), finite. No values have a mean of NaN.

    Raises:
        ValueError: values that are not finite or not one-dimensional.
    """
    x = checked(values)
    return student(x, rounding(x))


def number(share: float, *, signed: bool = False) -> str:
    """`−1.2` of -0.012: in per cent or points, with a minus that is as wide as a plus, and without a negative zero.

    Args:
        share: NaN is a dash.
        signed: a difference: one above zero has a plus.
    """
    if math.isnan(share):
        return NONE
    value = round(100 * share, 1) + 0.0
    return f"{'+' if signed and value > 0 else ''}{value:.1f}".replace("-", MINUS)


def percent(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    """`77.2 ± 0.6`: as `number`, with half the width of the interval where it has bounds."""
    return number(mean, signed=signed) + ("" if math.isnan(low) else f" ± {50 * (high - low):.1f}")


def checked(values: ArrayLike) -> Array:
    """Values as an array; argument as for `mean_interval`.

    Raises:
        ValueError: as `mean_interval` says.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(
            f"values: expected one finite number a run, got shape {x.shape} with {np.sum(~np.isfinite(x))} not finite; "
            "average over tasks, leave out runs that did not finish and count them"
        )
    return x


def rounding(x: Array) -> float:
    """Differences of values up to this are rounding."""
    return TOLERANCE * float(np.abs(x).max(initial=0.0))


def student(x: Array, resolution: float) -> Interval:
    """Student's interval of the mean.

    Args:
        x: values, shape (n,).
        resolution: see `rounding`; of the values that x are differences of, where they are.
    """
    n = len(x)
    if n < 2:
        return Interval(float(x[0]) if n else NAN, NAN, NAN, n, "too few")
    spread = x.std(ddof=1) if np.ptp(x) > resolution else 0.0
    return bounds(x.mean(), spread / math.sqrt(n), n - 1, n, "t")


def bounds(mean: float, error: float, degrees: int, n: int, kind: Kind) -> Interval:
    """Mean ± t · error; without an error no bounds.

    Args:
        mean: of n values.
        error: its standard error.
        degrees: of freedom of t.
        n: values.
        kind: of the interval, where it has bounds.
    """
    if error == 0:
        return Interval(float(mean), NAN, NAN, n, "no spread")
    half = float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2) * error)
    return Interval(float(mean), float(mean) - half, float(mean) + half, n, kind)
