"""Experience replay: train on remembered samples along with new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from strategies.base import Batch, Hparams, Loss, Network, Params, State, cross_entropy, option
from strategies.memory import Replay, anywhere, earlier, required


@dataclass(frozen=True)
class ER(Replay):
    """Σ wᵢ·cross-entropyᵢ over batch and recalled samples, Σw = 1; Chaudhry et al. 2019, https://arxiv.org/abs/1902.10486.

    `share = "sample"`, as there: all w are equal, and samples are recalled from the whole memory, that of the task in
    training included, from the first task on. `share = "task"`, van de Ven & Tolias 2018,
    https://arxiv.org/abs/1809.10635: at task k the batch weighs 1/k, and recalled samples, drawn equally from each
    earlier task, weigh (k−1)/k.

    Samples are recalled with replacement (Chaudhry et al.: without). All go through the network together, so BatchNorm
    sees the mixed batch. With nothing to recall the loss is the batch's mean cross-entropy. The papers recall as many
    samples as a batch has (10 and 128); `replay_batch` is a recipe's default batch. 2000 slots are those of iCaRL
    (Rebuffi et al. 2017, https://arxiv.org/abs/1611.07725).
    """

    name: ClassVar[str] = "er"
    share: Literal["sample", "task"] = option(
        "sample", doc="sample: every sample weighs the same; task: every task so far does"
    )

    def draw(self, slots: Params, task: int, draws: Tensor) -> Tensor:
        """From the whole memory, or equally from each earlier task."""
        return anywhere(slots, draws) if self.share == "sample" else earlier(slots, draws, task)

    def loss(self, net: Network, batch: Batch, recalled: Batch | None, state: State, hparams: Hparams) -> Loss:
        """Weighted mean of the cross-entropies of batch and recalled samples."""
        if self.share == "task" and net.task == 1:  # no earlier task: spare the pass
            return super().loss(net, batch, recalled, state, hparams)
        old = required(recalled)
        logits = net.logits(torch.cat([batch.x, old.x]))
        losses = torch.cat(
            [
                cross_entropy(logits[: len(batch.y)], batch),
                cross_entropy(logits[len(batch.y) :], old),
            ]
        )
        return Loss((self.weights(len(batch.y), old.id >= 0, net.task).to(losses.dtype) * losses).sum())

    def weights(self, samples: int, valid: Tensor, task: int) -> Tensor:
        """What each sample of the batch, then each recalled one, weighs; of sum 1, float64.

        Args:
            samples: in the batch.
            valid: which recalled samples count, bool.
            task: number of the task in training.
        """
        new = torch.ones(samples, dtype=torch.float64, device=valid.device)
        old = valid.double()
        if self.share == "task":
            new = new / samples
            old = (task - 1) * old / old.sum().clamp(min=1)
        weights = torch.cat([new, old])
        return weights / weights.sum()
