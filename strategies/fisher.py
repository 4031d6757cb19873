"""Fisher diagonals: a non-negative weight a parameter, how much the model's predictions depend on it.

All are means over samples of gradients of log p(y|x) in eval mode; they differ in where y comes from and what is
squared:

- `exact`      1/N Σᵢ Σ_y p(y|xᵢ) (∂ log p(y|xᵢ))²      C backward passes for C classes
- `sampled`    1/N Σᵢ (∂ log p(ŷᵢ|xᵢ))², ŷᵢ ~ p(·|xᵢ)    unbiased for `exact`
- `empirical`  1/N Σᵢ (∂ log p(yᵢ|xᵢ))²                  labels of the data set
- `batched`    1/M Σ_b (∂ mean over batch b of log p(yᵢ|xᵢ))²: a squared mean, what many codebases call EWC
- `notebook`   (∂ mean of log p(yⱼ|xᵢ) over all pairs i, j of a batch)², two batches: for reproducing one notebook only

References:
    Kunstner et al. 2019, https://arxiv.org/abs/1905.12558; van de Ven 2025, https://arxiv.org/abs/2502.11756.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies.base import MASKED, Params
from strategies.persample import check_samples_apart, squared_gradients

Estimator = Literal["exact", "sampled", "empirical", "batched", "notebook"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)

CHUNK = 1000  # samples a pass where the batch is not part of the definition: bounds memory, changes nothing else


def diagonal(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    estimator: Estimator = "empirical",
    batch_size: int | None = None,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Params:
    """Fisher diagonal of a classifier, one tensor a parameter that requires a gradient.

    Args:
        model: maps x to logits, shape (N, C). It is evaluated in eval mode and left in the mode it came in.
        x: inputs, shape (N, ...).
        y: data-set labels, shape (N,), int64. `exact` and `sampled` take none.
        estimator: see the module's docstring.
        batch_size: for `batched` and `notebook` part of the definition (default 100; a smaller last batch counts as
            one); for the others samples a pass, which bounds memory and changes nothing else (default 1000).
        samples: labels drawn a sample by `sampled`; their squares are averaged.
        generator: source of those labels, on the CPU. None takes PyTorch's default generator.

    Returns:
        Ω, non-negative, of each parameter's shape and dtype.

    Raises:
        ValueError: unknown estimator, missing or misshapen labels, no samples, or a layer that mixes samples.
    """
    check(model, x, y, estimator, samples)
    given = torch.empty(0) if y is None else y
    with evaluating(model):
        if estimator == "exact":
            return _exact(model, x, batch_size or CHUNK)
        if estimator == "sampled":
            return _sampled(model, x, batch_size or CHUNK, samples, generator)
        if estimator == "empirical":
            return _empirical(model, x, given, batch_size or CHUNK)
        if estimator == "batched":
            return _batched(model, x, given, batch_size or 100)
        return _notebook(model, x, given, batch_size or 100)


def _log_likelihood(logits: Tensor, y: Tensor) -> Tensor:
    """Per-sample log p(y|x), shape (N,)."""
    return -F.cross_entropy(logits, y, reduction="none")


def _mean(sums: Params, count: int) -> Params:
    return {k: v / count for k, v in sums.items()}


def _empirical(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> Params:
    return _mean(squared_gradients(model, x, y, _log_likelihood, chunk=chunk), len(x))


def _exact(model: nn.Module, x: Tensor, chunk: int) -> Params:
    def weighted(logits: Tensor, y: Tensor) -> Tensor:
        # √p outside the gradient: its square weighs class y by p(y|x).
        log_p = _log_likelihood(logits, y)
        return log_p.detach().mul(0.5).exp() * log_p

    total: Params = {}
    for c in _competing(model, x):
        y = torch.full((len(x),), c, device=x.device)
        part = squared_gradients(model, x, y, weighted, chunk=chunk)
        total = {k: total[k] + v for k, v in part.items()} if total else part
    return _mean(total, len(x))


@torch.no_grad()
def _competing(model: nn.Module, x: Tensor) -> list[int]:
    """Outputs that are not masked: the others have no probability, so no part in an expectation."""
    masked = model(x[:1])[0] <= MASKED / 2  # so asked that NaN does not count as masked
    return [c for c in range(len(masked)) if not masked[c]]


def _sampled(model: nn.Module, x: Tensor, chunk: int, samples: int, generator: torch.Generator | None) -> Params:
    uniform = torch.rand(samples, len(x), dtype=torch.float64, generator=generator).to(x.device)
    drawn = labels(_probabilities(model, x, chunk), uniform)
    parts = [squared_gradients(model, x, y, _log_likelihood, chunk=chunk) for y in drawn]
    return {k: torch.stack([p[k] for p in parts]).sum(0) / (samples * len(x)) for k in parts[0]}


def labels(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Labels drawn by inverse transform sampling, which hardly depends on the device.

    Args:
        probabilities: shape (N, C).
        uniform: in [0, 1), shape (draws, N), float64.

    Returns:
        Shape (draws, N), int64.
    """
    cumulative = probabilities.double().cumsum(1)
    return (uniform[..., None] * cumulative[:, -1:] >= cumulative).sum(2).clamp(max=cumulative.shape[1] - 1)


def _batched(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Params:
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    total: Params = {}

    def mean(xb: Tensor, yb: Tensor) -> Tensor:
        return _log_likelihood(model(xb), yb).mean()

    for xb, yb in batches:
        part = {k: g.square_() for k, g in _gradient(model, functools.partial(mean, xb, yb)).items()}
        total = {k: total[k].add_(v) for k, v in part.items()} if total else part
    return _mean(total, len(batches))


def _notebook(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Params:
    def mean_of_all_pairs() -> Tensor:
        pairs = [
            F.log_softmax(model(xb), dim=1)[:, yb]  # every image with every label of its batch, as the notebook has it
            for xb, yb in zip(x.split(batch_size)[:2], y.split(batch_size)[:2], strict=True)
        ]
        return torch.cat([p.flatten() for p in pairs]).mean()

    return {k: g.square() for k, g in _gradient(model, mean_of_all_pairs).items()}


def _gradient(model: nn.Module, value: Callable[[], Tensor]) -> Params:
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        gradients = torch.autograd.grad(value(), list(params.values()), allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(params.items(), gradients, strict=True)}


@torch.no_grad()
def _probabilities(model: nn.Module, x: Tensor, chunk: int) -> Tensor:
    return torch.cat([model(xs).softmax(1) for xs in x.split(chunk)])


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Eval mode for a while; every layer is then left in the mode it came in."""
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def check(model: nn.Module, x: Tensor, y: Tensor | None, estimator: str, samples: int) -> None:
    """Refuse arguments of `diagonal` that make no sense together.

    Args:
        model: as there, like the others.
        x: inputs.
        y: labels.
        estimator: name.
        samples: labels drawn a sample.

    Raises:
        ValueError: with what was expected and what came.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if len(x) == 0:
        raise ValueError("x: expected at least one sample, got none")
    if y is None and estimator not in {"exact", "sampled"}:
        raise ValueError(f"y: estimator {estimator!r} needs the data set's labels, got None")
    if y is not None and y.shape != (len(x),):
        raise ValueError(f"y: expected shape ({len(x)},), one label a sample, got {tuple(y.shape)}")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    check_samples_apart(model)
