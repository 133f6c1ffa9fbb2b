"""The HTTP entries of the list of bad inputs, numbered as there (the project's research on reliability).

Each is refused with the right problem, and leaves no trace in the store.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from in_process import ADMIN, Answer, Api, ask, serving, token

from entrypoints.api import bodies, imports
from ports.store import ItemFilter

JSON = "application/json"


class Bad(NamedTuple):
    """A bad request and the problem it gets. ``{item}`` in path and body is an item that exists."""

    number: str
    status: int
    code: str
    method: str = "GET"
    path: str = "/inventory-items"
    query: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes | tuple[bytes, ...] = b""
    content_type: str | None = JSON


def _invalid(number: str, body: bytes, path: str = "/warehouses", method: str = "POST", **rest: Any) -> Bad:
    return Bad(number, 400, "validation_failed", method, path, body=body, **rest)


def _quantity(number: str, query: bytes) -> Bad:
    return Bad(number, 400, "validation_failed", path="/inventory-items/{item}/availability", query=query)


def _nowhere(number: str, path: str) -> Bad:
    return Bad(number, 404, "not_found", path=path)


def _untyped(number: str, content_type: str | None, *headers: tuple[str, bytes], body: bytes = b'{"name":"N"}') -> Bad:
    return Bad(
        number,
        415,
        "unsupported_media_type",
        "POST",
        "/warehouses",
        headers=headers,
        body=body,
        content_type=content_type,
    )


def _operation(**fields: Any) -> bytes:
    return json.dumps({"type": "RECEIVE", "inventoryItemId": "{item}", "quantity": 1} | fields).encode()


def _stock(number: str, body: bytes) -> Bad:
    return _invalid(number, body, "/stock-operations")


DEEP = b'{"sku":"A","productId":"p","warehouseId":"wh_1","metadata":%b1%b}'
GOOD = token(ADMIN).encode()
BAD = [
    Bad("26 two tokens", 401, "unauthorized", headers=(("authorization", b"Bearer " + GOOD),)),
    Bad(
        "39 two keys",
        400,
        "validation_failed",
        "POST",
        "/warehouses",
        body=b'{"name":"N"}',
        headers=(("idempotency-key", b"a"), ("idempotency-key", b"b")),
    ),
    *(
        _nowhere(f"29 {name}", f"/inventory-items/{id}")
        for name, id in {
            "NUL": "inv_\x00",
            "newline": "inv_1\n",
            "replacement of overlong UTF-8": "inv_\ufffd\ufffd",
            "right to left": "inv_\u202e1",
            "lone surrogate": "inv_\ud800",
            "too long": "inv_" + "1" * 65,
            "upper-case prefix": "INV_1",
        }.items()
    ),
    *(
        _nowhere(f"29 product {name}", f"/inventory-items/by-product/{id}")
        for name, id in {
            "NUL": "p\x00",
            "control": "p\x1f",
            "C1 control": "p\x85",
            "lone surrogate": "p\udfff",
            "129 characters": "p" * 129,
            "slash": "p/q",
        }.items()
    ),
    Bad("29 NUL in a filter", 400, "validation_failed", query=b"sku=%00"),
    *(
        Bad(f"29 {name} in a filter", 400, "validation_failed", query=b"sku=" + text)
        for name, text in {
            "overlong UTF-8": b"%C0%AF",
            "a surrogate's bytes": b"%ED%A0%80",
        }.items()
    ),
    Bad("29 control in a filter", 400, "validation_failed", query=b"productId=a%0Ab"),
    Bad("29 not an id in a filter", 400, "validation_failed", query=b"warehouseId=%27"),
    *(
        _nowhere(f"30 {path}", path)
        for path in (
            "/inventory-items/../warehouses",
            "/inventory-items/..",
            "/inventory-items/{item};v=1",
            "/schema/assets/../app.py",
            "/schema/assets/..",
            "/schema/assets/LICENSE",
            "/problems/../health",
        )
    ),
    *(
        _quantity(f"31 quantity {text!r}", b"quantity=" + text)
        for text in (
            b"0",
            b"-1",
            b"1.5",
            b"",
            b"NaN",
            b"9223372036854775808",
            b"%22" + b"10%22",
            b"1e10",
            b"10 ",
            b"1,2",
            b"true",
        )
    ),
    _quantity("31 quantity without value", b"quantity"),
    _quantity("31 quantity twice", b"quantity=1&quantity=1"),
    _quantity("31 checkAllWarehouses is a word", b"checkAllWarehouses=yes"),
    _quantity("31 unknown parameter", b"quantity=1&Quantity=2"),
    Bad("31 limit 0", 400, "validation_failed", query=b"limit=0"),
    Bad("31 limit 201", 400, "validation_failed", query=b"limit=201"),
    Bad("31 cursor of somebody else", 400, "validation_failed", query=b"cursor=abc"),
    Bad("31 cursor is no cursor", 400, "validation_failed", query=b"cursor=%20"),
    Bad("31 unknown status", 400, "validation_failed", query=b"status=active"),
    Bad("31 unknown stock band", 400, "validation_failed", query=b"stock=high"),
    *(
        Bad(f"31 {name} is null", 400, "validation_failed", path=path, query=name.encode() + b"=null")
        for path, name in {
            "/inventory-items": "stock",
            "/reservations": "status",
            "/inventory-items/{item}/transactions": "type",
        }.items()
    ),
    Bad("32 too large", 413, "content_too_large", "POST", "/warehouses", body=b" " * (64 * 1024 + 1)),
    Bad(
        "32 too large in pieces without length",
        413,
        "content_too_large",
        "POST",
        "/warehouses",
        body=(b" " * 40_000,) * 3,
    ),
    Bad("32 batch too large", 413, "content_too_large", "POST", "/stock-operations", body=b" " * (256 * 1024 + 1)),
    Bad(
        "32 announced too large",
        413,
        "content_too_large",
        "POST",
        "/warehouses",
        headers=(("content-length", b"10000001"),),
        body=b"{}",
    ),
    _invalid("32 length is a lie", b'{"name":"N"'),
    _invalid("32 nothing", b""),
    _invalid("34 deep object", DEEP % (b'{"a":' * 10_000, b"}" * 10_000), "/inventory-items"),
    _invalid("34 deep array", DEEP % (b'{"a":' + b"[" * 10_000, b"]" * 10_000 + b"}"), "/inventory-items"),
    _invalid("34 deeper than allowed", DEEP % (b'{"a":' * 40, b"}" * 40), "/inventory-items"),
    _invalid("34 name twice", b'{"name":"N","name":"M"}'),
    _invalid("34 name twice inside", b'{"name":"N","leadTimeDays":{"min":1,"max":2,"max":3}}'),
    _invalid("34 byte order mark", b'\xef\xbb\xbf{"name":"N"}'),
    _invalid("34 trailing bytes", b'{"name":"N"}{}'),
    _invalid("34 not UTF-8", b'{"name":"\xff"}'),
    _invalid("34 UTF-16", '{"name":"N"}'.encode("utf-16")),
    _invalid("34 overlong UTF-8", b'{"name":"\xc0\xaf"}'),
    _invalid("34 surrogate bytes", b'{"name":"\xed\xa0\x80"}'),
    _invalid("34 lone surrogate", rb'{"name":"\ud800"}'),
    _invalid("34 NUL in text", rb'{"name":"a\u0000b"}'),
    _invalid("34 NUL in metadata", DEEP % (rb'{"a":"\u0000","b":', b"}"), "/inventory-items"),
    _invalid("34 NUL in a metadata name", DEEP % (rb'{"\\\u0000":', b"}"), "/inventory-items"),
    _invalid("34 huge float in metadata", DEEP % (b'{"a":1e400,"b":', b"}"), "/inventory-items"),
    _invalid("34 huge integer in metadata", DEEP % (b'{"a":' + b"9" * 5000 + b',"b":', b"}"), "/inventory-items"),
    _stock("34 huge integer", _operation(quantity=10**30)),
    _stock("34 1e400", _operation().replace(b": 1}", b": 1e400}")),
    _stock("34 NaN", _operation().replace(b": 1}", b": NaN}")),
    _stock("34 -0", _operation().replace(b": 1}", b": -0}")),
    _stock("34 number in quotes", _operation(quantity="1")),
    _stock("34 fraction", _operation(quantity=1.5)),
    _stock("34 negative", _operation(quantity=-1)),
    _stock("34 above the largest", _operation(quantity=1_000_000_001)),
    _stock("34 true", _operation(quantity=True)),
    _stock("34 null", b"null"),
    _stock("34 a list", b"[]"),
    _stock("34 empty batch", b'{"operations":[]}'),
    _stock("34 batch of 257", b'{"operations":[%b]}' % b",".join([_operation()] * 257)),
    _stock("34 batch with something beside", b'{"operations":[%b],"type":"RECEIVE"}' % _operation()),
    _stock("34 one bad operation in a batch", b'{"operations":[%b,%b]}' % (_operation(), _operation(quantity=0))),
    _stock("34 unknown type", _operation(type="STEAL")),
    _stock("34 no type", b'{"inventoryItemId":"{item}","quantity":1}'),
    _stock("34 time without zone", _operation(occurredAt="2026-01-01T00:00:00")),
    _stock("34 adjust by nothing", _operation(type="ADJUST", delta=0, reason="x")),
    _stock("35 somebody else's actor", _operation(actor="ceo")),
    _stock("35 recordedAt", _operation(recordedAt="2026-01-01T00:00:00Z")),
    _invalid("35 read-only balance", b'{"quantityOnHand":9}', "/inventory-items/{item}", "PATCH"),
    _invalid("35 read-only version", b'{"name":"x","version":9}', "/inventory-items/{item}", "PATCH"),
    _invalid("35 id of an item", b'{"sku":"A","productId":"p","warehouseId":"wh_1","id":"inv_9"}', "/inventory-items"),
    _invalid("35 sequence of a product", b'{"lowStockThreshold":1,"sequence":0}', "/products/prod_1", "PATCH"),
    _invalid("35 snake case", b'{"low_stock_threshold":1}', "/products/prod_1", "PATCH"),
    _invalid("35 unknown inside", b'{"name":"N","leadTimeDays":{"min":1,"max":2,"avg":1},"x":1}'),
    _untyped("36 none", None),
    _untyped("36 text", "text/plain"),
    _untyped("36 form", "application/x-www-form-urlencoded"),
    _untyped("36 multipart", "multipart/form-data; boundary=x"),
    _untyped("36 two in one", "application/json, text/plain"),
    _untyped("36 other charset", "application/json; charset=utf-16"),
    _untyped("36 problem", "application/problem+json"),
    _untyped("36 msgpack", "application/msgpack", body=b"\x81\xa4name\xa1N"),
    _untyped("36 gzip", JSON, ("content-encoding", b"gzip"), body=gzip.compress(b'{"name":"N"}')),
    _untyped("36 gzip bomb", JSON, ("content-encoding", b"gzip"), body=gzip.compress(bytes(10_000_000))),
    Bad(
        "36 content type twice",
        400,
        "validation_failed",
        "POST",
        "/warehouses",
        headers=(("content-type", b"text/plain"),),
        body=b'{"name":"N"}',
    ),
    Bad("37 method override", 405, "method_not_allowed", "DELETE", headers=(("x-http-method-override", b"GET"),)),
    Bad(
        "37 override of a write",
        400,
        "validation_failed",
        "POST",
        "/inventory-items",
        headers=(("x-http-method-override", b"GET"),),
        body=b"{}",
    ),
    Bad("37 TRACE", 405, "method_not_allowed", "TRACE"),
    Bad("37 unheard of", 405, "method_not_allowed", "BREW"),
    Bad("38 in a query name", 400, "validation_failed", query=b"sku%5B%24ne%5D=1"),
    Bad(
        "39 key of 300",
        400,
        "validation_failed",
        "POST",
        "/warehouses",
        headers=(("idempotency-key", b"k" * 300),),
        body=b'{"name":"N"}',
    ),
    Bad(
        "39 empty key",
        400,
        "validation_failed",
        "POST",
        "/warehouses",
        headers=(("idempotency-key", b""),),
        body=b'{"name":"N"}',
    ),
    Bad(
        "39 key with a space",
        400,
        "validation_failed",
        "POST",
        "/warehouses",
        headers=(("idempotency-key", b"a b"),),
        body=b'{"name":"N"}',
    ),
    Bad(
        "39 key beyond ASCII",
        400,
        "validation_failed",
        "POST",
        "/warehouses",
        headers=(("idempotency-key", b"\xc3\xbc"),),
        body=b'{"name":"N"}',
    ),
    *(
        Bad(f"correlation id {name}", 400, "validation_failed", headers=tuple(("x-correlation-id", id) for id in ids))
        for name, ids in {
            "empty": (b"",),
            "of 129": (b"c" * 129,),
            "with a tab": (b"a\tb",),
            "with a line break": (b"a\nX-Admin: 1",),
            "beyond ASCII": (b"\xff",),
            "twice": (b"a", b"a"),
        }.items()
    ),
    Bad(
        "If-Match without quotes",
        400,
        "validation_failed",
        "PATCH",
        "/inventory-items/{item}",
        headers=(("if-match", b"1"),),
        body=b'{"name":"x"}',
    ),
    Bad(
        "If-Match of two",
        400,
        "validation_failed",
        "PATCH",
        "/inventory-items/{item}",
        headers=(("if-match", b'"1", "2"'),),
        body=b'{"name":"x"}',
    ),
    Bad(
        "If-Match weak",
        412,
        "version_conflict",
        "PATCH",
        "/inventory-items/{item}",
        headers=(("if-match", b'W/"1"'),),
        body=b'{"name":"x"}',
    ),
    Bad(
        "If-Match where nothing looks at it",
        400,
        "validation_failed",
        "PATCH",
        "/products/prod_1",
        headers=(("if-match", b'"1"'),),
        body=b'{"lowStockThreshold":1}',
    ),
    Bad("host that is none", 400, "validation_failed", headers=(("host", b"a b"),)),
]


class Shop(NamedTuple):
    """A service with one stocked item."""

    api: Api
    item_id: str


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """One service for all of these tests; none of them may change anything."""
    async with serving(tmp_path_factory.mktemp("bad")) as api, api.client(ADMIN) as client:
        assert (await client.post("/warehouses", json={"id": "wh_1", "name": "North"})).status_code == 201
        body = {"sku": "WIDGET", "productId": "prod_1", "warehouseId": "wh_1", "initialQuantity": 5}
        answer = await client.post("/inventory-items", json=body)
        yield Shop(api, answer.json()["data"]["id"])


async def _everything(shop: Shop) -> Any:
    store = shop.api.store
    return (
        await store.warehouses(),
        await store.items(ItemFilter(), cursor=None, limit=200),
        await store.ledger(shop.item_id, cursor=None, limit=200),
        await store.products(["prod_1", "p"]),
        await store.pending(100),
    )


async def _send(shop: Shop, bad: Bad) -> Answer:
    headers = [("authorization", b"Bearer " + GOOD), *bad.headers]
    if bad.method != "GET" and bad.content_type is not None:
        headers.append(("content-type", bad.content_type.encode()))
    pieces = (bad.body,) if isinstance(bad.body, bytes) else bad.body
    return await ask(
        shop.api.app,
        bad.method,
        bad.path.replace("{item}", shop.item_id),
        query=bad.query,
        headers=[(name.encode(), value) for name, value in headers],
        body=[piece.replace(b"{item}", shop.item_id.encode()) for piece in pieces],
    )


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.number)
async def test_it_is_refused_and_changes_nothing(shop: Shop, bad: Bad) -> None:
    """A 4xx problem of the right kind that repeats nothing secret, and a store as it was."""
    before = await _everything(shop)
    answer = await _send(shop, bad)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status, problem["code"]) == (bad.status, bad.code)
    assert problem["status"] == bad.status
    assert problem["success"] is False
    assert problem["detail"].endswith(".")
    assert problem["correlationId"] == answer.headers["x-correlation-id"]
    assert GOOD not in answer.body
    assert await _everything(shop) == before


@pytest.mark.parametrize("value", [b"bearer", b"Bearer", b"Bearer  ", b"Bearer a b", b"Bearer " + b"a" * 1_048_576])
async def test_27_28_a_header_without_a_usable_token_is_401(shop: Shop, value: bytes) -> None:
    """A scheme without a token, and a megabyte instead of one, get the challenge."""
    answer = await ask(shop.api.app, "GET", "/inventory-items", headers=[(b"authorization", value)])
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert len(answer.body) < 1000


async def test_32_a_body_that_breaks_off_is_refused(shop: Shop) -> None:
    """The caller went away before the end of its body: nothing is done with what came."""
    before = await _everything(shop)
    headers = {"Authorization": f"Bearer {GOOD.decode()}", "Content-Type": JSON}
    answer = await ask(shop.api.app, "POST", "/warehouses", headers=headers, body=None)
    assert (answer.status, answer.json()["code"]) == (400, "validation_failed")
    assert await _everything(shop) == before


@pytest.mark.parametrize(("path", "media_type"), [("/warehouses", JSON), ("/imports", "text/csv")])
async def test_33_a_body_that_never_ends_is_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, path: str, media_type: str
) -> None:
    """A slow sender holds a request for a bounded time only."""
    for module in (bodies, imports):
        monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer " + GOOD), (b"content-type", media_type.encode())]
    scope: Any = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    async with asyncio.timeout(5):
        await shop.api.app(scope, receive, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("yesterday", "must be RFC 3339 with an offset"),
        ("2026-11-23T10:00:00", "must be RFC 3339 with an offset"),
        ("0001-01-01T00:00:00+09:00", "must be an instant of this calendar"),
        ("9999-12-31T23:00:00-09:00", "must be an instant of this calendar"),
    ],
)
async def test_38_instants_say_what_is_wrong_with_them(shop: Shop, text: str, sentence: str) -> None:
    """In a query: no instant, no offset, or one that has no date in UTC."""
    async with shop.api.client(ADMIN) as client:
        answer = await client.get("/products/prod_1", params={"asOf": text})
    assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")
    assert f"Query parameter asOf {sentence}" in answer.json()["detail"]


@pytest.mark.parametrize("text", ["' OR 1=1--", "%", "_IDGET", "WIDGE_", ".*", "W*", '"', "\\", "WIDGET' --", "widget"])
@pytest.mark.parametrize("name", ["sku", "productId"])
async def test_38_filters_mean_what_they_say(shop: Shop, name: str, text: str) -> None:
    """Metacharacters of SQL, LIKE and regular expressions match themselves alone, which is nothing here."""
    async with shop.api.client(ADMIN) as client:
        answer = await client.get("/inventory-items", params={name: text})
    assert (answer.status_code, answer.json()["data"]) == (200, [])


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_36_usual_spellings_of_json_are_taken(shop: Shop, content_type: str) -> None:
    """Strictness stops where real clients begin: the refusal that follows is about the body, not about its type."""
    headers = {"Authorization": f"Bearer {GOOD.decode()}", "Content-Type": content_type}
    answer = await ask(shop.api.app, "POST", "/warehouses", headers=headers, body=[b"{}"])
    assert answer.status == 400
    assert "name" in answer.json()["detail"]


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://inventory.test.evil.example"])
async def test_40_a_page_of_another_site_gets_nowhere(shop: Shop, origin: str) -> None:
    """No cookie stands for a caller, no answer lets a browser read it, and a form cannot make the type we take."""
    before = await _everything(shop)
    form = {"Origin": origin, "Content-Type": "text/plain"}
    preflight = form | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    good = form | {"Authorization": f"Bearer {GOOD.decode()}"}
    answers = [
        await ask(shop.api.app, "POST", "/stock-operations", headers=form | {"Cookie": f"token={GOOD.decode()}"}),
        await ask(shop.api.app, "OPTIONS", "/stock-operations", headers=preflight),
        await ask(shop.api.app, "POST", "/warehouses", headers=good, body=[b'{"name":"N"}']),
    ]
    assert [401, 401, 415] == [answer.status for answer in answers]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]
    assert await _everything(shop) == before


async def test_a_backslash_before_u0000_is_just_text(shop: Shop) -> None:
    """Only the escape of NUL is refused, not the six characters that spell it."""
    headers = {"Authorization": f"Bearer {GOOD.decode()}", "Content-Type": JSON}
    answer = await ask(shop.api.app, "POST", "/warehouses", headers=headers, body=[rb'{"nam\\u0000":"a"}'])
    assert "unknown field" in answer.json()["detail"]
