"""``inventory reconciler``: looks by itself, every so often, whether the records agree, and repairs what it may.

It needs the store, the Product Service where there is one, and the cache, whose readers hear of its repairs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from dishka import AsyncContainer

from core.reconciling.reconciliation import Reconciliation
from entrypoints.config import Config, SettingError
from entrypoints.processes import process
from entrypoints.processes.loops import run_beside
from ports.store import Store


def run(config: Config) -> None:
    """Reconcile until told to stop. The store does not need to be there.

    Raises:
        SettingError: the interval is 0, so that there would be nothing to do.
    """
    if not config.reconcile_minutes:
        raise SettingError("INVENTORY_RECONCILE_MINUTES is 0, which is never; set it to run a reconciler.")
    run_beside(config, "reconciler", reconciling)


@asynccontextmanager
async def reconciling(container: AsyncContainer, stop: asyncio.Event) -> AsyncIterator[None]:
    """Reconcile at intervals and when asked to while the block runs, once the store is fit; ``stop`` if that fails."""
    store, reconciliation = await container.get(Store), await container.get(Reconciliation)

    async def start() -> None:
        await process.until_done(lambda: process.check_store(store), "reconciling")
        await reconciliation.start()

    async with AsyncExitStack() as ends:
        ends.push_async_callback(process.in_time, reconciliation.stop)
        await ends.enter_async_context(process.background(start(), stop))
        yield
