"""How time and memory of an experiment grow with its runs, its tasks and its network: `make perf-growth`.

Every point is an experiment on permuted digits with EWC, one anchor a task, tables on disk included, in a process of
its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark import models, plan, scenarios, schedule
from benchmark.perf.measuring import Row
from benchmark.perf.tables import Section
from benchmark.recipe import Recipe
from benchmark.results import Store
from benchmark.runs import Run
from strategies import EWC

CPU = torch.device("cpu")
ROUNDS = 3


@dataclass(frozen=True)
class Size:
    """Of an experiment.

    Attributes:
        runs: λ by seeds.
        tasks: of the sequence.
        width: of the two hidden layers.
        steps: of each task.
    """

    runs: int = 16
    tasks: int = 3
    width: int = 100
    steps: int = 50

    @property
    def parameters(self) -> int:
        """Of the network: 64 inputs, two hidden layers, 10 outputs."""
        return 64 * self.width + self.width**2 + 10 * self.width + 2 * self.width + 10


AXES: dict[str, list[tuple[str, Size]]] = {
    "runs": [(f"{n} run{'s' if n > 1 else ''}", Size(runs=n)) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)],
    "tasks": [(f"{n} tasks", Size(runs=4, tasks=n, steps=20)) for n in (2, 5, 10, 20, 50)],
    "parameters": [
        (f"{Size(width=width).parameters:,} parameters".replace(",", " "), Size(runs=4, width=width, steps=20))
        for width in (68, 280, 963, 3126)
    ],
}


def sections() -> Iterator[Section]:
    """Seconds and MiB along every axis, each with the exponent from the row before."""
    for axis, points in AXES.items():
        measured = [_apart(size) for _, size in points]
        along = [getattr(size, axis) for _, size in points]
        for unit, values in zip(("seconds", "MiB"), zip(*measured, strict=True), strict=True):
            ratios = [math.nan, *exponents(along, values)]
            rows = [Row(name, value, ratio) for (name, _), value, ratio in zip(points, values, ratios, strict=True)]
            title = f"growth with {axis}: {'time' if unit == 'seconds' else 'memory'}"
            yield Section(title, unit, "exponent", rows, (axis, along))


def exponents(along: Sequence[float], values: Sequence[float]) -> list[float]:
    """The k of value ~ sizeᵏ between neighbours: 0 is constant, 1 linear, 2 a square."""
    pairs = zip(itertools.pairwise(along), itertools.pairwise(values), strict=True)
    return [math.log(v / u) / math.log(b / a) for (a, b), (u, v) in pairs]


def experiment(size: Size) -> float:
    """Seconds of a whole experiment, without what a process does once."""
    lambdas = min(size.runs, 8)
    runs = [
        Run(
            scenarios.resolve({"name": "permuted-digits", "tasks": size.tasks}),
            models.Model("mlp", (("widths", (size.width, size.width)),)),
            Recipe(iterations=size.steps, batch_size=32, lr=1e-3),
            EWC(lam=10.0 ** (i % lambdas)),
            "ewc",
            f"ewc (lam=1e{i % lambdas})",
            i // lambdas,
        )
        for i in range(size.runs)
    ]
    tasks = scenarios.load(runs[0].scenario)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        started = time.perf_counter()
        for _ in schedule.execute(plan.make(runs, tasks, CPU), tasks, CPU, keep=store.add):
            pass
        return time.perf_counter() - started


def measure(size: Size) -> tuple[float, float]:
    """Seconds, the median of some rounds, and MiB beyond those of an experiment as small as can be."""
    experiment(Size(runs=1, tasks=2, width=8, steps=3))
    before = _peak()
    seconds = statistics.median(experiment(size) for _ in range(ROUNDS))
    return seconds, max(_peak() - before, 0.1)


def _peak() -> float:
    """MiB this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _apart(size: Size) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (size,))
