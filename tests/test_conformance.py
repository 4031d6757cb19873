"""The conformance kit: every registered strategy passes it, somebody else's too, and it notices what is wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import strategies
from benchmark import conformance as harness_checks
from strategies import EWC, L2, Naive, Strategy, conformance, hyper, registry
from strategies.conformance import Failed, Inapplicable

EXAMPLE = Path(__file__).parent / "example_package"


def every_case() -> Iterator[object]:
    """Each check of each variant; training the variants that are not the default takes minutes."""
    for case in (case for name in strategies.names() for case in conformance.cases(registry.get(name))):
        trained = case.check in harness_checks.CHECKS and case.strategy != type(case.strategy)()
        yield pytest.param(case, id=str(case), marks=[pytest.mark.slow] if trained else [])


@pytest.mark.parametrize("case", list(every_case()))
def test_every_registered_strategy_conforms(case):
    case.run()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which the example package is installed, by pip, beside everything else."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(folder), str(EXAMPLE)], check=True, capture_output=True)
    root = str(EXAMPLE.parent.parent)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}


def forgetbench(*arguments: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmark.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)


def test_a_third_partys_strategy_is_found_by_its_entry_point_and_passes(installed, tmp_path):
    done = forgetbench("check", "l1-anchor", env=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout and "l1-anchor" in done.stdout
    assert "l1-anchor" in forgetbench("list", "strategies", env=installed, cwd=tmp_path).stdout


def test_a_strategy_that_fails_is_said_to_and_the_command_fails(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom strategies import L2\n\n@dataclass(frozen=True)\nclass Mine(L2):\n"
        "    name = 'mine'\n    def penalty(self, state, params, hparams):\n"
        "        return super().penalty(state, params, hparams) + 1\n"
    )
    env = {**os.environ, "PYTHONPATH": str(EXAMPLE.parent.parent), "OMP_NUM_THREADS": "1"}
    done = forgetbench("check", "mine:Mine", env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "failed   The penalty is a finite scalar, and zero before the first consolidation" in done.stdout
    assert "expected a scalar 0 before the first consolidation, got 1.0" in done.stdout


@dataclass(frozen=True)
class NeverNeutral(L2):
    neutral: ClassVar[tuple[str, ...]] = ()


def test_a_strategy_that_no_setting_makes_fine_tuning_is_not_compared_with_it():
    assert harness_checks._neutral(NeverNeutral()) is None
    assert harness_checks._neutral(L2(lam=3.0)) == L2(lam=0.0)


# What the kit notices


@dataclass(frozen=True)
class Grows(L2):
    def consolidate(self, state, params, measured, hparams):
        new = super().consolidate(state, params, measured, hparams)
        return {**new, "anchor": {k: v[None] for k, v in new["anchor"].items()}}


@dataclass(frozen=True)
class Writes(L2):
    def consolidate(self, state, params, measured, hparams):
        for k, p in params.items():
            state["anchor"][k].copy_(p)
        return super().consolidate(state, params, measured, hparams)


@dataclass(frozen=True)
class KeepsANumber(L2):
    def init(self, params, setting):
        return {**super().init(params, setting), "count": {"tasks": 0}}


@dataclass(frozen=True)
class OffAnchor(L2):
    def consolidate(self, state, params, measured, hparams):
        new = super().consolidate(state, params, measured, hparams)
        return {**new, "anchor": {k: v + 0.1 for k, v in new["anchor"].items()}}


@dataclass(frozen=True)
class Negative(L2):
    def penalty(self, state, params, hparams):
        return -super().penalty(state, params, hparams)


@dataclass(frozen=True)
class ZeroPenalty(L2):
    """As a well-known library's EWC once was."""

    name: ClassVar[str] = "zero"

    def penalty(self, state, params, hparams):
        return 0 * super().penalty(state, params, hparams)

    def penalty_gradient(self, state, params, hparams):
        return {k: torch.zeros_like(p) for k, p in params.items()}


@dataclass(frozen=True)
class NoHalf(L2):
    def penalty_gradient(self, state, params, hparams):
        return {k: 2 * g for k, g in super().penalty_gradient(state, params, hparams).items()}


@dataclass(frozen=True)
class RowsAsAWhole(L2):
    """½·λ·Σ over rows of (Σ ΩΔw)², whose gradient takes a weight for a matrix: wrong in silence where it is none."""

    name: ClassVar[str] = "rows-as-a-whole"
    lam: float = hyper(1e-3, low=0.0, tune=(1e-4, 1e-2))

    def moved(self, state, params):
        return {k: omega * (params[k] - state["anchor"][k]) for k, omega in state["importance"].items()}

    def penalty(self, state, params, hparams):
        rows = [d if d.ndim == 1 else d.flatten(1).sum(1) for d in self.moved(state, params).values()]
        return 0.5 * hparams["lam"] * torch.cat(rows).square().sum()

    def penalty_gradient(self, state, params, hparams):
        rows = {k: d if d.ndim == 1 else d.sum(1, keepdim=True) for k, d in self.moved(state, params).items()}
        return {k: hparams["lam"] * omega * rows[k] for k, omega in state["importance"].items()}


@dataclass(frozen=True)
class Transposes(L2):
    """Importances that matrices alone have."""

    name: ClassVar[str] = "transposes"

    def measure(self, model, task):
        return {k: p.abs() if p.ndim == 1 else (p @ p.t() @ p).abs() for k, p in model.named_parameters()}


@dataclass(frozen=True)
class SharesItsState(L2):
    def penalty_gradient(self, state, params, hparams):
        return state["importance"]


@dataclass(frozen=True)
class AlwaysOn(L2):
    """Its strength is not what `lam` says."""

    def penalty_gradient(self, state, params, hparams):
        return {k: g + 0.01 * params[k] for k, g in super().penalty_gradient(state, params, hparams).items()}


@dataclass(frozen=True)
class Draws(L2):
    """Hidden randomness: another result in every process."""

    name: ClassVar[str] = "draws"

    def consolidate(self, state, params, measured, hparams):
        scale = 1 + int.from_bytes(os.urandom(1)) / 255
        return super().consolidate(state, {k: scale * p for k, p in params.items()}, measured, hparams)


@dataclass(frozen=True)
class ReadsSelf(L2):
    """A hyperparameter that is not the run's own in a stack."""

    name: ClassVar[str] = "reads-self"

    def penalty_gradient(self, state, params, hparams):
        return {k: self.decay * g for k, g in super().penalty_gradient(state, params, hparams).items()}


@dataclass(frozen=True)
class SpoilsItsTask(L2):
    def measure(self, model, task):
        task.y.fill_(0)
        return super().measure(model, task)


@dataclass(frozen=True)
class MixesRuns(EWC):
    """Importances of a stack that are those of its runs' mean."""

    def measure_stack(self, networks, task):
        found = super().measure_stack(networks, task)
        return {k: v.mean(0, keepdim=True).expand(v.shape) for k, v in found.items()}


@dataclass(frozen=True)
class Nameless(L2):
    name: ClassVar[str] = ""


@dataclass(frozen=True)
class Needs(Strategy):
    name: ClassVar[str] = "needs"
    path: str


@dataclass(frozen=True)
class LooksAtNeighbours(Strategy):
    """A value that changes with every call, so that a stack is not what its runs are."""

    name: ClassVar[str] = "looks"
    lam: float = hyper(1.0, low=0.0, tune=(1.0, 10.0))
    calls: ClassVar[list[int]] = []

    def penalty(self, state, params, hparams):
        return hparams["lam"] * torch.stack([p.square().sum() for p in params.values()]).sum()

    def penalty_gradient(self, state, params, hparams):
        self.calls.append(1)
        return {k: hparams["lam"] * 1e-3 * (len(self.calls) % 7) * p for k, p in params.items()}


@pytest.mark.parametrize(
    ("strategy", "check", "message"),
    [
        (Grows(), conformance.the_state_keeps_its_structure, r"state anchor\['0.weight'\]: expected float64 of shape"),
        (Writes(), conformance.arguments_are_never_written_to, "`consolidate` wrote into its arguments"),
        (OffAnchor(), conformance.the_penalty_vanishes_at_the_anchor, "expected no penalty and no gradient"),
        (Negative(), conformance.a_quadratic_penalty_is_never_negative, "expected penalties >= 0"),
        (ZeroPenalty(), conformance.a_quadratic_penalty_is_never_negative, "some > 0 away from the anchor"),
        (ZeroPenalty(), harness_checks.it_does_something, "fine-tuning forgets 0.* at best: not 0.05 less"),
        (NoHalf(), conformance.the_penaltys_gradient_is_its_gradient, "gradient of '0.weight': expected"),
        (SharesItsState(), conformance.the_penaltys_gradient_is_its_gradient, "gradient of"),
        (AlwaysOn(), harness_checks.without_strength_it_is_fine_tuning, "strength 0: parameter .* differs"),
        (MixesRuns(), conformance.a_stack_measures_what_each_run_measures, "of run 0 of 3: `measure` says"),
        (Draws(), harness_checks.a_seed_reproduces_in_another_process, "expected .* in another process too"),
        (SpoilsItsTask(), conformance.arguments_are_never_written_to, "`measure` wrote into the task or the model"),
        (ReadsSelf(), harness_checks.stacked_runs_equal_runs_alone, "a run alone: parameter .* differs"),
        (LooksAtNeighbours(), harness_checks.stacked_runs_equal_runs_alone, "a run alone: parameter .* differs"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Strategy) else "",
)
def test_the_kit_notices(strategy: Strategy, check: Callable[[Strategy], None], message: str):
    with pytest.raises(Failed, match=message):
        check(strategy)


@pytest.mark.parametrize(
    ("strategy", "error", "message"),
    [
        (RowsAsAWhole(), Failed, "gradient of '1.weight': expected"),
        (Transposes(), RuntimeError, "expects a tensor with <= 2 dimensions"),
    ],
    ids=["in silence", "aloud"],
)
def test_what_takes_weights_for_matrices_is_noticed_by_one_check_alone(strategy, error, message):
    others = [*conformance.CHECKS, *harness_checks.CHECKS[:2]]
    others.remove(conformance.weights_may_have_four_dimensions)
    for check in others:
        with contextlib.suppress(Inapplicable):
            check(strategy)
    with pytest.raises(error, match=message):
        conformance.weights_may_have_four_dimensions(strategy)


def test_a_state_that_is_not_tensors_is_noticed():
    with pytest.raises((Failed, AttributeError, TypeError)):
        conformance.the_state_keeps_its_structure(KeepsANumber())


def test_what_says_nothing_about_a_strategy_is_skipped_not_passed():
    for check in (conformance.the_penalty_vanishes_at_the_anchor, harness_checks.it_does_something):
        with pytest.raises(Inapplicable):
            check(Naive())


def test_what_cannot_be_checked_says_why():
    with pytest.raises(ValueError, match="Nameless has no `name`"):
        conformance.cases(Nameless)
    with pytest.raises(ValueError, match="Needs: fields need defaults to be checked with: path"):
        conformance.cases(Needs)


def test_every_choice_of_an_option_is_a_variant_of_its_own():
    assert [conformance.label(v) for v in conformance.variants(L2)] == ["l2", "l2[accumulate=online]"]
    assert len({str(case) for case in conformance.cases(L2)}) == len(conformance.cases(L2))
