"""Study files: an experiment whose strategies have ranges, and a `[study]` table that says how to search them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from optuna.distributions import FloatDistribution, distribution_to_json
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmark import config, scenarios
from benchmark.config import ConfigError, Entry, Experiment
from benchmark.runs import Run
from benchmark.scenarios import Scenario
from strategies.registry import did_you_mean
from studies import ranges
from studies.objectives import OBJECTIVES, WHILE_TRAINING
from studies.ranges import Search

Protocol = Literal["validation", "first-k", "plasticity-first", "two-dataset", "test-oracle"]
OWN: dict[Protocol, frozenset[str]] = {"plasticity-first": frozenset({"plasticity", "lam_decay", "lam_decays"})}
"""Keys of `[study]` that concern one protocol alone."""


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
    """The `[study]` table: how to search, by which protocol, and with which budget.

    `plasticity`, `lam_decay` and `lam_decays` are those of `plasticity-first`, see `studies.plasticity`; `tasks` is the
    k of `first-k`, `tune_on` the scenario of `two-dataset`. `pruning = "halving"` gives up the worse half of the trials
    that train in one stack, after tasks 2, 4, 8, ... but the last, so that its result depends on how many processors
    and how much memory there are; see `studies.pruning`. `timeout` is in seconds, of the whole study: what went into
    trials before `--resume` has been spent.
    """

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
    plasticity: float = Field(0.8, gt=0, le=1)
    lam_decay: float = Field(0.5, gt=0, lt=1)
    lam_decays: int = Field(7, ge=1)
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

    @property
    def objectives(self) -> tuple[str, ...]:
        """One name, or two."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """One, or several to compare."""
        return cast(tuple[Protocol, ...], (self.protocol,) if isinstance(self.protocol, str) else tuple(self.protocol))


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
        return self.table.objectives

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
    def marked(self) -> str:
        """The protocol, as tables name it wherever they may end up."""
        return f"{self.protocol}, tuned on test" if self.protocol == "test-oracle" else self.protocol

    @property
    def trials(self) -> int:
        """Of each strategy: as many as the file says, but for `plasticity-first`, where λ takes as many values."""
        return self.table.lam_decays + 1 if self.protocol == "plasticity-first" else self.table.trials

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Of every trial."""
        return tuple(range(self.table.seeds))

    @property
    def test_seeds(self) -> tuple[int, ...]:
        """Of the final evaluation: none that a trial used, but for `test-oracle`, which reports what it tuned on."""
        return self.tuning_seeds if self.protocol == "test-oracle" else self.fresh_seeds

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Those that no trial uses, by any protocol."""
        return tuple(range(self.table.seeds, self.table.seeds + self.table.test_seeds))

    def describe(self) -> str:
        """The protocol in words, as tables and reports state it."""
        table, share = self.table, f"{100 * self.table.validation:g}% of each label's training images"
        how = {
            "validation": f"validation: chosen on {share}",
            "first-k": f"first-k: chosen on the first {table.tasks} tasks ({share}), reported on the rest",
            "plasticity-first": (
                f"plasticity-first: lam times {table.lam_decay:g}, at most {table.lam_decays} times, until it keeps "
                f"{table.plasticity:g} of fine-tuning's accuracy on each new task ({share})"
            ),
            "two-dataset": f"two-dataset: chosen on {self.tuning.name} ({share})",
            "test-oracle": "test-oracle: TUNED ON TEST, with the seeds reported",
        }[self.protocol]
        seeds = f"{table.seeds} tuning seeds, {len(self.test_seeds)} test seeds"
        search = "and fine-tuning beside them" if self.protocol == "plasticity-first" else f"sampler {table.sampler}"
        return f"{how}; {self.trials} trials a strategy, {search}, {seeds}"

    def entry(self, search: Search, params: dict[str, Any]) -> Entry:
        """A strategy with the hyperparameters of a trial."""
        content = {**self.experiment.content, "strategy": [{**search.fixed, **params}]}
        return config.parse(content).entries[0]

    def runs(self, entry: Entry, scenario: Scenario, seeds: tuple[int, ...]) -> list[Run]:
        """An entry with each of some seeds."""
        model = self.experiment.model
        return [Run(scenario, model, entry.recipe, entry.strategy, entry.name, entry.label, seed) for seed in seeds]

    def description(self, search: Search) -> dict[str, Any]:
        """What must be equal for a study to be continued, as JSON."""
        space = {k: distribution_to_json(d) for k, d in search.space.items()}
        others = {key for protocol, keys in OWN.items() if protocol != self.protocol for key in keys}
        return {
            "strategy": search.fixed,
            "space": space,
            "scenario": self.experiment.scenario.spec(),
            "model": self.experiment.model.spec(),
            "train": self.experiment.content.get("train", {}),
            **self.table.model_dump(exclude={"trials", "timeout", "batch", "test_seeds", "protocol", *others}),
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
    table, wrong = _table(content.get("study", {}), errors)
    written = content.get("strategy")
    searches: list[Search] = []
    ends: list[Any] = list(written) if isinstance(written, list) else []
    for i, entry in enumerate(ends):
        if isinstance(entry, dict):
            search, ends[i] = ranges.read(f"strategy.{i}", entry, errors)
            searches.append(search)
            if "plasticity-first" in table.protocols and not wrong & OWN["plasticity-first"]:
                errors += _ladder(f"strategy.{i}", search, table)
    searches = ranges.told_apart(searches)
    experiments = _bounds({k: v for k, v in content.items() if k != "study"}, ends, errors)
    if experiments and not wrong & {"protocol", "tune_on", "tasks", "pruning"}:
        errors += _lengths(table, experiments[0].scenario)
    if "objective" not in wrong:
        errors += _unseen(table, experiments)
    errors += _twice(searches, experiments if len(experiments) == len(searches) else [])
    if errors:
        raise ConfigError("study", errors)
    experiment = experiments[0]
    several = len(table.protocols) > 1
    return [
        Study(f"{experiment.name}-{p}" if several else experiment.name, table, p, experiment, tuple(searches))
        for p in table.protocols
    ]


def _table(written: Any, errors: list[str]) -> tuple[StudyTable, set[str]]:
    """The `[study]` table, without what is wrong in it, so that mistakes elsewhere are said at once.

    Args:
        written: as parsed.
        errors: added to.

    Returns:
        The table, and the keys that have a default in place of what is written.
    """
    try:
        table, wrong = StudyTable.model_validate(written), set[str]()
    except ValidationError as error:
        errors += config.lines(error, ("study",), StudyTable)
        wrong = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
        right = {k: v for k, v in written.items() if k not in wrong} if isinstance(written, dict) else {}
        table = StudyTable.model_validate(right)
    errors += _together(table, wrong)
    return table, wrong


def _together(table: StudyTable, wrong: set[str]) -> list[str]:
    """What is right by itself, and not together.

    Args:
        table: see `_table`.
        wrong: keys of which nothing is known.
    """
    two, halving, several = len(table.objectives) > 1, table.pruning == "halving", min(table.batch, table.trials) > 1
    rules = [
        (
            {"protocol", "tune_on"},
            ("two-dataset" in table.protocols) == (table.tune_on is not None),
            "protocol two-dataset, and no other, needs tune_on: the scenario to tune on",
        ),
        (
            {"sampler", "objective"},
            table.sampler != "gp" or not two,
            "sampler gp: expected one objective, got two; take tpe",
        ),
        (
            {"pruning", "objective"},
            not halving or not two,
            "pruning halving: expected one objective, got two; take none",
        ),
        (
            {"pruning", "objective"},
            not halving or table.objectives[0] not in WHILE_TRAINING,
            f"pruning halving: expected an objective known after each task, got {table.objectives[0]}; take none",
        ),
        (
            {"pruning", "protocol"},
            not halving or "plasticity-first" not in table.protocols,
            "pruning halving: protocol plasticity-first wants every trial to the end; take none",
        ),
        (
            {"pruning", "batch", "trials"},
            not halving or several,
            "pruning halving: expected batches of at least 2 trials, got 1; take none",
        ),
    ]
    return [f"study: {message}" for keys, fits, message in rules if not fits and not keys & wrong]


def _bounds(rest: dict[str, Any], ends: list[Any], errors: list[str]) -> list[Experiment]:
    """For each strategy the experiment that has both ends of its ranges as a grid: what is wrong, its own checks say.

    One strategy at a time: two searches may have settings in common.

    Args:
        rest: the file without `[study]`.
        ends: its strategies, each range as a list of its ends; whatever else is written there as it is.
        errors: added to.
    """
    found = []
    # Of a value that is no range already, it is enough to hear that; but not where its key is unknown too.
    said = {line.partition(": ")[0] for line in errors}
    for i, bounds in enumerate(ends or [None]):
        try:
            found.append(config.parse({**rest, "seeds": 1, **({"strategy": [bounds]} if ends else {})}))
        except ConfigError as error:
            lines = [re.sub(r"^strategy\.0\b", f"strategy.{i}", line) for line in error.errors]
            errors += [line for line in lines if line.partition(": ")[0] not in said or ": unknown key" in line]
    return found


def _twice(searches: list[Search], experiments: list[Experiment]) -> list[str]:
    """Searches that are one, or that share a label.

    Args:
        searches: of the file.
        experiments: from `_bounds`, one a search; none if any is wrong.
    """
    labels = [search.label for search in searches]
    lines = [f"strategy: {label!r} is there more than once" for label in {*labels} if labels.count(label) > 1]
    firsts: list[tuple[str, object]] = []
    for search, experiment in zip(searches, experiments, strict=False):
        entry = experiment.entries[0]
        same = (entry.name, entry.strategy, entry.recipe, sorted(search.space.items()))
        lines += [f"strategy: {search.label!r} is the same search as {label!r}" for label, o in firsts if o == same]
        firsts.append((search.label, same))
    return lines


def _ladder(path: str, search: Search, table: StudyTable) -> list[str]:
    """What keeps `plasticity-first` from choosing a strategy's λ.

    Args:
        path: of the strategy in the file.
        search: the strategy.
        table: has how often λ is lowered, and how much.
    """
    cls, lam, others = ranges.strategy(search.fixed), search.space.get("lam"), sorted({*search.space} - {"lam"})
    if cls and "lam" not in cls.hyperparameters():
        return [f"{path}: protocol plasticity-first chooses lam, which {search.fixed['name']!r} does not have"]
    if not isinstance(lam, FloatDistribution):
        wanted = "expected a range, from whose high end protocol plasticity-first comes down"
        return [f"{path}.lam: {wanted}"] if cls else []
    lines = []
    if others:
        lines.append(f"{path}: protocol plasticity-first chooses lam alone; give {', '.join(others)} one value")
    least = lam.high * table.lam_decay**table.lam_decays
    if least < lam.low and not math.isclose(least, lam.low):
        far = f"{lam.high:g} times {table.lam_decay:g} to the power of study.lam_decays = {table.lam_decays}"
        lines.append(f"{path}.lam: expected low <= {least:g} ({far}), got {lam.low:g}")
    return lines


def _unseen(table: StudyTable, experiments: list[Experiment]) -> list[str]:
    """Objectives that no strategy's runs would have: they need evaluations while training."""
    if all(experiment.entries[0].recipe.evaluate_every for experiment in experiments):
        return []
    how = "is measured while training: expected train.evaluate_every, in steps, got 0"
    return [f"study.objective: {name} {how}" for name in table.objectives if name in WHILE_TRAINING]


def _shape(scenario: Scenario) -> str:
    return f"{scenario.tasks} tasks, {scenario.incremental} incremental"


def _lengths(table: StudyTable, scenario: Scenario) -> list[str]:
    """What is wrong with the number of tasks: of one alone nothing is forgotten, and λ acts from the second.

    A λ chosen on other images says something where there are as many tasks and they are told apart in the same way.
    """
    lengths = {"scenario": scenario} | ({"study.tune_on": scenarios.resolve(table.tune_on)} if table.tune_on else {})
    short = [f"{path}: expected at least 2 tasks, got 1" for path, each in lengths.items() if each.tasks < 2]
    if (other := lengths.get("study.tune_on")) and not short:
        if other == scenario:
            short.append("study.tune_on: expected another scenario than the one that is reported on, got the same")
        elif (other.tasks, other.incremental) != (scenario.tasks, scenario.incremental):
            short.append(
                f"study.tune_on: expected the shape that is reported on, {_shape(scenario)}, got {_shape(other)}"
            )
    if "first-k" in table.protocols and scenario.tasks - table.tasks < 2:
        left = f"at least 2 of the scenario's {scenario.tasks} tasks to report on"
        short.append(f"study.tasks: expected to leave {left}, got {table.tasks} to tune on")
    if table.pruning == "halving" and not short:
        idle = [p for p in table.protocols if (table.tasks if p == "first-k" else scenario.tasks) <= 2]
        acts = "halving acts after tasks 2, 4, 8, ... but the last"
        short += [f"study.pruning: {acts}, and trials of protocol {p} have 2 tasks; take none" for p in idle]
    return short
