"""Optuna, asked and told a batch at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from studies import fate, objectives, places, plasticity
from studies.claims import Claims
from studies.drivers import Driver
from studies.grid import grid
from studies.places import DRIVER, REASON, SAVED, SEEDS
from studies.protocols import PLASTICITY_FIRST
from studies.pruning import GivenUp
from studies.ranges import Search
from studies.samplers import PlaceSampler
from studies.spec import Study
from studies.storage import Storage, StudyError, patient

DESCRIPTION = "description"


class Searcher:
    """One strategy's Optuna study.

    Args:
        study: what the file says.
        search: the strategy and its ranges.
        storage: see `Storage.of`.
        resume: continue a study of that name, or join the drivers that are at work on it.
        driver: who asks; None: one that nobody waits for.

    Raises:
        StudyError: there is one of that name already, or it searches something else, or the storage cannot be used.
    """

    def __init__(
        self,
        study: Study,
        search: Search,
        storage: str | BaseStorage | Storage,
        *,
        resume: bool,
        driver: Driver | None = None,
    ) -> None:
        self.study, self.search, self._name = study, search, f"{study.name}/{search.label}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = Storage.of(storage)
        if self._name in self.storage.names() and not resume:
            raise StudyError(
                f"there is a study {self._name!r}: --resume continues it, or joins those at work on it; "
                "--new starts another"
            )
        self._driver, self._settings, self._news = driver or Driver.here(), self._planned(), list[str]()
        self._open()

    @patient
    def _open(self) -> None:
        self.optuna = optuna.create_study(
            storage=self.storage.optuna,
            study_name=self._name,
            sampler=PlaceSampler(self.study.table.sampler, self.study.table.seed),
            load_if_exists=True,
            directions=[objectives.direction(name) for name in self.study.objectives],
        )
        self._described()
        self._claims = Claims(self.optuna, self.storage, self._driver)
        self._news = self.take_over()
        # From the start, so that drivers which come at the same time share them.
        self._queue([place for place in self._free() if place < len(self._settings)])

    def describe(self) -> str:
        """What is searched, in words."""
        if self.study.protocol != PLASTICITY_FIRST:
            return self.search.describe()
        first, *_, last = plasticity.ladder(self.study, self.search)
        return f"{self.search.label}: lam from {first:.3g} down to {last:.3g}"

    def _planned(self) -> list[dict[str, Any]]:
        """Settings to be asked before the sampler is."""
        if self.study.protocol == PLASTICITY_FIRST:
            return [{"lam": lam} for lam in plasticity.ladder(self.study, self.search)]
        points = grid(self.search, min(self.study.table.batch, self.study.trials))
        return [point for i, point in enumerate(points) if point not in points[:i]]  # few choices repeat themselves

    @property
    @patient
    def ended(self) -> list[FrozenTrial]:
        """Trials that count: all that ended, but for those that a driver left behind."""
        return [trial for trial in self._claims.trials() if places.counts(trial)]

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials with a value."""
        return [t for t in self.ended if t.state == TrialState.COMPLETE]

    @patient
    def ask(self) -> list[optuna.Trial]:
        """The next batch; empty when nothing is left to ask: others train the rest of the budget, or it is spent."""
        self._claims.put_back()
        while free := self._free():
            self._queue(free)
            valid = range(self.study.trials)
            if asked := self._claims.take(len(free), valid, self.search.space):
                return asked
        return []

    @property
    @patient
    def spent(self) -> bool:
        """Whether all of the budget has ended."""
        return places.spent(self._claims.trials(), self.study.trials)

    @patient
    def tidy(self) -> None:
        """Once the budget is spent, give up trials that nobody needs: of places which another trial fills.

        A driver that was killed between taking one out of the queue and giving it up left it, or never took it.
        """
        waiting = sum(places.waits(trial) for trial in self._claims.trials())
        self._claims.take(waiting, valid=())
        for trial in self._claims.others():
            if trial.user_attrs.get(places.PLACE, -1) in range(self.study.trials):
                self._claims.end(trial.number, state=TrialState.FAIL)

    @patient
    def others(self) -> list[FrozenTrial]:
        """Trials of the budget that other drivers are at."""
        held = places.holders(self._claims.trials())
        filling = {held[place].number for place in range(self.study.trials) if place in held}
        return [trial for trial in self._claims.others() if trial.number in filling]

    @patient
    def take_over(self) -> list[str]:
        """Free the places of drivers that are gone; their settings are asked again, unless all of a trial is known.

        Returns:
            A line for each such driver; the first time, with those that were gone when this one came.
        """
        lost: dict[str, list[str]] = {}
        for trial in self._claims.take_over(self._ended_for):
            owner = Driver.of(trial.user_attrs.get(DRIVER, {}))
            who = "a driver that gave no name" if owner.id == self._driver.id else str(owner)
            lost.setdefault(who, []).append(str(trial.number))
        label = self.search.label
        said, self._news = self._news, []
        return said + [f"{label}: {who} is gone, took over trials {', '.join(t)}" for who, t in lost.items()]

    @patient
    def holds(self, trial: optuna.Trial) -> bool:
        """Whether a trial is still this driver's: one that was silent for too long is taken for gone.

        Args:
            trial: from `ask`.
        """
        return self._claims.holds(trial)

    @patient
    def drivers(self) -> set[Driver]:
        """Who has been at work on any trial, be it one that was left behind."""
        attributes = (trial.user_attrs.get(DRIVER) for trial in self._claims.trials())
        return {Driver.of(each) for each in attributes if each}

    @patient
    def note(self, trial: optuna.Trial, name: str, value: Any) -> None:
        """Set a user attribute of a trial, unless it has been taken over.

        Args:
            trial: from `ask`.
            name: of the attribute.
            value: JSON.
        """
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(name, value)

    def tell(self, trial: optuna.Trial, seeds: list[dict[str, Any]]) -> bool:
        """End a trial.

        Args:
            trial: from `ask`.
            seeds: of each tuning seed, in order: `seed`, `run_key`, `status`, and each objective's value; by the
                protocol `plasticity-first` also what `plasticity.kept` wants to know.

        Returns:
            Whether it counts: it does not where it was taken over.
        """
        return self._end(trial, seeds, fate.reason(seeds), **self._told(seeds))

    @patient
    def prune(self, trial: optuna.Trial, seeds: list[dict[str, Any]], given_up: GivenUp) -> bool:
        """End a trial that was given up.

        Args:
            trial: from `ask`.
            seeds: of each tuning seed: `seed`, `run_key`, `status`.
            given_up: when, and what that saved.

        Returns:
            Whether it counts, as `tell` does.
        """
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.report(given_up.value, given_up.task)
        self.note(trial, SAVED, {"run_epochs": given_up.run_epochs, "seconds": given_up.seconds})
        return self._end(trial, seeds, f"pruned after task {given_up.task}", state=TrialState.PRUNED)

    @patient
    def _end(self, /, trial: optuna.Trial, seeds: list[dict[str, Any]], why: str, **told: Any) -> bool:
        # The reason first: who finds seeds and no reason takes the trial for one that has a value.
        if why:
            self.note(trial, REASON, why)
        self.note(trial, SEEDS, seeds)
        return self._claims.end(trial.number, **told)

    def _ended_for(self, left: FrozenTrial) -> None:
        """End a trial whose driver is gone: as it would have been, if all is known."""
        seeds: list[dict[str, Any]] = left.user_attrs.get(SEEDS, [])
        if why := fate.reason(seeds):
            self.storage.optuna.set_trial_user_attr(left._trial_id, REASON, why)
        if not seeds:
            self._claims.end(left.number, state=TrialState.FAIL)
        elif left.intermediate_values:
            self._claims.end(left.number, state=TrialState.PRUNED)
        else:
            self._claims.end(left.number, **self._told(seeds))

    def _free(self) -> list[int]:
        return places.free(self._claims.trials(), self.study.trials, self.study.table.batch)

    def _queue(self, free: list[int]) -> None:
        trials, planned = self._claims.trials(), dict(enumerate(self._settings))
        self._claims.queue((place, places.setting(trials, place) or planned.get(place, {})) for place in free)

    def _told(self, seeds: list[dict[str, Any]]) -> dict[str, Any]:
        """What Optuna is told of a trial: values, or that it failed."""
        names, state = self.study.objectives, fate.state(seeds)
        if state == "complete":
            return {"values": [float(np.mean([s[name] for s in seeds])) for name in names]}
        # A run that failed says nothing about its setting.
        if self.study.table.diverged == "fail" or state == "failed":
            return {"state": TrialState.FAIL}
        return {"values": [objectives.worst(name) for name in names]}

    @patient
    def best(self) -> FrozenTrial | None:
        """The trial to report, by the protocol: of two objectives, the one of the Pareto front whose sum is best."""
        if self.study.protocol == PLASTICITY_FIRST:
            well = [t for t in self.complete if REASON not in t.user_attrs]
            return plasticity.chosen(well, self.study.table.plasticity)
        signs = [1 if objectives.direction(name) == "maximize" else -1 for name in self.study.objectives]
        # One told as the worst value is nothing to report, even where all are.
        front = [t for t in self.optuna.best_trials if REASON not in t.user_attrs] if self.complete else []
        return max(front, key=lambda t: sum(s * v for s, v in zip(signs, t.values, strict=True)), default=None)

    def _described(self) -> None:
        """Refuse to go on with a study that searched something else.

        Raises:
            StudyError: with what differs.
        """
        mine = json.loads(json.dumps(self.study.description(self.search)))
        # In this order: a driver that has just made the study describes it before it queues trials.
        trials = self.optuna.get_trials(deepcopy=False)
        there = self.optuna.user_attrs.get(DESCRIPTION)
        if there is None and trials:
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
                f"the study {self._name!r} that is there is not what this command asks for; --new starts another:\n  "
                + "\n  ".join(differs)
            )


def free_name(studies: Sequence[Study], storage: str | BaseStorage | Storage) -> str:
    """The name of another study of a file, beside those that are there: its own, or that with `-2`, `-3`, ...

    Args:
        studies: of the file, one a protocol.
        storage: see `Storage.of`.

    Raises:
        StudyError: the storage cannot be used.
    """
    known = {name.partition("/")[0] for name in Storage.of(storage).names()}
    own = studies[0].experiment.name
    names = [own, *(f"{own}-{n}" for n in range(2, len(known) + 3))]
    protocols = [study.name.removeprefix(own) for study in studies]
    return next(name for name in names if known.isdisjoint(name + protocol for protocol in protocols))
