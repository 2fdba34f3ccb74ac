"""A call as it lies in the database: a narrow row, and its texts by their hash.

System prompt and tools come with every call of an agent; kept by hash, each is stored once a
month.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, NamedTuple

import sqlalchemy as sa

from slm_core.errors import StoreError
from slm_core.records import Call, sha256_hex
from slm_core.store import schema
from slm_core.store.encoding import from_json, to_json
from slm_core.store.engine import Database

BATCH = 1000
"""Calls per statement; databases limit the parameters of one."""

_calls = schema.calls
_PLAIN = tuple(c.name for c in _calls.c if c.name in Call.model_fields and c.name != "tags")
"""Fields of a call that are columns as they are."""
TEXTS = ("system", "tools", "exchange")
"""The texts of a call."""
_MOST = {
    "seconds": 10**7,
    "prompt_tokens": 10**9,
    "completion_tokens": 10**9,
    "cost_nanousd": 10**15,
}
"""What a call may take at most: a third of a year, and a million dollars. Hundreds of such calls
have a sum in nanoseconds and nanodollars that 64 bits hold."""
_BODIES = {part: schema.call_bodies.alias(part) for part in TEXTS}


class Packed(NamedTuple):
    """A call as it will lie in the database."""

    row: dict[str, Any]
    bodies: dict[str, str]
    """Texts by their hash."""

    @property
    def key(self) -> tuple[str, str] | None:
        """Return what is unique beside the id: the agent and its idempotency key."""
        key = self.row["idempotency_key"]
        return None if key is None else (self.row["agent_name"], key)


def pack(call: Call, unusable: str | None) -> Packed:
    """Return ``call`` with the reason why it is not usable, if any.

    Raises:
        StoreError: it cannot be said in JSON, has no time zone, or took more than any call
            can; the context names it.
    """
    reason = None if unusable is None else str(unusable)
    try:
        if call.created_at.tzinfo is None:
            raise ValueError(f"created_at {call.created_at.isoformat()} has no time zone")
        for name, most in _MOST.items():
            value = getattr(call, name)
            # A clock that was set back makes a call end before it began: odd, but no reason to
            # lose it.
            least = -most if name == "seconds" else 0
            if value is not None and not least <= value <= most:  # so is NaN
                raise ValueError(f"{name} is {value}, and must be from {least:,} to {most:,}")
        parts = {part: to_json(value) for part, value in _parts(call).items()}
        row = {name: getattr(call, name) for name in _PLAIN}
        row |= {"tags": to_json(call.tags), "digest": call.digest(), "unusable": reason}
        row |= {"month": month_of(call.created_at)}
    except (StoreError, ValueError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"Call {call.id!r} cannot be stored: {error}", call_ids=(call.id,)
        ) from error
    hashes = {part: sha256_hex(text) for part, text in parts.items()}
    row |= {f"{part}_sha256": sha256 for part, sha256 in hashes.items()}
    return Packed(row, {hashes[part]: text for part, text in parts.items()})


def _parts(call: Call) -> dict[str, Any]:
    """Return the texts of a call: the two that repeat from call to call, and the rest."""
    system = list(takewhile(lambda message: message.role == "system", call.messages))
    return {
        "system": [message.model_dump() for message in system],
        "tools": [tool.model_dump() for tool in call.tools],
        "exchange": {
            "messages": [m.model_dump() for m in call.messages[len(system) :]],
            "response": call.response,
            "tool_calls": [use.model_dump() for use in call.tool_calls],
        },
    }


def unpacked(row: sa.RowMapping) -> Call:
    """Return the call that a row of ``call_rows`` holds."""
    exchange = from_json(row["exchange_body"])
    return Call(
        **{name: row[name] for name in _PLAIN},
        messages=from_json(row["system_body"]) + exchange["messages"],
        tools=from_json(row["tools_body"]),
        response=exchange["response"],
        tool_calls=exchange["tool_calls"],
        tags=from_json(row["tags"]),
    )


def call_rows(database: Database, *conditions: sa.ColumnElement[bool]) -> Iterator[sa.RowMapping]:
    """Yield the rows of calls, with their texts, in the order of their ids.

    Calls whose texts were pruned, which are never usable ones, are left out.
    They are read page by page, so that a slow reader holds no transaction open.
    """
    page = _with_texts().where(*conditions).order_by(_calls.c.id).limit(BATCH)
    statement = page
    while True:
        with database.read() as connection:
            rows = connection.execute(statement).mappings().all()
        yield from rows
        if len(rows) < BATCH:
            return
        statement = page.where(_calls.c.id > rows[-1]["id"])


def found_by(part: str, bodies: Any) -> sa.ColumnElement[bool]:
    """Return the condition under which a row of ``bodies`` is that text of a call."""
    return sa.and_(_calls.c.month == bodies.month, _calls.c[f"{part}_sha256"] == bodies.sha256)


def month_of(moment: datetime) -> int:
    """Return the month of a moment in UTC, such as 202611."""
    utc = moment.astimezone(UTC)
    return utc.year * 100 + utc.month


def _with_texts() -> sa.Select[Any]:
    """Return the query for calls with their texts."""
    joined: sa.FromClause = _calls
    for part, bodies in _BODIES.items():
        joined = joined.join(bodies, found_by(part, bodies.c))
    texts = (bodies.c.body.label(f"{part}_body") for part, bodies in _BODIES.items())
    return sa.select(_calls, *texts).select_from(joined)
