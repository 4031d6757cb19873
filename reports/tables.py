"""The tables of a report, made of the frames of `reports.compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmark.intervals import NONE, number, percent
from reports import compare, names
from reports.measures import COMPARED, MAIN, TOLD
from reports.names import GROUP
from reports.numbers import interval, p_value
from reports.recipes import FIELDS, options, shared
from reports.statistics import DRAWS, EXACT_UP_TO
from reports.table import Cell, Table

MOST_TASKS = 10  # a column each; more are in the CSV alone
TIE = "†"
INTERVAL = "mean ± half the width of its 95% interval (Student's t) over n seeds"


def main(runs: pd.DataFrame, spoken: Mapping[str, str]) -> Table:
    """Strategies x metrics, the best in bold where the paired test says that it is, else ties marked.

    Args:
        runs: of one recipe.
        spoken: names by label.
    """
    known = compare.finished(runs)
    # One task has nothing to forget; where no run finished, a column stands for all.
    metrics = [metric for metric in MAIN if metric in runs and known[metric].notna().any()] or ["average_accuracy"]
    summary = compare.summary(runs, metrics)
    lead = {metric: compare.leaders(runs, metric) for metric in metrics}
    gone = runs.loc[runs["status"] != "finished", "strategy"].value_counts()
    rows: list[list[Cell | str]] = []
    for strategy, own in summary.groupby("strategy", sort=False):
        cells = [_ranked(percent(r.mean, r.low, r.high), str(strategy), lead[r.metric]) for r in compare.rows(own)]
        rows.append(
            [spoken[str(strategy)], str(own["n"].max()), *cells, *([str(gone.get(strategy, ""))] if len(gone) else [])]
        )
    header = ["strategy", "n", *(MAIN[metric] for metric in metrics), *(["lost"] if len(gone) else [])]
    told = " Task-aware: the final accuracy if it is told which task an image is of." * (TOLD in metrics)
    caption = f"In per cent: {INTERVAL}.{told} {_ranking(list(lead.values()), spoken)}"
    return Table("main", caption.strip(), header, rows, summary)


def final(runs: pd.DataFrame, accuracy: pd.DataFrame, spoken: Mapping[str, str]) -> Table:
    """Final accuracy on each task; beyond ten tasks, the CSV alone has all.

    Args:
        runs: of one recipe.
        accuracy: of the same.
        spoken: names by label.
    """
    frame = compare.by_task(runs, accuracy)
    tasks = sorted(frame["task"].unique())
    first, last = tasks[: MOST_TASKS // 2], tasks[-MOST_TASKS // 2 :]
    shown = tasks if len(tasks) <= MOST_TASKS else [*first, *last]
    rows = []
    for strategy, own in frame.groupby("strategy", sort=False):
        cells = {r.task: percent(r.mean, r.low, r.high) for r in compare.rows(own)}
        rows.append([spoken[str(strategy)], str(own["n"].max()), *(cells.get(task, NONE) for task in shown)])
    left_out = f" Those between tasks {first[-1]} and {last[0]} are in the CSV." if len(shown) < len(tasks) else ""
    caption = f"Accuracy on each task after the last one, in per cent: {INTERVAL}.{left_out}"
    sets = shared(runs).get("images", "")
    known = dict(enumerate(names.tasks(int(accuracy["task"].max()), sets), start=1))
    return Table("tasks", caption, ["strategy", "n", *(known[task] for task in shown)], rows, frame)


def paired(frame: pd.DataFrame, reference: str, spoken: Mapping[str, str]) -> Table | None:
    """Differences from the reference, or None where no strategy has a finished seed in common with it.

    Args:
        frame: of `compare.differences`.
        reference: label of the strategy compared with.
        spoken: names by label.
    """
    metrics = [m for m in COMPARED if frame.loc[frame["metric"] == m, "n"].any()]
    if not metrics:
        return None
    rows = []
    for strategy, own in frame.groupby("strategy", sort=False):
        cells: list[str] = []
        for r in compare.rows(own[own["metric"].isin(metrics)]):
            cells += [f"{number(r.difference, signed=True)} {interval(r.low, r.high)}", p_value(r.p_holm)]
        rows.append([spoken[str(strategy)], str(own["n"].max()), *cells])
    header = ["strategy", "n", *(text for m in metrics for text in (COMPARED[m], "p"))]
    caption = (
        f"Each strategy less {spoken[reference]}, in points, over n common seeds: mean difference, its 95% interval "
        f"(Student's t), and {_test(frame)} after Holm's adjustment over the strategies. "
        f"{_smallest(frame)}"
    )
    return Table("paired", caption.strip(), header, rows, frame)


def strategies(runs: pd.DataFrame, spoken: Mapping[str, str]) -> Table:
    """What each strategy is: its options, and the convention of its λ.

    Args:
        runs: of one recipe.
        spoken: names by label.
    """
    rows: list[list[Cell | str]] = []
    told: list[str] = []
    first = runs.drop_duplicates("strategy")
    for _, run in first.iterrows():
        told.append(", ".join(f"{k} = {v}" for k, v in options_of(run).items()) or NONE)
        rows.append([spoken[run["strategy"]], told[-1], run["lam_means"] or NONE])
    columns = ["strategy", "strategy_name", "what", "lam_means"]
    frame = first[[c for c in columns if c in first]].assign(options=told)
    caption = "Options of each strategy as trained, and what λ multiplies."
    return Table("strategies", caption, ["strategy", "options", "λ"], rows, frame, frozenset({1, 2}))


def options_of(run: pd.Series) -> dict[str, str]:
    """A run's own options, λ first: params that are the strategy's, and recipe fields that its label tells.

    Args:
        run: a row of the runs.
    """
    told = [name for name in FIELDS if name in names.parse(run["strategy"])[1] and name in run]
    own = [name for name in options(run.index) if pd.notna(run[name]) and run[name] != ""]
    return {name: f"{run[name]:g}" if isinstance(run[name], float) else str(run[name]) for name in [*own, *told]}


def lost(runs: pd.DataFrame, frame: pd.DataFrame, spoken: Mapping[str, str]) -> Table | None:
    """Runs without a result, or None where every cell has one.

    Args:
        runs: of one recipe.
        frame: `strategy, seed, status` of each; see `reports.density`.
        spoken: names by label.
    """
    if frame.empty:
        return None
    rows = [
        [spoken[str(strategy)], str(status), ", ".join(str(seed) for seed in own["seed"])]
        for (strategy, status), own in frame.groupby(["strategy", "status"], sort=False)
    ]
    caption = f"Runs without a result, of {runs['strategy'].nunique()} strategies x {runs['seed'].nunique()} seeds."
    return Table("lost", caption, ["strategy", "status", "seeds"], rows, frame, frozenset({1, 2}))


def _ranked(text: str, strategy: str, leaders: compare.Leaders) -> Cell:
    if text == NONE or not leaders.best:
        return Cell(text)
    among = strategy == leaders.best or strategy in leaders.tied
    tie = among and leaders.decidable and not leaders.alone
    return Cell(text, bold=leaders.alone and strategy == leaders.best, mark=TIE if tie else "")


def _ranking(leaders: Sequence[compare.Leaders], spoken: Mapping[str, str]) -> str:
    """What bold and daggers mean, or that there can be none."""
    known = [each for each in leaders if each.best]
    if not known:
        return ""
    if not any(each.decidable for each in known):
        return "No best is marked: with so few seeds the paired test can tell no two strategies apart."
    alone = any(each.alone for each in known)
    ties = any(each.decidable and not each.alone for each in known)
    among = compare.but_for_bounds(known[0], spoken)
    said = [f"Bold: better than every other{among or ' strategy'} (paired permutation test, Holm-adjusted p ≤ 0.05)."]
    said = said * alone + [f"{TIE}: the best{among}, and those not shown to be worse."] * ties
    return " ".join(
        [*said, "The best is chosen from the same data, so this errs more often than 5% (docs/statistics.md)."]
    )


def _test(frame: pd.DataFrame) -> str:
    """The paired test by name, and how its p was found where not all sign patterns were enumerated."""
    exact = frame.loc[frame["n"] > 0, "exact"].astype(bool)
    if exact.all():
        return "the exact paired permutation test's p"
    drawn = f"from {DRAWS:,} drawn sign patterns".replace(",", GROUP)
    return f"the paired permutation test's p ({drawn}{f', exact up to {EXACT_UP_TO} differences' * bool(exact.any())})"


def _smallest(frame: pd.DataFrame) -> str:
    """What the test could have said at most, where that is less than a decision."""
    if compare.any_decidable(frame):
        return ""
    least = p_value(compare.undecidable(frame)["smallest_p_holm"].min())
    return f"With so few seeds the adjusted p cannot fall below {least}: the test cannot decide."
