"""A queue of the tests' own, bound to all events: what it holds in the end is compared with the outbox, row by row."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from audit import books, select

from core.events import EVENTS_EXCHANGE

CAUGHT_UP_SECONDS = 60
TAP = "tests.tap"


async def tap(broker: str) -> None:
    """Make the queue, in a vhost where everything is declared."""
    async with talking(broker) as channel:
        # A classic queue: a quorum queue that a crash meets within a second of its making may be lost (rule R20).
        queue = await channel.declare_queue(TAP, durable=True)
        await queue.bind(EVENTS_EXCHANGE, "#")


@asynccontextmanager
async def talking(broker: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel to the broker."""
    async with await aio_pika.connect(broker, timeout=30) as connection, connection.channel() as channel:
        yield channel


async def waiting(store: str) -> int:
    """How many events are not published yet."""
    ((row,),) = await select(store, "SELECT count(*) AS events FROM outbox WHERE published_at IS NULL")
    return int(row["events"])


async def everything_published(store: str) -> None:
    """Return when nothing waits in the outbox any more."""
    async with asyncio.timeout(CAUGHT_UP_SECONDS):
        while await waiting(store):
            await asyncio.sleep(0.2)


async def check_stream(broker: str, store: str, *, products: int) -> None:
    """Fail unless the tap holds the outbox's every event, byte for byte, each of so many products' in its order."""
    found = await books(store)
    found.check()
    assert sorted(row["position"] for row in found.outbox) == list(range(1, len(found.outbox) + 1))
    first: dict[str, bytes] = {}
    async with talking(broker) as channel:
        queue = await channel.get_queue(TAP)
        while message := await queue.get(no_ack=True, fail=False):
            assert message.message_id is not None
            assert first.setdefault(message.message_id, message.body) == message.body
    assert first == {row["event_id"]: bytes(row["body"]) for row in found.outbox}
    arrived: dict[str, list[int]] = defaultdict(list)
    for body in map(json.loads, first.values()):
        arrived[body["payload"]["productId"]].append(body["metadata"]["sequence"])
    assert len(arrived) == products
    assert arrived == {id: list(range(1, len(sequences) + 1)) for id, sequences in arrived.items()}
