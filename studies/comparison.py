"""Protocols on common ground: what each chose, trained once more on all tasks, with seeds by which none chose.

By its own rule each reports something else: `first-k` other tasks, `test-oracle` the images and the seeds it chose by.
Here a difference is that of two settings alone, seed by seed. What `test-oracle` has over `validation` here is what
looking at test images bought; what it reported beyond its own value here was luck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.config import Entry, Experiment
from benchmark.results import Record
from benchmark.runs import Run
from studies import objectives
from studies.answers import Answer
from studies.protocols import TEST_ORACLE, VALIDATION
from studies.spec import Study


@dataclass(frozen=True)
class Row:
    """One strategy with the setting that one protocol chose, by one objective.

    Attributes:
        label: of the strategy.
        entry: its label in the experiment, which names every protocol that chose the same; empty where nothing was
            chosen.
        protocol: that chose.
        params: the setting.
        objective: its name.
        reported: its values as the protocol itself reports them.
        values: on common ground, by seed; none of a run that diverged.
    """

    label: str
    entry: str
    protocol: str
    params: dict[str, Any]
    objective: str
    reported: list[float]
    values: dict[int, float]


def experiment(studies: Sequence[Study], answers: Sequence[Sequence[Answer]]) -> Experiment | None:
    """What each protocol chose as an experiment, one entry a setting.

    Args:
        studies: of one file, one a protocol.
        answers: of each study.

    Returns:
        None where no study chose anything.
    """
    whole, chosen = studies[0].experiment, dict[tuple[str, ...], tuple[Answer, Run, list[str]]]()
    for study, answer in _pairs(studies, answers):
        if runs := _runs(study, answer):
            alike = answer.label, *(run.key for run in runs)
            chosen.setdefault(alike, (answer, runs[0], []))[2].append(study.marked)
    entries = tuple(
        Entry(f"{answer.label} ({'; '.join(by)})", run.strategy_name, run.strategy, run.recipe)
        for answer, run, by in chosen.values()
    )
    if not entries:
        return None
    return Experiment(
        f"{whole.name}-compared", whole.scenario, whole.model, studies[0].fresh_seeds, entries, whole.content
    )


def rows(studies: Sequence[Study], answers: Sequence[Sequence[Answer]], records: Iterable[Record]) -> list[Row]:
    """What came of it, by strategy.

    Args:
        studies: as for `experiment`.
        answers: of each study.
        records: of the experiment's runs.
    """
    known, found = {record.run_key: record for record in records}, []
    for study, answer in _pairs(studies, answers):
        own = [known[run.key] for run in _runs(study, answer) if run.key in known]
        for name, reported in answer.tested.items():
            values = {r.seed: objectives.value(name, r) for r in own if r.status == "finished"}
            entry = own[0].strategy if own else ""
            found.append(Row(answer.label, entry, study.protocol, answer.params, name, reported, values))
    labels = list(dict.fromkeys(row.label for row in found))
    return sorted(found, key=lambda row: labels.index(row.label))


def _pairs(studies: Sequence[Study], answers: Sequence[Sequence[Answer]]) -> list[tuple[Study, Answer]]:
    return [(study, answer) for study, each in zip(studies, answers, strict=True) for answer in each]


def _runs(study: Study, answer: Answer) -> list[Run]:
    """On common ground; none where nothing was chosen."""
    if not answer.params:
        return []
    (search,) = (search for search in study.searches if search.label == answer.label)
    return study.runs(study.entry(search, answer.params), study.experiment.scenario, study.fresh_seeds)


def baseline(rows: Sequence[Row]) -> str:
    """The protocol that others are compared with: `validation`, or else the first that does not look at test images."""
    there = dict.fromkeys(row.protocol for row in rows)
    return VALIDATION if VALIDATION in there else next((p for p in there if p != TEST_ORACLE), next(iter(there)))


def baseline_entry(rows: Sequence[Row]) -> str:
    """The label of what the baseline chose for the first strategy; empty if nothing.

    Args:
        rows: all of them.
    """
    return next((row.entry for row in rows if row.protocol == baseline(rows)), "")


def differences(row: Row, rows: Sequence[Row]) -> list[float]:
    """What a setting has over that of the baseline, seed by seed.

    Args:
        row: of `rows`.
        rows: all of them.
    """
    against = row.label, baseline(rows), row.objective
    (other,) = (each.values for each in rows if (each.label, each.protocol, each.objective) == against)
    return [value - other[seed] for seed, value in row.values.items() if seed in other]
