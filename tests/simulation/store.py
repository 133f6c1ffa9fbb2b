"""The simulated store's part of the port, as one process has it: every step asks the database over the network."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from simulation.database import Database
from simulation.transaction import Transaction
from simulation.virtual import Process
from simulation.world import World

from core.errors import InventoryError, OutcomeUnknown, Unavailable
from core.events import OutboxRow
from core.stock import LOW_STOCK_THRESHOLD, Catalog, Item, Product, Warehouse
from ports.dead_letters import Claimed, DeadLetter, Settlement
from ports.leases import Lease
from ports.store import ProductStock

T = TypeVar("T")


class SimulatedStore:
    """The part of ``ports.store.Store`` that is simulated, as one process has it."""

    def __init__(self, world: World, database: Database, process: Process) -> None:
        self.world = world
        self.database = database
        self.process = process

    async def ask(self, what: str, effect: Callable[[], T], *, lost: type[InventoryError] = Unavailable) -> T:
        """Ask the database."""
        return await self.world.ask(self.process, "store", what, effect, lost=lost)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        transaction = Transaction(self)
        try:
            yield transaction
            if transaction.open:
                await transaction.commit()
        finally:
            transaction.end()

    async def add_products(self, product_ids: Collection[str]) -> None:
        def add() -> None:
            now = self.database.now()
            for id in sorted(product_ids):
                self.database.products.setdefault(id, _new_product(id, now))

        await self.ask("add products", add)

    # -- reads -------------------------------------------------------------------------------------------------------

    async def products(self, product_ids: Collection[str]) -> dict[str, ProductStock]:
        def read() -> dict[str, ProductStock]:
            known, items = self.database.products, self.database.items.values()
            return {
                id: ProductStock(known[id], tuple(item for item in items if item.product_id == id))
                for id in sorted(product_ids)
                if id in known
            }

        return await self.ask("read products", read)

    async def item(self, id: str) -> Item | None:
        return await self.ask("read item", lambda: self.database.items.get(id))

    async def warehouses(self) -> tuple[Warehouse, ...]:
        return await self.ask("read warehouses", lambda: tuple(self.database.warehouses.values()))

    async def due(self, limit: int, *, skip: Collection[str] = ()) -> list[str]:
        def due() -> list[str]:
            over = self.database.due(self.database.now())
            return [each.id for each in over if each.id not in skip][:limit]

        return await self.ask("due holds", due)

    async def ping(self) -> None:
        await self.ask("ping", lambda: None)

    # -- the relay's steps -------------------------------------------------------------------------------------------

    async def acquire(self, name: str, owner: str, *, seconds: float) -> Lease | None:
        def acquire() -> Lease | None:
            now = self.world.loop.time()
            held_by, token, until = self.database.leases.get(name, ("", 0, 0.0))
            if held_by != owner and until > now:
                return None
            if held_by not in ("", owner):
                self.world.tell(owner, f"took the {name}'s lease", held_by)
            token += held_by != owner
            self.database.leases[name] = owner, token, now + seconds
            return Lease(name, owner, token)

        return await self.ask("acquire lease", acquire)

    async def release(self, lease: Lease) -> None:
        def release() -> None:
            if self.database.holds(lease):
                self.database.leases[lease.name] = "", lease.token, 0.0

        await self.ask("release lease", release)

    async def pending(self, limit: int, *, skip: Collection[str] = ()) -> list[OutboxRow]:
        # A port may return fewer: small batches have more edges.
        few = min(limit, self.world.batch)
        return await self.ask("pending events", lambda: self.database.pending(few, skip))

    async def mark_published(self, lease: Lease, rows: Sequence[OutboxRow]) -> bool:
        return await self.ask("mark published", lambda: self._mark(lease, rows))

    def _mark(self, lease: Lease, rows: Sequence[OutboxRow]) -> bool:
        database = self.database
        if not database.holds(lease):
            return False
        for row in rows:
            database.position += 1
            database.positions[row.event_id] = database.position
            database.waiting.pop(row.event_id, None)
        return True

    async def block(self, lease: Lease, row: OutboxRow, reason: str) -> bool:
        def block() -> bool:
            if not self.database.holds(lease):
                return False
            if row.event_id in self.database.waiting:
                self.database.blocked[row.event_id] = row
            return True

        return await self.ask("block event", block)

    async def open_replay(self) -> None:
        """Nobody asks for one here."""

    async def announce(self) -> None:
        def ring() -> None:
            for rung in self.database.listeners.values():
                rung.set()

        await self.ask("announce", ring)

    @asynccontextmanager
    async def announcements(self) -> AsyncIterator["_Rings"]:
        rung = asyncio.Event()
        await self.ask("listen", lambda: self.database.listeners.__setitem__(self.process, rung))
        yield _Rings(rung)

    # -- dead letters ------------------------------------------------------------------------------------------------

    async def park(self, letter: DeadLetter) -> None:
        letters, loop = self.database.letters, self.world.loop
        await self.ask("park", lambda: letters.park(letter, loop.time()), lost=OutcomeUnknown)

    async def count_delivery(self, fingerprint: str) -> int:
        def count() -> int:
            self.database.deliveries[fingerprint] += 1
            return self.database.deliveries[fingerprint]

        return await self.ask("count delivery", count, lost=OutcomeUnknown)

    async def forget_deliveries(self, fingerprint: str) -> None:
        deliveries = self.database.deliveries
        await self.ask("forget deliveries", lambda: deliveries.pop(fingerprint, None))

    async def claim_due(self, claim: str, *, limit: int, bytes_max: int, seconds: float) -> list[Claimed]:
        letters, loop = self.database.letters, self.world.loop
        if not await self.ask("look for letters", lambda: letters.is_due(loop.time())):
            return []
        take = lambda: letters.claim_due(claim, loop.time(), seconds)  # noqa: E731
        return await self.ask("claim letters", take, lost=OutcomeUnknown)

    async def settle_letters(self, claim: str, process: str, settlements: Sequence[Settlement]) -> int:
        letters, loop = self.database.letters, self.world.loop
        settle = lambda: letters.settle(claim, settlements, loop.time())  # noqa: E731
        return await self.ask("settle letters", settle, lost=OutcomeUnknown)

    async def give_back_letters(self, claim: str) -> int:
        letters, loop = self.database.letters, self.world.loop
        return await self.ask("give letters back", lambda: letters.give_back(claim, loop.time()), lost=OutcomeUnknown)

    async def advance_retries(self) -> None:
        """Nobody retries with a canary here."""


class _Rings:
    def __init__(self, rung: Any) -> None:
        self._rung = rung

    def __aiter__(self) -> "_Rings":
        return self

    async def __anext__(self) -> None:
        await self._rung.wait()
        self._rung.clear()


def _new_product(id: str, now: datetime) -> Product:
    return Product(
        id=id,
        total_on_hand=0,
        total_reserved=0,
        total_available=0,
        low_stock_threshold=LOW_STOCK_THRESHOLD,
        status="ACTIVE",
        sequence=0,
        revision=0,
        catalog=Catalog(),
        updated_at=now,
    )
