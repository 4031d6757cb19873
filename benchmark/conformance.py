"""Checks of a strategy that train it through the harness, on `permuted-digits`; `strategies.conformance` lists them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark import harness, metrics, plan, scenarios, schedule
from benchmark.data import ImageSet
from benchmark.keys import digest
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Result, Run
from strategies import registry
from strategies.base import Params, Strategy
from strategies.conformance import Check, Failed, Inapplicable
from strategies.naive import Naive

SCENARIO = scenarios.resolve({"name": "permuted-digits", "tasks": 3})
RECIPE = Recipe(lr=2e-3, batch_size=64, epochs=3, precision="float64")
HEADS = scenarios.resolve({"name": "split-digits", "incremental": "class", "class_order": "shuffled"})
# Adam would make steps of the rounding in biases before BatchNorm, whose gradient is zero.
GENTLE = Recipe(optimizer="sgd", lr=0.01, batch_size=32, epochs=1, precision="float64")
SEEDS, POISONED = (0, 1), 99
CLOSE = 1e-9  # of parameters, in float64
LESS = 0.05  # forgotten less than fine-tuning, of 1: more than seeds differ by here


@dataclass(frozen=True)
class _Network(Model):
    """Without BatchNorm, so that every parameter matters; the run of one seed starts from NaN."""

    name: str = "mlp"
    options: tuple[tuple[str, object], ...] = (("widths", (64,)),)

    def build(self, shape: tuple[int, ...], outputs: int, *, seed: int) -> nn.Module:
        network = super().build(shape, outputs, seed=seed)
        if seed == POISONED:
            for p in network.parameters():
                nn.init.constant_(p, torch.nan)
        return network


@dataclass
class _Trained(harness.Silent):
    """Listens for the final parameters of each run."""

    params: dict[str, Params] = field(default_factory=dict)

    def stack_trained(self, runs: tuple[Run, ...], params: Params) -> None:
        for r, run in enumerate(runs):
            self.params[run.key] = {k: p[r].clone() for k, p in params.items()}


@dataclass(frozen=True)
class _Outcome:
    result: Result
    params: Params


def stacked_runs_equal_runs_alone(strategy: Strategy) -> None:
    """A stack over seeds and hyperparameters equals its runs trained one at a time, in float64."""
    # Not the strongest: at the far end of a range training is chaotic, and rounding grows to any size.
    settings = dict.fromkeys([*_settings(strategy)[:2], *_others(strategy)])
    runs = [_run(each, seed) for each in settings for seed in SEEDS]
    together = _train(runs)
    for run in runs[::2]:
        _same("a run alone", _train([run])[run.key], together[run.key])


def heads_and_batchnorm_stack_too(strategy: Strategy) -> None:
    """The same where outputs are masked, labels differ from seed to seed, and BatchNorm keeps statistics."""
    runs = [
        dataclasses.replace(_run(strategy, seed), scenario=HEADS, model=Model("mlp-bn"), recipe=GENTLE)
        for seed in SEEDS
    ]
    together = _train(runs)
    _same("a run alone, class-incremental", _train(runs[1:])[runs[1].key], together[runs[1].key])


def neighbours_do_not_matter(strategy: Strategy) -> None:
    """A run comes out the same to the last bit beside any neighbour, one that is NaN included."""
    run, beside, poisoned = (_run(strategy, seed) for seed in (*SEEDS, POISONED))
    quiet, disturbed = _train([run, beside]), _train([run, poisoned])
    if disturbed[poisoned.key].result.status != "diverged":
        raise Failed("a run that starts from NaN was not marked as diverged")
    _same("beside a NaN", disturbed[run.key], quiet[run.key], tolerance=0.0)


def without_strength_it_is_fine_tuning(strategy: Strategy) -> None:
    """With its strength at 0 it trains exactly as fine-tuning does."""
    neutral = _neutral(strategy)
    if neutral is None:
        raise Inapplicable("no strength that can be 0")
    found, naive = _sweep(strategy), _sweep(Naive())
    for seed in SEEDS:
        _same("strength 0", found[_run(neutral, seed).key], naive[_run(Naive(), seed).key])


def it_does_something(strategy: Strategy) -> None:
    """At some strength (or with its memory) it forgets measurably less than fine-tuning."""
    if not strategy.protects:
        raise Inapplicable("it does not claim to")
    found = _sweep(strategy)
    forgotten = {s: _forgetting([found[_run(s, seed).key] for seed in SEEDS]) for s in _settings(strategy)}
    naive = _forgetting(list(_sweep(Naive()).values()))
    least = min(forgotten.values())
    if not least <= naive - LESS:
        raise Failed(f"fine-tuning forgets {naive:.3f}, this forgets {least:.3f} at best: not {LESS} less")


def a_seed_reproduces_in_another_process(strategy: Strategy) -> None:
    """The same seed gives the same result in another process."""
    cls = type(strategy)
    if strategy != cls():
        raise Inapplicable("said of the defaults")
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise Inapplicable("not importable from another process")
    # A process takes seconds to begin: the built-in strategies, checked one after another, share one.
    together = tuple(c() for c in registry.BUILT_IN.values()) if cls in registry.BUILT_IN.values() else (strategy,)
    here, there = fingerprint(*_named(strategy)), _elsewhere(tuple(map(_named, together)))[_named(strategy)]
    if here != there:
        raise Failed(f"expected {here} in another process too, got {there}")


CHECKS: list[Check] = [
    stacked_runs_equal_runs_alone,
    heads_and_batchnorm_stack_too,
    neighbours_do_not_matter,
    without_strength_it_is_fine_tuning,
    it_does_something,
    a_seed_reproduces_in_another_process,
]


def _named(strategy: Strategy) -> tuple[str, str]:
    """Arguments of `fingerprint`."""
    cls = type(strategy)
    return f"{cls.__module__}:{cls.__qualname__}", json.dumps(strategy.options())


@functools.cache
def _elsewhere(named: tuple[tuple[str, str], ...]) -> dict[tuple[str, str], str]:
    """Fingerprints found in another process, by their arguments; what went wrong, where it failed."""
    code = (
        "import json, sys; from benchmark import conformance\n"
        "for each in json.loads(sys.argv[1]): print('fingerprint', conformance.fingerprint(*each))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(named)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
    )
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("fingerprint ")]
    return dict(zip(named, [*found, *[done.stderr[-500:]] * (len(named) - len(found))], strict=True))


def fingerprint(path: str, options: str) -> str:
    """Identifies what a short run of a strategy comes to, to about nine digits.

    Args:
        path: `package.module:Class`.
        options: of the strategy, as JSON.
    """
    module, _, name = path.partition(":")
    cls: Any = importlib.import_module(module)
    for part in name.split("."):
        cls = getattr(cls, part)
    run = _run(cls(**json.loads(options)), 0)
    outcome = _train([dataclasses.replace(run, recipe=dataclasses.replace(RECIPE, epochs=1))])
    (found,) = outcome.values()
    sums = {k: f"{float(p.double().abs().sum()):.9g}" for k, p in found.params.items()}
    return digest([sums, found.result.accuracy.tolist()])


def _run(strategy: Strategy, seed: int) -> Run:
    return Run(SCENARIO, _Network(), RECIPE, strategy, strategy.name, repr(strategy), seed)


def _settings(strategy: Strategy) -> list[Strategy]:
    """The strategy itself, and with strengths over the range it declares for tuning."""
    ranges = {f.name: f.metadata["tune"] for f in dataclasses.fields(strategy) if f.metadata.get("tune")}
    if not ranges:
        return [strategy]
    name, (low, high) = next(iter(ranges.items()))
    values = np.geomspace(low, high, 6)[1:]
    return [strategy, *(dataclasses.replace(strategy, **{name: float(v)}) for v in values)]


def _others(strategy: Strategy) -> list[Strategy]:
    """The strategy with each other hyperparameter changed: a method that reads `self` and not `hparams` shows."""
    found = []
    for f in dataclasses.fields(strategy):
        if f.metadata.get("hyper"):
            value, low, high = getattr(strategy, f.name), f.metadata["low"], f.metadata["high"]
            inside = [v for v in (value / 2, value + 0.5, value - 0.5) if low <= v <= high and abs(v - value) > 1e-6]
            found += [dataclasses.replace(strategy, **{f.name: v}) for v in inside[:1]]
    return found


def _neutral(strategy: Strategy) -> Strategy | None:
    if not strategy.neutral or not set(strategy.neutral) <= set(strategy.hyperparameters()):
        return None
    return dataclasses.replace(strategy, **dict.fromkeys(strategy.neutral, 0.0))


@functools.cache
def _sweep(strategy: Strategy) -> dict[str, _Outcome]:
    """Every setting with every seed, in stacks."""
    settings = dict.fromkeys([*_settings(strategy), _neutral(strategy) or strategy])
    return _train([_run(each, seed) for each in settings for seed in SEEDS])


def _train(runs: list[Run]) -> dict[str, _Outcome]:
    device, tasks, listener = torch.device("cpu"), _tasks(runs[0].scenario), _Trained()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small only lose time on a second thread
    try:
        made = plan.make(runs, tasks, device)
        results = [r for stack in schedule.execute(made, tasks, device, listener) for r in stack]
    finally:
        torch.set_num_threads(threads)
    if failed := [r.reason for r in results if r.status == "failed"]:
        raise ValueError(failed[0])
    return {r.run.key: _Outcome(r, listener.params[r.run.key]) for r in results}


@functools.cache
def _tasks(scenario: scenarios.Scenario) -> list[ImageSet]:
    return scenarios.load(scenario)


def _same(where: str, found: _Outcome, expected: _Outcome, tolerance: float = CLOSE) -> None:
    for k, e in expected.params.items():
        difference = _largest(found.params[k] - e)
        if not difference <= tolerance * max(_largest(e), 1.0):
            raise Failed(f"{where}: parameter {k!r} differs by {difference:.3g}")
    if not tolerance and not np.array_equal(found.result.accuracy, expected.result.accuracy):
        raise Failed(f"{where}: accuracies differ")


def _largest(t: Tensor) -> float:
    return float(t.abs().max())


def _forgetting(outcomes: list[_Outcome]) -> float:
    found = [o for o in outcomes if o.result.status == "finished"]
    # A strength at which a run diverges protects nothing.
    return (
        float(np.mean([metrics.forgetting(o.result.accuracy) for o in found])) if len(found) == len(outcomes) else 1.0
    )
