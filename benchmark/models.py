"""Networks by name, sized from the data."""

from __future__ import annotations

import functools
import inspect
import math
import threading
import types
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import torch
from torch import nn

from benchmark import stackable
from benchmark.keys import digest, generator_seed, short
from benchmark.networks import AtLeast, Cnn, Mlp, MlpBN, ResNet18Small
from strategies import imports
from strategies.registry import did_you_mean

Factory = Callable[..., nn.Module]
"""Shape of one input, number of outputs and keyword options -> a network that makes logits (B, outputs)."""

MODELS: dict[str, Factory] = {"mlp": Mlp, "mlp-bn": MlpBN, "cnn": Cnn, "resnet18-small": ResNet18Small}

_BUILDING = threading.RLock()


class OptionError(ValueError):
    """Everything that is wrong with the options of a model.

    Args:
        lines: one a mistake.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Model:
    """A network by name, with its options; `resolve` makes one and checks it.

    Attributes:
        name: a key of `MODELS`, or `package.module:factory`.
        options: keyword options as given, sorted by name; lists are tuples.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """`mlp[norm=batch,widths=400x400]`: the name and what was given."""
        listed = ",".join(f"{k}={_short(v)}" for k, v in self.options)
        return f"{self.name}[{listed}]" if listed else self.name

    def spec(self) -> dict[str, Any]:
        """What determines the network, for run keys: for a factory of the user's own also its source."""
        return {"name": self.name, "options": dict(self.options), "code": self.version}

    @property
    def version(self) -> str:
        """A hash of the source of a factory of the user's own, see `imports.sources`; empty for built-in models."""
        return _fingerprint(self.name)

    def build(self, shape: tuple[int, ...], outputs: int, *, seed: int) -> nn.Module:
        """A freshly initialised network, the same for every strategy and device.

        Args:
            shape: of one input: (channels, height, width), or (features,).
            outputs: number of logits.
            seed: of the run.

        Raises:
            ValueError: the network does not take such inputs, or the factory failed.
        """
        with _drawing():
            torch.manual_seed(generator_seed(seed, "init"))
            try:
                network = _factory(self.name)(shape, outputs, **dict(self.options))
            except Exception as error:  # whatever the user's own factory raises
                raise ValueError(f"model {self.label!r} cannot be built: {stackable.said(error)}") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"model {self.label!r}: expected the factory to return an nn.Module, got {network!r}")
        return network


@contextmanager
def _drawing() -> Generator[None, None, None]:
    """Layers draw from the process's generator, which stacks side by side share: one at a time, then as before."""
    with _BUILDING, torch.random.fork_rng(devices=[]):
        yield


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(_short, value)) or "none"
    return short(value) if isinstance(value, float) else str(value)


@functools.cache
def require_stackable(model: Model, shape: tuple[int, ...], outputs: int) -> None:
    """Refuse a network that cannot be trained as one stack of runs: `benchmark.stackable` says what that takes.

    Args:
        model: to check.
        shape: of one input.
        outputs: number of logits.

    Raises:
        ValueError: with the reason; the layer is named where it can be told.
    """
    with _drawing():
        networks = [model.build(shape, outputs, seed=seed) for seed in (0, 1, 0)]
        try:
            stackable.check(networks[0], networks[1], networks[2], shape, outputs)
        except stackable.Unstackable as reason:
            raise ValueError(f"model {model.label!r} cannot be trained in a stack: {reason}") from reason


def resolve(spec: str | dict[str, Any]) -> Model:
    """A model from an experiment file.

    Args:
        spec: a name, or a table of `name` and the model's options.

    Raises:
        ValueError: unknown model.
        OptionError: every unknown or missing option, and every value of another type or out of bounds.
    """
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"name: expected the name of a model, got {name!r} (forgetbench list models)")
    factory, known = _factory(name), options(name)
    given = {key: _frozen(value) for key, value in table.items()}
    fits = {k: v for k, v in given.items() if k in known or any(o.startswith("**") for o in known)}
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    wrong = [
        f"model {name!r}: unknown option {key!r}{did_you_mean(key, known) or f'; {takes}'}"
        for key in given
        if key not in fits
    ]
    for key, value in fits.items():
        kind = _kind(known[key].annotation) if key in known else _ANYTHING
        if not kind.fits(value):
            wrong.append(f"{key}: expected {kind.one}, got {table[key]!r}")
    try:
        inspect.signature(factory).bind((), 1, **fits)
    except TypeError as error:
        wrong.append(f"model {name!r}, called as factory(shape, outputs, **options): {error}")
    if wrong:
        raise OptionError(wrong)
    return Model(name, tuple(sorted(given.items())))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def options(name: str) -> dict[str, inspect.Parameter]:
    """The keyword options of a model, with annotation and default; `**name` stands for any other.

    Args:
        name: a key of `MODELS`, or `package.module:factory`.

    Raises:
        ValueError: no such model.
    """
    factory = _factory(name)
    try:
        signature = inspect.signature(factory, eval_str=True)
    except Exception:  # an annotation that exists for type checkers alone
        signature = inspect.signature(factory)
    after = list(signature.parameters.values())[2:]
    named = {p.name: p for p in after if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    return named | {f"**{p.name}": p for p in after if p.kind is p.VAR_KEYWORD}


def _factory(name: str) -> Factory:
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, MODELS)} (forgetbench list models)")
    factory: Factory = imports.attribute(name, "model")
    if not callable(factory):
        raise ValueError(f"model {name!r}: expected a function or class that makes a network, got {factory!r}")
    return factory


def _fingerprint(name: str) -> str:
    """A hash of the source that a factory comes from; empty for built-in models and where there is none."""
    if name in MODELS:
        return ""
    sources = imports.sources(name.partition(":")[0], getattr(_factory(name), "__module__", ""))
    return digest(sources) if sources else ""


class _Kind(NamedTuple):
    """What an annotation asks of an option's value: in words, for one and for many, and as a test."""

    one: str
    many: str
    fits: Callable[[Any], bool]


def _plain(value: Any) -> bool:
    """Whether a value can be compared, hashed and written as JSON."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


_ANYTHING = _Kind("text, a number, true or false, or a list of these", "values", _plain)
_KINDS: dict[object, _Kind] = {
    int: _Kind("a whole number", "whole numbers", lambda v: type(v) is int),
    float: _Kind("a number", "numbers", lambda v: type(v) in {int, float} and math.isfinite(v)),
    str: _Kind("text", "texts", lambda v: isinstance(v, str)),
    bool: _Kind("true or false", "true or false", lambda v: isinstance(v, bool)),
}


def _kind(annotation: Any) -> _Kind:
    """What an annotation asks; where it is of another sort, the check is the factory's."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, lows = _kind(args[0]), [b.low for b in args[1:] if isinstance(b, AtLeast)]
        if not lows:
            return kind
        low = max(lows)
        return _Kind(f"{kind.one} >= {low}", f"{kind.many} >= {low}", lambda v: kind.fits(v) and v >= low)
    if origin is Literal:
        listed = ", ".join(map(repr, args))
        return _Kind(f"one of {listed}", f"any of {listed}", lambda v: any(type(v) is type(a) and v == a for a in args))
    if origin in {Union, types.UnionType}:
        kinds = [_kind(a) for a in args if a is not type(None)]
        one, many = " or ".join(k.one for k in kinds), " or ".join(k.many for k in kinds)
        return _Kind(one, many, lambda v: any(k.fits(v) for k in kinds))
    if origin in {list, Sequence} or (origin is tuple and args[1:] == (...,)):
        item = _kind(args[0])
        one, many = f"a list of {item.many}", f"lists of {item.many}"
        return _Kind(one, many, lambda v: isinstance(v, tuple) and all(map(item.fits, v)))
    return _KINDS.get(annotation, _ANYTHING)
