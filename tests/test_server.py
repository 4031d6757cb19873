"""A real MLflow server over HTTP: used, killed in the middle, and made up for."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
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


@contextmanager
def between(address: str, fault: str) -> Generator[tuple[str, threading.Event], None, None]:
    """A proxy in front of a server, which shows a fault while the event is set."""
    faulty, over, host = threading.Event(), threading.Event(), address.removeprefix("http://")

    class Proxy(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):  # who asked has lost patience
                self.answer()

        def answer(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                return
            if faulty.is_set() and fault == "hangs":
                over.wait()
            if faulty.is_set() and fault == "breaks off":
                return
            if faulty.is_set():
                self.send_error(500)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as server:
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type") or "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *about: object) -> None:
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{proxy.server_port}", faulty
    finally:
        over.set()
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.parametrize("fault", ["hangs", "answers 500", "breaks off"])
def test_a_server_in_trouble_in_the_middle_costs_no_run_and_shows_no_password(tmp_path, monkeypatch, fault):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with server(tmp_path, port) as address, between(address, fault) as (host, faulty):
        uri = f"http://me:hunter2@{host}"
        running = start(tmp_path, "--tracking-uri", uri)
        faulty.set()
        out, errors = running.communicate(timeout=300)
        assert running.returncode == 0, errors
        assert "results stay on disk" in out and f"forgetbench sync --tracking-uri 'http://***@{host}'" in out
        held = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
        assert len(held) == 21
        faulty.clear()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        first, second = (forgetbench("sync", "--tracking-uri", uri, cwd=tmp_path) for _ in range(2))
        assert "of 21 runs delivered" in first.stdout, first.stderr
        assert "permuted-digits: 0 of 21 runs delivered" in second.stdout, second.stderr
        assert keys(address) == sorted(held)
    shown = [out, errors, first.stdout, first.stderr, second.stdout, second.stderr]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()] and "hunter2" not in "".join(shown)
