"""PyTorch's fused optimisers spelled out in a recorded step, so that a compiler can merge them with what is around.

References:
    Kingma and Ba 2015, Adam, https://arxiv.org/abs/1412.6980.
    Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
FUSED = {ATEN._fused_adam_.default, ATEN._fused_adamw_.default, ATEN._fused_sgd_.default}
UNKNOWN = ("amsgrad", "maximize", "nesterov", "dampening")
RATES = "rates"


def spell_out(graph: fx.Graph, constants: dict[str, Tensor]) -> Callable[[], None]:
    """Replace the optimiser of a recorded step, in place.

    Args:
        graph: of the step.
        constants: its attributes by name. One may join them: what of Adam's rates changes with the number of steps.

    Returns:
        What to call before each step, which sets these rates.

    Raises:
        ValueError: it has several optimisers, or one with options that no recipe has.
    """
    prepare, found = _nothing, [node for node in graph.nodes if node.target in FUSED]
    if len(found) > 1 or any(node.kwargs.get(option) for node in found for option in UNKNOWN):
        raise ValueError(
            f"train.compile: expected one optimiser a step, without {', '.join(UNKNOWN)}; got "
            f"{'; '.join(str(node.target) for node in found)}"
        )
    for node in found:
        args: Any = node.args
        grads = [_before_flattened(g) for g in args[1]]
        with graph.inserting_before(node):
            if node.target is ATEN._fused_sgd_.default:
                params, buffers = (_shaped_like(grads, flat, graph, constants) for flat in (args[0], args[2]))
                options = {k: node.kwargs[k] for k in ("lr", "momentum", "weight_decay")}
                graph.call_function(sgd, (params, grads, buffers), options)
            else:
                decoupled = node.target is ATEN._fused_adamw_.default
                options = {k: node.kwargs[k] for k in ("beta1", "beta2", "eps")}
                options |= {"decay": 0.0 if decoupled else node.kwargs["weight_decay"], "decoupled": decoupled}
                # All parameters have taken as many steps.
                step, dtype = constants[args[5][0].target], constants[args[0][0].target].dtype
                prepare, constants[RATES] = _rates(step, dtype, node.kwargs)
                params, firsts, seconds = (
                    _shaped_like(grads, flat, graph, constants) for flat in (args[0], *args[2:4])
                )
                graph.call_function(adam, (params, grads, firsts, seconds, graph.get_attr(RATES)), options)
        graph.erase_node(node)
    return prepare


def _nothing() -> None: ...


def _before_flattened(grad: fx.Node) -> fx.Node:
    flattened = grad.target is ATEN.view.default and grad.args[1] == [-1]
    return grad.all_input_nodes[0] if flattened else grad


def _shaped_like(
    grads: list[fx.Node], flat: list[fx.Node], graph: fx.Graph, constants: dict[str, Tensor]
) -> list[fx.Node]:
    """The optimiser's tensors in the shapes of gradients: then a penalty's gradient and the update are one loop."""
    names = [f"shaped_{node.target}" for node in flat]
    for name, node, grad in zip(names, flat, grads, strict=False):  # there may be no buffers
        constants[name] = constants[str(node.target)].view(grad.meta["shape"])
    return [graph.get_attr(name) for name in names]


def _rates(step: Tensor, dtype: torch.dtype, options: Any) -> tuple[Callable[[], None], Tensor]:
    """What sets Adam's rates for the step to come, and where: a compiler would find them for every few parameters.

    Args:
        step: how many were taken.
        dtype: of the parameters.
        options: of PyTorch's operation.
    """
    rates = torch.empty(3, dtype=dtype, device=step.device)

    def doubles(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=step.device)

    factor = doubles(options["lr"], 1.0, 1 - options["lr"] * options["weight_decay"])
    beta, power = doubles(options["beta1"], options["beta2"], 0.0), doubles(1.0, 0.5, 1.0)

    def prepare() -> None:
        torch.div(factor, (1 - beta ** (step + 1)) ** power, out=rates)

    return prepare, rates


def adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    rates: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    decoupled: bool,
) -> None:
    """One step of Adam, in place.

    Args:
        params: parameters.
        grads: gradients.
        firsts: moments of the gradients.
        seconds: moments of their squares.
        rates: shape (3,): the learning rate over 1 − β₁ᵗ, one over the root of 1 − β₂ᵗ, and what weights decay by.
        beta1: of the first moments.
        beta2: of the second.
        eps: added to the root of the second moment.
        decay: times the parameter, added to its gradient.
        decoupled: multiply parameters with the third of the rates.
    """
    for p, g, m, v in zip(params, grads, firsts, seconds, strict=True):
        if decoupled:
            p.mul_(rates[2])
        elif decay:
            g = g + decay * p
        m.copy_(beta1 * m + (1 - beta1) * g)
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        p.sub_(rates[0] * m / (v.sqrt() * rates[1] + eps))


def sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of stochastic gradient descent, in place, and not the first where there is momentum.

    Args:
        params: parameters.
        grads: gradients.
        buffers: of momentum; none without.
        lr: learning rate.
        momentum: what is left of the buffers.
        weight_decay: times the parameter, added to its gradient.
    """
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        if weight_decay:
            g = g + weight_decay * p
        if buffers:
            g = buffers[i].mul_(momentum).add_(g)
        p.sub_(lr * g)
