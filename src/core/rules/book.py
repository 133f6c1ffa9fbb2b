"""The book a batch works in: the stock it locked, and what has been written about it so far.

A ``Posting`` writes one operation: ledger rows as they come, then, when the operation is whole, the product's totals
and the events of what it crossed (rules R13 to R16). ``decisions.py`` decides what is posted; a store saves the book.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from core import events
from core.errors import Conflict, NotFound, PreconditionFailed
from core.events import Event, Metadata, OutboxRow, Payload, ProductEvent
from core.findings import Discrepancy
from core.ids import new_event_id, new_id
from core.operations import EventOutcome, StoredAnswer
from core.rules.sourcing import STRATEGIES, Strategy
from core.stock import (
    ExpectedReceipt,
    Item,
    Product,
    Reservation,
    StockTransaction,
    TransactionType,
    Warehouse,
    restock_expected,
)

SYSTEM = "inventory-service"
"""The actor of what the service does by itself."""


class Evidence(Struct, frozen=True):
    """What a product's records say of each other, read under its lock.

    Where they disagree; and what the ledger says came of its expected receipts, by id, where those say otherwise.
    """

    discrepancies: tuple[Discrepancy, ...] = ()
    came: Mapping[str, int] = {}


@dataclass(slots=True)
class Book:
    """The stock a batch has locked and loaded, and everything the batch has decided about it so far.

    ``now`` is the database's clock, read under the locks and never below the last change recorded for these products.
    Of a product that expects something its open receipts and their items are here, whatever else is.
    Entities are replaced, never mutated: what was loaded stays readable in ``loaded``.
    ``answers`` has what was answered before under the keys asked for, by scope and as it was stored.
    ``told_again`` are products and warehouses of earlier changes that are answered once more: who made them may have
    died before readers heard of it.
    """

    now: datetime
    products: dict[str, Product] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    receipts: dict[str, ExpectedReceipt] = field(default_factory=dict)
    warehouses: dict[str, Warehouse] = field(default_factory=dict)
    ledger: list[StockTransaction] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)
    events_seen: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str, str], StoredAnswer] = field(default_factory=dict)
    inbox: list[tuple[ProductEvent, EventOutcome]] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    sourcing: Mapping[str, Strategy] = field(default_factory=lambda: STRATEGIES)
    told_again: set[str] = field(default_factory=set)
    _places: dict[tuple[str, str], str] = field(default_factory=dict)
    _named: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Ids differ by prefix; products are named by others, so theirs are kept apart.
        self.loaded = {**self.items, **self.reservations, **self.receipts, **self.warehouses}
        self.loaded |= {f"product:{product.id}": product for product in self.products.values()}
        for item in self.items.values():
            self._index(item)

    def at(self, sku: str, warehouse_id: str) -> Item | None:
        """Return the item of ``sku`` in a warehouse, if it was loaded or made here."""
        return self.items.get(self._places.get((sku, warehouse_id), ""))

    def item(self, id: str) -> Item:
        """Return an item.

        Raises:
            NotFound: there is none of that id.
        """
        if (item := self.items.get(id)) is None:
            raise NotFound(f"There is no inventory item {id}.", inventoryItemId=id)
        return item

    def new_item(
        self,
        *,
        sku: str,
        product_id: str,
        warehouse_id: str,
        name: str,
        reorder_threshold: int,
        target_stock_level: int,
        metadata: dict[str, Any],
        safety_stock: int = 0,
    ) -> Item:
        """Return an active item without stock and without a version; posting it puts it into the book."""
        return Item(
            id=new_id("inv"),
            sku=sku,
            product_id=product_id,
            warehouse_id=warehouse_id,
            name=name,
            on_hand=0,
            reserved=0,
            available=0,
            safety_stock=safety_stock,
            shortfall=0,
            reorder_threshold=reorder_threshold,
            target_stock_level=target_stock_level,
            status="ACTIVE",
            metadata=metadata,
            version=0,
            created_at=self.now,
            updated_at=self.now,
        )

    def open_warehouse(self, id: str) -> Warehouse:
        """Return a warehouse that takes new stock.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is inactive.
        """
        if (warehouse := self.warehouses.get(id)) is None:
            raise NotFound(f"There is no warehouse {id}; create it first.", warehouseId=id)
        if not warehouse.active:
            raise Conflict(f"Warehouse {id} is inactive and takes no new stock; activate it first.", warehouseId=id)
        return warehouse

    def put(self, item: Item) -> None:
        """Make ``item`` the current state of its id."""
        old = self.items.get(item.id)
        if old is None or (old.sku, old.product_id) != (item.sku, item.product_id):
            if old is not None:
                self._forget(old)
            self._index(item)
        self.items[item.id] = item

    def of(self, *, sku: str | None, product_id: str | None) -> list[Item]:
        """Return the items of a SKU, or else of a product, that were loaded or made here."""
        name = ("sku", sku) if sku is not None else ("product", product_id or "")
        return [self.items[id] for id in self._named.get(name, ())]

    def of_product(self, product_id: str, sku: str | None = None) -> list[Item]:
        """Return a product's items that were loaded or made here; with ``sku``, those of that SKU."""
        items = self.of(sku=None, product_id=product_id)
        return [item for item in items if sku is None or item.sku == sku]

    def restock_expected(self, product_id: str) -> datetime | None:
        """Return when more of a product is expected next, None when nobody knows."""
        receipts = [each for each in self.receipts.values() if each.product_id == product_id and each.is_open]
        return restock_expected((self.items[each.inventory_item_id] for each in receipts), receipts, self.now)

    def revisions(self) -> dict[str, int]:
        """Return the revision of every product that is not as it was loaded, or whose change is told again."""
        again = self.told_again
        return {
            each.id: each.revision
            for each in self.products.values()
            if each.id in again or self.loaded[f"product:{each.id}"] is not each
        }

    def warehouses_changed(self) -> bool:
        """Tell whether a warehouse was made or edited here, or that it was is told again."""
        again = self.told_again
        return any(each.id in again or self.loaded.get(each.id) is not each for each in self.warehouses.values())

    def _forget(self, item: Item) -> None:
        del self._places[item.sku, item.warehouse_id]
        self._named["sku", item.sku].remove(item.id)
        self._named["product", item.product_id].remove(item.id)

    def _index(self, item: Item) -> None:
        self._places[item.sku, item.warehouse_id] = item.id
        self._named.setdefault(("sku", item.sku), []).append(item.id)
        self._named.setdefault(("product", item.product_id), []).append(item.id)


@dataclass(slots=True)
class Cause:
    """Who asks, and in what context; None where the caller sent no correlation id (rule R16)."""

    actor: str
    correlation_id: str | None = None


class Posting:
    """One operation being written: its ledger rows as they come, its events when it is whole (rule R14)."""

    def __init__(self, book: Book, cause: Cause, source: Any) -> None:
        self.book = book
        self.cause = cause
        self.reason: str | None = getattr(source, "reason", None)
        self.reference_type: str | None = getattr(source, "reference_type", None)
        self.reference_number: str | None = getattr(source, "reference_number", None)
        self.occurred_at: datetime = getattr(source, "occurred_at", None) or book.now
        self.before: dict[str, Item | None] = {}
        self.rows: list[StockTransaction] = []
        self.expired: dict[str, tuple[Reservation, int]] = {}
        self.announced: set[str] = set()

    def post(
        self,
        item: Item,
        type: TransactionType,
        *,
        on_hand: int = 0,
        reserved: int = 0,
        reservation_id: str | None = None,
        expected_receipt_id: str | None = None,
        **fields: Any,
    ) -> Item:
        """Move an item's balances by ``on_hand`` and ``reserved`` units, set ``fields``, and write the ledger row."""
        book = self.book
        self.before.setdefault(item.id, book.items.get(item.id))
        item = item.changed(book.now, on_hand=item.on_hand + on_hand, reserved=item.reserved + reserved, **fields)
        book.put(item)
        id = new_id("tx")
        row = StockTransaction(
            id=id,
            inventory_item_id=item.id,
            product_id=item.product_id,
            warehouse_id=item.warehouse_id,
            sku=item.sku,
            item_version=item.version,
            type=type,
            on_hand_change=on_hand,
            reserved_change=reserved,
            on_hand_after=item.on_hand,
            reserved_after=item.reserved,
            available_after=item.available,
            reason=self.reason,
            reference_type=self.reference_type,
            reference_number=self.reference_number,
            reservation_id=reservation_id,
            expected_receipt_id=expected_receipt_id,
            actor=self.cause.actor,
            correlation_id=self.cause.correlation_id or id,
            occurred_at=self.occurred_at,
            recorded_at=book.now,
        )
        self.rows.append(row)
        book.ledger.append(row)
        return item

    def close(self) -> None:
        """Bring the products' totals up to date and emit what the operation as a whole has crossed."""
        by_product: dict[str, list[StockTransaction]] = {}
        for row in self.rows:
            by_product.setdefault(row.product_id, []).append(row)
        for product_id, rows in by_product.items():
            self._settle(self.book.products[product_id], rows)

    def _settle(self, before: Product, rows: list[StockTransaction]) -> None:
        moved = [(self.before[row.inventory_item_id], self.book.items[row.inventory_item_id], row) for row in rows]
        product = replace(
            before,
            total_on_hand=before.total_on_hand + sum(row.on_hand_change for row in rows),
            total_reserved=before.total_reserved + sum(row.reserved_change for row in rows),
            total_available=before.total_available + sum(new.available - _available(old) for old, new, _ in moved),
            revision=before.revision + 1,
            updated_at=self.book.now,
        )
        payloads = [*self._payloads(before, product, moved), *self._expiries(product, moved)]
        for offset, (row, payload) in enumerate(payloads, start=1):
            self.book.outbox.append(_event(payload, row, before.sequence + offset))
        self.book.products[product.id] = replace(product, sequence=before.sequence + len(payloads))

    def _payloads(
        self, before: Product, product: Product, moved: "list[_Moved]"
    ) -> Iterable[tuple[StockTransaction, Payload]]:
        yield from _levels(product, moved, self.announced)
        if product.is_out_of_stock != before.is_out_of_stock:
            restock = self.book.restock_expected(product.id) if product.total_expected else None
            yield _crossing(product, moved, restock)

    def _expiries(self, product: Product, moved: "list[_Moved]") -> Iterable[tuple[StockTransaction, Payload]]:
        for _, item, row in moved:
            if item.id in self.expired:
                reservation, quantity = self.expired[item.id]
                yield (
                    row,
                    events.ReservationExpired(
                        **_subject(item),
                        reservation_id=reservation.id,
                        quantity=quantity,
                        reference_type=reservation.reference_type,
                        reference_number=reservation.reference_number,
                        transaction_id=row.id,
                        total_quantity_available=product.total_available,
                    ),
                )


_Moved = tuple[Item | None, Item, StockTransaction]


def _available(item: Item | None) -> int:
    return item.available if item else 0


def _levels(
    product: Product, moved: list[_Moved], announced: Collection[str]
) -> Iterable[tuple[StockTransaction, Payload]]:
    for old, new, row in moved:
        if new.available != _available(old) or new.id in announced:
            yield row, _level_changed(product, old, new, row)
    for old, new, row in moved:
        if new.is_low and not (old and old.is_low):
            yield (
                row,
                events.LowStockThresholdReached(
                    **_subject(new),
                    quantity_available=new.available,
                    reorder_threshold=new.reorder_threshold,
                    target_stock_level=new.target_stock_level,
                    transaction_id=row.id,
                    total_quantity_available=product.total_available,
                    is_low_stock=product.is_low_stock,
                    is_out_of_stock=product.is_out_of_stock,
                ),
            )


def _level_changed(product: Product, old: Item | None, new: Item, row: StockTransaction) -> Payload:
    return events.StockLevelChanged(
        **_subject(new),
        previous_quantity=_available(old),
        new_quantity=new.available,
        change_amount=new.available - _available(old),
        change_reason=row.reason or _REASONS[row.type],
        transaction_id=row.id,
        transaction_type=row.type,
        reference_number=row.reference_number,
        reference_type=row.reference_type,
        total_quantity_available=product.total_available,
        is_low_stock=product.is_low_stock,
        is_out_of_stock=product.is_out_of_stock,
    )


def _crossing(product: Product, moved: list[_Moved], restock: datetime | None) -> tuple[StockTransaction, Payload]:
    """Tell that the product ran out or came back: the last item that changed is the one that caused it."""
    _, new, row = [(old, new, row) for old, new, row in moved if new.available != _available(old)][-1]
    if product.is_out_of_stock:
        return row, events.OutOfStock(
            **_subject(new),
            transaction_id=row.id,
            total_quantity_available=0,
            total_quantity_reserved=product.total_reserved,
            restock_expected=restock,
        )
    return row, events.BackInStock(
        **_subject(new),
        quantity_available=new.available,
        transaction_id=row.id,
        total_quantity_available=product.total_available,
    )


def _subject(item: Item) -> dict[str, str]:
    return {
        "inventory_item_id": item.id,
        "sku": item.sku,
        "product_id": item.product_id,
        "warehouse_id": item.warehouse_id,
    }


def _event(payload: Payload, row: StockTransaction, sequence: int) -> OutboxRow:
    event = Event(
        event_id=new_event_id(),
        event_type=type(payload).__name__,
        event_version=events.EVENT_VERSION,
        aggregate_id=payload.inventory_item_id,
        aggregate_type="InventoryItem",
        timestamp=row.recorded_at,
        metadata=Metadata(row.correlation_id, events.SOURCE, sequence, row.id),
        payload=payload,
    )
    return OutboxRow(
        product_id=payload.product_id,
        sequence=sequence,
        event_id=event.event_id,
        event_type=event.event_type,
        aggregate_id=event.aggregate_id,
        correlation_id=row.correlation_id,
        body=msgspec.json.encode(event),
        created_at=row.recorded_at,
    )


_REASONS: dict[str, str] = {
    "RECEIPT": "Stock received",
    "RETURN": "Stock returned",
    "SHIPMENT": "Stock shipped",
    "ADJUSTMENT": "Stock adjusted",
    "COUNT": "Stock counted",
    "TRANSFER_OUT": "Stock transferred out",
    "TRANSFER_IN": "Stock transferred in",
    "POLICY": "Stock policy changed",
    "STATUS": "Item status changed",
    "RESERVATION": "Stock reserved",
    "RELEASE": "Reservation released",
    "EXPIRY": "Reservation expired",
    "FULFILMENT": "Reservation fulfilled",
    "CORRECTION": "Records brought in line",
}
"""What an event says of a change for which the caller gave no reason."""


def check_match(if_match: int | None, version: int) -> None:
    """Let a change pass that names no version, or the current one.

    Raises:
        PreconditionFailed: it names another.
    """
    if if_match is not None and if_match != version:
        raise PreconditionFailed(
            f"If-Match names version {if_match}, the current version is {version}: read it again and decide anew.",
            currentVersion=version,
        )
