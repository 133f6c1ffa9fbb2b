"""What a process does by itself until it is told to end: loops that go on whatever they meet."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from core.errors import InventoryError

_log = logging.getLogger(__name__)


class Loops:
    """The loops of one owner: started together, ended together."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *loops: Coroutine[Any, Any, None]) -> None:
        """Let them run."""
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        for task in self._tasks:
            task.add_done_callback(has_failed)

    @property
    def running(self) -> bool:
        """Whether they were started and not ended."""
        return bool(self._tasks)

    async def stop(self) -> None:
        """Break them off and return when they have ended; nothing where none runs."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def has_failed(task: asyncio.Task[None]) -> bool:
    """Tell whether a task that is done ended by an error, and log it: nobody waits for those that should not end."""
    if task.cancelled() or (error := task.exception()) is None:
        return False
    name = getattr(task.get_coro(), "__qualname__", task.get_name())
    _log.error("%s failed and has ended", name, exc_info=error)
    return True


async def forever(what: str, turn: Callable[[], Awaitable[float]], *, pause: float, first: float = 0.0) -> None:
    """Take turns until cancelled. What a turn raises is logged, and the next one comes all the same.

    Args:
        what: the doing, as the log is to name it, such as "Expiring holds".
        turn: returns the seconds until the next one.
        pause: seconds until the next one, where a turn failed.
        first: seconds until the first one.
    """
    rest = first
    while True:
        await asyncio.sleep(rest)
        try:
            rest = await turn()
        except InventoryError as error:
            rest = pause
            _log.info("%s has to wait: %s", what, error.detail)
        except Exception:
            rest = pause
            _log.exception("%s failed and goes on", what)
