"""Experiment files: TOML -> validated objects, every error at once."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import shlex
import tomllib
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from benchmark import models, scenarios
from benchmark.keys import short
from benchmark.models import Model
from benchmark.recipe import Precision, Recipe
from benchmark.results import KNOWN
from benchmark.runs import RESERVED, Run
from benchmark.scenarios import Scenario
from strategies import registry
from strategies.base import Strategy
from strategies.registry import did_you_mean

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


EPOCHS = 4
"""Of each task, where a file says neither epochs nor iterations."""


class ConfigError(ValueError):
    """Everything that is wrong with a file or a command line's overrides.

    Args:
        what: of the file, or the whole message where there is nothing to list.
        errors: one line each, with its path; said once.
    """

    def __init__(self, what: str, errors: Iterable[str] = ()) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        many = f"{len(self.errors)} error{'s' * (len(self.errors) != 1)}"
        listed = [f"{many} in the {what}:", *(f"  {line}" for line in self.errors)]
        super().__init__("\n".join(listed) if self.errors else what)


class TrainTable(BaseModel):
    """The `[train]` table: how every task is trained. A strategy entry may override any key."""

    model_config = STRICT

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-4, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(100, ge=1)
    epochs: int | None = Field(None, ge=1)
    iterations: int | None = Field(None, ge=1)
    batchnorm: Literal["update", "freeze-after-first"] = "update"
    optimizer_state: Literal["reset", "keep"] = "reset"
    precision: Precision = "float32"
    compile: bool = False
    evaluate_every: int = Field(0, ge=0)


TAKEN = frozenset({*TrainTable.model_fields, *RESERVED, *KNOWN, "name"})
"""What no field of a strategy may be called, since it would be taken for something else."""


class ExperimentTable(BaseModel):
    """The whole file, strategies still as written."""

    model_config = STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    scenario: str | list[str] | dict[str, Any]
    model: str | dict[str, Any] = "mlp-bn"
    seeds: tuple[int, ...]
    train: TrainTable = TrainTable(epochs=EPOCHS)
    strategy: list[dict[str, Any]] = Field(min_length=1)

    @field_validator("scenario")
    @classmethod
    def _known_scenario(cls, value: str | list[str] | dict[str, Any]) -> str | list[str] | dict[str, Any]:
        scenarios.resolve(value)
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        models.resolve(value)
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: object) -> tuple[int, ...]:
        seeds = range(value) if isinstance(value, int) and not isinstance(value, bool) else value
        listed = list(seeds) if isinstance(seeds, list | range) else []
        whole = all(type(seed) is int and seed >= 0 for seed in listed)
        if not listed or not whole or len(set(listed)) < len(listed):
            raise ValueError(f"expected a count >= 1 or a list of distinct whole numbers >= 0, got {value!r}")
        return tuple(listed)


@dataclass(frozen=True)
class Entry:
    """One strategy with fixed hyperparameters and its recipe: a row of the result table."""

    label: str
    name: str
    strategy: Strategy
    recipe: Recipe


@dataclass(frozen=True)
class Experiment:
    """A validated experiment.

    Attributes:
        name: of the experiment, its folder and its MLflow experiment.
        scenario: the tasks.
        model: the network.
        seeds: of the runs of each entry.
        entries: the strategies to compare.
        content: the file with its overrides, as parsed.
    """

    name: str
    scenario: Scenario
    model: Model
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    content: dict[str, Any]

    def runs(self) -> list[Run]:
        """Every entry with every seed."""
        return [
            Run(self.scenario, self.model, e.recipe, e.strategy, e.name, e.label, seed)
            for e in self.entries
            for seed in self.seeds
        ]


def presets(package: str = "benchmark") -> dict[str, Path]:
    """Files that come with a package, by name: experiments with benchmark, studies with studies."""
    folder = Path(str(resources.files(package) / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(preset_or_file: str, overrides: Iterable[str] = ()) -> Experiment:
    """Read, override and validate.

    Args:
        preset_or_file: name of a preset, or path of a TOML file.
        overrides: `KEY=VALUE`, the key a dotted path and the value TOML, such as `train.epochs=2`.

    Raises:
        ConfigError: every error in one message, each with its path; or it is a study.
    """
    if preset_or_file in presets("studies").keys() - presets():
        raise ConfigError(_other_command(preset_or_file))
    content = read(preset_or_file, overrides)
    if "study" in content:
        raise ConfigError(_other_command(preset_or_file))
    return parse(content)


def _other_command(preset_or_file: str) -> str:
    return f"{preset_or_file} is a study: forgetbench study {shlex.quote(preset_or_file)}"


def read(preset_or_file: str, overrides: Iterable[str] = (), package: str = "benchmark") -> dict[str, Any]:
    """Read and override, without validating.

    Args:
        preset_or_file: name of a preset, or path of a TOML file.
        overrides: as for `load`.
        package: whose presets.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    content = _read(preset_or_file, package)
    for override in overrides:
        _override(content, override)
    return content


def parse(content: dict[str, Any]) -> Experiment:
    """Validate a parsed file.

    Args:
        content: as `tomllib` gives it.

    Raises:
        ConfigError: every error in one message, each with its path.
    """
    errors: list[str] = []
    table: ExperimentTable | None = None
    try:
        table = ExperimentTable.model_validate(content)
    except ValidationError as error:
        errors += lines(error, (), ExperimentTable)
    train = content.get("train", {"epochs": EPOCHS})
    entries: list[Entry] = []
    written = content.get("strategy")
    for i, entry in enumerate(written if isinstance(written, list) else []):
        if isinstance(entry, dict):
            entries += _entries(f"strategy.{i}", entry, train if isinstance(train, dict) else {}, errors)
    for label in {e.label for e in entries if [o.label for o in entries].count(e.label) > 1}:
        errors.append(f"strategy: {label!r} is there more than once")
    twice: dict[object, str] = {}
    for entry in entries:
        identity = (entry.name, entry.strategy, entry.recipe)
        if twice.setdefault(identity, entry.label) != entry.label:
            errors.append(
                f"strategy: {entry.label!r} is the same as {twice[identity]!r}: one setting, there more than once"
            )
    if errors or table is None:
        raise ConfigError("experiment", errors)
    return Experiment(
        table.name, scenarios.resolve(table.scenario), models.resolve(table.model), table.seeds, tuple(entries), content
    )


def _read(preset_or_file: str, package: str) -> dict[str, Any]:
    path, known = Path(preset_or_file), presets(package)
    if preset_or_file in known:
        path = known[preset_or_file]
    elif not path.is_file():
        hint = did_you_mean(preset_or_file, known)
        listed = "studies" if package == "studies" else "presets"
        raise ConfigError(f"no preset and no file {preset_or_file!r}{hint} (forgetbench list {listed})")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _override(content: dict[str, Any], text: str) -> None:
    """Set one dotted key.

    Args:
        content: changed in place.
        text: `KEY=VALUE`.

    Raises:
        ConfigError: not of that form, or no such place.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r}: expected KEY=VALUE, such as train.epochs=2")
    *parents, last = key.split(".")
    place: Any = content
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = _value(value)
            return
        place[last] = _value(value)
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"override {text!r}: there is no {key!r} in the file") from None
    _drop_alternative(place, last)


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: `seeds=5`, `train.batchnorm=update`."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _drop_alternative(table: dict[str, Any], key: str) -> None:
    """Epochs and iterations exclude each other: the one set last counts."""
    if key in {"epochs", "iterations"}:
        table.pop({"epochs": "iterations", "iterations": "epochs"}[key], None)


def _entries(path: str, written: dict[str, Any], train: dict[str, Any], errors: list[str]) -> list[Entry]:
    """The entries one `[[strategy]]` table stands for: a list of values makes a grid."""
    if not isinstance(written.get("name"), str):
        errors.append(f"{path}.name: expected the name of a strategy (forgetbench list strategies)")
        return []
    try:
        cls = registry.get(written["name"])
    except ValueError as error:
        errors.append(f"{path}.name: {error}{module_hint(written['name'])}")
        return []
    clash = sorted({f.name for f in dataclasses.fields(cls)} & TAKEN)
    if clash:
        errors.append(
            f"{path}.name: {written['name']!r} has a field {clash[0]!r}, which is a key of [train] or a column of the "
            "results; rename it"
        )
        return []
    if {"epochs", "iterations"} <= written.keys():
        errors.append(f"{path}: expected epochs or iterations, got both")
        return []
    options = {k: v if isinstance(v, list) else [v] for k, v in written.items() if k != "name"}
    for key, values in options.items():
        if not values:
            errors.append(f"{path}.{key}: expected at least one value, got an empty list")
    table = _strategy_table(cls)
    found = []
    for combination in itertools.product(*options.values()):
        chosen = dict(zip(options, combination, strict=True))
        own = {k: v for k, v in chosen.items() if k not in TrainTable.model_fields}
        recipe = _recipe(path, train, {k: v for k, v in chosen.items() if k in TrainTable.model_fields}, errors)
        try:
            strategy = cls(**table.model_validate(own).model_dump())
        except ValidationError as error:
            errors += lines(error, (path,), table, TrainTable)
            continue
        except ValueError as error:
            errors.append(f"{path}: {error}")
            continue
        if recipe:
            # What the file says, and λ always.
            always = {"lam": strategy.options()["lam"]} if "lam" in strategy.hyperparameters() else {}
            found.append(Entry(label(written["name"], chosen | always), written["name"], strategy, recipe))
    return found


def module_hint(name: str) -> str:
    """`; ... write 'mine:Class'` where a strategy's unknown name is that of a module, or nothing.

    Args:
        name: that the registry does not know.
    """
    module = name.removesuffix(".py")
    there = module.isidentifier() and importlib.util.find_spec(module) is not None
    return f"; a module {module!r} is there: name its class too, '{module}:Class'" if there else ""


def _recipe(path: str, train: dict[str, Any], own: dict[str, Any], errors: list[str]) -> Recipe | None:
    merged = dict(train)
    for key, value in own.items():
        merged[key] = value
        _drop_alternative(merged, key)
    if merged.get("epochs") is None and merged.get("iterations") is None:
        merged["epochs"] = EPOCHS
    if merged.get("epochs") is not None and merged.get("iterations") is not None:
        errors.append("train: expected epochs or iterations, got both")
        return None
    try:
        return Recipe(**TrainTable.model_validate(merged).model_dump())
    except ValidationError as error:
        # What is wrong in [train] itself is reported once, under its own path.
        errors += [line for line in lines(error, (path,), TrainTable) if line.split(":")[0].split(".")[-1] in own]
        return None


def _strategy_table(cls: type[Strategy]) -> type[BaseModel]:
    """A pydantic model of a strategy's fields, their bounds included."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        low, high = f.metadata.get("low"), f.metadata.get("high")
        bounds = {k: v for k, v in (("ge", low), ("le", high)) if v is not None and abs(v) != float("inf")}
        default = ... if f.default is dataclasses.MISSING else f.default
        fields[f.name] = (hints[f.name], Field(default, **bounds))
    table: type[BaseModel] = create_model(cls.__name__, __config__=STRICT, **fields)
    return table


def label(name: str, shown: dict[str, Any]) -> str:
    """`ewc[estimator=notebook,lam=10000]`.

    Args:
        name: of the strategy.
        shown: what tells it from others, by name.
    """
    listed = ",".join(f"{k}={_short(v)}" for k, v in sorted(shown.items()))
    return f"{name}[{listed}]" if listed else name


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e7:
        return str(int(value))
    return short(value)


def lines(error: ValidationError, prefix: tuple[str, ...], *tables: type[BaseModel]) -> list[str]:
    """One line an error: path, what was expected, what came, the nearest known key."""
    found = []
    for e in error.errors():
        # A union (scenario) reports every alternative it tried; their tags are no part of the file's path.
        loc = [str(part) for part in e["loc"] if part not in {"str", "list[str]", "dict[str,any]"}]
        path = ".".join([*prefix, *loc])
        if e["type"] == "extra_forbidden":
            known = [name for table in ((TrainTable,) if loc[0] == "train" else tables) for name in table.model_fields]
            found.append(f"{path}: unknown key" + (did_you_mean(loc[-1], known) or f"; known: {', '.join(known)}"))
        elif e["type"] == "missing":
            found.append(f"{path}: missing")
        elif e["type"] == "model_type":
            found.append(f"{path}: expected a table, got {e['input']!r}")
        else:
            message = e["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            message = message.replace("String should", "should").replace("List should", "should")
            came = "" if e["type"] == "value_error" else f", got {e['input']!r}"
            several = getattr(e.get("ctx", {}).get("error"), "lines", (message,))
            found += [f"{path}: {each}{came}" for each in several]
    return found
