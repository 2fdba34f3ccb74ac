"""How values become columns that read back equal on both databases.

PostgreSQL refuses NUL in text, UTF-8 has no lone surrogates, and model output holds both.
SQLite forgets time zones. The column types here take care of all three.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.types import TypeDecorator, TypeEngine

from slm_core.errors import StoreError

_UNSTORABLE = re.compile("[\\\\\x00\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_MARK = "\\"
"""Begins a JSON text that was escaped as a whole; no JSON text begins so."""


def _say_time(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


_encoder = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_say_time
)


def escape(text: str) -> str:
    """Return ``text`` with NUL, lone surrogates and the backslash written as ``\\uXXXX``."""
    return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def unescape(text: str) -> str:
    """Return what ``escape`` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def to_json(value: Any) -> str:
    """Return ``value`` as compact JSON, keys in their own order, that any database can hold.

    The order is kept because tools are shown to the model in it.

    Raises:
        StoreError: ``value`` holds what JSON cannot say: NaN, an infinity, an object, or
            depth without end.
    """
    try:
        # Not pydantic's JSON mode: it replaces lone surrogates in the keys of a mapping.
        if isinstance(value, BaseModel):
            value = value.model_dump()
        text = _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"A value cannot be stored as JSON: {error}") from error
    # JSON's own escapes will not do for surrogates: a reader joins two neighbours into one
    # character, and the text would not read back equal.
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return _MARK + escape(text)


def from_json(text: str) -> Any:
    """Return what ``to_json`` was given, as plain data."""
    return json.loads(unescape(text[1:]) if text.startswith(_MARK) else text)


class AnyText(TypeDecorator[str]):
    """Text that may hold NUL and lone surrogates; sorts by code point on both databases."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(sa.Text(collation=collation))

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else escape(str(value))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else unescape(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment, stored as UTC and returned with its time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
