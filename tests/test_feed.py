"""Live events: everything once and in order, whoever listens since when; and nobody waits for a slow listener."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from in_process import PRODUCT_SERVICE, serving
from service import SECRET, Fleet, Service, migrate, no_broker
from sqlalchemy import delete
from stores import carry_out, migrated, stocked

from adapters.sql import tables
from adapters.sql.store import SqlStore
from adapters.tokens.signing import mint
from core.errors import Unavailable
from core.operations import Receive, Ship
from core.reading import feed as module
from core.reading.feed import WAITING_MAX, Feed, Interest, Listener
from core.stock import Item
from ports.outbox import RELAY
from ports.store import Store


class Told(NamedTuple):
    """An event as a client reads it."""

    id: int
    event: str
    data: dict[str, Any]


def told(text: bytes) -> list[Told]:
    """Read what was sent, as a browser would: blocks of fields, of which those without data are no events."""
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        for block in text.decode().split("\n\n")
    ]
    return [Told(int(b.get("id", -1)), b["event"], json.loads(b["data"])) for b in blocks if "data" in b]


# -- the feed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        yield store


@pytest.fixture
async def feed(store: Store) -> AsyncIterator[Feed]:
    """A feed at work."""
    feed = Feed(store)
    await feed.start()
    yield feed
    await feed.stop()


async def publish(store: Store) -> None:
    """Do what the relay does once the broker has confirmed."""
    lease = await store.acquire(RELAY, "tests", seconds=60)
    assert lease is not None
    assert await store.mark_published(lease, await store.pending(500))


async def received(store: Store, item: Item, times: int = 1) -> None:
    """Receive one unit, so many times."""
    await carry_out(store, *[Receive(inventory_item_id=item.id, quantity=1)] * times, product=item.product_id)


@asynccontextmanager
async def following(feed: Feed, wanted: Interest, after: int | None = None) -> AsyncIterator[list[Told]]:
    """Collect what a listener is told, from when it is heard."""
    heard: list[Told] = []
    connected = asyncio.Event()

    async def follow() -> None:
        async with feed.listen(wanted) as listener:
            async for data in feed.follow(listener, after):
                heard.extend(told(data))
                connected.set()

    task = asyncio.create_task(follow())
    await connected.wait()
    await asyncio.sleep(0)
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_everybody_is_told_what_they_want(store: Store, feed: Feed) -> None:
    """From the moment they listen: all, one product's, one type, one warehouse's; each with its position as id."""
    item = await stocked(store, 1)
    south = await stocked(store, 1, warehouse="wh_2")
    other = await stocked(store, 1, product="prod_2", sku="OTHER")
    await publish(store)
    last = await store.position()
    async with (
        following(feed, Interest()) as everything,
        following(feed, Interest(product_id="prod_2")) as of_product,
        following(feed, Interest(type="OutOfStock")) as of_type,
        following(feed, Interest(warehouse_id="wh_2")) as of_place,
    ):
        for each in (item, south, other):
            await received(store, each)
        await publish(store)
        await until(lambda: len(everything) == 3 and of_product and of_place)
        await asyncio.sleep(0.05)

        assert [event.id for event in everything] == [last + 1, last + 2, last + 3]
        assert {event.event for event in everything} == {"StockLevelChanged"}
        assert everything[0].data["payload"]["newQuantity"] == 2
        assert [event.data["payload"]["productId"] for event in of_product] == ["prod_2"]
        assert [event.data["aggregateId"] for event in of_place] == [south.id]
        assert of_type == []


async def test_who_comes_back_misses_nothing(store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything since a position, once and in order, while more is published all the time."""
    monkeypatch.setattr(module, "PAGE", 7)
    item = await stocked(store, 1)
    await publish(store)
    begin = await store.position()
    await received(store, item, 40)
    await publish(store)
    async with following(feed, Interest(), begin) as one, following(feed, Interest(), begin + 20) as another:
        for _ in range(10):
            await received(store, item, 3)
            await publish(store)
        await until(lambda: one and one[-1].id == begin + 70 and another and another[-1].id == begin + 70)

        assert [event.id for event in one] == list(range(begin + 1, begin + 71))
        assert [event.id for event in another] == list(range(begin + 21, begin + 71))


async def test_what_is_gone_is_told_as_a_gap(store: Store, feed: Feed) -> None:
    """Who was away for longer than events are kept knows that it has to ask for the whole."""
    item = await stocked(store, 1)
    await received(store, item, 5)
    await publish(store)
    last = await store.position()
    assert isinstance(store, SqlStore)
    async with store.database.writing() as connection:
        await connection.execute(delete(tables.outbox).where(tables.outbox.c.position <= last - 2))
        await connection.commit()

    async with following(feed, Interest(), 1) as heard:
        await until(lambda: len(heard) == 3)

    assert heard[0] == Told(-1, "Gap", {"after": 1, "next": last - 1})
    assert [event.id for event in heard[1:]] == [last - 1, last]


async def test_a_gap_up_to_now_is_told_as_well(store: Store, feed: Feed) -> None:
    """Who was away until nothing is left is not told that nothing has happened."""
    item = await stocked(store, 1)
    await publish(store)
    last = await store.position()
    assert isinstance(store, SqlStore)
    async with store.database.writing() as connection:
        await connection.execute(delete(tables.outbox))
        await connection.commit()

    async with following(feed, Interest(), 0) as heard:
        await until(lambda: len(heard) == 1)
        await received(store, item)
        await publish(store)
        await until(lambda: len(heard) == 2)

    assert heard[0] == Told(-1, "Gap", {"after": 0, "next": last + 1})
    assert heard[1].id == last + 1


async def test_a_position_that_is_not_yet_means_now(store: Store, feed: Feed) -> None:
    """Such as one of a database that was put back to an earlier state."""
    item = await stocked(store, 1)
    await publish(store)
    async with following(feed, Interest(), 10**17) as heard:
        await received(store, item)
        await publish(store)
        await until(lambda: heard)
    assert heard[0].data["payload"]["newQuantity"] == 2


async def test_a_slow_listener_is_dropped_and_nobody_else(store: Store, feed: Feed) -> None:
    """One that takes nothing is let go when a thousand wait for it; the others are told everything."""
    item = await stocked(store, 1)
    await publish(store)
    begin = await store.position()
    async with following(feed, Interest()) as heard, feed.listen(Interest()) as slow:
        stream = feed.follow(slow, None)
        await anext(stream)
        stuck = asyncio.create_task(anext(stream))
        await received(store, item)
        await publish(store)
        await stuck  # and takes nothing more
        for _ in range(3):
            await received(store, item, 400)
            await publish(store)
        await until(lambda: heard and heard[-1].id == begin + 1_201)

        assert slow.ended
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert len(heard) == 1_201


async def test_a_listener_holds_no_more_than_so_much() -> None:
    """However much is offered to one that has ended."""
    listener = Listener(Interest())
    for _ in range(2 * WAITING_MAX):
        listener.offer(b"frame")
    assert (listener.ended, listener._frames, await listener.take()) == (True, [], b"")


async def test_when_the_feed_stops_every_stream_ends(store: Store) -> None:
    """And nobody new is taken."""
    feed = Feed(store)
    await feed.start()
    async with feed.listen(Interest()) as listener:
        stream = feed.follow(listener, None)
        await anext(stream)
        rest = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await feed.stop()
        with pytest.raises(StopAsyncIteration):
            await rest
    with pytest.raises(Unavailable):
        async with feed.listen(Interest()):
            pass


async def test_nobody_takes_every_place(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many streams in one name, so many in all; a place that is left is free."""
    monkeypatch.setattr(module, "OWN_MAX", 2)
    monkeypatch.setattr(module, "LISTENERS_MAX", 3)
    async with feed.listen(Interest(), name="one"), feed.listen(Interest(), name="one"):
        with pytest.raises(Unavailable, match="in your name"):
            async with feed.listen(Interest(), name="one"):
                pass
        async with feed.listen(Interest(), name="other"):
            with pytest.raises(Unavailable, match="no room"):
                async with feed.listen(Interest(), name="third"):
                    pass
    async with feed.listen(Interest(), name="one"):
        pass


async def test_listeners_are_told_that_they_are_connected(
    store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a comment every so often, which is no event."""
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    other = Feed(store)
    await other.start()
    async with other.listen(Interest()) as listener:
        stream = other.follow(listener, None)
        pieces = [await anext(stream), await anext(stream)]
    await other.stop()
    assert pieces[0].startswith(b"retry: ")
    assert pieces[1].startswith(b":\n\n")


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def bearer(*, lifetime: int = 600) -> dict[str, str]:
    """What a storefront sends."""
    issuer = audience = "inventory-service"
    token = mint(SECRET, issuer=issuer, audience=audience, subject="shop", roles=["product-service"], lifetime=lifetime)
    return {"authorization": f"Bearer {token}"}


@contextmanager
def stream(url: str, *, lifetime: int = 600, **headers: str) -> Iterator[tuple[httpx2.Response, Iterator[bytes]]]:
    """Open a stream and read its first piece."""
    given = bearer(lifetime=lifetime) | headers
    with httpx2.Client(timeout=20, trust_env=False) as client, client.stream("GET", url, headers=given) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        yield answer, pieces


def test_a_storefront_follows_live(tmp_path: Path) -> None:
    """As server-sent events, unbuffered; it comes back with the last id; it ends with its token, and with SIGTERM."""
    store = f"sqlite:///{tmp_path}/inventory.db"
    with Service("serve", store=store, broker="memory://") as service, service.client() as clerk:
        clerk.post("/warehouses", json={"id": "wh_1", "name": "North"}).raise_for_status()
        body = {"sku": "S-1", "productId": "prod_1", "warehouseId": "wh_1", "initialQuantity": 1}
        url = f"{service.url}/events?productId=prod_1"
        with stream(url) as (answer, pieces):
            clerk.post("/inventory-items", json=body).raise_for_status()
            text = b""
            while len(told(text)) < 3:
                text += next(pieces)
        assert answer.headers["content-type"] == "text/event-stream"
        assert [event.event for event in told(text)] == ["StockLevelChanged", "LowStockThresholdReached", "BackInStock"]
        first = told(text)[0].id

        with stream(url, **{"last-event-id": str(first)}) as (_, pieces):
            assert [event.id for event in told(next(pieces))] == [first + 1, first + 2]
        with stream(url, lifetime=1) as (_, pieces):
            assert b"".join(pieces) == b""
        refused = httpx2.get(url, headers=bearer() | {"last-event-id": "x"}, trust_env=False)
        assert (refused.status_code, refused.json()["code"]) == (400, "validation_failed")

        with stream(url) as (_, pieces), stream(url) as (_, others):
            started = time.monotonic()
            os.kill(service.pid, signal.SIGTERM)
            assert (b"".join(pieces), b"".join(others)) == (b"", b"")
            assert time.monotonic() - started < 4
        service.stop()
        assert "cut off" not in service.logged()


@pytest.mark.services
def test_any_process_tells_what_another_has_published(postgres_url: str) -> None:
    """Two API processes beside a relay: the stream is one, with one numbering."""
    migrate(postgres_url, "memory://")
    members = [
        Service("serve", store=postgres_url, broker="memory://", cache="none:"),
        *(Service("api", store=postgres_url, broker=no_broker()) for _ in range(2)),
    ]
    with Fleet(members) as fleet, fleet.members[0].client() as clerk:
        clerk.post("/warehouses", json={"id": "wh_1", "name": "North"}).raise_for_status()
        with stream(f"{fleet.urls[1]}/events") as (_, one), stream(f"{fleet.urls[2]}/events") as (_, other):
            body = {"sku": "S-1", "productId": "prod_1", "warehouseId": "wh_1", "initialQuantity": 50}
            clerk.post("/inventory-items", json=body).raise_for_status()
            heard = []
            for pieces in (one, other):
                text = b""
                while len(told(text)) < 2:
                    text += next(pieces)
                heard.append(told(text))
    assert heard[0] == heard[1]
    assert [event.event for event in heard[0]] == ["StockLevelChanged", "BackInStock"]


async def test_too_many_streams_of_one_token_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a code, a sentence and a time to come again."""
    monkeypatch.setattr(module, "OWN_MAX", 1)
    async with serving(tmp_path) as api, api.client(PRODUCT_SERVICE) as client:
        feed = await api.container.get(Feed)
        await feed.start()
        async with feed.listen(Interest(), name="inventory-service tester"):
            answer = await client.get("/events")
        await feed.stop()
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "in your name" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "10"


async def test_where_nobody_serves_the_stream_that_is_said(tmp_path: Path) -> None:
    """A process that is stopping asks the client to come again."""
    async with serving(tmp_path) as api, api.client(PRODUCT_SERVICE) as client:
        answer = await client.get("/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_who_takes_nothing_is_let_go(store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose connection is full for too long; the others are told on."""
    monkeypatch.setattr("core.reading.feed.SLOW_SECONDS", 0.2)
    monkeypatch.setattr("core.reading.feed._LOOK_SECONDS", 0.05)
    await feed.stop()
    await feed.start()
    dropped = asyncio.Event()

    async def stuck() -> None:
        async with feed.listen(Interest()) as listener:
            listener.sending_since = asyncio.get_running_loop().time()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                assert listener.ended
                dropped.set()

    async with following(feed, Interest()) as heard, asyncio.timeout(5):
        await asyncio.gather(stuck(), dropped.wait())
        assert heard is not None and len(feed._all) == 1


async def test_those_who_want_the_same_are_given_the_same_bytes(store: Store, feed: Feed) -> None:
    """Encoded and put together once, however many listen."""
    async with feed.listen(Interest(type="OutOfStock")) as one, feed.listen(Interest(type="OutOfStock")) as two:
        streams = [feed.follow(each, None) for each in (one, two)]
        for stream in streams:
            await anext(stream)
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        item = await stocked(store, 1)
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
        await publish(store)
        first, second = await asyncio.gather(*waiting)
        await asyncio.gather(*(stream.aclose() for stream in streams))  # type: ignore[attr-defined]
    assert first is second
    assert [each.event for each in told(first)] == ["OutOfStock"]
