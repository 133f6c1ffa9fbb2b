"""What a store holds, read with plain SQL past all of our own code, and whether it adds up."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import asyncpg
import msgspec

Row = dict[str, Any]
_TABLES = (
    "product",
    "inventory_item",
    "stock_transaction",
    "reservation",
    "reservation_line",
    "expected_receipt",
    "outbox",
    "idempotency_key",
)


class Books:
    """Every row of a store, by table."""

    def __init__(self, tables: dict[str, list[Row]]) -> None:
        self.products = tables["product"]
        self.items = tables["inventory_item"]
        self.ledger = sorted(
            tables["stock_transaction"], key=lambda row: (row["inventory_item_id"], row["item_version"])
        )
        self.reservations = {row["id"]: row for row in tables["reservation"]}
        self.lines = tables["reservation_line"]
        self.receipts = {row["id"]: row for row in tables["expected_receipt"]}
        self.answers = tables["idempotency_key"]
        self.outbox = sorted(tables["outbox"], key=lambda row: (row["product_id"], row["sequence"]))

    def events(self, type: str) -> list[Row]:
        """The outbox rows of one event type."""
        return [row for row in self.outbox if row["event_type"] == type]

    def granted(self) -> dict[str, dict[str, int]]:
        """By reservation: the units of each item it was given."""
        granted: dict[str, dict[str, int]] = defaultdict(dict)
        for line in self.lines:
            granted[line["reservation_id"]][line["inventory_item_id"]] = line["quantity"]
        return granted

    def check(self) -> None:
        """Fail unless ledger, balances, reservations, receipts, totals and events tell the same story."""
        self._check_ledger()
        self._check_reservations()
        self._check_receipts()
        self._check_totals()
        self._check_events()

    def _check_ledger(self) -> None:
        """Every version of an item is one row, each row's balances follow from the row before, and only a COUNT finds
        less than was promised.
        """
        assert len({row["id"] for row in self.ledger}) == len(self.ledger)
        by_item = _grouped(self.ledger, "inventory_item_id")
        for item in self.items:
            rows = by_item.pop(item["id"])
            assert [row["item_version"] for row in rows] == list(range(1, item["version"] + 1))
            on_hand = reserved = shortfall = 0
            for row in rows:
                on_hand += row["on_hand_change"]
                reserved += row["reserved_change"]
                assert (row["on_hand_after"], row["reserved_after"]) == (on_hand, reserved)
                assert min(on_hand, reserved) >= 0
                before, shortfall = shortfall, max(reserved - on_hand, 0)
                assert shortfall <= before or row["type"] == "COUNT"
            assert (item["on_hand"], item["reserved"], item["shortfall"]) == (on_hand, reserved, shortfall)
            free = on_hand - reserved - item["safety_stock"] if item["status"] == "ACTIVE" else 0
            assert item["available"] == max(free, 0)
        assert not by_item

    def _check_reservations(self) -> None:
        """What items have reserved is what open reservations hold; each has its own lines and its own ledger rows."""
        held: dict[str, int] = defaultdict(int)
        for line in self.lines:
            left = line["quantity"] - line["fulfilled_quantity"] - line["released_quantity"]
            assert left == 0 or self.reservations[line["reservation_id"]]["status"] in ("HELD", "CONFIRMED")
            held[line["inventory_item_id"]] += left
        assert {item["id"]: item["reserved"] for item in self.items} == {
            item["id"]: held[item["id"]] for item in self.items
        }
        promised = [row for row in self.ledger if row["type"] == "RESERVATION"]
        assert sorted(
            (row["reservation_id"], row["inventory_item_id"], row["reserved_change"]) for row in promised
        ) == (sorted((line["reservation_id"], line["inventory_item_id"], line["quantity"]) for line in self.lines))
        assert self.granted().keys() == self.reservations.keys()

    def _check_receipts(self) -> None:
        """What came of an expected receipt is in the ledger rows that name it; what is to come follows from that."""
        came: dict[str, int] = defaultdict(int)
        for row in self.ledger:
            if row["expected_receipt_id"] is not None:
                receipt = self.receipts[row["expected_receipt_id"]]
                assert (row["type"], row["inventory_item_id"]) == ("RECEIPT", receipt["inventory_item_id"])
                came[receipt["id"]] += row["on_hand_change"]
        for id, receipt in self.receipts.items():
            assert receipt["received_quantity"] == came[id]
            missing = receipt["quantity"] - came[id]
            if receipt["status"] in ("EXPECTED", "PARTIALLY_RECEIVED"):
                assert missing == receipt["outstanding_quantity"] > 0
                assert (receipt["status"] == "EXPECTED") == (came[id] == 0)
            else:
                assert receipt["outstanding_quantity"] == 0
                assert (receipt["status"] == "CANCELLED") == (came[id] == 0)

    def _check_totals(self) -> None:
        """A product's totals are the sums over its items, and over what is to come of them."""
        by_product = _grouped(self.items, "product_id")
        to_come: dict[str, int] = defaultdict(int)
        for receipt in self.receipts.values():
            to_come[receipt["inventory_item_id"]] += receipt["outstanding_quantity"]
        for product in self.products:
            own = by_product.get(product["id"], [])
            assert product["total_expected"] == sum(to_come[item["id"]] for item in own)
            for name in ("on_hand", "reserved", "available"):
                assert product[f"total_{name}"] == sum(item[name] for item in by_product.get(product["id"], []))

    def _check_events(self) -> None:
        """A product's sequence has no gaps, and one StockLevelChanged continues where the item's last one ended."""
        assert len({row["event_id"] for row in self.outbox}) == len(self.outbox)
        by_product = _grouped(self.outbox, "product_id")
        for product in self.products:
            rows = by_product.get(product["id"], [])
            assert [row["sequence"] for row in rows] == list(range(1, product["sequence"] + 1))
            bodies = [msgspec.json.decode(row["body"]) for row in rows]
            assert [body["metadata"]["sequence"] for body in bodies] == [row["sequence"] for row in rows]
        available: dict[str, int] = defaultdict(int)
        for row in self.events("StockLevelChanged"):
            payload = msgspec.json.decode(row["body"])["payload"]
            assert payload["previousQuantity"] == available[payload["inventoryItemId"]]
            available[payload["inventoryItemId"]] = payload["newQuantity"]
        assert {item["id"]: item["available"] for item in self.items} == {
            item["id"]: available[item["id"]] for item in self.items
        }


async def books(store: str) -> Books:
    """Read everything, as of one instant."""
    found = await select(store, *(f"SELECT * FROM {table}" for table in _TABLES))
    return Books(dict(zip(_TABLES, found, strict=True)))


async def select(store: str, *statements: str) -> list[list[Row]]:
    """What each statement finds in the store at this URL, all in one snapshot."""
    if store.startswith("sqlite"):
        with closing(sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)) as file:
            file.row_factory = sqlite3.Row
            file.execute("BEGIN")
            return [[dict(row) for row in file.execute(statement)] for statement in statements]
    server = await asyncpg.connect(store)
    try:
        async with server.transaction(isolation="repeatable_read", readonly=True):
            return [[dict(row) for row in await server.fetch(statement)] for statement in statements]
    finally:
        await server.close()


async def deadlocks(store: str) -> int:
    """How many PostgreSQL has broken in this database. To be asked when the services have ended: only then is it sure
    that every connection has handed its count in.
    """
    if store.startswith("sqlite"):
        return 0
    others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with asyncio.timeout(10):
        while (await select(store, others))[0]:
            await asyncio.sleep(0.05)
    ((row,),) = await select(store, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(row["deadlocks"])


def _grouped(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[name]].append(row)
    return groups
