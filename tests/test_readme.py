"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from benchmark import models, scenarios
from strategies import registry
from tests.test_end_to_end import forgetbench

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_first_experiment_and_the_strategy_of_ones_own_run(tmp_path):
    first, _, _, entry = blocks("toml")
    (tmp_path / "mine.py").write_text(next(b for b in blocks("python") if "class Magnitude" in b))
    (tmp_path / "first.toml").write_text(first + entry)
    small = ("seeds=1", "train.epochs=1", "scenario.tasks=2")
    done = forgetbench("run", "first.toml", *small, "--offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for label in ("naive", "ewc[estimator=exact,lam=10]", "mine:Magnitude[lam=100]"):
        assert label in done.stdout


MY_DATA = """
import torch
def first():
    x, y = torch.randint(0, 256, (40, 6, 6), dtype=torch.uint8), torch.arange(40) % 4
    return {"train_x": x, "train_y": y, "test_x": x, "test_y": y}

second = first
"""
MY_NETS = """
from torch import nn

def make(shape, outputs, depth=1):
    values = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), *(nn.Linear(values, values) for _ in range(depth)), nn.Linear(values, outputs))
"""


def test_the_study_runs(tmp_path):
    (tmp_path / "my-study.toml").write_text(blocks("toml")[2])
    small = (
        "study.trials=2",
        "study.batch=2",
        "study.seeds=1",
        "study.test_seeds=2",
        "train.epochs=1",
        "scenario.tasks=2",
    )
    done = forgetbench("study", "my-study.toml", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 trials" in done.stdout and "promised" in done.stdout


def test_every_scenario_and_model_of_the_examples_can_be_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_data.py").write_text(MY_DATA)
    (tmp_path / "my_package" / "my_nets.py").write_text(MY_NETS)
    x, y = np.zeros((40, 6, 6), np.uint8), np.arange(40) % 4
    np.savez("mine.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    lines = [tomllib.loads(line) for line in blocks("toml")[1].splitlines() if not line.startswith("#")]
    assert len(lines) == 4
    for line in lines:
        if "scenario" in line:
            scenario = scenarios.resolve(line["scenario"])
            assert scenario.heads(scenarios.load(scenario)).outputs == 4
        else:
            models.require_stackable(models.resolve(line["model"]), (1, 6, 6), 4)


def test_every_name_it_lists_is_one():
    listed = "".join(re.findall(r"^\| `.*$", README, flags=re.M))
    for name in registry.BUILT_IN:
        assert f"`{name}`" in listed, name
    for name in (*scenarios.KINDS, *models.MODELS):
        assert name in README, name


def test_every_file_and_preset_it_names_is_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parent.parent / path).exists(), path
    from benchmark import config

    assert "notebook" in config.presets() and "mnist-fashion" in config.presets()


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^forgetbench (\w+)", "".join(blocks("console")), flags=re.M)))
)
def test_every_command_it_names_explains_itself(command, tmp_path):
    done = forgetbench(command, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "Example: forgetbench" in done.stdout
