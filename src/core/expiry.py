"""Holds end when they end: the sweeper frees what ran out on products that nobody touches (rule R10).

A batch that touches a product frees its due holds by itself; this is for the quiet ones, within a second. It runs in
every process that writes: two that sweep the same hold meet at its products' locks, and the second finds it done.
"""

import asyncio
import logging

from core.book import SYSTEM
from core.errors import InventoryError
from core.operations import Expire, Request
from core.writer import Writer
from ports.store import Store

_EVERY_SECONDS = 0.5
_LIMIT = 200
_log = logging.getLogger(__name__)


class Sweeper:
    """Expires due holds, the longest over first."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start sweeping."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self) -> int:
        """Expire what is due, ``_LIMIT`` at most, and return how many holds that were.

        Raises:
            Unavailable: the store is away.
        """
        due = await self._store.due(_LIMIT)
        # Each a request of its own: one locked product must not keep the others waiting.
        requests = (Request(operations=(Expire(reservation_id=id),), actor=SYSTEM) for id in due)
        outcomes = await asyncio.gather(*(self._writer.submit(request) for request in requests), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, InventoryError):
                raise outcome
        return len(due)

    async def _loop(self) -> None:
        while True:
            swept = 0
            try:
                swept = await self.sweep()
            except InventoryError as error:
                _log.info("Expiring holds has to wait: %s", error.detail)
            except Exception:
                _log.exception("Expiring holds failed and goes on")
            if swept < _LIMIT:
                await asyncio.sleep(_EVERY_SECONDS)
