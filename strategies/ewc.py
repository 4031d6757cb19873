"""Elastic weight consolidation: weights matter as much as the Fisher information says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from strategies import fisher
from strategies.base import FinishedTask, Params, option
from strategies.quadratic import Quadratic


@dataclass(frozen=True)
class EWC(Quadratic):
    """½·λ·Σ F(θ − θ*)², F the Fisher diagonal, Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796.

    `accumulate = "online"` is online EWC, Schwarz et al. 2018, https://arxiv.org/abs/1805.06370. F is a mean over
    samples in eval mode; codebases that sum over samples or leave the ½ out have another λ for the same penalty. The
    paper gives no λ that carries over to a mean; 1000 is only where to begin, a study finds the value.
    """

    name: ClassVar[str] = "ewc"
    estimator: fisher.Estimator = option("empirical", doc="exact | sampled | empirical | batched | notebook")
    fisher_samples: int = option(
        0, low=0, doc="training samples used, drawn at random (notebook: at most two batches); 0: all"
    )
    fisher_batch_size: int = option(100, low=1, doc="batch of the estimators batched and notebook")
    draws: int = option(1, low=1, doc="labels drawn a sample by the estimator sampled")

    def measure(self, model: nn.Module, task: FinishedTask) -> Params:
        """Ω = F on the task's training data."""
        order = torch.randperm(len(task.y), generator=task.generator).to(task.x.device)
        if self.estimator == "notebook":
            order = order[: 2 * self.fisher_batch_size]
        if self.fisher_samples:
            order = order[: self.fisher_samples]
        shuffled = len(order) < len(task.y) or self.estimator == "batched"
        return fisher.diagonal(
            model,
            task.x[order] if shuffled else task.x,  # a mean over all samples needs no copy in another order
            task.y[order] if shuffled else task.y,
            estimator=self.estimator,
            batch_size=self.fisher_batch_size if self.estimator in {"batched", "notebook"} else None,
            samples=self.draws,
            generator=task.generator,
        )
