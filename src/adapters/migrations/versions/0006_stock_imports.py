"""Files on their way into the stock: how far each is, its content until it has ended, and why rows were refused.

Revision 0006, after 0005. Only adds: the version before goes on beside it.
"""

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "stock_import",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "status", "format", "actor")),
        *(sa.Column(name, sa.Text(), nullable=True) for name in ("kind", "name", "digest", "reason", "content_key")),
        *(sa.Column(name, sa.Boolean(), nullable=False) for name in ("dry_run", "partial")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("bytes", "checked", "done", "refused")),
        sa.Column("rows", sa.BigInteger(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("stock_import_pkey")),
        sa.UniqueConstraint("content_key", name=op.f("stock_import_content_key_key")),
    )
    op.create_table(
        "stock_import_part",
        sa.Column("import_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("import_id", "number", name=op.f("stock_import_part_pkey")),
    )
    op.create_table(
        "stock_import_error",
        sa.Column("import_id", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("import_id", "line", name=op.f("stock_import_error_pkey")),
    )


def downgrade() -> None:
    """Forget them; what was imported stays."""
    for name in ("stock_import_error", "stock_import_part", "stock_import"):
        op.drop_table(name)
