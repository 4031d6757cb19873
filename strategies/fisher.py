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
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

from strategies.base import MASKED, Params
from strategies.persample import Cotangents, check_samples_apart, mean, squared_gradients
from strategies.stack import FinishedTasks, Networks, lift

Estimator = Literal["exact", "sampled", "empirical", "batched", "notebook"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)


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
            one); for the others samples a pass, which bounds memory and changes nothing else.
        samples: labels drawn a sample by `sampled`; their squares are averaged.
        generator: source of those labels, on the CPU. None takes PyTorch's default generator.

    Returns:
        Ω, non-negative, of each parameter's shape and dtype.

    Raises:
        ValueError: unknown estimator; labels that are missing, misshapen or no outputs of the model; no samples, or
            less than one a batch; or a layer that mixes samples.
    """
    check(model, x, y, estimator, samples, batch_size)
    task = finished(x, y, generator)
    with evaluating(model):
        found = diagonals(Networks.of(model), task, estimator=estimator, batch_size=batch_size, samples=samples)
    return {k: v[0] for k, v in found.items()}


def diagonals(
    networks: Networks,
    task: FinishedTasks,
    *,
    estimator: Estimator = "empirical",
    batch_size: int | None = None,
    samples: int = 1,
) -> Params:
    """Fisher diagonals of R classifiers at once: of each, what `diagonal` says.

    Args:
        networks: in eval mode.
        task: their data; of each run at least one sample.
        estimator: as for `diagonal`, like the others.
        batch_size: as there.
        samples: labels drawn a sample by `sampled`, from the generator of each run.

    Returns:
        One tensor a parameter that requires a gradient, (R, ...).

    Raises:
        ValueError: a layer that mixes samples.
    """
    if estimator == "batched":
        return _batched(networks, task, batch_size or 100)
    if estimator == "notebook":
        return _notebook(networks, task, batch_size or 100)
    of, extra, draws = cotangents(networks, task, estimator, samples)
    sums = squared_gradients(networks, task, of, *extra, chunk=batch_size)
    return mean(sums, draws * task.counts)


def cotangents(
    networks: Networks, task: FinishedTasks, estimator: Literal["exact", "sampled", "empirical"], samples: int
) -> tuple[Cotangents, tuple[Tensor, ...], int]:
    """√weight · ∂ log p(y|x)/∂ logits for each y that an estimator takes into account.

    Args:
        networks: in eval mode.
        task: their data.
        estimator: as for `diagonal`, like the other.
        samples: labels drawn a sample by `sampled`, for all samples at once: they do not depend on the chunk.

    Returns:
        The cotangents; what they take beside outputs and labels; and over how many labels a sample their squares are
        to be averaged.
    """
    if estimator == "exact":
        return functools.partial(_of_every_label, _competing(networks, task)), (), 1
    if estimator == "sampled":
        return _of_drawn_labels, (_uniform(task, samples),), samples
    return _of_the_label, (), 1


def finished(x: Tensor, y: Tensor | None, generator: torch.Generator | None) -> FinishedTasks:
    """Data of a stack of one; labels 0 where there are none."""
    return FinishedTasks.of(x, torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else y, generator)


# ∂ log p(y|x)/∂ logits is onehot(y) − p: zero for a masked output, whose p is zero and which is never y.


def _residual(y: Tensor, p: Tensor) -> Tensor:
    return (y[:, None] == torch.arange(p.shape[1], device=p.device)).to(p.dtype) - p


def _of_the_label(logits: Tensor, y: Tensor) -> Iterable[Tensor]:
    yield _residual(y, logits.softmax(1))


def _of_drawn_labels(logits: Tensor, y: Tensor, uniform: Tensor) -> Iterable[Tensor]:
    p = logits.softmax(1)
    for drawn in labels(p, uniform.mT):
        yield _residual(drawn, p)


def _of_every_label(competing: list[int], logits: Tensor, y: Tensor) -> Iterable[Tensor]:
    p = logits.softmax(1)
    for c in competing:
        # √p: its square weighs class c by p(c|x).
        yield p[:, c, None].sqrt() * _residual(torch.full_like(y, c), p)


@torch.no_grad()
def _competing(networks: Networks, task: FinishedTasks) -> list[int]:
    """Outputs that are not masked: the others have no probability, so no part in an expectation."""
    first = task.inputs(slice(0, 1))
    first = first.expand(networks.runs, *first.shape[1:])
    logits = lift(networks.logits, networks.runs)(networks.params, networks.buffers, first)
    masked = (logits[:, 0] <= MASKED / 2).all(0)  # so asked that NaN does not count as masked
    return torch.nonzero(~masked).flatten().tolist()


def _uniform(task: FinishedTasks, samples: int) -> Tensor:
    """What labels are drawn with, (R, N, samples): the same for a run whatever the others have."""
    counts = task.counts.tolist()
    drawn = [
        torch.rand(samples, count, dtype=torch.float64, generator=generator).T
        for count, generator in zip(counts, task.generators, strict=True)
    ]
    return torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True).to(task.y.device)


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


def _batched(networks: Networks, task: FinishedTasks, batch_size: int) -> Params:
    def own_mean(params: Params, buffers: Params, x: Tensor, y: Tensor) -> Tensor:
        total = F.cross_entropy(networks.logits(params, buffers, x), y, ignore_index=-1, reduction="sum")
        return total / (y >= 0).sum().clamp(min=1)

    total: Params = {}
    for start in range(0, task.y.shape[1], batch_size):
        part = slice(start, start + batch_size)
        for k, g in _gradient(networks, own_mean, task.inputs(part), task.y[:, part]).items():
            total[k] = total[k].addcmul_(g, g) if k in total else g.square()
    return mean(total, task.counts.sub(1).div(batch_size, rounding_mode="floor") + 1)


def _notebook(networks: Networks, task: FinishedTasks, batch_size: int) -> Params:
    def mean_of_all_pairs(params: Params, buffers: Params, x: Tensor, y: Tensor) -> Tensor:
        total, pairs = torch.zeros_like(x.sum()), torch.zeros_like(y.sum())
        for xb, yb in zip(x.split(batch_size), y.split(batch_size), strict=True):
            there = yb >= 0
            # Every image with every label of its batch, as the notebook has it.
            log_p = networks.logits(params, buffers, xb).log_softmax(1)[:, yb.clamp(min=0)]
            both = there[:, None] & there
            total, pairs = total + torch.where(both, log_p, 0).sum(), pairs + both.sum()
        return total / pairs

    part = slice(0, 2 * batch_size)
    found = _gradient(networks, mean_of_all_pairs, task.inputs(part), task.y[:, part])
    return {k: g.square() for k, g in found.items()}


def _gradient(networks: Networks, value: Callable[..., Tensor], x: Tensor, y: Tensor) -> Params:
    """Gradients (R, ...) of a value of one run: of its parameters, buffers, inputs and labels."""
    wanted, shared = networks.trainable, len(x) < networks.runs

    def one(params: Params, buffers: Params, x: Tensor, y: Tensor) -> Params:
        def of(own: Params) -> Tensor:
            return value({**params, **own}, buffers, x, y)

        own = {k: p for k, p in params.items() if k in wanted}
        if networks.runs > 1:
            return dict(grad(of)(own))
        # Without `torch.func`, whose own cost a stack of one does not spread.
        leaves = {k: p.detach().requires_grad_() for k, p in own.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(of(leaves), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    dims = (0, 0, None if shared else 0, 0)
    result: Params = lift(one, networks.runs, dims)(networks.params, networks.buffers, x[0] if shared else x, y)
    return result


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


def check(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    estimator: str,
    samples: int,
    batch_size: int | None = None,
    known: tuple[str, ...] = ESTIMATORS,
) -> None:
    """Refuse arguments of `diagonal` that make no sense together.

    Args:
        model: as there, like the others.
        x: inputs.
        y: labels.
        estimator: name.
        samples: labels drawn a sample.
        batch_size: samples a batch, or None.
        known: names of the estimators there are.

    Raises:
        ValueError: with what was expected and what came.
    """
    if estimator not in known:
        raise ValueError(f"estimator: expected one of {', '.join(known)}, got {estimator!r}")
    if len(x) == 0:
        raise ValueError("x: expected at least one sample, got none")
    if y is None and estimator not in {"exact", "sampled"}:
        raise ValueError(f"y: estimator {estimator!r} needs the data set's labels, got None")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    check_samples_apart(model)
    if y is not None:
        _check_labels(model, x, y)


@torch.no_grad()
def _check_labels(model: nn.Module, x: Tensor, y: Tensor) -> None:
    if y.shape != (len(x),):
        raise ValueError(f"y: expected shape ({len(x)},), one label a sample, got {tuple(y.shape)}")
    if y.dtype != torch.int64:
        raise ValueError(f"y: expected int64, got {str(y.dtype).removeprefix('torch.')}")
    with evaluating(model):
        classes = model(x[:1]).shape[-1]
    low, high = int(y.min()), int(y.max())
    # Within a stack, -1 stands for no sample.
    if low < 0 or high >= classes:
        raise ValueError(f"y: expected labels from 0 to {classes - 1}, as the model has outputs, got {low} to {high}")
