"""What is planned, handed to an executor: trunks before their stacks, and what becomes of those that fail.

A stack that raises fails alone, and of several strategies in it the one that raises. One that runs out of memory is
split in two, and each half tries again; so is one whose workers die, which is how a kernel that is short of memory ends
them. In the end a run that ends its worker fails alone.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmark.data import ImageSet
from benchmark.errors import Explained
from benchmark.executors import HERE, Cancelled, Executor, Job, Lost, LostWorkers, Submit, Ticket, then
from benchmark.harness import Listener, Prune, Silent, Site, title, train_stack, train_trunk
from benchmark.memory import out_of_memory
from benchmark.plan import Group, Plan, chunks
from benchmark.runs import Result, Run

Keep = Callable[[list[Result]], object]
Trunks = dict[str, tuple[Any, int]]
"""First tasks that were trained, by `Run.trunk`: what their job left, and the row there."""


def execute(
    plan: Plan,
    tasks: list[ImageSet],
    device: torch.device,
    listener: Listener | None = None,
    keep: Keep = lambda results: None,
    prune: Prune | None = None,
    executor: Executor = HERE,
    trunks: Trunks | None = None,
) -> Iterator[list[Result]]:
    """Train everything planned.

    Args:
        plan: from `plan.make`.
        tasks: images of each task, on any device.
        device: where to train.
        listener: hears about progress, from several threads.
        keep: called with the results of each stack the moment it ends, in another thread, whatever the caller is doing;
            those of pruned runs are not results to keep.
        prune: which runs to give up after a task: they leave their stack, and those that stay train faster.
        executor: where stacks run.
        trunks: those of earlier executions on this device and executor, which the plan was told of; what is trained
            here is added. None keeps none.

    Yields:
        The results of one stack; of runs that failed too.
    """
    if not plan.runs:
        return
    scenario = plan.groups[0].stacks[0][0].scenario
    site = Site(scenario, tasks, device, listener or Silent(), prune)
    workers = min(plan.workers, max(plan.stacks, *(len(group.seeds) for group in plan.groups)))
    with executor.open(site, workers) as submit:
        # A job may wait for its worker, unless that is this very thread.
        ahead = workers if workers > 1 or device.type != "cpu" else 0
        yield from _Schedule(plan, submit, site.listener, keep, ahead, trunks).results()


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result.

    Attributes:
        reason: one line.
        trace: where, for whoever wants to know.
        memory: whether it was memory that ran out.
        died: whether its workers died, perhaps for want of memory.
    """

    reason: str
    trace: str = ""
    memory: bool = False
    died: bool = False


def attempted(job: Job, *given: Any) -> tuple[Any, Any]:
    """A job whose failure is a result; it holds none of the tensors that the exception would.

    Args:
        job: to do.
        given: to it.

    Raises:
        Cancelled: nobody waits for it any more.
    """
    try:
        return job(*given)
    except Cancelled:
        raise
    except Exception as error:
        failure = failed(error)
    if failure.memory:
        gc.collect()
        torch.cuda.empty_cache()
    return None, failure


def failed(error: Exception) -> Failure:
    """What an exception says."""
    said = " ".join(str(error).split())
    # A message of ours explains itself; others need their name.
    ours = isinstance(error, Lost | Explained) or (type(error) is ValueError and said)
    reason = said if ours else f"{type(error).__name__}: {said}"
    trace = "".join(traceback.format_exception(error))
    return Failure(reason[:500], trace, out_of_memory(error), isinstance(error, LostWorkers))


@dataclass
class _Branches:
    """A group on its way: what its stacks branch off from.

    Attributes:
        group: as planned.
        users: how many runs share each trunk.
        waiting: trunks that have not ended.
        trunks: what they left.
        places: for each seed, its trunk and row.
        lost: seeds whose trunk failed.
    """

    group: Group
    users: Counter[str]
    waiting: int = 0
    trunks: list[Any] = field(default_factory=list)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    lost: dict[int, Failure] = field(default_factory=dict)

    @property
    def keys(self) -> dict[int, str]:
        """`Run.trunk` of each seed."""
        return {run.seed: run.trunk for stack in self.group.stacks for run in stack}

    def add(self, left: Any, rows: dict[int, int]) -> None:
        """A trunk that is there.

        Args:
            left: by its job.
            rows: of each seed, the row there.
        """
        self.places |= {seed: (len(self.trunks), row) for seed, row in rows.items()}
        self.trunks.append(left)


@dataclass(frozen=True)
class _Piece:
    """A trunk's seeds or a stack's runs, which one job trains."""

    of: _Branches
    number: int
    seeds: tuple[int, ...] = ()
    stack: tuple[Run, ...] = ()

    def by_strategy(self) -> list[_Piece]:
        """The same work in a part for each strategy that it trains together."""
        names = dict.fromkeys(run.strategy_name for run in self.stack)
        own = [tuple(run for run in self.stack if run.strategy_name == name) for name in names]
        return [dataclasses.replace(self, stack=stack) for stack in own]

    def halves(self) -> list[_Piece]:
        """The same work in two parts."""
        many = max(len(self.seeds), len(self.stack))
        cuts = slice(None, (many + 1) // 2), slice((many + 1) // 2, None)
        return [dataclasses.replace(self, seeds=self.seeds[cut], stack=self.stack[cut]) for cut in cuts]

    def describe(self) -> str:
        """For people."""
        many = len(self.stack or self.seeds)
        return f"{'stack' if self.stack else 'first task'} of {many} run{'s' if many > 1 else ''}"


class _Schedule:
    """Hands in no more than is worked on, and a little ahead."""

    def __init__(
        self, plan: Plan, submit: Submit, listener: Listener, keep: Keep, ahead: int, trunks: Trunks | None
    ) -> None:
        self._plan, self._submit, self._listener, self._keep, self._ahead = plan, submit, listener, keep, ahead
        self._trunks = trunks
        self._groups, self._numbers = iter(plan.groups), iter(range(1, plan.stacks + 1))
        self._ready: deque[_Piece] = deque()
        self._running: dict[Future[Any], tuple[_Piece, Ticket]] = {}
        self._most = plan.largest  # runs a stack, as memory and workers that died have shown
        self._fits = plan.largest  # as memory alone has

    def results(self) -> Iterator[list[Result]]:
        """Of one stack after the other, as they end."""
        while self._fill():
            ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in ended:
                piece, ticket = self._running.pop(future)
                if results := self._ended(piece, ticket, _outcome(future)):
                    yield results

    def _fill(self) -> bool:
        """Hand in what there is room for; whether there is anything to wait for."""
        workers = self._plan.workers
        while len(self._running) < (workers + self._ahead if self._ready else workers):
            if self._ready:
                self._start(self._ready.popleft())
            elif (group := next(self._groups, None)) is not None:
                self._open(group)
            else:
                break
        return bool(self._running)

    def _open(self, group: Group) -> None:
        branches = _Branches(group, Counter(run.trunk for stack in group.stacks for run in stack))
        known = self._trunks or {}
        earlier: dict[Any, dict[int, int]] = {}  # a job's seeds together, so that what it left travels once
        for seed, trunk in branches.keys.items():
            if trunk in known:
                left, row = known[trunk]
                earlier.setdefault(left, {})[seed] = row
        for left, rows in earlier.items():
            branches.add(left, rows)
        parts = chunks(group.seeds, self._most, self._plan.workers)
        branches.waiting = len(parts)
        self._ready += [_Piece(branches, 0, seeds=tuple(part)) for part in parts]
        if not parts:
            self._branch(branches)

    def _branch(self, branches: _Branches) -> None:
        """The stacks of a group whose trunks have ended."""
        self._ready += [_Piece(branches, next(self._numbers), stack=stack) for stack in branches.group.stacks]

    def _start(self, piece: _Piece) -> None:
        of = piece.of
        if max(len(piece.seeds), len(piece.stack)) > self._most:
            self._split(piece, piece.halves())
            return
        if piece.seeds:
            job: Job = functools.partial(train_trunk, of.group.stacks[0][0], piece.seeds)
            needed: list[int] = []
        else:
            needed = sorted({of.places[run.seed][0] for run in piece.stack if of.places})
            places = {seed: (needed.index(i), row) for seed, (i, row) in of.places.items() if i in needed}
            job = functools.partial(train_stack, piece.number, piece.stack, of.users, places)
        ticket = self._submit(functools.partial(attempted, job), *(of.trunks[i] for i in needed))
        self._running[then(ticket.told, self._kept) if piece.stack else ticket.told] = piece, ticket

    def _split(self, piece: _Piece, parts: list[_Piece]) -> None:
        piece.of.waiting += len(parts) - 1 if piece.seeds else 0
        self._ready.extendleft(reversed(parts))

    def _kept(self, told: Any) -> Any:
        if not isinstance(told, Failure) and (results := [r for r in told if r.status != "pruned"]):
            self._keep(results)
        return told

    def _ended(self, piece: _Piece, ticket: Ticket, outcome: Any) -> list[Result]:
        """What a piece that ended makes ready, and the results it brings."""
        if isinstance(outcome, Failure):
            return self._failed(piece, outcome)
        if piece.stack:
            return list(outcome)
        of = piece.of
        rows = {seed: row for row, seed in enumerate(piece.seeds)}
        of.add(ticket.left, rows)
        if self._trunks is not None:
            keys = of.keys
            self._trunks |= {keys[seed]: (ticket.left, row) for seed, row in rows.items()}
        return self._trunk_ended(of)

    def _failed(self, piece: _Piece, failure: Failure) -> list[Result]:
        many = max(len(piece.seeds), len(piece.stack))
        if (failure.memory or failure.died) and many > 1:
            half = (many + 1) // 2
            self._most = min(self._most, half)
            if failure.memory:
                self._fits = min(self._fits, half)
            said = f"memory {'ran out' if failure.memory else 'may have run out'} in a {piece.describe()}"
            again = "it is tried again in two parts, and so is what is as large"
            self._listener.trouble(f"{said}: {again} ({failure.reason})", failure.trace)
            self._split(piece, piece.halves())
            return []
        if failure.died:
            self._most = self._fits  # it died alone: its size is not what ended the stacks that it was in
        elif len(parts := piece.by_strategy()) > 1:
            again = "its strategies are tried again one by one"
            self._listener.trouble(f"a {piece.describe()} failed, and {again}: {failure.reason}", failure.trace)
            self._split(piece, parts)
            return []
        which = f" ({title(piece.stack)})" if piece.stack else ""
        self._listener.trouble(f"a {piece.describe()}{which} failed: {failure.reason}", failure.trace)
        if piece.stack:
            return self._lost(piece.of, piece.stack, failure)
        piece.of.lost |= dict.fromkeys(piece.seeds, failure)
        return self._trunk_ended(piece.of)

    def _trunk_ended(self, of: _Branches) -> list[Result]:
        """The stacks, once all trunks are there; results of runs whose trunk is not."""
        of.waiting -= 1
        if of.waiting:
            return []
        stacks = [tuple(run for run in stack if run.seed not in of.lost) for stack in of.group.stacks]
        gone = [run for stack in of.group.stacks for run in stack if run.seed in of.lost]
        of.group = dataclasses.replace(of.group, stacks=tuple(stack for stack in stacks if stack))
        self._branch(of)
        results = [self._lost(of, [run for run in gone if run.seed == seed], why) for seed, why in of.lost.items()]
        return [result for each in results for result in each]

    def _lost(self, of: _Branches, runs: Sequence[Run], failure: Failure) -> list[Result]:
        tasks = runs[0].scenario.tasks
        results = [
            Result(
                run=run,
                status="failed",
                accuracy=np.full((tasks + 1, tasks), np.nan),
                train_seconds=0.0,
                stack_size=len(runs),
                trunk_runs=of.users[run.trunk] if run.trunk else 1,
                reason=failure.reason,
            )
            for run in runs
        ]
        self._keep(results)
        return results


def _outcome(future: Future[Any]) -> Any:
    """What came of a job; a worker that died for good failed like one that raised."""
    error = future.exception()
    return failed(error) if isinstance(error, Lost) else future.result()
