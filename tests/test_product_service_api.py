"""The Product Service in the API: new products are looked up before stock is kept of them; operators see how it is."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from in_process import ADMIN, OPERATOR, Api, serving
from standin import SECRET as SHARED
from standin import standing_in

from entrypoints.demo.misbehaviour import Misbehaviour
from entrypoints.demo.product_service import ProductService

UNKNOWN, KNOWN = "prod_unknown", "prod_1"


class Shop:
    """An API, the Product Service it asks, and one client."""

    def __init__(self, api: Api, service: ProductService, client: httpx2.AsyncClient) -> None:
        self.api = api
        self.service = service
        self.client = client

    async def create(self, product: str, sku: str = "S", **headers: str) -> httpx2.Response:
        """Ask for stock to be kept of a product."""
        body = {"sku": sku, "productId": product, "warehouseId": "wh_1"}
        return await self.client.post("/inventory-items", json=body, headers=headers)


@pytest.fixture(params=["lenient"])
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    """A service with one warehouse, asking a stand-in, by the policy that the test names."""
    async with (
        standing_in() as (stand_in, url),
        serving(
            tmp_path, catalog=url, catalog_secret=SHARED, catalog_policy=request.param, catalog_timeout_ms=300
        ) as api,
        api.client(ADMIN) as client,
    ):
        (await client.post("/warehouses", json={"id": "wh_1", "name": "North"})).raise_for_status()
        yield Shop(api, stand_in, client)


POLICIES = pytest.mark.parametrize("shop", ["strict", "lenient"], indirect=True)


@POLICIES
async def test_only_products_that_exist_get_items(shop: Shop) -> None:
    """One the Product Service has is made, another is refused; the caller's correlation id goes along."""
    made = await shop.create(KNOWN, **{"x-correlation-id": "cart-7"})
    refused = await shop.create(UNKNOWN, "T")

    assert made.status_code == 201
    assert (refused.status_code, refused.json()["code"]) == (404, "product_not_found")
    assert shop.service.asked[0].correlation_id == "cart-7"


@POLICIES
async def test_a_product_is_asked_for_once(shop: Shop) -> None:
    """What is here already needs nobody's word: its second item and a repeated request are made while it is away."""
    (await shop.create(KNOWN, **{"idempotency-key": "k"})).raise_for_status()
    shop.service.misbehaviour = Misbehaviour("error")

    assert (await shop.create(KNOWN, "T")).status_code == 201
    assert (await shop.create(KNOWN, **{"idempotency-key": "k"})).status_code == 201
    assert len(shop.service.asked) == 1


@pytest.mark.parametrize("fault", ["error", "hang", "reset"])
@pytest.mark.parametrize("shop", ["strict"], indirect=True)
async def test_strict_refuses_while_it_is_away(shop: Shop, fault: str) -> None:
    """A typed 503 with a hint when to try again, and nothing is made."""
    shop.service.misbehaviour = Misbehaviour(fault)  # type: ignore[arg-type]
    answer = await shop.create(KNOWN)

    assert (answer.status_code, answer.json()["code"]) == (503, "product_service_unavailable")
    assert "retry-after" in answer.headers
    assert (await shop.client.get("/inventory-items")).json()["data"] == []


async def test_lenient_believes_the_caller_while_it_is_away(shop: Shop) -> None:
    """Stock can be kept of a product whose word cannot be had."""
    shop.service.misbehaviour = Misbehaviour("hang")

    assert (await shop.create(UNKNOWN)).status_code == 201


@pytest.mark.parametrize("fault", ["garbage", "wrong-id", "redirect", "huge"])
@POLICIES
async def test_garbage_is_a_bad_gateway_and_leaves_nothing(shop: Shop, fault: str) -> None:
    """An answer that cannot be used is nobody's word, whatever the policy."""
    shop.service.misbehaviour = Misbehaviour(fault)  # type: ignore[arg-type]
    answer = await shop.create(KNOWN)

    assert (answer.status_code, answer.json()["code"]) == (502, "product_service_protocol_error")
    assert (await shop.client.get("/inventory-items")).json()["data"] == []


@pytest.mark.parametrize("shop", ["off"], indirect=True)
async def test_off_asks_nobody(shop: Shop) -> None:
    """Any product will do."""
    assert (await shop.create(UNKNOWN)).status_code == 201
    assert not shop.service.asked


@pytest.mark.parametrize("shop", ["strict"], indirect=True)
async def test_an_operator_has_the_last_word_on_the_circuit(shop: Shop) -> None:
    """Held open nothing is sent; let go, it is as if nothing had been; everybody who operates sees it."""
    held = await shop.client.put("/admin/product-service/circuit", json={"circuit": "OPEN"})
    refused = await shop.create(KNOWN)
    async with shop.api.client(OPERATOR) as operator:
        seen = (await operator.get("/admin/product-service")).json()["data"]
    let_go = await shop.client.put("/admin/product-service/circuit", json={"circuit": "AUTO"})

    assert (
        held.json()["data"]["calls"] == {"circuit": "OPEN", "forced": True, "calls": 0, "failures": 0} == seen["calls"]
    )
    assert (refused.status_code, list(shop.service.asked)) == (503, [])
    assert not let_go.json()["data"]["calls"]["forced"]
    assert (await shop.create(KNOWN)).status_code == 201
    assert (await shop.client.put("/admin/product-service/circuit", json={"circuit": "open"})).status_code == 400


async def test_who_held_the_circuit_is_on_record(shop: Shop, tmp_path: Path) -> None:
    """Who, when, why and under which correlation id; what was refused leaves nothing."""
    url, body = "/admin/product-service/circuit", {"circuit": "OPEN", "reason": "They asked for it"}
    (await shop.client.put(url, json=body, headers={"x-correlation-id": "ticket-7"})).raise_for_status()
    assert (await shop.client.put(url, json=body, headers={"idempotency-key": "k"})).status_code == 400
    async with shop.api.client(OPERATOR) as operator:
        assert (await operator.put(url, json=body)).status_code == 403
    (await shop.client.put(url, json={"circuit": "AUTO"})).raise_for_status()

    with closing(sqlite3.connect(tmp_path / "inventory.db")) as database:
        told = "SELECT actor, action, subject, reason, correlation_id, details FROM audit ORDER BY id"
        rows = [(*row, json.loads(details)["circuit"]) for *row, details in database.execute(told)]
    assert rows == [
        ("tester", "force_circuit", "product-service", "They asked for it", "ticket-7", "OPEN"),
        ("tester", "force_circuit", "product-service", None, None, "AUTO"),
    ]
