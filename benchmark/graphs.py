"""A recorded step on an accelerator: a CUDA graph, which launches all of its kernels at once.

A graph reads and writes fixed memory. So what changes from call to call is copied into tensors of its own first, and
what it returns lies where the next call puts its results.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmark.memory import out_of_memory
from strategies.trees import leaves, regrown, tree_map

Launch = Callable[[], Any]
"""Does again what was captured, in the same memory; returns the same tensors each time."""


def cuda_graph(work: Callable[[], Any], device: torch.device) -> Launch:
    """Capture work on a GPU; nothing is computed yet.

    Args:
        work: reads and writes tensors that stay where they are.
        device: where they are.

    Raises:
        RuntimeError: it asks for something that a graph cannot hold, such as a value on the host.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads write results meanwhile, and may ask the driver for something harmless.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()

    def launch() -> Any:
        graph.replay()
        return result

    return launch


Capture = Callable[[Callable[[], Any], torch.device], Launch]
CAPTURES: dict[str, Capture] = {"cuda": cuda_graph}
"""How work is captured, by type of device; elsewhere it is not."""


def captured(step: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """The same function, captured where the device can; what it returns is overwritten by the next call.

    Args:
        step: takes and returns tensors, or dictionaries and tuples of them, and looks at no values.
        args: of the first call to come, for their shapes; nothing is computed with them yet.

    Raises:
        Exception: memory ran out.
    """
    given = leaves(args)
    if not given or (capture := CAPTURES.get(given[0].device.type)) is None:
        return step
    own = [t.clone() for t in given]
    memory = {t.untyped_storage().data_ptr() for t in own}

    def apart(t: Tensor) -> Tensor:
        # A state that a step only reads comes back as it went in, and need not be copied. What else lies in the same
        # memory, a part of a state say, must: it will be copied into that memory by the next call.
        same = any(t is mine for mine in own)
        return t.clone() if not same and t.untyped_storage().data_ptr() in memory else t

    try:
        launch = capture(lambda: tree_map(apart, step(*regrown(args, own))), given[0].device)
    except Exception as error:  # compiled kernels raise their own kinds
        if out_of_memory(error):  # a smaller stack has room for a graph
            raise
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"a training step runs without a CUDA graph, kernel by kernel: {reason}", stacklevel=2)
        return step

    def call(*args: Any) -> Any:
        # Two that change places must both be read before either is written.
        moved = [
            (mine, t.clone() if any(t is other for other in own) else t)
            for mine, t in zip(own, leaves(args), strict=True)
            if t is not mine
        ]
        for mine, t in moved:
            mine.copy_(t, non_blocking=True)
        return launch()

    return call
