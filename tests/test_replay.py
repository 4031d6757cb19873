"""The memory against plain loops and in distribution, and the strategies that replay from it against their formulas."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from strategies import conformance, memory
from strategies.agem import AGEM
from strategies.base import Batch, Network, Params, Setting, State, check_state
from strategies.derpp import DERpp
from strategies.er import ER
from strategies.frozen import Frozen
from strategies.joint import Joint
from strategies.memory import Policy, Replay
from strategies.naive import Naive

CPU = torch.device("cpu")
FLOAT = torch.float64
POLICIES: tuple[Policy, ...] = ("reservoir", "balanced")
policies = pytest.mark.parametrize("policy", POLICIES)
LAST = float(np.nextafter(1.0, 0.0))
"""The largest number below 1."""


# -- streams of samples: each is its id, from which all else follows ---------------------------------------------------


def keys(samples: int, seed: int = 0) -> Tensor:
    return torch.rand(samples, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def presented(ids: list[int], key: Tensor, y: Tensor, *, task: int = 1, shown: float = 0.0) -> tuple[Batch, Params]:
    """A batch, and logits that say which sample they belong to and when it was shown."""
    i = torch.tensor(ids)
    logits = torch.stack([i.to(FLOAT), torch.full((len(ids),), shown, dtype=FLOAT)], 1)
    batch = Batch(
        logits[:, :1], y[i], torch.ones(len(ids), 2, dtype=torch.bool), torch.full((len(ids),), task), i, key[i], {}
    )
    return batch, {"logits": logits}


def empty(size: int) -> Params:
    return {**memory.empty(size, CPU), "logits": torch.zeros(size, 2, dtype=FLOAT)}


def streamed(size: int, stream: list[list[int]], key: Tensor, y: Tensor, policy: Policy) -> Params:
    slots = empty(size)
    for step, ids in enumerate(stream):
        slots = memory.update(slots, *presented(ids, key, y, shown=float(step)), policy)
    return slots


def by_the_rule(size: int, stream: list[list[int]], key: Tensor, y: Tensor, policy: Policy) -> list[int]:
    """The ids kept of everything ever seen, in order: the policy as the docstring says it, in plain Python."""
    seen = sorted({i for ids in stream for i in ids}, key=lambda i: float(key[i]))
    if policy == "balanced":
        earlier = {i: sum(1 for j in seen[:n] if y[j] == y[i]) for n, i in enumerate(seen)}
        seen.sort(key=lambda i: earlier[i])  # stable: by key within a rank
    return seen[:size]


def kept(slots: Params) -> list[int]:
    return [i for i in slots["id"].tolist() if i >= 0]


# -- what a memory keeps -----------------------------------------------------------------------------------------------


@policies
@given(
    stream=st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=6), min_size=1, max_size=8),
    size=st.integers(1, 12),
    classes=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_a_memory_fed_in_batches_keeps_what_the_rule_keeps_of_everything_seen(policy, stream, size, classes, seed):
    key, y = keys(20, seed), torch.arange(20) * 7 % classes
    slots = streamed(size, stream, key, y, policy)
    expected = by_the_rule(size, stream, key, y, policy)
    blank = size - len(expected)
    assert slots["id"].tolist() == expected + [-1] * blank
    assert slots["key"].tolist() == [*key[expected].tolist(), *[math.inf] * blank]
    assert slots["y"].tolist() == [*y[expected].tolist(), *[0] * blank]
    # The logits are the sample's own, of its latest presentation.
    shown = [max(step for step, ids in enumerate(stream) if i in ids) for i in expected]
    assert slots["logits"].tolist() == [[i, s] for i, s in zip(expected, shown, strict=True)] + [[0, 0]] * blank


def test_a_sample_shown_twice_in_one_batch_is_kept_once_as_it_was_last():
    batch, extras = presented([3, 1, 3], keys(5), torch.zeros(5, dtype=torch.int64))
    extras["logits"][:, 1] = torch.arange(3)
    slots = memory.update(empty(4), batch, extras, "reservoir")
    assert sorted(kept(slots)) == [1, 3]
    assert slots["logits"][slots["id"] == 3].tolist() == [[3, 2]]


@policies
def test_the_order_of_the_stream_does_not_matter(policy):
    key, y = keys(40), torch.arange(40) % 3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    one = streamed(10, [list(range(n, n + 8)) for n in range(0, 40, 8)], key, y, policy)
    other = streamed(10, [order[n : n + 5] for n in range(0, 40, 5)], key, y, policy)
    assert all(torch.equal(one[k], other[k]) for k in memory.FIELDS)


def test_the_reservoir_keeps_every_sample_of_the_stream_equally_often():
    runs, samples, size, classes = 4000, 30, 7, torch.zeros(30, dtype=torch.int64)

    def run(key: Tensor) -> Tensor:
        slots = memory.empty(size, CPU)
        for epoch in range(2):  # a second epoch shows nothing new
            for n in range(0, samples, 6):
                batch, _ = presented([(n + i + 3 * epoch) % samples for i in range(6)], key, classes)
                slots = memory.update(slots, batch, {}, "reservoir")
        return slots["id"]

    found = vmap(run)(torch.rand(runs, samples, generator=torch.Generator().manual_seed(0), dtype=FLOAT))
    count = np.bincount(found.flatten().numpy(), minlength=samples)
    p = size / samples
    # Drawn without replacement: the counts of one run are correlated, which the factor (n-1)/n makes good.
    chi2 = ((count - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (samples - 1) / samples
    assert 1e-3 < stats.chi2.sf(chi2, samples - 1) < 1 - 1e-3


def test_balanced_classes_differ_by_at_most_one_and_small_classes_are_kept_whole():
    key, y = keys(100), torch.tensor([0] * 50 + [1] * 3 + [2] * 40 + [3] * 7)
    slots = streamed(31, [list(range(n, n + 10)) for n in range(0, 100, 10)], key, y, "balanced")
    count = Counter(y[kept(slots)].tolist())
    assert sum(count.values()) == 31
    assert (count[1], count[3]) == (3, 7)
    assert {count[0], count[2]} == {10, 11}


def test_a_key_close_to_one_does_not_pass_for_the_next_class():
    key, y = torch.tensor([0.0, LAST, 0.1, 0.2], dtype=FLOAT), torch.tensor([1, 1, 2, 2])
    assert float(1 + key[1]) == 2.0
    assert kept(streamed(2, [[0, 1, 2, 3]], key, y, "balanced")) == [0, 2]


# -- what it recalls ---------------------------------------------------------------------------------------------------


def filled(tasks: list[int], size: int) -> Params:
    """A memory whose slot n holds sample 10·n of the n-th task listed."""
    slots = memory.empty(size, CPU)
    n = len(tasks)
    slots["id"][:n] = 10 * torch.arange(n)
    slots["key"][:n] = torch.arange(n) / n
    slots["task"][:n] = torch.tensor(tasks)
    return slots


def spread(count: int) -> Tensor:
    """Evenly spaced draws: each choice of n gets count / n of them, exactly."""
    return (torch.arange(count, dtype=FLOAT) + 0.5) / count


def random(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=FLOAT)


def test_draws_are_uniform_over_filled_slots():
    slots = filled([1, 1, 2, 3, 3], size=8)
    assert torch.bincount(memory.anywhere(slots, spread(500))).tolist() == [100] * 5
    assert stats.chisquare(torch.bincount(memory.anywhere(slots, random(5000)))).pvalue > 1e-3


def test_draws_are_equal_over_earlier_tasks_and_uniform_within_each():
    slots = filled([2, 1, 4, 1, 2, 1, 5, 5], size=12)  # task 3 is not there, task 5 is in training
    expected = torch.tensor([60, 40, 120, 40, 60, 40])
    assert torch.equal(torch.bincount(memory.earlier(slots, spread(360), 5)), expected)
    count = torch.bincount(memory.earlier(slots, random(7200), 5))
    assert stats.chisquare(count, 20 * expected).pvalue > 1e-3


@pytest.mark.parametrize("tasks", [[1], [1, 1, 1], [2, 1, 1, 2, 3], [3, 1, 2] * 7, [1] * 1000])
def test_the_smallest_and_the_largest_draw_stay_within_the_memory(tasks):
    slots, edges = filled(tasks, size=len(tasks) + 2), torch.tensor([0.0, LAST], dtype=FLOAT)
    assert memory.anywhere(slots, edges).tolist() == [0, len(tasks) - 1]
    last = max(tasks)
    ends = [tasks.index(1), len(tasks) - 1 - tasks[::-1].index(last)]
    assert memory.earlier(slots, edges, last + 1).tolist() == ends


@pytest.mark.parametrize(("tasks", "training"), [([], 1), ([], 3), ([1, 1], 1), ([3, 3], 3)])
def test_with_nothing_to_draw_the_id_is_minus_one(tasks, training):
    slots = filled(tasks, size=4)
    found = memory.read(slots, memory.earlier(slots, spread(6), training))
    assert found["id"].tolist() == [-1] * 6
    if not tasks:
        assert memory.read(slots, memory.anywhere(slots, spread(6)))["id"].tolist() == [-1] * 6


def test_reading_gives_the_extras_of_the_slots_drawn_and_zeros_for_none():
    slots = {**filled([1, 1, 2], size=4), "logits": torch.arange(8.0).view(4, 2) + 1}
    found = memory.read(slots, torch.tensor([2, -1, 0]))
    assert found.keys() == {"id", "logits"}
    assert found["id"].tolist() == [20, -1, 0]
    assert found["logits"].tolist() == [[5, 6], [0, 0], [1, 2]]


@policies
def test_a_stack_of_memories_is_each_memory_by_itself(policy):
    y = torch.arange(12) % 3

    def run(key: Tensor, draws: Tensor) -> dict[str, Any]:
        slots = empty(5)
        for task, ids in enumerate([[0, 1, 2, 3], [4, 5, 6, 4], [7, 8, 1, 11]]):
            slots = memory.update(slots, *presented(ids, key, y, task=task + 1), policy)
        drawn = [memory.anywhere(slots, draws), memory.earlier(slots, draws, 3)]
        return {"slots": slots, "read": [memory.read(slots, index) for index in drawn]}

    many, draws = torch.stack([keys(12, s) for s in range(4)]), torch.stack([keys(9, s + 9) for s in range(4)])
    alone = tree_map(lambda *leaves: torch.stack(leaves), *[run(k, d) for k, d in zip(many, draws, strict=True)])
    together = vmap(run)(many, draws)
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), together, alone)


# -- strategies: a linear network, C = 3, whose outputs are written out -------------------------------------------------


def linear() -> Params:
    torch.manual_seed(0)
    return {"weight": torch.randn(3, 2, dtype=FLOAT), "bias": torch.randn(3, dtype=FLOAT)}


def network(params: Params, task: int) -> Network:
    def logits(x: Tensor) -> Tensor:
        return x @ params["weight"].T + params["bias"]

    return Network(logits, lambda old, x: x, task, torch.zeros(0, 3, dtype=torch.bool))


def samples(count: int, seed: int, *, task: int, ids: list[int] | None = None, first: int = 0) -> Batch:
    """Samples of which only the outputs from `first` compete; those of id -1 are there and must not count."""
    g = torch.Generator().manual_seed(seed)
    active = (torch.arange(3) >= first).expand(count, 3)
    x, y = 3 * torch.randn(count, 2, generator=g, dtype=FLOAT), torch.randint(first, 3, (count,), generator=g)
    i = torch.tensor(ids if ids is not None else range(100 * seed, 100 * seed + count))
    extras = {"logits": torch.randn(count, 3, generator=g, dtype=FLOAT)}
    return Batch(x, y, active, torch.full((count,), task), i, torch.rand(count, generator=g, dtype=FLOAT), extras)


def entropy(params: Params, batch: Batch, i: int) -> float:
    """Cross-entropy of sample i, an output at a time."""
    z = outputs(params, batch, i)
    competing = [c for c in range(3) if batch.active[i, c]]
    return math.log(sum(math.exp(z[c]) for c in competing)) - z[int(batch.y[i])]


def outputs(params: Params, batch: Batch, i: int) -> list[float]:
    w, b, x = params["weight"].tolist(), params["bias"].tolist(), batch.x[i].tolist()
    return [b[c] + sum(w[c][d] * x[d] for d in range(2)) for c in range(3)]


def average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def weights_of(**values: float) -> Params:
    return {k: torch.tensor(v, dtype=FLOAT) for k, v in values.items()}


def setting() -> Setting:
    return Setting(tasks=3, outputs=3, buffers={})


REPLAYING: list[Replay] = [
    ER(memory=6, replay_batch=4),
    ER(memory=6, replay_batch=4, share="task", policy="balanced"),
    DERpp(memory=6, replay_batch=4),
    AGEM(memory=6, replay_batch=4),
]
replaying = pytest.mark.parametrize("strategy", REPLAYING, ids=lambda s: f"{s.name}-{s.options().get('share', '')}")


@pytest.mark.parametrize("task", [1, 2, 4])
@pytest.mark.parametrize("ids", [[7, 8, 9], [7, -1, 9], [-1, -1, -1]])
def test_er_gives_every_sample_the_same_weight(ids, task):
    params, new, old = linear(), samples(4, 1, task=task), samples(3, 2, task=1, ids=ids, first=1)
    found = ER(replay_batch=3).loss(network(params, task), new, old, {}, {}).value
    counted = [entropy(params, new, i) for i in range(4)] + [entropy(params, old, i) for i in range(3) if ids[i] >= 0]
    assert float(found) == pytest.approx(average(counted), rel=1e-12)


@pytest.mark.parametrize("task", [1, 2, 4])
@pytest.mark.parametrize("ids", [[7, 8, 9], [7, -1, 9]])
def test_er_by_task_gives_every_task_so_far_the_same_weight(ids, task):
    params, new, old = linear(), samples(4, 1, task=task), samples(3, 2, task=1, ids=ids, first=1)
    found = ER(replay_batch=3, share="task").loss(network(params, task), new, old, {}, {}).value
    current = average([entropy(params, new, i) for i in range(4)])
    replayed = average([entropy(params, old, i) for i in range(3) if ids[i] >= 0])
    assert float(found) == pytest.approx(current / task + (task - 1) / task * replayed, rel=1e-12)


@pytest.mark.parametrize("share", ["sample", "task"])
def test_er_with_nothing_recalled_is_naive(share):
    params, new, old = linear(), samples(4, 1, task=3), samples(3, 2, task=1, ids=[-1, -1, -1])

    def loss(params: Params) -> Tensor:
        return ER(replay_batch=3, share=share).loss(network(params, 3), new, old, {}, {}).value

    def naive(params: Params) -> Tensor:
        return Naive().loss(network(params, 3), new, None, {}, {}).value

    found, expected = grad(loss)(params), grad(naive)(params)
    assert all(torch.allclose(found[k], g, rtol=1e-12) for k, g in expected.items())


@pytest.mark.parametrize("ids", [[3, 4, 5, 6], [3, -1, -1, 6], [-1, -1, -1, -1]])
def test_derpp_is_the_formula_written_out_in_loops(ids):
    params, new, old = linear(), samples(3, 1, task=2), samples(4, 2, task=1, ids=ids, first=1)
    strategy = DERpp(replay_batch=2)
    assert strategy.recalls == 4
    loss = strategy.loss(network(params, 2), new, old, {}, weights_of(alpha=0.3, beta=0.7))
    expected = average([entropy(params, new, i) for i in range(3)])
    distances = [
        average(
            [(z - kept) ** 2 for z, kept in zip(outputs(params, old, i), old.kept["logits"][i].tolist(), strict=True)]
        )
        for i in (0, 1)
        if ids[i] >= 0
    ]
    labelled = [entropy(params, old, i) for i in (2, 3) if ids[i] >= 0]
    expected += 0.3 * average(distances) if distances else 0
    expected += 0.7 * average(labelled) if labelled else 0
    assert float(loss.value) == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(loss.seen["logits"], torch.tensor([outputs(params, new, i) for i in range(3)], dtype=FLOAT))


def test_derpp_with_alpha_and_beta_zero_is_naive():
    params, new, old = linear(), samples(4, 1, task=2), samples(6, 2, task=1)

    def slope(strategy: DERpp | Naive, recalled: Batch | None) -> Params:
        hparams = weights_of(alpha=0.0, beta=0.0)
        return grad(lambda p: strategy.loss(network(p, 2), new, recalled, {}, hparams).value)(params)

    found, expected = slope(DERpp(replay_batch=3), old), slope(Naive(), None)
    assert all(torch.equal(found[k], g) for k, g in expected.items())


def test_er_recalls_from_the_whole_memory_and_by_task_from_earlier_tasks_alone():
    state = {"memory": filled([1, 2, 2, 3, 3], size=8)}
    found = [ER(share=share).recall(state, 3, spread(100), {})["id"] for share in ("sample", "task")]
    assert [sorted(Counter(ids.tolist()).items()) for ids in found] == [
        [(0, 20), (10, 20), (20, 20), (30, 20), (40, 20)],
        [(0, 50), (10, 25), (20, 25)],
    ]


def test_derpp_recalls_the_logits_it_saw_last():
    strategy, new = DERpp(memory=8, replay_batch=8), samples(4, 1, task=1)
    state = strategy.init(linear(), setting())
    for shown in (torch.zeros(4, 3, dtype=FLOAT), new.kept["logits"]):
        state = strategy.observe(state, new, {"logits": shown}, {})
    found = strategy.recall(state, 1, spread(16), {})
    for i, row in zip(found["id"].tolist(), found["logits"], strict=True):
        assert torch.equal(row, new.kept["logits"][new.id.tolist().index(i)])
    assert set(found["id"].tolist()) == set(new.id.tolist())


# -- A-GEM -------------------------------------------------------------------------------------------------------------


def split(vector: list[float]) -> Params:
    return {"a": torch.tensor(vector[:2], dtype=FLOAT), "b": torch.tensor([vector[2:]], dtype=FLOAT)}


def joined(params: Params) -> np.ndarray:
    return np.concatenate([params["a"].numpy().ravel(), params["b"].numpy().ravel()])


CONFLICT, AGREEMENT, NONE = [1.0, -4.0, -2.0, 0.5], [1.0, 1.0, 3.0, 0.0], [0.0] * 4


def test_agem_takes_out_what_conflicts_with_the_reference():
    g, r = np.array([1.0, 2.0, 3.0, -1.0]), np.array(CONFLICT)
    assert g @ r < 0
    found = joined(AGEM().combine(split(g.tolist()), split(CONFLICT), {}))
    np.testing.assert_allclose(found, g - (g @ r) / (r @ r) * r, rtol=1e-12)
    assert abs(found @ r) < 1e-12


def test_agem_conflict_is_judged_over_all_parameters_together():
    # In `a` the two disagree, over everything they do not.
    gradient, reference = split([-1.0, 0.0, 2.0, 0.0]), split([1.0, 0.0, 1.0, 0.0])
    found = AGEM().combine(gradient, reference, {})
    assert all(torch.equal(found[k], g) for k, g in gradient.items())


@pytest.mark.parametrize("reference", [AGREEMENT, NONE], ids=["agreement", "no reference"])
def test_agem_follows_the_gradient_where_nothing_conflicts(reference):
    gradient = split([1.0, 2.0, 3.0, -1.0])
    found = AGEM().combine(gradient, split(reference), {})
    assert all(torch.equal(found[k], g) for k, g in gradient.items())
    assert all(found[k] is not g for k, g in gradient.items())


def test_agem_projects_each_run_of_a_stack_by_itself():
    gradient, references = split([1.0, 2.0, 3.0, -1.0]), [split(r) for r in (CONFLICT, AGREEMENT, NONE)]
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *references)
    together = vmap(lambda r: AGEM().combine(gradient, r, {}))(stacked)
    for run, reference in enumerate(references):
        alone = AGEM().combine(gradient, reference, {})
        assert all(torch.equal(together[k][run], v) for k, v in alone.items())


def test_agem_reference_is_the_mean_over_the_samples_that_were_recalled():
    params, old = linear(), samples(5, 2, task=1, ids=[4, -1, -1, 7, -1], first=1)
    found = AGEM(replay_batch=5).reference(network(params, 3), old, {}, {})
    assert found is not None
    assert float(found) == pytest.approx(average([entropy(params, old, i) for i in (0, 3)]), rel=1e-12)


def test_agem_has_no_reference_while_the_first_task_trains():
    strategy, new = AGEM(memory=8, replay_batch=4), samples(4, 1, task=1)
    state = strategy.observe(strategy.init(linear(), setting()), new, {}, {})
    assert strategy.recall(state, 1, spread(4), {})["id"].tolist() == [-1] * 4
    assert strategy.reference(network(linear(), 1), new, {}, {}) is None


# -- all that replay ---------------------------------------------------------------------------------------------------


def two_tasks() -> Batch:
    """Twelve samples of each of two tasks."""
    both = tree_map(lambda *leaves: torch.cat(leaves), *[samples(12, t, task=t) for t in (1, 2)])
    return both._replace(id=torch.arange(24))


def trained(strategy: Replay, params: Params, data: Batch, draws: Tensor, shift: Tensor) -> tuple[Params, State]:
    """Three steps on each task, as a harness would take them; runs of another shift have other samples and keys."""
    data = data._replace(x=data.x + shift, key=(data.key + shift) % 1)
    hparams = weights_of(**{k: getattr(strategy, k) for k in strategy.hyperparameters()})
    begun = state = strategy.init(params, setting())
    for step in range(6):
        task = 1 + step // 3
        batch = Batch(*(v[4 * step : 4 * step + 4] for v in data[:-1]), {})
        wanted = dict(strategy.recall(state, task, draws[step], hparams))
        at = wanted["id"].clamp(min=0)
        old = Batch(*(v[at] for v in data[:-1]), wanted)._replace(id=wanted.pop("id"))
        params, seen = stepped(strategy, task, params, batch, old, state, hparams)
        state = strategy.observe(state, batch, seen, hparams)
        check_state(strategy.name, "init", begun, state)
    return params, state


def stepped(
    strategy: Replay, task: int, params: Params, batch: Batch, old: Batch, state: State, hparams: Params
) -> tuple[Params, Params]:
    """Parameters after a step of gradient descent, and what was seen."""

    def loss(params: Params) -> tuple[Tensor, Params]:
        found = strategy.loss(network(params, task), batch, old, state, hparams)
        return found.value, found.seen or {}

    gradient, seen = grad(loss, has_aux=True)(params)
    if strategy.overrides("combine") and task > 1:
        reference = grad(lambda p: strategy.reference(network(p, task), old, state, hparams))(params)
        gradient = strategy.combine(gradient, reference, hparams)
    return {k: p - 0.1 * gradient[k] for k, p in params.items()}, seen


@replaying
def test_a_stack_of_replaying_runs_is_each_run_by_itself(strategy):
    params, data = linear(), two_tasks()
    draws = torch.stack([keys(6 * strategy.recalls, s).view(6, -1) for s in range(3)])
    shifts = torch.tensor([0.0, 0.2, 0.7], dtype=FLOAT)
    together = vmap(lambda d, f: trained(strategy, params, data, d, f))(draws, shifts)
    alone = [trained(strategy, params, data, d, f) for d, f in zip(draws, shifts, strict=True)]
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *alone)
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12), together, stacked)


@replaying
def test_what_is_learned_depends_on_what_is_recalled_and_on_nothing_else(strategy):
    draws, none = keys(6 * strategy.recalls).view(6, -1), torch.zeros((), dtype=FLOAT)
    one, again, other = (trained(strategy, linear(), two_tasks(), d, none)[0] for d in (draws, draws, 1 - draws))
    assert torch.equal(one["weight"], again["weight"])
    assert not torch.allclose(one["weight"], other["weight"])


@replaying
def test_an_observed_batch_is_not_written_to(strategy):
    state, new = strategy.init(linear(), setting()), samples(8, 1, task=1)
    before = tree_map(torch.clone, (state, new))
    after = strategy.observe(state, new, new.kept, {})
    check_state(strategy.name, "observe", state, after)
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), (state, new), before)


def test_a_strategy_with_a_memory_watches_the_first_task_itself():
    assert not any(cls.shares_first_task() for cls in (ER, DERpp, AGEM))


def test_recalled_samples_are_asked_for_by_name():
    with pytest.raises(ValueError, match="expected recalled samples, got None"):
        ER().loss(network(linear(), 2), samples(4, 1, task=2), None, {}, {})


# -- the bounds --------------------------------------------------------------------------------------------------------


def test_frozen_learns_the_first_task_only():
    assert [Frozen().learns(task) for task in (1, 2, 3)] == [True, False, False]
    assert Frozen.shares_first_task()


def test_joint_trains_on_every_task_so_far_and_restarts_where_retrained():
    assert [list(Joint().trains_on(task)) for task in (1, 2, 3)] == [[1], [1, 2], [1, 2, 3]]
    assert [Joint().restarts(task) for task in (1, 2, 3)] == [False, True, True]
    assert not any(Joint(mode="continued").restarts(task) for task in (1, 2, 3))
    assert Joint.shares_first_task()


@dataclass(frozen=True)
class WithTeacher(ER):
    """A subclass that keeps something beside the memory."""

    def init(self, params, setting):
        return {**super().init(params, setting), "teacher": {k: p.clone() for k, p in params.items()}}


def test_a_subclass_may_keep_more_in_the_state_of_a_replay_strategy():
    for case in conformance.cases(WithTeacher):
        if case.check.__name__ in {"the_state_keeps_its_structure", "arguments_are_never_written_to"}:
            case.run()
