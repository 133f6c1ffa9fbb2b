"""Where a queue's messages come from: a consumer that is found again whenever it is lost, for whatever reason.

A broker tells when a queue is deleted or a channel ends, and has been seen to forget a consumer without a word, which
then waits for ever on a connection in good health. So it is asked, every ``WATCH_SECONDS``.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple

from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity
from yarl import URL

from adapters.handling import Handed
from adapters.rabbitmq.connection import ANSWER_SECONDS, CLOSE_SECONDS, Connection, Upkeep, backoff, conversation
from core.errors import Unavailable
from ports.broker import Delivery, Message, Verdict

WATCH_SECONDS = 10.0

log = logging.getLogger(__name__)


class _Subscription:
    """One time of consuming: what it has brought, and whether it is over."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.arrived = 0
        self.unsettled = 0


class _Glimpse(NamedTuple):
    """What the broker says of the queue, beside what we know: how many came so far, and whether more might."""

    consumers: int = 0
    waiting: int = 0
    arrived: int = 0
    room: bool = False


class Consumer:
    """The messages of one queue, of which the broker lets ``prefetch`` be unsettled at a time.

    Each has a connection of its own: RabbitMQ ends the connection of whoever consumes a queue that has lost its leader.
    """

    def __init__(self, url: URL, queue: str, *, prefetch: int) -> None:
        self._upkeep = Upkeep(url, f"consumer of {queue}")
        self._queue = queue
        self._prefetch = prefetch
        self._arrived: asyncio.Queue[tuple[AbstractIncomingMessage, _Subscription]] = asyncio.Queue()
        self._cancel: Callable[[], Awaitable[object]] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Consume while the block runs. What is not settled when it is left goes back to the queue."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            try:
                await asyncio.wait({keeping})
            finally:
                await self._upkeep.end()

    async def take(self) -> Handed:
        """Wait for the next message; one whose channel is lost is passed over, for it comes again on another."""
        while True:
            incoming, subscription = await self._arrived.get()
            if not subscription.lost.is_set():
                delivery = Delivery(decode(incoming), redelivered=bool(incoming.redelivered))
                return delivery, partial(_settle, incoming, subscription)

    async def stop(self) -> None:
        """Let no more messages come; those that did can still be settled."""
        if self._cancel is not None:
            with suppress(Unavailable):
                async with conversation("The consumer was not cancelled", seconds=CLOSE_SECONDS):
                    await self._cancel()

    async def _keep(self) -> None:
        failures, told = 0, ""
        while True:
            try:
                connection = await self._upkeep.connection()
            except Unavailable:  # which has been logged, and is worked on
                await asyncio.sleep(backoff(0))
                continue
            try:
                async with self._consuming(connection) as subscription:
                    failures, told = 0, ""
                    log.info("Consuming %s.", self._queue)
                    await self._watch(connection, subscription)
                    log.warning("The consumer of %s was lost.", self._queue)
            except Exception as error:  # whatever it is, nobody else would consume again
                if told != str(error):
                    log.warning("Not consuming %s: %s", self._queue, error)
                failures, told = failures + 1, str(error)
            await asyncio.sleep(backoff(failures))

    async def _watch(self, connection: Connection, subscription: _Subscription) -> None:
        """Return when the subscription is lost: because it is told so, or because the broker has forgotten it."""
        before = _Glimpse()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS * random.uniform(0.75, 1.25)):
                    await subscription.lost.wait()
                    return
            now = await self._glimpse(connection, subscription)
            if not now.consumers:
                log.warning("The broker has forgotten who consumes %s.", self._queue)
                return
            if before.waiting and now.waiting and now.arrived == before.arrived and now.room:
                log.warning("The broker gives out nothing of %s, though %d messages wait.", self._queue, now.waiting)
                return
            before = now

    async def _glimpse(self, connection: Connection, subscription: _Subscription) -> "_Glimpse":
        what = f"The broker was asked about queue {self._queue}"
        async with connection.visit(what, seconds=ANSWER_SECONDS) as channel:
            counts = (await channel.declare_queue(self._queue, passive=True)).declaration_result
        return _Glimpse(
            consumers=counts.consumer_count or 0,
            waiting=counts.message_count or 0,
            arrived=subscription.arrived,
            room=subscription.unsettled < self._prefetch,
        )

    @asynccontextmanager
    async def _consuming(self, connection: Connection) -> AsyncIterator[_Subscription]:
        """Consume once."""
        channel = connection.channel(publisher_confirms=False)
        subscription = _Subscription()
        lost = subscription.lost

        async def offer(incoming: AbstractIncomingMessage) -> None:
            subscription.arrived += 1
            subscription.unsettled += 1
            self._arrived.put_nowait((incoming, subscription))

        try:
            async with conversation("The broker did not agree", seconds=ANSWER_SECONDS):
                await channel.initialize()
                await channel.set_qos(prefetch_count=self._prefetch)
                underlay = await channel.get_underlay_channel()
                underlay.closing.add_done_callback(lambda _: lost.set())
                underlay.on_consumer_cancel_callbacks.add(lambda _: lost.set())
                queue = await channel.get_queue(self._queue, ensure=False)
                try:
                    tag = await queue.consume(offer)
                except ChannelNotFoundEntity as error:
                    detail = f"The broker has no queue {self._queue}; run `inventory migrate` to create it."
                    raise Unavailable(detail) from error
            self._cancel = partial(queue.cancel, tag)
            yield subscription
        finally:
            self._cancel = None
            lost.set()
            with suppress(Unavailable):
                async with conversation("The consumer could not be closed", seconds=CLOSE_SECONDS):
                    await channel.close()


def decode(incoming: AbstractIncomingMessage) -> Message:
    """Return what has come over the wire as the port knows it."""
    return Message(
        id=incoming.message_id or "",
        exchange=incoming.exchange or "",
        routing_key=incoming.routing_key or "",
        body=incoming.body,
        type=incoming.type or "",
        correlation_id=incoming.correlation_id or "",
        timestamp=incoming.timestamp,
        priority=incoming.priority or 0,
        headers={name: str(value) for name, value in incoming.headers.items()},
    )


async def _settle(incoming: AbstractIncomingMessage, subscription: _Subscription, verdict: Verdict | None) -> None:
    """Tell the broker, on the channel the message came from; if that fails the channel is given up."""
    subscription.unsettled -= 1
    try:
        async with conversation("The broker was not told", seconds=ANSWER_SECONDS):
            match verdict:
                case Verdict.DONE:
                    await incoming.ack()
                case Verdict.DEAD:
                    await incoming.reject(requeue=False)
                case _:
                    await incoming.nack(requeue=True)
    except Unavailable:
        subscription.lost.set()
