"""Sums over samples of per-sample gradients squared, or without their sign, in closed form where a layer has one.

Σᵢ φ(∂ℓᵢ/∂θ), entry by entry, for φ(g) = g² or |g|: all that is asked of φ is φ(ab) = φ(a)φ(b). What goes into the
closed forms, inputs of layers and loss gradients by their outputs, is read off one forward and one backward pass.

Every other parameter, and every one whose closed form disagrees with automatic differentiation on a few samples (a
layer called twice, a weight used behind its layer's back), takes chunked `vmap(grad)` instead.

A loss is given by its gradient by the outputs, for which there is a formula. There may be several, as many as there are
classes say: they have the forward pass in common, and since (Σ φ(δ))ᵀφ(a) is a sum over losses too, the product of a
Linear layer as well. Everything is written for one run and lifted over a stack of runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from strategies.base import Params
from strategies.calls import moved, recorded
from strategies.closed_forms import RULES, Form, Phi, names_of, supported
from strategies.stack import FinishedTasks, Networks, lift

Cotangents = Callable[..., Iterable[Tensor]]
"""Of one run: outputs (n, C), labels (n,) and what else comes with each sample (n, ...) -> gradients by the outputs,
(n, C), one loss after the other."""
PROBE = 8  # samples on which each closed form is compared with automatic differentiation

# Samples a pass, of all runs together and of each at least: they bound memory and change nothing else. So do those of
# `vmap(grad)`, of all runs together: samples whose gradients it holds at once, and values of these.
CHUNK, LEAST = 2000, 500
DIFFERENTIATED, HELD = 64, 2**24


def squared_gradients(
    networks: Networks, task: FinishedTasks, cotangents: Cotangents, *extra: Tensor, chunk: int | None = None
) -> Params:
    """Σᵢ (∂ℓᵢ/∂θ)² over all samples, and over all losses.

    Args:
        networks: in eval mode; no layer may mix samples.
        task: the samples.
        cotangents: gradients of the losses by the outputs.
        extra: what cotangents take beside outputs and labels, each (R, N, ...).
        chunk: samples of each run a pass; None: by `CHUNK` and `LEAST`.

    Returns:
        One tensor a parameter that requires a gradient, (R, ...), of its dtype.

    Raises:
        ValueError: a layer mixes samples.
    """
    return _gradients(networks, task, cotangents, extra, torch.square, chunk)


def absolute_gradients(
    networks: Networks, task: FinishedTasks, cotangents: Cotangents, *extra: Tensor, chunk: int | None = None
) -> Params:
    """Σᵢ |∂ℓᵢ/∂θ| over all samples and losses; arguments, result and errors are those of `squared_gradients`."""
    return _gradients(networks, task, cotangents, extra, torch.abs, chunk)


def mean(sums: Params, counts: Tensor) -> Params:
    """Sums (R, ...) over that many samples of each run, (R,), as means; written over."""
    return {k: v.div_(counts.view(-1, *(1,) * (v.ndim - 1))) for k, v in sums.items()}


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
    wanted = networks.trainable
    layers = [name for name, m in networks.model.named_modules() if supported(m)]
    own = {name: wanted.intersection(names_of(networks.params, name)) for name in layers}
    probe = torch.linspace(0, int(task.counts.min()) - 1, PROBE, device=task.y.device).long().unique()
    places = probe.expand(networks.runs, -1)
    x, given = task.inputs(places), [t[:, probe] for t in (task.y, *extra)]

    def added(*outputs_and_given: Tensor) -> Iterable[Tensor]:
        return [torch.stack(list(cotangents(*outputs_and_given))).sum(0)]

    shapes = _single_calls(networks, x, {name for name in layers if own[name]})
    closed = _sums(networks, Plan(shapes, frozenset()), x, given, added, phi)
    reference = _sums(networks, Plan({}, frozenset(wanted)), x, given, added, phi)
    agreed = {k for k, v in closed.items() if k in wanted and _agree(v, reference[k])}
    shapes = {name: shape for name, shape in shapes.items() if own[name] <= agreed}
    return Plan(shapes, frozenset(wanted.difference(*(own[name] for name in shapes))))


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two sums (R, ...) of every run are equal but for rounding; a GPU's products may round to TF32."""
    tolerance = 1e-8 if found.dtype == torch.float64 else 1e-2 if found.is_cuda else 1e-4
    gap, size = (found - expected).abs().flatten(1).amax(1), expected.abs().flatten(1).amax(1)
    return bool((gap <= tolerance * size).all())


def _gradients(
    networks: Networks,
    task: FinishedTasks,
    cotangents: Cotangents,
    extra: tuple[Tensor, ...],
    phi: Phi,
    chunk: int | None,
) -> Params:
    check_samples_apart(networks.model)
    how = plan(networks, task, cotangents, *extra, phi=phi)
    chunk = chunk or max(CHUNK // networks.runs, LEAST)
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

    def forward(by: Params) -> tuple[Tensor, Params]:
        with moved(model, by) as inputs:
            return networks.logits(params, buffers, x), inputs

    # The gradient by something added to a layer's output is the gradient by that output.
    like = next(iter(params.values()))
    nowhere = {name: like.new_zeros(len(x), *shape) for name, shape in layers.items()}
    logits, pull, inputs = vjp(forward, nowhere, has_aux=True)  # type: ignore[misc]

    def form(name: str) -> Form:
        layer, prefix = model.get_submodule(name), f"{name}." if name else ""
        statistics = {k: buffers[prefix + k] for k, _ in layer.named_buffers(recurse=False)}
        return RULES[type(layer)](layer, statistics, inputs[name].detach(), phi)

    forms = {name: form(name) for name in layers}

    def parts(v: Tensor) -> dict[str, Params]:
        (deltas,) = pull(v)
        return {name: forms[name][0](delta) for name, delta in deltas.items()}

    def finish(total: dict[str, Params]) -> Params:
        found = {name: forms[name][1](part) for name, part in total.items()}
        return {k: part[k.rpartition(".")[2]] for name, part in found.items() for k in names_of(params, name)}

    return logits.detach(), parts, finish


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
    some = max(min(DIFFERENTIATED // networks.runs, HELD // max(values, 1)), 1)
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
