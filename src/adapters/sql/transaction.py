"""One batch's transaction: locks, reads under the locks, and the book written back in one statement."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, CompoundSelect, Select, and_, literal_column, select, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import tables
from adapters.sql.changes import KEY, changes_of
from adapters.sql.comparisons import came, of_products
from adapters.sql.database import Asked, Database, Query, Row
from adapters.sql.faults import is_left_behind
from core.operations import IdempotencyKey, StoredAnswer
from core.rules.book import Book, Evidence
from core.stock import (
    Catalog,
    ExpectedReceipt,
    Item,
    LeadTime,
    Product,
    Reservation,
    ReservationLine,
    Warehouse,
)
from ports.store import Wanted

_DUE_MAX = 500
_Scope = tuple[str, str, str]


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
        named = {"items": list(item_ids), "reservations": list(reservation_ids), "receipts": list(receipt_ids)}
        return await self._found(_BEHIND, **named)

    async def products_of(self, skus: Collection[str]) -> Mapping[str, set[str]]:
        """By the index on SKU and warehouse."""
        return await self._found(_BEHIND_SKUS, skus=list(skus))

    async def _found(self, query: Query, **named: list[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in await self._database.fetch(self._connection, query, **named):
            found.setdefault(row["name"], set()).add(row["product_id"])
        return found

    async def lock(self, product_ids: Collection[str], *, wait: bool) -> set[str]:
        """In order of id, so that two batches never wait for each other in a circle."""
        return await self._database.lock_products(self._connection, sorted(product_ids), wait=wait)

    async def load(self, product_ids: Collection[str], wanted: Wanted) -> Book:
        """One look for what can be told by name, then what belongs to that."""
        asked = list(_asked(product_ids, wanted))
        look = await self._database.look(self._connection, *asked)
        self.id = look.transaction_id
        rows = dict(zip((query for query, _ in asked), look.rows, strict=True))
        products = {row["id"]: product_of(row) for row in rows[_PRODUCTS]}
        now = max([look.now, *(product.updated_at for product in products.values())])
        due = {row["id"] for row in rows[_DUE]}
        reservations = await read_reservations(self._database, self._connection, wanted.reservation_ids | due)
        evidence = await self._evidence(wanted.evidence)
        receipt_ids = wanted.receipt_ids.union(*(each.came for each in evidence.values()))
        receipts = await self._receipts(receipt_ids, products.values(), now)
        others = {line.inventory_item_id for reservation in reservations for line in reservation.lines}
        others |= {receipt.inventory_item_id for receipt in receipts}
        named = [row for query in (_ITEMS, _OF_WHOLE_PRODUCTS, _OF_SKUS) for row in rows.get(query, ())]
        if missing := others - {row["id"] for row in named}:
            named += await self._database.fetch(self._connection, _ITEMS, ids=list(missing))
        items = [item_of(row) for row in {row["id"]: row for row in named}.values()]
        return Book(
            now=now,
            products=products,
            items={item.id: item for item in items},
            reservations={reservation.id: reservation for reservation in reservations},
            receipts={receipt.id: receipt for receipt in receipts},
            warehouses={row["id"]: warehouse_of(row) for row in rows.get(_WAREHOUSES, ()) or rows.get(_EVERYWHERE, ())},
            events_seen={row["event_id"] for row in rows.get(_SEEN, ())},
            answers=_answers(rows.get(_ANSWERS, ()), {key.scope for key in wanted.keys}),
            evidence=evidence,
        )

    async def _evidence(self, product_ids: Collection[str]) -> dict[str, Evidence]:
        """As reconciliation finds it, but under the locks: of these products nothing is on its way."""
        if not product_ids:
            return {}
        found = await of_products(self._database, self._connection, product_ids)
        came_of = await came(self._database, self._connection, product_ids)
        return {
            id: Evidence(tuple(each for each in found if each.product_id == id), came_of.get(id, {}))
            for id in product_ids
        }

    async def _receipts(
        self, ids: Collection[str], products: Iterable[Product], now: datetime
    ) -> list[ExpectedReceipt]:
        """Ask only where something is known to be expected, or named."""
        receipt, item, among = tables.expected_receipt.c, tables.inventory_item.c, self._database.among
        asked: list[ColumnElement[bool]] = []
        if expecting := [product.id for product in products if product.total_expected]:
            asked.append(and_(among(item.product_id, expecting), receipt.outstanding_quantity > tables.NOTHING))
        if ids:
            asked.append(among(receipt.id, ids))
        found: dict[str, ExpectedReceipt] = {}
        for where in asked:
            rows = await self._connection.execute(RECEIPTS.where(where))
            found |= {row.id: receipt_of(row, now) for row in rows}
        return list(found.values())

    async def save(self, book: Book, answers: Sequence[StoredAnswer]) -> bool:
        """In one statement, where the database has such; see ``changes.py``."""
        self.witness = book.ledger[0].id if book.ledger else None
        changes = changes_of(book, answers)
        try:
            counts = await self._database.write(self._connection, *changes)
        except DBAPIError as error:
            if is_left_behind(error):
                return False
            raise
        return all(count == len(change.rows) for change, count in zip(changes, counts, strict=True))

    async def rollback(self) -> None:
        """Give everything up."""
        self.open = False
        await self._connection.rollback()


@Query
def _BEHIND(database: Database) -> CompoundSelect[Any]:  # noqa: N802 - a query is a constant
    item, line, receipt = tables.inventory_item.c, tables.reservation_line.c, tables.expected_receipt.c
    return union_all(
        select(item.id.label("name"), item.product_id).where(database.listed(item.id, "items")),
        select(line.reservation_id, item.product_id).where(
            database.listed(line.reservation_id, "reservations"), item.id == line.inventory_item_id
        ),
        select(receipt.id, item.product_id).where(
            database.listed(receipt.id, "receipts"), item.id == receipt.inventory_item_id
        ),
    )


@Query
def _BEHIND_SKUS(database: Database) -> Select[Any]:  # noqa: N802
    item = tables.inventory_item.c
    return select(item.sku.label("name"), item.product_id).where(database.listed(item.sku, "skus")).distinct()


_PRODUCTS = Query(lambda database: select(tables.product).where(database.listed(tables.product.c.id, "ids")))
_ITEMS = Query(lambda database: select(tables.inventory_item).where(database.listed(tables.inventory_item.c.id, "ids")))


@Query
def _DUE(database: Database) -> Select[Any]:  # noqa: N802
    held, line, item = tables.reservation.c, tables.reservation_line.c, tables.inventory_item.c
    # The longest over first: after a long outage there may be any number, and the next batch takes the rest.
    # Materialised: hardly any hold is over, and a planner that does not know it would start from the item's lines,
    # of which a product in demand has tens of thousands.
    over = select(held.id, held.expires_at).where(held.status == tables.HELD, held.expires_at <= database.now())
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


@Query
def _OF_WHOLE_PRODUCTS(database: Database) -> Select[Any]:  # noqa: N802
    # With other products' items of their SKUs: a transfer must see that its place is taken.
    own, item = tables.inventory_item.alias().c, tables.inventory_item
    return select(item).where(item.c.sku.in_(select(own.sku).where(database.listed(own.product_id, "ids"))))


_OF_SKUS = Query(
    lambda database: select(tables.inventory_item).where(database.listed(tables.inventory_item.c.sku, "skus"))
)
_SEEN = Query(lambda database: select(tables.inbox.c.event_id).where(database.listed(tables.inbox.c.event_id, "ids")))
_WAREHOUSES = Query(lambda database: select(tables.warehouse).where(database.listed(tables.warehouse.c.id, "ids")))
_EVERYWHERE = Query(lambda _: select(tables.warehouse))


def _asked(product_ids: Collection[str], wanted: Wanted) -> Iterator[Asked]:
    """Yield the queries that a batch needs; most need the first four."""
    yield _PRODUCTS, {"ids": list(product_ids)}
    yield _DUE, {"products": list(product_ids)}
    yield _ITEMS, {"ids": list(wanted.item_ids)}
    if wanted.keys:
        issuers, subjects, keys = map(list, zip(*(key.scope for key in wanted.keys), strict=True))
        yield _ANSWERS, {"issuers": issuers, "subjects": subjects, "keys": keys}
    if wanted.whole_products:
        yield _OF_WHOLE_PRODUCTS, {"ids": list(wanted.whole_products)}
    if skus := wanted.skus | {sku for sku, _ in wanted.places}:
        yield _OF_SKUS, {"skus": list(skus)}
    if wanted.all_warehouses:
        yield _EVERYWHERE, {}
    elif wanted.warehouse_ids:
        yield _WAREHOUSES, {"ids": list(wanted.warehouse_ids)}
    if wanted.event_ids:
        yield _SEEN, {"ids": list(wanted.event_ids)}


def _answers(rows: Iterable[dict[str, Any]], scopes: set[_Scope]) -> dict[_Scope, StoredAnswer]:
    """Read rows, of which some may be of other scopes than those that were asked for: SQLite finds the parts apart."""
    keys = ((IdempotencyKey(*(row[name] for name in KEY)), row["answer"]) for row in rows)
    return {key.scope: StoredAnswer(key, answer) for key, answer in keys if key.scope in scopes}


def product_of(fields: dict[str, Any]) -> Product:
    """Return the product in a row of ``product``."""
    return Product(**fields | {"catalog": msgspec.json.decode(fields["catalog"], type=Catalog)})


def item_of(fields: dict[str, Any]) -> Item:
    """Return the item in a row of ``inventory_item``."""
    return Item(**fields | {"metadata": msgspec.json.decode(fields["metadata"])})


def warehouse_of(fields: dict[str, Any]) -> Warehouse:
    """Return the warehouse in a row of ``warehouse``."""
    rest = dict(fields)
    days = LeadTime(rest.pop("lead_time_min"), rest.pop("lead_time_max"))
    return Warehouse(**rest, lead_time_days=days)


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
    rows = [tuple(row.values()) for row in await database.fetch(connection, _RESERVATIONS, ids=list(ids))]
    names, width = tables.reservation.c.keys(), len(tables.reservation.c)
    found: dict[str, tuple[Row, list[ReservationLine]]] = {}
    for row in rows:
        _, lines = found.setdefault(row[0], (row[:width], []))
        lines.append(ReservationLine(**dict(zip(ReservationLine.__struct_fields__, row[width:], strict=True))))
    return [Reservation(**dict(zip(names, head, strict=True)), lines=tuple(lines)) for head, lines in found.values()]


@Query
def _RESERVATIONS(database: Database) -> Select[Any]:  # noqa: N802
    table, line, item = tables.reservation, tables.reservation_line, tables.inventory_item
    return (
        select(
            *(*table.c, line.c.inventory_item_id, item.c.product_id, item.c.warehouse_id, item.c.sku),
            *(line.c.quantity, line.c.fulfilled_quantity, line.c.released_quantity),
        )
        .join_from(table, line, line.c.reservation_id == table.c.id)
        .join(item, item.c.id == line.c.inventory_item_id)
        .where(database.listed(table.c.id, "ids"))
        .order_by(table.c.id, line.c.line)
    )
