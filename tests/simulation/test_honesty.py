"""The simulated store against a real one: what is decided over the two must be the same."""

from datetime import timedelta
from random import Random
from typing import Any

import msgspec
from factories import NOW
from simulation.database import Database
from simulation.store import SimulatedStore
from simulation.virtual import Process, VirtualLoop, determined
from simulation.world import World
from stores import migrated

from core.errors import InventoryError
from core.events import ProductEvent, ProductPayload
from core.operations import (
    Adjust,
    ApplyProductEvent,
    Confirm,
    Count,
    CreateItem,
    CreateWarehouse,
    EventPolicy,
    Fulfil,
    IdempotencyKey,
    Operation,
    Receive,
    Release,
    Request,
    Reserve,
    ReserveLine,
    Ship,
    Transfer,
)
from core.stock import Item, Reservation
from core.writing.writer import Writer

PRODUCTS = ("prod_a", "prod_b", "prod_new")
HOUSES = ("wh_1", "wh_2")
REQUESTS = 120


class Script:
    """The same requests for any store: each names what the answers before it have named."""

    def __init__(self, store: Any) -> None:
        self.told: list[Any] = []
        self._store = store
        self._draw = Random(5)
        self._items: list[str] = []
        self._reservations: list[str] = []

    async def play(self) -> list[Any]:
        """Send them, and return what was told and what is there in the end."""
        writer = Writer(self._store)
        await writer.start()
        for operation in self._beginning():
            await self._send(writer, operation, "")
        for number in range(REQUESTS):
            # A few keys, so that most come again: with the same request, or with another.
            key = f"key-{self._draw.randrange(REQUESTS // 2)}" if number % 3 == 0 else ""
            await self._send(writer, self._operation(number), key)
        await writer.stop()
        stock = await self._store.products(PRODUCTS)
        events = await self._store.pending(1000)
        return [self.told, *map(_plain, stock.values()), [(row.product_id, row.event_type) for row in events]]

    async def _send(self, writer: Writer, operation: Operation, name: str) -> None:
        key = IdempotencyKey("tests", "script", name, type(operation).__name__.encode()) if name else None
        try:
            (outcome,) = await writer.submit(Request(operations=(operation,), actor="script", key=key))
        except InventoryError as error:
            outcome = error
        if isinstance(outcome, Item):
            self._items.append(outcome.id)
        if isinstance(outcome, Reservation) and outcome.id not in self._reservations:
            self._reservations.append(outcome.id)
        self.told.append((type(operation).__name__, getattr(outcome, "code", type(outcome).__name__)))

    def _beginning(self) -> list[Operation]:
        houses = [CreateWarehouse(id=id, name=id) for id in (*HOUSES, HOUSES[0])]
        items = [
            CreateItem(sku=product.upper(), product_id=product, warehouse_id=house, initial_quantity=6)
            for product in (*PRODUCTS[:2], PRODUCTS[1])
            for house in HOUSES
        ]
        return [*houses, *items]

    def _operation(self, number: int) -> Operation:
        draw = self._draw
        id, quantity = draw.choice(self._items), draw.randint(1, 5)
        reservation = draw.choice([*self._reservations, "res_none"])
        kind = draw.choice(("ProductCreated", "ProductUpdated", "ProductDeleted"))
        payload = ProductPayload(product_id=draw.choice(PRODUCTS[1:]), sku=draw.choice(("NEW", "NEWER", "PROD_A")))
        event = ProductEvent(
            event_id=f"event-{draw.randrange(20)}",
            event_type=kind,
            event_version="1.0.0",
            timestamp=NOW - timedelta(days=400, seconds=draw.randrange(50)),
            payload=payload,
        )
        choices: list[Operation] = [
            Receive(inventory_item_id=id, quantity=quantity),
            Ship(inventory_item_id=id, quantity=quantity),
            Adjust(inventory_item_id=id, delta=-quantity, reason="lost"),
            Count(inventory_item_id=id, counted_quantity=quantity),
            Transfer(inventory_item_id=id, quantity=quantity, to_warehouse_id=draw.choice((*HOUSES, "wh_none"))),
            Reserve(lines=(ReserveLine(quantity=quantity, product_id=draw.choice(PRODUCTS)),)),
            Reserve(lines=(ReserveLine(quantity=1, inventory_item_id=id), ReserveLine(quantity=1, sku="PROD_B"))),
            Release(reservation_id=reservation),
            Confirm(reservation_id=reservation),
            Fulfil(reservation_id=reservation),
            *[ApplyProductEvent(event=event, policy=EventPolicy(warehouse_ids=HOUSES))] * 4,
        ]
        return choices[number % len(choices)]


def _plain(stock: Any) -> Any:
    """Return stock without ids and times, which differ."""
    product = msgspec.to_builtins(stock.product)
    names = ("sku", "warehouse_id", "name", "on_hand", "reserved", "available", "shortfall", "status", "version")
    items = sorted(tuple(getattr(item, name) for name in names) for item in stock.items)
    return {name: value for name, value in product.items() if name != "updatedAt"}, items


def _simulated() -> list[Any]:
    loop = VirtualLoop()
    world = World(loop, 1)

    async def play() -> list[Any]:
        process = Process(loop, "script")
        return await process.run(Script(SimulatedStore(world, Database(world), process)).play())

    with determined(loop, 1):
        told: list[Any] = loop.run(play())
        loop.clear()
    return told


async def test_the_simulated_store_decides_as_a_real_one() -> None:
    """Outcomes and refusals of a long script, keys and product events that come twice, the end's stock and events."""
    told, *end = _simulated()

    async with migrated("sqlite://") as store:
        assert [told, *end] == await Script(store).play()
    refusals = {"insufficient_stock", "invalid_state", "not_found", "sku_conflict", "already_exists"}
    assert refusals | {"idempotency_key_reused", "EventOutcome", "StockChange"} <= {code for _, code in told}
