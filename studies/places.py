"""The budget of a study as numbered places, of which each is filled by one trial that counts, whoever trains it.

A driver that wants to fill a place puts a trial of it into Optuna's queue, and takes a trial out of it. Optuna sees to
it that a trial is taken out once. Two drivers may still queue a trial of the same place at the same moment. So the one
with the lower number has the place, and the other is given up untrained: numbers are given in order, and who sees a
trial sees all that came before. A trial that a driver left behind is failed; its place is free again, and its setting
tried again. A trial that failed stays so. Hence no place is filled twice, and no budget exceeded, without a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import FrozenTrial, TrialState

PLACE, DRIVER, SEEDS, REASON, SAVED = "place", "driver", "seeds", "reason", "saved"
"""User attributes of a trial: what it fills, who trains it, what came of it, why it has no value, what that saved."""
ENDED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial ended and is one of the budget: what came of it is known.

    One whose driver was taken for gone, just as it noted what came of it, failed without a reason.
    """
    attributes = trial.user_attrs
    return trial.state in ENDED and SEEDS in attributes and (trial.state != TrialState.FAIL or REASON in attributes)


def abandoned(trial: FrozenTrial) -> bool:
    """Whether a trial ended and its place is free again."""
    return trial.state in ENDED and not counts(trial)


def holders(trials: Iterable[FrozenTrial]) -> dict[Any, FrozenTrial]:
    """The trial that has each place: the first that was not abandoned; where all were, the last.

    Args:
        trials: of a study, all of them.
    """
    found: dict[Any, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        place = trial.user_attrs.get(PLACE)
        if place is not None and (place not in found or abandoned(found[place])):
            found[place] = trial
    return found


def free(trials: Sequence[FrozenTrial], budget: int, batch: int) -> list[int]:
    """The places to fill next: those that nobody fills, of the first batch that has any.

    A batch cut short is made whole first, so that what a study asks does not depend on how often it was stopped.

    Args:
        trials: of a study, all of them.
        budget: places there are.
        batch: how many belong together.
    """
    held = holders(trials)
    found = [p for p in range(budget) if p not in held or waits(held[p]) or abandoned(held[p])]
    return [place for place in found if place // batch == found[0] // batch]


def spent(trials: Sequence[FrozenTrial], budget: int) -> bool:
    """Whether every place is filled by a trial that counts.

    Args:
        trials: of a study, all of them.
        budget: places there are.
    """
    held = holders(trials)
    return all(place in held and counts(held[place]) for place in range(budget))


def seconds(trials: Iterable[FrozenTrial]) -> float:
    """Wall time in which any of some trials was in training: of all drivers and commands, and none while all rested.

    Args:
        trials: those that ended; one that a driver left behind may have ended long after that.
    """
    times = sorted((t.datetime_start, t.datetime_complete) for t in trials if t.datetime_start and t.datetime_complete)
    total, until = timedelta(), datetime.min
    for began, ended in times:
        total += max(ended - max(began, until), timedelta())
        until = max(until, ended)
    return total.total_seconds()


def saved(trials: Iterable[FrozenTrial]) -> tuple[int, float]:
    """Run-epochs and seconds that giving up trials saved, of all of them; see `pruning.GivenUp`.

    Args:
        trials: those that ended.
    """
    noted = [trial.user_attrs[SAVED] for trial in trials if SAVED in trial.user_attrs]
    return sum(each["run_epochs"] for each in noted), sum(each["seconds"] for each in noted)


def waits(trial: FrozenTrial) -> bool:
    """Whether a trial is queued, and nobody has taken it yet."""
    return trial.state == TrialState.WAITING


def setting(trials: Iterable[FrozenTrial], place: Any) -> dict[str, Any]:
    """What was tried at a place first, as far as it is known; empty if nothing was.

    Args:
        trials: of a study, in order.
        place: whose trials.
    """
    tried = (asked_for(trial) for trial in trials if trial.user_attrs.get(PLACE) == place)
    return next((params for params in tried if params), {})


def asked_for(trial: FrozenTrial) -> dict[str, Any]:
    """Hyperparameters of a trial: one that was killed while it was being asked has not all of them as its own."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
