"""A study in MLflow: a flat run a trial with its seeds nested under it, the tested settings, and one overview run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from benchmark import tracking, views
from benchmark.keys import digest
from benchmark.results import Record
from benchmark.server import TrackingError
from benchmark.tracking import Tracker
from studies import fate, frames, objectives, places
from studies.answers import saving
from studies.fate import Seeds
from studies.places import PLACE, REASON, SEEDS
from studies.protocols import TEST_ORACLE
from studies.search import Searcher
from studies.spec import Study

Say = Callable[[str], None]
MLFLOW_RUNS = "mlflow_runs"
"""User attribute of a trial: ids of the MLflow runs of its seeds, in their order."""


class Presentation(Protocol):
    """How a study looks in the tracker; `reports.studies` is one."""

    def contents(
        self, frames: Mapping[str, pd.DataFrame], objectives: Mapping[str, str], *, tuned_on_test: bool
    ) -> Mapping[str, Any]:
        """Figures and texts by file name, of `studies.frames.every`."""

    def colours(self, strategies: list[str]) -> dict[str, str]:
        """A colour a strategy, as `#rrggbb` by label."""


class Delivery:
    """Delivery to a tracker that may fail: the study goes on, and the failure is said once.

    What is there already is found out by asking, so delivering again adds what is missing and nothing else.

    Args:
        tracker: None delivers nothing.
        study: whose trials.
        presentation: how they look there.
        say: takes one line for each thing worth knowing.
    """

    def __init__(self, tracker: Tracker | None, study: Study, presentation: Presentation, say: Say) -> None:
        self._tracker, self._study, self._presentation, self._say = tracker, study, presentation, say
        self._started, self._opened = time.time(), False
        self._batches: dict[int, float] = {}  # when each was asked
        self.failure: str | None = None
        """Why MLflow does not have everything."""
        self.seconds = 0.0
        """Spent here, but for calls to Optuna."""

    def trial(self, searcher: Searcher, trial: optuna.Trial, seeds: Seeds, records: Mapping[str, Record]) -> None:
        """Log a trial before it is told, since one that has ended takes no more user attributes.

        Args:
            searcher: that asked it.
            trial: gets the ids of its seeds' runs as the user attribute `mlflow_runs`.
            seeds: as it will be told.
            records: of runs, by key.
        """

        def call(tracker: Tracker) -> None:
            about = self._trial(searcher, trial, seeds, records)
            if nested := tracker.deliver_trials([about], self._colours()).get(about.key):
                searcher.note(trial, MLFLOW_RUNS, [nested[s["run_key"]] for s in seeds if s["run_key"] in nested])

        self._try(call, [searcher])

    def trials(self, searchers: Sequence[Searcher], records: Mapping[str, Record], *, whole: bool = False) -> None:
        """Log every trial that ended and is not there yet.

        Args:
            searchers: one a strategy.
            records: of runs, by key.
            whole: there will be no others; see `Tracker.deliver_trials`.
        """

        def call(tracker: Tracker) -> None:
            about = self._ended(searchers, records)
            owners = {driver.owner for searcher in searchers for driver in searcher.drivers()} - {""}
            tracker.deliver_trials(about, self._colours(), whole=owners | {tracker.owner} if whole else ())

        self._try(call, searchers)

    def own(self, searchers: Sequence[Searcher], records: Mapping[str, Record]) -> None:
        """Log this driver's trials that are not there yet, where another one does the rest.

        Args:
            searchers: one a strategy.
            records: of this driver's runs, by key.
        """

        def call(tracker: Tracker) -> None:
            # Of what this driver trained others may have delivered some: they take over from one that is silent.
            tracker.deliver_trials(self._ended(searchers, records, own=True), self._colours(), anew=True)

        self._try(call, searchers)

    def _ended(
        self, searchers: Sequence[Searcher], records: Mapping[str, Record], *, own: bool = False
    ) -> list[tracking.Trial]:
        """Every trial that ended, as it is logged; or those alone whose runs are all among the records."""
        found = []
        for searcher in searchers:
            for trial in searcher.ended:
                seeds = trial.user_attrs[SEEDS]
                if not own or all(seed["run_key"] in records for seed in seeds):
                    found.append(self._trial(searcher, trial, seeds, records))
        return found

    def close(
        self,
        searchers: Sequence[Searcher],
        records: Mapping[str, Record],
        answers: str,
        tested: Mapping[str, Sequence[Record]],
        environment: dict[str, str],
    ) -> None:
        """Log what is missing, the runs that tested the chosen settings, and what the overview shows.

        Args:
            searchers: one a strategy.
            records: of trials' runs, by key.
            answers: what the study found, as a Markdown table.
            tested: runs of the chosen setting, by the strategy's label.
            environment: tags of the overview.
        """
        self.trials(searchers, records, whole=True)
        final = [self._named(r, label, "test") for label, each in tested.items() for r in each]

        def call(tracker: Tracker) -> None:
            # The chart page opens with the newest runs: those are to be trials.
            before = min((self._asked(s, t) for s in searchers for t in s.ended), default=self._started) - 1
            times = tracking.start_times(((r.run_key, r.seed) for r in final), before)
            # Another setting may have been the best when fewer trials were there.
            tracker.deliver(final, times, self._colours(), alone=True)
            note = f"{_budget(self._study, searchers)}\n\n{answers}\n\nTables and figures are among the artifacts."
            files = {**self._contents(searchers, records), "result_table.md": note}
            tasks = final[0].accuracy.shape[1] if final else self._study.reported.tasks
            tracker.close(environment, note, files, tasks, self._labels(), _axes(self._study))

        self._try(call, searchers)

    def _try(self, call: Callable[[Tracker], None], searchers: Sequence[Searcher]) -> None:
        if self._tracker is None:
            return
        began, storage = time.perf_counter(), searchers[0].storage
        elsewhere = storage.seconds
        try:
            if not self._opened:
                self._tracker.open(_settings(self._study), self._started)
                self._opened = True
            call(self._tracker)
        except TrackingError as error:
            self._tracker, self.failure = None, str(error)
            self._say(f"{error}; trials and results stay on disk, the same command with --resume delivers them")
        finally:
            self.seconds += time.perf_counter() - began - (storage.seconds - elsewhere)

    def _labels(self) -> list[str]:
        return [search.label for search in self._study.searches]

    def _colours(self) -> dict[str, str]:
        return self._presentation.colours(self._labels())

    def _contents(self, searchers: Sequence[Searcher], records: Mapping[str, Record]) -> Mapping[str, Any]:
        return self._presentation.contents(
            frames.every(searchers, records),
            {name: objectives.direction(name) for name in self._study.objectives},
            tuned_on_test=self._study.protocol == TEST_ORACLE,
        )

    def _named(self, record: Record, label: str, phase: str) -> Record:
        """As the tracker shows it: trials and tests are told apart by a param."""
        fields = record.fields | {"phase": phase, "protocol": self._study.protocol}
        return dataclasses.replace(record, strategy=label, fields=fields)

    def _trial(
        self, searcher: Searcher, trial: optuna.Trial | FrozenTrial, seeds: Seeds, records: Mapping[str, Record]
    ) -> tracking.Trial:
        label, state = searcher.search.label, fate.state(seeds)
        fixed = {k: v for k, v in searcher.search.fixed.items() if k != "name"}
        params = {"strategy": label, **fixed, **trial.params, "trial": trial.number, "seeds": len(seeds)}
        params |= {"phase": "tuning", "protocol": self._study.protocol, "scenario": self._study.tuning.name}
        params |= {"objective": ", ".join(self._study.objectives)}
        return tracking.Trial(
            key=_key(searcher, trial, seeds),
            name=f"{label} trial {trial.number}",
            status="finished" if state == "complete" else state,
            reason=trial.user_attrs.get(REASON, "") or fate.reason(seeds),
            params={k: str(v) for k, v in params.items()},
            metrics=_metrics(self._study, trial.params, seeds, records) | frames.saved(trial),
            started=self._asked(searcher, trial),
            ended=_ended(trial),
            runs=[self._named(records[s["run_key"]], label, "tuning") for s in seeds if s["run_key"] in records],
        )

    def _asked(self, searcher: Searcher, trial: optuna.Trial | FrozenTrial) -> float:
        """When a trial is said to have begun: newest first, strategies take turns within a batch."""
        batch, place = divmod(trial.number, self._study.table.batch)
        asked = trial.datetime_start.timestamp() if trial.datetime_start else self._started
        labels = self._labels()[::-1]
        turn = place * len(labels) + labels.index(searcher.search.label)
        return self._batches.setdefault(batch, asked) + turn / 1000


def _key(searcher: Searcher, trial: optuna.Trial | FrozenTrial, seeds: Seeds) -> str:
    """Identifies a trial by what was tried: one asked again after a kill -9 has another number, and its place."""
    runs, place = [seed["run_key"] for seed in seeds], trial.user_attrs[PLACE]
    return digest([searcher.optuna.study_name, trial.params, runs, "place", place])


def _ended(trial: optuna.Trial | FrozenTrial) -> float:
    ended = trial.datetime_complete if isinstance(trial, FrozenTrial) else None
    return ended.timestamp() if ended else time.time()


def _metrics(study: Study, params: Mapping[str, Any], seeds: Seeds, records: Mapping[str, Record]) -> dict[str, float]:
    """Means over seeds, the spread of the objectives, what is searched, and its logarithm where its scale is one.

    The UI's scatter and parallel coordinates have no log axis.
    """
    found = {k: v for k, v in frames.means(study, seeds, records).items() if np.isfinite(v)}
    found |= frames.plasticity_kept(study, seeds)
    spread = {
        f"{name}_std": float(np.std([s[name] for s in seeds], ddof=1))
        for name in study.objectives
        if name in found and len(seeds) > 1
    }
    searched = {k: float(v) for k, v in params.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    logs = {f"log10_{k}": float(np.log10(params[k])) for k in _logarithmic(study) if params.get(k, 0) > 0}
    known = [records[s["run_key"]] for s in seeds if s["run_key"] in records]
    seconds = {"train_seconds": sum(float(r.facts["train_seconds"]) for r in known)} if known else {}
    return found | spread | searched | logs | seconds


def _logarithmic(study: Study) -> list[str]:
    """What any strategy searches on a log scale."""
    numbers = [
        name
        for search in study.searches
        for name, distribution in search.space.items()
        if isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
    ]
    return list(dict.fromkeys(numbers))


def _axes(study: Study) -> views.Axes:
    logs = _logarithmic(study)
    keys = list(dict.fromkeys(name for search in study.searches for name in search.space))
    axis = {name: (f"log10_{name}", "METRIC") if name in logs else (name, "PARAM") for name in keys}
    shared = [name for name in keys if all(name in search.space for search in study.searches)]
    y, x = study.objectives if len(study.objectives) == 2 else ("stability", "plasticity")
    return views.Axes(
        searched=tuple(axis.values()),
        common=tuple(axis[name] for name in shared),
        measured=tuple(study.objectives[::-1]),
        plane=(x, y),
    )


def _settings(study: Study) -> dict[str, str]:
    """Params of the overview: those that no command may change when it continues the study."""
    described = [study.description(search) for search in study.searches]
    return {
        "study": study.name,
        "protocol": study.protocol,
        "objective": ", ".join(study.objectives),
        "sampler": study.table.sampler,
        "strategies": ", ".join(search.label for search in study.searches),
        "scenario": study.experiment.scenario.name,
        "model": study.experiment.model.label,
        "description": digest(described),
    }


def _budget(study: Study, searchers: Sequence[Searcher]) -> str:
    """The protocol, and what was spent under it, for people."""
    spent = []
    for searcher in searchers:
        states = [fate.state(trial.user_attrs[SEEDS]) for trial in searcher.ended]
        lost = [f", {states.count(state)} {state}" for state in fate.LOST if state in states]
        epochs, seconds = places.saved(searcher.ended)
        lost += [f", {saving(epochs, seconds)}"] if epochs else []
        spent.append(f"`{searcher.search.label}` {len(states)} trials{''.join(lost)}")
    return f"Protocol {study.describe()}.\n\nSpent: {'; '.join(spent)}."
