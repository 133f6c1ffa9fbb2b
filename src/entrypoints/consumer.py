"""``inventory consumer``: what goes to and comes from the broker, in a process of its own. Today the outbox relay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from dishka import AsyncContainer

from core.delivery import Relay
from core.errors import Conflict
from core.housekeeping import Housekeeper
from entrypoints import process
from entrypoints.config import Config
from entrypoints.wiring import make_container
from ports.broker import Broker


def run(config: Config) -> None:
    """Relay until told to stop. Neither the broker nor the store needs to be there."""
    process.announce(config, "consumer")
    container = make_container(config)

    async def main(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as ends:
            ends.push_async_callback(process.in_time, container.close)
            await ends.enter_async_context(relaying(container, declare=False))
            process.ready()
            await stop.wait()

    process.run(main)


@asynccontextmanager
async def relaying(container: AsyncContainer, *, declare: bool) -> AsyncIterator[None]:
    """Relay and keep house while the block runs.

    The broker's exchanges and queues are declared, or only checked, in the background and again until it has worked
    (rule R20).
    """
    broker = await container.get(Broker)

    async def check() -> None:
        if missing := await broker.check():
            raise Conflict(f"The broker lacks {', '.join(missing)}; run `inventory migrate`.")

    topology = process.until_done(
        broker.declare if declare else check, "declaring the topology" if declare else "relaying"
    )
    async with AsyncExitStack() as ends:
        for worker in (await container.get(Relay), await container.get(Housekeeper)):
            await worker.start()
            ends.push_async_callback(process.in_time, worker.stop)
        await ends.enter_async_context(process.background(topology))
        yield
