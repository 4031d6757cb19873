"""Sums over samples of per-sample gradients, squared or without their sign: one closed form a layer type.

For a layer y = f(a; θ) with inputs aᵢ and loss gradients δᵢ = ∂ℓᵢ/∂yᵢ, Σᵢ φ(∂ℓᵢ/∂θ) with φ(g) = g² or |g| is:

- Linear: the per-sample gradient is δᵢaᵢᵀ, so the sum is φ(δ)ᵀφ(a), one matrix product.
- Conv2d: δᵢ times the unfolded patches of aᵢ, summed over positions, then φ.
- BatchNorm (eval), LayerNorm, GroupNorm: δᵢ times the normalised input, summed over positions, then φ.
- Embedding: rows of δᵢ summed a token, then φ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.base import Params
from strategies.products import product

Phi = Callable[[Tensor], Tensor]
"""Entry by entry, with φ(ab) = φ(a)φ(b) and φ >= 0: `torch.square` or `torch.abs`."""
Form = tuple[Callable[[Tensor], Params], Callable[[Params], Params]]
"""What a loss adds, from its gradient by the layer's output; and, from the sum of that over losses, Σᵢ φ(gradient) by
the layer's own parameter names."""
Rule = Callable[[Any, Params, Tensor, Phi], Form]
"""Layer, its buffers, its input and φ -> the closed form."""


def _linear(layer: nn.Module, buffers: Params, a: Tensor, phi: Phi) -> Form:
    if a.ndim == 2:
        return (
            lambda delta: {"delta": phi(delta)},
            lambda total: {"weight": product(total["delta"].mT, phi(a)), "bias": total["delta"].sum(0)},
        )

    def part(delta: Tensor) -> Params:  # positions of one sample add up before φ
        rows, deltas = a.flatten(1, -2), delta.flatten(1, -2)
        return {"weight": phi(deltas.mT @ rows).sum(0), "bias": phi(deltas.sum(1)).sum(0)}

    return part, _as_it_is


def _conv2d(layer: nn.Conv2d, buffers: Params, a: Tensor, phi: Phi) -> Form:
    seen = patches(layer, a).unflatten(1, (layer.groups, -1))

    def part(delta: Tensor) -> Params:
        delta = delta.flatten(2)
        grouped = delta.unflatten(1, (layer.groups, -1))
        weight = phi(torch.einsum("ngol,ngkl->ngok", grouped, seen)).sum(0)
        return {"weight": weight.reshape(layer.weight.shape), "bias": phi(delta.sum(2)).sum(0)}

    return part, _as_it_is


def patches(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """What the weight meets at each position: inputs (N, C, ...) -> (N, C·k, L)."""
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    return F.unfold(a, layer.kernel_size, layer.dilation, padding, layer.stride)


def _affine(normalised: Tensor, positions: tuple[int, ...], phi: Phi) -> Form:
    """A scale and shift: their gradients sum over the positions of one sample."""
    if not positions:
        return (
            lambda delta: {"delta": phi(delta)},
            lambda total: {"weight": (total["delta"] * phi(normalised)).sum(0), "bias": total["delta"].sum(0)},
        )

    def part(delta: Tensor) -> Params:
        return {
            "weight": phi((delta * normalised).sum(positions)).sum(0),
            "bias": phi(delta.sum(positions)).sum(0),
        }

    return part, _as_it_is


def _batch_norm(layer: nn.BatchNorm1d, buffers: Params, a: Tensor, phi: Phi) -> Form:
    normalised = F.batch_norm(a, buffers["running_mean"], buffers["running_var"], eps=layer.eps)
    return _affine(normalised, tuple(range(2, a.ndim)), phi)


def _group_norm(layer: nn.GroupNorm, buffers: Params, a: Tensor, phi: Phi) -> Form:
    return _affine(F.group_norm(a, layer.num_groups, eps=layer.eps), tuple(range(2, a.ndim)), phi)


def _layer_norm(layer: nn.LayerNorm, buffers: Params, a: Tensor, phi: Phi) -> Form:
    normalised = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    return _affine(normalised, tuple(range(1, a.ndim - len(layer.normalized_shape))), phi)


def _embedding(layer: nn.Embedding, buffers: Params, a: Tensor, phi: Phi) -> Form:
    # Of each sample, the sum for each token it has: equal ones lie side by side once sorted, and count up to a place.
    tokens, order = (a.flatten(1) if a.ndim > 1 else a[:, None]).sort(dim=1)
    place = F.pad(tokens[:, 1:] != tokens[:, :-1], (1, 0)).long().cumsum(1)
    owner = torch.zeros_like(tokens).scatter(1, place, tokens)  # sums of places that no token has are zero

    def part(delta: Tensor) -> Params:
        rows = delta.reshape(*tokens.shape, -1)
        rows = rows.gather(1, order[..., None].expand(rows.shape))
        sums = torch.zeros_like(rows).scatter_add(1, place[..., None].expand(rows.shape), rows)
        weight = rows.new_zeros(layer.num_embeddings, rows.shape[-1])
        weight = weight.index_add(0, owner.flatten(), phi(sums).flatten(0, 1))
        if layer.padding_idx is not None:
            weight = weight.index_fill(0, torch.tensor([layer.padding_idx], device=weight.device), 0)
        return {"weight": weight}

    return part, _as_it_is


def _as_it_is(total: Params) -> Params:
    return total


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
}


def supported(layer: nn.Module) -> bool:
    """Whether there is a rule for a layer as it is set."""
    if type(layer) not in RULES or getattr(layer, "parametrizations", None):
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and layer.padding != "same"
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return True


def names_of(params: Mapping[str, Tensor], layer: str) -> list[str]:
    """Names of a layer's parameters: its weight, and its bias if it has one."""
    prefix = f"{layer}." if layer else ""
    return [k for k in (f"{prefix}weight", f"{prefix}bias") if k in params]
