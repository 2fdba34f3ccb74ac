"""Fill a store with millions of calls by statements of the database, as fast as it can.

What comes out is what ``store.calls.add`` would have left: bodies under their hash, a claim for
each 100 usable calls, sums. ``scale.py`` checks that with ``verify``.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import sqlalchemy as sa

from slm_core.store.totals import RELATIVE_ERROR

AGENTS = 1000
FIRST_DAY = "2026-05-01"
SECONDS_PER_CALL = 1.5
"""Ten million calls are captured in half a year."""
USABLE_OF_TEN = 3


class Dialect(NamedTuple):
    """How a database says what the two say differently."""

    series: str
    hash: str
    created_at: str
    month: str


POSTGRESQL = Dialect(
    "generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS s(n)",
    "encode(sha256(convert_to({0}, 'UTF8')), 'hex')",
    f"timestamptz '{FIRST_DAY} 00:00+00' + n * interval '{SECONDS_PER_CALL} seconds'",
    "CAST(to_char(({0}) AT TIME ZONE 'UTC', 'YYYYMM') AS integer)",
)
SQLITE = Dialect(
    "(WITH RECURSIVE s(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM s WHERE n < :last) "
    "SELECT n FROM s)",
    "sha256({0})",
    f"strftime('%Y-%m-%d %H:%M:%f000', '{FIRST_DAY}', (n * {SECONDS_PER_CALL}) || ' seconds')",
    "CAST(strftime('%Y%m', {0}) AS integer)",
)
SYSTEM = (
    """'[{"role":"system","content":"Answer for desk ' || (n % 1000) || '.","tool_calls":[]}]'"""
)
TOOLS = (
    """'[{"name":"look_up","description":"Look up a record of desk ' || (n % 1000) || '.","""
    """"parameters":{"type":"object","properties":{"record":{"type":"integer"}}}}]'"""
)
EXCHANGE = (
    """'{"messages":[{"role":"user","content":"Please look up record ' || n || ' for customer '"""
    """ || (n * 7919 % 100003) || ' and say when it was last changed.","tool_calls":[]}],"""
    """"response":"{\\"name\\":\\"look_up\\",\\"arguments\\":{\\"record\\":' || n"""
    """ || '}}","tool_calls":[]}'"""
)
CALL_NAME, DIGEST_NAME = "'call' || n", "'qa' || n"
USABLE = f"n % 10 < {USABLE_OF_TEN}"
CLAIM = f"(n / 10 * {USABLE_OF_TEN} + n % 10) / 100"


def prepare(engine: sa.Engine) -> Dialect:
    """Return the dialect of ``engine``; give SQLite the functions that it lacks."""
    if engine.dialect.name == "postgresql":
        return POSTGRESQL

    @sa.event.listens_for(engine, "connect")
    def add_functions(connection: sqlite3.Connection, _: object) -> None:
        connection.create_function(
            "sha256", 1, lambda text: hashlib.sha256(text.encode()).hexdigest(), deterministic=True
        )
        connection.create_function("exp", 1, math.exp, deterministic=True)
        connection.create_function("ln", 1, math.log, deterministic=True)
        connection.create_function("ceil", 1, math.ceil, deterministic=True)

    return SQLITE


def fill(engine: sa.Engine, dialect: Dialect, first: int, last: int) -> None:
    """Add the calls number ``first`` to ``last``, and set claims and sums to match."""
    span = {"first": first, "last": last}
    with engine.begin() as connection, without_indexes(connection):
        _fill_claims(connection, dialect, last)
        _fill_bodies(connection, dialect, span)
        _fill_calls(connection, dialect, span)
        _sum_up(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))


def _fill_claims(connection: sa.Connection, dialect: Dialect, last: int) -> None:
    full = (last + 1) // 10 * USABLE_OF_TEN // 100
    begun = connection.scalar(sa.text("SELECT count(*) FROM claims WHERE owner = 'fill'")) or 0
    if full > begun:
        connection.execute(
            _plain(
                "INSERT INTO claims (id, size, state, owner, attempts, created_at) SELECT "
                f"'claim-' || n, 100, 'done', 'fill', 1, {dialect.created_at} FROM {dialect.series}"
            ),
            {"first": begun, "last": full - 1},
        )


def _fill_bodies(connection: sa.Connection, dialect: Dialect, span: dict[str, int]) -> None:
    month = dialect.month.format(dialect.created_at)
    if dialect is POSTGRESQL:
        months = connection.execute(
            sa.text(f"SELECT DISTINCT {month} FROM {dialect.series}"), span
        ).scalars()
        for number in months.all():
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS call_bodies_{number} PARTITION OF call_bodies "
                f"FOR VALUES IN ({number})"
            )
    for text in (SYSTEM, TOOLS):
        repeated = f"SELECT DISTINCT {month} AS month, {text} AS body FROM {dialect.series}"
        connection.execute(
            _plain(
                "INSERT INTO call_bodies (month, sha256, body) "
                f"SELECT month, {dialect.hash.format('body')}, body FROM ({repeated}) r WHERE NOT "
                "EXISTS (SELECT 1 FROM call_bodies b WHERE b.month = r.month AND b.body = r.body)"
            ),
            span,
        )
    connection.execute(
        _plain(
            "INSERT INTO call_bodies (month, sha256, body) SELECT "
            f"{month}, {dialect.hash.format(EXCHANGE)}, {EXCHANGE} FROM {dialect.series}"
        ),
        span,
    )


def _fill_calls(connection: sa.Connection, dialect: Dialect, span: dict[str, int]) -> None:
    connection.execute(
        _plain(
            "INSERT INTO calls (id, agent_type, agent_name, model, conversation_id, track, "
            "finish_reason, success, complete, source, prompt_tokens, completion_tokens, "
            "cost_nanousd, seconds, created_at, tags, digest, unusable, claim_id, month, "
            "system_sha256, tools_sha256, exchange_sha256) SELECT "
            f"substr({dialect.hash.format(CALL_NAME)}, 1, 32), 'sub-agent', "
            f"'agent-' || (n % {AGENTS}), "
            f"CASE WHEN n / {AGENTS} % 3 = 0 THEN 'gpt-4o-mini' ELSE 'gpt-4o' END, "
            "'session-' || (n / 5), 'structured', 'stop', n % 50 > 0, n >= 0, 'llm', 210, 24, "
            f"765000, 0.2 * exp(n * 7919 % 1000 / 400.0), {dialect.created_at}, '{{}}', "
            f"'qa-' || {dialect.hash.format(DIGEST_NAME)}, "
            f"CASE WHEN {USABLE} THEN NULL WHEN n % 50 = 0 THEN 'call failed' "
            "ELSE 'exact duplicate' END, "
            f"CASE WHEN {USABLE} THEN (SELECT id FROM claims WHERE id = 'claim-' || {CLAIM}) END, "
            f"{dialect.month.format(dialect.created_at)}, {dialect.hash.format(SYSTEM)}, "
            f"{dialect.hash.format(TOOLS)}, {dialect.hash.format(EXCHANGE)} FROM {dialect.series}"
        ),
        span,
    )


def _sum_up(connection: sa.Connection) -> None:
    """Write the sums anew: those of the fill and of what was measured on it."""
    for table in ("call_seconds", "call_totals", "call_reasons"):
        connection.exec_driver_sql(f"DELETE FROM {table}")
    group = "agent_name, agent_type, model"
    width = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
    connection.exec_driver_sql(
        "INSERT INTO call_reasons SELECT unusable, count(*) FROM calls "
        "WHERE unusable IS NOT NULL GROUP BY unusable"
    )
    connection.exec_driver_sql(
        f"INSERT INTO call_totals ({group}, calls, succeeded, waiting, priced, cost_nanousd, "
        f"nanoseconds, prompt_tokens, completion_tokens) SELECT {group}, count(*), "
        "sum(CASE WHEN success THEN 1 ELSE 0 END), "
        "sum(CASE WHEN unusable IS NULL AND claim_id IS NULL THEN 1 ELSE 0 END), "
        "count(cost_nanousd), sum(cost_nanousd), sum(CAST(round(seconds * 1e9) AS bigint)), "
        f"sum(prompt_tokens), sum(completion_tokens) FROM calls GROUP BY {group}"
    )
    connection.exec_driver_sql(
        "INSERT INTO call_seconds SELECT t.number, "
        f"CAST(ceil(ln(c.seconds) / {width!r}) AS integer) AS bucket, count(*) FROM calls c JOIN "
        f"call_totals t USING ({group}) GROUP BY t.number, bucket"
    )


@contextmanager
def without_indexes(connection: sa.Connection) -> Iterator[None]:
    """Take the indexes of the two large tables away and build them at the end: much faster."""
    if connection.dialect.name == "sqlite":
        named = "SELECT name, sql FROM sqlite_master WHERE name LIKE 'ix_calls_%'"
        found = connection.exec_driver_sql(named).all()
        for name, _ in found:
            connection.exec_driver_sql(f"DROP INDEX {name}")
        yield
        for _, sql in found:
            connection.exec_driver_sql(sql)
        return
    keys = connection.exec_driver_sql(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conrelid IN ('calls'::regclass, 'call_bodies'::regclass) AND contype IN ('p', 'u')"
    ).all()
    indexes = connection.exec_driver_sql(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'calls' "
        "AND indexname LIKE 'ix_%%'"
    ).all()
    for table, name, _ in keys:
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for name, _ in indexes:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '512MB'")
    connection.exec_driver_sql("SET LOCAL work_mem = '256MB'")
    yield
    for table, name, definition in keys:
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
    for _, definition in indexes:
        connection.exec_driver_sql(definition)


def _plain(sql: str) -> sa.TextClause:
    """Return the statement with the colons of JSON texts kept as they are."""
    for name in ("first", "last"):
        sql = sql.replace(f":{name}", f"\x00{name}")
    return sa.text(sql.replace(":", r"\:").replace("\x00", ":"))
