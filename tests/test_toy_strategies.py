"""What a strategy may ask of the harness, one thing at a time: strategies made for the purpose, against plain loops."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark import scenarios
from benchmark.data import ImageSet
from benchmark.feed import Feed, Lesson, Pool
from benchmark.keys import generator
from benchmark.learner import Learner
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Run
from benchmark.scenarios import Scenario
from strategies import Loss, Naive, Strategy, cross_entropy, hyper
from tests.conftest import CPU, make_run, train

PLAIN = Model("mlp", (("widths", (16,)),))
RECIPE = Recipe(lr=1e-2, batch_size=64, epochs=1, precision="float64")
SGD = {"optimizer": "sgd", "lr": 0.05}


def run_of(strategy: Strategy, seed: int = 0, *, model: Model = PLAIN, tasks: int = 3, **recipe: Any) -> Run:
    run = make_run(strategy, seed=seed, tasks=tasks)
    return dataclasses.replace(run, model=model, recipe=dataclasses.replace(RECIPE, **recipe))


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def inputs(images: ImageSet, scenario: Scenario, task: int, seed: int) -> Tensor:
    order = scenario.pixel_order(task, seed, 64)
    x = images.train_x if order is None else images.train_x[:, order]
    return x.double().view(-1, 1, 8, 8) / 16


def batches(task: int, seed: int, size: int, number: int = 0) -> tuple[Tensor, ...]:
    """What the harness takes in one pass over so many images."""
    order = torch.randperm(size, generator=generator(seed, "batches", task, number))
    return order[: size // 64 * 64].split(64)


# What it trains on


@dataclass(frozen=True)
class OnlyTheFirst(Strategy):
    name: ClassVar[str] = "only-the-first"

    def learns(self, task):
        return task == 1


@pytest.mark.parametrize("batchnorm", ["update", "freeze-after-first"])
def test_a_strategy_that_stops_learning_keeps_its_parameters(batchnorm):
    runs = [run_of(OnlyTheFirst(), seed, model=Model("mlp-bn"), batchnorm=batchnorm) for seed in (0, 1)]
    params, results = train(*runs)
    for run in runs:
        first = run_of(Naive(), run.seed, model=Model("mlp-bn"), tasks=1)
        after_first, _ = train(first)
        assert difference(params[run.key], after_first[first.key]) < 1e-11
        rows = results[run.key].accuracy
        np.testing.assert_array_equal(rows[1], rows[2])  # statistics of BatchNorm included
        np.testing.assert_array_equal(rows[1], rows[3])
        assert rows[1, 0] > rows[0, 0]


def test_a_task_that_is_not_learnt_leaves_a_trace_of_no_steps():
    run = run_of(OnlyTheFirst(), evaluate_every=11)
    _, results = train(run)
    assert [(e.task, e.step) for e in results[run.key].trace] == [(1, 11), (1, 22), (2, 0), (3, 0)]


@dataclass(frozen=True)
class Afresh(Strategy):
    name: ClassVar[str] = "afresh"

    def trains_on(self, task):
        return range(1, task + 1)

    def restarts(self, task):
        return True


@pytest.mark.parametrize("recipe", [{}, {"batchnorm": "freeze-after-first"}, {"optimizer_state": "keep"}])
@pytest.mark.parametrize("model", [PLAIN, Model("mlp-bn")], ids=str)
def test_starting_afresh_on_all_tasks_is_training_a_new_network_on_the_union(recipe, model):
    recipe = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9} | recipe
    runs = [run_of(Afresh(), seed, model=model, **recipe) for seed in (0, 1)]
    params, _ = train(*runs)
    images = scenarios.load(runs[0].scenario)[0]
    for run in runs:
        network = model.build((1, 8, 8), 10, seed=run.seed).double().train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        x = torch.cat([inputs(images, run.scenario, task, run.seed) for task in (1, 2, 3)])
        y = images.train_y.repeat(3)
        for batch in batches(3, run.seed, len(x)):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
        assert difference(params[run.key], {k: p.detach() for k, p in network.named_parameters()}) < 1e-9


def test_a_diverged_run_stays_diverged_where_training_starts_afresh():
    @dataclass(frozen=True)
    class Explodes(Afresh):
        name: ClassVar[str] = "explodes"
        scale: float = hyper(1.0)

        def loss(self, net, batch, recalled, state, hparams):
            found = super().loss(net, batch, recalled, state, hparams)
            return Loss(found.value * (hparams["scale"] if net.task == 2 else 1.0))

    bad, good = run_of(Explodes(scale=float("inf"))), run_of(Explodes())
    _, results = train(bad, good)
    assert (results[bad.key].status, results[good.key].status) == ("diverged", "finished")
    finite = np.isfinite(results[bad.key].accuracy).all(1)
    assert finite.tolist() == [True, True, False, False]


# A memory


@dataclass(frozen=True)
class Remembers(Strategy):
    """Remembers the first samples of the latest batch, and recalls them in the next step; notes what it was given."""

    name: ClassVar[str] = "remembers"
    KEEP: ClassVar[int] = 4

    @property
    def recalls(self):
        return self.KEEP

    def init(self, params, setting):
        like, whole = next(iter(params.values())), {"dtype": torch.int64}
        return {
            "memory": {"id": torch.full((self.KEEP,), -1), "brightness": like.new_zeros(self.KEEP)},
            "given": {
                "x": like.new_zeros(self.KEEP, 64),
                "y": torch.zeros(self.KEEP, **whole),
                "task": torch.zeros(self.KEEP, **whole),
                "id": torch.zeros(self.KEEP, **whole),
                "key": torch.zeros(self.KEEP, dtype=torch.float64),
                "active": torch.zeros(self.KEEP, setting.outputs, dtype=torch.bool),
                "brightness": like.new_zeros(self.KEEP),
                "draws": torch.zeros(self.KEEP, dtype=torch.float64),
            },
        }

    def recall(self, state, task, draws, hparams):
        return {**state["memory"], "draws": draws}

    def loss(self, net, batch, recalled, state, hparams):
        new = cross_entropy(net.logits(batch.x), batch).mean()
        old = torch.where(recalled.id >= 0, cross_entropy(net.logits(recalled.x), recalled), 0.0).sum()
        given = {"x": recalled.x.flatten(1), **recalled.kept}
        return Loss(new + old, given | {k: getattr(recalled, k) for k in ("y", "task", "id", "key", "active")})

    def observe(self, state, batch, seen, hparams):
        latest = {"id": batch.id[: self.KEEP], "brightness": batch.x[: self.KEEP].flatten(1).sum(1)}
        return {"memory": latest, "given": {k: seen[k] for k in state["given"]}}


SPLIT = {"name": "split-digits", "tasks": 5}
SCENARIOS = [
    {"name": "permuted-digits", "tasks": 3},
    {"name": "permuted-digits", "tasks": 3, "incremental": "task"},
    {**SPLIT, "class_order": "shuffled", "incremental": "class"},
    {**SPLIT, "class_order": "shuffled", "incremental": "domain"},
]


def remembering(table: dict[str, Any], seeds: tuple[int, ...]) -> tuple[Learner, list[tuple[Lesson, dict[str, Any]]]]:
    """Two tasks of three steps by stacked runs, and the state after each task."""
    scenario, strategy = scenarios.resolve(table), Remembers()
    recipe = Recipe(iterations=3, batch_size=16, precision="float64")
    pool = Pool.of(scenario, scenarios.load(scenario), CPU)
    networks = [PLAIN.build(pool.shape, pool.heads.outputs, seed=seed) for seed in seeds]
    learner = Learner.fresh(networks, recipe, pool.shape, CPU)
    feed, run = Feed(pool, seeds, torch.float64), Run(scenario, PLAIN, recipe, strategy, "", "", 0)
    one = strategy.init({k: p.detach() for k, p in networks[0].double().named_parameters()}, setting_of(pool))
    state = {g: {k: torch.stack([v] * len(seeds)) for k, v in part.items()} for g, part in one.items()}
    states = []
    for task in (1, 2):
        lesson = Lesson(feed, task, run)
        state = learner.train(lesson, strategy, state, {})
        states.append((lesson, state))
    return learner, states


def setting_of(pool: Pool) -> Any:
    from strategies import Setting

    return Setting(len(pool.tasks), pool.heads.outputs, {})


@pytest.mark.parametrize("table", SCENARIOS)
@pytest.mark.parametrize("seeds", [(0, 1, 5), (1,)])
def test_a_memory_is_given_the_samples_it_asked_for_in_every_run_of_a_stack(table, seeds):
    _, states = remembering(table, seeds)
    for (task, (lesson, state)), (run, seed) in itertools.product(enumerate(states, start=1), enumerate(seeds)):
        given = {k: v[run] for k, v in state["given"].items()}
        _, (ids, *_), _ = lesson.epoch(0)
        asked = ids[run, : Remembers.KEEP]  # in the last of three steps, the second's
        assert torch.equal(given["id"], asked)
        pool = lesson.feed.pool
        own = pool.tasks[task - 1]
        view = pool.scenario.view(task, seed, own, pool.heads)
        rows = asked - (task - 1) * len(pool.y)
        x = own.train_x[rows].double() / 16
        x = x if view.order is None else x[:, view.order]
        y = own.train_y[rows] if view.labels is None else view.labels[own.train_y[rows]]
        assert torch.equal(given["x"], x) and torch.equal(given["y"], y)
        assert given["task"].tolist() == [task] * Remembers.KEEP
        assert torch.equal(given["active"], pool.heads.training(task)[[task - 1] * Remembers.KEEP])
        torch.testing.assert_close(given["brightness"], x.sum(1))
        assert torch.equal(given["key"], lesson.feed.keys(asked.expand(len(seeds), -1))[run])
        drawn = torch.rand(3, Remembers.KEEP, dtype=torch.float64, generator=generator(seed, "recall", task, 0))
        assert torch.equal(given["draws"], drawn[2])


def test_what_was_learnt_of_an_earlier_task_is_recalled_as_it_was_and_competes_as_now():
    seen = []

    @dataclass(frozen=True)
    class Looks(Remembers):
        def loss(self, net, batch, recalled, state, hparams):
            seen.append((net.task, recalled.task.clone(), recalled.y.clone(), recalled.active.clone()))
            return super().loss(net, batch, recalled, state, hparams)

    run = run_of(Looks(), epochs=None, iterations=2)
    run = dataclasses.replace(run, scenario=scenarios.resolve(SPLIT))
    train(run)
    tasks = [(net, task.tolist()) for net, task, *_ in seen if net > 1]
    assert tasks == [(t, [of] * 4) for t in (2, 3, 4, 5) for of in (t - 1, t)]  # the latest batch, whatever its task
    for net, of, y, active in seen:
        assert active.sum(1).tolist() == [2 * net] * 4 and active.gather(1, y[:, None]).all()
        assert (y // 2 + 1 == of).all()


@pytest.mark.parametrize("table", SCENARIOS)
def test_a_stack_with_memories_is_each_run_by_itself(table):
    together, states = remembering(table, (0, 1, 5))
    for run, seed in enumerate((0, 1, 5)):
        alone, own = remembering(table, (seed,))
        for k, p in together.params.items():
            assert (p[run] - alone.params[k][0]).abs().max() < 1e-12, k
        for (_, a), (_, b) in zip(states, own, strict=True):
            for group, k in itertools.chain.from_iterable(((g, k) for k in part) for g, part in a.items()):
                torch.testing.assert_close(a[group][k][run], b[group][k][0], rtol=0, atol=1e-12)


def test_a_strategy_that_observes_trains_its_own_first_task():
    assert run_of(Remembers()).trunk == "" != run_of(Naive()).trunk
    assert not Remembers.shares_first_task()


# Two gradients


def side(net: Any) -> Tensor:
    """A second thing to care about: outputs of zero for a bright image."""
    return net.logits(torch.ones(3, 1, 8, 8, dtype=torch.float64)).square().mean()


@dataclass(frozen=True)
class Combines(Strategy):
    """Gradient + weight · the other, where the second task is in training; and clipped entry by entry."""

    name: ClassVar[str] = "combines"
    weight: float = hyper(0.5)

    def reference(self, net, recalled, state, hparams):
        return side(net) if net.task == 2 else None

    def combine(self, gradient, reference, hparams):
        return {k: (g + hparams["weight"] * reference[k]).clamp(-0.01, 0.01) for k, g in gradient.items()}


def test_two_gradients_are_combined_as_the_strategy_says():
    runs = [run_of(Combines(weight=weight), seed, **SGD) for weight in (0.5, 2.0) for seed in (0, 1)]
    params, _ = train(*runs)
    images = scenarios.load(runs[0].scenario)[0]
    for run in runs:
        network = PLAIN.build((1, 8, 8), 10, seed=run.seed).double()
        named = dict(network.named_parameters())
        for task in (1, 2, 3):
            x = inputs(images, run.scenario, task, run.seed)
            for batch in batches(task, run.seed, len(x)):
                loss = F.cross_entropy(network(x[batch]), images.train_y[batch])
                gradient = torch.autograd.grad(loss, list(named.values()))
                if task == 2:
                    other = network(torch.ones(3, 1, 8, 8, dtype=torch.float64)).square().mean()
                    second = torch.autograd.grad(other, list(named.values()))
                    weight = run.strategy.weight
                    gradient = [(g + weight * r).clamp(-0.01, 0.01) for g, r in zip(gradient, second, strict=True)]
                with torch.no_grad():
                    for p, g in zip(named.values(), gradient, strict=True):
                        p -= 0.05 * g
        assert difference(params[run.key], {k: p.detach() for k, p in named.items()}) < 1e-11


def test_combined_with_nothing_it_is_fine_tuning():
    @dataclass(frozen=True)
    class Takes(Combines):
        name: ClassVar[str] = "takes"

        def combine(self, gradient, reference, hparams):
            return gradient

    runs = [run_of(strategy) for strategy in (Takes(), Naive())]
    params, _ = train(*runs)
    assert difference(params[runs[0].key], params[runs[1].key]) == 0


# Another loss


@dataclass(frozen=True)
class Distils(Strategy):
    """Cross-entropy + strength · mean (z − z*)², z* of the network as the last task left it."""

    name: ClassVar[str] = "distils"
    strength: float = hyper(0.1)

    def init(self, params, setting):
        return {"old": {**params, **setting.buffers}}

    def loss(self, net, batch, recalled, state, hparams):
        logits = net.logits(batch.x)
        value = cross_entropy(logits, batch).mean()
        if net.task == 1:
            return Loss(value)
        return Loss(value + hparams["strength"] * (logits - net.recorded(state["old"], batch.x)).square().mean())

    def measure(self, model, task):
        return {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}

    def consolidate(self, state, params, measured, hparams):
        return {"old": measured}


@pytest.mark.parametrize("model", [PLAIN, Model("mlp-bn")], ids=str)
@pytest.mark.parametrize("batchnorm", ["update", "freeze-after-first"])
def test_a_loss_may_look_at_an_earlier_version_of_the_network(model, batchnorm):
    runs = [
        run_of(Distils(strength=s), seed, model=model, batchnorm=batchnorm, **SGD) for s in (0.1, 1) for seed in (0, 1)
    ]
    params, _ = train(*runs)
    images = scenarios.load(runs[0].scenario)[0]
    for run in runs:
        network = model.build((1, 8, 8), 10, seed=run.seed).double()
        teacher = None
        for task in (1, 2, 3):
            network.train(task == 1 or batchnorm == "update")
            optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
            x = inputs(images, run.scenario, task, run.seed)
            for batch in batches(task, run.seed, len(x)):
                logits = network(x[batch])
                loss = F.cross_entropy(logits, images.train_y[batch])
                if teacher:
                    loss = loss + run.strategy.strength * (logits - teacher(x[batch]).detach()).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            teacher = copy.deepcopy(network).eval()
        assert difference(params[run.key], {k: p.detach() for k, p in network.named_parameters()}) < 1e-9


def test_a_loss_may_differ_from_run_to_run_by_its_hyperparameters():
    @dataclass(frozen=True)
    class Smooths(Strategy):
        name: ClassVar[str] = "smooths"
        plain_first_task: ClassVar[bool] = False
        smoothing: float = hyper(0.0)

        def loss(self, net, batch, recalled, state, hparams):
            log_p, s = net.logits(batch.x).log_softmax(1), hparams["smoothing"]
            right = log_p.gather(1, batch.y[:, None]).mean()
            return Loss(-(1 - s) * right - s * log_p.mean())

    runs = [run_of(Smooths(smoothing=s), tasks=1, **SGD) for s in (0.0, 0.3, 0.9)]
    params, results = train(*runs)
    images = scenarios.load(runs[0].scenario)[0]
    assert {r.stack_size for r in results.values()} == {3}
    for run in runs:
        network = PLAIN.build((1, 8, 8), 10, seed=0).double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        x = inputs(images, run.scenario, 1, 0)
        for batch in batches(1, 0, len(x)):
            optimizer.zero_grad()
            smoothing = run.strategy.smoothing
            F.cross_entropy(network(x[batch]), images.train_y[batch], label_smoothing=smoothing).backward()
            optimizer.step()
        assert difference(params[run.key], {k: p.detach() for k, p in network.named_parameters()}) < 1e-11


# A state that changes its structure


@dataclass(frozen=True)
class Keeps(Strategy):
    name: ClassVar[str] = "keeps"

    def init(self, params, setting):
        return {"notes": {"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros((), dtype=torch.int64)}}


CHANGES: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda notes: {**notes, "a": torch.zeros(4, dtype=torch.float64)},
        "state notes['a']: expected float64 of shape (3,), got float64 of shape (4,)",
    ),
    (
        lambda notes: {**notes, "a": torch.zeros(3, dtype=torch.float32)},
        "state notes['a']: expected float64 of shape (3,), got float32 of shape (3,)",
    ),
    (lambda notes: {"a": notes["a"]}, "state notes['b']: expected int64 of shape (), got nothing"),
    (lambda notes: {**notes, "c": notes["b"]}, "state notes['c']: expected nothing, got int64 of shape ()"),
]


@pytest.mark.parametrize("method", ["after_step", "observe", "consolidate"])
@pytest.mark.parametrize(("change", "message"), CHANGES, ids=["shape", "dtype", "missing", "more"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["alone", "stacked"])
def test_a_state_that_changes_its_structure_is_refused_with_what_was_expected(method, change, message, seeds):
    changing = dataclass(frozen=True)(
        type("Changing", (Keeps,), {method: lambda self, state, *rest: {"notes": change(state["notes"])}})
    )
    runs = [run_of(changing(), seed, epochs=None, iterations=1) for seed in seeds]
    with pytest.raises(ValueError, match=re.escape(f"strategy 'keeps', {method}, {message}")):
        train(*runs)


# What it measures


def test_inputs_are_made_for_those_who_look_at_them_alone(monkeypatch):
    asked = []
    made = Feed.finished

    def finished(self, task, generators):
        own = made(self, task, generators)
        return dataclasses.replace(own, inputs=lambda places: asked.append(task) or own.inputs(places))

    monkeypatch.setattr(Feed, "finished", finished)

    @dataclass(frozen=True)
    class Counts(Strategy):
        name: ClassVar[str] = "counts"
        look: bool = False

        def init(self, params, setting):
            return {"n": {"n": torch.zeros(())}}

        def measure(self, model, task):
            return {"n": torch.tensor(float(len(task.x if self.look else task.y)))}

        def consolidate(self, state, params, measured, hparams):
            return {"n": measured}

    train(run_of(Counts(), epochs=None, iterations=1))
    assert asked == []
    train(run_of(Counts(look=True), epochs=None, iterations=1))
    assert asked == [1, 2]


def test_what_is_measured_is_drawn_alike_for_all_strategies_of_a_seed():
    drawn: dict[tuple[str, int], list[float]] = {}

    class Draws(Strategy):
        def measure(self, model, task):
            drawn.setdefault((self.name, task.number), []).append(float(torch.rand(1, generator=task.generator)))
            return {}

        def consolidate(self, state, params, measured, hparams):
            return state

    one, other = (dataclass(frozen=True)(type(name, (Draws,), {"name": name})) for name in ("one", "other"))
    train(run_of(one(), epochs=None, iterations=1), run_of(other(), epochs=None, iterations=1))
    assert drawn["one", 1] == drawn["other", 1] and drawn["one", 2] == drawn["other", 2]
    assert drawn["one", 1] != drawn["one", 2]
    train(run_of(one(), seed=1, epochs=None, iterations=1))
    assert len(set(drawn["one", 1])) == 2
