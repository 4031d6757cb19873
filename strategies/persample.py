"""Sums over samples of per-sample gradients squared, or without their sign, in closed form where a layer has one.

Σᵢ φ(∂ℓᵢ/∂θ), entry by entry, for φ(g) = g² or |g|: all that is asked of φ is φ(ab) = φ(a)φ(b). For a layer y = f(a; θ)
with inputs aᵢ and loss gradients δᵢ = ∂ℓᵢ/∂yᵢ, both read off one forward and one backward pass:

- Linear: the per-sample gradient is δᵢaᵢᵀ, so the sum is φ(δ)ᵀφ(a), one matrix product.
- Conv2d: δᵢ times the unfolded patches of aᵢ, summed over positions, then φ.
- BatchNorm (eval), LayerNorm, GroupNorm: δᵢ times the normalised input, summed over positions, then φ.
- Embedding: rows of δᵢ summed a token, then φ.

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
Phi = Callable[[Tensor], Tensor]
"""Entry by entry, with φ(ab) = φ(a)φ(b) and φ >= 0: `torch.square` or `torch.abs`."""
Rule = Callable[[Any, Tensor, Tensor, Phi], Params]
"""Layer, its input, the loss gradient of its output and φ -> Σᵢ φ(gradient) by the layer's own parameter names."""

PROBE = 8  # samples on which each closed form is compared with automatic differentiation
CHUNK = 64  # samples whose gradients `vmap(grad)` holds at once


def _linear(layer: nn.Module, a: Tensor, delta: Tensor, phi: Phi) -> Params:
    if a.ndim == 2:
        return {"weight": phi(delta).mT @ phi(a), "bias": phi(delta).sum(0)}
    a, delta = a.flatten(1, -2), delta.flatten(1, -2)  # positions of one sample add up before φ
    return {"weight": phi(delta.mT @ a).sum(0), "bias": phi(delta.sum(1)).sum(0)}


def _conv2d(layer: nn.Conv2d, a: Tensor, delta: Tensor, phi: Phi) -> Params:
    patches = F.unfold(a, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)  # (N, C·k, L)
    patches = patches.unflatten(1, (layer.groups, -1))
    delta = delta.flatten(2)
    grouped = delta.unflatten(1, (layer.groups, -1))
    weight = phi(torch.einsum("ngol,ngkl->ngok", grouped, patches)).sum(0)
    return {"weight": weight.reshape(layer.weight.shape), "bias": phi(delta.sum(2)).sum(0)}


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    return tuple(layer.padding) if not isinstance(layer.padding, str) else (0, 0)


def _affine(normalised: Tensor, delta: Tensor, positions: tuple[int, ...], phi: Phi) -> Params:
    """A scale and shift: their gradients sum over the positions of one sample."""
    scale, shift = delta * normalised, delta
    if positions:
        scale, shift = scale.sum(positions), shift.sum(positions)
    return {"weight": phi(scale).sum(0), "bias": phi(shift).sum(0)}


def _batch_norm(layer: nn.BatchNorm1d, a: Tensor, delta: Tensor, phi: Phi) -> Params:
    normalised = F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    return _affine(normalised, delta, tuple(range(2, a.ndim)), phi)


def _group_norm(layer: nn.GroupNorm, a: Tensor, delta: Tensor, phi: Phi) -> Params:
    return _affine(F.group_norm(a, layer.num_groups, eps=layer.eps), delta, tuple(range(2, a.ndim)), phi)


def _layer_norm(layer: nn.LayerNorm, a: Tensor, delta: Tensor, phi: Phi) -> Params:
    normalised = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    return _affine(normalised, delta, tuple(range(1, a.ndim - len(layer.normalized_shape))), phi)


def _embedding(layer: nn.Embedding, a: Tensor, delta: Tensor, phi: Phi) -> Params:
    tokens, rows = layer.num_embeddings, a.flatten(1) if a.ndim > 1 else a[:, None]
    keys = rows + tokens * torch.arange(len(rows), device=a.device)[:, None]
    unique, inverse = keys.flatten().unique(return_inverse=True)
    width = layer.embedding_dim
    sums = delta.new_zeros(len(unique), width).index_add_(0, inverse, delta.reshape(-1, width))
    weight = torch.zeros_like(layer.weight).index_add_(0, unique % tokens, phi(sums))
    if layer.padding_idx is not None:
        weight[layer.padding_idx] = 0
    return {"weight": weight}


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
class Call:
    """One forward call of a layer.

    Attributes:
        name: of the layer in the model.
        layer: the module.
        a: its first positional input, detached.
        y: its output, in the graph of the forward pass: what a gradient is asked for.
    """

    name: str
    layer: nn.Module
    a: Tensor
    y: Tensor


@contextmanager
def recorded(model: nn.Module, names: set[str]) -> Generator[list[Call], None, None]:
    """What goes into and comes out of the named layers while the block lasts, call by call and in order.

    A call without a positional input is left out.

    Args:
        model: whose layers are watched.
        names: of layers, as in `model.named_modules()`.
    """
    calls: list[Call] = []

    def record(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if not args:
            return y  # called by keyword: without a record it takes no closed form
        calls.append(Call(name, layer, args[0].detach(), y))
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


def _closed(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, phi: Phi, layers: set[str]) -> Params:
    """Σᵢ φ(gradient) of the parameters of the named layers, each called at most once."""
    if not layers:
        return {}
    with torch.enable_grad(), recorded(model, layers) as calls:
        total = loss(model(x), target).sum()
        deltas = torch.autograd.grad(total, [c.y for c in calls], allow_unused=True)
    sums: Params = {}
    for call, delta in zip(calls, deltas, strict=True):
        delta = torch.zeros_like(call.y) if delta is None else delta
        own = RULES[type(call.layer)](call.layer, call.a, delta, phi)
        for name, _ in call.layer.named_parameters(recurse=False):
            key = f"{call.name}.{name}" if call.name else name
            sums[key] = own[name].detach()
    return sums


def _differentiated(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, phi: Phi, names: set[str]) -> Params:
    """Σᵢ φ(gradient) of the named parameters, by `vmap(grad)` over chunks of samples."""
    params = {k: p.detach() for k, p in model.named_parameters() if k in names}
    fixed = {k: v.detach() for k, v in [*model.named_parameters(), *model.named_buffers()] if k not in names}

    def one(p: Params, xi: Tensor, ti: Tensor) -> Tensor:
        return loss(functional_call(model, {**fixed, **p}, (xi[None],)), ti[None])[0]

    def summed(xs: Tensor, ts: Tensor) -> Params:
        per_sample: Params = vmap(grad(one), in_dims=(None, 0, 0))(params, xs, ts)
        return {k: phi(g).sum(0) for k, g in per_sample.items()}

    parts = [summed(xs, ts) for xs, ts in zip(x.split(CHUNK), target.split(CHUNK), strict=True)]
    return {k: torch.stack([p[k] for p in parts]).sum(0) for k in params}


def _supported(layer: nn.Module) -> bool:
    if type(layer) not in RULES or getattr(layer, "parametrizations", None):
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and layer.padding != "same"
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return True


def plan(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, phi: Phi = torch.square) -> tuple[set[str], set[str]]:
    """Which layers take their closed form, and which parameters take `vmap(grad)`.

    A closed form is trusted after it has agreed with `vmap(grad)` on a few samples of this very model.

    Args:
        model: in eval mode.
        x: a few inputs, shape (n, ...).
        target: what `loss` takes beside the outputs, shape (n, ...).
        loss: per-sample loss.
        phi: what is summed of a gradient.

    Returns:
        Names of layers, names of parameters; together they cover every parameter that requires a gradient.
    """
    wanted = {k for k, p in model.named_parameters() if p.requires_grad}
    layers = {name for name, m in model.named_modules() if _supported(m) and _own(model, name) & wanted}
    with torch.no_grad(), recorded(model, layers) as calls:
        model(x)
    counts = [c.name for c in calls]
    layers = {name for name in layers if counts.count(name) == 1}
    closed = {k: v for k, v in _closed(model, x, target, loss, phi, layers).items() if k in wanted}
    reference = _differentiated(model, x, target, loss, phi, wanted)
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

    Raises:
        ValueError: a layer mixes samples.
    """
    return _gradients(model, x, target, loss, torch.square, chunk)


def absolute_gradients(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, *, chunk: int) -> Params:
    """Σᵢ |∂ℓᵢ/∂θ| over all samples; arguments, result and errors are those of `squared_gradients`."""
    return _gradients(model, x, target, loss, torch.abs, chunk)


def check_samples_apart(model: nn.Module) -> None:
    """Refuse a model in which a sample's output depends on the others of its batch, so that no gradient is its own.

    Args:
        model: in eval mode.

    Raises:
        ValueError: a batch normalisation without running statistics; the message names the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats:
            raise ValueError(
                f"layer {name!r} normalises by its own batch even in eval mode, so no gradient is one sample's"
            )


def _gradients(model: nn.Module, x: Tensor, target: Tensor, loss: Loss, phi: Phi, chunk: int) -> Params:
    check_samples_apart(model)
    probe = torch.linspace(0, len(x) - 1, min(PROBE, len(x)), device=x.device).long()
    layers, rest = plan(model, x[probe], target[probe], loss, phi)
    total: Params = {}
    for xs, ts in zip(x.split(chunk), target.split(chunk), strict=True):
        part = _closed(model, xs, ts, loss, phi, layers)
        part |= _differentiated(model, xs, ts, loss, phi, rest) if rest else {}
        total = {k: total[k] + v for k, v in part.items()} if total else part
    return {k: total[k] for k, p in model.named_parameters() if p.requires_grad}
