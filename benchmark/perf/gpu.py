"""What a GPU makes of stacks: the CPU's numbers, its own floors, and how near it comes. `make gpu-check`.

Needs PyTorch, NumPy and the two image sets in the cache (or `FORGETBENCH_DATA`), none of the other dependencies.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark import data, graphs, models, plan, scenarios, schedule
from benchmark.data import ImageSet
from benchmark.feed import Lesson
from benchmark.harness import Silent
from benchmark.learner import Learner
from benchmark.perf import training
from benchmark.recipe import Precision, Recipe
from benchmark.results import Store
from benchmark.runs import Result, Run
from strategies import ER, EWC, Naive, Params, Strategy, registry

CPU = torch.device("cpu")
STACKS = (1, 8, 64, 256, 1024)
IMAGES = 500  # of each set, where numbers are compared
WARM, STEPS = 50, 450  # steps before the clock starts, which capture the graph; steps in all
MANY = {"cuda": 256, "cpu": 4}  # runs of the stack in which one is compared with the same alone
PASSES = 9  # reads and writes of a tensor of parameters that Adam with a quadratic penalty cannot do without
# The preset `mnist-fashion`, whose file takes more than PyTorch to read.
RECIPE = Recipe(optimizer="adam", lr=1e-4, batch_size=100, epochs=4, batchnorm="freeze-after-first")
LAMBDAS, SEEDS = 50, 20
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32")
COMPILED = (False, True)  # steps as they are, and in kernels made for them


@dataclass(frozen=True)
class Line:
    """Something measured.

    Attributes:
        what: was measured.
        value: of it.
        unit: of the value.
        limit: what the value must not exceed; None where there is nothing to pass.
    """

    what: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        """For the terminal."""
        verdict = "" if self.limit is None else f"   {'ok' if self.passes else 'FAILED'}, at most {self.limit:g}"
        return f"  {self.what:58} {self.value:>10.4g} {self.unit}{verdict}"


@dataclass
class Captures:
    """How many steps became graphs and how many did not, which train kernel by kernel: their numbers are right too."""

    made: int = 0
    failed: int = 0

    @contextmanager
    def counted(self) -> Generator[None, None, None]:
        """Count for as long as the context lasts."""
        kept = graphs.CAPTURES.copy()

        def counting(capture: graphs.Capture) -> graphs.Capture:
            def call(work: Callable[[], object], device: torch.device) -> graphs.Launch:
                self.failed += 1
                launch = capture(work, device)
                self.failed -= 1
                self.made += 1
                return launch

            return call

        graphs.CAPTURES.update({kind: counting(capture) for kind, capture in kept.items()})
        try:
            yield
        finally:
            graphs.CAPTURES.update(kept)

    def lines(self, device: torch.device) -> list[Line]:
        """What was counted."""
        none = Line("no step became a graph", float(not self.made), "", 0 if device.type in graphs.CAPTURES else None)
        return [Line("graphs", self.made, ""), Line("steps that became none", self.failed, "", 0), none]


class _Trained(Silent):
    """Hears the trained parameters of each run, by key, on the CPU."""

    def __init__(self) -> None:
        self.params: dict[str, Params] = {}
        self.said: list[str] = []

    def stack_trained(self, runs: tuple[Run, ...], params: Params) -> None:
        self.params |= {run.key: {k: p[r].cpu().clone() for k, p in params.items()} for r, run in enumerate(runs)}

    def trouble(self, what: str, trace: str) -> None:
        self.said.append(f"{what}\n{trace}")


def trained(
    runs: Sequence[Run], tasks: list[ImageSet], device: torch.device
) -> tuple[dict[str, Params], dict[str, Result]]:
    """Parameters and results by run key.

    Raises:
        RuntimeError: a stack failed; with where.
    """
    heard = _Trained()
    found = list(schedule.execute(plan.make(runs, tasks, device), tasks, device, heard))
    if heard.said:
        raise RuntimeError("\n".join(heard.said))
    return heard.params, {result.run.key: result for results in found for result in results}


def apart(ours: dict[str, Params], theirs: dict[str, Params]) -> float:
    """The greatest difference of parameters, relative to the greatest entry of each tensor."""
    gaps = [
        (own[k] - t).abs().max() / t.abs().max().clamp(min=1e-12)
        for key, own in ours.items()
        for k, t in theirs[key].items()
    ]
    return float(torch.stack(gaps).max())


def small(images: ImageSet, samples: int) -> ImageSet:
    """The first images of a set."""
    return dataclasses.replace(
        images,
        **{part: getattr(images, part)[:samples].clone() for part in ("train_x", "train_y", "test_x", "test_y")},
    )


def runs_of(strategy: Strategy, model: str, seeds: int = 2, **recipe: object) -> list[Run]:
    """Runs of two tasks."""
    steps: dict[str, object] = {"batch_size": 20, "lr": 1e-3, "precision": "float64"}
    told = Recipe(**(steps | recipe))  # type: ignore[arg-type]
    scenario = scenarios.resolve(["mnist", "fashion-mnist"])
    return [
        Run(scenario, models.Model(model), told, strategy, strategy.name, strategy.name, seed) for seed in range(seeds)
    ]


def equality(tasks: list[ImageSet], device: torch.device) -> Iterator[Line]:
    """The same runs here and on the CPU, with a graph and without.

    Args:
        tasks: MNIST and Fashion-MNIST.
        device: to be checked.
    """
    tasks = [small(images, IMAGES) for images in tasks]
    cases = [(cls(), "mlp", 20) for cls in registry.BUILT_IN.values()] + [(EWC(), "cnn", 8)]
    for strategy, model, steps in cases:
        runs = runs_of(strategy, model, iterations=steps)
        yield from attempted(f"{strategy.name}, {model}", functools.partial(against_the_cpu, runs, tasks, device))
    for strategy in (EWC(), ER()):
        runs = runs_of(strategy, "mlp", precision="float32", iterations=40)
        yield from attempted(strategy.name, functools.partial(graph_against_none, runs, tasks, device))
    for strategy in (EWC(), ER()) if True in COMPILED else ():
        runs = runs_of(strategy, "mlp", iterations=20)
        yield from attempted(
            f"{strategy.name}, compiled", functools.partial(compiled_against_none, runs, tasks, device)
        )
    yield from attempted("a large stack", functools.partial(alone_and_among_many, tasks, device))


def against_the_cpu(runs: list[Run], tasks: list[ImageSet], device: torch.device) -> Iterator[Line]:
    """The same runs on a device and on the CPU."""
    what = f"{runs[0].strategy.name}, {runs[0].model.name}"
    here, found = trained(runs, tasks, device)
    there, expected = trained(runs, tasks, CPU)
    yield Line(f"{what}: parameters, float64, against the CPU", apart(here, there), "", 1e-6)
    # A test image at the border may fall on either side.
    gap = max(abs(found[key].accuracy - expected[key].accuracy).max() for key in expected)
    yield Line(f"{what}: accuracy", float(gap), "", 2 / IMAGES)


def graph_against_none(runs: list[Run], tasks: list[ImageSet], device: torch.device) -> Iterator[Line]:
    """The same runs captured and kernel by kernel."""
    whole, _ = trained(runs, tasks, device)
    kept = graphs.CAPTURES.copy()
    graphs.CAPTURES.clear()
    try:
        kernel_by_kernel, _ = trained(runs, tasks, device)
    finally:
        graphs.CAPTURES.update(kept)
    what = f"{runs[0].strategy.name}: parameters, float32, graph against none"
    yield Line(what, apart(whole, kernel_by_kernel), "", 1e-6)


def compiled_against_none(runs: list[Run], tasks: list[ImageSet], device: torch.device) -> Iterator[Line]:
    """The same runs with steps compiled and without."""
    kernels = [dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, compile=True)) for run in runs]
    (made, _), (plain, _) = trained(kernels, tasks, device), trained(runs, tasks, device)
    found = {run.key: made[kernel.key] for run, kernel in zip(runs, kernels, strict=True)}
    yield Line(f"{runs[0].strategy.name}: parameters, float64, compiled against none", apart(found, plain), "", 1e-6)


def alone_and_among_many(tasks: list[ImageSet], device: torch.device) -> Iterator[Line]:
    """One run in a large stack and the same alone."""
    runs = runs_of(EWC(), "mlp", seeds=MANY[device.type], iterations=20)
    among, _ = trained(runs, tasks, device)
    alone, _ = trained(runs[-1:], tasks, device)
    gap = apart(alone, among)
    yield Line(f"ewc: parameters, float64, one of {len(runs)} against the same alone", gap, "", 1e-6)


def attempted(what: str, check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """A check; where it raises, a line that fails instead of the end of all others.

    Args:
        what: is checked.
        check: yields lines.
    """
    try:
        yield from check()
    except Exception as error:  # whatever a device makes of it
        traceback.print_exc()
        said = str(error).strip().split("\n")[0]
        yield Line(f"{what}: {type(error).__name__}: {said}"[:200], 1, "", 0)


def per_second(work: Callable[[], object], device: torch.device) -> float:
    """How often something can be done in a second, after it was done once."""
    work()
    _wait(device)
    started, times = time.perf_counter(), 20
    for _ in range(times):
        work()
    _wait(device)
    return times / (time.perf_counter() - started)


@dataclass
class Floors:
    """What the machine can do at most; NaN until it is measured.

    Attributes:
        bandwidth: bytes a second.
        speed: floating-point operations a second, in float32.
    """

    bandwidth: float = math.nan
    speed: float = math.nan

    def measure(self, device: torch.device) -> Iterator[Line]:
        """Copies, and products of the first layer of a large stack."""
        runs = 256 if device.type == "cuda" else 2
        source = torch.ones(2**26 if device.type == "cuda" else 2**22, device=device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes * per_second(lambda: target.copy_(source), device)
        yield Line("copying", self.bandwidth / 1e9, "GB/s")
        x, w = torch.rand(runs, 100, 784, device=device), torch.rand(runs, 784, 256, device=device)
        for precision in ("tf32", "float32"):
            with Recipe(epochs=1, precision=precision).products(device):
                self.speed = 2 * x.numel() * 256 * per_second(lambda: torch.bmm(x, w), device)
            yield Line(f"products of the first layer, {precision}", self.speed / 1e12, "TFLOP/s")


def throughput(images: ImageSet, device: torch.device, floors: Floors, stacks: Sequence[int]) -> Iterator[Line]:
    """Microseconds a run and step for stacks of several sizes, beside what traffic and products alone would take.

    Args:
        images: MNIST.
        device: to train on.
        floors: measured.
        stacks: runs in each.
    """
    network = models.Model("mlp-bn").build(images.shape, images.classes, seed=0)
    traffic = PASSES * 4 * sum(p.numel() for p in network.parameters()) / floors.bandwidth
    weights = [p.numel() for p in network.parameters() if p.ndim > 1]
    products = 100 * 2 * (3 * sum(weights) - weights[0]) / floors.speed  # no gradient of the first layer's input
    yield Line("floor: traffic of the parameters", 1e6 * traffic, "µs a run and step")
    yield Line("floor: products, float32", 1e6 * products, "µs a run and step")
    for runs in stacks:
        for strategy in (Naive(), EWC()):
            for precision, compile in itertools.product(PRECISIONS, COMPILED):
                recipe = Recipe(batch_size=100, iterations=STEPS, precision=precision, compile=compile)
                what = f"{runs} run{'s' * (runs > 1)}, {strategy.name}, {precision}{', compiled' * compile}"
                job = functools.partial(training.stack, images, list(range(runs)), strategy, recipe, device)
                yield from attempted(what, functools.partial(timed, what, runs, job))


def timed(what: str, runs: int, job: Callable[[], tuple[Learner, Lesson, Strategy]]) -> Iterator[Line]:
    """A stack's time a run and step."""
    seconds = a_step(job())
    yield Line(what, 1e6 * seconds / runs, f"µs a run and step ({1e3 * seconds:.2f} ms a step)")


def a_step(job: tuple[Learner, Lesson, Strategy]) -> float:
    """Seconds a step of a lesson, once it is captured."""
    learner, lesson, strategy = job
    marks: dict[int, float] = {}

    def every_step(step: int) -> None:
        if step in (WARM, STEPS):
            _wait(learner.device)
            marks[step] = time.perf_counter()

    with learner.recipe.products(learner.device):
        training.train(learner, lesson, strategy, every_step)
    return (marks[STEPS] - marks[WARM]) / (STEPS - WARM)


def whole(
    tasks: list[ImageSet], device: torch.device, lambdas: int, seeds: int, floors: Floors, *, compile: bool = False
) -> Iterator[Line]:
    """Complete runs of `mnist-fashion`: λ by seeds, importances over all images, evaluation and tables included.

    Args:
        tasks: MNIST and Fashion-MNIST.
        device: to train on.
        lambdas: how many values of λ.
        seeds: of each.
        floors: measured.
        compile: their steps.
    """
    recipe = dataclasses.replace(RECIPE, compile=compile)
    scenario, model = scenarios.resolve(["mnist", "fashion-mnist"]), models.Model("mlp-bn")
    strategies = [EWC(lam=float(lam), estimator="empirical") for lam in torch.logspace(0, 7, lambdas).tolist()]
    runs = [
        Run(scenario, model, recipe, strategy, "ewc", f"ewc (lam={strategy.lam:g})", seed)
        for strategy in strategies
        for seed in range(seeds)
    ]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        started = time.perf_counter()
        for _ in schedule.execute(plan.make(runs, tasks, device), tasks, device, keep=store.add):
            pass
        seconds = time.perf_counter() - started
        lost = [r for r in store.records.values() if r.status != "finished"]
        best = max(
            sum(r.values["average_accuracy"] for r in store.records.values() if r.strategy == label) / seeds
            for label in {run.label for run in runs}
        )
    size = 4 * sum(p.numel() for p in model.build(tasks[0].shape, 10, seed=0).parameters())
    steps = sum(RECIPE.steps(len(images.train_y))[1] for images in tasks)
    # The first task is trained once a seed.
    floor = PASSES * size * (len(runs) + seeds) * steps / 2 / floors.bandwidth
    yield Line(
        f"{len(runs)} complete runs, mnist-fashion{', compiled' * compile}",
        seconds,
        "s",
        60.0 if len(runs) == LAMBDAS * SEEDS else None,
    )
    yield Line("runs an hour", 3600 * len(runs) / seconds, "")
    yield Line("floor: traffic of the parameters", floor, "s")
    for what, bytes_ in peaks(device).items():
        yield Line(f"peak memory, {what}", bytes_ / 2**30, "GiB")
    yield Line("runs that did not finish", len(lost), "", 0)
    for reason, many in Counter(r.reason or r.status for r in lost).most_common():
        yield Line(f"  {reason}"[:200], many, "runs")
    yield Line("1 - average accuracy at the best λ", 1 - best, "", 0.2)


def peaks(device: torch.device) -> dict[str, int]:
    """Bytes of tensors, and those that PyTorch held for them, the memory of graphs included."""
    if device.type != "cuda":
        return {}
    return {
        "tensors": torch.cuda.max_memory_allocated(device),
        "held by PyTorch": torch.cuda.max_memory_reserved(device),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu goes through the same steps, to try them out")
    parser.add_argument("--lambdas", type=int, default=LAMBDAS, help="values of λ of the complete runs")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each")
    parser.add_argument("--stacks", type=int, nargs="*", default=STACKS, help="sizes to time")
    parser.add_argument("--out", type=Path, default=Path("out") / "gpu-check")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch has no CUDA"
        print(
            f"expected a CUDA device, found none ({built}); --device cpu goes through the same steps", file=sys.stderr
        )
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({os.cpu_count()} cores)"
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    tasks = [data.load(each, say=print) for each in ("mnist", "fashion-mnist")]
    asked.out.mkdir(parents=True, exist_ok=True)
    floors, captures, lines = Floors(), Captures(), list[Line]()
    sections: dict[str, Callable[[], Iterator[Line]]] = {
        "equality": lambda: equality(tasks, device),
        "floors": lambda: floors.measure(device),
        "throughput": lambda: throughput(tasks[0], device, floors, asked.stacks),
        **{
            f"complete runs{', compiled' * compile}": functools.partial(
                whole, tasks, device, asked.lambdas, asked.seeds, floors, compile=compile
            )
            for compile in COMPILED
        },
        "graphs": lambda: iter(captures.lines(device)),
    }
    for title, check in sections.items():
        print(f"\n{title}")
        with captures.counted():
            for line in attempted(title, check):
                lines.append(line)
                print(line, flush=True)
        # After each: a device that hangs in the next takes none of these numbers along.
        told = {"device": name, "torch": torch.__version__, "lines": [dataclasses.asdict(line) for line in lines]}
        (asked.out / "gpu.json").write_text(json.dumps(told, indent=1) + "\n")
    failed = [line.what for line in lines if not line.passes]
    print(f"\n{asked.out / 'gpu.json'}; " + (f"FAILED: {', '.join(failed)}" if failed else "all is as it must be"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
