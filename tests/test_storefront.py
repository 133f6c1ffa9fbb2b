"""The storefront's pages without a browser: what works without JavaScript, what is escaped, what is refused."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx2
import msgspec
import pytest
from standin import sign, verifier

from adapters.memory import MemoryBroker
from core.errors import Unavailable
from core.events import EVENTS_EXCHANGE
from core.stock import ProductInventory
from entrypoints.demo.goods import StoredProduct
from entrypoints.demo.inventory_client import InventoryClient, OrderRefused, open_inventory
from entrypoints.demo.product_service import ProductService
from entrypoints.demo.storefront import Storefront
from ports.broker import Message

RESTOCK = datetime(2026, 12, 3, 8, tzinfo=UTC)
NASTY = StoredProduct(id='prod"><i>', sku="<b>&amp;", name="<script>alert(1)</script>")
MUG = StoredProduct(id="prod_1", sku="MUG", name="Oak Mug")


class Warehouse(InventoryClient):
    """An Inventory Service with so many of everything; keeps the orders it takes, by number."""

    def __init__(self) -> None:
        self.left = 20
        self.sequence = 1
        self.away = False
        self.orders: dict[str, tuple[str, int]] = {}

    async def by_product(self, product_id: str) -> ProductInventory:
        return ProductInventory(self.left, 0, 0 < self.left <= 10, not self.left, (), self.sequence, RESTOCK)

    async def lead_time(self, product_id: str, quantity: int) -> str | None:
        return "1-2 days"

    async def order(self, number: str, product_id: str, quantity: int) -> None:
        if self.away:
            raise Unavailable("The Inventory Service does not answer.")
        if number in self.orders:
            return
        if quantity > self.left:
            raise OrderRefused("There is not as much.")
        self.left -= quantity
        self.sequence += 1
        self.orders[number] = product_id, quantity


class Visit:
    """Somebody without JavaScript, and the shop."""

    def __init__(self, warehouse: Warehouse, service: ProductService, client: httpx2.AsyncClient) -> None:
        self.warehouse = warehouse
        self.service = service
        self.client = client

    async def buy(self, quantity: object, *, order: str = "", **headers: str) -> httpx2.Response:
        return await self.client.post(
            "/shop/prod_1/buy", data={"quantity": str(quantity), "order": order}, headers=headers
        )


@pytest.fixture
async def visit() -> AsyncIterator[Visit]:
    """A shop with two products, one of which is named by somebody who means no good."""
    warehouse = Warehouse()
    storefront = Storefront({MUG.id: MUG, NASTY.id: NASTY}, warehouse)
    service = ProductService(verifier(), storefront=storefront)
    async with (
        service.serving(socket.create_server(("127.0.0.1", 0))) as url,
        httpx2.AsyncClient(base_url=url, trust_env=False, timeout=5) as client,
    ):
        yield Visit(warehouse, service, client)


async def test_what_somebody_has_named_is_text(visit: Visit) -> None:
    """Names, SKUs, ids and search words are escaped; a page has no script or style of its own, nor may it have any."""
    pages = [
        await visit.client.get("/"),
        await visit.client.get("/", params={"q": '"><script>'}),
        await visit.client.get("/shop/prod%22%3E%3Ci%3E"),
    ]

    for page in pages:
        assert page.status_code == 200
        assert re.findall(r"<script[^>]*>", page.text) == ['<script src="/assets/storefront.js" defer>']
        assert "<i>" not in page.text and "<b>" not in page.text and "style=" not in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[0].text
    assert '<span class="line">Ships in 1-2 days</span>' in pages[2].text


async def test_a_form_buys_once(visit: Visit) -> None:
    """An order ends on a page that can be loaded again; the same form sent again is the same order."""
    form = (await visit.client.get("/shop/prod_1")).text
    number = re.findall(r'name="order" value="(SO(?:-[0-9A-Z]{4}){3})"', form)[0]
    answers = [await visit.buy(2, order=number), await visit.buy(2, order=number)]
    thanks = await visit.client.get(answers[0].headers["location"])

    assert [answer.status_code for answer in answers] == [303, 303]
    assert f"Thank you: 2 of Oak Mug. Your order is {number}." in thanks.text
    assert visit.warehouse.orders == {number: ("prod_1", 2)}
    assert number not in (await visit.client.get(f"/shop/{'prod%22%3E%3Ci%3E'}?order={number}")).text


async def test_the_quantity_is_looked_at_without_javascript(visit: Visit) -> None:
    """The button Check asks for so many: limited availability, and the form keeps the number."""
    page = (await visit.client.get("/shop/prod_1?quantity=21&order=")).text

    assert "Limited Availability" in page and "Only 20 available" in page
    assert 'name="quantity" value="21"' in page


@pytest.mark.parametrize(("left", "why"), [(2, "only 2 are left"), (1, "only 1 is left"), (0, "it has sold out")])
async def test_what_cannot_be_had_is_said_with_a_date(visit: Visit, left: int, why: str) -> None:
    """409 with what is left and when more comes, on the page and to the script; what is shown is new at once."""
    await visit.client.get("/shop/prod_1")
    visit.warehouse.left, visit.warehouse.sequence = left, 2
    text = f"5 of Oak Mug cannot be had: {why}. More are expected on 3 December 2026."

    page = await visit.buy(5)
    scripted = await visit.buy(5, accept="application/json")

    assert (page.status_code, scripted.status_code) == (409, 409)
    assert text in page.text
    assert scripted.json()["message"] == text
    assert ("Only" if left else "Out of Stock") in page.text


async def test_an_order_in_doubt_keeps_its_number(visit: Visit) -> None:
    """Nobody answers: the page says so and sends the same number again, so that it is one order."""
    number = "SO-AAAA-BBBB-CCCC"
    visit.warehouse.away = True
    page = await visit.buy(1, order=number)
    scripted = await visit.buy(1, order=number, accept="application/json")

    assert (page.status_code, scripted.status_code) == (503, 503)
    assert f'name="order" value="{number}"' in page.text
    assert scripted.json()["nextOrder"] == number


@pytest.mark.parametrize("quantity", ["0", "-1", "1000", "1.5", "ten", "٣", "1 or 1=1", "9" * 400])
async def test_a_quantity_is_a_small_whole_number(visit: Visit, quantity: str) -> None:
    """Anything else is 400, in orders and in questions, with a sentence; nothing is ordered."""
    asked = await visit.client.get("/shop/prod_1/availability", params={"quantity": quantity})

    assert (400, 400) == (asked.status_code, (await visit.buy(quantity)).status_code)
    assert "whole number from 1 to 999" in asked.text
    assert visit.warehouse.orders == {}


async def test_another_site_cannot_order(visit: Visit) -> None:
    """A form of a stranger's page is 403; the shop's own is not."""
    own = str(visit.client.base_url).rstrip("/")

    assert (await visit.buy(1, origin="https://evil.example")).status_code == 403
    assert (await visit.buy(1, origin="null")).status_code == 403
    assert visit.warehouse.orders == {}
    assert (await visit.buy(1, origin=own)).status_code == 303


async def test_what_is_not_there_is_404(visit: Visit) -> None:
    """Products, files and methods that are not the shop's."""
    for path in ("/shop/prod_2", "/shop/prod_2/availability", "/assets/..%2Fpages.py", "/assets/x", "/shop/prod_1/buy"):
        assert (await visit.client.get(path)).status_code == 404


async def test_search_and_pages(visit: Visit) -> None:
    """Words find names and SKUs, whatever their case; pages beyond the last are the last."""
    for n in range(2, 52):
        visit.service.products[f"prod_{n}"] = StoredProduct(id=f"prod_{n}", sku=f"S-{n}", name=f"Lamp {n:02}")

    found = (await visit.client.get("/?q=LAMP+1")).text
    last = (await visit.client.get("/?page=999")).text
    nothing = (await visit.client.get("/?q=sofa&page=x")).text

    assert found.count('class="card"') == 10
    assert "Page 3 of 3" in last and 'href="/?page=2"' in last
    assert "Nothing here is called that" in nothing


async def test_a_page_is_told_of_its_products_alone(visit: Visit) -> None:
    """The stream names what has changed; while the shop is deaf it hears nothing, and then hears again."""
    broker = MemoryBroker()
    await broker.declare()

    async def happens(product_id: str, sequence: int) -> None:
        body = msgspec.json.encode({"metadata": {"sequence": sequence}, "payload": {"productId": product_id}})
        await broker.publish(
            [Message(id=f"{product_id} {sequence}", exchange=EVENTS_EXCHANGE, routing_key="inventory.x", body=body)]
        )

    async with broker.listen(EVENTS_EXCHANGE, "#") as heard, visit.client.stream("GET", "/live?product=prod_1") as live:
        hearing = asyncio.create_task(visit.service.hear(heard))
        lines = live.aiter_lines()
        assert await anext(lines) == "retry: 1000"
        manager = {"authorization": f"Bearer {sign('product-manager')}"}
        await visit.client.put("/misbehaviour", json={"fault": "deaf", "times": 1}, headers=manager)
        for product_id, sequence in (("prod_1", 2), ("prod_9", 1), ("prod_1", 3), ("prod_1", 3)):
            await happens(product_id, sequence)
        async with asyncio.timeout(5):
            while (line := await anext(lines)) != 'data: "prod_1"':
                assert "prod_9" not in line
        hearing.cancel()

    assert visit.service.misbehaviour is None


# -- the client --------------------------------------------------------------------------------------------------------


class Wire:
    """The Inventory Service's answers in turn, and what it was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    async def client(self) -> InventoryClient:
        async def answer(request: httpx2.Request) -> httpx2.Response:
            self.asked.append(request)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        transport = httpx2.MockTransport(answer)
        return InventoryClient(httpx2.AsyncClient(transport=transport), lambda role: role, url="http://inventory")


def held() -> httpx2.Response:
    """The answer to a reservation and to its confirmation."""
    return httpx2.Response(201, json={"success": True, "data": {"id": "res_1"}})


async def test_an_order_is_sent_again_under_its_number() -> None:
    """A lost answer and a busy service are asked again with the same keys, by who takes orders."""
    wire = Wire(httpx2.ReadError("gone"), httpx2.Response(503), held(), httpx2.Response(503), held())
    await (await wire.client()).order("SO-1", "prod_1", 2)

    assert ["/reservations"] * 3 + ["/reservations/res_1/confirm"] * 2 == [request.url.path for request in wire.asked]
    assert ["SO-1:reserve"] * 3 + ["SO-1:confirm"] * 2 == [each.headers["idempotency-key"] for each in wire.asked]
    assert {"Bearer inventory-operator"} == {request.headers["authorization"] for request in wire.asked}


@pytest.mark.parametrize("status", [404, 409, 422])
async def test_a_refusal_is_not_tried_again(status: int) -> None:
    """What the Inventory Service refuses, it refuses once."""
    wire = Wire(httpx2.Response(status, json={"code": "insufficient_stock", "detail": "2 are available."}))

    with pytest.raises(OrderRefused, match="2 are available"):
        await (await wire.client()).order("SO-1", "prod_1", 3)
    assert len(wire.asked) == 1


async def test_an_outage_opens_the_circuit_and_a_missing_product_does_not() -> None:
    """After a few failures nobody is asked any more, with the role that may only ask; a 404 is an answer."""
    wire = Wire(httpx2.Response(404, json={"code": "not_found"}))
    client = await wire.client()
    for _ in range(10):
        with pytest.raises(Exception, match="without a word"):
            await client.by_product("prod_1")
    assert len(wire.asked) == 10

    wire.answers = [httpx2.ConnectError("refused")]
    for _ in range(12):
        with pytest.raises(Unavailable):
            await client.by_product("prod_1")
    asked = len(wire.asked)
    with pytest.raises(Unavailable, match="of late"):
        await client.by_product("prod_1")
    assert asked == len(wire.asked)
    assert {"Bearer product-service"} == {request.headers["authorization"] for request in wire.asked}


async def test_before_it_opens_it_is_away() -> None:
    """Until somebody says where the Inventory Service is, nothing is sent."""
    async with open_inventory(lambda role: role) as client:
        with pytest.raises(Unavailable):
            await client.by_product("prod_1")
        with pytest.raises(Unavailable):
            await client.order("SO-1", "prod_1", 1)
