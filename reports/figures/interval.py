"""Mean over seeds with a 95% interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

KIND = "95% Student t interval"


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, NaN where one value leaves it open."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike) -> Interval:
    """Mean ± t₀.₉₇₅(n−1)·s/√n over the values that are finite."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    half = _quantile(n) * float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Interval(mean, mean - half, mean + half, n)


@cache
def _quantile(n: int) -> float:
    return float(t.ppf(0.975, n - 1))
