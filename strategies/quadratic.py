"""Quadratic penalties: P(θ) = ½·λ·Σ Ω(θ − θ*)², and how Ω and θ* accumulate over tasks.

L2 and EWC are this with another Ω. The sum of one penalty a task, Σₖ ½λ Σ Ωₖ(θ − θₖ*)², equals up to a constant one
quadratic with importance Σₖ Ωₖ and anchor Σₖ Ωₖθₖ* / Σₖ Ωₖ, so memory does not grow with the number of tasks.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.base import Hparams, Params, Setting, State, Strategy, hyper, option


def penalty(params: Params, importance: Params, anchor: Params, lam: Tensor) -> Tensor:
    """½·λ·Σ Ω(θ − θ*)², shape ()."""
    terms = [(importance[k] * (p - anchor[k]).square()).sum() for k, p in params.items()]
    return 0.5 * lam * torch.stack(terms).sum()


def gradient(params: Params, importance: Params, anchor: Params, lam: Tensor) -> Params:
    """λ·Ω(θ − θ*), one tensor a parameter: the closed form of `penalty`'s gradient."""
    # In place on our own difference: a fresh tensor of parameter size a step costs more than the arithmetic.
    return {k: (p - anchor[k]).mul_(importance[k]).mul_(lam) for k, p in params.items()}


def separate(importance: Params, anchor: Params, new: Params, params: Params) -> tuple[Params, Params]:
    """One anchor a task (Kirkpatrick et al. 2017) folded into one quadratic: ΣΩₖ and the Ω-weighted mean of θₖ*."""
    total = {k: importance[k] + new[k] for k in new}
    # Where nothing is important the anchor has no effect; the latest θ keeps it finite.
    weight = {k: torch.where(total[k] > 0, new[k] / total[k], torch.ones_like(total[k])) for k in new}
    # `lerp` is exact at both ends: an anchor that is θ but for rounding is a pull that Adam blows up to full steps.
    return total, {k: torch.lerp(anchor[k], params[k], weight[k]) for k in new}


def online(importance: Params, new: Params, params: Params, decay: Tensor) -> tuple[Params, Params]:
    """Ω* = γΩ* + Ω, anchored at the latest θ (Schwarz et al. 2018; γ = 1 is Huszár 2018)."""
    return {k: decay * importance[k] + new[k] for k in new}, {k: params[k].clone() for k in new}


@dataclass(frozen=True)
class Quadratic(Strategy):
    """A strategy whose penalty is ½·λ·Σ Ω(θ − θ*)²: a subclass says in `measure` what Ω is after a task."""

    lam: float = hyper(1000.0, low=0.0, tune=(1.0, 1e7), doc="λ in ½·λ·Σ Ω(θ−θ*)²")
    decay: float = hyper(1.0, low=0.0, high=1.0, doc="γ in Ω* = γΩ* + Ω, with accumulate = online")
    accumulate: Literal["separate", "online"] = option(
        "separate", doc="separate: one anchor a task; online: latest anchor, decayed Ω"
    )

    def family(self) -> Hashable:
        """All quadratic penalties that accumulate alike, unless a subclass changes more than `measure`."""
        own = {"measure", "measure_stack", "measures_stacks", "family", "hyperparameters", "options", "overrides"}
        own |= {"shares_first_task"}
        contract = [k for k in vars(Strategy) if not k.startswith("_") and k not in {*own, *Strategy.__annotations__}]
        if any(getattr(type(self), method) is not getattr(Quadratic, method) for method in contract):
            return super().family()
        return ("quadratic", self.accumulate, self.hyperparameters())

    def init(self, params: Params, setting: Setting) -> State:
        """Zero importance, so a zero penalty, until the first task is consolidated."""
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        return {"importance": zeros, "anchor": {k: p.clone() for k, p in zeros.items()}}

    def penalty(self, state: State, params: Params, hparams: Hparams) -> Tensor:
        """½·λ·Σ Ω(θ − θ*)²."""
        return penalty(params, state["importance"], state["anchor"], hparams["lam"])

    def penalty_gradient(self, state: State, params: Params, hparams: Hparams) -> Params:
        """λ·Ω(θ − θ*)."""
        return gradient(params, state["importance"], state["anchor"], hparams["lam"])

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """Accumulate the measured importance and move the anchor."""
        if self.accumulate == "online":
            importance, anchor = online(state["importance"], measured, params, hparams["decay"])
        else:
            importance, anchor = separate(state["importance"], state["anchor"], measured, params)
        return {**state, "importance": importance, "anchor": anchor}
