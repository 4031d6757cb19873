"""What a study found, and how that is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from tabulate import tabulate

from benchmark.intervals import NONE, mean_interval, number, percent
from studies import fate, objectives, places, plasticity, ranges
from studies.final import Tested
from studies.places import SEEDS
from studies.protocols import PLASTICITY_FIRST, VALIDATION
from studies.search import Searcher
from studies.spec import Study

AT_AN_END = 0.02  # of a range, on its own scale
WITHIN = 0.01  # of the best value: how far λ may be off and cost no more than a point


@dataclass(frozen=True)
class Answer:
    """What a study found for one strategy.

    Attributes:
        label: of the strategy.
        params: the chosen setting; empty if no trial ended well.
        trials: that counted, by what became of them: `complete`, or one of `fate.LOST`.
        promised: the objective's mean over tuning seeds, by name.
        tested: its values over the test seeds, by name; none for a run that diverged or failed.
        tests: runs of the test, by what became of them: `finished`, `diverged` or `failed`.
        flat: for each number searched, the range of trials within a point of the chosen one, or better; empty with two
            objectives.
        protocol: by which the setting was chosen; `test-oracle` let trials see the test set.
        saved: run-epochs that trials given up did not train, and about how many seconds of training those are; see
            `pruning.GivenUp`.
        why: how it came to be chosen, where the best value did not decide; or what speaks for searching on.
    """

    label: str
    params: dict[str, Any]
    trials: dict[str, int]
    promised: dict[str, float]
    tested: dict[str, list[float]]
    flat: dict[str, tuple[float, float]] = field(default_factory=dict)
    protocol: str = VALIDATION
    saved: tuple[int, float] = (0, 0.0)
    why: str = ""
    tests: dict[str, int] = field(default_factory=dict)


def found(
    study: Study,
    searchers: Sequence[Searcher],
    chosen: Mapping[str, FrozenTrial],
    tested: Tested,
    failed: Mapping[str, int],
) -> list[Answer]:
    """What a study found for each strategy.

    Args:
        study: what was done.
        searchers: one a strategy.
        chosen: the trial to report, by the strategy's label; none where no trial ended well.
        tested: see `Final.found`.
        failed: test runs that did, by the strategy's label.
    """
    answers = []
    for searcher in searchers:
        label = searcher.search.label
        ended, best = searcher.ended, chosen.get(label)
        answers.append(
            Answer(
                label=label,
                params=dict(best.params) if best else {},
                trials=dict(Counter(fate.state(trial.user_attrs[SEEDS]) for trial in ended)),
                promised=dict(zip(study.objectives, best.values, strict=True)) if best else {},
                tested={name: list(tested[label][name]) for name in study.objectives},
                flat=_flat(study, searcher, best),
                protocol=study.protocol,
                saved=places.saved(ended),
                why=_why(study, searcher, best) if best else "",
                tests=_tests(study, tested[label], failed.get(label, 0)) if best else {},
            )
        )
    return answers


def _why(study: Study, searcher: Searcher, best: FrozenTrial) -> str:
    if study.protocol == PLASTICITY_FIRST:  # which comes down from the end of the range
        return plasticity.verdict(study, searcher.search, best)
    return "" if len(study.objectives) > 1 else "; ".join(_at_an_end(searcher, best))


def _at_an_end(searcher: Searcher, best: FrozenTrial) -> Iterator[str]:
    """Which numbers of a setting lie at an end of their range, beyond which a better one may be."""
    for name, distribution in searcher.search.space.items():
        if isinstance(distribution, FloatDistribution | IntDistribution) and name in best.params:
            scale = math.log if distribution.log else float
            low, value, high = (scale(v) for v in (distribution.low, best.params[name], distribution.high))
            place = (value - low) / (high - low) if high > low else 0.5
            least, most = ranges.bounds(searcher.search.fixed, name)
            # A range from 0 is searched over decades: what is small on its scale need not be near its end.
            lower = place <= AT_AN_END and distribution.low > least and distribution.low != 0
            upper = place >= 1 - AT_AN_END and distribution.high < most
            if lower or upper:
                yield (
                    f"{searcher.search.label}: {name} = {best.params[name]:.3g} is at the "
                    f"{'lower' if lower else 'upper'} end of its range, {distribution.low:g} to "
                    f"{distribution.high:g}; a better one may lie beyond"
                )


def _tests(study: Study, tested: Mapping[str, Sequence[float]], failed: int) -> dict[str, int]:
    """What became of the test runs of one strategy: what neither has values nor failed has diverged."""
    finished = min(len(values) for values in tested.values())
    ended = {"finished": finished, "failed": failed, "diverged": len(study.test_seeds) - finished - failed}
    return {status: many for status, many in ended.items() if many}


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
            tested, runs = mean_interval(a.tested[name]), counted(a.tests)
            shown_tested = percent(tested.mean, tested.low, tested.high)
            rows.append(
                [f"`{a.label}`", f"`{shown(a.params)}`", name, number(promised), shown_tested, runs, a.protocol]
            )
        if not a.promised:
            rows.append([f"`{a.label}`", "none", "", NONE, NONE, "", a.protocol])
    heads = ["strategy", "best setting", "objective", "promised", "tested (95% interval)", "test runs", "protocol"]
    table = str(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join([table, *(f"{a.why}." for a in answers if a.why)])


def counted(ended: Mapping[str, int]) -> str:
    """`16, 2 diverged`: how many trials or runs there are, and how many of them have no value.

    Args:
        ended: how many, by what became of them.
    """
    return ", ".join([str(sum(ended.values())), *(f"{ended[state]} {state}" for state in fate.LOST if state in ended)])


def shown(params: dict[str, Any]) -> str:
    """`lam=1.2e+04, estimator=exact`."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())


def saving(run_epochs: int, seconds: float) -> str:
    """`48 run-epochs saved, about 3 s of training`; see `pruning.GivenUp`."""
    return f"{run_epochs} run-epochs saved, about {seconds:.{0 if seconds >= 10 else 1}f} s of training"
