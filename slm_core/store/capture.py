"""Captured calls: added once each, usable or not, and never changed.

Whether a call may become an example is decided when it is added, and kept with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import sqlalchemy as sa

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import Call, CallStats, DropReason
from slm_core.store import schema, texts, totals
from slm_core.store.engine import Database
from slm_core.store.packing import BATCH, Packed, call_rows, pack, unpacked
from slm_core.store.texts import Pruning

_calls = schema.calls


class AddResult(NamedTuple):
    """What became of the calls given to ``add``: stored plus duplicates are all of them."""

    stored: int
    duplicates: int
    """Not stored: the id, or the agent's idempotency key, is there already."""
    usable: int
    unusable: dict[str, int]
    """Reason to count, for stored calls that may not become examples."""


class Calls:
    """Every captured call, usable or not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        calls: Sequence[Call],
        usable: Callable[[Call], str | None],
        *,
        spool: tuple[str, int] | None = None,
    ) -> AddResult:
        """Store ``calls`` in one transaction; those that are there already are left out.

        Of usable calls with the same question and answer only the first stays usable; the
        others are stored as exact duplicates.

        Args:
            calls: In the order of capture.
            usable: Returns None when the call may become an example, else the reason.
            spool: Segment and byte offset up to which these calls were read; noted in the same
                transaction, so that a crash neither loses nor repeats a call. An offset never
                goes back.

        Raises:
            StoreError: a call cannot be said in JSON or took more than any call can, or its id is
                taken by a call with another question or answer. ``context["call_ids"]`` names
                it; nothing was stored.
        """
        packed = [pack(call, usable(call)) for call in calls]
        stored: list[Packed] = []
        with self._database.write(alone=True) as connection:
            for batch in _batches(packed):
                stored += self._add(connection, batch)
            if spool is not None:
                self._note_spool(connection, *spool)
        reasons = Counter(one.row["unusable"] for one in stored)
        usable_calls = reasons.pop(None, 0)
        return AddResult(len(stored), len(packed) - len(stored), usable_calls, dict(reasons))

    def spool_offset(self, segment: str) -> int:
        """Return how far ``segment`` has been read, in bytes; 0 when it was never seen."""
        statement = sa.select(schema.spool.c.read_to).where(schema.spool.c.segment == segment)
        with self._database.read() as connection:
            return connection.scalar(statement) or 0

    def get(self, call_id: str) -> Call:
        """Return the call of that id.

        Raises:
            RecordNotFound: there is none, or its texts were pruned.
        """
        row = next(call_rows(self._database, _calls.c.id == call_id), None)
        if row is None:
            raise RecordNotFound(f"The store holds no call {call_id!r}.")
        return unpacked(row)

    def select(
        self,
        *,
        claim_id: str | None = None,
        agent_name: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Call]:
        """Yield the calls that meet every condition given, in the order of their ids.

        Args:
            claim_id: Held by this claim.
            agent_name: Of this agent.
            since: Captured at this moment or later; with a time zone.
            limit: At most so many.
        """
        conditions = []
        if claim_id is not None:
            conditions.append(_calls.c.claim_id == claim_id)
        if agent_name is not None:
            conditions.append(_calls.c.agent_name == agent_name)
        if since is not None:
            conditions.append(_calls.c.created_at >= since)
        rows = call_rows(self._database, *conditions)
        return islice((unpacked(row) for row in rows), limit)

    def count(self) -> int:
        """Return how many calls are stored, usable or not."""
        with self._database.read() as connection:
            return totals.total(connection, "calls")

    def waiting(self) -> int:
        """Return how many usable calls no claim holds."""
        with self._database.read() as connection:
            return totals.total(connection, "waiting")

    def unusable(self) -> dict[str, int]:
        """Return why calls may not become examples: reason to count."""
        with self._database.read() as connection:
            return totals.reasons(connection)

    def stats(self, agent_name: str | None = None) -> list[CallStats]:
        """Return totals per agent, agent type and model, of one agent or of all.

        A percentile is the nearest rank, the smallest time that at least 50 or 95 % of the
        calls did not exceed, to within 2 %.
        """
        with self._database.read() as connection:
            return totals.stats(connection, agent_name)

    def prune(self, before: int) -> list[Pruning]:
        """Take the texts of unusable calls captured in a month earlier than ``before``.

        Counts, statistics, claims and the search for duplicates stay as they are; usable calls
        keep their texts. Returns what was done in each month, which the store remembers.

        Args:
            before: The first month that keeps everything, such as 202609.

        Raises:
            StoreError: ``before`` is no month, or later than the present one.
        """
        return texts.prune(self._database, before)

    def prunings(self) -> list[Pruning]:
        """Return every pruning, oldest first."""
        with self._database.read() as connection:
            return texts.prunings(connection)

    def _add(self, connection: sa.Connection, batch: list[Packed]) -> list[Packed]:
        """Store what is new in ``batch`` and return it; nobody else is adding meanwhile."""
        digests = _digests_by_id(connection, [one.row["id"] for one in batch])
        keys = _known_keys(connection, [one.key for one in batch if one.key])
        taken = _usable_digests(connection, [one.row["digest"] for one in batch])
        new: list[Packed] = []
        for one in batch:
            row = one.row
            if row["id"] in digests:
                _refuse_other_call(row, digests[row["id"]])
            elif one.key is None or one.key not in keys:
                if row["unusable"] is None and row["digest"] in taken:
                    row["unusable"] = DropReason.DUPLICATE.value
                if row["unusable"] is None:
                    taken.add(row["digest"])
                digests[row["id"]] = row["digest"]
                keys.add(one.key)
                new.append(one)
        if new:
            texts.add_texts(self._database, connection, new)
            rows = [one.row for one in new]
            connection.execute(sa.insert(_calls), rows)
            totals.add_to_totals(self._database, connection, rows)
        return new

    def _note_spool(self, connection: sa.Connection, segment: str, offset: int) -> None:
        statement = self._database.insert(schema.spool).values(segment=segment, read_to=offset)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["segment"],
                set_={"read_to": offset},
                where=schema.spool.c.read_to < offset,
            )
        )


def _digests_by_id(connection: sa.Connection, ids: list[str]) -> dict[str, str]:
    statement = sa.select(_calls.c.id, _calls.c.digest).where(_calls.c.id.in_(ids))
    return {row.id: row.digest for row in connection.execute(statement)}


def _known_keys(
    connection: sa.Connection, keys: list[tuple[str, str]]
) -> set[tuple[str, str] | None]:
    if not keys:
        return set()
    key = sa.tuple_(_calls.c.agent_name, _calls.c.idempotency_key)
    statement = sa.select(_calls.c.agent_name, _calls.c.idempotency_key).where(key.in_(keys))
    return {(row.agent_name, row.idempotency_key) for row in connection.execute(statement)}


def _usable_digests(connection: sa.Connection, digests: list[str]) -> set[str]:
    statement = sa.select(_calls.c.digest).where(schema.usable, _calls.c.digest.in_(digests))
    return set(connection.scalars(statement))


def _refuse_other_call(row: dict[str, Any], digest: str) -> None:
    if row["digest"] != digest:
        raise StoreError(
            f"Call {row['id']!r} is already stored with another question or answer. Ids are "
            "given once: quarantine this call, and find out what made it.",
            call_ids=(row["id"],),
        )


def _batches(packed: list[Packed]) -> Iterator[list[Packed]]:
    for start in range(0, len(packed), BATCH):
        yield packed[start : start + BATCH]
