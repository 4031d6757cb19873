"""What runs have in common, and what tells recipes apart that must not stand in one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import names
from reports.load import COLUMNS, ReportError
from reports.measures import MEASURES, NEW

FIELDS = {
    "scenario": "scenario",
    "images": "images",
    "tasks": "tasks",
    "incremental": "incremental type",
    "permuted": "tasks with shuffled pixels",
    "class_order": "class order",
    "labels": "labels of each task",
    "angles": "angles",
    "data_version": "version of the data",
    "model": "network",
    "model_version": "version of the network",
    "optimizer": "optimiser",
    "lr": "learning rate",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
    "epochs": "epochs a task",
    "iterations": "steps a task",
    "batchnorm": "BatchNorm statistics",
    "optimizer_state": "optimiser state between tasks",
    "precision": "precision",
    "compile": "compiled steps",
    "evaluate_every": "steps between evaluations",
    "protocol": "tuning protocol",
}
"""Params that say how a run was trained and tested, whatever its strategy, and what they are called."""
LENGTH = frozenset({"epochs", "iterations"})  # a recipe has one of them: a label that tells it tells both
VERSION = "strategy_version"
"""Param of a strategy of the user's own: a digest of its source."""
WORDS = FIELDS | {VERSION: "version of its code"}
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "evaluate_every": 0.0}  # not worth a row of the recipe's table


@dataclass(frozen=True)
class Group:
    """Runs of one recipe.

    Attributes:
        title: what tells it from the report's other groups; empty where there is one.
        runs: as `reports.load` has them, the newest of each strategy, seed and setting.
        overviews: ids of those that its runs are tied to, also the runs left out for newer ones.
    """

    title: str
    runs: pd.DataFrame
    overviews: frozenset[str] = frozenset()


def groups(runs: pd.DataFrame, *, allow_mixed: bool = False) -> list[Group]:
    """Runs by recipe: one group, unless several are asked for.

    A difference that the labels of strategies tell, as in `naive[batchnorm=update]`, is part of the comparison.

    Args:
        runs: as `reports.load` has them.
        allow_mixed: several recipes are several groups, rather than an error.

    Raises:
        ReportError: runs of several recipes that were not asked for.
    """
    differing = [name for name in FIELDS if name in runs and _unlabelled(runs, name).nunique(dropna=False) > 1]
    if not differing:
        return [_group("", runs)]
    if not allow_mixed:
        raise ReportError(
            f"these runs were not all trained and tested alike: {_listed(runs, differing)}. Choose some with --run "
            "(an overview's id stands for its runs), or give --allow-mixed for a section each"
        )
    parts = list(runs.groupby([_beside(runs, name) for name in differing], sort=False, dropna=False))
    return [_group(title, own) for title, (_, own) in zip(_titles(parts, differing), parts, strict=True)]


def _beside(runs: pd.DataFrame, name: str) -> pd.Series:
    """A field of every run; one whose label tells it stays beside the others, with which it is to be compared."""
    told = ~runs.index.isin(_unlabelled(runs, name).index)
    others = runs[name].mask(told).groupby([runs["experiment"], runs["overview"]]).transform("first")
    return runs[name].mask(told, others.fillna(runs[name]))


def _group(title: str, runs: pd.DataFrame) -> Group:
    """What is current of these runs.

    Raises:
        ReportError: a label stands for two settings.
    """
    current = _newest(runs)
    _one_setting_a_label(current)
    return Group(title, current, frozenset(runs["overview"]) - {""})


def _newest(runs: pd.DataFrame) -> pd.DataFrame:
    """One run a strategy, seed and setting: newer code, the user's own too, may have trained the same again.

    A run that no overview knows of is what a command left that did not end, or has been taken from its experiment: it
    counts only where there is no other.
    """
    tied = runs.assign(tied=runs["overview"] != "").sort_values(["tied", "started"], ascending=False, kind="stable")
    kept = tied.drop_duplicates(["strategy", "seed", *options(runs.columns)])
    return runs.loc[kept.index.sort_values()].reset_index(drop=True)


def _titles(parts: list[tuple[Any, pd.DataFrame]], differing: list[str]) -> list[str]:
    """Names of the experiments where these tell the groups apart, else what differs."""
    names = [", ".join(dict.fromkeys(own["experiment"])) for _, own in parts]
    if len(set(names)) == len(names):
        return names
    told = [zip(differing, values, strict=True) for values, _ in parts]
    return [", ".join(f"{FIELDS[name]} {_text(value)}" for name, value in each) for each in told]


def recipe(runs: pd.DataFrame) -> dict[str, str]:
    """What all runs of a group share, by name for people; what their labels tell apart is left out.

    Args:
        runs: of one group.
    """
    return {FIELDS[name]: text for name, text in shared(runs).items()}


def shared(runs: pd.DataFrame) -> dict[str, str]:
    """The same by name of the field.

    Args:
        runs: of one group.
    """
    found = {}
    for name in FIELDS:
        values: list[object] = list(_unlabelled(runs, name).dropna().unique()) if name in runs else []
        if len(values) == 1 and values[0] != "" and PLAIN.get(name) != values[0]:
            found[name] = _text(values[0])
    return found


def _unlabelled(runs: pd.DataFrame, name: str) -> pd.Series:
    """A field of the runs whose label does not tell it."""
    same = LENGTH if name in LENGTH else {name}
    told = {label for label in runs["strategy"].unique() if same & names.parse(label)[1].keys()}
    return runs.loc[~runs["strategy"].isin(told), name]


def _one_setting_a_label(runs: pd.DataFrame) -> None:
    """Two experiment files may call two settings by one label, since a label tells only what its file says.

    Raises:
        ReportError: a label stands for two settings.
    """
    for label, own in runs.groupby("strategy", sort=False):
        asked = [*options(runs.columns), *([VERSION] if VERSION in runs else [])]
        differing = [name for name in asked if own[name].nunique(dropna=False) > 1]
        if differing:
            raise ReportError(
                f"{label!r} stands for several settings: {_listed(own, differing)}. Choose some with --run"
            )


def options(columns: Iterable[str]) -> list[str]:
    """Params that are a strategy's own."""
    known = {*COLUMNS, *FIELDS, *MEASURES, "strategy_name", "trunk", NEW, VERSION}
    return [name for name in columns if name not in known]


def _listed(runs: pd.DataFrame, names: list[str]) -> str:
    return "; ".join(
        f"{WORDS.get(name, name)} {', '.join(_text(v) for v in _unlabelled(runs, name).unique())}" for name in names
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return "none" if pd.isna(value) else f"{value:g}"
    return str(value) if value != "" else "none"
