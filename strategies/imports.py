"""What a user names as `package.module:attribute`: a strategy, a network or an image set of their own."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

OURS = {"strategies", "benchmark", "studies", "reports"}
INSTALLED = {"site-packages", "dist-packages"}


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


def sources(*modules: str) -> list[str]:
    """The texts of imported modules, by which their results are told from those of an earlier version.

    What they import of the user's own counts too, and what that imports: modules of the same package, or from the same
    folder where that is not one for installed packages.

    Args:
        modules: names; those without a text, as of a shell's input, have none here.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _text(name)
            package = getattr(sys.modules.get(name), "__package__", None) or ""
            imported = _imported(found[name], package)
            waiting += [other for other in imported if any(_beside(other, module) for module in modules)]
    return [found[name] for name in sorted(found) if found[name]]


def _text(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return ""


@functools.lru_cache(maxsize=256)
def _imported(text: str, package: str) -> tuple[str, ...]:
    """Names that a module imports, wherever in its text; some may be no modules."""
    found: list[str] = []
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:  # edited since it was imported
        return ()
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            written = "." * node.level + (node.module or "")
            try:
                origin = importlib.util.resolve_name(written, package) if node.level else written
            except ImportError:  # as the module itself found out: it went another way
                continue
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _beside(module: str, other: str) -> bool:
    """Whether a loaded module is of the same package as another, or of the user's own from the same folder."""
    top, own = module.partition(".")[0], other.partition(".")[0]
    if module not in sys.modules or top == own:
        return module in sys.modules
    file, home = getattr(sys.modules[module], "__file__", None), _home(other)
    if top in OURS or not file or not home:
        return False
    return Path(file).is_relative_to(home) and not INSTALLED & {*Path(file).parts}


def _home(module: str) -> Path | None:
    """The folder that a module, or the package it is in, was imported from."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    depth = module.count(".") + hasattr(loaded, "__path__")
    return Path(file).parents[depth] if file and len(Path(file).parents) > depth else None
