"""What commands that change stock have in common: all that a service works with, opened for as long as they last."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from dishka import AsyncContainer

from entrypoints.commands.terminal import check_tables, somebody_runs
from entrypoints.config import Config
from entrypoints.processes.loops import start_writing
from entrypoints.wiring import make_container
from ports.store import Store


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[tuple[AsyncContainer, Store, AsyncExitStack]]:
    """Open everything while the block runs; what is put on the stack ends before it.

    Raises:
        ValidationFailed: the store lacks tables; the detail names the remedy.
    """
    container = make_container(config)
    async with AsyncExitStack() as ends:
        ends.push_async_callback(container.close)
        store = await container.get(Store)
        await check_tables(store)
        yield container, store, ends


@asynccontextmanager
async def at_work(config: Config) -> AsyncIterator[tuple[AsyncContainer, Store, bool]]:
    """Open everything so that every reader hears of what is done; the last of the three tells whether it is done here.

    That is with a writer running in this process, unless another one runs that keeps what it reads in its own memory.

    Raises:
        ValidationFailed: the store lacks tables; the detail names the remedy.
    """
    async with opened(config) as (container, store, ends):
        here = not (config.cache.startswith("memory:") and await somebody_runs(store))
        if here:
            await start_writing(container, ends)
        yield container, store, here
