"""The Product Service as operators see it: how it is, how calls to it fare, and the circuit's manual override."""

import os
import socket
from typing import Any, Literal

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get, put
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Struct

from core.catalog.watch import CatalogHealth, CatalogWatch
from core.fields import Text
from entrypoints.api.bodies import Strict
from entrypoints.api.dead_letters import act
from entrypoints.api.parameters import Limit
from entrypoints.api.replies import Reply, answers, ok, page
from ports.catalog import ProductCatalog
from ports.product_records import ProductCheck
from ports.store import Page, Store

_ANSWER = answers(CatalogHealth, name="ProductServiceSuccess")


class CircuitBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How the circuit shall stand: refuse every call, let every call through, or decide by itself; and why."""

    circuit: Literal["OPEN", "CLOSED", "AUTO"]
    reason: Text | None = None


class ProductServicePlugin(InitPlugin):
    """Shows and steers the way to the Product Service."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers.append(
            DishkaRouter("/admin/product-service", route_handlers=[look, list_checks, force], tags=["Administration"])
        )
        return app_config


@get(operation_id="getProductService", responses=_ANSWER)
async def look(watch: FromDishka[CatalogWatch]) -> Reply:
    """Tell how the Product Service is, and how this process's calls to it fare."""
    return ok(watch.health)


@get("/checks", operation_id="listProductChecks", responses=answers(ProductCheck, name="ProductCheckList", listed=True))
async def list_checks(store: FromDishka[Store], limit: Limit = 50) -> Reply:
    """List the products that were taken on trust while the Product Service was away, the oldest first.

    They are checked by themselves when it is back; what it has leaves the list, what it has not stays as `MISSING`.
    """
    return page(Page(tuple(await store.product_checks(limit=limit)), None))


@put("/circuit", operation_id="forceCircuit", responses=_ANSWER)
async def force(
    request: Request[Any, Any, Any],
    data: Strict[CircuitBody],
    watch: FromDishka[CatalogWatch],
    catalog: FromDishka[ProductCatalog],
    store: FromDishka[Store],
) -> Reply:
    """Hold the circuit of this process open or closed, whatever happens, until it is let go with `AUTO`.

    Who did so and why is kept on record; while it cannot be, nothing is done.
    """
    process = f"{socket.gethostname()}-{os.getpid()}"
    await store.record_act(
        act(request, data.reason), "force_circuit", "product-service", circuit=data.circuit, process=process
    )
    catalog.force(None if data.circuit == "AUTO" else data.circuit)
    return ok(watch.health)
