"""What became of a trial, from its seeds: each is told with the `status` of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Seeds = Sequence[Mapping[str, Any]]

LOST = ("failed", "diverged", "pruned")
"""States of a trial without a value, the gravest first: one seed is enough."""


def state(seeds: Seeds) -> str:
    """`complete`, or the first of `LOST` that is among the seeds of a trial."""
    there = {seed["status"] for seed in seeds}
    return next((status for status in LOST if status in there), "complete")


def reason(seeds: Seeds) -> str:
    """Why a trial has no value: `diverged with seeds 0, 1`; empty if it has one, or who gave it up says why."""
    lost = {status: [str(s["seed"]) for s in seeds if s["status"] == status] for status in LOST if status != "pruned"}
    return "; ".join(f"{status} with seeds {', '.join(which)}" for status, which in lost.items() if which)
