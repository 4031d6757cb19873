"""The first settings of a search: a look at its whole space, before the sampler has anything to go by."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studies.ranges import Search

DECADES = 6  # a range that begins at 0 has no smallest decade: its grid goes down this many from its end


def grid(search: Search, points: int) -> list[dict[str, Any]]:
    """A first look at the whole space: log-spaced along λ, or else the first range, with 0 where it begins there.

    Args:
        search: whose space.
        points: how many settings.

    Returns:
        Settings; choices take turns, and all other ranges are at their geometric or arithmetic middle.
    """
    names = list(search.space)
    ranges = [name for name in names if not isinstance(search.space[name], CategoricalDistribution)]
    first = "lam" if "lam" in ranges else next(iter(ranges), None)
    settings = []
    for i in range(points):
        setting: dict[str, Any] = {}
        for name in names:
            distribution = search.space[name]
            if isinstance(distribution, CategoricalDistribution):
                setting[name] = distribution.choices[i % len(distribution.choices)]
            elif isinstance(distribution, FloatDistribution | IntDistribution):
                setting[name] = _spread(distribution, points)[i] if name == first else _middle(distribution)
        settings.append(setting)
    return settings


def _middle(distribution: FloatDistribution | IntDistribution) -> float:
    low, high = distribution.low, distribution.high
    middle = (low * high) ** 0.5 if distribution.log else (low + high) / 2
    return round(middle) if isinstance(distribution, IntDistribution) else middle


def _spread(distribution: FloatDistribution | IntDistribution, points: int) -> list[float]:
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        values = np.geomspace(low, high, points) if points > 1 else np.array([_middle(distribution)])
    elif distribution.low == 0 and points > 1:
        values = np.concatenate([[0.0], np.geomspace(high, high / 10**DECADES, points - 1)[::-1]])
    else:
        values = np.linspace(low, high, points)
    clipped = [min(max(float(v), low), high) for v in values]
    return [round(v) for v in clipped] if isinstance(distribution, IntDistribution) else clipped
