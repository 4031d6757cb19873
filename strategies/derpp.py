"""Dark experience replay: remembered samples should keep their labels and their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from strategies import memory
from strategies.base import Batch, Hparams, Loss, Network, Params, Setting, State, cross_entropy, hyper
from strategies.memory import Replay


@dataclass(frozen=True)
class DERpp(Replay):
    """Cross-entropy + α·mean ‖f(x′) − z′‖²/C + β·cross-entropy(x″), Buzzega et al. 2020, https://arxiv.org/abs/2004.07211.

    x′ and x″ are two independent draws of `replay_batch` samples each from the whole memory, the task in training
    included; z′ are the logits, not masked, over all C outputs, as they were when x′ was trained on. The paper writes a
    squared norm, its code a mean over outputs; its tables were made with the code, so α is the code's and 1/C of it
    goes before the norm. Defaults are the authors' for split MNIST with 5120 slots and for split CIFAR-10 with 500.

    Their memory takes each presentation as a new sample; ours holds a sample once, with the logits of its latest
    presentation. The batch goes through the network by itself, then both draws together (BatchNorm: they pass one by
    one there). α = β = 0 is naive fine-tuning, but for BatchNorm's running statistics.
    """

    name: ClassVar[str] = "der++"
    neutral: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    alpha: float = hyper(0.2, low=0.0, tune=(0.01, 10.0), doc="α, of the squared distance to old logits (mean)")
    beta: float = hyper(0.5, low=0.0, tune=(0.01, 10.0), doc="β, of the cross-entropy of remembered samples")

    @property
    def recalls(self) -> int:
        """Two draws."""
        return 2 * self.replay_batch

    def init(self, params: Params, setting: Setting) -> State:
        """An empty memory that has room for logits."""
        like = next(iter(params.values()))
        logits = torch.zeros(self.memory, setting.outputs, dtype=like.dtype, device=like.device)
        return {"memory": {**super().init(params, setting)["memory"], "logits": logits}}

    def loss(self, net: Network, batch: Batch, recalled: Batch | None, state: State, hparams: Hparams) -> Loss:
        """The three terms; the batch's logits go to `observe`."""
        old, half = memory.required(recalled), self.replay_batch
        logits = net.logits(batch.x)
        replayed = net.logits(old.x)
        valid = old.id >= 0
        distances = (replayed - old.kept["logits"]).square().mean(1)
        labelled = cross_entropy(replayed, old)
        value = (
            cross_entropy(logits, batch).mean()
            + hparams["alpha"] * memory.mean(distances[:half], valid[:half])
            + hparams["beta"] * memory.mean(labelled[half:], valid[half:])
        )
        return Loss(value, {"logits": logits.detach()})
