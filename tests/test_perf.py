"""The measuring code measures what it says; how fast things are is no matter of tests."""

from __future__ import annotations

import math
import os

import pytest

from benchmark import data
from benchmark.models import Model
from benchmark.perf import executors, growth
from benchmark.perf.measuring import Row, apart, in_turn
from benchmark.perf.tables import Section, markdown, written


def test_exponents_tell_constant_linear_and_square():
    assert growth.exponents([1, 2, 4], [3, 3, 3]) == [0, 0]
    assert growth.exponents([2, 8], [5, 20]) == pytest.approx([1])
    assert growth.exponents([2, 6], [1, 9]) == pytest.approx([2])


def test_an_experiment_of_a_size_has_that_size_and_takes_time():
    size = growth.Size(runs=3, tasks=2, width=8, steps=3)
    network = Model("mlp", (("widths", (8, 8)),)).build((1, 8, 8), 10, seed=0)
    assert size.parameters == sum(p.numel() for p in network.parameters())
    seconds, memory = growth.measure(size)
    assert seconds > 0 and memory > 0


def test_the_first_of_a_growing_row_has_no_exponent():
    table = markdown(Section("growth", "seconds", "exponent", [Row("1 run", 2.0, math.nan), Row("2 runs", 4.0, 1.0)]))
    assert table.splitlines()[2:] == ["| 1 run | 2 |  |", "| 2 runs | 4 | 1.00 |"]


def threads_of_ours(images, first):
    """A subject that says how often it ran, and whether PyTorch was loaded with our settings."""
    ran, ours = [first + len(images.train_y)], "GOMP_SPINCOUNT" in os.environ
    return lambda: ran.append(ran[-1] + 1) or ran[-1] + 1000 * ours


def test_the_loops_of_others_run_in_processes_without_our_settings():
    assert os.environ["GOMP_SPINCOUNT"]
    images = len(data.load("digits").train_y)
    one, other = (apart(threads_of_ours, "digits", first - images) for first in (0, 10))
    assert [one(), other(), one(), other()] == [1, 11, 2, 12]
    rows = in_turn({"one": (one, 1.0), "other": (other, 10.0)}, rounds=3)
    assert [(row.name, row.value) for row in rows] == [("one", 5), ("other", 150)]
    assert rows[1].ratio == pytest.approx(5 / 150) and os.environ["GOMP_SPINCOUNT"]


@pytest.mark.slow
def test_ray_is_measured_beside_threads_and_its_start_apart(monkeypatch):
    ray = pytest.importorskip("ray")
    small = ["seeds=2", "scenario.tasks=2", "train.epochs=1", "strategy=[{name='naive'}]"]
    monkeypatch.setattr(executors, "RUNS", small)
    monkeypatch.setattr(executors, "ROUNDS", 1)
    said = []
    both, start = executors.sections(said.append)
    ray.shutdown()
    assert both.title.startswith("2 runs of permuted-digits") and "on loopback" in said[0]
    threads, through_ray = both.rows
    assert (threads.name, threads.ratio, through_ray.name) == ("threads", 1, "Ray")
    assert through_ray.ratio == pytest.approx(through_ray.value / threads.value)
    assert start.rows[0].value > 0


@pytest.mark.parametrize("along", [None, ("runs", [1, 2])])
def test_what_was_measured_is_left_as_tables_and_a_figure(along, tmp_path):
    rows = [Row("1 run", 2.0, math.nan), Row("2 runs", 4.0, 1.0)]
    written(tmp_path, [Section("growth", unit, "exponent", rows, along) for unit in ("seconds", "MiB")])
    assert (tmp_path / "perf.pdf").read_bytes().startswith(b"%PDF")
    assert len((tmp_path / "perf.csv").read_text().splitlines()) == 5
    assert (tmp_path / "perf.md").read_text().count("| 2 runs | 4 | 1.00 |") == 2
