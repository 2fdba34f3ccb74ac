"""The tables are made once, in one step, and never by an older SLM Swap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import slm_core.store
from slm_core.errors import RecordNotFound, StoreError
from slm_core.store import open_store, schema
from slm_core.testing.records import make_call


@pytest.fixture
def empty_sql(empty_url: str) -> Callable[..., list[Any]]:
    """Run a statement in the database of ``empty_url``; return the rows."""
    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    engine = sa.create_engine(empty_url, poolclass=sa.NullPool)

    def run(statement: str) -> list[Any]:
        with engine.begin() as connection:
            result = connection.execute(sa.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    return run


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    return set(sa.inspect(engine).get_table_names())


def types_differ(
    context: MigrationContext, _column: object, _declared: object, found: Any, declared: Any
) -> bool:
    # To PostgreSQL, TEXT and a VARCHAR without length are the same.
    names = [kind.compile(context.dialect).replace("VARCHAR", "TEXT") for kind in (found, declared)]
    return names[0] != names[1]


def test_the_code_names_the_newest_migration() -> None:
    folder = Path(slm_core.store.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == schema.REVISION


def test_migrations_make_what_the_schema_declares(empty_url: str) -> None:
    open_store(empty_url).close()
    with sa.create_engine(empty_url, poolclass=sa.NullPool).connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": types_differ}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []
    assert tables(empty_url) == {*schema.metadata.tables, schema.VERSION_TABLE}


def test_opening_again_changes_nothing(empty_url: str) -> None:
    with open_store(empty_url) as store:
        store.calls.add([make_call()], lambda _: None)
    for _ in range(2):
        with open_store(empty_url) as store:
            assert store.calls.count() == 1


def test_a_store_made_by_a_newer_version_is_refused_and_left_alone(
    empty_url: str, empty_sql: Callable[..., list[Any]]
) -> None:
    open_store(empty_url).close()
    empty_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"A newer SLM Swap made .* 9999") as caught:
        open_store(empty_url)
    assert not caught.value.retryable
    assert empty_sql(f"SELECT version_num FROM {schema.VERSION_TABLE}") == [("9999",)]


def test_without_create_an_empty_database_is_not_found(
    empty_url: str, empty_sql: Callable[..., list[Any]]
) -> None:
    assert empty_sql("SELECT 1") == [(1,)]  # SQLite makes the file
    with pytest.raises(RecordNotFound, match="There is no store here"):
        open_store(empty_url, create=False)
    assert tables(empty_url) == set()
    open_store(empty_url).close()
    open_store(empty_url, create=False).close()


def test_a_migration_that_fails_leaves_nothing(
    empty_url: str, empty_sql: Callable[..., list[Any]]
) -> None:
    empty_sql("CREATE TABLE spans (other int)")
    with pytest.raises(StoreError, match="spans"):
        open_store(empty_url)
    assert tables(empty_url) == {"spans"}


def test_another_alembic_in_the_same_database_is_left_alone(
    empty_url: str, empty_sql: Callable[..., list[Any]]
) -> None:
    empty_sql("CREATE TABLE alembic_version (version_num varchar(32))")
    empty_sql("INSERT INTO alembic_version VALUES ('of-prefect')")
    open_store(empty_url).close()
    assert empty_sql("SELECT version_num FROM alembic_version") == [("of-prefect",)]
