"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Sorted by code point, as SQLite does by itself.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _calls()
    _records()
    _serving()
    _spans()


def _calls() -> None:
    op.create_table(
        "call_bodies",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "claims",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("owner", TEXT),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )
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
        sa.Column("system_sha256", sa.Text, sa.ForeignKey("call_bodies.sha256"), nullable=False),
        sa.Column("tools_sha256", sa.Text, sa.ForeignKey("call_bodies.sha256"), nullable=False),
        sa.Column("exchange_sha256", sa.Text, sa.ForeignKey("call_bodies.sha256"), nullable=False),
        sa.UniqueConstraint("agent_name", "idempotency_key", name="uq_calls_idempotency_key"),
    )
    op.create_index("ix_calls_agent", "calls", ["agent_name", "id"])
    _partial_index("ix_calls_claim", "calls", ["claim_id", "id"], "claim_id IS NOT NULL")
    _partial_index("ix_calls_usable_digest", "calls", ["digest"], "unusable IS NULL")
    _partial_index(
        "ix_calls_waiting",
        "calls",
        ["created_at", "id"],
        "unusable IS NULL AND claim_id IS NULL",
    )
    op.create_table(
        "spool",
        sa.Column("segment", TEXT, primary_key=True),
        sa.Column("read_to", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "quarantine",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("raw", TEXT, nullable=False),
        sa.Column("created_at", TIME, nullable=False, index=True),
    )


def _records() -> None:
    _record_table("datasets", sa.Column("test_rows", sa.Integer, nullable=False))
    _record_table(
        "runs",
        sa.Column("dataset_id", TEXT, nullable=False, index=True),
        sa.Column("state", TEXT, nullable=False, index=True),
    )
    _record_table(
        "adapters",
        sa.Column("run_id", TEXT, nullable=False, index=True),
        sa.Column("dataset_id", TEXT, nullable=False, index=True),
    )
    _record_table(
        "evaluations",
        sa.Column("test_set_id", TEXT, nullable=False, index=True),
        sa.Column("adapter_id", TEXT, index=True),
    )
    _record_table(
        "decisions",
        sa.Column("evaluation_id", TEXT, nullable=False, index=True),
        sa.Column("adapter_id", TEXT, index=True),
        sa.Column("outcome", sa.Text, nullable=False),
    )
    op.create_table(
        "evaluation_metrics",
        sa.Column("evaluation_id", TEXT, sa.ForeignKey("evaluations.id"), primary_key=True),
        sa.Column("track", sa.Text, primary_key=True),
        sa.Column("arm", sa.Text, primary_key=True),
        sa.Column("view", sa.Text, primary_key=True),
        sa.Column("metric", TEXT, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
    )


def _serving() -> None:
    op.create_table(
        "routes",
        sa.Column("agent_name", TEXT, primary_key=True),
        sa.Column("track", sa.Text, primary_key=True),
        sa.Column("adapter_id", TEXT, primary_key=True),
        sa.Column("stage", TEXT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
    )
    _partial_index(
        "uq_routes_live", "routes", ["agent_name", "track"], "stage = 'live'", unique=True
    )
    op.create_table(
        "promotions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", TEXT, nullable=False, unique=True),
        sa.Column("agent_name", TEXT, nullable=False),
        sa.Column("track", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("ix_promotions_route", "promotions", ["agent_name", "track", "number"])


def _spans() -> None:
    op.create_table(
        "spans",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", TEXT, nullable=False, unique=True),
        sa.Column("trace_id", TEXT, nullable=False, index=True),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("state", TEXT, nullable=False),
    )
    _partial_index("ix_spans_pending", "spans", ["number"], "state = 'pending'")


def _record_table(name: str, *narrow: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("created_at", TIME, nullable=False, index=True),
        *narrow,
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )


def _partial_index(
    name: str, table: str, columns: list[str], where: str, *, unique: bool = False
) -> None:
    condition = sa.text(where)
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=condition,
        postgresql_where=condition,
    )
