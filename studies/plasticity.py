"""Protocol `plasticity-first`: the largest λ with which new tasks are learnt nearly as well as by fine-tuning.

λ starts at the high end of its range and comes down, λ_k = high · d^k for k = 0..n, with d `study.lam_decay` (0.5) and
n `study.lam_decays` (7). With a̅[j,j] the accuracy on task j's validation images just after learning it, averaged over
the tuning seeds, and f̅[j,j] that of fine-tuning with the same seeds, a λ keeps

    min over tasks j = 2..T of a̅[j,j] / f̅[j,j],

and the first λ_k that keeps `study.plasticity` (0.8) is chosen; where none does, the last.

What differs from De Lange et al. 2021, whose rule this is: they choose a λ for every task, on the way; here one λ
serves the whole sequence, and keeps the fraction on each of its tasks. Their fine-tuning starts a task from the network
that the strategy left, ours from the one that fine-tuning left. They choose the learning rate by fine-tuning too; here
the recipe has it. All λ_k are trained, as one stack, where they stop at the first that will do: the choice is the same,
and every strategy gets as many trials. The first task does not count: no λ acts on it.

References:
    De Lange et al. 2021, https://arxiv.org/abs/1909.08383 (the continual hyperparameter framework).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from benchmark.config import Entry
from benchmark.results import Record
from benchmark.runs import Run
from strategies import Naive
from studies.protocols import PLASTICITY_FIRST
from studies.ranges import Search
from studies.spec import Study
from studies.storage import StudyError

LEARNT, FINE_TUNED = "learnt", "fine_tuned"
"""Of a seed of a trial: accuracy on tasks 2..T just after each was learnt, with the trial's λ and by fine-tuning."""


def ladder(study: Study, search: Search) -> list[float]:
    """The values of λ, from the high end of its range down.

    Args:
        study: says how often it comes down, and how much.
        search: of a strategy whose λ alone is searched.
    """
    lam, table = cast(FloatDistribution, search.space["lam"]), study.table
    # But for rounding all are within the range; the file was checked for that.
    return [max(lam.high * table.lam_decay**k, lam.low) for k in range(table.lam_decays + 1)]


def beside(study: Study, entry: Entry) -> list[Run]:
    """What a trial is compared with: fine-tuning by the same recipe, with the same seeds; nothing by another protocol.

    Args:
        study: says by which protocol.
        entry: of the trial.
    """
    plain = Entry("fine-tuning", Naive.name, Naive(), entry.recipe)
    return study.runs(plain, study.tuning, study.tuning_seeds) if study.protocol == PLASTICITY_FIRST else []


def compare(seeds: list[dict[str, Any]], records: list[Record], fine_tuned: list[Record]) -> None:
    """Note in each seed of a trial what `kept` wants to know; nothing where there is nothing to compare with.

    Args:
        seeds: of the trial, added to.
        records: of their runs.
        fine_tuned: of the runs of `beside`.

    Raises:
        StudyError: fine-tuning itself did not end well.
    """
    if not fine_tuned:
        return
    advice = {"diverged": "lower train.lr", "failed": "the same command with --resume tries again"}
    for status, what in advice.items():
        if lost := [str(r.seed) for r in fine_tuned if r.status == status]:
            raise StudyError(
                f"fine-tuning {status} with seeds {', '.join(lost)}: protocol {PLASTICITY_FIRST} has nothing to "
                f"compare with; {what}"
            )
    for seed, ours, theirs in zip(seeds, records, fine_tuned, strict=True):
        seed |= {LEARNT: _learnt(ours), FINE_TUNED: _learnt(theirs)}


def kept(seeds: Sequence[Mapping[str, Any]]) -> float:
    """The fraction of fine-tuning's accuracy that a trial keeps on the new task it costs most.

    Args:
        seeds: of a complete trial, each with `learnt` and `fine_tuned`.
    """
    ours, theirs = (np.mean([seed[name] for seed in seeds], axis=0) for name in (LEARNT, FINE_TUNED))
    # Where fine-tuning learns nothing there is nothing to fall short of.
    return float(np.min(np.divide(ours, theirs, out=np.ones_like(ours), where=theirs > 0)))


def chosen(trials: Sequence[FrozenTrial], least: float) -> FrozenTrial | None:
    """The first trial on the way down that keeps enough; else the last; None where there is no trial.

    Args:
        trials: that ended well, in any order.
        least: fraction of fine-tuning's accuracy that is enough.
    """
    down = sorted(trials, key=lambda trial: -float(trial.params["lam"]))
    enough = [trial for trial in down if kept(trial.user_attrs["seeds"]) >= least]
    return next(iter(enough or down[-1:]), None)


def verdict(study: Study, search: Search, trial: FrozenTrial) -> str:
    """How a λ came to be chosen, for people.

    Args:
        study: whose protocol this is.
        search: of the strategy.
        trial: from `chosen`.
    """
    least, fraction = study.table.plasticity, kept(trial.user_attrs["seeds"])
    lams = ladder(study, search)
    place = min(range(len(lams)), key=lambda k: abs(lams[k] - trial.params["lam"]))
    times = "once" if place == 1 else f"{place} times"
    said = f"{search.label}: lam was lowered {times}; it keeps {fraction:.2f} of fine-tuning's accuracy on the new task"
    if fraction < least:
        return f"{said} it costs most, not {least:g}: start lower, or go further (study.lam_decays, study.lam_decay)"
    return f"{said} it costs most" + ("" if place else "; a higher start may protect more")


def _learnt(record: Record) -> list[float | None]:
    """Accuracy on tasks 2..T just after learning each; None for NaN, which JSON does not have."""
    return [float(v) if np.isfinite(v) else None for v in record.accuracy[1:].diagonal()[1:]]
