"""Where a queue's messages come from: a consumer that is found again whenever it is lost, for whatever reason."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity
from yarl import URL

from adapters.handling import Work
from adapters.rabbitmq.connection import ANSWER_SECONDS, CLOSE_SECONDS, Connection, Upkeep, backoff, conversation
from core.errors import Unavailable
from ports.broker import Delivery, Message, Verdict

log = logging.getLogger(__name__)


class Consumer:
    """The messages of one queue, of which the broker lets ``prefetch`` be unsettled at a time.

    Each has a connection of its own: RabbitMQ ends the connection of whoever consumes a queue that has lost its leader.
    """

    def __init__(self, url: URL, queue: str, *, prefetch: int) -> None:
        self._upkeep = Upkeep(url, f"consumer of {queue}")
        self._queue = queue
        self._prefetch = prefetch
        self._arrived: asyncio.Queue[tuple[AbstractIncomingMessage, asyncio.Event]] = asyncio.Queue()
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

    async def take(self) -> Work:
        """Wait for the next message; one whose channel is lost is passed over, for it comes again on another."""
        while True:
            incoming, lost = await self._arrived.get()
            if not lost.is_set():
                delivery = Delivery(decode(incoming), redelivered=bool(incoming.redelivered))
                return delivery, partial(_settle, incoming, lost)

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
                async with self._consuming(connection) as lost:
                    failures, told = 0, ""
                    log.info("Consuming %s.", self._queue)
                    await lost.wait()
                    log.warning("The consumer of %s was lost.", self._queue)
            except Exception as error:  # whatever it is, nobody else would consume again
                if told != str(error):
                    log.warning("Not consuming %s: %s", self._queue, error)
                failures, told = failures + 1, str(error)
            await asyncio.sleep(backoff(failures))

    @asynccontextmanager
    async def _consuming(self, connection: Connection) -> AsyncIterator[asyncio.Event]:
        """Consume once; yields what is set when that has ended."""
        channel = connection.channel(publisher_confirms=False)
        lost = asyncio.Event()

        async def offer(incoming: AbstractIncomingMessage) -> None:
            self._arrived.put_nowait((incoming, lost))

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
            yield lost
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


async def _settle(incoming: AbstractIncomingMessage, lost: asyncio.Event, verdict: Verdict | None) -> None:
    """Tell the broker, on the channel the message came from; if that fails the channel is given up."""
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
        lost.set()
