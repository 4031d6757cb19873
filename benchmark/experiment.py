"""An experiment from file to results: what is finished already, training, tables on disk, MLflow."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from benchmark import environment, models, scenarios
from benchmark.config import Experiment
from benchmark.results import Record, Store, text_fields
from benchmark.runs import Run
from benchmark.server import TrackingError
from benchmark.session import Say, Session
from benchmark.tracking import Tracker, start_times


class Presentation(Protocol):
    """How results look in the tracker; `reports.overview` is one."""

    def contents(self, runs: pd.DataFrame, accuracy: pd.DataFrame) -> tuple[str, dict[str, Any]]:
        """A Markdown note and figures by file name, for the overview run."""

    def colours(self, strategies: list[str]) -> dict[str, str]:
        """A colour a strategy, as `#rrggbb` by label."""


@dataclass(frozen=True)
class Outcome:
    """What an experiment left behind.

    Attributes:
        records: one a run, in the order of the experiment.
        folder: of its tables.
        undelivered: why MLflow does not have everything, or None.
    """

    records: list[Record]
    folder: Path
    undelivered: str | None

    def failed(self) -> str:
        """How many runs failed, and why; empty if none did."""
        failed = sum(r.status == "failed" for r in self.records)
        said = f"{failed} of {len(self.records)} runs failed; the same command tries them again"
        return with_reasons(said, self.records) if failed else ""

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Tidy `runs` and `accuracy`, see `reports.load`."""
        return frames(self.records)


def with_reasons(said: str, records: Iterable[Record]) -> str:
    """A sentence, and below it why runs failed, as far as it is known.

    Args:
        said: the sentence.
        records: of runs, also of some that did not fail.
    """
    reasons = Counter(record.reason for record in records if record.status == "failed")
    listed = [f"{reason} ({many} run{'s' * (many > 1)})" for reason, many in reasons.most_common()]
    return "\n  ".join([f"{said}:" if listed else said, *listed])


def frames(records: list[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tidy `runs` and `accuracy` of records, see `reports.load`."""
    runs = pd.DataFrame(
        [
            {"run_key": r.run_key, "strategy": r.strategy, "seed": r.seed, "status": r.status, **r.fields, **r.values}
            for r in records
        ]
    )
    accuracy = pd.DataFrame(
        [
            (r.run_key, r.strategy, r.seed, k, j + 1, r.accuracy[k, j])
            for r in records
            for k, j in np.ndindex(r.accuracy.shape)
        ],
        columns=["run_key", "strategy", "seed", "after_task", "task", "accuracy"],
    )
    return runs, accuracy


def run(experiment: Experiment, session: Session, *, tracker: Tracker | None, presentation: Presentation) -> Outcome:
    """Run what is not finished yet, and track everything.

    Args:
        experiment: what to run.
        session: where and with what.
        tracker: where runs are logged; None keeps them on disk only.
        presentation: how results look there.

    Raises:
        ResultsError: the results cannot be written.
        DataError: the images cannot be had.
    """
    started, wanted, say = time.time(), experiment.runs(), session.say
    times = start_times(((r.key, r.seed) for r in wanted), started)
    delivery = _Delivery(tracker, presentation, times, say)
    with Store(session.out / experiment.name) as store:
        store.require(study=False)
        todo = [r for r in wanted if not store.settled(r)]
        tasks = scenarios.load(experiment.scenario, session.data_dir, say)
        if len(todo) < len(wanted):
            say(f"{len(wanted) - len(todo)} of {len(wanted)} runs are finished already; they are not run again")
        settings = common([text_fields(r) for r in wanted])
        if todo:
            models.require_stackable(experiment.model, tasks[0].shape, experiment.scenario.heads(tasks).outputs)
            store.describe(settings, environment.describe(session.device, tasks), [e.label for e in experiment.entries])
        delivery.open(settings, started)
        labels = [entry.label for entry in experiment.entries]
        for results in session.train(todo, tasks, store.add):
            delivery.records(_of([result.run for result in results], store), labels)
        records = _of(wanted, store)
        delivery.records(records, labels)
        delivery.close(records, store)
    return Outcome(records, store.folder, delivery.failure)


def sync(folder: Path, tracker: Callable[[], Tracker], presentation: Presentation) -> tuple[int, int] | None:
    """Deliver the results of an experiment's folder to MLflow; what is there already stays.

    Args:
        folder: `out/<name>/`.
        tracker: gives where to, if there is anything to deliver.
        presentation: how results look there.

    Returns:
        How many runs were new there, and how many the folder holds; None for a study's folder, whose trials its own
        command delivers.

    Raises:
        ResultsError: the folder cannot be read, or another command is at work on it.
        TrackingError: the server stopped answering.
    """
    with Store(folder) as store:
        if store.of_study:
            return None
        # What the last command that trained here said, so that the runs share its overview; unless others are here too.
        settings, _ = store.description()
        records, started = _told_apart(store.in_order()), store.trained_at()
        if not records:
            return 0, 0
        place = tracker()
        times = start_times(((r.run_key, r.seed) for r in records), started)
        told = all(r.fields.get(k) == v for r in records for k, v in settings.items())
        place.open(settings if settings and told else common([r.fields for r in records]), started)
        new = place.deliver(records, times, presentation.colours(_labels(records)))
        # Also where nothing is new: the overview may be what the server missed.
        _close(place, presentation, records, store)
    return new, len(records)


def _told_apart(records: list[Record]) -> list[Record]:
    """Labels are unique within one experiment file; a folder may hold the runs of several versions of it."""
    alike: dict[str, dict[str, set[str]]] = {}
    for r in records:
        seen = alike.setdefault(r.strategy, {})
        for k, v in r.fields.items():
            seen.setdefault(k, set()).add(v)
    told = []
    for r in records:
        names = sorted(k for k, values in alike[r.strategy].items() if len(values) > 1)
        extra = ",".join(f"{k}={r.fields.get(k, '')}" for k in names)
        told.append(dataclasses.replace(r, strategy=f"{r.strategy} ({extra})" if extra else r.strategy))
    # What is still alike was trained again by newer code of ours.
    return list({(r.strategy, r.seed): r for r in told}.values())


def _labels(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(r.strategy for r in records))


def _of(runs: list[Run], store: Store) -> list[Record]:
    """What became of these runs, in their order; the folder may hold runs of other settings."""
    return [dataclasses.replace(store.records[r.key], strategy=r.label) for r in runs if r.key in store.records]


class _Delivery:
    """Delivery to a tracker that may fail: training goes on, and the failure is said once."""

    def __init__(
        self, tracker: Tracker | None, presentation: Presentation, start_times: dict[str, float], say: Say
    ) -> None:
        self._tracker, self._presentation, self._start_times, self._say = tracker, presentation, start_times, say
        self.failure: str | None = None

    def records(self, records: list[Record], strategies: list[str]) -> None:
        colours = self._presentation.colours(strategies)
        self._try(lambda tracker: tracker.deliver(records, self._start_times, colours))

    def open(self, params: dict[str, str], started: float) -> None:
        self._try(lambda tracker: tracker.open(params, started))

    def close(self, records: list[Record], store: Store) -> None:
        self._try(lambda tracker: _close(tracker, self._presentation, records, store))

    def _try(self, call: Callable[[Tracker], object]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except TrackingError as error:
            self._tracker, self.failure = None, str(error)
            self._say(f"{error}; results stay on disk, deliver them with `forgetbench sync`")


def common(fields: list[dict[str, str]]) -> dict[str, str]:
    """What all runs have in common."""
    return {k: v for k, v in fields[0].items() if v and all(f.get(k) == v for f in fields)}


def _close(tracker: Tracker, presentation: Presentation, records: list[Record], store: Store) -> None:
    """Tables, figures, the environment that trained, and the saved view."""
    note, figures = presentation.contents(*frames(records))
    csvs = {name: (store.folder / name).read_text(encoding="utf-8") for name in ("runs.csv", "accuracy.csv")}
    files = {"result_table.md": note, **csvs, **figures}
    tracker.close(store.description()[1], note, files, records[0].accuracy.shape[1], _labels(records))
