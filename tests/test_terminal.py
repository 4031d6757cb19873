"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from benchmark import config, harness, plan, scenarios, schedule, terminal
from strategies import Naive
from strategies.frozen import Frozen
from strategies.joint import Joint
from tests.conftest import CPU, make_run
from tests.result_frames import frames


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


@pytest.mark.parametrize("terminal_like", [True, False])
def test_the_time_left_is_told_once_a_tenth_is_trained(planned, monkeypatch, terminal_like):
    monkeypatch.setattr(terminal, "PLAIN_EVERY", 0.0)
    out = io.StringIO()
    told = []
    with terminal.Monitor(Console(file=out, force_terminal=terminal_like, width=160)) as monitor:
        monitor.planned(*planned)
        monitor.stack_started(0, 2, "first task, shared")
        for epoch in (1, 2, 3):
            monitor.epoch_done(1, 1, 3, epoch, 9, 0.5)
            told.append(monitor._left() != "")
    assert told == [False, True, True]  # of 18 run-epochs
    if not terminal_like:
        first, second, _ = [line for line in out.getvalue().splitlines() if "run-epochs" in line]
        assert first.startswith("[1/18 run-epochs] ") and second.startswith("[2/18 run-epochs, about 0 s left] ")


@pytest.mark.parametrize(("done", "shown"), [(0, "-:--"), (1, "-:--"), (2, "00:")])
def test_a_terminal_has_no_estimate_before(done, shown):
    clock = iter(range(100))
    progress = Progress(get_time=lambda: float(next(clock)), auto_refresh=False)
    number = progress.add_task("", total=18)
    for _ in range(done):
        progress.advance(number)
    assert str(terminal._TimeLeft(compact=True).render(progress.tasks[0])).startswith(shown)


@pytest.mark.parametrize(
    ("name", "entries", "seeds", "said"),
    [
        ("mine", ["naive", "si"], 2, "mine: permuted-digits, 2 strategies x 2 seeds"),
        ("permuted-digits", ["naive"], 1, "permuted-digits, 1 strategy x 1 seed"),
    ],
)
def test_an_experiment_is_said_in_good_english_and_its_name_once(name, entries, seeds, said):
    table = {"name": name, "scenario": "permuted-digits", "seeds": seeds, "strategy": [{"name": e} for e in entries]}
    assert terminal.titled(config.parse(table)) == said


@pytest.mark.parametrize(
    ("images", "heads"), [("mnist, fashion-mnist", ["MNIST", "Fashion-MNIST"]), ("digits", ["task 1", "task 2"])]
)
def test_the_table_at_the_end_names_tasks_by_their_images(images, heads):
    runs, accuracy = frames(2, 2, ("naive", "si"))
    columns = terminal.result_table(runs.assign(images=images), accuracy).columns
    assert [column.header for column in columns[2:4]] == heads


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
