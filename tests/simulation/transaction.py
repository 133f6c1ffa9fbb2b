"""A batch's transaction in the simulated store: locks, reads under the locks, and a commit that is whole or not at all.

Reads see the last commit; what is saved is seen when it is committed; whoever wants a key that an open transaction has
taken waits for its end.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from simulation.database import Database, changed
from simulation.virtual import Process
from simulation.world import World

from core.errors import Busy, OutcomeUnknown, Unavailable
from core.operations import StoredAnswer
from core.rules.book import Book
from ports.store import Wanted

T = TypeVar("T")
_LOCK_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class Client(Protocol):
    """Whose transaction it is."""

    world: World
    database: Database
    process: Process

    async def ask(self, what: str, effect: Callable[[], T]) -> T:
        """Ask the database."""
        ...


class Transaction:
    """See ``ports.store.Transaction``."""

    def __init__(self, store: Client) -> None:
        self.open = True
        self._store = store
        self._database = store.database
        self._saved: tuple[Book, Sequence[StoredAnswer]] | None = None
        self._broken = self._committed = False
        self._database.sessions.setdefault(store.process, set()).add(self)

    async def resolve(
        self, item_ids: Collection[str], reservation_ids: Collection[str], receipt_ids: Collection[str] = ()
    ) -> Mapping[str, set[str]]:
        def resolve() -> Mapping[str, set[str]]:
            items, reservations = self._database.items, self._database.reservations
            found = {id: {items[id].product_id} for id in item_ids if id in items}
            for id in reservation_ids:
                if id in reservations:
                    found[id] = {line.product_id for line in self._database.reservation(id).lines}
            return found

        return await self._ask("resolve", resolve)

    async def products_of(self, skus: Collection[str]) -> Mapping[str, set[str]]:
        def products_of() -> Mapping[str, set[str]]:
            found: dict[str, set[str]] = {}
            for item in self._database.items.values():
                if item.sku in skus:
                    found.setdefault(item.sku, set()).add(item.product_id)
            return found

        return await self._ask("products of SKUs", products_of)

    async def lock(self, product_ids: Collection[str], *, wait: bool) -> set[str]:
        wanted = sorted(product_ids)
        if not wait:
            return await self._ask("lock", lambda: self._lock(self._free(wanted)))
        return await self._waiting("wait for locks", lambda: self._lock_all(wanted))

    async def load(self, product_ids: Collection[str], wanted: Wanted) -> Book:
        return await self._ask("load", lambda: self._load(sorted(product_ids), wanted))

    async def save(self, book: Book, answers: Sequence[StoredAnswer]) -> bool:
        if self._store.world.deadly & book.products.keys():
            self._store.world.tell(self._store.process.name, "dies of a product")
            self._store.world.crash(self._store.process)
        return await self._waiting("save", lambda: self._save(book, answers))

    async def rollback(self) -> None:
        self.open = False
        await self._ask("roll back", self.end)

    async def commit(self) -> None:
        """Commit; where the answer is lost the adapter asks what became of it, and sometimes nobody can tell."""
        try:
            await self._ask("commit", self._commit)
        except Unavailable as error:
            unknown = self._committed and self._saved is not None and not self._saved[0].ledger
            if unknown or self._store.world.happens(0.5):
                raise OutcomeUnknown("The store was lost while committing.") from error
            if not self._committed:
                raise

    def end(self) -> None:
        """Give up what is held; a second time does nothing."""
        self._broken = True
        self._database.sessions[self._store.process].discard(self)
        for name in [name for name, holder in self._database.locks.items() if holder is self]:
            del self._database.locks[name]

    async def _ask(self, what: str, effect: Callable[[], T]) -> T:
        def connected() -> T:
            if self._broken:
                raise Unavailable("The connection was lost.")
            return effect()

        try:
            return await self._store.ask(what, connected)
        except Busy:
            raise
        except Unavailable:
            self.end()
            raise

    async def _waiting(self, what: str, effect: Callable[[], T | None]) -> T:
        """Do something as soon as nobody else holds what it needs; until then ``effect`` returns None."""
        loop = self._store.world.loop
        until = loop.time() + _LOCK_SECONDS
        while (done := await self._ask(what, effect)) is None:
            if loop.time() > until:
                raise Busy("This product is being changed by somebody who holds it too long.", retry_after=1)
            await asyncio.sleep(_LOOK_SECONDS)
        return done

    def _free(self, names: Iterable[Any]) -> list[Any]:
        return [name for name in names if self._database.locks.get(name, self) is self]

    def _lock(self, product_ids: Collection[str]) -> set[str]:
        existing = {id for id in product_ids if id in self._database.products}
        self._database.locks |= dict.fromkeys(existing, self)
        return existing

    def _lock_all(self, product_ids: Sequence[str]) -> set[str] | None:
        return self._lock(product_ids) if len(self._free(product_ids)) == len(product_ids) else None

    def _load(self, product_ids: Sequence[str], wanted: Wanted) -> Book:
        database = self._database
        products = {id: database.products[id] for id in product_ids}
        now = max([database.now(), *(product.updated_at for product in products.values())])
        mine = {item.id for item in database.items.values() if item.product_id in products}
        due = {
            each.id
            for each in database.due(now)
            if any(line.held and line.inventory_item_id in mine for line in each.lines)
        }
        asked = sorted((wanted.reservation_ids | due) & database.reservations.keys())
        reservations = {id: database.reservation(id) for id in asked}
        named = {line.inventory_item_id for each in reservations.values() for line in each.lines}
        skus = wanted.skus | {sku for sku, _ in wanted.places}
        skus |= {item.sku for item in database.items.values() if item.product_id in wanted.whole_products}
        items = [
            item
            for item in database.items.values()
            if item.id in named or item.id in wanted.item_ids or item.sku in skus
        ]
        houses = database.warehouses
        return Book(
            now=now,
            products=products,
            items={item.id: item for item in items},
            reservations=reservations,
            warehouses={id: houses[id] for id in houses if wanted.all_warehouses or id in wanted.warehouse_ids},
            events_seen={id for id in wanted.event_ids if id in database.inbox},
            answers={key.scope: database.answers[key.scope] for key in wanted.keys if key.scope in database.answers},
        )

    def _save(self, book: Book, answers: Sequence[StoredAnswer]) -> bool | None:
        """Refuse, or take the keys of what is new until the end; None while somebody else has one of them."""
        keys: list[object] = [("place", item.sku, item.warehouse_id) for item in changed(book, book.items)]
        keys += [("warehouse", warehouse.id) for warehouse in changed(book, book.warehouses)]
        keys += [("event", event.event_id) for event, _ in book.inbox]
        keys += [("key", answer.key.scope) for answer in answers]
        if len(self._free(keys)) < len(keys):
            return None
        if self._database.refuses(book, answers):
            return False
        self._database.locks |= dict.fromkeys(keys, self)
        self._saved = book, answers
        return True

    def _commit(self) -> None:
        if self._saved is not None:
            self._database.commit(*self._saved)
        self._committed = True
        self.end()
