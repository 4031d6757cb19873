"""Averaged gradient episodic memory: no step may raise the loss on what is remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from strategies import memory
from strategies.base import Batch, Hparams, Network, Params, State, cross_entropy, option
from strategies.memory import Replay


def dot(a: Params, b: Params) -> Tensor:
    """Inner product of all parameters as one vector, shape ()."""
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


@dataclass(frozen=True)
class AGEM(Replay):
    """g − min(0, g·r)/(r·r)·r, Chaudhry et al. 2019, https://arxiv.org/abs/1812.00420.

    g is the gradient of the batch's mean cross-entropy, r that of remembered samples of earlier tasks, over all
    parameters as one vector: where the two disagree, the part of g along r is taken out. That is of the gradient: an
    optimiser with momentum may still move against r.

    Samples of the reference are drawn equally from each earlier task, as from the paper's memory of equal parts; their
    number is the authors' for MNIST (256).
    """

    name: ClassVar[str] = "a-gem"
    replay_batch: int = option(256, low=1, doc="samples of the reference gradient; the authors' 256")

    def draw(self, slots: Params, task: int, draws: Tensor) -> Tensor:
        """Equally from each earlier task."""
        return memory.earlier(slots, draws, task)

    def reference(self, net: Network, recalled: Batch | None, state: State, hparams: Hparams) -> Tensor | None:
        """Mean cross-entropy of the recalled samples; none while the first task trains."""
        if net.task == 1:
            return None
        old = memory.required(recalled)
        return memory.mean(cross_entropy(net.logits(old.x), old), old.id >= 0)

    def combine(self, gradient: Params, reference: Params, hparams: Hparams) -> Params:
        """The gradient, less its part along the reference where they disagree."""
        length = dot(reference, reference)
        along = dot(gradient, reference).clamp(max=0) / torch.where(length > 0, length, 1.0)
        return {k: g - along * reference[k] for k, g in gradient.items()}
