"""Runs on a device that is not the CPU: the same numbers, nothing left behind on the CPU, no waiting within an epoch."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from benchmark import graphs, scenarios
from benchmark.perf.gpu import trained
from benchmark.runs import Run
from strategies import EWC, LwF, Strategy, persample, products, registry
from tests.conftest import CPU, make_run
from tests.test_replayed_steps import STRATEGIES, rerun

pytestmark = pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this PyTorch knows no devices written in Python")


def case(strategy: Strategy, **recipe: object) -> Run:
    """A run of three short tasks."""
    return make_run(strategy, tasks=3, **({"precision": "float32", "epochs": None, "iterations": 12} | recipe))


CASES = {
    **{f"{s.name}-{getattr(s, 'share', '')}": case(s) for s in STRATEGIES},
    **{name: case(registry.BUILT_IN[name]()) for name in ("joint", "frozen", "l2", "mas")},
    **{estimator: case(EWC(estimator=estimator)) for estimator in ("exact", "sampled", "batched", "notebook")},
    "kept moments": case(EWC(), optimizer="adamw", optimizer_state="keep", evaluate_every=5),
    "momentum": case(LwF(), optimizer="sgd", momentum=0.9, weight_decay=0.01),
}


@pytest.fixture(scope="module")
def process():
    """One that has the device: a device of one's own cannot be taken back, and other tests should not see it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def differences(run: Run, captured: bool) -> list[str]:
    """What is not the same to the bit on the CPU and elsewhere, of two seeds."""
    from tests.elsewhere import ELSEWHERE

    torch.set_num_threads(1)
    products.wider_than_mkl = lambda: False  # type: ignore[assignment]  # the sums of another library are in another order
    graphs.CAPTURES |= {"elsewhere": rerun} if captured else {}
    runs, tasks = [dataclasses.replace(run, seed=seed) for seed in (0, 1)], scenarios.load(run.scenario)
    (here, expected), (there, found) = trained(runs, tasks, CPU), trained(runs, tasks, ELSEWHERE)
    wrong = [f"{key}: {k}" for key in here for k, p in here[key].items() if not torch.equal(p, there[key][k])]
    return wrong + [key for key in expected if (expected[key].accuracy != found[key].accuracy).any()]


def waits(run: Run, chunk: int = persample.CHUNK) -> Counter[str]:
    """What Python waited for the device for, and how often, in one run."""
    from tests import elsewhere

    torch.set_num_threads(1)
    graphs.CAPTURES["elsewhere"] = rerun
    persample.CHUNK = persample.LEAST = chunk
    elsewhere.waits.clear()
    trained([run], scenarios.load(run.scenario), elsewhere.ELSEWHERE)
    return Counter(elsewhere.waits)


@pytest.mark.parametrize("name", CASES)
def test_a_run_elsewhere_equals_one_on_the_cpu_to_the_bit(name, process):
    assert process.submit(differences, CASES[name], captured=True).result() == []


def test_so_does_one_whose_steps_are_not_captured(process):
    assert process.submit(differences, CASES["er-sample"], captured=False).result() == []


@pytest.mark.parametrize(
    "name", [name for name in CASES if name != "kept moments"]
)  # whose evaluations are as many as it asks for
def test_nothing_waits_for_the_device_within_an_epoch(name, process):
    short, long = (dataclasses.replace(CASES[name].recipe, iterations=steps) for steps in (12, 18))
    few, many = (process.submit(waits, dataclasses.replace(CASES[name], recipe=r)).result() for r in (short, long))
    assert few == many and few


@pytest.mark.parametrize("name", ["ewc-", "exact", "sampled", "mas"])
def test_nothing_waits_for_the_device_while_importances_are_summed(name, process):
    few, many = (process.submit(waits, CASES[name], chunk).result() for chunk in (1000, 100))
    assert few == many and few


def mixed() -> str:
    from tests.elsewhere import ELSEWHERE

    with pytest.raises(RuntimeError) as refused:
        torch.ones(3, device=ELSEWHERE) + torch.ones(3)
    return str(refused.value)


def test_the_device_takes_no_tensors_of_the_cpu(process):
    assert "expected tensors on elsewhere:0, got some on the CPU" in process.submit(mixed).result()
