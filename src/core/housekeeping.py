"""What must not grow for ever: stored answers, published events and the inbox are dropped when their time is over."""

import asyncio
import logging

from core.errors import Unavailable
from ports.store import Store

INBOX_DAYS = 90
"""How long a product event is known again; older than any message that could still be delivered."""
_EVERY_SECONDS = 60.0
_LIMIT = 1000
_log = logging.getLogger(__name__)


class Housekeeper:
    """Drops old rows a small batch at a time; one process at a time does it, by lease.

    Args:
        owner: who we are in the lease.
        answers_hours: how long an idempotency key is remembered (rule R4).
        events_days: how long a published event can be replayed (rule R22).
    """

    def __init__(self, store: Store, *, owner: str, answers_hours: float, events_days: float) -> None:
        self._store = store
        self._owner = owner
        self._answers_hours = answers_hours
        self._events_days = events_days
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
        """Drop everything that is over, if nobody else is at it; return how many rows went."""
        dropped = 0
        while await self._store.acquire("housekeeping", self._owner, seconds=_EVERY_SECONDS * 2):
            went = await self._store.purge(
                answers_hours=self._answers_hours,
                events_days=self._events_days,
                inbox_days=INBOX_DAYS,
                limit=_LIMIT,
            )
            dropped += went
            if went < _LIMIT:
                break
        return dropped

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.sweep()
            except Unavailable as error:
                _log.warning("Housekeeping has to wait: %s", error.detail)
            except Exception:
                _log.exception("Housekeeping failed and goes on")
