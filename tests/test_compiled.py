"""Compiled steps: the numbers of steps that are not, but for rounding; and what the user hears where there are none."""

from __future__ import annotations

import dataclasses
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmark import compiled, graphs
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.replay import replayed
from benchmark.unfused import adam, sgd
from strategies import EWC, L2, EWCKfac, Naive, products, registry
from strategies.agem import AGEM
from strategies.derpp import DERpp
from strategies.er import ER
from strategies.lwf import LwF
from strategies.rwalk import RWalk
from strategies.si import SI
from tests.conftest import make_run, train
from tests.test_replayed_steps import rerun

compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
REPLAY = {"memory": 30, "replay_batch": 10}


def differ(run, *others, seeds=(0, 1), **recipe):
    """The largest difference that compiling makes to a trained parameter, relative to the parameter's largest value."""
    plain = [dataclasses.replace(run, seed=seed, recipe=dataclasses.replace(run.recipe, **recipe)) for seed in seeds]
    kernels = [dataclasses.replace(r, recipe=dataclasses.replace(r.recipe, compile=True)) for r in plain]
    expected, found = train(*plain)[0], train(*kernels)[0]
    return max(
        float((found[b.key][k] - p).abs().max() / p.abs().max())
        for a, b in zip(plain, kernels, strict=True)
        for k, p in expected[a.key].items()
    )


@compiler
@pytest.mark.parametrize("seeds", [(0, 1, 2), pytest.param((0,), marks=pytest.mark.slow)], ids=["stacked", "alone"])
def test_a_compiled_run_equals_one_that_is_not(seeds):
    run = make_run(EWC(lam=50), batchnorm="freeze-after-first")
    assert 0 < differ(run, seeds=seeds) < 1e-9


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        *(Naive(), L2(lam=0.1), EWC(lam=50), EWCKfac(lam=5), SI(lam=2), RWalk(lam=2), LwF()),
        *(ER(**REPLAY), ER(share="task", **REPLAY), DERpp(**REPLAY), AGEM(**REPLAY)),
    ],
    ids=lambda s: f"{s.name}-{getattr(s, 'share', '')}",
)
def test_every_strategy_compiles(strategy):
    # Adam makes whole steps of gradients that are rounding: from the third task on stacks of two sizes differ as much.
    assert differ(make_run(strategy, tasks=3, optimizer="sgd", lr=0.01)) < 1e-6


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "lr": 0.01},
        {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.01, "optimizer_state": "keep"},
        {"optimizer": "adam", "weight_decay": 0.01},
        {"optimizer": "adamw", "weight_decay": 0.1, "optimizer_state": "keep", "evaluate_every": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["mlp-bn", "cnn"])
def test_recipes_and_networks_compile(recipe, model):
    run = dataclasses.replace(make_run(EWC(lam=50), epochs=None, iterations=12), model=Model(model))
    assert differ(run, **recipe) < 1e-6


@compiler
@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available() or products.LINEAR is None, reason="needs oneDNN")
def test_products_of_onednn_compile(monkeypatch):
    called = []
    monkeypatch.setattr(products, "by_onednn", lambda a, b: a.device.type == "cpu" and not called.append(1))
    run = make_run(EWC(lam=50), precision="float32", epochs=None, iterations=12, optimizer="sgd", lr=0.01)
    assert differ(run) < 1e-3 and called


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_accuracy_is_what_it_is_without(precision):
    runs = [make_run(EWC(lam=50), seed=s, precision=precision, epochs=5) for s in range(4)]
    kernels = [dataclasses.replace(r, recipe=dataclasses.replace(r.recipe, compile=True)) for r in runs]
    means = [
        torch.tensor([result.accuracy[-1].mean() for result in train(*some)[1].values()]).mean()
        for some in (runs, kernels)
    ]
    assert abs(means[0] - means[1]) < 0.01


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("strategy", [EWC(lam=50), SI(lam=2)], ids=lambda s: s.name)
def test_a_compiled_step_is_captured_as_one_that_is_not(strategy, monkeypatch):
    captures = []
    monkeypatch.setitem(graphs.CAPTURES, "cpu", lambda *given: captures.append(1) or rerun(*given))
    assert differ(make_run(strategy)) < 1e-6 and captures


@compiler
def test_a_diverging_neighbour_changes_nothing():
    runs = [make_run(L2(lam=lam), optimizer="sgd", lr=0.01, compile=True) for lam in (0.1, 1e9)]
    (both, results), (alone, _) = train(*runs), train(runs[0])
    assert [results[r.key].status for r in runs] == ["finished", "diverged"]
    assert all(torch.allclose(p, both[runs[0].key][k], rtol=1e-9) for k, p in alone[runs[0].key].items())


def optimized(cls, step, **options):
    """Parameters after steps of PyTorch's optimiser, and after the same of the function given."""
    generator = torch.Generator().manual_seed(0)
    start, grads = (torch.randn(n, 3, 4, generator=generator, dtype=torch.float64) for n in (1, 6))
    theirs, ours = start[0].clone().requires_grad_(), start[0].clone()
    optimizer = cls([theirs], **options)
    for t, grad in enumerate(grads, start=1):
        theirs.grad = grad
        optimizer.step()
        step(t, ours, grad)
    return theirs.detach(), ours


@pytest.mark.parametrize(("cls", "decoupled"), [(torch.optim.Adam, False), (torch.optim.AdamW, True)])
def test_adam_spelled_out_is_adam(cls, decoupled):
    first, second = torch.zeros(2, 3, 4, dtype=torch.float64)

    def step(t, p, g):
        rates = torch.tensor([1e-2 / (1 - 0.9**t), (1 - 0.999**t) ** -0.5, 1 - 1e-2 * 0.1], dtype=torch.float64)
        kwargs = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decay": 0.0 if decoupled else 0.1, "decoupled": decoupled}
        adam([p], [g], [first], [second], rates, **kwargs)

    theirs, ours = optimized(cls, step, lr=1e-2, weight_decay=0.1)
    assert torch.allclose(theirs, ours, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_spelled_out_is_sgd(momentum):
    buffer = torch.zeros(3, 4, dtype=torch.float64)

    def step(t, p, g):
        buffers = [buffer] if momentum else []
        sgd([p], [g], buffers, lr=0.1, momentum=momentum, weight_decay=0.1)

    theirs, ours = optimized(torch.optim.SGD, step, lr=0.1, momentum=momentum, weight_decay=0.1)
    assert torch.allclose(theirs, ours, rtol=1e-12, atol=1e-14)


@compiler
def test_memory_that_tensors_share_stays_shared():
    weight = torch.arange(6.0)
    rows = weight.view(2, 3)

    def step(x):
        weight.add_(1)
        before = rows.sum(1)
        rows[1].mul_(x)
        return before, weight.view(3, 2).T @ rows.T

    weights, calls = [], (step, replayed(step, compile=True))
    for call in calls:
        weight.copy_(torch.arange(6.0))
        results = [[t.clone() for t in call(torch.full((3,), float(i)))] for i in range(5)]
        weights.append((weight.clone(), results))
    (plain, expected), (found, results) = weights
    assert torch.equal(plain, found)
    assert all(torch.equal(a, b) for e, r in zip(expected, results, strict=True) for a, b in zip(e, r, strict=True))


@compiler
def test_steps_that_do_the_same_are_compiled_once(monkeypatch):
    monkeypatch.setattr(compiled, "_KERNELS", {})
    weights = torch.arange(3.0), torch.arange(3.0) + 5, torch.arange(4.0)

    def last(weight):
        step = replayed(lambda x: (x * weight).exp(), compile=True)
        return [step(torch.full((len(weight),), 0.5)) for _ in range(4)][-1]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(last, weights))
    assert all(torch.allclose(y, (0.5 * w).exp()) for y, w in zip(found, weights, strict=True))
    assert len(compiled._KERNELS) == 2


def test_a_step_that_looks_at_values_does_not_compile():
    step = replayed(lambda x: x + (1.0 if x.sum().item() > 0 else -1.0), compile=True)
    with pytest.raises(ValueError, match=r"looks at values of its tensors \(aten\._local_scalar_dense"):
        [step(torch.ones(1)) for _ in range(2)]


@pytest.mark.parametrize("own", [False, True])
def test_without_a_compiler_the_user_hears_what_to_do(own, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(compiled, "_KERNELS", {})
    # A strategy of the user's own is not to blame for it.
    monkeypatch.setattr(registry, "fingerprint", lambda cls: "a digest" if own else "")
    missing = config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with missing, pytest.raises(ValueError, match=r"^train\.compile: .* needs a C\+\+ compiler"):
        train(make_run(compile=True))


@compiler
def test_tensors_may_come_in_another_layout():
    step = replayed(lambda x, y: (x * 2 + y).exp(), compile=True)
    x, y = torch.rand(3, 4), torch.rand(1, 4).expand(3, 4)
    layouts = [(x.T.contiguous().T, y), (x.T.contiguous().T, y), (x, y.contiguous()), (x.repeat(1, 2)[:, :4], y)]
    assert all(torch.allclose(step(*given), (x * 2 + y).exp()) for given in layouts)


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {}])
def test_an_optimiser_that_no_recipe_has_does_not_compile(options):
    weights = [torch.zeros(3) for _ in range(1 + (not options))]
    optimizers = [torch.optim.Adam([w.requires_grad_()], fused=True, **options) for w in weights]

    def step(x):
        for w, optimizer in zip(weights, optimizers, strict=True):
            w.grad = x.clone()
            optimizer.step()
        return x + 1

    step = replayed(step, compile=True)
    with pytest.raises(ValueError, match="expected one optimiser a step"):
        [step(torch.ones(3)) for _ in range(2)]


def test_a_recipe_that_does_not_compile_is_the_one_it_was():
    assert "compile" not in Recipe(epochs=1).spec() and Recipe(epochs=1, compile=True).spec()["compile"] is True
    assert make_run().key != make_run(compile=True).key and make_run().trunk != make_run(compile=True).trunk


@compiler
def test_stacks_side_by_side_share_a_kernel(monkeypatch):
    monkeypatch.setattr(compiled, "_KERNELS", {})

    def trained(seed, **how):
        generator = torch.Generator().manual_seed(seed)
        weight, data = torch.zeros(64, 64), torch.rand(200, 64, 64, generator=generator)
        step = replayed(lambda x: weight.add_(torch.bmm(x[None], weight[None] + 1)[0] / 64).tanh_().sum(), **how)
        for x in data:
            step(x)
        return weight

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda seed: trained(seed, compile=True), range(8)))
    assert len(compiled._KERNELS) == 1
    assert all(torch.allclose(w, trained(seed), rtol=1e-4) for seed, w in enumerate(found))
    assert not torch.allclose(found[0], found[1])
