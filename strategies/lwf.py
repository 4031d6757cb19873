"""Learning without forgetting: on the new task's inputs, old outputs should stay what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from strategies.base import (
    Batch,
    Hparams,
    Loss,
    Network,
    Params,
    Setting,
    State,
    Strategy,
    cross_entropy,
    hyper,
    masked,
)
from strategies.stack import FinishedTasks, Networks


def distillation(student: Tensor, teacher: Tensor, groups: Tensor, temperature: Tensor) -> Tensor:
    """T²·Σ_g 1/B Σᵢ KL(softmax_g(zᵢ*/T) ‖ softmax_g(zᵢ/T)), shape (); no gradient reaches the teacher.

    Args:
        student: logits z, shape (B, C).
        teacher: logits z*, shape (B, C).
        groups: outputs over which each softmax runs, shape (G, C), bool.
        temperature: T, shape ().
    """
    each = groups[:, None]  # (G, 1, C) against (B, C)
    old = masked(teacher.detach() / temperature, each).log_softmax(-1)
    new = masked(student / temperature, each).log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum(-1)  # (G, B); `F.kl_div` is slow under vmap
    return temperature.square() * divergence.mean(-1).sum()


@dataclass(frozen=True)
class LwF(Strategy):
    """Cross-entropy + λ·T²·Σ_g mean KL(teacher ‖ student), Li & Hoiem 2016, https://arxiv.org/abs/1606.09282.

    The teacher is the network as the last task left it, in eval mode; the softmaxes, at temperature T, run over the
    outputs of earlier tasks: one for each old head where tasks have heads, one over all old outputs otherwise. T²
    keeps the gradient's size when T changes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2).

    The paper writes a cross-entropy with the teacher's softened outputs, which differs from KL by the teacher's
    entropy, a constant; and it has no T². So λ = λ_o / T²: its λ_o = 1 with T = 2 is λ = 1/4 here, the
    default. The paper's warm-up of a new head is left out. λ = 0 is naive fine-tuning.
    """

    name: ClassVar[str] = "lwf"
    lam: float = hyper(
        0.25, low=0.0, tune=(0.01, 100.0), doc="λ in λ·T²·Σ KL(teacher ‖ student); the paper's λ_o = 1 at T = 2"
    )
    temperature: float = hyper(2.0, low=0.1, doc="T of both softmaxes; the paper's 2")

    def init(self, params: Params, setting: Setting) -> State:
        """A teacher of the network's size, unused until the first task is consolidated."""
        return {"teacher": {k: v.clone() for k, v in {**params, **setting.buffers}.items()}}

    def loss(self, net: Network, batch: Batch, recalled: Batch | None, state: State, hparams: Hparams) -> Loss:
        """Mean cross-entropy, and the distillation of the teacher on the same inputs from the second task on."""
        logits = net.logits(batch.x)
        task_loss = cross_entropy(logits, batch).mean()
        if net.earlier.shape[0] == 0:
            return Loss(task_loss)
        teacher = net.recorded(state["teacher"], batch.x)
        return Loss(task_loss + hparams["lam"] * distillation(logits, teacher, net.earlier, hparams["temperature"]))

    def measure_stack(self, networks: Networks, task: FinishedTasks) -> Params:
        """The trained network itself: parameters and buffers."""
        return {k: v.detach().clone() for k, v in {**networks.params, **networks.buffers}.items()}

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """The trained network is the next task's teacher."""
        return {**state, "teacher": measured}
