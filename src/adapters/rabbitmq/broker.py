"""RabbitMQ behind ``amqp://`` and ``amqps://``.

Beside aio-pika's own parameters the URL takes ``publish_timeout``, the seconds one ``publish`` may last (10).
Timestamps travel in whole seconds.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any

from aio_pika.abc import AbstractIncomingMessage
from aio_pika.connection import make_url
from aio_pika.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity, ChannelPreconditionFailed, PublishError
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader
from yarl import URL

from adapters.handling import handling
from adapters.rabbitmq.connection import (
    ALARM,
    ANSWER_SECONDS,
    CLOSE_SECONDS,
    GLANCE_SECONDS,
    Connection,
    Upkeep,
    backoff,
    conversation,
)
from adapters.rabbitmq.consumer import Consumer, decode
from core.errors import Conflict, Unavailable, ValidationFailed
from core.events import BINDINGS, DEAD_LETTERS, EXCHANGES, PRODUCT_QUEUE, SOURCE
from ports.broker import Broker, Handler, Message, Receipt

ARGUMENTS: dict[str, dict[str, Any]] = {
    PRODUCT_QUEUE: {"x-queue-type": "quorum", "x-dead-letter-exchange": DEAD_LETTERS},
    DEAD_LETTERS: {"x-queue-type": "quorum"},
}

SHORT_TEXT_BYTES = 255
TAP_LIMIT = 10_000
WRITE_BYTES = 32_768
HEARTBEAT_SECONDS = 10
DECLARE_SECONDS = 20.0
SETTLE_SECONDS = 2.5
LEADER_SECONDS = 10.0
PING_SECONDS = 1.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator[Broker]:
    """Open the broker at ``url``, which may be away now or at any later time. Leaving takes at most 2 seconds.

    Raises:
        ValidationFailed: the URL's ``publish_timeout`` is not a number of seconds.
    """
    broker = RabbitBroker(url)
    broker.publishing.start()
    try:
        yield broker
    finally:
        await asyncio.gather(broker.publishing.end(), broker.listening.end())


class RabbitBroker:
    """One connection publishes, another listens: neither an alarm nor a slow tap may stop the other direction."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        if "heartbeat" not in self._url.query:
            self._url = self._url.update_query(heartbeat=HEARTBEAT_SECONDS)
        self._publish_seconds = _publish_seconds(self._url)
        self.publishing = Upkeep(self._url, "publisher")
        self.listening = Upkeep(self._url, "listener")
        self._turn = asyncio.Lock()

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """See the port. A message that AMQP cannot carry is FAILED, and with it those behind it."""
        if len({message.id for message in messages}) < len(messages):
            raise ValueError("Two messages of one publish have the same id; the broker's answers are told apart by it.")
        async with self._turn:
            connection = await self.publishing.connection()
            channel = await connection.publisher(seconds=self._publish_seconds)
            confirmations: list[asyncio.Future[Any]] = []
            delivery = asyncio.create_task(_deliver(channel, messages, confirmations))
            try:
                await self._watch(delivery, connection, channel)
            finally:
                delivery.cancel()
                receipts = [_receipt(confirmation) for confirmation in confirmations]
                receipts += [Receipt.FAILED] * (len(messages) - len(receipts))
                if Receipt.FAILED in receipts:
                    connection.retire_publisher()
            if failures := receipts.count(Receipt.FAILED):
                reason = ALARM if await connection.blocked() else _reason(confirmations)
                log.warning("%d of %d messages failed: %s", failures, len(messages), reason)
                await connection.settle()
            return receipts

    async def _watch(self, delivery: asyncio.Task[None], connection: Connection, channel: Channel) -> None:
        """Wait for the delivery until its time is over, the channel is gone, or the broker stops reading."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._publish_seconds
        while not (delivery.done() or clock() > deadline or channel.is_closed or await connection.blocked()):
            await asyncio.wait({delivery}, timeout=GLANCE_SECONDS)

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[Message]]:
        """See the port. After a lost connection the tap goes on; what was published in between is missed."""
        inbox = _Inbox(TAP_LIMIT)
        tapped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tapping = asyncio.create_task(self._keep_tapping(exchange, pattern, inbox, tapped))
        try:
            await tapped
            yield inbox
        finally:
            tapping.cancel()
            await asyncio.wait({tapping})

    async def _keep_tapping(self, exchange: str, pattern: str, inbox: "_Inbox", tapped: asyncio.Future[None]) -> None:
        failures = 0
        while True:
            try:
                async with self._tap(exchange, pattern, inbox) as lost:
                    failures = 0
                    if not tapped.done():
                        tapped.set_result(None)
                    await lost
            except Exception as error:  # whatever it is, the listener must hear of it or the tap go on
                failures += 1
                if not tapped.done():
                    tapped.set_exception(error)
                    return
            await asyncio.sleep(backoff(failures))

    @asynccontextmanager
    async def _tap(self, exchange: str, pattern: str, inbox: "_Inbox") -> AsyncIterator[Awaitable[object]]:
        """Tap once; yields what ends when the tap is lost."""
        connection = await self.listening.connection()
        channel = connection.channel(publisher_confirms=False)
        try:
            async with conversation("The tap could not be opened", seconds=ANSWER_SECONDS):
                await channel.initialize()
                queue = await channel.declare_queue(exclusive=True, auto_delete=True)
                try:
                    await queue.bind(exchange, pattern)
                except ChannelNotFoundEntity as error:
                    detail = f"The broker has no exchange {exchange}; run `inventory migrate` to create it."
                    raise Unavailable(detail) from error
                await queue.consume(inbox.offer, no_ack=True)
            yield channel.closed()
        finally:
            with suppress(Unavailable):
                async with conversation("The tap could not be closed", seconds=CLOSE_SECONDS):
                    await channel.close()

    @asynccontextmanager
    async def consume(self, queue: str, handle: Handler, *, prefetch: int = 64) -> AsyncIterator[None]:
        """See the port. A queue that is missing is waited for, and the log says so."""
        consumer = Consumer(self._url, queue, prefetch=prefetch)
        async with consumer.running(), handling(queue, consumer.take, handle, at_once=prefetch):
            try:
                yield
            finally:
                await consumer.stop()

    async def declare(self) -> None:
        """See the port. It has a connection of its own, which a queue without a leader may cost."""
        connection = Connection(self._url, "topology")
        try:
            await connection.open()
            created = [name for name in BINDINGS if not await _has(connection, "queue", name)]
            await _declare(connection)
            if created:
                # The broker writes down every half second which quorum queues it has. One that it had not written down
                # when it crashed comes back empty, and without a leader for ever.
                await asyncio.sleep(SETTLE_SECONDS)
            for name in BINDINGS:
                await _find_leader(connection, name)
        finally:
            await connection.end()

    async def check(self) -> list[str]:
        """See the port."""
        connection = await self.publishing.connection()
        wanted = [("exchange", name) for name in EXCHANGES] + [("queue", name) for name in BINDINGS]
        return [f"{kind} {name}" for kind, name in wanted if not await _has(connection, kind, name)]

    async def ping(self) -> None:
        """See the port. During an alarm the broker does not count as answering, for nothing can be published."""
        async with conversation("RabbitMQ does not answer", seconds=PING_SECONDS):
            connection = await self.publishing.connection()
            await connection.probe(seconds=PING_SECONDS)


class _Inbox(asyncio.Queue[Message]):
    """What a tap has brought and nobody has taken yet."""

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self.get()

    async def offer(self, incoming: AbstractIncomingMessage) -> None:
        with suppress(asyncio.QueueFull):
            self.put_nowait(decode(incoming))


async def _has(connection: Connection, kind: str, name: str) -> bool:
    async with connection.visit(f"The broker was asked for {kind} {name}", seconds=ANSWER_SECONDS) as channel:
        declare = channel.declare_exchange if kind == "exchange" else channel.declare_queue
        try:
            await declare(name, passive=True)
        except ChannelNotFoundEntity:
            return False
    return True


async def _declare(connection: Connection) -> None:
    async with connection.visit("The exchanges and queues were not created", seconds=DECLARE_SECONDS) as channel:
        for name in EXCHANGES:
            with _agreement(f"exchange {name}"):
                await channel.declare_exchange(name, "topic", durable=True)
        for name, (exchange, patterns) in BINDINGS.items():
            with _agreement(f"queue {name}"):
                queue = await channel.declare_queue(name, durable=True, arguments=ARGUMENTS[name])
            for pattern in patterns:
                await queue.bind(exchange, pattern)


@contextmanager
def _agreement(thing: str) -> Iterator[None]:
    try:
        yield
    except ChannelPreconditionFailed as error:
        remedy = "When nobody needs what it holds any more, delete it and run `inventory migrate` again."
        raise Conflict(f"The broker has the {thing} with other settings: {error}. {remedy}") from error


async def _find_leader(connection: Connection, name: str) -> None:
    """Return when the leader of a quorum queue has answered; a declaration succeeds and counts 0 without one."""
    what = f"The queue {name} has no leader; if that lasts, delete it and run `inventory migrate` again"
    async with connection.visit(what, seconds=LEADER_SECONDS) as channel:
        queue = await channel.declare_queue(name, passive=True)
        counts = queue.declaration_result
        if not counts.message_count and not counts.consumer_count:
            await queue.get(fail=False, timeout=LEADER_SECONDS)  # what has just come returns when the channel ends


async def _deliver(channel: Channel, messages: Sequence[Message], confirmations: list[asyncio.Future[Any]]) -> None:
    """Write the messages in order, put the future of each one's confirmation into the list, and wait for them all.

    It does in bulk what aiormq's ``basic_publish`` does with a task, a timeout and two futures per message, and takes a
    third of the time.
    """
    channel.message_id_delivery_tag.clear()
    with suppress(ChannelInvalidStateError):  # it has just closed, and nothing more will be confirmed
        async with channel.lock:
            payload = bytearray()
            for message in messages:
                try:
                    payload += _encode(message, channel)
                except (ValueError, TypeError, struct.error, PAMQPException) as error:
                    log.error("Message %s cannot be carried by AMQP: %s", message.id, error)
                    break
                channel.delivery_tag += 1
                confirmation = channel.create_future()
                channel.confirmations[channel.delivery_tag] = confirmation
                channel.message_id_delivery_tag[message.id] = channel.delivery_tag
                confirmations.append(confirmation)
                if len(payload) >= WRITE_BYTES:
                    await _write(channel, payload)
                    payload.clear()
            await _write(channel, payload)
    if confirmations:
        await asyncio.wait(confirmations)


async def _write(channel: Channel, payload: bytearray) -> None:
    await channel.write_queue.put(ChannelFrame(payload=bytes(payload), should_close=False))
    await asyncio.sleep(0)  # so that it leaves while the next are encoded


def _encode(message: Message, channel: Channel) -> bytes:
    properties = Basic.Properties(
        message_id=message.id,
        message_type=message.type or None,
        # AMQP carries 255 bytes; a longer one is in the body all the same.
        correlation_id=message.correlation_id if 0 < len(message.correlation_id.encode()) <= SHORT_TEXT_BYTES else None,
        timestamp=message.timestamp,
        priority=message.priority,
        headers=dict(message.headers) or None,
        app_id=SOURCE,
        content_type="application/json",
        delivery_mode=2,
    )
    header = ContentHeader(properties=properties, body_size=len(message.body))
    size = channel.max_content_size
    body = [ContentBody(message.body[start : start + size]) for start in range(0, len(message.body), size)]
    method = _publish(channel.number, message.exchange, message.routing_key)
    return method + ChannelFrame.marshall(channel.number, [header, *body]).payload


@lru_cache(maxsize=256)
def _publish(channel: int, exchange: str, routing_key: str) -> bytes:
    """Encode what is the same for every event of a kind."""
    publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    return ChannelFrame.marshall(channel, [publish]).payload


def _receipt(confirmation: asyncio.Future[Any]) -> Receipt:
    if not confirmation.done() or confirmation.cancelled():
        return Receipt.FAILED
    match confirmation.exception():
        case None:
            return Receipt.CONFIRMED
        case PublishError():
            return Receipt.UNROUTABLE
        case _:
            return Receipt.FAILED


def _reason(confirmations: list[asyncio.Future[Any]]) -> str:
    """Why the first that failed did so."""
    failed = (each for each in confirmations if each.done() and _receipt(each) is Receipt.FAILED)
    return next((repr(each.exception()) for each in failed), "no answer in time")


def _publish_seconds(url: URL) -> float:
    text = url.query.get("publish_timeout", "10")
    with suppress(ValueError):
        if 0 < float(text) <= 3600:
            return float(text)
    raise ValidationFailed(f"The broker URL's publish_timeout is {text}; give a number of seconds up to 3600.")
