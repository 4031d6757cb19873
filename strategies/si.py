"""Synaptic intelligence: weights matter as much as they lowered the loss while they moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from strategies.base import Hparams, Params, Setting, State, Step, hyper, option
from strategies.quadratic import Quadratic


@dataclass(frozen=True)
class SI(Quadratic):
    """½·λ·Σ Ω(θ − θ*)² with Ω = max(0, w)/(Δ² + ξ) a task, Zenke et al. 2017, https://arxiv.org/abs/1703.04200.

    w = −Σₜ gₜ(θₜ₊₁ − θₜ) over the steps of the task, g the gradient of the task's loss alone on the step's batch, and
    Δ the parameter's change from the task's beginning to its end. So Σ w is about how far the loss fell.

    The original is c·Σ Ω(θ − θ*)², without ½: λ = 2c. Defaults are c = 0.1 and ξ = 0.1, the paper's for permuted MNIST
    (its ξ elsewhere is 0.001). One anchor, and Ω summed over tasks, are the paper's too (`accumulate = "online"`,
    `decay = 1`); the authors' code clips that sum at zero, not each task's term.
    """

    name: ClassVar[str] = "si"
    lam: float = hyper(0.2, low=0.0, tune=(1e-3, 1e3), doc="λ in ½·λ·Σ Ω(θ−θ*)²; twice the paper's c")
    xi: float = hyper(0.1, low=1e-12, doc="ξ in Ω = max(0, w)/(Δ² + ξ)")
    accumulate: Literal["separate", "online"] = option(
        "online", doc="online: latest anchor, decayed Ω; separate: one anchor a task"
    )

    def init(self, params: Params, setting: Setting) -> State:
        """No path yet, and zero importance."""
        path = {k: torch.zeros_like(p) for k, p in params.items()}
        return {**super().init(params, setting), "path": path, "start": {k: p.clone() for k, p in params.items()}}

    def after_step(self, state: State, step: Step, hparams: Hparams) -> State:
        """Take the g·Δθ of the step off the path."""
        moved = {k: step.after[k] - step.before[k] for k in step.after}
        return {**state, "path": {k: w - step.task_gradient[k] * moved[k] for k, w in state["path"].items()}}

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """Turn the path into Ω, accumulate it and begin a new path."""
        change = {k: p - state["start"][k] for k, p in params.items()}
        new = {k: w.clamp(min=0) / (change[k].square() + hparams["xi"]) for k, w in state["path"].items()}
        path = {k: torch.zeros_like(p) for k, p in params.items()}
        kept = super().consolidate(state, params, new, hparams)
        return {**kept, "path": path, "start": {k: p.clone() for k, p in params.items()}}
