"""The store on a real PostgreSQL: the unit tests of SQLite again, and what only it can do."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slm_core.errors import StoreError, StoreUnavailable
from slm_core.local_stack.postgres import ensure_database
from slm_core.store import Store, open_store, schema
from slm_core.testing.records import make_call

pytestmark = pytest.mark.integration

SUITE = Path(__file__).parents[1] / "unit" / "store"
SQLITE_ONLY = {"test_engine", "test_encoding"}
SHARED_FIXTURES = {"claim", "empty_sql", "full_store", "three_months"}

Sql = Callable[..., list[Any]]


def _suite() -> Iterator[tuple[str, Any]]:
    """Yield the tests and fixtures of the unit tests, to be collected here a second time."""
    sys.path.insert(0, str(SUITE))
    try:
        modules = [importlib.import_module(file.stem) for file in sorted(SUITE.glob("test_*.py"))]
    finally:
        sys.path.remove(str(SUITE))
    for module in modules:
        for name, thing in vars(module).items():
            shared = name.startswith("test_") or name in SHARED_FIXTURES
            if shared and module.__name__ not in SQLITE_ONLY:
                yield name, thing


for _name, _thing in _suite():
    assert _name not in globals(), f"two things of the suite are named {_name}"
    globals()[_name] = _thing


@pytest.fixture(scope="module")
def one_store(postgres_url: str) -> str:
    """URL of a database with the store's tables; migrating one per test would take minutes."""
    ensure_database(postgres_url, "store_suite")
    url = (
        sa.make_url(postgres_url).set(database="store_suite").render_as_string(hide_password=False)
    )
    open_store(url).close()
    return url


@pytest.fixture
def store_url(one_store: str) -> str:
    engine = sa.create_engine(one_store, poolclass=sa.NullPool)
    with engine.begin() as connection:
        names = ", ".join(schema.metadata.tables)
        connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY"))
    return one_store


@pytest.fixture
def empty_url(postgres_database: str) -> str:
    return postgres_database


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with open_store(store_url) as store:
        yield store


@pytest.fixture
def sql(store_url: str) -> Callable[..., list[Any]]:
    """Run a statement past the store; return the rows."""
    engine = sa.create_engine(store_url, poolclass=sa.NullPool)

    def run(statement: str, **parameters: Any) -> list[Any]:
        with engine.begin() as connection:
            result = connection.execute(sa.text(statement), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    return run


def _changed(url: str, **changes: Any) -> str:
    return sa.make_url(url).set(**changes).render_as_string(hide_password=False)


def refused(url: str) -> str:
    """Open the store where that must fail; return the whole message, secrets checked."""
    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        open_store(url)
    said = "".join(traceback.format_exception(caught.value))
    assert str(sa.make_url(url).password) not in said
    return str(caught.value)


def test_a_server_that_is_not_there(store_url: str) -> None:
    assert "refused" in refused(_changed(store_url, port=1))


def test_a_wrong_password(store_url: str) -> None:
    said = refused(_changed(store_url, password="geheim"))
    assert "password authentication failed" in said


def test_a_database_that_does_not_exist(store_url: str) -> None:
    said = refused(_changed(store_url, database="nothing"))
    assert 'database "nothing" does not exist' in said


def test_a_lost_connection_is_retryable_and_the_next_try_succeeds(store: Store, sql: Sql) -> None:
    cut_off = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )

    def write_while_cut_off() -> None:
        with store._database.write() as connection:
            sql(cut_off)
            connection.execute(sa.select(1))

    with pytest.raises(StoreUnavailable, match="does not answer"):
        write_while_cut_off()
    assert store.calls.count() == 0
    sql(cut_off)
    assert store.calls.add([make_call()], lambda _: None).stored == 1


def test_nobody_waits_for_a_lock_for_ever(store: Store) -> None:
    with store._database.write() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "30s"


def test_the_next_claim_is_one_that_nobody_is_taking_at_this_moment(store: Store) -> None:
    store.calls.add([make_call(n) for n in range(2)], lambda _: None)
    first, second = store.claims.make(size=1)
    with store._database.write() as connection:
        being_taken = sa.update(schema.claims).where(schema.claims.c.id == first.id)
        connection.execute(being_taken.values(owner="run-1"))
        taken = store.claims.take_next("run-2")
    assert taken is not None
    assert taken.id == second.id


def test_a_read_only_database_can_be_read(postgres_database: str, postgres_url: str) -> None:
    open_store(postgres_database).close()
    name = sa.make_url(postgres_database).database
    with sa.create_engine(postgres_url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    with open_store(postgres_database) as store:
        assert store.calls.count() == 0
        with pytest.raises(StoreUnavailable, match="The database is read-only"):
            store.calls.add([make_call()], lambda _: None)


def test_a_refused_statement_shows_neither_text_nor_password(store: Store, store_url: str) -> None:
    store.calls.add([make_call()], lambda _: None)
    row = {"month": 202603, "sha256": "x", "body": "the secret prompt"}  # as make_call()

    def break_the_schema() -> None:
        with store._database.write() as connection:
            connection.execute(sa.insert(schema.call_bodies), [row, row])

    with pytest.raises(StoreError, match="contradict what the database holds") as caught:
        break_the_schema()
    said = "".join(traceback.format_exception(caught.value))
    assert "the secret prompt" not in said
    assert str(sa.make_url(store_url).password) not in said


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_any_postgresql_url_will_do(store_url: str, scheme: str) -> None:
    rest = store_url.removeprefix("postgresql+psycopg")
    with open_store(scheme + rest, create=False) as store:
        assert store.calls.count() == 0


def test_ids_sort_by_code_point_whatever_the_database_prefers(store: Store, sql: Sql) -> None:
    collations = sql(
        "SELECT DISTINCT collation_name FROM information_schema.columns "
        "WHERE table_name = 'calls' AND column_name IN ('id', 'agent_name')"
    )
    assert collations == [("C",)]
