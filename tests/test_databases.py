"""Databases come into being whole: a command killed while a library makes its tables leaves nothing behind."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from benchmark.databases import prepared
from benchmark.server import TrackingError, client


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def one_table(url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("CREATE TABLE known (x)")


def test_a_database_is_made_once_and_is_there_with_all_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "some.db"
    with pytest.raises(OperationalError, match="unable to open"):
        prepared(f"sqlite:///{path}", one_table)
    path.parent.mkdir()
    assert prepared(f"sqlite:///{path}", one_table) == [] and tables(path) == {"known"}
    assert prepared(f"sqlite:///{path}", lambda url: pytest.fail("made again")) == ["known"]
    assert {p.name for p in path.parent.iterdir()} <= {"some.db", ".some.db.lock"}


def test_what_fails_halfway_leaves_no_database(tmp_path: Path) -> None:
    def halfway(url: str) -> None:
        one_table(url)
        raise KeyboardInterrupt

    path = tmp_path / "some.db"
    path.touch()  # an empty file is as good as none
    with pytest.raises(KeyboardInterrupt):
        prepared(f"sqlite:///{path}", halfway)
    assert not path.stat().st_size
    prepared(f"sqlite:///{path}", one_table)
    assert tables(path) == {"known"}


def test_a_database_that_another_command_makes_meanwhile_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    code = (
        f"from benchmark.server import client; client('sqlite:///{path}').create_experiment(__import__('sys').argv[1])"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE) for i in range(3)]
    said = [process.communicate()[1].decode() for process in started]
    assert all(process.returncode == 0 for process in started), said
    found = {e.name for e in client(f"sqlite:///{path}").search_experiments()}
    assert found == {"Default", "0", "1", "2"}


def test_memory_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepared("sqlite://", one_table) == prepared("sqlite:///:memory:", one_table) == []
    assert not os.listdir()


def test_a_database_left_halfway_by_an_earlier_version_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    one_table(f"sqlite:///{path}")
    with pytest.raises(
        TrackingError, match=r"mlflow\.db is no database that MLflow finished: .* delete it, and deliver"
    ):
        client(f"sqlite:///{path}")
