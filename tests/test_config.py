"""Experiment files: what they mean, and everything that can be wrong with them, said at once."""

from __future__ import annotations

import copy
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmark import config
from benchmark.config import ConfigError
from benchmark.models import Model
from strategies import EWC, L2, Naive, option

BASE: dict[str, Any] = {
    "name": "trial",
    "scenario": {"name": "permuted-digits", "tasks": 2},
    "seeds": 2,
    "train": {"lr": 1e-3, "epochs": 2},
    "strategy": [{"name": "naive"}, {"name": "ewc", "lam": [10, 100.5]}],
}


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(BASE) | changes


def errors(content: dict[str, Any]) -> list[str]:
    """The lines that a wrong file is answered with, the first one checked."""
    with pytest.raises(ConfigError) as caught:
        config.parse(content)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} error{'s' * (len(lines) != 1)} in the experiment:"
    return [line.strip() for line in lines]


def error(content: dict[str, Any]) -> str:
    """The one line that a wrong file is answered with."""
    (line,) = errors(content)
    return line


def test_all_mistakes_of_a_models_options_are_said_at_once() -> None:
    wrong = {"name": "mlp", "width": 3, "activation": "swish", "norm": "group"}
    first, second, third = errors(changed(model=wrong))
    assert first == "model: model 'mlp': unknown option 'width'; did you mean 'widths'?"
    assert second.startswith("model: activation: expected one of 'relu'") and second.endswith("got 'swish'")
    assert third.startswith("model: norm: ") and third.endswith("got 'group'")


@pytest.mark.parametrize("name", ["lambda-permuted-digits", "my study.toml"])
def test_a_study_is_sent_to_its_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my study.toml").write_text('name = "mine"\n[study]\ntrials = 2\n')
    with pytest.raises(ConfigError, match=f"^{name} is a study: forgetbench study '?{name}'?$"):
        config.load(name)


def test_a_module_in_a_strategys_place_is_told_from_an_unknown_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_strategy.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    said = "is there: name its class too, 'my_own_strategy:Class'"
    for name in ("my_own_strategy", "my_own_strategy.py"):
        assert error(changed(strategy=[{"name": name}])).endswith(said)
    assert "module" not in error(changed(strategy=[{"name": "ewcc"}]))


# What a file means


def test_an_experiment_is_every_strategy_with_every_seed() -> None:
    runs = config.parse(BASE).runs()
    assert [(r.label, r.seed) for r in runs] == [
        (label, seed) for label in ("naive", "ewc[lam=10]", "ewc[lam=100.5]") for seed in (0, 1)
    ]
    assert len({r.key for r in runs}) == 6


def test_lists_in_a_strategy_make_a_grid() -> None:
    entry = {"name": "ewc", "estimator": ["exact", "empirical"], "lam": [1, 10], "batchnorm": "update"}
    entries = config.parse(changed(strategy=[entry])).entries
    assert [e.strategy for e in entries] == [
        EWC(lam=lam, estimator=estimator) for estimator in ("exact", "empirical") for lam in (1, 10)
    ]
    assert entries[0].label == "ewc[batchnorm=update,estimator=exact,lam=1]"
    assert len({e.label for e in entries}) == 4


def test_a_strategy_may_override_the_recipe() -> None:
    entries = config.parse(changed(strategy=[{"name": "naive"}, {"name": "l2", "lr": 0.5, "iterations": 30}])).entries
    assert (entries[0].recipe.lr, entries[0].recipe.epochs, entries[0].recipe.iterations) == (1e-3, 2, None)
    assert (entries[1].recipe.lr, entries[1].recipe.epochs, entries[1].recipe.iterations) == (0.5, None, 30)
    assert entries[1].strategy == L2()


def test_defaults_fill_what_the_file_leaves_out() -> None:
    experiment = config.parse(
        {"name": "x", "scenario": "mnist-fashion", "seeds": [7, 3], "strategy": [{"name": "naive"}]}
    )
    assert experiment.scenario.sets == ("mnist", "fashion-mnist")
    assert (experiment.model, experiment.seeds, experiment.entries[0].strategy) == (Model("mlp-bn"), (7, 3), Naive())
    recipe = experiment.entries[0].recipe
    assert (recipe.optimizer, recipe.lr, recipe.batch_size, recipe.epochs) == ("adam", 1e-4, 100, 4)


def test_iterations_alone_leave_no_epochs() -> None:
    recipe = config.parse(changed(train={"iterations": 50})).entries[0].recipe
    assert (recipe.epochs, recipe.iterations) == (None, 50)


def test_a_whole_number_is_the_same_run_as_the_float() -> None:
    one, other = (config.parse(changed(strategy=[{"name": "ewc", "lam": lam}])).runs()[0] for lam in (10, 10.0))
    assert one.key == other.key


def test_labels_are_for_people_and_no_part_of_the_key() -> None:
    plain, spelled = (
        config.parse(changed(strategy=[entry])).runs()[0]
        for entry in ({"name": "ewc"}, {"name": "ewc", "estimator": "empirical"})
    )
    assert plain.label != spelled.label
    assert plain.key == spelled.key


CHANGES: list[dict[str, Any]] = [
    {"seeds": [5]},
    {"scenario": {"name": "permuted-digits", "tasks": 3}},
    {"scenario": ["digits", "digits"]},
    {"scenario": {"name": "permuted-digits", "tasks": 2, "first": "permuted"}},
    {"scenario": {"name": "permuted-digits", "tasks": 2, "incremental": "task"}},
    {"scenario": {"name": "rotated-digits", "tasks": 2}},
    {"scenario": {"name": "rotated-digits", "angles": [0, 45.5]}},
    {"scenario": {"name": "split-digits", "tasks": 2}},
    {"scenario": {"name": "split-digits", "tasks": 2, "class_order": "shuffled"}},
    {"scenario": {"name": "split-digits", "tasks": 2, "incremental": "task"}},
    {"model": "mlp"},
    {"model": {"name": "mlp", "widths": [9]}},
    {"model": {"name": "mlp", "widths": [9, 9]}},
    {"train": {"lr": 1e-3, "epochs": 3}},
    {"train": {"lr": 1e-3, "iterations": 2}},
    {"train": {"lr": 1e-3, "epochs": 2, "precision": "float64"}},
    {"train": {"lr": 1e-3, "epochs": 2, "evaluate_every": 5}},
    {"strategy": [{"name": "l2", "lam": 1000}]},
    {"strategy": [{"name": "ewc", "lam": 1001}]},
    {"strategy": [{"name": "ewc", "estimator": "exact"}]},
    {"strategy": [{"name": "ewc", "batchnorm": "freeze-after-first"}]},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_whatever_changes_the_result_changes_the_key(changes: dict[str, Any]) -> None:
    (before,) = {r.key for r in config.parse(changed(seeds=1, strategy=[{"name": "ewc"}])).runs()}
    (after,) = {r.key for r in config.parse(changed(**{"seeds": 1, "strategy": [{"name": "ewc"}]} | changes)).runs()}
    assert before != after


def test_no_two_changes_of_the_result_make_the_same_key() -> None:
    contents = [changed(**{"seeds": 1, "strategy": [{"name": "ewc"}]} | changes) for changes in CHANGES]
    keys = [run.key for content in contents for run in config.parse(content).runs()]
    assert len(set(keys)) == len(CHANGES)


def test_a_strategy_of_the_users_own_is_named_by_module_and_class() -> None:
    (entry,) = config.parse(changed(strategy=[{"name": "strategies.l2:L2", "lam": 3}])).entries
    assert entry.strategy == L2(lam=3)
    assert entry.label == "strategies.l2:L2[lam=3]"


@dataclass(frozen=True)
class Clashing(L2):
    seed: int = option(7, doc="of a random projection")


def test_no_field_of_a_strategy_is_taken_for_a_column_of_the_results() -> None:
    (line,) = errors(changed(strategy=[{"name": f"{__name__}:Clashing"}]))
    assert "has a field 'seed', which is a key of [train] or a column of the results; rename it" in line
    for run in config.load("mnist-fashion").runs():
        assert run.fields().keys() - run.strategy.options().keys() <= config.TAKEN


def test_values_that_differ_late_have_labels_that_differ() -> None:
    entries = config.parse(changed(strategy=[{"name": "l2", "lam": [1234.5678, 1234.5679, 1e6, 0.1]}])).entries
    assert [e.label for e in entries] == ["l2[lam=1234.5678]", "l2[lam=1234.5679]", "l2[lam=1000000]", "l2[lam=0.1]"]


@pytest.mark.parametrize("name", list(config.presets()))
def test_every_preset_is_valid_and_says_what_it_is_for(name: str) -> None:
    experiment = config.load(name)
    assert experiment.name == name
    assert len(experiment.entries) >= 2
    assert config.presets()[name].read_text(encoding="utf-8").startswith("# ")


# Overrides


def test_overrides_reach_every_part_of_the_file() -> None:
    experiment = config.load(
        "permuted-digits",
        [
            "seeds=[4, 5]",
            "train.lr=0.5",
            "train.batchnorm=update",
            "scenario.tasks=3",
            "strategy.1.lam=[7]",
            "name=own",
        ],
    )
    assert (experiment.seeds, experiment.scenario.tasks, experiment.name) == ((4, 5), 3, "own")
    assert {(e.recipe.lr, e.recipe.batchnorm) for e in experiment.entries} == {(0.5, "update")}
    assert [e.strategy for e in experiment.entries if e.name == "l2"] == [L2(lam=7)]


def test_of_epochs_and_iterations_the_one_set_last_counts() -> None:
    by_iterations = config.load("permuted-digits", ["train.iterations=9"]).entries[0].recipe
    assert (by_iterations.epochs, by_iterations.iterations) == (None, 9)
    by_epochs = config.load("permuted-digits", ["train.iterations=9", "train.epochs=3"]).entries[0].recipe
    assert (by_epochs.epochs, by_epochs.iterations) == (3, None)


def test_a_whole_strategy_can_be_replaced() -> None:
    experiment = config.load("permuted-digits", ['strategy=[{name="l2", lam=2}]'])
    assert [e.label for e in experiment.entries] == ["l2[lam=2]"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("strategy.9.lam=1", "there is no 'strategy.9.lam' in the file"),
        ("strategy.first.lam=1", "there is no 'strategy.first.lam' in the file"),
        ("name.length=3", "there is no 'name.length' in the file"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.lr=fast", "train.lr: expected a valid number"),
        ("train.lr=", "train.lr: expected a valid number"),
        ("strategy=3", "strategy: expected a valid list, got 3"),
        ("train=3", "train: expected a table, got 3"),
    ],
)
def test_a_wrong_override_is_said_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        config.load("permuted-digits", [override])
    assert len(str(caught.value).splitlines()) <= 2


# Errors


def test_all_errors_of_a_file_are_reported_at_once_each_with_its_path() -> None:
    lines = errors(
        {
            "name": "a b",
            "scenario": "permuted",
            "model": "resnet",
            "seeds": [],
            "colour": "red",
            "train": {"lr": -1.0, "epochs": 0, "optimizer": "adamax", "epoch": 3},
            "strategy": [
                {"name": "naive", "lam": 3},
                {"name": "ewcc"},
                {"name": "ewc", "lam": -1, "estimater": "exact", "batch_size": 0},
                {"lam": 1},
                {"name": "l2", "lam": []},
            ],
        }
    )
    by_path = {line.split(":")[0]: line for line in lines}
    assert sorted(by_path) == sorted([
        "name", "scenario", "model", "seeds", "colour", "train.lr", "train.epochs", "train.optimizer", "train.epoch",
        "strategy.0.lam", "strategy.1.name", "strategy.2.lam", "strategy.2.estimater", "strategy.2.batch_size",
        "strategy.3.name", "strategy.4.lam",
    ])  # fmt: skip
    assert len(lines) == len(by_path)
    assert "did you mean 'permuted-mnist'" in by_path["scenario"]
    assert "did you mean 'estimator'" in by_path["strategy.2.estimater"]


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        (
            {"name": "ewcc"},
            "strategy.0.name: unknown strategy 'ewcc'; did you mean 'ewc'? (forgetbench list strategies)",
        ),
        ({"name": "ewc", "lam": -1}, "strategy.0.lam: expected greater than or equal to 0, got -1"),
        ({"name": "ewc", "lam": [1, -1]}, "strategy.0.lam: expected greater than or equal to 0, got -1"),
        ({"name": "ewc", "lam": float("nan")}, "strategy.0.lam: expected a finite number, got nan"),
        ({"name": "ewc", "lam": float("inf")}, "strategy.0.lam: expected a finite number, got inf"),
        ({"name": "ewc", "lam": "big"}, "strategy.0.lam: expected a valid number, got 'big'"),
        ({"name": "ewc", "lam": True}, "strategy.0.lam: expected a valid number, got True"),
        ({"name": "ewc", "decay": 1.5}, "strategy.0.decay: expected less than or equal to 1, got 1.5"),
        ({"name": "ewc", "draws": 0}, "strategy.0.draws: expected greater than or equal to 1, got 0"),
        ({"name": "ewc", "lam": []}, "strategy.0.lam: expected at least one value, got an empty list"),
        ({"name": "ewc", "epochs": 0}, "strategy.0.epochs: expected greater than or equal to 1, got 0"),
        ({"name": 3}, "strategy.0.name: expected the name of a strategy (forgetbench list strategies)"),
        ({"name": "strategies.l2:L3"}, "strategy.0.name: strategy 'strategies.l2:L3' cannot be imported"),
        ({"name": "no_such_module:L3"}, "strategy.0.name: strategy 'no_such_module:L3' cannot be imported"),
        (
            {"name": "pathlib:Path"},
            "strategy.0.name: strategy 'pathlib:Path': expected a subclass of strategies.Strategy",
        ),
        ({"name": ".l2:L2"}, "strategy.0.name: strategy '.l2:L2' cannot be imported"),
    ],
)
def test_a_wrong_strategy_is_one_line_with_what_was_expected(strategy: dict[str, Any], line: str) -> None:
    assert error(changed(strategy=[strategy])).startswith(line)


def test_an_unknown_estimator_is_answered_with_the_known_ones() -> None:
    line = error(changed(strategy=[{"name": "ewc", "estimator": "fisher"}]))
    assert line.startswith("strategy.0.estimator: expected ") and "'exact'" in line and line.endswith("got 'fisher'")


@pytest.mark.parametrize(
    ("train", "path"),
    [
        ({"epochs": 0}, "train.epochs"),
        ({"epochs": 1.5}, "train.epochs"),
        ({"iterations": 0}, "train.iterations"),
        ({"lr": 0}, "train.lr"),
        ({"lr": True}, "train.lr"),
        ({"momentum": 1.0}, "train.momentum"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"optimizer": "adamax"}, "train.optimizer"),
        ({"batchnorm": "freeze"}, "train.batchnorm"),
        ({"precision": "float16"}, "train.precision"),
        ({"evaluate_every": -1}, "train.evaluate_every"),
        ({"learning_rate": 1e-3}, "train.learning_rate"),
        ({"epochs": 2, "iterations": 5}, "train"),
    ],
)
def test_a_wrong_recipe_is_said_once_however_many_strategies_use_it(train: dict[str, Any], path: str) -> None:
    assert error(changed(train=train)).startswith(f"{path}: ")


@pytest.mark.parametrize("seeds", [0, -1, [], [1, 1], [-1], [1.5], True, [True], "3", 2.0, {"count": 3}])
def test_seeds_are_a_count_or_a_list_of_distinct_numbers(seeds: object) -> None:
    assert error(changed(seeds=seeds)) == (
        f"seeds: expected a count >= 1 or a list of distinct whole numbers >= 0, got {seeds!r}"
    )


@pytest.mark.parametrize(
    ("scenario", "line"),
    [
        (
            "permuted",
            "scenario: unknown scenario 'permuted'; did you mean 'permuted-mnist'? (forgetbench list scenarios)",
        ),
        (["mnist", "digit"], "scenario: unknown image set 'digit'; did you mean 'digits'? (forgetbench list data)"),
        ([], "scenario: expected at least one image set, got an empty list"),
        ({"name": "permuted-digits", "tasks": 0}, "scenario: tasks: expected a whole number >= 1, got 0"),
        ({"name": "permuted-digits", "task": 3}, "scenario: scenario 'permuted-digits': unknown option 'task'"),
        ({"name": "mnist-fashion", "tasks": 3}, "scenario: scenario 'mnist-fashion': unknown option 'tasks'"),
        (
            {"name": "split-digits", "incremental": "no"},
            "scenario: incremental: expected task, domain or class, got 'no'",
        ),
        (
            {"name": "rotated-digits", "angles": "45"},
            "scenario: angles: expected a list of degrees, one a task, got '45'",
        ),
    ],
)
def test_a_wrong_scenario_is_one_line_with_what_was_expected(scenario: object, line: str) -> None:
    assert error(changed(scenario=scenario)).startswith(line)


@pytest.mark.parametrize(
    "scenario", [5, True, {}, {"name": ["mnist"]}, {"name": 3}, {"sets": 5}, {"sets": [1]}, {"sets": "mnist"}, [1, 2]]
)
def test_a_scenario_of_the_wrong_type_is_an_error_of_the_file_like_any_other(scenario: object) -> None:
    assert all(line.split(":")[0].split(".")[0] == "scenario" for line in errors(changed(scenario=scenario)))


def test_names_become_folders_so_they_cannot_lead_out_of_the_results() -> None:
    for name in ("../escape", "", ".hidden", "a/b", "x" * 101, "line\n"):
        assert error(changed(name=name)).startswith("name: ")


def test_an_empty_file_is_told_what_is_missing() -> None:
    assert {"name: missing", "scenario: missing", "seeds: missing", "strategy: missing"} == set(errors({}))


@pytest.mark.parametrize("strategy", [[], 3, "naive", [1], ["naive"], {"name": "naive"}])
def test_strategies_are_a_list_of_tables(strategy: object) -> None:
    assert error(changed(strategy=strategy)).startswith("strategy")


def test_the_same_strategy_twice_is_refused() -> None:
    twice = [{"name": "ewc", "lam": [1, 2]}, {"name": "ewc", "lam": 2.0}]
    assert error(changed(strategy=twice)) == "strategy: 'ewc[lam=2]' is there more than once"


@pytest.mark.parametrize(
    "twice",
    [
        [{"name": "ewc"}, {"name": "ewc", "estimator": "empirical"}],
        [{"name": "naive"}, {"name": "naive", "epochs": 2}],
        [{"name": "l2"}, {"name": "strategies.l2:L2"}],
    ],
)
def test_one_setting_under_two_labels_is_not_counted_as_twice_the_seeds(twice: list[dict[str, Any]]) -> None:
    try:
        keys = [r.key for r in config.parse(changed(strategy=twice)).runs()]
    except ConfigError as caught:
        assert "more than once" in str(caught)
    else:
        assert len(set(keys)) == len(keys)


# Files


def test_a_syntax_error_is_said_with_the_file_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nseeds = = 3\n')
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML: .*line 2"):
        config.load(str(path))


def test_a_file_that_is_not_text_is_said_to_be_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        config.load(str(path))


@pytest.mark.parametrize("name", ["permuted-digit", "mnist_fashion"])
def test_a_misspelt_preset_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no preset and no file .*did you mean '.*'\? \(forgetbench list presets\)"):
        config.load(name)


def test_a_file_and_the_same_content_parsed_are_the_same_experiment(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "trial"\nscenario = {name = "permuted-digits", tasks = 2}\nseeds = 2\n[train]\nlr = 1e-3\nepochs = 2\n'
        '[[strategy]]\nname = "naive"\n[[strategy]]\nname = "ewc"\nlam = [10, 100.5]\n'
    )
    assert dataclasses.asdict(config.load(str(path))) == dataclasses.asdict(config.parse(BASE))
