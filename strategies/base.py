"""The strategy contract: what a learner may do to remember, and what the harness hands it.

A strategy is a frozen dataclass of pure functions over dictionaries of tensors. Every method is written for **one**
run; the harness lifts it over a stack of runs with `torch.func.vmap`. So a method must not call `.item()`, branch on a
tensor's value, write into its arguments or draw random numbers: what is random comes in as an argument. What is done in
every step is recorded and replayed (`benchmark.replay`): a method that does anything beside does it in two steps only.

Two kinds of fields:

- `hyper(...)` declares a float hyperparameter. It reaches the methods in `hparams` as a tensor of shape (), so runs
  that differ in it train in one stack. Read `hparams["lam"]`, never `self.lam`, inside a method.
- every other field is a static option, equal within a stack: read `self.accumulate`.

A strategy overrides the few methods it needs:

- what it trains on: `learns`, `trains_on`, `restarts`;
- a penalty on the parameters: `penalty` (and `penalty_gradient`, where a closed form is known);
- another loss on the data: `loss`; a second gradient to reconcile it with: `reference` and `combine`;
- a memory of samples: `recalls` and `recall` before a step, `observe` after it;
- importances: `after_step` along the path, `measure` and `consolidate` after a task (`measure_stack` where those of all
  runs can be had at once).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from strategies.stack import FinishedTasks, Networks

Params = dict[str, Tensor]
"""One tensor a parameter, by the parameter's name."""
State = dict[str, Params]
"""What a strategy remembers: named groups of tensors whose keys, shapes and dtypes never change after `init`."""
Hparams = Mapping[str, Tensor]
"""Float hyperparameters by name, each a tensor of shape ()."""


MASKED = -1e9
"""What a masked logit becomes. Finite, so that a probability of zero times its logarithm is zero and not NaN."""


class Setting(NamedTuple):
    """What the size of a strategy's state may depend on, beside the parameters.

    Attributes:
        tasks: length of the sequence.
        outputs: of the network, C.
        buffers: of the network, one tensor a buffer (BatchNorm's statistics).
    """

    tasks: int
    outputs: int
    buffers: Params


class Batch(NamedTuple):
    """Training samples of one run.

    Attributes:
        x: inputs as the network takes them, shape (B, ...).
        y: which output is right, shape (B,), int64.
        active: which outputs compete for each sample, shape (B, C), bool: its task's in a task-incremental scenario,
            those of all tasks so far in a class-incremental one, all in a domain-incremental one.
        task: the task each sample comes from, numbered from 1, shape (B,), int64.
        id: names a sample for as long as the run lasts, shape (B,), int64, >= 0; this is what a memory keeps.
            Recalled samples have what `recall` asked for: -1 where the memory had none to give (the rest is then that
            of a sample of the batch in training, and must not count).
        key: uniform in [0, 1), shape (B,), float64; a fixed one a sample, drawn from the run's seed. A memory that
            keeps the smallest keys keeps a uniform random subset of what it saw.
        kept: whatever else `recall` returned.
    """

    x: Tensor
    y: Tensor
    active: Tensor
    task: Tensor
    id: Tensor
    key: Tensor
    kept: Params


@dataclass(frozen=True)
class Network:
    """The network of one run while it trains, as `Strategy.loss` sees it.

    Attributes:
        logits: inputs (B, ...) -> outputs (B, C), not masked, of the network in training.
        recorded: parameters and buffers by name, inputs (B, ...) -> outputs (B, C), in eval mode and without gradient:
            an earlier version of the network, as `measure` may have returned it.
        task: number of the task in training, from 1.
        earlier: outputs of earlier tasks, shape (G, C), bool: one row for each group that competes (a head a task in a
            task-incremental scenario, else one row), and none while the first task trains.
    """

    logits: Callable[[Tensor], Tensor]
    recorded: Callable[[Params, Tensor], Tensor]
    task: int
    earlier: Tensor


class Loss(NamedTuple):
    """What `Strategy.loss` returns.

    Attributes:
        value: shape ().
        seen: tensors for `observe`, such as the logits of the batch.
    """

    value: Tensor
    seen: Params | None = None


def masked(logits: Tensor, active: Tensor) -> Tensor:
    """Logits with the outputs that do not compete set to `MASKED`; both broadcast to (B, C)."""
    return logits.masked_fill(~active, MASKED)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each sample over the outputs that compete for it, shape (B,)."""
    return F.cross_entropy(masked(logits, batch.active), batch.y, reduction="none")


class Step(NamedTuple):
    """One optimiser step, as `Strategy.after_step` sees it; each field has one tensor a parameter."""

    before: Params
    after: Params
    task_gradient: Params
    """Gradient of the task's loss alone, without any penalty."""


@dataclass(frozen=True)
class FinishedTask:
    """The training data of the task a run has just finished, as `Strategy.measure` sees it.

    Attributes:
        number: tasks are numbered from 1.
        inputs: makes `x`; called when `x` is first read.
        y: labels, shape (N,), int64.
        generator: keyed by seed, purpose and task, so that what is drawn is equal for all strategies of a seed.
    """

    number: int
    inputs: Callable[[], Tensor]
    y: Tensor
    generator: torch.Generator

    @functools.cached_property
    def x(self) -> Tensor:
        """Inputs as the model takes them, shape (N, ...)."""
        return self.inputs()


def hyper(
    default: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    tune: tuple[float, float] | None = None,
    doc: str = "",
) -> Any:
    """A float hyperparameter that may differ from run to run within a stack.

    Args:
        default: its value where an experiment gives none.
        low: smallest allowed value.
        high: largest allowed value.
        tune: range that a study searches where it names none, on a log scale.
        doc: one line for `forgetbench list strategies`.
    """
    return field(default=default, metadata={"hyper": True, "low": low, "high": high, "tune": tune, "doc": doc})


def option(default: Any, *, low: float = -math.inf, doc: str = "") -> Any:
    """A static option, equal for all runs of a stack.

    Args:
        default: its value where an experiment gives none.
        low: smallest allowed value, for numbers.
        doc: one line for `forgetbench list strategies`.
    """
    return field(default=default, metadata={"hyper": False, "low": low, "high": math.inf, "tune": None, "doc": doc})


@dataclass(frozen=True)
class Strategy:
    """How a learner protects old tasks while it learns a new one. The base class protects nothing.

    Order of calls for one run: `init`; then for each task training steps; and between tasks `measure`, then
    `consolidate`. A step is `recall`, `loss` (and `reference`, `combine`), `penalty_gradient`, the optimiser's update,
    `after_step`, `observe`.
    """

    name: ClassVar[str] = ""
    plain_first_task: ClassVar[bool] = True
    """True where the first task trains as without a strategy: such runs share it, one training a seed (trunk).

    A strategy with an `after_step` or `observe` of its own never shares it.
    """

    protects: ClassVar[bool] = True
    """False for a baseline that does not claim to forget less than fine-tuning."""
    neutral: ClassVar[tuple[str, ...]] = ("lam",)
    """Hyperparameters that leave fine-tuning where all of them are 0; empty, or none it has, where nothing does."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, is_hyper = getattr(self, f.name), f.metadata.get("hyper", False)
            is_number = isinstance(value, Real) and not isinstance(value, bool)  # NumPy's are numbers too
            low, high = f.metadata.get("low", -math.inf), f.metadata.get("high", math.inf)
            if (is_number and not low <= float(value) <= high) or (is_hyper and not is_number):
                bounds = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise ValueError(f"{f.name}: expected a number {bounds}, got {value!r}")
            if is_hyper:
                object.__setattr__(self, f.name, float(value))

    @classmethod
    def hyperparameters(cls) -> tuple[str, ...]:
        """Names of the float hyperparameters."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("hyper"))

    def options(self) -> dict[str, Any]:
        """Every field by name: float hyperparameters and static options."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def family(self) -> Hashable:
        """Runs of equal family may train in one stack.

        They must agree on everything but the float hyperparameters and `measure` (`measure_stack`), which is called for
        runs of equal options.
        """
        hypers = self.hyperparameters()
        return (type(self), *((k, v) for k, v in self.options().items() if k not in hypers))

    @classmethod
    def overrides(cls, method: str) -> bool:
        """Whether this class has a `method` of its own, so that the harness need not pay for an empty one."""
        return getattr(cls, method) is not getattr(Strategy, method)

    @classmethod
    def shares_first_task(cls) -> bool:
        """Whether runs of this strategy branch from a trunk."""
        watches = any(cls.overrides(method) for method in ("after_step", "observe"))
        return cls.plain_first_task and not watches

    @classmethod
    def measures_stacks(cls) -> bool:
        """Whether `measure_stack` stands for `measure`: not where a subclass has a `measure` of its own alone."""
        definer = next(c for c in cls.__mro__ if not {"measure", "measure_stack"}.isdisjoint(vars(c)))
        return definer is not Strategy and "measure_stack" in vars(definer)

    def learns(self, task: int) -> bool:
        """Whether a task is trained on at all."""
        return True

    def trains_on(self, task: int) -> Sequence[int]:
        """Numbers of the tasks whose data are there while a task trains; an epoch goes through all of them."""
        return (task,)

    def restarts(self, task: int) -> bool:
        """Whether a task starts from freshly initialised parameters."""
        return False

    def init(self, params: Params, setting: Setting) -> State:
        """The state before anything is consolidated, with every tensor it will ever hold.

        Args:
            params: where training starts; for a run that branches from a trunk, where the first task ended.
            setting: what else sizes may depend on.
        """
        return {}

    def loss(self, net: Network, batch: Batch, recalled: Batch | None, state: State, hparams: Hparams) -> Loss:
        """The loss on data, to which the penalty is added: mean cross-entropy over the active outputs.

        Args:
            net: the network in training.
            batch: of the task in training, B samples.
            recalled: the samples `recall` asked for, `recalls` of them; None if that is 0.
            state: of this strategy.
            hparams: float hyperparameters.
        """
        return Loss(cross_entropy(net.logits(batch.x), batch).mean())

    def reference(self, net: Network, recalled: Batch | None, state: State, hparams: Hparams) -> Tensor | None:
        """A second loss, shape (), whose gradient `combine` sees; None where there is nothing to combine."""
        return None

    def combine(self, gradient: Params, reference: Params, hparams: Hparams) -> Params:
        """The gradient to follow, from those of `loss` and of `reference`, where there is one."""
        return gradient

    def penalty(self, state: State, params: Params, hparams: Hparams) -> Tensor:
        """The term added to the loss, shape ()."""
        return torch.zeros((), dtype=next(iter(params.values())).dtype, device=next(iter(params.values())).device)

    def penalty_gradient(self, state: State, params: Params, hparams: Hparams) -> Params:
        """Gradient of `penalty` by `params`, in tensors of its own: automatic unless a closed form is known."""
        gradient: Params = torch.func.grad(lambda p: self.penalty(state, p, hparams))(params)
        # Automatic differentiation may hand one tensor out twice; the harness writes into what it is given.
        return {k: g.clone() for k, g in gradient.items()}

    @property
    def recalls(self) -> int:
        """Samples recalled from memory each step."""
        return 0

    def recall(self, state: State, task: int, draws: Tensor, hparams: Hparams) -> Params:
        """Which samples to recall: `id`, shape (recalls,), -1 for none; and whatever `loss` wants to know of them.

        Args:
            state: of this strategy.
            task: number of the task in training.
            draws: uniform in [0, 1), shape (recalls,), float64, new ones each step.
            hparams: float hyperparameters.
        """
        raise NotImplementedError

    def observe(self, state: State, batch: Batch, seen: Params, hparams: Hparams) -> State:
        """The state after a step on a batch, for memories.

        Args:
            state: of this strategy.
            batch: what was trained on, recalled samples not included.
            seen: from `Loss.seen`.
            hparams: float hyperparameters.
        """
        return state

    def after_step(self, state: State, step: Step, hparams: Hparams) -> State:
        """The state after an optimiser step, for importances gathered along the path."""
        return state

    def measure(self, model: nn.Module, task: FinishedTask) -> Params:
        """What the finished task made important, from the trained model (in eval mode) and the task's training data.

        Called for one run at a time, outside `vmap`, so it may use hooks, loops and `task.generator`. It sees neither
        state nor hyperparameters: runs that branch from one trunk and measure alike are measured once. Outputs that do
        not compete in this task are masked in what the model returns.
        """
        from strategies.stack import FinishedTasks, Networks  # which are made of what is defined here

        if not self.overrides("measure_stack"):
            return {}
        alone = FinishedTasks.of(task.x, task.y, task.generator, task.number)
        return {k: v[0] for k, v in self.measure_stack(Networks.of(model), alone).items()}

    def measure_stack(self, networks: Networks, task: FinishedTasks) -> Params:
        """What `measure` says of each of R runs, each tensor (R, ...): for those who can tell of all at once.

        A strategy needs one of the two at most: `measure` is then this for a stack of one. Where it has both they must
        say the same, which the conformance kit checks.

        Args:
            networks: of the runs, in eval mode.
            task: their training data.
        """
        raise NotImplementedError

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """The state after a task, from the trained parameters and what `measure` returned."""
        return state


def check_state(name: str, method: str, expected: State, got: State) -> None:
    """Refuse a state whose structure is not the one `init` made.

    Args:
        name: of the strategy.
        method: of it, that returned `got`.
        expected: from `init`.
        got: from that method.

    Raises:
        ValueError: another group, key, shape or dtype; the message has the name, what was expected and what came.
    """

    def leaves(state: State) -> dict[str, str]:
        return {
            f"{group}[{k!r}]": f"{str(v.dtype).removeprefix('torch.')} of shape {tuple(v.shape)}"
            for group, part in state.items()
            for k, v in part.items()
        }

    before, after = leaves(expected), leaves(got)
    for where in [*before, *(after.keys() - before.keys())]:
        if before.get(where) != after.get(where):
            raise ValueError(
                f"strategy {name!r}, {method}, state {where}: expected {before.get(where, 'nothing')}, "
                f"got {after.get(where, 'nothing')}; a state keeps the structure that `init` gave it"
            )
