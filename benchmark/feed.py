"""What a stack of runs sees of a scenario: sample ids in, batches of inputs, labels and masks out.

Images stay as they are on the device, once for all stacks. A sample's id is its place in that pool, plus the pool's
size for each task before its own: so an id names a task and an image, and a memory of samples is a few integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.data import ImageSet
from benchmark.keys import generator, generator_seed
from benchmark.runs import Run
from benchmark.scenarios import Heads, Scenario, View
from strategies.base import Batch, Params
from strategies.stack import FinishedTasks, Places

SPREAD = 2**22  # ids of all runs together, at most: bounds memory, changes nothing else


@dataclass(frozen=True)
class Pool:
    """All images of a scenario, on one device.

    Attributes:
        scenario: whose tasks these are.
        heads: which outputs belong to which task.
        tasks: the image set of each task; the training images are views of `x`.
        x: training images of the distinct sets, one after another, shape (P, values).
        y: their labels, shape (P,).
        offsets: where each task's set begins.
    """

    scenario: Scenario
    heads: Heads
    tasks: tuple[ImageSet, ...]
    x: Tensor
    y: Tensor
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, scenario: Scenario, tasks: Sequence[ImageSet], device: torch.device) -> Pool:
        """Move the images of each task to a device, a set that serves several tasks once."""
        distinct = list({id(images): images for images in tasks}.values())
        x = torch.cat([images.train_x for images in distinct]) if len(distinct) > 1 else distinct[0].train_x
        y = torch.cat([images.train_y for images in distinct])
        x, y, moved, start = x.to(device), y.to(device), {}, 0
        for images in distinct:
            end = start + len(images.train_y)
            train = x[start:end], y[start:end]
            # Where training images are tested on, no test image is anywhere near.
            test = train if scenario.validation else (images.test_x.to(device), images.test_y.to(device))
            there = dataclasses.replace(images, train_x=train[0], train_y=train[1], test_x=test[0], test_y=test[1])
            moved[id(images)] = (there, start)
            start = end
        places = [moved[id(images)] for images in tasks]
        return cls(
            scenario, scenario.heads(tasks), tuple(t for t, _ in places), x, y, tuple(offset for _, offset in places)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return self.tasks[0].shape


def select(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`, row by row: `index_select` copies whole rows, thirty times faster on a CPU."""
    return table.index_select(0, index.flatten()).view(*index.shape, -1)


class Feed:
    """What the runs of one stack see, on the pool's device.

    Args:
        pool: the images.
        seeds: of the runs, R of them.
        dtype: of inputs.
    """

    def __init__(self, pool: Pool, seeds: Sequence[int], dtype: torch.dtype) -> None:
        self.pool, self.seeds, self.dtype = pool, tuple(seeds), dtype
        self._device = pool.x.device
        self._views: dict[int, list[View]] = {}
        salts = [generator_seed(seed, "sample keys") for seed in self.seeds]
        self._salts = torch.tensor(salts, device=self._device)[:, None]
        self._scale = pool.tasks[0].scale
        # Asked for at every step, and always the same.
        self._known: dict[tuple[str, int | None], Any] = {}

    def views(self, task: int) -> list[View]:
        """The task of that number, as each run sees it."""
        if task not in self._views:
            made = {
                seed: self.pool.scenario.view(task, seed, self.pool.tasks[task - 1], self.pool.heads)
                for seed in dict.fromkeys(self.seeds)
            }
            self._views[task] = [made[seed] for seed in self.seeds]
        return self._views[task]

    def ids(self, task: int, run: int) -> Tensor:
        """The training samples of a task of one run, shape (N,), on the CPU."""
        rows = self.views(task)[run].train
        if rows is None:
            rows = torch.arange(len(self.pool.tasks[task - 1].train_y))
        return rows + (task - 1) * len(self.pool.y) + self.pool.offsets[task - 1]

    def batch(
        self, ids: Tensor, keys: Tensor, training: int, source: int | None = None, kept: Params | None = None
    ) -> Batch:
        """Samples of every run, stacked.

        Args:
            ids: shape (R, B).
            keys: from `keys`, shape (R, B).
            training: number of the task in training, which decides the outputs that compete.
            source: number of the task all samples come from, where they come from one; None where they may be mixed.
            kept: what goes along.
        """
        runs = torch.arange(len(ids), device=self._device)[:, None]
        task = self._number(source).expand(ids.shape) if source else ids // len(self.pool.y) + 1
        index = ids - (self._first_id(source) if source else (task - 1) * len(self.pool.y))
        pixels, y = select(self.pool.x, index), self.pool.y[index]
        if (orders := self._orders(source)) is not None:
            # (R, values) where all samples are of one task, else (R, T, values).
            order = orders[:, None].expand(pixels.shape) if source else orders[runs, task - 1]
            pixels = pixels.gather(-1, order)
        if (labels := self._labels(source)) is not None:
            y = labels.gather(1, y) if source else labels[runs, task - 1, y]
        mask = self._active_of(source, training).expand(*ids.shape, -1) if source else self._active(training)[task - 1]
        return Batch(self._inputs(pixels), y, mask, task, ids, keys, kept or {})

    def some(self, rows: Sequence[int]) -> Feed:
        """What some runs of the stack see.

        Args:
            rows: their places.
        """
        feed = Feed(self.pool, [self.seeds[r] for r in rows], self.dtype)
        feed._views = {task: [views[r] for r in rows] for task, views in self._views.items()}
        return feed

    def finished(self, task: int, generators: Sequence[torch.Generator]) -> FinishedTasks:
        """The training samples of a task.

        Args:
            task: numbered from 1.
            generators: of each run.
        """
        images = self.pool.tasks[task - 1]
        index = self._places([view.train for view in self.views(task)], len(images.train_y))

        def inputs(places: Places) -> Tensor:
            some = index[:, places] if isinstance(places, slice) else index.expand(len(places), -1).gather(1, places)
            return self._inputs(self._pixels(images.train_x, some, task))

        y = self._outputs(images.train_y, index, task)
        return FinishedTasks(task, inputs, y.expand(len(self.seeds), -1), generators)

    def test(self, task: int, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test samples of a task, some at a time.

        Args:
            task: numbered from 1.
            chunk: at most so many of each run at a time.

        Yields:
            Inputs, (n, ...) where all runs see the same and (R, n, ...) where not; and labels, (R, n) or (1, n), -1
            where a run has fewer test samples than others.
        """
        images = self.pool.tasks[task - 1]
        index = self._places([view.test for view in self.views(task)], len(images.test_y))
        for part in index.split(chunk, dim=1):
            x = self._inputs(self._pixels(images.test_x, part, task))
            yield (x[0] if len(x) == 1 else x), self._outputs(images.test_y, part, task)

    def _places(self, rows: Sequence[Tensor | None], count: int) -> Tensor:
        """Rows of a table for each run, None for all: (R, n), -1 where a run has fewer; (1, n) if all have the same."""
        alike = all(row is rows[0] or (row is not None and torch.equal(row, rows[0])) for row in rows)  # type: ignore[arg-type]
        found = [torch.arange(count) if row is None else row for row in (rows[:1] if alike else rows)]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1).to(self._device)

    def _pixels(self, table: Tensor, index: Tensor, task: int) -> Tensor:
        """Flat images at places from `_places` as the runs see them, (R, n, values) or (1, n, values)."""
        pixels = select(table, index.clamp(min=0))
        if (orders := self._orders(task)) is None:
            return pixels
        pixels = pixels.expand(len(self.seeds), -1, -1)
        return pixels.gather(-1, orders[:, None].expand(pixels.shape))

    def _outputs(self, table: Tensor, index: Tensor, task: int) -> Tensor:
        """Labels at places from `_places` as the runs see them, (R, n) or (1, n), -1 where there is none."""
        y = table[index.clamp(min=0)]
        if (labels := self._labels(task)) is not None:
            y = labels.gather(1, y.expand(len(self.seeds), -1))
        return y.masked_fill(index < 0, -1)

    def _inputs(self, pixels: Tensor) -> Tensor:
        """Flat images as the network takes them: unflattened, in [0, 1] where they were uint8."""
        x = pixels.to(self.dtype, copy=True).div_(self._scale)
        return x.view(*x.shape[:-1], *self.pool.shape)

    def keys(self, ids: Tensor) -> Tensor:
        """One uniform number a sample and run, in [0, 1): splitmix64 of the id, salted by the run's seed.

        Args:
            ids: shape (..., R, B).

        References:
            Steele et al. 2014, https://doi.org/10.1145/2660193.2660195.
        """
        # Arithmetic of int64 wraps, as the unsigned one does; right shifts must not drag the sign along.
        z = (ids + 1) * -7046029254386353131 + self._salts
        z = (z ^ (z >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
        z = (z ^ (z >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
        z = z ^ (z >> 31 & 0x1FFFFFFFF)
        return (z >> 11 & 0x1FFFFFFFFFFFFF).double() / 2**53

    def _once(self, what: str, find: Callable[[Any], Any], of: int | None) -> Any:
        # A cache of its own methods would keep a feed, and images on a device, until the garbage is collected.
        if (what, of) not in self._known:
            self._known[what, of] = find(of)
        return self._known[what, of]

    # Numbers as tensors: a step that was recorded, or compiled, is then the same for every task.
    def _number(self, task: int) -> Tensor:
        found: Tensor = self._once("number", lambda t: torch.tensor(t, device=self._device), task)
        return found

    def _first_id(self, task: int) -> Tensor:
        found: Tensor = self._once("first id", lambda t: (self._number(t) - 1) * len(self.pool.y), task)
        return found

    def _active(self, training: int) -> Tensor:
        """Outputs that compete for samples of each task, shape (T, C)."""
        found: Tensor = self._once("active", lambda t: self.pool.heads.training(t).to(self._device), training)
        return found

    def _active_of(self, source: int, training: int) -> Tensor:
        # In memory of its own, for the same reason.
        found: Tensor = self._once(f"active of {source}", lambda t: self._active(t)[source - 1].clone(), training)
        return found

    def _orders(self, source: int | None) -> Tensor | None:
        found: Tensor | None = self._once("orders", self._find_orders, source)
        return found

    def _labels(self, source: int | None) -> Tensor | None:
        found: Tensor | None = self._once("labels", self._find_labels, source)
        return found

    def _find_orders(self, source: int | None) -> Tensor | None:
        """Pixel orders of a task, shape (R, values), or of all, (R, T, values); None where no run shuffles any."""
        same = torch.arange(self.pool.x.shape[1])
        return self._stacked([[view.order for view in self.views(t)] for t in self._tasks(source)], same, source)

    def _find_labels(self, source: int | None) -> Tensor | None:
        """Outputs by label of a task, shape (R, labels), or of all tasks, (R, T, labels); None where as they are."""
        same = torch.arange(max(images.classes for images in self.pool.tasks))
        return self._stacked([[view.labels for view in self.views(t)] for t in self._tasks(source)], same, source)

    def _tasks(self, source: int | None) -> Sequence[int]:
        return (source,) if source else range(1, len(self.pool.tasks) + 1)

    def _stacked(self, maps: list[list[Tensor | None]], same: Tensor, source: int | None) -> Tensor | None:
        if all(m is None for row in maps for m in row):
            return None
        padded = [
            torch.stack([same if m is None else torch.cat([m, same[len(m) :]]) for m in row]).to(self._device)
            for row in maps
        ]
        return padded[0] if source else torch.stack(padded, dim=1)


class Lesson:
    """One task's training, as a stack sees it.

    Args:
        feed: of the stack.
        task: numbered from 1.
        run: any of the stack: they have recipe, scenario and the strategy's options in common.
    """

    def __init__(self, feed: Feed, task: int, run: Run) -> None:
        self.feed, self.task, pool = feed, task, feed.pool
        self.earlier = pool.heads.earlier(task).to(pool.x.device)
        self.an_epoch, self.steps = run.steps(task, pool.tasks)
        self.epochs = run.epochs(task, pool.tasks)
        self._sources, self._recalls = tuple(run.strategy.trains_on(task)), run.strategy.recalls
        self._size = min(run.recipe.batch_size, run.images(task, pool.tasks))
        self._seeds = tuple(dict.fromkeys(feed.seeds))
        self._rows = torch.tensor([self._seeds.index(seed) for seed in feed.seeds], device=pool.x.device)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What steps differ in: ids and keys of samples, (R, B) each, and random numbers (R, recalls) for a memory.

        Runs of one seed see the same samples: those of each seed go to the device at once, and are spread over the runs
        some steps at a time.

        Args:
            epoch: from 0.
        """
        ids, draws = self._ids(epoch), self._draws(epoch)
        some = max(SPREAD // (len(self._rows) * self._size), 1)
        for block, random in zip(ids.split(some), draws.split(some), strict=True):
            spread = block.index_select(1, self._rows)
            yield from zip(spread, self.feed.keys(spread), random.index_select(1, self._rows), strict=True)

    def batch(self, ids: Tensor, keys: Tensor) -> Batch:
        """The samples of a step; arguments as `epoch` yields them."""
        return self.feed.batch(ids, keys, self.task, self._sources[0] if len(self._sources) == 1 else None)

    def fetch(self, asked: Params, batch: Batch) -> Batch:
        """The samples a memory asked for.

        Args:
            asked: `id`, shape (R, K), and what goes along.
            batch: in training, whose samples fill the places of ids of -1: they count in no loss, but BatchNorm takes
                its statistics over all it is given, and should see no arbitrary sample.
        """
        ids, kept = asked["id"], {k: v for k, v in asked.items() if k != "id"}
        size = batch.id.shape[1]
        filled = torch.where(ids < 0, batch.id[:, torch.arange(ids.shape[1], device=ids.device) % size], ids)
        return self.feed.batch(filled, self.feed.keys(filled), self.task, kept=kept)._replace(id=ids)

    def _ids(self, epoch: int) -> Tensor:
        """Samples of each step of an epoch, shape (steps, seeds, B), keyed by seed: every strategy sees the same.

        A run goes through its own samples in an order drawn anew each time; where it has fewer or more than its stack
        counts by, it is through them sooner or later than the epoch.
        """
        runs = [self.feed.seeds.index(seed) for seed in self._seeds]
        return torch.stack([self._of_run(run, self._steps(epoch)) for run in runs], dim=1).to(self._rows.device)

    def _steps(self, epoch: int) -> range:
        first = epoch * self.an_epoch
        return range(first, min(first + self.an_epoch, self.steps))

    def _of_run(self, run: int, steps: range) -> Tensor:
        own, seed = torch.cat([self.feed.ids(j, run) for j in self._sources]), self.feed.seeds[run]
        # A task smaller than a batch is repeated within it.
        own = own.repeat(-(-self._size // len(own)))
        each, parts, at = len(own) // self._size, [], steps.start
        while at < steps.stop:
            shuffle = torch.randperm(len(own), generator=generator(seed, "batches", self.task, at // each))
            upto = min(steps.stop, (at // each + 1) * each)
            parts.append(own[shuffle[at % each * self._size : (at % each + upto - at) * self._size]])
            at = upto
        return torch.cat(parts).view(len(steps), self._size)

    def _draws(self, epoch: int) -> Tensor:
        """Random numbers of each step of an epoch, shape (steps, seeds, recalls)."""
        shape = len(self._steps(epoch)), self._recalls
        generators = [generator(seed, "recall", self.task, epoch) for seed in self._seeds if self._recalls]
        made = [torch.rand(shape, dtype=torch.float64, generator=g) for g in generators]
        drawn = torch.stack(made, dim=1) if made else torch.empty(shape[0], len(self._seeds), 0)
        return drawn.to(self._rows.device)
