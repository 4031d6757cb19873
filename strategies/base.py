"""The strategy contract: what a learner may do to remember, and what the harness hands it.

A strategy is a frozen dataclass of pure functions over dictionaries of tensors. Every method is written for **one**
run; the harness lifts it over a stack of runs with `torch.func.vmap`. So a method must not call `.item()`, branch on a
tensor's value, write into its arguments or draw random numbers other than from the generator it is handed.

Two kinds of fields:

- `hyper(...)` declares a float hyperparameter. It reaches the methods in `hparams` as a tensor of shape (), so runs
  that differ in it train in one stack. Read `hparams["lam"]`, never `self.lam`, inside a method.
- every other field is a static option, equal within a stack: read `self.accumulate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""One tensor a parameter, by the parameter's name."""
State = dict[str, Params]
"""What a strategy remembers: named groups of tensors whose keys, shapes and dtypes never change after `init`."""
Hparams = Mapping[str, Tensor]
"""Float hyperparameters by name, each a tensor of shape ()."""


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
        x: inputs as the model takes them, shape (N, ...).
        y: labels, shape (N,), int64.
        generator: keyed by seed, purpose and task, so that what is drawn is equal for all strategies of a seed.
    """

    number: int
    x: Tensor
    y: Tensor
    generator: torch.Generator


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

    Order of calls for one run: `init`; then for each task training steps, each using `penalty_gradient` and followed
    by `after_step`; and between tasks `measure`, then `consolidate`.
    """

    name: ClassVar[str] = ""
    plain_first_task: ClassVar[bool] = True
    """True where the first task trains as without a strategy: such runs share it, one training a seed (trunk).

    A strategy with an `after_step` of its own never shares it.
    """

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("hyper"):
                object.__setattr__(self, f.name, float(value))
            low, high = f.metadata.get("low", -math.inf), f.metadata.get("high", math.inf)
            if isinstance(value, int | float) and not low <= value <= high:
                bounds = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise ValueError(f"{f.name}: expected a number {bounds}, got {value:g}")

    @classmethod
    def hyperparameters(cls) -> tuple[str, ...]:
        """Names of the float hyperparameters."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("hyper"))

    def options(self) -> dict[str, Any]:
        """Every field by name: float hyperparameters and static options."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def family(self) -> Hashable:
        """Runs of equal family may train in one stack.

        They must agree on everything but the float hyperparameters and `measure`, which is called a run at a time.
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
        return cls.plain_first_task and not cls.overrides("after_step")

    def init(self, params: Params) -> State:
        """The state before anything is consolidated, with every tensor it will ever hold.

        Args:
            params: where training starts; for a run that branches from a trunk, where the first task ended.
        """
        return {}

    def penalty(self, state: State, params: Params, hparams: Hparams) -> Tensor:
        """The term added to the task's loss, shape ()."""
        return torch.zeros((), dtype=next(iter(params.values())).dtype, device=next(iter(params.values())).device)

    def penalty_gradient(self, state: State, params: Params, hparams: Hparams) -> Params:
        """Gradient of `penalty` by `params`, in tensors of its own: automatic unless a closed form is known."""
        gradient: Params = torch.func.grad(lambda p: self.penalty(state, p, hparams))(params)
        # Automatic differentiation may hand one tensor out twice; the harness writes into what it is given.
        return {k: g.clone() for k, g in gradient.items()}

    def after_step(self, state: State, step: Step, hparams: Hparams) -> State:
        """The state after an optimiser step, for importances gathered along the path."""
        return state

    def measure(self, model: nn.Module, task: FinishedTask) -> Params:
        """What the finished task made important, from the trained model (in eval mode) and the task's training data.

        Called for one run at a time, outside `vmap`, so it may use hooks, loops and `task.generator`. It sees neither
        state nor hyperparameters: runs that branch from one trunk and measure alike are measured once.
        """
        return {}

    def consolidate(self, state: State, params: Params, measured: Params, hparams: Hparams) -> State:
        """The state after a task, from the trained parameters and what `measure` returned."""
        return state
