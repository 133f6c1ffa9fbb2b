"""What the Product Service asks: the specification's two questions, and the second one of a whole product."""

from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from core.availability import Availability, ProductAvailability
from core.inventory import Answer, Inventory
from core.stock import ProductInventory
from entrypoints.api.headers import knows
from entrypoints.api.parameters import By, CheckAllWarehouses, Explain, Id, ProductId, Quantity, SkuChoice, instant
from entrypoints.api.replies import Reply, answers, not_modified, ok


class QueriesPlugin(InitPlugin):
    """Answers how many there are, and whether so many can be had."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers += [
            DishkaRouter("/inventory-items", route_handlers=[by_product, availability], tags=["Queries"]),
            DishkaRouter("/products", route_handlers=[product_availability], tags=["Queries"]),
        ]
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
    return _told(answer, tagged=True)


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
    explain: Explain = False,
) -> Reply:
    """Check real-time availability: whether the quantity can be had now, of the item's SKU, and what to display."""
    answer = await inventory.availability(
        item_id, quantity=quantity, all_warehouses=check_all_warehouses, explain=explain
    )
    return _told(answer)


@get(
    "/{productId:str}/availability",
    operation_id="checkProductAvailability",
    responses=answers(ProductAvailability, name="ProductAvailabilitySuccess"),
)
async def product_availability(
    product_id: ProductId,
    inventory: FromDishka[Inventory],
    *,
    quantity: Quantity = 1,
    sku: SkuChoice = None,
    by: By = None,
    explain: Explain = False,
) -> Reply:
    """Check availability of a product, or one SKU of it: what to display, from when on, and how many by an instant."""
    answer = await inventory.product_availability(
        product_id, sku=sku, quantity=quantity, by=instant(by, "by"), explain=explain
    )
    return _told(answer)


def _told(answer: Answer[Any], *, tagged: bool = False) -> Reply:
    """Return an answer, encoded once however often it is told."""
    reply: Reply | None = answer.encoded
    if reply is None:
        reply = answer.encoded = ok(answer.data, version=answer.tag if tagged else None)
    return reply
