"""PostgreSQL on loopback, for as long as a test lasts: in a temporary folder, on a free port, with a password."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD = "forgetbench", "hunter2-of-the-test"


def binary(name: str) -> str | None:
    """Of PostgreSQL; Debian keeps most of them out of the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@dataclass(frozen=True)
class Postgres:
    """A server.

    Attributes:
        folder: of its files.
        port: on loopback.
        owner: user that it runs as, None for the test's own.
    """

    folder: Path
    port: int
    owner: str | None

    def url(self, database: str, scheme: str = "postgresql", password: str = PASSWORD) -> str:
        return f"{scheme}://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def database(self, name: str) -> str:
        """Address of a new database."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def control(self, *command: str) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        run(
            self.owner, "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"),
            "-o", options, "-w", "-t", "120", *command,
        )  # fmt: skip


def run(owner: str | None, name: str, *arguments: str) -> None:
    path = binary(name)
    assert path is not None
    done = subprocess.run(
        [path, *arguments], user=owner, group=pwd.getpwnam(owner).pw_gid if owner else None,
        extra_groups=[] if owner else None, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def server() -> Generator[Postgres, None, None]:
    """Started, and stopped at the end; a test is skipped where PostgreSQL or its Python package is not installed."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'forgetbench[postgres]'")
    missing = [name for name in ("initdb", "pg_ctl", "postgres") if binary(name) is None]
    if missing:
        pytest.skip(f"needs PostgreSQL (apt install postgresql): there is no {', '.join(missing)}")
    owner = None
    if os.geteuid() == 0:  # PostgreSQL refuses root
        known = {entry.pw_name for entry in pwd.getpwall()}
        owner = next((name for name in ("postgres", "nobody") if name in known), None)
        if owner is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Not in pytest's folder, which that user cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="forgetbench-postgres-"))
    started = Postgres(folder, port, owner)
    try:
        (folder / "password").write_text(PASSWORD)
        if owner:
            for path in (folder, folder / "password"):
                shutil.chown(path, owner)
        run(
            owner, "initdb", "-D", str(folder / "data"), "-U", USER, "--pwfile", str(folder / "password"),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip
        started.control("start")
        try:
            yield started
        finally:
            started.control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
