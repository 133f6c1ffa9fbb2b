"""The tables, as SQLAlchemy Core describes them. Migrations make them; a test holds the two against each other.

Money moves on these rows, so what the rules promise of balances is also a CHECK (rule R9; the ones whose words differ
between databases stand in the migration alone). Hot tables carry no foreign keys
and no index beyond what a query needs: both would cost on every reservation.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

NAMING = {
    "pk": "%(table_name)s_pkey",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_name)s_fkey",
}
metadata = MetaData(naming_convention=NAMING)


class UtcTime(TypeDecorator[datetime]):
    """An instant: ``timestamptz`` on PostgreSQL, ISO 8601 text of fixed width in UTC on SQLite (sorts as time does)."""

    impl = TIMESTAMP(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else TIMESTAMP(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Write text on SQLite."""
        return time_text(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read either form back as an aware datetime."""
        return datetime.fromisoformat(value) if isinstance(value, str) else value


def time_text(value: datetime) -> str:
    """Return the SQLite form of an instant."""
    return value.astimezone(UTC).isoformat(timespec="microseconds")


# Half-empty pages keep balance updates on their page (HOT): no index entry is touched.
_ROOM: dict[str, Any] = {"postgresql_with": {"fillfactor": 70}}

warehouse = Table(
    "warehouse",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("lead_time_min", Integer, nullable=False),
    Column("lead_time_max", Integer, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

product = Table(
    "product",
    metadata,
    Column("id", Text, primary_key=True),
    Column("total_on_hand", BigInteger, nullable=False),
    Column("total_reserved", BigInteger, nullable=False),
    Column("total_available", BigInteger, nullable=False),
    Column("total_expected", BigInteger, nullable=False, server_default=text("0")),
    Column("low_stock_threshold", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("catalog", Text, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    CheckConstraint("total_on_hand >= 0 AND total_reserved >= 0 AND total_available >= 0", name="totals"),
    CheckConstraint("total_expected >= 0", name="expected"),
    **_ROOM,
)

inventory_item = Table(
    "inventory_item",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sku", Text, nullable=False),
    Column("product_id", Text, ForeignKey("product.id"), nullable=False),
    Column("warehouse_id", Text, ForeignKey("warehouse.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("on_hand", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("available", BigInteger, nullable=False),
    Column("safety_stock", BigInteger, nullable=False),
    Column("shortfall", BigInteger, nullable=False),
    Column("reorder_threshold", BigInteger, nullable=False),
    Column("target_stock_level", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    UniqueConstraint("sku", "warehouse_id"),
    Index(None, "product_id"),
    Index(None, "warehouse_id"),
    **_ROOM,
)

stock_transaction = Table(
    "stock_transaction",
    metadata,
    Column("id", Text, primary_key=True),
    Column("inventory_item_id", Text, nullable=False),
    Column("product_id", Text, nullable=False),
    Column("warehouse_id", Text, nullable=False),
    Column("sku", Text, nullable=False),
    Column("item_version", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("on_hand_change", BigInteger, nullable=False),
    Column("reserved_change", BigInteger, nullable=False),
    Column("on_hand_after", BigInteger, nullable=False),
    Column("reserved_after", BigInteger, nullable=False),
    Column("available_after", BigInteger, nullable=False),
    Column("reason", Text),
    Column("reference_type", Text),
    Column("reference_number", Text),
    Column("reservation_id", Text),
    Column("expected_receipt_id", Text),
    Column("actor", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    UniqueConstraint("inventory_item_id", "item_version"),
)
_EXPECTED = text("expected_receipt_id IS NOT NULL")
Index(
    "stock_transaction_expected_receipt_idx",
    stock_transaction.c.expected_receipt_id,
    postgresql_where=_EXPECTED,
    sqlite_where=_EXPECTED,
)

reservation = Table(
    "reservation",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("reference_type", Text),
    Column("reference_number", Text),
    Column("expires_at", UtcTime),
    Column("confirmed_at", UtcTime),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Index(None, "reference_number"),
)
_HELD = text("status = 'HELD'")
HELD: ColumnElement[str] = literal_column("'HELD'")
"""Written out, not bound: the plan of a prepared statement uses a partial index only for a constant it can see."""
Index("reservation_due_idx", reservation.c.expires_at, postgresql_where=_HELD, sqlite_where=_HELD)
CONFIRMED: ColumnElement[str] = literal_column("'CONFIRMED'")
_CONFIRMED = text("status = 'CONFIRMED'")
Index("reservation_confirmed_idx", reservation.c.id, postgresql_where=_CONFIRMED, sqlite_where=_CONFIRMED)

reservation_line = Table(
    "reservation_line",
    metadata,
    Column("reservation_id", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("inventory_item_id", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("fulfilled_quantity", BigInteger, nullable=False),
    Column("released_quantity", BigInteger, nullable=False),
    PrimaryKeyConstraint("reservation_id", "line"),
    CheckConstraint(
        "quantity > 0 AND fulfilled_quantity >= 0 AND released_quantity >= 0 "
        "AND fulfilled_quantity + released_quantity <= quantity",
        name="quantities",
    ),
)
# Only the few lines that hold something are in it, however many have come and gone.
_HOLDS = text("quantity > fulfilled_quantity + released_quantity")
Index(
    "reservation_line_holding_idx",
    reservation_line.c.inventory_item_id,
    postgresql_where=_HOLDS,
    sqlite_where=_HOLDS,
)

expected_receipt = Table(
    "expected_receipt",
    metadata,
    Column("id", Text, primary_key=True),
    Column("inventory_item_id", Text, ForeignKey("inventory_item.id"), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("received_quantity", BigInteger, nullable=False),
    Column("outstanding_quantity", BigInteger, nullable=False),
    Column("expected_at", UtcTime, nullable=False),
    Column("status", Text, nullable=False),
    Column("reference_type", Text),
    Column("reference_number", Text),
    Column("reason", Text),
    Column("version", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    CheckConstraint("quantity > 0 AND received_quantity >= 0 AND outstanding_quantity >= 0", name="quantities"),
    CheckConstraint(
        "outstanding_quantity = "
        "CASE WHEN status IN ('EXPECTED', 'PARTIALLY_RECEIVED') THEN quantity - received_quantity ELSE 0 END",
        name="outstanding",
    ),
    Index(None, "inventory_item_id"),
    Index(None, "reference_number"),
)
NOTHING: ColumnElement[int] = literal_column("0")
"""Written out, not bound, for the same reason: what is outstanding is found by partial indexes."""
# Only the few that are open are in these: what every read of a product looks at, and what may be overdue.
_OPEN = text("outstanding_quantity > 0")
for _name, _column in (("supply", "inventory_item_id"), ("overdue", "expected_at")):
    Index(f"expected_receipt_{_name}_idx", expected_receipt.c[_column], postgresql_where=_OPEN, sqlite_where=_OPEN)

# ``id`` is drawn under the product's lock, so its order is right within a product; it only serves fairness between
# products. What orders events is (product_id, sequence).
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("product_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("aggregate_id", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("critical", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("published_at", UtcTime),
    Column("position", BigInteger),
    Column("blocked_at", UtcTime),
    Column("blocked_reason", Text),
    UniqueConstraint("product_id", "sequence"),
    sqlite_autoincrement=True,
)
Index(
    "outbox_pending_idx",
    outbox.c.id,
    postgresql_where=text("published_at IS NULL"),
    sqlite_where=text("published_at IS NULL"),
)
Index(
    "outbox_critical_idx",
    outbox.c.product_id,
    postgresql_where=text("published_at IS NULL AND critical"),
    sqlite_where=text("published_at IS NULL AND critical"),
)
Index(
    "outbox_position_idx",
    outbox.c.position,
    unique=True,
    postgresql_where=text("position IS NOT NULL"),
    sqlite_where=text("position IS NOT NULL"),
)

Index(
    "outbox_blocked_idx",
    outbox.c.product_id,
    postgresql_where=text("blocked_at IS NOT NULL"),
    sqlite_where=text("blocked_at IS NOT NULL"),
)

product_check = Table(
    "product_check",
    metadata,
    Column("product_id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("owed_at", UtcTime, nullable=False),
    Column("checked_at", UtcTime),
)

outbox_replay = Table(
    "outbox_replay",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text),
    Column("product_id", Text),
    Column("from_position", BigInteger, nullable=False),
    Column("to_position", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("published", BigInteger, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
)

inbox = Table(
    "inbox",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("event_type", Text, nullable=False),
    Column("product_id", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text),
    Column("occurred_at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Index(None, "received_at"),
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("exchange", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("code", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("stack", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("first_failed_at", UtcTime, nullable=False),
    Column("last_failed_at", UtcTime, nullable=False),
    Column("status", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("group_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("product_id", Text),
    Column("skus", Text, nullable=False),
    Column("note", Text),
    Column("retry_id", Text),
    Column("edited_from", Text),
    Column("replaced_by", Text),
    Column("claim", Text),
    Column("lapses", BigInteger, nullable=False),
    Column("next_attempt_at", UtcTime),
    Column("ended_at", UtcTime),
    UniqueConstraint("fingerprint"),
    Index(None, "status", "id"),
    Index(None, "group_id"),
    Index(None, "message_id"),
    Index(None, "event_id"),
    Index(None, "product_id"),
    Index(None, "retry_id"),
)
_DUE = text("next_attempt_at IS NOT NULL")
Index("dead_letter_due_idx", dead_letter.c.next_attempt_at, postgresql_where=_DUE, sqlite_where=_DUE)
_ENDED = text("ended_at IS NOT NULL")
Index("dead_letter_ended_idx", dead_letter.c.ended_at, postgresql_where=_ENDED, sqlite_where=_ENDED)

delivery = Table(
    "delivery",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("attempts", BigInteger, nullable=False),
    Column("last_at", UtcTime, nullable=False),
)

dead_letter_attempt = Table(
    "dead_letter_attempt",
    metadata,
    Column("dead_letter_id", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("process", Text, nullable=False),
    PrimaryKeyConstraint("dead_letter_id", "number"),
)

dead_letter_retry = Table(
    "dead_letter_retry",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text),
    Column("canary_id", Text),
    Column("total", BigInteger, nullable=False),
    Column("succeeded", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", Text),
    Column("correlation_id", Text),
    Column("details", Text, nullable=False),
    Index(None, "subject", "id"),
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("issuer", "subject", "key"),
    Index(None, "created_at"),
)

lease = Table(
    "lease",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

stock_import = Table(
    "stock_import",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("kind", Text),
    Column("format", Text, nullable=False),
    Column("name", Text),
    Column("dry_run", Boolean, nullable=False),
    Column("partial", Boolean, nullable=False),
    Column("actor", Text, nullable=False),
    Column("digest", Text),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", BigInteger),
    Column("checked", BigInteger, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("reason", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("content_key", Text),
    UniqueConstraint("content_key"),
)

stock_import_part = Table(
    "stock_import_part",
    metadata,
    Column("import_id", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("import_id", "number"),
)

stock_import_error = Table(
    "stock_import_error",
    metadata,
    Column("import_id", Text, nullable=False),
    Column("line", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("detail", Text, nullable=False),
    PrimaryKeyConstraint("import_id", "line"),
)

reconciliation_run = Table(
    "reconciliation_run",
    metadata,
    Column("id", Text, primary_key=True),
    Column("trigger", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("deep", Boolean, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("products", BigInteger, nullable=False),
    Column("items", BigInteger, nullable=False),
    Column("findings", Text, nullable=False),
    Column("raised", BigInteger, nullable=False),
    Column("resolved", BigInteger, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'DONE'")),
    Column("repairs", Text, nullable=False, server_default=text("'plan'")),
    Column("outcomes", Text, nullable=False, server_default=text("'{}'")),
    Column("alarms", Text, nullable=False, server_default=text("'[]'")),
    Column("done", Text, nullable=False, server_default=text("'[]'")),
    Column("part", Text),
    Column("place", Text),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("looked_at", "about", "present", "absent")
    ),
)
_GOING_ON = text("ended_at IS NULL")
Index(
    "reconciliation_run_open_idx",
    reconciliation_run.c.id,
    postgresql_where=_GOING_ON,
    sqlite_where=_GOING_ON,
)

reconciliation_repair = Table(
    "reconciliation_repair",
    metadata,
    *(Column(name, Text, nullable=False) for name in ("run_id", "kind", "subject", "product_id", "outcome")),
    Column("reason", Text),
    *(Column(name, Text, nullable=False) for name in ("before", "after")),
    Column("at", UtcTime, nullable=False),
    PrimaryKeyConstraint("run_id", "kind", "subject"),
)

reconciliation_finding = Table(
    "reconciliation_finding",
    metadata,
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("product_id", Text, nullable=False),
    Column("inventory_item_id", Text),
    Column("expected", Text, nullable=False),
    Column("found", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("first_seen_at", UtcTime, nullable=False),
    Column("last_seen_at", UtcTime, nullable=False),
    Column("resolved_at", UtcTime),
    PrimaryKeyConstraint("kind", "subject"),
)
