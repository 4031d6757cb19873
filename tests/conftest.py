from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import settings

from benchmark import harness, plan, scenarios, schedule
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Result, Run
from strategies import Naive, Strategy

# The machine may be busy: a slow example is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

CPU = torch.device("cpu")
# A bias before BatchNorm has no effect on the loss: its gradient is rounding, and Adam makes steps of it.
UNIDENTIFIED = ("linear1.bias", "linear2.bias")
QUICK = Recipe(lr=1e-3, batch_size=64, epochs=2, precision="float64")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches a network or a user's settings."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("FORGETBENCH_DATA", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_from_the_start() -> None:
    """What a module's fixtures train is compared with what its tests do."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """So one worker too: all runs that may stack do. Networks this small only lose time on a second thread."""
    torch.set_num_threads(1)


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is replayed, so that a test may listen inside of every one."""
    monkeypatch.setattr("benchmark.learner.replayed", lambda step, **_: step)


def make_run(strategy: Strategy | None = None, *, seed: int = 0, tasks: int = 2, **recipe: object) -> Run:
    """A run of `permuted-digits`, quick and in float64 unless the recipe says otherwise."""
    scenario = scenarios.resolve({"name": "permuted-digits", "tasks": tasks})
    strategy = strategy or Naive()
    label = f"{strategy.name}{strategy.options()}"
    return Run(scenario, Model("mlp-bn"), dataclasses.replace(QUICK, **recipe), strategy, strategy.name, label, seed)


def train(*runs: Run, largest: int | None = None) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Result]]:
    """Trained parameters, without those that are `UNIDENTIFIED`, and results, by run key."""
    tasks, listener = scenarios.load(runs[0].scenario), _Trained()
    stacks = list(schedule.execute(plan.make(runs, tasks, CPU, largest), tasks, CPU, listener))
    results = {r.run.key: r for stack in stacks for r in stack}
    if failed := [r.reason for r in results.values() if r.status == "failed"]:
        raise ValueError(failed[0])
    return listener.params, results


def execute(*runs: Run, largest: int | None = None) -> dict[str, Result]:
    """Results by run key."""
    return train(*runs, largest=largest)[1]


class _Trained(harness.Silent):
    """Hears the trained parameters of each run, by key."""

    def __init__(self) -> None:
        self.params: dict[str, dict[str, torch.Tensor]] = {}

    def stack_trained(self, runs: Sequence[Run], params: dict[str, torch.Tensor]) -> None:
        left_out = UNIDENTIFIED if runs[0].model.name == "mlp-bn" else ()
        for r, run in enumerate(runs):
            self.params[run.key] = {k: p[r].clone() for k, p in params.items() if k not in left_out}
