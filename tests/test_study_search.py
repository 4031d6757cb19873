"""What is asked and what is told: the first look, samplers, budgets, failures, and a study continued."""

from __future__ import annotations

import functools
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from studies import answers, objectives, samplers, spec
from studies.grid import DECADES, grid
from studies.pruning import GivenUp
from studies.search import Searcher, StudyError, free_name
from studies.spec import Search
from tests.test_end_to_end import environment
from tests.test_study_spec import changed, made

SAMPLERS = pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])


def search_of(**space: Any) -> Search:
    return Search("x", {"name": "x"}, space)


def searcher(
    storage: BaseStorage | None = None, *, resume: bool = False, ranges: Any = None, train: Any = None, **study: Any
) -> Searcher:
    """Searches EWC's λ from 1 to 1e6 unless told otherwise, 12 trials in batches of 4."""
    storage = storage or InMemoryStorage()
    changes = ({"strategy": [{"name": "ewc"} | ranges]} if ranges else {}) | ({"train": train} if train else {})
    chosen = made({"trials": 12, "batch": 4} | study, **changes)
    return Searcher(chosen, chosen.searches[0], storage, resume=resume)


def quality(lam: float) -> float:
    """As good as can be at λ = 1000."""
    return 0.9 - abs(math.log10(max(lam, 1e-6)) - 3) / 10


def seed(number: int, status: str = "finished", **values: float | None) -> dict[str, Any]:
    return {"seed": number, "run_key": f"key-{number}", "status": status, **values}


def tell(asker: Searcher, trial: optuna.Trial, value: Callable[[float], float] = quality) -> None:
    asker.tell(trial, [seed(0, average_accuracy=value(trial.params["lam"]))])


def batch(asker: Searcher) -> list[float]:
    """Ask, tell, and say which λs it was."""
    asked = asker.ask()
    for trial in asked:
        tell(asker, trial)
    return [trial.params["lam"] for trial in asked]


def told(objective: list[str], *values: tuple[float, float]) -> Searcher:
    """Has asked its first batch, and been told these values of two objectives."""
    asker = searcher(objective=objective)
    for trial, pair in zip(asker.ask(), values, strict=True):
        asker.tell(trial, [seed(0, **dict(zip(objective, pair, strict=True)))])
    return asker


def states(asker: Searcher) -> list[str]:
    return [trial.state.name for trial in asker.optuna.trials]


# The first look


def test_the_first_look_at_a_log_range_is_log_spaced_from_end_to_end() -> None:
    settings = grid(search_of(lam=FloatDistribution(1.0, 1e6, log=True)), 7)
    assert [s["lam"] for s in settings] == pytest.approx([10.0**k for k in range(7)], rel=1e-12)


def test_a_range_that_begins_at_0_is_looked_at_there_and_log_spaced_above() -> None:
    lams = [s["lam"] for s in grid(search_of(lam=FloatDistribution(0.0, 1e4)), 5)]
    assert lams == pytest.approx([0.0, *(1e4 * 10.0 ** (-DECADES + k * DECADES / 3) for k in range(4))])
    assert (lams[0], lams[-1]) == (0.0, 1e4)


def test_any_other_range_is_looked_at_evenly() -> None:
    assert [s["lam"] for s in grid(search_of(lam=FloatDistribution(0.5, 1.0)), 6)] == pytest.approx(
        [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    )


def test_whole_numbers_are_rounded_and_stay_within_their_bounds() -> None:
    few = [s["draws"] for s in grid(search_of(draws=IntDistribution(1, 5)), 4)]
    assert few == [1, 2, 4, 5] and all(type(v) is int for v in few)
    logged = [s["n"] for s in grid(search_of(n=IntDistribution(1, 1000, log=True)), 4)]
    assert logged == [1, 10, 100, 1000]
    assert [s["n"] for s in grid(search_of(n=IntDistribution(0, 10)), 3)] == [0, 0, 10]


def test_one_look_alone_goes_to_the_middle_of_a_log_range() -> None:
    assert grid(search_of(lam=FloatDistribution(1.0, 1e6, log=True)), 1) == [{"lam": pytest.approx(1e3)}]
    assert grid(search_of(n=IntDistribution(2, 200, log=True)), 1) == [{"n": 20}]


def test_choices_take_turns_while_the_first_range_is_gone_through() -> None:
    space = {"estimator": CategoricalDistribution(["a", "b", "c"]), "lam": FloatDistribution(1.0, 1e4, log=True)}
    settings = grid(search_of(**space), 5)
    assert [s["estimator"] for s in settings] == ["a", "b", "c", "a", "b"]
    assert [s["lam"] for s in settings] == pytest.approx([1, 10, 100, 1e3, 1e4])


def test_other_ranges_wait_at_their_middle() -> None:
    space = {
        "lam": FloatDistribution(1.0, 1e4, log=True),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "decay": FloatDistribution(0.5, 1.0),
        "momentum": FloatDistribution(0.0, 0.8),
        "draws": IntDistribution(1, 5),
        "batch_size": IntDistribution(16, 64, log=True),
    }
    for setting in grid(search_of(**space), 4):
        del setting["lam"]
        assert setting == pytest.approx({"lr": 1e-3, "decay": 0.75, "momentum": 0.4, "draws": 3, "batch_size": 32})


@st.composite
def distributions(draw: st.DrawFn) -> Any:
    if draw(st.booleans()):
        low = draw(st.integers(0, 50))
        return IntDistribution(low, low + draw(st.integers(1, 500)), log=low > 0 and draw(st.booleans()))
    low = draw(st.one_of(st.just(0.0), st.floats(1e-8, 1e8)))
    high = draw(st.floats(1.0, 10.0)) if low == 0 else low * draw(st.floats(1.001, 1e8))
    return FloatDistribution(low, high, log=low > 0 and draw(st.booleans()))


@settings(deadline=None)
@given(distributions(), distributions(), st.integers(1, 30))
def test_whatever_the_range_its_grid_lies_within_it_and_reaches_both_ends(first: Any, other: Any, points: int) -> None:
    found = grid(search_of(a=first, b=other), points)
    assert len(found) == points
    for name, distribution in (("a", first), ("b", other)):
        values = [setting[name] for setting in found]
        assert all(distribution.low <= value <= distribution.high for value in values)
        assert values == sorted(values)
        assert all(type(value) is (int if isinstance(distribution, IntDistribution) else float) for value in values)
    if points > 1:
        assert (found[0]["a"], found[-1]["a"]) == (first.low, first.high)


# Asking


@SAMPLERS
def test_the_first_batch_is_the_grid_whoever_samples_later(sampler: str) -> None:
    asker = searcher(sampler=sampler)
    assert [t.params for t in asker.ask()] == grid(asker.search, 4)


def test_the_grid_is_no_larger_than_the_budget() -> None:
    asker = searcher(trials=3, batch=8)
    assert batch(asker) == pytest.approx([1.0, 1e3, 1e6])
    assert asker.ask() == []


def test_lam_is_what_the_grid_goes_along_wherever_it_stands() -> None:
    decay, lam = FloatDistribution(0.5, 1.0), FloatDistribution(0.0, 1e6)
    found = grid(search_of(decay=decay, lam=lam), 4)
    assert [setting["lam"] for setting in found] == sorted({setting["lam"] for setting in found})
    assert found[0]["lam"] == 0.0 and {setting["decay"] for setting in found} == {0.75}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_follows_what_the_grid_found_though_a_trial_of_it_diverged(sampler: str) -> None:
    """Not at random, as until then: the second batch is another one where the first went otherwise."""
    asked = []
    for best in (0, 2):
        asker = searcher(sampler=sampler, trials=8)
        for place, trial in enumerate(asker.ask()):
            lost = {"status": "diverged"} if place == 3 else {}
            asker.tell(trial, [seed(0, average_accuracy=1.0 - abs(place - best) / 10, **lost)])
        asked.append([trial.params["lam"] for trial in asker.ask()])
    assert asked[0] != asked[1]


@SAMPLERS
def test_batches_follow_until_the_budget_is_spent_and_no_further(sampler: str) -> None:
    asker = searcher(trials=10, sampler=sampler)
    batches = [batch(asker) for _ in range(4)]
    assert [len(b) for b in batches] == [4, 4, 2, 0]
    lams = list(itertools.chain(*batches))
    assert all(1.0 <= lam <= 1e6 for lam in lams) and len(set(lams)) == 10
    assert len(asker.ended) == len(asker.complete) == len(asker.optuna.trials) == 10


@SAMPLERS
def test_the_same_seed_asks_the_same_and_another_seed_something_else(sampler: str) -> None:
    def asked(**study: Any) -> list[float]:
        asker = searcher(sampler=sampler, trials=6, batch=2, **study)
        return [lam for _ in range(3) for lam in batch(asker)]

    one, same, other = asked(), asked(seed=0), asked(seed=1)
    assert one == same
    assert one[:2] == other[:2]  # the grid
    assert one[2:] != other[2:]


def test_tpe_comes_closer_to_the_best_than_chance() -> None:
    def distance(sampler: str) -> float:
        asker = searcher(sampler=sampler, trials=40, batch=8)
        lams = [lam for _ in range(5) for lam in batch(asker)][16:]
        return float(np.mean([abs(math.log10(lam) - 3) for lam in lams]))

    assert distance("tpe") < 0.7 * distance("random")


def test_gp_goes_straight_for_the_best() -> None:
    asker = searcher(sampler="gp")
    first, second = ([abs(math.log10(lam) - 3) for lam in batch(asker)] for _ in range(2))
    assert min(first) > 0.9 and min(second) < 0.05


def test_gp_has_nothing_to_say_of_packages_that_are_not_there() -> None:
    code = "from tests.test_study_search import *; asker = searcher(sampler='gp'); batch(asker); batch(asker)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert (done.stdout, done.stderr) == ("", "")


def test_a_batch_spreads_although_none_of_it_is_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant liar: what is in training counts as bad."""

    def spread() -> float:
        asker = searcher(trials=40, batch=10)
        gaps = [np.diff(np.sort(np.log10(batch(asker)))) for _ in range(4)]
        return float(np.mean([np.median(gap) for gap in gaps[1:]]))

    spreading = spread()
    plain = functools.partial(optuna.samplers.TPESampler, n_startup_trials=10, constant_liar=False)
    monkeypatch.setattr(samplers, "_sampler", lambda name, seed: plain(seed=seed))
    assert spreading > 5 * spread()


def test_what_a_grid_repeats_is_asked_once() -> None:
    asker = searcher(ranges={"draws": {"low": 1, "high": 3}, "lam": 1.0}, batch=7)
    assert [trial.state.name for trial in asker.optuna.trials] == ["WAITING"] * 3
    assert {trial.params["draws"] for trial in asker.ask()} == {1, 2, 3}


def test_every_kind_of_range_is_asked_for_in_its_own_type() -> None:
    ranges = {
        "lam": {"low": 0, "high": 100},
        "estimator": ["exact", "sampled"],
        "draws": {"low": 1, "high": 9},
        "batch_size": {"low": 8, "high": 64, "log": True},
    }
    asker = searcher(ranges=ranges)
    for _ in range(3):
        for trial in asker.ask():
            params = trial.params
            assert {k: type(v) for k, v in params.items()} == {
                "lam": float, "estimator": str, "draws": int, "batch_size": int,
            }  # fmt: skip
            assert asker.study.entry(asker.search, params).recipe.batch_size == params["batch_size"]
            tell(asker, trial)


# Telling


def test_the_value_of_a_trial_is_the_mean_over_its_seeds_which_stay_with_it() -> None:
    asker = searcher()
    trial = asker.ask()[0]
    seeds = [seed(0, average_accuracy=0.5), seed(1, average_accuracy=0.6), seed(2, average_accuracy=0.7)]
    asker.tell(trial, seeds)
    (done,) = asker.complete
    assert done.values == [pytest.approx(0.6)]
    assert done.user_attrs["seeds"] == seeds and "reason" not in done.user_attrs


def test_a_trial_with_a_diverged_seed_fails_and_says_which() -> None:
    asker = searcher()
    asked = asker.ask()
    asker.tell(asked[0], [seed(0, average_accuracy=0.9), seed(1, "diverged", average_accuracy=None)])
    for trial in asked[1:]:
        tell(asker, trial)
    failed = asker.optuna.trials[0]
    assert (failed.state, failed.values) == (TrialState.FAIL, None)
    assert failed.user_attrs["reason"] == "diverged with seeds 1"
    assert len(failed.user_attrs["seeds"]) == 2
    assert (len(asker.ended), len(asker.complete)) == (4, 3)  # it was one of the budget
    assert len(batch(asker)) == len(batch(asker)) == 4 and batch(asker) == []


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_diverged_trial_may_be_told_as_the_worst_value_there_is(name: str) -> None:
    asker = searcher(objective=name, diverged="worst", train={"epochs": 1, "evaluate_every": 10})
    first, second, *_ = asker.ask()
    asker.tell(first, [seed(0, "diverged", **{name: None}), seed(1, **{name: 0.5})])
    barely = objectives.worst(name) + (0.01 if objectives.direction(name) == "maximize" else -0.01)
    asker.tell(second, [seed(0, **{name: barely}), seed(1, **{name: barely})])
    assert [t.state for t in asker.complete] == [TrialState.COMPLETE] * 2
    assert asker.complete[0].values == [objectives.worst(name)]
    assert asker.complete[0].user_attrs["reason"] == "diverged with seeds 0"
    best = asker.best()
    assert best is not None and best.number == second.number


@pytest.mark.parametrize("diverged", ["fail", "worst"])
@SAMPLERS
def test_where_every_trial_diverges_there_is_no_best(sampler: str, diverged: str) -> None:
    asker = searcher(sampler=sampler, diverged=diverged)
    for _ in range(3):
        for trial in asker.ask():
            asker.tell(trial, [seed(0, "diverged", average_accuracy=None)])
    assert len(asker.ended) == 12 and asker.ask() == []
    assert asker.best() is None


def test_before_anything_is_told_there_is_no_best() -> None:
    assert searcher().best() is None


def test_the_best_of_one_objective_is_the_highest_or_the_lowest_as_is_better() -> None:
    for name, best in (("average_accuracy", 2), ("forgetting", 1)):
        asker = searcher(objective=name)
        for trial, value in zip(asker.ask(), (0.5, 0.2, 0.9, 0.4), strict=True):
            asker.tell(trial, [seed(0, **{name: value})])
        found = asker.best()
        assert found is not None and found.number == best


# Two objectives


def test_two_objectives_have_a_front_and_the_best_sum_on_it_is_chosen() -> None:
    asker = told(["stability", "plasticity"], (0.9, 0.3), (0.6, 0.8), (0.5, 0.7), (0.2, 0.95))
    assert {t.number for t in asker.optuna.best_trials} == {0, 1, 3}
    best = asker.best()
    assert best is not None and (best.number, best.values) == (1, [0.6, 0.8])


def test_of_two_objectives_one_may_be_to_be_kept_low() -> None:
    asker = told(["learning_accuracy", "forgetting"], (0.9, 0.5), (0.8, 0.1), (0.7, 0.2), (0.95, 0.9))
    assert {t.number for t in asker.optuna.best_trials} == {0, 1, 3}
    best = asker.best()
    assert best is not None and best.number == 1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_two_objectives_are_searched_to_the_end(sampler: str) -> None:
    asker = searcher(objective=["stability", "plasticity"], sampler=sampler)
    for _ in range(3):
        for trial in asker.ask():
            high = math.log10(trial.params["lam"]) / 6
            asker.tell(trial, [seed(0, stability=high, plasticity=1 - high**2)])
    assert len(asker.complete) == 12 and asker.ask() == []


# A study continued


@SAMPLERS
def test_a_study_continued_asks_what_it_would_have_asked_undisturbed(sampler: str) -> None:
    undisturbed = searcher(sampler=sampler)
    expected = [batch(undisturbed) for _ in range(3)]
    storage = InMemoryStorage()
    assert batch(searcher(storage, sampler=sampler)) == expected[0]
    for later in expected[1:]:
        assert batch(searcher(storage, resume=True, sampler=sampler)) == later
    assert searcher(storage, resume=True, sampler=sampler).ask() == []


@SAMPLERS
def test_trials_left_running_are_failed_and_the_same_settings_asked_again(sampler: str) -> None:
    undisturbed = searcher(sampler=sampler)
    expected = [batch(undisturbed) for _ in range(3)]
    storage = InMemoryStorage()
    killed = searcher(storage, sampler=sampler)
    batch(killed)
    left = killed.ask()
    tell(killed, left[0])

    again = searcher(storage, resume=True, sampler=sampler)
    assert states(again)[:8] == ["COMPLETE"] * 5 + ["FAIL"] * 3
    assert len(again.ended) == 5  # those that nobody trained do not count
    assert batch(again)[:3] == [trial.params["lam"] for trial in left[1:]] == expected[1][1:]
    while again.ask():
        for trial in again.optuna.get_trials(states=(TrialState.RUNNING,)):
            again.tell(optuna.Trial(again.optuna, trial._trial_id), [seed(0, average_accuracy=0.5)])
    assert len(again.ended) == len(again.complete) == 12
    assert "RUNNING" not in states(again) and "WAITING" not in states(again)


def test_trials_of_the_grid_that_were_never_asked_are_asked_when_continued() -> None:
    storage = InMemoryStorage()
    searcher(storage)  # killed before it asked anything
    assert batch(searcher(storage, resume=True)) == batch(searcher())


def test_a_grid_half_planned_is_planned_to_the_end_when_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, enqueue = InMemoryStorage(), optuna.Study.enqueue_trial
    planned: list[Any] = []

    def killed(self: optuna.Study, params: Any, **options: Any) -> None:
        if len(planned) == 2:
            raise KeyboardInterrupt
        planned.append(params)
        enqueue(self, params, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "enqueue_trial", killed)
        searcher(storage)
    assert batch(searcher(storage, resume=True)) == batch(searcher())


def test_a_trial_killed_while_it_was_being_asked_is_asked_again_as_planned() -> None:
    storage = InMemoryStorage()
    killed = searcher(storage)
    killed.optuna.ask()  # running, and no parameter of it is known yet
    again = searcher(storage, resume=True)
    assert states(again)[0] == "FAIL"
    assert sorted(batch(again)) == pytest.approx([1.0, 1e2, 1e4, 1e6])


def test_a_trial_killed_when_all_its_seeds_were_known_is_ended_and_not_asked_again() -> None:
    storage = InMemoryStorage()
    killed = searcher(storage, diverged="fail")
    good, bad, *_ = killed.ask()
    good.set_user_attr("seeds", [seed(0, average_accuracy=0.25), seed(1, average_accuracy=0.75)])
    bad.set_user_attr("seeds", [seed(0, "diverged", average_accuracy=None)])
    again = searcher(storage, resume=True)
    assert states(again)[:4] == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert again.optuna.trials[0].values == [0.5]
    assert len(again.ended) == 2
    assert [t.params["lam"] for t in again.ask()[:2]] == pytest.approx([1e4, 1e6])  # the two that nobody trained


@pytest.mark.parametrize("last", ["report", "seeds"])
def test_a_trial_killed_while_it_was_being_pruned_counts_once(last: str) -> None:
    storage = InMemoryStorage()
    killed = searcher(storage)
    trial, *_ = killed.ask()
    trial.report(0.3, 2)
    if last == "seeds":
        trial.set_user_attr("seeds", [seed(0, "pruned"), seed(1, "pruned")])
    again = searcher(storage, resume=True)
    assert states(again)[0] == ("PRUNED" if last == "seeds" else "FAIL")
    assert len(again.ended) == (last == "seeds")
    while again.ask():
        for trial in again.optuna.get_trials(states=(TrialState.RUNNING,)):
            tell(again, optuna.Trial(again.optuna, trial._trial_id))
    assert len(again.ended) == 12
    lams = [t.params["lam"] for t in again.ended]
    assert len({*lams}) == 12 and sum(lam == 1.0 for lam in lams) == 1


def test_a_pruned_trial_is_one_of_the_budget_and_never_the_best() -> None:
    asker = searcher()
    asked = asker.ask()
    asker.prune(asked[0], [seed(0, "pruned"), seed(1, "pruned")], GivenUp(2, 0.99, run_epochs=4, seconds=1.5))
    for trial in asked[1:]:
        tell(asker, trial)
    pruned = asker.optuna.trials[0]
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {2: 0.99})
    assert pruned.user_attrs["reason"] == "pruned after task 2"
    assert pruned.user_attrs["saved"] == {"run_epochs": 4, "seconds": 1.5}
    assert (len(asker.ended), len(asker.complete)) == (4, 3)
    best = asker.best()
    assert best is not None and best.number != 0


def test_more_trials_may_be_asked_of_a_study_that_ended() -> None:
    storage = InMemoryStorage()
    first = searcher(storage, trials=4)
    batch(first)
    assert first.ask() == []
    more = searcher(storage, resume=True, trials=6)
    assert len(batch(more)) == 2 and more.ask() == []


def test_another_study_of_the_same_file_gets_the_next_free_number() -> None:
    storage = InMemoryStorage()
    for name in ("trial", "trial-2", "trial-3"):
        assert free_name([made()], storage) == name
        study = made(name=name)
        Searcher(study, study.searches[0], storage, resume=False)
    with pytest.raises(StudyError, match=r"'trial-3/ewc'"):
        Searcher(study, study.searches[0], storage, resume=False)
    assert free_name([made(name="other")], storage) == "other"


def test_another_study_under_several_protocols_has_one_name_for_all() -> None:
    storage = InMemoryStorage()
    first, second = spec.parse(changed({"protocol": ["validation", "test-oracle"]}))
    assert free_name([first, second], storage) == "trial"
    Searcher(second, second.searches[0], storage, resume=False)
    assert second.name == "trial-test-oracle" and free_name([first, second], storage) == "trial-2"


@pytest.mark.parametrize(("lam", "end"), [(1.0, "lower"), (1e6, "upper"), (9e5, "upper"), (1e3, ""), (2.0, "")])
def test_a_choice_at_an_end_of_its_range_is_said_to_be(lam: float, end: str) -> None:
    asker = searcher()
    best = optuna.trial.create_trial(params={"lam": lam}, distributions=asker.search.space, value=0.5)
    said = f"ewc: lam = {lam:.3g} is at the {end} end of its range, 1 to 1e+06; a better one may lie beyond"
    assert list(answers._at_an_end(asker, best)) == ([said] if end else [])


@pytest.mark.parametrize(
    ("strategy", "params", "ends"),
    [
        ({"name": "l2", "lam": {"low": 0.0, "high": 100.0}}, {"lam": 1.0}, []),  # searched over decades
        ({"name": "l2", "lam": {"low": 0.0, "high": 100.0}}, {"lam": 0.0}, []),
        ({"name": "l2", "lam": {"low": 0.0, "high": 100.0}}, {"lam": 100.0}, ["upper"]),
        ({"name": "ewc", "lam": 1.0, "decay": {"low": 0.0, "high": 1.0}}, {"decay": 1.0}, []),  # γ cannot be more
        ({"name": "ewc", "lam": 1.0, "decay": {"low": 0.5, "high": 0.9}}, {"decay": 0.9}, ["upper"]),
        ({"name": "ewc", "lam": 1.0, "decay": {"low": 0.5, "high": 0.9}}, {"decay": 0.5}, ["lower"]),
        ({"name": "ewc", "lam": 1.0, "epochs": {"low": 1, "high": 10}}, {"epochs": 1}, []),
        ({"name": "ewc", "lam": 1.0, "epochs": {"low": 1, "high": 10}}, {"epochs": 10}, ["upper"]),
        ({"name": "ewc", "lam": 1.0, "lr": {"low": 1e-4, "high": 1e-2}}, {"lr": 1e-4}, ["lower"]),
    ],
)
def test_nothing_better_lies_beyond_the_end_of_what_there_is(
    strategy: dict[str, Any], params: dict[str, float], ends: list[str]
) -> None:
    asker = searcher(ranges=strategy)
    best = optuna.trial.create_trial(params=params, distributions=asker.search.space, value=0.5)
    assert [said.partition(" end of its range")[0].split()[-1] for said in answers._at_an_end(asker, best)] == ends
