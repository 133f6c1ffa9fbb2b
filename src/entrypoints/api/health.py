"""Whether the service works: for load balancers, orchestrators and the Product Service.

Readiness fails only where no request could succeed: without the store, with migrations pending, or before the keys that
tokens are verified with have been fetched. Without the broker, stock is sold correctly and events wait, without the
cache reads go to the store, so that is ``degraded`` and still 200; so it is without the Product Service, and while
newer keys cannot be fetched.
"""

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import Any, Literal

import structlog
from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Litestar, Request, get
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Struct

from adapters.tokens.watch import KeyWatch
from core.catalog.watch import CatalogWatch
from core.errors import InventoryError, Unavailable
from entrypoints.api.replies import Reply, answers, ok
from ports.broker import Broker
from ports.cache import Cache
from ports.store import Store

CHECK_SECONDS = 1.0
State = Literal["ok", "stale", "unavailable", "pending_migrations"]
_log = structlog.get_logger("health")


class Dependencies(Struct, frozen=True):
    """The state of each thing the service leans on."""

    store: State
    broker: State
    cache: State
    catalog: State
    keys: State


class Health(Struct, frozen=True):
    """The summary; ``degraded`` means that everything asked is answered, and something will be late."""

    status: Literal["ok", "degraded"]
    dependencies: Dependencies


class Live(Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class HealthPlugin(InitPlugin):
    """Answers the health checks."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.state["health"] = Checks()
        app_config.route_handlers.append(
            DishkaRouter("/health", route_handlers=[live, ready, summary], tags=["Service"])
        )
        return app_config


def say_leaving(app: Litestar) -> None:
    """Have readiness say from now on that this process takes its leave."""
    checks: Checks = app.state["health"]
    checks.leaving = True


class Checks:
    """Looks at the dependencies at most once a second, however many ask."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._away: dict[str, str] = {}
        self._seen: Dependencies | None = None
        self._until = 0.0
        self.leaving = False

    async def dependencies(
        self, store: Store, broker: Broker, cache: Cache, catalog: CatalogWatch, keys: KeyWatch
    ) -> Dependencies:
        """Return their states, each found within a second and not older than another."""
        async with self._lock:
            if self._seen is None or monotonic() >= self._until:
                states = await asyncio.gather(
                    self._bounded("store", _store_state(store)),
                    self._bounded("broker", _answers(broker)),
                    self._bounded("cache", _answers(cache)),
                )
                self._seen = Dependencies(*states, "ok" if catalog.is_well else "unavailable", keys.state)
                self._until = monotonic() + CHECK_SECONDS
            return self._seen

    async def _bounded(self, name: str, check: Awaitable[State]) -> State:
        """Whatever the check raises means the same; it is logged when it changes, so that a long outage is one line."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                state = await check
        except Exception as error:
            expected = isinstance(error, TimeoutError | InventoryError)
            reason = (str(error) or "no answer within a second") if expected else type(error).__name__
            if self._away.get(name) != reason:
                _log.warning("dependency is away", dependency=name, reason=reason, exc_info=not expected)
            self._away[name] = reason
            return "unavailable"
        if self._away.pop(name, ""):
            _log.info("dependency is back", dependency=name)
        return state


@get("/live", operation_id="live", responses=answers(Live, name="LiveSuccess"))
async def live() -> Reply:
    """Tell that the process answers. Always 200."""
    return ok(Live())


@get("/ready", operation_id="ready", responses=answers(Health, name="HealthSuccess"))
async def ready(
    request: Request[Any, Any, Any],
    store: FromDishka[Store],
    broker: FromDishka[Broker],
    cache: FromDishka[Cache],
    catalog: FromDishka[CatalogWatch],
    keys: FromDishka[KeyWatch],
) -> Reply:
    """Tell whether requests can be answered, by 200 or 503.

    503 without the store, with migrations pending, before the keys of tokens have come, and once told to stop.
    """
    return await _answer(request, store, broker, cache, catalog, keys)


@get("", operation_id="health", responses=answers(Health, name="HealthSuccess"))
async def summary(
    request: Request[Any, Any, Any],
    store: FromDishka[Store],
    broker: FromDishka[Broker],
    cache: FromDishka[Cache],
    catalog: FromDishka[CatalogWatch],
    keys: FromDishka[KeyWatch],
) -> Reply:
    """The same as `/health/ready`."""
    return await _answer(request, store, broker, cache, catalog, keys)


async def _answer(
    request: Request[Any, Any, Any],
    store: Store,
    broker: Broker,
    cache: Cache,
    catalog: CatalogWatch,
    keys: KeyWatch,
) -> Reply:
    checks: Checks = request.app.state["health"]
    if checks.leaving:
        raise Unavailable("This process has been told to stop; ask another.")
    seen = await checks.dependencies(store, broker, cache, catalog, keys)
    if seen.store == "unavailable":
        raise Unavailable("The store is away; requests that need it are refused until it is back.", dependencies=seen)
    if seen.store == "pending_migrations":
        raise Unavailable("The store lacks migrations; run inventory migrate.", dependencies=seen)
    if seen.keys == "unavailable":
        raise Unavailable("The keys to verify tokens with cannot be fetched; the log says why.", dependencies=seen)
    well = seen.broker == seen.cache == seen.catalog == seen.keys == "ok"
    return ok(Health("ok" if well else "degraded", seen))


async def _store_state(store: Store) -> State:
    await store.ping()
    return "pending_migrations" if await store.pending_migrations() else "ok"


async def _answers(port: Broker | Cache) -> State:
    await port.ping()
    return "ok"
