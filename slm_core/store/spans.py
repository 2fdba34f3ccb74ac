"""An outbox of trace spans: kept here first, sent to Langfuse when it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from slm_core.errors import StoreError
from slm_core.store import schema
from slm_core.store.encoding import from_json, to_json
from slm_core.store.engine import Database

_spans = schema.spans
_PENDING = "pending"
_SENT = "sent"


class Spans:
    """Spans in the order in which they ended, each pending until it was marked as sent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, spans: Sequence[dict[str, Any]]) -> int:
        """Store ``spans``; return how many were new. Adding a span twice keeps it once.

        Args:
            spans: JSON-like data with at least the texts ``id``, ``trace_id`` and ``name``.

        Raises:
            StoreError: one of the texts is missing, a value is not JSON, or a span's id is
                taken by another span.
        """
        rows = [_row(span) for span in spans]
        if not rows:
            return 0
        statement = self._database.insert(_spans).on_conflict_do_nothing().returning(_spans.c.id)
        with self._database.write() as connection:
            new = len(connection.scalars(statement, rows).all())
            if new < len(rows):
                _refuse_other_spans(connection, rows)
        return new

    def pending(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the spans not sent yet, as they were added, oldest first."""
        return self._select(limit, _spans.c.state == sa.literal_column(f"'{_PENDING}'"))

    def by_trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return every span of one trace, sent or not, oldest first."""
        return self._select(None, _spans.c.trace_id == trace_id)

    def mark_sent(self, ids: Sequence[str]) -> int:
        """Mark the spans of these ids as sent; return how many were pending."""
        sent = sa.bindparam("sent_id", type_=_spans.c.id.type)
        statement = (
            sa.update(_spans)
            .where(_spans.c.id == sent, _spans.c.state == _PENDING)
            .values(state=_SENT)
        )
        with self._database.write() as connection:
            return sum(connection.execute(statement, {"sent_id": i}).rowcount for i in ids)

    def counts(self) -> dict[str, int]:
        """Return how many spans are ``pending`` and how many ``sent``."""
        statement = sa.select(_spans.c.state, sa.func.count().label("n")).group_by(_spans.c.state)
        with self._database.read() as connection:
            found = {row.state: row.n for row in connection.execute(statement)}
        return {state: found.get(state, 0) for state in (_PENDING, _SENT)}

    def _select(self, limit: int | None, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        statement = sa.select(_spans.c.payload).where(*where).order_by(_spans.c.number).limit(limit)
        with self._database.read() as connection:
            return [from_json(text) for text in connection.scalars(statement)]


def _row(span: dict[str, Any]) -> dict[str, str]:
    missing = [key for key in ("id", "trace_id", "name") if not isinstance(span.get(key), str)]
    if missing:
        raise StoreError("A span needs the texts id, trace_id and name.", missing=missing)
    names = {key: span[key] for key in ("id", "trace_id", "name")}
    return {**names, "payload": to_json(span), "state": _PENDING}


def _refuse_other_spans(connection: sa.Connection, rows: list[dict[str, str]]) -> None:
    for row in rows:
        statement = sa.select(_spans.c.payload).where(_spans.c.id == row["id"])
        if connection.scalar(statement) != row["payload"]:
            raise StoreError(
                f"Span {row['id']!r} is already stored with other content. "
                "A span is added once, when it has ended.",
                trace_id=row["trace_id"],
            )
