"""Layers of a stack at once: each run's is its own, in values, gradients and running statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from benchmark.models import Model
from strategies.layers import STACKED, Layers
from strategies.stack import lift

RUNS, SAMPLES = 3, 5


class Inputs(nn.Module):
    """A layer that is given inputs of one shape."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


CASES = {
    "linear": lambda: Inputs(nn.Linear(4, 6), 4),
    "without bias": lambda: Inputs(nn.Linear(4, 6, bias=False), 4),
    "a sequence": lambda: Inputs(nn.Linear(4, 6), 7, 4),
    "batch norm": lambda: Inputs(nn.BatchNorm1d(4), 4),
    "of images": lambda: Inputs(nn.BatchNorm2d(2), 2, 3, 3),
    "of a sequence": lambda: Inputs(nn.BatchNorm1d(4), 4, 7),
    "no affine": lambda: Inputs(nn.BatchNorm1d(4, affine=False), 4),
    "no statistics": lambda: Inputs(nn.BatchNorm1d(4, track_running_stats=False), 4),
    "two layers": lambda: Inputs(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), 4),
}


@pytest.fixture(params=CASES)
def stack(request):
    """Networks of random values, and one of them to call."""
    torch.manual_seed(0)
    models = [CASES[request.param]().double() for _ in range(RUNS)]
    for model in models:
        for t in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            t.data.uniform_(0.5, 1.5)
    params, buffers = stack_module_state(models)
    return (
        models[0],
        {k: p.detach() for k, p in params.items()},
        buffers,
        torch.randn(RUNS, SAMPLES, *models[0].shape).double(),
    )


def found(stack, training, *, shared, lifted):
    """Outputs, gradients by parameters and inputs, and the buffers left, of all runs at once or one after the other."""
    model, params, buffers, x = stack
    model.train(training)
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    buffers, x = {k: b.clone() for k, b in buffers.items()}, (x[0] if shared else x).clone().requires_grad_()

    def one(params, buffers, x):
        return functional_call(model, (params, buffers), (x,))

    if lifted:
        y = lift(one, RUNS, in_dims=(0, 0, None if shared else 0))(params, buffers, x)
    else:
        rows = [({k: p[r] for k, p in params.items()}, {k: b[r] for k, b in buffers.items()}) for r in range(RUNS)]
        y = torch.stack([one(*row, x if shared else x[r]) for r, row in enumerate(rows)])
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y, torch.autograd.grad((y * weights).sum(), [*params.values(), x]), list(buffers.values())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shared", [True, False], ids=["same inputs", "own inputs"])
def test_a_layer_of_a_stack_is_that_of_each_run(stack, training, shared):
    ours, theirs = (found(stack, training, shared=shared, lifted=lifted) for lifted in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("derivative", [grad, jacrev])
def test_derivatives_may_be_taken_inside_of_the_stack(stack, derivative):
    model, params, buffers, x = stack
    model.eval()
    if not params:
        pytest.skip("a layer without parameters")

    def one(params, buffers, x):
        return derivative(lambda p: functional_call(model, (p, buffers), (x,)).square().sum())(params)

    each = [one(*({k: v[r] for k, v in t.items()} for t in (params, buffers)), x[r]) for r in range(RUNS)]
    expected = {k: torch.stack([g[k] for g in each]) for k in params}
    torch.testing.assert_close(lift(one, RUNS)(params, buffers, x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("derivative", [grad, lambda f: jacrev(grad(f))], ids=["first", "second"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives_by_what_is_normalised_may_be_too(derivative, training):
    torch.manual_seed(0)
    x, w, b = (torch.randn(RUNS, *shape).double() for shape in ((SAMPLES, 4), (4,), (4,)))
    mean, var = torch.randn(RUNS, 4).double(), torch.rand(RUNS, 4).double() + 0.5

    def one(x, w, b, mean, var):
        statistics = (None, None) if training else (mean, var)
        return derivative(lambda x: F.batch_norm(x, *statistics, w, b, training=training).pow(3).sum())(x)

    each = [one(*row) for row in zip(x, w, b, mean, var, strict=True)]
    torch.testing.assert_close(lift(one, RUNS)(x, w, b, mean, var), torch.stack(each), rtol=1e-10, atol=1e-10)


def test_samples_may_be_lifted_inside_of_the_stack(stack):
    model, params, buffers, x = stack
    model.eval()

    def of_sample(params, buffers, x):
        return grad(lambda p: functional_call(model, (p, buffers), (x[None],)).square().sum())(params)

    def one(params, buffers, x):
        return vmap(of_sample, in_dims=(None, None, 0))(params, buffers, x)

    if not getattr(model.layer, "track_running_stats", True):
        pytest.skip("a sample alone has no statistics")
    each = [
        [of_sample(*({k: v[r] for k, v in t.items()} for t in (params, buffers)), row) for row in x[r]]
        for r in range(RUNS)
    ]
    expected = {k: torch.stack([torch.stack([g[k] for g in run]) for run in each]) for k in params}
    torch.testing.assert_close(lift(one, RUNS)(params, buffers, x), expected, rtol=1e-10, atol=1e-12)


def test_second_derivatives_are_those_of_each_run():
    torch.manual_seed(0)
    w, x = torch.randn(RUNS, 2, 3).double(), torch.randn(RUNS, SAMPLES, 3).double()

    def lifted(w, x):
        return lift(lambda w, x: F.linear(x, w).tanh(), RUNS)(w, x)

    assert torch.autograd.gradgradcheck(lifted, (w.requires_grad_(), x.requires_grad_()))


def test_a_gradient_lies_in_memory_as_its_parameter_does():
    models = [Model("mlp-bn").build((1, 8, 8), 10, seed=seed).train() for seed in range(RUNS)]
    params, buffers = stack_module_state(models)

    def loss(params, buffers, x):
        return functional_call(models[0], (params, buffers), (x,)).square().sum()

    losses = lift(loss, RUNS)(params, buffers, torch.rand(RUNS, SAMPLES, 1, 8, 8))
    assert all(g.is_contiguous() for g in torch.autograd.grad(losses.sum(), list(params.values())))


def test_autocast_takes_the_products_in_its_precision():
    w, x = torch.randn(RUNS, 2, 3), torch.randn(RUNS, SAMPLES, 3)

    def one(w, x):
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(x, w)

    w.requires_grad_()
    y = lift(one, RUNS)(w, x)
    (slope,) = torch.autograd.grad(y.float().sum(), w)
    expected = torch.stack([one(w[r], x[r]) for r in range(RUNS)])
    assert y.dtype == torch.bfloat16 and slope.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.float().sum(), w)[0], rtol=0.02, atol=0.02)


def test_a_weight_that_all_runs_share_is_not_copied():
    w, x = torch.randn(2, 3), torch.randn(RUNS, SAMPLES, 3)
    with Layers(STACKED):
        y = vmap(F.linear, in_dims=(0, None))(x, w)
    torch.testing.assert_close(y, F.linear(x, w))


@pytest.mark.parametrize("runs", [1, RUNS])
def test_a_linear_layer_may_be_called_by_keyword_and_with_one_output(runs):
    w, x = torch.randn(runs, 3), torch.randn(runs, SAMPLES, 3)
    expected = torch.einsum("rbi,ri->rb", x, w)
    torch.testing.assert_close(lift(lambda w, x: F.linear(input=x, weight=w), runs)(w, x), expected)
    found = lift(lambda w, x: F.linear(x, w[None], bias=w[:1]), runs)(w, x)
    torch.testing.assert_close(found, (expected + w[:, :1])[..., None])
