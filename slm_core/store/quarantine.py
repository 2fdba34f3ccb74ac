"""Input rows that could not be read, kept with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from slm_core.records import Quarantined, content_id
from slm_core.store import schema
from slm_core.store.engine import Database

_rows = schema.quarantine


class Quarantine:
    """Rows that were set aside; nothing is dropped without a trace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Sequence[Quarantined]) -> int:
        """Store ``rows``; return how many were new.

        The same row of the same source is kept once, so a spool may be read again after a
        crash.
        """
        values = {row_id(r.source, r.reason, r.raw): r.model_dump() for r in rows}
        if not values:
            return 0
        statement = self._database.insert(_rows).on_conflict_do_nothing().returning(_rows.c.id)
        with self._database.write() as connection:
            new = connection.scalars(statement, [{"id": i, **row} for i, row in values.items()])
            return len(new.all())

    def list(self, limit: int | None = None) -> tuple[Quarantined, ...]:
        """Return the rows, oldest first, at most ``limit``."""
        statement = (
            sa.select(*_rows.c["source", "reason", "raw", "created_at"])
            .order_by(_rows.c.created_at, _rows.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return tuple(Quarantined(**row) for row in connection.execute(statement).mappings())

    def counts(self) -> dict[str, int]:
        """Return reason to number of rows, most frequent first."""
        count = sa.func.count().label("n")
        statement = sa.select(_rows.c.reason, count).group_by(_rows.c.reason).order_by(count.desc())
        with self._database.read() as connection:
            return {row.reason: row.n for row in connection.execute(statement)}


def row_id(source: str, reason: str, raw: str) -> str:
    """Return the content id under which a row is kept."""
    return content_id("row", [source, reason, raw])
