"""What every store promises (``ports/store.py``), asked of each adapter by its URL."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import update
from stores import CAUSE, answers, batch, carry_out, dead_letters, empty, hold, key, migrated, only, positions, stocked

from adapters.registry import connect
from adapters.sql import tables
from adapters.sql.store import SqlStore
from core.errors import AlreadyExists, Busy, SkuConflict, Unavailable, ValidationFailed
from core.operations import (
    Adjust,
    Confirm,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    Extend,
    ItemPatch,
    ProductPatch,
    Receive,
    Release,
    SetPolicy,
    Ship,
    StoredAnswer,
    Transfer,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
    WarehousePatch,
)
from core.rules.decisions import decide
from core.rules.reservations import expire_due
from core.stock import Hold, Item, LeadTime, Reservation
from ports.broker import Message
from ports.dead_letters import DeadLetter
from ports.leases import Lease
from ports.outbox import BACKLOG_MAX, Backlog
from ports.store import ItemFilter, LedgerFilter, ProductStock, ReservationFilter, Store, Wanted

ANYTHING = ItemFilter()
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services)


@dataclass
class Place:
    """A database with two stores open on it, as two processes would have.

    ``rows`` says that two transactions may be open at once, on different products; ``bell`` that one store hears what
    the other announces.
    """

    store: Store
    other: Store
    rows: bool
    bell: bool


@pytest.fixture(params=["sqlite", POSTGRESQL])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """An empty database of each kind."""
    server = request.param == "postgresql"
    url = request.getfixturevalue("database") if server else f"sqlite:///{tmp_path}/inventory.db"
    async with migrated(url) as store, connect("store", url) as other:
        if server:
            await empty(url)
        yield Place(store, other, rows=server, bell=server)


@pytest.fixture
def store(place: Place) -> Store:
    """The first store."""
    return place.store


# -- a batch ---------------------------------------------------------------------------------------------------------


async def test_ids_resolve_to_their_products(store: Store) -> None:
    """Items and reservations lead to all their products; unknown ids lead nowhere and are left out."""
    first, second = await stocked(store, product="prod_1"), await stocked(store, product="prod_2", sku="OTHER")
    held = await hold(store, first, second)

    async with store.transaction() as transaction:
        found = await transaction.resolve([first.id, "inv_NOBODY"], [held.id, "res_NOBODY"])

    assert dict(found) == {first.id: {"prod_1"}, held.id: {"prod_1", "prod_2"}}


async def test_skus_resolve_to_their_products(store: Store) -> None:
    """A SKU leads to every product that has an item of it."""
    await stocked(store, product="prod_1")
    await stocked(store, product="prod_2", warehouse="wh_2")
    await stocked(store, product="prod_2", sku="OTHER")

    async with store.transaction() as transaction:
        found = await transaction.products_of(["WIDGET", "OTHER", "NOTHING"])

    assert {sku: set(products) for sku, products in found.items() if products} == {
        "WIDGET": {"prod_1", "prod_2"},
        "OTHER": {"prod_2"},
    }


async def test_only_products_that_exist_are_locked(store: Store) -> None:
    """Locking names what exists, with and without waiting, whatever the ids look like."""
    await store.add_products(["prod_1", "it's %s?"])

    async with store.transaction() as transaction:
        assert await transaction.lock(["prod_1", "nobody"], wait=False) == {"prod_1"}
        assert await transaction.lock(["nobody", "it's %s?"], wait=True) == {"it's %s?"}


async def test_without_waiting_a_held_product_is_left_out(place: Place) -> None:
    """A fast batch gets the free products at once; where batches take turns it gets all of them, after the other."""
    await place.store.add_products(["free", "held"])

    async def locked() -> set[str]:
        async with place.other.transaction() as transaction:
            return await transaction.lock(["free", "held"], wait=False)

    async with place.store.transaction() as transaction:
        await transaction.lock(["held"], wait=True)
        waiting = asyncio.create_task(locked())
        done, _ = await asyncio.wait([waiting], timeout=5 if place.rows else 0.1)
        assert bool(done) == place.rows

    assert await waiting == ({"free"} if place.rows else {"free", "held"})


@pytest.mark.parametrize("place", [POSTGRESQL], indirect=True)
async def test_a_lock_that_does_not_come_is_busy(place: Place) -> None:
    """Waiting for a product ends as Busy after about a second; where batches take turns nobody holds one meanwhile."""
    await place.store.add_products(["held"])

    async with place.store.transaction() as transaction:
        await transaction.lock(["held"], wait=True)
        began = time.monotonic()
        with pytest.raises(Busy):
            async with place.other.transaction() as waiting:
                await waiting.lock(["held"], wait=True)
        assert 0.5 < time.monotonic() - began < 3

    async with place.other.transaction() as transaction:
        assert await transaction.lock(["held"], wait=False) == {"held"}


async def test_what_is_read_after_the_lock_is_what_the_holder_left(place: Place) -> None:
    """Whoever waited for the lock sees the previous holder's commit, not the balance from before (rule R1)."""
    item = await stocked(place.store, 10)

    async def after_the_lock() -> int:
        async with place.other.transaction() as transaction:
            await transaction.lock(["prod_1"], wait=True)
            book = await transaction.load(["prod_1"], Wanted(item_ids={item.id}))
            return book.items[item.id].on_hand

    async with batch(place.store, "prod_1", item_ids={item.id}) as (transaction, book):
        waiting = asyncio.create_task(after_the_lock())
        await asyncio.sleep(0.1)
        decide(book, Ship(inventory_item_id=item.id, quantity=7), CAUSE)
        assert await transaction.save(book, [])

    assert await waiting == 3


async def test_a_batch_loads_what_it_wants_and_no_more(store: Store) -> None:
    """Items by id, by reservation, by place and by whole product; warehouses by id; products as locked."""
    item = await stocked(store, 10)
    elsewhere = await stocked(store, 5, warehouse="wh_2")
    stranger = await stocked(store, 5, product="prod_2", sku="OTHER")
    held = await hold(store, item)

    async def loaded(**wanted: Any) -> set[str]:
        async with batch(store, "prod_1", **wanted) as (transaction, book):
            await transaction.rollback()
        assert book.products.keys() == {"prod_1"}
        return {*book.items, *book.reservations, *book.warehouses}

    assert await loaded() == set()
    assert await loaded(item_ids={item.id, "inv_NOBODY"}) == {item.id}
    assert await loaded(reservation_ids={held.id}) == {item.id, held.id}
    assert await loaded(whole_products={"prod_1"}) == {item.id, elsewhere.id}
    assert await loaded(warehouse_ids={"wh_2", "wh_9"}) == {"wh_2"}
    assert await loaded(all_warehouses=True) == {"wh_1", "wh_2"}
    assert await loaded(skus={"OTHER", "NOTHING"}) == {stranger.id}
    async with batch(store, "prod_1", places={("OTHER", "wh_1")}) as (_, book):
        assert book.at("OTHER", "wh_1") == stranger


async def test_a_batch_s_clock_never_runs_behind_its_products(store: Store) -> None:
    """``now`` is an aware present instant, and not before the last change although that is said to be in the future."""
    item = await stocked(store)
    async with batch(store, "prod_1", item_ids={item.id}) as (transaction, book):
        assert abs(book.now - datetime.now(UTC)) < timedelta(minutes=1)
        later = book.now = book.now + timedelta(hours=1)
        decide(book, Receive(inventory_item_id=item.id, quantity=1), CAUSE)
        assert await transaction.save(book, [])

    async with batch(store, "prod_1") as (_, book):
        assert book.now == later


async def test_everything_comes_back_as_it_was_saved(store: Store) -> None:
    """Every field of every entity survives the database, text of all scripts and microseconds included."""
    house = CreateWarehouse(id="wh_1", name="Lager Süd 倉庫 🏬", priority=7, lead_time_days=LeadTime(2, 9))
    (warehouse,) = await carry_out(store, house)
    metadata = {"deep": [1, {"naïve": None}], "text": "\U0001f600 '\"\\\x00"}
    (item,) = await carry_out(
        store,
        CreateItem(sku="S%s?:1'", product_id="prod_1", warehouse_id="wh_1", initial_quantity=40, metadata=metadata),
    )
    assert isinstance(item, Item)
    adjust = Adjust(
        inventory_item_id=item.id,
        delta=-3,
        reason="Bruch",
        reference_type="NOTE",
        reference_number="№ 1",
        occurred_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    )
    (change,) = await carry_out(store, adjust)
    held = await hold(store, item, reference_type="ORDER", reference_number="SO-9")

    stock = (await store.products(["prod_1"]))["prod_1"]
    ledger = await store.ledger(item.id, cursor=None, limit=10)
    assert await store.warehouses() == (warehouse,)
    assert await store.item(item.id) == only(stock.items)
    assert only(stock.items) == replace(change.item, reserved=1, available=36, version=3, updated_at=held.updated_at)
    assert await store.reservation(held.id) == held
    assert ledger.rows[1] == only(change.transactions)
    assert (stock.product.total_on_hand, stock.product.total_reserved, stock.product.total_available) == (37, 1, 36)


async def test_a_book_that_is_out_of_date_is_not_saved(store: Store) -> None:
    """An item, a product, or a warehouse that has moved since it was loaded: save says False, nothing is written."""
    item = await stocked(store, 10)
    everything = {"item_ids": {item.id}, "warehouse_ids": {"wh_1"}}

    for operation in (
        Receive(inventory_item_id=item.id, quantity=1),
        UpdateProduct(product_id="prod_1", patch=ProductPatch(low_stock_threshold=3)),
        UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(priority=3)),
    ):
        async with batch(store, "prod_1", **everything) as (transaction, stale):
            await transaction.rollback()
        await carry_out(store, operation)
        before = await store.products(["prod_1"]), await store.warehouses(), len(await store.pending(100))
        async with batch(store, "prod_1") as (transaction, _):
            decide(stale, operation, CAUSE)
            assert not await transaction.save(stale, [])
            await transaction.rollback()
        assert (await store.products(["prod_1"]), await store.warehouses(), len(await store.pending(100))) == before


async def test_an_answer_whose_key_exists_is_not_saved(store: Store) -> None:
    """A key is stored once: who comes second is told False, and after the rollback the first answer stands."""
    item = await stocked(store, 10)
    await carry_out(store, answers=[StoredAnswer(key("a"), b"first")])

    async with batch(store, "prod_1", item_ids={item.id}) as (transaction, book):
        decide(book, Receive(inventory_item_id=item.id, quantity=1), CAUSE)
        again = [StoredAnswer(key("b"), b"new"), StoredAnswer(key("a", b"other"), b"second")]
        assert not await transaction.save(book, again)
        await transaction.rollback()

    assert await answers(store, key("a", b"any"), key("b")) == [StoredAnswer(key("a"), b"first")]
    assert await store.item(item.id) == item


async def test_answers_are_found_by_issuer_subject_and_key_together(store: Store) -> None:
    """An answer is not told to two callers who share a part of its key with it each."""
    theirs = StoredAnswer(replace(key("k"), issuer="https://one", subject="two"), b"theirs")
    await carry_out(store, answers=[theirs])

    one, two = (replace(key("k"), issuer=f"https://{name}", subject=name) for name in ("one", "two"))
    assert await answers(store, one, two) == []
    assert await answers(store, one, two, theirs.key) == [theirs]
    assert await answers(store) == []


async def test_stored_answers_are_bytes(store: Store) -> None:
    """Fingerprints and answers are any bytes."""
    stored = StoredAnswer(key("a", bytes(range(256))), bytes(range(255, -1, -1)))
    await carry_out(store, answers=[stored])

    assert await answers(store, stored.key) == [stored]


@pytest.mark.parametrize("end", ["rollback", "exception"])
async def test_a_batch_that_gives_up_leaves_nothing(store: Store, end: str) -> None:
    """Balances, ledger, events, reservations and answers of a batch that was not committed are not there."""
    item = await stocked(store, 10)
    await publish_all(store)

    async def give_up() -> None:
        async with batch(store, "prod_1", item_ids={item.id}) as (transaction, book):
            decide(book, Receive(inventory_item_id=item.id, quantity=1), CAUSE)
            assert await transaction.save(book, [StoredAnswer(key("a"), b"done")])
            if end == "exception":
                raise LookupError("the caller's own")
            await transaction.rollback()

    if end == "exception":
        with pytest.raises(LookupError, match="the caller's own"):
            await give_up()
    else:
        await give_up()

    assert await store.item(item.id) == item
    assert len((await store.ledger(item.id, cursor=None, limit=10)).rows) == 1
    assert await store.pending(10) == []
    assert await answers(store, key("a")) == []


async def test_a_sku_taken_in_the_meantime_is_a_conflict(store: Store) -> None:
    """The database has the last word on one SKU in one warehouse, as an error of ours."""
    item = await stocked(store, product="prod_1")
    await store.add_products(["prod_2"])

    async def take() -> None:
        async with batch(store, "prod_2", warehouse_ids={"wh_1"}) as (transaction, book):
            decide(book, CreateItem(sku=item.sku, product_id="prod_2", warehouse_id="wh_1"), CAUSE)
            await transaction.save(book, [])

    with pytest.raises(SkuConflict):
        await take()
    assert (await store.products(["prod_2"]))["prod_2"].items == ()


async def test_a_warehouse_made_in_the_meantime_is_a_conflict(store: Store) -> None:
    """The same for a warehouse's id."""
    await carry_out(store, CreateWarehouse(id="wh_1", name="First"))

    async def take() -> None:
        async with batch(store) as (transaction, book):
            decide(book, CreateWarehouse(id="wh_1", name="Second"), CAUSE)
            await transaction.save(book, [])

    with pytest.raises(AlreadyExists):
        await take()
    assert only(await store.warehouses()).name == "First"


async def test_adding_products_again_changes_nothing(store: Store) -> None:
    """Known products keep what they have; new ones begin with nothing."""
    await stocked(store, 10)
    known = await store.products(["prod_1"])

    await store.add_products(["prod_1", "prod_2", "prod_1"])

    found = await store.products(["prod_1", "prod_2"])
    assert found["prod_1"] == known["prod_1"]
    assert (found["prod_2"].product.total_available, found["prod_2"].product.sequence) == (0, 0)


async def test_the_same_products_can_be_added_by_many_at_once(place: Place) -> None:
    """Nobody waits for each other in a circle, whatever the order they are named in."""
    names = [f"prod_{number}" for number in range(200)]

    await asyncio.gather(
        *(store.add_products(ids) for ids in (names, names[::-1]) * 2 for store in (place.store, place.other))
    )

    assert len(await place.store.products(names)) == 200


# -- reads -----------------------------------------------------------------------------------------------------------


async def test_products_come_with_their_items(store: Store) -> None:
    """Known products are found with all their items in order of creation; unknown ones are left out."""
    first = await stocked(store, 1)
    second = await stocked(store, 2, warehouse="wh_2")
    await store.add_products(["empty"])

    found = await store.products(["prod_1", "empty", "nobody"])

    assert found.keys() == {"prod_1", "empty"}
    assert found["prod_1"].items == (first, second)
    assert found["prod_1"].product.total_available == 3
    assert found["empty"].items == ()
    assert await store.products([]) == {}


async def test_a_product_and_its_items_are_of_one_moment(place: Place) -> None:
    """While stock is moved about, the totals read are always the sum of the items read with them."""
    item = await stocked(place.store, 50)
    twin = await stocked(place.store, 50, warehouse="wh_2")

    async def look() -> ProductStock:
        return (await place.other.products(["prod_1"]))["prod_1"]

    for moved in (item, twin) * 10:
        ship = carry_out(place.store, Ship(inventory_item_id=moved.id, quantity=1))
        _, *seen = await asyncio.gather(ship, look(), look())
        assert all(stock.product.total_on_hand == sum(item.on_hand for item in stock.items) for stock in seen)


async def test_what_does_not_exist_is_none(store: Store) -> None:
    """Reads of one thing answer None, reads of several an empty list."""
    assert await store.item("inv_NOBODY") is None
    assert await store.reservation("res_NOBODY") is None
    assert await store.warehouses() == ()
    assert (await store.items(ANYTHING, cursor=None, limit=10)).rows == ()
    assert (await store.ledger("inv_NOBODY", cursor=None, limit=10)).next_cursor is None


async def test_items_are_listed_by_any_of_their_words(store: Store) -> None:
    """Each filter narrows the list; together they narrow it further."""
    plenty = await stocked(store, 100)
    low = await stocked(store, 3, warehouse="wh_2")
    out = await stocked(store, 0, product="prod_2", sku="OTHER")
    (shut,) = await carry_out(store, Deactivate(inventory_item_id=out.id), product="prod_2")

    async def listed(**words: str) -> list[str]:
        page = await store.items(msgspec.convert(words, ItemFilter), cursor=None, limit=10)
        return [item.id for item in page.rows]

    assert await listed() == [plenty.id, low.id, out.id]
    assert await listed(product_id="prod_1") == [plenty.id, low.id]
    assert await listed(sku="OTHER") == await listed(status="INACTIVE") == await listed(stock="out") == [shut.item.id]
    assert await listed(warehouse_id="wh_2") == await listed(stock="low") == [low.id]
    assert await listed(product_id="prod_1", warehouse_id="wh_1", status="ACTIVE") == [plenty.id]
    assert await listed(product_id="prod_2", stock="low") == []


async def test_pages_of_items_are_stable_while_items_are_added(store: Store) -> None:
    """Every item that was there at the start comes exactly once, in order of creation, also when the page just fits."""
    before = [(await stocked(store, 1, sku=f"SKU-{number}")).id for number in range(4)]
    first = await store.items(ANYTHING, cursor=None, limit=2)
    after = await stocked(store, 1, sku="AFTER")

    second = await store.items(ANYTHING, cursor=first.next_cursor, limit=3)

    assert [item.id for item in (*first.rows, *second.rows)] == [*before, after.id]
    assert second.next_cursor is None


async def test_pages_of_the_ledger_are_stable_while_rows_are_added(store: Store) -> None:
    """Newest first; what is written while somebody reads on shifts nothing."""
    item = await stocked(store, 1)
    await carry_out(store, *(Receive(inventory_item_id=item.id, quantity=1) for _ in range(12)))

    page = await store.ledger(item.id, cursor=None, limit=5)
    versions = [row.item_version for row in page.rows]
    while page.next_cursor:
        await carry_out(store, Receive(inventory_item_id=item.id, quantity=1))
        page = await store.ledger(item.id, cursor=page.next_cursor, limit=5)
        versions += [row.item_version for row in page.rows]

    assert versions == list(range(13, 0, -1))


async def test_the_ledger_is_filtered(store: Store) -> None:
    """By type, reference, actor and time, from ``since`` to before ``until``; a filtered list has pages as well."""
    item = await stocked(store, 5)
    receive = Receive(inventory_item_id=item.id, quantity=1, reference_type="PO", reference_number="1")
    for operation in (receive, Ship(inventory_item_id=item.id, quantity=1), replace(receive, reference_number="2")):
        await carry_out(store, operation)
        await asyncio.sleep(0.002)
    rows = (await store.ledger(item.id, cursor=None, limit=10)).rows

    async def versions(**words: Any) -> list[int]:
        page = await store.ledger(item.id, filter=LedgerFilter(**words), cursor=None, limit=10)
        return [row.item_version for row in page.rows]

    assert await versions() == [4, 3, 2, 1]
    assert await versions(type="RECEIPT") == [4, 2, 1]
    assert await versions(reference_type="PO", reference_number="2") == [4]
    assert await versions(actor=rows[0].actor) == [4, 3, 2, 1]
    assert await versions(actor="nobody") == []
    assert await versions(since=rows[2].recorded_at, until=rows[0].recorded_at) == [3, 2]
    first = await store.ledger(item.id, filter=LedgerFilter(type="RECEIPT"), cursor=None, limit=2)
    rest = await store.ledger(item.id, filter=LedgerFilter(type="RECEIPT"), cursor=first.next_cursor, limit=2)
    assert [row.item_version for row in (*first.rows, *rest.rows)] == [4, 2, 1]


async def test_balances_are_those_of_the_instant(store: Store) -> None:
    """At every instant, to the microsecond, what the last row recorded until then says (rule R12)."""
    item = await stocked(store, 5)
    other = await stocked(store, 7, sku="OTHER")
    for number in range(9):
        await carry_out(store, *[Receive(inventory_item_id=item.id, quantity=1)] * (number % 3 + 1))
        await asyncio.sleep(0.001)
    ledger = (await store.ledger(item.id, cursor=None, limit=100)).rows[::-1]
    instants = {row.recorded_at + timedelta(microseconds=shift) for row in ledger for shift in (-1, 0, 1)}

    for at in sorted(instants):
        known = [row for row in ledger if row.recorded_at <= at]
        balances = await store.balances([item.id, "inv_NOBODY"], at)
        assert [(balance.inventory_item_id, balance.on_hand) for balance in balances] == [
            (row.inventory_item_id, row.on_hand_after) for row in known[-1:]
        ]

    both = await store.balances([item.id, other.id], datetime.now(UTC) + timedelta(days=1))
    assert {balance.inventory_item_id: balance.on_hand for balance in both} == {item.id: 5 + 18, other.id: 7}
    assert await store.balances([], datetime.now(UTC)) == []


async def test_a_reservation_and_its_lines_are_of_one_moment(place: Place) -> None:
    """Whoever reads a reservation while it is released sees it held with its units or released without."""
    item = await stocked(place.store, 100)

    async def release(held: Reservation) -> None:
        async with batch(place.store, "prod_1", reservation_ids={held.id}) as (transaction, book):
            decide(book, Release(reservation_id=held.id), CAUSE)
            assert await transaction.save(book, [])

    async def look(held: Reservation) -> None:
        for _ in range(5):
            seen = await place.other.reservation(held.id)
            assert seen is not None
            assert (seen.status == "HELD") == bool(only(seen.lines).held)

    for _ in range(20):
        held = await hold(place.store, item)
        await asyncio.gather(release(held), look(held), look(held))


async def test_a_cursor_of_another_list_is_refused(store: Store) -> None:
    """A cursor that was made elsewhere, cut short, or made up is a mistake of the caller's, not a strange page."""
    item = await stocked(store, 1)
    await stocked(store, 1, sku="OTHER")
    await carry_out(store, *(Receive(inventory_item_id=item.id, quantity=1) for _ in range(3)))
    of_items = (await store.items(ANYTHING, cursor=None, limit=1)).next_cursor
    of_ledger = (await store.ledger(item.id, cursor=None, limit=1)).next_cursor
    assert of_items is not None
    assert of_ledger is not None

    for cursor in ("", "x", "%%%", "ä", "a" * 5000, "bGVkZ2VyOg", "bGVkZ2VyOi0x", "bGVkZ2VyOjEuNQ", of_ledger[:4]):
        with pytest.raises(ValidationFailed):
            await store.ledger(item.id, cursor=cursor, limit=1)
    for cursor in ("", "x", "ä", of_ledger, of_items[:2], "aXRlbTphAGI"):
        with pytest.raises(ValidationFailed):
            await store.items(ANYTHING, cursor=cursor, limit=1)
    with pytest.raises(ValidationFailed):
        await store.ledger(item.id, cursor=of_items, limit=1)


async def test_holds_are_told_with_the_revision_they_belong_to(store: Store) -> None:
    """What is held for a time of a product's items, less what has left; not what is confirmed or another product's."""
    item, south = await stocked(store, 9), await stocked(store, 5, warehouse="wh_2")
    other = await stocked(store, 9, product="prod_2", sku="OTHER")
    both = await hold(store, item, south)
    await hold(store, other)
    for operation in (
        Confirm(reservation_id=(await hold(store, item)).id),
        Release(reservation_id=(await hold(store, item)).id),
    ):
        async with batch(store, "prod_1", reservation_ids={operation.reservation_id}, whole_products={"prod_1"}) as (
            transaction,
            book,
        ):
            decide(book, operation, CAUSE)
            assert await transaction.save(book, [])

    revision, holds = await store.holds("prod_1")

    assert revision == (await store.products(["prod_1"]))["prod_1"].product.revision
    assert both.expires_at is not None
    assert {*holds} == {Hold(item.id, 1, both.expires_at), Hold(south.id, 1, both.expires_at)}
    assert await store.holds("nobody") == (0, ())


async def test_warehouses_come_by_priority_then_id(store: Store) -> None:
    """Lower numbers first."""
    for id, priority in (("wh_1", 9), ("wh_3", 1), ("wh_2", 1)):
        await carry_out(store, CreateWarehouse(id=id, name=id, priority=priority))

    assert [warehouse.id for warehouse in await store.warehouses()] == ["wh_2", "wh_3", "wh_1"]


async def test_a_reservation_shows_how_far_it_is(store: Store) -> None:
    """A released hold is read back released, with the lines it had."""
    item = await stocked(store, 10)
    held = await hold(store, item)
    (before,) = (await store.products(["prod_1"]))["prod_1"].items
    async with batch(store, "prod_1", reservation_ids={held.id}) as (transaction, book):
        ended = decide(book, Release(reservation_id=held.id), CAUSE)
        assert await transaction.save(book, [])

    assert (before.reserved, before.available) == (1, 9)
    assert await store.reservation(held.id) == ended
    assert isinstance(ended, Reservation)
    assert (ended.status, ended.expires_at) == ("RELEASED", None)
    assert ended.lines == (replace(only(held.lines), released_quantity=1),)


async def test_reservations_are_listed_by_reference_and_status(store: Store) -> None:
    """Oldest first, a page at a time; a cursor of another list is refused."""
    item = await stocked(store, 10)
    holds = [await hold(store, item, reference_type="ORDER", reference_number=f"SO-{number}") for number in range(3)]
    async with batch(store, "prod_1", reservation_ids={holds[0].id}) as (transaction, book):
        decide(book, Release(reservation_id=holds[0].id), CAUSE)
        assert await transaction.save(book, [])

    async def listed(**words: str) -> list[str]:
        page = await store.reservations(msgspec.convert(words, ReservationFilter), cursor=None, limit=10)
        return [reservation.id for reservation in page.rows]

    first = await store.reservations(ReservationFilter(), cursor=None, limit=2)
    rest = await store.reservations(ReservationFilter(), cursor=first.next_cursor, limit=2)
    assert [reservation.id for reservation in first.rows + rest.rows] == [held.id for held in holds]
    assert first.rows[1] == holds[1]
    assert rest.next_cursor is None
    assert await listed(status="HELD", reference_type="ORDER") == [holds[1].id, holds[2].id]
    assert await listed(reference_number="SO-0") == [holds[0].id]
    assert await listed(reference_type="CART") == []
    with pytest.raises(ValidationFailed):
        await store.items(ANYTHING, cursor=first.next_cursor, limit=2)


async def test_holds_that_are_over_are_due(store: Store) -> None:
    """Longest over first and so many at a time; a batch that locks their product gets them unasked (rule R10)."""
    item = await stocked(store, 10)
    other = await stocked(store, 10, product="prod_2", sku="OTHER")
    late, later = await hold(store, item, expires_in_seconds=1), await hold(store, item, other, expires_in_seconds=1)
    await hold(store, item, expires_in_seconds=60)
    assert await store.due(10) == []
    await asyncio.sleep(1.05)

    assert await store.due(10) == [late.id, later.id]
    assert await store.due(1) == [late.id]
    async with batch(store, "prod_2") as (transaction, book):
        assert book.reservations == {later.id: later}
        assert book.items.keys() == {item.id, other.id}
        assert book.now >= late.expires_at
        await transaction.rollback()
    async with batch(store, "prod_1", "prod_2") as (transaction, book):
        expire_due(book)
        assert await transaction.save(book, [])
    assert await store.due(10) == []
    ended = await store.reservation(later.id)
    assert ended is not None
    assert (ended.status, [line.released_quantity for line in ended.lines]) == ("EXPIRED", [1, 1])


async def test_edits_and_transfers_are_kept(store: Store) -> None:
    """What an operation other than a count of goods changes is stored as well."""
    item = await stocked(store, 10)
    await stocked(store, 0, product="prod_2", sku="OTHER", warehouse="wh_2")
    _, _, change = await carry_out(
        store,
        UpdateItem(inventory_item_id=item.id, patch=ItemPatch(name="Gadget", metadata={"a": 1})),
        SetPolicy(inventory_item_id=item.id, safety_stock=2, reorder_threshold=3, target_stock_level=4),
        Transfer(inventory_item_id=item.id, quantity=4, to_warehouse_id="wh_2"),
    )

    source, target = (await store.products(["prod_1"]))["prod_1"].items
    assert source == change.item
    assert (source.name, source.metadata, source.on_hand, source.available) == ("Gadget", {"a": 1}, 6, 4)
    assert (source.safety_stock, source.reorder_threshold, source.target_stock_level) == (2, 3, 4)
    assert (target.warehouse_id, target.sku, target.on_hand) == ("wh_2", item.sku, 4)


# -- the relay's steps -----------------------------------------------------------------------------------------------


async def test_one_holds_a_lease(place: Place) -> None:
    """The owner renews and keeps its token; another gets it when it is given back, and with a higher token."""
    first = await place.store.acquire("relay", "one", seconds=60)
    assert first == Lease("relay", "one", 1)
    assert await place.store.acquire("relay", "one", seconds=60) == first
    assert await place.other.acquire("relay", "two", seconds=60) is None
    assert await place.other.acquire("sweep", "two", seconds=60) == Lease("sweep", "two", 1)

    await place.store.release(first)
    second = await place.other.acquire("relay", "two", seconds=60)
    assert second is not None
    assert second.token > first.token

    await place.store.release(first)
    assert await place.store.acquire("relay", "one", seconds=60) is None, "a lease that is not ours was given back"


async def test_a_lease_that_is_not_renewed_is_taken_over(place: Place) -> None:
    """Time is the database's; the token rises."""
    assert await place.store.acquire("relay", "one", seconds=0.05) == Lease("relay", "one", 1)
    await asyncio.sleep(0.1)
    assert await place.other.acquire("relay", "two", seconds=60) == Lease("relay", "two", 2)
    assert await place.store.acquire("relay", "one", seconds=60) is None


async def test_many_want_the_lease_and_one_gets_it(place: Place) -> None:
    """Asked for by many at once, a lease has one owner."""
    stores = [place.store, place.other] * 5

    leases = await asyncio.gather(
        *(store.acquire("relay", f"owner {number}", seconds=60) for number, store in enumerate(stores))
    )

    assert sum(lease is not None for lease in leases) == 1


async def test_pending_events_come_critical_products_first(store: Store) -> None:
    """A product with a waiting critical event comes with its whole backlog, then the rest by age; each in order."""
    calm = await stocked(store, 50, product="calm")
    urgent = await stocked(store, 50, product="urgent", sku="U")
    await publish_all(store)
    for item, quantity in ((calm, 1), (urgent, 2), (calm, 1)):
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=quantity), product=item.product_id)
    assert [row.product_id for row in await store.pending(2)] == ["calm", "urgent"]
    await carry_out(store, Ship(inventory_item_id=urgent.id, quantity=48), product="urgent")

    rows = await store.pending(100)
    told = [(row.product_id, row.event_type) for row in rows]
    backlog = [("urgent", "StockLevelChanged"), ("urgent", "StockLevelChanged"), ("urgent", "OutOfStock")]
    assert told == [*backlog, ("calm", "StockLevelChanged"), ("calm", "StockLevelChanged")]
    assert [row.sequence for row in rows[:3]] == sorted(row.sequence for row in rows[:3])
    assert [row.sequence for row in rows[3:]] == sorted(row.sequence for row in rows[3:])
    assert [row.critical for row in rows] == [False, False, True, False, False]


async def test_pending_is_cut_at_the_end_of_a_product_s_order(store: Store) -> None:
    """A limit takes the first events of a product, never later ones only; skipped products are left out."""
    item = await stocked(store, 100)
    await stocked(store, 50, product="prod_2", sku="OTHER")
    await publish_all(store)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=10) for _ in range(10)))

    every = await store.pending(100)
    assert {row.product_id for row in every} == {"prod_1"}
    for limit in range(1, 6):
        assert await store.pending(limit) == every[:limit]
    assert await store.pending(100, skip=["prod_1"]) == []
    assert await store.pending(100, skip=["prod_2", "nobody"]) == every


async def test_an_event_is_kept_to_the_byte(store: Store) -> None:
    """What is pending is what was decided."""
    item = await stocked(store, 10)
    await publish_all(store)
    async with batch(store, "prod_1", item_ids={item.id}) as (transaction, book):
        decide(book, Ship(inventory_item_id=item.id, quantity=10, reason="Größe"), CAUSE)
        assert await transaction.save(book, [])

    assert await store.pending(10) == book.outbox


async def test_published_events_get_positions_without_gaps(store: Store) -> None:
    """Positions follow the order of publishing and go on where the last owner of the lease stopped."""
    item = await stocked(store, 100)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(8)))
    first = await store.acquire("relay", "one", seconds=60)
    assert first is not None
    rows = await store.pending(4)
    assert await store.mark_published(first, rows)
    await store.release(first)
    second = await store.acquire("relay", "two", seconds=60)
    assert second is not None

    rest = await store.pending(100)
    assert await store.mark_published(second, rest)

    assert rows + rest == sorted(rows + rest, key=lambda row: row.sequence)
    assert await store.pending(100) == []
    assert await positions(store) == {
        (row.product_id, row.sequence): place for place, row in enumerate(rows + rest, start=1)
    }


async def test_an_event_keeps_its_place_when_a_mark_thought_lost_comes_through(store: Store) -> None:
    """Marked again together with another event, it stays where it is, and the other waits for a mark of its own."""
    item = await stocked(store, 100)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(3)))
    lease = await store.acquire("relay", "one", seconds=60)
    assert lease is not None
    rows = await store.pending(100)
    assert await store.mark_published(lease, rows[:2])

    assert await store.mark_published(lease, rows)
    left = await store.pending(100)
    assert left == rows[2:]
    assert await store.mark_published(lease, left)

    assert [place for _, place in sorted((await positions(store)).items())] == list(range(1, len(rows) + 1))


async def test_who_has_lost_the_lease_marks_nothing(place: Place) -> None:
    """A paused relay comes back with an old token: its mark is refused and changes nothing (fencing)."""
    await stocked(place.store, 100)
    paused = await place.store.acquire("relay", "one", seconds=0.01)
    assert paused is not None
    rows = await place.store.pending(10)
    await asyncio.sleep(0.05)
    owner = await place.other.acquire("relay", "two", seconds=60)
    assert owner is not None

    assert not await place.store.mark_published(paused, rows)
    assert not await place.store.mark_published(replace(owner, token=owner.token + 1), rows)
    assert await place.store.pending(10) == rows
    assert await place.other.mark_published(owner, rows)
    assert sorted((await positions(place.store)).values()) == list(range(1, len(rows) + 1))


async def test_a_lease_that_goes_while_a_mark_waits_for_it_marks_nothing(place: Place) -> None:
    """Whoever takes over has not committed yet when the mark begins: it waits, is refused, and changes nothing."""
    await stocked(place.store, 100)
    lease = await place.store.acquire("relay", "one", seconds=60)
    assert lease is not None
    rows = await place.store.pending(10)
    assert isinstance(place.other, SqlStore)

    async with place.other.database.writing() as connection:
        await connection.execute(update(tables.lease).values(owner="two", token=tables.lease.c.token + 1))
        marking = asyncio.create_task(place.store.mark_published(lease, rows))
        await asyncio.sleep(0.2)
        assert not marking.done()
        await connection.commit()

    assert not await marking
    assert await place.store.pending(10) == rows
    assert await place.store.position() == 0


async def test_an_announcement_wakes_the_listener(place: Place) -> None:
    """What one store announces is heard by who listens, in the other store where the adapter reaches so far."""
    async with (place.other if place.bell else place.store).announcements() as announcements:
        heard = asyncio.ensure_future(anext(announcements))
        await asyncio.sleep(0.05)
        assert not heard.done()
        await place.store.announce()
        await asyncio.wait_for(heard, 5)


@pytest.mark.services
async def test_who_listens_takes_no_connection_from_the_pool(postgres_url: str) -> None:
    """With one connection a process, the relay and the feed listen and everything else still gets its turn."""
    async with (
        migrated(f"{postgres_url}{'&' if '?' in postgres_url else '?'}pool=1") as store,
        store.announcements() as announcements,
        store.announcements(),
    ):
        await store.position()
        await store.announce()
        await asyncio.wait_for(anext(announcements), 5)


async def test_no_announcement_is_lost(place: Place) -> None:
    """One that comes while another is still being told is heard as well (rule R18)."""
    async with (place.other if place.bell else place.store).announcements() as announcements:
        for _ in range(30):
            await place.store.announce()
            await asyncio.wait_for(anext(announcements), 5)


# -- housekeeping ----------------------------------------------------------------------------------------------------


async def test_what_is_over_is_purged_and_the_rest_stays(store: Store) -> None:
    """Old answers and old published events go, so many at a time; young ones and what waits to be published stay."""
    item = await stocked(store, 100)
    await carry_out(store, answers=[StoredAnswer(key(f"k{number}"), b"done") for number in range(5)])
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(3)))
    published = await publish_all(store)
    await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
    await asyncio.sleep(0.01)

    assert await store.purge(answers_hours=1, events_days=1, inbox_days=90) == 0
    assert await store.purge(answers_hours=0, events_days=1, inbox_days=90, limit=3) == 3
    assert await store.purge(answers_hours=0, events_days=1, inbox_days=90) == 2
    assert await store.purge(answers_hours=0, events_days=0, inbox_days=90, limit=2) == 2
    assert await store.purge(answers_hours=0, events_days=0, inbox_days=90) == published - 2
    assert len(await store.pending(10)) == 1
    assert await answers(store, key("k0")) == []


async def test_a_migrated_store_answers_and_wants_nothing(store: Store) -> None:
    """Ping returns; nothing is pending; migrating again does nothing."""
    await store.ping()
    assert await store.pending_migrations() == []
    assert await store.migrate() == []


async def test_callers_who_leave_leave_the_store_usable(place: Place) -> None:
    """Reads and batches cancelled at any moment neither leak connections nor commit in part (reliability B3)."""
    item = await stocked(place.store, 1_000)

    async def ship() -> None:
        await carry_out(place.store, Ship(inventory_item_id=item.id, quantity=1))

    async def cut(number: int) -> None:
        work = ship() if number % 2 else place.store.products(["prod_1"])
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0.0003 * (number % 31))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for number in range(0, 120, 4):
        await asyncio.gather(*(cut(number + offset) for offset in range(4)))

    await asyncio.gather(*(place.store.ping() for _ in range(20)))
    (now,) = await carry_out(place.store, Ship(inventory_item_id=item.id, quantity=1))
    stock = (await place.store.products(["prod_1"]))["prod_1"]
    assert stock.product.total_on_hand == now.item.on_hand == 1_000 - (now.item.version - 1)
    assert len((await place.store.ledger(item.id, cursor=None, limit=1000)).rows) == now.item.version


async def test_sqlite_without_a_path_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two openings of ``sqlite://`` share nothing, and when they are closed nothing is left of either."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with migrated("sqlite://") as one, migrated("sqlite://") as another:
        await stocked(one, 10)
        assert await another.products(["prod_1"]) == {}
        assert len(names_in(tmp_path)) == 2

    assert names_in(tmp_path) == []


async def test_a_store_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """Opening asks nothing of the database; using it says Unavailable, in words and soon."""
    (tmp_path / "folder").mkdir()
    for url in ("postgresql://nobody@127.0.0.1:1/none", f"sqlite:///{tmp_path}/folder"):
        async with connect("store", url) as store:
            for use in (store.ping, store.pending_migrations, store.warehouses, lambda: store.add_products(["p"])):
                with pytest.raises(Unavailable, match="nothing was done"):
                    await use()
    await asyncio.sleep(0.05)  # aiosqlite's threads end by themselves, and not after the event loop has


# -- what operators ask ----------------------------------------------------------------------------------------------


async def test_the_backlog_is_what_waits_to_be_published(store: Store) -> None:
    """Its length and since when; empty where all is published."""
    item = await stocked(store, 100)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(3)))
    waiting = await store.pending(100)

    assert await store.backlog() == Backlog(len(waiting), min(row.created_at for row in waiting))
    await publish_all(store)
    assert await store.backlog() == Backlog(0, None)


async def test_a_long_backlog_is_not_counted_to_the_end(store: Store) -> None:
    """Measuring costs the same however long the broker is away."""
    item = await stocked(store, BACKLOG_MAX + 10)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(BACKLOG_MAX)))

    assert (await store.backlog()).count == BACKLOG_MAX


async def test_the_condition_tells_the_time(store: Store) -> None:
    """The database's clock is ours, give or take a minute; it takes writes."""
    condition = await store.condition()

    assert abs(condition.now - datetime.now(UTC)) < timedelta(minutes=1)
    assert not condition.read_only


# -- reads, at their edges -------------------------------------------------------------------------------------------


async def test_skus_are_compared_to_the_letter(store: Store) -> None:
    """Case, spaces, quotes and scripts make another SKU; asked for nothing, nothing is found."""
    skus = ["Widget", "widget", "it's", "100%", "Größe", " Widget"]
    for number, sku in enumerate(skus):
        await stocked(store, 1, sku=sku, product=f"prod_{number}")

    async with store.transaction() as transaction:
        found = await transaction.products_of([*skus, "WIDGET", "it''s", "1000"])
        assert {sku: products for sku, products in found.items() if products} == {
            sku: {f"prod_{number}"} for number, sku in enumerate(skus)
        }
        assert not await transaction.products_of([])


async def test_only_holds_are_due(store: Store) -> None:
    """What was confirmed, prolonged or given back is not due; a hold of which a part was freed still is."""
    item = await stocked(store, 10)
    other = await stocked(store, 10, product="prod_2", sku="OTHER")
    first = await hold(store, item, expires_in_seconds=1)
    second = await hold(store, item, expires_in_seconds=1)
    third = await hold(store, item, expires_in_seconds=1)
    both = await hold(store, item, other, expires_in_seconds=1)
    async with batch(store, "prod_1", reservation_ids={first.id, second.id, third.id}) as (transaction, book):
        decide(book, Confirm(reservation_id=first.id), CAUSE)
        decide(book, Extend(reservation_id=second.id, expires_in_seconds=60), CAUSE)
        decide(book, Release(reservation_id=third.id), CAUSE)
        assert await transaction.save(book, [])
    await asyncio.sleep(1.05)

    assert await store.due(10) == [both.id]
    async with batch(store, "prod_1") as (transaction, book):
        expire_due(book)
        assert await transaction.save(book, [])
    assert await store.due(10) == [both.id]
    partly = await store.reservation(both.id)
    assert partly is not None
    assert (partly.status, [line.held for line in partly.lines]) == ("HELD", [0, 1])


async def test_filtered_reservations_have_pages_as_well(store: Store) -> None:
    """A narrowed list goes on where its page ended, stable while holds are made and given back, until there is none."""
    item = await stocked(store, 100)
    orders = [await hold(store, item, reference_type="ORDER", reference_number=f"SO-{n % 2}") for n in range(5)]
    await hold(store, item, reference_type="CART", reference_number="SO-0")
    wanted = ReservationFilter(reference_type="ORDER", reference_number="SO-0", status="HELD")

    first = await store.reservations(wanted, cursor=None, limit=2)
    async with batch(store, "prod_1", reservation_ids={orders[0].id}) as (transaction, book):
        decide(book, Release(reservation_id=orders[0].id), CAUSE)
        assert await transaction.save(book, [])
    late = await hold(store, item, reference_type="ORDER", reference_number="SO-0")
    rest = await store.reservations(wanted, cursor=first.next_cursor, limit=2)

    assert [held.id for held in first.rows] == [orders[0].id, orders[2].id]
    assert [held.id for held in rest.rows] == [orders[4].id, late.id]
    assert rest.next_cursor is None
    for cursor in ("", "x", "ä", (first.next_cursor or "")[:-3]):
        with pytest.raises(ValidationFailed):
            await store.reservations(wanted, cursor=cursor, limit=2)


async def test_balances_leave_out_what_was_not_on_record_yet(store: Store) -> None:
    """Of several items each comes from its own first instant on, in whatever time zone that is asked for."""
    elder = await stocked(store, 5)
    await asyncio.sleep(0.002)
    younger = await stocked(store, 7, sku="OTHER")
    held = await hold(store, elder)
    ids = [younger.id, elder.id]
    east, tick = timezone(timedelta(hours=5, minutes=30)), timedelta(microseconds=1)

    async def known(at: datetime) -> dict[str, tuple[int, int, int]]:
        balances = await store.balances(ids, at.astimezone(east))
        return {each.inventory_item_id: (each.on_hand, each.reserved, each.version) for each in balances}

    assert await known(datetime(1970, 1, 2, tzinfo=UTC)) == await known(elder.created_at - tick) == {}
    assert await known(elder.created_at) == await known(younger.created_at - tick) == {elder.id: (5, 0, 1)}
    assert await known(younger.created_at) == {elder.id: (5, 0, 1), younger.id: (7, 0, 1)}
    assert await known(held.created_at - tick) == {elder.id: (5, 0, 1), younger.id: (7, 0, 1)}
    assert await known(held.created_at) == {elder.id: (5, 1, 2), younger.id: (7, 0, 1)}
    assert await known(datetime(9000, 1, 1, tzinfo=UTC)) == await known(held.created_at)


async def test_the_ledger_s_filters_narrow_each_other(store: Store) -> None:
    """All of them hold together, the first instant counts and the last does not, and another item's rows never come."""
    item, other = await stocked(store, 5), await stocked(store, 5, sku="OTHER")
    for place, reference in ((item, "PO"), (other, "PO"), (item, "SO")):
        receive = Receive(inventory_item_id=place.id, quantity=1, reference_type=reference, reference_number="1")
        await carry_out(store, receive)
        await asyncio.sleep(0.002)
    newest, middle, _ = (await store.ledger(item.id, cursor=None, limit=10)).rows
    tick, west = timedelta(microseconds=1), timezone(timedelta(hours=-8))

    async def versions(**words: Any) -> list[int]:
        page = await store.ledger(item.id, filter=LedgerFilter(**words), cursor=None, limit=10)
        return [row.item_version for row in page.rows]

    assert await versions(type="RECEIPT", reference_type="PO", reference_number="1", actor="clerk") == [2]
    assert await versions(type="RECEIPT", reference_type="PO", reference_number="2", actor="clerk") == []
    assert await versions(type="SHIPMENT", reference_type="PO") == []
    assert await versions(since=newest.recorded_at.astimezone(west)) == [3]
    assert await versions(since=newest.recorded_at + tick) == []
    assert await versions(until=middle.recorded_at.astimezone(west)) == [1]
    assert await versions(until=middle.recorded_at + tick) == [2, 1]
    assert await versions(since=middle.recorded_at, until=middle.recorded_at) == []


# -- messages that failed --------------------------------------------------------------------------------------------


async def test_a_failed_message_is_kept_once(place: Place) -> None:
    """Parked again it has the latest cause and all its attempts, comes first, and is still the same message."""
    message = Message(
        id="event-1",
        exchange="product.events",
        routing_key="product.productcreated.product",
        body=bytes(range(256)),
        type="ProductCreated",
        correlation_id="corr-1",
        headers={"x-Grund": "naïve 倉庫"},
    )
    letter = DeadLetter(fingerprint="f-1", message=message, code="sku_conflict", detail="a", stack="b", attempts=3)
    again = replace(letter, code="internal", detail="c", stack="d", attempts=2)
    await place.store.park(letter)
    await asyncio.sleep(0.002)
    await place.store.park(replace(letter, fingerprint="f-2"))
    assert [kept.fingerprint for kept in await dead_letters(place.store)] == ["f-2", "f-1"]
    await asyncio.sleep(0.002)

    await place.other.park(replace(again, message=replace(message, body=b"another", id="event-9")))

    assert (await dead_letters(place.store))[:1] == [replace(again, attempts=5)]
    assert await dead_letters(place.store) == [replace(again, attempts=5), replace(letter, fingerprint="f-2")]


async def test_a_message_parked_by_many_at_once_is_kept_once(place: Place) -> None:
    """No attempt is lost, and text that no database takes is kept as near as can be."""
    message = Message(id="\x00", exchange="e", routing_key="r", body=b"\x00\xff")
    letter = DeadLetter(fingerprint="f\x00", message=message, code="c", detail="a\x00\ud800", stack="", attempts=1)

    await asyncio.gather(*(store.park(letter) for store in (place.store, place.other) * 5))

    (kept,) = await dead_letters(place.store)
    assert kept.attempts == 10
    assert kept.message.body == message.body
    assert "\x00" not in kept.detail + kept.fingerprint + kept.message.id


# -- steps -----------------------------------------------------------------------------------------------------------


async def publish_all(store: Store) -> int:
    """Mark what is pending as published, and return how many events that were."""
    lease = await store.acquire("relay", "test", seconds=60)
    assert lease is not None
    rows = await store.pending(1000)
    assert await store.mark_published(lease, rows)
    await store.release(lease)
    return len(rows)


def names_in(folder: Path) -> list[str]:
    """Return what a folder holds."""
    return [path.name for path in folder.iterdir()]
