"""Measure, print, and leave tables and a figure in `out/`."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from benchmark import data
from benchmark.perf import breakdown, executors, growth, importances, peers, training
from benchmark.perf.measuring import Row
from benchmark.perf.tables import Section, printed, written

Say = Callable[[str], None]


def speed(say: Say) -> Iterator[Section]:
    """Training and importances, and where a step goes."""
    images = data.load("mnist", say=say)
    yield _training(training.rows(images))
    yield Section("Fisher diagonal of 60 000 images", "seconds", "times faster", importances.rows(images))
    for strategy, rows in training.stacking():
        yield Section(f"complete runs on digits, {strategy}", "seconds a run", "times faster", rows)
    title = "where a step goes (EWC, stack of 12, one thread)"
    yield Section(title, "milliseconds a run", "share", breakdown.rows(images))


def beside_peers(say: Say) -> Iterator[Section]:
    """Training beside Avalanche, where it is installed."""
    images = data.load("mnist", say=say)
    yield _training(training.rows(images, peers.SUBJECTS))
    for line in peers.accuracies([images, data.load("fashion-mnist", say=say)]):
        say(line)


def _training(rows: list[Row]) -> Section:
    title = "training, 24 runs on one thread a stack" if torch.get_num_threads() > 1 else "training"
    return Section(title, "seconds a run and epoch", "times faster", rows)


MEASURED: dict[str, tuple[Callable[[Say], Iterator[Section]], str]] = {
    "speed": (speed, "perf"),
    "peers": (beside_peers, "perf-peers"),
    "growth": (lambda say: growth.sections(), "perf-growth"),
    "ray": (executors.sections, "perf-ray"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf", description=__doc__)
    parser.add_argument("what", nargs="?", choices=MEASURED, default="speed")
    measure, folder = MEASURED[parser.parse_args().what]
    console, load = Console(), os.getloadavg()[0]
    sections = []
    for section in measure(lambda line: console.print(line, highlight=False)):
        printed(console, section)
        sections.append(section)
    out = Path("out") / folder
    written(out, sections)
    console.print(
        f"{torch.get_num_threads()} threads, load {load:.1f} before; Python {platform.python_version()}, "
        f"torch {torch.__version__}; {out}/perf.csv, .md, .pdf",
        highlight=False,
    )


if __name__ == "__main__":
    main()
