"""The checks any strategy must pass, built in or somebody else's.

With pytest, in a package that has a strategy `Mine`:

```python
import pytest
from strategies import conformance

@pytest.mark.parametrize("case", conformance.cases(Mine), ids=str)
def test_mine_conforms(case):
    case.run()
```

On the command line: `forgetbench check package.module:Mine`. The checks here call a strategy's methods one by one on a
small MLP, and in one of them on a convolutional network; those of `benchmark.conformance` train it through the harness.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import typing
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.func import functional_call

from strategies.base import (
    Batch,
    FinishedTask,
    Network,
    Params,
    Setting,
    State,
    Step,
    Strategy,
    check_state,
)
from strategies.naive import Naive
from strategies.stack import FinishedTasks, Networks, Places

Check = Callable[[Strategy], None]
"""Raises `Failed` with the reason, or `Inapplicable` where the strategy has nothing to check."""
Build = Callable[[], nn.Module]

TASKS, STEPS, SAMPLES, FEATURES, OUTPUTS = 3, 4, 24, 30, 4


class Failed(AssertionError):
    """A strategy breaks the contract; the message says where, what was expected and what came."""


class Inapplicable(unittest.SkipTest):
    """A check that says nothing about this strategy; pytest counts it as skipped."""


@dataclass(frozen=True)
class Case:
    """One check of one variant of a strategy."""

    strategy: Strategy
    check: Check

    @property
    def title(self) -> str:
        """The check in words."""
        return (self.check.__doc__ or self.check.__name__).split("\n")[0].rstrip(".")

    def run(self) -> None:
        """Raise `Failed` with the reason, or `Inapplicable`."""
        self.check(self.strategy)

    def __str__(self) -> str:
        return f"{label(self.strategy)}-{self.check.__name__}"


def cases(cls: type[Strategy]) -> list[Case]:
    """Every check of every variant of a strategy, the contract's own first."""
    # Above this package: found when asked for, so that strategies can be imported without the harness.
    harness: list[Check] = importlib.import_module("benchmark.conformance").CHECKS
    return [Case(strategy, check) for strategy in variants(cls) for check in (*CHECKS, *harness)]


def variants(cls: type[Strategy]) -> list[Strategy]:
    """A strategy with its defaults, and with each other value of each option that is a choice (a `Literal`).

    Args:
        cls: the strategy.

    Raises:
        ValueError: it has no name, as a base class, or a field without a default.
    """
    if not cls.name:
        raise ValueError(f"{cls.__name__} has no `name`: a base class, or a strategy that needs one")
    if needed := [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]:
        raise ValueError(f"{cls.__name__}: fields need defaults to be checked with: {', '.join(needed)}")
    hints, default = typing.get_type_hints(cls), cls()
    choices = {f.name: get_args(hints[f.name]) for f in dataclasses.fields(cls) if get_origin(hints[f.name]) is Literal}
    others = [{k: v} for k, values in choices.items() for v in values if v != getattr(default, k)]
    return [default, *(dataclasses.replace(default, **other) for other in others)]


def label(strategy: Strategy) -> str:
    """`ewc[estimator=exact]`: the name, and the choices that are not the default."""
    default = type(strategy)()
    changed = [f"{k}={v}" for k, v in strategy.options().items() if v != getattr(default, k)]
    return f"{strategy.name}[{','.join(changed)}]" if changed else strategy.name


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, OUTPUTS))


def _cnn() -> nn.Module:
    # No two axes of its weight are alike, so that none is taken for another unnoticed.
    image, convolution = nn.Unflatten(1, (2, 3, 5)), nn.Conv2d(2, 6, (3, 4))
    return nn.Sequential(image, convolution, nn.Tanh(), nn.Flatten(), nn.Linear(12, OUTPUTS))


def the_state_keeps_its_structure(strategy: Strategy, build: Build = _mlp) -> None:
    """Keys, shapes and dtypes of the state stay what `init` made them."""
    life = _Life(strategy, build)
    for _ in range(TASKS):
        for stage, method in ((life.train, "after_step or observe"), (life.consolidate, "consolidate")):
            stage()
            try:
                check_state(strategy.name, method, life.first, life.state)
            except ValueError as error:
                raise Failed(str(error)) from error


def arguments_are_never_written_to(strategy: Strategy) -> None:
    """No method writes into its arguments."""
    _Life(strategy, guarded=True).through(TASKS)


def the_state_survives_saving_and_loading(strategy: Strategy) -> None:
    """The state is tensors alone: it survives `torch.save` and `torch.load(weights_only=True)`."""
    life, file = _Life(strategy).through(2), io.BytesIO()
    torch.save(life.state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    if not _equal(loaded, life.state):
        raise Failed("the state that was loaded is not the one that was saved")


def randomness_is_handed_in(strategy: Strategy) -> None:
    """Nothing is drawn but what is handed in: two lives are the same, whatever PyTorch's own generator says."""
    states = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            life = _Life(strategy)
            torch.manual_seed(seed)
            states.append(life.through(2).state)
    if not _equal(*states):
        raise Failed("two lives with the same draws differ: take what is random from the arguments")


def tasks_come_in_their_time(strategy: Strategy) -> None:
    """It trains on tasks that are there already, each once, and learns the first."""
    for task in range(1, TASKS + 1):
        sources = list(strategy.trains_on(task))
        if not sources or len(set(sources)) < len(sources) or not set(sources) <= set(range(1, task + 1)):
            raise Failed(f"task {task}: expected some of tasks 1 to {task} to train on, got {sources}")
    if not strategy.learns(1) or strategy.restarts(1):
        raise Failed("expected the first task to be learnt, from the parameters it starts with")


def a_shared_first_task_is_plain(strategy: Strategy) -> None:
    """Where runs branch from a trunk, the first task trains as fine-tuning does and leaves the state as it was."""
    if not strategy.shares_first_task():
        raise Inapplicable("it trains the first task itself")
    life, plain = _Life(strategy), _Life(Naive())
    life.train()
    plain.train()
    if not _equal(life.params, plain.params) or not _equal(life.state, life.first) or strategy.recalls:
        raise Failed("the first task is not fine-tuning alone: set `plain_first_task = False`")


def a_memory_recalls_what_it_saw(strategy: Strategy) -> None:
    """What is recalled was seen before: ids (recalls,) of observed samples, -1 for none, and some in the end."""
    if not strategy.recalls:
        raise Inapplicable("no memory")
    life = _Life(strategy).through(TASKS)
    for seen, ids in life.recalled:
        if ids.shape != (strategy.recalls,) or ids.dtype != torch.int64:
            raise Failed(f"expected int64 ids of shape ({strategy.recalls},), got {ids.dtype} of {tuple(ids.shape)}")
        if strange := sorted(set(ids.tolist()) - seen - {-1}):
            raise Failed(f"expected ids of samples seen before, or -1, got {strange}")
    if all((ids == -1).all() for _, ids in life.recalled):
        raise Failed("nothing was ever recalled")


def the_penalty_is_zero_before_anything_is_learnt(strategy: Strategy) -> None:
    """The penalty is a finite scalar, and zero before the first consolidation."""
    life = _with_penalty(strategy)
    value = strategy.penalty(life.state, _moved(life.params, 1.0), life.hparams)
    if value.shape != () or not value.isfinite() or value != 0:
        raise Failed(f"expected a scalar 0 before the first consolidation, got {value}")


def the_penalty_vanishes_at_the_anchor(strategy: Strategy) -> None:
    """Penalty and gradient are zero at the anchor; away from it the penalty is a finite scalar."""
    life = _with_penalty(strategy).through(1)
    value = strategy.penalty(life.state, life.params, life.hparams)
    gradient = strategy.penalty_gradient(life.state, life.params, life.hparams)
    if value != 0 or any(g.any() for g in gradient.values()):
        raise Failed(f"expected no penalty and no gradient at the anchor, got {value} and {gradient}")
    away = strategy.penalty(life.state, _moved(life.params, 1.0), life.hparams)
    if away.shape != () or not away.isfinite():
        raise Failed(f"expected a finite scalar away from the anchor, got {away}")


def a_quadratic_penalty_is_never_negative(strategy: Strategy) -> None:
    """A quadratic penalty is never negative, and not zero everywhere."""
    life = _with_penalty(strategy).through(1)
    near, far = (strategy.penalty(life.state, _moved(life.params, by), life.hparams) for by in (0.5, 1.0))
    if not torch.isclose(far, 4 * near, rtol=1e-6, atol=0):
        raise Inapplicable("not quadratic")
    values = [float(strategy.penalty(life.state, _moved(life.params, 1.0, s), life.hparams)) for s in range(20)]
    if min(values) < 0 or max(values) == 0:
        raise Failed(f"expected penalties >= 0 and some > 0 away from the anchor, got {min(values)} to {max(values)}")


def the_penaltys_gradient_is_its_gradient(strategy: Strategy, build: Build = _mlp) -> None:
    """`penalty_gradient` is the derivative of `penalty`, in tensors of its own."""
    life = _with_penalty(strategy, build).through(TASKS)
    away = _moved(life.params, 0.5)
    expected = torch.func.grad(lambda p: strategy.penalty(life.state, p, life.hparams))(away)
    found, kept = strategy.penalty_gradient(life.state, away, life.hparams), _copied(life.state)
    if found.keys() != expected.keys():
        raise Failed(f"expected a gradient for {', '.join(expected)}, got {', '.join(found)}")
    for k, e in expected.items():
        if found[k].shape != e.shape or (found[k] - e).abs().max() > 1e-9 * e.abs().max().clamp(min=1):
            raise Failed(f"gradient of {k!r}: expected {e}, got {found[k]}")
        found[k].add_(1)  # as the harness does
    if not _equal(kept, life.state):
        raise Failed("writing into the gradient changes the state: return tensors of its own")


def a_stack_measures_what_each_run_measures(strategy: Strategy, build: Build = _mlp) -> None:
    """`measure_stack` says of each run what `measure` says of it alone."""
    if not strategy.measures_stacks():
        raise Inapplicable("measured one run at a time")
    lives = [_Life(strategy, build, seed=seed) for seed in range(3)]
    tasks, alone = [], []
    for seed, life in enumerate(lives):
        life.train()
        x, y = life.samples(torch.arange(SAMPLES - 3 * seed))  # not as many in each run
        tasks.append((x, y))
        task = FinishedTask(1, functools.partial(torch.clone, x), y, torch.Generator().manual_seed(seed))
        alone.append({k: v.detach().clone() for k, v in strategy.measure(life.trained(), task).items()})
    x, y = (nn.utils.rnn.pad_sequence([t[i] for t in tasks], True, -i) for i in range(2))

    def inputs(places: Places) -> Tensor:
        if isinstance(places, slice):
            return x[:, places]
        return torch.stack([own[at] for own, at in zip(x, places, strict=True)])

    params = {k: torch.stack([life.params[k] for life in lives]) for k in lives[0].params}
    finished = FinishedTasks(1, inputs, y, [torch.Generator().manual_seed(seed) for seed in range(3)])
    found = strategy.measure_stack(Networks(lives[0].trained(), params, {}), finished)
    for r, expected in enumerate(alone):
        if found.keys() != expected.keys():
            raise Failed(f"`measure_stack`: expected {', '.join(expected)}, got {', '.join(found)}")
        for k, e in expected.items():
            if found[k].shape != (3, *e.shape) or (found[k][r] - e).abs().max() > 1e-9 * e.abs().max():
                raise Failed(f"{k!r} of run {r} of 3: `measure` says {e}, `measure_stack` {found[k]}")


def weights_may_have_four_dimensions(strategy: Strategy) -> None:
    """State, gradient of the penalty and stacked measure are right for a convolutional network too."""
    for check in (
        the_state_keeps_its_structure,
        the_penaltys_gradient_is_its_gradient,
        a_stack_measures_what_each_run_measures,
    ):
        with contextlib.suppress(Inapplicable):
            check(strategy, _cnn)


CHECKS: list[Check] = [
    the_state_keeps_its_structure,
    arguments_are_never_written_to,
    the_state_survives_saving_and_loading,
    randomness_is_handed_in,
    tasks_come_in_their_time,
    a_shared_first_task_is_plain,
    a_memory_recalls_what_it_saw,
    the_penalty_is_zero_before_anything_is_learnt,
    the_penalty_vanishes_at_the_anchor,
    a_quadratic_penalty_is_never_negative,
    the_penaltys_gradient_is_its_gradient,
    a_stack_measures_what_each_run_measures,
    weights_may_have_four_dimensions,
]


def _with_penalty(strategy: Strategy, build: Build = _mlp) -> _Life:
    if not strategy.overrides("penalty"):
        raise Inapplicable("no penalty")
    return _Life(strategy, build)


class _Life:
    """One run of a strategy on a small network, method by method as the harness calls them; float64, plain steps.

    Args:
        strategy: whose methods are called.
        build: makes the network.
        guarded: check after each call that its arguments are what they were.
        seed: of the initial weights.
    """

    def __init__(self, strategy: Strategy, build: Build = _mlp, *, guarded: bool = False, seed: int = 0) -> None:
        self.strategy, self._guarded, self._task = strategy, guarded, 0
        self._random = torch.Generator().manual_seed(0)
        self._seen: set[int] = set()
        self.recalled: list[tuple[set[int], Tensor]] = []
        """What was seen before each recall, and the ids it gave."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build().double()
        self.params: Params = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        values = {k: getattr(strategy, k) for k in strategy.hyperparameters()}
        self.hparams = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
        self.first: State = self._call(strategy.init, self.params, Setting(TASKS, OUTPUTS, {}))
        self.state = _copied(self.first)

    def through(self, tasks: int) -> _Life:
        """Train and consolidate that many tasks."""
        for _ in range(tasks):
            self.train()
            self.consolidate()
        return self

    def train(self) -> None:
        """A few steps on the next task."""
        self._task += 1
        for step in range(STEPS if self.strategy.learns(self._task) else 0):
            self._step(self._batch(torch.arange(step * 6, step * 6 + 6) + (self._task - 1) * SAMPLES))

    def consolidate(self) -> None:
        """What follows a task."""
        x, y = self.samples(torch.arange(SAMPLES) + (self._task - 1) * SAMPLES)
        self.trained()
        task = FinishedTask(self._task, lambda: x, y, torch.Generator().manual_seed(self._task))
        with torch.enable_grad():
            own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            before = _copied((x, y, own))
            measured = {k: v.detach() for k, v in self.strategy.measure(self.model, task).items()}
            if self._guarded and not _equal(before, (x, y, own)):
                raise Failed("`measure` wrote into the task or the model: work on copies")
        self.state = self._call(self.strategy.consolidate, self.state, self.params, measured, self.hparams)

    def trained(self) -> nn.Module:
        """The network as it is now, in eval mode."""
        self.model.load_state_dict(self.params)
        return self.model.eval()

    def _step(self, batch: Batch) -> None:
        strategy, recalled = self.strategy, None
        if strategy.recalls:
            draws = torch.rand(strategy.recalls, dtype=torch.float64, generator=self._random)
            asked = self._call(strategy.recall, self.state, self._task, draws, self.hparams)
            self.recalled.append((set(self._seen), asked["id"]))
            kept = {k: v for k, v in asked.items() if k != "id"}
            known = torch.where(asked["id"] < 0, batch.id[0], asked["id"])
            recalled = self._batch(known)._replace(id=asked["id"], kept=kept)
        leaves = {k: p.clone().requires_grad_() for k, p in self.params.items()}
        net = self._network(leaves)
        loss = self._call(strategy.loss, net, batch, recalled, self.state, self.hparams)
        gradient = _gradient(loss.value, leaves, retain=True)
        reference = self._call(strategy.reference, net, recalled, self.state, self.hparams)
        if reference is not None:
            gradient = self._call(strategy.combine, gradient, _gradient(reference, leaves), self.hparams)
        extra = self._call(strategy.penalty_gradient, self.state, self.params, self.hparams)
        before = self.params
        # A penalty as strong as its default may make a plain step overshoot: its direction is enough here.
        self.params = {k: p - 0.1 * gradient[k] - 1e-6 * extra[k].clamp(-1, 1) for k, p in before.items()}
        step = Step(before, self.params, gradient)
        self.state = self._call(strategy.after_step, self.state, step, self.hparams)
        seen = {k: v.detach() for k, v in (loss.seen or {}).items()}
        self.state = self._call(strategy.observe, self.state, batch, seen, self.hparams)
        self._seen |= set(batch.id.tolist())

    def _network(self, params: Params) -> Network:
        def logits(x: Tensor) -> Tensor:
            out: Tensor = functional_call(self.model, params, (x,))
            return out

        def recorded(values: Params, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = functional_call(self.model, values, (x,))
            return out

        earlier = torch.ones(min(self._task - 1, 1), OUTPUTS, dtype=torch.bool)
        return Network(logits, recorded, self._task, earlier)

    def _batch(self, ids: Tensor) -> Batch:
        x, y = self.samples(ids)
        active = torch.ones(len(ids), OUTPUTS, dtype=torch.bool)
        return Batch(x, y, active, ids // SAMPLES + 1, ids, (ids * 0.618033988749895) % 1.0, {})

    def samples(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels by id."""
        random = torch.Generator().manual_seed(1)
        x = torch.rand(TASKS * SAMPLES, FEATURES, dtype=torch.float64, generator=random)
        return x[ids], torch.randint(0, OUTPUTS, (TASKS * SAMPLES,), generator=random)[ids]

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        before = _copied(args) if self._guarded else None
        result = method(*args)
        if self._guarded and not _equal(before, args):
            raise Failed(f"`{method.__name__}` wrote into its arguments: return new tensors")
        return result


def _gradient(loss: Tensor, leaves: Params, *, retain: bool = False) -> Params:
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=retain, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _moved(params: Params, by: float, seed: int = 1) -> Params:
    random = torch.Generator().manual_seed(seed)
    return {k: p + by * torch.randn(p.shape, dtype=p.dtype, generator=random) for k, p in params.items()}


def _copied(tree: Any) -> Any:
    """A copy of nested dictionaries and tuples of tensors; what else there is stays."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {k: _copied(v) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(_copied, tree))
    return tree


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a is b
