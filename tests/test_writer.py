"""The writer: whoever asks whatever at once, each gets a true answer of its own, and the books add up.

After every test the store is read past all of our code and must add up (``audit``).
"""

import asyncio
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest
from audit import books
from stores import at_work, empty, key, migrated, only, request, stocked, submit

from adapters.registry import connect
from core.errors import (
    AlreadyExists,
    Busy,
    IdempotencyKeyReused,
    InsufficientStock,
    InventoryError,
    NotFound,
    SkuConflict,
    Unavailable,
    ValidationFailed,
)
from core.operations import (
    Count,
    CreateItem,
    CreateWarehouse,
    Operation,
    Outcome,
    Receive,
    Request,
    Reserve,
    ReserveLine,
    Ship,
    StockChange,
    Transfer,
)
from core.stock import Item, Reservation, Warehouse
from core.writing.lane import BATCH_OPERATIONS
from core.writing.writer import QUEUE_BYTES, QUEUE_OPERATIONS, Writer
from ports.store import Store

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services)
on_postgresql = pytest.mark.parametrize("url", [POSTGRESQL], indirect=True)


@pytest.fixture(params=["sqlite", POSTGRESQL])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty store's URL; what the test leaves there must add up."""
    embedded = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/inventory.db" if embedded else request.getfixturevalue("database")
    async with migrated(url):
        if not embedded:
            await empty(url)
    yield url
    (await books(url)).check()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """The store."""
    async with connect("store", url) as store:
        yield store


@pytest.fixture
async def writer(store: Store) -> AsyncIterator[Writer]:
    """A writer at work."""
    async with at_work(store) as writer:
        yield writer


@pytest.fixture
async def writers(url: str) -> AsyncIterator[list[Writer]]:
    """Four writers with a store of their own each, as four processes would have."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(connect("store", url)) for _ in range(4)]
        yield [await stack.enter_async_context(at_work(store)) for store in stores]


# -- one request -----------------------------------------------------------------------------------------------------


async def test_each_operation_gets_its_own_outcome_in_order(writer: Writer, store: Store) -> None:
    """Results and refusals stand where their operations stood, each decided on what those before it left."""
    item = await stocked(store, 10)

    outcomes = await submit(
        writer,
        Ship(inventory_item_id=item.id, quantity=8),
        Ship(inventory_item_id=item.id, quantity=8),
        Receive(inventory_item_id="inv_NOBODY", quantity=1),
        Receive(inventory_item_id=item.id, quantity=6),
        Ship(inventory_item_id=item.id, quantity=8),
    )

    assert [type(outcome) for outcome in outcomes] == [
        StockChange,
        InsufficientStock,
        NotFound,
        StockChange,
        StockChange,
    ]
    assert [on_hand(outcomes[place]) for place in (0, 3, 4)] == [2, 8, 0]


async def test_a_request_is_seen_whole_or_not_at_all(writer: Writer, store: Store) -> None:
    """All operations of a request are one commit, also over several products."""
    first, second = await stocked(store, 0, product="a"), await stocked(store, 0, product="b", sku="B")
    receives = [Receive(inventory_item_id=item.id, quantity=1) for item in (first, second)]

    for _ in range(20):
        _, *seen = await asyncio.gather(submit(writer, *receives), *(store.products(["a", "b"]) for _ in range(3)))
        assert all(found["a"].product.total_on_hand == found["b"].product.total_on_hand for found in seen)

    assert (await store.products(["a"]))["a"].product.total_on_hand == 20


async def test_a_request_of_too_many_operations_is_refused(writer: Writer, store: Store) -> None:
    """256 operations are carried out, 257 are not begun."""
    item = await stocked(store, 0)
    operation = Receive(inventory_item_id=item.id, quantity=1)

    with pytest.raises(ValidationFailed, match="256"):
        await submit(writer, *[operation] * (BATCH_OPERATIONS + 1))

    assert len(await submit(writer, *[operation] * BATCH_OPERATIONS)) == BATCH_OPERATIONS
    assert await on_hand_of(store, item) == BATCH_OPERATIONS


# -- idempotency (rule R4) -------------------------------------------------------------------------------------------


async def test_a_key_tells_the_first_answer_again(writer: Writer, store: Store) -> None:
    """A replay is equal to the first answer, refusals included, however the stock has changed since."""
    item = await stocked(store, 10)
    operations: list[Operation] = [
        Ship(inventory_item_id=item.id, quantity=7),
        Ship(inventory_item_id=item.id, quantity=7),
        Reserve(lines=(ReserveLine(inventory_item_id=item.id, quantity=1),)),
        Receive(inventory_item_id="inv_NOBODY", quantity=1),
        CreateItem(sku="NEW", product_id="prod_1", warehouse_id="wh_1", metadata={"a": [1, None]}),
        CreateWarehouse(name="Second"),
    ]

    first = await submit(writer, *operations, key=key("k"))
    await submit(writer, Count(inventory_item_id=item.id, counted_quantity=500))
    again = await submit(writer, *operations, key=key("k"))

    assert [type(outcome) for outcome in first] == [
        StockChange,
        InsufficientStock,
        Reservation,
        NotFound,
        Item,
        Warehouse,
    ]
    assert told(again) == told(first)
    assert await on_hand_of(store, item) == 500


async def test_what_was_not_there_is_looked_for_again(writer: Writer, store: Store) -> None:
    """NotFound is not stored: the same key works once the thing is there."""
    create = CreateItem(sku="S", product_id="p", warehouse_id="wh_9", initial_quantity=3)
    assert isinstance(only(await submit(writer, create, key=key("k"))), NotFound)
    await submit(writer, CreateWarehouse(id="wh_9", name="Late"))

    assert isinstance(only(await submit(writer, create, key=key("k"))), Item)
    assert len((await store.products(["p"]))["p"].items) == 1


async def test_a_key_serves_one_request(writer: Writer, store: Store) -> None:
    """The same key with another fingerprint is refused and changes nothing."""
    item = await stocked(store, 10)
    await submit(writer, Ship(inventory_item_id=item.id, quantity=1), key=key("k"))

    with pytest.raises(IdempotencyKeyReused):
        await submit(writer, Ship(inventory_item_id=item.id, quantity=2), key=key("k", b"another body"))

    assert await on_hand_of(store, item) == 9


async def test_twins_in_one_batch_are_one(store: Store) -> None:
    """Two requests of one key that meet in a batch get one answer; a false twin is refused."""
    item = await stocked(store, 10)
    ship = Ship(inventory_item_id=item.id, quantity=3)
    writer = Writer(store)
    waiting = [queued(writer, request(ship, key=key("k", body))) for body in (b"one", b"one", b"other")]
    await asyncio.sleep(0)

    await writer.start()
    first, twin, stranger = await asyncio.gather(*waiting, return_exceptions=True)
    await writer.stop()

    assert isinstance(first, list)
    assert first == twin
    assert isinstance(stranger, IdempotencyKeyReused)
    assert await on_hand_of(store, item) == 7


async def test_twins_at_different_writers_are_one(writers: list[Writer], store: Store) -> None:
    """The same keys through four writers at once: each is carried out once, and all are told the same."""
    items = [await stocked(store, 100, product=f"prod_{number}", sku=f"SKU-{number}") for number in range(3)]
    calls = [
        request(Ship(inventory_item_id=items[number % 3].id, quantity=1), key=key(f"k{number}")) for number in range(30)
    ]

    rounds = await asyncio.gather(*(asyncio.gather(*(writer.submit(call) for call in calls)) for writer in writers))

    assert all(answers == rounds[0] for answers in rounds)
    assert [await on_hand_of(store, item) for item in items] == [90, 90, 90]


async def test_twins_that_share_no_lock_are_one(writers: list[Writer], store: Store) -> None:
    """Also where no product is locked, the key alone decides: one warehouse is made, and all are told its id."""
    for number in range(5):
        calls = (submit(writer, CreateWarehouse(name="New"), key=key(f"k{number}")) for writer in writers)
        answers = await asyncio.gather(*calls)
        assert all(answer == answers[0] for answer in answers)

    assert len(await store.warehouses()) == 5


# -- many at once ----------------------------------------------------------------------------------------------------


async def test_a_hundred_units_are_sold_a_hundred_times(writers: list[Writer], store: Store) -> None:
    """200 want one of 100 units, through four writers: exactly 100 get one."""
    item = await stocked(store, 100)
    reserve = Reserve(lines=(ReserveLine(inventory_item_id=item.id, quantity=1),))

    answers = await asyncio.gather(*(submit(writers[number % 4], reserve) for number in range(200)))

    assert Counter(type(only(answer)) for answer in answers) == {Reservation: 100, InsufficientStock: 100}
    (after,) = (await store.products(["prod_1"]))["prod_1"].items
    assert (after.on_hand, after.reserved, after.available) == (100, 100, 0)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_two_processes_take_turns_on_one_file(url: str, writer: Writer, store: Store) -> None:
    """Neither starves, neither is refused, and what one has committed the other builds upon (rule R8)."""
    item = await stocked(store, 0)
    program = f"""
import asyncio
from core.operations import Receive, Request
from core.writing.writer import Writer
from adapters.registry import connect
async def main():
    async with connect("store", {url!r}) as store:
        writer = Writer(store)
        await writer.start()
        print("ready", flush=True)
        receive = Receive(inventory_item_id={item.id!r}, quantity=1)
        for _ in range(100):
            await writer.submit(Request(operations=(receive,), actor="other"))
        await writer.stop()
asyncio.run(main())
"""
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=-1)
    assert other.stdout is not None
    assert await other.stdout.readline() == b"ready\n"

    for _ in range(100):
        await submit(writer, Receive(inventory_item_id=item.id, quantity=1))

    assert await other.wait() == 0
    assert await on_hand_of(store, item) == 200
    actors = [row.actor for row in (await store.ledger(item.id, cursor=None, limit=201)).rows]
    assert sum(before != after for before, after in pairwise(actors)) > 10


async def test_transfers_race_reservations(writers: list[Writer], store: Store) -> None:
    """Units on the move are neither promised here nor lost on the way, and the item there is made once."""
    item = await stocked(store, 60)
    await stocked(store, 1, product="elsewhere", sku="OTHER", warehouse="wh_2")
    transfer = Transfer(inventory_item_id=item.id, quantity=1, to_warehouse_id="wh_2")
    reserve = Reserve(lines=(ReserveLine(inventory_item_id=item.id, quantity=1),))
    calls: list[Operation] = [transfer, reserve] * 50
    random.shuffle(calls)

    answers = await asyncio.gather(*(submit(writers[number % 4], call) for number, call in enumerate(calls)))

    outcomes = Counter(type(only(answer)) for answer in answers)
    here, there = (await store.products(["prod_1"]))["prod_1"].items
    assert here.on_hand + there.on_hand == 60
    assert (here.reserved, there.on_hand) == (outcomes[Reservation], outcomes[StockChange])
    assert here.available == 0
    assert outcomes[InsufficientStock] == 40


async def test_the_same_sku_at_once_for_different_products(writers: list[Writer], store: Store) -> None:
    """One gets the SKU, the others a SkuConflict as the outcome of that operation alone."""
    await stocked(store, 0, product="house", sku="HOUSE")
    items = [await stocked(store, 0, product=f"p{number}", sku=f"P{number}") for number in range(4)]
    for round_number in range(8):
        answers = await asyncio.gather(
            *(
                submit(
                    writer,
                    *[Receive(inventory_item_id=items[number].id, quantity=1)] * 99,
                    CreateItem(sku=f"SAME-{round_number}", product_id=f"p{number}", warehouse_id="wh_1"),
                )
                for number, writer in enumerate(writers)
            )
        )
        assert Counter(type(answer[-1]) for answer in answers) == {Item: 1, SkuConflict: 3}
        assert all(isinstance(outcome, StockChange) for answer in answers for outcome in answer[:-1])

    assert [await on_hand_of(store, item) for item in items] == [8 * 99] * 4


async def test_the_same_warehouse_at_once(writers: list[Writer], store: Store) -> None:
    """One makes it, the others are told that it is there: as outcomes, whose neighbours are done."""
    answers = await asyncio.gather(
        *(
            submit(writer, CreateWarehouse(id="wh_1", name="One"), CreateWarehouse(name=f"Own {number}"))
            for number, writer in enumerate(writers)
        )
    )

    assert Counter(type(answer[0]) for answer in answers) == {Warehouse: 1, AlreadyExists: 3}
    assert len(await store.warehouses()) == 5


async def test_a_transfer_to_a_place_that_is_taken(writer: Writer, store: Store) -> None:
    """Where another product holds the SKU a transfer is refused, it alone, and never lands on the other's item."""
    mine = await stocked(store, 10, product="mine")
    theirs = await stocked(store, 5, product="theirs", warehouse="wh_2")
    receive, arrive = (Receive(inventory_item_id=item.id, quantity=1) for item in (mine, theirs))
    transfer = Transfer(inventory_item_id=mine.id, quantity=4, to_warehouse_id="wh_2")

    for operations in ((receive, transfer), (receive, transfer, arrive)):
        outcomes = await submit(writer, *operations)
        assert isinstance(outcomes[1], SkuConflict)

    assert (await on_hand_of(store, mine), await on_hand_of(store, theirs)) == (12, 6)


@on_postgresql
async def test_one_bad_request_fails_alone(store: Store) -> None:
    """What the database refuses takes only its own request with it, out of a hundred in the batch (rule R3)."""
    item = await stocked(store, 0)
    writer = Writer(store)
    bad = CreateItem(sku="NUL", product_id="prod_1", warehouse_id="wh_1", name="a\x00b")
    good = Receive(inventory_item_id=item.id, quantity=1)
    waiting = [queued(writer, request(bad if number == 61 else good)) for number in range(100)]
    await asyncio.sleep(0)

    await writer.start()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    await writer.stop()

    assert [number for number, answer in enumerate(answers) if isinstance(answer, Exception)] == [61]
    assert isinstance(answers[61], ValidationFailed)
    assert await on_hand_of(store, item) == 99


async def test_an_item_that_has_changed_products_is_noticed(url: str, writer: Writer, store: Store) -> None:
    """The writer remembers whose an item is; when that is no longer true it locks, and changes, the new product."""
    item = await stocked(store, 10, product="a_old")
    await store.add_products(["b_new"])
    await submit(writer, Receive(inventory_item_id=item.id, quantity=1))
    await sql(
        url,
        "UPDATE inventory_item SET product_id = 'b_new'",
        "UPDATE product SET total_on_hand = 11 * CAST(id = 'b_new' AS INTEGER)",
        "UPDATE product SET total_available = total_on_hand",
    )

    change = only(await submit(writer, Ship(inventory_item_id=item.id, quantity=4)))

    assert isinstance(change, StockChange)
    assert only(change.transactions).product_id == change.item.product_id == "b_new"
    found = await store.products(["a_old", "b_new"])
    assert (found["a_old"].product.total_on_hand, found["b_new"].product.total_on_hand) == (0, 7)


# -- waiting and leaving (rules R2, R5, R6) --------------------------------------------------------------------------


async def test_a_full_queue_refuses(store: Store) -> None:
    """20,000 operations may wait, or 64 MB; who comes then is told to try again, and nothing of it is done."""
    item = await stocked(store, 0)
    writer = Writer(store)
    many = request(*[Receive(inventory_item_id=item.id, quantity=1)] * BATCH_OPERATIONS)
    waiting = [queued(writer, many) for _ in range(QUEUE_OPERATIONS // BATCH_OPERATIONS + 1)]
    await asyncio.sleep(0)

    with pytest.raises(Unavailable, match="waiting") as refusal:
        await writer.submit(many)
    assert refusal.value.extra["retry_after"] == 1
    for task in waiting:
        task.cancel()

    heavy = Writer(store)
    first = queued(heavy, Request(operations=many.operations[:1], actor="clerk", size=QUEUE_BYTES))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="waiting"):
        await heavy.submit(request(*many.operations[:1]))
    await heavy.start()
    assert len(await first) == 1
    assert len(await heavy.submit(request(*many.operations[:1]))) == 1
    await heavy.stop()
    assert await on_hand_of(store, item) == 2


async def test_who_has_waited_too_long_is_refused_and_not_done(store: Store) -> None:
    """A deadline that passes in the queue counts, also behind a request that has more time."""
    item = await stocked(store, 0)
    writer = Writer(store)
    receive = request(Receive(inventory_item_id=item.id, quantity=1))
    waiting = [queued(writer, receive, timeout=timeout) for timeout in (30, 0.05, 30, 0.05)]
    await asyncio.sleep(0.1)

    await writer.start()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    await writer.stop()

    assert [isinstance(answer, Unavailable) for answer in answers] == [False, True, False, True]
    assert await on_hand_of(store, item) == 2


async def test_deadlines_hold_while_a_batch_is_stuck(url: str, writer: Writer, store: Store) -> None:
    """Who waits behind a batch that cannot go on is refused in time, and what is stuck is done in the end."""
    item = await stocked(store, 0)
    receive = request(Receive(inventory_item_id=item.id, quantity=1))

    async with connect("store", url) as other, other.transaction() as transaction:
        await transaction.lock(["prod_1"], wait=True)
        stuck = queued(writer, receive)
        await asyncio.sleep(0.1)
        behind = queued(writer, receive, timeout=0.2)
        done, _ = await asyncio.wait([behind], timeout=5)
        assert done
        assert not stuck.done()
    assert isinstance(behind.exception(), Unavailable)

    await stuck
    assert await on_hand_of(store, item) == 1


async def test_who_leaves_before_the_turn_leaves_no_trace(store: Store) -> None:
    """A caller that is cancelled while its request waits takes it along."""
    item = await stocked(store, 0)
    writer = Writer(store)
    waiting = [queued(writer, request(Receive(inventory_item_id=item.id, quantity=1))) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)

    await writer.start()
    await asyncio.gather(*waiting, return_exceptions=True)
    await writer.stop()

    assert waiting[1].cancelled()
    assert await on_hand_of(store, item) == 2


async def test_who_leaves_during_the_turn_disturbs_nobody(writer: Writer, store: Store) -> None:
    """Callers cancelled at any moment: each request is done or not, never in part, and the others' are done."""
    item = await stocked(store, 0)
    receive = request(*[Receive(inventory_item_id=item.id, quantity=1)] * 2)
    leaving: list[asyncio.Task[list[Outcome]]] = []
    staying: list[asyncio.Task[list[Outcome]]] = []
    for number in range(60):
        leaving.append(queued(writer, receive))
        staying.append(queued(writer, receive))
        await asyncio.sleep(0.0004 * (number % 10))
        leaving[-1].cancel()

    await asyncio.gather(*staying)
    await writer.stop()

    assert await on_hand_of(store, item) in range(120, 241, 2)
    assert len((await store.ledger(item.id, cursor=None, limit=1000)).rows) == await on_hand_of(store, item) + 1


async def test_stopping_finishes_what_is_queued(store: Store) -> None:
    """Every request that was accepted is answered; later ones are refused until the writer is started again."""
    item = await stocked(store, 0)
    receive = request(Receive(inventory_item_id=item.id, quantity=1))
    writer = Writer(store)
    await writer.start()
    waiting = [queued(writer, receive) for _ in range(600)]
    await asyncio.sleep(0)

    await writer.stop()

    assert all(task.done() for task in waiting)
    assert sum(len(task.result()) for task in waiting) == 600
    with pytest.raises(Unavailable, match="stopping"):
        await writer.submit(receive)
    await writer.start()
    await writer.submit(receive)
    await writer.stop()
    assert await on_hand_of(store, item) == 601


@on_postgresql
async def test_a_locked_product_holds_up_nobody_else(url: str, writer: Writer, store: Store) -> None:
    """While somebody holds one product's row for seconds, requests on it are refused and 1,999 others go on."""
    await stocked(store, 1, product="prod_0", sku="SKU-0")
    for begin in range(1, 2000, BATCH_OPERATIONS):
        places = range(begin, min(begin + BATCH_OPERATIONS, 2000))
        create = (
            CreateItem(sku=f"SKU-{place}", product_id=f"prod_{place}", warehouse_id="wh_1", initial_quantity=1)
            for place in places
        )
        await submit(writer, *create)
    found = await store.products([f"prod_{place}" for place in range(2000)])
    items = {id: only(stock.items) for id, stock in found.items()}
    held, others = items.pop("prod_0"), list(items.values())
    psql = await asyncpg.connect(url)
    row = psql.transaction()
    await row.start()
    await psql.execute("SELECT * FROM product WHERE id = 'prod_0' FOR UPDATE")

    ships = [Ship(inventory_item_id=item.id, quantity=1) for item in [held, *others, held, held]]
    answers = await asyncio.gather(*(submit(writer, ship) for ship in ships), return_exceptions=True)
    still_held = psql.is_in_transaction()
    await row.rollback()
    await psql.close()

    assert still_held
    refused = [place for place, answer in enumerate(answers) if isinstance(answer, BaseException)]
    assert refused == [0, 2000, 2001]
    assert all(isinstance(answers[place], Busy) for place in refused)
    assert all(isinstance(only(answer), StockChange) for answer in answers if isinstance(answer, list))
    assert on_hand(only(await submit(writer, Ship(inventory_item_id=held.id, quantity=1)))) == 0


@on_postgresql
async def test_a_request_over_a_locked_and_a_free_product_waits_whole(url: str, writer: Writer, store: Store) -> None:
    """A lock that is held for a moment only delays: nobody is refused, and nothing is done in halves meanwhile."""
    held, free = await stocked(store, 0, product="held"), await stocked(store, 0, product="free", sku="FREE")
    psql = await asyncpg.connect(url)
    async with psql.transaction():
        await psql.execute("SELECT * FROM product WHERE id = 'held' FOR UPDATE")
        both = asyncio.create_task(
            submit(writer, *(Receive(inventory_item_id=item.id, quantity=1) for item in (free, held)))
        )
        await submit(writer, Receive(inventory_item_id=free.id, quantity=10))
        await asyncio.sleep(0.3)
        assert not both.done()
        assert await on_hand_of(store, free) == 10
    await psql.close()

    await both
    assert (await on_hand_of(store, free), await on_hand_of(store, held)) == (11, 1)


@on_postgresql
async def test_a_batch_that_breaks_up_over_a_lock_is_done_once(url: str, store: Store) -> None:
    """While a batch is redone by halves because of a bad request somebody takes a lock: none is done twice."""
    good, held = await stocked(store, 0, product="b_good"), await stocked(store, 0, product="a_held", sku="HELD")
    bad = CreateItem(sku="NUL", product_id="b_good", warehouse_id="wh_1", name="a\x00b")
    first, second = await asyncpg.connect(url), await asyncpg.connect(url)
    lock = "SELECT * FROM product WHERE id = ANY($1) FOR UPDATE"
    before, after = first.transaction(), second.transaction()
    await before.start()
    await first.execute(lock, ["a_held", "b_good"])

    writer = Writer(store)
    receives = [Receive(inventory_item_id=item.id, quantity=1) for item in (good, good, held)]
    waiting = [queued(writer, request(operation)) for operation in (*receives[:2], bad, receives[2])]
    await asyncio.sleep(0)
    await writer.start()
    await asyncio.sleep(0.2)  # the batch is in the patient lane and first in line for the locks
    await after.start()
    next_in_line = asyncio.create_task(second.execute(lock, ["a_held"]))
    await asyncio.sleep(0.1)
    await before.rollback()
    await next_in_line
    await asyncio.sleep(1.5)
    await after.rollback()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    await writer.stop()
    await first.close()
    await second.close()

    assert isinstance(answers[2], ValidationFailed)
    done = sum(isinstance(answer, list) for answer in answers[:2])
    assert (await on_hand_of(store, good), done) == (2, 2)
    assert await on_hand_of(store, held) == isinstance(answers[3], list)


# -- steps -----------------------------------------------------------------------------------------------------------


def queued(writer: Writer, request: Request, *, timeout: float = 30.0) -> asyncio.Task[list[Outcome]]:
    """Submit from a caller of its own; a writer that is not started yet takes all that wait as one batch."""
    return asyncio.ensure_future(writer.submit(request, timeout=timeout))


def on_hand(outcome: Outcome) -> int:
    """Return the units on hand after a stock operation that was done."""
    assert isinstance(outcome, StockChange)
    return outcome.item.on_hand


async def on_hand_of(store: Store, item: Item) -> int:
    """Return the units on hand now."""
    found = await store.item(item.id)
    assert found is not None
    return found.on_hand


def told(outcomes: list[Outcome]) -> list[object]:
    """Return outcomes as something that compares by value; refusals do not."""
    return [
        (type(outcome), outcome.detail, outcome.extra) if isinstance(outcome, InventoryError) else outcome
        for outcome in outcomes
    ]


async def sql(url: str, *statements: str) -> None:
    """Change the database behind everybody's back."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            for statement in statements:
                file.execute(statement)
        return
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        for statement in statements:
            await connection.execute(statement)
    await connection.close()
