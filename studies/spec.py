"""Study files: an experiment whose strategies have ranges, and a `[study]` table that says how to search them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmark import config, scenarios
from benchmark.config import ConfigError, Entry, Experiment
from benchmark.scenarios import Scenario
from strategies import registry
from strategies.base import Strategy
from strategies.registry import did_you_mean
from studies.objectives import OBJECTIVES

Protocol = Literal["validation", "first-k", "two-dataset", "test-oracle"]


def _named(what: str, more: str, value: str | list[str], known: Collection[str]) -> str | list[str]:
    """One known name, or a list of different ones; anything else is refused.

    Args:
        what: is named.
        more: than one, in words.
        value: as written.
        known: names.

    Raises:
        ValueError: with what was expected and what came.
    """
    named = [value] if isinstance(value, str) else value
    if not named or len(set(named)) < len(named):
        raise ValueError(f"expected one {what}, or {more} different ones, got {value!r}")
    for name in named:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, known) or '; known: ' + ', '.join(known)}")
    return value


class StudyTable(BaseModel):
    """The `[study]` table."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    objective: str | list[str] = "average_accuracy"
    protocol: str | list[str] = "validation"
    trials: int = Field(20, ge=1)
    timeout: float | None = Field(None, gt=0)
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    seed: int = Field(0, ge=0)
    batch: int = Field(10, ge=1)
    seeds: int = Field(3, ge=1)
    test_seeds: int = Field(5, ge=1)
    validation: float = Field(0.1, gt=0, lt=1)
    tasks: int = Field(2, ge=2)
    tune_on: str | list[str] | dict[str, Any] | None = None
    diverged: Literal["fail", "worst"] = "fail"
    pruning: Literal["none", "halving"] = "none"

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(value) > 2:
            raise ValueError(f"expected one metric, or two different ones, got {value!r}")
        return _named("metric", "two", value, OBJECTIVES)

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, value: str | list[str]) -> str | list[str]:
        return _named("protocol", "several", value, get_args(Protocol))

    @field_validator("tune_on")
    @classmethod
    def _scenario(cls, value: str | list[str] | dict[str, Any] | None) -> str | list[str] | dict[str, Any] | None:
        if value is not None:
            scenarios.resolve(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> StudyTable:
        if ("two-dataset" in self.protocols) != (self.tune_on is not None):
            raise ValueError("protocol two-dataset, and no other, needs tune_on: the scenario to tune on")
        if self.sampler == "gp" and isinstance(self.objective, list) and len(self.objective) > 1:
            raise ValueError("sampler gp: expected one objective, got two; take tpe")
        if self.pruning == "halving" and isinstance(self.objective, list) and len(self.objective) > 1:
            raise ValueError("pruning halving: expected one objective, got two; take none")
        return self

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """One, or several to compare."""
        return cast(tuple[Protocol, ...], (self.protocol,) if isinstance(self.protocol, str) else tuple(self.protocol))


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


@dataclass(frozen=True)
class Study:
    """A validated study.

    Attributes:
        name: of the study, its folder and its Optuna studies.
        table: how to search.
        protocol: how hyperparameters are chosen.
        experiment: its scenario, model and recipe; its entries only bound the ranges.
        searches: one a strategy.
    """

    name: str
    table: StudyTable
    protocol: Protocol
    experiment: Experiment
    searches: tuple[Search, ...]

    @property
    def objectives(self) -> tuple[str, ...]:
        """One name, or two."""
        objective = self.table.objective
        return (objective,) if isinstance(objective, str) else tuple(objective)

    @property
    def tuning(self) -> Scenario:
        """What trials are trained and judged on. Only `test-oracle` lets them see a test image."""
        scenario, table = self.experiment.scenario, self.table
        if self.protocol == "test-oracle":
            return scenario
        if self.protocol == "first-k":
            scenario = scenario.part(1, table.tasks)
        if self.protocol == "two-dataset" and table.tune_on is not None:
            scenario = scenarios.resolve(table.tune_on)
        return dataclasses.replace(scenario, validation=table.validation)

    @property
    def reported(self) -> Scenario:
        """What the chosen setting is trained and tested on in the end: all training images, and the test set once."""
        scenario = self.experiment.scenario
        return scenario.part(self.table.tasks + 1, scenario.tasks) if self.protocol == "first-k" else scenario

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Of every trial."""
        return tuple(range(self.table.seeds))

    @property
    def test_seeds(self) -> tuple[int, ...]:
        """Of the final evaluation: none that a trial used, but for `test-oracle`, which reports what it tuned on."""
        if self.protocol == "test-oracle":
            return self.tuning_seeds
        return tuple(range(self.table.seeds, self.table.seeds + self.table.test_seeds))

    def describe(self) -> str:
        """The protocol in words, as tables and reports state it."""
        table, share = self.table, f"{100 * self.table.validation:g}% of each label's training images"
        how = {
            "validation": f"validation: chosen on {share}",
            "first-k": f"first-k: chosen on the first {table.tasks} tasks ({share}), reported on the rest",
            "two-dataset": f"two-dataset: chosen on {self.tuning.name} ({share})",
            "test-oracle": "test-oracle: TUNED ON TEST, with the seeds reported",
        }[self.protocol]
        seeds = f"{table.seeds} tuning seeds, {len(self.test_seeds)} test seeds"
        return f"{how}; {table.trials} trials a strategy, sampler {table.sampler}, {seeds}"

    def entry(self, search: Search, params: dict[str, Any]) -> Entry:
        """A strategy with the hyperparameters of a trial."""
        content = {**self.experiment.content, "strategy": [{**search.fixed, **params}]}
        return config.parse(content).entries[0]

    def description(self, search: Search) -> dict[str, Any]:
        """What must be equal for a study to be continued, as JSON."""
        space = {k: distribution_to_json(d) for k, d in search.space.items()}
        return {
            "strategy": search.fixed,
            "space": space,
            "scenario": self.experiment.scenario.spec(),
            "model": self.experiment.model.spec(),
            "train": self.experiment.content.get("train", {}),
            **self.table.model_dump(exclude={"trials", "timeout", "batch", "test_seeds", "protocol"}),
            "protocol": self.protocol,
        }


def load(preset_or_file: str, overrides: list[str]) -> list[Study]:
    """Read, override and validate; one study a protocol, named after it where there are several.

    Args:
        preset_or_file: name of a preset, or path of a TOML file.
        overrides: `KEY=VALUE`, the key a dotted path and the value TOML, such as `study.trials=8`.

    Raises:
        ConfigError: every error in one message, each with its path.
    """
    return parse(config.read(preset_or_file, overrides, package="studies"))


def parse(content: dict[str, Any]) -> list[Study]:
    """Validate a parsed file; see `load`.

    Args:
        content: as `tomllib` gives it.

    Raises:
        ConfigError: every error in one message, each with its path.
    """
    errors: list[str] = []
    if "seeds" in content:
        errors.append("seeds: a study has study.seeds, of every trial, and study.test_seeds, of the final evaluation")
    table: StudyTable | None = None
    try:
        table = StudyTable.model_validate(content.get("study", {}))
    except ValidationError as error:
        errors += config.lines(error, ("study",), StudyTable)
    written = content.get("strategy")
    searches, ends = [], []
    for i, entry in enumerate(written if isinstance(written, list) else []):
        if isinstance(entry, dict):
            search, bounds = _search(f"strategy.{i}", entry, errors)
            searches.append(search)
            ends.append(bounds)
    experiment: Experiment | None = None
    rest = {k: v for k, v in content.items() if k != "study"}
    try:
        # Both ends of every range as an experiment's grid: whatever is wrong with them, its own checks say.
        experiment = config.parse({**rest, "seeds": 1, **({"strategy": ends} if ends else {})})
    except ConfigError as error:
        # Of a value that is no range already, it is enough to hear that; but not where its key is unknown too.
        said = {line.partition(": ")[0] for line in errors}
        errors += [e for e in error.errors if e.partition(": ")[0] not in said or ": unknown key" in e]
    if table and experiment:
        errors += _lengths(table, experiment.scenario)
    for label in {s.label for s in searches if [o.label for o in searches].count(s.label) > 1}:
        errors.append(f"strategy: {label!r} is there more than once")
    if errors or table is None or experiment is None:
        raise ConfigError("study", errors)
    several = len(table.protocols) > 1
    return [
        Study(f"{experiment.name}-{p}" if several else experiment.name, table, p, experiment, tuple(searches))
        for p in table.protocols
    ]


def _lengths(table: StudyTable, scenario: Scenario) -> list[str]:
    """What is wrong with the number of tasks: of one alone nothing is forgotten, and λ acts from the second."""
    lengths = {"scenario": scenario} | ({"study.tune_on": scenarios.resolve(table.tune_on)} if table.tune_on else {})
    short = [f"{path}: expected at least 2 tasks, got 1" for path, each in lengths.items() if each.tasks < 2]
    if "first-k" in table.protocols and scenario.tasks - table.tasks < 2:
        left = f"at least 2 of the scenario's {scenario.tasks} tasks to report on"
        short.append(f"study.tasks: expected to leave {left}, got {table.tasks} to tune on")
    return short


def _search(path: str, written: dict[str, Any], errors: list[str]) -> tuple[Search, dict[str, Any]]:
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
    cls = _strategy(written)
    ranges = asked or _declared(cls, written)
    for key, value in ranges.items():
        distribution, ends[key] = _distribution(f"{path}.{key}", value, _counts(cls, key), errors)
        if distribution is not None:
            space[key] = distribution
    fixed = {k: v for k, v in written.items() if k not in asked}
    if cls and not ranges:
        errors.append(f"{path}: nothing to search; give a range such as lam = {{low = 1.0, high = 1e7, log = true}}")
    label = ",".join(f"{k}={v}" for k, v in fixed.items() if k != "name")
    name = str(written.get("name", ""))
    return Search(f"{name}[{label}]" if label else name, fixed, space), ends


def _strategy(written: dict[str, Any]) -> type[Strategy] | None:
    try:
        return registry.get(str(written.get("name")))
    except ValueError:
        return None  # said where the experiment is checked


def _declared(cls: type[Strategy] | None, written: dict[str, Any]) -> dict[str, Any]:
    """The ranges that the strategy itself declares for tuning, but for what the file fixes."""
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
