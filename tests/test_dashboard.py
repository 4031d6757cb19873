"""optuna-dashboard, which knows nothing of forgetbench, on the storage of a finished study."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import optuna
import pytest

from studies.storage import Storage
from tests.test_end_to_end import environment, forgetbench

pytestmark = pytest.mark.slow
COMMAND = Path(sys.executable).with_name("optuna-dashboard")
SMALL = ["train.epochs=1", "study.trials=4", "study.batch=4", "study.test_seeds=1", "--offline"]


@contextlib.contextmanager
def dashboard(storage: str, folder: Path) -> Generator[str, None, None]:
    """Address of a dashboard on loopback, stopped at the end."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    with (folder / "dashboard.log").open("w") as log:
        command = [str(COMMAND), storage, "--host", "127.0.0.1", "--port", port, "--server", "wsgiref"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/meta", timeout=5).close()
                break
            assert process.poll() is None, (folder / "dashboard.log").read_text()
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def read(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_dashboard_opens_the_storage_of_a_finished_study_as_it_is(kind: str, tmp_path: Path) -> None:
    journal = ["--storage", str(tmp_path / "optuna.journal")] if kind == "journal" else []
    done = forgetbench("study", "lambda-permuted-digits", *SMALL, *journal, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # What the command says last is what the dashboard takes.
    last, storage = done.stdout.splitlines()[-1].split()
    assert last == "trials" and storage.startswith("sqlite:///" if kind == "sqlite" else str(tmp_path))

    opened = Storage.of(storage).optuna
    with dashboard(storage, tmp_path) as address:
        listed = read(f"{address}/api/studies")["study_summaries"]
        names = {study["study_name"] for study in listed}
        assert names == {"lambda-permuted-digits/ewc[estimator=empirical]", "lambda-permuted-digits/l2"}
        for study in listed:
            shown = read(f"{address}/api/studies/{study['study_id']}")
            ours = optuna.load_study(study_name=study["study_name"], storage=opened)
            assert study["directions"] == ["maximize"] and len(shown["trials"]) == 4
            for there, here in zip(shown["trials"], ours.trials, strict=True):
                assert (there["state"], there["values"]) == ("Complete", here.values)
                assert {p["name"]: float(p["param_external_value"]) for p in there["params"]} == here.params
                attributes = {a["key"]: a["value"] for a in there["user_attrs"]}
                assert json.loads(attributes["seeds"]) == here.user_attrs["seeds"]
            (best,) = shown["best_trials"]
            assert best["number"] == ours.best_trial.number
