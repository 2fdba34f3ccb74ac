"""A store on SQLite. ``tests/integration/test_store_postgres.py`` runs the same tests on
PostgreSQL with fixtures of the same names."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slm_core.store import Store, open_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store that holds nothing; copying it is quicker than migrating."""
    file = tmp_path_factory.mktemp("store") / "empty.db"
    open_store(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def store_url(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'store.db')}"


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    """URL of a database that has no tables yet."""
    return f"sqlite:///{tmp_path}/new/empty.db"


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
