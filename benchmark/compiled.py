"""A recorded step as a few kernels made for it, by PyTorch's compiler.

Replayed, each operation goes over its tensors by itself: the gradient of a quadratic penalty and Adam read and write
eighteen tensors of the parameters' size between them. Compiled, they are one loop, which reads six and writes three.
The arithmetic is the same but for the order of sums, so results differ by what rounding does.

It takes seconds, once a process for all steps that do the same with tensors of the same shapes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from benchmark.errors import Explained
from benchmark.memory import out_of_memory
from benchmark.unfused import spell_out
from strategies.products import LINEAR

ATEN = torch.ops.aten

Kernel = Callable[..., Sequence[Tensor]]

_KERNELS: dict[object, Kernel] = {}
_LOCK = threading.Lock()
# A product by oneDNN as `strategies.products` asks for it, closed to a compiler that wants weights constant.
_OPERATIONS = torch.library.Library("forgetbench", "FRAGMENT")
_OPERATIONS.define("linear(Tensor x, Tensor weight) -> Tensor")
_OPERATIONS.impl("linear", lambda x, weight: LINEAR(x, weight, None, "none", [], ""), "CPU")
_OPERATIONS.impl("linear", lambda x, weight: x.new_empty(*x.shape[:-1], weight.shape[0]), "Meta")


class CompileError(Explained):
    """The compiler, or what it needs, is missing or failed."""


def compiled(graph: fx.Graph, constants: dict[str, Tensor], inputs: Sequence[Tensor]) -> Kernel:
    """The function that a graph describes, compiled.

    Args:
        graph: of a step; its placeholders are others at each call, its attributes stay where they are in memory.
        constants: the attributes by name.
        inputs: placeholders of the recorded call, for their shapes.

    Raises:
        CompileError: it could not be compiled.
        ValueError: the step has an optimiser that is none of a recipe's.
    """
    graph, constants = _copied(graph), dict(constants)
    prepare = spell_out(graph, constants)
    for node in graph.nodes:
        if node.target is ATEN.bmm.out:  # the compiler knows no memory to put a product into, but copies
            node.target, node.args, node.kwargs = _product_into, (node.kwargs["out"], *node.args), {}
        elif node.op == "call_function" and node.target is LINEAR:
            node.target, node.args = torch.ops.forgetbench.linear.default, node.args[:2]
    given, like = _arguments(graph, constants), [torch.empty_like(t) for t in inputs]
    kernel, strides = _kernel(graph, [*given, *like]), [t.stride() for t in like]

    def call(*args: Tensor) -> Sequence[Tensor]:
        prepare()
        return kernel(*given, *map(_laid_out, args, strides))

    return call


def _kernel(graph: fx.Graph, tensors: list[Tensor]) -> Kernel:
    # The number of threads is written into the loops.
    key = graph.python_code("self").src, _described(tensors), torch.get_num_threads()
    with _LOCK, torch.no_grad():
        if key not in _KERNELS:
            # It warns where there is CUDA's compiler but no GPU, which our user need not hear of.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            from torch import _inductor

            # A wrapper in C++ gives the interpreter free for other stacks: kernels called from Python keep it. On a GPU
            # kernels are chosen by the clock unless told not to, and would add in another order the next time.
            on_cpu = all(t.device.type == "cpu" for t in tensors)
            options = {"cpp_wrapper": True} if on_cpu else {"deterministic": True}
            try:
                _KERNELS[key] = _inductor.compile(fx.GraphModule({}, graph), [*tensors], options=options)
            except Exception as error:  # of many kinds, and whatever it is there is one way out
                if out_of_memory(error):
                    raise
                raise CompileError(
                    f"train.compile: PyTorch's compiler could not compile a step: {_gist(error)}. It needs a C++ "
                    "compiler such as g++ with Python's headers, and Triton on a GPU; or leave compile out"
                ) from error
        return _KERNELS[key]


def _gist(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "fatal error" in line), lines[0]).strip()


def _described(tensors: list[Tensor]) -> tuple[Any, ...]:
    """What a kernel depends on: layouts, and which tensors lie in the same memory."""
    memory: dict[int, int] = {}
    return tuple(
        (
            t.dtype,
            t.device,
            t.shape,
            t.stride(),
            t.storage_offset(),
            memory.setdefault(t.untyped_storage().data_ptr(), i),
        )
        for i, t in enumerate(tensors)
    )


def _copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _arguments(graph: fx.Graph, constants: dict[str, Tensor]) -> list[Tensor]:
    """Make attributes placeholders, before those that are there; returns what to put there.

    Those that lie in the memory of another become views of it: to sort that out at each call takes as long as a kernel.
    """
    whole = {_memory(t): name for name, t in constants.items() if _fills_its_memory(t)}
    first, made = next(iter(graph.nodes)), dict[str, fx.Node]()

    def argument(name: str) -> fx.Node:
        if name not in made:
            with graph.inserting_before(first):
                made[name] = graph.placeholder(name)
        return made[name]

    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        t, base = constants[name], whole.get(_memory(constants[name]), name)
        new = argument(base)
        if base != name:
            with graph.inserting_before(node):
                new = graph.call_function(ATEN.as_strided.default, (new, t.shape, t.stride(), t.storage_offset()))
        node.replace_all_uses_with(new)
        if node is first:
            first = node.next
        graph.erase_node(node)
    return [constants[name] for name in made]


def _memory(t: Tensor) -> tuple[int, torch.dtype]:
    return t.untyped_storage().data_ptr(), t.dtype


def _fills_its_memory(t: Tensor) -> bool:
    return t.is_contiguous() and t.numel() * t.itemsize == t.untyped_storage().nbytes() > 0


def _laid_out(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A tensor as a kernel takes it for granted: what comes out of a step, or is a copy, may lie in another order."""
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def _product_into(memory: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return memory.copy_(torch.bmm(a, b))
