"""Runs of one recipe as numbers: summaries, paired differences from a baseline, and which strategies lead.

Frames in, frames out; `reports.load` says what is in them. A run is the unit: everything is averaged over its tasks
first, and intervals are over runs (`reports.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from benchmark.intervals import TOLERANCE
from reports import names, statistics
from reports.load import ReportError
from reports.measures import COMPARED, LOWER_IS_BETTER, NEW
from reports.recipes import FIELDS

ALPHA = 0.05
BOUNDS = frozenset({"joint"})
"""Strategies that see what the others may not: shown, not ranked."""


def is_bound(label: str) -> bool:
    """Whether a strategy is shown and not ranked."""
    return names.parse(label)[0] in BOUNDS


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that have results."""
    return runs[runs["status"] == "finished"]


def rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows with their columns as attributes, whose types only the frame's documentation knows."""
    yield from frame.itertuples(index=False)


def with_new_tasks(runs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Runs with a column more, `new_task_accuracy`: 1/(T-1) Σ_{j>1} a[j, j], NaN for one task.

    Learning accuracy has the first task in it too, which all strategies learn alike and which hides half of the price
    where there are two.

    Args:
        runs: one row a run.
        accuracy: one row a cell.
    """
    learned = accuracy[(accuracy["after_task"] == accuracy["task"]) & (accuracy["task"] > 1)]
    return runs.assign(**{NEW: _means(runs, learned)})


def with_objectives(runs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Runs with what a study may optimise and no tracker has, `stability` and `plasticity`; see `benchmark.metrics`.

    Args:
        runs: one row a run.
        accuracy: one row a cell; a run that has none there has neither.
    """
    final = accuracy[(accuracy["after_task"] == accuracy["task"].max()) & (accuracy["task"] < accuracy["task"].max())]
    learned = accuracy[accuracy["after_task"] == accuracy["task"]]
    return runs.assign(stability=_means(runs, final), plasticity=_means(runs, learned))


def _means(runs: pd.DataFrame, cells: pd.DataFrame) -> pd.Series:
    """Mean accuracy over some cells of each run, NaN where one of them is: the run diverged, or was given up."""
    means = cells.groupby("run_key")["accuracy"].agg(lambda a: a.mean(skipna=False))
    return runs["run_key"].map(means).astype(float)


def summary(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean and interval of each strategy and metric, over the runs that finished.

    Args:
        runs: of one recipe.
        metrics: columns of `runs`.

    Returns:
        `strategy, metric, n, mean, low, high, kind, std (ddof 1), iqm`; without runs, n is 0 and the rest NaN.
    """
    rows = []
    for strategy, own in runs.groupby("strategy", sort=False):
        for metric in metrics:
            values = finished(own)[metric].dropna() if metric in own else pd.Series(dtype=float)
            mean = asdict(statistics.mean_interval(values)) | {"std": values.std(), "iqm": statistics.iqm(values).mean}
            rows.append({"strategy": strategy, "metric": metric, **mean})
    order = ["strategy", "metric", "n", "mean", "low", "high", "kind", "std", "iqm"]
    return pd.DataFrame(rows, columns=order)


def by_task(runs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Final accuracy on each task, over the runs that finished.

    Args:
        runs: of one recipe.
        accuracy: of the same.

    Returns:
        `strategy, task, n, mean, low, high, kind`.
    """
    last = accuracy[accuracy["after_task"] == accuracy["task"].max()]
    last = last[last["run_key"].isin(finished(runs)["run_key"])]
    rows = [
        {"strategy": strategy, "task": task, **asdict(statistics.mean_interval(cells["accuracy"]))}
        for (strategy, task), cells in last.groupby(["strategy", "task"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["strategy", "task", "n", "mean", "low", "high", "kind"])


def baseline(runs: pd.DataFrame, wanted: str) -> str:
    """The label of the strategy that others are compared with.

    Of several with the wanted name, the one that was trained most like the other strategies: with BatchNorm frozen, if
    that is what the others do.

    Args:
        runs: of one recipe.
        wanted: a label, or a strategy's name.

    Raises:
        ReportError: no runs of such a strategy, or several that nothing prefers.
    """
    labels = list(dict.fromkeys(runs["strategy"]))
    if wanted in labels:
        return str(wanted)
    found = [str(label) for label in labels if names.parse(label)[0] == wanted]
    if not found:
        raise ReportError(f"no runs of a baseline {wanted!r}; choose one of them with --baseline: {', '.join(labels)}")
    alike = {label: _alike(runs, label) for label in found}
    best = [label for label in found if alike[label] == max(alike.values())]
    if len(best) > 1:
        raise ReportError(f"several strategies are {wanted!r}; choose one with --baseline: {', '.join(best)}")
    return best[0]


def _alike(runs: pd.DataFrame, label: str) -> int:
    """In how many recipe fields most other runs agree with this strategy."""
    own, others = runs[runs["strategy"] == label], runs[runs["strategy"] != label]
    fields = [name for name in FIELDS if name in runs and len(others)]
    return sum(bool((others[name].mode(dropna=False) == own[name].iloc[0]).any()) for name in fields)


def by_seed(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row a seed and a column a strategy, of the runs that finished: what paired differences are taken of.

    Args:
        runs: of one recipe.
        metric: column of `runs`.
    """
    return finished(runs).pivot(index="seed", columns="strategy", values=metric)


def pair(seeds: pd.DataFrame, label: str, reference: str) -> statistics.Paired:
    """One strategy less the reference, on the seeds that both finished.

    Args:
        seeds: of `by_seed`.
        label: of the strategy.
        reference: label of the strategy compared with.
    """
    both = seeds.reindex(columns=[label, reference]).dropna()
    return statistics.paired(both[label], both[reference])


def differences(runs: pd.DataFrame, reference: str, metrics: Sequence[str] = tuple(COMPARED)) -> pd.DataFrame:
    """Each strategy less the reference, paired by seed, with Holm's adjustment over the strategies of each metric.

    Args:
        runs: of one recipe.
        reference: label of the strategy compared with.
        metrics: columns of `runs`.

    Returns:
        `strategy, metric, n, difference, low, high, kind, p, p_holm, smallest_p, smallest_p_holm, exact, identical,
        decidable`; one row for each other strategy and metric, on the seeds that both finished. `smallest_p` is the
        least the test could have given, `smallest_p_holm` the least after Holm's adjustment: that of the smallest p of
        every comparison of the metric, since no adjusted p rises where another p falls. `decidable`: it is at most 5%.
        `identical`: equal on every seed, of two or more.
    """
    found = [
        {"strategy": label, "metric": metric, **asdict(pair(seeds, label, reference))}
        for metric, seeds in ((metric, by_seed(runs, metric)) for metric in metrics)
        for label in dict.fromkeys(runs["strategy"])
        if label != reference
    ]
    order = ["strategy", "metric", "n", "difference", "low", "high", "kind", "p", "smallest_p", "exact"]
    table = pd.DataFrame(found, columns=order)
    table["smallest_p"] = table["smallest_p"].where(table["p"].notna())  # without common seeds there is no test
    for name in ("p", "smallest_p"):
        table[f"{name}_holm"] = table.groupby("metric", sort=False)[name].transform(lambda p: statistics.holm(p))
    none = table["difference"].abs() <= TOLERANCE  # accuracies are at most 1
    return table.assign(identical=(table["kind"] == "no spread") & none, decidable=table["smallest_p_holm"] <= ALPHA)


def undecidable(table: pd.DataFrame) -> pd.DataFrame:
    """Those of `differences` of which the test could say nothing, whatever came out: too few seeds.

    Without a common seed there is no comparison, and what is identical on every seed needs no test: neither is here.

    Args:
        table: of `differences`.
    """
    return _tested(table)[~_tested(table)["decidable"]]


def any_decidable(table: pd.DataFrame) -> bool:
    """Whether the test could have told any of these differences from chance, or there is none to tell.

    Args:
        table: of `differences`.
    """
    tested = _tested(table)
    return tested.empty or bool(tested["decidable"].any())


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["n"] > 0) & ~table["identical"]]


@dataclass(frozen=True)
class Leaders:
    """Which strategies lead in a metric.

    Attributes:
        best: the strategy of the best mean, or empty where no run finished.
        alone: every other strategy that is ranked is shown to be worse: the paired test with Holm's adjustment says
            so. The best is that of the same data, so it errs more often than at 5% (docs/statistics.md).
        tied: those that are not shown to be worse.
        decidable: with so many seeds the test could have told one apart.
        bounds: labels of the strategies that are not ranked.
    """

    best: str
    alone: bool
    tied: frozenset[str]
    decidable: bool
    bounds: tuple[str, ...] = ()


def leaders(runs: pd.DataFrame, metric: str) -> Leaders:
    """The best of the strategies that are ranked, and those that may be as good.

    Args:
        runs: of one recipe.
        metric: column of `runs`.
    """
    bound = runs["strategy"].map(is_bound).astype(bool)
    ranked, bounds = runs[~bound], tuple(dict.fromkeys(runs.loc[bound, "strategy"]))
    means = finished(ranked).groupby("strategy", sort=False)[metric].mean().dropna()
    if len(means) < 2:
        return Leaders("", alone=False, tied=frozenset(), decidable=False, bounds=bounds)
    best = str(means.idxmin() if metric in LOWER_IS_BETTER else means.idxmax())
    table = differences(ranked[ranked["strategy"].isin(means.index)], best, [metric])
    # On the seeds that both finished another may be ahead of the best of all means.
    behind = table["difference"] > 0 if metric in LOWER_IS_BETTER else table["difference"] < 0
    told = behind & (table["p_holm"] <= ALPHA)
    decidable = bool(table["decidable"].any())
    return Leaders(best, bool(told.all()), frozenset(table.loc[~told, "strategy"]), decidable, bounds)


def but_for_bounds(lead: Leaders, spoken: Mapping[str, str]) -> str:
    """` of the strategies ranked (joint training, a bound, is not)`; empty where all are ranked.

    Args:
        lead: of `leaders`.
        spoken: names by label.
    """
    if not lead.bounds:
        return ""
    known = ", ".join(spoken[label] for label in lead.bounds)
    return f" of the strategies ranked ({known}, {'a bound, is' if len(lead.bounds) == 1 else 'bounds, are'} not)"
