"""Whose error it is: the memory's, or that of a strategy of the user's own, which then goes by its name."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import torch

from benchmark.executors import Cancelled
from benchmark.runs import Run
from strategies import registry


@contextmanager
def blamed(run: Run) -> Generator[None, None, None]:
    """Around calls of a strategy of the user's own: what it raises is its error, not ours, and says so.

    Raises:
        ValueError: whatever it raised, with its name; the traceback has the rest.
        Exception: what built-in strategies raise, what says enough already, and what no strategy is to blame for.
    """
    try:
        yield
    except Exception as error:
        named = isinstance(error, ValueError) and str(error).startswith("strategy ")
        blameless = named or isinstance(error, Cancelled) or out_of_memory(error)
        if blameless or not registry.fingerprint(type(run.strategy)):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"strategy {run.strategy_name!r}: {kind}{error}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the device's memory, or the machine's, that ran out; PyTorch says the latter in words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"can't allocate memory|not enough memory", str(error)))
