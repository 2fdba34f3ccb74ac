"""Approvals of promotions, what became of the traffic, and the share of a canary.

Going back keeps every move of a route, without what only 0003 knows of it. It refuses while there
are approvals or counts of traffic, which 0002 has no place for.
"""

import sqlalchemy as sa
from alembic import op

from slm_core.errors import StoreError
from slm_core.records import sha256_hex
from slm_core.store.encoding import from_json, to_json

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Sorted by code point, as SQLite does by itself.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
NEW_FIELDS = ("share", "limits", "run_id")
"""Of a move."""


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
    _refuse_with_rows()
    _strip_moves()
    op.drop_table("traffic")
    op.drop_table("approvals")
    op.drop_column("routes", "share")


def _refuse_with_rows() -> None:
    for table in ("approvals", "traffic"):
        rows = op.get_bind().scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0
        if rows:
            raise StoreError(
                f"The store cannot go back to revision 0002: it has {rows} rows in {table}, which "
                "0002 has no place for. Stay at 0003. To give them up, back the store up and "
                "empty the tables approvals and traffic with your database's own client, for "
                f"example: DELETE FROM {table}"
            )


def _strip_moves() -> None:
    """Take from each stored move what the records of 0002 refuse, and hash it anew."""
    connection = op.get_bind()
    for number, text in connection.execute(sa.text("SELECT number, record FROM promotions")).all():
        move = from_json(text)
        record = to_json({name: move[name] for name in move if name not in NEW_FIELDS})
        connection.execute(
            sa.text(
                "UPDATE promotions SET record = :record, sha256 = :sha256 WHERE number = :number"
            ),
            {"record": record, "sha256": sha256_hex(record), "number": number},
        )
