"""Approvals of promotions, what became of the traffic, and the share of a canary."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Sorted by code point, as SQLite does by itself.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("routes", sa.Column("share", sa.Double))
    op.create_table(
        "approvals",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("created_at", TIME, nullable=False, index=True),
        sa.Column("run_id", TEXT, nullable=False, unique=True),
        sa.Column("state", TEXT, nullable=False, index=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_table(
        "traffic",
        sa.Column("agent_name", TEXT, primary_key=True),
        sa.Column("track", sa.Text, primary_key=True),
        sa.Column("adapter_id", TEXT, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("since", TIME, primary_key=True),
        sa.Column("role", TEXT, primary_key=True),
        sa.Column("outcome", TEXT, primary_key=True),
        sa.Column("times", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("traffic")
    op.drop_table("approvals")
    op.drop_column("routes", "share")
