"""A hold ends once: confirmed and shipped, released, or expired, whoever else was about to do something with it.

Two real processes on one PostgreSQL race for the same holds; then the ledger, read in plain SQL, tells who got the
units. And a hold that nobody comes back for ends by itself, also where only a part of it was touched before.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import msgspec
import pytest
from audit import Row, books, deadlocks
from service import Fleet, Service, no_broker, token
from stores import at_work, batch, hold, migrated, only, stocked, submit

from core.operations import Receive
from core.rules.reservations import expire_due
from core.stock import Item, Reservation
from core.upkeep.expiry import Sweeper
from core.writing.writer import Writer
from ports.store import Store

HOLDS = 40
UNITS = 2
ENDS = {"RELEASE": "RELEASED", "EXPIRY": "EXPIRED", "FULFILMENT": "FULFILLED"}
STEPS = ("confirm", "fulfil", "release", "extend")
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services)


# -- two processes ---------------------------------------------------------------------------------------------------


async def test_one_of_expiry_confirm_release_and_fulfil_wins(postgres_url: str) -> None:
    """40 holds of two items each, all asked about their last moment to be confirmed, shipped, released and prolonged by
    two processes that sweep as well: the ledger shows one end each, and the answers are true to it.
    """
    async with migrated(postgres_url) as store:
        first = await stocked(store, HOLDS * UNITS)
        second = await stocked(store, HOLDS * UNITS, product="prod_2", sku="OTHER")
    with Fleet([Service("api", store=postgres_url, broker=no_broker()) for _ in range(2)]) as fleet:
        answers = await _race(fleet.urls, first, second)

    after = await books(postgres_url)
    after.check()
    assert after.reservations.keys() == answers.keys()
    ends = _ends(after.ledger)
    won = {id: only({type for type, _ in ends[id].values()}) for id in answers}
    for id, told in answers.items():
        assert {item: units for item, (_, units) in ends[id].items()} == {first.id: -UNITS, second.id: -UNITS}
        assert after.reservations[id]["status"] == ENDS[won[id]]
        _check_answers(won[id], told)
    shipped = sum(type == "FULFILMENT" for type in won.values())
    assert {item["on_hand"] for item in after.items} == {(HOLDS - shipped) * UNITS}
    assert len(after.events("ReservationExpired")) == 2 * sum(type == "EXPIRY" for type in won.values())
    print(f"won: {Counter(won.values())}")
    assert len(set(won.values())) > 1, "nobody raced"
    assert await deadlocks(postgres_url) == 0


async def _race(urls: list[str], *items: Item) -> dict[str, dict[str, httpx2.Response]]:
    """Return, by reservation, what each step was answered."""
    dice = random.Random()
    headers, limits = {"authorization": f"Bearer {token()}"}, httpx2.Limits(max_connections=100)
    async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=30, trust_env=False) as client:
        lines = [{"inventoryItemId": item.id, "quantity": UNITS} for item in items]
        body = {"lines": lines, "expiresInSeconds": 3}
        asked = [client.post(f"{urls[number % 2]}/reservations", json=body) for number in range(HOLDS)]
        holds = [answer.json()["data"] for answer in await asyncio.gather(*asked)]
        last = max(datetime.fromisoformat(held["expiresAt"]) for held in holds)

        async def step(number: int, name: str) -> httpx2.Response:
            # A quarter well before the end, the others in its moment, and the steps of each in any order.
            early = 0.5 + dice.uniform(0.0, 0.1) if number % 4 == 0 else dice.uniform(-0.05, 0.1)
            await asyncio.sleep((last - datetime.now(UTC)).total_seconds() - early)
            return await client.post(f"{dice.choice(urls)}/reservations/{holds[number]['id']}/{name}")

        async def every_step(number: int) -> dict[str, httpx2.Response]:
            return dict(zip(STEPS, await asyncio.gather(*(step(number, name) for name in STEPS)), strict=True))

        told = await asyncio.gather(*(every_step(number) for number in range(HOLDS)))
        return {held["id"]: answers for held, answers in zip(holds, told, strict=True)}


def _ends(ledger: list[Row]) -> dict[str, dict[str, tuple[str, int]]]:
    """By reservation and item: the one row that took the units out of the hold, and how many."""
    ends: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    for row in ledger:
        if row["type"] in ENDS:
            assert row["inventory_item_id"] not in ends[row["reservation_id"]], "ended twice"
            ends[row["reservation_id"]][row["inventory_item_id"]] = (row["type"], row["reserved_change"])
    return ends


def _check_answers(won: str, told: dict[str, httpx2.Response]) -> None:
    """Who was told "done" has done it, and who came too late was told what had happened."""
    statuses = {name: answer.status_code for name, answer in told.items()}
    assert set(statuses.values()) <= {200, 409}, statuses
    assert (statuses["fulfil"] == 200) == (won == "FULFILMENT")
    assert statuses["release"] == 200
    assert told["release"].json()["data"]["status"] == ENDS[won]
    if won == "EXPIRY":
        refused = [told[name].json()["code"] for name in ("confirm", "extend", "fulfil")]
        assert refused == ["reservation_expired"] * 3


# -- the sweeper -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", POSTGRESQL])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    embedded = request.param == "sqlite"
    return f"sqlite:///{tmp_path}/inventory.db" if embedded else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An empty store."""
    async with migrated(url) as store:
        yield store


@pytest.fixture
async def writer(store: Store) -> AsyncIterator[Writer]:
    """A writer, and the sweeper that goes with it."""
    async with at_work(store) as writer:
        sweeper = Sweeper(store, writer)
        await sweeper.start()
        yield writer
        await sweeper.stop()


async def test_a_hold_that_nobody_touches_ends_by_itself(url: str, store: Store, writer: Writer) -> None:
    """Within three seconds a hold of one second is EXPIRED, its unit is free, and both events wait to be published."""
    item = await stocked(store, 1)
    held = await hold(store, item, expires_in_seconds=1)
    began = time.monotonic()

    await _expired(store, held.id)

    assert time.monotonic() - began < 3
    after = await books(url)
    after.check()
    told = [row["event_type"] for row in after.outbox[-4:]]
    assert told == ["StockLevelChanged", "LowStockThresholdReached", "BackInStock", "ReservationExpired"]
    (expired,) = after.events("ReservationExpired")
    payload = msgspec.json.decode(expired["body"])["payload"]
    assert (payload["reservationId"], payload["quantity"], payload["totalQuantityAvailable"]) == (held.id, 1, 1)
    assert after.items[0]["available"] == 1


async def test_what_a_batch_could_not_free_the_sweeper_does(url: str, store: Store) -> None:
    """Of a hold on two products the touched one's line is free at once; the rest follows by itself, each told once."""
    item = await stocked(store, 5)
    other = await stocked(store, 5, product="prod_2", sku="OTHER")
    held = await hold(store, item, other, expires_in_seconds=1)
    await asyncio.sleep(1.05)
    async with at_work(store) as writer:
        await submit(writer, Receive(inventory_item_id=item.id, quantity=1))
        partly = await store.reservation(held.id)
        assert partly is not None
        assert (partly.status, [line.held for line in partly.lines]) == ("HELD", [0, 1])
        sweeper = Sweeper(store, writer)
        await sweeper.start()
        began = time.monotonic()

        ended = await _expired(store, held.id)

        assert time.monotonic() - began < 2
        await sweeper.stop()
    assert [line.released_quantity for line in ended.lines] == [1, 1]
    after = await books(url)
    after.check()
    assert [row["product_id"] for row in after.events("ReservationExpired")] == ["prod_1", "prod_2"]
    assert sorted(row["inventory_item_id"] for row in after.ledger if row["type"] == "EXPIRY") == [item.id, other.id]


async def test_a_hold_freed_from_both_ends_is_marked_as_over(url: str, store: Store) -> None:
    """Two batches that each free one product's line at the same time do not see each other; the hold still ends."""
    item = await stocked(store, 5)
    other = await stocked(store, 5, product="prod_2", sku="OTHER")
    held = await hold(store, item, other, expires_in_seconds=1)
    await asyncio.sleep(1.05)
    if url.startswith("postgresql"):
        async with batch(store, "prod_1") as (one, here), batch(store, "prod_2") as (two, there):
            expire_due(here)
            expire_due(there)
            assert await one.save(here, [])
            assert await two.save(there, [])
        (before,) = (await books(url)).reservations.values()
        assert before["status"] == "HELD"

    async with at_work(store) as writer:
        assert await Sweeper(store, writer).sweep() == 1

    await _expired(store, held.id)
    after = await books(url)
    after.check()
    assert len(after.events("ReservationExpired")) == 2


async def _expired(store: Store, id: str) -> Reservation:
    """Wait until the hold is marked as over, without touching it."""
    async with asyncio.timeout(10):
        while True:
            reservation = await store.reservation(id)
            if reservation is not None and reservation.status == "EXPIRED":
                return reservation
            await asyncio.sleep(0.02)
