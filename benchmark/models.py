"""Networks by name, sized from the data."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmark.keys import generator_seed
from strategies.registry import did_you_mean


class MlpBN(nn.Module):
    """Linear-256, BatchNorm, ReLU; Linear-128, BatchNorm, ReLU; Linear: the network of `references/notebook.md`.

    Args:
        pixels: values an image, flattened.
        classes: outputs.
    """

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(pixels, 256)
        self.bn1 = nn.BatchNorm1d(256)
        self.linear2 = nn.Linear(256, 128)
        self.bn2 = nn.BatchNorm1d(128)
        self.linear3 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of flattened images, shape (B, pixels)."""
        x = self.bn1(self.linear1(x)).relu()
        x = self.bn2(self.linear2(x)).relu()
        logits: Tensor = self.linear3(x)
        return logits


_BUILDING = threading.Lock()

MODELS: dict[str, Callable[[int, int], nn.Module]] = {"mlp-bn": MlpBN}


def check(name: str) -> None:
    """Refuse an unknown name.

    Args:
        name: of a model.

    Raises:
        ValueError: no such model.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, MODELS)} (forgetbench list models)")


def build(name: str, pixels: int, classes: int, *, seed: int) -> nn.Module:
    """A freshly initialised network, the same for every strategy and device.

    Args:
        name: a key of `MODELS`.
        pixels: values an input, flattened.
        classes: outputs.
        seed: of the run.
    """
    check(name)
    # The layers' own initialisation draws from the process's generator, which stacks side by side share.
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed(seed, "init"))
        return MODELS[name](pixels, classes)
