"""What every process does alike: say who it is, run until it is told to stop, keep trying, end in time."""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from adapters.telemetry import configure_logging
from core.errors import Conflict, InventoryError
from core.running.loop import has_failed
from entrypoints.config import Config
from ports.store import Store

END_SECONDS = 5.0
"""How long a request in flight, and then each part of the process, may take to end."""
_LOADED_AT = time.time()
_log = structlog.get_logger("inventory")


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` on the fastest event loop there is; its event is set by SIGTERM or Ctrl-C. A second Ctrl-C kills."""

    async def guarded() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: os._exit(130) if stop.is_set() else stop.set())
        await main(stop)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(guarded())


def announce(config: Config, command: str, **facts: object) -> None:
    """Set logging up and write the first line: what runs, and on what."""
    configure_logging(config.log_level)
    _log.info(
        "starting",
        command=command,
        version=version("inventory-service"),
        store=config.store,
        broker=config.broker,
        cache=config.cache,
        pid=os.getpid(),
        **facts,
    )


def ready(**facts: object) -> None:
    """Write the line that says that the process does its work from now on."""
    # What is loaded by now stays: without it, each full collection takes a few milliseconds instead of fifty.
    gc.collect()
    gc.freeze()
    # What a request leaves behind goes by itself; looking for cycles after every 700 objects took a tenth of the time.
    gc.set_threshold(20_000, 20, 100)
    _log.info("ready", **facts, milliseconds=round((time.time() - _started_at()) * 1000))


async def until_done(step: Callable[[], Awaitable[object]], what: str) -> None:
    """Repeat ``step`` until it succeeds. Failures are logged when they change, so that a long outage is one line."""
    told = ""
    pause = 0.25
    while True:
        try:
            await step()
        except InventoryError as error:
            if error.detail != told:
                _log.warning(f"{what} has to wait", reason=error.detail)
            told = error.detail
        except Exception:
            _log.exception(f"{what} failed and is tried again")
            told = "failed"
        else:
            if told:
                _log.info(f"{what} waits no longer")
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], stop: asyncio.Event | None = None) -> AsyncIterator[None]:
    """Run ``work`` in a task while the block runs, and cancel it when the block is left.

    A failure is logged. With ``stop`` it ends the process: that is set, and the failure raised once the block is left.
    """

    def look(task: asyncio.Task[None]) -> None:
        if has_failed(task) and stop is not None:
            stop.set()

    task = asyncio.create_task(work)
    task.add_done_callback(look)
    try:
        yield
    finally:
        failed = task.done() and not task.cancelled()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if failed and stop is not None:
        task.result()


async def in_time(end: Callable[[], Awaitable[object]]) -> None:
    """Run ``end``, but no longer than ``END_SECONDS``: a process that was told to stop stops."""
    try:
        async with asyncio.timeout(END_SECONDS):
            await end()
    except TimeoutError:
        _log.warning("did not end in time", part=getattr(end, "__qualname__", repr(end)))


async def check_store(store: Store) -> None:
    """Return if the store has all its tables.

    Raises:
        Conflict: it lacks some; the detail names the remedy.
        Unavailable: it is away.
    """
    if pending := await store.pending_migrations():
        raise Conflict(f"The store lacks the migrations {', '.join(pending)}; run `inventory migrate`.")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _started_at() -> float:
    """Return when the process started (Unix seconds), or, where the system does not tell, when this was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError):
        return _LOADED_AT
