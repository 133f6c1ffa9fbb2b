"""The message broker: where events go out, and where others' events come in."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import Enum
from typing import Protocol

from msgspec import Struct


class Message(Struct, frozen=True, kw_only=True):
    """One message as a broker carries it; ``id`` is the eventId and ``body`` the exact bytes of the event.

    ``priority`` (0 to 9) is advisory: no adapter may reorder by it within one routing key.
    """

    id: str
    exchange: str
    routing_key: str
    body: bytes
    type: str = ""
    correlation_id: str = ""
    timestamp: datetime | None = None
    priority: int = 0
    headers: dict[str, str] = {}


class Receipt(Enum):
    """What became of one published message."""

    CONFIRMED = "confirmed"
    """The broker has it, in at least one queue."""
    UNROUTABLE = "unroutable"
    """The broker took it and no queue is bound for it; it is gone."""
    FAILED = "failed"
    """It was refused, or nothing is known of it; it may yet have arrived. Publish it again."""


class Verdict(Enum):
    """What a handler says of a message it was given."""

    DONE = "done"
    """It is dealt with and can be forgotten."""
    DEAD = "dead"
    """It can never be dealt with here: to the queue ``inventory.dead-letters``."""


class Delivery(Struct, frozen=True):
    """A message from a queue; ``redelivered`` when somebody may have had it before."""

    message: Message
    redelivered: bool


Handler = Callable[[Delivery], Awaitable[Verdict]]


class Broker(Protocol):
    """A topic broker. Safe to use from many tasks of one event loop."""

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """Send ``messages`` in order, pipelined, and return a receipt for each, in the same order.

        Messages arrive in the order given. After the first FAILED one the rest may be FAILED without having been sent.
        A message that outlives its receipt never overtakes a later ``publish``: the channel it went through is closed
        before this returns. Ids must differ within one call.

        Raises:
            Unavailable: there is no connection; nothing was sent.
        """
        ...

    def listen(self, exchange: str, pattern: str) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Tap ``exchange``: every message whose routing key matches ``pattern`` from now on, until the block is left.

        ``pattern`` is AMQP's: words between dots, ``*`` for one word, ``#`` for any number. A tap is for watching, not
        for work: what arrives while nobody listens is not kept, and what a slow listener does not take is dropped at
        10,000 waiting messages.

        Raises:
            Unavailable: there is no connection.
        """
        ...

    def consume(self, queue: str, handle: Handler, *, prefetch: int = 64) -> AbstractAsyncContextManager[None]:
        """Give ``handle`` the messages of ``queue`` while the block runs, up to ``prefetch`` of them at once.

        At least once: a message is forgotten when its handler has returned, not before. One whose handler raised, was
        cancelled or lost its connection comes again, after a pause. A lost connection is found again without an end;
        handlers that are running then go on to their end. Leaving gives running handlers 5 seconds, then cancels them.
        Entering does not wait for a connection.
        """
        ...

    async def declare(self) -> None:
        """Create the exchanges and queues of rule R20 where they are missing, and wait until they can be trusted.

        Idempotent. Returns once every quorum queue has a leader.

        Raises:
            Unavailable: there is no connection, or a queue has no leader in time.
            Conflict: something of that name exists with other arguments; the detail names it and the remedy.
        """
        ...

    async def check(self) -> list[str]:
        """Name the exchanges and queues of rule R20 that are missing; empty when all are there.

        Raises:
            Unavailable: there is no connection.
        """
        ...

    async def ping(self) -> None:
        """Return when the broker answers within a second.

        Raises:
            Unavailable: it does not.
        """
        ...
