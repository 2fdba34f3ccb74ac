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
from slm_core.store import schema
from slm_core.store.engine import Database
from slm_core.store.packing import BATCH, Packed, call_rows, pack, unpacked

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
            StoreError: a call cannot be said in JSON, or its id is taken by a call with another
                question or answer. ``context["call_ids"]`` names it; nothing was stored.
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
            RecordNotFound: there is none.
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
        return self._count(sa.true())

    def waiting(self) -> int:
        """Return how many usable calls no claim holds."""
        return self._count(schema.waiting)

    def unusable(self) -> dict[str, int]:
        """Return why calls may not become examples: reason to count."""
        reason = schema.calls.c.unusable
        query = sa.select(reason, sa.func.count()).where(reason.is_not(None)).group_by(reason)
        with self._database.read() as connection:
            return {str(row[0]): int(row[1]) for row in connection.execute(query.order_by(reason))}

    def stats(self, agent_name: str | None = None) -> list[CallStats]:
        """Return totals per agent, agent type and model, of one agent or of all.

        A percentile is the nearest rank: the smallest time that at least 50 or 95 % of the
        calls did not exceed.
        """
        group = (_calls.c.agent_name, _calls.c.agent_type, _calls.c.model)
        ranked = sa.select(
            *group,
            *_calls.c["success", "cost_nanousd", "seconds", "prompt_tokens", "completion_tokens"],
            sa.func.row_number().over(partition_by=group, order_by=_calls.c.seconds).label("rank"),
            sa.func.count().over(partition_by=group).label("size"),
        )
        if agent_name is not None:
            ranked = ranked.where(_calls.c.agent_name == agent_name)
        call = ranked.subquery().c
        statement = (
            sa.select(
                call.agent_name,
                call.agent_type,
                call.model,
                sa.func.count().label("calls"),
                sa.func.sum(sa.cast(call.success, sa.Integer)).label("succeeded"),
                sa.func.sum(call.cost_nanousd).label("cost_nanousd"),
                (sa.func.count() - sa.func.count(call.cost_nanousd)).label("unpriced"),
                sa.func.avg(call.seconds).label("seconds_mean"),
                _percentile(call, 50).label("seconds_p50"),
                _percentile(call, 95).label("seconds_p95"),
                sa.func.coalesce(sa.func.sum(call.prompt_tokens), 0).label("prompt_tokens"),
                sa.func.coalesce(sa.func.sum(call.completion_tokens), 0).label("completion_tokens"),
            )
            .group_by(call.agent_name, call.agent_type, call.model)
            .order_by(call.agent_name, call.agent_type, call.model)
        )
        with self._database.read() as connection:
            return [CallStats(**row) for row in connection.execute(statement).mappings()]

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
            bodies = {sha256: body for one in new for sha256, body in one.bodies.items()}
            connection.execute(
                self._database.insert(schema.call_bodies).on_conflict_do_nothing(),
                [{"sha256": sha256, "body": body} for sha256, body in bodies.items()],
            )
            connection.execute(sa.insert(_calls), [one.row for one in new])
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

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        with self._database.read() as connection:
            statement = sa.select(sa.func.count()).select_from(_calls).where(condition)
            return connection.scalar(statement) or 0


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


def _percentile(call: Any, percent: int) -> sa.ColumnElement[float]:
    enough = call.rank * 100 >= call.size * percent
    return sa.func.min(sa.case((enough, call.seconds)))


def _batches(packed: list[Packed]) -> Iterator[list[Packed]]:
    for start in range(0, len(packed), BATCH):
        yield packed[start : start + BATCH]
