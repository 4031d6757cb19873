"""What is written for one run, lifted over a stack of R: tensors carry a leading axis of runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from strategies.base import FinishedTask, Params, masked
from strategies.layers import ALONE, STACKED, Layers
from strategies.trees import tree_map

Places = slice | Tensor
"""Some of the samples of each run: the same ones of all, or those at places (R, n), int64, >= 0."""


def lift(fn: Callable[..., Any], runs: int, in_dims: int | tuple[int | None, ...] = 0) -> Callable[..., Any]:
    """A function of one run, over a stack of runs: `vmap`, or a plain call for a stack of one (`vmap` there costs 3x).

    Args:
        fn: takes and returns tensors, or dictionaries and tuples of them.
        runs: size of the stack.
        in_dims: as for `vmap`; None marks an argument that all runs share.
    """
    if runs > 1:

        def stacked(*args: Any) -> Any:
            with Layers(STACKED):
                return vmap(fn, in_dims=in_dims)(*args)

        return stacked

    def solo(*args: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        alone = [a if d is None else tree_map(lambda t: t.squeeze(0), a) for a, d in zip(args, dims, strict=True)]
        with Layers(ALONE):
            return tree_map(lambda t: t.unsqueeze(0), fn(*alone))

    return solo


@dataclass(frozen=True)
class Networks:
    """The trained networks of R runs.

    Attributes:
        model: their structure, in eval mode; its own values mean nothing.
        params: by name, each (R, ...).
        buffers: by name, each (R, ...).
        active: outputs that compete, shape (C,), bool; None where all do.
    """

    model: nn.Module
    params: Params
    buffers: Params
    active: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Networks:
        """A stack of one, whose values are the model's."""
        params = {k: p.detach()[None] for k, p in model.named_parameters()}
        return cls(model, params, {k: b.detach()[None] for k, b in model.named_buffers()})

    @property
    def runs(self) -> int:
        """R."""
        return len(next(iter(self.params.values())))

    @property
    def trainable(self) -> set[str]:
        """Names of the parameters that require a gradient."""
        return {k for k, p in self.model.named_parameters() if p.requires_grad}

    def logits(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        """Outputs of one run, (n, C), for inputs (n, ...); those that do not compete are masked."""
        logits: Tensor = functional_call(self.model, (params, buffers), (x,))
        return logits if self.active is None else masked(logits, self.active)

    @contextmanager
    def one(self, run: int) -> Generator[nn.Module, None, None]:
        """The network of one run as an ordinary module, in `model`, whose values are written over.

        Args:
            run: its place in the stack.

        Yields:
            The network, until the context ends.
        """
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        with torch.no_grad():
            for k, v in {**self.params, **self.buffers}.items():
                own[k].copy_(v[run])
        if self.active is None or self.active.all():
            yield self.model
            return
        active = self.active
        handle = self.model.register_forward_hook(lambda module, args, logits: masked(logits, active))
        try:
            yield self.model
        finally:
            handle.remove()


@dataclass(frozen=True)
class FinishedTasks:
    """The training data of the task that the runs of a stack have just finished.

    Runs may have seen other samples, and not as many: a run with fewer has padding behind its own.

    Attributes:
        number: tasks are numbered from 1.
        inputs: of some places, (R, n, ...), or (1, n, ...) where all runs have the same; anything where there is
            padding.
        y: labels, shape (R, N), int64, -1 for padding.
        generators: of each run, see `FinishedTask`; None is PyTorch's default.
    """

    number: int
    inputs: Callable[[Places], Tensor]
    y: Tensor
    generators: Sequence[torch.Generator | None]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, generator: torch.Generator | None = None, number: int = 1) -> FinishedTasks:
        """Those of a stack of one: inputs (N, ...) and labels (N,)."""
        return cls(
            number, lambda places: x[places if isinstance(places, slice) else places[0]][None], y[None], [generator]
        )

    @property
    def counts(self) -> Tensor:
        """Samples of each run, shape (R,)."""
        return (self.y >= 0).sum(1)

    def chosen(self, places: Sequence[Tensor]) -> FinishedTasks:
        """Some samples of each run, in an order of its own.

        Args:
            places: for each run, those of its samples, (n,), int64, on any device; runs may have different n.
        """
        padded = torch.nn.utils.rnn.pad_sequence(list(places), batch_first=True, padding_value=-1).to(self.y.device)
        known = padded.clamp(min=0)

        def inputs(some: Places) -> Tensor:
            return self.inputs(known[:, some] if isinstance(some, slice) else known.gather(1, some))

        y = self.y.gather(1, known).masked_fill(padded < 0, -1)
        return FinishedTasks(self.number, inputs, y, self.generators)

    def one(self, run: int) -> FinishedTask:
        """The task of one run."""
        y = self.y[run]
        y = y[y >= 0]

        def inputs() -> Tensor:
            x = self.inputs(slice(0, len(y)))
            return x[run if len(x) > 1 else 0]

        generator = self.generators[run] or torch.default_generator
        return FinishedTask(self.number, inputs, y, generator)
