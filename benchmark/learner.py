"""R runs of one network, trained and evaluated as one tensor program.

Parameters and buffers carry a leading axis of R runs. Loss and penalty are written for one run, then lifted over it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmark.data import ImageSet
from strategies.base import Hparams, Params, State, Step, Strategy

EVALUATED = 20_000  # images of all runs together an evaluation pass: bounds memory, changes nothing else


@dataclass(frozen=True)
class Recipe:
    """How every task is trained: equal within a stack.

    Attributes:
        optimizer: adam, adamw or sgd.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: of the optimiser, not a strategy's.
        batch_size: images a step; what fills no batch at the end of an epoch is left out (each epoch is shuffled anew).
        epochs: passes over each task's training set; or
        iterations: steps a task.
        batchnorm: `freeze-after-first` trains in eval mode from the second task on: statistics stay the first task's.
        optimizer_state: whether each task starts with a fresh optimiser.
        precision: float32, float64, or bfloat16 (autocast; parameters stay float32).
        evaluate_every: steps between evaluations on all tasks while training; 0: only between tasks.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 100
    epochs: int | None = None
    iterations: int | None = None
    batchnorm: Literal["update", "freeze-after-first"] = "update"
    optimizer_state: Literal["reset", "keep"] = "reset"
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("expected epochs or iterations, one of the two")

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and inputs."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def steps(self, images: int) -> tuple[int, int]:
        """Steps an epoch and steps in all, for a training set of that many images."""
        an_epoch = max(images // self.batch_size, 1)
        return an_epoch, self.iterations if self.iterations is not None else an_epoch * (self.epochs or 0)

    def epochs_of(self, images: int) -> int:
        """Epochs begun on a training set of that many images."""
        an_epoch, steps = self.steps(images)
        return -(-steps // an_epoch)


@dataclass(frozen=True)
class Task:
    """One task as a stack of runs sees it.

    Attributes:
        number: from 1.
        images: on the stack's device.
        order: pixel order of each run, shape (R, pixels), or None for the images as they are.
    """

    number: int
    images: ImageSet
    order: Tensor | None = None

    def inputs(self, pixels: Tensor, dtype: torch.dtype, order: Tensor | None = None) -> Tensor:
        """uint8 images (..., pixels) as the network takes them, in [0, 1]; `order` broadcasts against the images."""
        if order is not None:
            pixels = pixels.gather(-1, order.expand(pixels.shape))
        return pixels.to(dtype).div_(self.images.scale)

    def batch(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Training inputs (R, B, pixels) and labels (R, B) at an index matrix (R, B)."""
        order = self.order[:, None] if self.order is not None else None
        return self.inputs(self.images.train_x[index], dtype, order), self.images.train_y[index]


def lift(fn: Callable[..., Any], runs: int, in_dims: int | tuple[int | None, ...] = 0) -> Callable[..., Any]:
    """A function of one run, over a stack of runs: `vmap`, or a plain call for a stack of one (`vmap` there costs 3x).

    Args:
        fn: takes and returns tensors, or dictionaries and tuples of them.
        runs: size of the stack.
        in_dims: as for `vmap`; None marks an argument that all runs share.
    """
    if runs > 1:
        return vmap(fn, in_dims=in_dims)

    def solo(*args: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        alone = [a if d is None else tree_map(lambda t: t.squeeze(0), a) for a, d in zip(args, dims, strict=True)]
        return tree_map(lambda t: t.unsqueeze(0), fn(*alone))

    return solo


def tree_map(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `fn` to every tensor of nested dictionaries and tuples."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        return {k: tree_map(fn, v) for k, v in tree.items()}
    parts = [tree_map(fn, v) for v in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


class Learner:
    """The parameters, buffers and optimiser of R runs.

    Args:
        model: a network whose structure all runs share; its own values are not used.
        params: stacked parameters, each (R, ...).
        buffers: stacked buffers, each (R, ...).
        recipe: how to train.
        pixels: values an input, flattened.
        optimizer_state: one dictionary of tensors a parameter, to continue from; None for a fresh optimiser.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        buffers: Params,
        recipe: Recipe,
        pixels: int,
        optimizer_state: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.recipe, self.pixels = model, recipe, pixels
        self.runs = len(next(iter(params.values())))
        self.buffers = buffers
        self.params = {k: p.requires_grad_() for k, p in self._laid_out(params).items()}
        self.diverged = torch.zeros(self.runs, dtype=torch.bool, device=self.device)
        self.reset_optimizer()
        for k, values in (optimizer_state or {}).items():
            p = self.params[k]
            self.optimizer.state[self.flat[k]] = {
                name: in_memory_order(like(p, value)) if value.shape == p.shape else value.clone()
                for name, value in values.items()
            }

    @classmethod
    def fresh(cls, models: list[nn.Module], recipe: Recipe, pixels: int, device: torch.device) -> Learner:
        """Stack freshly built networks, one a run.

        Args:
            models: of equal structure.
            recipe: how to train.
            pixels: values an input, flattened.
            device: where.
        """
        params, buffers = torch.func.stack_module_state(models)
        params = {k: p.detach().to(device, recipe.dtype) for k, p in params.items()}
        buffers = {k: b.to(device, recipe.dtype if b.is_floating_point() else b.dtype) for k, b in buffers.items()}
        return cls(models[0].to(device, recipe.dtype), params, buffers, recipe, pixels)

    @property
    def device(self) -> torch.device:
        """Where the stack lives."""
        return next(iter(self.params.values())).device

    @classmethod
    def branch(cls, sources: list[tuple[Learner, int]], recipe: Recipe) -> Learner:
        """A new learner whose runs start as copies of runs of others, optimiser included.

        Args:
            sources: run r starts as a copy of run `sources[r][1]` of learner `sources[r][0]`.
            recipe: of the new runs.
        """

        def stacked(tensors: Callable[[Learner], Params]) -> Params:
            trees = {id(learner): tensors(learner) for learner, _ in sources}
            return {k: torch.stack([trees[id(s)][k][row] for s, row in sources]) for k in trees[id(sources[0][0])]}

        first = sources[0][0]
        states = {id(learner): learner.optimizer_state() for learner, _ in sources}
        state = {
            k: {
                n: torch.stack([states[id(s)][k][n][row] for s, row in sources]) if v.ndim else v
                for n, v in states[id(first)][k].items()
            }
            for k in first.params
        }
        params, buffers = stacked(lambda s: {k: p.detach() for k, p in s.params.items()}), stacked(lambda s: s.buffers)
        # A model of its own: stacks may train side by side, and `functional_call` puts values into the module.
        new = cls(copy.deepcopy(first.model), params, buffers, recipe, first.pixels, state)
        new.diverged = torch.stack([s.diverged[row] for s, row in sources])
        return new

    def reset_optimizer(self) -> None:
        """A fresh optimiser, without moments or momentum."""
        # One flat view a parameter: the fused CPU kernels copy tensors that are not contiguous, and misread gradients
        # that lie in memory in another order than their parameter.
        self.flat = {k: in_memory_order(p.detach()) for k, p in self.params.items()}
        recipe, params = self.recipe, list(self.flat.values())
        common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
        if recipe.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(params, momentum=recipe.momentum, **common)
        else:
            cls = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
            self.optimizer = cls(params, **common)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's tensors by parameter, those of a parameter's size in its shape (R, ...)."""
        return {
            k: {
                name: v.as_strided(p.shape, p.stride()) if v.numel() == p.numel() and v.ndim else v
                for name, v in self.optimizer.state[self.flat[k]].items()
                if isinstance(v, Tensor)
            }
            for k, p in self.params.items()
        }

    def train(
        self,
        task: Task,
        index: Callable[[int], Tensor],
        strategy: Strategy,
        state: State,
        hparams: Hparams,
        *,
        frozen_batchnorm: bool = False,
        every_epoch: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
        every_step: Callable[[int], None] = lambda step: None,
    ) -> State:
        """Train every run on one task.

        Args:
            task: what to learn.
            index: epoch (from 0) -> training images of each step, shape (steps, R, B).
            strategy: whose penalty and path hook apply to all runs.
            state: the strategy's, stacked.
            hparams: one value a run, each of shape (R,).
            frozen_batchnorm: train in eval mode.
            every_epoch: called after each epoch with its number from 1, how many there are, and the mean loss.
            every_step: called after each step with the number of steps taken.

        Returns:
            The strategy's state after the last step.
        """
        recipe = self.recipe
        _, steps = recipe.steps(len(task.images.train_y))
        epochs = recipe.epochs_of(len(task.images.train_y))
        done = 0
        for epoch in range(epochs):
            batches = index(epoch)[: steps - done]
            total = torch.zeros(self.runs, dtype=recipe.dtype, device=self.device)
            for batch in batches:
                # Evaluation after a step leaves the network in eval mode.
                self.model.train(not frozen_batchnorm)
                loss, state = self._step(*task.batch(batch, recipe.dtype), strategy, state, hparams)
                total += loss
                done += 1
                every_step(done)
            self._note_divergence(total)
            every_epoch(epoch + 1, epochs, float(total[~self.diverged].mean()) / len(batches))
        return state

    def _step(self, x: Tensor, y: Tensor, strategy: Strategy, state: State, hparams: Hparams) -> tuple[Tensor, State]:
        """One optimiser step of every run; returns the task's loss of each, shape (R,), and the strategy's state."""
        losses = lift(self._loss, self.runs)(self.params, self.buffers, x, y)
        # Runs share no parameter, so the gradient of the sum is each run's own.
        task_gradient = torch.autograd.grad(losses.sum(), list(self.params.values()), materialize_grads=True)
        gradient = dict(zip(self.params, task_gradient, strict=True))
        params = {k: p.detach() for k, p in self.params.items()}
        if strategy.overrides("penalty"):
            extra = lift(strategy.penalty_gradient, self.runs)(state, params, hparams)
            gradient = {k: extra[k].add_(g) for k, g in gradient.items()}
        for k, p in self.params.items():
            g = gradient[k] if gradient[k].stride() == p.stride() else like(p, gradient[k])
            self.flat[k].grad = in_memory_order(g)
        if strategy.overrides("after_step"):
            before = {k: p.clone() for k, p in params.items()}
            self.optimizer.step()
            # A copy: a strategy may keep it, and the next step writes into the parameters.
            after = {k: p.clone() for k, p in params.items()}
            step = Step(before, after, dict(zip(params, task_gradient, strict=True)))
            state = lift(strategy.after_step, self.runs)(state, step, hparams)
        else:
            self.optimizer.step()
        return losses.detach(), state

    def _loss(self, params: Params, buffers: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(params, buffers, x), y)

    def _logits(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits: Tensor = functional_call(self.model, (params, buffers), (x,))
        return logits.to(self.recipe.dtype)

    @torch.no_grad()
    def accuracy(self, task: Task) -> Tensor:
        """Test accuracy of every run on a task, shape (R,); NaN for diverged runs."""
        self.model.eval()
        x, y = task.images.test_x, task.images.test_y
        chunk = max(EVALUATED // self.runs, 100)
        correct = torch.zeros(self.runs, dtype=torch.int64, device=self.device)
        shared = task.order is None
        logits = lift(self._logits, self.runs, in_dims=(0, 0, None if shared else 0))
        for xs, ys in zip(x.split(chunk), y.split(chunk), strict=True):
            if task.order is None:
                inputs = task.inputs(xs, self.recipe.dtype)
            else:
                inputs = task.inputs(xs.expand(self.runs, *xs.shape), self.recipe.dtype, task.order[:, None])
            correct += (logits(self.params, self.buffers, inputs).argmax(-1) == ys).sum(1)
        accuracy = correct.double() / len(y)
        return accuracy.masked_fill(self.diverged, torch.nan)

    @contextmanager
    def solo(self, run: int) -> Generator[nn.Module, None, None]:
        """The network of one run, in eval mode, as an ordinary module."""
        values = {k: v.detach()[run] for k, v in {**self.params, **self.buffers}.items()}
        self.model.load_state_dict(values)
        yield self.model.eval()

    def _note_divergence(self, loss: Tensor) -> None:
        """A run whose loss, parameters or optimiser state are not finite has diverged, and stays so.

        The optimiser counts: Adam divides by an infinite second moment, and the run would stand still unnoticed.
        """
        finite = loss.isfinite()
        for k, state in self.optimizer_state().items():
            p = self.params[k].detach()
            for tensor in (p, *(v for v in state.values() if v.shape == p.shape)):
                # A sum is finite only if every entry is, or overflows, which is divergence too.
                finite &= tensor.flatten(1).sum(1).isfinite()
        self.diverged |= ~finite

    def _laid_out(self, params: Params) -> Params:
        """Parameters in the memory layout that their gradients come in, so that neither is ever copied to match.

        Under `vmap` a Linear's weight gradient comes transposed; which layers do what is found by asking for one.
        """
        leaves = {k: p.detach().clone().requires_grad_() for k, p in params.items()}
        x = torch.zeros(self.runs, 1, self.pixels, dtype=self.recipe.dtype, device=next(iter(leaves.values())).device)
        y = torch.zeros(self.runs, 1, dtype=torch.int64, device=x.device)
        self.model.eval()  # in train mode BatchNorm would take these zeros into its statistics
        loss = lift(self._loss, self.runs)(leaves, self.buffers, x, y).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {k: like(g, params[k]) for k, g in zip(params, gradients, strict=True)}


def like(layout: Tensor, value: Tensor) -> Tensor:
    """A copy of `value` in the memory layout of `layout`."""
    return torch.empty_like(layout, dtype=value.dtype, requires_grad=False).copy_(value.detach())


def in_memory_order(t: Tensor) -> Tensor:
    """A dense tensor as one flat view of its memory."""
    return t.as_strided((t.numel(),), (1,))
