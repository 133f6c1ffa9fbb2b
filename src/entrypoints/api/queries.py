"""The specification's two endpoints, as the Product Service calls them."""

from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from core.inventory import Inventory
from core.stock import Availability, ProductInventory
from entrypoints.api.headers import knows
from entrypoints.api.parameters import CheckAllWarehouses, Id, ProductId, Quantity
from entrypoints.api.replies import Reply, answers, not_modified, ok


class QueriesPlugin(InitPlugin):
    """Answers how many there are, and whether so many can be had."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers.append(
            DishkaRouter("/inventory-items", route_handlers=[by_product, availability], tags=["Queries"])
        )
        return app_config


@get(
    "/by-product/{productId:str}",
    operation_id="getInventoryByProduct",
    responses=answers(ProductInventory, name="ProductInventorySuccess"),
)
async def by_product(request: Request[Any, Any, Any], product_id: ProductId, inventory: FromDishka[Inventory]) -> Reply:
    """Retrieve inventory information for a specific product across all warehouses; 304 as If-None-Match says."""
    answer = await inventory.by_product(product_id)
    if knows(request.scope, answer.tag):
        return not_modified(answer.tag)
    reply: Reply | None = answer.encoded
    if reply is None:
        reply = answer.encoded = ok(answer.data, version=answer.tag)
    return reply


@get(
    "/{id:str}/availability",
    operation_id="checkAvailability",
    responses=answers(Availability, name="AvailabilitySuccess"),
)
async def availability(
    item_id: Id,
    inventory: FromDishka[Inventory],
    *,
    quantity: Quantity = 1,
    check_all_warehouses: CheckAllWarehouses = True,
) -> Reply:
    """Check real-time availability: whether the quantity can be had now, of the item's SKU."""
    return ok(await inventory.availability(item_id, quantity=quantity, all_warehouses=check_all_warehouses))
