"""A subscriber: ``python subscriber.py URL`` notes when each event arrives, until its standard input closes.

It says ``ready`` and in the end prints, for each StockLevelChanged, the milliseconds from the instant in the event to
its arrival. That instant is read under the product's lock, before the commit: the commit itself is in the figure.
"""

import asyncio
import json
import os
import sys
import time
from datetime import datetime

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from core.events import EVENTS_EXCHANGE


async def main(url: str) -> None:
    arrived: list[tuple[float, bytes]] = []

    async def note(message: AbstractIncomingMessage) -> None:
        arrived.append((time.time(), message.body))

    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, lambda: os.read(0, 64) or closed.set())
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(EVENTS_EXCHANGE, "inventory.stocklevelchanged.inventoryitem")
        await queue.consume(note, no_ack=True)
        print("ready", flush=True)
        await closed.wait()
    delays = [(at - datetime.fromisoformat(json.loads(body)["timestamp"]).timestamp()) * 1000 for at, body in arrived]
    print(json.dumps(delays))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
