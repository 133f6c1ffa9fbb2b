"""Holds end when they end: the sweeper frees what ran out on products that nobody touches (rule R10).

A batch that touches a product frees its due holds by itself; this is for the quiet ones, within a second. It runs in
every process that writes: two that sweep the same hold meet at its products' locks, and the second finds it done.
"""

import asyncio
import logging
import time

from core.errors import InventoryError
from core.operations import Expire, Request
from core.rules.book import SYSTEM
from core.running.loop import Loops, forever
from core.writing.writer import Writer
from ports.store import Store

_EVERY_SECONDS = 0.5
_LIMIT = 200
_LATER_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Sweeper:
    """Expires due holds, the longest over first."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._loops = Loops()
        self._later: dict[str, float] = {}

    async def start(self) -> None:
        """Start sweeping."""
        self._loops.start(forever("Expiring holds", self._turn, pause=_EVERY_SECONDS))

    async def stop(self) -> None:
        """End."""
        await self._loops.stop()

    async def sweep(self) -> int:
        """Expire what is due, ``_LIMIT`` at most, and return how many holds that were.

        Raises:
            Unavailable: the store is away.
        """
        now = time.monotonic()
        self._later = {id: until for id, until in self._later.items() if until > now}
        due = await self._store.due(_LIMIT, skip=self._later.keys())
        # Each a request of its own: one locked product must not keep the others waiting.
        requests = (Request(operations=(Expire(reservation_id=id),), actor=SYSTEM) for id in due)
        outcomes = await asyncio.gather(*(self._writer.submit(request) for request in requests), return_exceptions=True)
        failed = {id: outcome for id, outcome in zip(due, outcomes, strict=True) if isinstance(outcome, BaseException)}
        self._later |= dict.fromkeys(failed, now + _LATER_SECONDS)
        for error in failed.values():
            _log.warning("%d of %d due holds have to wait: %s", len(failed), len(due), error)
            if not isinstance(error, InventoryError):
                raise error
            break
        return len(due) - len(failed)

    async def _turn(self) -> float:
        return 0.0 if await self.sweep() == _LIMIT else _EVERY_SECONDS
