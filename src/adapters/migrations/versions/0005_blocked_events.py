"""Events that no broker takes are blocked; published ones go out again; redeliveries are counted.

Revision 0005, after 0004. Only adds: the version before goes on beside it.
"""

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables."""
    op.add_column("outbox", sa.Column("blocked_at", UtcTime()))
    op.add_column("outbox", sa.Column("blocked_reason", sa.Text()))
    where = sa.text("blocked_at IS NOT NULL")
    op.create_index("outbox_blocked_idx", "outbox", ["product_id"], postgresql_where=where, sqlite_where=where)
    op.create_table(
        "outbox_replay",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "status", "actor")),
        *(sa.Column(name, sa.Text()) for name in ("reason", "product_id")),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("from_position", "to_position", "position", "total", "published")
        ),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime()),
        sa.PrimaryKeyConstraint("id", name="outbox_replay_pkey"),
    )
    op.create_table(
        "delivery",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("last_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="delivery_pkey"),
    )


def downgrade() -> None:
    """Take them away again."""
    op.drop_table("delivery")
    op.drop_table("outbox_replay")
    op.drop_index("outbox_blocked_idx", "outbox")
    op.drop_column("outbox", "blocked_reason")
    op.drop_column("outbox", "blocked_at")
