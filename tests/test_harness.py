"""Runs through the harness: alone, stacked, side by side, diverging, branching, reproducing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark import harness, plan, scenarios, schedule
from benchmark.executors import Local, threads
from benchmark.feed import Feed, Lesson, Pool
from benchmark.keys import generator
from benchmark.learner import Learner
from benchmark.models import Model, require_stackable, resolve
from benchmark.recipe import Recipe
from strategies import EWC, L2, Batch, EWCKfac, Loss, Naive, Strategy, cross_entropy, hyper
from strategies.agem import AGEM
from strategies.er import ER
from strategies.lwf import LwF
from strategies.si import SI
from tests.conftest import CPU, UNIDENTIFIED, execute, make_run, train


def learner_of(seeds, recipe, name="mlp-bn"):
    networks = [Model(name).build((1, 8, 8), 10, seed=seed) for seed in seeds]
    return Learner.fresh(networks, recipe, (1, 8, 8), CPU)


def lesson_of(seeds, recipe):
    run = dataclasses.replace(make_run(), recipe=recipe)
    pool = Pool.of(run.scenario, scenarios.load(run.scenario), CPU)
    return Lesson(Feed(pool, seeds, recipe.dtype), 1, run)


def batch_of(x, y):
    """Samples of the first task, all of whose outputs compete."""
    return Batch(x, y, torch.ones(*y.shape, 10, dtype=torch.bool), torch.ones_like(y), y, torch.rand(y.shape), {})


PLAIN = Model("mlp", (("widths", (40,)),))


QUADRATIC = (L2(lam=0.5), EWC(lam=50), EWC(lam=500, estimator="exact"), EWC(lam=5, accumulate="online"))
OTHERS = (Naive(), SI(lam=2), LwF(), ER(memory=30, replay_batch=10), AGEM(memory=30, replay_batch=10))
MOMENTUM = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}


# Where BatchNorm updates, the bias before it has no gradient but rounding and the penalty's. Adam, whose steps are as
# large for the smallest gradient, makes another bias of it in a stack than alone; the running mean follows only later,
# so in eval mode, where importances are measured, that is another network by 1e-5. Hence SGD there.
@pytest.mark.parametrize(
    ("model", "strategies", "recipe", "tolerance"),
    [
        (PLAIN, QUADRATIC + OTHERS, {}, 1e-10),
        (PLAIN, QUADRATIC, {"optimizer_state": "keep", "weight_decay": 0.01, "optimizer": "adamw"}, 1e-10),
        (Model("mlp-bn"), QUADRATIC, MOMENTUM, 1e-10),
        (Model("mlp-bn"), QUADRATIC, {"batchnorm": "freeze-after-first"}, 1e-8),
    ],
    ids=["adam", "adamw, kept", "batchnorm, sgd", "batchnorm, frozen"],
)
def test_stacked_runs_equal_the_same_runs_alone(model, strategies, recipe, tolerance):
    runs = [make_run(strategy, seed=seed, tasks=3, **recipe) for seed in (0, 1) for strategy in strategies]
    runs = [dataclasses.replace(run, model=model) for run in runs]
    together = train(*runs)[0]
    for run in runs[1 :: len(runs) // 4]:
        alone = train(run)[0][run.key]
        for k, p in alone.items():
            assert (p - together[run.key][k]).abs().max() <= tolerance * p.abs().max().clamp(min=1), (run.label, k)


def test_a_stack_of_one_takes_the_same_path_as_any():
    runs = [dataclasses.replace(make_run(L2(lam=lam), tasks=3), model=PLAIN) for lam in (0.1, 0.5, 1, 2)]
    ones = train(*runs, largest=1)[0]
    fours = train(*runs, largest=4)[0]
    assert ones.keys() == fours.keys() and len(ones) == 4
    for key, params in ones.items():
        assert all(torch.allclose(p, fours[key][k], rtol=0, atol=1e-10) for k, p in params.items())
    assert not torch.allclose(ones[runs[0].key]["linear1.weight"], ones[runs[3].key]["linear1.weight"], atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("batchnorm", ["update", "freeze-after-first"])
def test_training_equals_a_plain_loop(optimizer, batchnorm):
    """An oracle without stacks, trunks or closed forms: one module, the order drawn here, torch.optim unfused."""
    recipe = {"optimizer": optimizer, "batchnorm": batchnorm, "weight_decay": 0.01, "momentum": 0.9}
    recipe |= {"lr": 0.01 if optimizer == "sgd" else 1e-3}
    runs = [make_run(EWC(lam=20.0), seed=seed, tasks=2, **recipe) for seed in (0, 1, 2)]
    found = train(*runs)[0]
    run, images = runs[1], scenarios.load(runs[1].scenario)[0]
    model = run.model.build((1, 8, 8), 10, seed=1).double()
    anchor = importance = None
    for task in (1, 2):
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
        extra = {"momentum": 0.9} if optimizer == "sgd" else {}
        optimizer_ = make(model.parameters(), lr=run.recipe.lr, weight_decay=0.01, foreach=False, **extra)
        model.train(task == 1 or batchnorm == "update")
        order = run.scenario.pixel_order(task, 1, 64)
        x = (images.train_x if order is None else images.train_x[:, order]).double() / 16
        for epoch in range(2):
            shuffled = torch.randperm(len(x), generator=generator(1, "batches", task, epoch))
            for batch in shuffled[: len(x) // 64 * 64].split(64):
                loss = F.cross_entropy(model(x[batch]), images.train_y[batch])
                if anchor:
                    named = dict(model.named_parameters())
                    loss = loss + 0.5 * 20.0 * sum((importance[k] * (named[k] - anchor[k]) ** 2).sum() for k in named)
                optimizer_.zero_grad()
                loss.backward()
                optimizer_.step()
        if task == 1:
            model.eval()
            anchor = {k: p.detach().clone() for k, p in model.named_parameters()}
            importance = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
            for i in range(len(x)):
                log_p = F.log_softmax(model(x[i : i + 1]), 1)[0, images.train_y[i]]
                for k, g in zip(importance, torch.autograd.grad(log_p, list(model.parameters())), strict=True):
                    importance[k] += g.square() / len(x)
    for k, p in model.named_parameters():
        assert k in UNIDENTIFIED or (p - found[run.key][k]).abs().max() < 1e-9, k


def test_batchnorm_statistics_of_a_stack_equal_those_of_each_network():
    recipe = Recipe(epochs=1, precision="float64")
    solo = [Model("mlp-bn").build((1, 8, 8), 10, seed=seed).double().train() for seed in range(3)]
    learner = learner_of(range(3), recipe)
    learner.model.train()
    torch.manual_seed(0)
    x = torch.rand(3, 20, 1, 8, 8, dtype=torch.float64)
    y = torch.randint(0, 10, (3, 20))
    learner._step(lesson_of(range(3), recipe), batch_of(x, y), torch.empty(3, 0), Naive(), {}, {})
    for r, network in enumerate(solo):
        network(x[r])
        for k, b in network.named_buffers():
            torch.testing.assert_close(learner.buffers[k][r], b, rtol=0, atol=1e-15)


def test_strategies_of_one_seed_see_the_same_start_and_the_same_batches(monkeypatch, step_by_step):
    seen = {}
    inner = Learner._step

    def spy(self, lesson, batch, draws, strategy, state, hparams):
        for r in range(self.runs):
            seen.setdefault((strategy.name, self.runs, r), []).append(batch.id[r].clone())
        return inner(self, lesson, batch, draws, strategy, state, hparams)

    monkeypatch.setattr(Learner, "_step", spy)
    monkeypatch.setattr(plan, "workers_for", lambda device: 1)
    execute(make_run(Naive(), seed=4), make_run(L2(), seed=4), make_run(L2(), seed=5))
    trunk, naive = seen["naive", 2, 0], seen["naive", 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(naive, seen["l2", 2, 0], strict=True))
    assert not torch.equal(naive[0], seen["l2", 2, 1][0]) and not torch.equal(trunk[0], naive[0])


def test_a_diverged_run_is_marked_and_its_neighbours_are_untouched_to_the_bit(monkeypatch):
    # Float32, where λ = 1e30 overflows Adam's second moment and the run would stand still unnoticed.
    good = [make_run(L2(lam=lam), seed=seed, precision="float32") for lam in (0.1, 10) for seed in (0, 1)]
    bad = make_run(L2(lam=1e30), precision="float32")
    mild = make_run(L2(lam=1.0), precision="float32")
    with_bad, without = execute(*good, bad), execute(*good, mild)
    assert with_bad[bad.key].status == "diverged" and without[mild.key].status == "finished"
    for run in good:
        assert with_bad[run.key].status == "finished"
        assert np.array_equal(with_bad[run.key].accuracy, without[run.key].accuracy)
    matrix = with_bad[bad.key].accuracy
    assert np.isfinite(matrix[:2]).all() and np.isnan(matrix[2]).all()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_nan_in_one_run_stays_there(optimizer):
    recipe = Recipe(optimizer=optimizer, iterations=5, batch_size=16, precision="float64")
    lesson = lesson_of(range(3), recipe)

    def trained(poisoned: bool) -> Learner:
        learner = learner_of(range(3), recipe)
        if poisoned:
            with torch.no_grad():
                learner.params["linear1.weight"][1, 0, 0] = torch.nan
        learner.train(lesson, Naive(), {}, {})
        return learner

    clean, poisoned = trained(False), trained(True)
    assert poisoned.diverged.tolist() == [False, True, False] and not clean.diverged.any()
    for k, p in clean.params.items():
        assert torch.equal(p[[0, 2]], poisoned.params[k][[0, 2]]), k
    accuracy = poisoned.accuracy(lesson.feed, 1, lesson.feed.pool.heads.testing(1, 1))
    assert torch.isnan(accuracy).tolist() == [False, True, False]


def test_a_shared_first_task_equals_training_it_apart():
    @dataclass(frozen=True)
    class Apart(L2):
        name: ClassVar[str] = "apart"
        plain_first_task: ClassVar[bool] = False

    shared, apart = make_run(L2(lam=0.7), tasks=3), make_run(Apart(lam=0.7), tasks=3)
    others = [make_run(Naive(), tasks=3), make_run(EWC(), tasks=3, batchnorm="freeze-after-first")]
    results = execute(shared, apart, *others)
    params = train(shared, apart, *others)[0]
    assert results[shared.key].trunk_runs == 3 and results[apart.key].trunk_runs == 1
    np.testing.assert_array_equal(results[shared.key].accuracy, results[apart.key].accuracy)
    for k, p in params[shared.key].items():
        assert torch.allclose(p, params[apart.key][k], rtol=0, atol=1e-12)


def test_the_optimiser_can_be_kept_between_tasks():
    kept, reset = make_run(optimizer_state="keep"), make_run(optimizer_state="reset")
    results = execute(kept, reset)
    assert not np.array_equal(results[kept.key].accuracy[2], results[reset.key].accuracy[2])


def test_a_kept_optimiser_survives_the_branch():
    @dataclass(frozen=True)
    class Apart(Naive):
        name: ClassVar[str] = "apart"
        plain_first_task: ClassVar[bool] = False

    runs = [make_run(cls(), seed=seed, optimizer_state="keep") for cls in (Naive, Apart) for seed in (0, 1)]
    params = train(*runs)[0]
    for seed in (0, 1):
        for k, p in params[runs[seed].key].items():
            assert torch.allclose(p, params[runs[seed + 2].key][k], rtol=0, atol=1e-12), k


def test_lambda_zero_is_naive():
    runs = [make_run(s, tasks=3) for s in (Naive(), L2(lam=0), EWC(lam=0))]
    results = execute(*runs)
    for run in runs[1:]:
        np.testing.assert_array_equal(results[run.key].accuracy, results[runs[0].key].accuracy)


@pytest.mark.parametrize("strategy", [L2(lam=1.0), EWC(lam=300.0), EWC(lam=300.0, estimator="sampled")])
def test_a_protected_run_forgets_less_than_a_naive_one(strategy):
    recipe = {"epochs": 5, "precision": "float32", "batchnorm": "freeze-after-first"}
    naive, protected = make_run(Naive(), **recipe), make_run(strategy, **recipe)
    results = execute(naive, protected)
    forgot = {run: results[run.key].accuracy[1, 0] - results[run.key].accuracy[2, 0] for run in (naive, protected)}
    assert forgot[protected] < forgot[naive] - 0.05


def test_paths_are_followed_step_by_step():
    """A path integral, as SI takes it: its sum over a task is what the parameters moved by, and its gradients the task's."""
    moved = {}

    @dataclass(frozen=True)
    class Path(Strategy):
        name: ClassVar[str] = "path"
        plain_first_task: ClassVar[bool] = False
        lam: float = hyper(1.0)

        def init(self, params, setting):
            zeros = {k: torch.zeros_like(p) for k, p in params.items()}
            return {"moved": zeros, "start": {k: p.clone() for k, p in params.items()}, "work": dict(zeros)}

        def penalty(self, state, params, hparams):
            return hparams["lam"] * sum(p.square().sum() for p in params.values())

        def after_step(self, state, step, hparams):
            delta = {k: step.after[k] - step.before[k] for k in step.after}
            return {
                "start": state["start"],
                "moved": {k: state["moved"][k] + d for k, d in delta.items()},
                "work": {k: state["work"][k] + step.task_gradient[k].abs() for k in delta},
            }

        def consolidate(self, state, params, measured, hparams):
            gap = [(params[k] - state["start"][k] - state["moved"][k]).abs().max() for k in params]
            return {**state, "moved": {k: v * 0 + torch.stack(gap).max() for k, v in state["moved"].items()}}

    inner = harness._consolidate

    def spy(branch, task, site, state, hparams):
        new = inner(branch, task, site, state, hparams)
        moved[len(branch.runs)] = max(float(v.abs().max()) for v in new["moved"].values())
        assert all(v.gt(0).any() for v in new["work"].values())
        return new

    harness_consolidate, harness._consolidate = harness._consolidate, spy
    try:
        results = execute(make_run(Path(), precision="float64"), make_run(Path(lam=0.0)), largest=2)
    finally:
        harness._consolidate = harness_consolidate
    assert max(moved.values()) < 1e-12
    weak, strong = (r.accuracy for r in sorted(results.values(), key=lambda r: r.run.strategy.lam))
    assert not np.array_equal(weak, strong)


def test_evaluation_while_training_changes_nothing_but_the_trace():
    plain, watched = make_run(L2(), tasks=2), make_run(L2(), tasks=2, evaluate_every=10)
    results = execute(plain, watched)
    np.testing.assert_array_equal(results[plain.key].accuracy, results[watched.key].accuracy)
    trace = results[watched.key].trace
    steps = watched.recipe.steps(1437)[1]
    assert [(e.task, e.step) for e in trace] == [(t, s) for t in (1, 2) for s in [*range(10, steps, 10), steps]]
    np.testing.assert_array_equal(trace[-1].accuracy, results[watched.key].accuracy[2])
    assert not results[plain.key].trace


def test_iterations_count_steps_whatever_the_epoch(monkeypatch, step_by_step):
    steps = []
    inner = Learner._step
    monkeypatch.setattr(Learner, "_step", lambda self, *args: steps.append(1) or inner(self, *args))
    execute(make_run(epochs=None, iterations=30, tasks=1))
    assert len(steps) == 30


def test_bfloat16_autocast_learns_about_as_well():
    full, half = (make_run(tasks=1, epochs=5, precision=p) for p in ("float32", "bfloat16"))
    results = execute(full, half)
    assert results[half.key].accuracy[1, 0] > results[full.key].accuracy[1, 0] - 0.03


def test_tf32_is_set_for_products_on_a_gpu_while_a_stack_trains_and_no_longer():
    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before, gpu = flags(), torch.device("cuda")
    for precision, expected in {"tf32": (True, True), "float32": (False, False)}.items():
        with Recipe(epochs=1, precision=precision).products(gpu):
            assert flags() == expected
        assert flags() == before
    with Recipe(epochs=1, precision="tf32").products(CPU):
        assert flags() == before


def test_tf32_is_float32_on_the_cpu():
    full, rounded = (make_run(epochs=1, precision=p) for p in ("float32", "tf32"))
    results = execute(full, rounded)
    np.testing.assert_array_equal(results[full.key].accuracy, results[rounded.key].accuracy)


def test_float32_stacks_agree_with_single_runs_within_half_a_point():
    runs = [make_run(EWC(lam=lam), epochs=5, precision="float32") for lam in (10, 100, 1000)]
    together = execute(*runs)
    alone = execute(runs[1])[runs[1].key].accuracy
    assert abs(alone[2].mean() - together[runs[1].key].accuracy[2].mean()) <= 0.005


class Halves(nn.Module):
    """A layer that puts out two tensors, and something else."""

    def forward(self, x):
        return *x.chunk(2, dim=-1), None


class TwoParts(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.linear, self.halves = nn.Linear(torch.Size(shape).numel(), 2 * outputs), Halves()

    def forward(self, x):
        gate, value, _ = self.halves(self.linear(x.flatten(1)))
        return gate.sigmoid() * value


class Uncalled(nn.Module):
    """A network that calls no layer, but takes its parameters from one."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.linear = nn.Linear(torch.Size(shape).numel(), outputs)

    def forward(self, x):
        return F.linear(x.flatten(1), self.linear.weight, self.linear.bias)


@pytest.mark.parametrize("network", [TwoParts, Uncalled])
def test_what_can_be_stacked_can_be_trained_whatever_its_layers_put_out(network):
    model = resolve({"name": f"{__name__}:{network.__name__}"})
    require_stackable(model, (1, 8, 8), 10)
    (result,) = execute(dataclasses.replace(make_run(EWC(lam=1)), model=model)).values()
    assert result.status == "finished" and result.accuracy[1, 0] > 0.3  # chance is 0.1


def test_a_result_is_the_same_in_another_process():
    code = (
        "from tests.conftest import execute, make_run; from strategies import EWC; "
        "r = make_run(EWC(estimator='sampled', fisher_samples=100), seed=7); print(execute(r)[r.key].accuracy.tolist())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    run = make_run(EWC(estimator="sampled", fisher_samples=100), seed=7)
    assert str(execute(run)[run.key].accuracy.tolist()) == runs[0].strip()


def test_giving_up_stops_the_work():
    run = make_run(epochs=500)
    tasks = scenarios.load(run.scenario)
    made = plan.make([run, make_run(epochs=500, seed=1)], tasks, CPU)

    class Impatient(harness.Silent):
        def epoch_done(self, *args):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(schedule.execute(made, tasks, CPU, Impatient()))


def test_parameters_lie_in_memory_as_their_gradients_do():
    """The fused optimisers would copy, or misread, anything else."""
    recipe = Recipe(epochs=1)
    learner = learner_of(range(3), recipe)
    batch = batch_of(torch.rand(3, 8, 1, 8, 8), torch.zeros(3, 8, dtype=torch.int64))
    before = {k: p.detach().clone() for k, p in learner.params.items()}
    learner._step(lesson_of(range(3), recipe), batch, torch.empty(3, 0), Naive(), {}, {})
    for k, p in learner.params.items():
        flat = p.detach().view(-1)
        assert flat.is_contiguous() and flat.data_ptr() == p.data_ptr() and learner.flat[k].grad is not None
        assert not torch.equal(p, before[k])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_sets_for_itself_does_not_reach_the_caller(workers):
    before = torch.get_num_threads()
    with threads(workers, threading.Event()) as start:
        flushed = [started.result() for started in [start(lambda: sys.float_info.min / 2) for _ in range(2)]]
    assert flushed == [0.0, 0.0] and sys.float_info.min / 2 > 0
    assert torch.get_num_threads() == before


def test_stacks_for_an_accelerator_train_in_a_thread_of_their_own():
    site = SimpleNamespace(device=torch.device("cuda"), stop=threading.Event(), load=lambda: None)
    with Local().open(site, 1) as submit:
        ticket = submit(lambda site: (None, threading.current_thread()))
        assert ticket.told.result() is not threading.current_thread()


def test_a_state_that_keeps_what_it_was_handed_is_not_changed_by_training(step_by_step):
    states = []

    @dataclass(frozen=True)
    class Keeps(Strategy):
        name: ClassVar[str] = "keeps"

        def init(self, params, setting):
            return {"start": params, "latest": params}

        def after_step(self, state, step, hparams):
            states.append((state["latest"], step.before))
            return {"start": state["start"], "latest": step.after}

        def consolidate(self, state, params, measured, hparams):
            states.append((state["start"], None))
            return state

    run = make_run(Keeps(), epochs=None, iterations=5)
    assert run.trunk == ""  # a path is followed from the first task on
    execute(run)
    start = next(kept for kept, before in states if before is None)
    first = dict(Model("mlp-bn").build((1, 8, 8), 10, seed=0).named_parameters())
    assert all(torch.equal(start[k], p.detach().double()) for k, p in first.items())
    paths = [(latest, before) for latest, before in states if before is not None]
    assert len(paths) == 10
    assert all(torch.equal(latest[k], before[k]) for latest, before in paths for k in before)


def test_results_are_kept_the_moment_a_stack_ends_whatever_the_caller_does():
    runs = [make_run(L2(lam=lam), seed=seed) for lam in (1, 2) for seed in (0, 1)]
    tasks = scenarios.load(runs[0].scenario)
    kept = []
    stacks = schedule.execute(plan.make(runs, tasks, CPU), tasks, CPU, keep=kept.extend)
    next(stacks)
    time.sleep(3)  # a caller that is slow to ask for the next
    assert len(kept) == 4
    stacks.close()


def test_results_of_an_earlier_version_of_ones_own_strategy_are_not_taken_for_new_ones(monkeypatch):
    mine = make_run(type("Mine", (Naive,), {"name": "mine"})())
    before = dataclasses.replace(mine).key
    monkeypatch.setattr("strategies.imports.inspect.getsource", lambda module: "another version")
    assert dataclasses.replace(mine).key != before
    assert dataclasses.replace(make_run()).key == make_run().key


@pytest.mark.parametrize("strategy", [EWC(estimator="exact"), EWCKfac(estimator="sampled")], ids=lambda s: s.name)
def test_a_stack_of_diverged_runs_ends_as_diverged_whatever_is_measured(strategy):
    found = execute(make_run(strategy, tasks=3, optimizer="sgd", lr=1e200))
    assert [r.status for r in found.values()] == ["diverged"]


def test_a_run_on_its_way_to_infinity_leaves_its_neighbours_alone():
    recipe = {"tasks": 3, "optimizer": "sgd", "lr": 0.05, "precision": "float32"}
    quiet, wild = (make_run(EWC(estimator="exact", lam=lam), **recipe) for lam in (1.0, 1e30))
    found = execute(quiet, wild)
    assert (found[quiet.key].status, found[wild.key].status) == ("finished", "diverged")


@dataclass(frozen=True)
class OtherLoss(EWC):
    """Changes more than what is important."""

    def loss(self, net, batch, recalled, state, hparams):
        return Loss(2 * super().loss(net, batch, recalled, state, hparams).value)


def test_a_quadratic_strategy_with_another_loss_trains_with_it_beside_others():
    plain, other = make_run(EWC(lam=1.0), tasks=2), make_run(OtherLoss(lam=1.0), tasks=2)
    together, alone = execute(plain, other), execute(other)
    assert np.array_equal(together[other.key].accuracy, alone[other.key].accuracy)
    assert OtherLoss().family() != EWC().family()


@dataclass(frozen=True)
class Spoils(L2):
    """Writes into what it is handed."""

    def measure(self, model, task):
        task.y.fill_(0)
        task.x.zero_()
        return super().measure(model, task)


def test_a_strategy_that_writes_into_its_task_spoils_nobody_elses_data():
    naive = make_run(Naive(), tasks=3)
    alone, beside = execute(naive), execute(make_run(Spoils(), tasks=3), naive)
    assert np.array_equal(alone[naive.key].accuracy, beside[naive.key].accuracy)


@dataclass(frozen=True)
class PerSampleLoss(Naive):
    def loss(self, net, batch, recalled, state, hparams):
        return Loss(cross_entropy(net.logits(batch.x), batch))


@dataclass(frozen=True)
class Lopsided(L2):
    def penalty_gradient(self, state, params, hparams):
        return {k: g[None] for k, g in super().penalty_gradient(state, params, hparams).items()}


@dataclass(frozen=True)
class Raises(Naive):
    def loss(self, net, batch, recalled, state, hparams):
        raise KeyError("nope")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (PerSampleLoss(), r"strategy 'naive', loss: expected a Loss with a value of shape \(\), got .* shape \(64,\)"),
        (Lopsided(), r"penalty_gradient: 'linear1.weight': expected shape \(256, 64\), got \(1, 256, 64\)"),
        (Raises(), r"strategy 'naive': KeyError: 'nope'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Strategy) else "",
)
def test_what_a_strategy_gets_wrong_is_said_by_name_with_what_was_expected(strategy, message):
    with pytest.raises(ValueError, match=message):
        execute(make_run(strategy, tasks=2), make_run(strategy, tasks=2, seed=1))


def test_pruned_runs_leave_the_stack_and_the_others_are_what_they_were():
    runs = [make_run(EWC(lam=lam), seed=seed, tasks=4) for lam in (1.0, 10.0, 1000.0) for seed in (0, 1)]
    tasks = scenarios.load(runs[0].scenario)
    sizes = []

    def prune(task, alive, accuracy):
        sizes.append((task, len(alive), accuracy.shape[1:]))
        return [run.strategy.lam < (10 if task == 2 else 100) for run in alive]

    def all_of(prune=None):
        made = plan.make(runs, tasks, CPU, largest=6)
        kept = []
        found = {r.run.key: r for s in schedule.execute(made, tasks, CPU, keep=kept.extend, prune=prune) for r in s}
        return found, kept

    (full, _), (found, kept) = all_of(), all_of(prune)
    assert {run.strategy.lam: found[run.key].status for run in runs} == {
        1.0: "pruned",
        10.0: "pruned",
        1000.0: "finished",
    }
    assert {r.run.strategy.lam for r in kept} == {1000.0}
    assert {(task, shape) for task, _, shape in sizes} == {(2, (3, 4)), (3, (4, 4))}
    for run in runs:
        seen = ~np.isnan(found[run.key].accuracy)
        assert seen.sum() == {1.0: 12, 10.0: 16, 1000.0: 20}[run.strategy.lam]
        np.testing.assert_array_equal(found[run.key].accuracy[seen], full[run.key].accuracy[seen])
