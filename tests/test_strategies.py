"""The contract, over every registered strategy without naming any, and the quadratic penalties' own properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

import strategies
from strategies import EWC, L2, FinishedTask, Naive, Strategy, hyper, quadratic, registry
from strategies.base import Params


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def parameters(model: nn.Module) -> Params:
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def moved(params: Params, by: float) -> Params:
    torch.manual_seed(1)
    return {k: p + by * torch.randn_like(p) for k, p in params.items()}


def hparams(strategy: Strategy) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(getattr(strategy, k), dtype=torch.float64) for k in strategy.hyperparameters()}


def finished(number: int = 1) -> FinishedTask:
    torch.manual_seed(number)
    x, y = torch.rand(40, 6, dtype=torch.float64), torch.randint(0, 3, (40,))
    return FinishedTask(number, x, y, torch.Generator().manual_seed(number))


def consolidated(strategy: Strategy, model: nn.Module, tasks: int = 1) -> tuple[dict, Params]:
    params = parameters(model)
    state = strategy.init(params)
    for number in range(1, tasks + 1):
        params = moved(params, 0.1 * number)
        model.load_state_dict(params)
        measured = strategy.measure(model.eval(), finished(number))
        state = strategy.consolidate(state, params, measured, hparams(strategy))
    return state, params


def variants() -> list[Strategy]:
    """Every registered strategy, and every value of its enumerated options."""
    found: list[Strategy] = []
    for name in strategies.names():
        cls = registry.get(name)
        found.append(cls())
        if "accumulate" in cls().options():
            found.append(cls(accumulate="online", decay=0.9))
        if "estimator" in cls().options():
            found += [cls(estimator=e, fisher_batch_size=10) for e in ("exact", "sampled", "batched", "notebook")]
    return found


every = pytest.mark.parametrize(
    "strategy", variants(), ids=lambda s: "-".join(map(str, (s.name, *s.options().values())))
)


def leaves(tree: dict) -> dict[str, torch.Tensor]:
    return {f"{k}/{j}": v for k, part in tree.items() for j, v in part.items()}


@every
def test_the_states_structure_never_changes(strategy):
    model = network()
    before = leaves(strategy.init(parameters(model)))
    for tasks in (1, 3):
        after = leaves(consolidated(strategy, model, tasks)[0])
        assert {k: (v.shape, v.dtype) for k, v in after.items()} == {k: (v.shape, v.dtype) for k, v in before.items()}


@every
def test_the_penalty_is_a_finite_scalar_and_zero_before_the_first_consolidation(strategy):
    params = parameters(network())
    value = strategy.penalty(strategy.init(params), moved(params, 1.0), hparams(strategy))
    assert value.shape == () and value.dtype == torch.float64 and value == 0


@every
def test_the_penalty_vanishes_at_the_anchor_and_is_positive_away_from_it(strategy):
    if not strategy.overrides("penalty"):
        pytest.skip("no penalty")
    state, params = consolidated(strategy, network())
    gradient = strategy.penalty_gradient(state, params, hparams(strategy))
    assert strategy.penalty(state, params, hparams(strategy)) == 0
    assert all(not g.any() for g in gradient.values())
    assert strategy.penalty(state, moved(params, 1.0), hparams(strategy)) > 0


@every
def test_the_penaltys_gradient_is_its_gradient(strategy):
    state, params = consolidated(strategy, network(), tasks=3)
    away, h = moved(params, 0.5), hparams(strategy)
    expected = torch.func.grad(lambda p: strategy.penalty(state, p, h))(away)
    found = strategy.penalty_gradient(state, away, h)
    assert found.keys() == away.keys()
    for k, e in expected.items():
        torch.testing.assert_close(found[k], e, rtol=1e-12, atol=1e-12 * float(e.abs().max() + 1e-300))


@every
def test_arguments_are_never_written_to(strategy):
    model = network()
    state, params = consolidated(strategy, model)
    away, measured = moved(params, 0.5), strategy.measure(model, finished())
    kept = {k: v.clone() for k, v in (leaves(state) | leaves({"p": away, "m": measured})).items()}
    for gradient in strategy.penalty_gradient(state, away, hparams(strategy)).values():
        gradient.add_(1)  # the harness may write into what it is given
    strategy.penalty(state, away, hparams(strategy))
    strategy.consolidate(state, away, measured, hparams(strategy))
    assert all(torch.equal(v, kept[k]) for k, v in (leaves(state) | leaves({"p": away, "m": measured})).items())


@every
def test_methods_lift_over_a_stack(strategy):
    state, params = consolidated(strategy, network(), tasks=2)
    away = [moved(params, by) for by in (0.1, 0.5, 2.0)]
    factors = [0.0, 1.0, 7.0]
    h = [{k: v * f if k == "lam" else v for k, v in hparams(strategy).items()} for f in factors]

    def stack(trees: list[dict]) -> dict:
        first = trees[0]
        return {
            k: stack([t[k] for t in trees]) if isinstance(first[k], dict) else torch.stack([t[k] for t in trees])
            for k in first
        }

    stacked = stack([state] * 3), stack(away), stack(h)
    values = vmap(strategy.penalty)(*stacked)
    expected = torch.stack([strategy.penalty(state, a, one) for a, one in zip(away, h, strict=True)])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)


@every
def test_state_survives_saving_and_loading(strategy, tmp_path):
    state, _ = consolidated(strategy, network())
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert leaves(loaded).keys() == leaves(state).keys()
    assert all(torch.equal(v, leaves(state)[k]) for k, v in leaves(loaded).items())


@every
def test_measuring_twice_with_one_key_is_the_same(strategy):
    model = network().eval()
    once, twice = strategy.measure(model, finished()), strategy.measure(model, finished())
    assert all(torch.equal(once[k], twice[k]) for k in once)


numbers = st.floats(-3, 3)
importances = st.floats(0, 5)


@given(st.lists(st.tuples(importances, numbers), min_size=1, max_size=6), numbers, numbers)
def test_separate_anchors_are_one_quadratic_up_to_a_constant(tasks, here, there):
    importance = anchor = {"w": torch.zeros(1, dtype=torch.float64)}
    for omega, theta in tasks:
        new, params = ({"w": torch.tensor([v], dtype=torch.float64)} for v in (omega, theta))
        importance, anchor = quadratic.separate(importance, anchor, new, params)
    lam = torch.tensor(2.0, dtype=torch.float64)

    def folded(at: float) -> float:
        return float(quadratic.penalty({"w": torch.tensor([at], dtype=torch.float64)}, importance, anchor, lam))

    def summed(at: float) -> float:
        return sum(0.5 * 2.0 * omega * (at - theta) ** 2 for omega, theta in tasks)

    assert folded(here) - folded(there) == pytest.approx(summed(here) - summed(there), abs=1e-9)
    assert torch.isfinite(anchor["w"]).all()


def test_the_penalty_is_half_lambda_times_the_weighted_sum_of_squares():
    params, anchor = (
        {"w": torch.tensor([a, b]), "v": torch.tensor([[c]])} for a, b, c in ((1.0, 2.0, 3.0), (0.0, 4.0, 3.5))
    )
    importance = {"w": torch.tensor([2.0, 1.0]), "v": torch.tensor([[8.0]])}
    assert quadratic.penalty(params, importance, anchor, torch.tensor(10.0)) == 0.5 * 10 * (2 * 1 + 1 * 4 + 8 * 0.25)


def test_online_decays_the_old_importance_and_anchors_at_the_latest():
    old, new, params = ({"w": torch.tensor([v])} for v in (4.0, 1.0, 7.0))
    importance, anchor = quadratic.online(old, new, params, torch.tensor(0.5))
    assert importance["w"] == 3.0 and anchor["w"] == 7.0


def test_ewc_uses_the_number_of_samples_it_is_told_to(monkeypatch):
    seen = []
    monkeypatch.setattr("strategies.fisher.diagonal", lambda model, x, y, **_: seen.append((len(x), len(y))) or {})
    for samples, estimator in ((0, "empirical"), (7, "exact"), (0, "notebook")):
        EWC(fisher_samples=samples, estimator=estimator, fisher_batch_size=15).measure(network(), finished())
    assert seen == [(40, 40), (7, 7), (30, 30)]


def test_quadratic_strategies_share_a_stack_unless_they_change_the_penalty():
    @dataclass(frozen=True)
    class Other(L2):
        def penalty(self, state, params, hparams):
            return 2 * super().penalty(state, params, hparams)

    assert L2().family() == EWC(estimator="exact").family() != L2(accumulate="online").family()
    assert Other().family() != L2().family() != Naive().family()


def test_hyperparameters_out_of_bounds_are_refused():
    with pytest.raises(ValueError, match="lam: expected a number >= 0, got -1"):
        L2(lam=-1)
    with pytest.raises(ValueError, match="decay: expected a number from 0 to 1, got 1.5"):
        EWC(decay=1.5)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown strategy 'ewcc'; did you mean 'ewc'\? \(forgetbench list strategies\)"
    ):
        registry.get("ewcc")


@dataclass(frozen=True)
class Mine(Strategy):
    """Found by `package.module:Class`."""

    name: ClassVar[str] = "mine"
    strength: float = hyper(2.0)


class Bare:
    """Not a strategy."""


def test_a_class_is_found_by_its_import_path():
    assert registry.get("tests.test_strategies:Mine").hyperparameters() == ("strength",)
    for path, message in {
        "tests.test_strategies:Bare": "expected a subclass",
        "tests.test_strategies:Missing": "cannot be imported",
        "no_such_package:Class": "cannot be imported",
    }.items():
        with pytest.raises(ValueError, match=message):
            registry.get(path)
