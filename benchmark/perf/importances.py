"""Seconds for Fisher diagonals of 60 000 images, beside a loop over single samples."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark import models
from benchmark.data import ImageSet
from benchmark.learner import Learner
from benchmark.perf.measuring import Row, Subject, in_turn, timed
from benchmark.recipe import Recipe
from strategies import Params, fisher
from strategies.stack import FinishedTasks, Networks, Places

SAMPLE, RUNS = 600, 8


def sample_by_sample(model: nn.Module, x: Tensor, y: Tensor) -> Params:
    """The empirical Fisher diagonal as most codebases compute it."""
    total = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    for i in range(len(x)):
        log_p = F.log_softmax(model(x[i : i + 1]), 1)[0, y[i]]
        for k, g in zip(total, torch.autograd.grad(log_p, list(model.parameters())), strict=True):
            total[k] += g.square()
    return {k: v / len(x) for k, v in total.items()}


def _of_all(networks: Networks, x: Tensor, y: Tensor, estimator: fisher.Estimator) -> Params:
    """The diagonals of a stack whose runs all have the same images."""

    def inputs(places: Places) -> Tensor:
        return x[places][None] if isinstance(places, slice) else x[places]

    generators = [torch.Generator().manual_seed(run) for run in range(networks.runs)]
    task = FinishedTasks(1, inputs, y.expand(networks.runs, -1), generators)
    return fisher.diagonals(networks, task, estimator=estimator)


def rows(images: ImageSet) -> list[Row]:
    """Seconds for all images, and times faster than the loop."""
    model = models.Model("mlp-bn").build(images.shape, 10, seed=0).eval()
    x, y = images.train_x.float() / 255, images.train_y
    loop = timed(functools.partial(sample_by_sample, model, x[:SAMPLE], y))
    subjects: dict[str, tuple[Subject, float]] = {f"batch-1 loop ({SAMPLE} images, scaled up)": (loop, len(x) / SAMPLE)}
    estimators: tuple[fisher.Estimator, ...] = ("empirical", "sampled", "batched", "exact")
    for estimator in estimators:
        subjects[estimator] = (timed(functools.partial(fisher.diagonal, model, x, y, estimator=estimator)), 1.0)
    networks = [models.Model("mlp-bn").build(images.shape, 10, seed=seed) for seed in range(RUNS)]
    learner = Learner.fresh(networks, Recipe(epochs=1), images.shape, x.device)
    stack = learner.networks(range(RUNS), torch.ones(10, dtype=torch.bool))
    for estimator in estimators:
        job = functools.partial(_of_all, stack, x, y, estimator)
        subjects[f"{estimator}, each of {RUNS} runs at once"] = (timed(job), 1 / RUNS)
    return in_turn(subjects, 3)
