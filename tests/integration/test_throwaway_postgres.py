"""The shared PostgreSQL fixture: real, empty, guarded by a password; and no way out of here."""

from __future__ import annotations

import httpx
import psycopg
import pytest

pytestmark = pytest.mark.integration


def tables(url: str) -> int:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        found = connection.execute("select count(*) from pg_tables where schemaname = 'public'")
        row = found.fetchone()
        assert row is not None
        connection.execute("create table calls (id int)")
        return row[0]


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_test_has_an_empty_database_of_its_own(postgres_database: str, attempt: int) -> None:
    assert tables(postgres_database) == 0


def test_a_wrong_password_is_refused(postgres_url: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_url.replace("+psycopg", ""), password="wrong")


def test_nothing_but_this_machine_can_be_reached() -> None:
    with pytest.raises(RuntimeError, match="tests may only reach this machine"):
        httpx.get("http://192.0.2.1/")
