"""Measure, print, and leave tables and a figure in `out/perf/`."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch
from rich.console import Console

from benchmark import data
from benchmark.perf import breakdown, importances, peers, training
from benchmark.perf.tables import Section, printed, written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf", description=__doc__)
    parser.add_argument("--peers", action="store_true", help="beside Avalanche, where it is installed; training alone")
    asked = parser.parse_args()
    console = Console()
    load, more = os.getloadavg()[0], {}
    images = data.load("mnist", say=lambda line: console.print(line, highlight=False))
    if asked.peers:
        more = peers.subjects(images)
    title = "training, 8 and more runs on one thread a stack" if torch.get_num_threads() > 1 else "training"
    sections = [Section(title, "seconds a run and epoch", "times faster", training.rows(images, more))]
    printed(console, sections[0])
    if asked.peers:
        for line in peers.accuracies([images, data.load("fashion-mnist")]):
            console.print(line, highlight=False)
    else:
        sections.append(
            Section("Fisher diagonal of 60 000 images", "seconds", "times faster", importances.rows(images))
        )
        title = "where a step goes (EWC, stack of 12, one thread)"
        sections.append(Section(title, "milliseconds a run", "share", breakdown.rows(images)))
        for section in sections[1:]:
            printed(console, section)
    out = Path("out") / ("perf-peers" if asked.peers else "perf")
    written(out, sections)
    console.print(
        f"{torch.get_num_threads()} threads, load {load:.1f} before; Python {platform.python_version()}, "
        f"torch {torch.__version__}; {out}/perf.csv, .md, .pdf",
        highlight=False,
    )


if __name__ == "__main__":
    main()
