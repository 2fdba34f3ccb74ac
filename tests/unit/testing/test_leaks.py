"""A secret is found wherever it is put: as it is, in base64, in a table, in a file."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import sqlalchemy as sa

from slm_core.testing.leaks import files, find_leaks, tables

SECRET = {"key": "sk-canary-0123456789"}


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("after", ["", "z", "yz"])
def test_a_secret_is_found_in_base64_at_any_offset(before: str, after: str) -> None:
    content = f"{before}{SECRET['key']}{after}".encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert find_leaks(SECRET, [("header", encode(content))]) == {"key in header"}


def test_a_secret_is_found_in_any_column_of_any_table(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/db")
    with engine.begin() as connection:
        connection.execute(sa.text("create table clean (a text)"))
        connection.execute(sa.text('create table "order" (a integer, b blob)'))
        connection.execute(sa.text("insert into clean values ('sk-canary')"))
        row = {"b": b"\0" + SECRET["key"].encode()}
        connection.execute(sa.text('insert into "order" values (1, :b)'), row)
    assert find_leaks(SECRET, tables(engine)) == {"key in table order"}
    engine.dispose()


def test_a_secret_is_found_in_a_file_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log").write_text(f"Authorization: Bearer {SECRET['key']}")
    (tmp_path / "clean").write_text("nothing")
    assert find_leaks(SECRET, files(tmp_path)) == {"key in runs/log"}


def test_a_secret_that_chance_would_find_is_refused() -> None:
    with pytest.raises(ValueError, match="Too short to look for: pin"):
        find_leaks({"pin": "1234"}, [])
