"""Figures of results for papers: tidy frames in, figures with captions out.

Every function takes frames as in `reports.load` and a `Cast`, the strategies of the report, which gives each of them
the same colour, marker and name wherever it appears. What comes back is a `Drawn`: the matplotlib figure, one column
(3.3 inches) wide, and the caption that says what is shown, which interval, and n. `save` writes it, `every` draws all.
"""

from __future__ import annotations

from reports.figures.curves import accuracy_over_tasks
from reports.figures.drawn import Drawn
from reports.figures.forgetting import forgetting_by_task
from reports.figures.matrices import accuracy_matrices
from reports.figures.plane import stability_plasticity
from reports.figures.ranks import critical_difference
from reports.figures.rows import seed_distribution
from reports.figures.selection import every
from reports.figures.style import COLUMN, Cast, colours, save
from reports.figures.sweep import lambda_sweep

__all__ = [
    "COLUMN",
    "Cast",
    "Drawn",
    "accuracy_matrices",
    "accuracy_over_tasks",
    "colours",
    "critical_difference",
    "every",
    "forgetting_by_task",
    "lambda_sweep",
    "save",
    "seed_distribution",
    "stability_plasticity",
]
