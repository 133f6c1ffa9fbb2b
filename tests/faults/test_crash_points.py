"""``kill -9`` at named points: the way is held there, what has happened so far is looked at, and the process dies.

Started again it goes on by itself: nothing is lost, and nothing is applied twice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import aio_pika
import httpx2
import pytest
from audit import books, select
from proxy import ACK, COMMIT, COMMITTED, Cut, Proxy
from service import Service, migrate, token
from services import Postgres, RabbitMQ
from stores import carry_out, migrated
from test_crash_loop import told

from adapters.registry import connect
from core.events import EVENTS_EXCHANGE
from core.operations import CreateItem, CreateWarehouse
from ports.broker import Receipt

pytestmark = [pytest.mark.services, pytest.mark.timeout(180)]

SECONDS = 40
TAP = "tests.tap"
KEY = "key-of-the-one-that-is-cut"


class Place(NamedTuple):
    """A process that can be killed, its ways, and the servers it leans on."""

    service: Service
    store_way: Proxy
    broker_way: Proxy
    store: str
    broker: str

    async def die(self, then: Cut | None = None) -> None:
        """Be killed while everything is held; what was held is never delivered. Then start again.

        Args:
            then: where to hold its way to the broker in its next life.
        """
        await asyncio.to_thread(self.service.kill)
        for way in (self.store_way, self.broker_way):
            way.reset()
            way.heal()
            way.was_cut.clear()
        self.broker_way.next_cut = then
        await asyncio.to_thread(self.service.start)

    async def held(self, way: Proxy, cut: Cut) -> None:
        """Return when these bytes have come by and are held."""
        way.was_cut.clear()
        way.heal()
        way.next_cut = cut
        async with asyncio.timeout(SECONDS):
            await way.was_cut.wait()

    async def tell(self, number: int) -> None:
        """Publish a ProductCreated of this number, past the ways."""
        async with connect("broker", self.broker) as broker:
            assert [Receipt.CONFIRMED] == await broker.publish([told(number)])


@pytest.fixture(scope="module")
async def servers(postgres: Postgres, rabbitmq: RabbitMQ) -> AsyncIterator[tuple[str, str]]:
    """A store with a warehouse, and a broker with a tap on all events."""
    store, broker = postgres.create_database(), rabbitmq.create_vhost()
    async with migrated(store) as opened:
        await carry_out(opened, CreateWarehouse(id="wh_1", name="North"))
    await asyncio.to_thread(migrate, store, broker)
    async with await aio_pika.connect(broker) as connection, connection.channel() as channel:
        tap = await channel.declare_queue(TAP, durable=True)
        await tap.bind(EVENTS_EXCHANGE, "#")
    yield store, broker
    postgres.drop_database(store)


async def placed(command: str, servers: tuple[str, str]) -> AsyncIterator[Place]:
    """A process with ways of its own."""
    async with Proxy(servers[0]) as store, Proxy(servers[1]) as broker:
        settings = {"default_warehouses": "wh_1", "reconcile_minutes": 0}
        service = Service(command, store=store.url, broker=broker.url, **settings)
        await asyncio.to_thread(service.__enter__)
        try:
            yield Place(service, store, broker, *servers)
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)


@pytest.fixture(scope="module")
async def consumer(servers: tuple[str, str]) -> AsyncIterator[Place]:
    """A consumer, the relay in it."""
    async for place in placed("consumer", servers):
        yield place


@pytest.fixture(scope="module")
async def api(servers: tuple[str, str]) -> AsyncIterator[Place]:
    """An API process."""
    async for place in placed("api", servers):
        yield place


# -- product events in -----------------------------------------------------------------------------------------------


async def test_killed_before_the_commit_of_an_event(consumer: Place) -> None:
    """Fault F2: everything was done but committed; it is rolled back, comes again, and is applied once."""
    await consumer.tell(2)
    await consumer.held(consumer.store_way, Cut("up", b"evt-2", hold=True))
    await consumer.held(consumer.store_way, Cut("up", COMMIT, hold=True))
    assert await inbox(consumer, 2) == 0

    await consumer.die()

    await until(lambda: inbox(consumer, 2))
    await check_applied_once(consumer, 2)


async def test_killed_between_the_commit_and_the_ack_of_an_event(consumer: Place) -> None:
    """Fault F3: it is committed and the broker does not know; it comes again, and nothing happens a second time."""
    await consumer.tell(3)
    await consumer.held(consumer.broker_way, Cut("up", ACK, hold=True))
    assert await inbox(consumer, 3) == 1

    await consumer.die(then=Cut("up", ACK, hold=True))

    await consumer.broker_way.was_cut.wait()  # it is acknowledged, for the first time
    consumer.broker_way.heal()
    await check_applied_once(consumer, 3)


async def inbox(place: Place, number: int) -> int:
    """Return how many rows the event of this number has there."""
    ((row,),) = await select(place.store, f"SELECT count(*) AS many FROM inbox WHERE event_id = 'evt-{number}'")
    return int(row["many"])


async def until(reached: Callable[[], Awaitable[object]]) -> None:
    """Return as soon as it is so."""
    async with asyncio.timeout(SECONDS):
        while not await reached():
            await asyncio.sleep(0.1)


async def check_applied_once(place: Place, number: int) -> None:
    """Fail unless the event's product has one item, of version 1, no dead letter, and the books add up."""
    items, letters = await select(
        place.store,
        f"SELECT version FROM inventory_item WHERE product_id = 'prod_{number}'",
        "SELECT * FROM dead_letter",
    )
    assert ([{"version": 1}], []) == (items, letters)
    assert await inbox(place, number) == 1
    (await books(place.store)).check()


# -- events out ------------------------------------------------------------------------------------------------------


async def test_killed_between_a_publish_and_its_confirm(consumer: Place) -> None:
    """Fault F6: the broker has it and the relay does not know; it is published again, with the same id."""
    await sell(consumer, "prod_F6")
    await consumer.held(consumer.broker_way, Cut("down", ACK, hold=True))

    await consumer.die()

    await until(lambda: all_published(consumer, "prod_F6"))
    assert {2} == set(await heard(consumer, "prod_F6"))


async def test_killed_between_a_confirm_and_its_mark(consumer: Place) -> None:
    """Fault F7: the relay knows and could not write it down; it is published again, with the same id."""
    await sell(consumer, "prod_F7")
    await consumer.held(consumer.broker_way, Cut("down", ACK, hold=True))
    consumer.store_way.black_hole()
    consumer.broker_way.heal()
    await asyncio.sleep(0.5)
    assert not await all_published(consumer, "prod_F7")

    await consumer.die()

    await until(lambda: all_published(consumer, "prod_F7"))
    assert {2} == set(await heard(consumer, "prod_F7"))


async def sell(place: Place, product: str) -> None:
    """Make an item with stock, past the process."""
    async with connect("store", place.store) as store:
        operation = CreateItem(sku=product.upper(), product_id=product, warehouse_id="wh_1", initial_quantity=5)
        await carry_out(store, operation, product=product)


async def all_published(place: Place, product: str) -> bool:
    """Return whether none of the product's events waits any more."""
    waiting = f"SELECT 1 FROM outbox WHERE product_id = '{product}' AND published_at IS NULL"
    return await select(place.store, waiting) == [[]]


async def heard(place: Place, product: str) -> list[int]:
    """Return how often each of a product's events arrived; fail if they came out of order or changed."""
    ((*rows,),) = await select(place.store, f"SELECT * FROM outbox WHERE product_id = '{product}' ORDER BY sequence")
    arrived: list[tuple[str, bytes]] = []
    async with await aio_pika.connect(place.broker) as connection, connection.channel() as channel:
        tap = await channel.get_queue(TAP)
        while message := await tap.get(no_ack=True, fail=False):
            arrived.append((str(message.message_id), message.body))
    told = [(row["event_id"], bytes(row["body"])) for row in rows]
    arrived = [each for each in arrived if each in told or product.encode() in each[1]]
    assert list(dict.fromkeys(arrived)) == told
    return list(Counter(arrived).values())


# -- requests --------------------------------------------------------------------------------------------------------


async def test_killed_between_a_commit_and_its_answer(api: Place) -> None:
    """Fault F4: it is done and nobody was told; who asks again with the same key is told what was done."""
    await sell(api, "prod_F4")
    ((item,),) = await select(api.store, "SELECT id FROM inventory_item WHERE product_id = 'prod_F4'")
    asking = asyncio.create_task(receive(api, item["id"]))
    await api.held(api.store_way, Cut("up", KEY.encode(), hold=True))
    await api.held(api.store_way, Cut("down", COMMITTED, hold=True))
    done = f"SELECT id FROM stock_transaction WHERE correlation_id = '{KEY}'"
    ((row,),) = await select(api.store, done)

    await api.die()

    with pytest.raises(httpx2.TransportError):
        await asking
    answer = await receive(api, item["id"])
    assert answer.status_code == 201
    assert [row["id"]] == [each["id"] for each in answer.json()["data"]["transactions"]]
    assert await select(api.store, done) == [[row]]


async def receive(api: Place, item_id: str) -> httpx2.Response:
    """Receive one unit, with the key."""
    headers = {"authorization": f"Bearer {token()}", "idempotency-key": KEY, "x-correlation-id": KEY}
    body = {"type": "RECEIVE", "inventoryItemId": item_id, "quantity": 1}
    async with httpx2.AsyncClient(base_url=api.service.url, headers=headers, trust_env=False, timeout=60) as client:
        return await client.post("/stock-operations", json=body)
