"""What is kept near is used while it can be trusted, and never shows less than was seen: rules R23 to R25."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stores import at_work, key, migrated, request, stocked

from adapters.memory import MemoryCache, NoCache
from core.errors import OutcomeUnknown, Unavailable
from core.events import ProductEvent, ProductPayload
from core.operations import (
    ApplyProductEvent,
    CreateItem,
    EventPolicy,
    Expect,
    Operation,
    Receive,
    Ship,
    UpdateWarehouse,
    WarehousePatch,
)
from core.reading.inventory import Inventory
from core.reading.snapshots import Snapshots
from core.stock import Item, Warehouse
from core.writing.writer import Writer
from ports.cache import Cache, Change, Entry
from ports.store import ProductStock, Store, Transaction


class CountingStore:
    """A store that counts the reads of each product, and holds them back while a test wants."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads: Counter[str] = Counter()
        self.open = asyncio.Event()
        self.open.set()
        self.interrupts = self.hides_warehouses = False
        self.breaks_off: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._store.transaction() as transaction:
            yield transaction
        if self.breaks_off is not None:
            raise self.breaks_off

    async def products(self, product_ids: Collection[str]) -> dict[str, ProductStock]:
        self.reads.update(product_ids)
        if self.interrupts:
            raise asyncio.CancelledError
        found = await self._store.products(product_ids)
        await self.open.wait()
        return found

    async def warehouses(self) -> tuple[Warehouse, ...]:
        self.reads["warehouses"] += 1
        if self.hides_warehouses:
            raise Unavailable("The warehouses cannot be read.")
        return await self._store.warehouses()


class FlakyCache(MemoryCache):
    """A cache that may fall silent, end its subscriptions, or refuse floors."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = self.unheard = self.refuses = False

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        if self.unheard:
            raise Unavailable("There is no connection.")
        async with super().changes() as changes:
            yield self._disturbed(changes)

    async def _disturbed(self, changes: AsyncIterator[Change]) -> AsyncIterator[Change]:
        async for change in changes:
            if self.unheard:
                raise Unavailable("The subscription was lost.")
            if not self.silent:
                yield change

    async def raise_floors(self, floors: Mapping[str, int]) -> None:
        if self.refuses:
            raise Unavailable("The cache takes nothing.")
        await super().raise_floors(floors)


class Process:
    """What one process of the service reads and writes with."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store = CountingStore(store)
        self.snapshots = Snapshots(self.store, cache)  # type: ignore[arg-type]
        self.inventory = Inventory(self.store, self.snapshots)  # type: ignore[arg-type]
        self.writer = Writer(self.store, committed=self.snapshots.committed)  # type: ignore[arg-type]

    async def change(self, *operations: Operation) -> None:
        for outcome in await self.writer.submit(request(*operations)):
            assert not isinstance(outcome, Exception), outcome

    async def available(self, product: str = "prod_1") -> int:
        return (await self.inventory.by_product(product)).data.total_quantity_available

    async def trusted(self) -> None:
        """Wait until what is kept is used."""
        await self.inventory.by_product("prod_1")
        await until(lambda: self.snapshots.near("prod_1") is not None)


@asynccontextmanager
async def running(process: Process) -> AsyncIterator[Process]:
    """Start what runs in the background."""
    await process.snapshots.start()
    await process.writer.start()
    try:
        yield process
    finally:
        await process.writer.stop()
        await process.snapshots.stop()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        yield store


@pytest.fixture
async def item(store: Store) -> Item:
    """Thirty units of prod_1."""
    return await stocked(store, 30)


@pytest.fixture
def cache() -> FlakyCache:
    """A cache that all processes of a test share."""
    return FlakyCache()


@pytest.fixture
async def processes(store: Store, cache: FlakyCache, item: Item) -> AsyncIterator[list[Process]]:
    """Two processes over one store and one cache."""
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(running(Process(store, cache))) for _ in range(2)]
        for process in both:
            await process.trusted()
        yield both


async def until(condition: Any) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_what_was_read_is_not_read_again(processes: list[Process]) -> None:
    """Neither by the process that read it nor by the next; the answer is the same object, with the same tag."""
    first = await processes[0].inventory.by_product("prod_1")
    assert await processes[0].inventory.by_product("prod_1") is first
    assert [process.store.reads["prod_1"] for process in processes] == [1, 0]
    assert (await processes[1].inventory.by_product("prod_1")).tag == first.tag


async def test_whoever_was_answered_reads_his_own_write(processes: list[Process], item: Item) -> None:
    """At once in the process that wrote, within moments in the other (rule R25)."""
    for left in range(29, 9, -1):
        await processes[0].change(Ship(inventory_item_id=item.id, quantity=1))
        assert await processes[0].available() == left
        written_at = time.monotonic()
        while await processes[1].available() != left:
            await asyncio.sleep(0.001)
        assert time.monotonic() - written_at < 2


@pytest.mark.parametrize("breaks_off", [OutcomeUnknown("The answer was lost."), asyncio.CancelledError()])
async def test_a_commit_whose_answer_was_lost_is_seen(
    processes: list[Process], item: Item, breaks_off: BaseException
) -> None:
    """Nobody knows whether it happened; if it did, both processes show it, as soon as any other change."""
    processes[0].store.breaks_off = breaks_off
    with pytest.raises(OutcomeUnknown):
        await processes[0].change(Ship(inventory_item_id=item.id, quantity=1))

    assert await processes[0].available() == 29
    async with asyncio.timeout(2):
        while await processes[1].available() != 29:
            await asyncio.sleep(0.001)


async def test_what_was_done_by_the_dead_is_seen_once_it_is_told_again(
    processes: list[Process], store: Store, item: Item
) -> None:
    """A process that ends between its commit and the floors leaves old values; whoever asks again shows the new one."""
    ship = request(Ship(inventory_item_id=item.id, quantity=1), key=key("k1"))
    edit = UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(name="New"), if_match=None)
    rename = request(edit, key=key("k2"))
    async with at_work(store) as dead:
        first = [await dead.submit(each) for each in (ship, rename)]
    assert await processes[0].available() == 30

    assert [await processes[0].writer.submit(each) for each in (ship, rename)] == first

    assert await processes[0].available() == 29
    async with asyncio.timeout(2):
        for process in processes:
            while (await process.inventory.by_product("prod_1")).data.warehouse_inventory[0].warehouse_name != "New":
                await asyncio.sleep(0.001)
    assert await processes[1].available() == 29


async def test_an_event_of_the_dead_is_seen_once_it_is_heard_again(
    processes: list[Process], store: Store, item: Item
) -> None:
    """A consumer that ends between its commit and the floors leaves old values; the redelivered event shows the new."""
    gone = ProductEvent(
        event_id="gone",
        event_type="ProductDeleted",
        event_version="1.0.0",
        timestamp=datetime.now(UTC),
        payload=ProductPayload(product_id="prod_1"),
    )
    heard = request(ApplyProductEvent(event=gone, policy=EventPolicy()))
    async with at_work(store) as dead:
        await dead.submit(heard)
    assert await processes[0].available() == 30

    await processes[0].writer.submit(heard)

    assert await processes[0].available() == 0


async def test_a_refused_change_ends_nothing(processes: list[Process], item: Item) -> None:
    """What has not changed is not read again."""
    before = processes[0].store.reads["prod_1"]
    await processes[0].writer.submit(request(Ship(inventory_item_id=item.id, quantity=1_000)))

    assert await processes[0].available() == 30
    assert processes[0].store.reads["prod_1"] == before


async def test_without_a_sign_of_life_nothing_kept_is_used(
    processes: list[Process], cache: FlakyCache, item: Item
) -> None:
    """A process that hears nothing does not know what it has missed (rule R24)."""
    reader, writer = processes
    cache.silent = True
    await until(lambda: reader.snapshots.near("prod_1") is None)
    await writer.change(Ship(inventory_item_id=item.id, quantity=1))

    assert await reader.available() == 29

    cache.silent = False
    await reader.trusted()
    assert await reader.available() == 29


async def test_a_new_subscription_begins_with_nothing(processes: list[Process], cache: FlakyCache, item: Item) -> None:
    """What was told in between is lost: all that is kept is forgotten, and what was read before it is not kept."""
    reader, writer = processes
    cache.unheard = True
    await until(lambda: reader.snapshots.near("prod_1") is None)
    cache._held.clear()
    reader.store.open.clear()
    late = asyncio.create_task(reader.available())
    await until(lambda: reader.store.reads["prod_1"] == 2)
    await asyncio.sleep(0.02)
    await writer.change(Ship(inventory_item_id=item.id, quantity=5))
    await until(lambda: "product:prod_1" in cache._held)
    cache.unheard = False
    await until(lambda: time.monotonic() < reader.snapshots._trusted_until)
    reader.store.open.set()

    assert (await late, await reader.available()) == (30, 25)


async def test_a_read_that_is_interrupted_leaves_nobody_waiting(store: Store, item: Item) -> None:
    """Who asked is told to ask again, and is answered then."""
    process = Process(store, NoCache())
    process.store.interrupts = True
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await process.available()
    process.store.interrupts = False

    assert await process.available() == 30


async def test_a_read_that_was_overtaken_is_not_kept(store: Store, cache: FlakyCache, item: Item) -> None:
    """A slow read of before a change answers who asked before it, and nobody else (rule R24)."""
    async with running(Process(store, cache)) as process:
        process.store.open.clear()
        early = asyncio.create_task(process.available())
        await until(lambda: process.store.reads["prod_1"] == 1)
        await asyncio.sleep(0.02)
        await process.change(Ship(inventory_item_id=item.id, quantity=1))
        late = asyncio.create_task(process.available())
        await asyncio.sleep(0)
        process.store.open.set()

        assert (await early, await late, await process.available()) == (30, 29, 29)


async def test_warehouses_are_joined_when_read(processes: list[Process], item: Item) -> None:
    """A new name shows at once where it was given, in moments elsewhere, under a new tag and without a product read."""
    before = await processes[0].inventory.by_product("prod_1")
    reads = processes[0].store.reads["prod_1"]
    await processes[0].change(UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(name="New"), if_match=None))

    after = await processes[0].inventory.by_product("prod_1")
    assert (after.data.warehouse_inventory[0].warehouse_name, after.tag != before.tag) == ("New", True)
    assert processes[0].store.reads["prod_1"] == reads

    async with asyncio.timeout(2):
        while (await processes[1].inventory.by_product("prod_1")).data.warehouse_inventory[0].warehouse_name != "New":
            await asyncio.sleep(0.001)


async def test_an_item_in_a_new_warehouse_is_named(processes: list[Process], store: Store) -> None:
    """A table of warehouses that is older than the items is read again."""
    await stocked(store, 1, product="elsewhere", sku="E", warehouse="wh_2")
    create = CreateItem(sku="WIDGET", product_id="prod_1", warehouse_id="wh_2", initial_quantity=4)
    await processes[0].change(create)

    names = [
        line.warehouse_name for line in (await processes[0].inventory.by_product("prod_1")).data.warehouse_inventory
    ]
    assert names == ["House wh_1", "House wh_2"]


async def test_nobody_goes_back(processes: list[Process], cache: FlakyCache, item: Item) -> None:
    """A cache that has lost its floors and offers what was true once is not believed by who has seen more."""
    old = (await cache.get(["product:prod_1"]))["product:prod_1"]
    await processes[0].change(Ship(inventory_item_id=item.id, quantity=1))
    async with asyncio.timeout(2):
        while await processes[1].available() != 29:
            await asyncio.sleep(0.001)
    cache._held.clear()
    await cache.put({"product:prod_1": old})
    for process in processes:
        process.snapshots._kept.clear()

    assert [await process.available() for process in processes] == [29, 29]


@pytest.mark.parametrize("body", [b"{", b"null", b'{"read_at": 1}', b"\xff\xfe", b"OTHER"])
async def test_a_body_is_believed_if_it_is_what_was_asked_for(store: Store, item: Item, body: bytes) -> None:
    """Anything may be in a shared cache: what is not this product in this revision is as good as nothing."""
    await stocked(store, 7, product="prod_2", sku="OTHER")
    cache = MemoryCache()
    async with running(Process(store, cache)) as writer:
        await writer.available("prod_2")
        await until(lambda: "product:prod_2" in cache._held)
    other, _ = cache._held["product:prod_2"]
    wrong = other.body if body == b"OTHER" else body
    await cache.put({key: Entry(99, wrong, 60) for key in ("product:prod_1", "warehouses")})

    async with running(Process(store, cache)) as reader:
        assert await reader.available() == 30
        assert (await reader.inventory.by_product("prod_1")).data.warehouse_inventory[0].warehouse_name == "House wh_1"


async def test_floors_that_could_not_be_written_are_written_later(
    processes: list[Process], cache: FlakyCache, item: Item
) -> None:
    """The write is answered all the same, its own process is right at once, the others when the cache is back."""
    cache.refuses = True
    await processes[0].change(Ship(inventory_item_id=item.id, quantity=1))
    assert await processes[0].available() == 29
    cache.refuses = False

    async with asyncio.timeout(2):
        while await processes[1].available() != 29:
            await asyncio.sleep(0.005)


async def test_no_floor_waits_for_the_store(processes: list[Process], item: Item) -> None:
    """After a change of a warehouse only the store can say its floor; what was sold is told meanwhile, and it later."""
    processes[0].store.hides_warehouses = True
    await processes[0].change(UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(name="New"), if_match=None))
    await processes[0].change(Ship(inventory_item_id=item.id, quantity=1))
    async with asyncio.timeout(2):
        while await processes[1].available() != 29:
            await asyncio.sleep(0.005)

    processes[0].store.hides_warehouses = False
    async with asyncio.timeout(2):
        while (await processes[1].inventory.by_product("prod_1")).data.warehouse_inventory[0].warehouse_name != "New":
            await asyncio.sleep(0.005)


async def test_a_cold_start_reads_each_product_once(processes: list[Process], cache: FlakyCache) -> None:
    """However many ask at once when the shared cache is empty: one read of each product and process at most."""
    creations = [
        CreateItem(sku=f"S-{number}", product_id=f"p-{number}", warehouse_id="wh_1", initial_quantity=number + 1)
        for number in range(250)
    ]
    await processes[0].change(*creations)
    cache._held.clear()

    asked = [process.available(f"p-{number}") for _ in range(5) for number in range(250) for process in processes]
    answers = await asyncio.gather(*asked)

    assert answers == [number + 1 for _ in range(5) for number in range(250) for _ in processes]
    for process in processes:
        assert {process.store.reads[f"p-{number}"] for number in range(250)} <= {0, 1}


async def test_how_long_it_is_kept(store: Store, item: Item) -> None:
    """60 seconds when little is left, 300 otherwise, and not beyond a restock date that would then be past (R25)."""
    await stocked(store, 3, product="low", sku="LOW")
    soon = await stocked(store, 50, product="soon", sku="SOON")
    cache = MemoryCache()
    async with running(Process(store, cache)) as process:
        await process.change(
            Expect(inventory_item_id=soon.id, quantity=1, expected_at=datetime.now(UTC) + timedelta(seconds=20))
        )
        for product in ("prod_1", "low", "soon"):
            await process.available(product)
        await until(lambda: len(cache._held) == 4)
        found = await cache.get([f"product:{product}" for product in ("prod_1", "low", "soon")])

    assert [round(entry.seconds, -1) for entry in found.values()] == [300, 60, 20]


async def test_without_a_cache_every_read_goes_to_the_store(store: Store, item: Item) -> None:
    """``none:`` keeps nothing, so processes need not know of each other."""
    async with running(Process(store, NoCache())) as process, running(Process(store, NoCache())) as other:
        for left in (29, 28, 27):
            await other.change(Ship(inventory_item_id=item.id, quantity=1))
            assert await process.available() == left
        assert process.store.reads["prod_1"] == 3


async def test_availability_follows_an_item(processes: list[Process], item: Item) -> None:
    """By item as by product: kept near, and new after a write."""
    for process in processes:
        await process.inventory.availability(item.id, quantity=1, all_warehouses=True)
    reads = [process.store.reads["prod_1"] for process in processes]
    await processes[0].change(Receive(inventory_item_id=item.id, quantity=5))

    answer = (await processes[0].inventory.availability(item.id, quantity=35, all_warehouses=True)).data
    assert (answer.is_available, answer.available_quantity) == (True, 35)
    assert processes[0].store.reads["prod_1"] == reads[0] + 1
