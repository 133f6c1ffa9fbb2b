"""The specification's two questions, answered from a store that does not stand still."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from stores import carry_out, hold, migrated, stocked

from adapters.memory import NoCache
from core.errors import NotFound, Unavailable
from core.events import ProductEvent, ProductPayload
from core.operations import (
    ApplyProductEvent,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    EventPolicy,
    ProductPatch,
    Receive,
    SetPolicy,
    Ship,
    UpdateProduct,
)
from core.reading.inventory import Inventory
from core.reading.snapshots import Snapshots
from core.stock import Item, LeadTime, ProductInventory, Warehouse, WarehouseInventory
from ports.store import ProductStock, Store

PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        yield store


@pytest.fixture
def inventory(store: Store) -> Inventory:
    """The reads on it."""
    return reading(store)


def reading(store: object) -> Inventory:
    """The reads on a store, with nothing kept near."""
    return Inventory(store, Snapshots(store, NoCache()))  # type: ignore[arg-type]


async def ask(inventory: Inventory, item: Item, quantity: int, *, all_warehouses: bool) -> tuple[Any, ...]:
    """What the specification has in an availability, in its order."""
    answer = (await inventory.availability(item.id, quantity=quantity, all_warehouses=all_warehouses)).data
    numbers = (answer.is_available, answer.available_quantity, answer.requested_quantity)
    return (*numbers, answer.lead_time_estimate, answer.restock_expected)


async def by_product(inventory: Inventory, product_id: str) -> ProductInventory:
    """The answer without what goes with it."""
    return (await inventory.by_product(product_id)).data


class SlowStore:
    """A store whose reads of products last as long as a test wants, and which counts them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[set[str]] = []
        self.before: Callable[[], Awaitable[None]] | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.away = False

    async def products(self, product_ids: Collection[str]) -> dict[str, ProductStock]:
        """Read, then wait; or do first what should happen meanwhile."""
        self.asked.append(set(product_ids))
        if self.before:
            await self.before()
        if self.away:
            raise Unavailable("The database is away.")
        found = await self._store.products(product_ids)
        await self.open.wait()
        return found

    async def item(self, id: str) -> Item | None:
        """Read."""
        return await self._store.item(id)

    async def warehouses(self) -> tuple[Warehouse, ...]:
        """Read."""
        return await self._store.warehouses()


# -- by product ------------------------------------------------------------------------------------------------------


async def test_a_product_s_stock_by_warehouse(store: Store, inventory: Inventory) -> None:
    """Totals over all SKUs and warehouses, and each item's own numbers under its warehouse's name."""
    north = await stocked(store, 10)
    south = await stocked(store, 3, warehouse="wh_2")
    other = await stocked(store, 0, sku="OTHER")
    await hold(store, north)

    answer = await by_product(inventory, "prod_1")

    assert answer == ProductInventory(
        total_quantity_available=12,
        total_quantity_reserved=1,
        is_low_stock=False,
        is_out_of_stock=False,
        warehouse_inventory=(
            WarehouseInventory(north.id, "wh_1", "House wh_1", 9, 1),
            WarehouseInventory(south.id, "wh_2", "House wh_2", 3, 0),
            WarehouseInventory(other.id, "wh_1", "House wh_1", 0, 0),
        ),
        sequence=(await store.products(["prod_1"]))["prod_1"].product.sequence,
    )


@pytest.mark.parametrize(
    ("quantity", "low", "out"), [(0, False, True), (1, True, False), (10, True, False), (11, False, False)]
)
async def test_low_and_out_are_judged_by_the_product_s_threshold(
    store: Store, inventory: Inventory, quantity: int, low: bool, out: bool
) -> None:
    """Low from one unit to the threshold, out at none; the threshold is the product's own (rule R15)."""
    await stocked(store, quantity)

    answer = await by_product(inventory, "prod_1")
    assert (answer.is_low_stock, answer.is_out_of_stock) == (low, out)

    await carry_out(store, UpdateProduct(product_id="prod_1", patch=ProductPatch(low_stock_threshold=quantity)))
    assert (await by_product(inventory, "prod_1")).is_low_stock == (quantity > 0)


async def test_a_known_product_without_items_is_out_of_stock(store: Store, inventory: Inventory) -> None:
    """Zeros for a product we were told of, NotFound for one that was only asked for (rule R27)."""
    payload = ProductPayload(product_id="empty", sku="S", name="Nothing yet")
    created = ProductEvent(
        event_id="e1", event_type="ProductCreated", event_version="1.0.0", timestamp=PAST, payload=payload
    )
    operation = ApplyProductEvent(event=created, policy=EventPolicy(auto_create=False))
    await carry_out(store, operation, product="empty")
    await store.add_products(["refused"])

    answer = await by_product(inventory, "empty")

    assert (answer.total_quantity_available, answer.warehouse_inventory) == (0, ())
    assert answer.is_out_of_stock
    for unknown in ("nobody", "refused"):
        with pytest.raises(NotFound, match=unknown):
            await by_product(inventory, unknown)


async def test_questions_asked_together_share_a_read(store: Store) -> None:
    """A hundred questions about three products are two reads at most: the one under way, and the next."""
    for number in range(3):
        await stocked(store, number + 1, product=f"prod_{number}", sku=f"SKU-{number}")
    slow = SlowStore(store)
    inventory = reading(slow)

    answers = await asyncio.gather(*(by_product(inventory, f"prod_{number % 3}") for number in range(100)))

    assert [answer.total_quantity_available for answer in answers] == [number % 3 + 1 for number in range(100)]
    assert len(slow.asked) <= 2
    assert set().union(*slow.asked) == {"prod_0", "prod_1", "prod_2"}


async def test_nobody_is_answered_from_before_the_question(store: Store) -> None:
    """A question that comes while a read is under way is not answered by that read (rule R24)."""
    item = await stocked(store, 1)
    slow = SlowStore(store)
    inventory = reading(slow)
    slow.open.clear()
    early = asyncio.create_task(by_product(inventory, "prod_1"))
    await until(lambda: len(slow.asked) == 1)
    await asyncio.sleep(0.05)
    await carry_out(store, Receive(inventory_item_id=item.id, quantity=1))

    late = asyncio.create_task(by_product(inventory, "prod_1"))
    await asyncio.sleep(0)
    slow.open.set()

    assert (await early).total_quantity_available == 1
    assert (await late).total_quantity_available == 2


async def test_who_leaves_takes_nobody_s_answer_along(store: Store) -> None:
    """One of those who share a read is cancelled; the others are answered, and so is who asks next."""
    await stocked(store, 1)
    slow = SlowStore(store)
    inventory = reading(slow)
    slow.open.clear()
    asking = [asyncio.create_task(by_product(inventory, "prod_1")) for _ in range(3)]
    await until(lambda: len(slow.asked) == 1)
    asking[0].cancel()
    await asyncio.sleep(0)
    slow.open.set()

    assert [(await task).total_quantity_available for task in asking[1:]] == [1, 1]
    assert asking[0].cancelled()
    assert (await by_product(inventory, "prod_1")).total_quantity_available == 1


async def test_a_store_that_is_away_fails_only_those_who_asked_then(store: Store) -> None:
    """All who share a failed read are told so; the next question is a new read."""
    await stocked(store, 1)
    slow = SlowStore(store)
    slow.away = True
    inventory = reading(slow)

    answers = await asyncio.gather(*(by_product(inventory, "prod_1") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)

    slow.away = False
    assert (await by_product(inventory, "prod_1")).total_quantity_available == 1


async def test_a_warehouse_made_during_the_question_has_its_name(store: Store) -> None:
    """An item in a warehouse younger than the question is answered like any other."""
    await stocked(store, 1)
    slow = SlowStore(store)

    async def open_another() -> None:
        await asyncio.sleep(0.05)  # time for a read of the warehouses to be over
        await stocked(store, 2, warehouse="wh_2")

    slow.before = open_another
    answer = await by_product(reading(slow), "prod_1")

    assert [line.warehouse_name for line in answer.warehouse_inventory] == ["House wh_1", "House wh_2"]


# -- availability ----------------------------------------------------------------------------------------------------


async def test_availability_here_or_everywhere(store: Store, inventory: Inventory) -> None:
    """Of the item alone, or of its SKU in all warehouses; another SKU of the product does not count."""
    item = await stocked(store, 5)
    await stocked(store, 7, warehouse="wh_2")
    await stocked(store, 100, sku="OTHER")

    here = await ask(inventory, item, 6, all_warehouses=False)
    everywhere = await ask(inventory, item, 6, all_warehouses=True)
    too_many = await ask(inventory, item, 13, all_warehouses=True)

    assert here == (False, 5, 6, None, None)
    assert everywhere == (True, 12, 6, "1-3 days", None)
    assert too_many == (False, 12, 13, None, None)


async def test_the_lead_time_is_that_of_the_warehouses_that_would_ship(store: Store, inventory: Inventory) -> None:
    """The first in priority ship as far as they go; together they are as slow as the slowest of them."""
    for id, priority, days in (("wh_1", 2, (1, 2)), ("wh_2", 1, (3, 3)), ("wh_3", 3, (9, 20))):
        await carry_out(store, CreateWarehouse(id=id, name=id, priority=priority, lead_time_days=LeadTime(*days)))
    item = await stocked(store, 5)
    await stocked(store, 5, warehouse="wh_2")
    await stocked(store, 5, warehouse="wh_3")

    async def days(quantity: int) -> str | None:
        return (await ask(inventory, item, quantity, all_warehouses=True))[3]

    assert [await days(quantity) for quantity in (1, 5, 6, 11, 16)] == [
        "3 days",
        "3 days",
        "3 days",
        "9-20 days",
        None,
    ]
    here = await ask(inventory, item, 1, all_warehouses=False)
    assert here[3] == "1-2 days"


async def test_what_is_held_back_is_not_available(store: Store, inventory: Inventory) -> None:
    """Reserved units, safety stock and inactive items do not count; inactive is an answer, not an error (rule R27)."""
    item = await stocked(store, 10)
    await hold(store, item)
    await carry_out(store, SetPolicy(inventory_item_id=item.id, safety_stock=2))
    assert (await ask(inventory, item, 8, all_warehouses=False)) == (False, 7, 8, None, None)

    await carry_out(store, Deactivate(inventory_item_id=item.id))
    assert (await ask(inventory, item, 1, all_warehouses=True))[1] == 0


async def test_a_warehouse_made_during_the_question_ships_too(store: Store) -> None:
    """The lead time counts every warehouse the items are in, however young."""
    item = await stocked(store, 1)

    class GrowingStore(SlowStore):
        async def products(self, product_ids: Collection[str]) -> dict[str, ProductStock]:
            """Read when the SKU has come to a new warehouse meanwhile."""
            await asyncio.sleep(0.05)
            await carry_out(store, CreateWarehouse(id="wh_2", name="Far", lead_time_days=LeadTime(8, 9)))
            create = CreateItem(sku="WIDGET", product_id="prod_1", warehouse_id="wh_2", initial_quantity=9)
            await carry_out(store, create)
            return await store.products(product_ids)

    growing = reading(GrowingStore(store))
    answer = await ask(growing, item, 10, all_warehouses=True)

    assert answer == (True, 10, 10, "8-9 days", None)


async def test_an_unknown_item_is_not_found(inventory: Inventory) -> None:
    """With the id that was asked for."""
    with pytest.raises(NotFound, match="inv_NOBODY") as refusal:
        await inventory.availability("inv_NOBODY", quantity=1, all_warehouses=True)
    assert refusal.value.extra == {"inventoryItemId": "inv_NOBODY"}


async def test_after_a_write_the_answer_is_new(store: Store, inventory: Inventory) -> None:
    """Whoever was told that a change is done reads it (rule R25)."""
    item = await stocked(store, 30)

    async def ship_and_ask() -> None:
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
        at_most = (await store.products(["prod_1"]))["prod_1"].product.total_available
        assert (await by_product(inventory, "prod_1")).total_quantity_available <= at_most

    await asyncio.gather(*(ship_and_ask() for _ in range(20)))

    assert (await by_product(inventory, "prod_1")).total_quantity_available == 10


# -- steps -----------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
