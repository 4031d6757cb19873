"""Fine-tuning: nothing is protected. The lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.base import Strategy


@dataclass(frozen=True)
class Naive(Strategy):
    """Fine-tuning on each task in turn, McCloskey & Cohen 1989."""

    name: ClassVar[str] = "naive"
    protects: ClassVar[bool] = False
