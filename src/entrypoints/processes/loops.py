"""The loops of a service, and how they start and end, in whichever process they run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from dishka import AsyncContainer

from core.catalog.products import Products
from core.consuming.consumption import ProductEvents
from core.consuming.redelivery import Redelivery
from core.errors import Conflict
from core.files.imports import Imports
from core.publishing.relay import Relay
from core.reading.snapshots import Snapshots
from core.upkeep.expiry import Sweeper
from core.upkeep.housekeeping import Housekeeper
from core.writing.writer import Writer
from entrypoints.config import Config
from entrypoints.processes import process
from entrypoints.wiring import make_container
from ports.broker import Broker
from ports.store import Store

Working = Callable[[AsyncContainer, asyncio.Event], AbstractAsyncContextManager[None]]
"""Opens what works for as long as its block runs; sets the event if that fails for good."""


def run_beside(config: Config, command: str, working: Working) -> None:
    """Run the writer, and ``working`` with it, in a process of their own until it is told to stop."""
    process.announce(config, command)
    container = make_container(config)

    async def main(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as ends:
            ends.push_async_callback(process.in_time, container.close)
            await start_writing(container, ends)
            await ends.enter_async_context(working(container, stop))
            process.ready()
            await stop.wait()

    process.run(main)


async def start_writing(container: AsyncContainer, ends: AsyncExitStack) -> None:
    """Run what readers keep, the writer, and the sweeper that expires holds, until ``ends``; the sweeper goes first."""
    for worker in (await container.get(Snapshots), await container.get(Writer), await container.get(Sweeper)):
        await worker.start()
        ends.push_async_callback(process.in_time, worker.stop)


@asynccontextmanager
async def relaying(container: AsyncContainer, stop: asyncio.Event, *, prepares: bool) -> AsyncIterator[None]:
    """Run what nobody waits for while the block runs, as soon as the store is fit for it; ``stop`` if that fails.

    Relay, consume product events, try dead letters again, check products, carry out imports and keep house.
    A process that ``prepares`` migrates the store and declares the broker's exchanges and queues, another only checks
    (rule R20); both in the background, and again until it has worked.
    """
    store, broker = await container.get(Store), await container.get(Broker)
    relay, events = await container.get(Relay), await container.get(ProductEvents)
    redelivery, products = await container.get(Redelivery), await container.get(Products)
    imports, housekeeper = await container.get(Imports), await container.get(Housekeeper)
    loops = (relay, events, redelivery, products, imports, housekeeper)

    async def start() -> None:
        ready = store.migrate if prepares else lambda: process.check_store(store)
        await process.until_done(ready, "the work in the background")
        for loop in loops:
            await loop.start()

    topology = broker.declare if prepares else lambda: check_broker(broker)
    async with AsyncExitStack() as ends:
        for loop in loops:
            ends.push_async_callback(process.in_time, loop.stop)
        await ends.enter_async_context(process.background(process.until_done(topology, "the broker's topology"), stop))
        await ends.enter_async_context(process.background(start(), stop))
        yield


async def check_broker(broker: Broker) -> None:
    """Return if the broker has all exchanges and queues.

    Raises:
        Conflict: it lacks some; the detail names them and the remedy.
        Unavailable: it is away.
    """
    if missing := await broker.check():
        raise Conflict(f"The broker lacks {', '.join(missing)}; run `inventory migrate`.")
