"""PostgreSQL and the way to it break at the worst moments: what was answered is so, and nothing is done twice.

Rule R5: a COMMIT whose answer is lost is settled by asking the server, and where that cannot be, the answer is
``outcome_unknown``, never ``unavailable``.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from audit import books
from proxy import COMMIT, COMMITTED, Cut, Proxy
from services import Postgres
from stores import at_work, empty, key, migrated, only, request, stocked, submit

from adapters.registry import connect
from core.errors import OutcomeUnknown, Unavailable
from core.operations import CreateWarehouse, Receive, StockChange
from core.stock import Item
from core.writing.writer import Writer

pytestmark = pytest.mark.services


AT_COMMIT = {
    "before": Cut("up", COMMIT),
    "after": Cut("down", COMMITTED),
    "held": Cut("up", COMMIT, half=True),
}
"""Where the way is cut: the server never gets the COMMIT; it does, but its answer does not come through; it neither
gets it nor learns that the client was cut off.
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this module's own, to be killed."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def database(server: Postgres) -> str:
    """A database on it."""
    return server.create_database()


@pytest.fixture
async def url(database: str) -> AsyncIterator[str]:
    """An empty store's URL; what the test leaves there must add up."""
    async with migrated(database):
        await empty(database)
    yield database
    (await books(database)).check()


@pytest.fixture
async def item(url: str) -> Item:
    """An item of which nothing is there."""
    async with connect("store", url) as store:
        return await stocked(store, 0)


@pytest.fixture
async def way(url: str) -> AsyncIterator[Proxy]:
    """The way to the store that can be cut."""
    async with Proxy(url) as way:
        yield way


@pytest.fixture
async def writer(way: Proxy) -> AsyncIterator[Writer]:
    """A writer that goes that way."""
    async with connect("store", way.url) as store, at_work(store) as writer:
        yield writer


# -- the connection is cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_is_done_once(
    cut: str, url: str, item: Item, way: Proxy, writer: Writer
) -> None:
    """Cut before the server has the COMMIT: done again. Cut after it: found done. Either way a plain success."""
    receives = [Receive(inventory_item_id=item.id, quantity=number) for number in (1, 10)]
    way.next_cut = AT_COMMIT[cut]

    first, second = await submit(writer, *receives)

    assert way.was_cut.is_set()
    assert isinstance(first, StockChange)
    assert isinstance(second, StockChange)
    assert await on_hand(url, item) == second.item.on_hand == 11
    assert [row["id"] for row in (await books(url)).ledger[1:]] == [
        only(change.transactions).id for change in (first, second)
    ]


async def test_a_commit_without_ledger_rows_is_done_once(url: str, way: Proxy, writer: Writer) -> None:
    """A batch that moves no stock has no witness: cut after the COMMIT it is unknown, and the same key settles it."""
    before, after = CreateWarehouse(name="Cut before"), CreateWarehouse(name="Cut after")
    way.next_cut = AT_COMMIT["before"]
    made = [only(await submit(writer, before, key=key("before")))]

    way.next_cut = AT_COMMIT["after"]
    with pytest.raises(OutcomeUnknown, match="same Idempotency-Key"):
        await submit(writer, after, key=key("after"))
    made.append(only(await submit(writer, after, key=key("after"))))

    async with connect("store", url) as store:
        assert sorted(await store.warehouses(), key=lambda warehouse: warehouse.id) == made


async def test_what_nobody_can_tell_is_outcome_unknown(url: str, item: Item, way: Proxy, writer: Writer) -> None:
    """The way stays cut: the answer is OutcomeUnknown, and the same key asked again later settles it, once."""
    receive = Receive(inventory_item_id=item.id, quantity=1)
    await submit(writer, receive)
    way.next_cut, way.passable = AT_COMMIT["after"], False

    with pytest.raises(OutcomeUnknown, match="same Idempotency-Key"):
        await submit(writer, receive, key=key("k"))
    assert await on_hand(url, item) == 2

    way.passable = True
    again = only(await submit(writer, receive, key=key("k")))
    assert isinstance(again, StockChange)
    assert again.item.on_hand == 2
    assert await on_hand(url, item) == 2


async def test_connections_that_are_ended_under_load_are_not_noticed(url: str, item: Item) -> None:
    """An administrator ends every connection three times: each request succeeds, each exactly once."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(connect("store", url)) for _ in range(2)]
        writers = [await stack.enter_async_context(at_work(store)) for store in stores]
        admin = await asyncpg.connect(url)
        ended = 0
        working = asyncio.ensure_future(asyncio.gather(*(trickle(writer, item) for writer in writers * 10)))
        for _ in range(3):
            await asyncio.sleep(0.3)
            ended += await admin.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await working
        await admin.close()

    assert sum(await working) == 20 * 20
    assert ended >= 3
    assert await on_hand(url, item) == 20 * 20


async def trickle(writer: Writer, item: Item) -> int:
    """Receive one unit twenty times, one after the other, and return how often that was said to be done."""
    done = 0
    for _ in range(20):
        await asyncio.sleep(0.05)
        done += isinstance(only(await submit(writer, Receive(inventory_item_id=item.id, quantity=1))), StockChange)
    return done


async def test_a_server_that_turns_read_only_is_left_for_a_better_one(url: str, item: Item) -> None:
    """After a failover writes are Unavailable and reads go on; once writing is possible again nothing is restarted."""
    receive = Receive(inventory_item_id=item.id, quantity=1)
    reload = ("SELECT pg_reload_conf()", "SELECT pg_sleep(0.2)")
    async with connect("store", url) as store, at_work(store) as writer:
        await submit(writer, receive)
        await execute(url, "ALTER SYSTEM SET default_transaction_read_only = on", *reload)
        try:
            with pytest.raises(Unavailable):
                await submit(writer, receive)
            assert await store.item(item.id) is not None
        finally:
            writable = "SET default_transaction_read_only = off"
            await execute(url, writable, "ALTER SYSTEM RESET default_transaction_read_only", *reload)

        await asyncio.gather(*(submit(writer, receive) for _ in range(30)))
    assert await on_hand(url, item) == 31


# -- the server is killed --------------------------------------------------------------------------------------------


async def test_a_kill_under_load_loses_and_doubles_nothing(url: str, item: Item, server: Postgres) -> None:
    """SIGKILL in the middle of everything: whoever asks again with the same key, until told, is served exactly once."""
    calls = [request(Receive(inventory_item_id=item.id, quantity=1), key=key(f"k{number}")) for number in range(200)]
    first: dict[int, object] = {}
    lost: list[type] = []

    async def persist(number: int, writer: Writer) -> None:
        await asyncio.sleep(0.006 * number)
        while True:
            try:
                answer = await writer.submit(calls[number])
            except (Unavailable, OutcomeUnknown) as error:
                lost.append(type(error))
                await asyncio.sleep(0.1)
            else:
                first[number] = answer
                return

    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(connect("store", url)) for _ in range(4)]
        writers = [await stack.enter_async_context(at_work(store)) for store in stores]
        working = asyncio.gather(*(persist(number, writers[number % 4]) for number in range(200)))
        while (told := len(first)) < 50:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.start)
        await working
        again = await asyncio.gather(*(writers[(number + 1) % 4].submit(calls[number]) for number in range(200)))

    assert told < 200
    assert dict(enumerate(again)) == first
    assert await on_hand(url, item) == 200
    assert len((await books(url)).ledger) == 201


async def test_a_transaction_id_that_is_used_again_deceives_nobody(
    url: str, item: Item, server: Postgres, way: Proxy, writer: Writer
) -> None:
    """A transaction that a killed server had not written down: another gets its id, and "committed" is said of that."""
    await execute(url, "ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()")
    await submit(writer, Receive(inventory_item_id=item.id, quantity=1))
    way.next_cut, way.passable = AT_COMMIT["held"], False
    asking = asyncio.create_task(submit(writer, Receive(inventory_item_id=item.id, quantity=10)))
    await way.was_cut.wait()
    admin = await asyncpg.connect(url)
    idle = "SELECT backend_xid::text FROM pg_stat_activity WHERE state = 'idle in transaction'"
    ours = await admin.fetchval(idle)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    admin = await asyncpg.connect(url)
    threshold = "UPDATE product SET low_stock_threshold = low_stock_threshold + 1 RETURNING pg_current_xact_id()::text"
    others = [await admin.fetchval(threshold) for _ in range(5)]
    await admin.close()

    way.passable = True
    change = only(await asking)

    assert ours in others
    assert isinstance(change, StockChange)
    assert await on_hand(url, item) == change.item.on_hand == 11


# -- steps -----------------------------------------------------------------------------------------------------------


async def on_hand(url: str, item: Item) -> int:
    """Return the units on hand, asked directly."""
    async with connect("store", url) as store:
        found = await store.item(item.id)
        assert found is not None
        return found.on_hand


async def execute(url: str, *statements: str) -> None:
    """Run statements, each for itself."""
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def test_a_transaction_left_open_goes_with_its_connection(postgres_url: str) -> None:
    """A COMMIT that is broken off may leave a connection in a transaction; nobody gets that connection again."""
    async with connect("store", f"{postgres_url}?pool=1") as store:
        await store.migrate()
        async with store.database.writing() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            await driver.execute("BEGIN; LOCK TABLE product")

        async with store.transaction() as transaction:
            assert await transaction.lock(["prod_1"], wait=True) == set()
