"""A reconciliation can be asked for, broken off and taken up again, and repairs what it finds.

Revision 0007, after 0006. Only adds: the version before goes on beside it.
"""

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TEXTS = {"status": "DONE", "repairs": "plan", "outcomes": "{}", "alarms": "[]", "done": "[]"}
_NUMBERS = ("looked_at", "about", "present", "absent")


def upgrade() -> None:
    """Add columns and a table."""
    for name, default in _TEXTS.items():
        op.add_column("reconciliation_run", sa.Column(name, sa.Text(), nullable=False, server_default=default))
    for name in ("part", "place"):
        op.add_column("reconciliation_run", sa.Column(name, sa.Text()))
    for name in _NUMBERS:
        op.add_column("reconciliation_run", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "reconciliation_repair",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("run_id", "kind", "subject")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("product_id", "outcome")),
        sa.Column("reason", sa.Text()),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("before", "after")),
        sa.Column("at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", "subject", name="reconciliation_repair_pkey"),
    )
    where = sa.text("ended_at IS NULL")
    op.create_index(
        "reconciliation_run_open_idx", "reconciliation_run", ["id"], postgresql_where=where, sqlite_where=where
    )
    op.execute("UPDATE reconciliation_run SET status = 'CANCELLED', ended_at = started_at WHERE ended_at IS NULL")


def downgrade() -> None:
    """Take them away again."""
    op.drop_index("reconciliation_run_open_idx", "reconciliation_run")
    op.drop_table("reconciliation_repair")
    for name in (*_NUMBERS, "place", "part", *reversed(_TEXTS)):
        op.drop_column("reconciliation_run", name)
