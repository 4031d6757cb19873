"""Several protocols on common ground: one experiment of what each chose, the same seeds and tasks for all."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage
from rich.console import Console

from benchmark import experiment
from benchmark.session import Session
from benchmark.terminal import comparison_table
from reports import overview
from studies import comparison, objectives, spec
from studies.answers import Answer
from studies.comparison import Row
from tests.conftest import CPU
from tests.test_study_run import go
from tests.test_study_spec import FIVE, changed

PROTOCOLS = ["test-oracle", "validation", "first-k"]
STUDIES = spec.parse(changed({"protocol": PROTOCOLS, "seeds": 2, "test_seeds": 3}, scenario=FIVE))


def answer(lam: float | None, protocol: str, *reported: float) -> Answer:
    params = {} if lam is None else {"lam": lam}
    return Answer("ewc", params, {"complete": 4}, {}, {"average_accuracy": [*reported]}, protocol=protocol)


def test_what_was_chosen_is_an_experiment_of_fresh_seeds_and_one_entry_a_setting() -> None:
    answers = [[answer(lam, protocol)] for lam, protocol in zip((10.0, 20.0, 10.0), PROTOCOLS, strict=True)]
    made = comparison.experiment(STUDIES, answers)
    assert made is not None
    assert (made.name, made.seeds, made.scenario) == ("trial-compared", (2, 3, 4), STUDIES[0].experiment.scenario)
    assert [(entry.label, entry.strategy.options()["lam"]) for entry in made.entries] == [
        ("ewc (test-oracle, tuned on test; first-k)", 10.0),
        ("ewc (validation)", 20.0),
    ]
    tuned = {(run.key, run.seed) for run in made.runs()}
    assert len(tuned) == 6 and not {seed for _, seed in tuned} & {*STUDIES[0].tuning_seeds}


def test_where_nothing_was_chosen_nothing_is_compared() -> None:
    nothing = [[answer(None, protocol)] for protocol in PROTOCOLS]
    assert comparison.experiment(STUDIES, nothing) is None
    some = [[answer(10.0, "test-oracle")], *nothing[1:]]
    made = comparison.experiment(STUDIES, some)
    assert made is not None and [entry.label for entry in made.entries] == ["ewc (test-oracle, tuned on test)"]
    rows = comparison.rows(STUDIES, some, [])
    assert [(row.params, row.values, comparison.differences(row, rows)) for row in rows] == [
        ({"lam": 10.0}, {}, []), ({}, {}, []), ({}, {}, []),
    ]  # fmt: skip


def test_every_setting_is_measured_on_the_same_tasks_and_seeds(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    done = [go(study, tmp_path, storage) for study in STUDIES]
    answers = [each.outcome.answers for each in done]
    made = comparison.experiment(STUDIES, answers)
    assert made is not None
    records = experiment.run(made, Session(tmp_path, CPU), tracker=None, presentation=overview).records
    rows = comparison.rows(STUDIES, answers, records)
    assert [row.protocol for row in rows] == PROTOCOLS
    for row, (found,) in zip(rows, answers, strict=True):
        own = [r for r in records if r.strategy == row.entry]
        assert row.params == found.params and row.reported == found.tested["average_accuracy"]
        assert row.values == {r.seed: objectives.value("average_accuracy", r) for r in own}
        assert {*row.values} == {2, 3, 4} and all(r.accuracy.shape == (6, 5) for r in own)
    # On these seeds validation has been tested already, by the same runs.
    validation = rows[1]
    assert [*validation.values.values()] == pytest.approx(validation.reported)
    assert comparison.baseline(rows) == "validation" and comparison.baseline_entry(rows) == validation.entry


def row(protocol: str, *values: float, label: str = "ewc", objective: str = "average_accuracy") -> Row:
    return Row(label, f"{label} ({protocol})", protocol, {"lam": 1.0}, objective, [], dict(enumerate(values)))


def test_a_difference_is_of_pairs_of_seeds_of_one_strategy_by_one_objective() -> None:
    rows = [
        row("test-oracle", 0.9, 0.7, 0.8), row("validation", 0.8, 0.7, 0.6),
        row("test-oracle", 0.1, label="l2"), row("validation", 0.3, label="l2"),
        row("test-oracle", 0.5, objective="bwt"), row("validation", 0.6, objective="bwt"),
    ]  # fmt: skip
    assert comparison.differences(rows[0], rows) == pytest.approx([0.1, 0.0, 0.2])
    assert comparison.differences(rows[2], rows) == pytest.approx([-0.2])
    assert comparison.differences(rows[4], rows) == pytest.approx([-0.1])
    diverged = dataclasses.replace(rows[1], values={0: 0.8, 2: 0.6})
    assert comparison.differences(rows[0], [rows[0], diverged, *rows[2:]]) == pytest.approx([0.1, 0.2])


def test_others_are_compared_with_what_did_not_look_at_test_images() -> None:
    assert comparison.baseline([row("test-oracle"), row("first-k"), row("validation")]) == "validation"
    assert comparison.baseline([row("test-oracle"), row("first-k"), row("two-dataset")]) == "first-k"
    assert comparison.baseline([row("test-oracle")]) == "test-oracle"


def test_the_table_says_of_how_many_seeds_each_mean_is_and_has_no_interval_of_one() -> None:
    rows = [row("validation", 0.8, 0.7, 0.6), row("first-k", 0.9), row("test-oracle", 0.8, 0.7, 0.6)]
    console = Console(width=200, markup=False, file=io.StringIO())
    console.print(comparison_table(rows))
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for words in ("– 3 70.0 ± 24.8", "– 1 90.0 +10.0", "– 3 70.0 ± 24.8 0.0", "over n = 1 to 3 seeds"):
        assert words in said
