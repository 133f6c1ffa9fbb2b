"""A shop under way: people who change stock, a Product Service that tells of products, and a listener to all events.

All go on until they know how everything they began ended, and write down what they know at once (``history.py``).
"""

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import aio_pika
import httpx2
import msgspec
from history import Entry, History
from load import Call
from service import token

from adapters.registry import connect
from core.errors import InventoryError
from core.events import EVENTS_EXCHANGE, PRODUCT_EXCHANGE
from ports.broker import Broker, Message, Receipt

CUSTOMERS = 10
PAUSE_SECONDS = (0.1, 0.4)
AGAIN = 0.15
"""How often what was answered is asked once more."""
WRITES, EVENTS, PRODUCTS = "writes", "events out", "product events"
TAP = "tests.tap"


class Answered(NamedTuple):
    """A call and its definite answer."""

    call: Call
    status: int
    body: str

    @property
    def data(self) -> Any:
        """What a success holds."""
        return json.loads(self.body)["data"]


class Customers:
    """They receive, ship, count, move, reserve, release and fulfil, each with a key, until each is answered.

    Attributes:
        answers: by key.
        unlike: keys that were answered in two ways.
        troubles: how often there was no answer, or none that settled anything, by status.
    """

    def __init__(self, urls: Sequence[str], items: Sequence[str], history: History, dice: random.Random) -> None:
        self._urls = urls
        self._items = items
        self._history = history
        self._dice = dice
        self._numbers = iter(range(1_000_000))
        self.answers: dict[str, Answered] = {}
        self.unlike: list[str] = []
        self.troubles: dict[int | None, int] = {}

    async def shop(self, over: asyncio.Event) -> None:
        """Go on until it is over and everything is answered."""
        headers = {"authorization": f"Bearer {token()}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=20, trust_env=False) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(CUSTOMERS):
                tasks.create_task(self._customer(client, over))

    async def _customer(self, client: httpx2.AsyncClient, over: asyncio.Event) -> None:
        holds: list[str] = []
        while not over.is_set():
            call = self._call(holds)
            self._history.write(Entry(WRITES, "attempted", call.key))
            answered = await self._settled(client, call)
            self.answers[call.key] = answered
            if answered.status < 300:
                self._history.write(Entry(WRITES, "acknowledged", call.key))
                if call.path == "/reservations":
                    holds.append(answered.data["id"])
            if self._dice.random() < AGAIN and (await self._settled(client, call))[1:] != answered[1:]:
                self.unlike.append(call.key)
            await asyncio.sleep(self._dice.uniform(*PAUSE_SECONDS))

    async def _settled(self, client: httpx2.AsyncClient, call: Call) -> Answered:
        """Ask one process after the other until one gives a definite answer."""
        headers = {"idempotency-key": call.key, "x-correlation-id": call.key}
        while True:
            url = self._dice.choice(self._urls) + call.path
            try:
                answer = await client.request(call.method, url, json=call.body, headers=headers)
            except httpx2.TransportError:
                status = None
            else:
                status = answer.status_code
                # A process that slept while the body came says it did not come in time: nothing is settled.
                if status < 500 and status != HTTPStatus.REQUEST_TIMEOUT:
                    return Answered(call, status, answer.text)
            self.troubles[status] = self.troubles.get(status, 0) + 1
            await asyncio.sleep(self._dice.uniform(0.1, 0.5))

    def _call(self, holds: list[str]) -> Call:
        key, dice = f"call-{next(self._numbers)}", self._dice
        item, quantity = dice.choice(self._items), dice.randint(1, 3)
        if holds and dice.random() < 0.4:
            end = dice.choice(("release", "fulfil"))
            return Call("POST", f"/reservations/{holds.pop()}/{end}", None, key)
        if dice.random() < 0.5:
            lines = [{"inventoryItemId": line, "quantity": 1} for line in {item, dice.choice(self._items)}]
            seconds = dice.choice((5, 900))
            return Call("POST", "/reservations", {"lines": lines, "expiresInSeconds": seconds}, key)
        operation: dict[str, Any] = dice.choice(
            (
                {"type": "RECEIVE", "quantity": quantity},
                {"type": "SHIP", "quantity": quantity},
                {"type": "COUNT", "countedQuantity": dice.randint(0, 8)},
                {"type": "ADJUST", "delta": -quantity, "reason": "Broken"},
                {"type": "TRANSFER", "quantity": quantity, "toWarehouseId": "wh_2"},
            )
        )
        return Call("POST", "/stock-operations", operation | {"inventoryItemId": item}, key)


class ProductService:
    """It makes, renames and deletes products of its own, now and then telling twice, until the broker has each event.

    Attributes:
        last: by product: the last thing that happened to it, and its name then.
    """

    def __init__(self, broker_url: str, history: History, dice: random.Random) -> None:
        self._url = broker_url
        self._history = history
        self._dice = dice
        self.last: dict[str, tuple[str, str]] = {}

    async def tell(self, over: asyncio.Event) -> None:
        """Go on until it is over."""
        number = 0
        async with connect("broker", self._url) as broker:
            while not over.is_set():
                number += 1
                message = self._next(number)
                self._history.write(Entry(PRODUCTS, "attempted", message.id))
                for _ in range(self._dice.choice((1, 1, 1, 2))):
                    await self._publish(broker, message)
                self._history.write(Entry(PRODUCTS, "acknowledged", message.id))
                await asyncio.sleep(self._dice.uniform(0.1, 0.4))

    def _next(self, number: int) -> Message:
        product = f"prod_{self._dice.randrange(30)}"
        kind, name = self.last.get(product, ("Deleted", ""))[0], f"Name {number}"
        kind = "Created" if kind == "Deleted" else self._dice.choice(("Updated", "Updated", "Deleted"))
        self.last[product] = kind, name
        id = f"evt-{number:06}"
        body = {
            "eventId": id,
            "eventType": f"Product{kind}",
            "eventVersion": "1.0.0",
            "timestamp": datetime.now(UTC),
            "payload": {"productId": product, "sku": product.upper(), "name": name},
        }
        key = f"product.product{kind.lower()}.product"
        return Message(id=id, exchange=PRODUCT_EXCHANGE, routing_key=key, body=msgspec.json.encode(body))

    async def _publish(self, broker: Broker, message: Message) -> None:
        while True:
            with suppress(InventoryError):
                if await broker.publish([message]) == [Receipt.CONFIRMED]:
                    return
            await asyncio.sleep(0.3)


class Subscriber:
    """It takes every event there is, and acknowledges what is written down."""

    def __init__(self, broker_url: str, history: History) -> None:
        self._url = broker_url
        self._history = history
        self.seen: set[str] = set()

    async def declare(self) -> None:
        """Make the queue. A classic one: what a quorum queue holds when it is a second old a crash may take (R20)."""
        async with await aio_pika.connect(self._url, timeout=30) as connection, connection.channel() as channel:
            tap = await channel.declare_queue(TAP, durable=True)
            await tap.bind(EVENTS_EXCHANGE, "#")

    async def listen(self, over: asyncio.Event) -> None:
        """Listen until it is over, whatever happens to the broker."""
        # A connection that is lost cancels who waits for it, and one that is being made swallows a cancellation.
        lost = (asyncio.CancelledError, OSError, TimeoutError, aio_pika.exceptions.AMQPError, RuntimeError)
        while not _ended(over):
            with suppress(*lost):
                async with await aio_pika.connect(self._url, timeout=5) as connection:
                    await self._take(await connection.channel(), over)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.3)

    async def _take(self, channel: aio_pika.abc.AbstractChannel, over: asyncio.Event) -> None:
        tap = await channel.get_queue(TAP, ensure=False)
        while not _ended(over):
            message = await tap.get(fail=False, timeout=10)
            if message is None:
                await asyncio.sleep(0.05)
                continue
            body = json.loads(message.body)
            id, sequence = body["eventId"], body["metadata"]["sequence"]
            self._history.write(Entry(EVENTS, "received", id, body["payload"]["productId"], sequence))
            self.seen.add(id)
            await message.ack()


def _ended(over: asyncio.Event) -> bool:
    task = asyncio.current_task()
    return over.is_set() or task is None or task.cancelling() > 0
