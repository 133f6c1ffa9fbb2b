"""Products that were taken on trust, to be checked with the Product Service.

Revision 0004, after 0003. Only adds: the version before goes on beside it.
"""

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "product_check",
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("owed_at", UtcTime(), nullable=False),
        sa.Column("checked_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("product_id", name=op.f("product_check_pkey")),
    )


def downgrade() -> None:
    """Forget what is owed."""
    op.drop_table("product_check")
