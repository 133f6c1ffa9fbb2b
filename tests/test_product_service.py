"""The Product Service over HTTP when it misbehaves: nothing it does can hold a caller, fool it, or gets worse by us."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from private_server import free_port
from standin import ours, sign, standing_in

from adapters.product_service import Limits
from adapters.registry import connect
from core.errors import (
    InventoryError,
    ProductNotFound,
    ProductServiceProtocolError,
    ProductServiceUnavailable,
    ValidationFailed,
)
from entrypoints.demo.misbehaviour import Misbehaviour
from entrypoints.demo.product_service import ProductService, StoredProduct
from ports.catalog import ProductCatalog

QUICK = Limits(connect=0.2, read=0.15, total=0.3, pause=0.01, pause_max=0.05, open_seconds=0.2)
AWAY, WRONG = ProductServiceUnavailable, ProductServiceProtocolError


@asynccontextmanager
async def calling(
    limits: Limits = QUICK, *, then: str = "", **words: Any
) -> AsyncIterator[tuple[ProductService, ProductCatalog]]:
    """Run a stand-in and a catalogue that asks it; ``then`` is added to its URL."""
    async with standing_in(**words) as (service, url), connect("catalog", url + then, token=ours, limits=limits) as it:
        yield service, it


async def outcome(catalog: ProductCatalog, id: str = "prod_1") -> type[Exception] | None:
    """Ask for a product; return the error's type, None for an answer."""
    try:
        await catalog.product(id)
    except InventoryError as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("error", AWAY),
        ("busy", AWAY),
        ("slow", AWAY),
        ("hang", AWAY),
        ("reset", AWAY),
        ("truncated", AWAY),
        ("garbage", WRONG),
        ("wrong-id", WRONG),
        ("redirect", WRONG),
        ("huge", WRONG),
        ("missing", ProductNotFound),
    ],
)
async def test_every_fault_has_its_error_in_time(fault: Any, expected: type[Exception]) -> None:
    """Whatever goes wrong is one of three errors, within the deadline, and the next call is well."""
    async with calling() as (service, catalog):
        service.misbehaviour = Misbehaviour(fault, seconds=5)
        started = time.monotonic()
        assert await outcome(catalog) is expected
        assert time.monotonic() - started < QUICK.total + 0.3

        service.misbehaviour = None
        assert await outcome(catalog) is None


@pytest.mark.parametrize("fault", ["error", "reset", "truncated"])
async def test_a_single_failure_is_not_noticed(fault: Any) -> None:
    """The call is made again after a pause."""
    async with calling() as (service, catalog):
        service.misbehaviour = Misbehaviour(fault, times=2)

        assert await outcome(catalog) is None
        assert len(service.asked) == 3


@pytest.mark.parametrize("fault", ["garbage", "wrong-id", "redirect", "huge", "missing"])
async def test_what_would_be_the_same_again_is_not_asked_again(fault: Any) -> None:
    """A wrong answer is not asked for twice."""
    async with calling() as (service, catalog):
        service.misbehaviour = Misbehaviour(fault)

        await outcome(catalog)
        assert len(service.asked) == 1


async def test_retry_after_is_honoured_within_the_deadline() -> None:
    """A pause that is asked for is kept; one that ends after the deadline is not begun, and is passed on."""
    async with calling(Limits(total=2, pause=0.001)) as (service, catalog):
        service.misbehaviour = Misbehaviour("busy", seconds=0.3, times=1)
        assert await outcome(catalog) is None
        first, second = service.asked
        assert second.at - first.at >= 0.3

        service.misbehaviour = Misbehaviour("busy", seconds=60)
        started = time.monotonic()
        with pytest.raises(ProductServiceUnavailable) as error:
            await catalog.product("prod_1")
        assert time.monotonic() - started < 0.5
        assert error.value.extra["retry_after"] == 60


async def test_pauses_are_drawn_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is drawn anew between nothing and a limit, which doubles up to a limit of its own."""
    drawn: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        drawn.append((least, most))
        return 0.0

    monkeypatch.setattr("adapters.product_service.random.uniform", draw)
    async with calling(Limits(tries=4, pause=0.2, pause_max=0.3)) as (service, catalog):
        for _ in range(20):  # much has gone well
            await catalog.product("prod_1")
        service.misbehaviour = Misbehaviour("error", times=2)
        assert await outcome(catalog) is None

    assert drawn == [(0, 0.2), (0, 0.3)]


async def test_too_many_calls_are_refused_at_once() -> None:
    """Who finds too many waiting does not wait; those that do are refused by the deadline."""
    async with calling(Limits(read=0.3, total=0.4, at_once=4, waiting_max=4)) as (service, catalog):
        service.misbehaviour = Misbehaviour("hang")
        crowd = [asyncio.create_task(outcome(catalog)) for _ in range(8)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert await outcome(catalog) is AWAY
        assert time.monotonic() - started < 0.05
        assert Counter(await asyncio.gather(*crowd)) == {AWAY: 8}
        assert time.monotonic() - started < 1


async def test_a_crowd_of_ours_is_no_outage_of_theirs() -> None:
    """A hundred questions at once wait for their turns, and every one is answered."""
    async with calling(Limits(total=5)) as (_, catalog):
        assert [None] * 100 == await asyncio.gather(*(outcome(catalog) for _ in range(100)))
        assert catalog.condition().circuit == "CLOSED"


async def test_callers_that_leave_take_nothing_with_them() -> None:
    """After hundreds of calls broken off at any moment, as many as ever can be made at once."""
    limits = Limits(at_once=4, total=2)
    async with calling(limits) as (service, catalog):
        service.misbehaviour = Misbehaviour("slow", seconds=0.02)
        calls = []
        for number in range(200):
            calls.append(asyncio.create_task(outcome(catalog)))
            await asyncio.sleep(number % 20 / 2000)
            calls[-1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        service.misbehaviour = None

        assert Counter(await asyncio.gather(*(outcome(catalog) for _ in range(8)))) == {None: 8}


async def test_only_the_last_known_products_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told while the circuit is open is bounded; the longest unheard of goes first."""
    monkeypatch.setattr("adapters.product_service.KNOWN_MAX", 3)
    async with calling(Limits()) as (service, catalog):
        for id in ("p0", "p1", "p2", "p0", "p3"):
            service.products[id] = StoredProduct(id=id, sku="S", name="N")
            await catalog.product(id)
        catalog.force("OPEN")

        assert await outcome(catalog, "p1") is AWAY
        assert [(await catalog.product(id)).stale for id in ("p0", "p2", "p3")] == [True] * 3


@pytest.mark.parametrize("then", ["", "/", "///"])
@pytest.mark.parametrize("prefix", ["", "/api/v2"])
async def test_base_urls_are_taken_as_people_write_them(prefix: str, then: str) -> None:
    """With a path or without, with slashes at its end or without; health stands behind the same base."""
    async with calling(then=then, prefix=prefix) as (service, catalog):
        await catalog.variants("prod_1")
        await catalog.ping()

        assert [asked.path for asked in service.asked] == ["/products/prod_1/variants", "/health"]


async def test_an_ipv6_address_is_an_address() -> None:
    """Its brackets are nobody's business but the URL's."""
    async with calling(host="::1") as (_, catalog):
        assert await outcome(catalog) is None


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "http://user:hush@host/", "http://host/?a=1", "http://host/#a", "http://host:x/"]
)
async def test_a_url_that_cannot_be_a_base_is_refused(url: str) -> None:
    """Before anything is sent, in a sentence that names the setting and repeats no password."""
    with pytest.raises(ValidationFailed, match=r"^INVENTORY_CATALOG") as error:
        async with connect("catalog", url, token=ours):
            pass
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("role", ["product-service", "inventory-admin"])
async def test_a_token_that_is_refused_is_told_as_such(role: str) -> None:
    """The error says which settings to compare, and holds nothing of the token."""
    async with (
        standing_in() as (_, url),
        connect("catalog", url, token=lambda: sign(role), limits=QUICK) as catalog,
    ):
        with pytest.raises(ProductServiceProtocolError, match="INVENTORY_CATALOG_SECRET") as error:
            await catalog.product("prod_1")
    assert "eyJ" not in str(error.value)


async def test_nobody_there_is_unavailable() -> None:
    """A port where nobody listens is refused at once, and ping says the same."""
    url = f"http://127.0.0.1:{free_port()}"
    async with connect("catalog", url, token=ours, limits=QUICK) as catalog:
        assert await outcome(catalog) is AWAY
        with pytest.raises(ProductServiceUnavailable):
            await catalog.ping()


async def test_health_is_asked_where_the_setting_says() -> None:
    """A path of its own, without a token; an answer that is not good is away."""
    async with (
        standing_in() as (service, url),
        connect("catalog", url, token=ours, health_path="products/x") as catalog,
    ):
        with pytest.raises(ProductServiceUnavailable, match="status 401"):
            await catalog.ping()
        assert [asked.path for asked in service.asked] == ["/products/x"]


async def test_what_an_answer_may_hold() -> None:
    """Fields nobody here knows are ignored, an id may be called productId, and two ids must be one."""
    replies = {
        b'{"success":true,"data":{"productId":"prod_1","price":{"EUR":3}},"meta":1}': None,
        b'{"success":true,"data":{"id":"prod_1","productId":"prod_2"}}': WRONG,
        b'{"success":true,"data":{"sku":"S"}}': WRONG,
        b'{"success":true,"data":{"id":"prod_1","sku":"a\\u0000b"}}': WRONG,
        b'{"success":false,"data":{"id":"prod_1"}}': WRONG,
        b'{"success":true,"data":null}': WRONG,
        b'{"success":true,"data":{"id":"prod_1"}': WRONG,
        b"\xff\xfe": WRONG,
        b"[" * 100_000: WRONG,
        b"": WRONG,
    }
    for body, expected in replies.items():
        async with answering(body) as catalog:
            assert await outcome(catalog) is expected, body[:50]


async def test_what_variants_may_hold() -> None:
    """Each is whole and stands once, and there are not too many."""
    one = b'{"variantId":"v","sku":"S","name":"N"}'
    for data in (one, b"[" + one + b"," + one + b"]", b'[{"variantId":"v"}]', b"[" + b",".join([one] * 501) + b"]"):
        async with answering(b'{"success":true,"data":' + data + b"}") as catalog:
            with pytest.raises(ProductServiceProtocolError):
                await catalog.variants("prod_1")


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[ProductCatalog]:
    """A catalogue whose Product Service answers with this body."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with connect("catalog", f"http://127.0.0.1:{port}", token=ours, limits=QUICK) as catalog:
            yield catalog


async def test_a_proxy_of_the_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its proxies nor its netrc: both would send our token elsewhere, or another one in its place."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with calling() as (_, catalog):
        assert await outcome(catalog) is None


async def test_a_call_costs_little_more_than_a_bare_one() -> None:
    """The same answers over the same network, with everything around it: the ratio is printed, and only sane."""
    async with standing_in() as (_, url), connect("catalog", url, token=ours) as catalog, httpx2.AsyncClient() as bare:
        header = {"authorization": f"Bearer {ours()}"}
        times: dict[str, float] = {"bare": 0.0, "ours": 0.0}
        for _ in range(5):
            for name in times:
                started = time.perf_counter()
                for _ in range(40):
                    if name == "bare":
                        (await bare.get(f"{url}/products/prod_1", headers=header)).raise_for_status()
                    else:
                        await catalog.product("prod_1")
                times[name] += time.perf_counter() - started
    print(f"\na catalogue call takes {times['ours'] / times['bare']:.2f} times a bare one")
    assert times["ours"] < times["bare"] * 5
