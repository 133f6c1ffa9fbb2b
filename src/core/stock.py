"""What stock is made of. One frozen Struct each, which is domain object, answer and row alike.

Quantities are whole units. The wire says ``quantityAvailable`` where the model says ``available``.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field
from msgspec.structs import replace

Status = Literal["ACTIVE", "INACTIVE"]
TransactionType = Literal[
    "RECEIPT",
    "RETURN",
    "SHIPMENT",
    "ADJUSTMENT",
    "COUNT",
    "TRANSFER_OUT",
    "TRANSFER_IN",
    "POLICY",
    "STATUS",
    "DETAILS",
    "RESERVATION",
    "RELEASE",
    "EXPIRY",
    "FULFILMENT",
    "REMAP_OUT",
    "REMAP_IN",
    "CORRECTION",
]
ReservationStatus = Literal["HELD", "CONFIRMED", "FULFILLED", "RELEASED", "EXPIRED"]
ExpectedReceiptStatus = Literal["EXPECTED", "PARTIALLY_RECEIVED", "RECEIVED", "CANCELLED"]

LOW_STOCK_THRESHOLD = 10
"""A product's ``low_stock_threshold`` until somebody sets another (units)."""


class LeadTime(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Days from order to dispatch, as a range."""

    min: Annotated[int, Meta(ge=0, le=3650)]
    max: Annotated[int, Meta(ge=0, le=3650)]


class Warehouse(Struct, frozen=True, rename="camel", kw_only=True):
    """A place that holds stock.

    A lower ``priority`` ships first. An inactive one gets no new items or transfers and is not chosen to ship from;
    what is there is still counted, received and sold by name.
    """

    id: str
    name: str
    priority: int
    lead_time_days: LeadTime
    active: bool
    version: int
    created_at: datetime
    updated_at: datetime


class Seen(Struct, frozen=True, rename="camel", order=True):
    """Which product event said something; of two, the one later in (timestamp, eventId) is newer (rule R21)."""

    timestamp: datetime
    event_id: str


class Variant(Struct, frozen=True, rename="camel", kw_only=True):
    """What the Product Service says of one variant; a product without variants has one, called ``""``.

    ``named`` said its SKU and name, ``created`` is the newest that asked for its items, if any did.
    """

    sku: str
    name: str
    named: Seen
    created: Seen | None = None


class Catalog(Struct, frozen=True, rename="camel", kw_only=True):
    """Everything the Product Service has said of a product, newer over older. ``deleted`` is the newest deletion."""

    variants: dict[str, Variant] = {}
    deleted: Seen | None = None

    def is_alive(self, variant: Variant) -> bool:
        """Tell whether a variant's items are to be sold: asked for, and not deleted since."""
        return variant.created is not None and (self.deleted is None or variant.created > self.deleted)

    @property
    def is_deleted(self) -> bool:
        """Whether the product is deleted as far as we have heard."""
        return self.deleted is not None and not any(map(self.is_alive, self.variants.values()))


class Product(Struct, frozen=True, rename="camel", kw_only=True):
    """A product as the Product Service names it, with the totals over its items.

    Its row is the lock: whatever changes the product's stock takes it first. ``sequence`` counts its events,
    ``revision`` every change a reader can see (rule R13). ``total_expected`` is what expected receipts still bring.
    """

    id: str
    total_on_hand: int = field(name="totalQuantityOnHand")
    total_reserved: int = field(name="totalQuantityReserved")
    total_available: int = field(name="totalQuantityAvailable")
    total_expected: int = field(name="totalQuantityExpected", default=0)
    low_stock_threshold: int
    status: Status
    sequence: int
    revision: int
    catalog: Catalog
    updated_at: datetime

    @property
    def is_known(self) -> bool:
        """Whether anything was ever said of it: a row alone may be left of a creation that was refused."""
        return self.revision > 0

    @property
    def is_out_of_stock(self) -> bool:
        """Nothing can be sold anywhere (rule R15)."""
        return self.total_available == 0

    @property
    def is_low_stock(self) -> bool:
        """Something can be sold, but not more than the threshold (rule R15)."""
        return 0 < self.total_available <= self.low_stock_threshold


class Item(Struct, frozen=True, rename="camel", kw_only=True):
    """One SKU in one warehouse.

    ``shortfall`` is what is promised beyond what is there; ``available`` is what can be promised now: on hand less
    reserved less safety stock, never below zero, and zero while inactive.
    """

    id: str
    sku: str
    product_id: str
    warehouse_id: str
    name: str
    on_hand: int = field(name="quantityOnHand")
    reserved: int = field(name="quantityReserved")
    available: int = field(name="quantityAvailable")
    safety_stock: int
    shortfall: int
    reorder_threshold: int
    target_stock_level: int
    status: Status
    metadata: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def is_low(self) -> bool:
        """Whether the item stands in its own low band, ``0 < available <= reorder_threshold`` (rule R15)."""
        return 0 < self.available <= self.reorder_threshold

    def changed(self, now: datetime, **fields: Any) -> "Item":
        """Return the item's next version with ``fields`` replaced and what follows from them computed again."""
        item = replace(self, version=self.version + 1, updated_at=now, **fields)
        free = item.on_hand - item.reserved - item.safety_stock if item.status == "ACTIVE" else 0
        return replace(item, available=max(free, 0), shortfall=max(item.reserved - item.on_hand, 0))


class StockTransaction(Struct, frozen=True, rename="camel", kw_only=True):
    """One row of the ledger: what changed, what was left after it, and why. Never altered, never removed.

    Every version of an item has exactly one row. ``occurred_at`` is when it happened in the world, ``recorded_at`` when
    we learned of it; only the latter orders (rule R12).
    """

    id: str
    inventory_item_id: str
    product_id: str
    warehouse_id: str
    sku: str
    item_version: int
    type: TransactionType
    on_hand_change: int = field(name="quantityOnHandChange")
    reserved_change: int = field(name="quantityReservedChange")
    on_hand_after: int = field(name="quantityOnHandAfter")
    reserved_after: int = field(name="quantityReservedAfter")
    available_after: int = field(name="quantityAvailableAfter")
    reason: str | None
    reference_type: str | None
    reference_number: str | None
    reservation_id: str | None
    expected_receipt_id: str | None = None
    actor: str
    correlation_id: str
    occurred_at: datetime
    recorded_at: datetime


class ReservationLine(Struct, frozen=True, rename="camel", kw_only=True):
    """Units of one item promised by a reservation: some have left, some were given back, the rest is held."""

    inventory_item_id: str
    product_id: str
    warehouse_id: str
    sku: str
    quantity: int
    fulfilled_quantity: int = 0
    released_quantity: int = 0

    @property
    def held(self) -> int:
        """Units still promised."""
        return self.quantity - self.fulfilled_quantity - self.released_quantity


class Considered(Struct, frozen=True, rename="camel", kw_only=True):
    """An item that could have served a line, and how many units were taken of it."""

    inventory_item_id: str
    warehouse_id: str
    warehouse_priority: int
    available: int
    taken: int


class Choice(Struct, frozen=True, rename="camel", kw_only=True):
    """Why a line of a reservation was served from where it was; ``line`` counts from 0."""

    line: int
    strategy: str
    considered: tuple[Considered, ...]


class Reservation(Struct, frozen=True, rename="camel", kw_only=True):
    """A promise of units to somebody's cart or order.

    A HELD one ends at ``expires_at``; a CONFIRMED one never expires, ``confirmed_at`` tells its age (rule R11).
    """

    id: str
    status: ReservationStatus
    reference_type: str | None
    reference_number: str | None
    lines: tuple[ReservationLine, ...]
    expires_at: datetime | None
    confirmed_at: datetime | None = None
    created_at: datetime
    updated_at: datetime
    explanation: tuple[Choice, ...] | UnsetType = UNSET


class ExpectedReceipt(Struct, frozen=True, rename="camel", kw_only=True):
    """Units of an item that are to come, such as a line of a purchase order.

    It is open while something is outstanding: as much as was expected has not come, and nobody has said that no more
    will. What a RECEIVED one brought beyond (or, negative, short of) ``quantity`` is its ``discrepancy``. An open one
    whose time has passed is overdue: it is still expected, but its date promises nothing any more. ``reason`` is what
    was last said of it.
    """

    id: str
    inventory_item_id: str
    product_id: str
    warehouse_id: str
    sku: str
    quantity: int
    received_quantity: int
    outstanding_quantity: int
    discrepancy: int = 0
    expected_at: datetime
    is_overdue: bool = False
    status: ExpectedReceiptStatus
    reference_type: str | None
    reference_number: str | None
    reason: str | None
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether something is still to come."""
        return self.outstanding_quantity > 0

    def changed(self, now: datetime, *, ended: bool = False, **fields: Any) -> "ExpectedReceipt":
        """Return the next version with ``fields`` replaced and what follows from them; ``ended``: no more will come."""
        receipt = replace(self, version=self.version + 1, updated_at=now, **fields)
        some, missing = receipt.received_quantity > 0, receipt.quantity - receipt.received_quantity
        status: ExpectedReceiptStatus = "PARTIALLY_RECEIVED" if some else "EXPECTED"
        if ended or missing <= 0:
            status, missing = "RECEIVED" if some else "CANCELLED", 0
        return replace(receipt, status=status, outstanding_quantity=missing).seen(now)

    def seen(self, now: datetime) -> "ExpectedReceipt":
        """Return it as it looks at ``now``."""
        over = self.received_quantity - self.quantity if self.status == "RECEIVED" else 0
        return replace(self, discrepancy=over, is_overdue=self.is_open and self.expected_at <= now)


class Supply(Struct, frozen=True):
    """Units of an item that an open expected receipt still brings, and when."""

    inventory_item_id: str
    quantity: int
    expected_at: datetime


class Hold(Struct, frozen=True):
    """Units of an item that are held until ``expires_at``, unless they are confirmed before."""

    inventory_item_id: str
    quantity: int
    expires_at: datetime


class Balance(Struct, frozen=True, rename="camel", kw_only=True):
    """What was on record of an item at an instant, and the ledger row that made it so (rule R12)."""

    inventory_item_id: str
    sku: str
    product_id: str
    warehouse_id: str
    on_hand: int = field(name="quantityOnHand")
    reserved: int = field(name="quantityReserved")
    available: int = field(name="quantityAvailable")
    version: int
    transaction_id: str
    recorded_at: datetime


class ProductBalance(Struct, frozen=True, rename="camel", kw_only=True):
    """What was on record of a product at an instant: its items that existed then, and their sums."""

    product_id: str
    as_of: datetime
    on_hand: int = field(name="totalQuantityOnHand")
    reserved: int = field(name="totalQuantityReserved")
    available: int = field(name="totalQuantityAvailable")
    items: tuple[Balance, ...]


class WarehouseInventory(Struct, frozen=True, rename="camel"):
    """One line of the specification's by-product answer."""

    inventory_item_id: str
    warehouse_id: str
    warehouse_name: str
    quantity_available: int
    quantity_reserved: int


class ProductInventory(Struct, frozen=True, rename="camel"):
    """The specification's answer to "how much of this, and where"; plus ``sequence`` and ``restockExpected``."""

    total_quantity_available: int
    total_quantity_reserved: int
    is_low_stock: bool
    is_out_of_stock: bool
    warehouse_inventory: tuple[WarehouseInventory, ...]
    sequence: int
    restock_expected: datetime | None = None


def restock_expected(
    items: Iterable[Item], supplies: Iterable[Supply | ExpectedReceipt], now: datetime
) -> datetime | None:
    """Return when more of these items is expected next, None when nobody knows.

    What is overdue may come at any time, so its date says nothing; what comes for an inactive item is not for sale.
    """
    for_sale = {item.id for item in items if item.status == "ACTIVE"}
    return min(
        (each.expected_at for each in supplies if each.inventory_item_id in for_sale and each.expected_at > now),
        default=None,
    )


def lead_time_text(warehouses: Sequence[Warehouse]) -> str | None:
    """Say how long these warehouses together need, such as ``1-2 days``; None where there is none."""
    if not warehouses:
        return None
    least = max(warehouse.lead_time_days.min for warehouse in warehouses)
    most = max(warehouse.lead_time_days.max for warehouse in warehouses)
    days = f"{least}" if least == most else f"{least}-{most}"
    return f"{days} day" if days == "1" else f"{days} days"
