"""Strategies by name: built-in, from the entry-point group `forgetbench.strategies`, or as `package.module:Class`."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points

from strategies import imports
from strategies.agem import AGEM
from strategies.base import Strategy
from strategies.derpp import DERpp
from strategies.er import ER
from strategies.ewc import EWC
from strategies.ewc_kfac import EWCKfac
from strategies.frozen import Frozen
from strategies.joint import Joint
from strategies.l2 import L2
from strategies.lwf import LwF
from strategies.mas import MAS
from strategies.naive import Naive
from strategies.rwalk import RWalk
from strategies.si import SI

GROUP = "forgetbench.strategies"
_CLASSES = (Naive, Joint, Frozen, L2, EWC, EWCKfac, SI, MAS, RWalk, LwF, ER, DERpp, AGEM)
BUILT_IN: dict[str, type[Strategy]] = {cls.name: cls for cls in _CLASSES}


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'ewc'?` for the nearest known name, or nothing: what every error about a name ends with."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def names() -> list[str]:
    """Every registered name: the built-in strategies first, then those of installed packages."""
    return [*BUILT_IN, *sorted({e.name for e in entry_points(group=GROUP)} - BUILT_IN.keys())]


def get(name: str) -> type[Strategy]:
    """The strategy class of that name.

    Args:
        name: a registered name, or `package.module:Class`.

    Raises:
        ValueError: no such strategy, or what was imported is not one.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" in name:
        return _checked(name, imports.attribute(name, "strategy"))
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return _checked(name, imports.attribute(entry.value, "strategy"))
    raise ValueError(f"unknown strategy {name!r}{did_you_mean(name, names())} (forgetbench list strategies)")


@functools.cache
def about(name: str) -> dict[str, str]:
    """What a strategy does, and what its λ means, in a line each; what cannot be found out is left out.

    A name may come from a table of results, so nothing is imported for it.

    Args:
        name: as for `get`.

    Returns:
        `what`: the docstring's first line, and `lam`: the declaration of the hyperparameter of that name; empty where
        the strategy has not been imported.
    """
    registered = {entry.name: entry.value for entry in entry_points(group=GROUP)} if name not in BUILT_IN else {}
    module, _, attribute = registered.get(name, name).partition(":")
    cls = BUILT_IN.get(name) or getattr(sys.modules.get(module), attribute or "-", None)
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        return {}
    lam = [f.metadata.get("doc", "") for f in dataclasses.fields(cls) if f.name == "lam"]
    found = {"what": (cls.__doc__ or "").strip().split("\n")[0], "lam": "".join(lam)}
    return {k: v for k, v in found.items() if v}


def fingerprint(cls: type[Strategy]) -> str:
    """The source of a strategy of the user's own, by which its results are told from those of an earlier version.

    See `imports.sources`. Empty for built-in strategies: `benchmark.runs.NUMERICS` speaks for them.
    """
    return "" if cls in BUILT_IN.values() else "\n".join(imports.sources(cls.__module__))


def _checked(name: str, cls: object) -> type[Strategy]:
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise ValueError(f"strategy {name!r}: expected a subclass of strategies.Strategy, got {cls!r}")
    undeclared = [k for k, v in vars(cls).items() if isinstance(v, dataclasses.Field)]
    if undeclared:
        raise ValueError(
            f"strategy {name!r}: {undeclared[0]!r} is no field of it; write @dataclass(frozen=True) over {cls.__name__}"
        )
    return cls
