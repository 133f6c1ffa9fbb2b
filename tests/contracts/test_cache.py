"""What every cache does, whatever it is made of. An adapter joins with one line in ``SCHEMES``."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count

import pytest

from adapters.registry import connect
from ports.cache import Cache, Change, Entry

SCHEMES = ["memory", pytest.param("redis", marks=pytest.mark.services)]
numbers = count(1)


def entry(revision: int, body: bytes = b"stock", *, seconds: float = 60.0) -> Entry:
    """A value."""
    return Entry(revision, body, seconds)


async def held(cache: Cache, key: str) -> tuple[int, bytes] | None:
    """What is under a key."""
    found = await cache.get([key])
    return (found[key].revision, found[key].body) if key in found else None


async def floor_told(changes: AsyncIterator[Change], key: str) -> int:
    """The next floor told of a key."""
    async with asyncio.timeout(5):
        async for change in changes:
            if key in change.floors:
                return change.floors[key]
    raise AssertionError("The changes ended.")


@pytest.fixture(scope="module", params=SCHEMES)
def url(request: pytest.FixtureRequest) -> str:
    """A cache of the kind that is tested."""
    return "memory://" if request.param == "memory" else request.getfixturevalue("redis").create_database()


@pytest.fixture(scope="module")
async def cache(url: str) -> AsyncIterator[Cache]:
    """One for all tests: every test uses keys of its own."""
    async with connect("cache", url) as opened:
        yield opened


@pytest.fixture
def key() -> str:
    """A key nobody has used."""
    return f"product:größe {next(numbers)}"


async def test_what_is_put_is_there(cache: Cache, key: str) -> None:
    """With its revision, every byte of its body, and no more than the seconds it was given; other keys stay empty."""
    body = bytes(range(256)) + b"\n1\n"
    await cache.put({key: entry(7, body, seconds=60)})

    found = await cache.get([key, f"{key}?"])

    assert found.keys() == {key}
    assert (found[key].revision, found[key].body) == (7, body)
    assert 50 < found[key].seconds <= 60


async def test_many_at_once(cache: Cache, key: str) -> None:
    """A thousand keys are put, fetched and covered by floors as one is."""
    keys = [f"{key}/{number}" for number in range(1_100)]
    await cache.put({each: entry(1) for each in keys})
    assert (await cache.get(keys)).keys() == set(keys)

    await cache.raise_floors(dict.fromkeys(keys, 2))
    assert await cache.get(keys) == {}


async def test_nothing_asked_nothing_said(cache: Cache) -> None:
    """Empty requests are not mistakes."""
    await cache.put({})
    await cache.raise_floors({})
    assert await cache.get([]) == {}


async def test_an_older_value_never_replaces_a_newer_one(cache: Cache, key: str) -> None:
    """Whoever was slow to read comes too late to write; the same revision again is welcome."""
    await cache.put({key: entry(9, b"new")})
    await cache.put({key: entry(8, b"old")})
    assert await held(cache, key) == (9, b"new")

    await cache.put({key: entry(9, b"again")})
    assert await held(cache, key) == (9, b"again")
    await cache.put({key: entry(10, b"newer")})
    assert await held(cache, key) == (10, b"newer")


async def test_revisions_are_numbers(cache: Cache, key: str) -> None:
    """10 is above 9, as large as they get."""
    for low, high in ((9, 10), (2**53 - 2, 2**53 - 1)):
        await cache.put({key: entry(high)})
        await cache.put({key: entry(low)})
        assert (await cache.get([key]))[key].revision == high


async def test_a_floor_ends_what_is_below_it(cache: Cache, key: str) -> None:
    """The old value is gone and cannot be put back; what is at the floor or above may stand (rule R23)."""
    await cache.put({key: entry(4)})
    await cache.raise_floors({key: 5})
    assert await held(cache, key) is None

    await cache.put({key: entry(4)})
    assert await held(cache, key) is None
    await cache.put({key: entry(5)})
    assert await held(cache, key) == (5, b"stock")


async def test_floors_only_rise(cache: Cache, key: str) -> None:
    """A floor that comes late, or again, neither ends a value above it nor lets in one below the highest."""
    await cache.raise_floors({key: 8})
    await cache.raise_floors({key: 3})
    await cache.put({key: entry(7)})
    assert await held(cache, key) is None

    await cache.put({key: entry(8)})
    await cache.raise_floors({key: 8})
    assert await held(cache, key) == (8, b"stock")


async def test_a_value_ends_with_its_time(cache: Cache, key: str) -> None:
    """After its seconds it is not there; what comes then may be of any revision."""
    await cache.put({key: entry(5, seconds=0.05)})
    await asyncio.sleep(0.08)
    assert await held(cache, key) is None

    await cache.put({key: entry(1)})
    assert await held(cache, key) == (1, b"stock")


async def test_changes_are_told_to_all_who_listen(cache: Cache, key: str) -> None:
    """Every floor, to every listener, in its order, from the moment they listen; and nothing that is only put."""
    await cache.raise_floors({key: 1})
    async with cache.changes() as one, cache.changes() as other:
        await cache.put({key: entry(2)})
        await cache.raise_floors({key: 3})
        await cache.raise_floors({key: 4})
        for changes in (one, other):
            assert [await floor_told(changes, key), await floor_told(changes, key)] == [3, 4]


async def test_signs_of_life_come_by_themselves(cache: Cache) -> None:
    """A listener can prove at any time that it has missed nothing that is older than a moment (rule R24)."""
    async with cache.changes() as changes:
        started = time.monotonic()
        async with asyncio.timeout(5):
            async for change in changes:
                if change.as_of >= started:
                    break
        assert time.monotonic() - started < 1


async def test_a_sign_of_life_comes_after_what_it_vouches_for(cache: Cache, key: str) -> None:
    """Who hears that all before an instant was told has heard every floor that was raised before it."""
    async with cache.changes() as changes:
        highest = 0
        for floor in range(1, 101):
            await cache.raise_floors({key: floor})
            raised_at = time.monotonic()
            if floor % 10 == 0:
                async with asyncio.timeout(5):
                    while highest < floor:
                        change = await anext(changes)
                        assert not (change.as_of > raised_at and change.floors.get(key, highest) < floor)
                        highest = max(highest, change.floors.get(key, 0))


async def test_racing_writers_leave_the_newest(cache: Cache, key: str) -> None:
    """However puts and floors of many tasks fall together, the end is the highest revision there was."""

    async def write(revision: int) -> None:
        await cache.raise_floors({key: revision})
        await cache.put({key: entry(revision, b"%d" % revision)})

    await asyncio.gather(*(write(revision) for revision in range(1, 60)))

    assert await held(cache, key) == (59, b"59")


async def test_a_caller_that_leaves_gives_its_reply_to_nobody(cache: Cache, key: str) -> None:
    """Requests cancelled at any moment: the next ones are answered with what they asked for (reliability C3)."""
    await cache.put({f"{key}/{number}": entry(number, b"%d" % number) for number in range(1, 50)})
    for number in range(1, 50):
        leaving = asyncio.create_task(cache.get([f"{key}/{number}"]))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert await held(cache, f"{key}/{number}") == (number, b"%d" % number)


async def test_it_answers(cache: Cache) -> None:
    """Ping returns."""
    await cache.ping()


async def test_listeners_may_leave(cache: Cache, key: str) -> None:
    """Who has left is told nothing, and nobody else notices."""
    async with cache.changes() as stays:
        async with cache.changes() as leaves, aclosing(leaves):
            await anext(leaves)
        await cache.raise_floors({key: 2})
        assert await floor_told(stays, key) == 2
