"""The first schema: stock, ledger, reservations, outbox, stored answers, leases.

Revision 0001, after nothing.
"""

import sqlalchemy as sa
from alembic import op

from adapters.sql.tables import UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _balance_checks() -> list[sa.CheckConstraint]:
    """The guards of rule R9; what PostgreSQL calls ``greatest`` is ``max`` in SQLite."""
    greatest = "max" if op.get_context().dialect.name == "sqlite" else "greatest"
    free = f"{greatest}(on_hand - reserved - safety_stock, 0)"
    return [
        sa.CheckConstraint(
            "on_hand >= 0 AND reserved >= 0 AND safety_stock >= 0", name=op.f("inventory_item_balances_check")
        ),
        sa.CheckConstraint(
            f"shortfall = {greatest}(reserved - on_hand, 0)", name=op.f("inventory_item_shortfall_check")
        ),
        sa.CheckConstraint(
            f"available = CASE WHEN status = 'ACTIVE' THEN {free} ELSE 0 END",
            name=op.f("inventory_item_available_check"),
        ),
    ]


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "inbox",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("occurred_at", UtcTime(), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("inbox_pkey")),
    )
    op.create_index(op.f("inbox_received_at_idx"), "inbox", ["received_at"], unique=False)
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("exchange", sa.Text(), nullable=False),
        sa.Column("routing_key", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("stack", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("first_failed_at", UtcTime(), nullable=False),
        sa.Column("last_failed_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letter_pkey")),
        sa.UniqueConstraint("fingerprint", name=op.f("dead_letter_fingerprint_key")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", "key", name=op.f("idempotency_key_pkey")),
    )
    op.create_index(op.f("idempotency_key_created_at_idx"), "idempotency_key", ["created_at"], unique=False)
    op.create_table(
        "lease",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("lease_pkey")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("aggregate_id", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=False),
        sa.Column("critical", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("published_at", UtcTime(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("outbox_pkey")),
        sa.UniqueConstraint("product_id", "sequence", name=op.f("outbox_product_id_sequence_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "outbox_critical_idx",
        "outbox",
        ["product_id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND critical"),
        sqlite_where=sa.text("published_at IS NULL AND critical"),
    )
    op.create_index(
        "outbox_pending_idx",
        "outbox",
        ["id"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL"),
        sqlite_where=sa.text("published_at IS NULL"),
    )
    op.create_index(
        "outbox_position_idx",
        "outbox",
        ["position"],
        unique=True,
        postgresql_where=sa.text("position IS NOT NULL"),
        sqlite_where=sa.text("position IS NOT NULL"),
    )
    op.create_table(
        "product",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("total_on_hand", sa.BigInteger(), nullable=False),
        sa.Column("total_reserved", sa.BigInteger(), nullable=False),
        sa.Column("total_available", sa.BigInteger(), nullable=False),
        sa.Column("low_stock_threshold", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("catalog", sa.Text(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint(
            "total_on_hand >= 0 AND total_reserved >= 0 AND total_available >= 0", name=op.f("product_totals_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("product_pkey")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "reservation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reference_type", sa.Text(), nullable=True),
        sa.Column("reference_number", sa.Text(), nullable=True),
        sa.Column("expires_at", UtcTime(), nullable=True),
        sa.Column("confirmed_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("reservation_pkey")),
    )
    op.create_index(op.f("reservation_reference_number_idx"), "reservation", ["reference_number"], unique=False)
    for name, column, status in (
        ("reservation_due_idx", "expires_at", "HELD"),
        ("reservation_confirmed_idx", "id", "CONFIRMED"),
    ):
        where = sa.text(f"status = '{status}'")
        op.create_index(name, "reservation", [column], unique=False, postgresql_where=where, sqlite_where=where)
    op.create_table(
        "reservation_line",
        sa.Column("reservation_id", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("inventory_item_id", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("fulfilled_quantity", sa.BigInteger(), nullable=False),
        sa.Column("released_quantity", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "quantity > 0 AND fulfilled_quantity >= 0 AND released_quantity >= 0 "
            "AND fulfilled_quantity + released_quantity <= quantity",
            name=op.f("reservation_line_quantities_check"),
        ),
        sa.PrimaryKeyConstraint("reservation_id", "line", name=op.f("reservation_line_pkey")),
    )
    holding = sa.text("quantity > fulfilled_quantity + released_quantity")
    op.create_index(
        "reservation_line_holding_idx",
        "reservation_line",
        ["inventory_item_id"],
        unique=False,
        postgresql_where=holding,
        sqlite_where=holding,
    )
    op.create_table(
        "stock_transaction",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("inventory_item_id", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("warehouse_id", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("item_version", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("on_hand_change", sa.BigInteger(), nullable=False),
        sa.Column("reserved_change", sa.BigInteger(), nullable=False),
        sa.Column("on_hand_after", sa.BigInteger(), nullable=False),
        sa.Column("reserved_after", sa.BigInteger(), nullable=False),
        sa.Column("available_after", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("reference_type", sa.Text(), nullable=True),
        sa.Column("reference_number", sa.Text(), nullable=True),
        sa.Column("reservation_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=False),
        sa.Column("occurred_at", UtcTime(), nullable=False),
        sa.Column("recorded_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("stock_transaction_pkey")),
        sa.UniqueConstraint(
            "inventory_item_id", "item_version", name=op.f("stock_transaction_inventory_item_id_item_version_key")
        ),
    )
    op.create_table(
        "warehouse",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("lead_time_min", sa.Integer(), nullable=False),
        sa.Column("lead_time_max", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("warehouse_pkey")),
    )
    op.create_table(
        "inventory_item",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("warehouse_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("on_hand", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("available", sa.BigInteger(), nullable=False),
        sa.Column("safety_stock", sa.BigInteger(), nullable=False),
        sa.Column("shortfall", sa.BigInteger(), nullable=False),
        sa.Column("reorder_threshold", sa.BigInteger(), nullable=False),
        sa.Column("target_stock_level", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        *_balance_checks(),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("inventory_item_product_id_fkey")),
        sa.ForeignKeyConstraint(["warehouse_id"], ["warehouse.id"], name=op.f("inventory_item_warehouse_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("inventory_item_pkey")),
        sa.UniqueConstraint("sku", "warehouse_id", name=op.f("inventory_item_sku_warehouse_id_key")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(op.f("inventory_item_product_id_idx"), "inventory_item", ["product_id"], unique=False)
    op.create_index(op.f("inventory_item_warehouse_id_idx"), "inventory_item", ["warehouse_id"], unique=False)
    op.create_table(
        "reconciliation_run",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("deep", sa.Boolean(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.Column("products", sa.BigInteger(), nullable=False),
        sa.Column("items", sa.BigInteger(), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.Column("raised", sa.BigInteger(), nullable=False),
        sa.Column("resolved", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("reconciliation_run_pkey")),
    )
    op.create_table(
        "reconciliation_finding",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("inventory_item_id", sa.Text(), nullable=True),
        sa.Column("expected", sa.Text(), nullable=False),
        sa.Column("found", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("first_seen_at", UtcTime(), nullable=False),
        sa.Column("last_seen_at", UtcTime(), nullable=False),
        sa.Column("resolved_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("kind", "subject", name=op.f("reconciliation_finding_pkey")),
    )


def downgrade() -> None:
    """Drop everything."""
    op.drop_table("dead_letter")
    op.drop_table("inbox")
    op.drop_table("reconciliation_finding")
    op.drop_table("reconciliation_run")
    op.drop_table("inventory_item")
    op.drop_table("warehouse")
    op.drop_table("stock_transaction")
    op.drop_table("reservation_line")
    op.drop_table("reservation")
    op.drop_table("product")
    op.drop_table("outbox")
    op.drop_table("lease")
    op.drop_table("idempotency_key")
