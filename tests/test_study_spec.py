"""Study files: ranges, protocols and budgets, and everything that can be wrong with them, said at once."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from benchmark import config
from benchmark.config import ConfigError
from strategies import EWC, L2, names, registry
from studies import objectives, plasticity, spec
from studies.spec import Study

LAM = {"low": 1.0, "high": 1e6, "log": True}
BASE: dict[str, Any] = {
    "name": "trial",
    "scenario": {"name": "permuted-digits", "tasks": 2},
    "train": {"lr": 1e-3, "batch_size": 32, "iterations": 6},
    "study": {"trials": 4, "batch": 2, "seeds": 2, "test_seeds": 2},
    "strategy": [{"name": "ewc", "lam": LAM}],
}


def changed(study: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The base with keys of `[study]` changed, and whole tables replaced."""
    content = copy.deepcopy(BASE)
    return content | {"study": content["study"] | (study or {})} | changes


def made(study: dict[str, Any] | None = None, **changes: Any) -> Study:
    (found,) = spec.parse(changed(study, **changes))
    return found


def loaded(name: str, *overrides: str) -> Study:
    (found,) = spec.load(name, [*overrides])
    return found


def space(**ranges: Any) -> dict[str, Any]:
    """The distributions of EWC with these ranges, λ's being fixed unless it is one of them."""
    (search,) = made(strategy=[{"name": "ewc", "lam": 1.0, **ranges}]).searches
    return search.space


def errors(content: dict[str, Any]) -> list[str]:
    """The lines that a wrong file is answered with, the first one checked."""
    with pytest.raises(ConfigError) as caught:
        spec.parse(content)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} error{'s' * (len(lines) != 1)} in the study:"
    return [line.strip() for line in lines]


def error(content: dict[str, Any]) -> str:
    """The one line that a wrong file is answered with."""
    (line,) = errors(content)
    return line


# What to search


def test_a_table_is_a_range_a_list_are_choices_and_anything_else_is_fixed() -> None:
    entry = {"name": "ewc", "lam": LAM, "estimator": ["exact", "sampled"], "decay": {"low": 0.5, "high": 1.0}}
    (search,) = made(strategy=[entry | {"accumulate": "online"}]).searches
    assert search.space == {
        "lam": FloatDistribution(1.0, 1e6, log=True),
        "estimator": CategoricalDistribution(["exact", "sampled"]),
        "decay": FloatDistribution(0.5, 1.0),
    }
    assert search.fixed == {"name": "ewc", "accumulate": "online"}
    assert search.label == "ewc[accumulate=online]"


def test_every_strategy_of_the_file_is_searched() -> None:
    study = made(strategy=[{"name": "ewc", "estimator": "exact"}, {"name": "ewc", "lam": LAM}, {"name": "l2"}])
    assert [search.label for search in study.searches] == ["ewc[estimator=exact]", "ewc", "l2"]


DECLARED = {
    name: ranges
    for name in names()
    if (
        ranges := {f.name: f.metadata["tune"] for f in dataclasses.fields(registry.get(name)) if f.metadata.get("tune")}
    )
}


@pytest.mark.parametrize("name", DECLARED)
def test_where_the_file_names_no_range_the_strategys_own_are_searched(name: str) -> None:
    (search,) = made(strategy=[{"name": name}]).searches
    assert search.space == {k: FloatDistribution(low, high, log=True) for k, (low, high) in DECLARED[name].items()}
    assert search.fixed == {"name": name}


def test_what_the_file_fixes_is_not_searched_although_the_strategy_declares_a_range() -> None:
    assert {*DECLARED["der++"]} == {"alpha", "beta"}
    (search,) = made(strategy=[{"name": "der++", "alpha": 0.5}]).searches
    assert ({*search.space}, search.fixed) == ({"beta"}, {"name": "der++", "alpha": 0.5})


def test_what_a_strategy_declares_is_searched_beside_what_the_file_asks_for() -> None:
    """λ is not left at its default because something else was to be searched."""
    low, high = DECLARED["ewc"]["lam"]
    for asked in ({"estimator": ["exact", "sampled"]}, {"decay": {"low": 0.0, "high": 1.0}}, {"lr": [1e-3, 1e-2]}):
        (search,) = made(strategy=[{"name": "ewc"} | asked]).searches
        assert {*search.space} == {"lam", *asked}
        assert search.space["lam"] == FloatDistribution(low, high, log=True)
    (search,) = made(strategy=[{"name": "der++", "alpha": {"low": 0.0, "high": 1.0}}]).searches
    assert {*search.space} == {"alpha", "beta"}


def test_what_is_searched_can_be_said_in_words() -> None:
    entry = {"name": "ewc", "lam": LAM, "estimator": ["exact", "sampled"], "draws": {"low": 1, "high": 5}}
    (search,) = made(strategy=[entry | {"accumulate": "online"}]).searches
    assert search.describe() == (
        "ewc[accumulate=online]: lam from 1 to 1e+06 (log), estimator one of exact, sampled, draws from 1 to 5"
    )


def test_whole_numbers_are_searched_in_whole_numbers_where_no_others_make_sense() -> None:
    assert space(draws={"low": 1, "high": 5}) == {"draws": IntDistribution(1, 5)}
    assert space(batch_size={"low": 8, "high": 64, "log": True}) == {"batch_size": IntDistribution(8, 64, log=True)}


def test_a_hyperparameter_is_a_float_however_its_range_is_spelled() -> None:
    """`decay = {low = 0, high = 1}` is no choice between two values."""
    assert space(decay={"low": 0, "high": 1}) == {"decay": FloatDistribution(0.0, 1.0)}
    assert space(lam={"low": 1, "high": 1000, "log": True}) == {"lam": FloatDistribution(1.0, 1000.0, log=True)}
    assert space(momentum={"low": 0, "high": 0.5}) == {"momentum": FloatDistribution(0.0, 0.5)}
    assert space(weight_decay={"low": 0, "high": 1}) == {"weight_decay": FloatDistribution(0.0, 1.0)}


def test_the_recipe_can_be_searched_like_a_strategy() -> None:
    lr = {"low": 1e-4, "high": 1e-1, "log": True}
    study = made(strategy=[{"name": "ewc", "lr": lr, "optimizer": ["adam", "sgd"], "epochs": {"low": 1, "high": 3}}])
    assert study.searches[0].space["lr"] == FloatDistribution(1e-4, 1e-1, log=True)
    recipe = study.entry(study.searches[0], {"lr": 0.01, "optimizer": "sgd", "epochs": 2}).recipe
    assert (recipe.lr, recipe.optimizer, recipe.epochs, recipe.iterations) == (0.01, "sgd", 2, None)


def test_a_trial_is_the_strategy_with_what_is_fixed_and_what_was_drawn() -> None:
    study = made(strategy=[{"name": "ewc", "lam": LAM, "estimator": "exact", "lr": 0.5}, {"name": "l2"}])
    entry = study.entry(study.searches[0], {"lam": 12.5})
    assert (entry.strategy, entry.name) == (EWC(lam=12.5, estimator="exact"), "ewc")
    assert (entry.recipe.lr, entry.recipe.batch_size, entry.recipe.iterations) == (0.5, 32, 6)
    assert study.entry(study.searches[1], {"lam": 3.0}).strategy == L2(lam=3.0)


def test_bounds_of_a_range_may_be_those_of_the_hyperparameter() -> None:
    assert space(decay={"low": 0.0, "high": 1.0})["decay"].high == 1.0
    assert space(lam={"low": 0.0, "high": 10.0})["lam"].low == 0.0


# Objectives


def test_an_objective_is_pushed_the_way_that_is_better() -> None:
    assert {name: objectives.direction(name) for name in objectives.OBJECTIVES} == {
        name: "minimize" if name == "forgetting" else "maximize" for name in objectives.OBJECTIVES
    }


PERFECT = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
FORGOTTEN = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", objectives.AFTER_TASKS)
def test_nothing_is_worse_than_the_worst(name: str) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = [*rng.integers(0, 2, (400, 4, 3)).astype(float), np.array(PERFECT), np.array(FORGOTTEN)]
    values = [objectives.AFTER_TASKS[name](a) for a in drawn]
    sign = 1 if objectives.direction(name) == "maximize" else -1
    assert min(sign * v for v in values) == sign * objectives.worst(name)  # reached, and not passed


def test_stability_is_of_old_tasks_and_plasticity_of_each_when_it_was_new() -> None:
    import numpy as np

    a = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.2], [0.8, 0.7, 0.2], [0.6, 0.4, 0.3]])
    assert objectives.AFTER_TASKS["stability"](a) == pytest.approx((0.6 + 0.4) / 2)
    assert objectives.AFTER_TASKS["plasticity"](a) == pytest.approx((0.9 + 0.7 + 0.3) / 3)


def test_one_objective_may_be_written_as_a_list_of_one() -> None:
    assert made({"objective": ["bwt"]}).objectives == made({"objective": "bwt"}).objectives == ("bwt",)
    assert made({"objective": ["stability", "plasticity"]}).objectives == ("stability", "plasticity")


# Protocols


FIVE = {"name": "permuted-digits", "tasks": 5}
SHAPED = {"name": "permuted-mnist", "tasks": 5}


def test_by_default_a_tenth_of_the_training_images_decides_and_fresh_seeds_report() -> None:
    study = made(scenario=FIVE)
    whole = study.experiment.scenario
    assert (study.protocol, whole.validation) == ("validation", 0.0)
    assert study.tuning == dataclasses.replace(whole, validation=0.1)
    assert study.reported == whole
    assert (study.tuning_seeds, study.test_seeds) == ((0, 1), (2, 3))


def test_first_k_tunes_on_the_first_tasks_and_reports_on_the_others() -> None:
    study = made({"protocol": "first-k", "tasks": 3, "validation": 0.25}, scenario=FIVE)
    whole = study.experiment.scenario
    assert study.tuning == dataclasses.replace(whole.part(1, 3), validation=0.25)
    assert study.reported == whole.part(4, 5)
    assert (study.tuning.before, study.reported.before) == (0, 3)


@pytest.mark.parametrize(
    "tune_on",
    [
        {"name": "permuted-mnist", "tasks": 5},
        {"name": "split-mnist", "tasks": 5, "incremental": "domain"},
        ["mnist", "kmnist", "fashion-mnist", "mnist", "kmnist"],
    ],
)
def test_two_dataset_tunes_on_a_scenario_of_its_own(tune_on: Any) -> None:
    from benchmark import scenarios

    study = made({"protocol": "two-dataset", "tune_on": tune_on}, scenario=FIVE)
    assert study.tuning == dataclasses.replace(scenarios.resolve(tune_on), validation=0.1)
    assert study.reported == study.experiment.scenario


def test_test_oracle_tunes_on_what_it_reports_with_the_same_seeds_and_says_so() -> None:
    study = made({"protocol": "test-oracle"})
    assert study.tuning == study.reported == study.experiment.scenario
    assert study.test_seeds == study.tuning_seeds == (0, 1)
    assert "tuned on test" in study.describe().lower()


def test_several_protocols_are_as_many_studies_each_named_after_its_own() -> None:
    protocols = ["test-oracle", "validation", "first-k", "two-dataset"]
    found = spec.parse(changed({"protocol": protocols, "tune_on": SHAPED}, scenario=FIVE))
    assert [(study.name, study.protocol) for study in found] == [(f"trial-{p}", p) for p in protocols]
    for study in found:
        tune_on = SHAPED if study.protocol == "two-dataset" else None
        alone = made({"protocol": study.protocol, "tune_on": tune_on}, scenario=FIVE)
        assert (study.tuning, study.reported) == (alone.tuning, alone.reported)
        assert (study.tuning_seeds, study.test_seeds) == (alone.tuning_seeds, alone.test_seeds)
        assert alone.name == "trial"


def test_plasticity_first_tunes_as_validation_does_with_a_budget_of_its_own() -> None:
    study = made({"protocol": "plasticity-first"}, scenario=FIVE)
    assert (study.tuning, study.reported) == (made(scenario=FIVE).tuning, study.experiment.scenario)
    assert (study.table.plasticity, study.table.lam_decay, study.table.lam_decays) == (0.8, 0.5, 7)
    assert study.trials == 8 and made().trials == 4
    assert study.describe() == (
        "plasticity-first: lam times 0.5, at most 7 times, until it keeps 0.8 of fine-tuning's accuracy on each new task "
        "(10% of each label's training images); 8 trials a strategy, and fine-tuning beside them, 2 tuning seeds, "
        "2 test seeds"
    )


@pytest.mark.parametrize("name", [name for name in names() if "lam" in registry.get(name).hyperparameters()])
def test_plasticity_first_takes_every_strategy_that_has_a_lam_as_it_is(name: str) -> None:
    study = made({"protocol": "plasticity-first"}, strategy=[{"name": name}])
    lams = plasticity.ladder(study, study.searches[0])
    high = DECLARED[name]["lam"][1]
    assert lams == [high / 2**k for k in range(8)]


def test_lam_comes_down_by_the_factor_and_as_often_as_the_file_says_and_stays_in_its_range() -> None:
    third = {"protocol": "plasticity-first", "lam_decay": 0.1, "lam_decays": 3}
    for low, high in ((0.3, 300.0), (0.7, 700.0), (1.1, 1100.0)):  # rounding goes either way
        study = made(third, strategy=[{"name": "ewc", "lam": {"low": low, "high": high}}])
        lams = plasticity.ladder(study, study.searches[0])
        assert lams == pytest.approx([high, high / 10, high / 100, low], rel=1e-12)
        assert (max(lams), study.trials) == (high, 4) and min(lams) >= low


@pytest.mark.parametrize("protocol", ["validation", "first-k", "plasticity-first", "two-dataset"])
def test_no_protocol_but_test_oracle_has_a_test_image_or_a_seed_in_common_with_the_report(protocol: str) -> None:
    tune_on = SHAPED if protocol == "two-dataset" else None
    study = made({"protocol": protocol, "tune_on": tune_on, "seeds": 3, "test_seeds": 4}, scenario=FIVE)
    assert study.tuning.validation > 0
    assert study.reported.validation == 0
    assert (len(study.tuning_seeds), len(study.test_seeds)) == (3, 4)
    assert not {*study.tuning_seeds} & {*study.test_seeds}
    assert "test-oracle" not in study.describe() and "tuned on test" not in study.describe().lower()


def test_what_decides_a_trial_is_part_of_what_must_be_equal_to_continue() -> None:
    def described(**kwargs: Any) -> dict[str, Any]:
        study = made(**kwargs)
        return study.description(study.searches[0])

    base = described()
    for different in (
        {"scenario": FIVE},
        {"model": "mlp"},
        {"train": {"lr": 1e-2, "iterations": 6}},
        {"strategy": [{"name": "ewc", "lam": LAM | {"high": 1e5}}]},
        {"strategy": [{"name": "ewc", "lam": LAM, "estimator": "exact"}]},
        {"strategy": [{"name": "l2", "lam": LAM}]},
        *({"study": {k: v}} for k, v in {
            "objective": "bwt", "protocol": "test-oracle", "sampler": "random", "seed": 1, "seeds": 3,
            "validation": 0.2, "diverged": "worst",
        }.items()),
    ):  # fmt: skip
        assert described(**different) != base, different
    # What concerns another protocol decides nothing.
    assert described(study={"lam_decays": 3, "plasticity": 0.5}) == base
    first = {"protocol": "plasticity-first"}
    assert described(study=first | {"plasticity": 0.5}) != described(study=first)
    # More trials, in larger batches, with more seeds in the end: that is the same study, continued.
    assert described(study={"trials": 9, "batch": 3, "timeout": 60, "test_seeds": 9}) == base


# Errors


def test_all_errors_of_a_file_are_reported_at_once_each_with_its_path() -> None:
    lines = errors(
        {
            "name": "a b",
            "scenario": "permuted",
            "seeds": 3,
            "colour": "red",
            "train": {"lr": -1.0},
            "study": {
                "objective": "accuracy", "sampler": "tpee", "trials": 0, "seeds": 0, "trails": 3, "timeout": -1,
                "protocol": "validate", "validation": 1.0, "tasks": 1, "batch": 0, "test_seeds": 0, "seed": -1,
                "tune_on": "permuted-minst", "diverged": "ignore", "pruning": "median",
            },
            "strategy": [
                {"name": "ewc", "lam": {"low": 5, "high": 1}},
                {"name": "ewcc"},
                {"name": "l2", "lamb": LAM},
                {"name": "si", "lam": {"low": 0, "high": 2, "log": True}},
                {"name": "mas", "lam": []},
                {"name": "naive"},
                {"name": "lwf", "lam": {"low": -1.0, "high": 2.0}, "temperature": 0.0},
            ],
        }
    )  # fmt: skip
    by_path = {line.split(": ")[0]: line for line in lines}
    assert len(lines) == len(by_path), lines
    in_study = [
        "objective", "sampler", "trials", "seeds", "trails", "timeout", "protocol", "validation", "tasks", "batch",
        "test_seeds", "seed", "tune_on", "diverged", "pruning",
    ]  # fmt: skip
    assert sorted(by_path) == sorted([
        "name", "scenario", "seeds", "colour", "train.lr", *(f"study.{key}" for key in in_study),
        "strategy.0.lam", "strategy.1.name", "strategy.2.lamb", "strategy.3.lam", "strategy.4.lam", "strategy.5",
        "strategy.6.lam", "strategy.6.temperature",
    ])  # fmt: skip
    assert "did you mean 'average_accuracy'" in by_path["study.objective"]
    assert "did you mean 'trials'" in by_path["study.trails"]
    assert "did you mean 'lam'" in by_path["strategy.2.lamb"]


def test_mistakes_of_single_keys_do_not_hide_those_of_several_nor_make_up_any() -> None:
    two = {"objective": ["bwt", "fwt"], "sampler": "gp", "pruning": "halving"}
    lines = errors(changed(two | {"trials": 0, "protocol": "two-datset", "tune_on": "permuted-mnist"}, scenario=FIVE))
    assert [line.split(", got")[0] for line in lines] == [
        "study.protocol: unknown protocol 'two-datset'; did you mean 'two-dataset'?",
        "study.trials: expected greater than or equal to 1",
        "study: sampler gp: expected one objective",
        "study: pruning halving: expected one objective",
    ]
    short = errors(changed({"seeds": 0, "protocol": "first-k", "tasks": 4}, scenario=FIVE))
    assert [line.partition(":")[0] for line in short] == ["study.seeds", "study.tasks"]
    assert errors(changed() | {"study": 3}) == ["study: expected a table, got 3"]


RANGE = "expected a range such as {low = 1.0, high = 1e7, log = true}, got"
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"lam": {"low": 6.0, "high": 5}}, "strategy.0.lam: expected low < high, got 6 and 5"),
        ({"lam": {"low": 5, "high": 5}}, "strategy.0.lam: expected low < high, got 5 and 5"),
        ({"draws": {"low": 3, "high": 3}}, "strategy.0.draws: expected low < high, got 3 and 3"),
        (
            {"lam": {"low": 0, "high": 5, "log": True}},
            "strategy.0.lam: a log range must lie above 0, got low = 0",
        ),
        ({"lam": {"low": -2.5, "high": 5.0, "log": True}}, "strategy.0.lam: a log range must lie above 0, got low = -2.5"),
        ({"lam": {"low": -1, "high": 5}}, "strategy.0.lam: expected greater than or equal to 0, got -1"),
        ({"decay": {"low": 0.5, "high": 2.0}}, "strategy.0.decay: expected less than or equal to 1, got 2.0"),
        ({"lr": {"low": 0.0, "high": 0.1}}, "strategy.0.lr: expected greater than 0, got 0.0"),
        ({"lam": {"low": 1, "hihg": 5}}, f"strategy.0.lam: {RANGE} {{'low': 1, 'hihg': 5}}"),
        ({"lam": {"low": 1, "high": 5, "logg": True}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": 1}}, f"strategy.0.lam: {RANGE} {{'low': 1}}"),
        ({"lam": {"high": 1}}, f"strategy.0.lam: {RANGE} {{'high': 1}}"),
        ({"lam": {}}, f"strategy.0.lam: {RANGE} {{}}"),
        ({"lam": {"low": "1", "high": 5}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": 1, "high": [5]}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": False, "high": True}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": NAN, "high": 5.0}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": 1.0, "high": INF}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": -INF, "high": 1.0}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": 1.0, "high": 5.0, "log": "true"}}, f"strategy.0.lam: {RANGE}"),
        ({"lam": {"low": 1.0, "high": 5.0, "log": 1}}, f"strategy.0.lam: {RANGE}"),
        ({"estimator": {"low": 1.0, "high": 5.0, "logg": 1}}, f"strategy.0.estimator: {RANGE}"),
        ({"estimator": []}, "strategy.0.estimator: expected at least one choice, got an empty list"),
        ({"lam": []}, "strategy.0.lam: expected at least one choice, got an empty list"),
        ({"lam": [[1.0], [2.0]]}, "strategy.0.lam: expected numbers, words or truth values as choices, got [[1.0], [2.0]]"),
        ({"lam": [{"low": 1.0}]}, "strategy.0.lam: expected numbers, words or truth values as choices, got"),
        ({"lam": [1.0, NAN]}, "strategy.0.lam: expected a finite number, got nan"),
        ({"lam": [1.0, "high"]}, "strategy.0.lam: expected a valid number, got 'high'"),
        ({"estimator": ["exact", "fisher"]}, "strategy.0.estimator: expected 'exact', "),
        ({"lam": [1, 1.0]}, "strategy: 'ewc[lam=1]' is there more than once"),
        ({"lamb": LAM}, "strategy.0.lamb: unknown key; did you mean 'lam'?"),
        ({"estimater": ["exact"]}, "strategy.0.estimater: unknown key; did you mean 'estimator'?"),
        ({"lam": 5.0}, "strategy.0: nothing to search; give a range such as lam = {low = 1.0, high = 1e7, log = true}"),
        ({"name": "naive"}, "strategy.0: nothing to search"),
        ({"name": "ewcc"}, "strategy.0.name: unknown strategy 'ewcc'; did you mean 'ewc'? (forgetbench list strategies)"),
        ({"name": "ewcc", "lam": LAM}, "strategy.0.name: unknown strategy 'ewcc'; did you mean 'ewc'?"),
        ({"name": ["ewc", "l2"]}, "strategy.0.name: expected the name of a strategy (forgetbench list strategies)"),
        ({"name": LAM}, "strategy.0.name: expected the name of a strategy (forgetbench list strategies)"),
        ({"lam": LAM, "epochs": [1, 2], "iterations": 3}, "strategy.0: expected epochs or iterations, got both"),
    ],
)  # fmt: skip
def test_a_wrong_range_or_strategy_is_one_line_with_what_was_expected(entry: dict[str, Any], line: str) -> None:
    assert error(changed(strategy=[{"name": "ewc"} | entry])).startswith(line)


def test_a_range_of_an_unknown_hyperparameter_is_said_to_be_both() -> None:
    lines = errors(changed(strategy=[{"name": "ewc", "lamb": {"low": 5, "high": 1}}]))
    assert lines == [
        "strategy.0.lamb: expected low < high, got 5 and 1",
        "strategy.0.lamb: unknown key; did you mean 'lam'?",
    ]


def test_a_fraction_where_whole_numbers_are_wanted_is_refused() -> None:
    lines = errors(changed(strategy=[{"name": "ewc", "draws": {"low": 1.0, "high": 4.5}}]))
    assert {line.split(": ")[0] for line in lines} == {"strategy.0.draws"}
    assert "strategy.0.draws: expected a valid integer, got 4.5" in lines


@pytest.mark.parametrize(
    ("study", "line"),
    [
        ({"objective": "accuracy"}, "study.objective: unknown metric 'accuracy'; did you mean 'average_accuracy'?"),
        ({"objective": "xyz"}, "study.objective: unknown metric 'xyz'; known: average_accuracy, forgetting, bwt"),
        (
            {"objective": ["bwt", "forgeting"]},
            "study.objective: unknown metric 'forgeting'; did you mean 'forgetting'?",
        ),
        ({"objective": ["bwt", "bwt"]}, "study.objective: expected one metric, or two different ones, got ['bwt', 'bwt']"),
        ({"objective": []}, "study.objective: expected one metric, or two different ones, got []"),
        ({"objective": ["bwt", "fwt", "forgetting"]}, "study.objective: expected one metric, or two different ones"),
        ({"sampler": "tpee"}, "study.sampler: expected 'tpe', 'gp' or 'random', got 'tpee'"),
        ({"trials": 0}, "study.trials: expected greater than or equal to 1, got 0"),
        ({"trials": -3}, "study.trials: expected greater than or equal to 1, got -3"),
        ({"trials": 1.5}, "study.trials: expected a valid integer, got 1.5"),
        ({"trials": True}, "study.trials: expected a valid integer, got True"),
        ({"trials": "20"}, "study.trials: expected a valid integer, got '20'"),
        ({"trails": 3}, "study.trails: unknown key; did you mean 'trials'?"),
        ({"batch": 0}, "study.batch: expected greater than or equal to 1, got 0"),
        ({"seeds": 0}, "study.seeds: expected greater than or equal to 1, got 0"),
        ({"seeds": [0, 1]}, "study.seeds: expected a valid integer, got [0, 1]"),
        ({"test_seeds": 0}, "study.test_seeds: expected greater than or equal to 1, got 0"),
        ({"seed": -1}, "study.seed: expected greater than or equal to 0, got -1"),
        ({"timeout": 0}, "study.timeout: expected greater than 0, got 0"),
        ({"timeout": NAN}, "study.timeout: expected a finite number, got nan"),
        ({"validation": 0}, "study.validation: expected greater than 0, got 0"),
        ({"validation": 1.0}, "study.validation: expected less than 1, got 1.0"),
        ({"protocol": "validate"}, "study.protocol: unknown protocol 'validate'; did you mean 'validation'?"),
        ({"protocol": "k"}, "study.protocol: unknown protocol 'k'; known: validation, first-k, plasticity-first, two-dataset"),
        ({"protocol": ["first-k", "oracle"]}, "study.protocol: unknown protocol 'oracle'; did you mean 'test-oracle'?"),
        ({"protocol": []}, "study.protocol: expected one protocol, or several different ones, got []"),
        ({"plasticity": 1.1}, "study.plasticity: expected less than or equal to 1, got 1.1"),
        ({"lam_decay": 1.0}, "study.lam_decay: expected less than 1, got 1.0"),
        ({"lam_decays": 0}, "study.lam_decays: expected greater than or equal to 1, got 0"),
        (
            {"protocol": "plasticity-first", "pruning": "halving"},
            "study: pruning halving: protocol plasticity-first wants every trial to the end; take none",
        ),
        ({"pruning": "halving", "batch": 1}, "study: pruning halving: expected batches of at least 2 trials, got 1"),
        ({"pruning": "halving", "trials": 1}, "study: pruning halving: expected batches of at least 2 trials, got 1"),
        (
            {"pruning": "halving", "protocol": "first-k"},
            "study.pruning: halving acts after tasks 2, 4, 8, ... but the last, and trials of protocol first-k have 2 "
            "tasks; take none",
        ),
        ({"protocol": ["first-k"] * 2}, "study.protocol: expected one protocol, or several different ones, got"),
        ({"protocol": ["first-k", "two-dataset"]}, "study: protocol two-dataset, and no other, needs tune_on"),
        ({"diverged": "skip"}, "study.diverged: expected 'fail' or 'worst', got 'skip'"),
        (
            {"protocol": "two-dataset"},
            "study: protocol two-dataset, and no other, needs tune_on: the scenario to tune on",
        ),
        ({"tune_on": "permuted-mnist"}, "study: protocol two-dataset, and no other, needs tune_on"),
        ({"protocol": "first-k", "tune_on": "permuted-mnist"}, "study: protocol two-dataset, and no other, needs tune_on"),
        (
            {"protocol": "two-dataset", "tune_on": "permuted-minst"},
            "study.tune_on: unknown scenario 'permuted-minst'; did you mean 'permuted-mnist'?",
        ),
        (
            {"protocol": "two-dataset", "tune_on": {"name": "permuted-mnist", "task": 2}},
            "study.tune_on: scenario 'permuted-mnist': unknown option 'task'; did you mean 'tasks'?",
        ),
        ({"protocol": "two-dataset", "tune_on": ["mnist"]}, "study.tune_on: expected at least 2 tasks, got 1"),
        ({"objective": ["bwt", "fwt"], "sampler": "gp"}, "study: sampler gp: expected one objective, got two; take tpe"),
        ({"protocol": "first-k", "tasks": 1}, "study.tasks: expected greater than or equal to 2, got 1"),
        (
            {"protocol": "first-k", "tasks": 4},
            "study.tasks: expected to leave at least 2 of the scenario's 5 tasks to report on, got 4 to tune on",
        ),
        ({"protocol": ["validation", "first-k"], "tasks": 4}, "study.tasks: expected to leave at least 2"),
        ({"protocol": "first-k", "tasks": 9}, "study.tasks: expected to leave at least 2 of the scenario's 5 tasks"),
    ],
)  # fmt: skip
def test_a_wrong_study_table_is_one_line_with_what_was_expected(study: dict[str, Any], line: str) -> None:
    assert error(changed(study, scenario=FIVE)).startswith(line)


@pytest.mark.parametrize("key", ["objective", "protocol", "tune_on"])
def test_a_value_of_the_wrong_type_is_an_error_of_its_key(key: str) -> None:
    content = changed({"protocol": "two-dataset", "tune_on": SHAPED} | {key: 3}, scenario=FIVE)
    assert all(line.startswith(f"study.{key}: expected ") and line.endswith("got 3") for line in errors(content))


def test_one_task_alone_has_nothing_to_be_tuned() -> None:
    """λ acts from the second, and forgetting is not defined: a trial would have no value."""
    assert (
        error(changed(scenario={"name": "permuted-digits", "tasks": 1})) == "scenario: expected at least 2 tasks, got 1"
    )


def test_halving_is_refused_where_trials_have_too_few_tasks_and_nowhere_else() -> None:
    halving = {"pruning": "halving"}
    assert error(changed(halving)).startswith("study.pruning: ")  # two tasks
    three = {"name": "permuted-digits", "tasks": 3}
    assert made(halving, scenario=three).table.pruning == "halving"
    assert made(halving | {"protocol": "first-k", "tasks": 3}, scenario=FIVE).table.pruning == "halving"


@pytest.mark.parametrize(
    ("tune_on", "got"),
    [
        ({"name": "permuted-mnist", "tasks": 4}, "4 tasks, domain incremental"),
        ({"name": "split-mnist", "tasks": 5, "incremental": "class"}, "5 tasks, class incremental"),
    ],
)
def test_two_dataset_wants_the_shape_that_is_reported_on(tune_on: Any, got: str) -> None:
    said = error(changed({"protocol": "two-dataset", "tune_on": tune_on}, scenario=FIVE))
    wanted = "expected the shape that is reported on, 5 tasks, domain incremental"
    assert said == f"study.tune_on: {wanted}, got {got}"


@pytest.mark.parametrize("name", objectives.WHILE_TRAINING)
def test_what_is_measured_while_training_needs_evaluations_there(name: str) -> None:
    wanted = "is measured while training: expected train.evaluate_every, in steps, got 0"
    assert error(changed({"objective": name})) == f"study.objective: {name} {wanted}"
    evaluated = BASE["train"] | {"evaluate_every": 2}
    assert made({"objective": name}, train=evaluated).objectives == (name,)
    halving = changed({"objective": name, "pruning": "halving"}, scenario=FIVE, train=evaluated)
    known = "expected an objective known after each task"
    assert error(halving) == f"study: pruning halving: {known}, got {name}; take none"


LADDERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no lam": (
        {"name": "der++"},
        ["strategy.1: protocol plasticity-first chooses lam, which 'der++' does not have"],
    ),
    "choices": (
        {"name": "ewc", "lam": [1.0, 2.0]},
        ["strategy.1.lam: expected a range, from whose high end protocol plasticity-first comes down"],
    ),
    "fixed": (
        {"name": "ewc", "lam": 1.0, "decay": {"low": 0.0, "high": 1.0}},
        ["strategy.1.lam: expected a range, from whose high end protocol plasticity-first comes down"],
    ),
    "something else too": (
        {"name": "ewc", "estimator": ["exact", "sampled"], "decay": {"low": 0.0, "high": 1.0}},
        ["strategy.1: protocol plasticity-first chooses lam alone; give decay, estimator one value"],
    ),
    "out of its range": (
        {"name": "ewc", "lam": {"low": 10.0, "high": 1000.0}},
        ["strategy.1.lam: expected low <= 7.8125 (1000 times 0.5 to the power of study.lam_decays = 7), got 10"],
    ),
    "unknown": (
        {"name": "ewcc"},
        ["strategy.1.name: unknown strategy 'ewcc'; did you mean 'ewc'? (forgetbench list strategies)"],
    ),
}


@pytest.mark.parametrize("case", LADDERS)
def test_what_plasticity_first_cannot_choose_is_one_line_with_what_it_wants(case: str) -> None:
    entry, lines = LADDERS[case]
    assert errors(changed({"protocol": "plasticity-first"}, strategy=[{"name": "l2"}, entry])) == lines
    assert made(strategy=[{"name": "l2"}, entry]) if case not in {"unknown"} else True


def test_the_number_of_tasks_matters_for_first_k_alone() -> None:
    assert made({"tasks": 9}).reported.tasks == 2


def test_the_seeds_of_an_experiment_are_not_those_of_a_study_and_not_passed_over() -> None:
    assert error(changed(seeds=5)) == (
        "seeds: a study has study.seeds, of every trial, and study.test_seeds, of the final evaluation"
    )


@pytest.mark.parametrize("content", [{"study": 3}, {"study": []}, {"strategy": 3}, {"strategy": []}, {"strategy": [3]}])
def test_tables_that_are_none_are_errors_of_the_file_like_any_other(content: dict[str, Any]) -> None:
    (key,) = content
    lines = errors(copy.deepcopy(BASE) | content)
    assert lines and all(re.split(r"[.:]", line)[0] == key for line in lines)


def test_an_empty_file_is_told_what_is_missing() -> None:
    assert {"name: missing", "scenario: missing", "strategy: missing"} == set(errors({}))


def test_a_table_that_is_none_is_named_and_nothing_of_the_code_is() -> None:
    assert errors(changed() | {"study": 3}) == ["study: expected a table, got 3"]
    assert errors(changed(train=3)) == ["train: expected a table, got 3"]


def test_searches_that_share_settings_are_two_all_the_same() -> None:
    one, two = (
        {"name": "ewc", "lam": LAM, "estimator": "exact"},
        {"name": "ewc", "lam": LAM, "estimator": ["exact", "sampled"]},
    )
    study = made(strategy=[one, two])
    assert [search.label for search in study.searches] == ["ewc[estimator=exact]", "ewc"]


def test_searches_of_more_and_of_less_are_told_apart_by_what_they_search() -> None:
    decay = {"low": 0.0, "high": 1.0}
    written = [{"name": "ewc", "lam": LAM}, {"name": "ewc", "lam": LAM, "decay": decay}, {"name": "l2", "decay": decay}]
    assert [s.label for s in made(strategy=written).searches] == ["ewc", "ewc[decay=searched]", "l2"]


def test_a_search_that_fixes_what_is_the_default_is_the_same_search() -> None:
    lines = errors(
        changed(strategy=[{"name": "ewc", "lam": LAM, "accumulate": "separate"}, {"name": "ewc", "lam": LAM}])
    )
    assert lines == ["strategy: 'ewc' is the same search as 'ewc[accumulate=separate]'"]


def test_errors_of_a_later_strategy_have_its_number() -> None:
    wrong = {"name": "mas", "lam": {"low": -1.0, "high": 2.0}}
    lines = errors(changed(strategy=[{"name": "ewc", "lam": LAM}, 3, wrong, wrong | {"name": "si"}]))
    assert [line.partition(": ")[0] for line in lines] == ["strategy.1", "strategy.2.lam", "strategy.3.lam"]


def test_the_same_search_twice_is_refused_with_its_name() -> None:
    lines = errors(changed(strategy=[{"name": "ewc", "lam": LAM}, {"name": "ewc", "lam": {"low": 2.0, "high": 3.0}}]))
    assert lines == ["strategy: 'ewc' is there more than once"]


# Files


@pytest.mark.parametrize("name", list(config.presets("studies")))
def test_every_preset_is_valid_and_says_what_it_is_for(name: str) -> None:
    studies = spec.load(name, [])
    assert {study.name for study in studies} in ({name}, {f"{name}-{study.protocol}" for study in studies})
    assert all(study.searches for study in studies)
    assert config.presets("studies")[name].read_text(encoding="utf-8").startswith("# ")


def test_the_presets_of_the_issue_are_there() -> None:
    assert {"lambda-mnist-fashion", "lambda-permuted-digits", "protocol-gap-split-mnist"} <= {
        *config.presets("studies")
    }
    study = loaded("lambda-mnist-fashion")
    assert [s.label for s in study.searches] == ["ewc[estimator=empirical]", "ewc[estimator=sampled]", "l2"]
    assert (study.table.trials, study.table.seeds) == (20, 3)


def test_the_gap_between_protocols_is_measured_at_equal_budgets() -> None:
    studies = spec.load("protocol-gap-split-mnist", [])
    assert {study.protocol for study in studies} == {"test-oracle", "validation", "first-k"}
    assert all(study.reported.tasks >= 2 and study.tuning.tasks >= 2 for study in studies)
    first = studies[0]
    for study in studies:
        assert (study.table, study.searches, study.tuning_seeds) == (first.table, first.searches, first.tuning_seeds)


def test_overrides_reach_ranges_and_the_study_table() -> None:
    study = loaded("lambda-permuted-digits", "study.trials=3", "strategy.0.lam.high=50.0", "study.sampler=random")
    assert (study.table.trials, study.table.sampler) == (3, "random")
    assert study.searches[0].space["lam"] == FloatDistribution(1.0, 50.0, log=True)


def test_an_experiments_preset_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no preset and no file 'permuted-digits'"):
        spec.load("permuted-digits", [])
    with pytest.raises(ConfigError, match=r"did you mean 'lambda-permuted-digits'"):
        spec.load("lambda-permuted-digit", [])


def test_a_file_and_the_same_content_parsed_are_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "trial"\nscenario = {name = "permuted-digits", tasks = 2}\n'
        "[train]\nlr = 1e-3\nbatch_size = 32\niterations = 6\n"
        "[study]\ntrials = 4\nbatch = 2\nseeds = 2\ntest_seeds = 2\n"
        '[[strategy]]\nname = "ewc"\nlam = {low = 1.0, high = 1e6, log = true}\n'
    )
    read, parsed = loaded(str(path)), made()
    assert (read.table, read.searches, read.tuning) == (parsed.table, parsed.searches, parsed.tuning)
