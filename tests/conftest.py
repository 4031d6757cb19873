from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from benchmark import harness, plan, scenarios
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Result, Run
from strategies import Naive, Strategy

# The machine may be busy: a slow example is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

CPU = torch.device("cpu")
QUICK = Recipe(lr=1e-3, batch_size=64, epochs=2, precision="float64")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reaches a network or a user's settings."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("FORGETBENCH_DATA", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_run(strategy: Strategy | None = None, *, seed: int = 0, tasks: int = 2, **recipe: object) -> Run:
    """A run of `permuted-digits`, quick and in float64 unless the recipe says otherwise."""
    scenario = scenarios.resolve({"name": "permuted-digits", "tasks": tasks})
    strategy = strategy or Naive()
    label = f"{strategy.name}{strategy.options()}"
    return Run(scenario, Model("mlp-bn"), dataclasses.replace(QUICK, **recipe), strategy, strategy.name, label, seed)


def execute(*runs: Run, largest: int | None = None) -> dict[str, Result]:
    """Results by run key."""
    tasks = scenarios.load(runs[0].scenario)
    made = plan.make(runs, tasks, CPU, largest)
    return {r.run.key: r for stack in harness.execute(made, tasks, CPU) for r in stack}
