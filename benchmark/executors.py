"""Where stacks run: in this process, on a few threads side by side.

Products of the sizes at hand gain little from a second core, elementwise passes even less: two stacks on a thread each
finish sooner than one stack on two threads. PyTorch releases the interpreter lock while it computes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

T = TypeVar("T")

MOST_WORKERS = 4  # more would wait for the interpreter lock


class Cancelled(Exception):
    """Work was given up because the caller no longer waits for it."""


def workers_for(device: torch.device) -> int:
    """How many stacks to run at a time: one on an accelerator, one a core on a small machine."""
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), MOST_WORKERS)


def side_by_side(jobs: Sequence[Callable[[], T]], workers: int, stop: threading.Event) -> Iterator[T]:
    """Run jobs, the first ones first.

    Args:
        jobs: independent of each other.
        workers: how many at a time.
        stop: set when the caller gives up; a job that sees it raises `Cancelled`.

    Yields:
        What each job returns, as it finishes.
    """
    cores, workers = torch.get_num_threads(), min(workers, len(jobs))
    if workers <= 1:
        # In the caller's thread: in another, the threads of PyTorch's products would fight with those this one has.
        for job in jobs:
            yield _prepared(job, cores)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stack")
    finished = False
    try:
        for future in as_completed([pool.submit(_prepared, job, max(cores // workers, 1)) for job in jobs]):
            yield future.result()
        finished = True
    finally:
        if not finished:
            stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(cores)  # the workers' setting is partly the whole process's


def _prepared(job: Callable[[], T], threads: int) -> T:
    """Run a job on that many threads, with denormals flushed: Adam's moments of dead pixels decay into them."""
    flushed = not sys.float_info.min / 2
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        return job()
    finally:
        torch.set_flush_denormal(flushed)
