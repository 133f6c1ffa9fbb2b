"""The processes of the service: real writers, relays, consumers, sweepers and readers over simulated ports.

What a process knows dies with it; started again it is made anew.
"""

import asyncio
from typing import Any

from simulation.broker import Exchange, SimulatedBroker
from simulation.cache import SharedCache, SimulatedCache
from simulation.database import Database
from simulation.store import SimulatedStore
from simulation.virtual import Process
from simulation.world import World

from adapters.memory import MemoryCatalog
from core.catalog.products import Products
from core.consuming.consumption import ProductEvents
from core.consuming.redelivery import Redelivery
from core.operations import EventPolicy
from core.publishing.relay import Relay
from core.reading.snapshots import Snapshots
from core.rules.book import Book
from core.upkeep.expiry import Sweeper
from core.writing.writer import Writer

WAREHOUSES = ("wh_1", "wh_2")
_BACK_SECONDS = 1.5
_NOTICED_SECONDS = 0.05


class Servers:
    """What outlives every process of the service."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.database = Database(world)
        self.exchange = Exchange(world)
        self.cache = SharedCache(world)

    def disconnect(self, process: Process) -> None:
        """End every connection of a process."""
        self.world.tell(process.name, "is disconnected")
        self.database.disconnect(process)
        self.exchange.disconnect(process)
        self.cache.disconnect(process)


class Node:
    """A place where a process of the service runs, one after another.

    Args:
        reads: whether it keeps snapshots for readers.
        moves: whether it moves events: relays, consumes, tries dead letters again.
    """

    def __init__(self, servers: Servers, name: str, *, reads: bool, moves: bool) -> None:
        self.name = name
        self.process: Process
        self.writer: Writer
        self.snapshots: Snapshots | None = None
        self.floors: dict[str, int] = {}
        """The revisions that this process has committed or shown to anybody."""
        self._servers = servers
        self._world = servers.world
        self._reads = reads
        self._moves = moves
        self._lives = 0
        self._retired = False
        self._parts: list[Any] = []
        self._ready = asyncio.Event()
        self.start()

    @property
    def is_up(self) -> bool:
        """Whether it takes requests."""
        return self._ready.is_set() and self.process.alive

    def start(self) -> None:
        """Start a process."""
        self._lives += 1
        self.process = Process(self._world.loop, f"{self.name}.{self._lives}")
        self._world.tell(self.process.name, "starts")
        self._ready.clear()
        self.process.run(self._run(self.process))

    def kill(self) -> None:
        """``kill -9``; a while later the servers notice, and another process is started."""
        if not self.process.alive:
            return
        process = self.process
        self._world.tell(process.name, "is killed")
        process.kill()
        self._ready.clear()
        self._world.later(_NOTICED_SECONDS, self._servers.disconnect, process)
        self._world.later(_NOTICED_SECONDS + _BACK_SECONDS * self._world.chances.random(), self._start_again, process)

    def retire(self) -> None:
        """End it for good."""
        self._retired = True
        self.kill()

    async def end(self) -> None:
        """SIGTERM: let it end by itself, for a while, then start another."""
        process = self.process
        self._world.tell(process.name, "is told to end")
        self._ready.clear()
        ending = process.run(self._stop())
        await asyncio.wait({ending, process.died}, timeout=20.0, return_when=asyncio.FIRST_COMPLETED)
        if process.alive:
            self._world.tell(process.name, "has ended" if ending.done() else "does not end")
            process.kill()
            self._servers.disconnect(process)
            self._start_again(process)

    def _start_again(self, process: Process) -> None:
        if self.process is process and not self._retired:
            self.start()

    async def _run(self, process: Process) -> None:
        world, servers = self._world, self._servers
        store: Any = SimulatedStore(world, servers.database, process)
        broker: Any = SimulatedBroker(world, servers.exchange, process)
        self.floors = {}
        self.snapshots = Snapshots(store, SimulatedCache(world, servers.cache, process)) if self._reads else None
        self.writer = Writer(store, committed=self._committed)
        making = EventPolicy(warehouse_ids=WAREHOUSES)
        products = Products(MemoryCatalog(), store, policy="off", making=making)
        self._parts = [self.writer, Sweeper(store, self.writer)]
        if self.snapshots is not None:
            self._parts.insert(0, self.snapshots)
        if self._moves:
            self._parts += [
                Relay(store, broker, owner=process.name, required_events=frozenset()),
                ProductEvents(store, broker, self.writer, products, process=process.name),
                Redelivery(store, self.writer, products, process=process.name),
            ]
        for part in self._parts:
            await part.start()
        self._ready.set()

    async def _stop(self) -> None:
        for part in reversed(self._parts):
            await part.stop()

    def _committed(self, book: Book) -> None:
        if self.snapshots is not None:
            self.snapshots.committed(book)
            products = self._servers.database.products
            for id, revision in book.revisions().items():
                # What may have been committed is promised only as far as it was.
                self.floors[id] = max(self.floors.get(id, 0), min(revision, products[id].revision))
