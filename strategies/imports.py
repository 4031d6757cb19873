"""What a user names as `package.module:attribute`: a strategy, a network or an image set of their own."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any


def attribute(path: str, what: str) -> Any:
    """What an import path names.

    Args:
        path: `package.module:attribute`.
        what: the user means by it, for the message.

    Raises:
        ValueError: it cannot be imported, with what the module raised.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's own module raises
        raise ValueError(f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}") from error


def source(module: str) -> str:
    """The text of an imported module, by which its results are told from an earlier version's; empty if it has none."""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return ""
