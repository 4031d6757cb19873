"""A memory of M samples: which ones it keeps, which ones it recalls, and the base of strategies that replay them.

The memory is a group of the state with one row a slot: `id` (int64, -1 in an empty slot), `key` (float64, inf in an
empty slot), `y` and `task` (int64, 0 in an empty slot), and extras such as `logits`. It holds no sample twice. Its
contents and their order depend on which samples were seen, not on their order or on the device; filled slots come
first. A sample seen again is stored anew, so its extras are those of its latest presentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.base import Batch, Hparams, Params, Setting, State, Strategy, option

Policy = Literal["reservoir", "balanced"]
FIELDS = ("id", "key", "y", "task")
EMPTY = {"id": -1, "key": math.inf}
"""What an empty slot holds; zero where nothing is said."""


def empty(size: int, device: torch.device) -> Params:
    """A memory of that many empty slots."""
    integers = torch.zeros(3, size, dtype=torch.int64, device=device)
    keys = torch.full((size,), math.inf, dtype=torch.float64, device=device)
    return {"id": integers[0] - 1, "key": keys, "y": integers[1].clone(), "task": integers[2].clone()}


def update(slots: Params, batch: Batch, extras: Params, policy: Policy) -> Params:
    """The memory after a batch: the M samples of slots and batch that come first by the policy.

    `reservoir` keeps the smallest keys: of all distinct samples seen, a uniform random subset without replacement
    (reservoir sampling, Vitter 1985, by random keys, Efraimidis & Spirakis 2006). `balanced` takes classes in turn,
    each class by its smallest keys, so no class has over one sample more than another that has samples left out.

    Args:
        slots: the memory, M slots.
        batch: B samples.
        extras: the batch's rows of the memory's further entries.
        policy: what to keep.
    """
    size = len(slots["id"])
    new = {"id": batch.id, "key": batch.key, "y": batch.y, "task": batch.task, **extras}
    candidates = {k: torch.cat([old, new[k]]) for k, old in slots.items()}
    # Empty slots have an infinite key already.
    key = candidates["key"].masked_fill(superseded(candidates["id"], batch.id), math.inf)
    score = balanced(candidates["y"], key) if policy == "balanced" else key
    best = score.topk(size, largest=False, sorted=True)  # sorted: the order of slots is the same on every device
    filled = best.values < math.inf
    return {k: chosen(v, best.indices, filled, EMPTY.get(k, 0)) for k, v in candidates.items()}


def chosen(rows: Tensor, index: Tensor, valid: Tensor, otherwise: float) -> Tensor:
    """The rows at an index, and a constant where that is not valid."""
    return torch.where(valid.view(-1, *[1] * (rows.ndim - 1)), rows[index], otherwise)


def superseded(candidates: Tensor, batch: Tensor) -> Tensor:
    """Which of the slots and the batch after them have a later presentation in the batch, by ids: shape (M + B,)."""
    ids, order = batch.sort(stable=True)
    last = (torch.searchsorted(ids, candidates, right=True) - 1).clamp(min=0)
    position = torch.arange(len(candidates), device=batch.device)
    return (ids[last] == candidates) & (order[last] + len(candidates) - len(batch) > position)


def balanced(y: Tensor, key: Tensor) -> Tensor:
    """Scores (N,) by which the smallest keys of each class come first, then each class's second, and so on."""
    place, order = (y + key / 2).sort()  # class by class; halved, so that no key reaches the next class
    label = place.floor()
    rank = torch.arange(len(y), device=y.device) - torch.searchsorted(label, label)
    return torch.zeros_like(key).scatter(0, order, rank + key[order] / 2)


def anywhere(slots: Params, draws: Tensor) -> Tensor:
    """Slots drawn uniformly, with replacement, from the filled ones; -1 if there are none.

    Args:
        slots: the memory.
        draws: uniform in [0, 1), shape (K,).
    """
    filled = (slots["id"] >= 0).sum()
    return floor_of(draws, filled)


def earlier(slots: Params, draws: Tensor, task: int) -> Tensor:
    """Slots drawn, with replacement, equally from each earlier task in memory, uniformly within it; -1 if none is.

    Args:
        slots: the memory.
        draws: uniform in [0, 1), shape (K,).
        task: number of the task in training.
    """
    if task == 1:
        return torch.full_like(draws, -1, dtype=torch.int64)
    number = torch.where(slots["id"] >= 0, slots["task"], task)  # empty slots are as those of the task in training
    counts = (number == torch.arange(1, task, device=draws.device)[:, None]).sum(1)
    present = (counts > 0).cumsum(0)
    nth = floor_of(draws, present[-1])
    which = torch.searchsorted(present, nth, right=True)
    within = floor_of(draws * present[-1] - nth, counts[which])
    by_task = number.argsort(stable=True)
    slot = by_task[(counts.cumsum(0) - counts)[which] + within.clamp(min=0)]
    return torch.where(nth >= 0, slot, -1)


def floor_of(draws: Tensor, choices: Tensor) -> Tensor:
    """⌊u·n⌋, one of 0..n−1 whatever the rounding; -1 if n = 0."""
    return torch.minimum((draws * choices).long(), choices - 1)


def read(slots: Params, index: Tensor) -> Params:
    """Ids and extras at drawn slots; id -1 and zeros where the index is -1."""
    kept = {k: v for k, v in slots.items() if k == "id" or k not in FIELDS}
    return {k: chosen(v, index.clamp(min=0), index >= 0, EMPTY.get(k, 0)) for k, v in kept.items()}


def required(recalled: Batch | None) -> Batch:
    """The recalled samples, which a strategy that recalls always has.

    Raises:
        ValueError: there are none.
    """
    if recalled is None:
        raise ValueError("expected recalled samples, got None; the strategy's `recalls` is not 0")
    return recalled


def mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the values (N,) that count (N,), shape (); 0 if none does."""
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)


@dataclass(frozen=True)
class Replay(Strategy):
    """A strategy with a memory of samples: a subclass says in `loss` what it does with those it recalls.

    2000 samples are what iCaRL keeps (Rebuffi et al. 2017, https://arxiv.org/abs/1611.07725).
    """

    memory: int = option(2000, low=1, doc="samples kept, of all tasks together")
    replay_batch: int = option(100, low=1, doc="samples recalled a step; papers take as many as in a batch")
    policy: Policy = option("reservoir", doc="reservoir: uniform over samples seen; balanced: classes alike")

    @property
    def recalls(self) -> int:
        """The replay batch."""
        return self.replay_batch

    def init(self, params: Params, setting: Setting) -> State:
        """An empty memory."""
        return {"memory": empty(self.memory, next(iter(params.values())).device)}

    def draw(self, slots: Params, task: int, draws: Tensor) -> Tensor:
        """Slots to recall, -1 for none: from the whole memory, the task in training included."""
        return anywhere(slots, draws)

    def recall(self, state: State, task: int, draws: Tensor, hparams: Hparams) -> Params:
        """Ids and extras of the slots drawn."""
        return read(state["memory"], self.draw(state["memory"], task, draws))

    def observe(self, state: State, batch: Batch, seen: Params, hparams: Hparams) -> State:
        """Let the batch into the memory."""
        slots = state["memory"]
        extras = {k: seen[k] for k in slots if k not in FIELDS}
        return {**state, "memory": update(slots, batch, extras, self.policy)}
