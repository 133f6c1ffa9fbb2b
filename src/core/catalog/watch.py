"""How the Product Service is: asked regularly, so that whoever wants to know need not wait for it to answer."""

import logging
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from core.errors import ProductServiceUnavailable
from core.running.loop import Loops, forever
from ports.catalog import Condition, ProductCatalog

_log = logging.getLogger(__name__)


class CatalogHealth(Struct, frozen=True, rename="camel", kw_only=True):
    """What the last question brought, and how calls fare; ``status`` is "unknown" until the first one was answered."""

    status: Literal["ok", "unavailable", "unknown"]
    reason: str | None
    checked_at: datetime | None
    calls: Condition


class CatalogWatch:
    """Asks every so often, in every process that wants to know.

    Args:
        seconds: from one question to the next; 0 for never.
    """

    def __init__(self, catalog: ProductCatalog, *, seconds: float) -> None:
        self._catalog = catalog
        self._seconds = seconds
        self._status: Literal["ok", "unavailable", "unknown"] = "unknown"
        self._reason: str | None = None
        self._checked_at: datetime | None = None
        self._loops = Loops()

    async def start(self) -> None:
        """Start asking."""
        if self._seconds:
            self._loops.start(forever("Asking the Product Service how it is", self._turn, pause=self._seconds))

    async def stop(self) -> None:
        """End."""
        await self._loops.stop()

    @property
    def health(self) -> CatalogHealth:
        """How the Product Service is, as far as is known."""
        return CatalogHealth(
            status=self._status, reason=self._reason, checked_at=self._checked_at, calls=self._catalog.condition()
        )

    @property
    def is_well(self) -> bool:
        """Whether nothing speaks against it: neither its own word nor how calls fare.

        A circuit that would let the next call through says nothing once the failures that opened it are forgotten:
        where nobody calls, nobody would close it.
        """
        calls = self._catalog.condition()
        forgotten = calls.circuit == "HALF_OPEN" and not calls.failures
        return self._status != "unavailable" and (calls.circuit == "CLOSED" or forgotten)

    async def look(self) -> None:
        """Ask now. What changes is logged."""
        before = self._status
        try:
            await self._catalog.ping()
        except ProductServiceUnavailable as error:
            self._status, self._reason = "unavailable", error.detail
        else:
            self._status, self._reason = "ok", None
        self._checked_at = datetime.now(UTC)
        if self._status == "unavailable" != before:
            _log.warning("The Product Service is away: %s", self._reason)
        elif before == "unavailable" != self._status:
            _log.warning("The Product Service is back")

    async def _turn(self) -> float:
        await self.look()
        return self._seconds
