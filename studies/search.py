"""Optuna, asked and told a batch at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from benchmark.keys import generator_seed
from studies import objectives, plasticity
from studies.ranges import Search
from studies.spec import Study
from studies.storage import Storage, StudyError

ENDED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
DESCRIPTION, SEEDS, REASON = "description", "seeds", "reason"
DECADES = 6  # a range that begins at 0 has no smallest decade: its grid goes down this many from its end


class Searcher:
    """One strategy's Optuna study.

    Args:
        study: what the file says.
        search: the strategy and its ranges.
        storage: see `Storage.of`.
        resume: continue a study of that name.
        suffix: told apart from an older study of the same name by this.

    Raises:
        StudyError: there is one of that name already, or it searches something else, or the storage cannot be used.
    """

    def __init__(
        self, study: Study, search: Search, storage: str | BaseStorage | Storage, *, resume: bool, suffix: str = ""
    ) -> None:
        self.study, self.search, self._name = study, search, f"{study.name}{suffix}/{search.label}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = Storage.of(storage)
        if self._name in self.storage.names() and not resume:
            raise StudyError(f"there is a study {self._name!r}: --resume continues it, --new starts another")
        with self.storage.explained():
            self.optuna = optuna.create_study(
                storage=self.storage.optuna,
                study_name=self._name,
                load_if_exists=True,
                directions=[objectives.direction(name) for name in study.objectives],
            )
            self._described()
            self._orphans()
            if not self.ended:
                # A command may have been killed half way through this; and few choices make a grid that repeats itself.
                for params in self._planned():
                    self.optuna.enqueue_trial(params, skip_if_exists=True)

    def describe(self) -> str:
        """What is searched, in words."""
        if self.study.protocol != plasticity.PROTOCOL:
            return self.search.describe()
        first, *_, last = plasticity.ladder(self.study, self.search)
        return f"{self.search.label}: lam from {first:.3g} down to {last:.3g}"

    def _planned(self) -> list[dict[str, Any]]:
        """Settings to be asked before the sampler is."""
        if self.study.protocol == plasticity.PROTOCOL:
            return [{"lam": lam} for lam in plasticity.ladder(self.study, self.search)]
        return grid(self.search, min(self.study.table.batch, self.study.trials))

    @property
    def ended(self) -> list[FrozenTrial]:
        """Trials that count: all that ended, but for those a killed command left behind, which have no seeds."""
        with self.storage.explained():
            return [t for t in self.optuna.get_trials(deepcopy=False, states=ENDED) if SEEDS in t.user_attrs]

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials with a value."""
        return [t for t in self.ended if t.state == TrialState.COMPLETE]

    def ask(self) -> list[optuna.Trial]:
        """The next batch, empty when the budget is spent."""
        with self.storage.explained():
            known = len(self.ended)
            # What is asked follows from what was told, not from how often the command was begun.
            self.optuna.sampler = self._sampler(generator_seed(self.study.table.seed, "sampler", known) % 2**32)
            # A batch cut short is made whole first, for the same reason.
            asked = min(self.study.trials - known, self.study.table.batch - known % self.study.table.batch)
            return [self.optuna.ask(self.search.space) for _ in range(asked)]

    def tell(self, trial: optuna.Trial, seeds: list[dict[str, Any]]) -> None:
        """End a trial.

        Args:
            trial: from `ask`.
            seeds: of each tuning seed, in order: `seed`, `run_key`, `status`, and each objective's value; by the
                protocol `plasticity-first` also what `plasticity.kept` wants to know.
        """
        why, told = reason(seeds), self._told(seeds)
        with self.storage.explained():
            if why:
                trial.set_user_attr(REASON, why)
            trial.set_user_attr(SEEDS, seeds)
            self.optuna.tell(trial.number, **told)

    def prune(self, trial: optuna.Trial, seeds: list[dict[str, Any]], task: int, value: float) -> None:
        """End a trial that was given up.

        Args:
            trial: from `ask`.
            seeds: of each tuning seed: `seed`, `run_key`, `status`.
            task: after which it was given up.
            value: of the objective over the tasks so far.
        """
        with self.storage.explained():
            trial.report(value, task)
            trial.set_user_attr(REASON, f"pruned after task {task}")
            trial.set_user_attr(SEEDS, seeds)
            self.optuna.tell(trial, state=TrialState.PRUNED)

    def _told(self, seeds: list[dict[str, Any]]) -> dict[str, Any]:
        """What Optuna is told of a trial: values, or that it failed."""
        names, statuses = self.study.objectives, {s["status"] for s in seeds}
        if not statuses & {"diverged", "failed"}:
            return {"values": [float(np.mean([s[name] for s in seeds])) for name in names]}
        # A run that failed says nothing about its setting.
        if self.study.table.diverged == "fail" or "failed" in statuses:
            return {"state": TrialState.FAIL}
        return {"values": [objectives.worst(name) for name in names]}

    def best(self) -> FrozenTrial | None:
        """The trial to report, by the protocol: of two objectives, the one of the Pareto front whose sum is best."""
        if self.study.protocol == plasticity.PROTOCOL:
            well = [t for t in self.complete if REASON not in t.user_attrs]
            return plasticity.chosen(well, self.study.table.plasticity)
        signs = [1 if objectives.direction(name) == "maximize" else -1 for name in self.study.objectives]
        # One told as the worst value is nothing to report, even where all are.
        with self.storage.explained():
            front = [t for t in self.optuna.best_trials if REASON not in t.user_attrs] if self.complete else []
        return max(front, key=lambda t: sum(s * v for s, v in zip(signs, t.values, strict=True)), default=None)

    def _sampler(self, seed: int) -> BaseSampler:
        table = self.study.table
        if table.sampler == "gp":
            # It would say at every start that a package is not there which nobody needs.
            logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)
            return GPSampler(seed=seed, n_startup_trials=table.batch)
        if table.sampler == "random":
            return RandomSampler(seed=seed)
        # Constant liar: what is still in training counts as bad, so that a batch spreads.
        return TPESampler(seed=seed, n_startup_trials=table.batch, constant_liar=True)

    def _described(self) -> None:
        """Refuse to go on with a study that searched something else.

        Raises:
            StudyError: with what differs.
        """
        mine = json.loads(json.dumps(self.study.description(self.search)))
        there = self.optuna.user_attrs.get(DESCRIPTION)
        if there is None and self.optuna.get_trials(deepcopy=False):
            raise StudyError(f"the study {self._name!r} is not one of forgetbench's; --new starts one of its own")
        if there is None:
            self.optuna.set_user_attr(DESCRIPTION, mine)
        elif there != mine:
            differs = [
                f"{k}: {there.get(k)!r} there, {mine.get(k)!r} here"
                for k in sorted({*there, *mine})
                if there.get(k) != mine.get(k)
            ]
            raise StudyError(
                f"the study {self._name!r} is another one; --new starts one of its own:\n  " + "\n  ".join(differs)
            )

    def _orphans(self) -> None:
        """Trials a killed command left running are failed and their settings asked again, or ended if all is known."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if SEEDS in trial.user_attrs and trial.intermediate_values:
                self.optuna.tell(trial.number, state=TrialState.PRUNED)
            elif SEEDS in trial.user_attrs:
                self.optuna.tell(trial.number, **self._told(trial.user_attrs[SEEDS]))
            else:
                self.optuna.tell(trial.number, state=TrialState.FAIL)
                # One killed while it was being asked has not all of its parameters yet.
                self.optuna.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})


def reason(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Why a trial has no value: `diverged with seeds 0, 1`; empty if it has one."""
    lost = {status: [str(s["seed"]) for s in seeds if s["status"] == status] for status in ("failed", "diverged")}
    return "; ".join(f"{status} with seeds {', '.join(which)}" for status, which in lost.items() if which)


def free_suffix(study: Study, storage: str | BaseStorage | Storage) -> str:
    """What tells another study of this file from those that are there: `-2`, `-3`, ..., or nothing for the first.

    Args:
        study: the file.
        storage: see `Storage.of`.

    Raises:
        StudyError: the storage cannot be used.
    """
    known = {name.partition("/")[0] for name in Storage.of(storage).names()}
    suffixes = ["", *(f"-{n}" for n in range(2, len(known) + 3))]
    return next(suffix for suffix in suffixes if study.name + suffix not in known)


def grid(search: Search, points: int) -> list[dict[str, Any]]:
    """A first look at the whole space: log-spaced along the first range, with 0 where it begins there.

    Args:
        search: whose space.
        points: how many settings.

    Returns:
        Settings; choices take turns, and ranges but the first are at their geometric or arithmetic middle.
    """
    names = list(search.space)
    first = next((n for n in names if not isinstance(search.space[n], CategoricalDistribution)), None)
    settings = []
    for i in range(points):
        setting: dict[str, Any] = {}
        for name in names:
            distribution = search.space[name]
            if isinstance(distribution, CategoricalDistribution):
                setting[name] = distribution.choices[i % len(distribution.choices)]
            elif isinstance(distribution, FloatDistribution | IntDistribution):
                setting[name] = _spread(distribution, points)[i] if name == first else _middle(distribution)
        settings.append(setting)
    return settings


def _middle(distribution: FloatDistribution | IntDistribution) -> float:
    low, high = distribution.low, distribution.high
    middle = (low * high) ** 0.5 if distribution.log else (low + high) / 2
    return round(middle) if isinstance(distribution, IntDistribution) else middle


def _spread(distribution: FloatDistribution | IntDistribution, points: int) -> list[float]:
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        values = np.geomspace(low, high, points) if points > 1 else np.array([_middle(distribution)])
    elif distribution.low == 0 and points > 1:
        values = np.concatenate([[0.0], np.geomspace(high, high / 10**DECADES, points - 1)[::-1]])
    else:
        values = np.linspace(low, high, points)
    clipped = [min(max(float(v), low), high) for v in values]
    return [round(v) for v in clipped] if isinstance(distribution, IntDistribution) else clipped
