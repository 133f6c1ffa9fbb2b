"""What is special to Redis: it can be slow, hung, wrong or gone, and none of that may cost more than a moment (F20)."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from os import kill

import pytest
from redis.asyncio import Redis as Client
from services import Redis

from adapters.redis import PAUSE_SECONDS
from adapters.registry import connect
from core.errors import Unavailable, ValidationFailed
from ports.cache import Cache, Entry

pytestmark = pytest.mark.services
VALUE = Entry(3, b"three", 60)


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    """A Redis that may be stopped."""
    with Redis() as server:
        yield server


@pytest.fixture
def url(server: Redis) -> str:
    """An empty database of it."""
    return server.create_database()


@pytest.fixture
async def cache(url: str) -> AsyncIterator[Cache]:
    """A cache there."""
    async with connect("cache", url) as cache:
        yield cache


@pytest.fixture
async def raw(url: str) -> AsyncIterator[Client]:
    """The database itself."""
    async with Client.from_url(url, protocol=2) as client:
        yield client


async def seconds(cache: Cache, *keys: str) -> float:
    """How long a miss takes."""
    started = time.monotonic()
    assert await cache.get(keys) == {}
    return time.monotonic() - started


async def hear(cache: Cache) -> None:
    """Listen to signs of life, as every process does."""
    while True:
        try:
            async with cache.changes() as changes:
                async for _ in changes:
                    pass
        except Unavailable:
            await asyncio.sleep(0.05)


async def test_a_hung_redis_costs_a_moment_once(server: Redis, cache: Cache) -> None:
    """The first question waits for 0.2 s at most, the next ones not at all; it is asked again when it shows life."""
    await cache.put({"key": VALUE})
    listening = asyncio.create_task(hear(cache))
    try:
        kill(server.pid, signal.SIGSTOP)
        try:
            first, second = await seconds(cache, "key"), await seconds(cache, "key")
            with pytest.raises(Unavailable):
                await cache.raise_floors({"key": 4})
            with pytest.raises(Unavailable):
                await cache.ping()
        finally:
            kill(server.pid, signal.SIGCONT)
        async with asyncio.timeout(PAUSE_SECONDS - 1):
            while not await cache.get(["key"]):
                await asyncio.sleep(0.01)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    assert 0.1 < first < 0.4
    assert second < 0.1


async def test_a_redis_that_went_away_is_found_again(server: Redis, cache: Cache) -> None:
    """Killed and started again on its port: empty, and used as before, without anybody's help (reliability C4)."""
    await cache.put({"key": VALUE})
    listening = asyncio.create_task(hear(cache))
    try:
        server.kill()
        await seconds(cache, "key")
        server.start()
        async with asyncio.timeout(PAUSE_SECONDS + 5):
            while not await cache.get(["key"]):
                await cache.put({"key": VALUE})
                await asyncio.sleep(0.02)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_an_idle_connection_that_was_cut_is_no_failure(cache: Cache, raw: Client) -> None:
    """A server that drops idle connections is answered with a new one at once (reliability C2)."""
    await cache.put({"key": VALUE})
    await cache.get(["key"])
    await raw.client_kill_filter(_type="normal", skipme=True)

    assert (await cache.get(["key"])).keys() == {"key"}
    await cache.raise_floors({"key": 4})
    assert await cache.get(["key"]) == {}


async def test_a_lost_subscription_ends_the_iteration(cache: Cache, raw: Client) -> None:
    """Who listens is told that something may have been missed."""
    with pytest.raises(Unavailable):
        async with asyncio.timeout(5), cache.changes() as changes:
            await anext(changes)
            await raw.client_kill_filter(_type="pubsub")
            while True:
                await anext(changes)


@pytest.mark.parametrize("value", [b"", b"no number\nbody", b"12", b"\n", b"-1\nbody", b"1e9\nbody", b"\xff\x00\n\n"])
async def test_what_is_not_ours_is_nothing(cache: Cache, raw: Client, value: bytes) -> None:
    """It is no value, stands in nobody's way, and does not come back."""
    await cache.put({"key": Entry(1, b"one", 60)})
    (name,) = await raw.keys()
    await raw.set(name, value)
    assert await cache.get(["key"]) == {}
    await cache.put({"key": VALUE})
    assert (await cache.get(["key"]))["key"].body == b"three"


async def test_another_type_under_our_key_is_nothing(cache: Cache, raw: Client) -> None:
    """A list where a value should be does not end a request, and is replaced."""
    await cache.put({"key": Entry(1, b"one", 60)})
    (name,) = await raw.keys()
    await raw.delete(name)
    await raw.rpush(name, "a", "b")
    assert await cache.get(["key"]) == {}
    await cache.raise_floors({"key": 3})
    await cache.put({"key": VALUE})
    assert (await cache.get(["key"]))["key"].revision == 3


async def test_an_old_value_goes_when_no_floor_can_be_written(cache: Cache, raw: Client) -> None:
    """A full Redis that takes nothing more does not go on telling what is over."""
    await cache.put({"key": VALUE})
    await raw.config_set("maxmemory", 1)
    try:
        await cache.raise_floors({"key": 4})
        await cache.put({"key": Entry(5, b"five", 60)})
        assert await cache.get(["key"]) == {}
    finally:
        await raw.config_set("maxmemory", 0)


async def test_scripts_that_were_forgotten_are_sent_again(cache: Cache, raw: Client) -> None:
    """A server that has lost its scripts is no failure."""
    await cache.put({"key": VALUE})
    await raw.script_flush()
    assert (await cache.get(["key"]))["key"].body == b"three"


async def test_services_that_share_a_redis_do_not_mix(server: Redis) -> None:
    """Another prefix and another database are other caches, changes included."""
    url = server.create_database()
    async with (
        connect("cache", url) as ours,
        connect("cache", f"{url}?prefix=shop") as theirs,
        connect("cache", server.create_database()) as others,
        theirs.changes() as heard,
    ):
        await ours.put({"key": VALUE})
        await ours.raise_floors({"other": 1})
        await theirs.raise_floors({"key": 9})
        async with asyncio.timeout(5):
            while not (change := await anext(heard)).floors:
                pass

        assert change.floors == {"key": 9}
        assert [len(await cache.get(["key"])) for cache in (ours, theirs, others)] == [1, 0, 0]


@pytest.mark.parametrize("url", ["redis://host:port", "redis://host/0?colour=red", "redis://host?socket_timeout=soon"])
async def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    """Before anything is done, with the form that is right."""
    with pytest.raises(ValidationFailed, match="redis://"):
        async with connect("cache", url):
            pass
