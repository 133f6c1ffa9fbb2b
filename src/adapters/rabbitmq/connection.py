"""Connections to RabbitMQ that never hang and always come back; what is said over them is ``broker``'s business.

aio-pika's robust connection is left aside: it retries in step with everybody else's, and it cannot be ended while the
broker is silent. Here a task of ours keeps each connection, every conversation with the broker has a deadline, and a
broker that does not answer our goodbye is cut off.
"""

import asyncio
import logging
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import aio_pika
import aiormq.abc
from aio_pika.abc import AbstractChannel, UnderlayConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, InvalidFrameError
from aiormq.channel import Channel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from adapters.rabbitmq.frames import FrameReader
from core.errors import Unavailable
from core.events import SOURCE

CONNECT_SECONDS = 5.0
ATTEMPT_SECONDS = 1.0
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 1.0
BACKOFF_SECONDS = 0.2
BACKOFF_SECONDS_MAX = 5.0
GLANCE_SECONDS = 0.05
NOBODYS_QUEUE = "inventory.nobody"

ALARM = "RabbitMQ takes no messages until its memory or disk alarm is over; give it memory or disk space."

log = logging.getLogger(__name__)


class Connection(aio_pika.Connection):
    """One connection: opened once, cut if need be, with one channel to publish on and others for short visits."""

    _amqp: aiormq.abc.AbstractConnection
    _publisher: Channel | None = None
    _retirement: asyncio.Task[None] | None = None

    def __init__(self, url: URL, purpose: str) -> None:
        super().__init__(url, client_properties={"connection_name": f"{SOURCE} {purpose}"})
        self._dialer = _Dialer()
        self.kwargs["transport_factory"] = self._dialer

    async def open(self) -> None:
        """Connect.

        Raises:
            Unavailable: the broker does not answer, or refuses us.
        """
        what = f"RabbitMQ at {self.url.host}:{self.url.port} cannot be reached"
        async with conversation(what, seconds=CONNECT_SECONDS):
            try:
                await self.connect()
            except InvalidFrameError as error:
                vhost = self.url.path[1:] or "/"
                raise Unavailable(f"{what}: it has no virtual host {vhost} for this user ({error}).") from error
        self._amqp = cast("UnderlayConnection", self.transport).connection

    async def lost(self) -> None:
        """Return when the connection is gone."""
        await asyncio.wait({self._amqp.closing})

    async def end(self) -> None:
        """Say goodbye, and cut the connection if that is not answered in time."""
        goodbye = asyncio.gather(self.close(), return_exceptions=True)
        await asyncio.wait({goodbye}, timeout=CLOSE_SECONDS)
        self._dialer.cut()
        await asyncio.wait({goodbye}, timeout=CLOSE_SECONDS)

    async def blocked(self) -> bool:
        """Whether the broker has said that it reads nothing; it says so at the first publish during an alarm."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await self._amqp.ready()
                return False
        return True

    @asynccontextmanager
    async def visit(self, what: str, *, seconds: float) -> AsyncIterator[AbstractChannel]:
        """A throw-away channel for one ``conversation``.

        Raises:
            Unavailable: there is an alarm, or the conversation failed.
        """
        if await self.blocked():
            raise Unavailable(ALARM)
        async with conversation(what, seconds=seconds), self.channel(publisher_confirms=False) as channel:
            yield channel

    async def probe(self, *, seconds: float) -> None:
        """Return when the broker has answered. It tells of an alarm only to who publishes, hence a message to nobody.

        Raises:
            Unavailable: there is an alarm, or no answer.
        """
        asking = asyncio.create_task(self._ask(seconds))
        try:
            while not asking.done() and not await self.blocked():
                await asyncio.wait({asking}, timeout=GLANCE_SECONDS)
            if await self.blocked():
                raise Unavailable(ALARM)
            await asking
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _ask(self, seconds: float) -> None:
        async with self.visit("RabbitMQ does not answer", seconds=seconds) as channel:
            # By the exchange that has every queue under its name. Where it is not ours to use the channel is closed for
            # that, which is an answer too.
            await channel.default_exchange.publish(aio_pika.Message(b""), NOBODYS_QUEUE, mandatory=False)

    async def publisher(self, *, seconds: float) -> Channel:
        """Return the channel to publish on. A retired one has ended before: its messages arrived by now or never will.

        Raises:
            Unavailable: there is an alarm, or no answer, which ends the connection.
        """
        await self.settle()
        if await self.blocked():
            raise Unavailable(ALARM)
        if self._publisher is None or self._publisher.is_closed:
            async with self._decisive("There is no channel to publish on", seconds=seconds):
                channel = await self._amqp.channel(publisher_confirms=True, on_return_raises=True)
                self._publisher = cast("Channel", channel)
        return self._publisher

    def retire_publisher(self) -> None:
        """Publish no more on the present channel, of which some messages may still be under way."""
        if self._publisher is not None:
            self._retirement = asyncio.create_task(self._retire(self._publisher))
            self._publisher = None

    async def settle(self) -> None:
        """Wait until a retired channel has ended, unless there is an alarm: our goodbye will be read after it."""
        if self._retirement is not None and not await self.blocked():
            await asyncio.wait({self._retirement}, timeout=2 * CLOSE_SECONDS)

    async def _retire(self, channel: Channel) -> None:
        unblocked = asyncio.ensure_future(self._amqp.ready())
        await asyncio.wait({unblocked, self._amqp.closing}, return_when=asyncio.FIRST_COMPLETED)
        unblocked.cancel()
        with suppress(Unavailable):
            async with self._decisive("The channel did not close", seconds=CLOSE_SECONDS):
                await channel.close()

    @asynccontextmanager
    async def _decisive(self, what: str, *, seconds: float) -> AsyncIterator[None]:
        """A conversation on which the connection depends: if it fails, it is cut, and a new one made."""
        try:
            async with conversation(what, seconds=seconds):
                yield
        except Unavailable:
            self._dialer.cut()
            raise


class Upkeep:
    """Keeps one connection: opens it in the background, and again for as long as it takes whenever it is lost."""

    def __init__(self, url: URL, purpose: str) -> None:
        self._url = url
        self._purpose = purpose
        self._connection: Connection | None = None
        self._trouble = f"RabbitMQ at {url.host}:{url.port} has not answered yet."
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless that has happened."""
        self._task = self._task or asyncio.create_task(self._keep())

    async def connection(self) -> Connection:
        """Return the open connection; if the first attempt at one is under way, wait a moment for it.

        Raises:
            Unavailable: there is none.
        """
        self.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await self._attempted.wait()
        if self._connection is None:
            raise Unavailable(self._trouble)
        return self._connection

    async def end(self) -> None:
        """Close the connection and keep it no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _keep(self) -> None:
        failures = 0
        while True:
            connection = Connection(self._url, self._purpose)
            try:
                await connection.open()
                failures, self._connection = 0, connection
                self._attempted.set()
                log.info("Connected to RabbitMQ as %s.", self._purpose)
                await connection.lost()
                self._attempted.clear()
                self._trouble = f"The connection to RabbitMQ at {self._url.host}:{self._url.port} was lost."
                log.warning("The connection to RabbitMQ as %s was lost.", self._purpose)
            except Exception as error:  # whatever it is, nobody else would connect again
                if not failures:
                    log.warning("No connection to RabbitMQ as %s: %s", self._purpose, error)
                failures, self._trouble = failures + 1, str(error)
                self._attempted.set()
            finally:
                self._connection = None
                await connection.end()
            await asyncio.sleep(backoff(failures))


@asynccontextmanager
async def conversation(what: str, *, seconds: float) -> AsyncIterator[None]:
    """Bound a talk with the broker; if it fails, it fails as Unavailable with a sentence that begins with ``what``.

    When aiormq gives up a silent connection it ends those who wait with CancelledError, which is a cancellation of ours
    only when our task has been asked to end; when the broker hangs up in the middle, with a bare Exception. And where a
    channel closes at the moment we are asked to end, it puts its own error in the place of our cancellation.
    """
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    asked = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            yield
    except (Exception, asyncio.CancelledError) as error:
        if task.cancelling() > asked:
            raise asyncio.CancelledError from error
        if isinstance(error, asyncio.CancelledError):
            raise Unavailable(f"{what}: the connection was lost.") from error
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{what}: no answer in {seconds:g} s.") from error
        if not isinstance(error, CONNECTION_EXCEPTIONS) and type(error) is not Exception:
            raise
        raise Unavailable(f"{what}: {str(error).rstrip('.') or 'the connection was lost'}.") from error


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, less up to a half so that nobody is in step."""
    longest: float = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1)


class _Dialer(TransportFactory):
    """Opens the socket as aiormq does, and keeps hold of it."""

    _writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self._writer = await factory.create(url, **options)
        return cast("asyncio.StreamReader", FrameReader(reader)), self._writer

    def cut(self) -> None:
        """Reset the connection: the system must not deliver later what we have reported as failed."""
        if self._writer is not None and not self._writer.is_closing():
            at_once = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self._writer.transport.abort()
