"""Study files: an experiment whose strategies have ranges, and a `[study]` table that says how to search them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from optuna.distributions import distribution_to_json
from pydantic import ValidationError

from benchmark import config, scenarios
from benchmark.config import ConfigError, Entry, Experiment
from benchmark.runs import Run
from benchmark.scenarios import Scenario
from studies import checks, ranges
from studies.protocols import FIRST_K, PLASTICITY_FIRST, TEST_ORACLE, TWO_DATASET, VALIDATION, Protocol
from studies.ranges import Search
from studies.table import OWN, StudyTable


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
        if self.protocol == TEST_ORACLE:
            return scenario
        if self.protocol == FIRST_K:
            scenario = scenario.part(1, table.tasks)
        if self.protocol == TWO_DATASET and table.tune_on is not None:
            scenario = scenarios.resolve(table.tune_on)
        return dataclasses.replace(scenario, validation=table.validation)

    @property
    def reported(self) -> Scenario:
        """What the chosen setting is trained and tested on in the end: all training images, and the test set once."""
        scenario = self.experiment.scenario
        return scenario.part(self.table.tasks + 1, scenario.tasks) if self.protocol == FIRST_K else scenario

    @property
    def marked(self) -> str:
        """The protocol, as tables name it wherever they may end up."""
        return f"{self.protocol}, tuned on test" if self.protocol == TEST_ORACLE else self.protocol

    @property
    def trials(self) -> int:
        """Of each strategy: as many as the file says, but for `plasticity-first`, where λ takes as many values."""
        return self.table.lam_decays + 1 if self.protocol == PLASTICITY_FIRST else self.table.trials

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Of every trial."""
        return tuple(range(self.table.seeds))

    @property
    def test_seeds(self) -> tuple[int, ...]:
        """Of the final evaluation: none that a trial used, but for `test-oracle`, which reports what it tuned on."""
        return self.tuning_seeds if self.protocol == TEST_ORACLE else self.fresh_seeds

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Those that no trial uses, by any protocol."""
        return tuple(range(self.table.seeds, self.table.seeds + self.table.test_seeds))

    def describe(self) -> str:
        """The protocol in words, as tables and reports state it."""
        table, share = self.table, f"{100 * self.table.validation:g}% of each label's training images"
        how = {
            VALIDATION: f"chosen on {share}",
            FIRST_K: f"chosen on the first {table.tasks} tasks ({share}), reported on the rest",
            PLASTICITY_FIRST: (
                f"lam times {table.lam_decay:g}, at most {table.lam_decays} times, until it keeps "
                f"{table.plasticity:g} of fine-tuning's accuracy on each new task ({share})"
            ),
            TWO_DATASET: f"chosen on {self.tuning.name} ({share})",
            TEST_ORACLE: "TUNED ON TEST, with the seeds reported",
        }[self.protocol]
        seeds = f"{table.seeds} tuning seeds, {len(self.test_seeds)} test seeds"
        search = "and fine-tuning beside them" if self.protocol == PLASTICITY_FIRST else f"sampler {table.sampler}"
        return f"{self.protocol}: {how}; {self.trials} trials a strategy, {search}, {seeds}"

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
            if PLASTICITY_FIRST in table.protocols and not wrong & OWN[PLASTICITY_FIRST]:
                errors += checks.ladder(f"strategy.{i}", search, table)
    searches = ranges.told_apart(searches)
    experiments = _bounds({k: v for k, v in content.items() if k != "study"}, ends, errors)
    if experiments and not wrong & {"protocol", "tune_on", "tasks", "pruning"}:
        errors += checks.lengths(table, experiments[0].scenario)
    if "objective" not in wrong:
        errors += checks.unseen(table, experiments)
    errors += checks.twice(searches, experiments if len(experiments) == len(searches) else [])
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
    errors += checks.together(table, wrong)
    return table, wrong


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
