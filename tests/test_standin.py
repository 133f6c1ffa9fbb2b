"""The stand-in Product Service: what the specification says of the real one, and every fault on command."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import msgspec
import pytest
from standin import sign, standing_in

from adapters.memory import MemoryBroker
from core.consuming.consumption import decode
from core.events import PRODUCT_EXCHANGE
from entrypoints.demo.product_service import ProductService
from ports.broker import Message


@pytest.fixture
async def stand() -> AsyncIterator[tuple[ProductService, httpx2.AsyncClient]]:
    """A stand-in and a client that may read and manage."""
    async with standing_in() as (service, url):
        headers = {"authorization": f"Bearer {sign('inventory-service', 'product-manager')}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=5) as client:
            yield service, client


Stand = tuple[ProductService, httpx2.AsyncClient]


async def test_it_answers_as_the_specification_says(stand: Stand) -> None:
    """A product and its variants come in the envelope, an unknown one is 404, health needs no token."""
    _, client = stand

    product = (await client.get("/products/prod_1")).json()
    variants = (await client.get("/products/prod_1/variants")).json()
    unknown = await client.get("/products/prod_2")
    health = await client.get("/health", headers={"authorization": ""})

    assert (product["success"], product["data"]["id"], product["data"]["sku"]) == (True, "prod_1", "MUG")
    assert {"variantId": "var_2", "sku": "MUG-BLUE", "name": "Mug, blue"} == variants["data"][1]
    assert (unknown.status_code, health.status_code) == (404, 200)


@pytest.mark.parametrize(("header", "status"), [("", 401), ("Bearer x.y.z", 401), ("product-service", 403)])
async def test_only_the_inventory_service_may_read(stand: Stand, header: str, status: int) -> None:
    """No token, a bad token and a token for another role are refused."""
    value = f"Bearer {sign(header)}" if header == "product-service" else header

    for path in ("/products/prod_1", "/products/prod_1/variants"):
        assert (await stand[1].get(path, headers={"authorization": value})).status_code == status
    assert (await stand[1].put("/misbehaviour", headers={"authorization": value})).status_code == status


async def test_what_changes_is_published(stand: Stand) -> None:
    """Creating, changing and deleting a product are the three events, which this service understands."""
    broker = MemoryBroker()
    await broker.declare()
    told: list[Message] = []
    service, client = stand
    service._publish = broker.publish

    async with broker.listen(PRODUCT_EXCHANGE, "#") as tap:
        made = (await client.post("/products", json={"sku": "S", "name": "N"})).raise_for_status().json()["data"]
        (await client.patch(f"/products/{made['id']}", json={"name": "M"})).raise_for_status()
        (await client.delete(f"/products/{made['id']}")).raise_for_status()
        async with asyncio.timeout(5):
            told += [await anext(tap) for _ in range(3)]

    events = [decode(message) for message in told]
    assert [event.event_type for event in events] == ["ProductCreated", "ProductUpdated", "ProductDeleted"]
    assert {event.payload.product_id for event in events} == {made["id"]}
    assert [event.payload.name for event in events] == ["N", "M", "M"]


async def test_faults_are_ordered_and_taken_back(stand: Stand) -> None:
    """A fault lasts for so many requests, or until it is taken back; only on the paths it is ordered for."""
    _, client = stand

    await client.put("/misbehaviour", json={"fault": "error", "times": 2, "path": "/products"})
    health = (await client.get("/health")).status_code
    statuses = [(await client.get("/products/prod_1")).status_code for _ in range(3)]
    await client.put("/misbehaviour", json={"fault": "busy", "seconds": 7})
    busy = await client.get("/products/prod_1")
    await client.delete("/misbehaviour")

    assert (health, statuses) == (200, [500, 500, 200])
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
    assert (await client.get("/products/prod_1")).status_code == 200


@pytest.mark.parametrize("fault", ["truncated", "reset"])
async def test_answers_break_off(stand: Stand, fault: str) -> None:
    """A client sees the connection end before the answer does, and the next connection works."""
    _, client = stand
    await client.put("/misbehaviour", json={"fault": fault, "times": 1})

    with pytest.raises(httpx2.TransportError):
        await client.get("/products/prod_1")
    assert (await client.get("/products/prod_1")).status_code == 200


@pytest.mark.parametrize("fault", ["hang", "slow"])
async def test_answers_do_not_come(stand: Stand, fault: str) -> None:
    """A client waits as long as it cares to."""
    _, client = stand
    await client.put("/misbehaviour", json={"fault": fault, "seconds": 60, "times": 1})

    with pytest.raises(httpx2.ReadTimeout):
        await client.get("/products/prod_1", timeout=0.2)


async def test_answers_can_be_wrong(stand: Stand) -> None:
    """A page, another product, a redirect, far too much: each is what it says."""
    _, client = stand
    seen = {}
    for fault in ("garbage", "wrong-id", "redirect", "huge", "missing"):
        await client.put("/misbehaviour", json={"fault": fault, "times": 1})
        seen[fault] = await client.get("/products/prod_1", timeout=30)

    assert seen["garbage"].text.startswith("<html>")
    assert msgspec.json.decode(seen["wrong-id"].content)["data"]["id"] != "prod_1"
    assert seen["redirect"].status_code == 302
    assert len(seen["huge"].content) > 49_000_000
    assert seen["missing"].status_code == 404
