"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_end_to_end import forgetbench

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_first_experiment_and_the_strategy_of_ones_own_run(tmp_path):
    first, entry = blocks("toml")
    (tmp_path / "mine.py").write_text(next(b for b in blocks("python") if "class Magnitude" in b))
    (tmp_path / "first.toml").write_text(first + entry)
    small = ("seeds=1", "train.epochs=1", "scenario.tasks=2")
    done = forgetbench("run", "first.toml", *small, "--offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for label in ("naive", "ewc[estimator=exact,lam=10]", "mine:Magnitude[lam=100]"):
        assert label in done.stdout


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
