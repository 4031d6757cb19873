"""A step of training, recorded once as a list of its operations and replayed without what found them.

To lift a loss over a stack, to differentiate it and to call modules costs the interpreter as much time as a small
network costs arithmetic. All steps of a lesson do the same. So the first one runs plainly, the second is written down
where PyTorch hands operations to the device, below `vmap` and automatic differentiation, and the others follow that
list: the same operations on the same memory, so the same results to the bit. Left out are views that nobody looks at
and views that are what they are of.

The list may be compiled, see `compiled`. On a GPU it is captured as a CUDA graph, see `graphs`.

That asks of a step what the contract asks of strategies anyway: it is a function of tensors whose shapes stay what they
are, it does not branch on their values, and does nothing beside. One that looks at values through `item` or a shape
made of them is never replayed.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from benchmark.compiled import compiled
from benchmark.graphs import captured
from strategies.trees import leaves, regrown, tree_map

ATEN = torch.ops.aten
VALUE, SHAPE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape


def replayed(step: Callable[..., Any], *, compile: bool = False) -> Callable[..., Any]:
    """The same function, faster from its third call on.

    Args:
        step: takes and returns tensors, or dictionaries and tuples of them, of equal shapes at each call. It may read
            and write tensors that it does not take, but these must stay where they are in memory.
        compile: what was recorded, rather than play it back.

    Returns:
        A function whose results may be overwritten by its next call. Its second call raises ValueError for a step that
        was to be compiled but looks at values, and `compiled.CompileError`.
    """
    calls, current = 0, step

    def call(*args: Any) -> Any:
        nonlocal calls, current
        calls += 1
        # The first call makes what is made once: caches, the optimiser's moments.
        if calls != 2:
            # Its first time is none to capture: what libraries make once a thread (plans of convolutions) is made then,
            # and backward passes ran in another thread before.
            if calls == 4 and current is not step:
                current = captured(current, args)
            return current(*args)
        # Tensors of their own: one that comes in twice now, or is known from elsewhere, need not be so next time.
        inputs = [t.detach() for t in leaves(args)]
        with _Recorder(inputs) as recorder:
            result = step(*regrown(args, inputs))
        recorded = recorder.recorded(leaves(result))
        if recorded is None and compile:
            raise ValueError(
                f"train.compile: a training step looks at values of its tensors ({recorder.looked_by}), and kernels "
                "cannot; compute with tensors only, or leave compile out"
            )
        if recorded is not None:
            graph, constants = recorded
            forward = compiled(graph, constants, inputs) if compile else _played(graph, constants)
            current = _regrowing(forward, result)
        return result

    return call


class _Recorder(TorchDispatchMode):
    """Writes down every operation while it is the context.

    Tensors that come from elsewhere are constants, and so are views of constants: these are made once.

    Args:
        inputs: tensors that are others at each call.
    """

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        # Names of tensors, for as long as they live: of what was made or put in, and of constants.
        self._made, self._constant = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.looked_by: Any = None  # the first operation that told Python values
        for i, t in enumerate(inputs):
            self._made[t] = self._graph.placeholder(f"input{i}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and write it down."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.looked_by is None and _reads_values(func, args):
            self.looked_by = func
        if func is ATEN.lift_fresh.default:
            # What the code has as a constant, `torch.tensor(2.0)`, is a new tensor each time: it may be written into.
            func, args = ATEN.clone.default, (args[0].clone(),)
        elif func.namespace == "profiler" or (func.is_view and args[0] not in self._made):
            return result
        elif func.is_view and isinstance(result, Tensor) and _layout(result) == _layout(args[0]):
            self._made[result] = self._made[args[0]]
            return result
        node = self._graph.call_function(func, *self._named((tuple(args), kwargs)))
        if isinstance(result, Tensor):
            self._made[result], node.meta["shape"] = node, result.shape
        elif isinstance(result, tuple | list):
            for i, t in enumerate(result):
                if isinstance(t, Tensor):
                    self._made[t] = self._graph.call_function(operator.getitem, (node, i))
        return result

    def _named(self, values: Any) -> Any:
        return fx.node.map_aggregate(values, lambda v: self._name(v) if isinstance(v, Tensor) else v)

    def _name(self, t: Tensor) -> fx.Node:
        if t in self._made:
            made: fx.Node = self._made[t]
            return made
        if t not in self._constant:
            self._constant[t] = name = f"constant{len(self._constants)}"
            self._constants[name] = t.detach()
        return self._graph.get_attr(self._constant[t])

    def recorded(self, results: list[Tensor]) -> tuple[fx.Graph, dict[str, Tensor]] | None:
        """What was recorded, and the constants it reads by name; None where it would not be the same again.

        Args:
            results: of the recorded call.
        """
        if self.looked_by is not None:
            return None
        self._graph.output(self._named(tuple(results)))
        for node in reversed(self._graph.nodes):
            if not node.users and _only_looks(node):
                self._graph.erase_node(node)
        return self._graph, self._constants


def _played(graph: fx.Graph, constants: dict[str, Tensor]) -> Callable[..., Any]:
    """The function that a graph describes, operation by operation."""
    code = graph.python_code("self")
    exec(code.src, code.globals)
    return functools.partial(code.globals["forward"], SimpleNamespace(**constants))


def _regrowing(forward: Callable[..., Any], result: Any) -> Callable[..., Any]:
    """A function of tensors as one of trees, which returns trees like `result`."""
    shape = tree_map(lambda t: torch.empty(0), result)

    def call(*args: Any) -> Any:
        with torch.no_grad():
            return regrown(shape, forward(*leaves(args)))

    return call


def _reads_values(func: Any, args: Any) -> bool:
    """Whether Python learns something of a tensor's values from an operation, be it how many there are of a kind."""
    if func is ATEN.index.Tensor:
        return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
    # One that reshapes a tensor in place is kept away from too: it would reshape those that go by its name.
    return VALUE in func.tags or SHAPE in func.tags or torch.Tag.inplace_view in func.tags


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.storage_offset(), t.dtype


def _only_looks(node: fx.Node) -> bool:
    """Whether a call does nothing but return a view, or memory that nobody has written into yet."""
    if node.op != "call_function":
        return False
    empty = (ATEN.empty.memory_format, ATEN.new_empty.default, operator.getitem)
    return node.target in empty or bool(getattr(node.target, "is_view", False))
