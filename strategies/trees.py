"""Tensors in nested dictionaries and tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def tree_map(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `fn` to every tensor of nested dictionaries and tuples."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        return {k: tree_map(fn, v) for k, v in tree.items()}
    parts = [tree_map(fn, v) for v in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def leaves(tree: Any) -> list[Tensor]:
    """Every tensor of a tree, in order."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found


def regrown(tree: Any, values: Iterable[Tensor]) -> Any:
    """A tree like this one with other tensors, given in the order of `leaves`."""
    each = iter(values)
    return tree_map(lambda _: next(each), tree)
