"""A third-party strategy in one file: copy this folder to start your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from strategies import Hparams, Params, Setting, State, Strategy, hyper


@dataclass(frozen=True)
class L1Anchor(Strategy):
    """λ·Σ |θ − θ*|, smoothed: λ·Σ (√((θ − θ*)² + ε²) − ε). Few weights move, and those as far as they like."""

    name: ClassVar[str] = "l1-anchor"
    lam: float = hyper(0.01, low=0.0, tune=(1e-4, 1.0), doc="λ in λ·Σ |θ−θ*|")
    epsilon: float = hyper(1e-3, low=1e-9, doc="ε, below which a change counts as quadratic")

    def init(self, params: Params, setting: Setting) -> State:
        """No anchor yet: a weight of zero in front of the penalty."""
        first = next(iter(params.values()))
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        return {"anchor": zeros, "on": {"weight": torch.zeros((), dtype=first.dtype, device=first.device)}}

    def penalty(self, state: State, params: Params, hparams: Hparams) -> Tensor:
        """λ·Σ (√((θ − θ*)² + ε²) − ε)."""
        epsilon = hparams["epsilon"]
        terms = [((p - state["anchor"][k]).square() + epsilon**2).sqrt().sub(epsilon).sum() for k, p in params.items()]
        return hparams["lam"] * state["on"]["weight"] * torch.stack(terms).sum()

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """The anchor moves to where the task ended."""
        return {
            "anchor": {k: p.clone() for k, p in params.items()},
            "on": {"weight": torch.ones_like(state["on"]["weight"])},
        }
