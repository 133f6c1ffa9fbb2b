"""The events we publish: the specification's envelope, one Struct a payload, and how they are addressed.

Additive to the specification: ``metadata.sequence`` (rises by one per event of a product, without gaps, rule R13) and
``metadata.causationId`` (the ledger row behind the event).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from core.fields import Instant, Text, Word, utc
from core.stock import Seen

EVENTS_EXCHANGE = "inventory.events"
PRODUCT_EXCHANGE = "product.events"
PRODUCT_QUEUE = "inventory.product-events"
DEAD_LETTERS = "inventory.dead-letters"
EXCHANGES = (EVENTS_EXCHANGE, PRODUCT_EXCHANGE, DEAD_LETTERS)
PRODUCT_KEYS = ("product.productcreated.product", "product.productupdated.product", "product.productdeleted.product")
BINDINGS = {PRODUCT_QUEUE: (PRODUCT_EXCHANGE, PRODUCT_KEYS), DEAD_LETTERS: (DEAD_LETTERS, ("#",))}
"""Every queue of rule R20: the exchange it is bound to, and the patterns."""
SOURCE = "inventory-service"
EVENT_VERSION = "1.0.0"

CORRELATION_ID: ContextVar[str] = ContextVar("correlation_id", default="")
"""The correlation id of the event that is being applied, for calls that are made for its sake; else empty."""


@contextmanager
def on_behalf_of(correlation_id: str) -> Iterator[None]:
    """Have calls to others that the block makes carry this correlation id."""
    before = CORRELATION_ID.set(correlation_id)
    try:
        yield
    finally:
        CORRELATION_ID.reset(before)


class Payload(Struct, frozen=True, rename="camel", kw_only=True):
    """What every payload says: whose stock, and the product's totals after the change (units)."""

    inventory_item_id: str
    sku: str
    product_id: str
    warehouse_id: str


class StockLevelChanged(Payload, frozen=True, rename="camel", kw_only=True):
    """An item's available quantity changed; the quantities are available units."""

    previous_quantity: int
    new_quantity: int
    change_amount: int
    change_reason: str
    transaction_id: str
    transaction_type: str
    reference_number: str | None
    reference_type: str | None
    total_quantity_available: int
    is_low_stock: bool
    is_out_of_stock: bool


class LowStockThresholdReached(Payload, frozen=True, rename="camel", kw_only=True):
    """An item came to ``0 < available <= reorderThreshold`` from outside that band (rule R14)."""

    quantity_available: int
    reorder_threshold: int
    target_stock_level: int
    transaction_id: str
    total_quantity_available: int
    is_low_stock: bool
    is_out_of_stock: bool


class OutOfStock(Payload, frozen=True, rename="camel", kw_only=True):
    """The product's total over all SKUs and warehouses became zero."""

    transaction_id: str
    total_quantity_available: int
    total_quantity_reserved: int
    restock_expected: datetime | None


class BackInStock(Payload, frozen=True, rename="camel", kw_only=True):
    """The product's total left zero."""

    quantity_available: int
    transaction_id: str
    total_quantity_available: int


class ReservationExpired(Payload, frozen=True, rename="camel", kw_only=True):
    """A hold ran out: ``quantity`` units of the item are free again."""

    reservation_id: str
    quantity: int
    reference_type: str | None
    reference_number: str | None
    transaction_id: str
    total_quantity_available: int


class ProductVariant(Struct, frozen=True, rename="camel"):
    """One variant, as a product event names it."""

    variant_id: Word
    sku: Word
    name: Text


class ProductPayload(Struct, frozen=True, rename="camel", kw_only=True):
    """What a product event says; ``sku`` and ``name`` are the product's own where it has no variants."""

    product_id: Word
    sku: Word | None = None
    name: Text | None = None
    variants: Annotated[tuple[ProductVariant, ...], Meta(max_length=500)] = ()


class ProductMetadata(Struct, frozen=True, rename="camel"):
    """Where a product event comes from."""

    correlation_id: Word | None = None
    source: Word | None = None


class ProductEvent(Struct, frozen=True, rename="camel", kw_only=True):
    """An event of the Product Service; what else its envelope holds is not ours to judge."""

    event_id: Word
    event_type: Literal["ProductCreated", "ProductUpdated", "ProductDeleted"]
    event_version: str
    timestamp: Instant
    metadata: ProductMetadata = ProductMetadata()
    payload: ProductPayload

    def __post_init__(self) -> None:
        if not self.event_version.startswith("1."):
            raise ValueError(f"eventVersion {self.event_version[:20]!r} is not supported; this service reads 1.x")
        utc(self.timestamp, "timestamp")
        payload = self.payload
        if self.event_type != "ProductDeleted" and not payload.variants and payload.sku is None:
            raise ValueError("the payload must hold a sku or variants")
        if len({variant.variant_id for variant in payload.variants}) < len(payload.variants):
            raise ValueError("the payload names a variant twice")

    @property
    def seen(self) -> Seen:
        """Where the event stands among the product's."""
        return Seen(self.timestamp, self.event_id)

    @property
    def skus(self) -> dict[str, tuple[str, str]]:
        """SKU and name by variant id; a product without variants is its own, called ``""``."""
        payload = self.payload
        if payload.variants:
            return {variant.variant_id: (variant.sku, variant.name) for variant in payload.variants}
        return {"": (payload.sku, payload.name or payload.sku)} if payload.sku is not None else {}


CRITICAL = frozenset({"OutOfStock", "BackInStock"})
"""Event types whose product the relay serves before others (rule R17)."""


class Metadata(Struct, frozen=True, rename="camel"):
    """Where an event comes from and where it stands in its product's order."""

    correlation_id: str
    source: str
    sequence: int
    causation_id: str


class Event(Struct, frozen=True, rename="camel"):
    """The specification's envelope; ``event_type`` is the payload's class name."""

    event_id: str
    event_type: str
    event_version: str
    aggregate_id: str
    aggregate_type: str
    timestamp: datetime
    metadata: Metadata
    payload: Any


class OutboxRow(Struct, frozen=True):
    """An event as the outbox keeps it: the exact bytes to publish, and what ordering them needs.

    ``position`` is 0 until the relay has published the row, then its gapless place in the stream (rule R22).
    """

    product_id: str
    sequence: int
    event_id: str
    event_type: str
    aggregate_id: str
    correlation_id: str
    body: bytes
    created_at: datetime
    position: int = 0

    @property
    def critical(self) -> bool:
        """Whether this event puts its product first in line (rule R17)."""
        return self.event_type in CRITICAL


def routing_key(event_type: str) -> str:
    """Return the key a published event is routed by, such as ``inventory.outofstock.inventoryitem``."""
    return f"inventory.{event_type.lower()}.inventoryitem"
