"""Times that can be compared on a noisy machine: all subjects in turn, round after round."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

Subject = Callable[[], float]
"""Does its work once, and says how many seconds of it count."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: what was measured.
        value: in the table's unit, the median of the rounds.
        ratio: the table's first row over this one, the median of the rounds; or a share.
    """

    name: str
    value: float
    ratio: float


def timed(work: Callable[[], object]) -> Subject:
    """A subject all of whose work counts."""

    def subject() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return subject


def apart(make: Callable[..., Subject], images: str, *args: object) -> Subject:
    """A subject of others' code in a process of its own, without the settings that ours gives its threads.

    Args:
        make: a function of the module level that returns the subject, called there.
        images: its first argument, by name. Sent from here, they would leave a second set of threads in this process,
            and OpenMP's threads hardly wait for each other where they are more than there are cores.
        args: its others; they travel.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_undo_our_settings)
    pool.submit(_make, make, images, args).result()
    return lambda: pool.submit(_once).result()


_here: list[Subject] = []


def _undo_our_settings() -> None:
    # Read when PyTorch is loaded, which what is made here is the first to do.
    os.environ.pop("GOMP_SPINCOUNT", None)


def _make(make: Callable[..., Subject], images: str, args: tuple[object, ...]) -> None:
    from benchmark import data

    _here[:] = [make(data.load(images), *args)]


def _once() -> float:
    return _here[0]()


def in_turn(subjects: dict[str, tuple[Subject, float]], rounds: int) -> list[Row]:
    """Measure subjects one after another, several times, after a round that does not count.

    Args:
        subjects: by name, each with what its seconds are multiplied by; the first is what the others are compared with.
        rounds: that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds + 1):
        for name, (subject, factor) in subjects.items():
            seconds[name].append(subject() * factor)
    counted = {name: values[1:] for name, values in seconds.items()}
    first = next(iter(counted.values()))
    return [
        Row(name, statistics.median(own), statistics.median(a / b for a, b in zip(first, own, strict=True)))
        for name, own in counted.items()
    ]
