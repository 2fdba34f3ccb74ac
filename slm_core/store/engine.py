"""From a URL to transactions, and the one place where driver errors become ours.

SQLite runs in WAL mode, waits 30 s for a lock and takes the write lock at the start of every
write (``BEGIN IMMEDIATE``), so that two writers queue up instead of failing half-way.
PostgreSQL is reached through psycopg 3. Whatever a driver raises leaves as ``StoreError`` or,
when trying again may help, ``StoreUnavailable``; passwords and record text leave with neither.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.pool import ConnectionPoolEntry

from slm_core.errors import ConfigError, StoreError, StoreUnavailable

LOCK_WAIT_SECONDS = 30
CONNECT_WAIT_SECONDS = 10
_ADVISORY_LOCK = 0x534C4D53  # "SLMS": our own among the advisory locks of a shared database

_WRITES = "slm_writes"


class Fault(NamedTuple):
    """What a driver's error means: our class, and what to do."""

    kind: type[StoreError]
    advice: str


_GONE = Fault(StoreUnavailable, "The database does not answer. Check that it runs and the URL.")
_LOCKED = Fault(StoreUnavailable, "Another process holds the database. Try again, or find it.")
_READ_ONLY = Fault(StoreUnavailable, "The database is read-only. Let this user write to it.")
_FULL = Fault(StoreUnavailable, "The disk or a limit of the server is full. Make room.")
_DAMAGED = Fault(StoreError, "The database is damaged. Restore it from a backup.")
_REFUSED = Fault(StoreError, "The database refused the statement.")
_CLASH = Fault(StoreError, "The records contradict what the database holds.")
_VALUE = Fault(StoreError, "A value does not fit its column.")

SQLITE_FAULTS: dict[int, Fault] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_INTERRUPT: _LOCKED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: Fault(
        StoreUnavailable,
        "The file is gone or cannot be opened. Put it back, or check the path and its owner.",
    ),
    sqlite3.SQLITE_IOERR: Fault(StoreUnavailable, "The disk failed. Check it, then try again."),
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_NOMEM: _FULL,
    sqlite3.SQLITE_NOTADB: Fault(
        StoreError, "The file is no SQLite database. Move it away, or name another file."
    ),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_CONSTRAINT: _CLASH,
    sqlite3.SQLITE_MISMATCH: _VALUE,
    sqlite3.SQLITE_TOOBIG: _VALUE,
    sqlite3.SQLITE_RANGE: _VALUE,
}
"""By SQLite's primary result code. Any other: the statement was refused."""

POSTGRESQL_FAULTS: dict[str, Fault] = {
    "08": _GONE,
    "22": _VALUE,
    "23": _CLASH,
    "25006": _READ_ONLY,
    "40": _LOCKED,
    "42501": _READ_ONLY,
    "53": _FULL,
    "54": _VALUE,
    "55006": _LOCKED,
    "55P03": _LOCKED,
    "57": _GONE,
    "58": Fault(StoreUnavailable, "The server's disk failed. Check it, then try again."),
    "XX": _DAMAGED,
}
"""By SQLSTATE, or its class. Any other: the statement was refused."""


def fault_of(error: BaseException) -> Fault:
    """Return what ``error``, raised by a driver or by SQLAlchemy, means."""
    if isinstance(error, sqlite3.Error):
        # The lowest byte is the primary code; errors of the module itself carry none.
        code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        return SQLITE_FAULTS.get(code & 0xFF, _REFUSED)
    if isinstance(error, NoFreeConnection | DisconnectionError):
        return _GONE
    if isinstance(error, OverflowError | ValueError):
        return _VALUE
    state: str | None = getattr(error, "sqlstate", None)
    if state is not None:
        return POSTGRESQL_FAULTS.get(state) or POSTGRESQL_FAULTS.get(state[:2]) or _REFUSED
    # Of psycopg's errors without SQLSTATE these two mean that there is no connection.
    lost = type(error).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    return _GONE if lost else _REFUSED


class Database:
    """One database, its connections, and its transactions. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        """Prepare to reach ``url``; nothing is opened yet.

        Raises:
            ConfigError: the URL cannot be read, or names no database we can use.
        """
        parsed = _parse(url)
        self.url = _shown(parsed)
        self.path = _file_of(parsed)
        """The SQLite file; None on PostgreSQL."""
        self._engine = _postgresql_engine(parsed) if self.path is None else _sqlite_engine(parsed)
        _open_databases.add(self)

    @contextmanager
    def read(self, *, one_moment: bool = False) -> Iterator[sa.Connection]:
        """Run a block that only reads, in one transaction.

        Args:
            one_moment: All statements see the database as it is at the first of them. On SQLite
                they do so in any case.
        """
        with self._mapped(), self._engine.begin() as connection:
            if one_moment and self.path is None:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield connection

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[sa.Connection]:
        """Run a block in one transaction: all of it is stored, or nothing.

        Args:
            alone: Wait until no other process or thread is in such a block. SQLite has one
                writer at a time in any case.
        """
        writing = self._engine.execution_options(**{_WRITES: True})
        with self._mapped(), writing.begin() as connection:
            if self.path is None:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s'")
                if alone:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """Return an INSERT that knows ``on_conflict_do_nothing`` and ``..._do_update``."""
        return postgresql.insert(table) if self.path is None else sqlite.insert(table)

    def use_wal(self) -> None:
        """Let readers and the writer of a SQLite file work at the same time; stays with it."""
        with self._mapped():
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OverflowError) as error:
            cause = getattr(error, "orig", None) or error
            fault = fault_of(cause)
            # Only the first line: PostgreSQL quotes values on the lines after it.
            said = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(". ")
            raise fault.kind(f"{said}. {fault.advice}", store=self.url) from error


_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _close_idle_connections() -> None:
    for database in list(_open_databases):
        database.close()


# A forked child must not inherit a connection: it would share the parent's socket, or believe
# that it holds the parent's file locks.
os.register_at_fork(before=_close_idle_connections)


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        parsed = None  # the error may quote the password
    if parsed is not None:
        backend = parsed.get_backend_name()
        if backend in ("postgresql", "postgres"):
            return parsed.set(drivername="postgresql+psycopg")
        if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
            return parsed.set(drivername="sqlite")
    raise ConfigError(
        "The store's URL names no database that can be used. Give sqlite:///PATH "
        "(sqlite:////PATH when absolute) or postgresql://USER:PASSWORD@HOST/NAME"
    )


def _shown(url: sa.URL) -> str:
    """Return ``url`` without secrets, for messages and logs."""
    secret = [name for name in url.query if "password" in name]
    return url.difference_update_query(secret).render_as_string(hide_password=True)


def _file_of(url: sa.URL) -> Path | None:
    return Path(url.database or "").absolute() if url.drivername == "sqlite" else None


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_WAIT_SECONDS},
    )


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    path = _file_of(url)
    # mode=rw: a file that was taken away must be an error, never a new, empty database.
    query = {"mode": "rw", "timeout": str(LOCK_WAIT_SECONDS), **url.query, "uri": "true"}
    engine = sa.create_engine(
        url.set(database=f"file:{quote(str(path))}", query=query), hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        entry.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def still_there(connection: sqlite3.Connection, entry: ConnectionPoolEntry, proxy: Any) -> None:
        # SQLite goes on writing into a deleted file without a word.
        if entry.info["file"] != _identity(path):
            raise DisconnectionError("the database file was removed or replaced")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _identity(path: Path | None) -> tuple[int, int] | None:
    try:
        found = os.stat(path or "")
    except OSError:
        return None
    return found.st_dev, found.st_ino
