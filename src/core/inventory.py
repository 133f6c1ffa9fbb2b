"""Questions about stock: how many, where, by when. Reads only; changes go through the writer."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from core.errors import NotFound
from core.snapshots import Sight, Snapshots
from core.stock import (
    Availability,
    Balance,
    Item,
    ProductBalance,
    ProductInventory,
    Warehouse,
    WarehouseInventory,
    lead_time_text,
    restock_expected,
)
from ports.store import Store

T = TypeVar("T")


class Answer(Generic[T]):
    """An answer, and the entity tag that names what it was made of. ``encoded`` is for who sends it more than once."""

    __slots__ = ("data", "encoded", "tag")

    def __init__(self, data: T, tag: str) -> None:
        self.data = data
        self.tag = tag
        self.encoded: Any = None


class Inventory:
    """The specification's two questions. Belongs to one event loop."""

    def __init__(self, store: Store, snapshots: Snapshots) -> None:
        self._store = store
        self._snapshots = snapshots

    async def by_product(self, product_id: str) -> Answer[ProductInventory]:
        """Return a product's stock in all warehouses; zeros for a product that has no items.

        The same object for as long as the answer is the same and kept near.

        Raises:
            NotFound: nothing is known of the product.
            Unavailable: the store is away.
        """
        sight = self._snapshots.near(product_id) or await self._product(product_id)
        if sight.answer is None:
            sight.answer = Answer(_by_product(sight), f"{sight.stock.product.revision}.{sight.table.revision}")
        answer: Answer[ProductInventory] = sight.answer
        return answer

    async def availability(self, item_id: str, *, quantity: int, all_warehouses: bool) -> Availability:
        """Say whether ``quantity`` units of the item's SKU can be had now, here or in all warehouses together.

        Raises:
            NotFound: there is no such item.
            Unavailable: the store is away.
        """
        sight = await self._snapshots.product_of(item_id)
        if sight is None:
            raise NotFound(f"There is no inventory item {item_id}.", inventoryItemId=item_id)
        (asked,) = (item for item in sight.stock.items if item.id == item_id)
        same_sku = tuple(item for item in sight.stock.items if item.sku == asked.sku)
        items = same_sku if all_warehouses else (asked,)
        available = sum(item.available for item in items)
        enough = available >= quantity
        return Availability(
            is_available=enough,
            available_quantity=available,
            requested_quantity=quantity,
            lead_time_estimate=lead_time_text(shipping(items, sight.table.by_id.values(), quantity))
            if enough
            else None,
            restock_expected=restock_expected(items, sight.stock.supplies, datetime.now(UTC)),
        )

    async def item_as_of(self, item_id: str, at: datetime) -> Balance:
        """Return what was on record of an item at ``at``.

        Raises:
            NotFound: there is no such item, or it was not on record yet.
            Unavailable: the store is away.
        """
        if not (found := await self._store.balances([item_id], at)):
            raise NotFound(f"Nothing was on record of inventory item {item_id} then.", inventoryItemId=item_id)
        return found[0]

    async def product_as_of(self, product_id: str, at: datetime) -> ProductBalance:
        """Return what was on record of a product's items at ``at``.

        Raises:
            NotFound: nothing is known of the product.
            Unavailable: the store is away.
        """
        stock = (await self._store.products([product_id])).get(product_id)
        if stock is None or not stock.product.is_known:
            raise NotFound(f"Nothing is known of product {product_id}.", productId=product_id)
        balances = await self._store.balances([item.id for item in stock.items], at)
        # An item whose SKU moved here later was another product's then.
        items = [balance for balance in balances if balance.product_id == product_id]
        return ProductBalance(
            product_id=product_id,
            as_of=at,
            on_hand=sum(item.on_hand for item in items),
            reserved=sum(item.reserved for item in items),
            available=sum(item.available for item in items),
            items=tuple(items),
        )

    async def _product(self, product_id: str) -> Sight:
        if (sight := await self._snapshots.product(product_id)) is None:
            raise NotFound(f"Nothing is known of product {product_id}.", productId=product_id)
        return sight


def _by_product(sight: Sight) -> ProductInventory:
    product, warehouses = sight.stock.product, sight.table.by_id
    return ProductInventory(
        total_quantity_available=product.total_available,
        total_quantity_reserved=product.total_reserved,
        is_low_stock=product.is_low_stock,
        is_out_of_stock=product.is_out_of_stock,
        warehouse_inventory=tuple(
            WarehouseInventory(
                item.id, item.warehouse_id, warehouses[item.warehouse_id].name, item.available, item.reserved
            )
            for item in sight.stock.items
        ),
        sequence=product.sequence,
        restock_expected=restock_expected(sight.stock.items, sight.stock.supplies, datetime.now(UTC)),
    )


def shipping(items: Iterable[Item], warehouses: Iterable[Warehouse], quantity: int) -> list[Warehouse]:
    """Return the warehouses that would ship ``quantity`` units, the first in priority taken as far as it goes."""
    chosen = []
    by_place = {item.warehouse_id: item.available for item in items if item.available}
    for warehouse in sorted(warehouses, key=lambda warehouse: (warehouse.priority, warehouse.id)):
        if quantity > 0 and (here := by_place.get(warehouse.id)):
            chosen.append(warehouse)
            quantity -= here
    return chosen
