"""Handlers at work, alike for every broker: how many at once, what becomes of one that fails, and how they end.

They run in tasks of ours: aio-pika's own are cancelled with the connection, and then a commit could be cut in two.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from core.events import DEAD_LETTERS
from ports.broker import Delivery, Handler, Verdict

PAUSE_SECONDS = 1.0
END_SECONDS = 5.0
CANCEL_SECONDS = 1.0

Settle = Callable[[Verdict | None], Awaitable[None]]
"""Tells the broker what a handler said of its message; None asks for the message to come again."""
Handed = tuple[Delivery, Settle]

log = logging.getLogger(__name__)


@asynccontextmanager
async def handling(
    queue: str, take: Callable[[], Awaitable[Handed]], handle: Handler, *, at_once: int
) -> AsyncIterator[None]:
    """Take work and give it to ``handle`` while the block runs, up to ``at_once`` unsettled at a time.

    Every piece is settled, once. After the block what is running has ``END_SECONDS`` before it is cancelled.
    """
    handlers = _Handlers(queue, handle, at_once=at_once)
    giving = asyncio.create_task(handlers.give(take))
    try:
        yield
    finally:
        giving.cancel()
        await handlers.end()


class _Handlers:
    """Those of one queue that are running."""

    def __init__(self, queue: str, handle: Handler, *, at_once: int) -> None:
        self._queue = queue
        self._handle = handle
        self._slots = asyncio.Semaphore(at_once)
        self._running: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()

    async def give(self, take: Callable[[], Awaitable[Handed]]) -> None:
        """Begin handlers until cancelled."""
        while True:
            await self._slots.acquire()
            try:
                work = await take()
            except Exception:
                log.exception("A message of %s was not taken; the next one is.", self._queue)
                self._slots.release()
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            task = asyncio.create_task(self._attend(*work))
            self._running.add(task)
            task.add_done_callback(self._forget)

    async def end(self) -> None:
        """Return when no handler runs any more; those that take too long are cancelled, at once if this is."""
        self._ending.set()
        try:
            if self._running:
                await asyncio.wait(self._running, timeout=END_SECONDS)
        finally:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running, timeout=CANCEL_SECONDS)

    async def _attend(self, delivery: Delivery, settle: Settle) -> None:
        verdict = None
        try:
            verdict = await self._verdict(delivery)
        except (Exception, asyncio.CancelledError):  # whatever it is, the message must come again
            log.exception("Message %s of %s was not dealt with; it comes again.", delivery.message.id, self._queue)
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    await self._ending.wait()
        await settle(verdict)

    async def _verdict(self, delivery: Delivery) -> Verdict:
        verdict = await self._handle(delivery)
        if verdict is Verdict.DEAD and self._queue == DEAD_LETTERS:
            raise ValueError("A dead letter cannot be made one again; the broker would drop it.")
        return verdict

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()
