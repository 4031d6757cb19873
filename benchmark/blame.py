"""Whose error it is: that of a strategy of the user's own goes by its name."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmark.errors import Explained
from benchmark.executors import Cancelled
from benchmark.memory import out_of_memory
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
        blameless = named or isinstance(error, Cancelled | Explained) or out_of_memory(error)
        if blameless or not registry.fingerprint(type(run.strategy)):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"strategy {run.strategy_name!r}: {kind}{error}{_where(run, error)}") from error


def _where(run: Run, error: Exception) -> str:
    """` (mine.py, line 12)`: the last line of the strategy's own file on the way to an error."""
    file = getattr(sys.modules.get(type(run.strategy).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
