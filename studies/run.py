"""A study from file to answer: trials in stacks, then the chosen settings once on the test set."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage

from benchmark import environment, models, scenarios, schedule
from benchmark.data import ImageSet
from benchmark.experiment import common
from benchmark.keys import digest
from benchmark.results import STUDY, Record, Store, text_fields
from benchmark.runs import Run
from benchmark.scenarios import Scenario
from benchmark.session import Say, Session
from benchmark.tracking import Tracker
from studies import failures, frames, objectives, places, plasticity
from studies.answers import Answer, found, markdown, saving, shown
from studies.delivery import Delivery, Presentation
from studies.drivers import Driver
from studies.final import Final
from studies.protocols import PLASTICITY_FIRST
from studies.pruning import Halving
from studies.search import Searcher
from studies.spec import Study
from studies.storage import Storage
from studies.waiting import Waiting


@dataclass(frozen=True)
class Outcome:
    """What a study left behind.

    Attributes:
        answers: one a strategy.
        folder: of the tables of all runs.
        seconds: wall time, by what it went into; `all` is the whole.
        undelivered: why MLflow does not have everything, or None.
        tested: whether the final evaluation was done here, and not by another driver.
        lost: what runs that failed took from the answers: see `failures`.
    """

    answers: list[Answer]
    folder: Path
    seconds: dict[str, float]
    undelivered: str | None = None
    tested: bool = True
    lost: tuple[str, ...] = ()

    def failed(self) -> str:
        """How many runs failed that the answers needed, and why; empty if none did."""
        return "\n".join(self.lost)

    def timing(self) -> str:
        """For people."""
        whole = self.seconds["all"]
        parts = [f"{what} {s:.0f} s ({s / whole:.0%})" for what, s in self.seconds.items() if what != "all"]
        epochs, seconds = (sum(each) for each in zip(*(answer.saved for answer in self.answers), strict=True))
        pruned = f"\npruning  {saving(epochs, seconds)}" if epochs else ""
        return f"time     {whole:.0f} s: {', '.join(parts)}{pruned}"


class _Trainer:
    """Trains runs that are not on disk yet, and keeps the time that takes."""

    def __init__(self, store: Store, session: Session) -> None:
        self.store, self._session = store, session
        self._images: dict[Scenario, list[ImageSet]] = {}
        self._trunks: schedule.Trunks = {}  # a batch's seeds are the next one's
        self.seconds = 0.0

    def __call__(self, runs: list[Run], prune: Halving | None = None) -> dict[str, Record]:
        """Records of these runs, of one scenario, by key; there is none of a pruned run."""
        todo = list({r.key: r for r in runs if not self.store.settled(r)}.values())
        if todo:
            self._train(todo, prune)
        return {r.key: self.store.records[r.key] for r in runs if r.key in self.store.records}

    def _train(self, runs: list[Run], prune: Halving | None) -> None:
        tasks, started = self.load(runs[0].scenario), time.perf_counter()
        settings = common([text_fields(r) for r in runs]) | {STUDY: self.store.folder.name}
        self.store.describe(settings, environment.describe(self._session.device, tasks))
        together = prune.trials if prune else None  # seeds of a trial are given up together
        for results in self._session.train(
            runs, tasks, self.store.add, prune=prune, trunks=self._trunks, together=together
        ):
            if prune:
                prune.note(results)
        self.seconds += time.perf_counter() - started

    def load(self, scenario: Scenario) -> list[ImageSet]:
        """The image set of each task; what is held out of it makes no difference to that."""
        whole = dataclasses.replace(scenario, validation=0.0)
        if whole not in self._images:
            self._images[whole] = scenarios.load(whole, self._session.data_dir, self._session.say)
        return self._images[whole]


def run(
    study: Study,
    session: Session,
    *,
    storage: str | BaseStorage | Storage,
    tracker: Tracker | None,
    presentation: Presentation,
    resume: bool = False,
) -> Outcome:
    """Search each strategy's space with the same number of trials, then test the best setting of each.

    Args:
        study: what to do.
        session: where and with what.
        storage: see `Storage.of`.
        tracker: where trials and tests are logged; None keeps them on disk and in the storage only.
        presentation: how the study looks there.
        resume: continue a study of that name, or join the drivers that are at work on it.

    Raises:
        StudyError: the study cannot be opened or continued, or its protocol has nothing to choose by.
        ResultsError: the results cannot be written.
        DataError: the images cannot be had.
    """
    say = session.say
    started, earlier = time.perf_counter(), storage.seconds if isinstance(storage, Storage) else 0.0
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(session.out / study.name, {"protocol": study.marked}))
        store.require(study=True)
        driver = stack.enter_context(Driver.here(tracker.owner if tracker else "").at_work())
        opened = Storage.of(storage)
        opened.say = say
        stack.enter_context(opened.pulse.beating())
        searchers = [Searcher(study, s, opened, resume=resume, driver=driver) for s in study.searches]
        for searcher in searchers:
            say(f"searching {searcher.describe()}")
        train = _Trainer(store, session)
        tasks = train.load(study.experiment.scenario)
        heads = study.experiment.scenario.heads(tasks)
        models.require_stackable(study.experiment.model, tasks[0].shape, heads.outputs)
        delivery, waiting = Delivery(tracker, study, presentation, say), Waiting(opened, say)
        # The time is the study's: what went into trials that are there has been spent.
        spent = places.seconds(trial for searcher in searchers for trial in searcher.ended)
        _search(study, searchers, train, delivery, waiting, started - spent, say)
        answers, tested = _test(study, searchers, train, driver, waiting, say)
        if tested is None:
            delivery.own(searchers, store.records)
        else:
            delivery.close(searchers, store.records, markdown(answers), tested, store.description()[1])
        without = [searcher for searcher, answer in zip(searchers, answers, strict=True) if not answer.promised]
        lost = [failures.of_trials(searcher, store.records) for searcher in without] + [failures.of_tests(tested or {})]
    whole = time.perf_counter() - started
    parts = {"training": train.seconds, "MLflow": delivery.seconds, "Optuna": opened.seconds - earlier}
    parts |= {"waiting": waiting.seconds} if waiting.seconds else {}
    seconds = {"all": whole, **parts, "the rest": whole - sum(parts.values())}
    return Outcome(answers, store.folder, seconds, delivery.failure, tested is not None, tuple(filter(None, lost)))


def _search(
    study: Study,
    searchers: list[Searcher],
    train: _Trainer,
    delivery: Delivery,
    waiting: Waiting,
    started: float,
    say: Say,
) -> None:
    """Ask every strategy for a batch of trials, train all of them together, tell; until the budget is spent."""
    timeout = study.table.timeout or float("inf")
    while time.perf_counter() - started < timeout:
        waiting.take_over(searchers)
        asked = [(searcher, trial) for searcher in searchers for trial in searcher.ask()]
        if asked:
            _train(study, asked, train, delivery, say)
            for searcher in searchers:
                say(_progress(study, searcher))
        elif all(searcher.spent for searcher in searchers):
            for searcher in searchers:
                searcher.tidy()
            return
        else:
            waiting.trials(searchers)
    say(f"stopped after {timeout:g} s: the trials that are there decide")
    while waiting.trials(searchers):
        waiting.take_over(searchers)


def _train(
    study: Study, asked: list[tuple[Searcher, optuna.Trial]], train: _Trainer, delivery: Delivery, say: Say
) -> None:
    """Train trials and tell what came of them."""
    entries = [study.entry(searcher.search, trial.params) for searcher, trial in asked]
    runs = [study.runs(entry, study.tuning, study.tuning_seeds) for entry in entries]
    beside = [plasticity.beside(study, entry) for entry in entries]
    of = [(searcher.search.label, trial.number) for searcher, trial in asked]
    halving = None
    if study.table.pruning == "halving":
        # A setting may be asked twice in a batch: its runs are one of the two trials'.
        trials = {run.key: trial for trial, each in zip(of, runs, strict=True) for run in each}
        halving = Halving(study.objectives[0], trials, train.load(study.tuning))
    records = train([run for each in [*runs, *beside] for run in each], halving)
    gone = [halving.given_up(trial, each) if halving else None for trial, each in zip(of, runs, strict=True)]
    for (searcher, trial), each, compared, given_up in zip(asked, runs, beside, gone, strict=True):
        counted = searcher.holds(trial)
        if counted and given_up:
            seeds = [{"seed": run.seed, "run_key": run.key, "status": "pruned"} for run in each]
            # Told first, since pruning says why; there are no runs whose ids it would want.
            if counted := searcher.prune(trial, seeds, given_up):
                delivery.trial(searcher, trial, seeds, records)
        elif counted:
            seeds = [_seed(study, records[run.key]) for run in each]
            plasticity.compare(seeds, [records[run.key] for run in each], [records[run.key] for run in compared])
            delivery.trial(searcher, trial, seeds, records)
            counted = searcher.tell(trial, seeds)
        if not counted:
            say(f"{searcher.search.label}: trial {trial.number} was taken over meanwhile, and counts there")
    if halving:
        pruned = [each for each in gone if each]
        saved = saving(sum(each.run_epochs for each in pruned), sum(each.seconds for each in pruned))
        say(f"pruned {len(pruned)} of {len(asked)} trials: {saved}")


def _test(
    study: Study, searchers: list[Searcher], train: _Trainer, driver: Driver, waiting: Waiting, say: Say
) -> tuple[list[Answer], dict[str, list[Record]] | None]:
    """The best setting of each strategy, retrained on all training images with seeds of its own.

    Returns:
        What was found, and the runs by strategy; none if another driver has them.
    """
    chosen = {s.search.label: best for s in searchers if (best := s.best()) is not None}
    runs = {
        s.search.label: study.runs(study.entry(s.search, best.params), study.reported, study.test_seeds)
        for s in searchers
        if (best := chosen.get(s.search.label)) is not None
    }
    listed = [run for each in runs.values() for run in each]
    if not listed:
        say("no trial ended well: there is no setting to test")
        return found(study, searchers, {}, {s.search.label: _values(study, []) for s in searchers}, {}), {}
    final = Final(searchers, digest(sorted(run.key for run in listed)), driver)
    while (values := final.found()) is None and not final.claim():
        waiting.evaluation(final.driver())
    # Once it is this driver's turn, the one before may have finished.
    if (values := values or final.found()) is None:
        say(f"testing the best setting of each strategy, seeds {', '.join(map(str, study.test_seeds))}")
        train(listed)
        tested = {label: [train.store.records[run.key] for run in each] for label, each in runs.items()}
        values = {s.search.label: _values(study, tested.get(s.search.label, [])) for s in searchers}
        failed = {label: sum(record.status == "failed" for record in each) for label, each in tested.items()}
        if any(failed.values()):
            final.give_up()
            return found(study, searchers, chosen, values, failed), tested
        final.note(values)
    final.close()
    answers = found(study, searchers, chosen, values, {})
    if any(run.key not in train.store.records for run in listed):
        say("the best settings were tested by another driver, which has the tables and delivers them")
        return answers, None
    return answers, {label: [train.store.records[run.key] for run in each] for label, each in runs.items()}


def _values(study: Study, records: list[Record]) -> dict[str, list[float]]:
    """Each objective's values over the runs that ended well."""
    well = [record for record in records if record.status == "finished"]
    return {name: [objectives.value(name, record) for record in well] for name in study.objectives}


def _seed(study: Study, record: Record) -> dict[str, Any]:
    # All that figures show: whoever draws them may not have the runs.
    measured = {name: objectives.value(name, record) for name in frames.measures(study)}
    finite = {name: v if np.isfinite(v) else None for name, v in measured.items()}  # JSON has no NaN
    return {"seed": record.seed, "run_key": record.run_key, "status": record.status, **finite}


def _progress(study: Study, searcher: Searcher) -> str:
    best, label = searcher.best(), searcher.search.label
    done = f"{label}: {len(searcher.ended)} of {study.trials} trials"
    if best is None:
        return f"{done}, none ended well"
    values = ", ".join(f"{name} {100 * v:.2f}" for name, v in zip(study.objectives, best.values, strict=True))
    return f"{done}, {'chosen' if study.protocol == PLASTICITY_FIRST else 'best'} {values} at {shown(best.params)}"
