"""Product events end to end: real processes, PostgreSQL and RabbitMQ, from the Product Service's exchange to stock."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aio_pika
import httpx2
import msgspec
from audit import books, deadlocks, select
from service import Fleet, Service, migrate
from stores import carry_out, migrated

from adapters.registry import connect
from core.events import DEAD_LETTERS, EVENTS_EXCHANGE, PRODUCT_EXCHANGE, PRODUCT_QUEUE
from core.operations import CreateWarehouse
from ports.broker import Broker, Message, Receipt

PRODUCTS = 1_000
KILLED_AT = 200
SECONDS = 60


def event(kind: str, number: int, copy: int = 0) -> Message:
    """Return one of the copies of what the Product Service says of its product of this number."""
    body = {
        "eventId": f"evt-{kind}-{number}",
        "eventType": f"Product{kind}",
        "eventVersion": "1.0.0",
        "aggregateId": f"prod_{number}",
        "aggregateType": "Product",
        "timestamp": datetime.now(UTC),
        "metadata": {"correlationId": f"corr-{number}", "source": "product-service"},
        "payload": {"productId": f"prod_{number}", "sku": f"SKU-{number}", "name": f"Product {number}"},
    }
    return Message(
        id=f"{kind}-{number}-{copy}",
        exchange=PRODUCT_EXCHANGE,
        routing_key=f"product.product{kind.lower()}.product",
        body=msgspec.json.encode(body),
    )


def shuffled() -> list[Message]:
    """Return two copies of every product's creation in any order."""
    told = [event("Created", number, copy) for number in range(PRODUCTS) for copy in range(2)]
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.Random(seed).shuffle(told)
    return told


async def publish(broker: Broker, *messages: Message) -> None:
    """Publish messages, all of which must find a queue."""
    assert {Receipt.CONFIRMED} == set(await broker.publish(messages))


async def until(reached: Callable[[], Any]) -> Any:
    """Return what ``reached`` returns as soon as it is true."""
    async with asyncio.timeout(SECONDS):
        while not (value := await reached()):
            await asyncio.sleep(0.01)
    return value


class Queues:
    """What waits in a broker's queues, and who waits for it."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self._channel = channel

    async def look(self, name: str) -> tuple[int, int]:
        """Return how many messages nobody was given yet, and how many consumers there are."""
        queue = await self._channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0, queue.declaration_result.consumer_count or 0


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[Queues]:
    """Look into the queues of the broker at this URL."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield Queues(channel)


async def heard_of(store: str) -> int:
    """Return how many events have been dealt with."""
    ((row,),) = await select(store, "SELECT count(*) AS events FROM inbox")
    return int(row["events"])


async def check_all_was_done_once(store: str) -> None:
    """Fail unless every product has one item in each warehouse, and every event its one row in the inbox."""
    items, inbox, letters = await select(
        store,
        "SELECT sku, warehouse_id, product_id, name, status, version FROM inventory_item",
        "SELECT event_id, verdict FROM inbox",
        "SELECT * FROM dead_letter",
    )
    assert sorted(tuple(row.values()) for row in items) == sorted(
        (f"SKU-{number}", place, f"prod_{number}", f"Product {number}", "ACTIVE", 1)
        for number in range(PRODUCTS)
        for place in ("wh_1", "wh_2")
    )
    assert {(f"evt-Created-{number}", "APPLIED") for number in range(PRODUCTS)} == {
        tuple(row.values()) for row in inbox
    }
    assert [] == letters
    (await books(store)).check()
    assert 0 == await deadlocks(store)


async def test_killing_a_consumer_loses_and_doubles_nothing(postgres_url: str, amqp_url: str) -> None:
    """1,000 products are created, each told twice, in any order, to two consumers, one of which dies on the way."""
    async with migrated(postgres_url) as store:
        await carry_out(store, *(CreateWarehouse(id=id, name=id) for id in ("wh_1", "wh_2")))
    migrate(postgres_url, amqp_url)
    settings = {"store": postgres_url, "broker": amqp_url, "default_warehouses": "wh_1,wh_2"}

    async with connect("broker", amqp_url) as broker, looking(amqp_url) as queues:

        async def both_consume() -> bool:
            return (await queues.look(PRODUCT_QUEUE))[1] == 2

        async def some_are_done() -> bool:
            return await heard_of(postgres_url) >= KILLED_AT

        async def all_is_quiet() -> bool:
            return await heard_of(postgres_url) == PRODUCTS and (await queues.look(PRODUCT_QUEUE))[0] == 0

        with Fleet([Service("consumer", **settings) for _ in range(2)]) as fleet:
            await until(both_consume)
            publishing = asyncio.create_task(publish(broker, *shuffled()))
            await until(some_are_done)
            fleet.members[0].kill()
            assert await heard_of(postgres_url) < PRODUCTS
            await publishing
            await until(all_is_quiet)
        # What somebody had in hand is in the queue again, now that nobody is there.
        assert [(0, 0), (0, 0)] == [await queues.look(name) for name in (PRODUCT_QUEUE, DEAD_LETTERS)]

    await check_all_was_done_once(postgres_url)


def check_it_ran_out(end: Any, stock: Any, item_id: str) -> None:
    """Fail unless the event tells of the product's end, and by-product shows nothing left."""
    assert ("OutOfStock", item_id, "prod_1", "corr-1", 0) == (
        end["eventType"],
        end["aggregateId"],
        end["payload"]["productId"],
        end["metadata"]["correlationId"],
        end["payload"]["totalQuantityAvailable"],
    )
    assert (0, 0, False, True) == (
        stock["totalQuantityAvailable"],
        stock["totalQuantityReserved"],
        stock["isLowStock"],
        stock["isOutOfStock"],
    )
    assert [(item_id, 0)] == [
        (line["inventoryItemId"], line["quantityAvailable"]) for line in stock["warehouseInventory"]
    ]


async def test_a_product_comes_and_goes(postgres_url: str, amqp_url: str) -> None:
    """Created is an item to be seen, stock is received for it, Deleted takes it off sale and tells everybody."""
    service = Service("serve", store=postgres_url, broker=amqp_url, default_warehouses="wh_1")

    async with connect("broker", amqp_url) as broker:
        with service, service.client() as client:
            assert 201 == client.post("/warehouses", json={"id": "wh_1", "name": "North"}).status_code
            await until(lambda: declared(broker))
            async with broker.listen(EVENTS_EXCHANGE, "inventory.outofstock.inventoryitem") as ends:
                await publish(broker, event("Created", 1))
                (item,) = await until(lambda: listed(client, productId="prod_1"))
                assert ("SKU-1", "wh_1", "Product 1", 0) == (
                    item["sku"],
                    item["warehouseId"],
                    item["name"],
                    item["quantityOnHand"],
                )
                received = {"type": "RECEIVE", "inventoryItemId": item["id"], "quantity": 25}
                assert 201 == client.post("/stock-operations", json=received).status_code
                assert (25, 25) == (
                    total(client),
                    client.get(f"/inventory-items/{item['id']}").json()["data"]["quantityAvailable"],
                )

                await publish(broker, event("Deleted", 1))
                async with asyncio.timeout(SECONDS):
                    end = msgspec.json.decode((await anext(ends)).body)
            stock = client.get("/inventory-items/by-product/prod_1").json()["data"]

    check_it_ran_out(end, stock, item["id"])
    (row,) = await select(postgres_url, "SELECT on_hand, available, status FROM inventory_item")
    assert [{"on_hand": 25, "available": 0, "status": "INACTIVE"}] == row
    (await books(postgres_url)).check()


async def declared(broker: Broker) -> bool:
    """Tell whether the broker has all it needs."""
    return not await broker.check()


async def listed(client: httpx2.Client, **filter: str) -> list[Any]:
    """Return the items the service lists."""
    items: list[Any] = client.get("/inventory-items", params=filter).json()["data"]
    return items


def total(client: httpx2.Client) -> int:
    """Return what is available of the product."""
    return int(client.get("/inventory-items/by-product/prod_1").json()["data"]["totalQuantityAvailable"])
