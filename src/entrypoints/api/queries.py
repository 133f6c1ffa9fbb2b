"""What the Product Service asks: the specification's two questions, and the second one of a whole product."""

import re
from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from litestar.types import ASGIApp, Receive, Scope, Send

from core.reading.availability import Availability, ProductAvailability
from core.reading.inventory import Found, Inventory, Question
from core.stock import ProductInventory
from entrypoints.api.headers import knows
from entrypoints.api.parameters import By, CheckAllWarehouses, Explain, Id, ProductId, Quantity, SkuChoice, instant
from entrypoints.api.replies import Reply, answers, not_modified, ok

_PLAIN = re.compile(rb"(?:quantity=([1-9][0-9]{0,8}))?(?:&?checkAllWarehouses=(true|false))?")


class QueriesPlugin(InitPlugin):
    """Answers how many there are, and whether so many can be had."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers += [
            DishkaRouter("/inventory-items", route_handlers=[by_product, availability], tags=["Queries"]),
            DishkaRouter("/products", route_handlers=[product_availability], tags=["Queries"]),
        ]
        return app_config


class _Near:
    """Answers what was answered before and is kept near, ahead of everything that a handler would need.

    The caller is known by now. A query in any but the plainest form is left to the handler, which judges it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._inventory: Inventory | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (inventory := self._inventory) is None:
            inventory = self._inventory = await scope["state"]["dishka_container"].get(Inventory)
        if (question := _question(scope)) is not None and (answer := inventory.near(question)) is not None:
            await _told(scope, answer)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _question(scope: Scope) -> Question | None:
    found = _PLAIN.fullmatch(scope["query_string"])
    if found is None or scope.get("method") != "GET":
        return None
    quantity, everywhere = int(found[1] or 1), found[2] != b"false"
    names: dict[str, str] = scope["path_params"]
    if (item_id := names.get("id")) is not None:
        return Question("", item_id, (item_id, quantity, everywhere))
    if found[2] is not None:
        return None
    product_id = names["productId"]
    if scope["path_template"].startswith("/products"):
        return Question(product_id, None, (None, quantity))
    return Question(product_id, None, None) if not scope["query_string"] else None


@get(
    "/by-product/{productId:str}",
    operation_id="getInventoryByProduct",
    middleware=[_Near],
    responses=answers(ProductInventory, name="ProductInventorySuccess"),
)
async def by_product(request: Request[Any, Any, Any], product_id: ProductId, inventory: FromDishka[Inventory]) -> Reply:
    """Retrieve inventory information for a specific product across all warehouses; 304 as If-None-Match says."""
    return _told(request.scope, await inventory.by_product(product_id))


@get(
    "/{id:str}/availability",
    operation_id="checkAvailability",
    middleware=[_Near],
    responses=answers(Availability, name="AvailabilitySuccess"),
)
async def availability(
    request: Request[Any, Any, Any],
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
    return _told(request.scope, answer)


@get(
    "/{productId:str}/availability",
    operation_id="checkProductAvailability",
    middleware=[_Near],
    responses=answers(ProductAvailability, name="ProductAvailabilitySuccess"),
)
async def product_availability(
    request: Request[Any, Any, Any],
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
    return _told(request.scope, answer)


def _told(scope: Scope, answer: Found[Any]) -> Reply:
    """Return an answer, encoded once however often it is told. Only by-product has an entity tag (rule R25)."""
    tagged = isinstance(answer.data, ProductInventory)
    if tagged and knows(scope, answer.tag):
        return not_modified(answer.tag)
    reply: Reply | None = answer.encoded
    if reply is None:
        reply = answer.encoded = ok(answer.data, version=answer.tag if tagged else None)
    return reply
