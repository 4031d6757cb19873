"""Importances of MAS, SI and RWalk: a batch-1 loop, closed forms, an independent library, and sums by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from strategies import FinishedTask, Setting, State, Step, Strategy, masked, persample
from strategies.base import MASKED, check_state
from strategies.mas import MAS, twice_the_outputs
from strategies.rwalk import RWalk, to_unit
from strategies.si import SI
from strategies.stack import FinishedTasks, Networks
from tests.test_fisher import CNN, Shared, Tied, Tokens, agree, mlp, trained

Params = dict[str, Tensor]
F64 = torch.float64


# MAS


def measured(model: nn.Module, x: Tensor, **options: Any) -> Params:
    y = torch.randint(0, 3, (len(x),))
    task = FinishedTask(1, lambda: x, y, torch.Generator().manual_seed(0))
    return MAS(**options).measure(model.eval(), task)


def loop(model: nn.Module, x: Tensor) -> Params:
    """1/N Σ |∂‖f(x)‖²/∂θ|, one sample at a time by plain autograd."""
    model.eval()
    params = dict(model.named_parameters())
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for xi in x:
        norm = sum(f**2 for f in model(xi[None])[0])
        for k, g in zip(params, torch.autograd.grad(norm, list(params.values())), strict=True):
            total[k] += g.abs() / len(x)
    return total


@pytest.fixture(params=[(mlp, 12), (CNN, 72)], ids=["mlp", "cnn"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    build, pixels = request.param
    torch.manual_seed(0)
    x = torch.rand(30, pixels, dtype=F64)
    return trained(build().double(), x, 5)[0], x


def test_mas_is_the_mean_of_absolute_per_sample_gradients(case):
    model, x = case
    agree(measured(model, x), loop(model, x), 1e-10)


def test_mas_is_not_the_absolute_gradient_of_the_batch(case):
    model, x = case
    mean = model.eval()(x).square().sum(1).mean()
    batch = torch.autograd.grad(mean, list(model.parameters()))
    found = measured(model, x)
    for (k, omega), g in zip(found.items(), batch, strict=True):
        assert (g.abs() <= omega * (1 + 1e-9) + 1e-12).all(), k  # the triangle inequality
    assert any((g.abs() < 0.5 * omega).any() for omega, g in zip(found.values(), batch, strict=True))


def test_mas_of_a_linear_model_has_the_closed_form():
    torch.manual_seed(0)
    x, model = torch.randn(50, 6, dtype=F64), nn.Linear(6, 3).double()
    f = model(x).detach().abs()
    # ∂‖Wx + b‖²/∂W = 2 f xᵀ
    agree(measured(model, x), {"weight": 2 * f.T @ x.abs() / 50, "bias": 2 * f.mean(0)}, 1e-12)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_mas_agrees_with_an_independent_library():
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    torch.manual_seed(0)
    x = torch.rand(20, 72, dtype=F64)
    layers = nn.Unflatten(1, (2, 6, 6)), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    model = nn.Sequential(*layers).double()
    other = extend(copy.deepcopy(nn.Sequential(*layers[1:])))
    loss = extend(nn.MSELoss(reduction="sum"))
    with backpack(BatchGrad()):
        loss(other(layers[0](x)), torch.zeros(20, 5, dtype=F64)).backward()
    absolute = [p.grad_batch.abs().mean(0) for p in other.parameters()]
    agree(measured(model, x), dict(zip(dict(model.named_parameters()), absolute, strict=True)), 1e-10)


@pytest.mark.parametrize(("build", "width"), [(Shared, 8), (Tied, 6)])
def test_mas_of_shared_weights_is_never_silently_wrong(build, width):
    torch.manual_seed(0)
    model, x = build().double(), torch.rand(70, width, dtype=F64)
    agree(measured(model, x), loop(model, x), 1e-10)


def test_mas_of_sequences_and_embeddings():
    torch.manual_seed(0)
    model, x = Tokens().double(), torch.randint(0, 7, (20, 5))
    agree(measured(model, x), loop(model, x), 1e-10)


def test_mas_takes_closed_forms_where_there_are_any(case):
    model, x = case
    task = FinishedTasks.of(x, torch.zeros(len(x), dtype=torch.int64))
    how = persample.plan(Networks.of(model.eval()), task, twice_the_outputs, phi=torch.abs)
    assert how.rest == set()


def test_mas_does_not_depend_on_the_samples_a_pass(case, monkeypatch):
    model, x = case
    whole = measured(model, x)
    monkeypatch.setattr("strategies.persample.CHUNK", 7)
    monkeypatch.setattr("strategies.persample.LEAST", 7)
    agree(measured(model, x), whole, 1e-12)


def test_mas_refuses_layers_that_mix_samples():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="layer '1' normalises by its own batch"):
        measured(model, torch.rand(5, 4))


class Masked(nn.Module):
    """A network of which only some outputs compete."""

    def __init__(self, network: nn.Module, active: Tensor, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.active, self.mask = network, active, mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mask(self.network(x), self.active)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-12)])
@pytest.mark.parametrize("mask", [masked, lambda f, active: f + MASKED * ~active], ids=["filled", "added"])
def test_outputs_that_do_not_compete_make_nothing_important(dtype, tolerance, mask):
    torch.manual_seed(0)
    x = torch.rand(30, 12, dtype=dtype)
    network = trained(mlp().to(dtype), x, 5)[0]
    active = torch.tensor([True, False, True, False, False])
    cut = copy.deepcopy(network)
    cut[6].weight, cut[6].bias = nn.Parameter(network[6].weight[active]), nn.Parameter(network[6].bias[active])
    found = measured(Masked(network, active, mask), x)
    found = {k.removeprefix("network."): v for k, v in found.items()}
    assert not found["6.weight"][~active].any() and not found["6.bias"][~active].any()
    kept = {k: v[active] if k.startswith("6.") else v for k, v in found.items()}
    agree(kept, measured(cut, x), tolerance)


def test_masked_outputs_have_no_part_in_the_norms_gradient():
    (found,) = twice_the_outputs(torch.tensor([[3.0, MASKED, 4.0]]), torch.zeros(1))
    assert found.tolist() == [[6.0, 0.0, 8.0]]


def test_mas_sums_over_tasks_and_holds_the_latest_anchor():
    strategy, hparams = MAS(), values(MAS())
    first, second = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    state = strategy.init(first, SETTING)
    state = strategy.consolidate(state, first, {"w": torch.tensor([2.0])}, hparams)
    state = strategy.consolidate(state, second, {"w": torch.tensor([5.0])}, hparams)
    assert state == {"importance": {"w": 7.0}, "anchor": {"w": 3.0}}


# Path integrals: L = Σ ½aᵢ(θᵢ − bᵢ)², by plain gradient descent

SETTING = Setting(tasks=3, outputs=1, buffers={})
START = [0.3, -1.2, 0.8]
TASKS = [([2.0, 0.5, 1.0], [1.0, -1.0, 0.8]), ([0.3, 4.0, 2.0], [-1.0, 0.5, 0.1]), ([1.0, 1.0, 3.0], [0.2, 0.2, -0.4])]
STEPS, RATE = 7, 0.1


def values(strategy: Strategy) -> Params:
    return {k: torch.tensor(getattr(strategy, k), dtype=F64) for k in strategy.hyperparameters()}


def split(numbers: list[float] | Tensor) -> Params:
    """Three numbers as two parameters."""
    tensor = torch.as_tensor(numbers, dtype=F64)
    return {"w": tensor[..., :2], "v": tensor[..., 2:]}


def joined(params: Params) -> list[float]:
    return torch.cat([params["w"], params["v"]]).tolist()


def walk(
    strategy: Strategy, start: Params, hparams: Params, *, steps: int = STEPS, rate: float = RATE, lift: Any = None
) -> tuple[State, Params]:
    """The tasks in turn, as a harness would run them."""
    lift = lift or (lambda method: method)
    params, state = start, lift(lambda p: strategy.init(p, SETTING))(start)
    for a, b in ((split(a), split(b)) for a, b in TASKS):
        for _ in range(steps):
            gradient = {k: a[k] * (p - b[k]) for k, p in params.items()}
            pull = lift(strategy.penalty_gradient)(state, params, hparams)
            after = {k: p - rate * (gradient[k] + pull[k]) for k, p in params.items()}
            state = lift(strategy.after_step)(state, Step(params, after, gradient), hparams)
            params = after
        omega = {k: a[k] * p.abs() for k, p in params.items()}  # only MAS looks at what was measured
        state = lift(strategy.consolidate)(state, params, omega, hparams)
    return state, params


def si_by_hand(lam: float, xi: float) -> dict[str, list[float]]:
    theta, anchor, omega = list(START), list(START), [0.0] * 3
    for a, b in TASKS:
        begin, w = list(theta), [0.0] * 3
        for _ in range(STEPS):
            for i in range(3):
                g = a[i] * (theta[i] - b[i])
                move = -RATE * (g + lam * omega[i] * (theta[i] - anchor[i]))
                w[i] -= g * move
                theta[i] += move
        for i in range(3):
            omega[i] += max(0.0, w[i]) / ((theta[i] - begin[i]) ** 2 + xi)
        anchor = list(theta)
    return {"params": theta, "importance": omega, "anchor": anchor}


@pytest.mark.parametrize(("lam", "xi"), [(0.2, 0.1), (3.0, 0.001)])
def test_si_is_the_path_sum_by_hand(lam, xi):
    strategy = SI(lam=lam, xi=xi)
    state, params = walk(strategy, split(START), values(strategy))
    found = {"params": params, "importance": state["importance"], "anchor": state["anchor"]}
    for k, expected in si_by_hand(lam, xi).items():
        assert joined(found[k]) == pytest.approx(expected, rel=1e-12), k
    assert joined(state["path"]) == [0, 0, 0] and joined(state["start"]) == joined(params)


def test_a_parameter_that_raised_the_loss_is_not_important_to_si():
    strategy = SI()
    hparams, at = values(strategy), split(START)
    after = {k: p + 0.5 for k, p in at.items()}
    gradient = split([1.0, -2.0, 0.0])  # moved up the slope, down it, and on the flat
    state = strategy.after_step(strategy.init(at, SETTING), Step(at, after, gradient), hparams)
    state = strategy.consolidate(state, after, {}, hparams)
    assert joined(state["importance"]) == pytest.approx([0.0, 1.0 / (0.25 + 0.1), 0.0])


def test_sis_paths_sum_to_the_fall_of_the_loss():
    a, b = split(TASKS[0][0]), split(TASKS[0][1])

    def loss(params: Params) -> float:
        return sum(float((0.5 * a[k] * (p - b[k]).square()).sum()) for k, p in params.items())

    errors = []
    for rate in (0.004, 0.002):
        strategy, params = SI(), split(START)
        state = strategy.init(params, SETTING)
        for _ in range(100):
            gradient = {k: a[k] * (p - b[k]) for k, p in params.items()}
            after = {k: p - rate * gradient[k] for k, p in params.items()}
            state = strategy.after_step(state, Step(params, after, gradient), {})
            params = after
        errors.append(sum(joined(state["path"])) / (loss(split(START)) - loss(params)) - 1)
    assert 0 < errors[1] < errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)  # of first order in the step


def unit_by_hand(numbers: list[float]) -> list[float]:
    low, high = min(numbers), max(numbers)
    return [(n - low) / (high - low) for n in numbers]


def rwalk_by_hand(lam: float, alpha: float, epsilon: float, interval: int) -> dict[str, list[float]]:
    theta, anchor, importance = list(START), list(START), [0.0] * 3
    fisher: list[float] | None = None
    score: list[float] | None = None
    for a, b in TASKS:
        new = [0.0] * 3
        for first in range(0, STEPS, interval):
            steps = min(interval, STEPS - first)
            begin, decrease, squares = list(theta), [0.0] * 3, [0.0] * 3
            for _ in range(steps):
                for i in range(3):
                    g = a[i] * (theta[i] - b[i])
                    move = -RATE * (g + lam * importance[i] * (theta[i] - anchor[i]))
                    decrease[i] -= g * move
                    squares[i] += g**2 / steps
                    theta[i] += move
            now = squares if fisher is None else fisher
            for i in range(3):
                new[i] += max(0.0, decrease[i]) / (0.5 * now[i] * (theta[i] - begin[i]) ** 2 + epsilon)
            fisher = [alpha * s + (1 - alpha) * f for s, f in zip(squares, now, strict=True)]
        score = new if score is None else [0.5 * (s + n) for s, n in zip(score, new, strict=True)]
        assert fisher is not None
        importance = [f + s for f, s in zip(unit_by_hand(fisher), unit_by_hand(score), strict=True)]
        anchor = list(theta)
    assert fisher is not None and score is not None
    return {"params": theta, "anchor": anchor, "fisher": fisher, "score": score, "importance": importance}


@pytest.mark.parametrize("interval", [1, 3, STEPS, 10])
@pytest.mark.parametrize(("lam", "alpha", "epsilon"), [(2.0, 0.9, 1e-3), (0.5, 0.3, 0.1)])
def test_rwalk_is_the_walk_by_hand(lam, alpha, epsilon, interval):
    strategy = RWalk(lam=lam, alpha=alpha, epsilon=epsilon, interval=interval)
    state, params = walk(strategy, split(START), values(strategy))
    found = {"params": params, **state}
    for k, expected in rwalk_by_hand(lam, alpha, epsilon, interval).items():
        assert joined(found[k]) == pytest.approx(expected, rel=1e-11, abs=1e-14), k
    assert state["clock"]["tasks"] == 3 and state["clock"]["steps"] == 0


def test_rwalks_interval_changes_its_score():
    scores = []
    for interval in (1, 3):
        strategy = RWalk(interval=interval)
        scores.append(joined(walk(strategy, split(START), values(strategy))[0]["score"]))
    assert scores[0] != pytest.approx(scores[1], rel=0.01)


def test_an_interval_that_raised_the_loss_adds_nothing_to_rwalks_score():
    strategy, at = RWalk(interval=1, epsilon=0.5), split([0.0, 0.0, 0.0])
    state, hparams, after = strategy.init(at, SETTING), values(strategy), split([1.0, 1.0, 1.0])
    for gradient in ([-2.0, 2.0, 2.0], [2.0, -2.0, 2.0]):  # down and up, up and down, up and up; F is 4 throughout
        state = strategy.after_step(state, Step(at, after, split(gradient)), hparams)
        state = {**state, "start": at}
    assert joined(state["new_score"]) == pytest.approx([2 / (0.5 * 4 + 0.5), 2 / (0.5 * 4 + 0.5), 0])


def test_rwalk_averages_the_scores_of_tasks():
    strategy, at = RWalk(), split([0.0, 0.0, 0.0])
    state = strategy.init(at, SETTING)
    for new in ([4.0, 1.0, 0.0], [2.0, 0.0, 0.0], [6.0, 0.0, 8.0]):
        state = strategy.consolidate({**state, "new_score": split(new)}, at, {}, values(strategy))
    assert joined(state["score"]) == [4 / 4 + 2 / 4 + 6 / 2, 1 / 4, 8 / 2]
    assert joined(state["importance"]) == pytest.approx([4.25 / 4.25, 0, 3.75 / 4.25])


def test_normalising_takes_all_parameters_together_from_0_to_1():
    found = to_unit({"w": torch.tensor([[2.0, 3.0]]), "v": torch.tensor([6.0])})
    assert found["w"].tolist() == [[0.0, 0.25]] and found["v"].tolist() == [1.0]
    assert to_unit({"w": torch.full((2,), 5.0)})["w"].tolist() == [0, 0]


# All three

ALL = [MAS(lam=0.4), SI(lam=0.7), RWalk(lam=0.6, interval=3)]
every = pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)


@every
def test_a_stack_walks_as_its_runs_do_alone(strategy):
    hparams = [{k: v * f for k, v in values(strategy).items()} for f in (0.0001, 1.0, 1.1)]
    starts = [split([s + shift for s in START]) for shift in (0.0, 0.5, -0.3)]
    alone = [walk(strategy, start, h) for start, h in zip(starts, hparams, strict=True)]
    stacked = (
        {k: torch.stack([s[k] for s in starts]) for k in starts[0]},
        {k: torch.stack([h[k] for h in hparams]) for k in hparams[0]},
    )
    state, params = walk(strategy, *stacked, lift=vmap)
    for r, (one, end) in enumerate(alone):
        agree({k: v[r] for k, v in params.items()}, end, 1e-12)
        for group, part in one.items():
            agree({k: v[r] for k, v in state[group].items()}, part, 1e-12)


@every
def test_the_penalty_is_zero_until_a_task_is_consolidated_and_at_its_anchor(strategy):
    hparams, params = values(strategy), split(START)
    state = strategy.init(params, SETTING)
    away = {k: p + 3 for k, p in params.items()}
    gradient = {k: torch.ones_like(p) for k, p in params.items()}
    assert strategy.penalty(strategy.after_step(state, Step(params, away, gradient), hparams), away, hparams) == 0
    ended, last = walk(strategy, params, hparams)
    check_state(strategy.name, "consolidate", state, ended)
    assert strategy.penalty(ended, last, hparams) == 0 < strategy.penalty(ended, away, hparams)
    assert not any(g.any() for g in strategy.penalty_gradient(ended, last, hparams).values())


@every
def test_without_strength_nothing_changes_the_walk(strategy):
    hparams = values(strategy) | {"lam": torch.tensor(0.0, dtype=F64)}
    _, found = walk(strategy, split(START), hparams)
    _, plain = walk(Strategy(), split(START), {})
    assert joined(found) == joined(plain)
