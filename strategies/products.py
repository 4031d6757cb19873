"""Products of matrices, by the library that is fastest at them on this processor.

PyTorch leaves products in float32 on x86 to MKL, which has AVX-512 for Intel's processors and AVX2 for others'. From
Zen 5 on AMD's do twice as much at a time with AVX-512, and oneDNN, which comes with PyTorch too, makes use of it: a
product of the sizes that networks here have takes half the time. The sums are the same, in another order.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.func import vmap

Dims = tuple[int | None, ...]
"""Where each argument has its axis of runs; None where all runs share it."""

LINEAR: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
"""The fully connected layer of PyTorch's compiler: without one, its only door to oneDNN's products in float32."""

# Multiplications from which on oneDNN's half of the time is worth a call for each run and the copy of its result.
WORTH_A_CALL = 2**21


@functools.cache
def wider_than_mkl() -> bool:
    """Whether this processor has wider arithmetic than MKL makes use of, and oneDNN is there."""
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    # Zen 4 lacks the last of these, and does AVX-512 in two halves: there MKL is as fast.
    zen5 = str(has.get("cpu_name")).startswith("AMD") and all(has.get(f"avx512_{f}") for f in ("f", "vp2intersect"))
    return zen5 and torch.backends.mkldnn.is_available() and LINEAR is not None


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product ab of one run: (n, k) and (k, m) -> (n, m). It may be differentiated and lifted over runs."""
    y: Tensor = _Product.apply(a, b)
    return y


def products(a: Tensor, b: Tensor, *, by_row: bool = False) -> Tensor:
    """The product ab of each run: (R, n, k) and (R, k, m) -> (R, n, m). It may be differentiated and lifted.

    Args:
        a: left factors.
        b: right factors.
        by_row: the result lies row by row in memory, as (n, R, m).
    """
    y: Tensor = _Products.apply(a, b, by_row)
    return y


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN takes the product of (..., n, k) and (..., k, m), n of one run."""
    work = a.shape[-2:].numel() * b.shape[-1]
    suits = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    return suits and work > WORTH_A_CALL and wider_than_mkl()


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    y: Tensor = LINEAR(a, _dense(b).mT, None, "none", [], "")
    return y


def _dense(t: Tensor) -> Tensor:
    """The same values without gaps in memory, for which oneDNN takes a loop a hundred times as slow."""
    return t.contiguous() if t.stride(-1) == 1 else t.mT.contiguous().mT


class _Product(torch.autograd.Function):
    """See `product`."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _onednn(a, b) if by_onednn(a, b) else a @ b

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), (of_a, of_b) = ctx.saved_tensors, ctx.needs_input_grad
        return product(delta, b.mT) if of_a else None, product(a.mT, delta) if of_b else None

    @staticmethod
    def vmap(info: Any, in_dims: Dims, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        of_a, of_b = in_dims
        if of_a is None:
            return vmap(torch.matmul, in_dims=in_dims)(a, b), 0
        a = a.movedim(of_a, 0)
        if of_b is None:
            return product(a.flatten(0, 1), b).unflatten(0, a.shape[:2]), 0
        return products(a, b.movedim(of_b, 0)), 0


class _Products(torch.autograd.Function):
    """See `products`."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, by_row: bool) -> Tensor:
        (runs, n, _), m = a.shape, b.shape[2]
        if by_onednn(a, b):
            each = [_onednn(*factors) for factors in zip(_dense(a).unbind(), _dense(b).unbind(), strict=True)]
            return torch.stack(each, dim=1).transpose(0, 1) if by_row else torch.stack(each)
        memory = a.new_empty(n, runs, m).transpose(0, 1) if by_row else a.new_empty(runs, n, m)
        return torch.bmm(a, b, out=memory)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), (of_a, of_b, _) = ctx.saved_tensors, ctx.needs_input_grad
        return products(delta, b.mT) if of_a else None, products(a.mT, delta) if of_b else None, None

    @staticmethod
    def vmap(info: Any, in_dims: Dims, a: Tensor, b: Tensor, by_row: bool) -> tuple[Tensor, int]:
        of_a, of_b, _ = in_dims
        if of_a is None or of_b is None:
            return vmap(torch.bmm, in_dims=(of_a, of_b))(a, b), 0
        a, b = a.movedim(of_a, 0), b.movedim(of_b, 0)
        return products(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2]), 0
