"""Sums over samples of per-sample gradients squared, or without their sign, in closed form where a layer has one.

Σᵢ φ(∂ℓᵢ/∂θ), entry by entry, for φ(g) = g² or |g|: all that is asked of φ is φ(ab) = φ(a)φ(b). For a layer y = f(a; θ)
with inputs aᵢ and loss gradients δᵢ = ∂ℓᵢ/∂yᵢ, both read off one forward and one backward pass:

- Linear: the per-sample gradient is δᵢaᵢᵀ, so the sum is φ(δ)ᵀφ(a), one matrix product.
- Conv2d: δᵢ times the unfolded patches of aᵢ, summed over positions, then φ.
- BatchNorm (eval), LayerNorm, GroupNorm: δᵢ times the normalised input, summed over positions, then φ.
- Embedding: rows of δᵢ summed a token, then φ.

Every other parameter, and every one whose closed form disagrees with automatic differentiation on a few samples (a
layer called twice, a weight used behind its layer's back), takes chunked `vmap(grad)` instead.

A loss is given by its gradient by the outputs, for which there is a formula. There may be several, as many as there are
classes say: they have the forward pass in common, and since (Σ φ(δ))ᵀφ(a) is a sum over losses too, the product of a
Linear layer as well. Everything is written for one run and lifted over a stack of runs.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from strategies.base import Params
from strategies.products import product
from strategies.stack import FinishedTasks, Networks, lift

Cotangents = Callable[..., Iterable[Tensor]]
"""Of one run: outputs (n, C), labels (n,) and what else comes with each sample (n, ...) -> gradients by the outputs,
(n, C), one loss after the other."""
Phi = Callable[[Tensor], Tensor]
"""Entry by entry, with φ(ab) = φ(a)φ(b) and φ >= 0: `torch.square` or `torch.abs`."""
Form = tuple[Callable[[Tensor], Params], Callable[[Params], Params]]
"""What a loss adds, from its gradient by the layer's output; and, from the sum of that over losses, Σᵢ φ(gradient) by
the layer's own parameter names."""
Rule = Callable[[Any, Params, Tensor, Phi], Form]
"""Layer, its buffers, its input and φ -> the closed form."""

PROBE = 8  # samples on which each closed form is compared with automatic differentiation
# What `vmap(grad)` holds at once, of all runs together: gradients of so many samples, and so many values of them.
CHUNK, HELD = 64, 2**26


def _linear(layer: nn.Module, own: Params, a: Tensor, phi: Phi) -> Form:
    if a.ndim == 2:
        return (
            lambda delta: {"delta": phi(delta)},
            lambda total: {"weight": product(total["delta"].mT, phi(a)), "bias": total["delta"].sum(0)},
        )

    def part(delta: Tensor) -> Params:  # positions of one sample add up before φ
        rows, deltas = a.flatten(1, -2), delta.flatten(1, -2)
        return {"weight": phi(deltas.mT @ rows).sum(0), "bias": phi(deltas.sum(1)).sum(0)}

    return part, _as_it_is


def _conv2d(layer: nn.Conv2d, own: Params, a: Tensor, phi: Phi) -> Form:
    patches = F.unfold(a, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)  # (N, C·k, L)
    patches = patches.unflatten(1, (layer.groups, -1))

    def part(delta: Tensor) -> Params:
        delta = delta.flatten(2)
        grouped = delta.unflatten(1, (layer.groups, -1))
        weight = phi(torch.einsum("ngol,ngkl->ngok", grouped, patches)).sum(0)
        return {"weight": weight.reshape(layer.weight.shape), "bias": phi(delta.sum(2)).sum(0)}

    return part, _as_it_is


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    return tuple(layer.padding) if not isinstance(layer.padding, str) else (0, 0)


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


def _batch_norm(layer: nn.BatchNorm1d, own: Params, a: Tensor, phi: Phi) -> Form:
    normalised = F.batch_norm(a, own["running_mean"], own["running_var"], eps=layer.eps)
    return _affine(normalised, tuple(range(2, a.ndim)), phi)


def _group_norm(layer: nn.GroupNorm, own: Params, a: Tensor, phi: Phi) -> Form:
    return _affine(F.group_norm(a, layer.num_groups, eps=layer.eps), tuple(range(2, a.ndim)), phi)


def _layer_norm(layer: nn.LayerNorm, own: Params, a: Tensor, phi: Phi) -> Form:
    normalised = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    return _affine(normalised, tuple(range(1, a.ndim - len(layer.normalized_shape))), phi)


def _embedding(layer: nn.Embedding, own: Params, a: Tensor, phi: Phi) -> Form:
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


def squared_gradients(
    networks: Networks, task: FinishedTasks, cotangents: Cotangents, *extra: Tensor, chunk: int
) -> Params:
    """Σᵢ (∂ℓᵢ/∂θ)² over all samples, and over all losses.

    Args:
        networks: in eval mode; no layer may mix samples.
        task: the samples.
        cotangents: gradients of the losses by the outputs.
        extra: what cotangents take beside outputs and labels, each (R, N, ...).
        chunk: samples of each run a pass.

    Returns:
        One tensor a parameter that requires a gradient, (R, ...), of its dtype.

    Raises:
        ValueError: a layer mixes samples.
    """
    return _gradients(networks, task, cotangents, extra, torch.square, chunk)


def absolute_gradients(
    networks: Networks, task: FinishedTasks, cotangents: Cotangents, *extra: Tensor, chunk: int
) -> Params:
    """Σᵢ |∂ℓᵢ/∂θ| over all samples and losses; arguments, result and errors are those of `squared_gradients`."""
    return _gradients(networks, task, cotangents, extra, torch.abs, chunk)


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


@dataclass(frozen=True)
class Plan:
    """How each parameter's sum is found.

    Attributes:
        layers: those that take their closed form, and the shape of one sample's output of each.
        rest: names of the parameters that take `vmap(grad)`; with those of the layers, all that require a gradient.
    """

    layers: Mapping[str, tuple[int, ...]]
    rest: frozenset[str]


def plan(
    networks: Networks, task: FinishedTasks, cotangents: Cotangents, *extra: Tensor, phi: Phi = torch.square
) -> Plan:
    """Which layers take their closed form: those where it agrees with `vmap(grad)` on a few samples of these networks.

    Args:
        networks: in eval mode.
        task: the samples.
        cotangents: gradients of the losses by the outputs.
        extra: what cotangents take beside, each (R, N, ...).
        phi: what is summed of a gradient.
    """
    model, wanted = networks.model, networks.trainable
    candidates = {name for name, m in model.named_modules() if _supported(m) and _own(model, name) & wanted}
    probe = torch.linspace(0, int(task.counts.min()) - 1, PROBE, device=task.y.device).long().unique()
    places = probe.expand(networks.runs, -1)
    x, given = task.inputs(places), [t[:, probe] for t in (task.y, *extra)]

    def added(*outputs_and_given: Tensor) -> Iterable[Tensor]:
        return [torch.stack(list(cotangents(*outputs_and_given))).sum(0)]

    shapes = _single_calls(networks, x, candidates)
    closed = _sums(networks, Plan(shapes, frozenset()), x, given, added, phi)
    reference = _sums(networks, Plan({}, frozenset(wanted)), x, given, added, phi)
    agreed = {k for k, v in closed.items() if k in wanted and _agree(v, reference[k])}
    own = {name: _own(model, name) & wanted for name in shapes}
    layers = {name: shape for name, shape in shapes.items() if own[name] <= agreed}
    return Plan(layers, frozenset(wanted.difference(*(own[name] for name in layers))))


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two sums (R, ...) of every run are equal but for rounding; a GPU's products may round to TF32."""
    tolerance = 1e-8 if found.dtype == torch.float64 else 1e-2 if found.is_cuda else 1e-4
    gap, size = (found - expected).abs().flatten(1).amax(1), expected.abs().flatten(1).amax(1)
    return bool((gap <= tolerance * size).all())


def _gradients(
    networks: Networks, task: FinishedTasks, cotangents: Cotangents, extra: tuple[Tensor, ...], phi: Phi, chunk: int
) -> Params:
    check_samples_apart(networks.model)
    how = plan(networks, task, cotangents, *extra, phi=phi)
    total: Params = {}
    for start in range(0, task.y.shape[1], chunk):
        part = slice(start, start + chunk)
        given = [t[:, part] for t in (task.y, *extra)]
        for k, v in _sums(networks, how, task.inputs(part), given, cotangents, phi).items():
            # A copy first: what comes out of `vmap` may be one value for all runs.
            total[k] = total[k].add_(v) if k in total else v.clone()
    return {k: total[k] for k in networks.params if k in total}


def _sums(networks: Networks, how: Plan, x: Tensor, given: list[Tensor], cotangents: Cotangents, phi: Phi) -> Params:
    """Σᵢ φ(gradient) over some samples of each run, (R, ...).

    Args:
        networks: R of them.
        how: each parameter's sum is found.
        x: inputs, (R, n, ...), or (1, n, ...) where all runs have the same.
        given: labels, (R, n), -1 for padding, and what else cotangents take.
        cotangents: gradients of the losses by the outputs.
        phi: what is summed of a gradient.
    """
    runs = networks.runs
    shared = len(x) < runs

    def one(params: Params, buffers: Params, x: Tensor, y: Tensor, *extra: Tensor) -> Params:
        logits, pull, finish = _outputs(networks, how.layers, params, buffers, x, phi)
        counts = (y >= 0)[:, None]
        closed: dict[str, Params] = {}
        rest: Params = {}
        for v in cotangents(logits, y.clamp(min=0), *extra):
            part = pull(v * counts)
            closed = {name: _added(closed[name], p) for name, p in part.items()} if closed else part
            if how.rest:
                rest = _added(rest, _differentiated(networks, how.rest, params, buffers, x, v * counts, phi))
        return finish(closed) | rest

    dims = (0, 0, None if shared else 0, *(0 for _ in given))
    result: Params = lift(one, runs, dims)(networks.params, networks.buffers, x[0] if shared else x, *given)
    return result


def _added(total: Params, part: Params) -> Params:
    return {k: total[k] + v for k, v in part.items()} if total else part


def _outputs(
    networks: Networks, layers: Mapping[str, tuple[int, ...]], params: Params, buffers: Params, x: Tensor, phi: Phi
) -> tuple[Tensor, Callable[[Tensor], dict[str, Params]], Callable[[dict[str, Params]], Params]]:
    """Outputs of one run; and of the layers' closed forms, by layer, the two functions."""
    model = networks.model
    if not layers:
        return networks.logits(params, buffers, x), lambda v: {}, lambda total: {}

    def forward(moved: Params) -> tuple[Tensor, Params]:
        with _moved(model, moved) as inputs:
            return networks.logits(params, buffers, x), inputs

    # The gradient by something added to a layer's output is the gradient by that output.
    like = next(iter(params.values()))
    nowhere = {name: like.new_zeros(len(x), *shape) for name, shape in layers.items()}
    logits, pull, inputs = vjp(forward, nowhere, has_aux=True)  # type: ignore[misc]
    prefixes = {name: f"{name}." if name else "" for name in layers}

    def form(name: str) -> Form:
        layer = model.get_submodule(name)
        own = {k: buffers[prefixes[name] + k] for k, _ in layer.named_buffers(recurse=False)}
        return RULES[type(layer)](layer, own, inputs[name].detach(), phi)

    forms = {name: form(name) for name in layers}

    def parts(v: Tensor) -> dict[str, Params]:
        (deltas,) = pull(v)
        return {name: forms[name][0](delta) for name, delta in deltas.items()}

    def finish(total: dict[str, Params]) -> Params:
        found = {name: forms[name][1](part) for name, part in total.items()}
        own = {name: [k for k, _ in model.get_submodule(name).named_parameters(recurse=False)] for name in found}
        return {prefixes[name] + k: found[name][k] for name in found for k in own[name]}

    return logits.detach(), parts, finish


@contextmanager
def _moved(model: nn.Module, by: Params) -> Generator[Params, None, None]:
    """While it lasts, something is added to the outputs of layers, given by name; yields their inputs, once called."""
    inputs: Params = {}

    def move(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        inputs[name] = args[0]
        return y + by[name]

    handles = [model.get_submodule(name).register_forward_hook(functools.partial(move, name)) for name in by]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _differentiated(
    networks: Networks, names: frozenset[str], params: Params, buffers: Params, x: Tensor, v: Tensor, phi: Phi
) -> Params:
    """Σᵢ φ(gradient) of the named parameters of one run, by `vmap(grad)` over chunks of samples."""
    own = {k: params[k] for k in names}

    def loss(own: Params, xi: Tensor, vi: Tensor) -> Tensor:
        return (networks.logits({**params, **own}, buffers, xi[None])[0] * vi).sum()

    def summed(xs: Tensor, vs: Tensor) -> Params:
        per_sample: Params = vmap(grad(loss), in_dims=(None, 0, 0))(own, xs, vs)
        return {k: phi(g).sum(0) for k, g in per_sample.items()}

    values = networks.runs * sum(p.numel() for p in own.values())
    some = max(min(CHUNK // networks.runs, HELD // values), 1)
    total: Params = {}
    for xs, vs in zip(x.split(some), v.split(some), strict=True):
        total = _added(total, summed(xs, vs))
    return total


def _single_calls(networks: Networks, x: Tensor, names: set[str]) -> dict[str, tuple[int, ...]]:
    """Of those layers, the ones called once and with a row a sample; and the shape of one sample's output."""
    params, buffers = ({k: t[0] for k, t in tree.items()} for tree in (networks.params, networks.buffers))
    with torch.no_grad(), recorded(networks.model, names) as calls:
        networks.logits(params, buffers, x[0])
    often = Counter(call.name for call in calls)
    return {c.name: tuple(c.y.shape[1:]) for c in calls if often[c.name] == 1 and len(c.y) == x.shape[1]}


def _supported(layer: nn.Module) -> bool:
    if type(layer) not in RULES or getattr(layer, "parametrizations", None):
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and layer.padding != "same"
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return True


def _own(model: nn.Module, layer: str) -> set[str]:
    prefix = f"{layer}." if layer else ""
    return {prefix + name for name, _ in model.get_submodule(layer).named_parameters(recurse=False)}
