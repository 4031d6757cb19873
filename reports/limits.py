"""Limitations that the data themselves imply."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from reports import compare, names
from reports.density import Density
from reports.load import Overview
from reports.measures import COMPARED
from reports.numbers import p_value
from reports.tuning import Origin, readable

# Seeds. With fewer an interval leans on the normality of its values, which is said of a strategy alone; where several
# are compared, that the paired test cannot decide, as it cannot below six, is said instead.
FEW = 5
SWEEP = 2  # values of λ from which the best of a table is a choice


def limitations(
    runs: pd.DataFrame,
    accuracy: pd.DataFrame,
    differences: pd.DataFrame,
    cells: Density,
    overviews: Mapping[str, Overview],
    origin: Origin,
    spoken: Mapping[str, str],
) -> list[str]:
    """Sentences, the gravest first.

    Args:
        runs: of one recipe.
        accuracy: of the same.
        differences: of `compare.differences`.
        cells: which strategies finished with which seeds.
        overviews: that the runs are tied to.
        origin: which of the settings a study chose.
        spoken: names by label.
    """
    found = [
        _tuned_on_test(origin, spoken),
        _best_of_sweep(runs[~runs["strategy"].isin(origin.tuned)]),
        _few_seeds(runs, differences),
        _lost(cells),
        _batchnorm(runs),
        _trunk(runs),
        _unread(runs, accuracy),
        _unread_studies(overviews),
        _environments(overviews),
        _one_scenario(runs),
    ]
    return [said for said in found if said]


def _tuned_on_test(origin: Origin, spoken: Mapping[str, str]) -> str:
    if not origin.on_test:
        return ""
    which = (
        ""
        if origin.on_test == origin.strategies
        else " of " + "; ".join(name for label, name in spoken.items() if label in origin.on_test)
    )
    return (
        f"TUNED ON TEST: the settings{which} were chosen on the test images that are reported. These numbers are upper "
        "bounds."
    )


def _best_of_sweep(runs: pd.DataFrame) -> str:
    if swept := names.sweeps(runs["strategy"].unique(), SWEEP):
        listed = ", ".join(names.spoken(family) for family in swept)
        return (
            f"Several λ of {listed} are in the table, all measured on the test set: to quote the best is to tune on "
            "the test set. A study chooses λ on other images (forgetbench study)."
        )
    if "lam" in runs and runs["lam"].notna().any():
        return "λ was not tuned: another value may do better (forgetbench study)."
    return ""


def _few_seeds(runs: pd.DataFrame, differences: pd.DataFrame) -> str:
    counts = compare.finished(runs).groupby("strategy")["seed"].nunique()
    if counts.empty:
        return ""
    if counts.max() < 2:
        return "One seed: there is no interval, and no difference can be told from chance."
    undecided = compare.undecidable(differences) if len(differences) else differences
    if len(undecided) and not compare.any_decidable(differences):
        return (
            f"Few seeds: with n = {undecided['n'].max()} the paired permutation test cannot reach p ≤ 0.05 here (its "
            f"smallest adjusted p is {p_value(undecided['smallest_p_holm'].min())}), and Student's t intervals lean on "
            "normality."
        )
    said = f"Few seeds: n = {counts.min()}, intervals lean on normality." if counts.min() < FEW else ""
    return " ".join(part for part in (said, _undecided(undecided)) if part)


def _undecided(undecided: pd.DataFrame) -> str:
    """Which comparisons the test cannot decide, where it can decide others."""
    if undecided.empty:
        return ""
    by_strategy = undecided.groupby("strategy", sort=False)["metric"].agg(list)
    listed = "; ".join(
        f"{names.spoken(str(label))} ({', '.join(COMPARED[metric] for metric in metrics)})"
        for label, metrics in by_strategy.items()
    )
    return f"Too few common seeds that differ for the paired permutation test to reach p ≤ 0.05: {listed}."


def _lost(cells: Density) -> str:
    lost = cells.lost
    if lost.empty:
        return ""
    counts = ", ".join(f"{many} {status}" for status, many in lost["status"].value_counts().items())
    return (
        f"{len(lost)} of {cells.cells.size} runs have no result ({counts}). Means are over runs that finished, which "
        "flatters a strategy that is lost on hard seeds; paired differences are over common seeds only."
    )


def _batchnorm(runs: pd.DataFrame) -> str:
    modes = runs.groupby("batchnorm")["strategy"].unique() if "batchnorm" in runs else pd.Series(dtype=object)
    if len(modes) < 2:
        return ""
    other = modes.drop(modes.map(len).idxmax())
    listed = "; ".join(
        f"{mode}: {', '.join(names.spoken(label) for label in labels)}" for mode, labels in other.items()
    )
    return f"BatchNorm's statistics are not handled alike; other than the rest are {listed}. Compare like with like."


def _trunk(runs: pd.DataFrame) -> str:
    known = runs[runs["trunk"].notna() & (runs["trunk"] != "")] if "trunk" in runs else runs[:0]
    shared = known[known["trunk"].duplicated(keep=False)]["strategy"].nunique() if len(known) else 0
    if not shared:
        return ""
    every = runs["strategy"].nunique()
    return (
        f"{shared}{f' of {every}' if shared < every else ''} strategies share the first task's training, seed by seed, "
        "since they train alike on it: their accuracies before task 2 are the same numbers, and differences begin at "
        "task 2."
    )


def _unread(runs: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    absent = int((~compare.finished(runs)["run_id"].isin(accuracy["run_id"].unique())).sum())
    return (
        f"The accuracy matrices of {absent} runs could not be read; tables by task and curves leave them out."
        if absent
        else ""
    )


def _unread_studies(overviews: Mapping[str, Overview]) -> str:
    absent = [overview.study for overview in overviews.values() if overview.study and not readable(overview)]
    listed = ", ".join(absent)
    return f"The tables of trials of study {listed} could not be read: how it chose is not shown." if absent else ""


def _environments(overviews: Mapping[str, Overview]) -> str:
    watched = ("version.forgetbench", "version.torch", "device", "git_revision")
    differing = [
        name for name in watched if len({overview.environment.get(name) for overview in overviews.values()}) > 1
    ]
    return f"The runs come from several environments, which differ in {', '.join(differing)}." if differing else ""


def _one_scenario(runs: pd.DataFrame) -> str:
    where = runs["scenario"].iloc[0] if "scenario" in runs else "one scenario"
    return f"One scenario ({where}) and one network: order among strategies may be another elsewhere."
