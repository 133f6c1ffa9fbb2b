"""Questions about stock: how many, where, by when. Reads only; changes go through the writer.

Concurrent questions share one read: while one is on its way to the store, those that arrive wait for the next, so that
nobody is answered from before the question was asked (rule R24).
"""

import asyncio
from datetime import UTC, datetime

from core.errors import NotFound
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
from ports.store import ProductStock, Store

_Found = tuple[ProductStock | None, tuple[Warehouse, ...]]


class Inventory:
    """The specification's two questions. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: dict[str, asyncio.Future[_Found]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def by_product(self, product_id: str) -> ProductInventory:
        """Return a product's stock in all warehouses; zeros for a product that has no items.

        Raises:
            NotFound: nothing is known of the product.
            Unavailable: the store is away.
        """
        stock, warehouses = await self._product(product_id)
        if stock is None or not stock.product.is_known:
            raise NotFound(f"Nothing is known of product {product_id}.", productId=product_id)
        names = {warehouse.id: warehouse.name for warehouse in warehouses}
        product = stock.product
        return ProductInventory(
            total_quantity_available=product.total_available,
            total_quantity_reserved=product.total_reserved,
            is_low_stock=product.is_low_stock,
            is_out_of_stock=product.is_out_of_stock,
            warehouse_inventory=tuple(
                WarehouseInventory(item.id, item.warehouse_id, names[item.warehouse_id], item.available, item.reserved)
                for item in stock.items
            ),
            sequence=product.sequence,
            restock_expected=restock_expected(stock.items, stock.supplies, datetime.now(UTC)),
        )

    async def availability(self, item_id: str, *, quantity: int, all_warehouses: bool) -> Availability:
        """Say whether ``quantity`` units of the item's SKU can be had now, here or in all warehouses together.

        Raises:
            NotFound: there is no such item.
            Unavailable: the store is away.
        """
        stock = await self._store.same_sku(item_id)
        items = stock.items
        warehouses = await self._store.warehouses()
        if not items:
            raise NotFound(f"There is no inventory item {item_id}.", inventoryItemId=item_id)
        if not all_warehouses:
            items = tuple(item for item in items if item.id == item_id)
        available = sum(item.available for item in items)
        enough = available >= quantity
        return Availability(
            is_available=enough,
            available_quantity=available,
            requested_quantity=quantity,
            lead_time_estimate=lead_time_text(shipping(items, warehouses, quantity)) if enough else None,
            restock_expected=restock_expected(items, stock.supplies, datetime.now(UTC)),
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

    async def _product(self, product_id: str) -> _Found:
        future = self._asked.get(product_id)
        if future is None:
            future = self._asked[product_id] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        # A caller that leaves must not take the others' answer with it.
        return await asyncio.shield(future)

    async def _read(self) -> None:
        while asked := self._asked:
            self._asked = {}
            try:
                found = await self._store.products(asked.keys())
                # Afterwards, so that no item is in a warehouse younger than this.
                warehouses = await self._store.warehouses()
            except Exception as error:
                for future in asked.values():
                    future.set_exception(error)
                    future.exception()  # not "never retrieved" where everybody has left
            else:
                for product_id, future in asked.items():
                    future.set_result((found.get(product_id), warehouses))


def shipping(items: tuple[Item, ...], warehouses: tuple[Warehouse, ...], quantity: int) -> list[Warehouse]:
    """Return the warehouses that would ship ``quantity`` units, the first in priority taken as far as it goes."""
    chosen = []
    by_place = {item.warehouse_id: item.available for item in items if item.available}
    for warehouse in sorted(warehouses, key=lambda warehouse: (warehouse.priority, warehouse.id)):
        if quantity > 0 and (here := by_place.get(warehouse.id)):
            chosen.append(warehouse)
            quantity -= here
    return chosen
