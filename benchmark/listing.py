"""What an experiment file can name, as tables for a console that takes no markup."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import get_args

from rich.table import Table

UNSAID = {"angles": "a quarter turn", "labels": "equally many"}
"""Options of scenarios without a value, and what that means."""


def table(what: str) -> Table:
    """One row a thing.

    Args:
        what: strategies, train, scenarios, models, presets, studies or data.
    """
    made: dict[str, Callable[[], Table]] = {
        "strategies": _strategies,
        "train": _train,
        "scenarios": _scenarios,
        "models": _models,
        "presets": lambda: _presets("benchmark"),
        "studies": lambda: _presets("studies"),
        "data": _data,
    }
    return made[what]()


def _new(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def _strategies() -> Table:
    from strategies import registry

    made = _new("strategy", "what it does", "option", "default", "meaning")
    for name in registry.names():
        try:
            cls = registry.get(name)
        except ValueError as error:  # somebody else's package is broken: the others can still be listed
            made.add_row(name, _first_line(str(error)), "", "", "")
            continue
        first = (name, _first_line(cls.__doc__))
        fields = dataclasses.fields(cls)
        for i, f in enumerate(fields):
            made.add_row(*(first if i == 0 else ("", "")), f.name, str(f.default), f.metadata.get("doc", ""))
        if not fields:
            made.add_row(*first)
        made.add_section()
    return made


def _train() -> Table:
    from benchmark.config import EPOCHS, TrainTable
    from benchmark.recipe import Recipe

    made, docs = _new("key of [train]", "default", "what it does", "choices"), attributes(Recipe)
    for name, field in TrainTable.model_fields.items():
        choices = ", ".join(word for word in get_args(field.annotation) if isinstance(word, str))
        default = {"epochs": str(EPOCHS), "iterations": ""}.get(name, str(field.default))
        made.add_row(name, default, docs[name], choices)
    return made


def attributes(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute, on one line.

    Args:
        cls: with a section `Attributes:`.
    """
    listed = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", listed, re.M)}


def _scenarios() -> Table:
    from benchmark import data, scenarios

    made = _new("scenario", "tasks", "options, with their defaults")
    for name, sets in scenarios.SEQUENCES.items():
        made.add_row(name, ", then ".join(sets), "incremental = domain")
    for kind, (what, known) in scenarios.KINDS.items():
        options = ", ".join(f"{k} = {UNSAID.get(k, 'none') if v is None else v}" for k, v in known.items())
        for i, name in enumerate(n for n in scenarios.NAMES if n.startswith(f"{kind}-")):
            made.add_row(name, what if i == 0 else "", options if i == 0 else "")
        made.add_row(f"{kind} with set = ...", "any image set, or one of your own", "")
    made.add_row(
        '["a", "b", ...]', f"any sequence of image sets of one shape: {', '.join(data.NAMES)}", "incremental = domain"
    )
    made.add_row("", "or of your own: a path of an .npz file, or package.module:function", "")
    return made


def _models() -> Table:
    from benchmark import models

    made = _new("model", "network", "options, with their defaults")
    for name, build in models.MODELS.items():
        options = ", ".join(f"{k} = {p.default}" for k, p in models.options(name).items())
        made.add_row(name, _first_line(build.__doc__), options)
    made.add_row("package.module:factory", "any function of (shape, outputs) that returns an nn.Module", "its own")
    return made


def _presets(package: str) -> Table:
    from benchmark import config

    made = _new("preset", "what it is for")
    for name, path in config.presets(package).items():
        comments = [
            line[2:] for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if line.startswith("# ")
        ]
        made.add_row(name, " ".join(comments))
    return made


def _data() -> Table:
    from benchmark import data
    from benchmark.sources import SPECS, sources

    made = _new("image set", "cached", "sources, in order")
    for name in data.NAMES:
        if name in SPECS:
            cached = "yes" if (data.cache_dir() / f"{name}.npz").is_file() else "no"
            made.add_row(name, cached, ", ".join(title for title, _ in sources(SPECS[name])))
        else:
            made.add_row(name, "–", "comes with scikit-learn, needs no network")
    return made
