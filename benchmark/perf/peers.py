"""Avalanche in the notebook's setting, with the same network, batch and optimiser: how fast, and how accurate.

It runs where Avalanche is installed: `make perf-peers`. It reads images one by one, as torchvision's data sets give
them and its own benchmarks hand them on, and also tensors, which is faster.

References:
    Carta et al. 2023, Avalanche: A PyTorch Library for Deep Continual Learning, https://arxiv.org/abs/2302.01766.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from benchmark import models, plan, scenarios, schedule
from benchmark.data import ImageSet
from benchmark.perf.measuring import Subject
from benchmark.perf.training import CPU, STEPS, Made, OneByOne
from benchmark.recipe import Recipe
from benchmark.runs import Run
from strategies import EWC, Naive, Strategy

LAM = 1e6  # this Fisher, squares of means over a batch, is about a hundredth of the mean of squares
SEEDS = (0, 1, 2)


class _Labelled(Dataset[Any]):
    """The first samples of a data set, with labels where Avalanche looks for them."""

    def __init__(self, samples: Dataset[Any], labels: Tensor) -> None:
        self._samples, self.targets = samples, labels.tolist()

    def __getitem__(self, index: int) -> Any:
        return self._samples[index]

    def __len__(self) -> int:
        return len(self.targets)


def _experiences(parts: list[_Labelled]) -> list[Any]:
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils.utils import as_classification_dataset

    return list(benchmark_from_datasets(train=[as_classification_dataset(part) for part in parts]).train_stream)


def _learner(name: str, network: nn.Module, plugins: list[Any]) -> Any:
    """Avalanche's strategy; its penalty has no ½, and it takes a mean over batches of squared gradients of means."""
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

    common = {
        "model": network,
        "optimizer": torch.optim.Adam(network.parameters(), lr=1e-4),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 100,
        "train_epochs": 1,
        "evaluator": EvaluationPlugin(),
        "plugins": plugins,
    }
    return supervised.EWC(ewc_lambda=LAM / 2, **common) if name == "ewc" else supervised.Naive(**common)


def _inputs(images: ImageSet, x: Tensor) -> Tensor:
    return (x.float() / images.scale).view(len(x), *images.shape)


def _tensors(images: ImageSet) -> _Labelled:
    return _Labelled(TensorDataset(_inputs(images, images.train_x), images.train_y), images.train_y)


def speed(images: ImageSet, name: str, *, tensors: bool) -> Subject:
    """Training the second experience; importances, which come after it, do not count."""
    warnings.filterwarnings("ignore", module="qpsolvers|avalanche")
    from avalanche.training.plugins import SupervisedPlugin

    samples: Dataset[Any] = _tensors(images) if tensors else OneByOne(images)
    experiences = _experiences([_Labelled(samples, images.train_y[:n]) for n in (100, 100 * STEPS)])

    class Clock(SupervisedPlugin):  # type: ignore[misc]
        seconds = 0.0

        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    def subject() -> float:
        clock = Clock()
        learner = _learner(name, models.Model("mlp-bn").build(images.shape, 10, seed=0), [clock])
        for experience in experiences:
            learner.train(experience, num_workers=0)
        return clock.seconds

    return subject


SUBJECTS: dict[str, Made] = {
    f"{how}, {name}": (functools.partial(speed, tensors=tensors), name)
    for how, tensors in (("Avalanche", False), ("Avalanche on tensors", True))
    for name in ("naive", "ewc")
}
"""What goes into the table of `training.rows`."""


def accuracies(tasks: list[ImageSet]) -> list[str]:
    """One epoch of each of two tasks: accuracy on both, ours and Avalanche's, and whether they agree.

    Means of three seeds agree if they are within two points, or four standard errors of their difference.
    """
    warnings.filterwarnings("ignore", module="qpsolvers|avalanche")
    ours, lines = _ours(tasks), []
    for name in ("naive", "ewc"):
        theirs = [_theirs(tasks, name, seed) for seed in SEEDS]
        for j, images in enumerate(tasks):
            a, b = ([100 * run[j] for run in runs] for runs in (ours[name], theirs))
            difference = statistics.mean(a) - statistics.mean(b)
            error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / len(SEEDS))
            agree = "agree" if abs(difference) <= max(2.0, 4 * error) else "DIFFER"
            lines.append(
                f"{name} on {images.name}: {statistics.mean(a):.1f} here, {statistics.mean(b):.1f} in Avalanche, "
                f"standard error {error:.1f}: {agree}"
            )
    return lines


def _ours(tasks: list[ImageSet]) -> dict[str, list[list[float]]]:
    scenario = scenarios.resolve([images.name for images in tasks])
    recipe = Recipe(epochs=1, optimizer_state="keep")
    strategies: tuple[Strategy, ...] = (Naive(), EWC(lam=LAM, estimator="batched"))
    runs = [
        Run(scenario, models.Model("mlp-bn"), recipe, s, s.name, s.name, seed) for s in strategies for seed in SEEDS
    ]
    stacks = list(schedule.execute(plan.make(runs, tasks, CPU), tasks, CPU))
    found: dict[str, list[list[float]]] = {}
    for result in (result for stack in stacks for result in stack):
        found.setdefault(result.run.strategy_name, []).append(result.accuracy[-1].tolist())
    return found


def _theirs(tasks: list[ImageSet], name: str, seed: int) -> list[float]:
    torch.manual_seed(seed)
    network = models.Model("mlp-bn").build(tasks[0].shape, 10, seed=seed)
    learner = _learner(name, network, [])
    for experience in _experiences([_tensors(t) for t in tasks]):
        learner.train(experience, num_workers=0)
    with torch.no_grad():
        answers = [network.eval()(_inputs(t, t.test_x)).argmax(1) for t in tasks]
    return [float((answer == t.test_y).double().mean()) for answer, t in zip(answers, tasks, strict=True)]
