"""What the numbers say, in sentences: no winner where there is none to be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmark.intervals import number
from reports import compare, names
from reports.measures import NEW
from reports.numbers import between, p_said, p_value

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
        Plain sentences; those that forget least, or are the most accurate, first.
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
    apart = [spoken[label] for label in dict.fromkeys(frame["strategy"]) if label not in set(own["strategy"])]
    found += _incomparable(runs, apart, reference, spoken) + _decision(own, spoken) + _leader(runs, spoken)
    return [_capital(said) for said in found]


def alone(runs: pd.DataFrame, spoken: Mapping[str, str]) -> list[str]:
    """What one strategy did, where there is no other to compare it with.

    Args:
        runs: of one recipe.
        spoken: names by label.
    """
    summary = compare.summary(runs, ["average_accuracy", "forgetting"]).set_index("metric")
    accuracy, forgetting = (summary.loc[[name]].iloc[0] for name in ("average_accuracy", "forgetting"))
    name, n = spoken[str(accuracy["strategy"])], int(accuracy["n"])
    if not n:
        return [f"No run of {name} finished."]
    said = f"{name} reaches an average accuracy of {_share(accuracy)}"
    said += f" and forgets {_share(forgetting, 'points')}" if forgetting["n"] else ""
    return [_capital(f"{said} (n = {n}). There is no other strategy to compare it with.")]


def _capital(said: str) -> str:
    """As a sentence begins; a name that is somebody else's is left as it is written."""
    return said[0].upper() + said[1:] if said.startswith(tuple(names.STRATEGIES.values())) else said


def _incomparable(runs: pd.DataFrame, apart: list[str], reference: str, spoken: Mapping[str, str]) -> list[str]:
    """Which strategies have no difference from the reference, and why."""
    if not apart:
        return []
    if reference not in set(compare.finished(runs)["strategy"]):
        return [f"No run of {spoken[reference]} finished, with which the others were to be compared (--baseline)."]
    return [f"Without a finished seed in common with {spoken[reference]}, and not compared: {'; '.join(apart)}."]


def _share(row: pd.Series, unit: str = "%") -> str:
    there = "" if pd.isna(row["low"]) else f" (95% CI {between(row['low'], row['high'])})"
    return f"{number(row['mean'])} {unit}{there}"


def _difference(row: Row, metric: str, strategy: str, reference: str) -> str:
    verb, less, more = {
        "forgetting": ("forgets", "less", "more"),
        "average_accuracy": ("is", "less accurate", "more accurate"),
    }[metric]
    value, what = float(row["difference"]), metric.replace("_", " ")
    if row["identical"]:
        return f"{strategy}: {what} is identical to that of {reference} on every seed (n = {row['n']} paired seeds)"
    if not _told(row):
        there = _about(row, said_n=row["n"])
        seeds = f"{row['n']} paired seed{'s' * (row['n'] != 1)}"
        return f"{strategy}: no difference from {reference} in {what} detected at n = {seeds}{there}"
    way = less if value < 0 else more
    return f"{strategy} {verb} {_points(abs(value))} {way} than {reference}{_about(row, flip=value < 0)}"


def _cost(row: pd.Series, said_n: int) -> str:
    """What a strategy pays, or gains, on new tasks; n is said again only where it is another."""
    known: Row = row.to_dict()
    if not known["n"]:
        return ""
    value = float(known["difference"])
    if known["identical"]:
        return "; on new tasks it is identical on every seed"
    if not _told(known):
        return f"; no difference on new tasks is detected{_about(known, said_n=said_n)}"
    sign = "at a cost of" if value < 0 else "and gains"
    return f", {sign} {_points(abs(value))} on new tasks{_about(known, said_n=said_n, flip=value < 0)}"


def _told(row: Row) -> bool:
    """Whether there is a difference to speak of: the test says so or, where it cannot decide, the interval does."""
    if row["decidable"]:
        return bool(row["p_holm"] <= compare.ALPHA)
    low, high = float(row["low"]), float(row["high"])
    return low > 0 or high < 0


def _about(row: Row, *, flip: bool = False, said_n: int = 0) -> str:
    """Interval, n unless it is said already, and p where the test can decide, in brackets."""
    n, low, high, p = int(row["n"]), float(row["low"]), float(row["high"]), p_said(float(row["p_holm"]))
    low, high = (-high, -low) if flip else (low, high)
    parts = {
        "without an interval" if pd.isna(low) else f"95% CI {between(low, high)}": True,
        f"n = {n} paired seed{'s' * (n != 1)}": n != said_n,
        f"Holm-adjusted {p}": bool(row["decidable"]),
    }
    return f" ({', '.join(part for part, said in parts.items() if said)})"


def _decision(frame: pd.DataFrame, spoken: Mapping[str, str]) -> list[str]:
    """That the test could not decide, where it could not: of all comparisons, or of those it is true of."""
    undecided = compare.undecidable(frame)
    if undecided.empty:
        return []
    if compare.any_decidable(frame):
        listed = "; ".join(f"{spoken[row.strategy]} (n = {row.n})" for row in compare.rows(undecided))
        return [f"The paired permutation test cannot decide, for too few common seeds that differ, about: {listed}."]
    if undecided["n"].max() < 2:
        return ["One seed has no spread: nothing here can be told from chance. Run more (seeds=5)."]
    n, least, adjusted = undecided["n"].max(), undecided["smallest_p"].min(), undecided["smallest_p_holm"].min()
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
    among = compare.but_for_bounds(lead, spoken)
    if lead.alone:
        apart = "of them" if among else "strategy"
        said = f"has the best average accuracy{among or ' of all'}, told apart from every other {apart}"
        return [f"{spoken[lead.best]} {said}."]
    others = [spoken[label] for label in spoken if label in lead.tied]
    return [
        f"{spoken[lead.best]} has the best mean average accuracy{among}; not shown to be worse: {'; '.join(others)}."
    ]


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
