"""Stock management: warehouses, inventory items, and what of a product is ours to edit."""

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import get, patch, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from core.catalog.products import Products
from core.errors import NotFound
from core.operations import (
    CreateItem,
    CreateWarehouse,
    ItemPatch,
    ProductPatch,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
    WarehousePatch,
)
from core.reading.inventory import Inventory
from core.stock import Balance, Item, Product, ProductBalance, Warehouse
from core.writing.writer import Writer
from entrypoints.api.bodies import AnyRequest, Strict
from entrypoints.api.headers import if_match, knows
from entrypoints.api.parameters import (
    AsOf,
    Cursor,
    Id,
    Limit,
    ProductFilter,
    ProductId,
    SkuFilter,
    StatusFilter,
    StockFilter,
    WarehouseFilter,
    instant,
)
from entrypoints.api.replies import Reply, answers, not_modified, ok, page
from entrypoints.api.writing import perform
from ports.store import ItemFilter, Page, Store


class ManagementPlugin(InitPlugin):
    """Creates, lists and edits what stock is kept of and where."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers += [
            DishkaRouter(
                "/warehouses",
                route_handlers=[create_warehouse, list_warehouses, get_warehouse, update_warehouse],
                tags=["Warehouses"],
            ),
            DishkaRouter(
                "/inventory-items",
                route_handlers=[create_item, list_items, get_item, update_item],
                tags=["Inventory items"],
            ),
            DishkaRouter("/products", route_handlers=[get_product, update_product], tags=["Products"]),
        ]
        return app_config


# -- warehouses --------------------------------------------------------------------------------------------------------


@post(operation_id="createWarehouse", responses=answers(Warehouse, name="WarehouseCreated", status=201))
async def create_warehouse(request: AnyRequest, data: Strict[CreateWarehouse], writer: FromDishka[Writer]) -> Reply:
    """Open a warehouse. Its id may be chosen by the caller, `wh_…`."""
    warehouse: Warehouse = await perform(request, writer, data)
    return ok(warehouse, status=201, version=warehouse.version, location=f"/warehouses/{warehouse.id}")


@get(operation_id="listWarehouses", responses=answers(Warehouse, name="WarehouseList", listed=True))
async def list_warehouses(store: FromDishka[Store]) -> Reply:
    """List every warehouse, the first to ship from first."""
    return page(Page(await store.warehouses(), None))


@get("/{id:str}", operation_id="getWarehouse", responses=answers(Warehouse, name="WarehouseSuccess"))
async def get_warehouse(request: AnyRequest, warehouse_id: Id, store: FromDishka[Store]) -> Reply:
    """Return a warehouse; with If-None-Match, 304 where nothing has changed."""
    found = [warehouse for warehouse in await store.warehouses() if warehouse.id == warehouse_id]
    if not found:
        raise NotFound(f"There is no warehouse {warehouse_id}.", warehouseId=warehouse_id)
    return _current(request, found[0], found[0].version)


@patch("/{id:str}", operation_id="updateWarehouse", responses=answers(Warehouse, name="WarehouseSuccess"))
async def update_warehouse(
    request: AnyRequest, warehouse_id: Id, data: Strict[WarehousePatch], writer: FromDishka[Writer]
) -> Reply:
    """Edit a warehouse; what is left out stays. With If-Match, only the version named."""
    change = UpdateWarehouse(warehouse_id=warehouse_id, patch=data, if_match=if_match(request.scope))
    warehouse: Warehouse = await perform(request, writer, change)
    return ok(warehouse, version=warehouse.version)


# -- inventory items ---------------------------------------------------------------------------------------------------


@post(operation_id="createInventoryItem", responses=answers(Item, name="InventoryItemCreated", status=201))
async def create_item(
    request: AnyRequest, data: Strict[CreateItem], writer: FromDishka[Writer], products: FromDishka[Products]
) -> Reply:
    """Start keeping stock of a SKU in a warehouse. `initialQuantity` is recorded as a receipt.

    Of a product that was never heard of, the Product Service is asked first, where one is configured.
    """
    await products.admit(data.product_id)
    item: Item = await perform(request, writer, data)
    return ok(item, status=201, version=item.version, location=f"/inventory-items/{item.id}")


@get(operation_id="listInventoryItems", responses=answers(Item, name="InventoryItemList", listed=True))
async def list_items(
    store: FromDishka[Store],
    *,
    product_id: ProductFilter = None,
    sku: SkuFilter = None,
    warehouse_id: WarehouseFilter = None,
    status: StatusFilter = None,
    stock: StockFilter = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Reply:
    """List inventory items in order of creation; filters narrow each other."""
    wanted = ItemFilter(product_id=product_id, sku=sku, warehouse_id=warehouse_id, status=status, stock=stock)
    return page(await store.items(wanted, cursor=cursor, limit=limit))


@get("/{id:str}", operation_id="getInventoryItem", responses=answers(Item, name="InventoryItemSuccess", then=Balance))
async def get_item(
    request: AnyRequest,
    item_id: Id,
    store: FromDishka[Store],
    inventory: FromDishka[Inventory],
    as_of: AsOf = None,
) -> Reply:
    """Return an inventory item, or with `asOf` its balance as it was on record then; 304 as If-None-Match says."""
    if (at := instant(as_of, "asOf")) is not None:
        return ok(await inventory.item_as_of(item_id, at))
    item = await store.item(item_id)
    if item is None:
        raise NotFound(f"There is no inventory item {item_id}.", inventoryItemId=item_id)
    return _current(request, item, item.version)


@patch("/{id:str}", operation_id="updateInventoryItem", responses=answers(Item, name="InventoryItemSuccess"))
async def update_item(request: AnyRequest, item_id: Id, data: Strict[ItemPatch], writer: FromDishka[Writer]) -> Reply:
    """Edit an inventory item; what is left out stays. With If-Match, only the version named."""
    change = UpdateItem(inventory_item_id=item_id, patch=data, if_match=if_match(request.scope))
    item: Item = await perform(request, writer, change)
    return ok(item, version=item.version)


# -- products ----------------------------------------------------------------------------------------------------------


@get(
    "/{productId:str}",
    operation_id="getProduct",
    responses=answers(Product, name="ProductSuccess", then=ProductBalance),
)
async def get_product(
    product_id: ProductId, store: FromDishka[Store], inventory: FromDishka[Inventory], as_of: AsOf = None
) -> Reply:
    """Return a product's totals, threshold and counters, or with `asOf` what was on record of its items then."""
    if (at := instant(as_of, "asOf")) is not None:
        return ok(await inventory.product_as_of(product_id, at))
    found = await store.products([product_id])
    if product_id not in found or not found[product_id].product.is_known:
        raise NotFound(f"Nothing is known of product {product_id}.", productId=product_id)
    return ok(found[product_id].product)


@patch("/{productId:str}", operation_id="updateProduct", responses=answers(Product, name="ProductSuccess"))
async def update_product(
    request: AnyRequest, product_id: ProductId, data: Strict[ProductPatch], writer: FromDishka[Writer]
) -> Reply:
    """Set the product's low stock threshold."""
    return ok(await perform(request, writer, UpdateProduct(product_id=product_id, patch=data)))


def _current(request: AnyRequest, resource: Item | Warehouse, version: int) -> Reply:
    return not_modified(version) if knows(request.scope, version) else ok(resource, version=version)
