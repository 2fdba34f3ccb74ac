"""Texts by month, and sums over the calls.

Both ways every call and text is carried over, by statements of the database that read each table
once. Going back needs every text, and therefore refuses after a pruning.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import sqlalchemy as sa
from alembic import op

from slm_core.errors import StoreError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Sorted by code point, as SQLite does by itself.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
CALL_COLUMNS = (
    "id, agent_type, agent_name, model, conversation_id, track, finish_reason, success, complete, "
    "source, error, prompt_tokens, completion_tokens, cost_nanousd, seconds, created_at, tags, "
    "idempotency_key, digest, unusable, claim_id, system_sha256, tools_sha256, exchange_sha256"
)
HASHES = ("system_sha256", "tools_sha256", "exchange_sha256")
GROUP = ("agent_name", "agent_type", "model")
GROWTH = 1.02 / 0.98  # of the histogram's buckets


MOST = {
    "seconds": 10**7,
    "prompt_tokens": 10**9,
    "completion_tokens": 10**9,
    "cost_nanousd": 10**15,
}
"""Of one call; beyond it the sums may not fit into 64 bits."""


def upgrade() -> None:
    _refuse_beyond_sums()
    _set_aside_calls()
    op.create_table(
        "call_bodies",
        sa.Column("month", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        postgresql_partition_by="LIST (month)",
    )
    _create_calls(
        sa.Column("month", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in HASHES),
    )
    month = _month()
    if _on_postgresql():
        for (number,) in op.get_bind().execute(sa.text(f"SELECT DISTINCT {month} FROM old_calls")):
            op.execute(
                f"CREATE TABLE call_bodies_{number} PARTITION OF call_bodies FOR VALUES IN "
                f"({number})"
            )
    wanted = " UNION ".join(
        f"SELECT {month} AS month, {h} AS sha256 FROM old_calls" for h in HASHES
    )
    op.execute(
        "INSERT INTO call_bodies (month, sha256, body) SELECT w.month, w.sha256, b.body "
        f"FROM ({wanted}) w JOIN old_call_bodies b ON b.sha256 = w.sha256"
    )
    op.execute(
        f"INSERT INTO calls ({CALL_COLUMNS}, month) SELECT {CALL_COLUMNS}, {month} FROM old_calls"
    )
    op.drop_table("old_calls")
    op.drop_table("old_call_bodies")
    _index_calls()
    op.create_index("ix_claims_state", "claims", ["state", "number"])
    op.create_table(
        "prunings",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("month", sa.Integer, nullable=False, index=True),
        sa.Column("kept", sa.BigInteger, nullable=False),
        sa.Column("pruned", sa.BigInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )
    _create_totals()
    _fill_totals()


def downgrade() -> None:
    _refuse_without_texts()
    for table in ("call_seconds", "call_totals", "call_reasons", "prunings"):
        op.drop_table(table)
    op.drop_index("ix_claims_state", "claims")
    _set_aside_calls()
    op.create_table(
        "call_bodies",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    _create_calls(
        *(
            sa.Column(name, sa.Text, sa.ForeignKey("call_bodies.sha256"), nullable=False)
            for name in HASHES
        )
    )
    op.execute(
        "INSERT INTO call_bodies (sha256, body) "
        "SELECT sha256, min(body) FROM old_call_bodies GROUP BY sha256"
    )
    op.execute(f"INSERT INTO calls ({CALL_COLUMNS}) SELECT {CALL_COLUMNS} FROM old_calls")
    op.drop_table("old_calls")
    op.drop_table("old_call_bodies")
    _index_calls()


def _on_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _month() -> str:
    """Return the SQL of the month of capture in UTC, such as 202611."""
    if not _on_postgresql():
        return "CAST(substr(created_at, 1, 4) || substr(created_at, 6, 2) AS INTEGER)"
    utc = "created_at AT TIME ZONE 'UTC'"
    return f"CAST(extract(year FROM {utc}) * 100 + extract(month FROM {utc}) AS integer)"


def _set_aside_calls() -> None:
    """Rename the two tables, and free the names of their indexes for the new ones."""
    for name in ("agent", "claim", "usable_digest", "waiting"):
        op.drop_index(f"ix_calls_{name}", "calls")
    op.rename_table("calls", "old_calls")
    op.rename_table("call_bodies", "old_call_bodies")
    if _on_postgresql():
        # With the key of the texts go the foreign keys on it.
        op.execute("ALTER TABLE old_call_bodies DROP CONSTRAINT call_bodies_pkey CASCADE")
        op.execute("ALTER TABLE old_calls DROP CONSTRAINT calls_pkey")
        op.execute("ALTER TABLE old_calls DROP CONSTRAINT uq_calls_idempotency_key")


def _create_calls(*texts: sa.Column[Any]) -> None:
    op.create_table(
        "calls",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("agent_type", TEXT, nullable=False),
        sa.Column("agent_name", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("conversation_id", TEXT, nullable=False),
        sa.Column("track", sa.Text),
        sa.Column("finish_reason", TEXT),
        sa.Column("success", sa.Boolean, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("error", TEXT),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("cost_nanousd", sa.BigInteger),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("idempotency_key", TEXT),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("unusable", TEXT),
        sa.Column("claim_id", sa.Text, sa.ForeignKey("claims.id")),
        *texts,
        sa.UniqueConstraint("agent_name", "idempotency_key", name="uq_calls_idempotency_key"),
    )


def _index_calls() -> None:
    op.create_index("ix_calls_agent", "calls", ["agent_name", "id"])
    for name, columns, where in (
        ("ix_calls_claim", ["claim_id", "id"], "claim_id IS NOT NULL"),
        ("ix_calls_usable_digest", ["digest"], "unusable IS NULL"),
        ("ix_calls_waiting", ["created_at", "id"], "unusable IS NULL AND claim_id IS NULL"),
    ):
        condition = sa.text(where)
        op.create_index(name, "calls", columns, sqlite_where=condition, postgresql_where=condition)


def _create_totals() -> None:
    numbers = (
        *("calls", "succeeded", "waiting", "priced", "cost_nanousd", "nanoseconds"),
        *("prompt_tokens", "completion_tokens"),
    )
    op.create_table(
        "call_totals",
        sa.Column("number", sa.Integer, primary_key=True),
        *(sa.Column(name, TEXT, nullable=False) for name in GROUP),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in numbers),
        sa.UniqueConstraint(*GROUP, name="uq_call_totals"),
    )
    op.create_table(
        "call_seconds",
        sa.Column("totals", sa.Integer, sa.ForeignKey("call_totals.number"), primary_key=True),
        sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "call_reasons",
        sa.Column("reason", TEXT, primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
    )


def _fill_totals() -> None:
    """Sum up the calls.

    Times are summed and put into buckets here and not by the database: SQLite may lack ``ln``,
    and the two would round differently.
    """
    connection = op.get_bind()
    op.execute(
        "INSERT INTO call_reasons (reason, calls) "
        "SELECT unusable, count(*) FROM calls WHERE unusable IS NOT NULL GROUP BY unusable"
    )
    groups = ", ".join(GROUP)
    op.execute(
        f"INSERT INTO call_totals ({groups}, calls, succeeded, waiting, priced, cost_nanousd, "
        "nanoseconds, prompt_tokens, completion_tokens) "
        f"SELECT {groups}, count(*), sum(CASE WHEN success THEN 1 ELSE 0 END), "
        "sum(CASE WHEN unusable IS NULL AND claim_id IS NULL THEN 1 ELSE 0 END), "
        "count(cost_nanousd), coalesce(sum(cost_nanousd), 0), 0, "
        "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) "
        f"FROM calls GROUP BY {groups}"
    )
    same = " AND ".join(f"t.{name} = c.{name}" for name in GROUP)
    query = sa.text(f"SELECT t.number, c.seconds FROM calls c JOIN call_totals t ON {same}")
    times = connection.execute(query.execution_options(yield_per=10_000))
    nanoseconds, buckets = Counter[int](), Counter[tuple[int, int]]()
    for number, seconds in times:
        nanoseconds[number] += round(seconds * 1e9)
        bucket = math.ceil(math.log(max(seconds, 1e-6)) / math.log(GROWTH))
        buckets[number, bucket] += 1
    if buckets:
        connection.execute(
            sa.text("UPDATE call_totals SET nanoseconds = :sum WHERE number = :number"),
            [{"number": number, "sum": total} for number, total in nanoseconds.items()],
        )
        connection.execute(
            sa.text(
                "INSERT INTO call_seconds (totals, bucket, calls) VALUES (:totals, :bucket, :n)"
            ),
            [{"totals": t, "bucket": bucket, "n": n} for (t, bucket), n in buckets.items()],
        )


def _refuse_beyond_sums() -> None:
    for name, most in MOST.items():
        query = f"SELECT id FROM calls WHERE {name} > {most} OR {name} < -{most} ORDER BY id"
        found = list(op.get_bind().scalars(sa.text(query)))
        if found:
            raise StoreError(
                f"The store cannot go on to revision 0002: {len(found)} calls, the first "
                f"{found[0]!r}, have {name} beyond {most:,}, which no sum can hold. Correct them "
                f"with your database's own client, for example: UPDATE calls SET {name} = "
                f"{most} WHERE {name} > {most}",
                calls=found[:10],
            )


def _refuse_without_texts() -> None:
    lost = " OR ".join(
        f"NOT EXISTS (SELECT 1 FROM call_bodies b WHERE b.month = c.month AND b.sha256 = c.{name})"
        for name in HASHES
    )
    pruned = op.get_bind().scalar(sa.text(f"SELECT count(*) FROM calls c WHERE {lost}")) or 0
    if pruned:
        raise StoreError(
            f"The store cannot go back to revision 0001: {pruned} calls have no texts any more, "
            "because they were pruned, and 0001 holds no such calls. Stay at 0002, or restore a "
            "backup from before `slm store prune`."
        )
