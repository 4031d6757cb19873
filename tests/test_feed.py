"""What runs of a stack see: which samples, of which pixels, labels and masks, in which order, with which draws."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmark import scenarios
from benchmark.data import ImageSet
from benchmark.feed import Feed, Lesson, Pool
from benchmark.keys import generator
from benchmark.models import Model
from benchmark.recipe import Recipe
from benchmark.runs import Run
from benchmark.scenarios import Scenario
from strategies import Naive, Strategy, option
from strategies.base import Batch
from strategies.joint import Joint

CPU = torch.device("cpu")


def images(
    train: Sequence[int], test: Sequence[int] | None = None, seed: int = 0, dtype: torch.dtype = torch.uint8
) -> ImageSet:
    """So many 2x3 images of each label, mixed."""
    draw = torch.Generator().manual_seed(seed)
    parts: dict[str, Tensor] = {}
    for part, counts in (("train", train), ("test", test or [n % 4 + 1 for n in train])):
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        parts[f"{part}_y"] = y[torch.randperm(len(y), generator=draw)]
        parts[f"{part}_x"] = torch.randint(0, 256, (len(y), 6), generator=draw).to(dtype)
    return ImageSet(f"made-{seed}", **parts, shape=(1, 2, 3), classes=len(train), scale=255.0)


def first_batch(lesson: Lesson) -> Batch:
    ids, keys, _ = next(lesson.epoch(0))
    return lesson.batch(ids, keys)


def scenario(name: str, **options: object) -> Scenario:
    return scenarios.resolve({"name": f"{name}-digits", **options})


ONE = images([5, 9, 3, 7, 4, 6])
TWO = images([8, 2, 5], seed=1)
CASES: dict[str, tuple[Scenario, list[ImageSet]]] = {
    "permuted": (scenario("permuted", tasks=3), [ONE] * 3),
    "all permuted": (scenario("permuted", tasks=3, first="permuted"), [ONE] * 3),
    "permuted with heads": (scenario("permuted", tasks=3, incremental="task"), [ONE] * 3),
    "split": (scenario("split", tasks=3), [ONE] * 3),
    "split, shuffled": (scenario("split", tasks=3, class_order="shuffled"), [ONE] * 3),
    "split, shuffled, with heads": (
        scenario("split", tasks=2, class_order="shuffled", incremental="task"),
        [ONE] * 2,
    ),
    "split, shuffled, one head": (
        scenario("split", tasks=3, class_order="shuffled", incremental="domain"),
        [ONE] * 3,
    ),
    "two sets": (scenarios.resolve(["digits", "mnist", "digits"]), [ONE, TWO, ONE]),
    "two sets, one after another": (
        dataclasses.replace(scenarios.resolve(["digits", "mnist"]), incremental="class"),
        [TWO, ONE],
    ),
    "rotated": (scenario("rotated", tasks=2), [ONE, scenarios.turned(ONE, 90.0)]),
    "permuted, validated": (dataclasses.replace(scenario("permuted", tasks=3), validation=0.3), [ONE] * 3),
    "two sets, validated": (
        dataclasses.replace(scenarios.resolve(["digits", "mnist", "digits"]), validation=0.3),
        [ONE, TWO, ONE],
    ),
    "split, shuffled, validated": (
        dataclasses.replace(scenario("split", tasks=2, class_order="shuffled"), validation=0.3),
        [ONE] * 2,
    ),
    "part of a permutation": (scenario("permuted", tasks=5).part(3, 5), [ONE] * 3),
    "part of a split, shuffled": (scenario("split", tasks=3, class_order="shuffled").part(2, 3), [ONE] * 2),
}
cases = pytest.mark.parametrize("case", CASES)
SEEDS = (7, 3, 7, 11)


def feed_of(case: str, seeds: Sequence[int] = SEEDS, dtype: torch.dtype = torch.float64) -> Feed:
    scenario, sets = CASES[case]
    return Feed(Pool.of(scenario, sets, CPU), seeds, dtype)


def sample(case: str, seed: int, task: int, image: int, part: str = "train") -> tuple[Tensor, int]:
    """One image of a task's set as the run of a seed sees it, and the output that is right: one at a time, no pool."""
    scenario, sets = CASES[case]
    own = sets[task - 1]
    part = "train" if scenario.validation else part  # training images are tested on
    pixels, label = getattr(own, f"{part}_x")[image].tolist(), int(getattr(own, f"{part}_y")[image])
    order = scenario.pixel_order(task, seed, 6)
    if order is not None:
        pixels = [pixels[place] for place in order.tolist()]
    view = scenario.view(task, seed, own, scenario.heads(sets))
    output = label if view.labels is None else int(view.labels[label])
    return torch.tensor(pixels, dtype=torch.float64).view(1, 2, 3) / 255, output


def images_of(case: str, seed: int, task: int, part: str = "train") -> list[int]:
    """Numbers of the images, within their set, that are of a task of a run."""
    scenario, sets = CASES[case]
    rows = getattr(scenario.view(task, seed, sets[task - 1], scenario.heads(sets)), part)
    return list(range(len(getattr(sets[task - 1], f"{part}_y")))) if rows is None else rows.tolist()


def place(case: str, task: int, image: int) -> int:
    """The id of an image: tasks after each other, each of the size of the pool; sets in it one after another."""
    sets = CASES[case][1]
    distinct = list(dict.fromkeys(map(id, sets)))
    sizes = {id(images): len(images.train_y) for images in sets}
    before = sum(sizes[key] for key in distinct[: distinct.index(id(sets[task - 1]))])
    return (task - 1) * sum(sizes.values()) + before + image


def check(case: str, batch: Batch, chosen: list[list[tuple[int, int]]], training: int) -> None:
    """A batch against `sample`, for the (task, image) of each run."""
    scenario, sets = CASES[case]
    active = scenario.heads(sets).training(training)
    for r, of_run in enumerate(chosen):
        for b, (task, image) in enumerate(of_run):
            x, y = sample(case, SEEDS[r], task, image)
            assert torch.equal(batch.x[r, b], x) and int(batch.y[r, b]) == y
            assert int(batch.task[r, b]) == task and int(batch.id[r, b]) == place(case, task, image)
            assert torch.equal(batch.active[r, b], active[task - 1])
            assert batch.active[r, b, y]  # what is right competes


# Batches


@cases
def test_a_batch_of_one_task_is_its_images_as_each_run_sees_them(case):
    feed, tasks = feed_of(case), len(CASES[case][1])
    for task in range(1, tasks + 1):
        chosen = [[(task, i) for i in images_of(case, seed, task)[1:6:2]] for seed in SEEDS]
        size = min(map(len, chosen))
        chosen = [of_run[:size] for of_run in chosen]
        ids = torch.tensor([[place(case, *one) for one in of_run] for of_run in chosen])
        for training in range(task, tasks + 1):
            plain = feed.batch(ids, feed.keys(ids), training, task)
            check(case, plain, chosen, training)
            general = feed.batch(ids, feed.keys(ids), training)
            for name, a, b in zip(Batch._fields[:-1], plain[:-1], general[:-1], strict=True):
                assert torch.equal(a, b) and a.shape == b.shape and a.dtype == b.dtype, name


@cases
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_batch_may_mix_tasks_otherwise_in_each_run(case, data):
    feed, tasks = feed_of(case), len(CASES[case][1])
    training = data.draw(st.integers(1, tasks))
    each = [[(task, i) for task in range(1, training + 1) for i in images_of(case, seed, task)] for seed in SEEDS]
    chosen = [data.draw(st.lists(st.sampled_from(of_run), min_size=5, max_size=5)) for of_run in each]
    ids = torch.tensor([[place(case, *one) for one in of_run] for of_run in chosen])
    check(case, feed.batch(ids, feed.keys(ids), training), chosen, training)


@cases
def test_ids_name_a_task_and_an_image_and_no_two_are_alike(case):
    feed, tasks = feed_of(case), len(CASES[case][1])
    for run, seed in enumerate(SEEDS):
        ids = [feed.ids(task, run).tolist() for task in range(1, tasks + 1)]
        assert ids == [[place(case, task, i) for i in images_of(case, seed, task)] for task in range(1, tasks + 1)]
        assert len(set(itertools.chain(*ids))) == sum(map(len, ids))


@cases
def test_where_a_memory_has_nothing_to_give_samples_of_the_batch_stand_in(case):
    """It has nothing at first, in some runs longer than in others; what stands in must be fit to compute with."""
    tasks = len(CASES[case][1])
    lesson = lesson_of(case, tasks)
    batch = first_batch(lesson)
    recalled = [(1, images_of(case, seed, 1)[2]) for seed in SEEDS]
    ids = torch.full((len(SEEDS), 7), -1)  # more than the batch has
    ids[1, 3], ids[2, 0] = place(case, *recalled[1]), place(case, *recalled[2])
    found = lesson.fetch({"id": ids}, batch)
    assert torch.equal(found.id, ids)
    for run, at in itertools.product(range(len(SEEDS)), range(7)):
        if ids[run, at] < 0:
            for name in ("x", "y", "active", "task", "key"):
                assert torch.equal(getattr(found, name)[run, at], getattr(batch, name)[run, at % 4]), name
        else:
            x, y = sample(case, SEEDS[run], *recalled[run])
            assert torch.equal(found.x[run, at], x) and int(found.y[run, at]) == y and int(found.task[run, at]) == 1
    assert (found.y >= 0).all() and found.active.gather(2, found.y[..., None]).all()


def test_what_a_memory_asked_for_comes_with_what_it_kept():
    lesson = lesson_of("permuted", task=3)
    batch = first_batch(lesson)
    ids = torch.tensor([[5, 40], [6, 41], [7, 42], [8, 43]])
    found = lesson.fetch({"id": ids, "logits": torch.arange(4)}, batch)
    assert found.kept.keys() == {"logits"} and torch.equal(found.kept["logits"], torch.arange(4))
    check("permuted", found, [[(i // 34 + 1, i % 34) for i in row] for row in ids.tolist()], 3)


def test_a_set_that_serves_several_tasks_is_held_once():
    scenario, sets = CASES["two sets"]
    pool = Pool.of(scenario, sets, CPU)
    assert len(pool.y) == len(ONE.train_y) + len(TWO.train_y) and pool.offsets == (0, len(ONE.train_y), 0)
    assert torch.equal(pool.x, torch.cat([ONE.train_x, TWO.train_x])) and pool.tasks[0] is pool.tasks[2]
    for number, own in enumerate(sets):
        held = pool.tasks[number]
        assert torch.equal(held.train_x, own.train_x) and torch.equal(held.test_y, own.test_y)
        assert held.train_x.untyped_storage().data_ptr() == pool.x.untyped_storage().data_ptr()


VALIDATED = [case for case, (scenario, _) in CASES.items() if scenario.validation]


@pytest.mark.parametrize("case", VALIDATED)
def test_where_training_images_are_tested_on_no_test_image_is_held(case):
    scenario, sets = CASES[case]
    # Images that are nowhere among the training images, and more of them.
    marked = [
        dataclasses.replace(own, test_x=torch.full((99, 6), 251, dtype=torch.uint8), test_y=torch.zeros(99).long())
        for own in dict.fromkeys(sets)
    ]
    replaced = dict(zip(dict.fromkeys(sets), marked, strict=True))
    pool, plain = Pool.of(scenario, [replaced[own] for own in sets], CPU), feed_of(case)
    for held, own in zip(pool.tasks, sets, strict=True):
        assert torch.equal(held.test_x, own.train_x) and torch.equal(held.test_y, own.train_y)
    feed = Feed(pool, SEEDS, torch.float64)
    for task in range(1, len(sets) + 1):
        for (x, y), (before, labels) in zip(feed.test(task, 5), plain.test(task, 5), strict=True):
            assert torch.equal(x, before) and torch.equal(y, labels)


@pytest.mark.parametrize("case", VALIDATED)
def test_no_image_is_both_trained_and_tested_on_in_any_task_of_a_run(case):
    for seed in SEEDS:
        _, sets = CASES[case]
        for own in dict.fromkeys(sets):
            tasks = [task for task in range(1, len(sets) + 1) if sets[task - 1] is own]
            trained = {image for task in tasks for image in images_of(case, seed, task)}
            tested = {image for task in tasks for image in images_of(case, seed, task, "test")}
            assert trained and tested and not trained & tested
            assert trained | tested == set(range(len(own.train_y)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_images_are_handed_out_in_copies_scaled_to_one(dtype, precision):
    own = images([6, 6], dtype=dtype)
    pool = Pool.of(scenario("permuted", tasks=2), [own, own], CPU)
    feed, before = Feed(pool, [0], precision), own.train_x.clone()
    ids = torch.arange(5)[None]
    for x in (
        feed.batch(ids, feed.keys(ids), 1, 1).x[0],
        feed.finished(1, [None]).inputs(slice(5))[0],
        next(feed.test(1, 5))[0],
    ):
        assert x.dtype == precision and x.shape == (5, 1, 2, 3) and 0 <= float(x.min()) <= float(x.max()) <= 1
        x.zero_()
    assert torch.equal(pool.x, before) and torch.equal(own.train_x, before)


@cases
def test_all_inputs_and_labels_of_a_task_are_those_of_its_batches(case):
    feed = feed_of(case)
    for task, (run, seed) in itertools.product(range(1, len(CASES[case][1]) + 1), enumerate(SEEDS)):
        expected = [sample(case, seed, task, image) for image in images_of(case, seed, task)]
        whole, some = feed.finished(task, [None] * len(SEEDS)), feed.some([run]).finished(task, [None])
        for finished in (whole.one(run), some.one(0)):
            assert torch.equal(finished.x, torch.stack([x for x, _ in expected]))
            assert finished.y.tolist() == [y for _, y in expected]
        assert whole.counts[run] == len(expected)


# The order of training


@dataclasses.dataclass(frozen=True)
class Recalling(Strategy):
    """Asks for random numbers."""

    many: int = option(0)

    @property
    def recalls(self) -> int:
        return self.many


def run_of(case: str, strategy: Strategy | None = None, **recipe: object) -> Run:
    recipe = {"batch_size": 4, "epochs": 3} | recipe
    return Run(CASES[case][0], Model("mlp"), Recipe(**recipe), strategy or Naive(), "", "", 0)


def lesson_of(
    case: str, task: int = 1, seeds: Sequence[int] = SEEDS, strategy: Strategy | None = None, **recipe: object
) -> Lesson:
    return Lesson(feed_of(case, seeds), task, run_of(case, strategy, **recipe))


def ids_of(lesson: Lesson, epoch: int) -> Tensor:
    return torch.stack([ids for ids, *_ in lesson.epoch(epoch)])


def all_ids(lesson: Lesson) -> Tensor:
    return torch.cat([ids_of(lesson, epoch) for epoch in range(lesson.epochs)])


@cases
def test_a_run_goes_through_its_own_images_each_once_a_pass(case):
    for task in range(1, len(CASES[case][1]) + 1):
        ids = all_ids(lesson_of(case, task, epochs=7))
        for run, seed in enumerate(SEEDS):
            own = feed_of(case).ids(task, run).tolist()
            a_pass = len(own) // 4
            for start in range(0, len(ids), a_pass):
                seen = Counter(ids[start : start + a_pass, run].flatten().tolist())
                assert set(seen) <= set(own) and set(seen.values()) == {1}
            passes = [ids[i : i + a_pass, run].flatten().tolist() for i in range(0, len(ids) - a_pass + 1, a_pass)]
            assert len(set(map(tuple, passes))) == len(passes) > 1  # in another order each time
            if len(passes) > 5:
                assert set(itertools.chain(*passes)) == set(own), seed  # what filled no batch comes another time


def test_batches_are_the_permutations_that_the_seed_and_the_pass_draw():
    ids = all_ids(lesson_of("permuted", 2, batch_size=10))
    own = 34  # images, so 3 steps a pass
    for run, seed in enumerate(SEEDS):
        orders = [torch.randperm(own, generator=generator(seed, "batches", 2, k))[:30] + own for k in range(3)]
        assert ids[:, run].flatten().tolist() == torch.cat(orders).tolist()


@cases
def test_what_a_run_sees_depends_on_its_seed_and_on_no_neighbour(case):
    for task in range(1, len(CASES[case][1]) + 1):
        together = lesson_of(case, task, strategy=Recalling(many=3))
        for run, seed in enumerate(SEEDS):
            alone = lesson_of(case, task, [seed], strategy=Recalling(many=3))
            assert (alone.steps, alone.epochs, alone.an_epoch) == (together.steps, together.epochs, together.an_epoch)
            for epoch in range(together.epochs):
                for (*seen, draws), (*own_seen, own_draws) in zip(
                    together.epoch(epoch), alone.epoch(epoch), strict=True
                ):
                    assert torch.equal(draws[run], own_draws[0])
                    batch, own = together.batch(*seen), alone.batch(*own_seen)
                    assert all(torch.equal(a[run], b[0]) for a, b in zip(batch[:-1], own[:-1], strict=True))


@cases
def test_every_strategy_of_a_seed_sees_the_same_batches(case):
    plain, recalling = lesson_of(case, 2), lesson_of(case, 2, strategy=Recalling(many=3))
    assert torch.equal(all_ids(plain), all_ids(recalling))
    ids = all_ids(plain)
    assert torch.equal(ids[:, 0], ids[:, 2])  # one seed twice in the stack
    assert not torch.equal(ids[:, 0], ids[:, 1]) and not torch.equal(ids[:, 0], ids[:, 3])


@pytest.mark.parametrize("spread", [1, 40, 100])
def test_an_epoch_is_the_same_in_parts(spread, monkeypatch):
    lesson = lesson_of("permuted", 2, strategy=Recalling(many=3))
    whole = list(lesson.epoch(1))
    monkeypatch.setattr("benchmark.feed.SPREAD", spread)
    for parts, expected in zip(lesson.epoch(1), whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if "shuffled" not in case])
def test_an_epoch_is_a_pass_where_all_runs_have_as_many_images(case):
    for task in range(1, len(CASES[case][1]) + 1):
        lesson = lesson_of(case, task, batch_size=3)
        own = len(images_of(case, 7, task))
        assert (lesson.an_epoch, lesson.steps, lesson.epochs) == (own // 3, own // 3 * 3, 3)
        assert [ids_of(lesson, epoch).shape for epoch in range(3)] == [(own // 3, len(SEEDS), 3)] * 3


def test_runs_whose_tasks_differ_in_size_take_as_many_steps_all_the_same():
    case = "split, shuffled"
    sizes = {len(images_of(case, seed, task)) for seed in SEEDS for task in (1, 2, 3)}
    assert len(sizes) > 2  # else this shows nothing
    for task in (1, 2, 3):
        lesson = lesson_of(case, task)
        assert (lesson.an_epoch, lesson.steps) == (2, 6)  # 34 images, 3 tasks, batches of 4, 3 epochs
        assert all_ids(lesson).shape == (6, len(SEEDS), 4)


def test_iterations_end_in_the_middle_of_an_epoch():
    lesson = lesson_of("permuted", epochs=None, iterations=19)
    assert (lesson.an_epoch, lesson.steps, lesson.epochs) == (8, 19, 3)
    assert [len(ids_of(lesson, epoch)) for epoch in range(3)] == [8, 8, 3]
    whole = lesson_of("permuted", epochs=3)
    assert torch.equal(all_ids(lesson), all_ids(whole)[:19])


@pytest.mark.parametrize("case", ["permuted", "split", "split, shuffled"])
def test_a_task_smaller_than_a_batch_is_one_batch_a_pass(case):
    own = {(seed, task): len(images_of(case, seed, task)) for seed in SEEDS for task in (1, 2, 3)}
    counted = {task: CASES[case][0].size(task, ONE) for task in (1, 2, 3)}
    for task in (1, 2, 3):
        lesson = lesson_of(case, task, batch_size=1000)
        ids = all_ids(lesson)
        assert (lesson.an_epoch, lesson.steps) == (1, 3) and ids.shape == (3, len(SEEDS), counted[task])
        for step, (run, seed) in itertools.product(ids, enumerate(SEEDS)):
            seen = Counter(step[run].tolist())
            # Smaller than the batch: all of them, some as often as others or once more; larger: each at most once.
            times = -(-counted[task] // own[seed, task])
            assert set(seen) <= set(feed_of(case).ids(task, run).tolist()) and max(seen.values()) <= times
            if own[seed, task] <= counted[task]:
                assert len(seen) >= counted[task] // times


@cases
@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": None, "iterations": 5}])
def test_the_union_of_tasks_is_gone_through_as_one(case, length):
    tasks = len(CASES[case][1])
    lesson = lesson_of(case, tasks, strategy=Joint(), batch_size=5, **length)
    feed = feed_of(case)
    sizes = [CASES[case][0].size(j, CASES[case][1][j - 1]) for j in range(1, tasks + 1)]
    an_epoch = sum(sizes) // 5
    assert (lesson.an_epoch, lesson.steps) == (an_epoch, an_epoch * 3 if "iterations" not in length else 5 * tasks)
    ids = all_ids(lesson)
    for run in range(len(SEEDS)):
        own = torch.cat([feed.ids(j, run) for j in range(1, tasks + 1)]).tolist()
        a_pass = len(own) // 5
        for start in range(0, len(ids), a_pass):
            seen = Counter(ids[start : start + a_pass, run].flatten().tolist())
            assert set(seen) <= set(own) and set(seen.values()) == {1}
    batch = first_batch(lesson)
    assert len(batch.task.unique()) > 1
    size = len(feed.pool.y)
    chosen = [
        [(i // size + 1, i % size - feed.pool.offsets[i // size]) for i in of_run] for of_run in batch.id.tolist()
    ]
    check(case, batch, chosen, tasks)


def test_a_task_that_is_not_learnt_has_no_steps():
    @dataclasses.dataclass(frozen=True)
    class OnlyTheFirst(Strategy):
        def learns(self, task: int) -> bool:
            return task == 1

    lessons = [lesson_of("permuted", task, strategy=OnlyTheFirst()) for task in (1, 2)]
    assert [(lesson.steps, lesson.epochs) for lesson in lessons] == [(24, 3), (0, 0)]


@pytest.mark.parametrize("case", ["permuted with heads", "split", "two sets"])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_a_lesson_knows_the_outputs_of_earlier_tasks(case, task):
    scenario, sets = CASES[case]
    assert torch.equal(lesson_of(case, task).earlier, scenario.heads(sets).earlier(task))


# Random numbers


def test_keys_are_uniform_over_samples_and_over_seeds():
    seeds = list(range(50))
    feed = feed_of("permuted", seeds)
    keys = feed.keys(torch.arange(2000).expand(50, -1))
    assert keys.dtype == torch.float64 and float(keys.min()) >= 0 and float(keys.max()) < 1
    for values, bins in ((keys.flatten(), 100), (keys[:, 17], 5), (keys[3], 20)):
        counts = torch.histc(values, bins, 0, 1)
        expected = len(values) / bins
        chi_square = float((counts - expected).square().sum() / expected)
        # Mean bins - 1, standard deviation √(2(bins - 1)); the keys are fixed, so this cannot fail by chance.
        assert abs(chi_square - (bins - 1)) < 4 * (2 * (bins - 1)) ** 0.5
    # Neither neighbours in the data nor neighbouring seeds have to do with each other.
    centred = keys - 0.5
    for a, b in ((centred[:, :-1], centred[:, 1:]), (centred[:-1], centred[1:])):
        assert abs(float((a * b).mean()) * 12) < 4 / a.numel() ** 0.5
    assert keys.unique().numel() == keys.numel()


@given(st.integers(0, 2**31), st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_a_key_belongs_to_the_seed_and_the_sample(seed, ids):
    alone = feed_of("permuted", [seed])
    beside = feed_of("split", [seed + 1, seed])
    expected = alone.keys(torch.tensor([ids]))[0]
    assert torch.equal(beside.keys(torch.tensor([ids, ids]))[1], expected)
    assert not torch.equal(beside.keys(torch.tensor([ids, ids]))[0], expected)
    steps = alone.keys(torch.tensor([[ids], [ids[::-1]]]))
    assert torch.equal(steps[0, 0], expected) and torch.equal(steps[1, 0], expected.flip(0))


def splitmix64(state: int) -> int:
    """As published, in whole numbers of Python."""
    mask = 2**64 - 1
    z = state & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


@given(st.integers(0, 2**31), st.integers(0, 2**40))
def test_keys_are_splitmix64_of_the_sample_salted_by_the_seed(seed, sample):
    from benchmark.keys import generator_seed

    state = (sample + 1) * 0x9E3779B97F4A7C15 + generator_seed(seed, "sample keys")
    found = feed_of("permuted", [seed]).keys(torch.tensor([[sample]]))
    assert float(found) == (splitmix64(state) >> 11) / 2**53


def test_keys_never_change_from_release_to_release():
    found = feed_of("permuted", [0, 1]).keys(torch.tensor([[0, 1], [0, 1]]))
    assert found.tolist() == [[0.5222759182806096, 0.78534847286548], [0.958487497198069, 0.20542084275915862]]


def test_a_batch_carries_the_keys_of_its_samples():
    lesson = lesson_of("split, shuffled", 2)
    for ids, keys, _ in lesson.epoch(0):
        batch = lesson.batch(ids, keys)
        assert torch.equal(batch.id, ids)
        assert torch.equal(batch.key, lesson.feed.keys(batch.id))
    recalled = lesson.fetch({"id": batch.id.flip(1)}, batch)
    assert torch.equal(recalled.key, batch.key.flip(1))


def test_draws_are_new_each_step_epoch_and_task_and_the_same_for_a_seed():
    drawn = []
    for task in (1, 2):
        lesson = lesson_of("permuted", task, strategy=Recalling(many=5))
        for epoch in range(lesson.epochs):
            drawn += [draws for *_, draws in lesson.epoch(epoch)]
    assert {(d.shape, d.dtype) for d in drawn} == {((4, 5), torch.float64)}
    values = torch.stack(drawn)
    assert torch.equal(values[:, 0], values[:, 2])  # one seed twice
    different = values[:, [0, 1, 3]]
    assert different.unique().numel() == different.numel()
    assert float(values.min()) >= 0 and float(values.max()) < 1 and abs(float(different.mean()) - 0.5) < 0.05


def test_a_strategy_that_recalls_nothing_is_handed_no_draws():
    assert all(draws.shape == (4, 0) for *_, draws in lesson_of("permuted").epoch(0))


# Tests


@cases
@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("seeds", [SEEDS, (3,), (3, 3)])
def test_each_run_is_tested_on_its_own_test_images_and_on_all_of_them(case, chunk, seeds):
    feed = feed_of(case, seeds)
    for task in range(1, len(CASES[case][1]) + 1):
        seen: list[list[tuple[Tensor, int]]] = [[] for _ in seeds]
        for x, y in feed.test(task, chunk):
            assert y.shape[-1] <= chunk and x.shape[-3:] == (1, 2, 3)
            if x.ndim == 4:
                x = x.expand(len(seeds), *x.shape)
            for run, (inputs, outputs) in enumerate(zip(x, y.expand(len(seeds), -1), strict=True)):
                seen[run] += [(i, o) for i, o in zip(inputs, outputs.tolist(), strict=True) if o >= 0]
        for run, seed in enumerate(seeds):
            expected = [sample(case, seed, task, image, "test") for image in images_of(case, seed, task, "test")]
            assert len(seen[run]) == len(expected)
            for (x, y), (inputs, output) in zip(seen[run], expected, strict=True):
                assert torch.equal(x, inputs) and y == output


def test_runs_that_see_the_same_test_images_share_one_copy():
    for case, shared in (("split", True), ("permuted", True), ("split, shuffled", False)):
        x, _ = next(feed_of(case).test(1, 1000))
        assert (x.ndim == 4) == shared
    x, _ = next(feed_of("permuted").test(2, 1000))
    assert x.ndim == 5
