"""What the numbers say, in sentences: no winner where there is none to be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports import compare
from reports.measures import NEW
from reports.numbers import number, p_value

Row = dict[Any, Any]
MOST = 12  # sentences; the table of paired differences has the rest


def sentences(runs: pd.DataFrame, frame: pd.DataFrame, reference: str, spoken: Mapping[str, str]) -> list[str]:
    """One for each strategy: how much less it forgets than the reference, and what that costs on new tasks.

    Args:
        runs: of one recipe.
        frame: of `compare.differences`.
        reference: label of the strategy compared with.
        spoken: names by label.

    Returns:
        Plain sentences, the largest differences in forgetting first.
    """
    metric = "forgetting" if frame.loc[frame["metric"] == "forgetting", "n"].any() else "average_accuracy"
    own = frame[(frame["metric"] == metric) & (frame["n"] > 0)]
    ordered = own.sort_values("difference", ascending=metric == "forgetting", kind="stable")
    cost = frame[frame["metric"] == NEW].set_index("strategy")
    found = []
    for row in ordered.to_dict("records")[:MOST]:
        said = _difference(row, metric, spoken[row["strategy"]], spoken[reference])
        found.append(
            said + (_cost(cost.loc[[row["strategy"]]].iloc[0], row["n"]) if metric == "forgetting" else "") + "."
        )
    if len(ordered) > MOST:
        found.append(f"{len(ordered) - MOST} more strategies are in the table of paired differences.")
    return [*found, *_decision(own), *_leader(runs, spoken)]


def alone(runs: pd.DataFrame, spoken: Mapping[str, str]) -> list[str]:
    """What one strategy did, where there is no other to compare it with.

    Args:
        runs: of one recipe.
        spoken: names by label.
    """
    summary = compare.summary(runs, ["average_accuracy", "forgetting"]).set_index("metric")
    accuracy, forgetting = (summary.loc[[name]].iloc[0] for name in ("average_accuracy", "forgetting"))
    name, n = spoken[str(accuracy["strategy"])], int(accuracy["n"])
    said = f"{name} reaches an average accuracy of {_share(accuracy)}"
    said += f" and forgets {_share(forgetting, 'points')}" if forgetting["n"] else ""
    return [f"{said} (n = {n}). There is no other strategy to compare it with."]


def _share(row: pd.Series, unit: str = "%") -> str:
    there = "" if pd.isna(row["low"]) else f" (95% CI {number(row['low'])} to {number(row['high'])})"
    return f"{number(row['mean'])} {unit}{there}"


def _difference(row: Row, metric: str, strategy: str, reference: str) -> str:
    verb, less, more = {
        "forgetting": ("forgets", "less", "more"),
        "average_accuracy": ("is", "less accurate", "more accurate"),
    }[metric]
    value = float(row["difference"])
    if not _told(row):
        there = _about(row)
        what = metric.replace("_", " ")
        return f"{strategy}: no difference from {reference} in {what} detected at n = {row['n']} ({there})"
    way = less if value < 0 else more
    return f"{strategy} {verb} {_points(abs(value))} {way} than {reference} ({_about(row, flip=value < 0)})"


def _cost(row: pd.Series, said_n: int) -> str:
    """What a strategy pays, or gains, on new tasks; n is said again only where it is another."""
    known: Row = row.to_dict()
    if not known["n"]:
        return ""
    value = float(known["difference"])
    if not _told(known):
        return f"; no difference on new tasks is detected ({_about(known, said_n=said_n)})"
    sign = "at a cost of" if value < 0 else "and gains"
    return f", {sign} {_points(abs(value))} on new tasks ({_about(known, said_n=said_n, flip=value < 0)})"


def _told(row: Row) -> bool:
    """Whether there is a difference to speak of: the test says so or, where it cannot decide, the interval does."""
    if float(row["smallest_p_holm"]) <= compare.ALPHA:
        return bool(row["p_holm"] <= compare.ALPHA)
    low, high = float(row["low"]), float(row["high"])
    return low > 0 or high < 0


def _about(row: Row, *, flip: bool = False, said_n: int = 0) -> str:
    """Interval, n and p, or why there is none; `flip` for a difference that is spoken of as its size."""
    n, low, high = int(row["n"]), float(row["low"]), float(row["high"])
    seeds = f"n = {n} paired seed{'s' * (n != 1)}"
    if pd.isna(low):
        return f"{seeds}, without an interval"
    low, high = (-high, -low) if flip else (low, high)
    said = [f"95% CI {number(low)} to {number(high)}", *([seeds] if n != said_n else [])]
    decides = float(row["smallest_p_holm"]) <= compare.ALPHA
    p = p_value(float(row["p_holm"]))
    return ", ".join([*said, *([f"Holm-adjusted p {'' if p.startswith('<') else '= '}{p}"] if decides else [])])


def _decision(frame: pd.DataFrame) -> list[str]:
    """That the test could not decide, where it could not."""
    undecided = frame[frame["smallest_p_holm"] > compare.ALPHA]
    if undecided.empty:
        return []
    n, least, adjusted = (undecided[name].iloc[0] for name in ("n", "smallest_p", "smallest_p_holm"))
    if n < 2:
        return ["One seed has no spread: nothing here can be told from chance. Run more (seeds=5)."]
    of = "" if adjusted == least else f", {p_value(adjusted)} after Holm's adjustment over {len(frame)} comparisons"
    return [
        f"No paired permutation test decides here: at n = {n} its smallest attainable p is {p_value(least)}{of}. "
        "The intervals, of the differences of these seeds, are what there is; they are not adjusted for their number."
    ]


def _leader(runs: pd.DataFrame, spoken: Mapping[str, str]) -> list[str]:
    """Who leads in average accuracy, if somebody does."""
    lead = compare.leaders(runs, "average_accuracy")
    if not (lead.best and lead.decidable):
        return []
    if lead.alone:
        return [f"{spoken[lead.best]} has the best average accuracy of all, told apart from every other strategy."]
    others = [spoken[label] for label in spoken if label in lead.tied]
    return [f"{spoken[lead.best]} has the best mean average accuracy; not told apart from it: {'; '.join(others)}."]


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
