"""Tasks with outputs of their own, through the harness: against plain loops that slice where the harness masks."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark import scenarios
from benchmark.feed import Feed, Pool
from benchmark.keys import generator
from benchmark.learner import EVALUATED, Learner
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Run
from strategies import EWC, L2, Naive, Strategy, fisher, masked
from strategies.derpp import DERpp
from strategies.er import ER
from strategies.frozen import Frozen
from strategies.joint import Joint
from strategies.lwf import LwF
from strategies.mas import MAS
from strategies.rwalk import RWalk
from tests.conftest import CPU, train

TASKS, SHARE, LAM = 5, 2, 30.0
MODEL = Model("mlp", (("widths", (20,)),))
RECIPE = Recipe(lr=1e-2, batch_size=50, epochs=2, precision="float64")
IMAGES = scenarios.load(scenarios.resolve("split-digits"))[0]
every_type = pytest.mark.parametrize("incremental", ["task", "domain", "class"])


def split_run(strategy: Strategy, incremental: str, seed: int = 0, class_order: str = "shuffled", **recipe) -> Run:
    table = {"name": "split-digits", "tasks": TASKS, "incremental": incremental, "class_order": class_order}
    recipe = dataclasses.replace(RECIPE, **recipe)
    return Run(scenarios.resolve(table), MODEL, recipe, strategy, strategy.name, f"{strategy}", seed)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for k, e in expected.items():
        assert (found[k] - e).abs().max() <= tolerance * e.abs().max().clamp(min=1), k


class Oracle:
    """One run by plain loops: labels, batches, logits sliced to those that compete, importances a sample at a time."""

    def __init__(self, incremental: str, seed: int, lam: float = 0.0) -> None:
        self.incremental, self.seed, self.lam = incremental, seed, lam
        self.order = torch.randperm(10, generator=generator(seed, "classes")).tolist()
        self.model = MODEL.build((1, 8, 8), SHARE if incremental == "domain" else 10, seed=seed).double()
        self.penalties: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self.matrix = [self.tested(0)]
        for task in range(1, TASKS + 1):
            self.train(task)
            self.matrix.append(self.tested(task))
            if lam:
                self.penalties.append(self.importance(task))

    def samples(self, task: int, part: str = "train") -> tuple[Tensor, Tensor]:
        own = self.order[(task - 1) * SHARE : task * SHARE]
        x, y = getattr(IMAGES, f"{part}_x"), getattr(IMAGES, f"{part}_y").tolist()
        rows = [i for i, label in enumerate(y) if label in own]
        return x[rows].double() / 16, torch.tensor([own.index(y[i]) for i in rows])

    def sliced(self, x: Tensor, task: int, trained: int) -> tuple[Tensor, int]:
        """The logits that compete for a task, and where among them its own begin."""
        logits = self.model(x.view(-1, 1, 8, 8))
        if self.incremental == "domain":
            return logits, 0
        if self.incremental == "task":
            return logits[:, (task - 1) * SHARE : task * SHARE], 0
        return logits[:, : max(task, trained) * SHARE], (task - 1) * SHARE

    def train(self, task: int) -> None:
        x, y = self.samples(task)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=RECIPE.lr, foreach=False)
        steps = 2 * (round(len(IMAGES.train_y) / TASKS) // 50)
        passes = (
            torch.randperm(len(x), generator=generator(self.seed, "batches", task, number))[: len(x) // 50 * 50]
            for number in itertools.count()
        )
        for batch in itertools.islice(itertools.chain.from_iterable(p.split(50) for p in passes), steps):
            logits, first = self.sliced(x[batch], task, task)
            loss = F.cross_entropy(logits, y[batch] + first)
            for anchor, importance in self.penalties:
                for k, p in self.model.named_parameters():
                    loss = loss + 0.5 * self.lam * (importance[k] * (p - anchor[k]).square()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def importance(self, task: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params = dict(self.model.named_parameters())
        total = {k: torch.zeros_like(p) for k, p in params.items()}
        for x, y in zip(*self.samples(task), strict=True):
            logits, first = self.sliced(x[None], task, task)
            gradients = torch.autograd.grad(logits.log_softmax(1)[0, y + first], list(params.values()))
            for k, g in zip(params, gradients, strict=True):
                total[k] += g.square()
        count = len(self.samples(task)[1])
        return {k: p.detach().clone() for k, p in params.items()}, {k: v / count for k, v in total.items()}

    @torch.no_grad()
    def tested(self, trained: int) -> list[float]:
        row = []
        for task in range(1, TASKS + 1):
            x, y = self.samples(task, "test")
            logits, first = self.sliced(x, task, trained)
            row.append(float((logits.argmax(1) == y + first).double().mean()))
        return row

    @torch.no_grad()
    def told(self) -> list[float]:
        row = []
        for task in range(1, TASKS + 1):
            x, y = self.samples(task, "test")
            guess = self.model(x.view(-1, 1, 8, 8))[:, (task - 1) * SHARE : task * SHARE].argmax(1)
            row.append(float((guess == y).double().mean()))
        return row


@every_type
@pytest.mark.parametrize("strategy", [Naive(), EWC(lam=LAM)], ids=["naive", "ewc"])
def test_training_and_testing_equal_plain_loops_over_the_outputs_that_compete(incremental, strategy):
    runs = [split_run(strategy, incremental, seed) for seed in (0, 1)]
    params, results = train(*runs)
    for run in runs:
        assert results[run.key].stack_size == 2
        oracle = Oracle(incremental, run.seed, lam=LAM if isinstance(strategy, EWC) else 0.0)
        assert_close(params[run.key], {k: p.detach() for k, p in oracle.model.named_parameters()}, 1e-9)
        np.testing.assert_array_equal(results[run.key].accuracy, oracle.matrix)
        if incremental == "class":
            np.testing.assert_array_equal(results[run.key].told, oracle.told())
        else:
            assert results[run.key].told is None
        before, after = oracle.matrix[0], oracle.matrix[TASKS]
        assert after[TASKS - 1] > before[TASKS - 1] + 0.2  # else nothing was learnt, and nothing shown


STRATEGIES = [
    L2(lam=0.5),
    EWC(lam=LAM, estimator="sampled"),
    EWC(lam=LAM, estimator="exact", accumulate="online"),
    MAS(),
    RWalk(),
    LwF(),
    Joint(),
    ER(memory=40, replay_batch=20),
    DERpp(memory=40, replay_batch=20, policy="balanced"),
]


@every_type
def test_seeds_with_other_classes_in_each_task_stack_and_equal_each_alone(incremental):
    runs = [split_run(strategy, incremental, seed) for strategy in STRATEGIES for seed in (0, 1)]
    params, results = train(*runs)
    for run in runs[:: 2 if incremental == "class" else 4]:
        alone, own = train(run)
        assert results[run.key].stack_size > 1 and own[run.key].stack_size == 1
        assert_close(params[run.key], alone[run.key], 1e-10)
        np.testing.assert_array_equal(results[run.key].accuracy, own[run.key].accuracy)


def test_the_order_of_the_classes_is_the_seeds_own_and_so_are_the_accuracies():
    runs = [split_run(Naive(), "class", seed, class_order=order) for order in ("fixed", "shuffled") for seed in (0, 1)]
    _, fixed = train(*runs[:2])
    _, shuffled = train(*runs[2:])
    assert not set(fixed) & set(shuffled)
    assert len({str(r.accuracy) for r in [*fixed.values(), *shuffled.values()]}) == 4


@every_type
def test_outputs_that_never_competed_are_as_they_began(incremental):
    run = split_run(Frozen(), incremental)
    params, _ = train(run)
    before = dict(MODEL.build((1, 8, 8), SHARE if incremental == "domain" else 10, seed=0).double().named_parameters())
    moved = (params[run.key]["linear2.weight"] != before["linear2.weight"]).any(1)
    assert moved.tolist() == [True] * SHARE + [False] * (len(moved) - SHARE)


def test_in_a_class_incremental_scenario_a_naive_learner_answers_with_the_latest_classes():
    run = split_run(Naive(), "class", epochs=15)
    _, results = train(run)
    last = results[run.key].accuracy[TASKS]
    assert last[-1] > 0.95 and last[:-1].max() < 0.2
    assert results[run.key].told.mean() > 0.8  # it has not forgotten how to tell the classes of a task apart
    within = split_run(Naive(), "task", epochs=15)
    assert train(within)[1][within.key].accuracy[TASKS].min() > 0.6


# Accuracy


@every_type
@pytest.mark.parametrize("seeds", [(0, 1, 2), (1,)])
def test_accuracy_counts_a_runs_own_test_samples_alone(incremental, seeds, monkeypatch):
    monkeypatch.setitem(EVALUATED, "cpu", 2**6)  # several passes
    run = split_run(Naive(), incremental)
    pool = Pool.of(run.scenario, scenarios.load(run.scenario), CPU)
    networks = [MODEL.build(pool.shape, pool.heads.outputs, seed=seed) for seed in seeds]
    learner = Learner.fresh(copy.deepcopy(networks), RECIPE, pool.shape, CPU)
    feed = Feed(pool, seeds, torch.float64)
    sizes = set()
    for task, trained_ in itertools.product(range(1, TASKS + 1), (0, 2, TASKS)):
        active = pool.heads.testing(task, trained_)
        found = learner.accuracy(feed, task, active)
        for r, seed in enumerate(seeds):
            view = run.scenario.view(task, seed, IMAGES, pool.heads)
            logits = networks[r].double()(IMAGES.test_x[view.test].double().view(-1, 1, 8, 8) / 16)
            guess = masked(logits, active).argmax(1)
            expected = (guess == view.labels[IMAGES.test_y[view.test]]).double().mean()
            assert float(found[r]) == pytest.approx(float(expected), abs=1e-15)
            sizes.add((task, len(view.test)))
    assert len(seeds) == 1 or len(sizes) > TASKS  # else there was nothing to tell apart


# Importances


class Restricted(nn.Module):
    """The outputs that compete, and no others."""

    def __init__(self, model: nn.Module, active: Tensor) -> None:
        super().__init__()
        self.model, self.active = model, active

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, self.active]


@pytest.mark.parametrize("active", [[2, 3], [0, 1, 2, 3], [9]])
@pytest.mark.parametrize("estimator", fisher.ESTIMATORS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_importances_under_a_mask_are_those_of_the_outputs_that_compete(active, estimator, precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    network = Model("mlp-bn").build((1, 8, 8), 10, seed=3).to(recipe.dtype).eval()
    learner = Learner.fresh([copy.deepcopy(network)] * 2, recipe, (1, 8, 8), CPU)
    mask = torch.isin(torch.arange(10), torch.tensor(active))
    torch.manual_seed(0)
    x, y = torch.rand(60, 1, 8, 8, dtype=recipe.dtype), torch.randint(0, len(active), (60,))
    options = {"estimator": estimator, "batch_size": 25}
    with learner.networks([0, 1], mask).one(1) as model:
        assert model(x)[:, ~mask].max() < -1e8
        found = fisher.diagonal(model, x, torch.tensor(active)[y], generator=generator(1), **options)
    expected = fisher.diagonal(Restricted(network, mask), x, y, generator=generator(1), **options)
    tolerance = 1e-12 if precision == "float64" else 1e-5
    for k, e in expected.items():
        assert (found[k.removeprefix("model.")] - e).abs().max() <= tolerance * e.abs().max() + 1e-30, k
    assert len(active) == 1 or all(e.any() for e in expected.values())
    assert torch.isfinite(model(x)).all() and model(x)[:, ~mask].max() > -1e8  # no mask is left behind


@every_type
def test_measuring_a_task_sees_its_data_and_the_outputs_it_was_trained_with(incremental):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watching(EWC):
        def measure(self, model, task):
            shown = (model(task.x) > -1e8).all(0)
            seen.append((task.number, task.x.clone(), task.y.clone(), shown))
            return super().measure(model, task)

    train(split_run(Watching(), incremental, seed=1))
    oracle = Oracle.__new__(Oracle)
    oracle.order = torch.randperm(10, generator=generator(1, "classes")).tolist()
    assert [number for number, *_ in seen] == list(range(1, TASKS))
    for number, x, y, shown in seen:
        expected_x, expected_y = oracle.samples(number)
        first = 0 if incremental == "domain" else (number - 1) * SHARE
        assert torch.equal(x.flatten(1), expected_x) and torch.equal(y, expected_y + first)
        own = {
            "domain": range(SHARE),
            "task": range(first, first + SHARE),
            "class": range(first + SHARE),
        }[incremental]
        assert shown.nonzero().flatten().tolist() == list(own)
