"""Ranks of strategies over several scenarios: who can be told apart from whom. NumPy, SciPy and pandas only.

A scenario is the unit here: its score is one number a strategy, such as the mean over that strategy's runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over scenarios, rank 1 the best; best first.

    `groups` are the largest sets of strategies, two or more, that are not told apart, each in the order of
    `mean_ranks`; a strategy may be in several. `smallest_p` is the least p that so many scenarios and strategies could
    have given.
    """

    mean_ranks: dict[str, float]
    statistic: float
    p: float
    smallest_p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]


def friedman(scores: pd.DataFrame, alpha: float = 0.05) -> Ranks:
    """Friedman's test over scenarios and Nemenyi's critical difference of mean ranks, as Demšar (2006) has it.

    In each scenario the strategies have ranks, the highest score rank 1, ties the average of theirs. Friedman's
    statistic, corrected for ties, is compared with χ² of k - 1 degrees. Two strategies are told apart if their mean
    ranks differ by CD = q_α √(k(k+1) / 6N) or more, with q_α the quantile of the studentized range over √2. Where
    Friedman's test does not reject at α, nothing is told apart: all strategies are one group.

    Args:
        scores: N >= 2 scenarios (rows) x k >= 3 strategies (columns), finite; higher is better.
        alpha: level of both tests.

    Raises:
        ValueError: too few scenarios or strategies, one of either twice, or scores that are not finite.

    References:
        Demšar 2006, https://jmlr.org/papers/v7/demsar06a.html
    """
    n, k = scores.shape
    if n < 2 or k < 3:
        raise ValueError(
            f"ranks: expected at least 2 scenarios (rows) and 3 strategies (columns), got {n} and {k}; "
            "compare two strategies, or one scenario, by their runs (reports.statistics.paired)"
        )
    if not (scores.index.is_unique and scores.columns.is_unique):
        raise ValueError("ranks: expected each scenario and strategy once; average over the runs of a scenario first")
    x = scores.to_numpy(dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("ranks: expected finite scores; leave out scenarios or strategies with missing cells")
    ranks = _ranks(x)
    tied = bool(np.all(ranks == ranks[:, :1]))  # the statistic would be 0 / 0
    statistic, p = (0.0, 1.0) if tied else map(float, stats.friedmanchisquare(*ranks.T))
    smallest_p = float(stats.chi2.sf(n * (k - 1), k - 1))  # every scenario ranks alike
    q = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    difference = q * math.sqrt(k * (k + 1) / (6 * n))
    means = ranks.mean(axis=0)
    best_first = np.argsort(means, kind="stable")
    mean_ranks = {str(scores.columns[i]): float(means[i]) for i in best_first}
    groups = _cliques(mean_ranks, difference) if p <= alpha else (tuple(mean_ranks),)
    return Ranks(mean_ranks, statistic, p, smallest_p, difference, groups)


def _ranks(scores: Array) -> Array:
    """Ranks in each row, 1 the highest score; scores that differ only by rounding are tied."""
    scale = np.maximum(np.abs(scores).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(stats.rankdata(-np.round(scores / scale, 12), axis=1), dtype=np.float64)


def _cliques(mean_ranks: dict[str, float], difference: float) -> tuple[tuple[str, ...], ...]:
    """Stretches of the ranking that lie within the difference, none inside another."""
    names, ranks = list(mean_ranks), np.array(list(mean_ranks.values()))
    found, reached = [], 0
    for start, rank in enumerate(ranks):
        end = int(np.sum(ranks < rank + difference))  # ranks ascend
        if end > max(reached, start + 1):
            found.append(tuple(names[start:end]))
        reached = end
    return tuple(found)
