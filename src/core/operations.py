"""The only ways to change stock: one tagged union of Structs, which are the wire's request bodies as well.

An operation says what is asked; ``core/rules`` decides it, ``core/writing`` makes it durable. Everything that can be
refused without looking at the stock (ranges, lengths, forbidden characters) is refused here, while decoding.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import force_setattr

from core.errors import KINDS, InventoryError, error_named
from core.events import ProductEvent
from core.fields import Delta, HoldSeconds, Id, Instant, Level, ProductId, Quantity, Text, Word, utc
from core.findings import FindingKind, Values
from core.stock import ExpectedReceipt, Item, LeadTime, Product, Reservation, StockTransaction, Warehouse


class Change(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every operation on an item's stock may say beside its own fields.

    ``expected_version`` makes it conditional on the item's version; ``occurred_at`` is when it happened in the world.
    """

    inventory_item_id: Id
    reason: Text | None = None
    reference_type: Word | None = None
    reference_number: Word | None = None
    occurred_at: Instant | None = None
    expected_version: Level | None = None

    def __post_init__(self) -> None:
        if self.occurred_at is not None:
            force_setattr(self, "occurred_at", utc(self.occurred_at, "occurredAt"))


class Receive(Change, frozen=True, tag="RECEIVE"):
    """Goods came in."""

    quantity: Quantity


class Return(Change, frozen=True, tag="RETURN"):
    """Goods came back from a customer, fit for sale."""

    quantity: Quantity


class Ship(Change, frozen=True, tag="SHIP"):
    """Goods left that no reservation had promised."""

    quantity: Quantity


class Adjust(Change, frozen=True, tag="ADJUST"):
    """A correction by a difference; ``reason`` is required."""

    delta: Delta
    reason: Text

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta == 0:
            raise ValueError("delta must not be 0")


class Count(Change, frozen=True, tag="COUNT"):
    """The shelf was counted: on hand becomes ``counted_quantity``, whatever was promised."""

    counted_quantity: Level


class Transfer(Change, frozen=True, tag="TRANSFER"):
    """Goods moved to another warehouse; the item there is made when it is missing."""

    quantity: Quantity
    to_warehouse_id: Id


class SetPolicy(Change, frozen=True, tag="SET_POLICY"):
    """The item's safety stock, reorder threshold or target level; what is left out stays."""

    safety_stock: Level | UnsetType = UNSET
    reorder_threshold: Level | UnsetType = UNSET
    target_stock_level: Level | UnsetType = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.safety_stock is self.reorder_threshold is self.target_stock_level is UNSET:
            raise ValueError("name at least one of safetyStock, reorderThreshold, targetStockLevel")


class Activate(Change, frozen=True, tag="ACTIVATE"):
    """The item is for sale."""


class Deactivate(Change, frozen=True, tag="DEACTIVATE"):
    """The item is not for sale: nothing of it is available, what is there stays recorded."""


StockOperation = Receive | Return | Ship | Adjust | Count | Transfer | SetPolicy | Activate | Deactivate


class ItemQuantity(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """So many units of one item."""

    inventory_item_id: Id
    quantity: Quantity


class ReserveLine(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """So many units of one item, or of a SKU or product wherever it is; ``warehouse_id`` narrows the last two."""

    quantity: Quantity
    inventory_item_id: Id | None = None
    sku: Word | None = None
    product_id: ProductId | None = None
    warehouse_id: Id | None = None

    def __post_init__(self) -> None:
        if sum(name is not None for name in (self.inventory_item_id, self.sku, self.product_id)) != 1:
            raise ValueError("a line must name exactly one of inventoryItemId, sku, productId")
        if self.inventory_item_id is not None and self.warehouse_id is not None:
            raise ValueError("warehouseId goes with sku or productId; an item is in one warehouse anyway")


class Reserve(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Promise units to a cart or order: all lines or none. Lines on one item are added up before deciding.

    ``sourcing`` names the strategy that chooses and splits where a line leaves the choice, ``warehouse_ids`` restricts
    it, ``explain`` asks for the reasons.
    """

    lines: Annotated[tuple[ReserveLine, ...], Meta(min_length=1, max_length=200)]
    sourcing: Word = "WAREHOUSE_PRIORITY"
    warehouse_ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=100)] | None = None
    explain: bool = False
    reference_type: Word | None = None
    reference_number: Word | None = None
    reason: Text | None = None
    expires_in_seconds: HoldSeconds = 900


class Release(Struct, frozen=True, kw_only=True):
    """Give back what a reservation still holds; on an ended one nothing changes."""

    reservation_id: str
    reason: str | None = None


class Confirm(Struct, frozen=True, kw_only=True):
    """The cart became an order: the hold does not expire any more."""

    reservation_id: str


class ExtendBody(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """How long a hold shall last, from now."""

    expires_in_seconds: HoldSeconds = 900


class Extend(Struct, frozen=True, kw_only=True):
    """Let a hold last ``expires_in_seconds`` from now."""

    reservation_id: str
    expires_in_seconds: int


class FulfilBody(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What left of a reservation; everything it still holds where no lines are given."""

    lines: Annotated[tuple[ItemQuantity, ...], Meta(min_length=1, max_length=200)] | None = None
    reason: Text | None = None


class Fulfil(Struct, frozen=True, kw_only=True):
    """Promised goods left: all that is held, or the ``lines`` given."""

    reservation_id: str
    body: FulfilBody = FulfilBody()


class Expire(Struct, frozen=True, kw_only=True):
    """Look whether a hold is over. What is over is expired before any operation; this only names it."""

    reservation_id: str


class Expect(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Put on record that units of an item are to come; the item is named by its id, or by SKU and warehouse."""

    quantity: Quantity
    expected_at: Instant
    inventory_item_id: Id | None = None
    sku: Word | None = None
    warehouse_id: Id | None = None
    reference_type: Word | None = None
    reference_number: Word | None = None
    reason: Text | None = None

    def __post_init__(self) -> None:
        place = (self.sku is not None, self.warehouse_id is not None)
        if place != ((self.inventory_item_id is None),) * 2:
            raise ValueError("name the item by inventoryItemId, or by sku and warehouseId")
        force_setattr(self, "expected_at", utc(self.expected_at, "expectedAt"))


class ExpectedPatch(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What of an open expected receipt can be amended; what is left out stays."""

    quantity: Quantity | UnsetType = UNSET
    expected_at: Instant | UnsetType = UNSET
    reference_type: Word | UnsetType | None = UNSET
    reference_number: Word | UnsetType | None = UNSET
    reason: Text | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.expected_at is not UNSET:
            force_setattr(self, "expected_at", utc(self.expected_at, "expectedAt"))


class AmendExpected(Struct, frozen=True, kw_only=True):
    """Amend an expected receipt; ``if_match`` is the version the caller saw, None for any."""

    receipt_id: str
    patch: ExpectedPatch
    if_match: int | None = None


class ReceiveBody(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What came of an expected receipt, be it less or more than expected; with ``close`` no more will come."""

    quantity: Quantity
    close: bool = False
    reason: Text | None = None
    occurred_at: Instant | None = None

    def __post_init__(self) -> None:
        if self.occurred_at is not None:
            force_setattr(self, "occurred_at", utc(self.occurred_at, "occurredAt"))


class ReceiveExpected(Struct, frozen=True, kw_only=True):
    """Goods that were expected came in."""

    receipt_id: str
    body: ReceiveBody


class CancelExpected(Struct, frozen=True, kw_only=True):
    """Nothing (more) will come of an expected receipt; on an ended one nothing changes."""

    receipt_id: str
    reason: str | None = None


class CreateItem(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Start keeping stock of a SKU in a warehouse."""

    sku: Word
    product_id: ProductId
    warehouse_id: Id
    name: Text | None = None
    initial_quantity: Level = 0
    reorder_threshold: Level = 10
    target_stock_level: Level = 50
    safety_stock: Level = 0
    metadata: dict[str, Any] = {}


class ItemPatch(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What of an item can be edited outside stock operations; what is left out stays."""

    name: Text | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    safety_stock: Level | UnsetType = UNSET
    reorder_threshold: Level | UnsetType = UNSET
    target_stock_level: Level | UnsetType = UNSET


class UpdateItem(Struct, frozen=True, kw_only=True):
    """Edit an item; ``if_match`` is the version the caller saw, None for any."""

    inventory_item_id: str
    patch: ItemPatch
    if_match: int | None = None


class CreateWarehouse(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Open a warehouse; ``id`` may be the caller's own, ``wh_…``."""

    name: Text
    id: Annotated[str, Meta(pattern=r"^wh_[0-9A-Za-z]{1,64}$(?!\n)")] | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] = 100
    lead_time_days: LeadTime = LeadTime(1, 3)

    def __post_init__(self) -> None:
        check_lead_time(self.lead_time_days)


class WarehousePatch(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What of a warehouse can be edited; what is left out stays."""

    name: Text | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    lead_time_days: LeadTime | UnsetType = UNSET
    active: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.lead_time_days is not UNSET:
            check_lead_time(self.lead_time_days)


class UpdateWarehouse(Struct, frozen=True, kw_only=True):
    """Edit a warehouse; ``if_match`` is the version the caller saw, None for any."""

    warehouse_id: str
    patch: WarehousePatch
    if_match: int | None = None


class ProductPatch(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What of a product can be edited here; what is left out stays."""

    low_stock_threshold: Level


class UpdateProduct(Struct, frozen=True, kw_only=True):
    """Edit a product."""

    product_id: str
    patch: ProductPatch


class EventPolicy(Struct, frozen=True, kw_only=True):
    """What ProductCreated leads to, by the specification's settings."""

    auto_create: bool = True
    warehouse_ids: tuple[str, ...] = ()
    reorder_threshold: int = 10
    target_stock_level: int = 50


class ApplyProductEvent(Struct, frozen=True, kw_only=True):
    """Bring the items of a product in line with what the Product Service says of it.

    ``ensure`` makes its items as ProductCreated does: it is the first we hear of the product, however late.
    """

    event: ProductEvent
    policy: EventPolicy
    ensure: bool = False


class EventOutcome(Struct, frozen=True, kw_only=True):
    """What an event led to: APPLIED, SKIPPED for a ``reason``, or nothing as it was a DUPLICATE."""

    verdict: Literal["APPLIED", "SKIPPED", "DUPLICATE"]
    reason: str | None = None


class Rectify(Struct, frozen=True, kw_only=True):
    """Bring what is derived of a product in line with the records it is derived from, which are read under the lock.

    What agrees by then is left alone, so doing it twice changes nothing. Of the items to ``announce`` everybody is told
    again how they stand, whether or not that has changed. ``run_id`` names the reconciliation.
    """

    product_id: str
    kinds: tuple[FindingKind, ...]
    announce: tuple[str, ...] = ()
    run_id: str


class Correction(Struct, frozen=True, rename="camel", kw_only=True):
    """What was wrong about an item or product, and the values that have changed."""

    kind: FindingKind
    subject: str
    before: Values
    after: Values


class Rectified(Struct, frozen=True, kw_only=True):
    """What was corrected of a product; nothing where everything agreed, or nothing follows from any record."""

    corrections: tuple[Correction, ...]


ReservationStep = Release | Confirm | Extend | Fulfil | Expire
ReceiptStep = AmendExpected | ReceiveExpected | CancelExpected
Operation = (
    StockOperation
    | Reserve
    | ReservationStep
    | Expect
    | ReceiptStep
    | ApplyProductEvent
    | Rectify
    | CreateItem
    | UpdateItem
    | UpdateProduct
    | CreateWarehouse
    | UpdateWarehouse
)


class StockChange(Struct, frozen=True, rename="camel"):
    """What a stock operation did: its ledger rows and the item after it; none where nothing had to change."""

    transactions: tuple[StockTransaction, ...]
    item: Item


Result = StockChange | Reservation | ExpectedReceipt | Item | Product | Warehouse | EventOutcome | Rectified
_RESULTS: dict[type, type] = {
    Reserve: Reservation,
    **dict.fromkeys((Release, Confirm, Extend, Fulfil, Expire), Reservation),
    **dict.fromkeys((Expect, AmendExpected, ReceiveExpected, CancelExpected), ExpectedReceipt),
    ApplyProductEvent: EventOutcome,
    Rectify: Rectified,
    CreateItem: Item,
    UpdateItem: Item,
    UpdateProduct: Product,
    CreateWarehouse: Warehouse,
    UpdateWarehouse: Warehouse,
}


def check_lead_time(days: LeadTime) -> None:
    """Raise ValueError unless ``0 <= min <= max <= 3650``."""
    if not 0 <= days.min <= days.max <= 3650:
        raise ValueError("leadTimeDays must have 0 <= min <= max <= 3650")


class IdempotencyKey(Struct, frozen=True):
    """A caller's name for one request. ``fingerprint`` covers method, path, body and If-Match (rule R4)."""

    issuer: str
    subject: str
    key: str
    fingerprint: bytes

    @property
    def scope(self) -> tuple[str, str, str]:
        """What makes the key unique."""
        return self.issuer, self.subject, self.key


class StoredAnswer(Struct, frozen=True):
    """An idempotency key with the answer its request got (see ``Answer``)."""

    key: IdempotencyKey
    answer: bytes


class Request(Struct, frozen=True, kw_only=True):
    """Operations from one caller: one batch, one commit; each is decided on its own and gets its own outcome.

    ``size`` (bytes) is what the request weighs while it waits.
    """

    operations: tuple[Operation, ...]
    actor: str
    correlation_id: str | None = None
    key: IdempotencyKey | None = None
    size: int = 512


Outcome = Result | InventoryError
"""What became of one operation: its result, or the refusal (returned here, not raised)."""


class _Refusal(Struct, omit_defaults=True):
    kind: str
    detail: str
    extra: dict[str, Any]
    base: str = ""
    """The core's class behind a strategy's own, which may be gone when this is told again."""

    @classmethod
    def of(cls, error: InventoryError) -> "_Refusal":
        kind = type(error).__name__
        known = next(each.__name__ for each in type(error).__mro__ if KINDS.get(each.__name__) is each)
        return cls(kind, error.detail, error.extra, known if known != kind else "")

    def again(self) -> InventoryError:
        kind = error_named(self.kind, self.base)
        error = kind.__new__(kind)
        InventoryError.__init__(error, self.detail, **self.extra)  # a strategy's own may take other arguments
        return error


class _Told(Struct, omit_defaults=True):
    result: msgspec.Raw = msgspec.Raw(b"")  # msgspec refuses to decode "Raw or None"
    refusal: _Refusal | None = None


class Answer:
    """How the outcomes of a request are stored under its idempotency key and told again, equal to the first time."""

    _HEAD: ClassVar[msgspec.json.Decoder[list[_Told]]] = msgspec.json.Decoder(list[_Told])

    @staticmethod
    def store(outcomes: Sequence[Outcome]) -> bytes:
        """Encode ``outcomes`` for the idempotency table."""
        return msgspec.json.encode(
            [
                _Told(refusal=_Refusal.of(outcome))
                if isinstance(outcome, InventoryError)
                else _Told(result=msgspec.Raw(msgspec.json.encode(outcome)))
                for outcome in outcomes
            ]
        )

    @classmethod
    def tell(cls, stored: bytes, operations: Sequence[Operation]) -> list[Outcome]:
        """Decode what ``store`` wrote for the same ``operations``."""
        return [
            told.refusal.again()
            if told.refusal is not None
            else msgspec.json.decode(told.result, type=_RESULTS.get(type(operation), StockChange))
            for told, operation in zip(cls._HEAD.decode(stored), operations, strict=True)
        ]
