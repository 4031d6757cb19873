"""Seconds a run and epoch in the notebook's setting: loops of one run, and stacks as the harness trains them.

The network of the `notebook` preset, batch 100, Adam; an epoch is 600 steps, of which a part is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmark import models, plan, scenarios, schedule
from benchmark.data import ImageSet
from benchmark.executors import threads, workers_for
from benchmark.feed import Feed, Lesson, Pool
from benchmark.learner import Learner
from benchmark.perf.measuring import Row, Subject, apart, in_turn, timed
from benchmark.recipe import Precision, Recipe
from benchmark.runs import Run
from strategies import ER, EWC, DERpp, LwF, Naive, Params, Setting, State, Strategy
from strategies.stack import lift
from strategies.trees import tree_map

CPU = torch.device("cpu")
BATCH, EPOCH, STEPS, ROUNDS = 100, 600, 200, 5
RECIPE = Recipe(batch_size=BATCH, iterations=STEPS)


class OneByOne(Dataset[tuple[Tensor, int]]):
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


def notebook_loop(images: ImageSet) -> Subject:
    """The notebook's training loop as it stands: DataLoader, one run, Adam."""
    network = models.Model("mlp-bn").build(images.shape, 10, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(OneByOne(images), batch_size=BATCH, shuffle=True)

    def steps() -> None:
        for i, (x, y) in enumerate(loader):
            if i == STEPS:
                return
            loss = criterion(network(torch.reshape(x, [-1, 784])), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _ = loss.item()  # the notebook adds up the loss and prints it

    return timed(steps)


def plain_loop(images: ImageSet, *, compile: bool = False) -> Subject:
    """What a careful loop of one run does: data as tensors, the fused optimiser, no DataLoader; `torch.compile`."""
    own = models.Model("mlp-bn").build(images.shape, 10, seed=0).train()
    network: Callable[[Tensor], Tensor] = own
    optimizer = torch.optim.Adam(own.parameters(), lr=1e-4, fused=True)
    if compile:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses a GPU
        network = torch.compile(own)
    criterion = nn.CrossEntropyLoss()
    x, y = images.train_x.float() / 255, images.train_y

    def steps() -> None:
        for batch in torch.randperm(len(y))[: BATCH * STEPS].split(BATCH):
            optimizer.zero_grad()
            criterion(network(x[batch]), y[batch]).backward()
            optimizer.step()

    return timed(steps)


def stacked(
    images: ImageSet, runs: int, strategy: Strategy, precision: Precision = "float32", *, compile: bool = False
) -> Subject:
    """That many runs as the harness trains them: in stacks side by side, one thread each, where that is worth it."""
    recipe = dataclasses.replace(RECIPE, precision=precision, compile=compile)
    workers, network = workers_for(CPU), models.Model("mlp-bn").build(images.shape, images.classes, seed=0)
    parts = plan.chunks(range(runs), plan.largest_on_cpu(network), workers, plan.worth_a_thread(network, BATCH))
    jobs = [functools.partial(train, *stack(images, list(part), strategy, recipe)) for part in parts]

    def side_by_side() -> None:
        with threads(min(workers, len(jobs)), threading.Event()) as start:
            for started in [start(job) for job in jobs]:
                started.result()

    return timed(side_by_side)


def stack(
    images: ImageSet, seeds: list[int], strategy: Strategy, recipe: Recipe = RECIPE, device: torch.device = CPU
) -> tuple[Learner, Lesson, Strategy]:
    """A fresh stack before its second task: the first is plain for most strategies."""
    scenario, model = scenarios.resolve([images.name, images.name]), models.Model("mlp-bn")
    runs = [Run(scenario, model, recipe, strategy, strategy.name, strategy.name, seed) for seed in seeds]
    feed = Feed(Pool.of(scenario, [images, images], device), seeds, recipe.dtype)
    networks = [model.build(images.shape, images.classes, seed=seed) for seed in seeds]
    return Learner.fresh(networks, recipe, images.shape, device), Lesson(feed, 2, runs[0]), strategy


def train(
    learner: Learner, lesson: Lesson, strategy: Strategy, every_step: Callable[[int], None] = lambda step: None
) -> None:
    """One lesson, hyperparameters all 1."""

    def init(params: Params, buffers: Params) -> State:
        return strategy.init(params, Setting(2, 10, buffers))

    params = {k: p.detach() for k, p in learner.params.items()}
    state = tree_map(torch.clone, lift(init, learner.runs)(params, learner.buffers))
    hparams = {k: torch.ones(learner.runs, device=learner.device) for k in strategy.hyperparameters()}
    learner.train(lesson, strategy, state, hparams, every_step=every_step)


Made = tuple[Callable[..., Subject], *tuple[Any, ...]]
"""A function of the module level that makes a subject of images, and its other arguments."""
LOOPS: dict[str, Made] = {
    "the notebook's loop": (notebook_loop,),
    "a loop on tensors": (plain_loop,),
    "a loop on tensors, compiled": (functools.partial(plain_loop, compile=True),),
}
"""Of one run; the first is what all else is compared with."""


def rows(images: ImageSet, more: dict[str, Made] | None = None) -> list[Row]:
    """Seconds a run and epoch, and times faster than the notebook's loop.

    Args:
        images: MNIST.
        more: further subjects of others' code, by name.
    """
    an_epoch = EPOCH / STEPS
    subjects = {
        name: (apart(make, images.name, *args), an_epoch) for name, (make, *args) in (LOOPS | (more or {})).items()
    }

    def add(runs: int, strategy: Strategy, precision: Precision = "float32", *, compile: bool = False) -> None:
        how = [strategy.name, *([precision] if precision != "float32" else []), *(["compiled"] if compile else [])]
        name = f"{runs} run{'s' if runs > 1 else ''}, {', '.join(how)}"
        subjects[name] = (stacked(images, runs, strategy, precision, compile=compile), an_epoch / runs)

    cases: list[tuple[Strategy, tuple[int, ...]]] = [(Naive(), (1, 8, 24)), (EWC(), (1, 8, 24))]
    cases += [(ER(), (1, 8)), (LwF(), (1, 8))]
    for strategy, counts in cases:
        for runs, compile in itertools.product(counts, (False, True)):
            add(runs, strategy, compile=compile)
    add(8, EWC(), "bfloat16")
    add(8, EWC(), "bfloat16", compile=True)
    return in_turn(subjects, ROUNDS)


def stacking() -> Iterator[tuple[str, list[Row]]]:
    """Seconds of a complete run alone, of each of 8 and of 64, and times faster than alone.

    On 8x8 digits, where to ask for an operation costs about as much as the operation: the recipe of the preset
    `permuted-digits`, two tasks.

    Yields:
        A strategy's name and its rows.
    """
    scenario, model = scenarios.resolve({"name": "permuted-digits", "tasks": 2}), models.Model("mlp-bn")
    recipe, images = Recipe(lr=1e-3, batch_size=64, epochs=5, batchnorm="freeze-after-first"), scenarios.load(scenario)

    def complete(strategy: Strategy, runs: int) -> tuple[Subject, float]:
        seeds = [Run(scenario, model, recipe, strategy, strategy.name, strategy.name, seed) for seed in range(runs)]
        return timed(lambda: list(schedule.execute(plan.make(seeds, images, CPU), images, CPU))), 1 / runs

    for strategy in (Naive(), EWC(), ER(), DERpp(), LwF()):
        subjects = {f"{n} run{'s' if n > 1 else ''}": complete(strategy, n) for n in (1, 8, 64)}
        yield strategy.name, in_turn(subjects, ROUNDS)
