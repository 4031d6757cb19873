"""The `[study]` table of a study file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchmark import scenarios
from strategies.registry import did_you_mean
from studies.objectives import OBJECTIVES
from studies.protocols import PLASTICITY_FIRST, VALIDATION, Protocol

OWN: dict[Protocol, frozenset[str]] = {PLASTICITY_FIRST: frozenset({"plasticity", "lam_decay", "lam_decays"})}
"""Keys of `[study]` that concern one protocol alone."""


def _named(what: str, more: str, value: str | list[str], known: Collection[str]) -> str | list[str]:
    """One known name, or a list of different ones; anything else is refused.

    Args:
        what: is named.
        more: than one, in words.
        value: as written.
        known: names.

    Raises:
        ValueError: with what was expected and what came.
    """
    named = [value] if isinstance(value, str) else value
    if not named or len(set(named)) < len(named):
        raise ValueError(f"expected one {what}, or {more} different ones, got {value!r}")
    for name in named:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, known) or '; known: ' + ', '.join(known)}")
    return value


class StudyTable(BaseModel):
    """The `[study]` table: how to search, by which protocol, and with which budget.

    `plasticity`, `lam_decay` and `lam_decays` are those of `plasticity-first`, see `studies.plasticity`; `tasks` is the
    k of `first-k`, `tune_on` the scenario of `two-dataset`. `pruning = "halving"` gives up the worse half of the trials
    that train in one stack, after tasks 2, 4, 8, ... but the last, so that its result depends on how many processors
    and how much memory there are; see `studies.pruning`. `timeout` is in seconds, of the whole study: what went into
    trials before `--resume` has been spent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    objective: str | list[str] = "average_accuracy"
    protocol: str | list[str] = VALIDATION
    trials: int = Field(20, ge=1)
    timeout: float | None = Field(None, gt=0)
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    seed: int = Field(0, ge=0)
    batch: int = Field(10, ge=1)
    seeds: int = Field(3, ge=1)
    test_seeds: int = Field(5, ge=1)
    validation: float = Field(0.1, gt=0, lt=1)
    tasks: int = Field(2, ge=2)
    tune_on: str | list[str] | dict[str, Any] | None = None
    plasticity: float = Field(0.8, gt=0, le=1)
    lam_decay: float = Field(0.5, gt=0, lt=1)
    lam_decays: int = Field(7, ge=1)
    diverged: Literal["fail", "worst"] = "fail"
    pruning: Literal["none", "halving"] = "none"

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(value) > 2:
            raise ValueError(f"expected one metric, or two different ones, got {value!r}")
        return _named("metric", "two", value, OBJECTIVES)

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, value: str | list[str]) -> str | list[str]:
        return _named("protocol", "several", value, get_args(Protocol))

    @field_validator("tune_on")
    @classmethod
    def _scenario(cls, value: str | list[str] | dict[str, Any] | None) -> str | list[str] | dict[str, Any] | None:
        if value is not None:
            scenarios.resolve(value)
        return value

    @property
    def objectives(self) -> tuple[str, ...]:
        """One name, or two."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """One, or several to compare."""
        return cast(tuple[Protocol, ...], (self.protocol,) if isinstance(self.protocol, str) else tuple(self.protocol))
