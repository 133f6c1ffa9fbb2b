"""Stores whose records are made wrong on purpose, and what is to be found there."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
from audit import select
from stores import at_work, empty, migrated, only, submit

from core.errors import InventoryError
from core.operations import (
    CreateItem,
    CreateWarehouse,
    Expect,
    Receive,
    ReceiveBody,
    ReceiveExpected,
    Reserve,
    ReserveLine,
    Ship,
)
from core.stock import ExpectedReceipt, Item
from core.writing.writer import Writer
from ports.store import Store


class Place(NamedTuple):
    """A store and where it is."""

    url: str
    store: Store

    async def alter(self, *statements: str) -> None:
        """Change it behind its back."""
        await alter(self.url, *statements)

    async def select(self, statement: str) -> list[dict[str, Any]]:
        """What a statement finds in it."""
        return (await select(self.url, statement))[0]


async def alter(url: str, *statements: str) -> None:
    """Run statements that no CHECK refuses."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
            for statement in ("PRAGMA ignore_check_constraints = ON", *statements):
                file.execute(statement)
        return
    server = await asyncpg.connect(url)
    for statement in statements:
        await server.execute(statement)
    await server.close()


@asynccontextmanager
async def unchecked(url: str) -> AsyncIterator[Place]:
    """Open an empty store without CHECKs."""
    async with migrated(url) as store:
        if not url.startswith("sqlite"):
            await empty(url)
            checks = "SELECT conrelid::regclass, conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0"
            for row in (await select(url, checks))[0]:
                await alter(url, f"ALTER TABLE {row['conrelid']} DROP CONSTRAINT {row['conname']}")
        yield Place(url, store)


LAST = 10
"""The sequence of the last event of a product in these tests."""


class Plant(NamedTuple):
    """Something that is made wrong about a product, and the finding that it is: about its first item, or itself.

    The item has four versions, the last with 13 on hand and 3 of them reserved. Another, ``{second}``, has 7 more, 3 of
    which came of an expected receipt of 40; its findings are about that item.
    """

    sql: str
    kind: str | None = None
    expected: dict[str, int] | None = None
    found: dict[str, int] | None = None


BALANCE = {"quantityOnHand": 13, "quantityAvailable": 10, "version": 4}
PLANTS = {
    "a balance": Plant(
        "UPDATE inventory_item SET on_hand = 14, available = 11 WHERE id = '{item}';"
        "UPDATE product SET total_on_hand = 21, total_available = 18 WHERE id = '{product}'",
        *("LEDGER_MISMATCH", BALANCE, {"quantityOnHand": 14, "quantityAvailable": 11, "version": 4}),
    ),
    "a version": Plant(
        "UPDATE inventory_item SET version = 5 WHERE id = '{item}'", "LEDGER_MISMATCH", {"version": 4}, {"version": 5}
    ),
    "the last row": Plant(
        "DELETE FROM stock_transaction WHERE inventory_item_id = '{item}' AND item_version = 4",
        *("LEDGER_MISMATCH", {"quantityOnHand": 15, "quantityAvailable": 12, "version": 3}, BALANCE),
    ),
    "every row": Plant(
        "DELETE FROM stock_transaction WHERE inventory_item_id = '{item}'",
        *("LEDGER_MISMATCH", {}, {**BALANCE, "quantityReserved": 3}),
    ),
    "a change": Plant(
        "UPDATE stock_transaction SET on_hand_change = 6 WHERE inventory_item_id = '{item}' AND item_version = 2",
        *("LEDGER_MISMATCH", {"version": 2, "quantityOnHand": 16}, {"version": 2, "quantityOnHand": 15}),
    ),
    "a reserved change": Plant(
        "UPDATE stock_transaction SET reserved_change = 1 WHERE inventory_item_id = '{item}' AND item_version = 1",
        *("LEDGER_MISMATCH", {"version": 1, "quantityReserved": 1}, {"version": 1, "quantityReserved": 0}),
    ),
    "a balance of the past": Plant(
        "UPDATE stock_transaction SET on_hand_after = 99 WHERE inventory_item_id = '{item}' AND item_version = 2",
        "LEDGER_MISMATCH",
    ),
    "the first row": Plant(
        "DELETE FROM stock_transaction WHERE inventory_item_id = '{item}' AND item_version = 1",
        *("VERSION_GAP", {"version": 1}, {"version": 2}),
    ),
    "rows between": Plant(
        "DELETE FROM stock_transaction WHERE inventory_item_id = '{item}' AND item_version IN (2, 3)",
        *("VERSION_GAP", {"version": 2}, {"version": 4}),
    ),
    "a line gone": Plant(
        "DELETE FROM reservation_line WHERE inventory_item_id = '{item}'",
        *("RESERVED_MISMATCH", {"quantityReserved": 0}, {"quantityReserved": 3}),
    ),
    "a line of more": Plant(
        "UPDATE reservation_line SET quantity = 5 WHERE inventory_item_id = '{item}'",
        *("RESERVED_MISMATCH", {"quantityReserved": 5}, {"quantityReserved": 3}),
    ),
    "a line let go": Plant(
        "UPDATE reservation_line SET released_quantity = 1 WHERE inventory_item_id = '{item}'",
        *("RESERVED_MISMATCH", {"quantityReserved": 2}, {"quantityReserved": 3}),
    ),
    "a reservation ended": Plant(
        "UPDATE reservation SET status = 'EXPIRED'"
        " WHERE id IN (SELECT reservation_id FROM reservation_line WHERE inventory_item_id = '{item}')",
        *("RESERVED_MISMATCH", {"quantityReserved": 0}, {"quantityReserved": 3}),
    ),
    "totals": Plant(
        "UPDATE product SET total_on_hand = -1, total_available = 0 WHERE id = '{product}'",
        "TOTALS_MISMATCH",
        {"quantityOnHand": 20, "quantityAvailable": 17},
        {"quantityOnHand": -1, "quantityAvailable": 0},
    ),
    "a total": Plant(
        "UPDATE product SET total_reserved = 4 WHERE id = '{product}'",
        *("TOTALS_MISMATCH", {"quantityReserved": 3}, {"quantityReserved": 4}),
    ),
    "what came": Plant(
        "UPDATE expected_receipt SET received_quantity = 4 WHERE inventory_item_id = '{second}'",
        *("RECEIVED_MISMATCH", {"receivedQuantity": 3}, {"receivedQuantity": 4}),
    ),
    "where it came from": Plant(
        "UPDATE stock_transaction SET expected_receipt_id = NULL WHERE inventory_item_id = '{second}'",
        *("RECEIVED_MISMATCH", {"receivedQuantity": 0}, {"receivedQuantity": 3}),
    ),
    "what came long ago": Plant(
        "UPDATE expected_receipt SET received_quantity = 4, outstanding_quantity = 0, status = 'RECEIVED'"
        " WHERE inventory_item_id = '{second}'; UPDATE product SET total_expected = 0 WHERE id = '{product}'",
        *("RECEIVED_MISMATCH", {"receivedQuantity": 3}, {"receivedQuantity": 4}),
    ),
    "what is to come": Plant(
        "UPDATE expected_receipt SET outstanding_quantity = 36 WHERE inventory_item_id = '{second}'",
        *("TOTALS_MISMATCH", {"quantityExpected": 36}, {"quantityExpected": 37}),
    ),
    "an event between": Plant(
        "DELETE FROM outbox WHERE product_id = '{product}' AND sequence = 3",
        *("SEQUENCE_GAP", {"sequence": 3}, {"sequence": 4}),
    ),
    "the last event": Plant(
        f"DELETE FROM outbox WHERE product_id = '{{product}}' AND sequence = {LAST};"
        # It is the one of what came to the second item; that nobody was told of that is a finding of its own.
        f"UPDATE stock_transaction SET available_after = 4 WHERE inventory_item_id = '{{second}}' AND item_version = 2;"
        "UPDATE inventory_item SET available = 4 WHERE id = '{second}';"
        "UPDATE product SET total_available = 14 WHERE id = '{product}'",
        *("SEQUENCE_GAP", {"sequence": LAST - 1}, {"sequence": LAST}),
    ),
    "an event never made": Plant(
        f"DELETE FROM outbox WHERE product_id = '{{product}}' AND sequence = {LAST};"
        f"UPDATE product SET sequence = {LAST - 1} WHERE id = '{{product}}'",
        *("EVENT_MISSING", {"version": 2, "quantityAvailable": 7}, {"version": 2, "quantityAvailable": 4}),
    ),
    "an event that waits": Plant(
        "UPDATE outbox SET created_at = '2026-01-01T00:00:00.000000+00:00' WHERE product_id = '{product}'"
        " AND sequence = 1",
        *("EVENT_STUCK", {}, {"sequence": 1}),
    ),
    "a sequence": Plant(
        "UPDATE product SET sequence = sequence + 1 WHERE id = '{product}'",
        *("SEQUENCE_GAP", {"sequence": LAST}, {"sequence": LAST + 1}),
    ),
    "events of long ago": Plant("DELETE FROM outbox WHERE product_id = '{product}' AND sequence < 3"),
    "events all of long ago": Plant("DELETE FROM outbox WHERE product_id = '{product}'"),
    "nothing": Plant("SELECT 1"),
}
IN_HISTORY = {"a change", "a reserved change", "a balance of the past", "the first row", "rows between"} | {
    *("an event between", "what came long ago", "an event never made")
}


async def plant(place: Place, *names: str) -> dict[str, str]:
    """Make a product for each of these, make it wrong, and return the subjects of the findings by name."""
    subjects = {}
    async with at_work(place.store) as writer:
        for warehouse in ("wh_1", "wh_2"):
            await submit(writer, CreateWarehouse(id=warehouse, name=warehouse))
        made = await asyncio.gather(*(_product(writer, f"prod {name}") for name in names))
    for name, (item, second) in zip(names, made, strict=True):
        sql = PLANTS[name].sql.format(item=item.id, second=second.id, product=item.product_id)
        await place.alter(*sql.split(";"))
        about = {"TOTALS": item.product_id, "SEQUENCE": item.product_id, "RECEIVED": second.id}
        about |= {"EVENT_STUCK": item.product_id, "EVENT_MISSING": second.id}
        kind = PLANTS[name].kind or ""
        subjects[name] = about.get(kind, about.get(kind.split("_")[0], item.id))
    return subjects


async def _product(writer: Writer, product: str) -> tuple[Item, Item]:
    """A product of two items, with what a ``Plant`` says of each."""
    created = CreateItem(sku=product, product_id=product, warehouse_id="wh_1", initial_quantity=10)
    item = only(await submit(writer, created))
    assert isinstance(item, Item)
    line = ReserveLine(inventory_item_id=item.id, quantity=3)
    other = CreateItem(sku=product, product_id=product, warehouse_id="wh_2", initial_quantity=4)
    second = only(await submit(writer, other))
    assert isinstance(second, Item)
    expect = Expect(inventory_item_id=second.id, quantity=40, expected_at=datetime.now(UTC) + timedelta(days=1))
    receipt = only(await submit(writer, expect))
    assert isinstance(receipt, ExpectedReceipt)
    for operation in (
        Receive(inventory_item_id=item.id, quantity=5),
        Reserve(lines=(line,)),
        Ship(inventory_item_id=item.id, quantity=2),
        ReceiveExpected(receipt_id=receipt.id, body=ReceiveBody(quantity=3)),
    ):
        outcome = only(await submit(writer, operation))
        assert not isinstance(outcome, InventoryError)
    return item, second
