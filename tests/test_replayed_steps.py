"""Steps that are recorded and replayed: the same numbers as without, and what may not be replayed is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark import graphs
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.replay import replayed
from strategies import EWC, EWCKfac, Naive
from strategies.agem import AGEM
from strategies.derpp import DERpp
from strategies.er import ER
from strategies.lwf import LwF
from strategies.rwalk import RWalk
from strategies.si import SI
from strategies.trees import leaves
from tests.conftest import make_run, train

REPLAY = {"memory": 30, "replay_batch": 10}
STRATEGIES = (
    *(Naive(), EWC(lam=50), EWCKfac(lam=5), SI(lam=2), RWalk(lam=2), LwF()),
    *(ER(**REPLAY), ER(share="task", **REPLAY), DERpp(**REPLAY), AGEM(**REPLAY)),
)


def calls_of(step):
    """The step, replayed from its third call on, and how often its own code ran."""
    ran = []

    def counted(*args):
        ran.append(1)
        return step(*args)

    return replayed(counted), ran


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.name}-{getattr(s, 'share', '')}")
@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["alone", "stacked"])
def test_a_replayed_run_equals_one_trained_step_by_step_to_the_bit(strategy, seeds, monkeypatch):
    runs = [make_run(strategy, seed=seed, precision="float32", batchnorm="freeze-after-first") for seed in seeds]
    replaying, _ = train(*runs)
    monkeypatch.setattr("benchmark.learner.replayed", lambda step, **_: step)
    plain, _ = train(*runs)
    for run in runs:
        assert all(torch.equal(p, plain[run.key][k]) for k, p in replaying[run.key].items())


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adamw", "optimizer_state": "keep", "evaluate_every": 3},
        {"precision": "bfloat16", "batchnorm": "update"},
    ],
    ids=lambda r: next(iter(r.values())),
)
@pytest.mark.parametrize("model", ["mlp-bn", "cnn"])
def test_recipes_and_networks_replay_to_the_bit(recipe, model, monkeypatch):
    runs = [make_run(EWC(lam=50), seed=seed, epochs=None, iterations=8, **recipe) for seed in (0, 1)]
    runs = [dataclasses.replace(run, model=Model(model)) for run in runs]
    replaying, _ = train(*runs)
    monkeypatch.setattr("benchmark.learner.replayed", lambda step, **_: step)
    plain, _ = train(*runs)
    for run in runs:
        assert all(torch.equal(p, plain[run.key][k]) for k, p in replaying[run.key].items())


def test_the_code_of_a_step_runs_twice_and_the_rest_is_replayed():
    weights = torch.randn(3, 4)
    step, ran = calls_of(lambda x: (vmap(torch.dot)(x, weights).exp(), {"twice": 2 * x}))
    for _ in range(6):
        x = torch.randn(3, 4)
        value, rest = step(x)
        assert torch.equal(value, (x * weights).sum(1).exp()) or torch.allclose(value, (x * weights).sum(1).exp())
        assert torch.equal(rest["twice"], 2 * x)
    assert len(ran) == 2


def test_a_replay_reads_and_writes_the_tensors_a_step_closes_over():
    total, weight = torch.zeros(3), torch.ones(3)

    def step(x):
        total.add_(x * weight.view(3))
        return total.clone(), weight.flip(0)

    step, ran = calls_of(step)
    for i in range(1, 6):
        weight.fill_(i)
        found, _ = step(torch.ones(3))
    assert len(ran) == 2 and found.tolist() == total.tolist() == [15.0] * 3


def test_constants_of_the_code_are_new_each_time():
    step, ran = calls_of(lambda x: torch.tensor([1.0, 2.0]).add_(x))
    assert [step(torch.ones(2)).tolist() for _ in range(5)] == [[2.0, 3.0]] * 5 and len(ran) == 2


def test_one_tensor_given_for_two_arguments_in_the_recorded_call_is_two_in_another():
    step, ran = calls_of(lambda a, b: a - b)
    one, other = torch.ones(2), torch.zeros(2)
    step(one, one), step(one, one)
    assert step(one, other).tolist() == [1.0, 1.0] and len(ran) == 2


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x + (1.0 if x.sum().item() > 0 else -1.0),
        lambda x: x + (1.0 if bool((x > 0).all()) else -1.0),
        lambda x: x[x > 0].sum() * len(x[x > 0]),
        lambda x: x.sum() * len(torch.nonzero(x > 0)),
    ],
    ids=["item", "bool", "mask", "nonzero"],
)
def test_a_step_that_looks_at_values_is_never_replayed(step):
    seen, ran = calls_of(step)
    for x in (torch.ones(3), torch.ones(3), -torch.ones(3), torch.tensor([1.0, -1.0, 2.0])):
        assert torch.equal(seen(x), step(x))
    assert len(ran) == 4


def test_gradients_are_not_followed_through_a_replay():
    weight = torch.ones(3, requires_grad=True)
    step, _ = calls_of(lambda x: torch.autograd.grad((weight * x).square().sum(), weight)[0])
    assert [step(torch.full((3,), float(i))).tolist() for i in range(4)] == [[2.0 * i * i] * 3 for i in range(4)]
    assert not step(torch.ones(3)).requires_grad


def test_a_lesson_of_one_step_is_not_recorded(monkeypatch):
    monkeypatch.setattr("benchmark.replay._Recorder", None)
    run = make_run(epochs=None, iterations=1)
    assert Recipe(iterations=1).steps(100)[1] == 1 and train(run)


def rerun(work, device):
    """In place of a CUDA graph: runs the work again, and puts what it returns where its first results were."""
    kept = []

    def launch():
        result = work()
        if not kept:
            kept.append(result)
        for t, new in zip(leaves(kept[0]), leaves(result), strict=True):
            if t is not new:
                t.copy_(new)
        return kept[0]

    return launch


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.name}-{getattr(s, 'share', '')}")
def test_a_captured_run_equals_one_trained_step_by_step_to_the_bit(strategy, monkeypatch):
    runs = [make_run(strategy, seed=seed, tasks=3, precision="float32") for seed in (0, 1)]
    captures = []
    monkeypatch.setitem(graphs.CAPTURES, "cpu", lambda *given: captures.append(1) or rerun(*given))
    captured, _ = train(*runs)
    monkeypatch.setattr("benchmark.learner.replayed", lambda step, **_: step)
    plain, _ = train(*runs)
    assert captures
    for run in runs:
        assert all(torch.equal(p, plain[run.key][k]) for k, p in captured[run.key].items())


@pytest.mark.parametrize(
    "step",
    [
        lambda x, a, b: (x + a, b, a),
        lambda x, a, b: (x + b, a, a.flip(0)),
        lambda x, a, b: (a[1:].sum() + x, torch.cat([a[1:], b[:1]]), b.view(3)),
        lambda x, a, b: (a * x, a.view(3), b.expand(3)),
    ],
    ids=["swapped", "read alone", "made of parts", "views"],
)
def test_a_state_that_comes_back_in_other_places_is_captured_as_it_is(step, monkeypatch):
    monkeypatch.setitem(graphs.CAPTURES, "cpu", rerun)
    captured, (a, b), (c, d) = replayed(step), torch.rand(2, 3), torch.rand(2, 3)
    c, d = a, b
    for i in range(6):
        x = torch.full((3,), float(i))
        (mine, a, b), (expected, c, d) = captured(x, a, b), step(x, c, d)
        assert all(torch.equal(s, t) for s, t in ((mine, expected), (a, c), (b, d)))


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_what_cannot_be_captured_is_replayed_and_said(kind, monkeypatch):
    def refuse(work, device):
        raise kind("operation not permitted when stream is capturing\nand more")

    monkeypatch.setitem(graphs.CAPTURES, "cpu", refuse)
    step = replayed(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="without a CUDA graph, kernel by kernel: operation not permitted") as said:
        assert [step(torch.ones(1)).item() for _ in range(5)] == [2.0] * 5
    assert len(said) == 1


class Heard(TorchDispatchMode):
    """Hears the operations that reach the device."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(str(func.name()))
        return func(*args, **(kwargs or {}))


def test_a_capture_for_which_memory_runs_out_is_no_reason_to_go_on(monkeypatch):
    def full(work, device):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setitem(graphs.CAPTURES, "cpu", full)
    step = replayed(lambda x: 2 * x)
    with pytest.raises(RuntimeError, match="out of memory"):
        [step(torch.ones(1)) for _ in range(5)]


def test_views_that_change_nothing_or_that_nobody_looks_at_are_left_out(monkeypatch):
    called = []
    monkeypatch.setattr("benchmark.replay.captured", lambda play, args: called.append(play) or play)

    def step(x):
        x[0].view(-1)  # nobody looks at it
        return x.detach().permute(0, 1).view(2, 3) + 1

    call, x = replayed(step), torch.arange(6.0).view(2, 3)
    for shift in range(4):
        assert torch.equal(call(x + shift), x + shift + 1)
    with Heard() as heard:
        called[0](x)
    assert heard.operations == ["aten::add.Tensor"]


def test_a_step_that_reshapes_in_place_is_not_replayed():
    def step(x):
        y = x.detach()
        y.unsqueeze_(0)
        return x + 1, y * 2

    call = replayed(step)
    for shift in range(4):
        x = torch.arange(3.0) + shift
        plus, twice = call(x)
        assert torch.equal(plus, x + 1) and torch.equal(twice, 2 * x[None])
