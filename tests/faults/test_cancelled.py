"""Clients that leave before they are answered, by the thousand: nothing of them stays behind."""

import asyncio
import json
import random
from typing import Any, NamedTuple

import psutil
import pytest
from audit import books, select
from service import Service, no_broker, token
from stores import migrated

CANCELLED = 1_000
AT_ONCE = 40
LONGEST_SECONDS = 0.03
MEMORY_GROWTH_MAX = 1.15
SECONDS = 60


class Holdings(NamedTuple):
    """What a service holds on to."""

    connections: int
    files: int
    bytes: int


def request(method: str, path: str, body: Any = None) -> bytes:
    """A request with a good token, as bytes."""
    content = json.dumps(body).encode() if body is not None else b""
    head = [f"{method} {path} HTTP/1.1", "Host: inventory", f"Authorization: Bearer {token()}"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*head, "", ""]).encode() + content


class Deserters:
    """Clients that ask for something and leave, some while they are still asking."""

    def __init__(self, service: Service, item_id: str) -> None:
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        self._random = random.Random(seed)
        self._service = service
        self._asked = [
            request("POST", "/reservations", {"lines": [{"inventoryItemId": item_id, "quantity": 1}]}),
            request("POST", "/stock-operations", {"type": "RECEIVE", "inventoryItemId": item_id, "quantity": 1}),
            request("GET", "/inventory-items/by-product/prod_1"),
            request("GET", f"/inventory-items/{item_id}/transactions?limit=200"),
            request("GET", "/inventory-items"),
        ]

    async def leave(self, times: int) -> None:
        """Ask and leave so many times, some at once."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with places:
                _, writer = await asyncio.open_connection("127.0.0.1", self._service.port)
                content = self._random.choice(self._asked)
                whole = self._random.random() < 0.8
                writer.write(content if whole else content[: self._random.randrange(len(content))])
                await asyncio.sleep(self._random.uniform(0, LONGEST_SECONDS))
                writer.transport.abort()

        await asyncio.gather(*(one() for _ in range(times)))


async def held(service: Service) -> Holdings:
    """Return what the service holds on to, as soon as nothing is under way any more."""
    process = psutil.Process(service.pid)
    statement = (
        "SELECT count(*) AS connections, count(*) FILTER (WHERE state <> 'idle') AS busy FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(SECONDS):
        while True:
            ((row,),) = await select(service.store, statement)
            if not row["busy"] and not [
                link
                for link in process.net_connections()
                if link.laddr.port == service.port and link.status != psutil.CONN_LISTEN
            ]:
                return Holdings(row["connections"], process.num_fds(), process.memory_info().rss)
            await asyncio.sleep(0.1)


@pytest.mark.services
async def test_nothing_is_left_of_a_thousand_that_went_away(postgres_url: str) -> None:
    """Connections, files and memory are what they were; the books add up; who stays is answered."""
    async with migrated(postgres_url):
        pass
    with Service("api", store=postgres_url, broker=no_broker()) as service, service.client() as client:
        assert client.post("/warehouses", json={"id": "wh_1", "name": "North"}).status_code == 201
        body = {"sku": "WIDGET", "productId": "prod_1", "warehouseId": "wh_1", "initialQuantity": 1_000_000}
        item = client.post("/inventory-items", json=body).json()["data"]["id"]
        client.close()
        deserters = Deserters(service, item)
        await deserters.leave(CANCELLED // 2)  # caches and pools fill up
        before = await held(service)
        await deserters.leave(CANCELLED)
        after = await held(service)
        print(before, after)
        with service.client() as other:
            lines = [{"inventoryItemId": item, "quantity": 1}]
            assert other.post("/reservations", json={"lines": lines}).status_code == 201
            assert other.get("/health/ready").status_code == 200
    assert after.connections <= before.connections
    assert after.files <= before.files
    assert after.bytes <= before.bytes * MEMORY_GROWTH_MAX
    (await books(postgres_url)).check()
