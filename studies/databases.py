"""Databases of several drivers: made once though all come at once, one writer at a time, waited for when away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import Engine, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

from benchmark.databases import prepared

_POSTGRES = "pip install 'forgetbench[postgres]'"
PACKAGES = {"psycopg": _POSTGRES, "psycopg2": f"{_POSTGRES} and write postgresql+psycopg://"}
"""What to do where a Python package is missing that a database needs."""
PATIENCE = 120.0
"""Seconds that a database may be away, once it was there."""
PAUSE = 30.0
"""Seconds that a driver may pause in a transaction: put to sleep within one, or cut off, it would block all others."""
TURN = 30.0
"""Seconds that a driver waits for its turn to write in SQLite, unless the URL says `?timeout=`; five by default."""
_GIVEN_WAY = {"40001", "40P01"}  # of SQL: this transaction could not be put in order with others, or deadlocked
_ATTEMPTS = 5  # to make the tables, of which one driver's will do


def opened(url: str, make: Callable[[dict[str, Any]], RDBStorage]) -> RDBStorage:
    """A database that any number of drivers may open at once.

    Args:
        url: of the database.
        make: opens it, given options for SQLAlchemy.

    Raises:
        ValueError: it belongs to something else.
    """
    if url.startswith("sqlite"):
        tables = prepared(url, lambda empty: RDBStorage(empty).remove_session())
        if tables and not {"studies", "trials"} <= {*tables}:  # Optuna would add its own
            raise ValueError(f"it is a database of something else, with tables {', '.join(tables[:3])}, ...")
    options: dict[str, Any] = {}
    if not url.startswith("sqlite"):
        # A connection that has died while a batch trained is noticed, and replaced, before it is used.
        options["pool_pre_ping"] = True
    elif "timeout" not in make_url(url).query:
        options["connect_args"] = {"timeout": TURN}
    if url.startswith("postgresql") and make_url(url).get_driver_name().startswith("psycopg"):
        options["connect_args"] = {"connect_timeout": 10}  # others have other words for it
    found = _made(lambda: make(options))
    if url.startswith("sqlite"):
        _one_writer(found.engine)
    elif url.startswith("postgresql"):
        _no_long_pause(found.engine)
    return found


def _made(make: Callable[[], RDBStorage]) -> RDBStorage:
    """Try again where another driver was making the same tables.

    Args:
        make: opens the database.

    Raises:
        DBAPIError: it cannot be opened.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return make()
        except DBAPIError as error:
            if not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    return make()


def _one_writer(engine: Engine) -> None:
    """Let a transaction of SQLite wait for its turn before it reads.

    By default it begins with the first thing written: two drivers could both read that a trial is free, and take it.

    Args:
        engine: of the storage.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the module `sqlite3` leaves transactions to us

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections that were made before


def _no_long_pause(engine: Engine) -> None:
    """Let PostgreSQL end a transaction in which nothing happens, and its connection: `lost` says so where one wakes up.

    Args:
        engine: of the storage.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        # Said here and not as an option of the connection, which poolers such as PgBouncer refuse.
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {1000 * PAUSE:.0f}")
        connection.commit()

    engine.dispose()  # of connections that were made before


def lost(error: BaseException | None) -> bool:
    """Whether it was the connection that broke, or another driver that came first, so that the same again may do."""
    while error is not None:
        # The second is what Optuna leaves of the first, where it reads trials in another way after an error.
        if (isinstance(error, DBAPIError) and error.connection_invalidated) or isinstance(error, PendingRollbackError):
            return True
        if isinstance(error, DBAPIError) and _state(error) in _GIVEN_WAY:
            return True
        error = error.__cause__
    return False


def _state(error: DBAPIError) -> str | None:
    """SQLSTATE, by the names that psycopg and psycopg2 have for it."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def wait_for(engine: Engine, say: Callable[[str], None]) -> None:
    """Let whoever needs a connection wait for a server that is away for a moment, such as one started anew.

    Args:
        engine: that was connected before.
        say: takes what to say of it, once each time.
    """

    @event.listens_for(engine, "do_connect")
    def patiently(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        until, said = time.monotonic() + PATIENCE, False
        while True:
            try:
                found = dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError:
                if time.monotonic() > until:
                    raise
                if not said:
                    say(f"does not answer; waiting for it, up to {PATIENCE:.0f} s")
                said = True
                time.sleep(1)
            else:
                if said:
                    say("answers again")
                return found
