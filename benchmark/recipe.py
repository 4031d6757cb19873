"""How every task is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

Precision = Literal["float32", "float64", "tf32", "bfloat16"]


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
        precision: float32; float64; tf32 (float32 but for products, whose factors a GPU rounds to a fraction of 10 bits
            and a CPU does not); or bfloat16 (autocast; parameters stay float32).
        compile: training steps into kernels of their own: steps are faster after seconds, and need a C++ compiler. The
            results differ by rounding.
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
    precision: Precision = "float32"
    compile: bool = False
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("expected epochs or iterations, one of the two")

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and inputs."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def steps(self, images: int, tasks: int = 1) -> tuple[int, int]:
        """Steps an epoch and steps in all.

        Args:
            images: size of the training set.
            tasks: how many tasks' images it holds; `iterations` counts for each.
        """
        an_epoch = max(images // self.batch_size, 1)
        return an_epoch, self.iterations * tasks if self.iterations is not None else an_epoch * (self.epochs or 0)

    def spec(self) -> dict[str, Any]:
        """Every field by name; without `compile` where it is off, as before there was any."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "compile" or v}

    @contextmanager
    def products(self, device: torch.device) -> Generator[None, None, None]:
        """While it lasts, a GPU's products and convolutions are as `precision` says: PyTorch's defaults differ.

        Args:
            device: on which to train; on the CPU there is nothing to set.
        """
        if device.type != "cuda":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self.precision == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before
