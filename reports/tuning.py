"""What a study chose, what it promised on validation images, and what the test gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import compare, names
from reports.figures.labels import LOST
from reports.load import Overview
from reports.measures import LOWER_IS_BETTER
from reports.numbers import NONE, percent, points
from reports.table import Table

NEAR = 0.01  # a setting this close to the best counts as as good: one point
ON_TEST = "TUNED ON TEST."
PROTOCOLS = {
    "validation": "λ was chosen on a validation split of the training set; the chosen setting was then trained on the "
    "whole training set with seeds that no trial used, and tested once",
    "first-k": "λ was chosen on the first tasks of the sequence; the remaining ones are reported",
    "plasticity-first": "λ was taken as large as leaves new tasks learnable, judged on a validation split",
    "two-dataset": "λ was chosen on another scenario, which the trials name",
    "test-oracle": "TUNED ON TEST: λ was chosen on the very test images that are reported: an upper bound, no result",
}


@dataclass(frozen=True, eq=False)
class Tuning:
    """How the settings of a study were chosen.

    Attributes:
        protocol: in words.
        on_test: the test set was used.
        table: a row a strategy.
    """

    protocol: str
    on_test: bool
    table: Table


def tuning(overview: Overview, runs: pd.DataFrame, spoken: Mapping[str, str]) -> Tuning | None:
    """Of a study; None for an experiment, and where the trials' table is not there.

    Args:
        overview: that the runs are tied to.
        runs: that test the choice.
        spoken: names by label.
    """
    trials = overview.trials.get("trials")
    if not overview.study or trials is None:
        return None
    protocol = overview.settings.get("protocol", "")
    objective = overview.settings["objective"].split(", ")[0]
    searched = [name for name in overview.trials["search_space"]["param"].unique() if name in trials]
    rows = [
        _row(str(label), own, objective, searched, runs[runs["strategy"] == label])
        for label, own in trials.groupby("strategy", sort=False)
    ]
    frame = pd.DataFrame(rows)
    header = ["strategy", "best setting", "trials", "promised", "tested", "gap", "λ within 1 point", "training"]
    shown = [[spoken.get(row["strategy"], row["strategy"]), *_cells(row)] for row in rows]
    on_test = protocol == "test-oracle"
    caption = (
        f"The setting chosen for each strategy: its mean {objective.replace('_', ' ')} over tuning seeds, in per "
        f"cent, and that of {'the same' if on_test else 'fresh'} seeds on the test set (± half the width of the 95% "
        "interval, Student's t)."
    )
    words = PROTOCOLS.get(protocol, protocol)
    return Tuning(words, on_test, Table("tuning", caption, header, shown, frame, frozenset({1})))


def _row(label: str, trials: pd.DataFrame, objective: str, searched: list[str], runs: pd.DataFrame) -> dict[str, Any]:
    complete = trials[trials["state"] == "complete"]
    row: dict[str, Any] = {
        "strategy": label,
        "trials": len(trials),
        **{state: int((trials["state"] == state).sum()) for state in ("complete", *LOST)},
        "seconds": float(trials["seconds"].sum()),
    }
    best = complete[complete["best"].astype(bool)]
    if best.empty:
        return row | {"setting": NONE}
    chosen = best.iloc[0]
    setting = ", ".join(
        names.option(k, f"{chosen[k]:.3g}" if isinstance(chosen[k], float) else str(chosen[k]))
        for k in searched
        if pd.notna(chosen[k])
    )
    row |= {"setting": setting, "promised": float(chosen[objective])}
    tested = compare.summary(runs, [objective]) if objective in runs else pd.DataFrame()
    if len(tested):
        row |= {f"tested_{k}": tested[k].iloc[0] for k in ("n", "mean", "low", "high")}
        row["gap"] = row["tested_mean"] - row["promised"]
    if "lam" in complete and complete["lam"].notna().any():
        loss = complete[objective] - chosen[objective]
        near = complete.loc[(loss if objective in LOWER_IS_BETTER else -loss) <= NEAR, "lam"].astype(float)
        row |= {"lam_near_low": near.min(), "lam_near_high": near.max()}
    return row


def _cells(row: Mapping[str, Any]) -> list[str]:
    def value(name: str) -> float:
        return float(row.get(name, float("nan")))

    lost = [f"{row[state]} {state}" for state in LOST if row[state]]
    flat = NONE
    if "lam_near_low" in row:
        flat = " to ".join(dict.fromkeys(names.number(f"{value(f'lam_near_{end}'):.3g}") for end in ("low", "high")))
    return [
        str(row["setting"]),
        str(row["trials"]) + (f" ({', '.join(lost)})" if lost else ""),
        percent(value("promised"), float("nan"), float("nan")),
        percent(value("tested_mean"), value("tested_low"), value("tested_high")),
        points(value("gap")),
        flat,
        f"{value('seconds'):.0f} s",
    ]
