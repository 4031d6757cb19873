"""Whether networks can be trained as one stack of runs, found by trying; if not, why not.

What a stack asks of a network:

- the same seed makes the same network;
- what it learns is floating-point parameters, what else it remembers is buffers, written in place;
- one call under `torch.func.vmap` does what each network would do alone, in train and eval mode, gradients included;
- in eval mode no sample's logits depend on the others in its batch, whose size depends on the stack's.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.parameter import is_lazy

from benchmark.keys import generator
from strategies.base import Params

SAMPLES = 4  # BatchNorm wants more than one
TOLERANCE = 1e-9  # in float64

_SHARED = "it writes in place into a tensor that the runs share: use a buffer, or make a new tensor"
# What torch says, and what it means for whoever wrote the network.
_MEANINGS = {
    "random operation": "it draws random numbers, so that a run's result would depend on its neighbours in the stack",
    ".item()": "it makes a Python number of a tensor, which has a value a run (BatchNorm does so if momentum is None)",
    "data-dependent control flow": "it branches on a tensor, which has a value a run: use torch.where",
    "broadcast shape": _SHARED,
    "inplace": _SHARED,
    "the same class": "its class is another one at each call: define the class at module level",
    "does not require grad": "its logits do not depend on its parameters, or are detached from them",
}
_LIKELY = {
    "logits": "it uses something that is neither parameter nor buffer, such as a tensor in a plain attribute",
    "gradient": "some operation is differentiated wrongly under torch.func.vmap",
    "buffer": "buffers are to be written in place, as in `self.mean.mul_(0.9).add_(0.1 * mean)`",
}


class Unstackable(Exception):
    """The reason why a network cannot be trained in a stack."""


def check(first: nn.Module, second: nn.Module, again: nn.Module, shape: tuple[int, ...], outputs: int) -> None:
    """Refuse networks that cannot be stacked. Converts them to float64 and changes their buffers.

    Args:
        first: a network.
        second: of another seed.
        again: of the first one's seed.
        shape: of one input.
        outputs: number of logits.

    Raises:
        Unstackable: with the reason.
    """
    _check_tensors(first)
    _check_made_anew(first, again)
    networks, base = [first.double(), second.double()], again.double()
    x = torch.rand(2, SAMPLES, *shape, dtype=torch.float64, generator=generator("stackable"))
    for training in (True, False):
        for network in (*networks, base):
            network.train(training)
        _check_stack(networks, base, x, outputs)
    _check_samples_are_apart(first, x[0])


def said(error: Exception) -> str:
    """The first line of an error, with its type unless it was raised to be read."""
    text = str(error).split("\n")[0]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _check_tensors(network: nn.Module) -> None:
    """Refuse parameters that cannot be trained, or would be against their will."""
    parameters = dict(network.named_parameters())
    _expect(len(parameters) > 0, "it has no parameters")
    for name, tensor in _tensors(network).items():
        _expect(not is_lazy(tensor), f"{name!r} is lazy: give its layer all sizes")
    for name, p in parameters.items():
        _expect(p.is_floating_point(), f"parameter {name!r}: expected floating point, got {p.dtype}")
        _expect(p.requires_grad, f"parameter {name!r} requires no gradient, but all parameters train: use a buffer")


def _check_made_anew(first: nn.Module, again: nn.Module) -> None:
    """Refuse networks of one seed that differ, or that share tensors."""
    a, b = _tensors(first), _tensors(again)
    alike = a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    _expect(alike, "two networks of one seed differ: draw initial values from torch's global generator alone")
    for name in a:
        _expect(a[name] is not b[name], f"two networks share {name!r}: make new tensors at every call")


def _check_stack(networks: list[nn.Module], base: nn.Module, x: Tensor, outputs: int) -> None:
    """Refuse networks that compute something else in a stack than each alone.

    Args:
        networks: one a run, all in train mode or all in eval mode.
        base: of the same structure and mode, with values that must not matter.
        x: inputs, shape (R, B, *shape); in eval mode all runs take the first ones.
        outputs: number of logits.
    """
    mode = _mode(base)
    with _explained(base, "stacked"):
        params, buffers = stack_module_state(networks)
    alone = [_alone(network, x[i if base.training else 0], outputs) for i, network in enumerate(networks)]
    with _explained(base, f"stacked in {mode} mode"):
        after = {k: b.clone() for k, b in buffers.items()}
        stacked = _left(_stacked(base, params, after, x), params, after)
        before = _attributes(base)
        repeated = _stacked(base, params, {k: b.clone() for k, b in buffers.items()}, x)
    for name, (value, size) in _attributes(base).items():
        kept = name in before and before[name][0] is value and before[name][1] == size
        _expect(kept, f"it keeps state in {name!r}, which the runs of a stack would share: use a buffer")
    pure = _same(stacked["logits"], repeated)
    _expect(pure, f"in {mode} mode, the same call twice gives different logits")
    for what, values in stacked.items():
        equal = all(_same(value, own[what]) for value, own in zip(values, alone, strict=True))
        _expect(equal, f"in {mode} mode, {what} in a stack and alone differ: {_LIKELY[what.split()[0]]}")
    for name, buffer in buffers.items():
        still = base.training or _same(buffer, stacked[f"buffer {name!r}"])
        _expect(still, f"it changes buffer {name!r} in eval mode")


def _stacked(base: nn.Module, params: Params, buffers: Params, x: Tensor) -> Tensor:
    """Logits of all runs, shape (R, B, outputs); buffers are written to."""

    def call(params: Params, buffers: Params, xs: Tensor) -> Tensor:
        logits: Tensor = functional_call(base, (params, buffers), (xs,))
        return logits

    lifted = vmap(call, in_dims=(0, 0, 0 if base.training else None), randomness="error")
    logits: Tensor = lifted(params, buffers, x if base.training else x[0])
    return logits


def _alone(network: nn.Module, x: Tensor, outputs: int) -> Params:
    """Logits, gradients and buffers after one call of a network as an ordinary module."""
    shape, given = tuple(x.shape), x.clone()
    with _explained(network, f"called with inputs of shape {shape} in {_mode(network)} mode"):
        logits = network(given)
    expected = (len(x), outputs)
    got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    _expect(got == expected, f"expected logits of shape {expected} for inputs of shape {shape}, got {got}")
    # The version counts writes, those too that happen to change nothing here.
    _expect(given._version == 0, "it writes into its inputs, which are not its own")
    with _explained(network, "differentiated"):
        return _left(logits, dict(network.named_parameters()), dict(network.named_buffers()))


def _left(logits: Tensor, params: Params, buffers: Params) -> Params:
    """Logits, gradients and buffers by what they are."""
    gradients = torch.autograd.grad(logits.square().sum(), list(params.values()), materialize_grads=True)
    return {
        "logits": logits.detach(),
        **{f"gradient of {k!r}": g for k, g in zip(params, gradients, strict=True)},
        **{f"buffer {k!r}": b.detach() for k, b in buffers.items()},
    }


def _check_samples_are_apart(network: nn.Module, x: Tensor) -> None:
    """Refuse a network in eval mode whose logits of a sample depend on its batch."""
    with _explained(network, "called with one sample in eval mode"), torch.no_grad():
        alone, among = network(x[:1].clone()), network(x.clone())[:1]
    _expect(_same(alone, among), "in eval mode, a sample's logits depend on the other samples of its batch")


def _expect(condition: bool, reason: str) -> None:
    """Refuse for a reason.

    Args:
        condition: what must hold.
        reason: what else is the case.

    Raises:
        Unstackable: it does not hold.
    """
    if not condition:
        raise Unstackable(reason)


def _mode(network: nn.Module) -> str:
    return "train" if network.training else "eval"


def _tensors(network: nn.Module) -> Params:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _attributes(network: nn.Module) -> dict[str, tuple[Any, int]]:
    """Every Python attribute of every layer, and how much it holds."""
    return {
        f"{layer}.{name}".removeprefix("."): (value, len(value) if isinstance(value, list | dict | set) else 0)
        for layer, module in network.named_modules()
        for name, value in vars(module).items()
    }


@contextmanager
def _explained(network: nn.Module, when: str) -> Generator[None, None, None]:
    """Turns whatever is raised into a reason, with the innermost layer at work.

    Args:
        network: whose layers to name.
        when: what was being done.

    Raises:
        Unstackable: in place of what was raised.
    """
    try:
        yield
    except Exception as error:
        meaning = next((m for sign, m in _MEANINGS.items() if sign in str(error)), said(error))
        raise Unstackable(f"{when}{_at_work(network, error)}: {meaning}") from error


def _at_work(network: nn.Module, error: Exception) -> str:
    """`, layer '3' (Dropout)`: the innermost layer of a network in whose method an error was raised, or nothing."""
    names = {id(module): name for name, module in network.named_modules()}
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [caller for caller in callers if names.get(id(caller))]
    return f", layer {names[id(layers[-1])]!r} ({type(layers[-1]).__name__})" if layers else ""
