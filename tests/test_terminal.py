"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmark import harness, plan, scenarios, schedule, terminal
from strategies import Naive
from strategies.frozen import Frozen
from strategies.joint import Joint
from tests.conftest import CPU, make_run


@pytest.fixture
def planned() -> tuple[plan.Plan, list]:
    runs = [make_run(seed=seed, tasks=3, epochs=None, iterations=50) for seed in (0, 1)]
    tasks = scenarios.load(runs[0].scenario)
    return plan.make(runs, tasks, CPU), tasks


def test_progress_counts_every_epoch_of_every_run_and_the_trunk(planned):
    made, tasks = planned
    # 1 437 images in batches of 64 are 22 steps an epoch, so 50 iterations begin 3 epochs; 2 runs, 3 tasks.
    assert terminal._run_epochs(made, tasks) == 2 * 3 * 3


@pytest.mark.parametrize("length", [{"epochs": 2}, {"epochs": None, "iterations": 50}])
def test_progress_ends_where_the_training_ends_whatever_each_strategy_trains_on(length):
    told = []

    class Counting(harness.Silent):
        def epoch_done(self, runs, *args):
            told.append(runs)

    recipe = {"tasks": 3, "batch_size": 300, **length}
    runs = [make_run(s, **recipe) for s in (Naive(), Joint(), Joint(mode="continued"), Frozen())]
    tasks = scenarios.load(runs[0].scenario)
    made = plan.make(runs, tasks, CPU)
    list(schedule.execute(made, tasks, CPU, Counting()))
    assert terminal._run_epochs(made, tasks) == sum(told) > 0
    # A later batch of a study, whose first task is there.
    again = plan.make(runs, tasks, CPU, trained={run.trunk for run in runs if run.trunk})
    assert terminal._run_epochs(again, tasks) == sum(told) - told[0] * runs[0].epochs(1, tasks)


def test_a_terminal_shows_labels_with_their_brackets(planned):
    out = io.StringIO()
    with terminal.Monitor(Console(file=out, force_terminal=True, width=160)) as monitor:
        monitor.planned(*planned)
        monitor.stack_started(1, 2, "ewc[estimator=exact,lam=10]")
        monitor.epoch_done(2, 1, 3, 1, 3, 0.5)
        monitor._progress.refresh()
    assert "ewc[estimator=exact,lam=10]: task 1/3, epoch 1/3, loss 0.500" in out.getvalue()


def test_elsewhere_lines_are_plain_and_the_last_is_always_there(planned):
    out = io.StringIO()
    with terminal.Monitor(Console(file=out, width=160)) as monitor:
        monitor.planned(*planned)
        monitor.stack_started(0, 2, "first task, shared")
        for epoch in range(1, 10):
            monitor.epoch_done(2, 1, 3, epoch, 9, 0.5)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue() and len(lines) == 2
    assert lines[-1].startswith("[18/18 run-epochs, about 0 s left] first task, shared: task 1/3, epoch 9/9")
