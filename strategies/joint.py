"""Training on the data of all tasks so far: the upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.base import Strategy, option


@dataclass(frozen=True)
class Joint(Strategy):
    """At task k: mean cross-entropy over the samples of tasks 1..k, each as likely as any other.

    `retrained` starts every task from freshly initialised parameters. After task k this is the reference of
    intransigence (Chaudhry et al. 2018, https://arxiv.org/abs/1801.10112). `continued` goes on from the parameters of
    task k−1, so early tasks have been trained on more often. A task's training grows with its
    data: epochs go through all of them, and iterations are taken once for each task.
    """

    name: ClassVar[str] = "joint"
    mode: Literal["retrained", "continued"] = option(
        "retrained", doc="retrained: each task from fresh parameters; continued: from the last task's"
    )

    def trains_on(self, task: int) -> Sequence[int]:
        """Every task so far."""
        return range(1, task + 1)

    def restarts(self, task: int) -> bool:
        """Every task after the first, where retrained."""
        return self.mode == "retrained" and task > 1
