"""Availability as a shop asks for it: what to display, why, and by when; for an item's SKU and for a product."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from in_process import OPERATOR, PRODUCT_SERVICE, serving

DAY = timedelta(days=1)


@pytest.fixture
async def client(tmp_path: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A shop and its clerk in one."""
    async with serving(tmp_path) as api, api.client(OPERATOR, PRODUCT_SERVICE) as client:
        await client.post("/warehouses", json={"id": "wh_1", "name": "North", "leadTimeDays": {"min": 1, "max": 2}})
        south = {"id": "wh_2", "name": "South", "priority": 900, "leadTimeDays": {"min": 5, "max": 7}}
        await client.post("/warehouses", json=south)
        yield client


async def made(client: httpx2.AsyncClient, quantity: int, sku: str = "W-1", warehouse: str = "wh_1") -> str:
    """Return the id of a new item of prod_1."""
    body = {"sku": sku, "productId": "prod_1", "warehouseId": warehouse, "initialQuantity": quantity}
    return str((await client.post("/inventory-items", json=body)).raise_for_status().json()["data"]["id"])


async def asked(client: httpx2.AsyncClient, url: str, **query: Any) -> dict[str, Any]:
    """Return the answer to a question."""
    answer = (await client.get(url, params=query)).raise_for_status()
    data: dict[str, Any] = answer.json()["data"]
    return data


async def test_the_specification_s_answer_comes_first(client: httpx2.AsyncClient) -> None:
    """Its five fields as they stand there, and after them what is ours."""
    item = await made(client, 85)

    answer = await asked(client, f"/inventory-items/{item}/availability", quantity=10)

    assert list(answer.items())[:5] == [
        ("isAvailable", True),
        ("availableQuantity", 85),
        ("requestedQuantity", 10),
        ("leadTimeEstimate", "1-2 days"),
        ("restockExpected", None),
    ]
    assert dict(list(answer.items())[5:]) == {
        "displayStatus": "IN_STOCK",
        "message": "In Stock",
        "lowStockThreshold": 10,
    }


async def test_what_to_display_follows_the_stock_and_the_threshold(client: httpx2.AsyncClient) -> None:
    """From in stock to low to limited to out and back, each at once; the threshold is the product's own."""
    item = await made(client, 12)
    urls = (f"/inventory-items/{item}/availability", "/products/prod_1/availability")

    async def shown(quantity: int = 2) -> set[tuple[str, bool]]:
        answers = [await asked(client, url, quantity=quantity) for url in urls]
        return {(answer["displayStatus"], answer["isAvailable"]) for answer in answers}

    async def move(**operation: Any) -> None:
        body = {"inventoryItemId": item, **operation}
        (await client.post("/stock-operations", json=body)).raise_for_status()

    assert await shown() == {("IN_STOCK", True)}
    await client.patch("/products/prod_1", json={"lowStockThreshold": 20})
    assert await shown() == {("LOW_STOCK", True)}
    await move(type="SHIP", quantity=11)
    assert await shown() == {("LIMITED_AVAILABILITY", False)}
    await move(type="SHIP", quantity=1)
    assert await shown() == {("OUT_OF_STOCK", False)}
    await move(type="RECEIVE", quantity=30)
    assert await shown() == {("IN_STOCK", True)}


async def test_a_product_is_all_its_items_or_one_sku_s(client: httpx2.AsyncClient) -> None:
    """Over warehouses and SKUs, or of one SKU; a SKU it does not have is not found."""
    await made(client, 5)
    await made(client, 7, warehouse="wh_2")
    await made(client, 100, sku="OTHER")

    whole = await asked(client, "/products/prod_1/availability", quantity=110)
    of_sku = await asked(client, "/products/prod_1/availability", quantity=6, sku="W-1")
    unknown = await client.get("/products/prod_1/availability", params={"sku": "NONE"})
    nobody = await client.get("/products/nobody/availability")

    assert (whole["availableQuantity"], whole["sku"], whole["leadTimeEstimate"]) == (112, None, "5-7 days")
    assert (of_sku["availableQuantity"], of_sku["sku"], of_sku["isAvailable"]) == (12, "W-1", True)
    assert (unknown.status_code, unknown.json()["sku"], nobody.status_code) == (404, "NONE", 404)


async def test_an_explanation_has_the_rule_its_numbers_and_their_freshness(client: httpx2.AsyncClient) -> None:
    """And says item by item what was counted and what would ship; without being asked for it, nothing."""
    item = await made(client, 5)
    south = await made(client, 7, warehouse="wh_2")
    await client.post("/reservations", json={"lines": [{"inventoryItemId": item, "quantity": 2}]})
    policy = {"type": "SET_POLICY", "inventoryItemId": south, "safetyStock": 1}
    await client.post("/stock-operations", json=policy)

    answers = [
        await asked(client, url, quantity=4, explain="true")
        for url in (f"/inventory-items/{item}/availability", "/products/prod_1/availability")
    ]

    for answer in answers:
        why = answer["explanation"]
        assert why["rule"] == "available 9 <= lowStockThreshold 10"
        assert [(each["warehouseName"], each["quantityAvailable"], each["ships"]) for each in why["items"]] == [
            ("North", 3, 3),
            ("South", 6, 1),
        ]
        assert (why["items"][0]["quantityReserved"], why["items"][1]["safetyStock"]) == (2, 1)
        assert why["source"] in ("store", "cache", "process")
        assert 0 <= why["ageSeconds"] < 60
        assert datetime.fromisoformat(why["readAt"]) <= datetime.now(UTC)
    of_product = (await client.get("/inventory-items/by-product/prod_1")).headers["etag"]
    assert of_product.strip('"').startswith(f"{answers[0]['explanation']['revision']}.")
    assert "explanation" not in await asked(client, "/products/prod_1/availability", quantity=4)


async def test_by_when_so_many_can_be_had(client: httpx2.AsyncClient) -> None:
    """From what is held for a time and what is expected; never for ever and ever."""
    item = await made(client, 10)
    held = {"expiresInSeconds": 3_600, "lines": [{"inventoryItemId": item, "quantity": 4}]}
    expires_at = (await client.post("/reservations", json=held)).json()["data"]["expiresAt"]
    comes = datetime.now(UTC).replace(microsecond=0) + DAY
    receipt = {"inventoryItemId": item, "quantity": 20, "expectedAt": comes.isoformat()}
    (await client.post("/expected-receipts", json=receipt)).raise_for_status()
    url = "/products/prod_1/availability"

    async def earliest(quantity: int) -> datetime | None:
        told = (await asked(client, url, quantity=quantity))["earliestAvailable"]
        return datetime.fromisoformat(told) if told else None

    now = await earliest(6)
    assert now is not None
    assert now <= datetime.now(UTC)
    assert await earliest(7) == await earliest(10) == datetime.fromisoformat(expires_at)
    assert await earliest(11) == await earliest(30) == comes
    assert await earliest(31) is None
    for by, many in ((0 * DAY, 6), (2 * timedelta(hours=1), 10), (DAY - timedelta(hours=1), 10), (2 * DAY, 30)):
        at = (datetime.now(UTC) + by).isoformat()
        assert (await asked(client, url, by=at))["availableBy"] == many
    explained = await asked(client, url, quantity=7, explain="true")
    assert [step["quantityAvailable"] for step in explained["explanation"]["projection"]] == [6, 10, 30]

    confirmed = (await client.get("/reservations")).json()["data"][0]["id"]
    await client.post(f"/reservations/{confirmed}/confirm")
    assert await earliest(7) == comes  # a confirmed reservation gives nothing back


async def test_out_of_stock_says_when_more_comes(client: httpx2.AsyncClient) -> None:
    """With the date as the lead time, as the specification's code has it."""
    item = await made(client, 0)
    assert (await asked(client, f"/inventory-items/{item}/availability"))["leadTimeEstimate"] is None
    comes = datetime.now(UTC) + 3 * DAY
    receipt = {"inventoryItemId": item, "quantity": 20, "expectedAt": comes.isoformat()}
    await client.post("/expected-receipts", json=receipt)

    answer = await asked(client, f"/inventory-items/{item}/availability")

    assert answer["leadTimeEstimate"] == f"Expected back in stock {comes:%Y-%m-%d}"
    assert datetime.fromisoformat(answer["restockExpected"]) == comes


async def test_what_is_kept_near_is_told_by_the_same_rules(tmp_path: Any) -> None:
    """The short way asks for a token and a good query like the long one, and never tells what is over."""
    async with serving(tmp_path) as api, api.client(OPERATOR) as clerk, api.client() as nobody:
        await clerk.post("/warehouses", json={"id": "wh_1", "name": "North"})
        item = await made(clerk, 20)
        urls = (
            "/inventory-items/by-product/prod_1",
            f"/inventory-items/{item}/availability?quantity=3&checkAllWarehouses=false",
            "/products/prod_1/availability?quantity=3",
        )
        for left in (20, 19, 18):
            for url in urls:
                answers = [(await clerk.get(url)).json()["data"] for _ in range(3)]
                assert answers[0] == answers[1] == answers[2]
                assert left in (answers[0].get("availableQuantity"), answers[0].get("totalQuantityAvailable"))
                assert (await nobody.get(url)).status_code == 401
                again = f"{url}{'&' if '?' in url else '?'}"
                assert [(await clerk.get(again + bad)).status_code for bad in ("colour=red", "quantity=0")] == [
                    400,
                    400,
                ]
            ship = {"type": "SHIP", "inventoryItemId": item, "quantity": 1}
            (await clerk.post("/stock-operations", json=ship)).raise_for_status()
        assert (await clerk.get("/products/prod_1/availability?quantity=18")).json()["data"]["isAvailable"] is False


@pytest.mark.parametrize(
    "query", [{"by": "tomorrow"}, {"by": "2026-11-23T10:00:00"}, {"quantity": 0}, {"explain": "?"}]
)
async def test_a_question_that_cannot_be_meant(client: httpx2.AsyncClient, query: dict[str, Any]) -> None:
    """Is refused as such."""
    await made(client, 1)
    answer = await client.get("/products/prod_1/availability", params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")
