"""Which runs train together: groups that share a first task, and in each group stacks that fit in memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from benchmark.blame import blamed
from benchmark.data import ImageSet
from benchmark.executors import Room, workers_for
from benchmark.learner import layer_outputs
from benchmark.memory import free_bytes
from benchmark.runs import Run
from strategies.base import Setting

T = TypeVar("T")

LARGEST_ON_CPU = 32  # larger stacks gain no speed on a CPU, and results are written a stack at a time
CACHED = 2**21  # parameters of a stack, beyond which a step of larger ones waits for memory
MUCH = 2**24  # parameters times samples of a batch, from which on a step of one run keeps a core busy


@dataclass(frozen=True)
class Group:
    """Runs that branch from one trunk: the first task, trained once a seed.

    Attributes:
        seeds: of the trunk's runs; those are missing whose trunk is there already. Empty if every run trains the first
            task itself.
        stacks: runs that train together.
    """

    seeds: tuple[int, ...]
    stacks: tuple[tuple[Run, ...], ...]


@dataclass(frozen=True)
class Plan:
    """Everything to train.

    Attributes:
        groups: in order.
        largest: most runs a stack may hold.
        run_bytes: estimated memory of one run in a stack.
        workers: how many stacks train side by side.
    """

    groups: tuple[Group, ...]
    largest: int
    run_bytes: int
    workers: int = 1

    @property
    def stacks(self) -> int:
        """Number of stacks."""
        return sum(len(g.stacks) for g in self.groups)

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(stack) for g in self.groups for stack in g.stacks)

    def describe(self) -> str:
        """One line for people."""
        sizes = sorted((len(s) for g in self.groups for s in g.stacks), reverse=True)
        trunk = sum(len(g.seeds) for g in self.groups)
        shared = f", the first task trained once a seed ({trunk})" if trunk else ""
        memory = f"about {self.run_bytes * sum(sizes[: self.workers]) / 2**20:.0f} MiB"
        stacks = "1 stack" if self.stacks == 1 else f"{self.stacks} stacks"
        together = f", {self.workers} side by side" if min(self.workers, self.stacks) > 1 else ""
        return f"{self.runs} runs in {stacks} of {_listed(sizes)}{together}{shared}; {memory}"


def _listed(sizes: list[int]) -> str:
    """12, 12, 3 -> `2 x 12, 3`."""
    counts = {size: sizes.count(size) for size in sizes}
    return ", ".join(f"{n} x {size}" if n > 1 else str(size) for size, n in counts.items())


def make(
    runs: Iterable[Run],
    tasks: Sequence[ImageSet],
    device: torch.device,
    largest: int | None = None,
    room: Room | None = None,
    trained: Container[str] = (),
    together: Mapping[str, Hashable] | None = None,
) -> Plan:
    """Group runs, and split what would not fit in memory.

    Args:
        runs: of one scenario.
        tasks: images of each of its tasks, for the sizes.
        device: whose free memory counts.
        largest: most runs a stack may hold, whatever the memory; None to decide here.
        room: how many stacks there may be at a time, and the memory of each; None: what this process has.
        trained: each `Run.trunk` that is there already.
        together: by run key, what a run is one of: where memory allows, these are in one stack.
    """
    runs = list(runs)
    if not runs:
        return Plan((), 0, 0)
    # One run of each kind: float hyperparameters and seeds change no size.
    kinds = {(r.model, r.recipe, r.strategy.family()): r for r in runs}
    sizes, worths, sensible = zip(*(_needs(run, tasks) for run in kinds.values()), strict=True)
    run_bytes = max(sizes)
    workers, free = room or Room(workers_for(device), free_bytes(device) // workers_for(device))
    # Half of what is free: caches, the data and evaluation want the rest.
    fitting = max(int(free / 2 / run_bytes), 1)
    largest = min(fitting, largest or (min(sensible) if device.type == "cpu" else fitting))
    worth = max(worths) if room is None else 1  # elsewhere each stack has a process
    by_trunk: dict[Hashable, list[Run]] = {}
    for run in runs:
        recipe = dataclasses.replace(run.recipe, batchnorm="update")
        own = None if run.strategy.shares_first_task() else _stack_key(run)
        by_trunk.setdefault((run.model, recipe, own), []).append(run)
    groups: list[Group] = []
    for (_, _, own), members in by_trunk.items():  # type: ignore[misc]
        seeds = list(dict.fromkeys(r.seed for r in members))
        # A trunk is a stack too: no more seeds at a time than fit.
        for part in chunks(seeds, largest * workers) if own is None else [seeds]:
            stacks = _stacks([r for r in members if r.seed in set(part)], largest, workers, worth, together or {})
            missing = {r.seed for r in members if r.trunk not in trained} if own is None else set()
            groups.append(Group(tuple(seed for seed in part if seed in missing), stacks))
    alone = room is None and sum(len(group.stacks) for group in groups) == 1
    return Plan(tuple(groups), largest, run_bytes, 1 if alone else workers)


def worth_a_thread(network: nn.Module, batch: int) -> int:
    """How many runs are worth a thread of their own.

    With fewer, threads wait for the interpreter that they share, and the cores are better used within the products of
    one stack.

    Args:
        network: of one run.
        batch: samples of a step.
    """
    return 4 if sum(p.numel() for p in network.parameters()) * batch >= MUCH else 8


def largest_on_cpu(network: nn.Module) -> int:
    """How many runs a stack on a CPU has at most, where nobody asks for more.

    Args:
        network: of one run.
    """
    return min(max(CACHED // sum(p.numel() for p in network.parameters()), 8), LARGEST_ON_CPU)


def _stack_key(run: Run) -> Hashable:
    """Runs of one group stack if all that is not a tensor is equal."""
    return (run.strategy.family(), run.recipe.batchnorm)


def _stacks(
    runs: list[Run], largest: int, workers: int, worth: int, together: Mapping[str, Hashable]
) -> tuple[tuple[Run, ...], ...]:
    alike: dict[Hashable, list[Run]] = {}
    for run in runs:
        alike.setdefault(_stack_key(run), []).append(run)
    stacks = []
    for members in alike.values():
        units: dict[Hashable, list[Run]] = {}
        for run in members:
            units.setdefault(together.get(run.key, run.key), []).append(run)
        size = max(map(len, units.values()))
        parts = chunks(list(units.values()), max(largest // size, 1), workers, -(-worth // size))
        stacks += [tuple(run for unit in part for run in unit) for part in parts]
    # Largest first, so that workers end at about the same time.
    return tuple(sorted(stacks, key=len, reverse=True))


def chunks(items: Sequence[T], largest: int, workers: int = 1, worth: int = 1) -> list[Sequence[T]]:
    """Parts of nearly equal size, enough to keep every worker busy.

    Args:
        items: to divide, in order.
        largest: most items a part.
        workers: how many parts are worked on at a time.
        worth: items that are worth a worker of their own.
    """
    if not items:
        return []
    parts = max(-(-len(items) // largest), min(workers, len(items) // worth), 1)
    if parts > workers:
        parts = min(-(-parts // workers) * workers, len(items))
    bounds = [round(i * len(items) / parts) for i in range(parts + 1)]
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


def _needs(run: Run, tasks: Sequence[ImageSet]) -> tuple[int, int, int]:
    """Bytes of a run in a stack, how many such runs are worth a thread, and how many a stack on a CPU has at most.

    Bytes: parameters, gradients, moments and temporaries; the strategy's state; activations of a batch.
    """
    shape, outputs = tasks[0].shape, run.scenario.heads(tasks).outputs
    network = run.model.build(shape, outputs, seed=0)
    params = {k: p.detach() for k, p in network.named_parameters()}
    buffers = dict(network.named_buffers())
    with blamed(run):
        state = run.strategy.init(params, Setting(len(tasks), outputs, buffers))
    kept = sum(v.numel() for part in state.values() for v in part.values())
    x = torch.zeros(1, *shape)
    layers = sum(layer_outputs(network, x)) + x.numel()
    batch = run.recipe.batch_size + run.strategy.recalls
    values = 7 * sum(p.numel() for p in params.values()) + kept + 4 * batch * layers
    bytes_ = values * (8 if run.recipe.precision == "float64" else 4)
    return bytes_, worth_a_thread(network, run.recipe.batch_size), largest_on_cpu(network)
