"""Housekeeping: what is over goes, what is not stays, and one at a time does it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stores import answers, carry_out, key, migrated, positions, stocked

from core.operations import Ship, StoredAnswer
from core.upkeep.housekeeping import Housekeeper
from ports.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with 2,500 answers and a few events, half of them published."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        item = await stocked(store, 100)
        await carry_out(store, answers=[StoredAnswer(key(f"k{number}"), b"done") for number in range(2500)])
        lease = await store.acquire("relay", "test", seconds=60)
        assert lease is not None
        assert await store.mark_published(lease, await store.pending(100))
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
        await asyncio.sleep(0.01)
        yield store


async def kept(store: Store) -> int:
    """How many answers are stored."""
    return len(await answers(store, *(key(f"k{number}") for number in range(2500))))


async def test_everything_that_is_over_goes(store: Store) -> None:
    """Also more than one batch of it; an event that was not published yet is never over."""
    published = len(await positions(store))
    housekeeper = Housekeeper(store, owner="one", answers_hours=0, events_days=0)

    assert await housekeeper.sweep() == 2500 + published
    assert await housekeeper.sweep() == 0

    assert (await kept(store), await positions(store), len(await store.pending(100))) == (0, {}, 1)


async def test_what_is_young_stays(store: Store) -> None:
    """Each kind by its own time."""
    published = await positions(store)

    assert await Housekeeper(store, owner="one", answers_hours=1, events_days=1).sweep() == 0
    assert await Housekeeper(store, owner="one", answers_hours=0, events_days=1).sweep() == 2500
    assert await positions(store) == published
    assert await Housekeeper(store, owner="one", answers_hours=1, events_days=0).sweep() == len(published)


async def test_one_at_a_time(store: Store) -> None:
    """Who comes while another is at it does nothing."""
    assert await store.acquire("housekeeping", "another", seconds=60)

    assert await Housekeeper(store, owner="one", answers_hours=0, events_days=0).sweep() == 0
    assert await kept(store) == 2500


async def test_who_stops_lets_another_go_on(store: Store) -> None:
    """Its lease is given back."""
    stopped = Housekeeper(store, owner="one", answers_hours=1, events_days=1)
    await stopped.sweep()
    assert await store.acquire("housekeeping", "another", seconds=60) is None

    await stopped.stop()

    assert await store.acquire("housekeeping", "another", seconds=60)


async def test_it_can_be_started_and_stopped(store: Store) -> None:
    """Stopping ends it at once, also before it has begun, and what is stored is untouched."""
    housekeeper = Housekeeper(store, owner="one", answers_hours=1, events_days=1)
    await housekeeper.stop()
    await housekeeper.start()
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await housekeeper.stop()

    assert await kept(store) == 2500
