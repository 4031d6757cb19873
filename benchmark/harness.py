"""The task loop every strategy runs through: train, evaluate, consolidate. A stack in, its results out."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import importances
from benchmark.blame import blamed
from benchmark.data import ImageSet
from benchmark.executors import Cancelled
from benchmark.feed import Feed, Lesson, Pool
from benchmark.learner import DENSE, Learner
from benchmark.runs import Evaluation, Result, Run
from benchmark.scenarios import Scenario
from strategies.base import Hparams, Params, Setting, State, check_state
from strategies.naive import Naive
from strategies.stack import lift
from strategies.trees import tree_map


class Listener(Protocol):
    """Hears what the harness does; all methods of `Silent` are the defaults."""

    def stack_started(self, number: int, runs: int, title: str) -> None:
        """A stack, numbered from 1, or a trunk, whose number is 0, begins."""

    def epoch_done(self, runs: int, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """That many runs finished an epoch; the loss is their mean."""

    def consolidating(self, task: int, done: int, total: int) -> None:
        """Importances are being measured after a task; that many runs of the stack have theirs."""

    def stack_trained(self, runs: tuple[Run, ...], params: Params) -> None:
        """A stack went through all tasks; its parameters are stacked in the order of the runs, and not copied.

        Those of stacks that trained in another process stay there, and nobody hears of them.
        """

    def trouble(self, what: str, trace: str) -> None:
        """A stack failed, or was split for want of memory: a line for people, and where it happened."""


Prune = Callable[[int, tuple[Run, ...], NDArray[np.float64]], list[bool]]
"""Task just learnt, runs, their accuracy matrices so far (R, task + 1, T) -> which runs to give up."""


class Silent:
    """A listener that does nothing."""

    def stack_started(self, number: int, runs: int, title: str) -> None:
        """Ignore."""

    def epoch_done(self, runs: int, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """Ignore."""

    def consolidating(self, task: int, done: int, total: int) -> None:
        """Ignore."""

    def stack_trained(self, runs: tuple[Run, ...], params: Params) -> None:
        """Ignore."""

    def trouble(self, what: str, trace: str) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Site:
    """What every stack of an execution shares.

    Attributes:
        scenario: of all runs.
        tasks: images of each of its tasks, on any device.
        device: where to train.
        listener: hears about progress, from several threads.
        prune: asked after each task but the first and the last; None gives up no run.
        stop: set when nobody waits for results any more.
    """

    scenario: Scenario
    tasks: Sequence[ImageSet]
    device: torch.device
    listener: Listener
    prune: Prune | None = None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    @functools.cached_property
    def pool(self) -> Pool:
        """The images, on the device."""
        return Pool.of(self.scenario, self.tasks, self.device)

    def load(self) -> None:
        """Move the images to the device, before threads ask for them at once."""
        _ = self.pool


@dataclass
class _Branch:
    """A stack on its way through the tasks."""

    runs: tuple[Run, ...]
    learner: Learner
    feed: Feed
    rows: list[Tensor]  # accuracy matrix so far, each (R, T)
    trace: list[tuple[int, int, Tensor]]
    seconds: list[float]  # training time so far, a run
    pruned: list[Result] = dataclasses.field(default_factory=list)  # runs given up, which have left the stack
    told: Tensor | None = None  # accuracy at the end if tasks are told, (R, T), where they are not


@dataclass(frozen=True)
class Trunk:
    """The first task, trained once a seed: what stacks branch off from.

    Attributes:
        learner: of one run a seed.
        rows: of the accuracy matrix, each (seeds, T).
        trace: as of a branch.
        seconds: of training, a seed.
    """

    learner: Learner
    rows: list[Tensor]
    trace: list[tuple[int, int, Tensor]]
    seconds: list[float]


def train_trunk(like_all: Run, seeds: Sequence[int], site: Site) -> tuple[Trunk, None]:
    """The first task, without a strategy.

    Args:
        like_all: a run, of which these differ in strategy and seed.
        seeds: one run each.
        site: of the execution.

    Returns:
        A job's two results, see `executors.Job`.
    """
    plain = dataclasses.replace(like_all, strategy=Naive(), strategy_name="naive", label="trunk")
    site.listener.stack_started(0, len(seeds), "first task, shared")
    with like_all.recipe.products(site.device):
        branch = _start(tuple(dataclasses.replace(plain, seed=seed) for seed in seeds), site)
        _train(branch, 1, site, {}, {})
    # On the CPU, where any process can read them.
    trace = [(task, step, accuracy.cpu()) for task, step, accuracy in branch.trace]
    return Trunk(branch.learner, [row.cpu() for row in branch.rows], trace, branch.seconds), None


def train_stack(
    number: int,
    stack: tuple[Run, ...],
    users: Mapping[str, int],
    places: Mapping[int, tuple[int, int]],
    site: Site,
    *trunks: Trunk,
) -> tuple[None, list[Result]]:
    """All tasks, or all but the first.

    Args:
        number: for people.
        stack: runs that train together.
        users: how many runs share each trunk.
        places: for each seed, which trunk it branches off from, and the row there; empty if there are no trunks.
        site: of the execution.
        trunks: that `places` counts.

    Returns:
        A job's two results, see `executors.Job`.
    """
    site.listener.stack_started(number, len(stack), title(stack))
    sources = [(trunks[i], row) for i, row in (places[run.seed] for run in stack)] if places else []
    with stack[0].recipe.products(site.device):
        branch = _branch_off(sources, stack, users, site) if sources else _start(stack, site)
        _through_tasks(branch, site, users)
    results = _results(branch, users)
    if branch.runs:
        site.listener.stack_trained(branch.runs, {k: p.detach() for k, p in branch.learner.params.items()})
    return None, results + branch.pruned


def title(stack: tuple[Run, ...]) -> str:
    """A stack by its strategies."""
    labels = list(dict.fromkeys(run.label for run in stack))
    return ", ".join(labels) if len(labels) <= 2 else f"{labels[0]} and {len(labels) - 1} more"


def _start(runs: tuple[Run, ...], site: Site) -> _Branch:
    """A stack before any training, evaluated: row 0 of the accuracy matrix."""
    branch = _Branch(runs, _untrained(runs, site), _feed(site.pool, runs), [], [], [0.0] * len(runs))
    branch.rows.append(_evaluate(branch, 0))
    return branch


def _feed(pool: Pool, runs: tuple[Run, ...]) -> Feed:
    return Feed(pool, [run.seed for run in runs], runs[0].recipe.dtype)


def _untrained(runs: tuple[Run, ...], site: Site) -> Learner:
    first, pool = runs[0], site.pool
    networks = [run.model.build(pool.shape, pool.heads.outputs, seed=run.seed) for run in runs]
    return Learner.fresh(networks, first.recipe, pool.shape, pool.x.device)


def _branch_off(
    sources: list[tuple[Trunk, int]], stack: tuple[Run, ...], users: Mapping[str, int], site: Site
) -> _Branch:
    """Copies of rows of trunks, one a run of the stack."""

    def rows(tensors: Callable[[Trunk], list[Tensor]]) -> list[Tensor]:
        """Each of a trunk's tensors (its seeds, ...), as (this stack's runs, ...)."""
        listed = zip(*([t[row] for t in tensors(trunk)] for trunk, row in sources), strict=True)
        return [torch.stack(list(values)).to(site.device) for values in listed]

    trace = rows(lambda trunk: [accuracy for _, _, accuracy in trunk.trace])
    moments = [(task, step) for task, step, _ in sources[0][0].trace]
    return _Branch(
        stack,
        Learner.branch([(trunk.learner, row) for trunk, row in sources], stack[0].recipe),
        _feed(site.pool, stack),
        rows(lambda trunk: trunk.rows),
        [(task, step, accuracy) for (task, step), accuracy in zip(moments, trace, strict=True)],
        [trunk.seconds[row] / users[run.trunk] for run, (trunk, row) in zip(stack, sources, strict=True)],
    )


def _through_tasks(branch: _Branch, site: Site, users: Mapping[str, int]) -> None:
    """Train the tasks that are left, consolidating between them; the branch moves along.

    Args:
        branch: a stack, changed in place.
        site: of the execution.
        users: how many runs share each trunk.
    """
    learner, strategy, tasks = branch.learner, branch.runs[0].strategy, len(site.pool.tasks)
    hparams, outputs = _hparams(branch), site.pool.heads.outputs

    def init(params: Params, buffers: Params) -> State:
        return strategy.init(params, Setting(tasks, outputs, buffers))

    params = {k: p.detach() for k, p in learner.params.items()}
    # Copies: a strategy may keep what it was handed, and training writes into the parameters.
    with blamed(branch.runs[0]):
        state: State = tree_map(torch.clone, lift(init, learner.runs)(params, learner.buffers))
    trained = len(branch.rows) - 1
    if trained and trained < tasks:
        state = _consolidate(branch, trained, site, state, hparams)
    for task in range(trained + 1, tasks + 1):
        before, state = state, _train(branch, task, site, state, hparams)
        stepping = [method for method in ("after_step", "observe") if strategy.overrides(method)]
        _check_state(branch, " or ".join(stepping), before, state)
        if 1 < task < tasks and site.prune:
            state = _pruned(branch, task, site.prune, state, users)
            if not branch.runs:
                return
            hparams = _hparams(branch)
        if task < tasks:
            state = _consolidate(branch, task, site, state, hparams)
    if site.scenario.incremental == "class":
        branch.told = _accuracy(branch, site.pool.heads.told)


def _pruned(branch: _Branch, task: int, prune: Prune, state: State, users: Mapping[str, int]) -> State:
    """Ask which runs to give up, and take them out of the stack; returns the state of those that stay.

    Args:
        branch: the stack, changed in place.
        task: just learnt.
        prune: whom to ask.
        state: of the strategy.
        users: how many runs share each trunk.
    """
    given_up = prune(task, branch.runs, torch.stack(branch.rows, dim=1).cpu().numpy())
    if not any(given_up):
        return state
    results = _results(branch, users)
    branch.pruned += [
        dataclasses.replace(result, status="pruned") for result, out in zip(results, given_up, strict=True) if out
    ]
    stay = [r for r, out in enumerate(given_up) if not out]
    index = torch.tensor(stay, dtype=torch.int64, device=branch.learner.device)
    branch.runs = tuple(branch.runs[r] for r in stay)
    if stay:
        branch.learner = Learner.branch([(branch.learner, r) for r in stay], branch.runs[0].recipe)
        branch.feed = _feed(branch.feed.pool, branch.runs)
    branch.rows = [row[index] for row in branch.rows]
    branch.trace = [(number, step, accuracy[index]) for number, step, accuracy in branch.trace]
    branch.seconds = [branch.seconds[r] for r in stay]
    new: State = tree_map(lambda t: t[index], state)
    return new


def _check_state(branch: _Branch, method: str, before: State, after: State) -> None:
    """Methods of a strategy must keep the structure of its state; what one run has of it is shown where not."""
    if before is not after:
        name = branch.runs[0].strategy_name
        check_state(name, method, tree_map(lambda t: t[0], before), tree_map(lambda t: t[0], after))


def _train(branch: _Branch, task: int, site: Site, state: State, hparams: Hparams) -> State:
    """One task: train and evaluate."""
    runs, strategy, recipe = branch.runs, branch.runs[0].strategy, branch.runs[0].recipe
    tasks = len(site.pool.tasks)

    def every_step(step: int) -> None:
        if site.stop.is_set():
            raise Cancelled
        if recipe.evaluate_every and step % recipe.evaluate_every == 0:
            branch.trace.append((task, step, _evaluate(branch, task)))

    started, anew = time.perf_counter(), task > 1 and strategy.restarts(task)
    if anew:
        diverged = branch.learner.diverged
        branch.learner = _untrained(runs, site)
        branch.learner.diverged = diverged
    elif task > 1 and recipe.optimizer_state == "reset":
        branch.learner.reset_optimizer()
    lesson = Lesson(branch.feed, task, runs[0])
    with blamed(runs[0]):
        state = branch.learner.train(
            lesson,
            strategy,
            state,
            hparams,
            # A network that starts anew has no statistics to freeze.
            frozen_batchnorm=task > 1 and recipe.batchnorm == "freeze-after-first" and not anew,
            every_epoch=lambda epoch, epochs, loss: site.listener.epoch_done(
                len(runs), task, tasks, epoch, epochs, loss
            ),
            every_step=every_step,
        )
    share = (time.perf_counter() - started) / len(runs)
    branch.seconds = [seconds + share for seconds in branch.seconds]
    branch.rows.append(_evaluate(branch, task))
    # The end of a task counts too, also of one that took no step.
    if recipe.evaluate_every and (lesson.steps % recipe.evaluate_every or not lesson.steps):
        branch.trace.append((task, lesson.steps, branch.rows[-1]))
    return state


def _evaluate(branch: _Branch, trained: int) -> Tensor:
    """Test accuracy of every run on every task once that many were learnt, shape (R, T)."""
    return _accuracy(branch, lambda task: branch.feed.pool.heads.testing(task, trained))


def _accuracy(branch: _Branch, active: Callable[[int], Tensor]) -> Tensor:
    """Test accuracy of every run on every task, shape (R, T), where the outputs of a task that compete are given."""
    tasks = range(1, len(branch.feed.pool.tasks) + 1)
    return torch.stack([branch.learner.accuracy(branch.feed, task, active(task)) for task in tasks], dim=1)


def _hparams(branch: _Branch) -> Hparams:
    """One value a run, each of shape (R,)."""
    dtype, device = branch.learner.recipe.dtype, branch.learner.device
    names = branch.runs[0].strategy.hyperparameters()
    values = {name: [getattr(run.strategy, name) for run in branch.runs] for name in names}
    return {name: torch.tensor(listed, dtype=dtype, device=device) for name, listed in values.items()}


def _consolidate(branch: _Branch, task: int, site: Site, state: State, hparams: Hparams) -> State:
    """Measure what the task made important, then let the strategy update its state."""
    learner, strategy = branch.learner, branch.runs[0].strategy
    # Of runs that are all NaN there is nothing to measure.
    if not strategy.overrides("consolidate") or bool(learner.diverged.all()):
        return state

    def hear(done: int) -> None:
        if site.stop.is_set():
            raise Cancelled
        site.listener.consolidating(task, done, len(branch.runs))

    params = {k: p.detach() for k, p in learner.params.items()}
    measured = importances.measure(branch.runs, learner, branch.feed, task, hear)
    with blamed(branch.runs[0]):
        new: State = lift(strategy.consolidate, learner.runs)(state, params, measured, hparams)
    _check_state(branch, "consolidate", state, new)
    # Contiguous, as the parameters are that they meet in every step.
    contiguous: State = tree_map(lambda t: t.clone(memory_format=DENSE), new)
    return contiguous


def _results(branch: _Branch, users: Mapping[str, int]) -> list[Result]:
    if not branch.runs:
        return []
    learnt: NDArray[np.float64] = torch.stack(branch.rows, dim=1).cpu().numpy()  # (R, tasks learnt + 1, T)
    missing = learnt.shape[2] + 1 - learnt.shape[1]
    matrices = np.pad(learnt, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)
    diverged = branch.learner.diverged.tolist()
    trace = [(task, step, accuracy.cpu().numpy()) for task, step, accuracy in branch.trace]
    told = None if branch.told is None else branch.told.cpu().numpy()
    return [
        Result(
            run=run,
            status="diverged" if diverged[r] else "finished",
            accuracy=matrices[r],
            train_seconds=branch.seconds[r],
            stack_size=len(branch.runs),
            trunk_runs=users[run.trunk] if run.trunk else 1,
            trace=[Evaluation(task, step, accuracy[r]) for task, step, accuracy in trace],
            told=None if told is None else told[r],
        )
        for r, run in enumerate(branch.runs)
    ]
