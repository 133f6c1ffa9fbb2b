"""Everything in this process: what is behind ``memory://``, for the embedded mode and for tests.

The broker routes as RabbitMQ does, so that what works here works there. Nothing outlives the process.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from typing import Any, Literal

from msgspec.structs import replace

from adapters.handling import Handed, handling
from core.errors import ProductNotFound, ProductServiceUnavailable, Unavailable
from core.events import BINDINGS, DEAD_LETTERS, EXCHANGES, ProductVariant
from ports.broker import Broker, Delivery, Handler, Message, Receipt, Verdict
from ports.cache import FLOOR_SECONDS, Cache, Change, Entry
from ports.catalog import CatalogPage, CatalogProduct, Condition, ProductCatalog

TAP_LIMIT = 10_000
QUEUE_LIMIT = 100_000
CACHE_LIMIT = 20_000
SIGN_SECONDS = 0.05


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator[Broker]:
    """Open a broker of its own: two openings of ``memory://`` share nothing, and the URL has no options."""
    yield MemoryBroker()


class MemoryBroker:
    """Topic exchanges, each a list of the queues and taps bound to it."""

    def __init__(self) -> None:
        self._exchanges: dict[str, list[_Queue]] = {}
        self._queues: dict[str, _Queue] = {}
        self._declared = asyncio.Condition()

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

    @asynccontextmanager
    async def consume(self, queue: str, handle: Handler, *, prefetch: int = 64) -> AsyncIterator[None]:
        """See the port. A queue that is not declared yet is waited for."""

        async def take() -> Handed:
            async with self._declared:
                await self._declared.wait_for(lambda: queue in self._queues)
            delivery = await self._queues[queue].get()
            return delivery, partial(self._settle, queue, delivery.message)

        async with handling(queue, take, handle, at_once=prefetch):
            yield

    async def declare(self) -> None:
        """See the port."""
        for exchange in EXCHANGES:
            self._exchanges.setdefault(exchange, [])
        for name in BINDINGS.keys() - self._queues.keys():
            exchange, patterns = BINDINGS[name]
            self._queues[name] = _Queue(*patterns, limit=QUEUE_LIMIT)
            self._exchanges[exchange].append(self._queues[name])
        async with self._declared:
            self._declared.notify_all()

    async def check(self) -> list[str]:
        """See the port."""
        exchanges = [f"exchange {name}" for name in EXCHANGES if name not in self._exchanges]
        return exchanges + [f"queue {name}" for name in BINDINGS if name not in self._queues]

    async def ping(self) -> None:
        """See the port: what is in this process always answers."""

    def _route(self, message: Message) -> Receipt:
        if message.exchange not in self._exchanges:
            return Receipt.FAILED
        queues = self._bound(message)
        if any(queue.refuses() for queue in queues):
            return Receipt.FAILED
        for queue in queues:
            queue.offer(Delivery(message, redelivered=False))
        return Receipt.CONFIRMED if queues else Receipt.UNROUTABLE

    def _bound(self, message: Message) -> list["_Queue"]:
        return [queue for queue in self._exchanges[message.exchange] if queue.wants(message.routing_key)]

    async def _settle(self, queue: str, message: Message, verdict: Verdict | None) -> None:
        match verdict:
            case Verdict.DONE:
                pass
            case Verdict.DEAD:
                letter = _dead(message, queue)
                for grave in self._bound(letter):
                    grave.offer(Delivery(letter, redelivered=False))
            case _:
                self._queues[queue].offer(Delivery(message, redelivered=True))


def _dead(message: Message, queue: str) -> Message:
    """Address a message to the dead letters, saying where it died in RabbitMQ's words."""
    death = {"exchange": message.exchange, "queue": queue, "reason": "rejected"}
    headers = {f"x-first-death-{name}": value for name, value in death.items()}
    return replace(message, exchange=DEAD_LETTERS, headers=headers | message.headers)


class _Queue(asyncio.Queue[Delivery]):
    """Messages in waiting. When ``limit`` of them wait, one that ``drops`` loses the next, another refuses publishers.

    What comes back or dies is never refused.
    """

    def __init__(self, *patterns: str, limit: int, drops: bool = False) -> None:
        super().__init__()
        self._patterns = patterns
        self._limit = limit
        self._drops = drops

    def wants(self, routing_key: str) -> bool:
        return any(matches(pattern, routing_key) for pattern in self._patterns)

    def refuses(self) -> bool:
        return self.qsize() >= self._limit and not self._drops

    def offer(self, delivery: Delivery) -> None:
        if self.qsize() < self._limit or not self._drops:
            self.put_nowait(delivery)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return (await self.get()).message


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


# -- the catalogue -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_catalog(url: str, **_: Any) -> AsyncIterator[ProductCatalog]:
    """Open an empty catalogue of its own."""
    yield MemoryCatalog()


class MemoryCatalog:
    """Products that somebody put here; ``away`` makes it as if the Product Service were."""

    def __init__(self) -> None:
        self.away = False
        self._products: dict[str, tuple[CatalogProduct, tuple[ProductVariant, ...]]] = {}
        self._forced: Literal["OPEN", "CLOSED"] | None = None

    def put(self, product: CatalogProduct, *variants: ProductVariant) -> None:
        """Add a product, or replace it."""
        self._products[product.id] = product, variants

    async def product(self, id: str) -> CatalogProduct:
        """See the port."""
        if self._forced == "OPEN" and id in self._products:
            return replace(self._products[id][0], stale=True)
        return self._found(id)[0]

    async def variants(self, id: str) -> tuple[ProductVariant, ...]:
        """See the port."""
        return self._found(id)[1]

    async def listed(self, cursor: str | None, *, limit: int) -> CatalogPage | None:
        """See the port: in order of id."""
        if self.away or self._forced == "OPEN":
            raise ProductServiceUnavailable("The Product Service is away.")
        ids = sorted(id for id in self._products if id > (cursor or ""))
        return CatalogPage(tuple(ids[:limit]), ids[limit - 1] if len(ids) > limit else None)

    async def ping(self) -> None:
        """See the port."""
        if self.away:
            raise ProductServiceUnavailable("The Product Service is away.")

    def condition(self) -> Condition:
        """See the port: nothing is sent, so nothing fails."""
        return Condition(circuit=self._forced or "CLOSED", forced=self._forced is not None, calls=0, failures=0)

    def force(self, circuit: Literal["OPEN", "CLOSED"] | None) -> None:
        """See the port."""
        self._forced = circuit

    def _found(self, id: str) -> tuple[CatalogProduct, tuple[ProductVariant, ...]]:
        if self.away or self._forced == "OPEN":
            raise ProductServiceUnavailable("The Product Service is away.")
        if id not in self._products:
            raise ProductNotFound(f"The Product Service has no product {id}.", productId=id)
        return self._products[id]


# -- the cache ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_cache(url: str) -> AsyncIterator[Cache]:
    """Open a cache of its own: two openings of ``memory://`` share nothing, and the URL has no options."""
    yield MemoryCache()


@asynccontextmanager
async def open_no_cache(url: str) -> AsyncIterator[Cache]:
    """Open ``none:``, a cache that keeps nothing and proves nothing: every read goes to the store."""
    yield NoCache()


class MemoryCache:
    """The last ``CACHE_LIMIT`` values and floors; a floor is an entry without a body."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._listeners: set[asyncio.Queue[dict[str, int]]] = set()

    async def get(self, keys: Collection[str]) -> dict[str, Entry]:
        """See the port."""
        now = time.monotonic()
        found = {key: self._held[key] for key in keys if key in self._held}
        return {
            key: Entry(entry.revision, entry.body, until - now)
            for key, (entry, until) in found.items()
            if entry.body and until > now
        }

    async def put(self, entries: Mapping[str, Entry]) -> None:
        """See the port."""
        now = time.monotonic()
        for key, entry in entries.items():
            if entry.revision >= self._revision(key, now):
                self._held[key] = entry, now + entry.seconds
                self._held.move_to_end(key)
        while len(self._held) > CACHE_LIMIT:
            self._held.popitem(last=False)

    async def raise_floors(self, floors: Mapping[str, int]) -> None:
        """See the port."""
        now = time.monotonic()
        risen = {key: floor for key, floor in floors.items() if floor > self._revision(key, now)}
        await self.put({key: Entry(floor, b"", FLOOR_SECONDS) for key, floor in risen.items()})
        for listener in self._listeners:
            listener.put_nowait(dict(floors))

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        """See the port."""
        listener: asyncio.Queue[dict[str, int]] = asyncio.Queue()
        listener.put_nowait({})
        self._listeners.add(listener)
        try:
            yield _told(listener)
        finally:
            self._listeners.discard(listener)

    async def ping(self) -> None:
        """See the port: what is in this process always answers."""

    def _revision(self, key: str, now: float) -> int:
        entry, until = self._held.get(key, (None, 0.0))
        return entry.revision if entry is not None and until > now else -1


async def _told(listener: asyncio.Queue[dict[str, int]]) -> AsyncIterator[Change]:
    as_of = -math.inf
    while True:
        floors: dict[str, int] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(SIGN_SECONDS):
                floors = await listener.get()
        if listener.empty():
            as_of = time.monotonic()
        yield Change(floors, as_of)


class NoCache:
    """A cache that forgets at once."""

    async def get(self, keys: Collection[str]) -> dict[str, Entry]:
        """See the port."""
        return {}

    async def put(self, entries: Mapping[str, Entry]) -> None:
        """See the port."""

    async def raise_floors(self, floors: Mapping[str, int]) -> None:
        """See the port."""

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        """See the port. Without a sign of life nobody trusts what it keeps itself."""
        yield _silence()

    async def ping(self) -> None:
        """See the port."""


async def _silence() -> AsyncIterator[Change]:
    await asyncio.Event().wait()
    yield Change({}, -math.inf)
