"""Everything in this process: the broker behind ``memory://``, for the embedded mode and for tests.

It routes as RabbitMQ does, so that what works here works there. Nothing outlives the process.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache

from core.errors import Unavailable
from core.events import BINDINGS, EXCHANGES
from ports.broker import Broker, Message, Receipt

TAP_LIMIT = 10_000
QUEUE_LIMIT = 100_000


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator[Broker]:
    """Open a broker of its own: two openings of ``memory://`` share nothing, and the URL has no options."""
    yield MemoryBroker()


class MemoryBroker:
    """Topic exchanges, each a list of the queues and taps bound to it."""

    def __init__(self) -> None:
        self._exchanges: dict[str, list[_Queue]] = {}
        self._queues: dict[str, _Queue] = {}

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """See the port. An exchange that is not there and a full queue refuse the message and the rest."""
        if len({message.id for message in messages}) < len(messages):
            raise ValueError("Two messages of one publish have the same id.")
        receipts = [Receipt.FAILED] * len(messages)
        for place, message in enumerate(messages):
            receipts[place] = self._route(message)
            if receipts[place] is Receipt.FAILED:
                break
        await asyncio.sleep(0)  # a relay with much to publish must let the listeners run
        return receipts

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[Message]]:
        """See the port."""
        bound = self._exchanges.get(exchange)
        if bound is None:
            raise Unavailable(f"The broker has no exchange {exchange}; run `inventory migrate` to create it.")
        tap = _Queue(pattern, limit=TAP_LIMIT, drops=True)
        bound.append(tap)
        try:
            yield tap
        finally:
            bound.remove(tap)

    async def declare(self) -> None:
        """See the port."""
        for exchange in EXCHANGES:
            self._exchanges.setdefault(exchange, [])
        for name in BINDINGS.keys() - self._queues.keys():
            exchange, patterns = BINDINGS[name]
            self._queues[name] = _Queue(*patterns, limit=QUEUE_LIMIT)
            self._exchanges[exchange].append(self._queues[name])

    async def check(self) -> list[str]:
        """See the port."""
        exchanges = [f"exchange {name}" for name in EXCHANGES if name not in self._exchanges]
        return exchanges + [f"queue {name}" for name in BINDINGS if name not in self._queues]

    async def ping(self) -> None:
        """See the port: what is in this process always answers."""

    def _route(self, message: Message) -> Receipt:
        if message.exchange not in self._exchanges:
            return Receipt.FAILED
        queues = [queue for queue in self._exchanges[message.exchange] if queue.wants(message.routing_key)]
        if any(queue.refuses() for queue in queues):
            return Receipt.FAILED
        for queue in queues:
            queue.offer(message)
        return Receipt.CONFIRMED if queues else Receipt.UNROUTABLE


class _Queue(asyncio.Queue[Message]):
    """Messages in waiting. When ``limit`` of them wait, one that ``drops`` loses the next, another refuses it."""

    def __init__(self, *patterns: str, limit: int, drops: bool = False) -> None:
        super().__init__(limit)
        self._patterns = patterns
        self._drops = drops

    def wants(self, routing_key: str) -> bool:
        return any(matches(pattern, routing_key) for pattern in self._patterns)

    def refuses(self) -> bool:
        return self.full() and not self._drops

    def offer(self, message: Message) -> None:
        if not self.full():
            self.put_nowait(message)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self.get()


@lru_cache(maxsize=10_000)
def matches(pattern: str, routing_key: str) -> bool:
    """Whether AMQP would route ``routing_key`` by the topic ``pattern``; an empty key is a key of no words."""
    return _fits(_words(pattern), _words(routing_key))


def _words(dotted: str) -> list[str]:
    return dotted.split(".") if dotted else []


def _fits(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_fits(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _fits(rest, words[1:])
