"""No plasticity: the network stays as the first task left it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.base import Strategy


@dataclass(frozen=True)
class Frozen(Strategy):
    """θ is learned on the first task and kept: no forgetting at all, and nothing new learned.

    The lower bound of plasticity, as `naive` is that of stability. What it scores on later tasks is what the first
    one transfers; where tasks have heads of their own, an untrained head leaves chance.
    """

    name: ClassVar[str] = "frozen"

    def learns(self, task: int) -> bool:
        """The first task only."""
        return task == 1
