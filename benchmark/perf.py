"""Seconds a run and epoch on this machine, beside the notebook's own loop: `make perf`.

Everything is measured in turn, round after round in one process, and the median of the rounds is shown: ratios are then
comparable on a noisy machine. An epoch is 600 steps of 100 MNIST images.
"""

from __future__ import annotations

import csv
import functools
import os
import statistics
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmark import data, models, scenarios
from benchmark.data import ImageSet
from benchmark.executors import side_by_side, workers_for
from benchmark.feed import Feed, Lesson, Pool
from benchmark.learner import Learner, lift
from benchmark.plan import chunks
from benchmark.recipe import Recipe
from benchmark.runs import Run
from benchmark.trees import tree_map
from strategies import ER, EWC, LwF, Naive, Params, Setting, State, Strategy, fisher

ROUNDS, STEPS, EPOCH = 5, 120, 600
CPU = torch.device("cpu")
RECIPE = Recipe(iterations=STEPS)


class _Images(Dataset[tuple[Tensor, int]]):
    """Image by image through PIL and ToTensor, as torchvision's MNIST hands them to the notebook's DataLoader."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision import transforms

        self._x = images.train_x.view(-1, *images.shape[1:]).numpy()
        self._y = images.train_y.tolist()
        self._transform = transforms.ToTensor()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._x[index])), self._y[index]

    def __len__(self) -> int:
        return len(self._y)


def notebook_loop(images: ImageSet) -> Callable[[], None]:
    """The notebook's training loop as it stands: DataLoader, one run, Adam."""
    network = models.Model("mlp-bn").build(images.shape, 10, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(_Images(images), batch_size=100, shuffle=True)

    def steps() -> None:
        for i, (x, y) in enumerate(loader):
            if i == STEPS:
                return
            loss = criterion(network(torch.reshape(x, [-1, 784])), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _ = loss.item()  # the notebook adds up the loss and prints it

    return steps


def stacked(images: ImageSet, runs: int, strategy: Strategy) -> Callable[[], object]:
    """That many runs as the harness trains them: in stacks side by side, one thread each."""
    workers = workers_for(CPU)
    jobs = [
        functools.partial(_train, *_stack(images, list(part), strategy)) for part in chunks(range(runs), 32, workers)
    ]
    return lambda: list(side_by_side(jobs, workers, threading.Event()))


def _stack(images: ImageSet, seeds: list[int], strategy: Strategy) -> tuple[Learner, Lesson, Strategy]:
    scenario, model = scenarios.resolve(["mnist", "mnist"]), models.Model("mlp-bn")
    runs = [Run(scenario, model, RECIPE, strategy, strategy.name, strategy.name, seed) for seed in seeds]
    feed = Feed(Pool.of(scenario, [images, images], CPU), seeds, RECIPE.dtype)
    networks = [model.build(images.shape, images.classes, seed=seed) for seed in seeds]
    # The second task: the first is plain for most strategies.
    return Learner.fresh(networks, RECIPE, images.shape, CPU), Lesson(feed, 2, runs[0]), strategy


def _train(learner: Learner, lesson: Lesson, strategy: Strategy) -> None:
    def init(params: Params, buffers: Params) -> State:
        return strategy.init(params, Setting(2, 10, buffers))

    params = {k: p.detach() for k, p in learner.params.items()}
    state = tree_map(torch.clone, lift(init, learner.runs)(params, learner.buffers))
    hparams = {k: torch.ones(learner.runs) for k in strategy.hyperparameters()}
    learner.train(lesson, strategy, state, hparams)


def fisher_loop(model: nn.Module, x: Tensor, y: Tensor) -> Params:
    """What most codebases do: one sample at a time."""
    total = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    for i in range(len(x)):
        log_p = F.log_softmax(model(x[i : i + 1]), 1)[0, y[i]]
        for k, g in zip(total, torch.autograd.grad(log_p, list(model.parameters())), strict=True):
            total[k] += g.square()
    return {k: v / len(x) for k, v in total.items()}


def _median_seconds(subjects: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    for subject in subjects.values():
        subject()
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            started = time.perf_counter()
            subject()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(listed) for name, listed in seconds.items()}


def training(images: ImageSet) -> list[tuple[str, float, float]]:
    """Rows of: what, seconds a run and epoch, times faster than the notebook's loop."""
    counts: list[tuple[int, Strategy]] = [(1, Naive()), (8, Naive()), (24, Naive()), (8, EWC()), (24, EWC())]
    counts += [(n, strategy) for strategy in (ER(), LwF()) for n in (1, 8)]
    runs = {f"{n} run{'s' if n > 1 else ''}, {strategy.name}": n for n, strategy in counts}
    subjects: dict[str, Callable[[], object]] = {"the notebook's loop": notebook_loop(images)}
    subjects |= {name: stacked(images, *each) for name, each in zip(runs, counts, strict=True)}
    found = {name: s * EPOCH / STEPS / runs.get(name, 1) for name, s in _median_seconds(subjects, ROUNDS).items()}
    loop = found["the notebook's loop"]
    return [(name, seconds, loop / seconds) for name, seconds in found.items()]


def fisher_rows(images: ImageSet) -> list[tuple[str, float, float]]:
    """Rows of: what, seconds for 60 000 images, times faster than the batch-1 loop."""
    model, x, y = (
        models.Model("mlp-bn").build(images.shape, 10, seed=0).eval(),
        images.train_x.float() / 255,
        images.train_y,
    )
    sample = 600
    subjects: dict[str, Callable[[], object]] = {
        "batch-1 loop (600 images, scaled up)": lambda: fisher_loop(model, x[:sample], y)
    }
    for estimator in ("empirical", "sampled", "batched", "exact"):
        subjects[estimator] = functools.partial(fisher.diagonal, model, x, y, estimator=estimator)
    found = _median_seconds(subjects, 3)
    loop = found.pop("batch-1 loop (600 images, scaled up)") * len(x) / sample
    rows = [("batch-1 loop (600 images, scaled up)", loop, 1.0)]
    return rows + [(name, seconds, loop / seconds) for name, seconds in found.items()]


def breakdown(images: ImageSet) -> list[tuple[str, float, float]]:
    """Where a step's time goes: operator, its own milliseconds a run and step, share; stack of 12, EWC, one thread."""
    learner, lesson, strategy = _stack(images, list(range(12)), EWC())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _train(learner, lesson, strategy)
        with (
            _standard_error_shut(),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        ):
            _train(learner, lesson, strategy)
    finally:
        torch.set_num_threads(threads)
    events = sorted(profile.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [(e.key, e.self_cpu_time_total / 1000 / STEPS / 12, e.self_cpu_time_total / total) for e in events[:8]]


@contextmanager
def _standard_error_shut() -> Generator[None, None, None]:
    """The profiler's library complains of a missing GPU there, past Python."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def main() -> None:
    """Measure, print, and write `out/perf.csv`."""
    console = Console()
    images = data.load("mnist", say=lambda line: console.print(line, highlight=False))
    sections = [
        ("training", ("", "s a run and epoch", "times faster"), training(images), "{:.2f}"),
        ("Fisher diagonal of 60 000 images", ("", "s", "times faster"), fisher_rows(images), "{:.2f}"),
        ("where a step goes (EWC, stack of 12, one thread)", ("", "ms a run", "share"), breakdown(images), "{:.3f}"),
    ]
    rows = []
    for title, columns, measured, form in sections:
        table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, value, ratio in measured:
            table.add_row(name, form.format(value), f"{ratio:.0%}" if columns[2] == "share" else f"{ratio:.1f}")
            rows.append((title, name, columns[1], f"{value:.6g}", f"{ratio:.4g}"))
        console.print(table)
        console.print()
    out = Path("out") / "perf.csv"
    out.parent.mkdir(exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("section", "name", "unit", "value", "ratio"))
        writer.writerows(rows)
    console.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; {out}", highlight=False)


if __name__ == "__main__":
    main()
