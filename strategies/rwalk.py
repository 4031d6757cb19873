"""Riemannian walk: weights matter as the running Fisher says, and as they lowered the loss for the distance moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from strategies import quadratic
from strategies.base import Hparams, Params, Setting, State, Step, Strategy, hyper, option


def to_unit(values: Params) -> Params:
    """All entries of all tensors mapped together onto [0, 1], least to greatest; to zero where all are equal."""
    low = torch.stack([v.amin() for v in values.values()]).amin()
    width = torch.stack([v.amax() for v in values.values()]).amax() - low
    return {k: (v - low) / width.clamp(min=torch.finfo(v.dtype).tiny) for k, v in values.items()}


@dataclass(frozen=True)
class RWalk(Strategy):
    """½·λ·Σ (F + s)(θ − θ*)², Chaudhry et al. 2018, https://arxiv.org/abs/1801.10112.

    Every Δt steps, g being the gradient of the task's loss alone on a step's batch (its mean):

        s ← s + max(0, −Σ g·Δθ) / (½·F·(θ − θ′)² + ε)      sum over the Δt steps, θ′ the parameters before them
        F ← α·(mean of g² over the Δt steps) + (1 − α)·F   the first F is that mean itself

    F goes on over all tasks. After a task its score is averaged with the old, s = ½(s_old + s_new), the first task's
    standing alone, and the penalty takes F and s as they are then, each mapped onto [0, 1] over the whole network.

    The paper has no ½ before λ: its λ is half of ours, 1 in the authors' code for permuted MNIST. Defaults are the
    paper's α = 0.9 and Δt = 10 for MNIST (50 for CIFAR-100), and the code's ε = 0.001. That code leaves out the ½ in
    the score and adds the average of scores to the old one; the paper's equations hold here. Steps left over at a
    task's end count as an interval.
    """

    name: ClassVar[str] = "rwalk"
    lam: float = hyper(2.0, low=0.0, tune=(1e-2, 1e4), doc="λ in ½·λ·Σ (F+s)(θ−θ*)²; twice the paper's")
    alpha: float = hyper(0.9, low=0.0, high=1.0, doc="α, weight of the newest steps in the running Fisher")
    epsilon: float = hyper(1e-3, low=1e-12, doc="ε in the score's denominator")
    interval: int = option(10, low=1, doc="Δt, steps between updates of Fisher and score")

    def init(self, params: Params, setting: Setting) -> State:
        """Zeros."""
        groups = ("importance", "anchor", "fisher", "score", "new_score", "decrease", "squares", "start")
        zero = torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
        return {
            **{group: {k: torch.zeros_like(p) for k, p in params.items()} for group in groups},
            "clock": {name: zero.clone() for name in ("steps", "intervals", "tasks")},
        }

    def penalty(self, state: State, params: Params, hparams: Hparams) -> Tensor:
        """½·λ·Σ (F + s)(θ − θ*)²."""
        return quadratic.penalty(params, state["importance"], state["anchor"], hparams["lam"])

    def penalty_gradient(self, state: State, params: Params, hparams: Hparams) -> Params:
        """λ·(F + s)(θ − θ*)."""
        return quadratic.gradient(params, state["importance"], state["anchor"], hparams["lam"])

    def after_step(self, state: State, step: Step, hparams: Hparams) -> State:
        """Gather θ′, −Σ g·Δθ and the mean of g² of an interval; every Δt steps, end it."""
        steps = state["clock"]["steps"] + 1
        gathered: State = {"start": {}, "decrease": {}, "squares": {}}
        for k, g in step.task_gradient.items():
            opening = (steps == 1).to(g.dtype)
            gathered["start"][k] = torch.lerp(state["start"][k], step.before[k], opening)
            so_far = state["decrease"][k] * (1 - opening)
            gathered["decrease"][k] = so_far.sub_((step.after[k] - step.before[k]).mul_(g))
            gathered["squares"][k] = torch.lerp(state["squares"][k], g.square(), 1 / steps.to(g.dtype))
        gathered["clock"] = {**state["clock"], "steps": steps}
        return self._ended({**state, **gathered}, step.after, steps == self.interval, hparams)

    def _ended(self, state: State, params: Params, due: Tensor, hparams: Hparams) -> State:
        """The state with the interval's score and Fisher accounted for, where `due`."""
        clock = state["clock"]
        first = clock["intervals"] == 0
        weight = torch.where(first, 1.0, hparams["alpha"]) * due
        score, fisher = {}, {}
        # A stack cannot branch, so this is paid for every step: in place on our own tensors, and by `lerp` with a
        # weight of 0 or 1, which is exact and faster than `where`.
        for k, p in params.items():
            old, new = state["fisher"][k], state["squares"][k]
            seeded = torch.lerp(old, new, first.to(p.dtype))
            moved = p - state["start"][k]
            distance = moved.mul_(moved).mul_(seeded).mul_(0.5)
            ratio = state["decrease"][k].clamp(min=0).div_(distance.add_(hparams["epsilon"]))
            score[k] = ratio.mul_(due).add_(state["new_score"][k])
            fisher[k] = torch.lerp(old, new, weight)
        steps = torch.where(due, 0, clock["steps"])
        clock = {**clock, "steps": steps, "intervals": clock["intervals"] + due}
        return {**state, "new_score": score, "fisher": fisher, "clock": clock}

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """End the last interval, average the scores, and hold F + s and the anchor for the penalty."""
        state = self._ended(state, params, state["clock"]["steps"] > 0, hparams)
        clock, new = state["clock"], state["new_score"]
        score = {k: torch.where(clock["tasks"] > 0, 0.5 * (old + new[k]), new[k]) for k, old in state["score"].items()}
        fisher_unit, score_unit = to_unit(state["fisher"]), to_unit(score)
        return {
            **state,
            "importance": {k: fisher_unit[k] + score_unit[k] for k in params},
            "anchor": {k: p.clone() for k, p in params.items()},
            "score": score,
            "new_score": {k: torch.zeros_like(p) for k, p in params.items()},
            "clock": {**clock, "tasks": clock["tasks"] + 1},
        }
