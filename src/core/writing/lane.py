"""A lane: a queue of requests and the loop that empties it, a batch at a time (rule R6)."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from core.errors import OutcomeUnknown
from core.writing.batch import Work

BATCH_OPERATIONS = 256
BATCH_ROWS = 2_000
_log = logging.getLogger(__name__)


class Lane:
    """A queue and the loop that empties it, a batch at a time."""

    def __init__(self, carry_out: Callable[[list[Work]], Awaitable[None]]) -> None:
        self._carry_out = carry_out
        self._queue: deque[Work] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.operations = 0
        self.bytes = 0

    def add(self, work: Work) -> None:
        """Queue ``work`` at the end."""
        self._queue.append(work)
        self.operations += len(work.request.operations)
        self.bytes += work.bytes
        self._idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Empty the queue for ever; whatever a batch meets, the lane goes on."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._take():
                try:
                    await self._carry_out(batch)
                except asyncio.CancelledError:
                    # A library may cancel whoever waits for it; only whoever stops the lane may end it.
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    _interrupted(batch)
                except Exception:
                    _log.exception("A batch failed unexpectedly")
                    _interrupted(batch)
            self._idle.set()

    async def drain(self) -> None:
        """Return when nothing waits here."""
        await self._idle.wait()

    def expire(self) -> None:
        """Refuse what has waited too long."""
        now = time.monotonic()
        for work in self._queue:
            work.expire(now)
        while self._queue and self._queue[0].future.done():
            self._pop()

    def _take(self) -> list[Work]:
        batch: list[Work] = []
        operations = rows = 0
        now = time.monotonic()
        while self._queue and (not batch or _fits(self._queue[0], operations, rows)):
            work = self._pop()
            work.expire(now)
            if not work.future.done():
                batch.append(work)
                operations += len(work.request.operations)
                rows += work.rows
        return batch

    def _pop(self) -> Work:
        work = self._queue.popleft()
        self.operations -= len(work.request.operations)
        self.bytes -= work.bytes
        return work


def _fits(work: Work, operations: int, rows: int) -> bool:
    return operations + len(work.request.operations) <= BATCH_OPERATIONS and rows + work.rows <= BATCH_ROWS


def _interrupted(batch: Iterable[Work]) -> None:
    for work in batch:
        work.refuse(OutcomeUnknown("The change was interrupted; ask again with the same Idempotency-Key."))
