"""Product events over HTTP: the same envelope, the same inbox, the same dead letters as by AMQP."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from in_process import ADMIN, Api, serving
from standin import SECRET as SHARED
from standin import standing_in
from stores import dead_letters, only

from core.consuming.consumption import ProductEvents
from core.events import PRODUCT_EXCHANGE
from entrypoints.demo.misbehaviour import Misbehaviour
from entrypoints.demo.product_service import ProductService
from ports.broker import Delivery, Message

HOUSES = {"default_warehouses": ("wh_1",)}


class Door:
    """An API with one warehouse, and the one who brings events to it."""

    def __init__(self, api: Api, brings: httpx2.AsyncClient, manages: httpx2.AsyncClient) -> None:
        self.api = api
        self.brings = brings
        self.manages = manages

    async def bring(self, id: str, kind: str = "Created", **payload: Any) -> httpx2.Response:
        """Bring an event."""
        return await self.brings.post("/product-events", json=event(id, kind, **payload))

    async def items(self) -> list[Any]:
        """Return every item."""
        found: list[Any] = (await self.manages.get("/inventory-items")).json()["data"]
        return found


def event(id: str, kind: str = "Created", **payload: Any) -> dict[str, Any]:
    """Return an event as the Product Service writes it."""
    return {
        "eventId": id,
        "eventType": f"Product{kind}",
        "eventVersion": "1.0.0",
        "aggregateId": "prod_1",
        "aggregateType": "Product",
        "timestamp": (datetime.now(UTC) - timedelta(minutes=1)).isoformat(),
        "metadata": {"correlationId": f"corr-{id}", "source": "product-service"},
        "payload": {"productId": "prod_1", "sku": "MUG", "name": "Mug"} | payload,
    }


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    """One without a Product Service to ask."""
    async with (
        serving(tmp_path, **HOUSES) as api,
        api.client("product-events", subject="shop") as brings,
        api.client(ADMIN) as manages,
    ):
        (await manages.post("/warehouses", json={"id": "wh_1", "name": "North"})).raise_for_status()
        yield Door(api, brings, manages)


async def test_an_event_is_taken_and_its_status_stands_where_it_says(door: Door) -> None:
    """202 with a place to look; the item is there, and says which event made it."""
    taken = await door.bring("evt 1/é")
    looked = await door.brings.get("/product-events/evt%202")
    (await door.bring("evt 2", "Updated", name="Cup")).raise_for_status()
    status = await door.brings.get("/product-events/evt%202")
    item = only(await door.items())

    assert taken.status_code == 202
    assert taken.headers["location"] == "/product-events/evt%201%2F%C3%A9"
    assert (taken.json()["data"]["eventId"], taken.json()["data"]["status"]) == ("evt 1/é", "APPLIED")
    assert (looked.status_code, looked.json()["code"]) == (404, "not_found")
    assert (status.status_code, status.json()["data"]["status"]) == (200, "APPLIED")
    assert (item["sku"], item["name"], item["metadata"]["productEventId"]) == ("MUG", "Cup", "evt 1/é")


async def test_an_event_that_came_by_the_queue_is_the_same_event(door: Door) -> None:
    """One inbox: what came by AMQP changes nothing by HTTP, and its status can be asked."""
    by_queue = await door.api.container.get(ProductEvents)
    message = Message(
        id="m",
        exchange=PRODUCT_EXCHANGE,
        routing_key="product.productcreated.product",
        body=msgspec.json.encode(event("evt-1")),
    )
    await by_queue.handle(Delivery(message, redelivered=False))
    before = await door.items()

    assert (await door.brings.get("/product-events/evt-1")).json()["data"]["status"] == "APPLIED"
    again = await door.bring("evt-1", name="Another")
    assert (again.status_code, again.json()["data"]["status"]) == (202, "APPLIED")
    assert await door.items() == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"eventType": "ProductMelted"}, "$.eventType"),
        ({"eventVersion": "2.0.0"}, "2.0.0"),
        ({"timestamp": "yesterday"}, "$.timestamp"),
        ({"timestamp": "2999-01-01T00:00:00Z"}, "5 minutes ahead"),
        ({"payload": {"productId": "prod_1"}}, "sku or variants"),
        ({"payload": {"sku": "S"}}, "productId"),
        ({"eventId": ""}, "$.eventId"),
    ],
)
async def test_a_bad_event_is_refused_with_the_reason(door: Door, wrong: dict[str, Any], says: str) -> None:
    """400, and nothing is kept of it: whoever brought it is there to be told."""
    answer = await door.brings.post("/product-events", json=event("evt-1") | wrong)

    assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")
    assert says in answer.json()["detail"]
    assert await dead_letters(door.api.store) == []
    assert await door.items() == []


async def test_what_fails_later_is_parked(door: Door) -> None:
    """A SKU in use is no fault of the message: 202, and operators find it where they find all that failed."""
    (await door.bring("evt-1")).raise_for_status()
    taken = await door.bring("evt-2", productId="prod_2")
    status = (await door.brings.get(taken.headers["location"])).json()["data"]
    letter = only(await dead_letters(door.api.store))

    assert taken.status_code == 202
    assert (status["status"], status["code"]) == ("PARKED", "sku_conflict")
    assert (letter.message.id, letter.message.correlation_id, letter.event_id) == ("evt-2", "", "evt-2")
    listed = only((await door.manages.get("/admin/dead-letters")).json()["data"])
    await door.manages.post(f"/admin/dead-letters/{listed['id']}/discard", json={"reason": "A mistake"})
    assert (await door.brings.get("/product-events/evt-2")).json()["data"]["status"] == "DISCARDED"


async def test_what_makes_no_items_says_why(tmp_path: Path) -> None:
    """SKIPPED, with the reason."""
    async with serving(tmp_path) as api, api.client("product-events") as brings:
        taken = (await brings.post("/product-events", json=event("evt-1"))).json()["data"]

    assert taken["status"] == "SKIPPED"
    assert "INVENTORY_DEFAULT_WAREHOUSES" in taken["reason"]


async def test_large_events_are_taken(door: Door) -> None:
    """Five hundred variants are more than other bodies may hold; a megabyte is the end."""
    variants = [{"variantId": f"v{number}", "sku": f"S-{number}", "name": "N" * 200} for number in range(500)]
    assert (await door.bring("evt-1", variants=variants)).json()["data"]["status"] == "APPLIED"
    assert (await door.bring("evt-2", filler="x" * 1_100_000)).status_code == 413


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[tuple[Door, ProductService]]:
    """A door with a Product Service behind it, which has a product with two variants."""
    async with (
        standing_in() as (stand_in, url),
        serving(tmp_path, catalog=url, catalog_secret=SHARED, catalog_timeout_ms=300, **HOUSES) as api,
        api.client("product-events") as brings,
        api.client(ADMIN) as manages,
    ):
        (await manages.post("/warehouses", json={"id": "wh_1", "name": "North"})).raise_for_status()
        yield Door(api, brings, manages), stand_in


async def test_variants_are_asked_for(asking: tuple[Door, ProductService]) -> None:
    """One item a variant, from an event that names none."""
    door, _ = asking
    (await door.bring("evt-1")).raise_for_status()

    assert {item["sku"] for item in await door.items()} == {"MUG-RED", "MUG-BLUE"}


@pytest.mark.parametrize(("fault", "status"), [("error", 503), ("hang", 503), ("garbage", 502)])
async def test_what_cannot_be_done_now_is_to_be_brought_again(
    asking: tuple[Door, ProductService], fault: Any, status: int
) -> None:
    """Without the variants nothing is done and nothing parked; brought again, it is applied."""
    door, stand_in = asking
    stand_in.misbehaviour = Misbehaviour(fault)
    first = await door.bring("evt-1")
    stand_in.misbehaviour = None
    second = await door.bring("evt-1")

    assert (first.status_code, second.status_code) == (status, 202)
    assert await dead_letters(door.api.store) == []
    assert len(await door.items()) == 2
