"""A batch's decisions as rows: what was made, what differs from what was loaded, and what callers were told."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy import Table

from adapters.sql import tables
from adapters.sql.database import Change, Insert, Row, Update
from core.events import OutboxRow, ProductEvent
from core.operations import EventOutcome, StoredAnswer
from core.rules.book import Book
from core.stock import ExpectedReceipt, Item, Product, Reservation, ReservationLine, StockTransaction, Warehouse

KEY = ("issuer", "subject", "key", "fingerprint")
_ANSWER = (*KEY, "answer", "created_at")
_LEDGER = StockTransaction.__struct_fields__
_OUTBOX = (
    *("product_id", "sequence", "event_id", "event_type", "aggregate_id"),
    *("correlation_id", "critical", "body", "created_at"),
)
_INBOX = ("event_id", "event_type", "product_id", "verdict", "reason", "occurred_at", "received_at")
_PRODUCT = (
    *("total_on_hand", "total_reserved", "total_available", "total_expected", "low_stock_threshold"),
    *("status", "sequence", "revision", "catalog", "updated_at"),
)
_ITEM = (
    *("sku", "product_id", "name", "on_hand", "reserved", "available", "safety_stock", "shortfall"),
    *("reorder_threshold", "target_stock_level", "status", "metadata", "version", "updated_at"),
)
_WAREHOUSE = ("name", "priority", "lead_time_min", "lead_time_max", "active", "version", "created_at", "updated_at")
_STEP = ("status", "expires_at", "confirmed_at", "updated_at")
_RESERVATION = (*_STEP, "reference_type", "reference_number", "created_at")
_UNITS = ("fulfilled_quantity", "released_quantity")
_LINE = ("reservation_id", "line", "inventory_item_id", "quantity", *_UNITS)
_RECEIPT = (
    *("quantity", "received_quantity", "outstanding_quantity", "expected_at", "status"),
    *("reference_type", "reference_number", "reason", "version", "updated_at"),
)
_ledger_row: Callable[[StockTransaction], Row] = attrgetter(*_LEDGER)
_outbox_row: Callable[[OutboxRow], Row] = attrgetter(*_OUTBOX)
_reservation_row: Callable[[Reservation], Row] = attrgetter(*_RESERVATION)
_step_row: Callable[[Reservation], Row] = attrgetter(*_STEP)
_line_row: Callable[[ReservationLine], Row] = attrgetter("inventory_item_id", "quantity", *_UNITS)
_units_row: Callable[[ReservationLine], Row] = attrgetter(*_UNITS)
_receipt_row: Callable[[ExpectedReceipt], Row] = attrgetter(*_RECEIPT)
_item_fields: Callable[[Item], Row] = attrgetter(*_ITEM)
_product_fields: Callable[[Product], Row] = attrgetter(*_PRODUCT)

_Pairs = list[tuple[Row, Row, Row]]
"""Of each row that differs: the values of its keys, as it was loaded, and as it is to be."""


def changes_of(book: Book, answers: Iterable[StoredAnswer]) -> list[Change]:
    """Return what is to be written: what others point to first, and keys last and sorted.

    Keys are the only other rows that a batch may wait for (rule R2).
    """
    heard = sorted(_inbox_row(book, *entry) for entry in book.inbox)
    told = sorted((*each.key.scope, each.key.fingerprint, each.answer, book.now) for each in answers)
    changes: list[Change] = [
        *_warehouses(book),
        *_products(book),
        *_items(book),
        *_reservations(book),
        *_receipts(book),
        Insert(tables.stock_transaction, _LEDGER, [_ledger_row(row) for row in book.ledger]),
        Insert(tables.outbox, _OUTBOX, [_outbox_row(row) for row in book.outbox]),
        Insert(tables.inbox, _INBOX, heard, skip_existing=True),
        Insert(tables.idempotency_key, _ANSWER, told, skip_existing=True),
    ]
    return [change for change in changes if change.rows]


def _warehouses(book: Book) -> Iterator[Change]:
    new: list[Row] = []
    changed: _Pairs = []
    for warehouse in book.warehouses.values():
        if (old := book.loaded.get(warehouse.id)) is None:
            new.append((warehouse.id, *_warehouse_row(warehouse)))
        elif old is not warehouse:
            changed.append(((warehouse.id, old.version), _warehouse_row(old), _warehouse_row(warehouse)))
    yield Insert(tables.warehouse, ("id", *_WAREHOUSE), new)
    yield from _differing(tables.warehouse, ("id", "version"), _WAREHOUSE, changed)


def _products(book: Book) -> Iterator[Change]:
    pairs = ((book.loaded[f"product:{product.id}"], product) for product in book.products.values())
    changed: _Pairs = [
        ((product.id, old.revision), _product_row(old), _product_row(product))
        for old, product in pairs
        if old is not product
    ]
    yield from _differing(tables.product, ("id", "revision"), _PRODUCT, changed)


def _items(book: Book) -> Iterator[Change]:
    new: list[Row] = []
    changed: _Pairs = []
    for item in book.items.values():
        if (old := book.loaded.get(item.id)) is None:
            new.append((item.id, item.warehouse_id, item.created_at, *_item_row(item)))
        elif old is not item:
            changed.append(((item.id, old.version), _item_row(old), _item_row(item)))
    yield Insert(tables.inventory_item, ("id", "warehouse_id", "created_at", *_ITEM), new)
    yield from _differing(tables.inventory_item, ("id", "version"), _ITEM, changed)


def _reservations(book: Book) -> Iterator[Change]:
    new: list[Row] = []
    new_lines: list[Row] = []
    steps: _Pairs = []
    lines: _Pairs = []
    for reservation in book.reservations.values():
        if (old := book.loaded.get(reservation.id)) is None:
            new.append((reservation.id, *_reservation_row(reservation)))
            new_lines += [(reservation.id, place, *_line_row(line)) for place, line in enumerate(reservation.lines)]
            continue
        # A hold of which only some lines were expired is not ours to touch: its other products are not locked.
        if (was := _step_row(old)) != (step := _step_row(reservation)):
            steps.append(((reservation.id,), was, step))
        lines += [
            ((reservation.id, place), _units_row(before), _units_row(line))
            for place, (before, line) in enumerate(zip(old.lines, reservation.lines, strict=True))
            if before is not line
        ]
    yield Insert(tables.reservation, ("id", *_RESERVATION), new)
    yield Insert(tables.reservation_line, _LINE, new_lines)
    yield from _differing(tables.reservation, ("id",), _STEP, steps)
    yield from _differing(tables.reservation_line, ("reservation_id", "line"), _UNITS, lines)


def _receipts(book: Book) -> Iterator[Change]:
    new: list[Row] = []
    changed: _Pairs = []
    for receipt in book.receipts.values():
        if (old := book.loaded.get(receipt.id)) is None:
            new.append((receipt.id, receipt.inventory_item_id, receipt.created_at, *_receipt_row(receipt)))
        elif old.version != receipt.version:  # one that only follows its item to another product is as it was
            changed.append(((receipt.id, old.version), _receipt_row(old), _receipt_row(receipt)))
    yield Insert(tables.expected_receipt, ("id", "inventory_item_id", "created_at", *_RECEIPT), new)
    yield from _differing(tables.expected_receipt, ("id", "version"), _RECEIPT, changed)


def _differing(table: Table, keys: Sequence[str], columns: Sequence[str], changed: _Pairs) -> Iterator[Change]:
    """Yield the change that sets what differs in any of the rows, if anything does."""
    places = [place for place in range(len(columns)) if any(old[place] != new[place] for _, old, new in changed)]
    if places:
        rows = [(*key, *(new[place] for place in places)) for key, _, new in changed]
        yield Update(table, tuple(keys), tuple(columns[place] for place in places), rows)


def _product_row(product: Product) -> Row:
    return _with_text(_product_fields(product), _PRODUCT.index("catalog"))


def _item_row(item: Item) -> Row:
    return _with_text(_item_fields(item), _ITEM.index("metadata"))


def _with_text(fields: Row, place: int) -> Row:
    """Return fields of which one is kept as JSON."""
    return (*fields[:place], msgspec.json.encode(fields[place]).decode(), *fields[place + 1 :])


def _warehouse_row(warehouse: Warehouse) -> Row:
    days = warehouse.lead_time_days
    head = (warehouse.name, warehouse.priority, days.min, days.max, warehouse.active)
    return (*head, warehouse.version, warehouse.created_at, warehouse.updated_at)


def _inbox_row(book: Book, event: ProductEvent, outcome: EventOutcome) -> tuple[Any, ...]:
    head = (event.event_id, event.event_type, event.payload.product_id)
    return (*head, outcome.verdict, outcome.reason, event.timestamp, book.now)
