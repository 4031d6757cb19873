"""Task sequences: what a name stands for, and which pixels a task shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark import data, scenarios
from benchmark.scenarios import Scenario


def test_the_named_sequence_is_mnist_then_fashion() -> None:
    scenario = scenarios.resolve("mnist-fashion")
    assert (scenario.sets, scenario.tasks, scenario.permuted) == (("mnist", "fashion-mnist"), 2, False)
    assert scenario.incremental == "domain"


def test_permuted_digits_has_five_tasks_unless_told_otherwise() -> None:
    assert scenarios.resolve("permuted-digits").tasks == 5
    assert scenarios.resolve({"name": "permuted-digits", "tasks": 3}).tasks == 3
    assert scenarios.resolve("permuted-digits").permuted


def test_any_list_of_image_sets_is_a_scenario() -> None:
    listed, table = (
        scenarios.resolve(["mnist", "kmnist", "mnist"]),
        scenarios.resolve({"sets": ["mnist", "kmnist", "mnist"]}),
    )
    assert listed == table == Scenario("mnist-kmnist-mnist", ("mnist", "kmnist", "mnist"))


def test_the_name_is_for_people_and_does_not_determine_the_tasks() -> None:
    assert scenarios.resolve(["mnist", "fashion-mnist"]).spec() == scenarios.resolve("mnist-fashion").spec()


@pytest.mark.parametrize("name", scenarios.NAMES)
def test_every_listed_name_resolves(name: str) -> None:
    assert scenarios.resolve(name).name == name
    assert set(scenarios.resolve(name).sets) <= set(data.NAMES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("permuted-mnist", "unknown scenario 'permuted-mnist'; did you mean"),
        ("xyz", r"unknown scenario 'xyz' \(forgetbench list scenarios\)"),
        (["mnist", "fashion"], "unknown image set 'fashion'; did you mean 'fashion-mnist'"),
        ([], "at least one image set"),
        ({"sets": []}, "at least one image set"),
        ({"name": "permuted-digits", "tasks": 0}, "tasks: expected a whole number >= 1, got 0"),
        ({"name": "permuted-digits", "tasks": 2.0}, "tasks: expected a whole number >= 1, got 2.0"),
        ({"name": "permuted-digits", "tasks": True}, "tasks: expected a whole number >= 1, got True"),
        ({"name": "permuted-digits", "seed": 1}, "unknown option 'seed'; it takes tasks"),
        ({"name": "mnist-fashion", "tasks": 2}, "unknown option 'tasks'; it takes none"),
        ({"sets": ["mnist"], "tasks": 2}, "unknown option 'tasks'; it takes none"),
        ({"tasks": 2}, "unknown scenario"),
    ],
)
def test_what_is_no_scenario_is_refused_with_what_was_expected(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenarios.resolve(spec)


def test_resolving_a_table_leaves_it_as_it_is() -> None:
    table = {"name": "permuted-digits", "tasks": 3}
    scenarios.resolve(table)
    assert table == {"name": "permuted-digits", "tasks": 3}


# Pixel orders

PERMUTED = scenarios.resolve("permuted-digits")


@given(st.integers(2, 20), st.integers(0, 2**31), st.integers(1, 100))
def test_a_pixel_order_shows_every_pixel_once(task: int, seed: int, pixels: int) -> None:
    order = PERMUTED.pixel_order(task, seed, pixels)
    assert order is not None
    assert order.sort().values.tolist() == list(range(pixels))


def test_the_first_task_shows_the_images_as_they_are() -> None:
    assert PERMUTED.pixel_order(1, 0, 64) is None


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
