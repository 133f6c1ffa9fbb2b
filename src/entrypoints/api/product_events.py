"""Product events over HTTP, for a Product Service without AMQP, or for one event by hand."""

from typing import Any
from urllib.parse import quote

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from core.consuming.reception import EventStatus, Reception
from core.events import ProductEvent
from entrypoints.api.bodies import Strict
from entrypoints.api.parameters import EventId
from entrypoints.api.replies import Reply, answers, ok

BODY_MAX = 1024 * 1024


class ProductEventsPlugin(InitPlugin):
    """Takes product events."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers.append(
            DishkaRouter("/product-events", route_handlers=[take, look], tags=["Product events"])
        )
        return app_config


@post(
    operation_id="takeProductEvent",
    status_code=202,
    responses=answers(EventStatus, name="ProductEventTaken", status=202),
    request_max_body_size=BODY_MAX,
)
async def take(request: Request[Any, Any, Any], data: Strict[ProductEvent], reception: FromDishka[Reception]) -> Reply:
    """Take a product event, in the envelope of the specification. An `eventId` is applied once, however often it comes.

    Repeat it after 502, 503 or a lost connection. What is refused although the event is well is parked in the dead
    letters; the status at `Location` tells.
    """
    correlation_id = request.scope["state"]["caller_correlation_id"]
    taken = await reception.take(data, await request.body(), correlation_id=correlation_id)
    return ok(taken, status=202, location=f"/product-events/{quote(data.event_id, safe='')}")


@get(
    "/{eventId:str}",
    operation_id="getProductEvent",
    responses=answers(EventStatus, name="ProductEventSuccess"),
)
async def look(event_id: EventId, reception: FromDishka[Reception]) -> Reply:
    """Tell what became of a product event, whether it came by HTTP or by AMQP. Kept as long as the inbox, 90 days."""
    return ok(await reception.status(event_id))
