"""What Ray costs beside the threads of this process: `make perf-ray`, where `forgetbench[ray]` is installed.

The same 64 runs both ways, in turn. Ray is started once, before, which a command pays once too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch

from benchmark import config, plan, scenarios, schedule
from benchmark.executors import Executor, Local, Room
from benchmark.perf.measuring import Row, in_turn, timed
from benchmark.perf.tables import Section

CPU = torch.device("cpu")
ROUNDS, WORKERS = 5, 2
RUNS = [
    "seeds=16",
    "strategy=[{name='naive'}, {name='l2', lam=[0.1, 1]}, {name='ewc', estimator='empirical', lam=100}]",
]


def sections(say: Callable[[str], None]) -> Iterator[Section]:
    """Wall time through Ray and on threads, and the start of Ray.

    Args:
        say: takes one line for each thing worth knowing.
    """
    from benchmark.cluster import Ray

    torch.set_num_threads(WORKERS)  # one for each stack, as in Ray's workers
    runs = config.load("permuted-digits", RUNS).runs()
    images, executor = scenarios.load(runs[0].scenario), Ray(say=say)
    rooms = list[Room]()
    start = timed(lambda: rooms.append(executor.room(CPU)))()
    room = rooms[0]._replace(workers=WORKERS)

    def through(executor: Executor) -> Callable[[], float]:
        made = plan.make(runs, images, CPU, room=room)
        return timed(lambda: list(schedule.execute(made, images, CPU, executor=executor)))

    threads, ray = in_turn({"threads": (through(Local()), 1), "Ray": (through(executor), 1)}, ROUNDS)
    share = dataclasses.replace(ray, ratio=1 / ray.ratio)  # it was that of the first row over this one
    title = f"{len(runs)} runs of permuted-digits, {WORKERS} stacks at a time: share of threads' wall time"
    yield Section(title, "seconds", "share", [threads, share])
    yield Section("before that, once", "seconds", "", [Row("start of Ray, until a worker answers", start, math.nan)])
