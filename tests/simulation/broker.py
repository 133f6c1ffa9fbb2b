"""A broker that loses connections and confirms, delivers out of order, and gives back what was not settled."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from msgspec import Struct
from msgspec.structs import replace
from simulation.virtual import Process
from simulation.world import World

from adapters.handling import Handed, handling
from core.errors import Unavailable
from core.events import DEAD_LETTERS, PRODUCT_QUEUE
from ports.broker import Delivery, Handler, Message, Receipt, Verdict


class _Taken(Struct, frozen=True):
    """A delivery that was handed out and not settled: from which queue, to whom, over which connection."""

    queue: str
    delivery: Delivery
    process: Process
    connection: int


class Exchange:
    """The broker itself: two queues that are consumed, and what was heard of our own events, in order of arrival."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.heard: list[Message] = []
        self.refused: set[str] = set()
        """Ids of messages that the broker takes from nobody."""
        self._queues: dict[str, list[Delivery]] = {PRODUCT_QUEUE: [], DEAD_LETTERS: []}
        self._takers: dict[str, deque[tuple[Process, asyncio.Future[tuple[int, Delivery]]]]] = {
            name: deque() for name in self._queues
        }
        self._connections: dict[Process, int] = {}
        self._unsettled: dict[int, _Taken] = {}
        self._tags = 0

    @property
    def is_empty(self) -> bool:
        """Whether every message was settled."""
        return not self._unsettled and not any(self._queues.values())

    def offer(self, queue: str, delivery: Delivery) -> None:
        """Put a message into a queue."""
        self._queues[queue].append(delivery)
        self._hand_out(queue)

    def hear(self, message: Message) -> None:
        """Take one of our own events."""
        again = any(message.id == other.id for other in self.heard)
        self.world.tell("broker", "heard again" if again else f"heard {message.type}", message.id)
        self.heard.append(message)

    def connection(self, process: Process) -> int:
        """Name the connection that a process has now."""
        return self._connections.get(process, 0)

    def disconnect(self, process: Process) -> None:
        """End a process's connection: what it has not settled goes to somebody else, or to it again."""
        self._connections[process] = self.connection(process) + 1
        for tag in [tag for tag, taken in self._unsettled.items() if taken.process is process]:
            taken = self._unsettled.pop(tag)
            self.offer(taken.queue, Delivery(taken.delivery.message, redelivered=True))

    def take(self, queue: str, process: Process) -> "asyncio.Future[tuple[int, Delivery]]":
        """Return the next message of a queue, with its tag, as soon as there is one."""
        future = asyncio.get_running_loop().create_future()
        self._takers[queue].append((process, future))
        self._hand_out(queue)
        return future

    def settle(self, tag: int, verdict: Verdict | None) -> None:
        """Forget a message, bury it, or let it come again; nothing where its connection has ended."""
        taken = self._unsettled.pop(tag, None)
        if taken is None:
            return
        message = taken.delivery.message
        if verdict is Verdict.DEAD:
            headers = {"x-first-death-queue": taken.queue, "x-first-death-reason": "rejected"}
            self.offer(DEAD_LETTERS, Delivery(replace(message, exchange=DEAD_LETTERS, headers=headers), False))
        elif verdict is None:
            self.offer(taken.queue, Delivery(message, redelivered=True))

    def _hand_out(self, queue: str) -> None:
        waiting, takers = self._queues[queue], self._takers[queue]
        while waiting and takers:
            process, future = takers.popleft()
            if future.done() or not process.alive:
                continue
            jumps = self.world.happens(self.world.faults.out_of_order)
            delivery = waiting.pop(self.world.chances.randrange(len(waiting)) if jumps else 0)
            self._tags += 1
            self._unsettled[self._tags] = _Taken(queue, delivery, process, self.connection(process))
            self.world.tell(process.name, f"was given {delivery.message.type}", delivery.message.id)
            future.set_result((self._tags, delivery))


class SimulatedBroker:
    """See ``ports.broker.Broker``: what one process has of the exchange."""

    def __init__(self, world: World, exchange: Exchange, process: Process) -> None:
        self._world = world
        self._exchange = exchange
        self._process = process

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """See the port: some may arrive whose receipt is lost, none after this has returned."""
        receipts = [Receipt.FAILED] * len(messages)
        faults, chances = self._world.faults, self._world.chances
        sent = confirmed = len(messages)
        if self._world.happens(faults.publish_cut):
            sent = chances.randint(0, len(messages))
            confirmed = chances.randint(0, sent)
        for place, message in enumerate(messages[:sent]):
            if message.id in self._exchange.refused or self._world.happens(faults.publish_refused):
                confirmed = min(confirmed, place)
                sent = place
                break

        arrived = False

        def arrive() -> None:
            nonlocal arrived
            arrived = True
            for message in messages[:sent]:
                self._exchange.hear(message)

        try:
            await self._world.ask(self._process, "broker", f"publish {len(messages)}", arrive)
        except Unavailable:
            if not arrived:
                raise
            confirmed = 0
        receipts[:confirmed] = [Receipt.CONFIRMED] * confirmed
        return receipts

    @asynccontextmanager
    async def consume(self, queue: str, handle: Handler, *, prefetch: int = 64) -> AsyncIterator[None]:
        """See the port."""

        async def take() -> Handed:
            tag, delivery = await self._exchange.take(queue, self._process)
            return delivery, partial(self._settle, tag)

        async with handling(queue, take, handle, at_once=prefetch):
            yield

    async def ping(self) -> None:
        """See the port."""
        await self._world.ask(self._process, "broker", "ping the broker", lambda: None)

    async def _settle(self, tag: int, verdict: Verdict | None) -> None:
        try:
            await self._world.ask(
                self._process, "broker", f"settle {tag}: {verdict}", lambda: self._exchange.settle(tag, verdict)
            )
        except Unavailable:  # the connection was lost with it
            self._exchange.disconnect(self._process)
