"""What is noted of the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmark import environment


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with `benchmark/environment.py`, and another copy of that, ignored, in its `.venv`."""
    for folder in ("benchmark", ".venv/benchmark"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "environment.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv\n")
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(environment, "__file__", str(folder / "environment.py"))
    return environment.describe(torch.device("cpu"), [])["git_revision"]


def test_the_revision_is_the_checkouts_that_tracks_the_code(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()
    assert revision(checkout / "benchmark", monkeypatch) == head
    (checkout / "benchmark/environment.py").write_text("changed")
    assert revision(checkout / "benchmark", monkeypatch) == f"{head}+"


def test_code_installed_within_another_projects_checkout_has_no_revision(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert revision(checkout / ".venv/benchmark", monkeypatch) == "unknown"
