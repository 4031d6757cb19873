"""Quadratic penalties, what may share a stack, and how strategies are found; the contract: `test_conformance.py`."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strategies import (
    EWC,
    L2,
    FinishedTask,
    Naive,
    Strategy,
    hyper,
    quadratic,
    registry,
)


@pytest.mark.parametrize("strategy", [registry.get(name)() for name in registry.names()], ids=lambda s: s.name)
def test_runs_that_differ_in_numbers_alone_may_share_a_stack(strategy):
    changed = {f.name: f.metadata["tune"][1] for f in dataclasses.fields(strategy) if f.metadata.get("tune")}
    assert dataclasses.replace(strategy, **changed).family() == strategy.family()
    hash(strategy.family())


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


def forty() -> FinishedTask:
    x, y = torch.rand(40, 6, dtype=torch.float64), torch.randint(0, 3, (40,))
    return FinishedTask(1, lambda: x, y, torch.Generator().manual_seed(1))


def test_ewc_uses_the_number_of_samples_it_is_told_to(monkeypatch):
    seen = []

    def diagonals(networks, task, **_):
        seen.append((task.inputs(slice(None)).shape[1], int(task.counts)))
        return {}

    monkeypatch.setattr("strategies.fisher.diagonals", diagonals)
    for samples, estimator in ((0, "empirical"), (7, "exact"), (0, "notebook")):
        EWC(fisher_samples=samples, estimator=estimator, fisher_batch_size=15).measure(nn.Linear(6, 3), forty())
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


@pytest.mark.parametrize("value", [np.float32(-1), np.int64(-1), float("nan"), "-5", "5", None, True, [1.0]], ids=repr)
def test_a_hyperparameter_is_a_number_within_bounds_of_whatever_type(value):
    with pytest.raises(ValueError, match=rf"lam: expected a number >= 0, got {re.escape(repr(value))}"):
        EWC(lam=value)


def test_a_number_of_any_type_is_a_float_from_then_on():
    for value in (5, np.float32(5), np.int64(5)):
        assert type(EWC(lam=value).lam) is float and EWC(lam=value) == EWC(lam=5.0)
    with pytest.raises(ValueError, match="draws: expected a number >= 1"):
        EWC(draws=np.int64(0))


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


def test_what_is_said_of_a_strategy_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name may come from a table of results that somebody else wrote."""
    (tmp_path / "unasked.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.about("unasked:X") == {} and "unasked" not in sys.modules
    assert registry.about("ewc")["lam"] and registry.about("strategies.l2:L2")["what"]
