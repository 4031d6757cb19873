"""What a finished task made important: `measure` of a strategy, for as many runs of a stack at once as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmark.blame import blamed
from benchmark.feed import Feed
from benchmark.keys import generator
from benchmark.learner import Learner, check_like
from benchmark.runs import Run
from strategies.base import Params, Strategy
from strategies.persample import LEAST


def measure(
    runs: Sequence[Run], learner: Learner, feed: Feed, task: int, hear: Callable[[int], None] = lambda done: None
) -> Params:
    """What `Strategy.measure` says of each run, stacked; NaN for diverged runs, 0 where it is no float.

    Runs that branched off one trunk and measure alike are measured once.

    Args:
        runs: of the stack.
        learner: of the stack, not all of whose runs have diverged.
        feed: of the stack.
        task: just finished.
        hear: told how many runs are done, before the next; what it raises ends all.
    """
    if not any(runs[0].strategy.overrides(method) for method in ("measure", "measure_stack")):
        return {}
    diverged, result, done = learner.diverged.tolist(), Params(), 0
    kinds = _kinds(runs, task)
    for strategy, alike in kinds:
        at_once = max(learner.evaluated_at_once // LEAST, 1) if strategy.measures_stacks() else 1
        for start in range(0, len(alike), at_once):
            some = alike[start : start + at_once]
            if not all(diverged[rows[0]] for rows in some):
                hear(done)
                first = runs[some[0][0]]
                with blamed(first):
                    found = _measured(strategy, runs, learner, feed, task, [rows[0] for rows in some])
                if len(kinds) > 1:
                    # Strategies that share a stack are quadratic penalties: a weight a parameter, or else what one of
                    # them measures would be filled up from another's.
                    check_like(first.strategy_name, "measure", learner.params, found)
                result = result or {k: v.new_zeros(len(runs), *v.shape[1:]) for k, v in found.items()}
                for k, v in found.items():
                    for rows, own in zip(some, v, strict=True):
                        result[k][rows] = own
            done += sum(map(len, some))
    for v in result.values():
        v[learner.diverged] = torch.nan if v.is_floating_point() else 0
    return result


def _kinds(runs: Sequence[Run], task: int) -> list[tuple[Strategy, list[list[int]]]]:
    """Places of the runs: by how they measure, and of those the ones that measure the same."""
    kinds: dict[object, tuple[Strategy, dict[object, list[int]]]] = {}
    for r, run in enumerate(runs):
        _, same = kinds.setdefault((type(run.strategy), _seen_by_measure(run.strategy)), (run.strategy, {}))
        same.setdefault(run.trunk if run.trunk and task == 1 else r, []).append(r)
    return [(strategy, list(same.values())) for strategy, same in kinds.values()]


def _seen_by_measure(strategy: Strategy) -> tuple[tuple[str, object], ...]:
    """The options `measure` can see: all but the float hyperparameters."""
    hypers = strategy.hyperparameters()
    return tuple((k, v) for k, v in strategy.options().items() if k not in hypers)


def _measured(
    strategy: Strategy, runs: Sequence[Run], learner: Learner, feed: Feed, task: int, rows: list[int]
) -> Params:
    """What some runs measure, (len(rows), ...); of diverged ones anything."""
    active = feed.pool.heads.training(task)[task - 1].to(learner.device)
    # In a diverged run's place another network is measured: the stack, and so the others' rounding, stay what they are.
    diverged = learner.diverged.tolist()
    finite = next(r for r in rows if not diverged[r])
    networks = learner.networks([finite if diverged[r] else r for r in rows], active)
    finished = feed.some(rows).finished(task, [generator(runs[r].seed, "measure", task) for r in rows])
    if strategy.measures_stacks():
        found = strategy.measure_stack(networks, finished)
    else:
        with networks.one(0) as network:
            found = {k: v[None] for k, v in strategy.measure(network, finished.one(0)).items()}
    return {k: v.detach() for k, v in found.items()}
