"""A real MLflow server over HTTP: used, killed in the middle, and made up for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_end_to_end import environment, forgetbench, start, table

pytestmark = pytest.mark.slow


@contextmanager
def server(folder: Path, port: int) -> Generator[str, None, None]:
    """`mlflow server` on loopback; all its processes end with it."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "a"),
    ]
    log = (folder / "server.log").open("a")
    process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def keys(address: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("permuted-digits")
    found = client.search_runs([experiment.experiment_id], "tags.`forgetbench.kind` = 'run'")
    return sorted(run.data.tags["forgetbench.run_key"] for run in found)


def test_a_server_that_dies_in_the_middle_costs_no_run(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with server(tmp_path, port) as address:
        running = start(tmp_path, "--tracking-uri", address)
    out, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    assert "results stay on disk" in out and f"forgetbench sync --tracking-uri {address}" in out
    held = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
    assert len(held) == 21
    with server(tmp_path, port) as address:
        missing = len(held) - len(keys(address))
        first, second = (forgetbench("sync", "--tracking-uri", address, cwd=tmp_path) for _ in range(2))
        assert missing > 0 and f"permuted-digits: {missing} of 21 runs delivered" in first.stdout, first.stderr
        assert "permuted-digits: 0 of 21 runs delivered" in second.stdout, second.stderr
        assert keys(address) == sorted(held)
