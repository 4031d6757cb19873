"""L2 anchor: every weight is equally important."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from strategies.base import Params, hyper
from strategies.quadratic import Quadratic
from strategies.stack import FinishedTasks, Networks


@dataclass(frozen=True)
class L2(Quadratic):
    """½·λ·Σ (θ − θ*)²: Ω = 1 a task, the baseline of Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796."""

    name: ClassVar[str] = "l2"
    lam: float = hyper(1.0, low=0.0, tune=(1e-3, 1e3), doc="λ in ½·λ·Σ (θ−θ*)²")

    def measure_stack(self, networks: Networks, task: FinishedTasks) -> Params:
        """Ω = 1."""
        return {k: torch.ones_like(p) for k, p in networks.params.items()}
