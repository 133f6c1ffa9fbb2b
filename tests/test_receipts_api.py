"""Expected receipts over HTTP: the journey, every refusal, and what the specification's two questions tell of them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx2
import msgspec
import pytest
from in_process import ADMIN, OPERATOR, PRODUCT_SERVICE, Api, serving

_numbers = count(1)
URL = "/expected-receipts"


@pytest.fixture(scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One service for all of these tests; each makes its own items, with products of their own."""
    async with serving(tmp_path_factory.mktemp("receipts")) as api, api.client(ADMIN) as client:
        for id in ("wh_north", "wh_south"):
            assert (await client.post("/warehouses", json={"id": id, "name": id})).status_code == 201
        yield api


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """An operator."""
    async with api.client(OPERATOR, subject="clerk") as client:
        yield client


async def _item(client: httpx2.AsyncClient, quantity: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a new item, alone in its product unless told otherwise."""
    number = next(_numbers)
    body = {"sku": f"SKU-{number}", "productId": f"prod_{number}", "warehouseId": "wh_north"}
    answer = await client.post("/inventory-items", json=body | {"initialQuantity": quantity} | fields)
    return dict(_data(answer, 201))


async def _expected(client: httpx2.AsyncClient, item: dict[str, Any], days: float = 1, **fields: Any) -> dict[str, Any]:
    """Return a new expected receipt, of 40 in so many days unless told otherwise."""
    body = {"inventoryItemId": item["id"], "quantity": 40, "expectedAt": _in(days)} | fields
    return dict(_data(await client.post(URL, json=body), 201))


def _in(days: float) -> str:
    """So many days from now, as the service writes it."""
    return (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")


def _data(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()["data"]


async def _restock(client: httpx2.AsyncClient, item: dict[str, Any], query: str = "") -> tuple[Any, Any]:
    """Return restockExpected of both questions of the specification."""
    of_product = _data(await client.get(f"/inventory-items/by-product/{item['productId']}"))
    of_item = _data(await client.get(f"/inventory-items/{item['id']}/availability{query}"))
    return of_product["restockExpected"], of_item["restockExpected"]


async def test_from_the_order_to_the_shelf(client: httpx2.AsyncClient) -> None:
    """Put on record, received in part, closed short: every step has its version, the ledger its reference."""
    item, at = await _item(client), _in(3)
    order = {"referenceType": "PURCHASE_ORDER", "referenceNumber": "PO-12345", "reason": "Reorder"}
    made = await client.post(
        URL, json={"inventoryItemId": item["id"], "quantity": 40, "expectedAt": at} | order, headers=_correlation("buy")
    )
    receipt = _data(made, 201)
    url = made.headers["location"]
    assert (url, made.headers["etag"]) == (f"{URL}/{receipt['id']}", '"1"')
    assert receipt.pop("createdAt") == receipt.pop("updatedAt")
    assert receipt.pop("id").startswith("exp_")
    assert receipt == order | {
        "inventoryItemId": item["id"],
        "productId": item["productId"],
        "warehouseId": "wh_north",
        "sku": item["sku"],
        "quantity": 40,
        "receivedQuantity": 0,
        "outstandingQuantity": 40,
        "discrepancy": 0,
        "expectedAt": at,
        "isOverdue": False,
        "status": "EXPECTED",
        "version": 1,
    }

    part = await client.post(f"{url}/receive", json={"quantity": 30})
    assert (_data(part)["status"], _data(part)["outstandingQuantity"], part.headers["etag"]) == (
        *("PARTIALLY_RECEIVED", 10),
        '"2"',
    )
    assert _data(await client.get(url)) == _data(part)
    closed = _data(await client.post(f"{url}/receive", json={"quantity": 8, "close": True, "reason": "Two broken"}))
    assert (closed["status"], closed["receivedQuantity"], closed["discrepancy"]) == ("RECEIVED", 38, -2)

    ledger = _data(await client.get(f"/inventory-items/{item['id']}/transactions?referenceNumber=PO-12345"))
    assert [(row["type"], row["quantityOnHandChange"], row["reason"], row["actor"]) for row in ledger] == [
        ("RECEIPT", 8, "Two broken", "clerk"),
        ("RECEIPT", 30, "Reorder", "clerk"),
    ]
    assert {row["expectedReceiptId"] for row in ledger} == {closed["id"]}


def _correlation(id: str) -> dict[str, str]:
    return {"X-Correlation-Id": id}


async def test_an_amendment_needs_the_version_it_saw(client: httpx2.AsyncClient) -> None:
    """Of two who read the same version the second is told which one is current; null clears a field."""
    receipt = await _expected(client, await _item(client), referenceNumber="PO-1")
    url, at = f"{URL}/{receipt['id']}", _in(9)
    first = await client.patch(
        url, json={"expectedAt": at, "quantity": 50, "referenceNumber": None}, headers={"If-Match": '"1"'}
    )
    second = await client.patch(url, json={"quantity": 1}, headers={"If-Match": '"1"'})
    assert (_data(first)["expectedAt"], _data(first)["outstandingQuantity"], first.headers["etag"]) == (at, 50, '"2"')
    assert _data(first)["referenceNumber"] is None
    assert (second.status_code, second.json()["code"], second.json()["currentVersion"]) == (412, "version_conflict", 2)
    same = await client.patch(url, json={"quantity": 50}, headers={"If-Match": "*"})
    assert (_data(same), same.headers["etag"]) == (_data(first), '"2"')


async def test_cancelling_may_say_why_and_may_be_repeated(client: httpx2.AsyncClient) -> None:
    """The body may be left out; an ended one answers as it is."""
    receipt = await _expected(client, await _item(client))
    url = f"{URL}/{receipt['id']}/cancel"
    gone = _data(await client.post(url, json={"reason": "Supplier closed"}))
    assert (gone["status"], gone["reason"], gone["version"]) == ("CANCELLED", "Supplier closed", 2)
    assert _data(await client.post(url)) == gone


async def test_a_repeated_request_is_done_once(client: httpx2.AsyncClient) -> None:
    """The same key, the same answer, one ledger row; with another body it is refused."""
    item = await _item(client)
    receipt = await _expected(client, item)
    url, key = f"{URL}/{receipt['id']}/receive", {"Idempotency-Key": f"key-{receipt['id']}"}
    first, again = [await client.post(url, json={"quantity": 30}, headers=key) for _ in range(2)]
    assert (first.status_code, first.json()) == (200, again.json())
    assert _data(await client.get(f"/inventory-items/{item['id']}"))["quantityOnHand"] == 30
    other = await client.post(url, json={"quantity": 31}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_what_cannot_be_is_refused(client: httpx2.AsyncClient) -> None:
    """Each with its code and a sentence; nothing changes by it."""
    item = await _item(client)
    ended = await _expected(client, item)
    await client.post(f"{URL}/{ended['id']}/cancel")
    alive = await _expected(client, item)
    url, named = f"{URL}/{alive['id']}", {"inventoryItemId": item["id"], "quantity": 1, "expectedAt": _in(1)}
    place = {"sku": item["sku"], "warehouseId": "wh_south"}
    unnamed = {"quantity": 1, "expectedAt": _in(1)}
    refusals: list[tuple[str, str, Any, int, str]] = [
        ("POST", URL, named | {"inventoryItemId": "inv_NOBODY"}, 404, "not_found"),
        ("POST", URL, unnamed | place, 404, "not_found"),
        ("POST", URL, unnamed, 400, "validation_failed"),
        ("POST", URL, named | place, 400, "validation_failed"),
        ("POST", URL, named | {"quantity": 0}, 400, "validation_failed"),
        ("POST", URL, named | {"quantity": 1_000_000_001}, 400, "validation_failed"),
        ("POST", URL, named | {"expectedAt": "2026-12-01T08:00:00"}, 400, "validation_failed"),
        ("POST", URL, named | {"expectedAt": "0001-01-01T00:00:00+14:00"}, 400, "validation_failed"),
        ("POST", URL, named | {"status": "RECEIVED"}, 400, "validation_failed"),
        ("POST", URL, named | {"reason": "a\nb"}, 400, "validation_failed"),
        ("PATCH", url, {"quantity": 0}, 400, "validation_failed"),
        ("PATCH", url, {"quantity": None}, 400, "validation_failed"),
        ("PATCH", url, {"receivedQuantity": 1}, 400, "validation_failed"),
        ("PATCH", f"{URL}/exp_NOBODY", {}, 404, "not_found"),
        ("PATCH", f"{URL}/{ended['id']}", {"quantity": 1}, 409, "invalid_state"),
        ("POST", f"{url}/receive", {"quantity": 0}, 400, "validation_failed"),
        ("POST", f"{url}/receive", {"close": True}, 400, "validation_failed"),
        ("POST", f"{url}/receive", {"quantity": 1, "occurredAt": _in(1)}, 400, "validation_failed"),
        ("POST", f"{URL}/exp_NOBODY/receive", {"quantity": 1}, 404, "not_found"),
        ("POST", f"{URL}/{ended['id']}/receive", {"quantity": 1}, 409, "invalid_state"),
        ("POST", f"{url}/cancel", {"because": "x"}, 400, "validation_failed"),
        ("POST", f"{URL}/exp_NOBODY/cancel", {}, 404, "not_found"),
        ("GET", f"{URL}/exp_NOBODY", None, 404, "not_found"),
        ("GET", f"{URL}/NOT-AN-ID", None, 404, "not_found"),
        ("GET", f"{URL}?overdue=perhaps", None, 400, "validation_failed"),
        ("GET", f"{URL}?status=LOST", None, 400, "validation_failed"),
        ("GET", f"{URL}?cursor=x", None, 400, "validation_failed"),
        ("GET", f"{URL}?expectedAt=x", None, 400, "validation_failed"),
    ]
    for method, path, body, status, code in refusals:
        answer = await client.request(method, path, **({} if body is None else {"json": body}))
        assert (method, path, body, answer.status_code, answer.json()["code"]) == (method, path, body, status, code)
    matched = await client.post(f"{url}/receive", json={"quantity": 1}, headers={"If-Match": '"1"'})
    assert (matched.status_code, matched.json()["code"]) == (400, "validation_failed")
    assert _data(await client.get(url)) == alive


async def test_the_list_answers_what_buyers_ask(client: httpx2.AsyncClient) -> None:
    """What is overdue, what is to come of a product, and where an order stands; page by page."""
    item = await _item(client)
    south = await _item(client, sku=item["sku"], productId=item["productId"], warehouseId="wh_south")
    late, soon = await _expected(client, item, -1, referenceNumber="PO-7"), await _expected(client, south, 1)
    done = await _expected(client, item, 2)
    done = _data(await client.post(f"{URL}/{done['id']}/receive", json={"quantity": 41}))
    of_product = f"productId={item['productId']}"
    for query, ids in {
        of_product: [late, soon, done],
        f"{of_product}&overdue=true": [late],
        f"{of_product}&overdue=false": [soon, done],
        f"{of_product}&status=RECEIVED": [done],
        f"sku={item['sku']}&warehouseId=wh_south": [soon],
        f"inventoryItemId={item['id']}": [late, done],
        f"{of_product}&referenceNumber=PO-7": [late],
        f"{of_product}&referenceType=PURCHASE_ORDER": [],
    }.items():
        assert (query, _data(await client.get(f"{URL}?{query}"))) == (query, ids)
    assert (late["isOverdue"], done["discrepancy"]) == (True, 1)
    first = (await client.get(f"{URL}?{of_product}&limit=2")).json()
    rest = (await client.get(f"{URL}?{of_product}&limit=2&cursor={first['nextCursor']}")).json()
    assert ([*first["data"], *rest["data"]], rest["nextCursor"]) == ([late, soon, done], None)


async def test_both_questions_tell_when_more_is_expected(api: Api, client: httpx2.AsyncClient) -> None:
    """The next date that has not passed: of the product, and of the SKU or item asked about."""
    item = await _item(client, 5)
    product = {"productId": item["productId"]}
    south = await _item(client, sku=item["sku"], warehouseId="wh_south", **product)
    blue = await _item(client, **product)
    async with api.client(PRODUCT_SERVICE) as asking:
        assert await _restock(asking, item) == (None, None)
        await _expected(client, item, -1)
        assert await _restock(asking, item) == (None, None)
        of_item = await _expected(client, item, 5)
        of_south = await _expected(client, south, 3)
        of_blue = await _expected(client, blue, 1)
        one = "?checkAllWarehouses=false"
        assert await _restock(asking, item, one) == (of_blue["expectedAt"], of_item["expectedAt"])
        assert await _restock(asking, item) == (of_blue["expectedAt"], of_south["expectedAt"])

        later = _data(await client.patch(f"{URL}/{of_blue['id']}", json={"expectedAt": _in(9)}))
        assert await _restock(asking, blue) == (of_south["expectedAt"], later["expectedAt"])
        await client.post(f"{URL}/{of_south['id']}/receive", json={"quantity": 40})
        assert await _restock(asking, item) == (of_item["expectedAt"],) * 2
        await client.post(f"{URL}/{of_item['id']}/cancel")
        assert await _restock(asking, item) == (later["expectedAt"], None)


async def test_what_is_expected_moves_the_revision_and_tells_no_event(api: Api, client: httpx2.AsyncClient) -> None:
    """A reader of the product sees something new, a listener nothing (rule R13)."""
    item = await _item(client, 5)
    url = f"/products/{item['productId']}"
    before = _data(await client.get(url))
    receipt = await _expected(client, item)
    await client.patch(f"{URL}/{receipt['id']}", json={"quantity": 30})
    between = _data(await client.get(url))
    await client.post(f"{URL}/{receipt['id']}/cancel")
    after = _data(await client.get(url))
    assert [each["totalQuantityExpected"] for each in (before, between, after)] == [0, 30, 0]
    assert (between["revision"], after["revision"]) == (before["revision"] + 2, before["revision"] + 3)
    assert before["sequence"] == after["sequence"]


async def test_sold_out_tells_when_more_is_expected(api: Api, client: httpx2.AsyncClient) -> None:
    """The event of the last unit carries the date, whoever takes it."""
    item = await _item(client, 5)
    receipt = await _expected(client, item)
    lines = [{"inventoryItemId": item["id"], "quantity": 5}]
    assert (await client.post("/reservations", json={"lines": lines})).status_code == 201
    events = [row for row in await api.store.pending(1_000) if row.product_id == item["productId"]]
    assert events[-1].event_type == "OutOfStock"
    assert msgspec.json.decode(events[-1].body)["payload"]["restockExpected"] == receipt["expectedAt"]


async def test_deliveries_that_come_at_once_are_all_counted(client: httpx2.AsyncClient) -> None:
    """Five of three units for an order of ten: nothing is lost, what completes it is more, what follows refused."""
    item = await _item(client)
    receipt = await _expected(client, item, quantity=10)
    url = f"{URL}/{receipt['id']}/receive"
    answers = await asyncio.gather(*(client.post(url, json={"quantity": 3}) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 409]
    kept = _data(await client.get(f"{URL}/{receipt['id']}"))
    assert (kept["receivedQuantity"], kept["discrepancy"], kept["version"]) == (12, 2, 5)


# -- the age of confirmed reservations ---------------------------------------------------------------------------------


async def test_orders_confirmed_long_ago_are_found(client: httpx2.AsyncClient) -> None:
    """An operator asks for what was confirmed before some instant and has not left yet."""
    item = await _item(client, 50)
    line = {"inventoryItemId": item["id"], "quantity": 1}
    held, old, gone, new = [
        _data(await client.post("/reservations", json={"lines": [line], "referenceNumber": item["sku"]}), 201)
        for _ in range(4)
    ]
    for reservation in (old, gone):
        await client.post(f"/reservations/{reservation['id']}/confirm")
    await client.post(f"/reservations/{gone['id']}/fulfil")
    new = _data(await client.post(f"/reservations/{new['id']}/confirm"))
    query = f"/reservations?referenceNumber={item['sku']}&status=CONFIRMED"
    stale = _data(await client.get(f"{query}&confirmedBefore={new['confirmedAt']}"))
    assert [each["id"] for each in stale] == [old["id"]]
    assert [each["id"] for each in _data(await client.get(query))] == [old["id"], new["id"]]
    ever = _data(await client.get(f"/reservations?referenceNumber={item['sku']}&confirmedBefore={_in(1)}"))
    assert [each["id"] for each in ever] == [old["id"], gone["id"], new["id"]]
    assert held["id"] not in {each["id"] for each in ever}
    wrong = await client.get(f"{query}&confirmedBefore=yesterday")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "validation_failed")
