"""Task sequences by name: which images, labels, pixels and outputs make up each task of a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark import data, own_data
from benchmark.data import ImageSet
from benchmark.keys import digest, generator, short
from strategies.registry import did_you_mean

Incremental = Literal["task", "domain", "class"]

SEQUENCES: dict[str, tuple[str, ...]] = {"mnist-fashion": ("mnist", "fashion-mnist")}


class Kind(NamedTuple):
    """What `<kind>-<image set>` stands for: in words, and its options with their defaults."""

    what: str
    options: dict[str, Any]


KINDS: dict[str, Kind] = {
    "permuted": Kind(
        "pixels shuffled, by another order each task and seed", {"incremental": "domain", "tasks": 5, "first": "plain"}
    ),
    "rotated": Kind("images turned, further each task", {"incremental": "domain", "tasks": 5, "angles": None}),
    "split": Kind(
        "labels divided among the tasks", {"incremental": "class", "tasks": 5, "labels": None, "class_order": "fixed"}
    ),
}
NAMES = (
    *SEQUENCES,
    *(f"permuted-{images}" for images in ("mnist", "digits")),
    "rotated-mnist",
    *(f"split-{images}" for images in ("mnist", "fashion-mnist", "cifar10", "cifar100", "digits")),
)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) is int and v >= least for v in value)


def _degrees(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) in {int, float} and abs(v) <= 360 for v in value)


OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "incremental": ("task, domain or class", lambda v: v in get_args(Incremental)),
    "tasks": ("a whole number >= 1", lambda v: type(v) is int and v >= 1),
    "first": ("plain or permuted", lambda v: v in ("plain", "permuted")),
    "angles": ("a list of degrees, one a task", _degrees),
    "labels": ("a list of whole numbers >= 1, one a task", lambda v: _whole(v, 1)),
    "class_order": ("fixed, shuffled or a list of all labels", lambda v: v in ("fixed", "shuffled") or _whole(v, 0)),
}
"""What each option may be, in words and as a test."""


@dataclass(frozen=True)
class Heads:
    """Which outputs belong to which task. Tasks of a domain-incremental scenario share all outputs.

    Attributes:
        incremental: type of the scenario.
        blocks: outputs of each task, from the first to the one after the last.
    """

    incremental: Incremental
    blocks: tuple[tuple[int, int], ...]

    @property
    def outputs(self) -> int:
        """Of the network."""
        return max(end for _, end in self.blocks)

    def training(self, task: int) -> Tensor:
        """Outputs that compete for a sample of each task while a task trains, shape (T, C), bool."""
        return torch.stack([self._competing(j, task) for j in range(1, len(self.blocks) + 1)])

    def testing(self, task: int, trained: int) -> Tensor:
        """Outputs that compete for test samples of a task once `trained` tasks were learnt, shape (C,), bool.

        Class-incremental: those of all tasks up to the later of the two, so that a task not yet learnt has a chance.
        """
        return self._competing(task, max(task, trained))

    def told(self, task: int) -> Tensor:
        """Outputs that compete for test samples of a task where it is told which task they are of, shape (C,), bool."""
        return self._outputs([task])

    def earlier(self, task: int) -> Tensor:
        """Groups of outputs that tasks before this one use, shape (G, C), bool; see `strategies.Network.earlier`."""
        if task == 1:
            return torch.zeros(0, self.outputs, dtype=torch.bool)
        if self.incremental == "task":
            return torch.stack([self._outputs([j]) for j in range(1, task)])
        return self._outputs(range(1, task))[None]

    def _competing(self, task: int, trained: int) -> Tensor:
        return self._outputs([task] if self.incremental == "task" else range(1, trained + 1))

    def _outputs(self, tasks: Sequence[int]) -> Tensor:
        mask = torch.zeros(self.outputs, dtype=torch.bool)
        for task in tasks:
            start, end = self.blocks[task - 1]
            mask[start:end] = True
        return mask if self.incremental != "domain" else torch.ones_like(mask)


@dataclass(frozen=True)
class View:
    """A task as one run sees it; None stands for everything as it is.

    Attributes:
        train: which training images of its set belong to it, shape (N,).
        test: which test images, shape (M,); in a scenario with `validation`, which training images it is tested on.
        labels: the output that is right for each label of its set, shape (labels,); -1 for labels of other tasks.
        order: where each pixel comes from, shape (values,).
    """

    train: Tensor | None = None
    test: Tensor | None = None
    labels: Tensor | None = None
    order: Tensor | None = None


@dataclass(frozen=True)
class Scenario:
    """A named sequence of tasks.

    Attributes:
        name: for people.
        sets: the image set of each task.
        incremental: `task`: the task is known when a sample is classified, each has a head of its own; `domain`: it is
            not, all share one head; `class`: it is not, each has outputs of its own which compete with earlier tasks'.
        permuted: the tasks whose pixels are shuffled, by an order of their own drawn per seed: `no`, `later` (all but
            the first) or `all`.
        angles: degrees by which each task's images are turned; empty for none.
        split: whether the tasks divide the labels of their set among them.
        class_order: in which order they do: `fixed`, that of the labels; `shuffled` per seed; or all labels, listed.
        labels: how many each task of the whole sequence takes; empty: equally many.
        validation: share of each label's training images, drawn per seed, that is not trained on but tested on, in
            place of the test images: for choosing hyperparameters. 0: all are trained on, and test images tested on.
        before: tasks of the whole sequence that come before these, where this is a part of it; see `part`.
        whole: tasks of the whole sequence; 0: this is the whole.
    """

    name: str
    sets: tuple[str, ...]
    incremental: Incremental = "domain"
    permuted: Literal["no", "later", "all"] = "no"
    angles: tuple[float, ...] = ()
    split: bool = False
    class_order: Literal["fixed", "shuffled"] | tuple[int, ...] = "fixed"
    labels: tuple[int, ...] = ()
    validation: float = 0.0
    before: int = 0
    whole: int = 0

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.sets)

    def part(self, first: int, last: int) -> Scenario:
        """Some of the tasks, each as it is in the whole sequence; only the outputs of absent tasks are not there.

        Args:
            first: number of the first task to keep.
            last: number of the last.

        Raises:
            ValueError: there are no such tasks.
        """
        if not 1 <= first <= last <= self.tasks:
            raise ValueError(f"scenario {self.name!r}: expected tasks from 1 to {self.tasks}, got {first} to {last}")
        return dataclasses.replace(
            self,
            name=f"{self.name} ({first} to {last})",
            sets=self.sets[first - 1 : last],
            angles=self.angles[first - 1 : last],
            before=self.before + first - 1,
            whole=self.whole or self.tasks,
        )

    def fields(self) -> dict[str, Any]:
        """What the tasks are, flat, as tables and trackers show them."""
        return {
            "scenario": self.name,
            "incremental": self.incremental,
            "tasks": self.tasks,
            "images": ", ".join(self.sets if len(self._versions) > 1 else self.sets[:1]),
            "permuted": self.permuted if self.permuted != "no" else None,
            "angles": ", ".join(map(short, self.angles)) or None,
            "class_order": _listed(self.class_order) if self.split else None,
            "labels": _listed(self.labels[self.before : self.before + self.tasks]) or None,
            "data_version": digest(own) if (own := {k: v for k, v in self._versions.items() if v}) else None,
        }

    def spec(self) -> dict[str, Any]:
        """What determines the tasks, for run keys."""
        spec = dataclasses.asdict(self)
        del spec["name"]
        if not self.labels:  # as studies know it that began before there were any
            del spec["labels"]
        return spec | {"data": self._versions}

    @functools.cached_property
    def _versions(self) -> dict[str, str]:
        """`data.fingerprint` of each set; it travels along, so that another machine need not have the data."""
        return {name: data.fingerprint(name) for name in dict.fromkeys(self.sets)}

    def heads(self, images: Sequence[ImageSet]) -> Heads:
        """Outputs of each task.

        Args:
            images: the set of each task.

        Raises:
            ValueError: the labels do not divide among the tasks as they should.
        """
        sizes = [len(self._classes(task, 0, each.classes)) for task, each in enumerate(images, 1)]
        if self.incremental == "domain":
            return Heads(self.incremental, ((0, max(sizes)),) * len(sizes))
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return Heads(self.incremental, tuple((end - size, end) for end, size in zip(ends, sizes, strict=True)))

    def size(self, task: int, images: ImageSet) -> int:
        """Training images of a task, by which steps are counted: the same for all seeds.

        Where the order of the classes is shuffled, tasks differ in size from seed to seed; then it is their share of
        the set by the number of labels, so that all runs of a stack take as many steps.

        Args:
            task: numbered from 1.
            images: its set.
        """
        counts = images.train_y.cpu().bincount(minlength=images.classes)
        counts = counts - self._held_out(counts)
        if not self.split:
            return int(counts.sum())
        classes = self._classes(task, 0, images.classes)
        if self.class_order == "shuffled":
            return round(int(counts.sum()) * len(classes) / images.classes)
        return int(counts[classes].sum())

    def view(self, task: int, seed: int, images: ImageSet, heads: Heads) -> View:
        """A task as the run of a seed sees it, on the CPU.

        Args:
            task: numbered from 1.
            seed: of the run.
            images: the task's set.
            heads: of this scenario.
        """
        start, _ = heads.blocks[task - 1]
        order = self.pixel_order(task, seed, images.train_x.shape[1])
        if not self.split:
            # Labels are outputs as they are where the head is shared, or is the first.
            labels = torch.arange(images.classes) + start if start else None
            return View(*self._rows(seed, images), labels, order)
        classes = self._classes(task, seed, images.classes)
        labels = torch.full((images.classes,), -1)
        labels[classes] = torch.arange(len(classes)) + start
        return View(*self._rows(seed, images, classes), labels, order)

    def _rows(self, seed: int, images: ImageSet, classes: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Which images are trained and which tested on, of those labels; None for all."""
        y, test_y = images.train_y.cpu(), images.test_y.cpu()
        if not self.validation:
            if classes is None:
                return None, None
            return torch.isin(y, classes).nonzero().flatten(), torch.isin(test_y, classes).nonzero().flatten()
        # One draw a set, so that tasks of the same images agree on which are never trained on.
        random, held = generator(seed, "validation", images.name), torch.zeros(len(y), dtype=torch.bool)
        for label, count in enumerate(self._held_out(y.bincount(minlength=images.classes)).tolist()):
            rows = (y == label).nonzero().flatten()
            held[rows[torch.randperm(len(rows), generator=random)[:count]]] = True
        mine = torch.ones_like(held) if classes is None else torch.isin(y, classes)
        return (mine & ~held).nonzero().flatten(), (mine & held).nonzero().flatten()

    def _held_out(self, counts: Tensor) -> Tensor:
        """Validation images of each label, of so many training images: at least one where there are two."""
        if not self.validation:
            return torch.zeros_like(counts)
        return (counts * self.validation).round().long().clamp(min=1).minimum((counts - 1).clamp(min=0))

    def pixel_order(self, task: int, seed: int, pixels: int) -> Tensor | None:
        """Where each pixel of a task comes from, shape (pixels,); None for the image as it is.

        Args:
            task: numbered from 1.
            seed: of the run.
            pixels: values an image.
        """
        place = self.before + task
        if self.permuted == "no" or (self.permuted == "later" and place == 1):
            return None
        return torch.randperm(pixels, generator=generator(seed, "pixels", place))

    def _shares(self, classes: int) -> list[int]:
        """How many labels of a split set each task of the whole sequence takes.

        Args:
            classes: labels of the set.

        Raises:
            ValueError: they do not divide as they should.
        """
        tasks = self.whole or self.tasks
        if self.labels:
            if sum(self.labels) != classes:
                raise ValueError(
                    f"scenario {self.name!r}: labels: expected numbers that add up to the {classes} labels of the set, "
                    f"got {_listed(self.labels)}, which are {sum(self.labels)}"
                )
            return list(self.labels)
        if classes % tasks:
            raise ValueError(
                f"scenario {self.name!r}: {classes} labels do not divide evenly among {tasks} tasks; "
                f"choose tasks = {', '.join(str(n) for n in range(1, classes + 1) if classes % n == 0)}, or say with "
                "labels = [...] how many each takes"
            )
        return [classes // tasks] * tasks

    def _classes(self, task: int, seed: int, classes: int) -> Tensor:
        """The labels of a task, in the order of their outputs.

        Args:
            task: numbered from 1.
            seed: of the run.
            classes: labels of the set.

        Raises:
            ValueError: the order is not of these labels, or they do not divide as they should.
        """
        order = torch.arange(classes)
        if not self.split:
            return order
        if self.class_order == "shuffled":
            order = torch.randperm(classes, generator=generator(seed, "classes"))
        elif not isinstance(self.class_order, str):
            if sorted(self.class_order) != order.tolist():
                raise ValueError(
                    f"scenario {self.name!r}: class_order: expected each of the labels 0 to {classes - 1} once, got "
                    f"{_listed(self.class_order)}"
                )
            order = torch.tensor(self.class_order)
        mine: Tensor = order.split(self._shares(classes))[self.before + task - 1]
        return mine


def _listed(value: str | Sequence[int]) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))


def resolve(spec: str | list[str] | dict[str, Any]) -> Scenario:
    """A scenario from an experiment file.

    Args:
        spec: a name; a list of image sets; or a table of `name` (or `sets`, or a kind and a `set`) and options.

    Raises:
        ValueError: unknown name, set or option, a value out of bounds, or no task.
    """
    if isinstance(spec, list):
        return _sequence("", spec, {})
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = table.pop("name", None)
    if not isinstance(name, str | type(None)):
        raise ValueError(f"name: expected the name of a scenario, got {name!r}")
    kind, _, images = (name or "").partition("-")
    if "sets" in table:
        if kind in KINDS:
            raise ValueError(
                f"sets: {name!r} is {KINDS[kind].what}, of one image set (set = ...); a sequence needs another name"
            )
        return _sequence(name or "", table.pop("sets"), table)
    if name in SEQUENCES:
        return _sequence(name, list(SEQUENCES[name]), table)
    if kind in KINDS and not images and "set" in table:
        images = table.pop("set")
        if not isinstance(images, str):
            raise ValueError(
                f"set: expected an image set, a path of an .npz file or package.module:function, got {images!r}"
            )
        name = f"{kind}-{own_data.stem(images)}"
    if name is None or kind not in KINDS or not images:
        raise ValueError(f"unknown scenario {name!r}{did_you_mean(name, NAMES)} (forgetbench list scenarios)")
    if name not in NAMES and images not in data.NAMES and ":" not in images and not images.endswith(".npz"):
        raise ValueError(
            f"unknown scenario {name!r}{did_you_mean(name, NAMES) or _of_what(kind)} (forgetbench list scenarios)"
        )
    return _of_kind(kind, name, images, table)


def _of_what(kind: str) -> str:
    return f"; {kind}- takes an image set: {', '.join(data.NAMES)}"


def _sequence(name: str, sets: object, options: dict[str, Any]) -> Scenario:
    if not isinstance(sets, list) or not all(isinstance(entry, str) for entry in sets):
        raise ValueError(f"sets: expected a list of image sets, got {sets!r}")
    name = name or "-".join(Path(entry).stem if entry.endswith(".npz") else entry for entry in sets)
    chosen = _chosen(name, options, {"incremental": "domain"})
    if not sets:
        raise ValueError("expected at least one image set, got an empty list")
    for entry in sets:
        data.check_name(entry)
    return Scenario(name, tuple(sets), chosen["incremental"])


def _of_kind(kind: str, name: str, images: str, options: dict[str, Any]) -> Scenario:
    data.check_name(images)
    known = KINDS[kind].options | ({"tasks": 10} if images == "cifar100" and kind == "split" else {})
    for each in ("angles", "labels"):
        if isinstance(options.get(each), list):
            options.setdefault("tasks", len(options[each]))
    chosen = _chosen(name, options, known)
    tasks, sets = chosen["tasks"], (images,) * chosen["tasks"]
    if kind == "permuted":
        return Scenario(name, sets, chosen["incremental"], {"plain": "later", "permuted": "all"}[chosen["first"]])  # type: ignore[arg-type]
    if kind == "rotated":
        # By default from upright to a quarter turn less one step, so that no two tasks are alike.
        angles = chosen["angles"] if chosen["angles"] is not None else [90.0 * i / tasks for i in range(tasks)]
        if len(angles) != tasks:
            raise ValueError(f"angles: expected one a task, {tasks}, got {len(angles)}")
        return Scenario(name, sets, chosen["incremental"], angles=tuple(map(float, angles)))
    assert kind == "split", f"a kind without a branch here: {kind}"
    labels, order = chosen["labels"] or (), chosen["class_order"]
    if labels and len(labels) != tasks:
        raise ValueError(f"labels: expected one number a task, {tasks}, got {len(labels)}")
    order = tuple(order) if isinstance(order, list) else order
    return Scenario(name, sets, chosen["incremental"], split=True, class_order=order, labels=tuple(labels))


def _chosen(name: str, options: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Options with their defaults.

    Args:
        name: of the scenario.
        options: as written.
        known: what it takes, with defaults.

    Raises:
        ValueError: unknown option, or not a value of it.
    """
    for option, value in options.items():
        if option not in known:
            hint = did_you_mean(option, known) or f"; it takes {', '.join(known)}"
            raise ValueError(f"scenario {name!r}: unknown option {option!r}{hint}")
        expected, fits = OPTIONS[option]
        if not fits(value):
            raise ValueError(f"{option}: expected {expected}, got {value!r}")
    return known | options


def load(scenario: Scenario, data_dir: Path | None = None, say: data.Say = lambda line: None) -> list[ImageSet]:
    """The image set of each task; a set that serves several tasks is loaded once.

    Args:
        scenario: whose sets to load.
        data_dir: as for `data.load`.
        say: as for `data.load`.

    Raises:
        ValueError: the sets have images of different sizes or kinds, which one network cannot take, or labels that do
            not divide among the tasks.
    """
    sets = {name: data.load(name, data_dir, say) for name in dict.fromkeys(scenario.sets)}
    for what in ("shape", "scale"):
        found = {name: getattr(images, what) for name, images in sets.items()}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(f"scenario {scenario.name!r}: all tasks need images of one {what}, got {listed}")
    tasks = [sets[name] for name in scenario.sets]
    if scenario.angles:
        tasks = [turned(images, angle) for images, angle in zip(tasks, scenario.angles, strict=True)]
    scenario.heads(tasks)
    if scenario.split:
        _require_all_labels(scenario, tasks[0])
    return tasks


def _require_all_labels(scenario: Scenario, images: ImageSet) -> None:
    """Refuse a set that would leave a task without images to train or test on.

    Args:
        scenario: that splits it.
        images: the set.

    Raises:
        ValueError: a label has none.
    """
    for what, y in (("training", images.train_y), ("test", images.test_y)):
        missing = (y.bincount(minlength=images.classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"scenario {scenario.name!r}: every label needs training and test images, since labels make up the "
                f"tasks; {images.name} has no {what} images of label {', '.join(map(str, missing))}"
            )


def turned(images: ImageSet, angle: float) -> ImageSet:
    """The same images turned counter-clockwise about their middle, bilinear, black outside.

    Args:
        images: of shape (channels, height, width).
        angle: degrees.

    Raises:
        ValueError: these are not images.
    """
    if angle % 360 == 0:
        return images
    if len(images.shape) != 3:
        raise ValueError(f"{images.name}: only images can be turned, got inputs of shape {images.shape}")
    radians = torch.deg2rad(torch.tensor(float(angle)))
    cos, sin = radians.cos(), radians.sin()
    _, height, width = images.shape
    # Normalised coordinates: a square in them is stretched to the image's sides.
    theta = torch.stack(
        [torch.stack([cos, -sin * height / width, cos * 0]), torch.stack([sin * width / height, cos, cos * 0])]
    )

    def turn(x: Tensor) -> Tensor:
        parts = []
        for part in x.split(10_000):
            pixels = part.view(-1, *images.shape).float()
            grid = F.affine_grid(theta.expand(len(part), 2, 3), list(pixels.shape), align_corners=False)
            found = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            parts.append((found.round() if x.dtype == torch.uint8 else found).to(x.dtype).flatten(1))
        return torch.cat(parts)

    return dataclasses.replace(images, train_x=turn(images.train_x), test_x=turn(images.test_x))
