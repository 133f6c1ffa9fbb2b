"""The store: stock, ledger, outbox and stored answers in one database, so that one commit covers them all.

Its shape comes from group commit. A ``Transaction`` locks many products at once, loads and saves sets of rows, and is
committed by leaving its block; ``core/writing`` is its only user. Everything else is a read or a small step in a short
transaction of its own; what has a story of its own (the outbox, leases, dead letters, …) has a module beside.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Generic, Literal, Protocol, TypeVar

from msgspec import Struct

from core.operations import IdempotencyKey, StoredAnswer
from core.rules.book import Book
from core.stock import Balance, ExpectedReceipt, Hold, Item, Product, Reservation, StockTransaction, Supply, Warehouse
from ports.dead_letters import DeadLetterStore
from ports.imports import ImportStore
from ports.leases import LeaseStore
from ports.outbox import OutboxStore
from ports.product_records import ProductRecords
from ports.reconciliation import ReconciliationStore
from ports.replays import ReplayStore

T = TypeVar("T")
IMPORTS = "import"
"""The lease of whoever carries out imports, and the issuer of the idempotency keys used for it."""


class Wanted(Struct, kw_only=True):
    """What a batch must read under its locks.

    A product named in ``whole_products`` is loaded with all its items, and with other products' items of their SKUs.
    The open expected receipts of the locked products, and their items, are loaded anyway.
    """

    item_ids: set[str] = set()
    reservation_ids: set[str] = set()
    receipt_ids: set[str] = set()
    warehouse_ids: set[str] = set()
    whole_products: set[str] = set()
    places: set[tuple[str, str]] = set()
    """(sku, warehouse id) pairs whose item, if any, is wanted whichever product it belongs to."""
    skus: set[str] = set()
    """SKUs of which every item is wanted."""
    event_ids: set[str] = set()
    """Product events of which it matters whether they were applied."""
    keys: set[IdempotencyKey] = set()
    """Idempotency keys of which it matters what was answered under them before."""
    evidence: set[str] = set()
    """Products of which it matters what their records say of each other."""
    all_warehouses: bool = False


class Transaction(Protocol):
    """One batch's transaction. Leaving the block commits; an exception rolls back.

    Leaving may raise OutcomeUnknown: the commit was sent and nobody can tell what became of it.
    """

    async def resolve(
        self, item_ids: Collection[str], reservation_ids: Collection[str], receipt_ids: Collection[str] = ()
    ) -> Mapping[str, set[str]]:
        """Return the product ids behind each item, reservation and expected receipt id that exists. Takes no lock."""
        ...

    async def products_of(self, skus: Collection[str]) -> Mapping[str, set[str]]:
        """Return the product ids that have items of each SKU. Takes no lock."""
        ...

    async def lock(self, product_ids: Collection[str], *, wait: bool) -> set[str]:
        """Lock these products in order of id and return those that exist and are locked now.

        Without ``wait``, products that somebody else holds are left out (rule R2).

        Raises:
            Unavailable: with ``wait``, a lock did not come within a second.
        """
        ...

    async def load(self, product_ids: Collection[str], wanted: Wanted) -> Book:
        """Read the locked products, their due holds, what is ``wanted`` of them, and the clock.

        In statements of their own, after the locks (rule R1).
        """
        ...

    async def save(self, book: Book, answers: Sequence[StoredAnswer]) -> bool:
        """Write what the book has changed, then the answers.

        Returns False, having to be rolled back, when a row is not as it was loaded or a key exists by now: the batch
        must be done again.

        Raises:
            InventoryError: the database refuses a row that is ours to refuse, such as a SKU taken in the meantime.
        """
        ...

    async def rollback(self) -> None:
        """Give everything up; leaving the block then commits nothing."""
        ...


class Page(Struct, Generic[T], frozen=True):
    """Some rows of a list, and where to go on; ``next_cursor`` is None on the last page."""

    rows: tuple[T, ...]
    next_cursor: str | None


class ItemFilter(Struct, frozen=True, kw_only=True):
    """Which items to list; None means any. ``stock`` asks for items in their low band, or with nothing available."""

    product_id: str | None = None
    sku: str | None = None
    warehouse_id: str | None = None
    status: str | None = None
    stock: Literal["low", "out"] | None = None


class ReservationFilter(Struct, frozen=True, kw_only=True):
    """Which reservations to list; None means any. ``confirmed_before`` asks for those confirmed earlier than that."""

    reference_type: str | None = None
    reference_number: str | None = None
    status: str | None = None
    confirmed_before: datetime | None = None


class ReceiptFilter(Struct, frozen=True, kw_only=True):
    """Which expected receipts to list; None means any. ``overdue`` asks for those that are, or that are not."""

    product_id: str | None = None
    sku: str | None = None
    warehouse_id: str | None = None
    inventory_item_id: str | None = None
    status: str | None = None
    reference_type: str | None = None
    reference_number: str | None = None
    overdue: bool | None = None


class LedgerFilter(Struct, frozen=True, kw_only=True):
    """Which ledger rows to list; None means any. ``since`` and ``until`` bound recorded_at, the first included."""

    type: str | None = None
    reference_type: str | None = None
    reference_number: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class ProductStock(Struct, frozen=True):
    """A product with all its items and what is still to come of them, as of one moment."""

    product: Product
    items: tuple[Item, ...]
    supplies: tuple[Supply, ...] = ()


class Condition(Struct, frozen=True):
    """What a database says of itself: its clock, and whether it takes no writes (a standby, say)."""

    now: datetime
    read_only: bool


class Store(
    OutboxStore, ReplayStore, DeadLetterStore, ProductRecords, ImportStore, ReconciliationStore, LeaseStore, Protocol
):
    """The database behind the service. Every statement has a deadline; a database that is away is ``Unavailable``."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a batch.

        Raises:
            Unavailable: there is no database, or no connection to it in time.
        """
        ...

    async def add_products(self, product_ids: Collection[str]) -> None:
        """Make rows for products not known yet, in a transaction of its own (rule R1)."""
        ...

    # -- reads -------------------------------------------------------------------------------------------------------

    async def products(self, product_ids: Collection[str]) -> dict[str, ProductStock]:
        """Return the known ones of these products with items and supplies, in one statement's snapshot."""
        ...

    async def item(self, id: str) -> Item | None:
        """Return an item."""
        ...

    async def items(self, filter: ItemFilter, *, cursor: str | None, limit: int) -> Page[Item]:
        """List items in order of creation.

        Raises:
            ValidationFailed: the cursor is not one of ours.
        """
        ...

    async def find_items(self, ids: Collection[str], skus: Collection[str]) -> list[Item]:
        """Return the items of these ids, and those of these SKUs wherever they are."""
        ...

    async def balances(self, item_ids: Collection[str], at: datetime) -> list[Balance]:
        """Return what was on record of these items at an instant, leaving out those that were not on record yet.

        The time it takes grows with the logarithm of an item's history, not with the history.
        """
        ...

    async def ledger(
        self, item_id: str, *, filter: LedgerFilter | None = None, cursor: str | None, limit: int
    ) -> Page[StockTransaction]:
        """List an item's ledger, newest first; stable while rows are added.

        Raises:
            ValidationFailed: the cursor is not one of ours.
        """
        ...

    async def reservation(self, id: str) -> Reservation | None:
        """Return a reservation with its lines."""
        ...

    async def reservations(self, filter: ReservationFilter, *, cursor: str | None, limit: int) -> Page[Reservation]:
        """List reservations, oldest first.

        Raises:
            ValidationFailed: the cursor is not one of ours.
        """
        ...

    async def holds(self, product_id: str) -> tuple[int, tuple[Hold, ...]]:
        """Return the product's revision and what is held of its items for a time, as of one moment.

        Nothing, as of revision 0, when there is no such product.
        """
        ...

    async def expected_receipt(self, id: str) -> ExpectedReceipt | None:
        """Return an expected receipt as it looks on the database's clock."""
        ...

    async def expected_receipts(
        self, filter: ReceiptFilter, *, cursor: str | None, limit: int
    ) -> Page[ExpectedReceipt]:
        """List expected receipts in order of creation, as they look on the database's clock.

        Raises:
            ValidationFailed: the cursor is not one of ours.
        """
        ...

    async def due(self, limit: int, *, skip: Collection[str] = ()) -> list[str]:
        """Return the ids of holds that are over on the database's clock and not marked so, longest over first.

        Those in ``skip`` are left out.
        """
        ...

    async def warehouses(self) -> tuple[Warehouse, ...]:
        """Return every warehouse, by priority, then id."""
        ...

    # -- housekeeping ------------------------------------------------------------------------------------------------

    async def purge(self, *, answers_hours: float, events_days: float, inbox_days: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` each of old answers, published events, inbox rows, and letters that ended then.

        So it does with imports that ended then and what belongs to them, and with runs that began, and findings that
        were resolved, more than 30 days ago. Returns how many rows went.
        """
        ...

    async def ping(self) -> None:
        """Return when the database answers.

        Raises:
            Unavailable: it does not.
        """
        ...

    async def condition(self) -> Condition:
        """Ask the database how it is. Needs no tables.

        Raises:
            Unavailable: it does not answer.
        """
        ...

    async def pending_migrations(self) -> list[str]:
        """Name the migrations this version needs and the database does not have.

        Raises:
            Unavailable: there is no database.
        """
        ...

    async def migrate(self) -> list[str]:
        """Run the pending migrations, one process at a time, and name them."""
        ...
