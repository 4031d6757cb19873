"""`[[strategy]]` tables of a study: what is fixed, and what is searched, as Optuna's distributions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from benchmark import config
from strategies import registry
from strategies.base import Strategy


@dataclass(frozen=True)
class Search:
    """One strategy of a study and what to search.

    Attributes:
        label: the strategy and what the file fixes.
        fixed: the strategy's table without its ranges.
        space: an Optuna distribution for each key that is searched.
    """

    label: str
    fixed: dict[str, Any]
    space: dict[str, BaseDistribution]

    def describe(self) -> str:
        """What is searched, in words: `ewc: lam from 1 to 1e+07 (log), estimator one of exact, sampled`."""
        return f"{self.label}: {', '.join(f'{k} {_words(d)}' for k, d in self.space.items())}"


def read(path: str, written: dict[str, Any], errors: list[str]) -> tuple[Search, dict[str, Any]]:
    """One `[[strategy]]` table: a table is a range, a list are choices, anything else is fixed.

    Args:
        path: of the table in the file.
        written: the table.
        errors: added to.

    Returns:
        What to search, and the table with each range's ends in its place.
    """
    space: dict[str, BaseDistribution] = {}
    ends = dict(written)
    asked = {k: v for k, v in written.items() if isinstance(v, dict | list)}
    cls = strategy(written)
    ranges = _declared(cls, written) | asked
    for key, value in ranges.items():
        distribution, ends[key] = _distribution(f"{path}.{key}", value, _counts(cls, key), errors)
        if distribution is not None:
            space[key] = distribution
    fixed = {k: v for k, v in written.items() if k not in asked}
    if cls and not ranges:
        errors.append(f"{path}: nothing to search; give a range such as lam = {{low = 1.0, high = 1e7, log = true}}")
    return Search(_label(fixed, {}), fixed, space), ends


def told_apart(searches: list[Search]) -> list[Search]:
    """Labels say what is fixed; where that is the same, also what some of them search and others do not."""
    told = []
    for search in searches:
        alike = [other.space for other in searches if other.label == search.label]
        own = {key: "searched" for key in search.space if not all(key in space for space in alike)}
        told.append(dataclasses.replace(search, label=_label(search.fixed, own)))
    return told


def _label(fixed: dict[str, Any], own: dict[str, str]) -> str:
    """`ewc[estimator=exact]`: what is fixed, and what else tells it apart."""
    shown = {k: v for k, v in fixed.items() if k != "name"} | own
    return config.label(str(fixed.get("name", "")), shown)


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return f"from {distribution.low:g} to {distribution.high:g}{' (log)' if distribution.log else ''}"
    return str(distribution)


def strategy(written: dict[str, Any]) -> type[Strategy] | None:
    """The class a table names, if there is one."""
    try:
        return registry.get(str(written.get("name")))
    except ValueError:
        return None  # said where the experiment is checked


def bounds(written: dict[str, Any], name: str) -> tuple[float, float]:
    """The smallest and the largest value that a key of a strategy's table may have; infinite where there is none.

    Args:
        written: the table.
        name: of the key: a field of the strategy, or of the recipe.
    """
    if name in config.TrainTable.model_fields:
        limits = config.TrainTable.model_fields[name].metadata
        low = [getattr(limit, kind) for limit in limits for kind in ("ge", "gt") if hasattr(limit, kind)]
        high = [getattr(limit, kind) for limit in limits for kind in ("le", "lt") if hasattr(limit, kind)]
        return max(low, default=-math.inf), min(high, default=math.inf)
    declared = {f.name: f.metadata for f in dataclasses.fields(cls)} if (cls := strategy(written)) else {}
    found: Mapping[str, float] = declared.get(name, {})
    return found.get("low", -math.inf), found.get("high", math.inf)


def _declared(cls: type[Strategy] | None, written: dict[str, Any]) -> dict[str, Any]:
    """The ranges that the strategy itself declares for tuning, but for what the file has something to say about."""
    declared = dataclasses.fields(cls) if cls else ()
    ranges = {f.name: f.metadata["tune"] for f in declared if f.metadata.get("tune")}
    return {k: {"low": low, "high": high, "log": True} for k, (low, high) in ranges.items() if k not in written}


def _counts(cls: type[Strategy] | None, key: str) -> bool:
    """Whether a key takes whole numbers alone: `decay = {low = 0, high = 1}` is no choice between two values."""
    if key in config.TrainTable.model_fields:
        return config.TrainTable.model_fields[key].annotation is not float
    return cls is None or key not in cls.hyperparameters()


def _distribution(path: str, value: Any, counts: bool, errors: list[str]) -> tuple[BaseDistribution | None, list[Any]]:
    """An Optuna distribution, and the values that bound it."""
    if isinstance(value, list):
        if not value:
            errors.append(f"{path}: expected at least one choice, got an empty list")
            return None, [0]
        if not all(isinstance(v, str | int | float) for v in value):
            errors.append(f"{path}: expected numbers, words or truth values as choices, got {value!r}")
            return None, [0]
        return CategoricalDistribution(value), value
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    unknown = sorted(value.keys() - {"low", "high", "log"})
    numbers = all(type(v) in {int, float} and math.isfinite(v) for v in (low, high))
    if unknown or not numbers or type(log) is not bool:
        errors.append(f"{path}: expected a range such as {{low = 1.0, high = 1e7, log = true}}, got {value!r}")
        return None, [1]
    if low >= high:
        errors.append(f"{path}: expected low < high, got {low:g} and {high:g}")
    elif log and low <= 0:
        errors.append(f"{path}: a log range must lie above 0, got low = {low:g}")
    else:
        whole = counts and type(low) is int and type(high) is int
        kind = IntDistribution if whole else FloatDistribution
        return kind(low, high, log=log), [low, high]
    return None, [low]
