"""What the two databases do differently, behind one small interface; everything else is SQLAlchemy Core in common.

Hot statements are set-based: whole columns as arrays on PostgreSQL, one prepared statement run over rows on SQLite
(rule R7). What a batch reads is one statement on PostgreSQL, and so is what it writes: there and back costs more than
most of them do.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct
from sqlalchemy import ColumnElement, CompoundSelect, Select, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ports.leases import Lease
from ports.store import Condition

Row = Sequence[Any]


class Insert(Struct, frozen=True):
    """Rows to be inserted, in order; ``skip_existing`` leaves those alone that are there already."""

    table: Table
    columns: tuple[str, ...]
    rows: Sequence[Row]
    skip_existing: bool = False


class Update(Struct, frozen=True):
    """Rows in which ``columns`` are to be set, found by ``keys``; each row has its keys first."""

    table: Table
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Sequence[Row]


Change = Insert | Update


class Query:
    """A SELECT that is asked time and again: built and compiled once, its values named.

    SQLAlchemy finds out at every execution that it has seen a statement before, which takes longer than asking these.

    Args:
        build: makes the statement for a database; ``database.listed(column, name)`` stands for a list of values.
    """

    def __init__(self, build: "Callable[[Database], Select[Any] | CompoundSelect[Any]]") -> None:
        self.build = build


Asked = tuple[Query, Mapping[str, Any]]
"""A query and its values by name."""


class Look(Struct, frozen=True):
    """What a look at the database has found: its time, this transaction's id (None without one), rows by query."""

    now: datetime
    transaction_id: str | None
    rows: list[list[dict[str, Any]]]


class Database(Protocol):
    """A dialect: connections with deadlines, set-based writes, locks, a clock, and a bell."""

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction that may write; it ends as ``commit`` or ``rollback`` says, and rolls back otherwise."""
        ...

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a read-only use of a connection."""
        ...

    async def commit(
        self, connection: AsyncConnection, transaction_id: str | None, *, witness: str | None = None
    ) -> None:
        """Commit; where the answer is lost, find out what became of ``transaction_id`` (rule R5).

        ``witness`` is the id of a ledger row that the transaction wrote, if it wrote any.

        Raises:
            OutcomeUnknown: nobody can tell.
            Unavailable: it was not committed.
        """
        ...

    def among(self, column: ColumnElement[Any], values: Collection[str]) -> ColumnElement[bool]:
        """Return the condition that ``column`` is one of ``values``, of constant text whatever their number."""
        ...

    def listed(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Return the condition of a ``Query`` that ``column`` is in the list passed to ``fetch`` as ``name``."""
        ...

    def now(self) -> ColumnElement[datetime]:
        """Return the database's time as a ``Query`` can compare with: not earlier than the last statement's end."""
        ...

    def listed_together(self, columns: Sequence[ColumnElement[Any]], names: Sequence[str]) -> ColumnElement[bool]:
        """Return a condition that holds where ``columns`` are, together, in the lists of these ``names``, row by row.

        It may hold for other combinations of listed values as well; whoever asks looks at what comes.
        """
        ...

    async def fetch(self, connection: AsyncConnection, query: Query, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of ``query``, by name of column."""
        ...

    async def look(self, connection: AsyncConnection, *asked: Asked) -> "Look":
        """Return the clock and the rows of each query, as of one moment."""
        ...

    async def write(self, connection: AsyncConnection, *changes: Change) -> list[int]:
        """Write ``changes``, one after another, and return how many rows each has changed.

        No row may be in two of them, and none sees what another has written.
        """
        ...

    async def mark(self, connection: AsyncConnection, lease: Lease, events: Sequence[tuple[str, int]]) -> bool:
        """Give events (product, sequence) the next positions of a lease, commit, and return whether it is still ours.

        All or none: where one has its position already, nothing is changed.
        """
        ...

    async def lock_products(self, connection: AsyncConnection, ids: Sequence[str], *, wait: bool) -> set[str]:
        """Lock product rows in order of id (rules R1, R2)."""
        ...

    async def clock(self, connection: AsyncConnection) -> tuple[datetime, str | None]:
        """Return the database's time, and the id by which ``commit`` can ask for this transaction later."""
        ...

    async def condition(self, connection: AsyncConnection) -> Condition:
        """See ``ports.store.Store.condition``."""
        ...

    async def announce(self) -> None:
        """Ring the bell; see ``ports.store.Store.announce``."""
        ...

    def announcements(self) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Listen to the bell."""
        ...

    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction that no other process's migration shares."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def upsert(connection: AsyncConnection, table: Table) -> Any:
    """Return an INSERT that knows ON CONFLICT: each dialect has its own, and they are called alike."""
    return (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)
