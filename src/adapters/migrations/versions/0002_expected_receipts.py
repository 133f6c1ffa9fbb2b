"""Expected receipts, what of a product they still bring, and which ledger row came of which.

Revision 0002, after 0001. Only adds: the version before goes on beside it.
"""

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and the columns that lead to it."""
    op.create_table(
        "expected_receipt",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("inventory_item_id", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("received_quantity", sa.BigInteger(), nullable=False),
        sa.Column("outstanding_quantity", sa.BigInteger(), nullable=False),
        sa.Column("expected_at", UtcTime(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reference_type", sa.Text(), nullable=True),
        sa.Column("reference_number", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint(
            "quantity > 0 AND received_quantity >= 0 AND outstanding_quantity >= 0",
            name=op.f("expected_receipt_quantities_check"),
        ),
        sa.CheckConstraint(
            "outstanding_quantity = "
            "CASE WHEN status IN ('EXPECTED', 'PARTIALLY_RECEIVED') THEN quantity - received_quantity ELSE 0 END",
            name=op.f("expected_receipt_outstanding_check"),
        ),
        sa.ForeignKeyConstraint(
            ["inventory_item_id"], ["inventory_item.id"], name=op.f("expected_receipt_inventory_item_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("expected_receipt_pkey")),
    )
    for column in ("inventory_item_id", "reference_number"):
        op.create_index(op.f(f"expected_receipt_{column}_idx"), "expected_receipt", [column], unique=False)
    is_open = sa.text("outstanding_quantity > 0")
    for name, column in (("supply", "inventory_item_id"), ("overdue", "expected_at")):
        op.create_index(
            f"expected_receipt_{name}_idx",
            "expected_receipt",
            [column],
            unique=False,
            postgresql_where=is_open,
            sqlite_where=is_open,
        )
    # In SQL: Alembic adds a column's CHECK apart from it, which SQLite cannot.
    op.execute(
        "ALTER TABLE product ADD COLUMN total_expected BIGINT DEFAULT 0 NOT NULL "
        "CONSTRAINT product_expected_check CHECK (total_expected >= 0)"
    )
    op.add_column("stock_transaction", sa.Column("expected_receipt_id", sa.Text(), nullable=True))
    of_a_receipt = sa.text("expected_receipt_id IS NOT NULL")
    op.create_index(
        "stock_transaction_expected_receipt_idx",
        "stock_transaction",
        ["expected_receipt_id"],
        unique=False,
        postgresql_where=of_a_receipt,
        sqlite_where=of_a_receipt,
    )


def downgrade() -> None:
    """Forget what is expected; what came stays in the ledger."""
    op.drop_index("stock_transaction_expected_receipt_idx", "stock_transaction")
    op.drop_column("stock_transaction", "expected_receipt_id")
    op.drop_column("product", "total_expected")
    op.drop_table("expected_receipt")
