"""EWC with a Kronecker-factored Fisher: weights of one layer matter together, not each on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from strategies import kfac, quadratic
from strategies.base import FinishedTask, Hparams, Params, Setting, State, Strategy, hyper, option


@dataclass(frozen=True)
class EWCKfac(Strategy):
    """½·λ·Σ tr(ΔWᵀ G ΔW A) over layers, Ritter, Botev & Barber 2018, https://arxiv.org/abs/1805.07810.

    ΔW = [Δweight, Δbias] of a Linear or Conv2d layer, A = E[aaᵀ] of its inputs, G = E[ggᵀ] of the gradients by its
    outputs (`kfac` has the normalisation): vec(ΔW)ᵀ (A ⊗ G) vec(ΔW), the Fisher block of the layer. Every other
    parameter has the diagonal penalty of `ewc`. No prior is added.

    A sum of Kronecker products is not one, so each task keeps its own factors: memory, and the time of a step, grow
    with the number of tasks. With `accumulate = "separate"` each task has its own anchor, the exact sum of penalties
    (for the diagonal part up to a constant, as in `quadratic`). With `"online"` all curvature sits at the latest
    anchor, that of earlier tasks decayed by γ at each new one; γ = 1 is the paper's recursion.

    Means over samples make λ = N, the number of training samples, the paper's λ = 1 (there curvature is summed). As in
    the paper, λ is to be searched.

    The default `sampled` takes one label a sample from the model's prediction, as Martens & Grosse 2015 do.
    """

    name: ClassVar[str] = "ewc-kfac"
    lam: float = hyper(100.0, low=0.0, tune=(0.1, 1e6), doc="λ in ½·λ·Σ tr(ΔWᵀGΔWA)")
    decay: float = hyper(1.0, low=0.0, high=1.0, doc="γ of earlier tasks' curvature, with accumulate = online")
    accumulate: Literal["separate", "online"] = option(
        "separate", doc="separate: one anchor a task; online: latest anchor, decayed curvature"
    )
    estimator: kfac.Estimator = option("sampled", doc="exact | sampled | empirical")
    fisher_samples: int = option(0, low=0, doc="training samples used, drawn at random; 0: all")
    draws: int = option(1, low=1, doc="labels drawn a sample by the estimator sampled")

    def init(self, params: Params, setting: Setting) -> State:
        """Zero factors in a slot for every task but the last, so a zero penalty."""
        slots, layers = max(1, setting.tasks - 1), kfac.layers(params)
        a, g = kfac.zeros(params, layers)
        w = {k: torch.zeros_like(kfac.joined(params, k)) for k in layers}
        others = {k: torch.zeros_like(params[k]) for k in kfac.others(params)}
        anchors = slots if self.accumulate == "separate" else 1
        return {
            "A": {k: v.repeat(slots, 1, 1) for k, v in a.items()},
            "G": {k: v.repeat(slots, 1, 1) for k, v in g.items()},
            "anchor": {k: v.repeat(anchors, 1, 1) for k, v in w.items()},
            "diagonal": others,
            "diagonal_anchor": {k: v.clone() for k, v in others.items()},
            "slot": {"next": torch.arange(slots, device=next(iter(params.values())).device) == 0},
        }

    def penalty(self, state: State, params: Params, hparams: Hparams) -> Tensor:
        """½·λ·Σ tr(ΔWᵀGΔWA), over layers and tasks, and ½·λ·Σ Ω(θ − θ*)² over the other parameters."""
        moved = _moved(state, params)
        terms = [0.5 * hparams["lam"] * (delta * _pull(state, k, delta)).sum() for k, delta in moved.items()]
        if state["diagonal"]:
            others = {k: params[k] for k in state["diagonal"]}
            terms.append(quadratic.penalty(others, state["diagonal"], state["diagonal_anchor"], hparams["lam"]))
        return torch.stack(terms).sum()

    def penalty_gradient(self, state: State, params: Params, hparams: Hparams) -> Params:
        """λ·Σ GΔWA over tasks, and λ·Ω(θ − θ*)."""
        others = {k: params[k] for k in state["diagonal"]}
        found = quadratic.gradient(others, state["diagonal"], state["diagonal_anchor"], hparams["lam"])
        for layer, delta in _moved(state, params).items():
            found |= kfac.parted(hparams["lam"] * _pull(state, layer, delta).sum(0), params, layer)
        return {k: found[k] for k in params}

    def measure(self, model: nn.Module, task: FinishedTask) -> Params:
        """The factors on the task's training data, as `A/<layer>` and `G/<layer>`, and Ω of the other parameters.

        Raises:
            ValueError: a weight of two or four dimensions that has no factors (an embedding, a grouped convolution, a
                layer called twice, a tied weight); the message names the layer and the reason.
        """
        order = torch.randperm(len(task.y), generator=task.generator).to(task.x.device)
        if self.fisher_samples:
            order = order[: self.fisher_samples]
        some = len(order) < len(task.y)  # a mean over all samples needs no copy in another order
        x, y = (task.x[order], task.y[order]) if some else (task.x, task.y)
        a, g = kfac.factors(model, x, y, estimator=self.estimator, draws=self.draws, generator=task.generator)
        other = kfac.rest(model, x, y, estimator=self.estimator, draws=self.draws, generator=task.generator)
        return {f"A/{k}": v for k, v in a.items()} | {f"G/{k}": v for k, v in g.items()} | other

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """Write the factors into the next slot and move the anchor; with every slot taken, nothing changes."""
        slot, online = state["slot"]["next"], self.accumulate == "online"
        w = {k: kfac.joined(params, k) for k in state["anchor"]}
        new = {
            "A": {k: _written(v, slot, measured[f"A/{k}"]) for k, v in state["A"].items()},
            "G": {
                k: _written(hparams["decay"] * v if online else v, slot, measured[f"G/{k}"])
                for k, v in state["G"].items()
            },
            "anchor": {k: w[k][None] if online else _written(v, slot, w[k]) for k, v in state["anchor"].items()},
            "slot": {"next": torch.cat([torch.zeros_like(slot[:1]), slot[:-1]])},
        } | self._diagonal(state, params, measured, hparams)
        return state | {
            name: {k: torch.where(slot.any(), v, state[name][k]) for k, v in part.items()} for name, part in new.items()
        }

    def _diagonal(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """What becomes of the parameters without factors."""
        importance, anchor = state["diagonal"], state["diagonal_anchor"]
        new = {k: measured[k] for k in importance}
        if self.accumulate == "online":
            importance, anchor = quadratic.online(importance, new, params, hparams["decay"])
        else:
            importance, anchor = quadratic.separate(importance, anchor, new, params)
        return {"diagonal": importance, "diagonal_anchor": anchor}


def _moved(state: State, params: Params) -> Params:
    """ΔW of every layer, shape (anchors, outputs, inputs)."""
    return {k: kfac.joined(params, k) - anchor for k, anchor in state["anchor"].items()}


def _pull(state: State, layer: str, delta: Tensor) -> Tensor:
    """GΔWA of every slot, shape (slots, outputs, inputs)."""
    return state["G"][layer] @ delta @ state["A"][layer]


def _written(slots: Tensor, slot: Tensor, value: Tensor) -> Tensor:
    """Slots (K, n, m) with `value` (n, m) in the one that `slot` (K,) marks, if any."""
    return torch.where(slot[:, None, None], value, slots)
