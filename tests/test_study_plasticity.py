"""Protocol plasticity-first: which λ is chosen, by what, and that nothing else differs from the other protocols."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from strategies import Naive
from studies import frames, plasticity
from studies.search import Searcher
from studies.storage import StudyError
from tests.conftest import execute
from tests.synthetic_study import record
from tests.test_study_faults import Killed, at_call
from tests.test_study_run import Done, go
from tests.test_study_spec import made

TABLE = {"protocol": "plasticity-first", "lam_decay": 0.1, "lam_decays": 4}
THREE = {"name": "permuted-digits", "tasks": 3}
# Enough training for the highest λ to cost plasticity, and the lowest to cost none.
TRAIN = {"lr": 1e-3, "batch_size": 32, "epochs": 2, "precision": "float64"}
L2 = {"name": "l2", "lam": {"low": 1e-3, "high": 1e3}}


def seed(learnt: list[float], fine_tuned: list[float]) -> dict[str, Any]:
    return {"seed": 0, "run_key": "k", "status": "finished", "learnt": learnt, "fine_tuned": fine_tuned}


def trial(lam: float, *seeds: dict[str, Any]) -> FrozenTrial:
    params, space = {"lam": lam}, {"lam": FloatDistribution(0.0, 1e9)}
    return optuna.create_trial(params=params, distributions=space, value=0.5, user_attrs={"seeds": [*seeds]})


def keeping(lam: float, fraction: float) -> FrozenTrial:
    return trial(lam, seed([fraction], [1.0]))


# The rule


def test_what_a_trial_keeps_is_the_least_fraction_of_fine_tunings_accuracy_over_new_tasks() -> None:
    one, other = seed([0.8, 0.3], [1.0, 0.5]), seed([0.4, 0.5], [0.8, 0.5])
    # Averaged over seeds first: 0.6 of 0.9 and 0.4 of 0.5.
    assert plasticity.kept([one, other]) == pytest.approx(0.6 / 0.9)


def test_where_fine_tuning_learns_nothing_there_is_nothing_to_fall_short_of() -> None:
    assert plasticity.kept([seed([0.0, 0.7], [0.0, 0.7])]) == 1.0
    assert plasticity.kept([seed([0.1, 0.35], [0.0, 0.7])]) == 0.5


def test_the_first_lam_on_the_way_down_that_keeps_enough_is_chosen_whatever_comes_after() -> None:
    down = [keeping(8.0, 0.2), keeping(4.0, 0.7), keeping(2.0, 0.8), keeping(1.0, 0.79), keeping(0.5, 0.99)]
    for order in (down, down[::-1]):
        found = plasticity.chosen(order, 0.8)
        assert found is not None and found.params == {"lam": 2.0}
    assert plasticity.chosen(down[:2], 0.8) is down[1]  # none does: the last
    assert plasticity.chosen(down, 0.95) is down[-1]
    assert plasticity.chosen([], 0.8) is None


# A study by it


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    study = made(TABLE, scenario=THREE, train=TRAIN, strategy=[L2, {"name": "ewc"}])
    return go(study, tmp_path_factory.mktemp("plasticity"))


def diagonals(done: Done) -> dict[str, list[float]]:
    """Accuracy on tasks 2 and 3 just after each, by run key, as the table on disk has it."""
    with (done.outcome.folder / "accuracy.csv").open() as file:
        cells = {
            (r["run_key"], int(r["after_task"]), int(r["task"])): float(r["accuracy"]) for r in csv.DictReader(file)
        }
    return {key: [cells[key, j, j] for j in (2, 3)] for key, _, _ in cells}


def test_the_chosen_lam_is_the_one_that_lowering_it_step_by_step_would_have_stopped_at(done: Done) -> None:
    learnt = diagonals(done)
    plain = [key for key, row in done.rows().items() if row["strategy_name"] == "naive"]
    assert len(plain) == 2  # one a tuning seed, for both strategies
    fine_tuned = np.mean([learnt[key] for key in plain], axis=0)
    stops = set()
    for answer in done.outcome.answers:
        by_lam = {t.params["lam"]: [s["run_key"] for s in t.user_attrs["seeds"]] for t in done.trials(answer.label)}
        lams = plasticity.ladder(done.study, next(s for s in done.study.searches if s.label == answer.label))
        assert sorted(by_lam, reverse=True) == lams
        lam, lowered = lams[0], 0
        while np.any(np.mean([learnt[k] for k in by_lam[lam]], axis=0) < 0.8 * fine_tuned) and lowered < 4:
            lowered += 1
            lam = lams[lowered]
        assert answer.params == {"lam": lam} and answer.trials == {"complete": 5}
        stops.add(lowered)
    assert max(stops) > 0 and min(stops) < 4  # or any rule would do


def test_fine_tuning_has_the_recipe_the_images_and_the_seeds_of_the_trials(done: Done) -> None:
    study = done.study
    for search in study.searches:
        entry = study.entry(search, {"lam": 1.0})
        plain, own = plasticity.beside(study, entry), study.runs(entry, study.tuning, study.tuning_seeds)
        assert [(r.scenario, r.model, r.recipe, r.seed) for r in plain] == [
            (r.scenario, r.model, r.recipe, r.seed) for r in own
        ]
        assert {r.strategy for r in plain} == {Naive()}
        results = execute(*plain)
        expected = [[float(results[r.key].accuracy[j, j - 1]) for j in (2, 3)] for r in plain]
        for t in done.trials(search.label):
            assert [s["fine_tuned"] for s in t.user_attrs["seeds"]] == [pytest.approx(e, abs=1e-12) for e in expected]


def test_the_chosen_setting_is_tested_with_fresh_seeds_as_by_any_protocol(done: Done) -> None:
    rows = done.rows().values()
    for answer in done.outcome.answers:
        own = [r for r in rows if r["strategy_name"] == answer.label and int(r["seed"]) in done.study.test_seeds]
        assert {float(r["lam"]) for r in own} == {answer.params["lam"]} and len(own) == 2
        assert sorted(answer.tested["average_accuracy"]) == sorted(float(r["average_accuracy"]) for r in own)
        (chosen,) = [t for t in done.trials(answer.label) if t.params == answer.params]
        assert answer.promised == {"average_accuracy": chosen.value} and answer.protocol == "plasticity-first"


def test_in_small_batches_the_choice_is_the_same(done: Done, tmp_path: Path) -> None:
    study = made(TABLE | {"batch": 2}, scenario=THREE, train=TRAIN, strategy=[L2])
    assert go(study, tmp_path).answer.params == done.outcome.answers[0].params


def test_killed_on_the_way_down_it_continues_and_chooses_the_same(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, storage = made(TABLE | {"batch": 2}, scenario=THREE, train=TRAIN, strategy=[L2]), InMemoryStorage()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optuna.Study, "tell", at_call(optuna.Study.tell, 3))
        go(study, tmp_path, storage)
    again = go(study, tmp_path, storage, resume=True)
    assert again.answer.params == done.outcome.answers[0].params and again.answer.trials == {"complete": 5}
    counted = [t for t in again.trials() if "seeds" in t.user_attrs]
    assert {t.state for t in counted} == {TrialState.COMPLETE} and len({t.params["lam"] for t in counted}) == 5


def test_a_lam_with_which_runs_diverge_is_too_high(tmp_path: Path) -> None:
    table = TABLE | {"lam_decay": 1e-15, "lam_decays": 2}
    done = go(made(table, strategy=[{"name": "l2", "lam": {"low": 0.0, "high": 1e30}}]), tmp_path)
    states = {t.params["lam"]: t.state for t in done.trials()}
    assert states[1e30] == TrialState.FAIL and done.answer.trials == {"complete": 2, "diverged": 1}
    assert done.answer.params["lam"] == pytest.approx(1.0)


def test_where_fine_tuning_itself_diverges_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    train = {"optimizer": "sgd", "lr": 1e30, "iterations": 6}
    with pytest.raises(StudyError, match=r"^fine-tuning diverged with seeds 0, 1: .*lower train.lr$"):
        go(made(TABLE, train=train, strategy=[L2]), tmp_path)


def test_a_trial_is_compared_with_fine_tuning_of_all_its_seeds_or_with_none() -> None:
    trial, seeds = [record("a", "l2", 0, 0.1), record("b", "l2", 1, 0.1)], [{"seed": 0}, {"seed": 1}]
    plasticity.compare(seeds, trial, [])  # by another protocol
    assert seeds == [{"seed": 0}, {"seed": 1}]
    with pytest.raises(ValueError, match="shorter"):
        plasticity.compare(seeds, trial, [record("c", "naive", 0, 0.1)])


def test_fine_tuning_that_failed_is_tried_again_and_not_compared_with() -> None:
    well, lost = record("a", "l2", 0, 0.1), dataclasses.replace(record("b", "naive", 1, 0.0), status="failed")
    with pytest.raises(StudyError, match=r"^fine-tuning failed with seeds 1: .*--resume tries again$"):
        plasticity.compare([{"seed": 1}], [well], [lost])


# What is said of it


@pytest.mark.parametrize(
    ("lam", "fraction", "said"),
    [
        (1e3, 0.9, "l2: lam was lowered 0 times; it keeps 0.90 of fine-tuning's accuracy on the new task it costs most; "
                   "a higher start may protect more"),
        (1e2, 0.81, "l2: lam was lowered once; it keeps 0.81 of fine-tuning's accuracy on the new task it costs most"),
        (1e-1, 0.4, "l2: lam was lowered 4 times; it keeps 0.40 of fine-tuning's accuracy on the new task it costs most, "
                    "not 0.8: start lower, or go further (study.lam_decays, study.lam_decay)"),
    ],
)  # fmt: skip
def test_how_a_lam_was_chosen_is_said_and_what_to_do_where_the_range_was_not_it(
    lam: float, fraction: float, said: str
) -> None:
    study = made(TABLE, strategy=[L2])
    assert plasticity.verdict(study, study.searches[0], keeping(lam, fraction)) == said


def test_the_answer_and_the_tables_say_what_decided(done: Done) -> None:
    searchers = [Searcher(done.study, search, done.storage, resume=True) for search in done.study.searches]
    table = frames.trials(searchers, {})
    for answer, searcher in zip(done.outcome.answers, searchers, strict=True):
        assert answer.why.startswith(f"{answer.label}: lam was lowered ")
        own = table[table["strategy"] == answer.label]
        kept = [plasticity.kept(t.user_attrs["seeds"]) for t in searcher.ended]
        assert list(own["plasticity_kept"]) == pytest.approx(kept)
        assert own[own["best"]]["lam"].item() == answer.params["lam"]
    assert f"searching {searchers[0].describe()}" in done.said and "lam from 1e+03 down to 0.1" in done.said[0]
    other = made()
    assert "plasticity_kept" not in frames.trials(
        [Searcher(other, other.searches[0], InMemoryStorage(), resume=False)], {}
    )
