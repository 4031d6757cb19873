"""How often the intervals of `reports.statistics` cover, and how often its test rejects what is true: simulated.

`python -m tests.coverage_simulation` prints the tables of docs/statistics.md; it takes a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special, stats
from tabulate import tabulate

from reports.statistics import Interval, iqm, mean_interval, paired

Array = NDArray[np.float64]

REPETITIONS = 2000
LEADERS = 4000  # samples of several strategies, whose tests are done all at once


def collapsing(u: Array) -> Array:
    """0.90 ± 0.01, but 0.50 ± 0.01 for a seed that collapses, which one of ten does."""
    collapsed = np.less(u, 0.1)
    within = np.where(collapsed, np.multiply(u, 10), np.subtract(u, 0.1) / 0.9)
    return np.where(collapsed, 0.5, 0.9) + 0.01 * special.ndtri(within)


# As quantile functions: samples are made of uniform numbers, expectations are integrals over (0, 1).
DISTRIBUTIONS: dict[str, Callable[[Array], Array]] = {
    "normal": special.ndtri,
    "near the ceiling": lambda u: np.power(u, 1 / 50),  # Beta(50, 1): mean 0.98
    "one seed of ten collapses": collapsing,
    "heavy tails": lambda u: special.stdtrit(3, u),  # Student's t of 3 degrees
    "one long tail": lambda u: -np.log1p(-u),  # exponential
}
INTERVALS: dict[str, tuple[Callable[[Array], Interval], float]] = {  # and the middle share whose mean they are about
    "mean": (mean_interval, 1),
    "interquartile mean": (iqm, 0.5),
}
BOOTSTRAPS: dict[str, tuple[Callable[..., Array], float]] = {  # for contrast: reports use none
    "BCa": (np.mean, 1),
    "percentile": (partial(stats.trim_mean, proportiontocut=0.25), 0.5),
}


def samples(name: str, n: int) -> Array:
    """Shape (REPETITIONS, n); the same for one name and n."""
    uniform = np.random.default_rng([n, *name.encode()]).random((REPETITIONS, n))
    return np.asarray(DISTRIBUTIONS[name](uniform))


def truth(name: str, share: float = 1) -> float:
    """Mean of that middle share of the distribution: of all for 1, the interquartile mean for ½."""
    low, high = (1 - share) / 2, (1 + share) / 2
    jump = [0.1] if low < 0.1 else None
    return float(integrate.quad(DISTRIBUTIONS[name], low, high, points=jump, limit=500)[0]) / share


def coverage(method: str, name: str, n: int) -> float:
    """Per cent of samples whose interval contains the truth; one without bounds does not."""
    interval, share = INTERVALS[method]
    found, expected = [interval(values) for values in samples(name, n)], truth(name, share)
    return 100 * float(np.mean([i.low <= expected <= i.high for i in found]))


def difference_coverage(name: str, n: int) -> float:
    """The same of the mean difference of n pairs drawn alike, which is zero."""
    found = [mean_interval(values[:n] - values[n:]) for values in samples(name, 2 * n)]  # paired's, without its test
    return 100 * float(np.mean([i.low <= 0 <= i.high for i in found]))


def bootstrap_coverage(method: str, name: str, n: int) -> float:
    """The same of a bootstrap interval: BCa of the mean, percentile of the interquartile mean."""
    statistic, share = BOOTSTRAPS[method]
    x, draws, expected = samples(name, n), np.random.default_rng(n), truth(name, share)
    bootstrap = stats.bootstrap((x,), statistic, axis=1, n_resamples=1999, method=method, batch=50, random_state=draws)
    low, high = bootstrap.confidence_interval
    return 100 * float(np.mean((low <= expected) & (expected <= high)))


def exchangeable_rejections(name: str, n: int) -> float:
    """Per cent of p at most 5% where treatment and baseline are drawn alike, so that every rejection is false."""
    both = samples(name, 2 * n)
    return 100 * float(np.mean([paired(values[:n], values[n:]).p <= 0.05 for values in both]))


def centred_rejections(name: str, n: int) -> float:
    """The same where the differences themselves have the distribution, shifted to mean zero."""
    differences = samples(name, n) - truth(name)
    return 100 * float(np.mean([paired(d, np.zeros(n)).p <= 0.05 for d in differences]))


def signs(n: int) -> Array:
    """All patterns of n signs but for turning all of them, shape (2^(n-1), n)."""
    patterns = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
    return np.asarray(1.0 - 2 * patterns)


def many_p(differences: Array) -> Array:
    """The paired test's p of each row of differences, as `paired` has it where no two sums are equal.

    Args:
        differences: shape (..., n), of a continuous distribution.
    """
    flat = differences.reshape(-1, differences.shape[-1])
    least = np.abs(flat.sum(axis=1)) * (1 - 1e-9)
    patterns = signs(flat.shape[1])
    found = [np.mean(np.abs(patterns @ row) >= bound) for row, bound in zip(flat, least, strict=True)]
    return np.reshape(found, differences.shape[:-1])


def smallest_holm(p: Array) -> Array:
    """The least of the adjusted p of each row, which is that of the least p: m times as large."""
    return np.minimum(p.shape[-1] * p.min(axis=-1), 1)


def leader_rejections(k: int, n: int) -> float:
    """Per cent of samples of k strategies alike in which some strategy is told apart from the one of the best mean."""
    runs = np.random.default_rng([k, n]).standard_normal((LEADERS, k, n))
    best = runs.mean(axis=2).argmax(axis=1)[:, None]
    others = np.array([np.setdiff1d(np.arange(k), leader) for leader in best])
    differences = runs[np.arange(LEADERS)[:, None], others] - runs[np.arange(LEADERS)[:, None], best]
    return 100 * float(np.mean(smallest_holm(many_p(differences)) <= 0.05))


def coverage_table(sizes: tuple[int, ...] = (3, 4, 5, 8, 10, 30)) -> str:
    """Markdown: coverage in per cent."""
    measures = {
        "mean": partial(coverage, "mean"),
        "mean, BCa bootstrap": partial(bootstrap_coverage, "BCa"),
        "interquartile mean": partial(coverage, "interquartile mean"),
        "interquartile mean, bootstrap": partial(bootstrap_coverage, "percentile"),
        "paired difference": difference_coverage,
    }
    rows = [
        [name, method, *(round(measure(name, n)) for n in sizes)]
        for name in list(DISTRIBUTIONS)[:3]
        for method, measure in measures.items()
    ]
    return tabulate(rows, ["runs", "interval", *(f"n = {n}" for n in sizes)], tablefmt="github")


def rejection_table(sizes: tuple[int, ...] = (5, 10, 20)) -> str:
    """Markdown: false positives at 5%, in per cent."""
    rows = [[name, "alike", *(f"{exchangeable_rejections(name, n):.1f}" for n in sizes)] for name in DISTRIBUTIONS]
    for name in ("one long tail", "one seed of ten collapses"):
        rows.append([name, "differences themselves", *(f"{centred_rejections(name, n):.1f}" for n in sizes)])
    return tabulate(
        rows, ["distribution", "of", *(f"n = {n}" for n in sizes)], tablefmt="github", disable_numparse=True
    )


def leader_table(sizes: tuple[int, ...] = (8, 10, 12, 15), strategies: tuple[int, ...] = (2, 3, 5, 11)) -> str:
    """Markdown: how often some of the strategies, all alike, is told apart from the best of the data, in per cent."""
    rows = [["all alike", f"{k} strategies", *(f"{leader_rejections(k, n):.1f}" for n in sizes)] for k in strategies]
    return tabulate(rows, ["runs", "of", *(f"n = {n}" for n in sizes)], tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    print(coverage_table(), rejection_table(), leader_table(), sep="\n\n")
