"""The Store on either database: the batch's transaction and the reads; its other parts have files of their own."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Select, and_, case, literal, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from adapters.sql import schema, tables
from adapters.sql.database import Database, Insert, Query
from adapters.sql.dead_letters import SqlDeadLetters
from adapters.sql.housekeeping import SqlHousekeeping
from adapters.sql.imports import SqlImports
from adapters.sql.leases import SqlLeases
from adapters.sql.outbox import SqlOutbox
from adapters.sql.paging import bad_cursor, narrowed, page, read_cursor
from adapters.sql.product_records import SqlProductRecords
from adapters.sql.reconciliation import SqlReconciliation
from adapters.sql.replays import SqlReplays
from adapters.sql.retries import SqlRetries
from adapters.sql.transaction import (
    RECEIPTS,
    SqlTransaction,
    item_of,
    product_of,
    read_reservations,
    receipt_of,
    warehouse_of,
)
from core.errors import ValidationFailed
from core.stock import (
    LOW_STOCK_THRESHOLD,
    Balance,
    ExpectedReceipt,
    Hold,
    Item,
    Reservation,
    StockTransaction,
    Supply,
    Warehouse,
)
from ports.store import (
    Condition,
    ItemFilter,
    LedgerFilter,
    Page,
    ProductStock,
    ReceiptFilter,
    ReservationFilter,
    Transaction,
)


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator["SqlStore"]:
    """Open ``postgresql://…`` or ``sqlite:///path``. Connects when first used, so a database that is away does no harm.

    Raises:
        ValidationFailed: the URL cannot be understood.
    """
    store = SqlStore(_database(url))
    try:
        yield store
    finally:
        await store.database.close()


def _database(url: str) -> Database:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValidationFailed("The store's URL cannot be read; write postgresql://user:password@host/name.") from None
    # Import only the chosen driver.
    if parsed.get_backend_name() == "sqlite":
        from adapters.sql.sqlite import SqliteDatabase

        return SqliteDatabase(parsed)
    from adapters.sql.postgresql import PostgresDatabase

    return PostgresDatabase(parsed)


class SqlStore(
    SqlLeases,
    SqlOutbox,
    SqlReplays,
    SqlDeadLetters,
    SqlRetries,
    SqlReconciliation,
    SqlProductRecords,
    SqlImports,
    SqlHousekeeping,
):
    """See ``ports.store.Store``."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Begin a batch; it commits unless it was rolled back."""
        async with self.database.writing() as connection:
            transaction = SqlTransaction(self.database, connection)
            yield transaction
            if transaction.open:
                await self.database.commit(connection, transaction.id, witness=transaction.witness)

    async def add_products(self, product_ids: Collection[str]) -> None:
        """In order of id, so that two of these never wait for each other in a circle."""
        columns = tuple(tables.product.c.keys())
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            rows = [(id, 0, 0, 0, 0, LOW_STOCK_THRESHOLD, "ACTIVE", 0, 0, "{}", now) for id in sorted(product_ids)]
            await self.database.write(connection, Insert(tables.product, columns, rows, skip_existing=True))
            await connection.commit()

    # -- reads -------------------------------------------------------------------------------------------------------

    async def products(self, product_ids: Collection[str]) -> dict[str, ProductStock]:
        """One statement, so that totals, items and supplies agree."""
        width, names = len(tables.product.c), tables.product.c.keys()
        rows: dict[str, list[Any]] = {}
        async with self.database.reading() as connection:
            for found in await self.database.fetch(connection, _PRODUCTS, ids=list(product_ids)):
                row = tuple(found.values())
                rows.setdefault(row[0], []).append(row)
        stock = {}
        for id, of_product in rows.items():
            product = product_of(dict(zip(names, of_product[0][:width], strict=True)))
            stock[id] = ProductStock(product, *_items([row[width:] for row in of_product]))
        return stock

    async def item(self, id: str) -> Item | None:
        """By primary key."""
        rows = await self._all(select(tables.inventory_item).where(tables.inventory_item.c.id == id))
        return item_of(rows[0]._asdict()) if rows else None

    async def items(self, filter: ItemFilter, *, cursor: str | None, limit: int) -> Page[Item]:
        """In order of id, which is the order of creation."""
        table = tables.inventory_item.c
        statement = select(tables.inventory_item).order_by(table.id).limit(limit + 1)
        statement = narrowed(statement, table, filter, cursor, "item")
        if filter.stock == "low":
            statement = statement.where(table.available > 0, table.available <= table.reorder_threshold)
        if filter.stock == "out":
            statement = statement.where(table.available == 0)
        rows = await self._all(statement)
        return page([item_of(row._asdict()) for row in rows], limit, "item", lambda item: item.id)

    async def find_items(self, ids: Collection[str], skus: Collection[str]) -> list[Item]:
        """One statement for each index."""
        table = tables.inventory_item
        found: dict[str, Item] = {}
        for column, values in ((table.c.id, ids), (table.c.sku, skus)):
            if values:
                rows = await self._all(select(table).where(self.database.among(column, values)))
                found |= {row.id: item_of(row._asdict()) for row in rows}
        return list(found.values())

    async def balances(self, item_ids: Collection[str], at: datetime) -> list[Balance]:
        """Find each item's last version by halving: versions have no gaps and recorded_at never falls along them."""
        entry, item = tables.stock_transaction, tables.inventory_item
        found = []
        async with self.database.reading() as connection:
            for id in sorted(item_ids):
                last = select(literal(0, BigInteger).label("low"), item.c.version.label("high")).where(item.c.id == id)
                search = last.cte("search", recursive=True)
                middle = (search.c.low + search.c.high + 1) // 2
                known = entry.c.recorded_at <= at
                step = select(case((known, middle), else_=search.c.low), case((known, search.c.high), else_=middle - 1))
                step = step.where(search.c.low < search.c.high, entry.c.inventory_item_id == id)
                search = search.union_all(step.where(entry.c.item_version == middle))
                version = select(search.c.low).where(search.c.low == search.c.high, search.c.low > 0).scalar_subquery()
                where = and_(entry.c.inventory_item_id == id, entry.c.item_version == version)
                found += [_balance(row) for row in await connection.execute(select(entry).where(where))]
        return found

    async def ledger(
        self, item_id: str, *, filter: LedgerFilter | None = None, cursor: str | None, limit: int
    ) -> Page[StockTransaction]:
        """By item and version, both directions served by one index; filters look at the rows on the way."""
        table = tables.stock_transaction
        statement = select(table).where(table.c.inventory_item_id == item_id)
        filter = filter or LedgerFilter()
        for name in ("type", "reference_type", "reference_number", "actor"):
            if (value := getattr(filter, name)) is not None:
                statement = statement.where(table.c[name] == value)
        if filter.since is not None:
            statement = statement.where(table.c.recorded_at >= filter.since)
        if filter.until is not None:
            statement = statement.where(table.c.recorded_at < filter.until)
        if cursor is not None:
            version = read_cursor(cursor, "ledger")
            if not version.isdecimal() or len(version) > 18:
                raise bad_cursor()
            statement = statement.where(table.c.item_version < int(version))
        rows = await self._all(statement.order_by(table.c.item_version.desc()).limit(limit + 1))
        entries = [StockTransaction(**row._asdict()) for row in rows]
        return page(entries, limit, "ledger", lambda entry: str(entry.item_version))

    async def reservation(self, id: str) -> Reservation | None:
        """With its lines, in one statement."""
        async with self.database.reading() as connection:
            found = await read_reservations(self.database, connection, [id])
        return found[0] if found else None

    async def reservations(self, filter: ReservationFilter, *, cursor: str | None, limit: int) -> Page[Reservation]:
        """In order of id, which is the order of creation."""
        table = tables.reservation.c
        statement = select(table.id).order_by(table.id).limit(limit + 1)
        statement = narrowed(statement, table, filter, cursor, "reservation")
        if filter.status == "CONFIRMED":
            statement = statement.where(table.status == tables.CONFIRMED)
        if filter.confirmed_before is not None:
            statement = statement.where(table.confirmed_at < filter.confirmed_before)
        async with self.database.reading() as connection:
            ids = list((await connection.execute(statement)).scalars())
            found = {each.id: each for each in await read_reservations(self.database, connection, ids)}
        return page([found[id] for id in ids], limit, "reservation", lambda reservation: reservation.id)

    async def holds(self, product_id: str) -> tuple[int, tuple[Hold, ...]]:
        """By the index of the lines that hold something; a product without holds comes as one row."""
        product, item = tables.product, tables.inventory_item
        table, line = tables.reservation, tables.reservation_line
        gone = line.c.fulfilled_quantity + line.c.released_quantity
        holding = and_(line.c.inventory_item_id == item.c.id, line.c.quantity > gone)
        held = and_(table.c.id == line.c.reservation_id, table.c.status == tables.HELD)
        rows = await self._all(
            select(product.c.revision, item.c.id, line.c.quantity - gone, table.c.expires_at)
            .outerjoin_from(product, item.join(line, holding).join(table, held), item.c.product_id == product.c.id)
            .where(product.c.id == product_id)
        )
        holds = tuple(Hold(*row[1:]) for row in rows if row[1] is not None)
        return (rows[0][0] if rows else 0), holds

    async def expected_receipt(self, id: str) -> ExpectedReceipt | None:
        """By primary key."""
        rows, now = await self._receipts(RECEIPTS.where(tables.expected_receipt.c.id == id))
        return receipt_of(rows[0], now) if rows else None

    async def expected_receipts(
        self, filter: ReceiptFilter, *, cursor: str | None, limit: int
    ) -> Page[ExpectedReceipt]:
        """In order of id, which is the order of creation."""
        table, item = tables.expected_receipt.c, tables.inventory_item.c
        statement = narrowed(RECEIPTS, table, filter, cursor, "receipt").order_by(table.id).limit(limit + 1)
        for name in ("product_id", "sku", "warehouse_id"):
            if (value := getattr(filter, name)) is not None:
                statement = statement.where(item[name] == value)
        rows, now = await self._receipts(statement, overdue=filter.overdue)
        return page([receipt_of(row, now) for row in rows], limit, "receipt", lambda receipt: receipt.id)

    async def _receipts(self, statement: Select[Any], *, overdue: bool | None = None) -> tuple[Sequence[Any], datetime]:
        """Read rows and the clock that says which of them are overdue."""
        table = tables.expected_receipt.c
        async with self.database.reading() as connection:
            now, _ = await self.database.clock(connection)
            if overdue is True:
                statement = statement.where(table.outstanding_quantity > tables.NOTHING, table.expected_at <= now)
            elif overdue is False:
                statement = statement.where((table.outstanding_quantity == tables.NOTHING) | (table.expected_at > now))
            return (await connection.execute(statement)).all(), now

    async def due(self, limit: int, *, skip: Collection[str] = ()) -> list[str]:
        """By the index of what is held."""
        table = tables.reservation.c
        async with self.database.reading() as connection:
            now, _ = await self.database.clock(connection)
            over = select(table.id).where(table.status == tables.HELD, table.expires_at <= now)
            if skip:
                over = over.where(~self.database.among(table.id, skip))
            return list((await connection.execute(over.order_by(table.expires_at).limit(limit))).scalars())

    async def warehouses(self) -> tuple[Warehouse, ...]:
        """All of them: there are few."""
        table = tables.warehouse
        return tuple(
            warehouse_of(row._asdict()) for row in await self._all(select(table).order_by(table.c.priority, table.c.id))
        )

    async def _all(self, statement: Select[Any]) -> Sequence[Any]:
        async with self.database.reading() as connection:
            found: Sequence[Any] = (await connection.execute(statement)).all()
            return found

    async def ping(self) -> None:
        """The cheapest question."""
        async with self.database.reading() as connection:
            await connection.scalar(select(literal(1)))

    async def condition(self) -> Condition:
        """Ask the dialect."""
        async with self.database.reading() as connection:
            return await self.database.condition(connection)

    async def pending_migrations(self) -> list[str]:
        """See ``schema``."""
        async with self.database.reading() as connection:
            return await schema.pending(connection)

    async def migrate(self) -> list[str]:
        """See ``schema``."""
        async with self.database.migrating() as connection:
            return await schema.migrate(connection)


@Query
def _PRODUCTS(database: Database) -> Select[Any]:  # noqa: N802 - a query is a constant
    table, item = tables.product, tables.inventory_item
    # Names of their own: product and item have columns of one name.
    columns = (column.label(f"item_{column.name}") for column in item.c)
    statement = select(table, *columns).outerjoin_from(table, item, item.c.product_id == table.c.id)
    return _with_supplies(statement).where(database.listed(table.c.id, "ids")).order_by(item.c.id)


def _with_supplies(statement: Select[Any]) -> Select[Any]:
    """Add to items what is still to come of them: for each a row, or a row without."""
    item, receipt = tables.inventory_item.c, tables.expected_receipt
    still_to_come = and_(receipt.c.inventory_item_id == item.id, receipt.c.outstanding_quantity > tables.NOTHING)
    supply = (receipt.c.outstanding_quantity, receipt.c.expected_at)
    return statement.outerjoin(receipt, still_to_come).add_columns(*supply)


def _items(rows: Sequence[Any]) -> tuple[tuple[Item, ...], tuple[Supply, ...]]:
    """Read rows of an item's columns and its supply's; an item comes once for each of its supplies."""
    names = tables.inventory_item.c.keys()
    width = len(names)
    items = {row[0]: row for row in rows if row[0] is not None}
    supplies = (Supply(row[0], row[width], row[width + 1]) for row in rows if row[width] is not None)
    return tuple(item_of(dict(zip(names, row[:width], strict=True))) for row in items.values()), tuple(supplies)


def _balance(row: Any) -> Balance:
    return Balance(
        inventory_item_id=row.inventory_item_id,
        sku=row.sku,
        product_id=row.product_id,
        warehouse_id=row.warehouse_id,
        on_hand=row.on_hand_after,
        reserved=row.reserved_after,
        available=row.available_after,
        version=row.item_version,
        transaction_id=row.id,
        recorded_at=row.recorded_at,
    )
