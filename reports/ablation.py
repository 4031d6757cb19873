"""How much of EWC's gain is EWC's: with BatchNorm's statistics updating and frozen, and by Fisher estimator.

Where EWC is compared with fine-tuning as people usually do, two things change at once: EWC is run with BatchNorm in
eval mode, fine-tuning with statistics that drift. Fine-tuning with frozen statistics stands between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from benchmark.intervals import number, percent
from reports import compare, names, statistics
from reports.numbers import interval
from reports.table import Table

UPDATE, FREEZE = "update", "freeze-after-first"
MODES = {UPDATE: "updating", FREEZE: "frozen"}
ESTIMATOR = ("estimator", "fisher_samples", "fisher_batch_size", "draws", "accumulate")
"""Options that make an estimator another one."""
METRICS = {"average_accuracy": "average accuracy", "forgetting": "forgetting"}


@dataclass(frozen=True, eq=False)
class Ablation:
    """Tables and the sentences they come to.

    Attributes:
        tables: those that the runs are enough for.
        sentences: what they say.
    """

    tables: list[Table]
    sentences: list[str]


def ablation(runs: pd.DataFrame, spoken: Mapping[str, str], *, chosen_on_test: bool) -> Ablation | None:
    """Fine-tuning and EWC x BatchNorm's mode, and EWC by estimator; None where there is neither to compare.

    Args:
        runs: of one recipe.
        spoken: names by label.
        chosen_on_test: λ was not tuned on other images, so each estimator's best λ is the best of this table.
    """
    if "batchnorm" not in runs or "strategy_name" not in runs:
        return None
    parts = [_batchnorm(runs, spoken, chosen_on_test), _estimators(runs, spoken, chosen_on_test)]
    tables = [table for part in parts if part for table in part.tables]
    sentences = [said for part in parts if part for said in part.sentences]
    return Ablation(tables, sentences) if tables else None


def _batchnorm(runs: pd.DataFrame, spoken: Mapping[str, str], chosen_on_test: bool) -> Ablation | None:
    compared = _in_both_modes(runs)
    cells = {
        (name, mode): _best(compared[(compared["strategy_name"] == name) & (compared["batchnorm"] == mode)])
        for name in ("naive", "ewc")
        for mode in MODES
    }
    if not (cells["naive", UPDATE] and cells["naive", FREEZE]):
        return None
    rows, numbers = [], []
    for (name, mode), label in cells.items():
        summary = compare.summary(runs[runs["strategy"] == label], list(METRICS)) if label else pd.DataFrame()
        shown = [percent(r.mean, r.low, r.high) for r in compare.rows(summary)] or ["not run"] * len(METRICS)
        n = str(summary["n"].max()) if len(summary) else "0"
        rows.append([spoken[label] if label else names.spoken(name), MODES[mode], n, *shown])
        numbers.append(summary.assign(batchnorm=mode))
    best = " EWC is shown at its best λ here, chosen on the test set." if chosen_on_test else ""
    caption = (
        f"Fine-tuning and EWC with BatchNorm's statistics updating and frozen after the first task, in per cent.{best}"
    )
    header = ["strategy", "BatchNorm", "n", *METRICS.values()]
    table = Table("batchnorm", caption, header, rows, pd.concat(numbers), frozenset({1}))
    return Ablation([table], _shares(runs, cells, spoken))


def _in_both_modes(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the settings of EWC that were run in one mode alone, where some were run in both.

    Another estimator, or λ, in the other mode would be taken for what the mode does.
    """
    ewc = runs[runs["strategy_name"] == "ewc"]
    settings = [name for name in (*ESTIMATOR, "lam") if name in ewc]
    if ewc.empty or not settings:
        return runs
    modes = ewc.groupby(settings, dropna=False)["batchnorm"].transform("nunique")
    return runs.drop(index=ewc.index[modes < len(MODES)]) if (modes == len(MODES)).any() else runs


def _shares(runs: pd.DataFrame, cells: dict[tuple[str, str], str], spoken: Mapping[str, str]) -> list[str]:
    """The whole gain of frozen EWC over updating fine-tuning, as freezing's part and EWC's."""
    naive, frozen, ewc = cells["naive", UPDATE], cells["naive", FREEZE], cells["ewc", FREEZE]
    seeds = compare.by_seed(runs, "average_accuracy")
    freezing = compare.pair(seeds, frozen, naive)
    found = [f"Freezing BatchNorm's statistics alone changes fine-tuning's average accuracy by {_told(freezing)}."]
    if ewc:
        whole, own = (compare.pair(seeds, ewc, other) for other in (naive, frozen))
        found.append(
            f"{spoken[ewc]}, with frozen statistics, differs from fine-tuning with updating ones by {_told(whole)}, "
            f"and from fine-tuning with frozen ones by {_told(own)}: that part is EWC's."
        )
        if whole.difference > 0 and freezing.low > 0:  # a share of what may be nothing says nothing
            share = 100 * freezing.difference / whole.difference
            found.append(
                f"So freezing alone accounts for {min(share, 100):.0f}% of the gain that the unequal comparison shows."
            )
    return found


def _estimators(runs: pd.DataFrame, spoken: Mapping[str, str], chosen_on_test: bool) -> Ablation | None:
    ewc = runs[(runs["strategy_name"] == "ewc") & (runs["batchnorm"] == runs["batchnorm"].mode().iloc[0])]
    if "estimator" not in ewc or ewc["estimator"].nunique() < 2:
        return None
    # Estimators that differ in samples, draws or batch size are other estimators.
    kinds = ewc.groupby([name for name in ESTIMATOR if name in ewc], sort=False, dropna=False)
    found = [(label, own["lam"].nunique()) for _, own in kinds if (label := _best(own))]
    best = [label for label, _ in found]
    summary = compare.summary(ewc[ewc["strategy"].isin(best)], list(METRICS))
    rows = []
    for label, many in found:
        own = summary[summary["strategy"] == label]
        rows.append(
            [
                spoken[label],
                str(many),
                str(own["n"].max()),
                *(percent(r.mean, r.low, r.high) for r in compare.rows(own)),
            ]
        )
    chosen = "chosen on the test set, so these are upper bounds" if chosen_on_test else "as tuned"
    caption = f"EWC under each Fisher estimator at the best λ that was run, {chosen}; in per cent."
    table = Table("estimators", caption, ["strategy", "λ tried", "n", *METRICS.values()], rows, summary)
    return Ablation([table], _apart(ewc[ewc["strategy"].isin(best)], spoken))


def _apart(runs: pd.DataFrame, spoken: Mapping[str, str]) -> list[str]:
    """Whether the estimators can be told apart at their best."""
    lead = compare.leaders(runs, "average_accuracy")
    if not lead.best:
        return []
    means = compare.finished(runs).groupby("strategy")["average_accuracy"].mean()
    span = number(float(means.max() - means.min()))
    said = f"At their best λ the estimators' mean average accuracies lie within {span} points of each other"
    if lead.alone:
        return [f"{said}; {spoken[lead.best]} is told apart from every other."]
    why = "" if lead.decidable else ", nor could so few seeds tell it"
    return [f"{said}; no one of them is told apart from all others{why}."]


def _best(runs: pd.DataFrame) -> str:
    """The label of the best mean average accuracy, or empty where no run finished."""
    means = compare.finished(runs).groupby("strategy", sort=False)["average_accuracy"].mean().dropna()
    return str(means.idxmax()) if len(means) else ""


def _told(paired: statistics.Paired) -> str:
    return (
        f"{number(paired.difference, signed=True)} points (95% CI {interval(paired.low, paired.high)}, n = {paired.n})"
    )
