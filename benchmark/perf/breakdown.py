"""Where the time of a step goes, operation by operation."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

from benchmark.data import ImageSet
from benchmark.perf.measuring import Row
from benchmark.perf.training import STEPS, stack, train
from strategies import EWC

RUNS, SHOWN = 12, 8


def rows(images: ImageSet) -> list[Row]:
    """An operation's own milliseconds a run and step, and its share: a stack of 12 with EWC on one thread."""
    job, threads = stack(images, list(range(RUNS)), EWC()), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(*job)
        with (
            _standard_error_shut(),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        ):
            train(*job)
    finally:
        torch.set_num_threads(threads)
    events = sorted(profile.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    own = [(e.key, e.self_cpu_time_total) for e in events[:SHOWN]]
    return [Row(key, time / 1000 / STEPS / RUNS, time / total) for key, time in own]


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
