"""RabbitMQ goes away, or a relay does, under steady writes: everything is sold, and every event arrives, in order.

A queue of the tests' own is bound to all events. What it holds in the end is compared with the outbox, row by row.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from audit import select
from clients import Clients
from load import Call
from service import Fleet, Service, migrate
from services import RabbitMQ
from tap import check_stream, everything_published, tap, waiting

from core.publishing.relay import LEASE_SECONDS

pytestmark = pytest.mark.services

PRODUCTS = 20
PER_SECOND = 50


@pytest.fixture(scope="module")
def rabbit() -> Iterator[RabbitMQ]:
    """A node of this module's own, to be stopped and killed."""
    with RabbitMQ() as server:
        yield server


@pytest.fixture
async def broker(rabbit: RabbitMQ, postgres_url: str) -> str:
    """A vhost where everything is declared, with a tap on all events; the store is migrated as well."""
    url = rabbit.create_vhost()
    migrate(postgres_url, url)
    await tap(url)
    return url


def die(rabbit: RabbitMQ) -> None:
    """It falls silent first, so that what is on its way to it then is never confirmed."""
    psutil.Process(rabbit.pid).suspend()
    time.sleep(0.5)
    rabbit.kill()


@pytest.mark.parametrize(
    ("commands", "end"),
    [(["serve"], RabbitMQ.stop), (["api", "consumer"], die)],
    ids=["serve, stopped", "api and consumer, killed"],
)
async def test_everything_is_sold_and_every_event_arrives(
    commands: list[str],
    end: Callable[[RabbitMQ], None],
    rabbit: RabbitMQ,
    broker: str,
    postgres_url: str,
    tmp_path: Path,
) -> None:
    """The broker is away for more than 10 s; nobody who buys notices, and nothing is started again but the broker."""
    with (
        Fleet([Service(command, store=postgres_url, broker=broker) for command in commands]) as fleet,
        writing(fleet.members[0], tmp_path, seconds=25) as clients,
    ):
        await asyncio.sleep(2)
        end(rabbit)
        await asyncio.sleep(10)
        with fleet.members[0].client() as client:
            ready = client.get("/health/ready")
            assert (ready.status_code, ready.json()["data"]["status"]) == (200, "degraded")
        assert await waiting(postgres_url) > 0
        rabbit.start()
        assert {answer.status for answer in clients.finish().values()} == {201}
        await everything_published(postgres_url)
        await check_stream(broker, postgres_url, products=PRODUCTS)


async def test_another_relay_takes_over(broker: str, postgres_url: str, tmp_path: Path) -> None:
    """Faults F5, F8: of two consumers the one at work is stopped for longer than its lease: the other carries on, and
    who wakes up marks nothing. Then that other is killed, and the first one carries on. Each time without a gap.
    """
    api, *consumers = (
        Service(command, store=postgres_url, broker=broker) for command in ("api", "consumer", "consumer")
    )
    with Fleet([api, *consumers]), writing(api, tmp_path, seconds=30) as clients:
        await asyncio.sleep(2)
        owner = await relay_pid(postgres_url)
        (first,) = (consumer for consumer in consumers if consumer.pid == owner)
        (second,) = (consumer for consumer in consumers if consumer is not first)
        sleeper = psutil.Process(first.pid)
        sleeper.suspend()
        try:
            await until_relay(second, postgres_url)
        finally:
            sleeper.resume()
        await asyncio.sleep(2)
        assert await relay_pid(postgres_url) == second.pid
        second.kill()
        await until_relay(first, postgres_url)
        assert {answer.status for answer in clients.finish().values()} == {201}
        await everything_published(postgres_url)
        await check_stream(broker, postgres_url, products=PRODUCTS)


async def until_relay(heir: Service, store: str) -> None:
    """Return when the lease is this process's; fail if that takes longer than it may."""
    async with asyncio.timeout(LEASE_SECONDS + 10):
        while await relay_pid(store) != heir.pid:
            await asyncio.sleep(0.1)


@contextmanager
def writing(api: Service, folder: Path, *, seconds: int) -> Iterator[Clients]:
    """Clients that count shelves, 50 times a second, so that products keep running out and coming back."""
    with api.client() as client:
        client.post("/warehouses", json={"id": "wh_1", "name": "North"}).raise_for_status()
        items = []
        for number in range(PRODUCTS):
            item = {"sku": f"SKU-{number}", "productId": f"prod_{number}", "warehouseId": "wh_1"}
            items.append(client.post("/inventory-items", json=item).raise_for_status().json()["data"]["id"])
    calls = []
    for number in range(seconds * PER_SECOND):
        body = {"type": "COUNT", "inventoryItemId": random.choice(items), "countedQuantity": random.randint(0, 3)}
        calls.append(Call("POST", "/stock-operations", body, f"count-{number}"))
    with Clients(
        calls, urls=[api.url], folder=folder / "counts", processes=2, connections=10, per_second=PER_SECOND
    ) as clients:
        clients.go()
        yield clients


async def relay_pid(store: str) -> int:
    """The process that owns the relay's lease; 0 while nobody does."""
    ((row,),) = await select(store, "SELECT owner FROM lease WHERE name = 'relay'")
    *_, pid, _ = row["owner"].rsplit("-", 2) if row["owner"] else ("0", "")
    return int(pid)
