"""What a study found, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from tabulate import tabulate

from benchmark.intervals import mean_interval, percent
from studies import objectives, places, plasticity
from studies.final import Tested
from studies.search import Searcher
from studies.spec import Study

WITHIN = 0.01  # of the best value: how far λ may be off and cost no more than a point


@dataclass(frozen=True)
class Answer:
    """What a study found for one strategy.

    Attributes:
        label: of the strategy.
        params: the chosen setting; empty if no trial ended well.
        trials: that counted, and how many of them failed.
        promised: the objective's mean over tuning seeds, by name.
        tested: its values over the test seeds, by name; none for a run that diverged.
        flat: for each number searched, the range of trials within a point of the chosen one, or better; empty with two
            objectives.
        protocol: by which the setting was chosen; `test-oracle` let trials see the test set.
        saved: run-epochs that trials given up did not train, and about how many seconds of training those are; see
            `pruning.GivenUp`.
        why: how it came to be chosen, where the best value did not decide.
    """

    label: str
    params: dict[str, Any]
    trials: tuple[int, int]
    promised: dict[str, float]
    tested: dict[str, list[float]]
    flat: dict[str, tuple[float, float]] = field(default_factory=dict)
    protocol: str = "validation"
    saved: tuple[int, float] = (0, 0.0)
    why: str = ""


def found(
    study: Study, searchers: Sequence[Searcher], chosen: Mapping[str, FrozenTrial], tested: Tested
) -> list[Answer]:
    """What a study found for each strategy.

    Args:
        study: what was done.
        searchers: one a strategy.
        chosen: the trial to report, by the strategy's label; none where no trial ended well.
        tested: see `Final.found`.
    """
    answers, by_plasticity = [], study.protocol == plasticity.PROTOCOL
    for searcher in searchers:
        label = searcher.search.label
        ended, best = searcher.ended, chosen.get(label)
        answers.append(
            Answer(
                label=label,
                params=dict(best.params) if best else {},
                trials=(len(ended), sum(t.state == TrialState.FAIL for t in ended)),
                promised=dict(zip(study.objectives, best.values, strict=True)) if best else {},
                tested={name: list(tested[label][name]) for name in study.objectives},
                flat=_flat(study, searcher, best),
                protocol=study.protocol,
                saved=places.saved(ended),
                why=plasticity.verdict(study, searcher.search, best) if best and by_plasticity else "",
            )
        )
    return answers


def _flat(study: Study, searcher: Searcher, best: FrozenTrial | None) -> dict[str, tuple[float, float]]:
    if best is None or len(study.objectives) > 1:
        return {}
    worse = -1 if objectives.direction(study.objectives[0]) == "maximize" else 1
    near = [t for t in searcher.complete if worse * (t.values[0] - best.values[0]) <= WITHIN]
    numbers = [k for k, v in best.params.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    return {k: (min(t.params[k] for t in near), max(t.params[k] for t in near)) for k in numbers}


def markdown(answers: list[Answer]) -> str:
    """What a study found, as a Markdown table; in per cent."""
    rows = []
    for a in answers:
        for name, promised in a.promised.items():
            tested = percent(mean_interval(a.tested[name]))
            rows.append([f"`{a.label}`", f"`{shown(a.params)}`", name, f"{100 * promised:.1f}", tested, a.protocol])
    heads = ["strategy", "best setting", "objective", "promised", "tested (95% interval)", "protocol"]
    table = str(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join([table, *(f"{a.why}." for a in answers if a.why)])


def shown(params: dict[str, Any]) -> str:
    """`lam=1.2e+04, estimator=exact`."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())


def saving(run_epochs: int, seconds: float) -> str:
    """`48 run-epochs saved, about 3 s of training`; see `pruning.GivenUp`."""
    return f"{run_epochs} run-epochs saved, about {seconds:.{0 if seconds >= 10 else 1}f} s of training"
