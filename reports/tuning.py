"""What a study chose, what it promised on validation images, and what the test gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmark.intervals import NONE, number, percent
from reports import compare, measures, names, studies
from reports.figures import Cast, Drawn
from reports.figures.labels import LOST
from reports.load import TRIALS, Overview
from reports.measures import LOWER_IS_BETTER
from reports.table import Table

NEAR = 0.01  # a setting this close to the best counts as as good: one point
ORACLE = "test-oracle"
ON_TEST, PARTLY = "TUNED ON TEST.", "PARTLY TUNED ON TEST."
PROTOCOLS = {
    "validation": "λ was chosen on a validation split of the training set; the chosen setting was then trained on the "
    "whole training set with seeds that no trial used, and tested once",
    "first-k": "λ was chosen on the first tasks of the sequence; the remaining ones are reported",
    "plasticity-first": "λ was taken as large as leaves new tasks learnable, judged on a validation split",
    "two-dataset": "λ was chosen on another scenario, which the trials name",
    ORACLE: "TUNED ON TEST: λ was chosen on the very test images that are reported: an upper bound, no result",
}


@dataclass(frozen=True)
class Origin:
    """Where the settings of a section's strategies come from, as runs, labels and overviews say: no table is needed.

    Attributes:
        strategies: labels of all.
        tuned: those that a study chose.
        on_test: those of them that were chosen on the test set.
    """

    strategies: frozenset[str]
    tuned: frozenset[str]
    on_test: frozenset[str]

    @property
    def mark(self) -> str:
        """What everything that shows these strategies has to say; empty where none was tuned on the test set."""
        return (ON_TEST if self.on_test == self.strategies else PARTLY) if self.on_test else ""


@dataclass(frozen=True, eq=False)
class Tuning:
    """How the settings of a study were chosen.

    Attributes:
        study: its name.
        protocol: in words.
        on_test: the test set was used.
        table: a row a strategy and objective.
    """

    study: str
    protocol: str
    on_test: bool
    table: Table


def origin(overviews: Mapping[str, Overview], runs: pd.DataFrame) -> Origin:
    """Which settings were chosen by a study, and which on the test set.

    Args:
        overviews: by run id.
        runs: of one recipe.
    """
    by_label: dict[str, set[str]] = {}
    for row in runs.to_dict("records"):
        overview = overviews.get(str(row["overview"]))
        told = [row.get("protocol"), overview.settings.get("protocol") if overview else None]
        by_label.setdefault(str(row["strategy"]), set()).update(
            {_protocol(each) for each in told} | {_protocol(each) for each in names.remark(row["strategy"]).split(";")}
        )
    tuned = {label for label, protocols in by_label.items() if protocols & PROTOCOLS.keys()}
    on_test = {label for label, protocols in by_label.items() if ORACLE in protocols}
    return Origin(frozenset(by_label), frozenset(tuned), frozenset(on_test))


def _protocol(told: object) -> str:
    """Its name: `test-oracle, tuned on test` is how labels and tables of results give one."""
    return told.partition(",")[0].strip() if isinstance(told, str) else ""


def readable(overview: Overview) -> bool:
    """Whether the tables of a study are there that say what it chose."""
    return {"trials", "search_space"} <= overview.trials.keys()


def stems(overviews: Mapping[str, Overview]) -> dict[str, str]:
    """What the names of each study's tables and figures begin with, by run id: nothing where there is one study.

    Args:
        overviews: by run id.
    """
    found: dict[str, str] = {}
    for run_id, overview in overviews.items():
        if overview.study:
            alike = [other for other in found if overviews[other].study == overview.study]
            found[run_id] = f"{overview.study}{f'-no{len(alike) + 1}' if alike else ''}_"
    return found if len(found) > 1 else dict.fromkeys(found, "")


def tunings(
    overviews: Mapping[str, Overview], runs: pd.DataFrame, accuracy: pd.DataFrame, spoken: Mapping[str, str]
) -> list[Tuning]:
    """One a study whose tables of trials are there.

    Args:
        overviews: by run id.
        runs: that test the choice.
        accuracy: of the same.
        spoken: names by label.
    """
    measured = compare.with_objectives(runs, accuracy)
    parts = stems(overviews)
    return [
        _tuning(overviews[run_id], measured, spoken, stem)
        for run_id, stem in parts.items()
        if readable(overviews[run_id])
    ]


def _tuning(overview: Overview, runs: pd.DataFrame, spoken: Mapping[str, str], stem: str) -> Tuning:
    trials, protocol = overview.trials["trials"], _protocol(overview.settings.get("protocol"))
    objectives = overview.settings["objective"].split(", ")
    searched = [name for name in overview.trials["search_space"]["param"].unique() if name in trials]
    rows = [
        _row(str(label), own, objective, searched, runs[runs["strategy"] == label])
        for label, own in trials.groupby("strategy", sort=False)
        for objective in objectives
    ]
    several = len(objectives) > 1
    header = ["strategy", "best setting", "trials", *(["objective"] if several else []), "promised", "tested", "gap"]
    shown = [[spoken.get(row["strategy"], row["strategy"]), *_cells(row, several=several)] for row in rows]
    on_test = protocol == ORACLE
    what = "value of each objective" if several else measures.spoken(objectives[0])
    study = f"Study {overview.study}. " if stem else ""
    caption = (
        f"{study}The setting chosen for each strategy: its mean {what} over tuning seeds, in per cent, and that of "
        f"{'the same' if on_test else 'fresh'} seeds on the test set (± half the width of the 95% "
        "interval, Student's t)."
    )
    table = Table(
        f"{stem}tuning", caption, [*header, "λ within 1 point", "training"], shown,
        pd.DataFrame(rows), frozenset({1, 3} if several else {1}),
    )  # fmt: skip
    return Tuning(overview.study, PROTOCOLS.get(protocol, protocol), on_test, table)


def drawn(overviews: Mapping[str, Overview], cast: Cast) -> dict[str, Drawn]:
    """Figures of trials, by name, of each study whose tables are there.

    Args:
        overviews: by run id.
        cast: of the report.
    """
    found: dict[str, Drawn] = {}
    for run_id, stem in stems(overviews).items():
        overview = overviews[run_id]
        if set(TRIALS) - overview.trials.keys():
            continue
        objectives = overview.settings["objective"].split(", ")
        directions = {name: "minimize" if name in LOWER_IS_BETTER else "maximize" for name in objectives}
        on_test = overview.settings.get("protocol") == ORACLE
        made = studies.drawn(overview.trials, directions, tuned_on_test=on_test, cast=cast)
        of = f"Study {overview.study}. " if stem else ""
        found |= {
            f"study_{stem}{name}": dataclasses.replace(shown, caption=of + shown.caption)
            for name, (shown, _) in made.items()
        }
    return found


def _row(label: str, trials: pd.DataFrame, objective: str, searched: list[str], runs: pd.DataFrame) -> dict[str, Any]:
    complete = trials[trials["state"] == "complete"]
    row: dict[str, Any] = {
        "strategy": label,
        "objective": objective,
        "trials": len(trials),
        **{state: int((trials["state"] == state).sum()) for state in ("complete", *LOST)},
        "seconds": float(trials["seconds"].sum()),
    }
    best = complete[complete["best"].astype(bool)]
    if best.empty:
        return row | {"setting": NONE}
    chosen = best.iloc[0]
    setting = ", ".join(names.option(k, names.setting(chosen[k])) for k in searched if pd.notna(chosen[k]))
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


def _cells(row: Mapping[str, Any], *, several: bool) -> list[str]:
    def value(name: str) -> float:
        return float(row.get(name, float("nan")))

    lost = [f"{row[state]} {state}" for state in LOST if row[state]]
    flat = NONE
    if "lam_near_low" in row:
        flat = " to ".join(dict.fromkeys(names.number(f"{value(f'lam_near_{end}'):.3g}") for end in ("low", "high")))
    return [
        str(row["setting"]),
        str(row["trials"]) + (f" ({', '.join(lost)})" if lost else ""),
        *([measures.spoken(row["objective"])] if several else []),
        number(value("promised")),
        percent(value("tested_mean"), value("tested_low"), value("tested_high")),
        number(value("gap"), signed=True),
        flat,
        f"{value('seconds'):.0f} s",
    ]
