"""What is wrong with a study file whose parts are right, each by itself: one line each."""

from __future__ import annotations

import math

from optuna.distributions import FloatDistribution

from benchmark import scenarios
from benchmark.config import Experiment
from benchmark.scenarios import Scenario
from studies import ranges
from studies.objectives import WHILE_TRAINING
from studies.protocols import FIRST_K, PLASTICITY_FIRST, TWO_DATASET
from studies.ranges import Search
from studies.table import StudyTable


def together(table: StudyTable, wrong: set[str]) -> list[str]:
    """What is right by itself, and not together.

    Args:
        table: without what is wrong in it.
        wrong: keys of which nothing is known.
    """
    two, halving, several = len(table.objectives) > 1, table.pruning == "halving", min(table.batch, table.trials) > 1
    rules = [
        (
            {"protocol", "tune_on"},
            (TWO_DATASET in table.protocols) == (table.tune_on is not None),
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
            not halving or PLASTICITY_FIRST not in table.protocols,
            "pruning halving: protocol plasticity-first wants every trial to the end; take none",
        ),
        (
            {"pruning", "batch", "trials"},
            not halving or several,
            "pruning halving: expected batches of at least 2 trials, got 1; take none",
        ),
    ]
    return [f"study: {message}" for keys, fits, message in rules if not fits and not keys & wrong]


def twice(searches: list[Search], experiments: list[Experiment]) -> list[str]:
    """Searches that are one, or that share a label.

    Args:
        searches: of the file.
        experiments: one a search, with the ends of its ranges; none if any is wrong.
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


def ladder(path: str, search: Search, table: StudyTable) -> list[str]:
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


def unseen(table: StudyTable, experiments: list[Experiment]) -> list[str]:
    """Objectives that no strategy's runs would have: they need evaluations while training."""
    if all(experiment.entries[0].recipe.evaluate_every for experiment in experiments):
        return []
    how = "is measured while training: expected train.evaluate_every, in steps, got 0"
    return [f"study.objective: {name} {how}" for name in table.objectives if name in WHILE_TRAINING]


def _shape(scenario: Scenario) -> str:
    return f"{scenario.tasks} tasks, {scenario.incremental} incremental"


def lengths(table: StudyTable, scenario: Scenario) -> list[str]:
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
    if FIRST_K in table.protocols and scenario.tasks - table.tasks < 2:
        left = f"at least 2 of the scenario's {scenario.tasks} tasks to report on"
        short.append(f"study.tasks: expected to leave {left}, got {table.tasks} to tune on")
    if table.pruning == "halving" and not short:
        idle = [p for p in table.protocols if (table.tasks if p == FIRST_K else scenario.tasks) <= 2]
        acts = "halving acts after tasks 2, 4, 8, ... but the last"
        short += [f"study.pruning: {acts}, and trials of protocol {p} have 2 tasks; take none" for p in idle]
    return short
