"""Plans: every run trains once, beside runs it may train with, in stacks that fit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark import data, plan, scenarios, schedule
from benchmark.executors import Room
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Run
from strategies import EWC, L2, Naive, Params, Setting, State, Strategy, option

CPU = torch.device("cpu")
SCENARIO = scenarios.resolve({"name": "permuted-digits", "tasks": 2})
IMAGES = scenarios.load(SCENARIO)


@dataclasses.dataclass(frozen=True)
class Own(Strategy):
    """A strategy that trains even the first task in its own way."""

    name: ClassVar[str] = "own"
    plain_first_task: ClassVar[bool] = False


def run(strategy: Strategy, seed: int = 0, **recipe: object) -> Run:
    recipe = {"epochs": 1, "batch_size": 64} | recipe
    return Run(SCENARIO, Model("mlp-bn"), Recipe(**recipe), strategy, strategy.name, f"{strategy}", seed)


@pytest.fixture(autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with memory enough and two workers, whatever runs the tests."""
    monkeypatch.setattr(plan, "free_bytes", lambda device: 2**36)
    monkeypatch.setattr(plan, "workers_for", lambda device: 2)


def stacks(made: plan.Plan) -> list[tuple[Run, ...]]:
    return [stack for group in made.groups for stack in group.stacks]


strategies = st.sampled_from([Naive(), L2(lam=1), L2(lam=2), EWC(lam=3), EWC(lam=3, estimator="exact"), EWC(accumulate="online"), Own()])  # fmt: skip
recipes = st.sampled_from([{}, {"batchnorm": "freeze-after-first"}, {"epochs": 2}, {"precision": "float64"}])
sets_of_runs = st.lists(
    st.builds(lambda s, seed, recipe: run(s, seed, **recipe), strategies, st.integers(0, 6), recipes),
    min_size=1,
    max_size=40,
    unique_by=lambda r: r.key,
)


@given(sets_of_runs, st.one_of(st.none(), st.integers(1, 10)))
def test_every_run_is_planned_once_beside_runs_it_may_train_with(runs: list[Run], largest: int | None) -> None:
    made = plan.make(runs, IMAGES, CPU, largest)
    assert Counter(r.key for stack in stacks(made) for r in stack) == Counter(r.key for r in runs)
    assert (made.runs, made.stacks) == (len(runs), len(stacks(made)))
    for stack in stacks(made):
        assert 1 <= len(stack) <= (largest or plan.LARGEST_ON_CPU)
        assert len({(r.model, r.recipe, r.strategy.family()) for r in stack}) == 1


@given(sets_of_runs, st.one_of(st.none(), st.integers(1, 10)))
def test_the_first_task_is_trained_once_a_seed_where_it_is_the_same(runs: list[Run], largest: int | None) -> None:
    made = plan.make(runs, IMAGES, CPU, largest)
    trunks = Counter(r.trunk for r in runs)
    trained = 0
    for group in made.groups:
        members = [r for stack in group.stacks for r in stack]
        if group.seeds:
            assert {r.seed for r in members} == set(group.seeds)
            assert len({r.trunk for r in members}) == len(group.seeds)
            trained += len(group.seeds)
        else:
            assert {r.trunk for r in members} == {""}
    assert trained == len(trunks.keys() - {""})


def test_a_first_task_that_is_there_is_not_planned_again() -> None:
    runs = [run(L2(lam=1), seed) for seed in range(3)]
    (group,) = plan.make(runs, IMAGES, CPU, trained={runs[1].trunk}).groups
    assert group.seeds == (0, 2) and sorted(r.seed for stack in group.stacks for r in stack) == [0, 1, 2]
    (group,) = plan.make(runs, IMAGES, CPU, trained={r.trunk for r in runs}).groups
    assert group.seeds == ()


def test_strengths_and_seeds_of_quadratic_penalties_train_as_one_stack() -> None:
    mixed = [run(s, seed) for s in (L2(lam=1), EWC(lam=7), EWC(lam=9, estimator="exact")) for seed in range(6)]
    made = plan.make(mixed, IMAGES, CPU)
    assert sorted(map(len, stacks(made))) == [9, 9]  # one stack for each of two workers
    assert len(made.groups) == 1


@pytest.mark.parametrize("largest", [None, 8])
def test_runs_that_belong_together_share_a_stack(largest: int | None) -> None:
    """Three searches of ten trials with three seeds: cut where it comes, every stack would part one."""
    settings = [EWC(lam=lam, estimator=e) for e in ("exact", "empirical") for lam in range(10)]
    settings += [L2(lam=lam) for lam in range(10)]
    runs = [run(s, seed) for s in settings for seed in range(3)]
    together = {r.key: i // 3 for i, r in enumerate(runs)}
    made = stacks(plan.make(runs, IMAGES, CPU, largest, together=together))
    assert sorted(r.key for stack in made for r in stack) == sorted(together)
    where = {r.key: i for i, stack in enumerate(made) for r in stack}
    assert all(len({where[r.key] for r in runs[i : i + 3]}) == 1 for i in range(0, 90, 3))
    assert max(map(len, made)) <= (largest or plan.LARGEST_ON_CPU)


def test_few_runs_are_one_stack_on_all_cores_and_not_one_a_core() -> None:
    made = plan.make([run(L2(), seed) for seed in range(15)], IMAGES, CPU)
    assert [len(stack) for stack in stacks(made)] == [15] and made.workers == 1
    made = plan.make([run(s, seed) for s in (L2(), Naive()) for seed in range(3)], IMAGES, CPU)
    assert [len(stack) for stack in stacks(made)] == [3, 3] and made.workers == 2
    made = plan.make([run(L2(), seed) for seed in range(2)], IMAGES, CPU, room=Room(2, 2**34))
    assert [len(stack) for stack in stacks(made)] == [1, 1] and made.workers == 2  # processes of their own


def test_frozen_and_updated_batchnorm_share_the_first_task_but_no_stack() -> None:
    made = plan.make([run(Naive()), run(Naive(), batchnorm="freeze-after-first")], IMAGES, CPU)
    assert [(group.seeds, [len(stack) for stack in group.stacks]) for group in made.groups] == [((0,), [1, 1])]


@pytest.mark.parametrize(
    "recipe", [{"epochs": 2}, {"lr": 0.5}, {"batch_size": 32}, {"precision": "float64"}, {"optimizer": "sgd"}]
)
def test_recipes_that_train_the_first_task_differently_share_nothing(recipe: dict[str, object]) -> None:
    made = plan.make([run(Naive()), run(Naive(), **recipe)], IMAGES, CPU)
    assert [group.seeds for group in made.groups] == [(0,), (0,)]


def test_stacks_are_split_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(L2(lam=lam), seed) for lam in range(1, 5) for seed in range(3)]
    one = plan.make(runs, IMAGES, CPU).run_bytes
    monkeypatch.setattr(plan, "free_bytes", lambda device: 2 * 2 * 3 * one)  # half of it, for two workers: three each
    assert [len(stack) for stack in stacks(plan.make(runs, IMAGES, CPU))] == [3, 3, 3, 3]
    monkeypatch.setattr(plan, "free_bytes", lambda device: 0)
    assert {len(stack) for stack in stacks(plan.make(runs, IMAGES, CPU))} == {1}


@dataclasses.dataclass(frozen=True)
class Sized(Strategy):
    """A strategy that recalls, and keeps, so much."""

    name: ClassVar[str] = "sized"
    recalled: int = option(0)
    kept: int = option(0)

    @property
    def recalls(self) -> int:
        return self.recalled

    def init(self, params: Params, setting: Setting) -> State:
        return {"kept": {"a": torch.zeros(setting.tasks, self.kept), "b": torch.zeros(setting.outputs, self.kept)}}


def bytes_of(strategy: Strategy | None = None, images: list[data.ImageSet] = IMAGES, **recipe: object) -> int:
    return plan.make([run(strategy or Naive(), **recipe)], images, CPU).run_bytes


def test_memory_is_estimated_from_batch_precision_and_image_size() -> None:
    larger = dataclasses.replace(IMAGES[0], train_x=IMAGES[0].train_x.repeat(1, 4), shape=(1, 16, 16))
    assert bytes_of() < bytes_of(batch_size=128) < bytes_of(batch_size=256)
    assert bytes_of() < bytes_of(images=[larger, larger])
    assert 1.8 * bytes_of() < bytes_of(precision="float64") <= 2 * bytes_of()


def test_memory_is_estimated_from_what_a_strategy_recalls_and_keeps() -> None:
    assert bytes_of(Sized(recalled=64)) == bytes_of(batch_size=128)
    assert bytes_of(Sized(kept=1000)) - bytes_of() == 4 * 1000 * (2 + 10)  # a value each of 2 tasks and 10 outputs


def test_memory_is_estimated_for_the_outputs_of_all_tasks() -> None:
    apart = dataclasses.replace(SCENARIO, incremental="class")
    assert plan.make([dataclasses.replace(run(Naive()), scenario=apart)], IMAGES, CPU).run_bytes > bytes_of()


def test_the_largest_kind_of_run_decides_how_many_fit() -> None:
    both = plan.make([run(Naive()), run(Sized(kept=10**6))], IMAGES, CPU)
    assert both.run_bytes == bytes_of(Sized(kept=10**6)) > bytes_of()


def test_nothing_to_train_is_an_empty_plan() -> None:
    made = plan.make([], IMAGES, CPU)
    assert (made.runs, made.stacks, list(schedule.execute(made, IMAGES, CPU))) == (0, 0, [])


def test_a_plan_says_what_it_will_do_in_one_line() -> None:
    runs = [run(s, seed) for s in (Naive(), L2()) for seed in range(3)]
    line = plan.make(runs, IMAGES, CPU, largest=2).describe()
    assert line.startswith(
        "6 runs in 4 stacks of 2 x 2, 2 x 1, 2 side by side, the first task trained once a seed (3); about "
    )
    assert plan.make(runs[:1], IMAGES, CPU).describe().startswith("1 runs in 1 stack of 1, ")


def test_a_strategy_that_trains_the_first_task_in_its_own_way_can_be_run() -> None:
    tasks = scenarios.load(SCENARIO)
    small = [dataclasses.replace(t, train_x=t.train_x[:64], train_y=t.train_y[:64]) for t in tasks]
    made = plan.make([run(Own())], small, CPU)
    ((result,),) = schedule.execute(made, small, CPU)
    assert (result.status, result.trunk_runs, result.run.trunk) == ("finished", 1, "")


@given(st.lists(st.integers()), st.integers(1, 12), st.integers(1, 6))
def test_chunks_hold_every_item_in_order_in_parts_of_nearly_equal_size(
    items: list[int], largest: int, workers: int
) -> None:
    parts = plan.chunks(items, largest, workers)
    assert [item for part in parts for item in part] == items
    sizes = [len(part) for part in parts]
    assert all(0 < size <= largest for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    if items:
        assert len(parts) >= min(workers, len(items))  # no worker idles


@pytest.mark.parametrize(("batch", "runs", "expected"), [(64, 8, 1), (64, 16, 2), (1000, 7, 1), (1000, 8, 2)])
def test_fewer_runs_are_worth_a_thread_where_a_step_computes_more(batch: int, runs: int, expected: int) -> None:
    made = plan.make([run(Naive(), seed, batch_size=batch) for seed in range(runs)], IMAGES, CPU)
    assert (made.stacks, made.workers) == (expected, expected)


@pytest.mark.parametrize(
    ("width", "seeds", "expected"),
    [(100, 40, [20, 20]), (256, 40, [6, 6, 7, 7, 7, 7]), (2000, 40, [6, 6, 7, 7, 7, 7]), (256, 7, [7])],
)
def test_stacks_on_a_cpu_are_no_larger_than_their_parameters_allow(width, seeds, expected) -> None:
    wide = Model("mlp", (("widths", (width, width)),))
    images = [dataclasses.replace(IMAGES[0], shape=(1, 28, 28))] * 2
    made = plan.make([dataclasses.replace(run(Naive(), s), model=wide) for s in range(seeds)], images, CPU)
    assert sorted(len(stack) for stack in stacks(made)) == expected
    made = plan.make([dataclasses.replace(run(Naive(), s), model=wide) for s in range(seeds)], images, CPU, largest=40)
    assert max(len(stack) for stack in stacks(made)) >= min(seeds, 20)
