"""Told to stop: nothing new is taken, what has begun is finished, streams are ended, the exit code is 0.

And what follows from that: a whole installation is restarted under load, one process after another, as operators do
it, and nobody who uses it notices. The balancer here does what theirs do: it asks each process how it is, and sends
nothing to one that says it is not ready. It tries nothing twice.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import aio_pika
import httpx2
import pytest
from audit import select
from service import Fleet, Service, migrate, token
from tap import check_stream, everything_published, talking, tap

from core.events import PRODUCT_EXCHANGE

pytestmark = pytest.mark.services

PRODUCTS = 8
DRAIN_SECONDS = 2
LOOK_SECONDS = 0.2


@pytest.fixture
async def broker(amqp_url: str, postgres_url: str) -> str:
    """A vhost and a database where everything is made, with a tap on all events."""
    await asyncio.to_thread(migrate, postgres_url, amqp_url)
    await tap(amqp_url)
    return amqp_url


async def test_every_process_ends_in_time_and_with_0(broker: str, postgres_url: str) -> None:
    """Several workers, open streams and connections that nobody closes are no reason to stay."""
    commands = {"serve": 2, "api": 2, "consumer": 1, "reconciler": 1}
    members = [Service(name, store=postgres_url, broker=broker, workers=n) for name, n in commands.items()]
    with Fleet(members), ExitStack() as clients:
        streams = []
        for member in members[:2]:
            for _ in range(6):  # with this many, each worker has one
                client = clients.enter_context(member.client())
                client.timeout = httpx2.Timeout(20)
                streams.append(clients.enter_context(client.stream("GET", "/events")))
            clients.enter_context(member.client()).get("/warehouses").raise_for_status()
        assert {stream.status_code for stream in streams} == {200}
        started = time.monotonic()
        codes = await asyncio.gather(*(asyncio.to_thread(member.end, seconds=15) for member in members))
        assert codes == [0] * len(members)
        assert all(stream.read().startswith(b"retry: ") for stream in streams)  # each to its end: none was cut
        assert time.monotonic() - started < 15
        for member in members:
            assert "cut off" not in member.logged()
            assert "did not end in time" not in member.logged()


async def test_it_serves_until_its_balancer_has_heard(tmp_path: Path) -> None:
    """Not ready from the first moment on, it answers requests for as long as it was told, then nobody."""
    store = f"sqlite:///{tmp_path}/stock.db"
    with Service("serve", store=store, broker="memory://", drain_seconds=2) as service, service.client() as client:
        ending = asyncio.create_task(asyncio.to_thread(service.end, seconds=15))
        async with asyncio.timeout(2):
            while (ready := client.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.01)
        assert "told to stop" in ready.json()["detail"]
        assert client.get("/health/live").status_code == 200
        assert client.post("/warehouses", json={"id": "wh_1", "name": "North"}).status_code == 201
        assert await ending == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{service.url}/health/live", trust_env=False)


class Balancer:
    """Sends each request to the next process that says it is ready."""

    def __init__(self, urls: list[str]) -> None:
        self._clients = {url: httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) for url in urls}
        self._ready: set[str] = set()
        self._turn = count()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        looking = asyncio.gather(*(self._look(url) for url in self._clients))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def send(self, method: str, path: str, **words: Any) -> httpx2.Response:
        async with asyncio.timeout(20):
            while not self._ready:
                await asyncio.sleep(0.01)
        ready = sorted(self._ready)
        client = self._clients[ready[next(self._turn) % len(ready)]]
        return await client.request(method, path, headers={"authorization": f"Bearer {token()}"}, **words)

    async def _look(self, url: str) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=2) as client:
            while True:
                well = False
                with suppress(httpx2.HTTPError):
                    well = (await client.get(f"{url}/health/ready")).status_code == 200
                (self._ready.add if well else self._ready.discard)(url)
                await asyncio.sleep(LOOK_SECONDS)


async def test_a_rolling_restart_fails_no_request_and_loses_no_event(broker: str, postgres_url: str) -> None:
    """Two API and two consumer processes, each stopped and started again in turn, while stock is sold and told of."""
    words: dict[str, Any] = {"store": postgres_url, "broker": broker, "default_warehouses": "wh_1"}
    apis = [Service("api", drain_seconds=DRAIN_SECONDS, **words) for _ in range(2)]
    consumers = [Service("consumer", **words) for _ in range(2)]
    with Fleet([*apis, *consumers]) as fleet:
        balancer = Balancer([api.url for api in apis])
        async with balancer.running():
            items = await _shelves(balancer)
            done = asyncio.Event()
            clients = [asyncio.create_task(_counting(balancer, item, done)) for item in items]
            telling = asyncio.create_task(_telling(broker, done))
            codes = []
            for pair in zip(apis, consumers, strict=True):
                await asyncio.sleep(0.5)
                codes += await asyncio.gather(*(asyncio.to_thread(_restarted, member) for member in pair))
            await asyncio.sleep(0.5)
            done.set()
            statuses = [status for client in clients for status in await client]
            told = await telling
        assert codes == [0] * 4
        assert len(statuses) > 100
        assert set(statuses) == {201}
        await everything_published(postgres_url)
        await _all_heard(postgres_url, told)
        await check_stream(broker, postgres_url, products=PRODUCTS)
        assert not any("cut off" in member.logged() for member in fleet.members)


def _restarted(member: Service) -> int:
    code = member.end(seconds=20)
    member.start()
    return code


async def _shelves(balancer: Balancer) -> list[str]:
    (await balancer.send("POST", "/warehouses", json={"id": "wh_1", "name": "North"})).raise_for_status()
    made = []
    for number in range(PRODUCTS):
        item = {"sku": f"SKU-{number}", "productId": f"prod_{number}", "warehouseId": "wh_1"}
        made.append((await balancer.send("POST", "/inventory-items", json=item)).raise_for_status().json()["data"])
    return [item["id"] for item in made]


async def _counting(balancer: Balancer, item: str, done: asyncio.Event) -> list[int]:
    """Count a shelf over and over, so that it runs out and comes back; return what was answered."""
    statuses = []
    while not done.is_set():
        body = {"type": "COUNT", "inventoryItemId": item, "countedQuantity": len(statuses) % 2}
        statuses.append((await balancer.send("POST", "/stock-operations", json=body)).status_code)
        await asyncio.sleep(0.2)
    return statuses


async def _telling(broker: str, done: asyncio.Event) -> set[str]:
    """Tell of new products all the while; return their SKUs."""
    told: set[str] = set()
    async with talking(broker) as channel:
        exchange = await channel.get_exchange(PRODUCT_EXCHANGE)
        while not done.is_set():
            sku = f"TOLD-{len(told)}"
            event = {
                "eventId": sku,
                "eventType": "ProductCreated",
                "eventVersion": "1.0.0",
                "timestamp": datetime.now(UTC).isoformat(),
                "payload": {"productId": f"prod_{sku}", "sku": sku, "name": "New"},
            }
            message = aio_pika.Message(
                json.dumps(event).encode(), message_id=sku, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
            )
            await exchange.publish(message, "product.productcreated.product")
            told.add(sku)
            await asyncio.sleep(0.1)
    return told


async def _all_heard(store: str, told: set[str]) -> None:
    """Fail unless each product that was told of has its one item, soon."""
    async with asyncio.timeout(30):
        while True:
            (rows,) = await select(store, "SELECT sku FROM inventory_item WHERE sku LIKE 'TOLD-%'")
            if len(rows) >= len(told):
                break
            await asyncio.sleep(0.2)
    assert sorted(told) == sorted(row["sku"] for row in rows)
