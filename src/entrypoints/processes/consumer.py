"""``inventory consumer``: what nobody waits for, in a process of its own.

The outbox relay, product events and the dead letters among them, product checks that are owed, imports, housekeeping.
"""

import asyncio
from contextlib import AsyncExitStack

from entrypoints.config import Config
from entrypoints.processes import process
from entrypoints.processes.loops import relaying, start_writing
from entrypoints.wiring import make_container


def run(config: Config) -> None:
    """Relay and consume until told to stop. Neither the broker nor the store needs to be there."""
    process.announce(config, "consumer")
    container = make_container(config)

    async def main(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as ends:
            ends.push_async_callback(process.in_time, container.close)
            await start_writing(container, ends)
            await ends.enter_async_context(relaying(container, stop, prepares=False))
            process.ready()
            await stop.wait()

    process.run(main)
