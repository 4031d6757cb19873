"""Seconds for Fisher diagonals of 60 000 images, beside a loop over single samples."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark import models
from benchmark.data import ImageSet
from benchmark.perf.measuring import Row, Subject, in_turn, timed
from strategies import Params, fisher

SAMPLE = 600


def sample_by_sample(model: nn.Module, x: Tensor, y: Tensor) -> Params:
    """The empirical Fisher diagonal as most codebases compute it."""
    total = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    for i in range(len(x)):
        log_p = F.log_softmax(model(x[i : i + 1]), 1)[0, y[i]]
        for k, g in zip(total, torch.autograd.grad(log_p, list(model.parameters())), strict=True):
            total[k] += g.square()
    return {k: v / len(x) for k, v in total.items()}


def rows(images: ImageSet) -> list[Row]:
    """Seconds for all images, and times faster than the loop."""
    model = models.Model("mlp-bn").build(images.shape, 10, seed=0).eval()
    x, y = images.train_x.float() / 255, images.train_y
    loop = timed(functools.partial(sample_by_sample, model, x[:SAMPLE], y))
    subjects: dict[str, tuple[Subject, float]] = {f"batch-1 loop ({SAMPLE} images, scaled up)": (loop, len(x) / SAMPLE)}
    for estimator in ("empirical", "sampled", "batched", "exact"):
        subjects[estimator] = (timed(functools.partial(fisher.diagonal, model, x, y, estimator=estimator)), 1.0)
    return in_turn(subjects, 3)
