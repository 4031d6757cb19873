"""Sums over samples of squared per-sample gradients, Σᵢ (∂ℓᵢ/∂θ)², in closed form where a layer has one.

For a layer y = f(a; θ) with inputs aᵢ and loss gradients δᵢ = ∂ℓᵢ/∂yᵢ, both read off one forward and one backward pass:

- Linear: the per-sample gradient is δᵢaᵢᵀ, whose square sums to (δ²)ᵀ(a²), one matrix product.
- Conv2d: δᵢ times the unfolded patches of aᵢ, summed over positions, then squared.
- BatchNorm (eval), LayerNorm, GroupNorm: δᵢ times the normalised input, summed over positions, then squared.
- Embedding: rows of δᵢ summed a token, then squared.

Every other parameter, and every one whose closed form disagrees with automatic differentiation on a few samples (a
layer called twice, a weight used behind its layer's back), takes chunked `vmap(grad)` instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from strategies.base import Params

Loss = Callable[[Tensor, Tensor], Tensor]
"""Per-sample loss: outputs (N, C) and what the estimator hands each sample (N, ...) -> (N,)."""
Rule = Callable[[Any, Tensor, Tensor], Params]
"""Layer, its input and the loss gradient of its output -> Σᵢ squared gradients by the layer's own parameter names."""

PROBE = 8  # samples on which each closed form is compared with automatic differentiation
CHUNK = 64  # samples whose gradients `vmap(grad)` holds at once


def _linear(layer: nn.Module, a: Tensor, delta: Tensor) -> Params:
    if a.ndim == 2:
        return {"weight": delta.square().mT @ a.square(), "bias": delta.square().sum(0)}
    a, delta = a.flatten(1, -2), delta.flatten(1, -2)  # positions of one sample add up before the square
    return {"weight": (delta.mT @ a).square().sum(0), "bias": delta.sum(1).square().sum(0)}


def _conv2d(layer: nn.Conv2d, a: Tensor, delta: Tensor) -> Params:
    patches = F.unfold(a, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)  # (N, C·k, L)
    patches = patches.unflatten(1, (layer.groups, -1))
    delta = delta.flatten(2)
    grouped = delta.unflatten(1, (layer.groups, -1))
    weight = torch.einsum("ngol,ngkl->ngok", grouped, patches).square().sum(0)
    return {"weight": weight.reshape(layer.weight.shape), "bias": delta.sum(2).square().sum(0)}


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    return tuple(layer.padding) if not isinstance(layer.padding, str) else (0, 0)


def _affine(normalised: Tensor, delta: Tensor, positions: tuple[int, ...]) -> Params:
    """A scale and shift: their gradients sum over the positions of one sample."""
    scale, shift = delta * normalised, delta
    if positions:
        scale, shift = scale.sum(positions), shift.sum(positions)
    return {"weight": scale.square().sum(0), "bias": shift.square().sum(0)}


def _batch_norm(layer: nn.BatchNorm1d, a: Tensor, delta: Tensor) -> Params:
    normalised = F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    return _affine(normalised, delta, tuple(range(2, a.ndim)))


def _group_norm(layer: nn.GroupNorm, a: Tensor, delta: Tensor) -> Params:
    return _affine(F.group_norm(a, layer.num_groups, eps=layer.eps), delta, tuple(range(2, a.ndim)))


def _layer_norm(layer: nn.LayerNorm, a: Tensor, delta: Tensor) -> Params:
    normalised = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    return _affine(normalised, delta, tuple(range(1, a.ndim - len(layer.normalized_shape))))


def _embedding(layer: nn.Embedding, a: Tensor, delta: Tensor) -> Params:
    tokens, rows = layer.num_embeddings, a.flatten(1) if a.ndim > 1 else a[:, None]
    keys = rows + tokens * torch.arange(len(rows), device=a.device)[:, None]
    unique, inverse = keys.flatten().unique(return_inverse=True)
    width = layer.embedding_dim
    sums = delta.new_zeros(len(unique), width).index_add_(0, inverse, delta.reshape(-1, width))
    square = torch.zeros_like(layer.weight).index_add_(0, unique % tokens, sums.square())
    if layer.padding_idx is not None:
        square[layer.padding_idx] = 0
    return {"weight": square}


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


@dataclass(frozen=True)
class _Call:
    """One forward call of a layer that has a rule."""

    name: str
    layer: nn.Module
    a: Tensor
    y: Tensor


@contextmanager
def _recorded(model: nn.Module, names: set[str]) -> Generator[list[_Call], None, None]:
    """Records what goes into and comes out of the named layers, call by call."""
    calls: list[_Call] = []

    def record(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if not args:
            return y  # called by keyword: without a record it takes no closed form
        calls.append(_Call(name, layer, args[0].detach(), y))
        # An in-place operation after the layer (ReLU(inplace=True)) must not overwrite what was recorded.
        return y.clone() if y.requires_grad else y

    handles = [
        module.register_forward_hook(functools.partial(record, name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _closed(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, layers: set[str]) -> Params:
    """Σᵢ squared gradients of the parameters of the named layers, each called at most once."""
    if not layers:
        return {}
    with torch.enable_grad(), _recorded(model, layers) as calls:
        total = loss(model(x), target).sum()
        deltas = torch.autograd.grad(total, [c.y for c in calls], allow_unused=True)
    squares: Params = {}
    for call, delta in zip(calls, deltas, strict=True):
        delta = torch.zeros_like(call.y) if delta is None else delta
        own = RULES[type(call.layer)](call.layer, call.a, delta)
        for name, _ in call.layer.named_parameters(recurse=False):
            key = f"{call.name}.{name}" if call.name else name
            squares[key] = own[name].detach()
    return squares


def _differentiated(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, names: set[str]) -> Params:
    """Σᵢ squared gradients of the named parameters, by `vmap(grad)` over chunks of samples."""
    params = {k: p.detach() for k, p in model.named_parameters() if k in names}
    fixed = {k: v.detach() for k, v in [*model.named_parameters(), *model.named_buffers()] if k not in names}

    def one(p: Params, xi: Tensor, ti: Tensor) -> Tensor:
        return loss(functional_call(model, {**fixed, **p}, (xi[None],)), ti[None])[0]

    def squares(xs: Tensor, ts: Tensor) -> Params:
        per_sample: Params = vmap(grad(one), in_dims=(None, 0, 0))(params, xs, ts)
        return {k: g.square().sum(0) for k, g in per_sample.items()}

    parts = [squares(xs, ts) for xs, ts in zip(x.split(CHUNK), target.split(CHUNK), strict=True)]
    return {k: torch.stack([p[k] for p in parts]).sum(0) for k in params}


def _supported(layer: nn.Module) -> bool:
    if type(layer) not in RULES or getattr(layer, "parametrizations", None):
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and layer.padding != "same"
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return True


def plan(model: nn.Module, x: Tensor, target: Tensor, loss: Loss) -> tuple[set[str], set[str]]:
    """Which layers take their closed form, and which parameters take `vmap(grad)`.

    A closed form is trusted after it has agreed with `vmap(grad)` on a few samples of this very model.

    Args:
        model: in eval mode.
        x: a few inputs, shape (n, ...).
        target: what `loss` takes beside the outputs, shape (n, ...).
        loss: per-sample loss.

    Returns:
        Names of layers, names of parameters; together they cover every parameter that requires a gradient.
    """
    wanted = {k for k, p in model.named_parameters() if p.requires_grad}
    layers = {name for name, m in model.named_modules() if _supported(m) and _own(model, name) & wanted}
    with torch.no_grad(), _recorded(model, layers) as calls:
        model(x)
    counts = [c.name for c in calls]
    layers = {name for name in layers if counts.count(name) == 1}
    closed = {k: v for k, v in _closed(model, x, target, loss, layers).items() if k in wanted}
    reference = _differentiated(model, x, target, loss, wanted)
    tolerance = 1e-4 if x.dtype != torch.float64 else 1e-8
    agreed = {k for k, v in closed.items() if (v - reference[k]).abs().max() <= tolerance * reference[k].abs().max()}
    own = {name: _own(model, name) & wanted for name in layers}
    layers = {name for name in layers if own[name] <= agreed}
    return layers, wanted - set().union(*(own[name] for name in layers))


def _own(model: nn.Module, layer: str) -> set[str]:
    prefix = f"{layer}." if layer else ""
    return {prefix + name for name, _ in model.get_submodule(layer).named_parameters(recurse=False)}


def squared_gradients(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, *, chunk: int) -> Params:
    """Σᵢ (∂ℓᵢ/∂θ)² over all samples.

    Args:
        model: in eval mode; no layer may mix samples.
        x: inputs, shape (N, ...).
        target: what `loss` takes beside the outputs, shape (N, ...).
        loss: per-sample loss.
        chunk: samples a forward and backward pass.

    Returns:
        One tensor a parameter that requires a gradient, of its shape and dtype.
    """
    probe = torch.linspace(0, len(x) - 1, min(PROBE, len(x)), device=x.device).long()
    layers, rest = plan(model, x[probe], target[probe], loss)
    total: Params = {}
    for xs, ts in zip(x.split(chunk), target.split(chunk), strict=True):
        part = _closed(model, xs, ts, loss, layers)
        part |= _differentiated(model, xs, ts, loss, rest) if rest else {}
        total = {k: total[k] + v for k, v in part.items()} if total else part
    return {k: total[k] for k, p in model.named_parameters() if p.requires_grad}
