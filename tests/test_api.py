"""The HTTP API as its callers see it: the specification's two answers to the letter, and everything around them."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from dishka import Provider, Scope, make_async_container
from dishka.integrations.litestar import DishkaRouter, FromDishka
from in_process import ADMIN, OPERATOR, PRODUCT_SERVICE, SECRET, Api, ask, serving, token
from litestar import get
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from adapters.memory import MemoryCatalog
from adapters.tokens.keys import KeyRing
from adapters.tokens.verifier import Verifier
from adapters.tokens.watch import KeyWatch
from core.catalog.watch import CatalogWatch
from core.errors import Unavailable
from core.operations import StockOperation
from core.writing.writer import Writer
from entrypoints.api.app import create_app
from entrypoints.api.bodies import Batch, decode
from entrypoints.api.examples import EXAMPLES
from ports.broker import Broker
from ports.cache import Cache
from ports.store import Store

_numbers = iter(range(1, 10_000))


@pytest.fixture(scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One service for all of these tests; each makes its own items, with products of their own."""
    async with serving(tmp_path_factory.mktemp("api")) as api, api.client(ADMIN) as client:
        for warehouse in (
            {"id": "wh_north", "name": "North Seattle", "priority": 1, "leadTimeDays": {"min": 1, "max": 2}},
            {"id": "wh_south", "name": "South Portland", "priority": 2, "leadTimeDays": {"min": 2, "max": 4}},
        ):
            assert (await client.post("/warehouses", json=warehouse)).status_code == 201
        yield api


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """An operator."""
    async with api.client(OPERATOR, subject="clerk") as client:
        yield client


async def _item(client: httpx2.AsyncClient, quantity: int = 10, **fields: Any) -> dict[str, Any]:
    """Return a new item, alone in its product unless told otherwise."""
    number = next(_numbers)
    body = {"sku": f"SKU-{number}", "productId": f"prod_{number}", "warehouseId": "wh_north"}
    answer = await client.post("/inventory-items", json=body | {"initialQuantity": quantity} | fields)
    assert answer.status_code == 201, answer.text
    item: dict[str, Any] = answer.json()["data"]
    return item


async def _operate(client: httpx2.AsyncClient, item: dict[str, Any], type: str, **fields: Any) -> httpx2.Response:
    body = {"type": type, "inventoryItemId": item["id"]} | fields
    return await client.post("/stock-operations", json=body)


# -- the specification's endpoints -------------------------------------------------------------------------------------


async def test_by_product_answers_as_specified(api: Api, client: httpx2.AsyncClient) -> None:
    """The specification's example: totals, flags and one line per warehouse; beside them only what we said we add."""
    north = await _item(client, 63)
    south = await _item(client, 27, sku=north["sku"], productId=north["productId"], warehouseId="wh_south")
    lines = [{"inventoryItemId": north["id"], "quantity": 3}, {"inventoryItemId": south["id"], "quantity": 2}]
    assert (await client.post("/reservations", json={"lines": lines})).status_code == 201
    async with api.client(PRODUCT_SERVICE) as product_service:
        answer = await product_service.get(f"/inventory-items/by-product/{north['productId']}")
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"success", "data"}
    assert body["success"] is True
    sequence = body["data"].pop("sequence")
    assert isinstance(sequence, int)
    assert body["data"].pop("restockExpected") is None
    assert body["data"] == {
        "totalQuantityAvailable": 85,
        "totalQuantityReserved": 5,
        "isLowStock": False,
        "isOutOfStock": False,
        "warehouseInventory": [
            {
                "inventoryItemId": north["id"],
                "warehouseId": "wh_north",
                "warehouseName": "North Seattle",
                "quantityAvailable": 60,
                "quantityReserved": 3,
            },
            {
                "inventoryItemId": south["id"],
                "warehouseId": "wh_south",
                "warehouseName": "South Portland",
                "quantityAvailable": 25,
                "quantityReserved": 2,
            },
        ],
    }


@pytest.mark.parametrize(
    "product_id", ["prod 1", "ünïcode", "\u202eabc", "a;b=c", "..", "a%b", "a?b", "a#b", "x" * 128]
)
async def test_any_printable_product_id_can_be_asked_for(client: httpx2.AsyncClient, product_id: str) -> None:
    """The Product Service chooses its ids; percent-encoded, all of them but those with a slash stand in the path."""
    await _item(client, 4, productId=product_id)
    answer = await client.get(f"/inventory-items/by-product/{_quoted(product_id)}")
    assert (answer.status_code, answer.json()["data"]["totalQuantityAvailable"]) == (200, 4)


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


async def test_an_unknown_product_is_404(client: httpx2.AsyncClient) -> None:
    """Not known is something else than sold out."""
    answer = await client.get("/inventory-items/by-product/prod_unheard_of")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_availability_answers_as_specified(api: Api, client: httpx2.AsyncClient) -> None:
    """By default one unit over all warehouses; the lead time is that of the warehouses that would ship."""
    north = await _item(client, 60)
    await _item(client, 25, sku=north["sku"], productId=north["productId"], warehouseId="wh_south")
    url = f"/inventory-items/{north['id']}/availability"
    async with api.client(PRODUCT_SERVICE) as product_service:
        answers = [
            (await product_service.get(url + query)).json()
            for query in ("", "?quantity=10", "?quantity=61&checkAllWarehouses=false", "?quantity=86")
        ]
    assert answers[1] == {
        "success": True,
        "data": {
            "isAvailable": True,
            "availableQuantity": 85,
            "requestedQuantity": 10,
            "leadTimeEstimate": "1-2 days",
            "restockExpected": None,
            "displayStatus": "IN_STOCK",
            "message": "In Stock",
            "lowStockThreshold": 10,
        },
    }
    found = [
        (a["data"]["isAvailable"], a["data"]["availableQuantity"], a["data"]["requestedQuantity"]) for a in answers
    ]
    assert found == [(True, 85, 1), (True, 85, 10), (False, 60, 61), (False, 85, 86)]


async def test_availability_of_an_unknown_item_is_404(client: httpx2.AsyncClient) -> None:
    """A well-formed id of nothing."""
    answer = await client.get("/inventory-items/inv_01GXYZ234DEF/availability")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# -- warehouses, items, products ---------------------------------------------------------------------------------------


async def test_a_warehouse_is_made_found_and_edited(client: httpx2.AsyncClient) -> None:
    """The whole life of a warehouse, with its version as ETag all along."""
    made = await client.post("/warehouses", json={"name": "East", "leadTimeDays": {"min": 0, "max": 1}})
    warehouse = made.json()["data"]
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    assert made.headers["location"] == f"/warehouses/{warehouse['id']}"
    found = await client.get(made.headers["location"])
    assert found.json()["data"] == warehouse
    edited = await client.patch(made.headers["location"], json={"active": False}, headers={"If-Match": '"1"'})
    assert (edited.status_code, edited.headers["etag"]) == (200, '"2"')
    assert edited.json()["data"]["active"] is False
    listed = (await client.get("/warehouses")).json()
    assert listed["nextCursor"] is None
    assert [known["name"] for known in listed["data"]][:2] == ["North Seattle", "South Portland"]
    assert edited.json()["data"] in listed["data"]
    assert (await client.get("/warehouses/wh_unknown")).status_code == 404
    again = await client.post("/warehouses", json={"name": "East", "id": warehouse["id"]})
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")


async def test_an_item_is_made_with_its_first_receipt(client: httpx2.AsyncClient) -> None:
    """Creating with stock writes the ledger like any receipt; the answer is the item as it is read later."""
    item = await _item(client, 7, name="Widget", reorderThreshold=3, metadata={"shelf": ["A", 1]})
    assert (item["quantityOnHand"], item["quantityAvailable"], item["status"]) == (7, 7, "ACTIVE")
    assert item["metadata"] == {"shelf": ["A", 1]}
    assert (await client.get(f"/inventory-items/{item['id']}")).json()["data"] == item
    ledger = (await client.get(f"/inventory-items/{item['id']}/transactions")).json()["data"]
    assert [(row["type"], row["quantityOnHandChange"], row["actor"]) for row in ledger] == [("RECEIPT", 7, "clerk")]


async def test_a_reader_that_has_the_version_gets_304(client: httpx2.AsyncClient) -> None:
    """If-None-Match compares weakly, takes lists and the asterisk, and knows old versions for old."""
    item = await _item(client)
    url = f"/inventory-items/{item['id']}"
    for tag in ('"1"', 'W/"1"', '"0", "1"', "*"):
        answer = await client.get(url, headers={"If-None-Match": tag})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"1"')
    for tag in ('"2"', '"11"', "1"):
        assert (await client.get(url, headers={"If-None-Match": tag})).status_code == 200


async def test_who_knows_a_product_s_stock_gets_304(client: httpx2.AsyncClient) -> None:
    """Until the stock or the name of a warehouse changes; asking again and again tells the same (rule R25)."""
    item = await _item(client, 7)
    url = f"/inventory-items/by-product/{item['productId']}"
    first, again = await client.get(url), await client.get(url)
    tag = first.headers["etag"]
    assert (again.content, again.headers["etag"]) == (first.content, tag)
    known = await client.get(url, headers={"If-None-Match": tag})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)

    changes = (
        ("POST", "/stock-operations", {"type": "SHIP", "inventoryItemId": item["id"], "quantity": 1}),
        ("PATCH", f"/warehouses/{item['warehouseId']}", {"name": "Renamed"}),
    )
    for method, path, body in changes:
        (await client.request(method, path, json=body)).raise_for_status()
        changed = await client.get(url, headers={"If-None-Match": tag})
        assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)
        tag = changed.headers["etag"]
    (line,) = changed.json()["data"]["warehouseInventory"]
    assert (line["quantityAvailable"], line["warehouseName"]) == (6, "Renamed")


async def test_if_match_prevents_a_lost_update(client: httpx2.AsyncClient) -> None:
    """Of two editors who read the same version the second is told, and nothing of its edit is kept."""
    item = await _item(client)
    url = f"/inventory-items/{item['id']}"
    first = await client.patch(url, json={"name": "first"}, headers={"If-Match": '"1"'})
    second = await client.patch(url, json={"name": "second"}, headers={"If-Match": '"1"'})
    assert (first.status_code, first.headers["etag"]) == (200, '"2"')
    assert (second.status_code, second.json()["code"], second.json()["currentVersion"]) == (412, "version_conflict", 2)
    assert (await client.get(url)).json()["data"]["name"] == "first"
    assert (await client.patch(url, json={"name": "third"}, headers={"If-Match": "*"})).status_code == 200


async def test_items_are_listed_by_filter(client: httpx2.AsyncClient) -> None:
    """Each filter narrows the list to what it says, and filters add up."""
    plenty = await _item(client, 50)
    product = {"productId": plenty["productId"]}
    low = await _item(client, 3, **product, warehouseId="wh_south")
    out = await _item(client, 0, **product)
    await _operate(client, out, "DEACTIVATE")
    expected = {
        "": {plenty["id"], low["id"], out["id"]},
        f"&sku={low['sku']}": {low["id"]},
        "&warehouseId=wh_north": {plenty["id"], out["id"]},
        "&stock=low": {low["id"]},
        "&stock=out": {out["id"]},
        "&status=ACTIVE": {plenty["id"], low["id"]},
        "&status=ACTIVE&stock=out": set(),
    }
    for query, ids in expected.items():
        listed = (await client.get(f"/inventory-items?productId={plenty['productId']}{query}")).json()
        assert {item["id"] for item in listed["data"]} == ids, query


async def test_pages_of_items_follow_one_another(client: httpx2.AsyncClient) -> None:
    """Walking by cursor meets every item once, in order of creation, also while items are added."""
    first = await _item(client)
    product = first["productId"]
    ids = [first["id"]] + [(await _item(client, productId=product))["id"] for _ in range(4)]
    seen: list[str] = []
    query: dict[str, Any] = {"productId": product, "limit": 2}
    while True:
        page = (await client.get("/inventory-items", params=query)).json()
        seen += [item["id"] for item in page["data"]]
        if page["nextCursor"] is None:
            break
        query["cursor"] = page["nextCursor"]
        if len(seen) == 2:
            ids.append((await _item(client, productId=product))["id"])
    assert seen == ids


async def test_the_ledger_is_paged_newest_first(client: httpx2.AsyncClient) -> None:
    """The newest row comes first, and pages stay put while rows are added."""
    item = await _item(client, 1)
    for quantity in (2, 3, 4):
        await _operate(client, item, "RECEIVE", quantity=quantity)
    url = f"/inventory-items/{item['id']}/transactions"
    page = (await client.get(url, params={"limit": 2})).json()
    await _operate(client, item, "RECEIVE", quantity=5)
    rest = (await client.get(url, params={"limit": 2, "cursor": page["nextCursor"]})).json()
    assert [row["quantityOnHandChange"] for row in page["data"] + rest["data"]] == [4, 3, 2, 1]
    assert rest["nextCursor"] is None
    assert (await client.get("/inventory-items/inv_unknown/transactions")).status_code == 404


async def test_a_products_threshold_can_be_set(client: httpx2.AsyncClient) -> None:
    """The threshold decides what by-product calls low."""
    item = await _item(client, 12)
    url = f"/products/{item['productId']}"
    asked = f"/inventory-items/by-product/{item['productId']}"
    assert (await client.get(asked)).json()["data"]["isLowStock"] is False
    edited = await client.patch(url, json={"lowStockThreshold": 12})
    assert (edited.status_code, edited.json()["data"]["lowStockThreshold"]) == (200, 12)
    assert (await client.get(url)).json() == edited.json()
    assert (await client.get(asked)).json()["data"]["isLowStock"] is True
    assert (await client.get("/products/prod_unheard_of")).status_code == 404


# -- stock operations and reservations ---------------------------------------------------------------------------------


async def test_one_operation_answers_with_ledger_and_item(client: httpx2.AsyncClient) -> None:
    """201, the row it wrote and the item after it."""
    item = await _item(client, 50)
    answer = await _operate(
        client,
        item,
        "RECEIVE",
        quantity=25,
        reason="Scheduled stock replenishment",
        referenceType="PURCHASE_ORDER",
        referenceNumber="PO-12345",
    )
    data = answer.json()["data"]
    (row,) = data["transactions"]
    assert answer.status_code == 201
    assert (row["type"], row["quantityOnHandChange"], row["quantityOnHandAfter"]) == ("RECEIPT", 25, 75)
    assert (row["reason"], row["referenceNumber"]) == ("Scheduled stock replenishment", "PO-12345")
    assert data["item"] == (await client.get(f"/inventory-items/{item['id']}")).json()["data"]


async def test_a_refusal_says_why_in_numbers(client: httpx2.AsyncClient) -> None:
    """More than there is: a problem document with the numbers behind its sentence, and nothing shipped."""
    item = await _item(client, 3)
    answer = await _operate(client, item, "SHIP", quantity=4)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert problem["type"] == "/problems/insufficient-stock"
    assert (problem["code"], problem["requested"], problem["available"]) == ("insufficient_stock", 4, 3)
    explained = (await client.get(problem["type"])).json()["data"]
    assert (explained["code"], explained["status"]) == ("insufficient_stock", 409)
    conflict = await _operate(client, item, "SHIP", quantity=1, expectedVersion=9)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "version_conflict")


async def test_a_batch_is_answered_operation_by_operation(client: httpx2.AsyncClient) -> None:
    """One refusal in the middle stops nobody; the answers stand in the order asked."""
    item = await _item(client, 5)
    operations = [
        {"type": "SHIP", "inventoryItemId": item["id"], "quantity": 2},
        {"type": "SHIP", "inventoryItemId": item["id"], "quantity": 100},
        {"type": "SHIP", "inventoryItemId": "inv_unknown", "quantity": 1},
        {"type": "RECEIVE", "inventoryItemId": item["id"], "quantity": 1},
    ]
    answer = await client.post("/stock-operations", json={"operations": operations})
    results = answer.json()["data"]["results"]
    assert answer.status_code == 200
    assert [result["success"] for result in results] == [True, False, False, True]
    assert [result["error"]["code"] for result in results[1:3]] == ["insufficient_stock", "not_found"]
    assert results[1]["error"]["correlationId"] == answer.headers["x-correlation-id"]
    assert results[3]["data"]["item"]["quantityOnHand"] == 4


async def test_a_reservation_holds_until_it_is_released(client: httpx2.AsyncClient) -> None:
    """Reserved units are not available; releasing, with or without a reason, gives them back once."""
    item = await _item(client, 5)
    body = {
        "referenceType": "ORDER",
        "referenceNumber": "SO-9",
        "lines": [{"inventoryItemId": item["id"], "quantity": 4}],
    }
    made = await client.post("/reservations", json=body)
    reservation = made.json()["data"]
    assert (made.status_code, reservation["status"]) == (201, "HELD")
    assert made.headers["location"] == f"/reservations/{reservation['id']}"
    assert (await client.get(made.headers["location"])).json()["data"] == reservation
    refused = await client.post("/reservations", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "insufficient_stock")
    for reason in ({"reason": "Order cancelled"}, None):
        released = await client.post(f"{made.headers['location']}/release", json=reason)
        assert (released.status_code, released.json()["data"]["status"]) == (200, "RELEASED")
    (row, *_) = (await client.get(f"/inventory-items/{item['id']}/transactions")).json()["data"]
    assert (row["type"], row["quantityReservedChange"]) == ("RELEASE", -4)
    assert row["reason"] == "Order cancelled"
    assert (await client.get("/reservations/res_unknown")).status_code == 404
    assert (await client.post("/reservations/res_unknown/release")).status_code == 404


# -- repeating, finding again, failing ---------------------------------------------------------------------------------


async def test_a_repeated_write_is_answered_and_not_repeated(client: httpx2.AsyncClient) -> None:
    """The same key with the same request gets the same answer, success or refusal; the stock moves once."""
    item = await _item(client, 5)
    for quantity, status in ((2, 201), (100, 409)):
        headers = {"Idempotency-Key": f"ship-{item['id']}-{quantity}", "X-Correlation-Id": "repeat"}
        body = {"type": "SHIP", "inventoryItemId": item["id"], "quantity": quantity}
        answers = [await client.post("/stock-operations", json=body, headers=headers) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {status}
        assert len({answer.content for answer in answers}) == 1
    assert (await client.get(f"/inventory-items/{item['id']}")).json()["data"]["quantityOnHand"] == 3


async def test_39_parallel_repeats_are_one(client: httpx2.AsyncClient) -> None:
    """A client that retries before it was answered still ships once."""
    item = await _item(client, 50)
    headers = {"Idempotency-Key": f"parallel-{item['id']}"}
    body = {"type": "SHIP", "inventoryItemId": item["id"], "quantity": 1}
    answers = await asyncio.gather(*(client.post("/stock-operations", json=body, headers=headers) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert (await client.get(f"/inventory-items/{item['id']}")).json()["data"]["quantityOnHand"] == 49


async def test_39_a_key_names_one_request(client: httpx2.AsyncClient) -> None:
    """The key with another body, another path or another If-Match is 422 and does nothing."""
    item = await _item(client, 5)
    headers = {"Idempotency-Key": f"named-{item['id']}"}
    url = f"/inventory-items/{item['id']}"
    assert (await client.patch(url, json={"name": "a"}, headers=headers)).status_code == 200
    others = [
        await client.patch(url, json={"name": "b"}, headers=headers),
        await client.patch("/inventory-items/inv_other", json={"name": "a"}, headers=headers),
        await client.patch(url, json={"name": "a"}, headers=headers | {"If-Match": '"2"'}),
        await client.post("/warehouses", json={"name": "a"}, headers=headers),
    ]
    assert [(other.status_code, other.json()["code"]) for other in others] == [(422, "idempotency_key_reused")] * 4
    assert (await client.get(url)).json()["data"]["version"] == 2


async def test_39_callers_do_not_share_keys(api: Api, client: httpx2.AsyncClient) -> None:
    """The same key of another subject is another request."""
    item = await _item(client, 5)
    headers = {"Idempotency-Key": "order-1"}
    body = {"type": "SHIP", "inventoryItemId": item["id"], "quantity": 1}
    async with api.client(OPERATOR, subject="other clerk") as other:
        for caller in (client, other):
            assert (await caller.post("/stock-operations", json=body, headers=headers)).status_code == 201
    assert (await client.get(f"/inventory-items/{item['id']}")).json()["data"]["quantityOnHand"] == 3


async def test_a_correlation_id_comes_back_and_stays_in_the_ledger(client: httpx2.AsyncClient) -> None:
    """In the answer's header, in problems, in the ledger; without one, the ledger has the transaction's own id."""
    item = await _item(client, 5)
    for id in ("checkout 4711", None):
        headers = {"X-Correlation-Id": id} if id else {}
        body = {"type": "SHIP", "inventoryItemId": item["id"], "quantity": 1}
        answer = await client.post("/stock-operations", json=body, headers=headers)
        (row,) = answer.json()["data"]["transactions"]
        assert row["correlationId"] == (id or row["id"])
        assert answer.headers["x-correlation-id"] == id or id is None
    missing = await client.get("/nowhere", headers={"X-Correlation-Id": "lost"})
    assert (missing.status_code, missing.json()["correlationId"]) == (404, "lost")
    silent = [(await client.get("/nowhere")).headers["x-correlation-id"] for _ in range(2)]
    assert silent[0] != silent[1]


async def test_one_log_line_tells_route_and_outcome_and_no_secret(api: Api) -> None:
    """Method, route template, status, subject, ids; nothing of path, query, body or token."""
    secret = "hidden-in-the-query"
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with api.client(PRODUCT_SERVICE, subject="shop") as client:
            url = f"/inventory-items/by-product/{secret}?{secret}=1"
            answer = await client.get(url, headers={"X-Correlation-Id": "c-1"})
    assert answer.status_code == 400
    (line,) = lines
    assert line.pop("ms") >= 0
    assert re.fullmatch("[0-9a-f]{16}", line.pop("request_id"))
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "route": "/inventory-items/by-product/{productId}",
        "status": 400,
        "subject": "shop",
        "correlation_id": "c-1",
    }


async def test_a_service_that_cannot_now_says_when(tmp_path: Path) -> None:
    """A writer that has stopped: 503, with Retry-After, and nothing done."""
    async with serving(tmp_path) as api, api.client(ADMIN) as client:
        await (await api.container.get(Writer)).stop()
        answer = await client.post("/warehouses", json={"name": "N"})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await client.get("/warehouses")).json()["data"] == []


# -- plugins, health, documentation ------------------------------------------------------------------------------------


class _Extras(InitPlugin):
    """What somebody else might install."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add two routes."""

        @get("/extras/warehouses", opt={"roles": ("auditor",)})
        async def count(store: FromDishka[Store]) -> dict[str, int]:
            return {"warehouses": len(await store.warehouses())}

        @get("/extras/broken", opt={"roles": ("public",)})
        async def broken() -> None:
            raise RuntimeError("password=hunter2")

        app_config.route_handlers.append(DishkaRouter("", route_handlers=[count, broken]))
        return app_config


@pytest.fixture(scope="module")
async def extended(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """A service with somebody else's plugin."""
    async with serving(tmp_path_factory.mktemp("extended"), plugins=[_Extras()]) as api:
        yield api


async def test_a_plugin_brings_routes_with_roles_of_its_own(extended: Api) -> None:
    """Its handlers get what they ask the container for, and let in whom they name."""
    async with extended.client("auditor") as auditor, extended.client(ADMIN) as admin:
        assert (await auditor.get("/extras/warehouses")).json() == {"warehouses": 0}
        assert (await admin.get("/extras/warehouses")).status_code == 403
        assert (await auditor.get("/warehouses")).status_code == 403


async def test_an_unexpected_error_tells_the_log_and_nobody_else(extended: Api) -> None:
    """500 in the usual shape without the text; the log has the error under the same correlation id."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with extended.client() as client:
            answer = await client.get("/extras/broken", headers={"X-Correlation-Id": "c-2"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
    logged = [line for line in lines if line["log_level"] == "error"]
    assert [(line["correlation_id"], str(line["exc_info"])) for line in logged] == [("c-2", "password=hunter2")]


async def test_every_handler_gets_its_collaborators(extended: Api) -> None:
    """A handler left out of a DishkaRouter would answer 400 about a query parameter nobody declared."""
    async with extended.client(ADMIN, "auditor") as client:
        for route in extended.app.routes:
            url = re.sub(r"\{productId\}", "prod_1", route.path_format)
            for method in set(getattr(route, "methods", ())) - {"OPTIONS"}:
                answer = await client.request(method, re.sub(r"\{\w+\}", "inv_1", url))
                assert answer.status_code in (200, 400, 404, 415) or route.path in ("/extras/broken", "/events"), (
                    method,
                    url,
                )
                assert "parameter" not in answer.text or "/schema" in url, (method, url)


ALL_WELL = {"store": "ok", "broker": "ok", "cache": "ok", "catalog": "ok", "keys": "ok"}


async def test_health_names_each_dependency(api: Api) -> None:
    """Everybody may ask; all is well here."""
    async with api.client() as client:
        assert (await client.get("/health/live")).json() == {"success": True, "data": {"status": "ok"}}
        for url in ("/health", "/health/ready"):
            answer = await client.get(url)
            assert answer.status_code == 200
            assert answer.json()["data"] == {"status": "ok", "dependencies": ALL_WELL}


async def test_pending_migrations_make_it_not_ready(tmp_path: Path) -> None:
    """The process lives, and no request could succeed."""
    async with serving(tmp_path, migrate=False) as api, api.client() as client:
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "unavailable")
        assert ready.json()["dependencies"] == ALL_WELL | {"store": "pending_migrations"}
        assert "retry-after" in ready.headers
        assert (await client.get("/health/live")).status_code == 200


class _Dependency:
    """A store, broker or cache that can be away, or hang."""

    def __init__(self, *, away: bool = False, hangs: bool = False, breaks: bool = False) -> None:
        self.away = away
        self.hangs = hangs
        self.breaks = breaks
        self.asked = 0

    async def ping(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise Unavailable("It is away.")
        if self.breaks:
            raise ValueError("The driver has a mood.")

    async def pending_migrations(self) -> list[str]:
        return []


def _app_over(store: _Dependency, broker: _Dependency, cache: _Dependency, watch: CatalogWatch | None = None) -> Api:
    verifier = Verifier(KeyRing(secrets=[SECRET]), issuer="inventory-service", audience="inventory-service")
    provider = Provider(scope=Scope.APP)
    things: dict[Any, Any] = {Store: store, Broker: broker, Cache: cache, KeyWatch: KeyWatch(verifier)}
    things[CatalogWatch] = watch or CatalogWatch(MemoryCatalog(), seconds=0)
    for thing in things:
        provider.from_context(provides=thing)
    container = make_async_container(provider, context=things)
    return Api(create_app(container), container, store)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("store", "broker", "cache", "status", "word"),
    [
        ({}, {"away": True}, {}, 200, "degraded"),
        ({}, {}, {"away": True}, 200, "degraded"),
        ({}, {"hangs": True}, {"hangs": True}, 200, "degraded"),
        ({"away": True}, {}, {}, 503, 503),
        ({"hangs": True}, {"hangs": True}, {}, 503, 503),
        ({"breaks": True}, {"breaks": True}, {}, 503, 503),
    ],
)
async def test_readiness_fails_with_the_store_alone(
    store: dict[str, bool], broker: dict[str, bool], cache: dict[str, bool], status: int, word: object
) -> None:
    """Without broker or cache, stock is still sold correctly; without the store, nothing is. The check never hangs."""
    api = _app_over(_Dependency(**store), _Dependency(**broker), _Dependency(**cache))
    async with api.client() as client, asyncio.timeout(3):
        answer = await client.get("/health/ready")
    body = answer.json()
    assert (answer.status_code, body.get("data", body)["status"]) == (status, word)
    given = {"store": store, "broker": broker, "cache": cache}
    expected = {name: "unavailable" if trouble else "ok" for name, trouble in given.items()}
    assert body.get("data", body)["dependencies"] == ALL_WELL | expected


@pytest.mark.parametrize("why", ["it says so", "calls to it fail"])
async def test_readiness_tells_of_the_product_service(why: str) -> None:
    """Without it stock is sold all the same: 200 and degraded, until it is well again; nobody waits for it."""
    catalog = MemoryCatalog()
    watch = CatalogWatch(catalog, seconds=0)
    async with _app_over(_Dependency(), _Dependency(), _Dependency(), watch).client() as client:
        catalog.away = why == "it says so"
        catalog.force("OPEN" if why == "calls to it fail" else None)
        await watch.look()
        away = await client.get("/health/ready")
    catalog.away = False
    catalog.force(None)
    await watch.look()
    async with _app_over(_Dependency(), _Dependency(), _Dependency(), watch).client() as client:
        back = await client.get("/health/ready")

    assert (away.status_code, away.json()["data"]["status"]) == (200, "degraded")
    assert away.json()["data"]["dependencies"] == ALL_WELL | {"catalog": "unavailable"}
    assert back.json()["data"] == {"status": "ok", "dependencies": ALL_WELL}


async def test_an_outage_is_logged_when_it_begins_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often health is asked for meanwhile."""
    monkeypatch.setattr("entrypoints.api.health.CHECK_SECONDS", 0.05)
    broker = _Dependency(away=True)
    with structlog.testing.capture_logs() as logs:
        async with _app_over(_Dependency(), broker, _Dependency()).client() as client:
            for asked in range(4):
                broker.away = asked < 3
                await client.get("/health")
                await asyncio.sleep(0.06)

    told = [(line["log_level"], line["event"]) for line in logs if line.get("dependency") == "broker"]
    assert (told, broker.asked) == ([("warning", "dependency is away"), ("info", "dependency is back")], 4)


async def test_health_checks_are_no_way_to_load_the_database() -> None:
    """However many ask at once, the dependencies are looked at once."""
    store = _Dependency()
    async with _app_over(store, _Dependency(), _Dependency()).client() as client:
        await asyncio.gather(*(client.get("/health") for _ in range(50)))
    assert store.asked == 1


async def test_the_documentation_asks_nobody_outside(api: Api) -> None:
    """The page and what it loads name no other host, and the browser is told to ask none."""
    async with api.client() as client:
        page = await client.get("/schema")
        loaded = re.findall(r'(?:src|href|url): ?"([^"]+)"|(?:src|href)="([^"]+)"', page.text)
        urls = {first or second for first, second in loaded} - {"data:,"}
        assert urls == {"/schema/openapi.json", "/schema/assets/swagger-ui-bundle.js", "/schema/assets/swagger-ui.css"}
        assert "//" not in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        for url in urls:
            assert (await client.get(url)).status_code == 200
        styles = (await client.get("/schema/assets/swagger-ui.css")).text
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", styles)
        assert (await client.get("/schema/redoc")).json()["code"] == "not_found"


async def test_the_openapi_document_tells_the_truth(api: Api) -> None:
    """Every route is in it with its body, its errors and whether it needs a token; references all resolve."""
    async with api.client() as client:
        document = (await client.get("/schema/openapi.json")).json()
    assert (document["info"]["title"], document["info"]["version"]) == ("Inventory Service", "0.1.0")
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    operations = {(method, path): way for path, ways in document["paths"].items() for method, way in ways.items()}
    routes = {
        (method.lower(), route.path_format) for route in api.app.routes for method in getattr(route, "methods", ())
    }
    told = {route for route in routes if route[0] != "options" and "/schema" not in route[1]}
    assert told == operations.keys()
    for (method, path), operation in operations.items():
        names = {parameter["name"] for parameter in operation["parameters"]}
        public = path.startswith(("/health", "/problems"))
        assert operation.get("security") == (None if public else [{"token": []}]), path
        takes_body = method in ("post", "put", "patch") and not path.endswith("/confirm")
        assert ("requestBody" in operation) == takes_body, path
        # Operators' acts are claims, an event has its own id, a file its digest: they are done once without a key.
        keyed = method in ("post", "patch") and not path.startswith(("/admin/", "/product-events", "/imports"))
        assert ("Idempotency-Key" in names) == keyed, path
        assert "application/problem+json" in operation["responses"]["400"]["content"], path
        assert operation["summary"], path
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= schemas.keys()
    assert schemas["ProductInventorySuccess"]["properties"]["data"] == {"$ref": "#/components/schemas/ProductInventory"}
    assert operations["post", "/reservations/{id}/release"]["requestBody"]["required"] is False


async def test_the_documented_examples_are_accepted(api: Api) -> None:
    """Every example request body is one its route takes."""
    handlers = {
        handler.operation_id: handler for route in api.app.routes for handler in getattr(route, "route_handlers", ())
    }
    for operation_id, examples in EXAMPLES.items():
        declared = handlers[operation_id].parsed_fn_signature.parameters["data"].annotation
        for example in examples.values():
            assert decode(httpx2.Request("POST", "http://x", json=example).content, declared) is not None
    assert isinstance(
        decode(b'{"operations":[{"type":"ACTIVATE","inventoryItemId":"inv_1"}]}', StockOperation | Batch), Batch
    )


async def test_without_documentation_there_is_none() -> None:
    """A service may keep its description to itself."""
    app = create_app(make_async_container(), docs=False)
    assert (await ask(app, "GET", "/schema")).status == 404
    assert (
        await ask(app, "GET", "/schema/openapi.json", headers={"Authorization": f"Bearer {token(ADMIN)}"})
    ).status == 404
