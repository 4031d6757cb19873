"""Databases that other libraries keep their tables in."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path


def prepared(url: str, make: Callable[[str], object]) -> list[str]:
    """Look at a database before a library does, which may try for minutes or write there; make it where it is new.

    A SQLite file is made in one moment, under another name and renamed: libraries create table by table, for seconds,
    and refuse what a killed command left halfway.

    Args:
        url: SQLAlchemy's, of SQLite or of a server.
        make: creates a library's tables in an empty database of a URL.

    Returns:
        The tables that a SQLite file held before, or that another command made meanwhile; nothing of a server, whose
        databases have more than one owner.
    """
    from filelock import FileLock
    from sqlalchemy import make_url

    name = make_url(url).database
    if not url.startswith("sqlite") or not name or name == ":memory:":
        return _tables(url)
    path = Path(name)
    if found := _held(url, path):
        return found
    if not path.parent.is_dir():
        return _tables(url)  # for the driver to refuse
    with (
        FileLock(path.with_name(f".{path.name}.lock")),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        if found := _held(url, path):
            return found
        elsewhere, whole = Path(folder) / path.name, path.with_name(f".{path.name}.new")
        make(f"sqlite:///{elsewhere}")
        whole.unlink(missing_ok=True)
        with closing(sqlite3.connect(elsewhere)) as source, closing(sqlite3.connect(whole)) as copy:
            source.backup(copy)
            # Logging a run is five commits, and each waits for the disk once instead of four times. What somebody else
            # made stays as it is: on a network file system this mode is for one machine alone.
            copy.execute("PRAGMA journal_mode=WAL")
        os.replace(whole, path)
    return []


def _held(url: str, path: Path) -> list[str]:
    # An empty file is as good as none; anything else in its place is for the driver to refuse.
    return _tables(url) if path.exists() and (path.stat().st_size or not path.is_file()) else []


def _tables(url: str) -> list[str]:
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(inspect(connection).get_table_names()) if url.startswith("sqlite") else []
    finally:
        engine.dispose()
