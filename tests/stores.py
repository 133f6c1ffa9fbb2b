"""Stores for tests: migrated, opened through everybody's door, and filled by the shortest way there is."""

import asyncio
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import asyncpg
import msgspec
from sqlalchemy import select

from adapters.memory import MemoryCatalog
from adapters.registry import connect
from adapters.sql import tables
from adapters.sql.store import SqlStore
from core.catalog.products import Products
from core.operations import (
    CreateItem,
    CreateWarehouse,
    EventPolicy,
    IdempotencyKey,
    Operation,
    Outcome,
    Request,
    Reserve,
    ReserveLine,
    Result,
    StoredAnswer,
)
from core.rules.book import Book, Cause
from core.rules.decisions import decide
from core.stock import Item, Reservation
from core.writing.writer import Writer
from ports.broker import Message
from ports.dead_letters import DeadLetter
from ports.store import Store, Transaction, Wanted

T = TypeVar("T")
CAUSE = Cause("clerk", "corr-1")


@asynccontextmanager
async def migrated(url: str) -> AsyncIterator[Store]:
    """Open a store and bring its schema up to date."""
    if url.startswith("sqlite:////"):
        _put_blank(Path(url.removeprefix("sqlite:///")))
    async with connect("store", url) as store:
        await store.migrate()
        yield store


def _put_blank(path: Path) -> None:
    """Put a migrated SQLite database where there is none; a copy costs a twentieth of the migrations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), path.open("xb") as file:
        file.write(_blank())


@cache
def _blank() -> bytes:

    async def make(url: str) -> None:
        async with connect("store", url) as store:
            await store.migrate()

    with TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, make(f"sqlite:///{folder}/blank.db")).result()
        return Path(folder, "blank.db").read_bytes()


async def empty(url: str) -> None:
    """Empty every table of a PostgreSQL database; ten times faster than a new database."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "; ".join(f"DELETE FROM {table.name}" for table in reversed(tables.metadata.sorted_tables))
    )
    await connection.close()


@asynccontextmanager
async def batch(store: Store, *product_ids: str, **wanted: Any) -> AsyncIterator[tuple[Transaction, Book]]:
    """Begin a transaction that has locked and loaded these products; it is up to the block to save."""
    async with store.transaction() as transaction:
        await transaction.lock(product_ids, wait=True)
        yield transaction, await transaction.load(product_ids, Wanted(**wanted))


async def answers(store: Store, *keys: IdempotencyKey) -> list[StoredAnswer]:
    """Return what is stored under the scopes of these keys."""
    async with store.transaction() as transaction:
        return [*(await transaction.load((), Wanted(keys=set(keys)))).answers.values()]


async def carry_out(
    store: Store, *operations: Operation, product: str = "prod_1", answers: Collection[StoredAnswer] = ()
) -> list[Result]:
    """Decide operations on one product, with everything of it loaded, and commit them."""
    await store.add_products([product])
    async with store.transaction() as transaction:
        await transaction.lock([product], wait=True)
        warehouses = {"wh_1", "wh_2", "wh_3"}
        book = await transaction.load([product], Wanted(whole_products={product}, warehouse_ids=warehouses))
        results = [decide(book, operation, CAUSE) for operation in operations]
        assert await transaction.save(book, list(answers))
    return results


async def stocked(
    store: Store, quantity: int = 10, *, sku: str = "WIDGET", product: str = "prod_1", warehouse: str = "wh_1"
) -> Item:
    """Return a new item with so much stock, in a warehouse that is made when it is missing."""
    if warehouse not in {known.id for known in await store.warehouses()}:
        await carry_out(store, CreateWarehouse(id=warehouse, name=f"House {warehouse}"), product=product)
    operation = CreateItem(sku=sku, product_id=product, warehouse_id=warehouse, initial_quantity=quantity)
    (item,) = await carry_out(store, operation, product=product)
    assert isinstance(item, Item)
    return item


async def hold(store: Store, *items: Item, **words: Any) -> Reservation:
    """Reserve one unit of each item."""
    lines = tuple(ReserveLine(inventory_item_id=item.id, quantity=1) for item in items)
    async with batch(store, *{item.product_id for item in items}, item_ids={item.id for item in items}) as (
        transaction,
        book,
    ):
        held = decide(book, Reserve(lines=lines, **words), CAUSE)
        assert await transaction.save(book, [])
    assert isinstance(held, Reservation)
    return held


@asynccontextmanager
async def at_work(store: Store) -> AsyncIterator[Writer]:
    """Run a writer on a store."""
    writer = Writer(store)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


def unasked(store: Store, making: EventPolicy) -> Products:
    """Return a judge that takes every product as its events have it: there is no Product Service to ask."""
    return Products(MemoryCatalog(), store, policy="off", making=making)


def key(name: str, fingerprint: bytes = b"the body") -> IdempotencyKey:
    """Return one caller's key of this name."""
    return IdempotencyKey("https://issuer", "shop", name, fingerprint)


def request(*operations: Operation, key: IdempotencyKey | None = None) -> Request:
    """Return the clerk's request for these operations."""
    return Request(operations=operations, actor="clerk", correlation_id="corr-1", key=key)


async def submit(
    writer: Writer, *operations: Operation, key: IdempotencyKey | None = None, timeout: float = 30.0
) -> list[Outcome]:
    """Submit one request and return the outcomes of its operations."""
    return await writer.submit(request(*operations, key=key), timeout=timeout)


async def positions(store: Store) -> dict[tuple[str, int], int]:
    """Return the published events' positions by product and sequence; the port does not read them yet."""
    assert isinstance(store, SqlStore)
    outbox = tables.outbox.c
    statement = select(outbox.product_id, outbox.sequence, outbox.position).where(outbox.position.is_not(None))
    async with store.database.reading() as connection:
        return {(product, sequence): place for product, sequence, place in await connection.execute(statement)}


async def dead_letters(store: Store) -> list[DeadLetter]:
    """Return what is kept of failed messages, the latest failure first, with the bodies, which lists leave out."""
    assert isinstance(store, SqlStore)
    letter = tables.dead_letter
    latest = select(letter).order_by(letter.c.last_failed_at.desc(), letter.c.id)
    async with store.database.reading() as connection:
        return [_dead_letter(row) for row in await connection.execute(latest)]


def _dead_letter(row: Any) -> DeadLetter:
    names = {"id": "message_id", "type": "event_type"}
    words = ("id", "exchange", "routing_key", "body", "type", "correlation_id")
    message = Message(
        **{name: getattr(row, names.get(name, name)) for name in words},
        headers=msgspec.json.decode(row.headers, type=dict[str, str]),
    )
    same = ("fingerprint", "code", "detail", "stack", "attempts", "cause", "event_id", "product_id")
    skus = msgspec.json.decode(row.skus, type=tuple[str, ...])
    return DeadLetter(message=message, skus=skus, **{name: getattr(row, name) for name in same})


def only(values: Collection[T]) -> T:
    """Return the one value there is."""
    (value,) = values
    return value
