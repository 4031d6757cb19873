"""Layers of a model while it is called: what goes into and comes out of them, recorded, or moved by something."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from strategies.base import Params


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

    with _hooked(model, names, record):
        yield calls


@contextmanager
def moved(model: nn.Module, by: Params) -> Generator[Params, None, None]:
    """While it lasts, something is added to the outputs of layers, given by name; yields their inputs, once called."""
    inputs: Params = {}

    def move(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        inputs[name] = args[0]
        return y + by[name]

    with _hooked(model, by, move):
        yield inputs


@contextmanager
def _hooked(model: nn.Module, names: Iterable[str], hook: Callable[..., Tensor]) -> Generator[None, None, None]:
    """A forward hook, which is told the name too, on the named layers."""
    handles = [model.get_submodule(name).register_forward_hook(functools.partial(hook, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
