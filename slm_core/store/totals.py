"""Sums over the calls, kept as calls come and are claimed, so that no question counts rows.

Who asks for counts, costs or times reads one row for each agent, agent type and model. The sums
are written in the transaction that adds or claims the calls, so they agree with them at any
moment; ``recounted`` says the same from the calls themselves, for ``verify``.

Percentiles come from a histogram with buckets 4 % wide: within 2 % of the exact nearest rank.
Times below a microsecond count as one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from slm_core.records import CallStats
from slm_core.store import schema
from slm_core.store.engine import Database

RELATIVE_ERROR = 0.02
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_SHORTEST_SECONDS = 1e-6

_totals = schema.call_totals
_seconds = schema.call_seconds
_reasons = schema.call_reasons
GROUP = ("agent_name", "agent_type", "model")
SUMS = tuple(c.name for c in _totals.c if c.name not in (*GROUP, "number"))
READ = (
    *GROUP,
    *("success", "unusable", "claim_id", "seconds"),
    *("cost_nanousd", "prompt_tokens", "completion_tokens"),
)
"""The columns of a call that ``summed`` reads."""

Group = tuple[str, str, str]
"""Agent, agent type and model."""


class Sums(NamedTuple):
    """What some calls add to the totals."""

    totals: dict[Group, Counter[str]]
    seconds: Counter[tuple[Group, int]]
    """Calls by group and bucket."""
    reasons: Counter[str]


def bucket_of(seconds: float) -> int:
    """Return the bucket of the histogram that a time falls into."""
    return math.ceil(math.log(max(seconds, _SHORTEST_SECONDS)) / math.log(_GROWTH))


def seconds_of(bucket: int) -> float:
    """Return the time that stands for a bucket: at most 2 % from any time in it."""
    return 2 * _GROWTH**bucket / (_GROWTH + 1)


def summed(calls: Iterable[Mapping[str, Any] | sa.RowMapping]) -> Sums:
    """Return the sums over rows of ``calls``; a row without a claim may lack ``claim_id``."""
    sums = Sums({}, Counter(), Counter())
    for call in calls:
        group = (call["agent_name"], call["agent_type"], call["model"])
        total = sums.totals.setdefault(group, Counter())
        usable = call["unusable"] is None
        total["calls"] += 1
        total["succeeded"] += bool(call["success"])
        total["waiting"] += usable and call.get("claim_id") is None
        total["priced"] += call["cost_nanousd"] is not None
        total["cost_nanousd"] += call["cost_nanousd"] or 0
        total["nanoseconds"] += round(call["seconds"] * 1e9)
        total["prompt_tokens"] += call["prompt_tokens"] or 0
        total["completion_tokens"] += call["completion_tokens"] or 0
        sums.seconds[group, bucket_of(call["seconds"])] += 1
        if not usable:
            sums.reasons[call["unusable"]] += 1
    return sums


def add_to_totals(
    database: Database, connection: sa.Connection, calls: Iterable[Mapping[str, Any]]
) -> None:
    """Add rows that were just put into ``calls``; nobody else is adding meanwhile."""
    sums = summed(calls)
    rows = [
        dict(zip(GROUP, group, strict=True)) | {name: total[name] for name in SUMS}
        for group, total in sums.totals.items()
    ]
    connection.execute(_adding(database, _totals, GROUP, SUMS), rows)
    agents = {agent for agent, _, _ in sums.totals}
    mine = sa.select(*_totals.c["number", *GROUP]).where(_totals.c.agent_name.in_(agents))
    numbers = {tuple(row[1:]): row[0] for row in connection.execute(mine)}
    connection.execute(
        _adding(database, _seconds, ("totals", "bucket"), ("calls",)),
        [
            {"totals": numbers[group], "bucket": bucket, "calls": n}
            for (group, bucket), n in sums.seconds.items()
        ],
    )
    if sums.reasons:
        adding = _adding(database, _reasons, ("reason",), ("calls",))
        connection.execute(adding, [{"reason": r, "calls": n} for r, n in sums.reasons.items()])


def take_from_waiting(connection: sa.Connection, claimed: Counter[Group]) -> None:
    """Note that so many calls of each group wait no longer."""
    which = [_totals.c[name] == sa.bindparam(f"of_{name}") for name in GROUP]
    connection.execute(
        sa.update(_totals)
        .where(*which)
        .values(waiting=_totals.c.waiting - sa.bindparam("claimed", type_=sa.BigInteger)),
        [
            {f"of_{name}": value for name, value in zip(GROUP, group, strict=True)} | {"claimed": n}
            for group, n in sorted(claimed.items())
        ],
    )


def total(connection: sa.Connection, name: str) -> int:
    """Return the sum of a column over all agents."""
    return int(connection.scalar(sa.select(sa.func.sum(_totals.c[name]))) or 0)


def reasons(connection: sa.Connection) -> dict[str, int]:
    """Return why calls may not become examples: reason to count."""
    found = connection.execute(sa.select(_reasons).order_by(_reasons.c.reason))
    return {row.reason: row.calls for row in found}


def stats(connection: sa.Connection, agent_name: str | None) -> list[CallStats]:
    """Return the totals of one agent or of all, in order."""
    rows = connection.execute(_stats_query(agent_name)).mappings()
    return [
        CallStats(
            **{name: row[name] for name in (*GROUP, "calls", "succeeded")},
            cost_nanousd=row["cost_nanousd"] if row["priced"] else None,
            unpriced=row["calls"] - row["priced"],
            seconds_mean=row["nanoseconds"] / 1e9 / row["calls"],
            seconds_p50=seconds_of(row["p50"]),
            seconds_p95=seconds_of(row["p95"]),
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
        )
        for row in rows
    ]


def recounted(connection: sa.Connection) -> Sums:
    """Return what the totals must say, from the calls themselves; reads every call."""
    rows = sa.select(*schema.calls.c[READ]).execution_options(yield_per=1000)
    return summed(connection.execute(rows).mappings())


def stored(connection: sa.Connection) -> Sums:
    """Return what the totals say."""
    totals: dict[Group, Counter[str]] = {}
    groups: dict[int, Group] = {}
    for row in connection.execute(sa.select(_totals)).mappings():
        groups[row["number"]] = group = (row["agent_name"], row["agent_type"], row["model"])
        totals[group] = Counter({name: row[name] for name in SUMS})
    buckets = connection.execute(sa.select(_seconds))
    seconds = Counter({(groups[row.totals], row.bucket): row.calls for row in buckets})
    return Sums(totals, seconds, Counter(reasons(connection)))


def _adding(
    database: Database, table: sa.Table, key: tuple[str, ...], sums: tuple[str, ...]
) -> Any:
    """Return an INSERT that adds its numbers to the row of the same key, if there is one."""
    insert = database.insert(table)
    added = {name: table.c[name] + insert.excluded[name] for name in sums}
    return insert.on_conflict_do_update(index_elements=key, set_=added)


def _stats_query(agent_name: str | None) -> sa.Select[Any]:
    buckets = sa.select(
        *_seconds.c["totals", "bucket"],
        sa.func.sum(_seconds.c.calls)
        .over(partition_by=_seconds.c.totals, order_by=_seconds.c.bucket)
        .label("up_to"),
    )
    if agent_name is not None:
        mine = sa.select(_totals.c.number).where(_totals.c.agent_name == agent_name)
        buckets = buckets.where(_seconds.c.totals.in_(mine))
    bucket = buckets.subquery().c

    def percentile(percent: int) -> sa.Label[int]:
        enough = bucket.up_to * 100 >= _totals.c.calls * percent
        return sa.func.min(sa.case((enough, bucket.bucket))).label(f"p{percent}")

    return (
        sa.select(_totals, percentile(50), percentile(95))
        .join(bucket.totals.table, bucket.totals == _totals.c.number)
        .group_by(*_totals.c)
        .order_by(*_totals.c[GROUP])
    )
