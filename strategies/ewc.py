"""Elastic weight consolidation: weights matter as much as the Fisher information says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from strategies import fisher
from strategies.base import Params, option
from strategies.quadratic import Quadratic
from strategies.stack import FinishedTasks, Networks


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

    def measure_stack(self, networks: Networks, task: FinishedTasks) -> Params:
        """Ω = F on the task's training data."""
        return fisher.diagonals(
            networks,
            self._chosen(task),
            estimator=self.estimator,
            batch_size=self.fisher_batch_size if self.estimator in {"batched", "notebook"} else None,
            samples=self.draws,
        )

    def _chosen(self, task: FinishedTasks) -> FinishedTasks:
        """The samples that count, in the order in which they do."""
        counts = task.counts.tolist()
        orders = [torch.randperm(n, generator=g) for n, g in zip(counts, task.generators, strict=True)]
        most = 2 * self.fisher_batch_size if self.estimator == "notebook" else max(counts)
        most = min(most, self.fisher_samples or most)
        shuffled = [self.estimator == "batched" or n > most for n in counts]
        if not any(shuffled):
            return task  # a mean over all samples needs no copy in another order
        return task.chosen([o[:most] if s else torch.arange(len(o)) for o, s in zip(orders, shuffled, strict=True)])
