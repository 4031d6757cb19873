"""A study whose runs are made up: accuracies follow from λ, so what figures and trackers show can be worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, InMemoryStorage

from benchmark import metrics
from benchmark.results import Record
from studies import objectives, plasticity, spec
from studies.delivery import Delivery
from studies.drivers import Driver
from studies.protocols import PLASTICITY_FIRST
from studies.pruning import GivenUp
from studies.search import Searcher
from studies.spec import Study

EWC = {"name": "ewc", "lam": {"low": 1.0, "high": 1e6, "log": True}}
L2 = {"name": "l2", "lam": {"low": 1e-3, "high": 1e3, "log": True}}
TASKS, SEEDS = 3, 2
GIVEN_UP = GivenUp(task=2, value=0.5, run_epochs=4, seconds=1.5)
Lost = Callable[[str, int, int], bool]


def study(*strategies: Mapping[str, Any], name: str = "made-up", **table: Any) -> Study:
    """A study of three tasks, with two seeds a trial unless the table says otherwise."""
    asked = {"trials": 6, "batch": 3, "seeds": SEEDS, "test_seeds": 3} | table
    scenario = {"name": "permuted-digits", "tasks": TASKS}
    content = {"name": name, "scenario": scenario, "study": asked, "strategy": list(strategies or (EWC, L2))}
    (made,) = spec.parse(content)
    return made


def matrix(lam: float, seed: int) -> np.ndarray:
    """More λ forgets less and learns less."""
    a = np.full((TASKS + 1, TASKS), 0.1)
    for after in range(1, TASKS + 1):
        for task in range(1, after + 1):
            learned = 0.95 - 0.05 * np.log10(lam + 1) + 0.001 * seed
            a[after, task - 1] = learned - 0.2 * (after - task) / (1 + lam)
    return a


def record(key: str, label: str, seed: int, lam: float, status: str = "finished") -> Record:
    a = matrix(lam, seed)
    if status != "finished":
        a[2 if status == "diverged" else 0 :] = np.nan
    return Record(
        run_key=key,
        strategy=f"{label} as its run calls it",
        seed=seed,
        status=status,
        fields={"strategy_name": label, "lam": repr(lam), "epochs": "2"},
        values=metrics.summary(a),
        facts={"train_seconds": "1.500", "stack_size": "6", "trunk": "t0", "trunk_runs": "6"},
        accuracy=a,
    )


@dataclass
class Played:
    """A study under way.

    Attributes:
        study: what is asked.
        searchers: one a strategy.
        records: of all runs so far, by key.
    """

    study: Study
    searchers: list[Searcher]
    records: dict[str, Record] = field(default_factory=dict)

    def batch(
        self,
        delivery: Delivery | None = None,
        diverges: Lost | None = None,
        prunes: Iterable[int] = (),
        fails: Lost | None = None,
    ) -> int:
        """Ask, make up what came of it, deliver and tell; how many trials there were."""
        asked = [(searcher, trial) for searcher in self.searchers for trial in searcher.ask()]
        for searcher, trial in asked:
            pruned = trial.number in set(prunes)
            seeds = self.seeds(searcher, trial, diverges, fails, pruned=pruned)
            if delivery:
                delivery.trial(searcher, trial, seeds, self.records)
            if pruned:
                searcher.prune(trial, seeds, GIVEN_UP)
            else:
                searcher.tell(trial, seeds)
        if delivery:
            delivery.trials(self.searchers, self.records)
        return len(asked)

    def all(
        self,
        delivery: Delivery | None = None,
        diverges: Lost | None = None,
        prunes: Iterable[int] = (),
        fails: Lost | None = None,
    ) -> Played:
        while self.batch(delivery, diverges, prunes, fails):
            pass
        return self

    def seeds(
        self,
        searcher: Searcher,
        trial: optuna.Trial,
        diverges: Lost | None = None,
        fails: Lost | None = None,
        *,
        pruned: bool = False,
    ) -> list[dict[str, Any]]:
        label, told = searcher.search.label, []
        for seed in self.study.tuning_seeds:
            key = f"{label}-{trial.params}-{seed}"
            if pruned:
                told.append({"seed": seed, "run_key": key, "status": "pruned"})
                continue
            lost = {"failed": fails, "diverged": diverges}
            status = next(
                (s for s, is_lost in lost.items() if is_lost and is_lost(label, trial.number, seed)), "finished"
            )
            made = record(key, label, seed, trial.params["lam"], status)
            self.records[key] = made
            values = {name: objectives.value(name, made) for name in self.study.objectives}
            finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
            told.append({"seed": seed, "run_key": key, "status": status, **finite})
            if self.study.protocol == PLASTICITY_FIRST:
                plasticity.compare(told[-1:], [made], [record("plain", "naive", seed, 0.0)])
        return told

    def tested(self) -> dict[str, list[Record]]:
        """Runs that test the best setting of each strategy."""
        best = {s.search.label: chosen.params["lam"] for s in self.searchers if (chosen := s.best())}
        seeds = self.study.test_seeds
        return {k: [record(f"test-{k}-{lam}-{seed}", k, seed, lam) for seed in seeds] for k, lam in best.items()}


def play(
    made: Study | None = None, storage: BaseStorage | None = None, *, resume: bool = False, owner: str = ""
) -> Played:
    made, storage, driver = made or study(), storage or InMemoryStorage(), Driver.here(owner)
    return Played(made, [Searcher(made, search, storage, resume=resume, driver=driver) for search in made.searches])
