"""RabbitMQ behind ``amqp://`` and ``amqps://``.

aio-pika's robust connection is left aside: it retries in step with everybody else's and cannot be ended while the broker
is silent. Here a task of ours keeps each connection, every conversation with the broker has a deadline, and a broker
that does not answer our goodbye is cut off.

Beside aio-pika's own parameters the URL takes ``publish_timeout``, the seconds one ``publish`` may last (10). Timestamps
travel in whole seconds.
"""

import asyncio
import logging
import random
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any, cast

import aio_pika
import pamqp.exceptions
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity, ChannelPreconditionFailed, PublishError
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from yarl import URL

from core.errors import Conflict, Unavailable, ValidationFailed
from core.events import DEAD_LETTERS, EVENTS_EXCHANGE, PRODUCT_EXCHANGE, PRODUCT_QUEUE, SOURCE
from ports.broker import Broker, Message, Receipt

EXCHANGES = (EVENTS_EXCHANGE, PRODUCT_EXCHANGE, DEAD_LETTERS)
PRODUCT_KEYS = ("product.productcreated.product", "product.productupdated.product", "product.productdeleted.product")
BINDINGS = {PRODUCT_QUEUE: (PRODUCT_EXCHANGE, PRODUCT_KEYS), DEAD_LETTERS: (DEAD_LETTERS, ("#",))}
ARGUMENTS = {
    PRODUCT_QUEUE: {"x-queue-type": "quorum", "x-dead-letter-exchange": DEAD_LETTERS},
    DEAD_LETTERS: {"x-queue-type": "quorum"},
}

TAP_LIMIT = 10_000
WRITE_BYTES = 32_768
HEARTBEAT_SECONDS = 10
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
DECLARE_SECONDS = 20.0
LEADER_SECONDS = 10.0
SETTLE_SECONDS = 2.5
ATTEMPT_SECONDS = 1.0
PING_SECONDS = 1.0
CLOSE_SECONDS = 1.0
GLANCE_SECONDS = 0.05

ALARM = "RabbitMQ takes no messages until its memory or disk alarm is over; give it memory or disk space."

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
    """One connection publishes and another listens, for an alarm or a slow tap must not stop the other direction."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        if "heartbeat" not in self._url.query:
            self._url = self._url.update_query(heartbeat=HEARTBEAT_SECONDS)
        self._publish_seconds = _publish_seconds(self._url)
        self.publishing = _Upkeep(self._url, "publisher")
        self.listening = _Upkeep(self._url, "listener")
        self._turn = asyncio.Lock()

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """See the port. A message that AMQP cannot carry is FAILED, as are those behind it."""
        if len({message.id for message in messages}) < len(messages):
            raise ValueError("Two messages of one publish have the same id; the broker's answers tell them by it.")
        async with self._turn:
            connection = await self.publishing.connection()
            channel = await connection.publisher()
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
            if (failed := receipts.count(Receipt.FAILED)) > 0:
                log.warning("RabbitMQ did not confirm %d of %d messages: %s", failed, len(messages), "?")
                await connection.settle()
            return receipts

    async def _watch(self, delivery: asyncio.Task[None], connection: "_Connection", channel: Channel) -> None:
        """Wait for the delivery until its time is over, the channel is gone, or the broker stops reading."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._publish_seconds
        while not (delivery.done() or clock() > deadline or channel.is_closed or await connection.blocked()):
            await asyncio.wait({delivery}, timeout=GLANCE_SECONDS)
