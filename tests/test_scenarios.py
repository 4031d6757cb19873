"""Task sequences: what a name stands for, and which images, labels, pixels and outputs make up a task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmark import data, environment, scenarios
from benchmark.data import ImageSet
from benchmark.scenarios import Heads, Scenario, View


def test_the_named_sequence_is_mnist_then_fashion() -> None:
    scenario = scenarios.resolve("mnist-fashion")
    assert (scenario.sets, scenario.tasks, scenario.permuted) == (("mnist", "fashion-mnist"), 2, "no")
    assert (scenario.incremental, scenario.split, scenario.angles) == ("domain", False, ())


@pytest.mark.parametrize("kind", ["permuted", "rotated", "split"])
def test_a_kind_has_five_tasks_of_its_set_unless_told_otherwise(kind: str) -> None:
    for spec, tasks in ((f"{kind}-digits", 5), ({"name": f"{kind}-digits", "tasks": 3}, 3)):
        scenario = scenarios.resolve(spec)
        assert (scenario.tasks, scenario.sets) == (tasks, ("digits",) * tasks)


def test_split_cifar100_has_ten_tasks_unless_told_otherwise() -> None:
    assert scenarios.resolve("split-cifar100").tasks == 10
    assert scenarios.resolve({"name": "split-cifar100", "tasks": 20}).tasks == 20
    assert scenarios.resolve("permuted-cifar100").tasks == 5


@pytest.mark.parametrize("images", data.NAMES)
@pytest.mark.parametrize(("kind", "incremental"), [("permuted", "domain"), ("rotated", "domain"), ("split", "class")])
def test_any_kind_of_any_image_set_is_a_scenario(kind: str, incremental: str, images: str) -> None:
    scenario = scenarios.resolve(f"{kind}-{images}")
    assert (scenario.name, set(scenario.sets), scenario.incremental) == (f"{kind}-{images}", {images}, incremental)
    assert ((scenario.permuted == "later"), bool(scenario.angles), scenario.split) == (
        kind == "permuted",
        kind == "rotated",
        kind == "split",
    )


@pytest.mark.parametrize("name", ["permuted-digits", "rotated-digits", "split-digits", "mnist-fashion"])
@pytest.mark.parametrize("incremental", ["task", "domain", "class"])
def test_every_scenario_can_be_of_every_incremental_type(name: str, incremental: str) -> None:
    assert scenarios.resolve({"name": name, "incremental": incremental}).incremental == incremental
    assert scenarios.resolve({"sets": ["mnist", "kmnist"], "incremental": incremental}).incremental == incremental


def test_options_of_a_kind_reach_the_scenario() -> None:
    assert scenarios.resolve({"name": "permuted-digits", "first": "permuted"}).permuted == "all"
    assert scenarios.resolve({"name": "split-digits", "class_order": "shuffled"}).class_order == "shuffled"
    assert scenarios.resolve({"name": "rotated-digits", "tasks": 4}).angles == (0.0, 22.5, 45.0, 67.5)
    turned = scenarios.resolve({"name": "rotated-digits", "angles": [0, 30.5, -90]})
    assert (turned.angles, turned.tasks) == ((0.0, 30.5, -90.0), 3)


@pytest.mark.parametrize(
    ("images", "name"),
    [("some/where/my set.npz", "split-my-set"), ("digits", "split-digits"), ("mnist", "split-mnist")],
)
def test_the_set_of_a_kind_may_be_given_apart(images: str, name: str) -> None:
    scenario = scenarios.resolve({"name": "split", "set": images, "tasks": 2})
    assert (scenario.name, scenario.sets, scenario.split) == (name, (images, images), True)


def test_a_kind_takes_a_set_that_is_imported() -> None:
    scenario = scenarios.resolve({"name": "rotated", "set": "my.package:images", "tasks": 2})
    assert scenario.sets == ("my.package:images",) * 2
    assert scenario.name.startswith("rotated-") and ":" not in scenario.name


def test_any_list_of_image_sets_is_a_scenario() -> None:
    listed, table = (
        scenarios.resolve(["mnist", "kmnist", "mnist"]),
        scenarios.resolve({"sets": ["mnist", "kmnist", "mnist"]}),
    )
    assert listed == table == Scenario("mnist-kmnist-mnist", ("mnist", "kmnist", "mnist"))


def test_the_name_is_for_people_and_does_not_determine_the_tasks() -> None:
    assert scenarios.resolve(["mnist", "fashion-mnist"]).spec() == scenarios.resolve("mnist-fashion").spec()


def test_fields_tell_apart_what_the_key_of_a_run_does(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", train_x=np.zeros((2, 4)), train_y=[0, 1], test_x=np.zeros((2, 4)), test_y=[0, 1])
    specs: list[Any] = [
        ["mnist", "kmnist", "mnist"],
        ["mnist", "kmnist", "kmnist"],
        {"name": "rotated-mnist", "angles": [0, 30]},
        {"name": "rotated-mnist", "angles": [0, 90.0000001]},
        [str(tmp_path / "mine.npz")] * 2,
    ]
    found = [scenarios.resolve(spec).fields() | {"scenario": "one name"} for spec in specs]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert [fields["angles"] for fields in found] == [None, None, "0, 30", "0, 90.0000001", None]
    assert [bool(fields["data_version"]) for fields in found] == [False] * 4 + [True]
    assert [fields["images"] for fields in found[:3]] == ["mnist, kmnist, mnist", "mnist, kmnist, kmnist", "mnist"]


@pytest.mark.parametrize("name", scenarios.NAMES)
def test_every_listed_name_resolves(name: str) -> None:
    assert scenarios.resolve(name).name == name
    assert set(scenarios.resolve(name).sets) <= set(data.NAMES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("permuted-minst", r"unknown scenario 'permuted-minst'; did you mean 'permuted-mnist'\?"),
        ("split-minst", r"unknown scenario 'split-minst'; did you mean 'split-mnist'\?"),
        ("split-", "unknown scenario 'split-'; did you mean"),
        ("split", "unknown scenario 'split'; did you mean"),
        (
            "split-my-very-own-pictures",
            r"unknown scenario 'split-my-very-own-pictures'; split- takes an image set: mnist, .*digits \(forgetbench",
        ),
        ("turned-mnist", "unknown scenario 'turned-mnist'; did you mean"),
        (
            {"name": "permuted-mnist", "sets": ["mnist", "mnist"]},
            r"'permuted-mnist' is pixels shuffled, .* of one image set \(set",
        ),
        (
            {"name": "split", "sets": ["mnist"]},
            r"sets: 'split' is labels divided among the tasks, of one image set \(set",
        ),
        ("xyz", r"unknown scenario 'xyz' \(forgetbench list scenarios\)"),
        (["mnist", "fashion"], "unknown image set 'fashion'; did you mean 'fashion-mnist'"),
        ([], "at least one image set"),
        ({"sets": []}, "at least one image set"),
        ({"name": "permuted-digits", "tasks": 0}, "tasks: expected a whole number >= 1, got 0"),
        ({"name": "permuted-digits", "tasks": 2.0}, "tasks: expected a whole number >= 1, got 2.0"),
        ({"name": "permuted-digits", "tasks": True}, "tasks: expected a whole number >= 1, got True"),
        ({"name": "permuted-digits", "seed": 1}, "unknown option 'seed'; it takes incremental, tasks, first"),
        (
            {"name": "split-digits", "first": "plain"},
            "unknown option 'first'; it takes incremental, tasks, labels, class_order",
        ),
        ({"name": "rotated-digits", "angle": [1]}, "unknown option 'angle'; did you mean 'angles'"),
        ({"name": "split-mnist", "set": "kmnist"}, "unknown option 'set'"),
        ({"name": "mnist-fashion", "tasks": 2}, "unknown option 'tasks'; it takes incremental"),
        ({"sets": ["mnist"], "tasks": 2}, "unknown option 'tasks'; it takes incremental"),
        ({"tasks": 2}, "unknown scenario"),
        ({"name": "split", "set": "nmist"}, "unknown scenario 'split-nmist'; did you mean 'split-mnist'"),
        ({"name": "split", "set": 3}, "set"),
        ({"name": "split", "set": ["a.npz"]}, "set"),
        ({"name": "split-digits", "incremental": "tasks"}, "incremental: expected task, domain or class, got 'tasks'"),
        ({"name": "split-digits", "incremental": ["task"]}, "incremental: expected task, domain or class, got"),
        ({"sets": ["mnist"], "incremental": 1}, "incremental: expected task, domain or class, got 1"),
        (
            {"name": "split-digits", "class_order": "random"},
            "class_order: expected fixed, shuffled or a list of all labels",
        ),
        ({"name": "split-digits", "class_order": [0, True]}, "class_order: expected fixed, shuffled or a list"),
        ({"name": "split-digits", "labels": 5}, "labels: expected a list of whole numbers >= 1, one a task, got 5"),
        ({"name": "split-digits", "labels": [5, 0]}, "labels: expected a list of whole numbers >= 1"),
        ({"name": "split-digits", "labels": [5, 5], "tasks": 3}, "labels: expected one number a task, 3, got 2"),
        ({"name": "permuted-digits", "first": True}, "first: expected plain or permuted, got True"),
        ({"name": "rotated-digits", "angles": 45}, "angles: expected a list of degrees, one a task, got 45"),
        ({"name": "rotated-digits", "angles": []}, "angles: expected a list of degrees, one a task"),
        ({"name": "rotated-digits", "angles": [0, "90"]}, "angles: expected a list of degrees, one a task"),
        ({"name": "rotated-digits", "angles": [0, float("nan")]}, "angles: expected a list of degrees"),
        ({"name": "rotated-digits", "angles": [True]}, "angles: expected a list of degrees"),
        ({"name": "rotated-digits", "angles": [0, 361]}, "angles: expected"),
        ({"name": "rotated-digits", "angles": [0, 90], "tasks": 3}, "angles: expected one a task, 3, got 2"),
    ],
)
def test_what_is_no_scenario_is_refused_with_what_was_expected(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenarios.resolve(spec)


@pytest.mark.parametrize(
    "table",
    [
        {"name": "permuted-digits", "tasks": 3},
        {"name": "rotated-digits", "angles": [0, 45]},
        {"name": "split", "set": "digits", "class_order": "shuffled"},
        {"sets": ["mnist"], "incremental": "task"},
    ],
)
def test_resolving_a_table_leaves_it_as_it_is(table: dict[str, object]) -> None:
    before = dict(table)
    assert scenarios.resolve(table) == scenarios.resolve(table)
    assert table == before


def test_what_changes_the_tasks_changes_the_spec_and_what_is_the_default_does_not() -> None:
    base = {"name": "split-digits", "incremental": "class", "tasks": 5, "class_order": "fixed"}
    assert scenarios.resolve(base).spec() == scenarios.resolve("split-digits").spec()
    for change in (
        {"incremental": "task"}, {"tasks": 2}, {"class_order": "shuffled"}, {"class_order": [1, 0]},
        {"labels": [2, 2, 2, 2, 2]}, {"name": "split-mnist"},
    ):  # fmt: skip
        assert scenarios.resolve(base | change).spec() != scenarios.resolve(base).spec()
    angles = [scenarios.resolve({"name": "rotated-digits", "angles": a}).spec() for a in ([0, 1], [0, 2], [1, 0])]
    assert len({str(spec) for spec in angles}) == 3


def test_a_set_of_ones_own_is_told_from_its_earlier_version(tmp_path: Path) -> None:
    specs = []
    for pixel in (0, 1):
        x, y = np.full((6, 4), pixel, dtype=np.uint8), np.arange(6) % 2
        np.savez(tmp_path / "mine.npz", train_x=x, train_y=y, test_x=x, test_y=y)
        specs.append(scenarios.resolve({"name": "split", "set": str(tmp_path / "mine.npz"), "tasks": 2}).spec())
    assert specs[0] != specs[1]


# Pixel orders

PERMUTED = scenarios.resolve("permuted-digits")
ALL_PERMUTED = scenarios.resolve({"name": "permuted-digits", "first": "permuted"})


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**31), st.integers(1, 100))
def test_a_pixel_order_shows_every_pixel_once(task: int, seed: int, pixels: int) -> None:
    order = PERMUTED.pixel_order(task, seed, pixels)
    assert order is not None
    assert order.sort().values.tolist() == list(range(pixels))


def test_the_first_task_shows_the_images_as_they_are() -> None:
    assert PERMUTED.pixel_order(1, 0, 64) is None


def test_the_first_task_can_be_shuffled_too_and_the_others_stay_as_they_are() -> None:
    first = ALL_PERMUTED.pixel_order(1, 0, 64)
    assert first is not None and first.sort().values.tolist() == list(range(64)) != first.tolist()
    for task in (2, 3):
        orders = [scenario.pixel_order(task, 0, 64) for scenario in (PERMUTED, ALL_PERMUTED)]
        assert torch.equal(*orders) and not torch.equal(orders[0], first)


def test_without_permutation_every_task_shows_the_images_as_they_are() -> None:
    assert scenarios.resolve("mnist-fashion").pixel_order(2, 0, 784) is None


def test_pixel_orders_depend_on_task_and_seed_alone() -> None:
    def order(task: int, seed: int) -> list[int]:
        torch.rand(3)  # what else is drawn changes nothing
        found = PERMUTED.pixel_order(task, seed, 64)
        assert found is not None
        return found.tolist()

    assert order(2, 0) == order(2, 0)
    assert len({tuple(order(task, seed)) for task in (2, 3, 4) for seed in (0, 1, 2)}) == 9


def test_pixel_orders_never_change_from_release_to_release() -> None:
    order = PERMUTED.pixel_order(2, 0, 8)
    assert order is not None
    assert order.tolist() == [4, 2, 0, 5, 1, 6, 3, 7]


# Images


def test_a_set_that_serves_several_tasks_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = data.load

    def counted(name: str, data_dir: Path | None = None, say: data.Say = lambda line: None) -> data.ImageSet:
        loaded.append(name)
        return load(name, data_dir, say)

    monkeypatch.setattr(data, "load", counted)
    tasks = scenarios.load(PERMUTED)
    assert loaded == ["digits"]
    assert len(tasks) == 5 and all(images is tasks[0] for images in tasks)


def test_images_come_in_the_order_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    monkeypatch.setattr(data, "load", lambda name, data_dir, say: dataclasses.replace(digits, name=name))
    tasks = scenarios.load(scenarios.resolve(["kmnist", "mnist", "kmnist"]))
    assert [images.name for images in tasks] == ["kmnist", "mnist", "kmnist"]


def test_images_of_two_sizes_are_refused_with_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    shapes = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}
    monkeypatch.setattr(
        data, "load", lambda name, data_dir, say: dataclasses.replace(digits, name=name, shape=shapes[name])
    )
    with pytest.raises(ValueError, match=r"one shape, got digits \(1, 8, 8\), mnist \(1, 28, 28\)"):
        scenarios.load(scenarios.resolve(["digits", "mnist"]))


# Which images and labels make up a task


def made(per_class: list[int], tests: list[int] | None = None, shape: tuple[int, ...] = (1, 2, 2)) -> ImageSet:
    """So many images of each class, mixed, each with pixels of its own."""
    torch.manual_seed(0)
    parts = {}
    for part, counts in (("train", per_class), ("test", tests or [c % 3 + 1 for c in per_class])):
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        y = y[torch.randperm(len(y))]
        parts |= {f"{part}_x": torch.rand(len(y), *shape).flatten(1), f"{part}_y": y}
    return ImageSet("made", **parts, shape=shape, classes=len(per_class), scale=1.0)


def split(tasks: int, incremental: str = "class", class_order: str = "fixed") -> Scenario:
    table = {"name": "split-digits", "tasks": tasks, "incremental": incremental, "class_order": class_order}
    return scenarios.resolve(table)


def views(scenario: Scenario, images: ImageSet, seed: int = 0) -> list[View]:
    heads = scenario.heads([images] * scenario.tasks)
    return [scenario.view(task, seed, images, heads) for task in range(1, scenario.tasks + 1)]


@settings(deadline=None)
@given(
    st.sampled_from([(2, 1), (2, 2), (3, 2), (1, 4), (5, 2)]),
    st.sampled_from(["task", "domain", "class"]),
    st.sampled_from(["fixed", "shuffled"]),
    st.integers(0, 2**31),
    st.data(),
)
def test_a_split_divides_images_and_labels_among_its_tasks(
    size: tuple[int, int], incremental: str, class_order: str, seed: int, drawn: st.DataObject
) -> None:
    tasks, share = size
    counts = st.lists(st.integers(1, 5), min_size=tasks * share, max_size=tasks * share)
    images = made(drawn.draw(counts), drawn.draw(counts))
    found = views(split(tasks, incremental, class_order), images, seed)
    for part in ("train", "test"):
        rows = torch.cat([getattr(view, part) for view in found])
        assert rows.sort().values.tolist() == list(range(len(getattr(images, f"{part}_y"))))
    for number, view in enumerate(found):
        labels = (view.labels >= 0).nonzero().flatten()
        assert len(labels) == share
        outputs = view.labels[labels].sort().values - (0 if incremental == "domain" else number * share)
        assert outputs.tolist() == list(range(share))
        for rows, y in ((view.train, images.train_y), (view.test, images.test_y)):
            assert torch.equal(rows.sort().values, rows)
            assert set(y[rows].tolist()) <= set(labels.tolist())
    owned = torch.stack([view.labels >= 0 for view in found])
    assert owned.sum(0).tolist() == [1] * (tasks * share)


def test_fixed_tasks_take_the_labels_in_their_order_whatever_the_seed() -> None:
    images = made([3, 1, 4, 1, 5, 9])
    for seed in (0, 1):
        for number, view in enumerate(views(split(3), images, seed)):
            expected = torch.full((6,), -1)
            expected[2 * number : 2 * number + 2] = torch.arange(2) + 2 * number
            assert torch.equal(view.labels, expected)


def test_tasks_may_take_different_numbers_of_labels_in_an_order_that_is_given() -> None:
    images = made([3, 1, 4, 1, 5, 9])
    table = {"name": "split-digits", "labels": [3, 1, 2], "class_order": [5, 0, 3, 1, 4, 2]}
    scenario = scenarios.resolve(table)
    assert scenario.tasks == 3 and (scenario.fields()["labels"], scenario.fields()["class_order"]) == (
        "3, 1, 2", "5, 0, 3, 1, 4, 2",
    )  # fmt: skip
    assert [view.labels.tolist() for view in views(scenario, images)] == [
        [1, -1, -1, 2, -1, 0],
        [-1, 3, -1, -1, -1, -1],
        [-1, -1, 5, -1, 4, -1],
    ]
    assert [scenario.size(task, images) for task in (1, 2, 3)] == [9 + 3 + 1, 1, 5 + 4]
    heads = scenario.heads([images] * 3)
    assert heads.blocks == ((0, 3), (3, 4), (4, 6)) and heads.testing(1, 2).tolist() == [True] * 4 + [False] * 2
    assert scenarios.resolve(table | {"incremental": "domain"}).heads([images] * 3).outputs == 3
    last = scenario.part(2, 3)
    assert last.fields()["labels"] == "1, 2"
    assert [view.labels.tolist() for view in views(last, images)] == [
        [-1, 0, -1, -1, -1, -1],
        [-1, -1, 2, -1, 1, -1],
    ]


def test_tasks_of_different_size_count_steps_by_their_share_of_the_labels_where_seeds_differ() -> None:
    images, table = made([3, 1, 4, 1, 5, 9]), {"name": "split-digits", "labels": [3, 1, 2], "class_order": "shuffled"}
    assert [scenarios.resolve(table).size(task, images) for task in (1, 2, 3)] == [12, 4, 8]  # of 23


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": [5, 4]},
            r"labels: expected numbers that add up to the 10 labels of the set, got 5, 4, which are 9",
        ),
        ({"class_order": [0, 1, 2]}, r"class_order: expected each of the labels 0 to 9 once, got 0, 1, 2$"),
        ({"class_order": [0, 0, *range(2, 10)]}, r"class_order: expected each of the labels 0 to 9 once"),
    ],
)
def test_loading_refuses_labels_that_are_not_those_of_the_set(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenarios.load(scenarios.resolve({"name": "split-digits"} | change))


def test_domain_incremental_tasks_share_their_outputs() -> None:
    found = views(split(2, "domain"), made([1] * 4))
    assert [view.labels.tolist() for view in found] == [[0, 1, -1, -1], [-1, -1, 0, 1]]


def class_order(seed: int, classes: int = 10, tasks: int = 5) -> list[int]:
    """The labels by the output that is theirs."""
    found = torch.stack(
        [view.labels for view in views(split(tasks, class_order="shuffled"), made([1] * classes), seed)]
    )
    return found.max(0).values.argsort().tolist()


def test_shuffled_tasks_take_the_labels_in_an_order_of_the_seed() -> None:
    orders = [class_order(seed) for seed in range(20)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 20
    assert orders[3] == class_order(3)
    # How many tasks the classes are divided among changes no order.
    assert orders[3] == class_order(3, tasks=2)


def test_class_orders_never_change_from_release_to_release() -> None:
    assert class_order(0) == [4, 3, 1, 6, 7, 8, 0, 5, 9, 2]
    assert class_order(1) == [7, 3, 8, 1, 0, 5, 6, 4, 9, 2]


@pytest.mark.parametrize(
    ("classes", "tasks", "choices"), [(10, 3, "1, 2, 5, 10"), (6, 4, "1, 2, 3, 6"), (2, 5, "1, 2")]
)
def test_labels_that_do_not_divide_are_refused_with_the_choices(classes: int, tasks: int, choices: str) -> None:
    message = rf"'split-digits': {classes} labels do not divide evenly among {tasks} tasks; choose tasks = {choices}, or say with labels"
    with pytest.raises(ValueError, match=message):
        split(tasks).heads([made([1] * classes)] * tasks)


def test_loading_refuses_labels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="10 labels do not divide evenly among 4 tasks; choose tasks = 1, 2, 5, 10"):
        scenarios.load(split(4))


def test_steps_are_counted_by_a_tasks_own_images_or_by_the_mean_where_seeds_differ() -> None:
    images = made([3, 1, 4, 1, 5, 9])
    assert [split(3).size(task, images) for task in (1, 2, 3)] == [4, 5, 14]
    assert [split(3, class_order="shuffled").size(task, images) for task in (1, 2, 3)] == [8, 8, 8]  # 23/3
    assert [PERMUTED.size(task, images) for task in (1, 2)] == [23, 23]


def test_a_task_that_is_not_split_shows_every_image() -> None:
    images, scenario = made([2, 3]), scenarios.resolve(["digits", "digits"])
    assert views(scenario, images) == [View(), View()]
    apart = dataclasses.replace(scenario, incremental="task")
    assert [view.labels.tolist() if view.labels is not None else None for view in views(apart, images)] == [
        None,
        [2, 3],
    ]


# Training images held out for choosing hyperparameters


def validated(scenario: Scenario, share: float = 0.25) -> Scenario:
    return dataclasses.replace(scenario, validation=share)


def rows(view: View, part: str) -> list[int]:
    found: Tensor | None = getattr(view, part)
    assert found is not None
    return found.tolist()


@settings(deadline=None)
@given(
    st.sampled_from([(1, 3), (2, 1), (2, 2), (3, 2)]),
    st.sampled_from(["task", "domain", "class"]),
    st.sampled_from(["fixed", "shuffled"]),
    st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.99]),
    st.integers(0, 2**31),
    st.data(),
)
def test_a_share_of_every_label_is_tested_on_and_the_rest_trained_on(
    size: tuple[int, int], incremental: str, class_order: str, share: float, seed: int, drawn: st.DataObject
) -> None:
    tasks, labels = size
    counts = drawn.draw(st.lists(st.integers(1, 30), min_size=tasks * labels, max_size=tasks * labels))
    images, whole = made(counts), split(tasks, incremental, class_order)
    found = views(validated(whole, share), images, seed)
    trained, tested = ([row for view in found for row in rows(view, part)] for part in ("train", "test"))
    assert sorted(trained + tested) == list(range(sum(counts)))
    held = images.train_y[tested].bincount(minlength=len(counts)).tolist()
    for count, out in zip(counts, held, strict=True):
        # Something to test on, and always something to train on.
        assert abs(out - min(max(1, share * count), count - 1)) <= 0.5 + 1e-5 and out < count
    # What a task is made of stays as it is, and only the images of the task change hands.
    for view, before in zip(found, views(whole, images, seed), strict=True):
        assert torch.equal(view.labels, before.labels) and view.order is None
        assert sorted(rows(view, "train") + rows(view, "test")) == rows(before, "train")


def test_a_tenth_of_each_digit_is_held_out() -> None:
    digits = data.load("digits")
    scenario = validated(scenarios.resolve({"name": "split-digits", "incremental": "task"}), 0.1)
    tested = [row for view in views(scenario, digits) for row in rows(view, "test")]
    held, all_of_them = (digits.train_y[index].bincount().tolist() for index in (tested, slice(None)))
    assert held == [round(0.1 * count) for count in all_of_them] and sum(held) == 143


@pytest.mark.parametrize("name", ["permuted-digits", "rotated-digits"])
@pytest.mark.parametrize("incremental", ["task", "domain", "class"])
def test_all_tasks_of_one_set_hold_the_same_images_out(name: str, incremental: str) -> None:
    scenario = validated(scenarios.resolve({"name": name, "tasks": 3, "incremental": incremental}))
    tasks = scenarios.load(scenario)
    heads = scenario.heads(tasks)
    found = [scenario.view(task, 3, tasks[task - 1], heads) for task in (1, 2, 3)]
    assert all(rows(view, part) == rows(found[0], part) for view in found for part in ("train", "test"))
    assert not set(rows(found[0], "train")) & set(rows(found[0], "test"))
    before = dataclasses.replace(scenario, validation=0.0)
    for task, view in enumerate(found, 1):
        plain = before.view(task, 3, tasks[task - 1], heads)
        for mine, its in ((view.order, plain.order), (view.labels, plain.labels)):
            assert (mine is None and its is None) or torch.equal(mine, its)


def test_the_seed_and_the_set_decide_which_images_are_held_out_and_nothing_else() -> None:
    images, scenario = made([40, 40]), validated(PERMUTED)

    def held(seed: int, images: ImageSet = images, scenario: Scenario = scenario) -> tuple[int, ...]:
        torch.rand(3)  # what else is drawn changes nothing
        return tuple(sorted({row for view in views(scenario, images, seed) for row in rows(view, "test")}))

    assert len({held(seed) for seed in range(10)}) == 10
    for other in (PERMUTED, split(2, "task"), split(2, "class", "shuffled"), split(1, "domain")):
        assert held(3, scenario=validated(other)) == held(3)
    assert held(3) != held(3, dataclasses.replace(images, name="another"))
    others = dataclasses.replace(images, test_x=images.test_x[:0], test_y=images.test_y[:0])
    assert held(3, others) == held(3)  # test images have no say


def test_held_out_images_never_change_from_release_to_release() -> None:
    y = torch.arange(12) % 2
    x = torch.zeros(12, 4, dtype=torch.uint8)
    images = ImageSet("pinned", x, y, x[:1], y[:1], shape=(1, 2, 2), classes=2, scale=255.0)
    assert [rows(views(validated(PERMUTED), images, seed)[0], "test") for seed in (0, 1)] == [
        [1, 2, 7, 8],
        [0, 1, 5, 6],
    ]


def test_steps_are_counted_by_what_is_left_to_train_on() -> None:
    images = made([8, 16, 24, 4, 1, 9])
    assert [validated(PERMUTED).size(task, images) for task in (1, 2)] == [47, 47]
    assert [validated(split(3)).size(task, images) for task in (1, 2, 3)] == [18, 21, 8]
    assert [validated(split(3, class_order="shuffled")).size(task, images) for task in (1, 2, 3)] == [16, 16, 16]
    for scenario in (PERMUTED, split(3)):
        for task, view in enumerate(views(validated(scenario), images), 1):
            assert len(rows(view, "train")) == validated(scenario).size(task, images)


def test_what_is_held_out_is_part_of_the_spec() -> None:
    specs = [dataclasses.replace(PERMUTED, validation=share).spec() for share in (0.0, 0.1, 0.2)]
    assert len({str(spec) for spec in specs}) == 3


# Parts of a sequence

WHOLES = {
    "permuted": {"name": "permuted-digits", "tasks": 4},
    "all permuted": {"name": "permuted-digits", "tasks": 4, "first": "permuted"},
    "permuted with heads": {"name": "permuted-digits", "tasks": 4, "incremental": "task"},
    "rotated": {"name": "rotated-digits", "angles": [0, 30, 60, 90]},
    "sets side by side": {"sets": ["digits"] * 4, "incremental": "class"},
    **{
        f"split, {incremental}, {order}": {
            "name": "split-digits", "tasks": 5, "incremental": incremental, "class_order": order,
        }
        for incremental in ("task", "domain", "class")
        for order in ("fixed", "shuffled")
    },
}  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("case", WHOLES)
def test_a_part_shows_its_tasks_as_the_whole_does_and_has_outputs_for_them_alone(case: str, share: float) -> None:
    whole = validated(scenarios.resolve(WHOLES[case]), share)
    tasks = scenarios.load(whole)
    for first, last in ((1, 2), (2, 4), (3, 3), (1, whole.tasks)):
        part = whole.part(first, last)
        own = scenarios.load(part)
        assert part.tasks == len(own) == last - first + 1
        heads, all_heads = part.heads(own), whole.heads(tasks)
        sizes = [end - start for start, end in all_heads.blocks[first - 1 : last]]
        assert heads.outputs == (max(sizes) if whole.incremental == "domain" else sum(sizes))
        before = all_heads.blocks[first - 1][0]
        assert heads.blocks == tuple((a - before, b - before) for a, b in all_heads.blocks[first - 1 : last])
        for task, seed in ((task, seed) for task in range(1, part.tasks + 1) for seed in (0, 7)):
            images = tasks[first + task - 2]
            assert torch.equal(own[task - 1].train_x, images.train_x)
            assert part.size(task, images) == whole.size(first + task - 1, images)
            mine, its = part.view(task, seed, images, heads), whole.view(first + task - 1, seed, images, all_heads)
            for name in ("train", "test", "order"):
                a, b = getattr(mine, name), getattr(its, name)
                assert (a is None and b is None) or torch.equal(a, b), name
            outputs = [torch.arange(10) if v.labels is None else v.labels for v in (mine, its)]
            assert torch.equal(outputs[0], torch.where(outputs[1] < 0, -1, outputs[1] - before))


def test_a_part_of_a_part_is_a_part_of_the_whole() -> None:
    for table in WHOLES.values():
        whole = scenarios.resolve(table)
        nested, direct = whole.part(2, 4).part(2, 3), whole.part(3, 4)
        assert dataclasses.replace(nested, name="") == dataclasses.replace(direct, name="")
        assert nested.spec() == direct.spec() != whole.spec()


def test_parts_of_different_places_are_told_apart_in_run_keys() -> None:
    specs = [str(PERMUTED.part(first, first + 1).spec()) for first in (1, 2, 3)] + [str(PERMUTED.spec())]
    shorter = scenarios.resolve({"name": "permuted-digits", "tasks": 2})
    assert len({*specs, str(shorter.spec())}) == 5


@pytest.mark.parametrize(("first", "last"), [(0, 2), (3, 2), (1, 6), (6, 6), (-1, 1)])
def test_tasks_that_are_not_there_make_no_part(first: int, last: int) -> None:
    with pytest.raises(ValueError, match=rf"'permuted-digits': expected tasks from 1 to 5, got {first} to {last}"):
        PERMUTED.part(first, last)


# Which outputs compete


def test_outputs_of_tasks_of_different_sizes_lie_side_by_side() -> None:
    sets = [made([1] * classes) for classes in (3, 2, 4)]
    scenario = scenarios.resolve(["digits", "digits", "digits"])
    assert scenario.heads(sets) == Heads("domain", ((0, 4),) * 3)
    for incremental in ("task", "class"):
        apart = dataclasses.replace(scenario, incremental=incremental).heads(sets)
        assert (apart.blocks, apart.outputs) == (((0, 3), (3, 5), (5, 9)), 9)


def shown(mask: Tensor) -> list[str]:
    return ["".join("x" if on else "." for on in row) for row in mask.view(-1, mask.shape[-1]).tolist()]


BLOCKS = ((0, 2), (2, 3), (3, 5))


def test_in_a_task_incremental_scenario_the_outputs_of_each_task_compete_among_themselves() -> None:
    heads = Heads("task", BLOCKS)
    for task in (1, 2, 3):
        assert shown(heads.training(task)) == ["xx...", "..x..", "...xx"]
        assert [shown(heads.testing(j, task)) for j in (1, 2, 3)] == [["xx..."], ["..x.."], ["...xx"]]
    assert [shown(heads.earlier(task)) for task in (1, 2, 3)] == [[], ["xx..."], ["xx...", "..x.."]]


def test_in_a_class_incremental_scenario_the_outputs_of_all_tasks_so_far_compete() -> None:
    heads = Heads("class", BLOCKS)
    assert [shown(heads.training(task)) for task in (1, 2, 3)] == [["xx..."] * 3, ["xxx.."] * 3, ["xxxxx"] * 3]
    tested = {(task, trained): shown(heads.testing(task, trained))[0] for task in (1, 2, 3) for trained in (0, 1, 2, 3)}
    assert tested == {
        (1, 0): "xx...", (1, 1): "xx...", (1, 2): "xxx..", (1, 3): "xxxxx",
        (2, 0): "xxx..", (2, 1): "xxx..", (2, 2): "xxx..", (2, 3): "xxxxx",
        (3, 0): "xxxxx", (3, 1): "xxxxx", (3, 2): "xxxxx", (3, 3): "xxxxx",
    }  # fmt: skip
    assert [shown(heads.earlier(task)) for task in (1, 2, 3)] == [[], ["xx..."], ["xxx.."]]


def test_in_a_domain_incremental_scenario_all_outputs_compete_always() -> None:
    heads = Heads("domain", ((0, 3), (0, 3)))
    assert [shown(heads.training(task)) for task in (1, 2)] == [["xxx"] * 2] * 2
    assert [shown(heads.testing(task, trained)) for task in (1, 2) for trained in (0, 1, 2)] == [["xxx"]] * 6
    assert [shown(heads.earlier(task)) for task in (1, 2)] == [[], ["xxx"]]


# Turned images


def numbered(height: int, width: int, dtype: torch.dtype = torch.uint8, channels: int = 1) -> ImageSet:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, channels * height * width)).to(dtype)
    y = torch.tensor([0, 1, 1])
    return ImageSet("numbered", x, y, x.flip(0), y, shape=(channels, height, width), classes=2, scale=255.0)


def pixels(images: ImageSet, part: str = "train_x") -> Tensor:
    x: Tensor = getattr(images, part)
    return x.view(-1, *images.shape)


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([torch.uint8, torch.float32]),
    st.sampled_from([-360, -270, -180, -90, 90, 180, 270]),
)
def test_a_quarter_turn_is_an_exact_turn_counter_clockwise(
    side: int, channels: int, dtype: torch.dtype, angle: int
) -> None:
    images = numbered(side, side, dtype, channels)
    found = scenarios.turned(images, float(angle))
    for part in ("train_x", "test_x"):
        # torch.rot90 turns the first axis (down) towards the second (right): counter-clockwise, as images are shown.
        expected = torch.rot90(pixels(images, part), angle // 90, (2, 3))
        if dtype == torch.uint8:
            assert torch.equal(pixels(found, part), expected)
        else:
            torch.testing.assert_close(pixels(found, part), expected, rtol=0, atol=255 * 1e-5)
    assert (found.shape, found.train_x.dtype) == (images.shape, dtype)
    assert torch.equal(found.train_y, images.train_y)


def test_counter_clockwise_is_what_one_sees() -> None:
    x = torch.zeros(1, 5, 5, dtype=torch.uint8)
    x[0, 2, 4] = 255  # at three o'clock, row 2 of 5 from the top
    y = torch.zeros(1, dtype=torch.int64)
    images = ImageSet("dot", x.flatten(1), y, x.flatten(1), y, shape=(1, 5, 5), classes=1, scale=255.0)
    assert pixels(scenarios.turned(images, 90.0))[0, 0].nonzero().tolist() == [[0, 2]]  # at twelve


@pytest.mark.parametrize("angle", [0.0, 360.0, -360.0])
def test_a_full_turn_or_none_is_the_very_set(angle: float) -> None:
    images = numbered(4, 4)
    assert scenarios.turned(images, angle) is images


@pytest.mark.parametrize("angle", [30.0, -75.5])
def test_turning_agrees_with_an_independent_library(angle: float) -> None:
    from scipy.ndimage import rotate

    images = numbered(7, 10, torch.float32)
    expected = rotate(pixels(images).numpy(), angle, axes=(2, 3), reshape=False, order=1, mode="grid-constant")
    found = pixels(scenarios.turned(images, angle)).numpy()
    # scipy's sign: from the first axis to the second, as torch.rot90.
    np.testing.assert_allclose(found, expected, rtol=0, atol=255 * 1e-4)


def test_an_image_that_is_not_square_is_turned_and_not_stretched() -> None:
    images = numbered(4, 8)
    found, middle = pixels(scenarios.turned(images, 90.0)), pixels(images)[..., 2:6]
    assert torch.equal(found[..., 2:6], torch.rot90(middle, 1, (2, 3)))
    assert not found[..., :2].any() and not found[..., 6:].any()  # black outside


def test_turned_pixels_are_rounded_not_cut() -> None:
    x = torch.full((1, 9, 9), 7, dtype=torch.uint8)
    y = torch.zeros(1, dtype=torch.int64)
    images = ImageSet("flat", x.flatten(1), y, x.flatten(1), y, shape=(1, 9, 9), classes=1, scale=255.0)
    assert (pixels(scenarios.turned(images, 33.0))[0, 0, 3:6, 3:6] == 7).all()


def test_vectors_cannot_be_turned() -> None:
    vectors = dataclasses.replace(numbered(2, 2), shape=(4,))
    with pytest.raises(ValueError, match=r"numbered: only images can be turned, got inputs of shape \(4,\)"):
        scenarios.turned(vectors, 45.0)
    assert scenarios.turned(vectors, 360.0) is vectors


def test_each_task_of_a_rotation_shows_the_same_images_turned_further() -> None:
    digits = data.load("digits")
    tasks = scenarios.load(scenarios.resolve({"name": "rotated-digits", "angles": [0, 90, 180]}))
    for quarter, images in enumerate(tasks):
        assert torch.equal(pixels(images), torch.rot90(pixels(digits), quarter, (2, 3)))
        assert torch.equal(images.test_y, digits.test_y)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_split_of_a_set_without_images_of_a_label_is_refused_by_that_label(part, monkeypatch):
    y, x = torch.arange(12) % 4, torch.zeros(12, 4, dtype=torch.uint8)
    gap = {f"{part}_y": torch.where(y == 2, 3, y)}
    images = dataclasses.replace(data.from_tensors("mine", x, y, x, y), **gap)
    monkeypatch.setattr(data, "load", lambda name, data_dir, say: images)
    kind = {"train": "training", "test": "test"}[part]
    with pytest.raises(ValueError, match=f"mine has no {kind} images of label 2"):
        scenarios.load(scenarios.resolve({"name": "split-digits", "tasks": 2}))


def test_the_environment_has_a_checksum_of_every_set_as_its_tasks_see_it() -> None:
    turned = scenarios.resolve({"name": "rotated-digits", "angles": [0, 30]})
    found = environment.describe(torch.device("cpu"), [*scenarios.load(turned), *scenarios.load(turned)])
    plain = data.load("digits").checksum
    assert found["data.digits.1"] == plain != found["data.digits.2"]
    alike = environment.describe(torch.device("cpu"), scenarios.load(scenarios.resolve("permuted-digits")))
    assert {k: v for k, v in alike.items() if k.startswith("data.")} == {"data.digits": plain}
