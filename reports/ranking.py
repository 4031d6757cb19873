"""Strategies over several scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports import compare, figures, ranks, recipes


@dataclass(frozen=True, eq=False)
class Ranking:
    """Strategies over several scenarios.

    Attributes:
        ranks: what Friedman's test and the critical difference say.
        figure: of these.
        scenarios: that were ranked, one observation each.
        notes: sentences on what was left out.
    """

    ranks: ranks.Ranks
    figure: figures.Drawn
    scenarios: list[str]
    notes: list[str]


def ranking(sections: Sequence[tuple[str, pd.DataFrame]], cast: figures.Cast) -> Ranking | None:
    """Over scenarios, for the strategies that all of them have and that are not bounds; None where they are too few.

    Args:
        sections: title and runs of each recipe.
        cast: of the report.
    """
    by_scenario: dict[str, pd.DataFrame] = {}
    for title, runs in sections:
        # A section without the field is a scenario of its own; of several recipes of one, the first counts.
        by_scenario.setdefault(recipes.shared(runs).get("scenario", title), runs)
    means = {
        scenario: compare.finished(runs).groupby("strategy")["average_accuracy"].mean()
        for scenario, runs in by_scenario.items()
    }
    every = pd.DataFrame(means).T
    scores = every.dropna(axis="columns")
    scores = scores[[label for label in cast.names if label in scores and not compare.is_bound(label)]]
    if len(by_scenario) < 2 or scores.shape[1] < 3:
        return None
    found = ranks.friedman(scores)
    drawn = figures.critical_difference(found.mean_ranks, found.critical_difference, found.groups, len(scores), cast)
    missing = [
        cast.names[label] for label in cast.names if label in every and label not in every.dropna(axis="columns")
    ]
    notes = [f"Left out, since not every scenario has runs of them: {'; '.join(missing)}."] if missing else []
    bounds = [cast.names[label] for label in cast.names if label in every and compare.is_bound(label)]
    notes += [f"Not ranked, as a bound: {'; '.join(bounds)}."] if bounds else []
    if len(by_scenario) < len(sections):
        notes.append("Of a scenario with several sections the first is ranked: one scenario is one observation.")
    return Ranking(found, drawn, list(by_scenario), notes)
