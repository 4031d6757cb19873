"""Layers of all runs of a stack at once, laid out so that little is copied between them.

Products are those of `products`. `vmap` knows how to do every operation for a stack; for two not the best way:

- Linear: the gradient of a weight (R, O, I) comes out transposed, so that either it or every tensor that it meets must
  be. Here it is δᵀx, which lies in memory as the weight does. Where all runs see the same inputs, one product does.
- BatchNorm: scale and shift are taken apart from the normalisation. But R networks with C channels normalise as one
  with R·C channels does. For that the outputs of the Linear layer before it lie sample by sample, (B, R, O) in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from strategies.products import Dims, by_onednn, product, products


class _Linears(torch.autograd.Function):
    """x wᵀ + b: inputs (R, B, I), weights (R, O, I), biases (R, O) or None -> (R, B, O), sample by sample in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        y = products(x, w.mT, by_row=True)
        return y if b is None else y.add_(b[:, None])

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (of_x, of_w, of_b) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            products(delta, w, by_row=True) if of_x else None,
            products(delta.mT, x) if of_w else None,
            delta.sum(1) if of_b else None,
        )


class _Linear(torch.autograd.Function):
    """`F.linear` of one run, for inputs (B, I)."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = product(x, w.mT)
        return y if b is None else y.add_(b)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (of_x, of_w, of_b) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            product(delta, w) if of_x else None,
            product(delta.mT, x) if of_w else None,
            delta.sum(0) if of_b else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Dims, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, int]:
        of_x, of_w, of_b = in_dims
        if of_w is None or (b is not None and of_b is None):
            return vmap(F.linear, in_dims=in_dims)(x, w, b), 0
        w, b = w.movedim(of_w, 0), b if b is None or of_b is None else b.movedim(of_b, 0)
        if of_x is None:
            y = product(x, w.flatten(0, 1).mT).unflatten(1, w.shape[:2])
            return (y if b is None else y + b).transpose(0, 1), 0
        return _Linears.apply(x.movedim(of_x, 0), w, b), 0


class _BatchNorm(torch.autograd.Function):
    """`F.batch_norm` of one run; arguments are those, in its order."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        y: Tensor = F.batch_norm(*args)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.how = inputs[5:]

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        (x, mean, var, w, _), (training, _, eps) = ctx.saved_tensors, ctx.how
        of_x, _, _, of_w, of_b, *_ = ctx.needs_input_grad
        dims, column = [d for d in range(x.ndim) if d != 1], (-1,) + (1,) * (x.ndim - 2)
        if training:  # the running statistics have taken these inputs in already
            var, mean = torch.var_mean(x, dims, correction=0)
        rstd = (var + eps).rsqrt().view(column)
        by_x = by_w = None
        if of_x:
            by_x = delta * rstd if w is None else delta * (rstd * w.view(column))
        if training or of_w:
            normal = (x - mean.view(column)) * rstd
            if training and by_x is not None:
                by_x = by_x - by_x.mean(dims, keepdim=True) - normal * (by_x * normal).mean(dims, keepdim=True)
            by_w = (delta * normal).sum(dims) if of_w else None
        by_b = delta.sum(dims) if of_b else None
        return by_x, None, None, by_w, by_b, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        tensors, dims, how = args[:5], in_dims[:5], args[5:]
        if any(t is not None and dim is None for t, dim in zip(tensors, dims, strict=True)):
            return vmap(F.batch_norm, in_dims=in_dims)(*args), 0
        x = args[0].movedim(dims[0], 0)
        small = zip(tensors[1:], dims[1:], strict=True)
        mean, var, w, b = (None if t is None else t.movedim(dim, 0) for t, dim in small)
        mean, var = (None if t is None else t.view(-1) for t in (mean, var))  # not copies: they are written into
        w, b = (None if t is None else t.reshape(-1) for t in (w, b))
        y = F.batch_norm(x.transpose(0, 1).flatten(1, 2), mean, var, w, b, *how)
        return y.unflatten(1, (info.batch_size, -1)).transpose(0, 1), 0


_SIGNATURE = inspect.signature(F.batch_norm)


def _linear_alone(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    large = weight.ndim == 2 and by_onednn(input, weight.mT)
    return _linear(input, weight, bias) if large else F.linear(input, weight, bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.ndim == 1 or weight.ndim == 1:
        return F.linear(input, weight, bias)
    x, w, b = input, weight, bias
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w, b = x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
    y: Tensor = _Linear.apply(x.flatten(0, -2), w, b).unflatten(0, x.shape[:-1])
    return y


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    y: Tensor = _BatchNorm.apply(*given.args)
    return y


Functions = Mapping[Callable[..., Any], Callable[..., Any]]
"""What is called instead, by function."""

ALONE: Functions = {F.linear: _linear_alone}
STACKED: Functions = {F.linear: _linear, F.batch_norm: _batch_norm}


class Layers(TorchFunctionMode):
    """As a context: layers as this module has them, of one run (`ALONE`) or, inside of `vmap`, of all (`STACKED`).

    Args:
        own: which.
    """

    def __init__(self, own: Functions) -> None:
        super().__init__()
        self._own = own

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._own.get(func, func)(*args, **(kwargs or {}))
