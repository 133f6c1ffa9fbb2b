"""One batch's transaction: locks, reads under the locks, and the book written back in a handful of statements."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, Table, and_, bindparam, literal_column, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import tables
from adapters.sql.database import Database, Query, Row
from core.book import Book
from core.events import OutboxRow, ProductEvent
from core.operations import EventOutcome, IdempotencyKey
from core.stock import (
    Catalog,
    ExpectedReceipt,
    Item,
    LeadTime,
    Product,
    Reservation,
    ReservationLine,
    StockTransaction,
    Warehouse,
)
from ports.store import StoredAnswer, Wanted

_PRODUCT = (
    *("total_on_hand", "total_reserved", "total_available", "total_expected", "low_stock_threshold"),
    *("status", "sequence", "revision", "catalog", "updated_at"),
)
_ITEM_LEVELS = (
    *("sku", "product_id", "name", "on_hand", "reserved", "available", "safety_stock", "shortfall"),
    *("reorder_threshold", "target_stock_level", "status", "metadata", "version", "updated_at"),
)
_DUE_MAX = 500
_LEDGER = StockTransaction.__struct_fields__
_OUTBOX = (
    *("product_id", "sequence", "event_id", "event_type", "aggregate_id"),
    *("correlation_id", "critical", "body", "created_at"),
)
_ledger_row: Callable[[StockTransaction], Row] = attrgetter(*_LEDGER)
_outbox_row: Callable[[OutboxRow], Row] = attrgetter(*_OUTBOX)


class SqlTransaction:
    """See ``ports.store.Transaction``."""

    def __init__(self, database: Database, connection: AsyncConnection) -> None:
        self._database = database
        self._connection = connection
        self.id: str | None = None
        self.witness: str | None = None
        self.open = True

    async def resolve(
        self, item_ids: Collection[str], reservation_ids: Collection[str], receipt_ids: Collection[str] = ()
    ) -> Mapping[str, set[str]]:
        """One statement for all kinds."""
        item, line = tables.inventory_item.c, tables.reservation_line.c
        items = select(item.id, item.product_id).where(self._database.among(item.id, item_ids))
        lines = select(line.reservation_id, item.product_id).where(
            self._database.among(line.reservation_id, reservation_ids), item.id == line.inventory_item_id
        )
        asked = [items, lines]
        if receipt_ids:
            receipt = tables.expected_receipt.c
            named = self._database.among(receipt.id, receipt_ids)
            asked.append(select(receipt.id, item.product_id).where(named, item.id == receipt.inventory_item_id))
        found: dict[str, set[str]] = {}
        for id, product_id in await self._connection.execute(union_all(*asked)):
            found.setdefault(id, set()).add(product_id)
        return found

    async def products_of(self, skus: Collection[str]) -> Mapping[str, set[str]]:
        """By the index on SKU and warehouse."""
        item = tables.inventory_item.c
        found: dict[str, set[str]] = {}
        statement = select(item.sku, item.product_id).where(self._database.among(item.sku, skus)).distinct()
        for sku, product_id in await self._connection.execute(statement):
            found.setdefault(sku, set()).add(product_id)
        return found

    async def lock(self, product_ids: Collection[str], *, wait: bool) -> set[str]:
        """In order of id, so that two batches never wait for each other in a circle."""
        return await self._database.lock_products(self._connection, sorted(product_ids), wait=wait)

    async def load(self, product_ids: Collection[str], wanted: Wanted) -> Book:
        """Clock, products, reservations, expected receipts, items, warehouses."""
        now, self.id = await self._database.clock(self._connection)
        products = {row["id"]: product_of(row) for row in await self._fetch(_PRODUCTS, product_ids)}
        now = max([now, *(product.updated_at for product in products.values())])
        due = await self._due(products, now)
        reservations = await read_reservations(self._database, self._connection, wanted.reservation_ids | due)
        receipts = await self._receipts(wanted, products.values(), now)
        named = {line.inventory_item_id for reservation in reservations for line in reservation.lines}
        named |= {receipt.inventory_item_id for receipt in receipts}
        items = await self._items(wanted, named)
        return Book(
            now=now,
            products=products,
            items={item.id: item for item in items},
            reservations={reservation.id: reservation for reservation in reservations},
            receipts={receipt.id: receipt for receipt in receipts},
            warehouses={row.id: warehouse_of(row) for row in await self._warehouses(wanted)},
            events_seen=await self._events_seen(wanted.event_ids),
        )

    async def _events_seen(self, event_ids: Collection[str]) -> set[str]:
        if not event_ids:
            return set()
        seen = tables.inbox.c.event_id
        found = await self._connection.execute(select(seen).where(self._database.among(seen, event_ids)))
        return set(found.scalars())

    async def _warehouses(self, wanted: Wanted) -> Sequence[Any]:
        if wanted.all_warehouses:
            return (await self._connection.execute(select(tables.warehouse))).all()
        return await self._among(tables.warehouse, wanted.warehouse_ids)

    async def _due(self, product_ids: Collection[str], now: datetime) -> set[str]:
        """Return the holds that are over and still hold something of these products, the longest over first.

        After a long outage there may be any number; a batch must stay a batch, so the next one takes the rest.
        """
        if not product_ids:
            return set()
        due = await self._database.fetch(self._connection, _DUE, products=list(product_ids), now=now)
        return {row["id"] for row in due}

    async def _receipts(self, wanted: Wanted, products: Iterable[Product], now: datetime) -> list[ExpectedReceipt]:
        """Ask only where something is known to be expected, or named."""
        receipt, item, among = tables.expected_receipt.c, tables.inventory_item.c, self._database.among
        asked: list[ColumnElement[bool]] = []
        if expecting := [product.id for product in products if product.total_expected]:
            asked.append(and_(among(item.product_id, expecting), receipt.outstanding_quantity > tables.NOTHING))
        if wanted.receipt_ids:
            asked.append(among(receipt.id, wanted.receipt_ids))
        found: dict[str, ExpectedReceipt] = {}
        for where in asked:
            rows = await self._connection.execute(RECEIPTS.where(where))
            found |= {row.id: receipt_of(row, now) for row in rows}
        return list(found.values())

    async def _items(self, wanted: Wanted, named: set[str]) -> list[Item]:
        items = await self._fetch(_ITEMS, wanted.item_ids | named)
        item, among = tables.inventory_item.c, self._database.among
        others: list[ColumnElement[bool]] = []
        if wanted.whole_products:
            # With other products' items of their SKUs: a transfer must see that its place is taken.
            own = tables.inventory_item.alias().c
            others.append(item.sku.in_(select(own.sku).where(among(own.product_id, wanted.whole_products))))
        if skus := wanted.skus | {sku for sku, _ in wanted.places}:
            others.append(among(item.sku, skus))
        if others:
            rows = await self._connection.execute(select(tables.inventory_item).where(or_(*others)))
            items += [row._asdict() for row in rows]
        return [item_of(row) for row in {row["id"]: row for row in items}.values()]

    async def _fetch(self, query: Query, ids: Collection[str]) -> list[dict[str, Any]]:
        return await self._database.fetch(self._connection, query, ids=list(ids)) if ids else []

    async def _among(self, table: Table, ids: Collection[str]) -> Sequence[Any]:
        if not ids:
            return ()
        return (await self._connection.execute(select(table).where(self._database.among(table.c.id, ids)))).all()

    async def answers(self, keys: Collection[IdempotencyKey]) -> list[StoredAnswer]:
        """Found by the three parts apart, then matched as a whole: hardly any is found in vain."""
        if not keys:
            return []
        scopes = {key.scope for key in keys}
        issuers, subjects, names = map(list, zip(*scopes, strict=True))
        rows = await self._database.fetch(self._connection, _ANSWERS, issuers=issuers, subjects=subjects, keys=names)
        found = ((IdempotencyKey(*(row[name] for name in _KEY)), row["answer"]) for row in rows)
        return [StoredAnswer(key, answer) for key, answer in found if key.scope in scopes]

    async def save(self, book: Book, answers: Sequence[StoredAnswer]) -> bool:
        """Balances first: where one has moved under us, nothing else needs to be written."""
        if not await self._save_entities(book):
            return False
        self.witness = book.ledger[0].id if book.ledger else None
        await self._insert(tables.stock_transaction, _LEDGER, [_ledger_row(row) for row in book.ledger])
        await self._insert(tables.outbox, _OUTBOX, [_outbox_row(row) for row in book.outbox])
        heard = sorted(_inbox_row(book, *entry) for entry in book.inbox)
        if await self._insert(tables.inbox, _INBOX, heard, skip_existing=True) != len(heard):
            return False
        # Keys last and sorted: the only other rows a batch may wait for (rule R2).
        rows = sorted((*answer.key.scope, answer.key.fingerprint, answer.answer, book.now) for answer in answers)
        columns = (*_KEY, "answer", "created_at")
        return await self._insert(tables.idempotency_key, columns, rows, skip_existing=True) == len(rows)

    async def _save_entities(self, book: Book) -> bool:
        changes = _Changes(book)
        await self._insert(tables.warehouse, ("id", *_WAREHOUSE), changes.new_warehouses)
        await self._insert(tables.inventory_item, _ITEM, changes.new_items)
        await self._insert(tables.reservation, ("id", *_RESERVATION), changes.new_reservations)
        await self._insert(tables.reservation_line, _LINE, changes.new_lines)
        await self._insert(tables.expected_receipt, _NEW_RECEIPT, changes.new_receipts)
        for change in changes.updates():
            if not await self._update(*change):
                return False
        return True

    async def _update(self, table: Table, keys: tuple[str, ...], columns: tuple[str, ...], changed: "_Pairs") -> bool:
        """Set what differs; False where a row is not there as it was loaded."""
        places = [place for place in range(len(columns)) if any(old[place] != new[place] for _, old, new in changed)]
        rows = [(*key, *(new[place] for place in places)) for key, _, new in changed]
        names = tuple(columns[place] for place in places)
        return not places or await self._database.update(self._connection, table, keys, names, rows) == len(rows)

    async def _insert(
        self, table: Table, columns: tuple[str, ...], rows: Sequence[Row], *, skip_existing: bool = False
    ) -> int:
        if not rows:
            return 0
        return await self._database.insert(self._connection, table, columns, rows, skip_existing=skip_existing)

    async def rollback(self) -> None:
        """Give everything up."""
        self.open = False
        await self._connection.rollback()


_PRODUCTS = Query(lambda database: select(tables.product).where(database.listed(tables.product.c.id, "ids")))
_ITEMS = Query(lambda database: select(tables.inventory_item).where(database.listed(tables.inventory_item.c.id, "ids")))


@Query
def _DUE(database: Database) -> Select[Any]:  # noqa: N802 - it is one of the queries above
    held, line, item = tables.reservation.c, tables.reservation_line.c, tables.inventory_item.c
    # Materialised: hardly any hold is over, and a planner that does not know it would start from the item's lines,
    # of which a product in demand has tens of thousands.
    over = select(held.id, held.expires_at).where(held.status == tables.HELD, held.expires_at <= bindparam("now"))
    due = over.cte("due").prefix_with("MATERIALIZED")
    holds_some = (
        select(literal_column("1"))
        .where(line.reservation_id == due.c.id, line.quantity > line.fulfilled_quantity + line.released_quantity)
        .where(item.id == line.inventory_item_id, database.listed(item.product_id, "products"))
        .exists()
    )
    return select(due.c.id).where(holds_some).order_by(due.c.expires_at).limit(literal_column(str(_DUE_MAX)))


@Query
def _ANSWERS(database: Database) -> Select[Any]:  # noqa: N802
    key = tables.idempotency_key.c
    scope = database.listed_together((key.issuer, key.subject, key.key), ("issuers", "subjects", "keys"))
    return select(tables.idempotency_key).where(scope)


_KEY = ("issuer", "subject", "key", "fingerprint")
_ITEM = ("id", "warehouse_id", "created_at", *_ITEM_LEVELS)
_INBOX = ("event_id", "event_type", "product_id", "verdict", "reason", "occurred_at", "received_at")
_WAREHOUSE = ("name", "priority", "lead_time_min", "lead_time_max", "active", "version", "created_at", "updated_at")
_STEP = ("status", "expires_at", "confirmed_at", "updated_at")
_RESERVATION = (*_STEP, "reference_type", "reference_number", "created_at")
_UNITS = ("fulfilled_quantity", "released_quantity")
_LINE = ("reservation_id", "line", "inventory_item_id", "quantity", *_UNITS)
_RECEIPT = (
    *("quantity", "received_quantity", "outstanding_quantity", "expected_at", "status"),
    *("reference_type", "reference_number", "reason", "version", "updated_at"),
)
_NEW_RECEIPT = ("id", "inventory_item_id", "created_at", *_RECEIPT)
_item_levels: Callable[[Item], Row] = attrgetter(*_ITEM_LEVELS)
_reservation_row: Callable[[Reservation], Row] = attrgetter(*_RESERVATION)
_step_row: Callable[[Reservation], Row] = attrgetter(*_STEP)
_line_row: Callable[[ReservationLine], Row] = attrgetter("inventory_item_id", "quantity", *_UNITS)
_units_row: Callable[[ReservationLine], Row] = attrgetter(*_UNITS)
_receipt_row: Callable[[ExpectedReceipt], Row] = attrgetter(*_RECEIPT)


_Pairs = list[tuple[Row, Row, Row]]
"""Of each row that differs: the values of its keys, as it was loaded, and as it is to be."""


class _Changes:
    """The book's changes as rows: what is new, and what differs from what was loaded."""

    def __init__(self, book: Book) -> None:
        loaded = book.loaded
        self.new_items: list[Row] = []
        self.items: _Pairs = []
        for item in book.items.values():
            if (old := loaded.get(item.id)) is None:
                self.new_items.append((item.id, item.warehouse_id, item.created_at, *_levels(item)))
            elif old is not item:
                self.items.append(((item.id, old.version), _levels(old), _levels(item)))
        self.products: _Pairs = [
            ((product.id, old.revision), _product_row(old), _product_row(product))
            for product in book.products.values()
            if (old := loaded[f"product:{product.id}"]) is not product
        ]
        self.new_warehouses: list[Row] = []
        self.warehouses: _Pairs = []
        for warehouse in book.warehouses.values():
            if (old := loaded.get(warehouse.id)) is None:
                self.new_warehouses.append((warehouse.id, *_warehouse_row(warehouse)))
            elif old is not warehouse:
                self.warehouses.append(((warehouse.id, old.version), _warehouse_row(old), _warehouse_row(warehouse)))
        self._add_reservations(book)
        self._add_receipts(book)

    def updates(self) -> Iterable[tuple[Table, tuple[str, ...], tuple[str, ...], _Pairs]]:
        """Return what to set: table, keys, columns, rows."""
        return (
            (tables.inventory_item, ("id", "version"), _ITEM_LEVELS, self.items),
            (tables.product, ("id", "revision"), _PRODUCT, self.products),
            (tables.warehouse, ("id", "version"), _WAREHOUSE, self.warehouses),
            (tables.reservation, ("id",), _STEP, self.reservations),
            (tables.reservation_line, ("reservation_id", "line"), _UNITS, self.lines),
            (tables.expected_receipt, ("id", "version"), _RECEIPT, self.receipts),
        )

    def _add_reservations(self, book: Book) -> None:
        self.new_reservations: list[Row] = []
        self.new_lines: list[Row] = []
        self.reservations: _Pairs = []
        self.lines: _Pairs = []
        for reservation in book.reservations.values():
            if (old := book.loaded.get(reservation.id)) is None:
                self.new_reservations.append((reservation.id, *_reservation_row(reservation)))
                self.new_lines += [
                    (reservation.id, number, *_line_row(line)) for number, line in enumerate(reservation.lines)
                ]
                continue
            # A hold of which only some lines were expired is not ours to touch: its other products are not locked.
            if (was := _step_row(old)) != (step := _step_row(reservation)):
                self.reservations.append(((reservation.id,), was, step))
            self.lines += [
                ((reservation.id, number), _units_row(before), _units_row(line))
                for number, (before, line) in enumerate(zip(old.lines, reservation.lines, strict=True))
                if before is not line
            ]

    def _add_receipts(self, book: Book) -> None:
        self.new_receipts: list[Row] = []
        self.receipts: _Pairs = []
        for receipt in book.receipts.values():
            if (old := book.loaded.get(receipt.id)) is None:
                row = _receipt_row(receipt)
                self.new_receipts.append((receipt.id, receipt.inventory_item_id, receipt.created_at, *row))
            elif old.version != receipt.version:  # one that only follows its item to another product is as it was
                self.receipts.append(((receipt.id, old.version), _receipt_row(old), _receipt_row(receipt)))


def _product_row(product: Product) -> Row:
    row = [getattr(product, name) for name in _PRODUCT]
    row[_PRODUCT.index("catalog")] = msgspec.json.encode(product.catalog).decode()
    return row


def _inbox_row(book: Book, event: ProductEvent, outcome: EventOutcome) -> tuple[Any, ...]:
    head = (event.event_id, event.event_type, event.payload.product_id)
    return (*head, outcome.verdict, outcome.reason, event.timestamp, book.now)


def _levels(item: Item) -> Row:
    levels = list(_item_levels(item))
    place = _ITEM_LEVELS.index("metadata")
    levels[place] = msgspec.json.encode(levels[place]).decode()
    return levels


def _warehouse_row(warehouse: Warehouse) -> Row:
    days = warehouse.lead_time_days
    head = (warehouse.name, warehouse.priority, days.min, days.max, warehouse.active)
    return (*head, warehouse.version, warehouse.created_at, warehouse.updated_at)


def product_of(fields: dict[str, Any]) -> Product:
    """Return the product in a row of ``product``."""
    return Product(**fields | {"catalog": msgspec.json.decode(fields["catalog"], type=Catalog)})


def item_of(fields: dict[str, Any]) -> Item:
    """Return the item in a row of ``inventory_item``."""
    return Item(**fields | {"metadata": msgspec.json.decode(fields["metadata"])})


def warehouse_of(row: Any) -> Warehouse:
    """Return the warehouse in a row of ``warehouse``."""
    fields = row._asdict()
    days = LeadTime(fields.pop("lead_time_min"), fields.pop("lead_time_max"))
    return Warehouse(**fields, lead_time_days=days)


RECEIPTS = select(
    tables.expected_receipt,
    *(tables.inventory_item.c[name] for name in ("product_id", "warehouse_id", "sku")),
).join_from(tables.expected_receipt, tables.inventory_item)
"""Expected receipts; product, warehouse and SKU are their item's."""


def receipt_of(row: Any, now: datetime) -> ExpectedReceipt:
    """Return the expected receipt in a row of ``RECEIPTS``, as it looks at ``now``."""
    return ExpectedReceipt(**row._asdict()).seen(now)


async def read_reservations(database: Database, connection: AsyncConnection, ids: Collection[str]) -> list[Reservation]:
    """Return reservations with their lines; product, warehouse and SKU of a line are its item's.

    One statement, so that a reservation and its lines agree.
    """
    if not ids:
        return []
    table, line, item = tables.reservation, tables.reservation_line, tables.inventory_item
    rows = await connection.execute(
        select(
            *(*table.c, line.c.inventory_item_id, item.c.product_id, item.c.warehouse_id, item.c.sku),
            *(line.c.quantity, line.c.fulfilled_quantity, line.c.released_quantity),
        )
        .join_from(table, line, line.c.reservation_id == table.c.id)
        .join(item, item.c.id == line.c.inventory_item_id)
        .where(database.among(table.c.id, ids))
        .order_by(table.c.id, line.c.line)
    )
    names, width = table.c.keys(), len(table.c)
    found: dict[str, tuple[Row, list[ReservationLine]]] = {}
    for row in rows:
        _, lines = found.setdefault(row[0], (row[:width], []))
        lines.append(ReservationLine(**dict(zip(ReservationLine.__struct_fields__, row[width:], strict=True))))
    return [Reservation(**dict(zip(names, head, strict=True)), lines=tuple(lines)) for head, lines in found.values()]
