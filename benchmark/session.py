"""What a command passes on to all that it runs: where results go, where and with what stacks train, who hears of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark import harness, plan, schedule
from benchmark.data import ImageSet
from benchmark.executors import HERE, Executor
from benchmark.runs import Result, Run

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """Settings of a command.

    Attributes:
        out: results go to folders in it, named after experiments and studies.
        device: where to train.
        data_dir: as for `data.load`.
        largest: most runs a stack may hold; None to decide by memory.
        executor: where stacks run.
        say: takes one line for each thing worth knowing.
        planned: called before training with what will be trained, and on which images.
        listener: hears about progress, from several threads.
    """

    out: Path
    device: torch.device
    data_dir: Path | None = None
    largest: int | None = None
    executor: Executor = HERE
    say: Say = lambda line: None
    planned: Callable[[plan.Plan, list[ImageSet]], None] = lambda plan, tasks: None
    listener: harness.Listener | None = None

    def train(
        self,
        runs: Sequence[Run],
        tasks: list[ImageSet],
        keep: schedule.Keep,
        *,
        prune: harness.Prune | None = None,
        trunks: schedule.Trunks | None = None,
        together: Mapping[str, Hashable] | None = None,
    ) -> Iterator[list[Result]]:
        """Plan runs and train them.

        Args:
            runs: of one scenario.
            tasks: images of each of its tasks.
            keep: as for `schedule.execute`, like the two that follow.
            prune: which to give up on the way.
            trunks: of earlier calls.
            together: as for `plan.make`.

        Yields:
            The results of one stack.
        """
        room = self.executor.room(self.device) if runs else None
        made = plan.make(runs, tasks, self.device, self.largest, room, trunks or {}, together)
        self.planned(made, tasks)
        yield from schedule.execute(
            made, tasks, self.device, self.listener, keep, prune=prune, executor=self.executor, trunks=trunks
        )
