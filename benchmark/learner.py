"""R runs of one network, trained and evaluated as one tensor program.

Parameters and buffers carry a leading axis of R runs. Loss and penalty are written for one run, then lifted over it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from benchmark.feed import Feed, Lesson
from benchmark.recipe import Recipe
from benchmark.replay import replayed
from strategies.base import Batch, Hparams, Loss, Network, Params, State, Step, Strategy, masked
from strategies.stack import Networks, lift
from strategies.trees import tree_map

# Values of the widest layer an evaluation pass of all runs together: bounds memory, changes nothing else.
EVALUATED = {"cpu": 2**24, "cuda": 2**28}


DENSE = torch.contiguous_format


def _check_loss(strategy: Strategy, loss: object) -> None:
    """Refuse what is no loss of one run.

    Args:
        strategy: that returned it.
        loss: what it returned.

    Raises:
        ValueError: with what was expected and what came.
    """
    if not isinstance(loss, Loss) or loss.value.ndim:
        came = f"a value of shape {tuple(loss.value.shape)}" if isinstance(loss, Loss) else f"{type(loss).__name__}"
        raise ValueError(f"strategy {strategy.name!r}, loss: expected a Loss with a value of shape (), got {came}")


def check_like(name: str, method: str, expected: Params, got: Params) -> None:
    """Refuse what has not one tensor a parameter, of its shape; arguments are stacked.

    Args:
        name: of the strategy.
        method: of it.
        expected: parameters.
        got: what it returned.

    Raises:
        ValueError: with the parameter's name, what was expected and what came.
    """
    for k in [*expected, *(got.keys() - expected.keys())]:
        before, after = (tuple(t[k].shape[1:]) if k in t else "nothing" for t in (expected, got))
        if before != after:
            raise ValueError(f"strategy {name!r}, {method}: {k!r}: expected shape {before}, got {after}")


class Learner:
    """The parameters, buffers and optimiser of R runs.

    Args:
        model: a network whose structure all runs share; its own values are not used.
        params: stacked parameters, each (R, ...).
        buffers: stacked buffers, each (R, ...).
        recipe: how to train.
        shape: of one input.
        optimizer_state: one dictionary of tensors a parameter, to continue from; None for a fresh optimiser.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        buffers: Params,
        recipe: Recipe,
        shape: tuple[int, ...],
        optimizer_state: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.recipe, self.shape = model, recipe, shape
        self.runs = len(next(iter(params.values())))
        self.buffers = buffers
        self.params = {k: p.detach().clone(memory_format=DENSE).requires_grad_() for k, p in params.items()}
        self.diverged = torch.zeros(self.runs, dtype=torch.bool, device=self.device)
        self.reset_optimizer()
        for k, values in (optimizer_state or {}).items():
            shape = self.params[k].shape
            self.optimizer.state[self.flat[k]] = {
                name: v.clone(memory_format=DENSE).view(-1) if v.shape == shape else v.clone()
                for name, v in values.items()
            }

    @classmethod
    def fresh(cls, models: list[nn.Module], recipe: Recipe, shape: tuple[int, ...], device: torch.device) -> Learner:
        """Stack freshly built networks, one a run.

        Args:
            models: of equal structure.
            recipe: how to train.
            shape: of one input.
            device: where.
        """
        params, buffers = torch.func.stack_module_state(models)
        params = {k: p.detach().to(device, recipe.dtype) for k, p in params.items()}
        buffers = {k: b.to(device, recipe.dtype if b.is_floating_point() else b.dtype) for k, b in buffers.items()}
        return cls(models[0].to(device, recipe.dtype), params, buffers, recipe, shape)

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
        new = cls(copy.deepcopy(first.model), params, buffers, recipe, first.shape, state)
        new.diverged = torch.stack([s.diverged[row] for s, row in sources])
        return new

    def __reduce__(self) -> tuple[Callable[..., Learner], tuple[Any, ...]]:
        """To another process: what `branch` copies, as arrays."""
        params = {k: p.detach() for k, p in self.params.items()}
        tensors = (params, self.buffers, self.optimizer_state(), self.diverged)
        arrays = [_arrays(tree) for tree in tensors]
        model = copy.deepcopy(self.model).cpu()
        return _received, (model, self.recipe, self.shape, self.device, arrays)

    def reset_optimizer(self) -> None:
        """A fresh optimiser, without moments or momentum."""
        # Flat views: the fused CPU kernels misread gradients whose strides differ from their parameter's.
        self.flat = {k: p.detach().view(-1) for k, p in self.params.items()}
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
                name: v.view(p.shape) if v.numel() == p.numel() and v.ndim else v
                for name, v in self.optimizer.state[self.flat[k]].items()
                if isinstance(v, Tensor)
            }
            for k, p in self.params.items()
        }

    def train(
        self,
        lesson: Lesson,
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
            lesson: what to learn.
            strategy: whose methods apply to all runs.
            state: the strategy's, stacked.
            hparams: one value a run, each of shape (R,).
            frozen_batchnorm: train in eval mode.
            every_epoch: called after each epoch with its number from 1, how many there are, and the mean loss.
            every_step: called after each step with the number of steps taken.

        Returns:
            The strategy's state after the last step.
        """
        # A state that no step changes is no argument of theirs: what they take out of it is then found once.
        changes = any(strategy.overrides(method) for method in ("after_step", "observe"))
        moving, fixed = (state, {}) if changes else ({}, state)

        def plain(ids: Tensor, keys: Tensor, draws: Tensor, moving: State) -> tuple[Tensor, State]:
            # Evaluation after a step leaves the network in eval mode.
            self.model.train(not frozen_batchnorm)
            loss, new = self._step(lesson, lesson.batch(ids, keys), draws, strategy, moving | fixed, hparams)
            return loss, new if changes else {}

        step, done = replayed(plain, compile=self.recipe.compile), 0
        for epoch in range(lesson.epochs):
            total, begun = torch.zeros(self.runs, dtype=self.recipe.dtype, device=self.device), done
            for ids, keys, draws in lesson.epoch(epoch):
                loss, moving = step(ids, keys, draws, moving)
                total += loss
                done += 1
                every_step(done)
            self._note_divergence(total)
            every_epoch(epoch + 1, lesson.epochs, float(total[~self.diverged].mean()) / (done - begun))
        return moving | fixed

    def _step(
        self, lesson: Lesson, batch: Batch, draws: Tensor, strategy: Strategy, state: State, hparams: Hparams
    ) -> tuple[Tensor, State]:
        """One optimiser step of every run; returns the loss on data of each, shape (R,), and the strategy's state."""
        recalled = self._recalled(lesson, batch, draws, strategy, state, hparams)
        losses, gradient, seen = self._gradient(lesson, batch, recalled, strategy, state, hparams)
        params = {k: p.detach() for k, p in self.params.items()}
        total = gradient
        if strategy.overrides("penalty"):
            extra = lift(strategy.penalty_gradient, self.runs)(state, params, hparams)
            check_like(strategy.name, "penalty_gradient", params, extra)
            total = {k: extra[k].add_(g) for k, g in gradient.items()}
        for k, g in total.items():
            self.flat[k].grad = g.reshape(-1)
        if strategy.overrides("after_step"):
            before = {k: p.clone() for k, p in params.items()}
            self.optimizer.step()
            # A copy: a strategy may keep it, and the next step writes into the parameters.
            after = {k: p.clone() for k, p in params.items()}
            state = lift(strategy.after_step, self.runs)(state, Step(before, after, gradient), hparams)
        else:
            self.optimizer.step()
        if strategy.overrides("observe"):
            state = lift(strategy.observe, self.runs)(state, batch, seen, hparams)
        return losses, state

    def _recalled(
        self, lesson: Lesson, batch: Batch, draws: Tensor, strategy: Strategy, state: State, hparams: Hparams
    ) -> tuple[Batch, ...]:
        """The samples that the strategy's memory gives for this step, or nothing."""
        if not strategy.recalls:
            return ()

        def one(state: State, draws: Tensor, hparams: Hparams) -> Params:
            return strategy.recall(state, lesson.task, draws, hparams)

        return (lesson.fetch(lift(one, self.runs)(state, draws, hparams), batch),)

    def _gradient(
        self,
        lesson: Lesson,
        batch: Batch,
        recalled: tuple[Batch, ...],
        strategy: Strategy,
        state: State,
        hparams: Hparams,
    ) -> tuple[Tensor, Params, Params]:
        """Losses on data, shape (R,), their gradients as the strategy combines them, and what it saw on the way."""

        def one(
            params: Params, buffers: Params, batch: Batch, state: State, hparams: Hparams, *recalled: Batch
        ) -> tuple[Any, ...]:
            logits = functools.partial(self._logits, params, buffers)
            net = Network(logits, self._recorded, lesson.task, lesson.earlier)
            memory = recalled[0] if recalled else None
            loss = strategy.loss(net, batch, memory, state, hparams)
            _check_loss(strategy, loss)
            reference = strategy.reference(net, memory, state, hparams)
            return loss.value, loss.seen or {}, *([] if reference is None else [reference])

        losses, seen, *references = lift(one, self.runs)(self.params, self.buffers, batch, state, hparams, *recalled)
        # Runs share no parameter, so the gradient of the sum is each run's own.
        gradient = self._differentiate(losses, retain_graph=bool(references))
        for reference in references:
            gradient = lift(strategy.combine, self.runs)(gradient, self._differentiate(reference), hparams)
        return losses.detach(), gradient, tree_map(torch.Tensor.detach, seen)

    def _differentiate(self, losses: Tensor, *, retain_graph: bool = False) -> Params:
        found = torch.autograd.grad(
            losses.sum(), list(self.params.values()), retain_graph=retain_graph, materialize_grads=True
        )
        return dict(zip(self.params, found, strict=True))

    def _logits(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits: Tensor = functional_call(self.model, (params, buffers), (x,))
        return logits.to(self.recipe.dtype)

    def _recorded(self, values: Params, x: Tensor) -> Tensor:
        """Outputs of an earlier version of the network, in eval mode; `values` are its parameters and buffers."""
        mode = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return self._logits(values, {}, x)
        finally:
            self.model.train(mode)

    @torch.no_grad()
    def accuracy(self, feed: Feed, task: int, active: Tensor) -> Tensor:
        """Test accuracy of every run on a task, shape (R,); NaN for diverged runs.

        Args:
            feed: of this stack.
            task: numbered from 1.
            active: outputs that compete, shape (C,), bool.
        """
        self.model.eval()
        active = active.to(self.device)
        chunk = max(self.evaluated_at_once // self.runs, 100)
        correct, count = torch.zeros(2, self.runs, dtype=torch.int64, device=self.device)
        for x, y in feed.test(task, chunk):
            shared = None if x.ndim == len(self.shape) + 1 else 0
            logits = lift(self._logits, self.runs, in_dims=(0, 0, shared))(self.params, self.buffers, x)
            correct += (masked(logits, active).argmax(-1) == y).sum(1)
            count += (y >= 0).sum(1)
        accuracy: Tensor = correct.double() / count
        return accuracy.masked_fill(self.diverged, torch.nan)

    @functools.cached_property
    def _widest(self) -> int:
        """Values of the largest output of any layer for one input, the input included."""
        x = torch.zeros(1, *self.shape, dtype=self.recipe.dtype, device=self.device)
        return max([x.numel(), *layer_outputs(self.model, x)])

    def networks(self, rows: Sequence[int], active: Tensor) -> Networks:
        """The networks of some runs, in eval mode.

        Args:
            rows: their places in the stack; all of them in order cost no copy.
            active: outputs that compete, shape (C,), bool; the others are masked.
        """
        self.model.eval()
        index = None if list(rows) == list(range(self.runs)) else torch.tensor(rows, device=self.device)

        def of(tensors: Params) -> Params:
            return {k: t.detach() if index is None else t.detach()[index] for k, t in tensors.items()}

        return Networks(self.model, of(self.params), of(self.buffers), None if active.all() else active)

    @property
    def evaluated_at_once(self) -> int:
        """Samples of one run that bounded memory holds."""
        return int(max(EVALUATED.get(self.device.type, 2**24) // self._widest, 1))

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


def _received(
    model: nn.Module, recipe: Recipe, shape: tuple[int, ...], device: torch.device, arrays: Sequence[Any]
) -> Learner:
    """A learner from another process, on a device of the same name."""
    params, buffers, state, diverged = (_tensors(tree, device) for tree in arrays)
    learner = Learner(model.to(device), params, buffers, recipe, shape, state)
    learner.diverged = diverged
    return learner


def _arrays(tree: Any) -> Any:
    """Nested dictionaries of tensors as arrays."""
    return tree_map(lambda t: t.cpu().numpy(), tree)


def _tensors(tree: Any, device: torch.device) -> Any:
    """Nested dictionaries of arrays as tensors; copies, since what arrived may be shared."""
    if isinstance(tree, dict):
        return {k: _tensors(v, device) for k, v in tree.items()}
    return torch.tensor(tree, device=device)


def layer_outputs(model: nn.Module, x: Tensor) -> list[int]:
    """Values that each layer of a network puts out for an input, as one tensor or several."""
    sizes: list[int] = []

    def note(module: nn.Module, args: object, y: object) -> None:
        sizes.append(sum(part.numel() for part in tree_leaves(y) if isinstance(part, Tensor)))

    handles = [m.register_forward_hook(note) for m in model.modules() if not list(m.children())]
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
    return sizes
