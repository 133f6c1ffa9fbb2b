"""``GET /events``: what is published, live, as server-sent events, for whoever cannot or will not speak AMQP."""

import asyncio
import re
import time
from contextlib import suppress
from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get
from litestar.config.app import AppConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.plugins import InitPlugin
from litestar.types import Receive, Scope, Send

from adapters.tokens.verifier import Principal
from core.errors import ValidationFailed
from core.events import Event
from core.reading.feed import Feed, Interest, Listener
from entrypoints.api.headers import header
from entrypoints.api.parameters import EventKind, ProductFilter, WarehouseFilter
from entrypoints.api.replies import Reply

_POSITION = re.compile(r"[0-9]{1,18}")


class StreamPlugin(InitPlugin):
    """Serves the live events."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the route."""
        app_config.route_handlers.append(DishkaRouter("/events", route_handlers=[events], tags=["Queries"]))
        return app_config


_EVENTS = ResponseSpec(Event, description="Each event's `data` is one of these.", generate_examples=False)


@get(operation_id="streamEvents", responses={200: _EVENTS})
async def events(
    request: Request[Any, Any, Any],
    feed: FromDishka[Feed],
    *,
    product_id: ProductFilter = None,
    type: EventKind = None,
    warehouse_id: WarehouseFilter = None,
) -> Reply:
    """Follow the published events live, as server-sent events. Filters narrow each other.

    The `id` of each is its position in the stream; sent back as `Last-Event-ID`, all that was missed since comes
    first. An event `Gap` tells that some of it is not kept any more. A client too slow to follow is disconnected.
    Each process takes so many streams, and so many in one name; more are refused with 503 `unavailable`.
    """
    after = _position(header(request.scope, "last-event-id"))
    return _Stream(feed, Interest(product_id, type, warehouse_id), after, request.user)


def _position(value: str | None) -> int | None:
    if value is None or value == "":
        return None
    if _POSITION.fullmatch(value) is None:
        raise ValidationFailed("Last-Event-ID must be the id of an event of this stream; leave it out to begin now.")
    return int(value)


class _Stream(Reply):
    """An answer that goes on until the client, the token or the service ends it."""

    __slots__ = ("_after", "_feed", "_principal", "_wanted")

    def __init__(self, feed: Feed, wanted: Interest, after: int | None, principal: Principal) -> None:
        super().__init__(b"", media_type=b"text/event-stream")
        self._feed = feed
        self._wanted = wanted
        self._after = after
        self._principal = principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is, as it comes."""
        name = f"{self._principal.issuer} {self._principal.subject}"
        async with self._feed.listen(self._wanted, name=name) as listener:
            watch = asyncio.create_task(_watch(listener, receive, self._principal.expires_at))
            try:
                await self._send(listener, send)
            finally:
                watch.cancel()

    async def _send(self, listener: Listener, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # or nginx keeps what should be live
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        clock = asyncio.get_running_loop().time
        try:
            async for data in self._feed.follow(listener, self._after):
                listener.sending_since = clock()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                listener.sending_since = 0.0
        except asyncio.CancelledError:
            # Who takes nothing for so long is as good as gone; leaving without an end closes the connection.
            if not listener.ended or (task := asyncio.current_task()) is None or task.uncancel():
                raise
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _watch(listener: Listener, receive: Receive, expires_at: int) -> None:
    """End the listener when the client leaves, or when its token is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(expires_at - time.time(), 0)):
            while (await receive())["type"] != "http.disconnect":
                pass
    listener.end()
