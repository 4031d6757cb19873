"""Memory aware synapses: weights matter as much as the outputs depend on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from strategies.base import MASKED, Params, hyper, option
from strategies.persample import absolute_gradients, mean
from strategies.quadratic import Quadratic
from strategies.stack import FinishedTasks, Networks


def twice_the_outputs(outputs: Tensor, y: Tensor) -> Iterable[Tensor]:
    """∂‖f(x)‖²/∂f of each sample, shape (n, C); outputs that do not compete count as zero."""
    # Masked outputs are constant, but 1e9 would drown the others' wherever masking adds instead of filling in.
    yield 2 * torch.where(outputs > MASKED / 2, outputs, 0)


@dataclass(frozen=True)
class MAS(Quadratic):
    """½·λ·Σ Ω(θ − θ*)² with Ω = 1/N Σₙ |∂‖f(xₙ)‖²/∂θ|, Aljundi et al. 2018, https://arxiv.org/abs/1711.09601.

    f is the network's raw output in eval mode, over the outputs that compete in the task; labels play no part. The
    gradient is one sample's, as in the paper's equation: the absolute gradient of a batch's mean, which many codebases
    take for it (the authors' with batches of more than one), lets samples of opposite sign cancel.

    The paper has no ½: its λ is half of ours, and was 1 for object recognition. One anchor, and Ω summed over tasks,
    are the paper's too (`accumulate = "online"`, `decay = 1`).
    """

    name: ClassVar[str] = "mas"
    lam: float = hyper(2.0, low=0.0, tune=(1e-2, 1e4), doc="λ in ½·λ·Σ Ω(θ−θ*)²; twice the paper's")
    accumulate: Literal["separate", "online"] = option(
        "online", doc="online: latest anchor, decayed Ω; separate: one anchor a task"
    )

    def measure_stack(self, networks: Networks, task: FinishedTasks) -> Params:
        """Ω on the task's training inputs."""
        return mean(absolute_gradients(networks, task, twice_the_outputs), task.counts)
