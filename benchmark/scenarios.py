"""Task sequences by name. One head of `classes` outputs serves every task: all are domain-incremental."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark import data
from benchmark.data import ImageSet
from benchmark.keys import generator
from strategies.registry import did_you_mean

SEQUENCES: dict[str, tuple[str, ...]] = {"mnist-fashion": ("mnist", "fashion-mnist")}
PERMUTED: dict[str, str] = {"permuted-digits": "digits"}
NAMES = (*SEQUENCES, *PERMUTED)


@dataclass(frozen=True)
class Scenario:
    """A named sequence of tasks.

    Attributes:
        name: for people.
        sets: the image set of each task.
        permuted: whether each task after the first shuffles the pixels, by an order of its own drawn per seed.
    """

    name: str
    sets: tuple[str, ...]
    permuted: bool = False

    incremental: ClassVar[str] = "domain"

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.sets)

    def spec(self) -> dict[str, Any]:
        """What determines the tasks, for run keys."""
        spec = asdict(self)
        del spec["name"]
        return spec

    def pixel_order(self, task: int, seed: int, pixels: int) -> Tensor | None:
        """Where each pixel of a task comes from, shape (pixels,); None for the image as it is.

        Args:
            task: numbered from 1.
            seed: of the run.
            pixels: values an image.
        """
        if not self.permuted or task == 1:
            return None
        return torch.randperm(pixels, generator=generator(seed, "pixels", task))


def resolve(spec: str | list[str] | dict[str, Any]) -> Scenario:
    """A scenario from an experiment file.

    Args:
        spec: a name; a list of image sets; or a table of `name` and the scenario's options.

    Raises:
        ValueError: unknown name, set or option, or no task.
    """
    if isinstance(spec, list):
        return _sequence("-".join(spec), tuple(spec))
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = table.pop("name", None)
    sets: object = table.get("sets", [])
    if not isinstance(sets, list) or not all(isinstance(entry, str) for entry in sets):
        raise ValueError(f"sets: expected a list of image sets, got {sets!r}")
    if not isinstance(name, str | type(None)):
        raise ValueError(f"name: expected the name of a scenario, got {name!r}")
    if name is None and "sets" in table:
        return _sequence("-".join(table["sets"]), tuple(table.pop("sets")), table)
    if name in SEQUENCES:
        return _sequence(name, SEQUENCES[name], table)
    if name in PERMUTED:
        return _permuted(name, table)
    raise ValueError(f"unknown scenario {name!r}{did_you_mean(name, NAMES)} (forgetbench list scenarios)")


def _sequence(name: str, sets: tuple[str, ...], rest: dict[str, Any] | None = None) -> Scenario:
    _no_more(name, rest or {}, ())
    if not sets:
        raise ValueError("expected at least one image set, got an empty list")
    for entry in sets:
        if entry not in data.NAMES:
            raise ValueError(f"unknown image set {entry!r}{did_you_mean(entry, data.NAMES)} (forgetbench list data)")
    return Scenario(name, sets)


def _permuted(name: str, options: dict[str, Any]) -> Scenario:
    tasks = options.pop("tasks", 5)
    _no_more(name, options, ("tasks",))
    if not isinstance(tasks, int) or isinstance(tasks, bool) or tasks < 1:
        raise ValueError(f"tasks: expected a whole number >= 1, got {tasks!r}")
    return Scenario(name, (PERMUTED[name],) * tasks, permuted=True)


def _no_more(name: str, rest: dict[str, Any], known: tuple[str, ...]) -> None:
    if rest:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"scenario {name!r}: unknown option {next(iter(rest))!r}; {takes}")


def load(scenario: Scenario, data_dir: Path | None = None, say: data.Say = lambda line: None) -> list[ImageSet]:
    """The image set of each task; a set that serves several tasks is loaded once.

    Args:
        scenario: whose sets to load.
        data_dir: as for `data.load`.
        say: as for `data.load`.

    Raises:
        ValueError: the sets have images of different sizes, which one network cannot take.
    """
    sets = {name: data.load(name, data_dir, say) for name in dict.fromkeys(scenario.sets)}
    shapes = {name: images.shape for name, images in sets.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"scenario {scenario.name!r}: all tasks need images of one shape, got {listed}")
    return [sets[name] for name in scenario.sets]
