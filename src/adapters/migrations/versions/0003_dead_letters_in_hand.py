"""Dead letters can be found, grouped, claimed, retried and discarded; operators' acts are on record.

Revision 0003, after 0002. The defaults are for what an older version, still running beside this one, parks.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXES = {
    "dead_letter_status_id_idx": ["status", "id"],
    "dead_letter_group_id_idx": ["group_id"],
    "dead_letter_message_id_idx": ["message_id"],
    "dead_letter_event_id_idx": ["event_id"],
    "dead_letter_product_id_idx": ["product_id"],
    "dead_letter_retry_id_idx": ["retry_id"],
}
_PARTIAL = {"dead_letter_due_idx": "next_attempt_at", "dead_letter_ended_idx": "ended_at"}


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("status", sa.Text(), nullable=False, server_default="UNRESOLVED"),
        *(sa.Column(name, sa.Text(), nullable=False, server_default="") for name in ("cause", "group_id", "event_id")),
        sa.Column("product_id", sa.Text()),
        sa.Column("skus", sa.Text(), nullable=False, server_default="[]"),
        *(sa.Column(name, sa.Text()) for name in ("note", "retry_id", "edited_from", "replaced_by", "claim")),
        sa.Column("lapses", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("next_attempt_at", UtcTime()),
        sa.Column("ended_at", UtcTime()),
    ]


def upgrade() -> None:
    """Add what an operator needs; letters that are there already wait for one."""
    for column in _columns():
        op.add_column("dead_letter", column)
    op.execute("UPDATE dead_letter SET group_id = code")
    for name, columns in _INDEXES.items():
        op.create_index(name, "dead_letter", columns)
    for name, instant in _PARTIAL.items():
        where = sa.text(f"{instant} IS NOT NULL")
        op.create_index(name, "dead_letter", [instant], postgresql_where=where, sqlite_where=where)
    op.create_table(
        "dead_letter_attempt",
        sa.Column("dead_letter_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("outcome", "detail", "process")),
        sa.PrimaryKeyConstraint("dead_letter_id", "number", name="dead_letter_attempt_pkey"),
    )
    op.create_table(
        "dead_letter_retry",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "status", "actor")),
        *(sa.Column(name, sa.Text()) for name in ("reason", "canary_id")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("total", "succeeded", "failed", "cancelled")),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime()),
        sa.PrimaryKeyConstraint("id", name="dead_letter_retry_pkey"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("actor", "action", "subject")),
        *(sa.Column(name, sa.Text()) for name in ("reason", "correlation_id")),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="audit_pkey"),
    )
    op.create_index("audit_subject_id_idx", "audit", ["subject", "id"])


def downgrade() -> None:
    """Take it away again."""
    for table in ("audit", "dead_letter_retry", "dead_letter_attempt"):
        op.drop_table(table)
    for name in (*_INDEXES, *_PARTIAL):
        op.drop_index(name, "dead_letter")
    for column in _columns():
        op.drop_column("dead_letter", column.name)
