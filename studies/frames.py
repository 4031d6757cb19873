"""Trials that ended as tidy frames, for tables and figures that know nothing of Optuna; see `reports.studies`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from benchmark.results import Record
from studies import fate, objectives, plasticity
from studies.fate import Seeds
from studies.places import REASON, SAVED, SEEDS
from studies.protocols import PLASTICITY_FIRST
from studies.search import Searcher
from studies.spec import Study

FEW = 10  # complete trials that importance wants at least
TOP = 5  # trials that at least count as good, where a tenth of all are fewer


def measures(study: Study) -> list[str]:
    """What trials are compared by: the objectives, and the trade-off behind them."""
    return list(dict.fromkeys([*study.objectives, "stability", "plasticity"]))


def every(searchers: Sequence[Searcher], records: Mapping[str, Record]) -> dict[str, pd.DataFrame]:
    """All frames of a study, by the names of their files; arguments as for `seeds`."""
    return {
        "trials": trials(searchers, records),
        "seeds": seeds(searchers, records),
        "search_space": space(searchers),
        "importance": importance(searchers),
    }


def seeds(searchers: Sequence[Searcher], records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a run of a trial.

    Args:
        searchers: one a strategy.
        records: of runs, by key; what is not there is NaN.
    """
    head = ["strategy", "trial", "seed", "run_key", "status"]
    rows = [
        {"strategy": s.search.label, "trial": trial.number, **seed_row(s.study, seed, records)}
        for s in searchers
        for trial in s.ended
        for seed in trial.user_attrs[SEEDS]
    ]
    names = measures(searchers[0].study)
    return pd.DataFrame(rows, columns=[*head, *names]).astype(dict.fromkeys(names, float))


def seed_row(study: Study, seed: Mapping[str, Any], records: Mapping[str, Record]) -> dict[str, Any]:
    """One run of a trial, with every measure of it that is known.

    Args:
        study: of the trial.
        seed: as the trial's user attributes have it.
        records: of runs, by key.
    """
    record = records.get(seed["run_key"])
    known = {name: objectives.value(name, record) for name in measures(study)} if record else {}
    return {**dict.fromkeys(measures(study)), **known, **seed}


def trials(searchers: Sequence[Searcher], records: Mapping[str, Record]) -> pd.DataFrame:
    """One row a trial; arguments as for `seeds`."""
    study, rows = searchers[0].study, []
    for searcher in searchers:
        best = searcher.best()
        rows += [
            _trial(searcher, t, records) | {"best": best is not None and t.number == best.number}
            for t in searcher.ended
        ]
    searched = list(dict.fromkeys(name for s in searchers for name in s.search.space))
    head = ["strategy", "trial", "state", "reason", "best", *searched, *measures(study), "seconds"]
    head += ["plasticity_kept"] if study.protocol == PLASTICITY_FIRST else []
    head += ["saved_run_epochs", "saved_seconds"] if any("saved_seconds" in row for row in rows) else []
    return pd.DataFrame(rows, columns=head).astype(dict.fromkeys([*measures(study), "seconds"], float))


def _trial(searcher: Searcher, trial: FrozenTrial, records: Mapping[str, Record]) -> dict[str, Any]:
    told = trial.user_attrs[SEEDS]
    known = [records[seed["run_key"]] for seed in told if seed["run_key"] in records]
    return {
        "strategy": searcher.search.label,
        "trial": trial.number,
        "state": fate.state(told),
        "reason": trial.user_attrs.get(REASON, ""),
        "seconds": sum(float(r.facts["train_seconds"]) for r in known) if len(known) == len(told) else None,
        **trial.params,
        **means(searcher.study, told, records),
        **plasticity_kept(searcher.study, told),
        **saved(trial),
    }


def saved(trial: optuna.Trial | FrozenTrial) -> dict[str, float]:
    """What giving up a trial saved, see `pruning.GivenUp`; empty for one that was not given up."""
    return {f"saved_{name}": value for name, value in trial.user_attrs.get(SAVED, {}).items()}


def plasticity_kept(study: Study, told: Seeds) -> dict[str, float]:
    """What `plasticity-first` chooses by, of a complete trial; empty by any other protocol."""
    decides = study.protocol == PLASTICITY_FIRST and fate.state(told) == "complete"
    return {"plasticity_kept": plasticity.kept(told)} if decides else {}


def means(study: Study, told: Seeds, records: Mapping[str, Record]) -> dict[str, float]:
    """Every measure that is known of all seeds of a complete trial, averaged over them.

    Args:
        study: of the trial.
        told: its seeds.
        records: of runs, by key.
    """
    if fate.state(told) != "complete":
        return {}
    rows = [seed_row(study, seed, records) for seed in told]
    known = [name for name in measures(study) if all(row[name] is not None for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in known}


def space(searchers: Sequence[Searcher]) -> pd.DataFrame:
    """One row for everything searched: a range or choices."""
    rows = []
    for searcher in searchers:
        for name, distribution in searcher.search.space.items():
            row: dict[str, Any] = {"strategy": searcher.search.label, "param": name, "log": False}
            if isinstance(distribution, FloatDistribution | IntDistribution):
                row |= {"low": distribution.low, "high": distribution.high, "log": distribution.log}
            elif isinstance(distribution, CategoricalDistribution):
                row["choices"] = ", ".join(map(str, distribution.choices))
            rows.append(row)
    return pd.DataFrame(rows, columns=["strategy", "param", "low", "high", "log", "choices"])


def importance(searchers: Sequence[Searcher]) -> pd.DataFrame:
    """How much each hyperparameter tells the best trials from all (PED-ANOVA), as shares.

    Args:
        searchers: one a strategy.

    Returns:
        One row for everything searched; NaN with a reason where there is nothing to say.

    References:
        Watanabe et al. 2023, https://arxiv.org/abs/2304.10255
    """
    columns = ["strategy", "param", "importance", "trials", "top", "reason"]
    return pd.DataFrame([row for s in searchers for row in _importance(s)], columns=columns)


def _importance(searcher: Searcher) -> list[dict[str, Any]]:
    complete, names = searcher.complete, list(searcher.search.space)
    quantile = max(0.1, TOP / max(len(complete), 1))
    reason = _unknown(complete, names)
    shares: dict[str, float] = {}
    if not reason:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        shares = optuna.importance.get_param_importances(searcher.optuna, evaluator=evaluator, params=names)
    top = int(np.ceil(quantile * len(complete))) if shares else None
    common = {"strategy": searcher.search.label, "trials": len(complete), "top": top, "reason": reason}
    return [{"param": name, "importance": shares.get(name), **common} for name in names]


def _unknown(complete: list[FrozenTrial], names: list[str]) -> str:
    """Why importance says nothing, or nothing if it does."""
    if len(names) == 1:
        return f"{names[0]} alone was searched"
    if len(complete) < FEW:
        return f"{len(complete)} complete trials are too few, it takes {FEW}"
    if len({tuple(trial.values) for trial in complete}) == 1:
        return "all trials have the same value"
    return ""
