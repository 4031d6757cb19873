"""Reaching an MLflow server or database, what our runs are known by there, and what to say when it fails."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.collection import uncollected
from benchmark.databases import prepared
from benchmark.errors import Explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TIMEOUT = 10  # seconds until a server that does not answer is said to be down
KIND, KEY, STATUS, REASON, OVERVIEW, OWNER, WHAT, LAM = (
    f"forgetbench.{name}" for name in ("kind", "run_key", "status", "reason", "overview", "owner", "what", "lam")
)
PARENT = "mlflow.parentRunId"
MATRIX = "accuracy_matrix.json"  # an artifact of each run
# Who a URL is for: up to the last @ before a slash; after `user:`, slashes too, which a database's URL may have there.
USER = re.compile(r"//(?:[^/]*|[^/:\[\s]*:(?!\d*/)\S*)@")
PAGE = 200  # runs a search request; a busy server may take a second for as many, and has `TIMEOUT` for it


class TrackingError(Explained):
    """The tracking server cannot be used; results are on disk all the same."""


def redacted(uri: str) -> str:
    """A tracking URI without user name and password, fit for messages and tags."""
    hidden = USER.sub("//***@", uri)
    return re.sub(
        r"(?i)([?&][^=&]*(?:password|passwd|pwd|token|secret|key|odbc_connect)[^=&]*=)[^&\s]*", r"\1***", hidden
    )


def sqlite(path: Path) -> str:
    """The URL of an SQLite database, whose path may have `%` and `?` in it, which mean something in a URL.

    Args:
        path: of the file.
    """
    from sqlalchemy import make_url

    name = str(path.resolve())
    plain = f"sqlite:///{name}"
    # Versions of SQLAlchemy differ in what they unquote, and MLflow takes a URL for a path: quotes only where needed.
    return plain if make_url(plain).database == name else plain.replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """Where a database of `sqlite` lies, or of a URL that somebody typed; None for any other.

    Args:
        uri: tracking URI, or URL of a storage.
    """
    from sqlalchemy import make_url

    name = make_url(uri).database if uri.startswith("sqlite:///") else None
    return Path(name) if name else None


def typed() -> str:
    """The command as it was typed, fit for publication."""
    program = Path(sys.argv[0]).name
    # `python -m benchmark.cli` is the same program.
    words = ["forgetbench" if program == "cli.py" else program, *sys.argv[1:]]
    # Each by itself: a password may have spaces, but does not reach from one argument into the next.
    return " ".join(redacted(shlex.quote(word)) for word in words)


def client(uri: str) -> MlflowClient:
    """A client of a tracking server that answers.

    Args:
        uri: tracking URI.

    Raises:
        TrackingError: nothing usable answers there.
    """
    _reachable(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print the address of every run, with the password in it.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A report reads a file a run.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # It raises what it logs, and `explained` makes one line of that.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with explained(uri), quiet():
        from mlflow import MlflowClient

        def opened(uri: str) -> MlflowClient:
            with _no_folder_of_its_name(uri):
                made = MlflowClient(tracking_uri=uri)
                made.search_experiments(max_results=1)  # the first request makes the tables; let it be quiet
            return made

        if re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):
            if file := sqlite_file(uri):
                file.parent.mkdir(parents=True, exist_ok=True)
            tables = prepared(uri, opened)
            if tables and "alembic_version" not in tables:
                raise TrackingError(
                    f"{redacted(uri)} is no database that MLflow finished: a command was killed while making it, or it "
                    "is of something else; delete it, and deliver what is on disk with `forgetbench sync`"
                )
        return opened(uri)


@contextlib.contextmanager
def _no_folder_of_its_name(uri: str) -> Generator[None, None, None]:
    """MLflow makes the folder that a quoted SQLite URL would mean if nothing in it were quoted: take it away again.

    Args:
        uri: tracking URI.
    """
    parents = Path(uri.removeprefix("sqlite:///")).parents if sqlite_file(uri) else []
    new = [folder for folder in parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # not there, or in use
                folder.rmdir()


def search(mlflow: MlflowClient, experiments: list[str], filter_string: str) -> Iterator[Run]:
    """Every run that fits, a page a request.

    Args:
        mlflow: the client.
        experiments: their ids.
        filter_string: in MLflow's search syntax.
    """
    token: str | None = None
    while token != "":
        with uncollected():
            page = mlflow.search_runs(experiments, filter_string, max_results=PAGE, page_token=token)
        yield from page
        token = page.token or ""


@contextlib.contextmanager
def explained(uri: str) -> Generator[None, None, None]:
    """MLflow, SQLAlchemy and requests fail in their own ways: one error for all, without secrets.

    Args:
        uri: tracking URI.

    Raises:
        TrackingError: whatever went wrong.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        reason = redacted(" ".join(str(error).split()))[:300]
        if re.search(r"\b401\b", reason):
            given = "@" in uri or os.environ.get("MLFLOW_TRACKING_USERNAME")
            given = "not the one it was given" if given else "and was given none"
            reason = f"it wants a login, {given}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise TrackingError(f"MLflow at {redacted(uri)} failed: {reason}") from error


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Creating the database logs every migration step."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def taken(port: int) -> str:
    """Why a port of loopback cannot be listened on, which a server would say in the middle of its log; empty if it can.

    Args:
        port: to listen on.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one just closed is free, as servers see it
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            return f"port {port} cannot be listened on ({reason}); choose another with --port"
    return ""


def serve(command: Sequence[str], port: int, ready: Callable[[], None]) -> int:
    """Run a server in the foreground, until it ends or Ctrl-C ends both.

    Args:
        command: that starts it.
        port: of loopback that it listens on.
        ready: called once it answers.

    Returns:
        Its exit status; 0 after Ctrl-C.
    """
    with subprocess.Popen(command) as server:
        before = signal.signal(signal.SIGTERM, lambda *_: server.terminate())  # it would stay behind
        try:
            while server.poll() is None and not _answers(port):
                time.sleep(0.2)
            if server.poll() is None:
                ready()
            return server.wait()
        except KeyboardInterrupt:  # a terminal sends it to the server too
            server.wait()
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)


def _answers(port: int) -> bool:
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as asked:
            asked.request("GET", "/health")
            return asked.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False


def _reachable(uri: str) -> None:
    """Ask before MLflow does, whose own retries take minutes.

    Args:
        uri: tracking URI.

    Raises:
        TrackingError: it is an HTTP server that does not answer.
    """
    if not uri.startswith(("http://", "https://")):
        return
    address = USER.sub("//", uri).rstrip("/") + "/health"
    try:
        urllib.request.urlopen(address, timeout=TIMEOUT).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise TrackingError(_down(uri, f"HTTP {error.code}")) from None
        # 401, 403 or 404: something answers; MLflow's client knows how to log in.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TrackingError(_down(uri, str(getattr(error, "reason", error)))) from None


def _down(uri: str, reason: str) -> str:
    return (
        f"the tracking server {redacted(uri)} does not answer ({reason}); "
        "start it, or run with --offline and deliver later with `forgetbench sync`"
    )
