"""Trials of an Optuna study, shared among drivers: queued, taken, ended, and taken over from a driver that is gone.

What the places of a study are, and why none is filled twice, is in `places`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from studies.drivers import Driver
from studies.places import DRIVER, PLACE, abandoned, holders
from studies.storage import GRACE, Storage, unwarned

SIGNING = 15.0  # seconds that a driver which takes a trial has until it says so


class Claims:
    """The trials of one Optuna study that a driver holds, and what it sees of the others'.

    Args:
        study: whose trials have places.
        storage: of the study.
        driver: who takes them.
    """

    def __init__(self, study: optuna.Study, storage: Storage, driver: Driver) -> None:
        self._study, self._storage, self._driver = study, storage, driver
        self._mine: dict[int, int] = {}  # number and id of each trial held
        self._half: list[int] = []  # those of them that nobody was given yet
        self._seen: dict[int, float] = {}  # when each trial of another driver was seen first
        self._helped: set[int] = set()  # those of them that got a heartbeat from here

    def trials(self) -> list[FrozenTrial]:
        """All that there are, by number."""
        return self._study.get_trials(deepcopy=False)

    def queue(self, settings: Iterable[tuple[Any, dict[str, Any]]]) -> None:
        """Queue a trial for each place that has none.

        Args:
            settings: place and hyperparameters; what is missing there the sampler chooses.
        """
        for place, params in settings:
            there = holders(self.trials()).get(place)  # anew each time: another driver may be doing the same
            if there is None or abandoned(there):
                self._study.enqueue_trial(params, user_attrs={PLACE: place, DRIVER: self._driver.attributes()})

    def take(
        self,
        most: int,
        valid: Container[Any],
        space: Mapping[str, BaseDistribution] | None = None,
    ) -> list[optuna.Trial]:
        """Take trials out of the queue, which are this driver's to train from now on.

        Args:
            most: how many.
            valid: places that are to be filled; a trial of any other is given up.
            space: what is asked; None: nothing.
        """
        taken: list[optuna.Trial] = []
        for _ in range(most):
            trial = self._next(space or {})
            if trial is None:
                continue
            place = trial.user_attrs.get(PLACE)
            if self._signed(trial) and place in valid and holders(self.trials())[place].number == trial.number:
                taken.append(trial)
            else:
                self.end(trial.number, state=TrialState.FAIL)  # another driver was first
        self._half.clear()
        return taken

    def put_back(self) -> None:
        """Give up what was taken when the connection to the storage broke, so that it can be taken again."""
        while self._half:
            self.end(self._half[-1], state=TrialState.FAIL)
            self._half.pop()

    def _next(self, space: Mapping[str, BaseDistribution]) -> optuna.Trial | None:
        try:
            with unwarned():
                trial = self._study.ask(dict(space))
        except UpdateFinishedTrialError:  # who queued it is gone, and its trials have just been taken over
            return None
        self._mine[trial.number] = trial._trial_id
        self._half.append(trial.number)  # before the storage is called again, which may break
        self._storage.pulse.hold(trial._trial_id)
        return trial

    def _signed(self, trial: optuna.Trial) -> bool:
        """Whether a trial says that it is this driver's: it cannot where it was freed a moment ago, as above."""
        with contextlib.suppress(UpdateFinishedTrialError):
            if trial.user_attrs.get(DRIVER) != self._driver.attributes():
                trial.set_user_attr(DRIVER, self._driver.attributes())
            return True
        return False

    def holds(self, trial: optuna.Trial) -> bool:
        """Whether a trial is still to be told, and was not taken over."""
        return not self._storage.optuna.get_trial(trial._trial_id).state.is_finished()

    def end(self, number: int, **told: Any) -> bool:
        """End a trial, if nobody else has.

        Args:
            number: of the trial.
            told: as `optuna.Study.tell` takes it.

        Returns:
            Whether it was ended here.
        """
        self._storage.pulse.let_go(self._mine.pop(number, -1))
        with contextlib.suppress(UpdateFinishedTrialError):
            if not self.trials()[number].state.is_finished():
                self._study.tell(number, **told, skip_if_finished=True)
                return True
        return False

    def others(self) -> list[FrozenTrial]:
        """Trials that other drivers are at."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if trial.number not in self._mine]

    def take_over(self, end: Callable[[FrozenTrial], object]) -> list[FrozenTrial]:
        """End the trials of drivers that are gone, so that their places are free again.

        A driver is known to be gone where its process can be looked for. Of any other, Optuna's heartbeat decides.

        Args:
            end: ends one whose driver is gone for certain.

        Returns:
            Those that were ended, as they were before.
        """
        before = self.others()
        for trial in before:
            if self._left(trial):
                with contextlib.suppress(UpdateFinishedTrialError):
                    end(trial)
        self._storage.fail_stale(self._study)
        now = {trial.number for trial in self.others()}
        for trial in before:
            # Optuna never takes a trial for stale that had no heartbeat at all, so a kill just before the first one
            # would leave it for ever. One from here is enough.
            if trial.number in now - self._helped and self._watched(trial) > GRACE:
                self._storage.beat(trial._trial_id)
                self._helped.add(trial.number)
        return [trial for trial in before if trial.number not in now]

    def _left(self, trial: FrozenTrial) -> bool:
        """Whether it is certain that nobody trains a trial."""
        if DRIVER not in trial.user_attrs:
            return True
        owner = Driver.of(trial.user_attrs[DRIVER])
        if owner.id == self._driver.id:
            # Queued here, and taken by another driver, which says so next. If it still can; if it is late, it notices.
            return self._watched(trial) > SIGNING
        return owner.gone(rebooted=not self._storage.beats)

    def _watched(self, trial: FrozenTrial) -> float:
        """Seconds since a trial of another driver was seen first."""
        now = time.monotonic()
        return now - self._seen.setdefault(trial.number, now)
