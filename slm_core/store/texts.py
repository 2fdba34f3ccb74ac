"""The texts of calls: kept once a month by hash, and pruned by whole months.

A call is a short row that stays for good, with its id, numbers, claim and digest; its texts are
most of the bytes. Pruning takes the texts of calls that can never train: the row stays, so that
counts, statistics and the search for duplicates are not changed by it. The texts of usable
calls are kept, because every later dataset reads them.

On PostgreSQL a month is a partition of ``call_bodies``, made when its first call comes. What a
pruning keeps is written anew and the rest given back to the disk at once; one DELETE of millions
of rows would leave a table as large as before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from slm_core.errors import StoreError
from slm_core.records import utc_now
from slm_core.store import schema
from slm_core.store.engine import Database
from slm_core.store.packing import TEXTS, Packed, found_by, month_of

log = logging.getLogger(__name__)

_bodies = schema.call_bodies
_calls = schema.calls
_prunings = schema.prunings


class Pruning(NamedTuple):
    """What became of the calls of one month."""

    month: int
    """Such as 202611."""
    kept: int
    """Calls that still have their texts."""
    pruned: int
    """Calls that lost them by this pruning."""
    created_at: datetime


def add_texts(database: Database, connection: sa.Connection, calls: Sequence[Packed]) -> None:
    """Store the texts of calls, each once a month; nobody else is adding meanwhile."""
    texts = {
        (one.row["month"], sha256): body for one in calls for sha256, body in one.bodies.items()
    }
    if database.path is None:
        for month in sorted({month for month, _ in texts}):
            _ensure_partition(connection, month)
    connection.execute(
        database.insert(_bodies).on_conflict_do_nothing(),
        [{"month": month, "sha256": sha, "body": body} for (month, sha), body in texts.items()],
    )


def prune(database: Database, before: int, *, now: datetime | None = None) -> list[Pruning]:
    """Take the texts of unusable calls captured in a month earlier than ``before``.

    Each month is one transaction, so a prune that is killed has done whole months.

    Args:
        before: The first month that keeps everything, such as 202609.
        now: The present moment, for tests.

    Raises:
        StoreError: ``before`` is no month, or later than the present one.
    """
    present = month_of(now or utc_now())
    if not 1 <= before % 100 <= 12 or before > present:
        raise StoreError(
            f"Cannot prune before {before}: name a month that is not later than the present one, "
            f"{present}.",
        )
    done: list[Pruning] = []
    with database.read() as connection:
        months = [month for month in _months(connection) if month < before]
    for month in months:
        with database.write(alone=True) as connection:
            had = _with_texts(connection, month)
            _take_texts(database, connection, month)
            kept = _with_texts(connection, month)
            one = Pruning(month, kept, had - kept, utc_now())
            if one.pruned:
                connection.execute(sa.insert(_prunings).values(one._asdict()))
                done.append(one)
                log.info("texts pruned month=%d calls=%d kept=%d", month, one.pruned, kept)
    return done


def prunings(connection: sa.Connection) -> list[Pruning]:
    """Return every pruning, oldest first."""
    rows = connection.execute(sa.select(_prunings).order_by(_prunings.c.number)).mappings()
    return [Pruning(**{name: row[name] for name in Pruning._fields}) for row in rows]


def _ensure_partition(connection: sa.Connection, month: int) -> None:
    name = f"{_bodies.name}_{month}"
    if connection.scalar(sa.select(sa.func.to_regclass(name))) is None:
        connection.exec_driver_sql(
            f"CREATE TABLE {name} PARTITION OF {_bodies.name} FOR VALUES IN ({month})"
        )


def _months(connection: sa.Connection) -> Iterator[int]:
    """Yield the months that have texts, by a look into the index for each."""
    month: int | None = 0
    while (
        month := connection.scalar(
            sa.select(sa.func.min(_bodies.c.month)).where(_bodies.c.month > month)
        )
    ) is not None:
        yield month


def _with_texts(connection: sa.Connection, month: int) -> int:
    """Return how many calls of a month have their question and answer."""
    joined = _calls.join(_bodies, found_by("exchange", _bodies.c))
    of_month = (_calls.c.month == month) & (_bodies.c.month == month)
    count = sa.select(sa.func.count()).select_from(joined).where(of_month)
    return connection.scalar(count) or 0


def _take_texts(database: Database, connection: sa.Connection, month: int) -> None:
    of_usable = sa.union(
        *(
            sa.select(_calls.c[f"{text}_sha256"].label("sha256")).where(
                _calls.c.month == month, schema.usable
            )
            for text in TEXTS
        )
    ).subquery()
    mine = _bodies.c.month == month
    if database.path is not None:
        kept = sa.select(of_usable.c.sha256)
        connection.execute(sa.delete(_bodies).where(mine, _bodies.c.sha256.not_in(kept)))
        return
    kept = sa.select(_bodies).where(mine, _bodies.c.sha256 == of_usable.c.sha256)
    sql = kept.compile(connection, compile_kwargs={"literal_binds": True})
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE kept_texts ON COMMIT DROP AS {sql}")
    connection.exec_driver_sql(f"TRUNCATE {_bodies.name}_{month}")
    connection.exec_driver_sql(f"INSERT INTO {_bodies.name} SELECT * FROM kept_texts")
