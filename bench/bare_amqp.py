"""The least that events could cost: aio-pika as its documentation shows it, in a process of its own.

``publish URL EXCHANGE ROUTING_KEY COUNT SIZE``: persistent messages with confirms, 500 on their way at a time.
``consume URL DATABASE QUEUE COUNT CONNECTIONS``: one INSERT a message, committed by itself, then the acknowledgement.
``fill URL FIRST COUNT``: product events of new products for the service and, as many, for ``consume``; not measured.
Each prints one JSON document.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from functools import partial

import aio_pika
import asyncpg
import uvloop
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from core.events import PRODUCT_EXCHANGE

WINDOW = 500
PREFETCH = 64
CONSUMED_QUEUE = "bare.product-events"
_KEY = "product.productcreated.product"


async def publish(url: str, exchange: str, routing_key: str, count: str, size: str) -> dict[str, float]:
    """Return the rate of confirmed messages of ``size`` bytes (messages/s)."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        to = await channel.get_exchange(exchange)
        body = b"x" * int(size)
        await _publish(to, routing_key, [body] * WINDOW)
        began = time.perf_counter()
        await _publish(to, routing_key, [body] * int(count))
        return {"rate": int(count) / (time.perf_counter() - began)}


async def consume(url: str, database: str, queue: str, count: str, connections: str) -> dict[str, float]:
    """Return the rate at which ``count`` waiting messages became rows (messages/s)."""
    size = int(connections)
    async with (
        await aio_pika.connect(url) as connection,
        asyncpg.create_pool(database, min_size=size, max_size=size) as pool,
    ):
        await pool.execute("CREATE TABLE IF NOT EXISTS bare_inbox (id text PRIMARY KEY, body bytea NOT NULL)")
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        source = await channel.get_queue(queue)
        left, ended = int(count), asyncio.Event()

        async def handle(message: AbstractIncomingMessage) -> None:
            nonlocal left
            await pool.execute("INSERT INTO bare_inbox VALUES ($1, $2)", message.message_id, message.body)
            await message.ack()
            left -= 1
            if not left:
                ended.set()

        began = time.perf_counter()
        await source.consume(handle)
        await ended.wait()
        return {"rate": int(count) / (time.perf_counter() - began)}


async def fill(url: str, first: str, count: str) -> dict[str, int]:
    """Put ProductCreated of ``count`` new products, numbered from ``first``, into both queues."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(CONSUMED_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        exchange = await channel.get_exchange(PRODUCT_EXCHANGE)
        await queue.bind(exchange, _KEY)
        numbers = range(int(first), int(first) + int(count))
        await _publish(exchange, _KEY, [_created(number) for number in numbers], ids=[f"new-{n}" for n in numbers])
        return {"filled": len(numbers)}


async def _publish(to: AbstractExchange, key: str, bodies: list[bytes], ids: list[str] | None = None) -> None:
    for start in range(0, len(bodies), WINDOW):
        await asyncio.gather(
            *(
                to.publish(
                    aio_pika.Message(
                        body,
                        message_id=ids[place] if ids else None,
                        content_type="application/json",
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    ),
                    key,
                )
                for place, body in enumerate(bodies[start : start + WINDOW], start)
            )
        )


def _created(number: int) -> bytes:
    event = {
        "eventId": f"new-{number}",
        "eventType": "ProductCreated",
        "eventVersion": "1.0.0",
        "aggregateId": f"new_{number}",
        "aggregateType": "Product",
        "timestamp": datetime.now(UTC).isoformat(),
        "metadata": {"correlationId": f"corr-{number}", "source": "product-service"},
        "payload": {"productId": f"new_{number}", "sku": f"NEW-{number}", "name": f"Product {number}"},
    }
    return json.dumps(event).encode()


if __name__ == "__main__":
    what = {"publish": publish, "consume": consume, "fill": fill}[sys.argv[1]]
    print(json.dumps(uvloop.run(partial(what, *sys.argv[2:])())))
