"""Every table and column, declared once.

The migrations make the same tables step by step; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

from slm_core.store.encoding import AnyText, UtcTime

REVISION = "0003"
"""The newest migration; a test compares it with ``migrations/versions``."""
VERSION_TABLE = "slm_store_version"
"""Not Alembic's default name: Prefect's tables may live in the same database."""

metadata = sa.MetaData()

call_bodies = sa.Table(
    "call_bodies",
    metadata,
    # Month of capture, such as 202611. On PostgreSQL each month is a partition: most bytes of the
    # store lie here, and ``prune`` empties whole months.
    sa.Column("month", sa.Integer, primary_key=True, autoincrement=False),
    # SHA-256 of ``body``. System prompts and tools repeat from call to call; each is kept once
    # a month.
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    postgresql_partition_by="LIST (month)",
)

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    # Content id of the ids of its calls.
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("state", AnyText, nullable=False),
    sa.Column("owner", AnyText),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Index("ix_claims_state", "state", "number"),
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", AnyText, primary_key=True),
    sa.Column("agent_type", AnyText, nullable=False),
    sa.Column("agent_name", AnyText, nullable=False),
    sa.Column("model", AnyText, nullable=False),
    sa.Column("conversation_id", AnyText, nullable=False),
    sa.Column("track", sa.Text),
    sa.Column("finish_reason", AnyText),
    sa.Column("success", sa.Boolean, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("error", AnyText),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("cost_nanousd", sa.BigInteger),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("idempotency_key", AnyText),
    # Content id of question and answer: ``Call.digest()``.
    sa.Column("digest", sa.Text, nullable=False),
    # Why the call may not become an example; NULL when it may.
    sa.Column("unusable", AnyText),
    sa.Column("claim_id", sa.Text, sa.ForeignKey("claims.id")),
    # The texts are found by month and hash. Not by foreign key: a call outlives its texts.
    sa.Column("month", sa.Integer, nullable=False),
    sa.Column("system_sha256", sa.Text, nullable=False),
    sa.Column("tools_sha256", sa.Text, nullable=False),
    sa.Column("exchange_sha256", sa.Text, nullable=False),
    sa.UniqueConstraint("agent_name", "idempotency_key", name="uq_calls_idempotency_key"),
)
usable = calls.c.unusable.is_(None)
waiting = sa.and_(usable, calls.c.claim_id.is_(None))
"""Usable calls that no claim holds."""
sa.Index("ix_calls_agent", calls.c.agent_name, calls.c.id)
claimed = calls.c.claim_id.is_not(None)
# Not of the unclaimed: SQLite would look for those here, and sort them each time.
sa.Index(
    "ix_calls_claim",
    calls.c.claim_id,
    calls.c.id,
    sqlite_where=claimed,
    postgresql_where=claimed,
)
sa.Index("ix_calls_usable_digest", calls.c.digest, sqlite_where=usable, postgresql_where=usable)
sa.Index(
    "ix_calls_waiting",
    calls.c.created_at,
    calls.c.id,
    sqlite_where=waiting,
    postgresql_where=waiting,
)

# Sums over ``calls``, kept in the transaction that adds or claims them: statistics and counts
# read a row for each agent and not one for each call.
call_totals = sa.Table(
    "call_totals",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("agent_name", AnyText, nullable=False),
    sa.Column("agent_type", AnyText, nullable=False),
    sa.Column("model", AnyText, nullable=False),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("succeeded", sa.BigInteger, nullable=False),
    # Usable calls that no claim holds.
    sa.Column("waiting", sa.BigInteger, nullable=False),
    # Calls whose price is known, and the sum of these prices.
    sa.Column("priced", sa.BigInteger, nullable=False),
    sa.Column("cost_nanousd", sa.BigInteger, nullable=False),
    # A sum of integers does not depend on the order of adding; one of seconds would.
    sa.Column("nanoseconds", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("agent_name", "agent_type", "model", name="uq_call_totals"),
)

call_seconds = sa.Table(
    "call_seconds",
    metadata,
    sa.Column("totals", sa.Integer, sa.ForeignKey("call_totals.number"), primary_key=True),
    # ``totals.bucket_of(seconds)``: each bucket is 4 % wide.
    sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("calls", sa.BigInteger, nullable=False),
)

call_reasons = sa.Table(
    "call_reasons",
    metadata,
    # Why calls may not become examples, and how many.
    sa.Column("reason", AnyText, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
)

prunings = sa.Table(
    "prunings",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("month", sa.Integer, nullable=False, index=True),
    # Calls of the month whose texts were kept, and those that lost them by this pruning.
    sa.Column("kept", sa.BigInteger, nullable=False),
    sa.Column("pruned", sa.BigInteger, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

spool = sa.Table(
    "spool",
    metadata,
    sa.Column("segment", AnyText, primary_key=True),
    # How far the segment has been read, in bytes.
    sa.Column("read_to", sa.BigInteger, nullable=False),
)

quarantine = sa.Table(
    "quarantine",
    metadata,
    # Content id of source, reason and raw: reading a spool twice adds nothing.
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("source", AnyText, nullable=False),
    sa.Column("reason", AnyText, nullable=False),
    sa.Column("raw", AnyText, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
)


def _record_table(name: str, *narrow: sa.Column[str] | sa.Column[int]) -> sa.Table:
    """Return a table of whole records: the JSON, its hash, and the columns asked about."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", AnyText, primary_key=True),
        sa.Column("created_at", UtcTime, nullable=False, index=True),
        *narrow,
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )


datasets = _record_table("datasets", sa.Column("test_rows", sa.Integer, nullable=False))
runs = _record_table(
    "runs",
    sa.Column("dataset_id", AnyText, nullable=False, index=True),
    sa.Column("state", AnyText, nullable=False, index=True),
)
adapters = _record_table(
    "adapters",
    sa.Column("run_id", AnyText, nullable=False, index=True),
    sa.Column("dataset_id", AnyText, nullable=False, index=True),
)
evaluations = _record_table(
    "evaluations",
    sa.Column("test_set_id", AnyText, nullable=False, index=True),
    sa.Column("adapter_id", AnyText, index=True),
)
decisions = _record_table(
    "decisions",
    sa.Column("evaluation_id", AnyText, nullable=False, index=True),
    sa.Column("adapter_id", AnyText, index=True),
    sa.Column("outcome", sa.Text, nullable=False),
)

evaluation_metrics = sa.Table(
    "evaluation_metrics",
    metadata,
    sa.Column("evaluation_id", AnyText, sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("track", sa.Text, primary_key=True),
    sa.Column("arm", sa.Text, primary_key=True),
    sa.Column("view", sa.Text, primary_key=True),
    sa.Column("metric", AnyText, primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("low", sa.Double, nullable=False),
    sa.Column("high", sa.Double, nullable=False),
)

routes = sa.Table(
    "routes",
    metadata,
    sa.Column("agent_name", AnyText, primary_key=True),
    sa.Column("track", sa.Text, primary_key=True),
    sa.Column("adapter_id", AnyText, primary_key=True),
    sa.Column("stage", AnyText, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("share", sa.Double),
)
live = routes.c.stage == sa.literal_column("'live'")
sa.Index(
    "uq_routes_live",
    routes.c.agent_name,
    routes.c.track,
    unique=True,
    sqlite_where=live,
    postgresql_where=live,
)

promotions = sa.Table(
    "promotions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", AnyText, nullable=False, unique=True),
    sa.Column("agent_name", AnyText, nullable=False),
    sa.Column("track", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Index("ix_promotions_route", "agent_name", "track", "number"),
)

approvals = _record_table(
    "approvals",
    sa.Column("run_id", AnyText, nullable=False, unique=True),
    sa.Column("state", AnyText, nullable=False, index=True),
)

traffic = sa.Table(
    "traffic",
    metadata,
    sa.Column("agent_name", AnyText, primary_key=True),
    sa.Column("track", sa.Text, primary_key=True),
    sa.Column("adapter_id", AnyText, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    # Start of the quarter of an hour that is counted.
    sa.Column("since", UtcTime, primary_key=True),
    sa.Column("role", AnyText, primary_key=True),
    sa.Column("outcome", AnyText, primary_key=True),
    sa.Column("times", sa.BigInteger, nullable=False),
)

spans = sa.Table(
    "spans",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", AnyText, nullable=False, unique=True),
    sa.Column("trace_id", AnyText, nullable=False, index=True),
    sa.Column("name", AnyText, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", AnyText, nullable=False),
)
sa.Index(
    "ix_spans_pending",
    spans.c.number,
    sqlite_where=spans.c.state == sa.literal_column("'pending'"),
    postgresql_where=spans.c.state == sa.literal_column("'pending'"),
)
