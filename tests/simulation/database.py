"""What a simulated database has committed, what it refuses, and who holds what.

It is written for honesty, not for everything the store has: what writer, relay, consumer, sweeper and readers ask.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from msgspec import UNSET
from msgspec.structs import replace
from simulation.letters import Letters
from simulation.virtual import EPOCH, Process
from simulation.world import World

from core.errors import AlreadyExists, SkuConflict
from core.events import OutboxRow
from core.operations import StoredAnswer
from core.rules.book import Book
from core.stock import Item, Product, Reservation, StockTransaction, Warehouse
from ports.leases import Lease

T = TypeVar("T")
_STEP = ("status", "expires_at", "confirmed_at", "updated_at")


class Open(Protocol):
    """A transaction that is open."""

    def end(self) -> None:
        """Give up what it holds."""
        ...


class Refused(Exception):
    """The database's own CHECKs and keys; only a bug runs into them."""


class Database:
    """What is committed, and who holds what."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.products: dict[str, Product] = {}
        self.items: dict[str, Item] = {}
        self.places: dict[tuple[str, str], str] = {}
        self.reservations: dict[str, Reservation] = {}
        self.warehouses: dict[str, Warehouse] = {}
        self.ledger: list[StockTransaction] = []
        self.outbox: dict[str, list[OutboxRow]] = {}
        self.waiting: dict[str, OutboxRow] = {}
        self.positions: dict[str, int] = {}
        self.blocked: dict[str, OutboxRow] = {}
        self.inbox: dict[str, str] = {}
        self.answers: dict[tuple[str, str, str], StoredAnswer] = {}
        self.leases: dict[str, tuple[str, int, float]] = {}
        self.position = 0
        self.letters = Letters()
        self.deliveries: Counter[str] = Counter()
        self.locks: dict[object, Open] = {}
        self.sessions: dict[Process, set[Open]] = {}
        self.listeners: dict[Process, Any] = {}
        self.history: dict[tuple[str, int], int] = {}
        """What was available of a product at each of its revisions."""

    def now(self) -> datetime:
        """Return the database's clock."""
        return datetime.fromtimestamp(EPOCH + self.world.loop.time(), UTC)

    def disconnect(self, process: Process) -> None:
        """Roll back what a process has open; it finds out when it asks the next time."""
        for transaction in [*self.sessions.get(process, ())]:
            transaction.end()
        self.listeners.pop(process, None)

    def commit(self, book: Book, answers: Sequence[StoredAnswer]) -> None:
        """Make a book's changes true, all at once."""
        for item in changed(book, book.items):
            self._put_item(item)
        for product in book.products.values():
            if product is not book.loaded[f"product:{product.id}"]:
                self.products[product.id] = product
                self.history[product.id, product.revision] = product.total_available
        for warehouse in changed(book, book.warehouses):
            self.warehouses[warehouse.id] = warehouse
        for reservation in changed(book, book.reservations):
            self.reservations[reservation.id] = self._merged(book.loaded.get(reservation.id), reservation)
        self.ledger += book.ledger
        for row in book.outbox:
            self.outbox.setdefault(row.product_id, []).append(row)
            self.waiting[row.event_id] = row
        self.inbox |= {event.event_id: outcome.verdict for event, outcome in book.inbox}
        self.answers |= {answer.key.scope: answer for answer in answers}

    def refuses(self, book: Book, answers: Sequence[StoredAnswer]) -> bool:
        """Tell whether a row is not as it was loaded, or a key exists by now.

        Raises:
            SkuConflict, AlreadyExists: a row is the caller's to correct.
            Refused: a row that no correct program writes.
        """
        for item in changed(book, book.items):
            old = book.loaded.get(item.id)
            if old is not None and self.items[item.id].version != old.version:
                return True
            if self.places.get((item.sku, item.warehouse_id), item.id) != item.id:
                raise SkuConflict("The SKU is in use in that warehouse by now; read its items and decide again.")
            if min(item.on_hand, item.reserved) < 0 or item.shortfall != max(item.reserved - item.on_hand, 0):
                raise Refused(f"the balances of {item}")
        for product in book.products.values():
            if self.products[product.id].revision != book.loaded[f"product:{product.id}"].revision:
                return True
        for warehouse in changed(book, book.warehouses):
            old = book.loaded.get(warehouse.id)
            if old is None and warehouse.id in self.warehouses:
                raise AlreadyExists("There is a warehouse of that id by now; choose another id.")
            if old is not None and self.warehouses[warehouse.id].version != old.version:
                return True
        for row in book.outbox:
            if row.sequence <= len(self.outbox.get(row.product_id, ())):
                raise Refused(f"a second event {row.sequence} of {row.product_id}")
        return any(event.event_id in self.inbox for event, _ in book.inbox) or any(
            answer.key.scope in self.answers for answer in answers
        )

    def reservation(self, id: str) -> Reservation:
        """Return a reservation; product, warehouse and SKU of a line are its item's."""
        found = self.reservations[id]
        lines = []
        for line in found.lines:
            item = self.items[line.inventory_item_id]
            lines.append(replace(line, product_id=item.product_id, warehouse_id=item.warehouse_id, sku=item.sku))
        return replace(found, lines=tuple(lines))

    def due(self, now: datetime) -> list[Reservation]:
        """Return the holds that are over, the longest over first."""
        held = [each for each in self.reservations.values() if each.status == "HELD"]
        over = [(each.expires_at, each.id) for each in held if each.expires_at is not None and each.expires_at <= now]
        return [self.reservations[id] for _, id in sorted(over)]

    def pending(self, limit: int, skip: Collection[str]) -> list[OutboxRow]:
        """Return what is to be published next (rules R17, R18)."""
        blocked = {row.product_id for row in self.blocked.values()} | set(skip)
        waiting = [row for row in self.waiting.values() if row.product_id not in blocked]
        critical = {row.product_id for row in waiting if row.critical}
        urgent = [row for row in waiting if row.product_id in critical][:limit]
        others = [row for row in waiting if row.product_id not in critical][: limit - len(urgent)]
        return [*sorted(urgent, key=_in_order), *sorted(others, key=_in_order)]

    def holds(self, lease: Lease) -> bool:
        """Tell whether a lease is still its owner's."""
        return self.leases.get(lease.name, ("", 0, 0.0))[:2] == (lease.owner, lease.token)

    def _put_item(self, item: Item) -> None:
        if (old := self.items.get(item.id)) is not None:
            del self.places[old.sku, old.warehouse_id]
        self.places[item.sku, item.warehouse_id] = item.id
        self.items[item.id] = item

    def _merged(self, old: Reservation | None, new: Reservation) -> Reservation:
        """Write only what this batch changed: a hold's other lines may be another batch's."""
        if old is None:
            return replace(new, explanation=UNSET)
        current = self.reservations[new.id]
        lines = list(current.lines)
        for place, (before, after) in enumerate(zip(old.lines, new.lines, strict=True)):
            if before is not after:
                units = {name: getattr(after, name) for name in ("fulfilled_quantity", "released_quantity")}
                lines[place] = replace(lines[place], **units)
        changed = any(getattr(old, name) != getattr(new, name) for name in _STEP)
        step = {name: getattr(new, name) for name in _STEP} if changed else {}
        return replace(current, lines=tuple(lines), **step)


def changed(book: Book, entities: Mapping[str, T]) -> list[T]:
    """Return what is new or not as it was loaded."""
    return [entity for id, entity in entities.items() if book.loaded.get(id) is not entity]


def _in_order(row: OutboxRow) -> tuple[str, int]:
    return row.product_id, row.sequence
