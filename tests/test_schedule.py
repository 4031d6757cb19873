"""Stacks that fail alone, stacks that are split for want of memory, and whatever else an executor makes of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from benchmark import harness, plan, scenarios, schedule
from benchmark.executors import HERE, Executor, Lost, LostForMemory, LostWorkers, Room, Submit, Ticket, then
from benchmark.memory import out_of_memory
from benchmark.models import Model
from benchmark.results import ResultsError
from benchmark.runs import Result, Run
from strategies import EWC, L2, SI, Naive, Quadratic
from tests import conftest
from tests.conftest import CPU


@dataclass(frozen=True)
class Raises(Naive):
    name: ClassVar[str] = "raises"

    def loss(self, net: Any, batch: Any, recalled: Any, state: Any, hparams: Any) -> Any:
        raise KeyError("nope")


def make_run(*args: Any, **changes: Any) -> Run:
    """A run of three steps a task, of a network without BatchNorm: all of its parameters are identified."""
    run = conftest.make_run(*args, epochs=None, iterations=3, **changes)
    return dataclasses.replace(run, model=Model("mlp"))


class Noted(harness.Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.traces: list[str] = []

    def trouble(self, what: str, trace: str) -> None:
        self.said.append(what)
        self.traces.append(trace)


def go(
    runs: list[Run],
    largest: int | None = None,
    executor: Executor = HERE,
    workers: int = 1,
    keep: Callable[[list[Result]], object] = lambda results: None,
) -> tuple[dict[str, Result], Noted]:
    tasks, noted = scenarios.load(runs[0].scenario), Noted()
    made = plan.make(runs, tasks, CPU, largest, Room(workers, 2**34))
    stacks = list(schedule.execute(made, tasks, CPU, noted, keep=keep, executor=executor))
    assert all(len({r.status == "failed" for r in stack}) == 1 for stack in stacks)
    return {r.run.key: r for stack in stacks for r in stack}, noted


def same(found: dict[str, Result], expected: dict[str, Result]) -> None:
    assert found.keys() == expected.keys()
    for key, e in expected.items():
        assert found[key].status == "finished"
        np.testing.assert_allclose(found[key].accuracy, e.accuracy, rtol=0, atol=1e-12)


@pytest.fixture
def only_so_many(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], list[int]]:
    """Memory for stacks of that many runs; the sizes that were tried."""

    def limit(most: int, error: Exception) -> list[int]:
        tried, inner = [], harness._train

        def train(branch: Any, *args: Any) -> Any:
            tried.append(len(branch.runs))
            if len(branch.runs) > most:
                raise error
            return inner(branch, *args)

        monkeypatch.setattr(harness, "_train", train)
        return tried

    return limit


# Failures


@pytest.mark.parametrize("workers", [1, 2])
def test_a_strategy_that_raises_fails_alone_with_the_reason(workers: int) -> None:
    bad, good = [make_run(Raises(), seed=s) for s in (0, 1)], [make_run(L2(), seed=s) for s in (0, 1)]
    kept: list[Result] = []
    found, noted = go([*bad, *good], workers=workers, keep=kept.extend)
    for run in bad:
        assert found[run.key].status == "failed"
        assert re.fullmatch(
            r"strategy 'raises': KeyError: 'nope' \(test_schedule.py, line \d+\)", found[run.key].reason
        )
        assert found[run.key].accuracy.shape == (3, 2) and np.isnan(found[run.key].accuracy).all()
    same({run.key: found[run.key] for run in good}, go(good)[0])
    assert {r.run.key for r in kept} == found.keys() and len(kept) == 4
    assert all("failed: strategy 'raises': KeyError: 'nope'" in said for said in noted.said) and noted.said
    assert all('raise KeyError("nope")' in trace for trace in noted.traces)


def test_results_that_cannot_be_kept_end_everything() -> None:
    def full(results: list[Result]) -> None:
        raise ResultsError("no space left")

    with pytest.raises(ResultsError, match="no space left"):
        go([make_run(L2(), seed=s) for s in (0, 1)], keep=full, workers=2)


def test_a_first_task_that_fails_fails_the_runs_of_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = harness._start

    def start(runs: tuple[Run, ...], site: Any) -> Any:
        if any(run.seed == 1 for run in runs):
            raise ZeroDivisionError("seed 1")
        return inner(runs, site)

    monkeypatch.setattr(harness, "_start", start)
    runs = [make_run(L2(lam=lam), seed=s) for lam in (1, 2) for s in (0, 1, 2)]
    found, noted = go(runs, largest=1)
    statuses = {(r.run.seed, r.status, r.reason) for r in found.values()}
    assert statuses == {(0, "finished", ""), (1, "failed", "ZeroDivisionError: seed 1"), (2, "finished", "")}
    assert len(found) == 6 and noted.said == ["a first task of 1 run failed: ZeroDivisionError: seed 1"]


@pytest.mark.parametrize(("device", "most"), [("cpu", 1), ("cuda", 2)])
def test_one_accelerator_has_its_next_stack_at_hand_while_results_are_looked_at(device: str, most: int) -> None:
    waiting = []

    class Counting(Elsewhere):
        def open(self, site: harness.Site, workers: int) -> Any:
            return super().open(dataclasses.replace(site, device=CPU), workers)

    runs = [make_run(SI(), seed=seed, tasks=1) for seed in range(4)]  # shares no first task: one job a run
    tasks = scenarios.load(runs[0].scenario)
    made = plan.make(runs, tasks, CPU, 1, Room(1, 2**34))
    executor = Counting()
    for _ in schedule.execute(made, tasks, torch.device(device), executor=executor):
        waiting.append(executor.handed_in - len(waiting))
    assert max(waiting) == most and len(waiting) == 4


# Trunks of earlier executions


class Begun(harness.Silent):
    def __init__(self) -> None:
        self.firsts: list[int] = []

    def stack_started(self, number: int, runs: int, title: str) -> None:
        if not number:
            self.firsts.append(runs)


@pytest.mark.parametrize("largest", [None, 2])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_first_task_that_was_trained_before_is_not_trained_again(elsewhere: bool, largest: int | None) -> None:
    batches = [
        [make_run(L2(lam=1.0), seed=seed) for seed in (0, 1)],
        [*(make_run(L2(lam=2.0), seed=seed) for seed in (0, 1, 2, 3)), make_run(SI(), seed=0)],
        [make_run(L2(lam=3.0), seed=seed) for seed in (3, 1)],
    ]
    expected = {key: result for batch in batches for key, result in go(batch)[0].items()}
    tasks, trunks, begun, found = scenarios.load(batches[0][0].scenario), schedule.Trunks(), Begun(), {}
    for batch in batches:
        made = plan.make(batch, tasks, CPU, largest, Room(1, 2**34), trained=trunks)
        executor = Elsewhere() if elsewhere else HERE
        for stack in schedule.execute(made, tasks, CPU, begun, executor=executor, trunks=trunks):
            found |= {result.run.key: result for result in stack}
    same(found, expected)
    assert sum(begun.firsts) == len(trunks) == 4


# Memory

OUT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes."),
]


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stack_for_which_memory_runs_out_is_split_until_it_fits(
    only_so_many: Callable[[int, Exception], list[int]], error: Exception, workers: int
) -> None:
    runs = [make_run(s, seed=seed) for s in (L2(lam=1.0), L2(lam=2.0), L2(lam=9.0)) for seed in range(4)]
    expected, _ = go(runs)
    tried = only_so_many(3, error)
    found, noted = go(runs, workers=workers)
    same(found, expected)
    assert max(r.stack_size for r in found.values()) <= 3
    assert all("memory ran out in a " in said and "tried again in two parts" in said for said in noted.said)
    # What was found out about one stack holds for those after it.
    assert sum(size > 3 for size in tried) == len(noted.said) <= 4
    assert {r.trunk_runs for r in found.values()} == {3}


def test_a_run_that_does_not_fit_alone_has_failed(only_so_many: Callable[[int, Exception], list[int]]) -> None:
    only_so_many(0, MemoryError("Unable to allocate 9 GiB"))
    found, noted = go([make_run(Naive(), seed=s, tasks=1) for s in (0, 1)])
    assert {(r.status, r.reason) for r in found.values()} == {("failed", "MemoryError: Unable to allocate 9 GiB")}
    assert len(noted.said) == 3  # two seeds, then each alone


def test_other_errors_of_the_runtime_split_nothing(only_so_many: Callable[[int, Exception], list[int]]) -> None:
    tried = only_so_many(0, RuntimeError("size mismatch"))
    found, _ = go([make_run(Naive(), seed=s) for s in (0, 1)])
    assert {r.reason for r in found.values()} == {"RuntimeError: size mismatch"} and tried == [2]


# A back end of one's own


class Elsewhere:
    """Stacks on one thread that answers in its own time, and loses the jobs it is told to lose."""

    def __init__(self, losing: Exception | None = None, times: int = 0) -> None:
        self.losing, self.times, self.closed, self.handed_in = losing, times, False, 0

    def room(self, device: torch.device) -> Room:
        return Room(2, 2**34)

    @contextmanager
    def open(self, site: harness.Site, workers: int) -> Generator[Submit, None, None]:
        site.load()
        with ThreadPoolExecutor(1) as pool:

            def run(job: Any, needs: Any) -> Any:
                torch.set_num_threads(1)
                if self.losing and self.times:
                    self.times -= 1
                    raise self.losing
                return job(site, *needs)

            def submit(job: Any, *needs: Any) -> Ticket:
                self.handed_in += 1
                pair: Future[Any] = pool.submit(run, job, [left.result()[0] for left in needs])
                return Ticket(pair, then(pair, lambda ended: ended[1]))

            yield submit
        self.closed = True


def test_another_back_end_gives_the_same_results_to_the_bit() -> None:
    runs = [make_run(s, seed=seed) for s in (L2(), L2(lam=9.0)) for seed in (0, 1, 2)]
    expected, elsewhere = go(runs, workers=2)[0], Elsewhere()
    found = go(runs, workers=2, executor=elsewhere)[0]
    assert all(np.array_equal(found[key].accuracy, e.accuracy) for key, e in expected.items()) and elsewhere.closed


def test_a_job_whose_worker_died_for_good_has_failed() -> None:
    runs = [make_run(L2(), seed=seed, tasks=1) for seed in (0, 1)]
    found, _ = go(runs, workers=2, executor=Elsewhere(Lost("its worker died 4 times"), times=1))
    assert sorted((r.status, r.reason) for r in found.values()) == [
        ("failed", "its worker died 4 times"),
        ("finished", ""),
    ]


def test_a_job_whose_worker_ran_out_of_memory_is_split() -> None:
    runs = [make_run(L2(), seed=seed, tasks=1) for seed in range(4)]
    found, noted = go(runs, workers=1, executor=Elsewhere(LostForMemory("killed"), times=1))
    assert {r.status for r in found.values()} == {"finished"} and len(noted.said) == 1


@pytest.mark.parametrize("culprit", [0, 5, 7])
def test_a_run_that_ends_every_worker_fails_alone_and_others_are_stacked_as_before(
    culprit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, deaths = harness._train, list[int]()

    def train(branch: Any, *args: Any) -> Any:
        if any(run.seed == culprit and run.strategy_name == "l2" for run in branch.runs):
            deaths.append(len(branch.runs))
            raise LostWorkers("its worker died 4 times")
        return inner(branch, *args)

    doomed = [make_run(L2(), seed=seed) for seed in range(8)]
    others = [make_run(SI(), seed=seed) for seed in range(8)]
    runs, expected = [*doomed, *others], go([*doomed, *others])[0]
    monkeypatch.setattr(harness, "_train", train)
    found, noted = go(runs)
    lost = found.pop(doomed[culprit].key)
    assert (lost.status, lost.reason, lost.stack_size) == ("failed", "its worker died 4 times", 1)
    same(found, {key: result for key, result in expected.items() if key != lost.run.key})
    assert {found[run.key].stack_size for run in others} == {8}
    *splits, last = noted.said
    assert [said.startswith("memory may have run out in a ") for said in splits] == [True] * 3
    assert all(said.endswith("(its worker died 4 times)") for said in splits) and "failed: its worker died" in last
    assert deaths == [8, 4, 2, 1]


def test_a_strategy_that_ends_every_worker_is_given_up_after_each_run_was_alone(
    only_so_many: Callable[[int, Exception], list[int]],
) -> None:
    tried = only_so_many(0, LostWorkers("its worker died 4 times"))
    found, _ = go([make_run(L2(), seed=seed, tasks=1) for seed in range(8)])
    assert {(r.status, r.stack_size) for r in found.values()} == {("failed", 1)}
    assert tried.count(1) == 8 and len(tried) <= 2 * 8 - 1


def test_an_error_of_the_executor_itself_ends_everything() -> None:
    with pytest.raises(ConnectionError, match="cluster"):
        go([make_run(L2())], executor=Elsewhere(ConnectionError("the cluster is gone"), times=1))


# Strategies that share a stack


@dataclass(frozen=True)
class Unmeasurable(L2):
    name: ClassVar[str] = "unmeasurable"

    def measure_stack(self, networks: Any, task: Any) -> Any:
        raise KeyError("oops")


@dataclass(frozen=True)
class WeightsAlone(Quadratic):
    name: ClassVar[str] = "weights-alone"

    def measure(self, model: Any, task: Any) -> Any:
        return {k: p.detach().abs() for k, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Unmeasurable(), "strategy 'unmeasurable': KeyError: 'oops'"),
        (WeightsAlone(), "strategy 'weights-alone', .*bias.*: expected .*, got nothing"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_one_strategy_of_a_stack_that_cannot_be_measured_fails_alone_and_by_its_name(
    bad: Quadratic, reason: str, first: bool
) -> None:
    good = make_run(EWC())
    runs = [make_run(bad), good] if first else [good, make_run(bad)]
    found, noted = go(runs)
    same({good.key: found.pop(good.key)}, go([good])[0])
    (lost,) = found.values()
    assert lost.status == "failed" and re.search(reason, lost.reason)
    assert "its strategies are tried again one by one" in noted.said[0]


@dataclass(frozen=True)
class BadInit(Naive):
    name: ClassVar[str] = "bad-init"

    def init(self, params: Any, setting: Any) -> Any:
        return {"x": {"y": torch.zeros(setting.classes)}}


def test_a_strategy_whose_init_raises_is_named() -> None:
    with pytest.raises(ValueError, match="strategy 'bad-init': AttributeError: .*classes"):
        go([make_run(BadInit())])


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_memory_that_ran_out_is_known_however_it_is_said(said: str, memory: bool) -> None:
    assert out_of_memory(RuntimeError(said)) is memory and not out_of_memory(ValueError(said))
