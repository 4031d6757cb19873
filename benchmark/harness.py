"""The task loop every strategy runs through: train, evaluate, consolidate. Runs in, results out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import models
from benchmark.data import ImageSet
from benchmark.keys import generator
from benchmark.learner import Learner, Task, lift, like, tree_map
from benchmark.plan import Group, Plan
from benchmark.runs import Evaluation, Result, Run
from strategies.base import FinishedTask, Hparams, Params, State
from strategies.naive import Naive


class Listener(Protocol):
    """Hears what the harness does; all methods of `Silent` are the defaults."""

    def stack_started(self, number: int, runs: int, title: str) -> None:
        """A stack (or trunk, numbered as the stack that follows) begins."""

    def epoch_done(self, runs: int, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """That many runs finished an epoch; the loss is their mean."""

    def consolidating(self, task: int, done: int, total: int) -> None:
        """Importances are being measured after a task, one run after another."""


class Silent:
    """A listener that does nothing."""

    def stack_started(self, number: int, runs: int, title: str) -> None:
        """Ignore."""

    def epoch_done(self, runs: int, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """Ignore."""

    def consolidating(self, task: int, done: int, total: int) -> None:
        """Ignore."""


@dataclass
class _Branch:
    """A stack on its way through the tasks."""

    runs: tuple[Run, ...]
    learner: Learner
    rows: list[Tensor]  # accuracy matrix so far, each (R, T)
    trace: list[tuple[int, int, Tensor]]
    seconds: list[float]  # training time so far, a run


def execute(plan: Plan, tasks: list[ImageSet], device: torch.device, listener: Listener | None = None) -> Iterator[list[Result]]:
    """Train everything planned.

    Args:
        plan: from `plan.make`.
        tasks: images of each task, on any device.
        device: where to train.
        listener: hears about progress.

    Yields:
        The results of one stack, as soon as it ends.
    """
    listener = listener or Silent()
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # Adam's moments of dead pixels decay into denormals, which are slow
    moved = {id(images): _to(images, device) for images in tasks}
    on_device = [moved[id(images)] for images in tasks]
    number = 0
    for group in plan.groups:
        trunk = _trunk(group, on_device, device, number + 1, listener) if group.seeds else None
        shared = [run.trunk for stack in group.stacks for run in stack]
        for stack in group.stacks:
            number += 1
            listener.stack_started(number, len(stack), _title(stack))
            if trunk:
                branch = _branch_off(trunk, group, stack)
            else:
                branch = _start(stack, on_device, device)
            yield _through_tasks(branch, on_device, device, listener, shared)


def _to(images: ImageSet, device: torch.device) -> ImageSet:
    parts = ("train_x", "train_y", "test_x", "test_y")
    return dataclasses.replace(images, **{part: getattr(images, part).to(device) for part in parts})


def _title(stack: tuple[Run, ...]) -> str:
    labels = list(dict.fromkeys(run.label for run in stack))
    return ", ".join(labels) if len(labels) <= 3 else f"{', '.join(labels[:2])} and {len(labels) - 2} more"


def _start(runs: tuple[Run, ...], tasks: list[ImageSet], device: torch.device) -> _Branch:
    """A stack before any training, evaluated: row 0 of the accuracy matrix."""
    first, pixels = runs[0], tasks[0].train_x.shape[1]
    classes = max(images.classes for images in tasks)
    networks = [models.build(first.model, pixels, classes, seed=run.seed) for run in runs]
    learner = Learner.fresh(networks, first.recipe, pixels, device)
    branch = _Branch(runs, learner, [], [], [0.0] * len(runs))
    branch.rows.append(_evaluate(branch, tasks))
    return branch


def _trunk(group: Group, tasks: list[ImageSet], device: torch.device, number: int, listener: Listener) -> _Branch:
    """The first task, trained once a seed without a strategy."""
    model = group.stacks[0][0]
    runs = tuple(
        dataclasses.replace(model, strategy=Naive(), strategy_name="naive", label="trunk", seed=seed) for seed in group.seeds
    )
    listener.stack_started(number, len(runs), "first task, shared")
    branch = _start(runs, tasks, device)
    _train(branch, 1, tasks, {}, _hparams(runs, device, branch.learner), listener)
    return branch


def _branch_off(trunk: _Branch, group: Group, stack: tuple[Run, ...]) -> _Branch:
    """Copies of the trunk's runs, one a run of the stack."""
    rows = [group.seeds.index(run.seed) for run in stack]
    users = [sum(run.seed == seed for s in group.stacks for run in s) for seed in group.seeds]
    return _Branch(
        stack,
        trunk.learner.take(rows, stack[0].recipe),
        [row[rows] for row in trunk.rows],
        [(task, step, accuracy[rows]) for task, step, accuracy in trunk.trace],
        [trunk.seconds[row] / users[row] for row in rows],
    )


def _through_tasks(
    branch: _Branch, tasks: list[ImageSet], device: torch.device, listener: Listener, shared: list[str]
) -> list[Result]:
    """Train what is left, consolidating between tasks, and report."""
    learner, strategy = branch.learner, branch.runs[0].strategy
    hparams = _hparams(branch.runs, device, learner)
    params = {k: p.detach() for k, p in learner.params.items()}
    state: State = lift(strategy.init, learner.runs)(params)
    trained = len(branch.rows) - 1
    if trained:
        state = _consolidate(branch, trained, tasks, state, hparams, listener)
    for task in range(trained + 1, len(tasks) + 1):
        state = _train(branch, task, tasks, state, hparams, listener)
        if task < len(tasks):
            state = _consolidate(branch, task, tasks, state, hparams, listener)
    return _results(branch, shared)


def _train(
    branch: _Branch, task: int, tasks: list[ImageSet], state: State, hparams: Hparams, listener: Listener
) -> State:
    """One task: train and evaluate."""
    learner, runs, recipe = branch.learner, branch.runs, branch.learner.recipe
    started = time.perf_counter()
    if task > 1 and recipe.optimizer_state == "reset":
        learner.reset_optimizer()
    state = learner.train(
        _task(task, tasks, runs, learner.device),
        lambda epoch: _batches(runs, task, epoch, len(tasks[task - 1].train_y)).to(learner.device),
        runs[0].strategy,
        state,
        hparams,
        frozen_batchnorm=task > 1 and recipe.batchnorm == "freeze-after-first",
        every_epoch=lambda epoch, epochs, loss: listener.epoch_done(len(runs), task, len(tasks), epoch, epochs, loss),
        every_steps=lambda step: branch.trace.append((task, step, _evaluate(branch, tasks))),
    )
    share = (time.perf_counter() - started) / len(runs)
    branch.seconds = [seconds + share for seconds in branch.seconds]
    branch.rows.append(_evaluate(branch, tasks))
    if recipe.evaluate_every:
        steps = recipe.steps(len(tasks[task - 1].train_y))[1]
        if not branch.trace or branch.trace[-1][:2] != (task, steps):
            branch.trace.append((task, steps, branch.rows[-1]))
    return state


def _task(number: int, tasks: list[ImageSet], runs: tuple[Run, ...], device: torch.device) -> Task:
    images = tasks[number - 1]
    orders = [run.scenario.pixel_order(number, run.seed, images.train_x.shape[1]) for run in runs]
    stacked = [order for order in orders if order is not None]
    return Task(number, images, torch.stack(stacked).to(device) if stacked else None)


def _batches(runs: tuple[Run, ...], task: int, epoch: int, images: int) -> Tensor:
    """Training images of each step of an epoch, shape (steps, R, B): keyed by seed, so every strategy sees the same."""
    size = min(runs[0].recipe.batch_size, images)
    steps = images // size
    seeds = dict.fromkeys(run.seed for run in runs)
    orders = {seed: torch.randperm(images, generator=generator(seed, "batches", task, epoch)) for seed in seeds}
    return torch.stack([orders[run.seed][: steps * size].view(steps, size) for run in runs], dim=1)


def _evaluate(branch: _Branch, tasks: list[ImageSet]) -> Tensor:
    """Test accuracy of every run on every task, shape (R, T)."""
    learner = branch.learner
    rows = [learner.accuracy(_task(j, tasks, branch.runs, learner.device)) for j in range(1, len(tasks) + 1)]
    return torch.stack(rows, dim=1)


def _hparams(runs: tuple[Run, ...], device: torch.device, learner: Learner) -> Hparams:
    """One value a run, each of shape (R,)."""
    names = runs[0].strategy.hyperparameters()
    dtype = learner.recipe.dtype
    return {n: torch.tensor([getattr(r.strategy, n) for r in runs], dtype=dtype, device=device) for n in names}


def _consolidate(
    branch: _Branch, task: int, tasks: list[ImageSet], state: State, hparams: Hparams, listener: Listener
) -> State:
    """Measure what the task made important, then let the strategy update its state."""
    learner, strategy = branch.learner, branch.runs[0].strategy
    if not strategy.overrides("consolidate"):
        return state
    measured = _measure(branch, task, tasks, listener)
    params = {k: p.detach() for k, p in learner.params.items()}
    new: State = lift(strategy.consolidate, learner.runs)(state, params, measured, hparams)
    # Tensors that meet parameters in every step lie in memory as they do.
    return {
        name: {k: like(params[k], v) if k in params and v.shape == params[k].shape else v for k, v in part.items()}
        for name, part in new.items()
    }


def _measure(branch: _Branch, task: int, tasks: list[ImageSet], listener: Listener) -> Params:
    """What `Strategy.measure` says of each run, stacked; runs that branched off alike are measured once."""
    learner, seen = branch.learner, _task(task, tasks, branch.runs, branch.learner.device)
    done: dict[object, Params] = {}
    rows: list[Params] = []
    for r, run in enumerate(branch.runs):
        fresh_trunk = run.trunk and task == 1
        key = (run.trunk, type(run.strategy), _measured_by(run)) if fresh_trunk else (r,)
        if key not in done:
            listener.consolidating(task, r, len(branch.runs))
            order = seen.order[r] if seen.order is not None else None
            x = seen.inputs(seen.images.train_x, learner.recipe.dtype, order)
            finished = FinishedTask(task, x, seen.images.train_y, generator(run.seed, "measure", task))
            with learner.solo(r) as network:
                done[key] = tree_map(lambda t: t.detach(), run.strategy.measure(network, finished))
        rows.append(done[key])
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def _measured_by(run: Run) -> tuple[tuple[str, object], ...]:
    """The options `measure` can see: all but the float hyperparameters."""
    hypers = run.strategy.hyperparameters()
    return tuple((k, v) for k, v in run.strategy.options().items() if k not in hypers)


def _results(branch: _Branch, shared: list[str]) -> list[Result]:
    matrices: NDArray[np.float64] = torch.stack(branch.rows, dim=1).cpu().numpy()  # (R, T + 1, T)
    diverged = branch.learner.diverged.tolist()
    trace = [(task, step, accuracy.cpu().numpy()) for task, step, accuracy in branch.trace]
    return [
        Result(
            run=run,
            status="diverged" if diverged[r] else "finished",
            accuracy=matrices[r],
            train_seconds=branch.seconds[r],
            stack_size=len(branch.runs),
            trunk_runs=shared.count(run.trunk) if run.trunk else 1,
            trace=[Evaluation(task, step, accuracy[r]) for task, step, accuracy in trace],
        )
        for r, run in enumerate(branch.runs)
    ]
