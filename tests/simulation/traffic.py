"""Who uses the service: clients that change stock and repeat after any doubt, readers, and the Product Service.

Every request carries a correlation id of its own, by which ``checks.py`` finds in the ledger what became of it.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from simulation.service import WAREHOUSES, Node, Servers

from core.errors import InventoryError, OutcomeUnknown, Unavailable
from core.events import PRODUCT_EXCHANGE, PRODUCT_QUEUE, ProductEvent, ProductPayload
from core.operations import (
    Activate,
    Adjust,
    Confirm,
    Count,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    Extend,
    Fulfil,
    FulfilBody,
    IdempotencyKey,
    ItemQuantity,
    Operation,
    Outcome,
    Receive,
    Release,
    Request,
    Reserve,
    ReserveLine,
    SetPolicy,
    Ship,
    Transfer,
)
from core.stock import Item, LeadTime, Reservation
from ports.broker import Delivery, Message

PRODUCTS = ("prod_a", "prod_b", "prod_c")
NEW_PRODUCTS = ("prod_x", "prod_y", "prod_z")
POISON = "prod_poison"
"""A product of which events tell, and of which, in some worlds, whoever changes it dies."""
_PATIENCE_SECONDS = 6.0
_TRIES = 40


class Asked(Struct):
    """One request, and what its client knows of it: None while nobody has told, else the outcomes or a refusal."""

    request: Request
    told: list[Outcome] | InventoryError | None = None
    tries: int = 0
    maybe: bool = False
    """Whether a try ended without an answer, or with one that leaves it open."""


class Traffic:
    """Everybody outside, and what they know."""

    def __init__(self, servers: Servers, nodes: list[Node]) -> None:
        self.asked: list[Asked] = []
        self.events: list[ProductEvent] = []
        self.undecodable: list[Message] = []
        self._servers = servers
        self._world = servers.world
        self._nodes = nodes
        self._draw = servers.world.chances
        self._items: list[Item] = []
        self._reservations: list[str] = []

    async def prepare(self) -> None:
        """Open warehouses and put stock there."""
        houses = [CreateWarehouse(id=id, name=id, lead_time_days=LeadTime(1, 2)) for id in WAREHOUSES]
        await self._ask(Asked(self._request(*houses)), keyed=True)
        stock = [
            CreateItem(
                sku=product.upper(),
                product_id=product,
                warehouse_id=house,
                initial_quantity=self._draw.randint(0, 12),
                reorder_threshold=3,
                safety_stock=self._draw.choice((0, 0, 2)),
            )
            for product in PRODUCTS
            for house in WAREHOUSES
        ]
        await self._ask(Asked(self._request(*stock)), keyed=True)

    async def client(self, requests: int) -> None:
        """Ask for changes, one after another."""
        for _ in range(requests):
            await asyncio.sleep(self._draw.expovariate(4.0))
            operations = [self._operation() for _ in range(self._draw.choice((1, 1, 1, 2)))]
            await self._ask(Asked(self._request(*operations)), keyed=self._draw.random() < 0.7)

    async def reader(self, reads: int) -> None:
        """Look at products, and see that no process shows less than it has shown or done before."""
        for _ in range(reads):
            await asyncio.sleep(self._draw.expovariate(6.0))
            node = self._draw.choice(self._nodes)
            if not node.is_up or node.snapshots is None:
                continue
            looking = node.process.run(self._look(node, self._draw.choice(PRODUCTS)))
            await asyncio.wait({looking, node.process.died}, timeout=3.0, return_when=asyncio.FIRST_COMPLETED)

    async def product_service(self, events: int) -> None:
        """Tell of products, of some twice and late, and of some in bytes that nobody understands."""
        for number in range(events):
            await asyncio.sleep(self._draw.expovariate(3.0))
            event = self._event(number)
            message = _message(event)
            if self._draw.random() < 0.05:
                message = msgspec.structs.replace(message, body=message.body[:-9])
                self.undecodable.append(message)
            else:
                self.events.append(event)
            for _ in range(2 if self._world.happens(self._world.faults.delivered_twice) else 1):
                delay = self._draw.random() * (3.0 if self._world.happens(self._world.faults.out_of_order) else 0.01)
                self._world.later(delay, self._servers.exchange.offer, PRODUCT_QUEUE, Delivery(message, False))
        await asyncio.sleep(3.0)  # the last may come late

    # -- one request -------------------------------------------------------------------------------------------------

    async def _ask(self, asked: Asked, *, keyed: bool) -> None:
        """Ask until it is known what became of it; without a key only once, lest it be done twice."""
        if keyed:
            key = IdempotencyKey("tests", "client", asked.request.correlation_id or "", b"same")
            asked.request = msgspec.structs.replace(asked.request, key=key)
        self.asked.append(asked)
        while asked.told is None and asked.tries < (_TRIES if keyed else 1):
            asked.tries += 1
            await self._try(asked)
            if asked.told is None:
                await asyncio.sleep(self._draw.random() * 2.0)
        self._learn(asked)

    async def _try(self, asked: Asked) -> None:
        while not (up := [node for node in self._nodes if node.is_up]):
            await asyncio.sleep(0.2)
        node = self._draw.choice(up)
        submitting = node.process.run(node.writer.submit(asked.request))
        submitting.add_done_callback(lambda task: task.cancelled() or task.exception())
        died = node.process.died
        await asyncio.wait({submitting, died}, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        told: Any = "no answer"
        if not submitting.done():
            asked.maybe = True
            if not died.done():
                submitting.cancel()
        elif isinstance(error := submitting.exception(), InventoryError):
            told = error
            asked.maybe |= isinstance(error, OutcomeUnknown)
            if not isinstance(error, Unavailable | OutcomeUnknown):
                asked.told = error
        elif error is not None:
            self._world.violated(f"submit raised {error!r}")
        else:
            told = asked.told = submitting.result()
        self._world.tell("client", f"was told of {asked.request.correlation_id} by {node.process.name}", told)

    def _learn(self, asked: Asked) -> None:
        for outcome in asked.told if isinstance(asked.told, list) else ():
            if isinstance(outcome, Item):
                self._items.append(outcome)
            elif isinstance(outcome, Reservation) and outcome.id not in self._reservations:
                self._reservations.append(outcome.id)

    def _request(self, *operations: Operation) -> Request:
        correlation_id = f"request {len(self.asked)}"
        kinds = ", ".join(type(operation).__name__ for operation in operations)
        self._world.tell("client", f"{correlation_id}: {kinds}")
        return Request(operations=operations, actor="client", correlation_id=correlation_id)

    def _operation(self) -> Operation:
        draw = self._draw
        item = draw.choice(self._items)
        id = item.id
        quantity = draw.randint(1, 4)
        if self._reservations and draw.random() < 0.35:
            return self._step(draw.choice(self._reservations))
        house = draw.choice(WAREHOUSES)
        moves: list[Operation] = [
            Receive(inventory_item_id=id, quantity=quantity),
            Ship(inventory_item_id=id, quantity=quantity),
            Adjust(inventory_item_id=id, delta=draw.choice((-2, -1, 1, 2)), reason="found"),
            Count(inventory_item_id=id, counted_quantity=draw.randint(0, 10)),
            Transfer(inventory_item_id=id, quantity=quantity, to_warehouse_id=house),
            SetPolicy(inventory_item_id=id, safety_stock=draw.randint(0, 3)),
            draw.choice((Activate, Deactivate, Activate))(inventory_item_id=id),
        ]
        return draw.choice(moves) if draw.random() < 0.5 else self._reserve(item, quantity)

    def _reserve(self, item: Item, quantity: int) -> Operation:
        draw = self._draw
        lines = [
            draw.choice(
                (
                    ReserveLine(quantity=quantity, inventory_item_id=item.id),
                    ReserveLine(quantity=quantity, sku=item.sku),
                    ReserveLine(quantity=quantity, product_id=item.product_id),
                )
            )
        ]
        if draw.random() < 0.4:
            lines.append(ReserveLine(quantity=1, product_id=draw.choice(PRODUCTS)))
        return Reserve(lines=tuple(lines), expires_in_seconds=draw.choice((1, 2, 4, 900)))

    def _step(self, id: str) -> Operation:
        draw = self._draw
        match draw.randrange(5):
            case 0:
                return Release(reservation_id=id)
            case 1:
                return Confirm(reservation_id=id)
            case 2:
                return Extend(reservation_id=id, expires_in_seconds=draw.choice((1, 3, 60)))
            case 3:
                line = ItemQuantity(inventory_item_id=draw.choice(self._items).id, quantity=1)
                return Fulfil(reservation_id=id, body=FulfilBody(lines=(line,)))
            case _:
                return Fulfil(reservation_id=id)

    # -- readers and the Product Service -----------------------------------------------------------------------------

    async def _look(self, node: Node, product_id: str) -> None:
        floors, snapshots = node.floors, node.snapshots
        least = floors.get(product_id, 0)
        assert snapshots is not None
        try:
            sight = await snapshots.product(product_id)
        except Unavailable:
            return
        if self._world.over:
            return
        seen = sight.stock.product.revision if sight is not None else 0
        self._world.tell(node.process.name, f"shows {product_id} at revision {seen}", sight.source if sight else "")
        if seen < least:
            self._world.violated(f"{node.process.name} shows {product_id} at revision {seen} after {least}")
        if sight is not None:
            available = sum(item.available for item in sight.stock.items)
            if not available == sight.stock.product.total_available == self._servers.database.history[product_id, seen]:
                self._world.violated(f"{node.process.name} shows {product_id} as it never was at revision {seen}")
        floors[product_id] = max(seen, floors.get(product_id, 0))

    def _event(self, number: int) -> ProductEvent:
        draw = self._draw
        now: datetime = self._servers.database.now()
        product = draw.choice((*NEW_PRODUCTS, *NEW_PRODUCTS, POISON)) if number else NEW_PRODUCTS[0]
        kind: Any = draw.choice(("ProductCreated", "ProductCreated", "ProductUpdated", "ProductDeleted"))
        named = {} if kind == "ProductDeleted" else {"sku": product.upper(), "name": f"{product} {number}"}
        return ProductEvent(
            event_id=f"event-{number}",
            event_type=kind,
            event_version="1.0.0",
            timestamp=now + timedelta(seconds=draw.uniform(-2.0, 2.0)),
            payload=ProductPayload(product_id=product, **named),
        )


def _message(event: ProductEvent) -> Message:
    return Message(
        id=event.event_id,
        exchange=PRODUCT_EXCHANGE,
        routing_key=f"product.{event.event_type.lower()}.product",
        body=msgspec.json.encode(event),
        type=event.event_type,
    )
