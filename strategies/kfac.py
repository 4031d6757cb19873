"""Kronecker factors of the Fisher information: a layer's block is F ≈ A ⊗ G, A of its inputs, G of its gradients.

For a Linear layer with inputs a (a 1 appended where it has a bias) and g = ∂ log p(y|x) / ∂(its output), one sample's
gradient by W = [weight, bias] is gaᵀ, and with vec stacking columns its Fisher block is (aaᵀ) ⊗ (ggᵀ). Averaging the
two sides apart is the approximation (Martens & Grosse 2015): A = E[aaᵀ], G = E[ggᵀ].

A Conv2d layer, and a Linear layer over a sequence, uses W at T positions of a sample, and a is the patch that position
sees: A = 1/N Σᵢ Σₜ aaᵀ, a **sum** over positions, and G = 1/(NT) Σᵢ Σₜ ggᵀ, a **mean**. Their product estimates the
block under the assumptions of Grosse & Martens 2016 (derivatives at different positions uncorrelated), and T = 1 is
Linear. Where y comes from, in g:

- `exact`      every class, weighted by p(y|x): C backward passes for C classes
- `sampled`    ŷ ~ p(·|x), unbiased for `exact`
- `empirical`  the label of the data set

What has no such factors (normalisation layers, embeddings) keeps its Fisher diagonal, `rest`.

References:
    Martens & Grosse 2015, https://arxiv.org/abs/1503.05671; Grosse & Martens 2016, https://arxiv.org/abs/1602.01407.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies import fisher
from strategies.base import Params
from strategies.calls import Call, recorded
from strategies.closed_forms import names_of, patches
from strategies.persample import PROBE, Cotangents
from strategies.stack import Networks

Estimator = Literal["exact", "sampled", "empirical"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)

CHUNK = 1000  # samples a pass: bounds memory, changes nothing else
PATCHES = 1 << 24  # values of unfolded patches held at once, likewise


class Factors(NamedTuple):
    """One symmetric, positive semi-definite matrix a layer, by the layer's name.

    Attributes:
        a: of the inputs, (inputs, inputs); patch values of a Conv2d; one more where the layer has a bias.
        g: of the gradients by the outputs, (outputs, outputs).
    """

    a: Params
    g: Params


def layers(params: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that have factors, known by a `<name>.weight` of two or four dimensions."""
    return [k.removesuffix("weight").removesuffix(".") for k in params if _is_weight(k) and params[k].ndim in {2, 4}]


def others(params: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters of no such layer."""
    covered = {k for layer in layers(params) for k in names_of(params, layer)}
    return [k for k in params if k not in covered]


def joined(params: Mapping[str, Tensor], layer: str) -> Tensor:
    """W = [weight, bias] of a layer, shape (outputs, inputs + 1), or (outputs, inputs) without a bias."""
    weight, *bias = (params[k] for k in names_of(params, layer))
    return torch.cat([weight.flatten(1), *(b[:, None] for b in bias)], dim=1)


def parted(matrix: Tensor, params: Mapping[str, Tensor], layer: str) -> Params:
    """What `joined` joined, by name and shape of the layer's parameters, in tensors of their own."""
    weight, *bias = names_of(params, layer)
    inputs = params[weight][0].numel()
    part = {weight: matrix[:, :inputs].reshape(params[weight].shape)} | {k: matrix[:, inputs] for k in bias}
    return {k: v.contiguous() for k, v in part.items()}


def zeros(params: Mapping[str, Tensor], names: list[str]) -> Factors:
    """Factors of the named layers that say that nothing matters."""
    w = {name: joined(params, name) for name in names}
    a = {name: v.new_zeros(v.shape[1], v.shape[1]) for name, v in w.items()}
    return Factors(a, {name: v.new_zeros(v.shape[0], v.shape[0]) for name, v in w.items()})


def factors(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    estimator: Estimator = "sampled",
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Factors:
    """Kronecker factors of every Linear and Conv2d layer of a classifier.

    Args:
        model: maps x to logits, shape (N, C). It is evaluated in eval mode and left in the mode it came in.
        x: inputs, shape (N, ...).
        y: data-set labels, shape (N,), int64. `exact` and `sampled` take none.
        estimator: see the module's docstring.
        draws: labels drawn a sample by `sampled`, averaged.
        generator: source of those labels, on the CPU. None takes PyTorch's default generator.

    Raises:
        ValueError: unknown estimator, missing or misshapen labels, no samples, a layer that mixes samples, or one whose
            weight has two or four dimensions and no Kronecker factors.
    """
    fisher.check(model, x, y, estimator, draws, known=ESTIMATORS)
    task = fisher.finished(x, y, generator)
    with fisher.evaluating(model):
        names = _checked_layers(model, x[:PROBE])
        cotangents, extra, draws = fisher.cotangents(Networks.of(model), task, estimator, draws)
        given = [t[0].split(CHUNK) for t in (task.y, *extra)]
        parts = (_sums(model, names, cotangents, *some) for some in zip(x.split(CHUNK), *given, strict=True))
        total = functools.reduce(_added, parts)
    return Factors(_mean(total.a, len(x)), _mean(total.g, len(x) * draws))


def rest(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    estimator: Estimator = "sampled",
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Params:
    """Fisher diagonal of the parameters of no Linear or Conv2d layer; arguments are those of `factors`."""
    params = dict(model.named_parameters())
    names = others(params)
    wanted = {k for k in names if params[k].requires_grad}
    found: Params = {}
    if wanted:
        with _only(model, wanted):
            found = fisher.diagonal(model, x, y, estimator=estimator, samples=draws, generator=generator)
    return {k: found[k] if k in found else torch.zeros_like(params[k]).detach() for k in names}


def _is_weight(name: str) -> bool:
    return name == "weight" or name.endswith(".weight")


def _sums(model: nn.Module, names: list[str], cotangents: Cotangents, x: Tensor, *given: Tensor) -> Factors:
    """Sums over samples of Σₜ aaᵀ and 1/T Σₜ ggᵀ, from inputs, labels and what else cotangents take."""
    a, g = zeros(dict(model.named_parameters()), names)
    with torch.enable_grad(), recorded(model, set(names)) as calls:
        logits = model(x)
    calls = [c for c in calls if c.y.requires_grad]  # nothing that trains comes before the others
    for call in calls:
        for rows in _inputs(call):
            a[call.name] += rows.mT @ rows
    for v in cotangents(logits.detach(), *given):
        for call, rows in zip(calls, _gradients(logits, calls, v), strict=True):
            g[call.name] += rows.mT @ rows * (len(x) / len(rows))
    return Factors(a, g)


def _gradients(logits: Tensor, calls: list[Call], v: Tensor) -> list[Tensor]:
    """Gradients by the layers' outputs, a row a sample and position."""
    deltas = torch.autograd.grad(logits, [c.y for c in calls], v, retain_graph=True, allow_unused=True)
    return [
        _rows(c.layer, torch.zeros_like(c.y) if delta is None else delta)
        for c, delta in zip(calls, deltas, strict=True)
    ]


def _inputs(call: Call) -> Generator[Tensor, None, None]:
    """What a layer's W was multiplied with, a row a sample and position, a few samples at a time."""
    layer, values = call.layer, call.a
    ones = (0, 0 if layer.bias is None else 1)
    if not isinstance(layer, nn.Conv2d):
        yield F.pad(_rows(layer, values), ones, value=1.0)
        return
    patch = layer.weight[0].numel() * call.y.shape[2:].numel()
    for some in values.split(max(1, PATCHES // patch)):
        yield F.pad(patches(layer, some).mT.flatten(0, 1), ones, value=1.0)


def _rows(layer: nn.Module, t: Tensor) -> Tensor:
    return t.flatten(2).mT.flatten(0, 1) if isinstance(layer, nn.Conv2d) else t.flatten(0, -2)


def _added(left: Factors, right: Factors) -> Factors:
    return Factors(*({k: part[k] + other[k] for k in part} for part, other in zip(left, right, strict=True)))


def _mean(sums: Params, count: int) -> Params:
    # Symmetric to the last bit, so that the penalty's closed gradient is its gradient.
    return {k: (v + v.mT) / (2 * count) for k, v in sums.items()}


def _checked_layers(model: nn.Module, x: Tensor) -> list[str]:
    """The layers that have factors, every one checked on a few samples to be what its factors say it is.

    Args:
        model: in eval mode.
        x: a few inputs, shape (n, ...).

    Raises:
        ValueError: a layer that is not; the message has its name and the reason.
    """
    modules, params = dict(model.named_modules()), dict(model.named_parameters())
    names = layers(params)
    with torch.enable_grad(), recorded(model, set(names)) as calls:
        logits = model(x)
    called = Counter(c.name for c in calls)
    for name in names:
        reason = _unsupported(modules[name], called[name])
        if reason:
            raise ValueError(_refusal(name, reason))
    for name in _unexplained(logits, calls, params, names):
        raise ValueError(_refusal(name, "its parameters are used elsewhere too: tied, or not by a plain call"))
    return names


def _refusal(name: str, reason: str) -> str:
    return (
        f"layer {name!r} has no Kronecker factors: {reason}; expected an nn.Linear or an ungrouped, zero-padded "
        "nn.Conv2d, called once (the strategy ewc has no such limit)"
    )


def _unsupported(layer: nn.Module, called: int) -> str:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"its type is {type(layer).__name__}"
    if called > 1:
        return f"it is called {called} times"
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        return f"it has {layer.groups} groups"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or layer.padding == "same"):
        return f"its padding is {layer.padding!r} with {layer.padding_mode}"
    return ""


def _unexplained(logits: Tensor, calls: list[Call], params: Mapping[str, Tensor], names: list[str]) -> list[str]:
    """Layers whose parameters have another gradient than Σ gaᵀ over the rows of their one call."""
    p = logits.detach().softmax(1)
    v = p * torch.arange(1, p.shape[1] + 1, device=p.device)  # any that is zero where outputs are masked
    calls = [c for c in calls if c.y.requires_grad]
    found: Params = {}
    for call, g in zip(calls, _gradients(logits, calls, v), strict=True):
        found |= parted(g.mT @ torch.cat(list(_inputs(call))), params, call.name)
    trained = {k: name for name in names for k in names_of(params, name) if params[k].requires_grad}
    expected = torch.autograd.grad(logits, [params[k] for k in trained], v, allow_unused=True) if trained else ()
    tolerance = 1e-8 if p.dtype == torch.float64 else 1e-2  # TF32 convolutions differ by 1e-3

    def agree(mine: Tensor | None, other: Tensor | None) -> bool:
        if mine is None or other is None:
            return all(t is None or not t.any() for t in (mine, other))
        # Of a run that has diverged nothing can be said, and nothing need be.
        return not other.isfinite().all() or bool((mine - other).abs().max() <= tolerance * other.abs().max())

    return [name for (k, name), e in zip(trained.items(), expected, strict=True) if not agree(found.get(k), e)]


@contextmanager
def _only(model: nn.Module, names: set[str]) -> Generator[None, None, None]:
    """Only the named parameters require a gradient."""
    before = {p: p.requires_grad for p in model.parameters()}
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    try:
        yield
    finally:
        for p, required in before.items():
            p.requires_grad_(required)
