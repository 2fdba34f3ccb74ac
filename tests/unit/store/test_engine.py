"""URLs are read, secrets stay in, and every driver error becomes one of ours."""

from __future__ import annotations

import sqlite3
import traceback
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from slm_core.errors import ConfigError, StoreError, StoreUnavailable
from slm_core.store import Store, open_store, schema
from slm_core.store.engine import Database, fault_of
from slm_core.testing.records import make_call


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////data/store.db", "sqlite:////data/store.db"),
        ("sqlite+pysqlite:////data/store.db", "sqlite:////data/store.db"),
        ("postgresql://ada:geheim@db/slm", "postgresql+psycopg://ada:***@db/slm"),
        ("postgres://ada:geheim@db:99/slm", "postgresql+psycopg://ada:***@db:99/slm"),
        ("postgresql+asyncpg://ada:geheim@db/slm", "postgresql+psycopg://ada:***@db/slm"),
        ("postgresql://db/slm?user=ada&password=geheim", "postgresql+psycopg://db/slm?user=ada"),
        ("postgresql://db/slm?sslpassword=geheim", "postgresql+psycopg://db/slm"),
    ],
)
def test_urls_are_read_and_shown_without_secrets(url: str, shown: str) -> None:
    assert Database(url).url == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store.db",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://ada:geheim@db/slm",
        "geheim",
        "postgresql://ada:geheim@db:port/slm",
    ],
)
def test_urls_that_name_no_usable_database_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="Give sqlite:///PATH") as caught:
        open_store(url)
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


def test_every_sqlite_code_has_advice() -> None:
    codes = {value for name, value in vars(sqlite3).items() if name.startswith("SQLITE_")}
    assert len(codes) > 80
    for code in codes:
        error = sqlite3.OperationalError("said")
        error.sqlite_errorcode = code
        fault = fault_of(error)
        assert issubclass(fault.kind, StoreError)
        assert fault.advice.endswith(".")


@pytest.mark.parametrize(
    ("name", "retryable"),
    [
        ("SQLITE_BUSY", True),
        ("SQLITE_BUSY_SNAPSHOT", True),
        ("SQLITE_LOCKED", True),
        ("SQLITE_READONLY", True),
        ("SQLITE_READONLY_DBMOVED", True),
        ("SQLITE_CANTOPEN", True),
        ("SQLITE_IOERR_WRITE", True),
        ("SQLITE_FULL", True),
        ("SQLITE_NOTADB", False),
        ("SQLITE_CORRUPT", False),
        ("SQLITE_CONSTRAINT_UNIQUE", False),
        ("SQLITE_ERROR", False),
    ],
)
def test_sqlite_errors_that_may_pass_are_retryable(name: str, retryable: bool) -> None:
    error = sqlite3.OperationalError("said")
    error.sqlite_errorcode = getattr(sqlite3, name)
    assert fault_of(error).kind.retryable is retryable


def test_every_psycopg_error_has_advice() -> None:
    errors = [e for e in vars(psycopg.errors).values() if isinstance(e, type)]
    errors = [e for e in errors if issubclass(e, psycopg.Error)]
    assert len(errors) > 200
    for error in errors:
        fault = fault_of(error("said"))
        assert issubclass(fault.kind, StoreError)
        assert fault.advice.endswith(".")


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (psycopg.OperationalError, True),  # no SQLSTATE: the connection is gone or refused
        (psycopg.errors.ConnectionTimeout, True),
        (psycopg.InterfaceError, True),
        (psycopg.errors.AdminShutdown, True),
        (psycopg.errors.CannotConnectNow, True),
        (psycopg.errors.ConnectionFailure, True),
        (psycopg.errors.TooManyConnections, True),
        (psycopg.errors.DiskFull, True),
        (psycopg.errors.ReadOnlySqlTransaction, True),
        (psycopg.errors.InsufficientPrivilege, True),
        (psycopg.errors.LockNotAvailable, True),
        (psycopg.errors.DeadlockDetected, True),
        (psycopg.errors.SerializationFailure, True),
        (psycopg.errors.QueryCanceled, True),
        (psycopg.errors.UniqueViolation, False),
        (psycopg.errors.NumericValueOutOfRange, False),
        (psycopg.errors.UndefinedTable, False),
        (psycopg.errors.DataCorrupted, False),
        (psycopg.ProgrammingError, False),
    ],
)
def test_postgresql_errors_that_may_pass_are_retryable(
    error: type[psycopg.Error], retryable: bool
) -> None:
    assert fault_of(error("said")).kind.retryable is retryable


def test_an_exhausted_pool_is_retryable() -> None:
    assert fault_of(sa.exc.TimeoutError("said")).kind is StoreUnavailable


def test_sqlite_is_set_up_for_many_processes(store_url: str) -> None:
    database = Database(store_url)
    with database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        }
    database.close()
    full = 2
    assert settings == {
        "journal_mode": "wal",
        "busy_timeout": 30_000,
        "foreign_keys": 1,
        "synchronous": full,
    }


def test_a_locked_database_says_so(store_url: str) -> None:
    with open_store(store_url + "?timeout=0.1") as store, open_store(store_url) as other:
        with other._database.write():
            with pytest.raises(StoreUnavailable, match=r"database is locked\. Another process"):
                store.calls.add([make_call()], lambda _: None)
            assert store.calls.count() == 0  # readers do not wait
        assert store.calls.add([make_call()], lambda _: None).stored == 1


def test_a_file_that_is_gone_is_an_error_and_not_an_empty_store(
    store: Store, store_url: str
) -> None:
    store.calls.add([make_call()], lambda _: None)
    file = Path(store_url.removeprefix("sqlite:///"))
    file.rename(file.with_name("moved.db"))
    for ask in (
        store.calls.count,
        lambda: store.calls.add([make_call(1)], lambda _: None),
        lambda: open_store(store_url, create=False),
    ):
        with pytest.raises(StoreUnavailable, match="The file is gone or cannot be opened"):
            ask()
    assert not file.exists()
    file.with_name("moved.db").rename(file)
    assert store.calls.count() == 1


def test_a_file_that_was_replaced_is_the_store_from_then_on(
    store: Store, store_url: str, empty_store: Path
) -> None:
    store.calls.add([make_call()], lambda _: None)
    file = Path(store_url.removeprefix("sqlite:///"))
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    file.write_bytes(empty_store.read_bytes())
    assert store.calls.count() == 0


@pytest.mark.parametrize(
    "content", [b"not a database, " * 999, b"SQLite format 3\x00" + b"x" * 5000]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"no SQLite database|damaged") as caught:
        open_store(f"sqlite:///{file}")
    assert not caught.value.retryable
    assert file.read_bytes() == content


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        open_store(f"sqlite:///{tmp_path}")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        open_store(f"sqlite:///{tmp_path}/file/store.db")


@pytest.mark.parametrize("name", ["a b.db", "50%.db", "%41.db", "#1.db", "æ漢.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    with open_store(f"sqlite:///{tmp_path}/{name}") as store:
        store.calls.add([make_call()], lambda _: None)
    assert [file.name for file in tmp_path.glob("*.db")] == [name]


def test_a_store_opened_for_reading_can_be_read_but_not_written(
    store: Store, store_url: str
) -> None:
    store.calls.add([make_call()], lambda _: None)
    with open_store(store_url + "?mode=ro") as reader:
        assert reader.calls.count() == 1
        with pytest.raises(StoreUnavailable, match="The database is read-only"):
            reader.calls.add([make_call(1)], lambda _: None)


def test_a_refused_statement_shows_no_text_of_the_record(store: Store) -> None:
    row = {"month": 202603, "sha256": "x", "body": "the secret prompt"}

    def break_the_schema() -> None:
        with store._database.write() as connection:
            connection.execute(sa.insert(schema.call_bodies), [row, row])

    with pytest.raises(StoreError, match="contradict what the database holds") as caught:
        break_the_schema()
    assert "the secret prompt" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.context["store"] == store.url
