"""SQLite through aiosqlite: one writing connection a process, taking turns with other processes (rule R8).

``sqlite://`` without a path is a database of its own, gone when it is closed. (A temporary file: one in memory would go
with its connection, and that goes with the first caller who is cancelled.)
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import msgspec
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Select,
    Table,
    and_,
    bindparam,
    event,
    func,
    select,
    update,
)
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from adapters.sql.database import Asked, Change, Insert, Look, Query, Row
from adapters.sql.faults import faults
from adapters.sql.leases import held
from adapters.sql.tables import UtcTime, outbox, product, time_text
from adapters.sql.tables import lease as counter
from core.errors import Unavailable
from ports.leases import Lease
from ports.store import Condition

_WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.0005
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA cache_size = -16000",
)


class SqliteDatabase:
    """See ``Database``."""

    def __init__(self, url: URL) -> None:
        self._scratch: TemporaryDirectory[str] | None = None
        if not url.database or url.database == ":memory:":
            self._scratch = TemporaryDirectory(prefix="inventory-")
            url = url.set(database=f"{self._scratch.name}/inventory.db")
        self._turns = _Turns(Path(str(url.database)))
        self._lock = asyncio.Lock()
        self._engine = _engine(url, size=1, begin="BEGIN IMMEDIATE")
        self._readers = _engine(url, size=4, begin="BEGIN")
        self._queries: dict[Query, Select[Any] | CompoundSelect[Any]] = {}
        self._listeners: set[asyncio.Event] = set()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Wait for the turn, then BEGIN IMMEDIATE: whoever holds it is alone, so there is nothing to lock later."""
        with faults():
            async with self._turn(), self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with asyncio.timeout(_WAIT_SECONDS):
            await self._lock.acquire()
        try:
            async with self._turns.take():
                yield
        finally:
            self._lock.release()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Read the last commit's snapshot beside the writer."""
        with faults():
            async with self._readers.connect() as connection:
                yield connection

    async def commit(
        self, connection: AsyncConnection, transaction_id: str | None, *, witness: str | None = None
    ) -> None:
        """Commit; a failure here means that nothing was committed."""
        with faults():
            await connection.commit()

    def among(self, column: ColumnElement[Any], values: Collection[str]) -> ColumnElement[bool]:
        """``column IN (SELECT value FROM json_each(text))``."""
        return _is_in(column, bindparam(None, _listing(values)))

    def listed(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """``column IN (SELECT value FROM json_each(text))``."""
        return _is_in(column, bindparam(name))

    def now(self) -> ColumnElement[Any]:
        """The clock in the form that ``tables.UtcTime`` writes, to the millisecond."""
        return func.strftime("%Y-%m-%dT%H:%M:%f000+00:00", "now", type_=UtcTime())

    def listed_together(self, columns: Sequence[ColumnElement[Any]], names: Sequence[str]) -> ColumnElement[bool]:
        """Each column in its list: the index is searched for every combination."""
        return and_(*(self.listed(column, name) for column, name in zip(columns, names, strict=True)))

    async def fetch(self, connection: AsyncConnection, query: Query, **values: Any) -> list[dict[str, Any]]:
        """By SQLAlchemy; lists go as JSON."""
        if (statement := self._queries.get(query)) is None:
            statement = self._queries[query] = query.build(self)
        given = {name: _listing(value) if isinstance(value, list) else value for name, value in values.items()}
        return [row._asdict() for row in await connection.execute(statement, given)]

    async def look(self, connection: AsyncConnection, *asked: Asked) -> Look:
        """One query after another: nobody writes beside us, and nothing is far away."""
        now, id = await self.clock(connection)
        return Look(now, id, [await self.fetch(connection, query, **values) for query, values in asked])

    async def write(self, connection: AsyncConnection, *changes: Change) -> list[int]:
        """One prepared statement run over the rows of each change."""
        return [await _run(connection, _statement(change), change.rows) for change in changes]

    async def mark(self, connection: AsyncConnection, lease: Lease, events: Sequence[tuple[str, int]]) -> bool:
        """The counter, then the events."""
        drawn = update(counter).where(held(lease)).values(position=counter.c.position + len(events))
        last = await connection.scalar(drawn.returning(counter.c.position))
        if last is None:
            return False
        now, _ = await self.clock(connection)
        marks = [(*each, now, place) for place, each in enumerate(events, start=last - len(events) + 1)]
        statement = _update(outbox, ("product_id", "sequence"), ("published_at", "position"))
        if await _run(connection, f"{statement} AND published_at IS NULL", marks) == len(events):
            await connection.commit()
        return True

    async def lock_products(self, connection: AsyncConnection, ids: Sequence[str], *, wait: bool) -> set[str]:
        """Nobody else writes: name those that exist."""
        found = await connection.execute(select(product.c.id).where(self.among(product.c.id, ids)))
        return set(found.scalars())

    async def clock(self, connection: AsyncConnection) -> tuple[datetime, str | None]:
        """The machine's clock is the database's."""
        return datetime.now(UTC), None

    async def condition(self, connection: AsyncConnection) -> Condition:
        """Look at the file."""
        now, _ = await self.clock(connection)
        return Condition(now, read_only=not os.access(str(self._engine.url.database), os.W_OK))

    async def announce(self) -> None:
        """Wake the listeners of this process; other processes poll."""
        for rung in self._listeners:
            rung.set()

    @asynccontextmanager
    async def announcements(self) -> AsyncIterator[AsyncIterator[None]]:
        """Listen within the process."""
        rung = asyncio.Event()
        self._listeners.add(rung)
        try:
            yield _rings(rung)
        finally:
            self._listeners.discard(rung)

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """A turn like any other."""
        async with self.writing() as connection:
            yield connection
            await connection.commit()

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()
        await self._readers.dispose()
        self._turns.close()
        if self._scratch is not None:
            self._scratch.cleanup()


class _Turns:
    """Fair turns between processes. SQLite's own waiting backs off blindly, so a busy neighbour would starve us.

    Whoever wants to write first takes the door, waits there for the room, then frees the door: the one who just left
    the room finds the door taken and queues behind.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._files: tuple[TextIO, TextIO] | None = None
        with suppress(OSError):  # a path that cannot be had is told when it is used
            database.parent.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold the turn for the length of the block."""
        door, room = self._files = self._files or (self._open("door"), self._open("room"))
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await _flock(door)
                try:
                    await _flock(room)
                finally:
                    fcntl.flock(door, fcntl.LOCK_UN)
        except TimeoutError:
            raise Unavailable("The database is busy in another process; nothing was done. Try again.") from None
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock files."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _open(self, part: str) -> TextIO:
        return self._database.with_name(f"{self._database.name}-{part}").open("a")


async def _flock(file: Any) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_POLL_SECONDS)


async def _rings(rung: asyncio.Event) -> AsyncIterator[None]:
    while True:
        await rung.wait()
        rung.clear()
        yield


def _listing(values: Collection[str]) -> str:
    return msgspec.json.encode(list(values)).decode()


def _is_in(column: ColumnElement[Any], listing: BindParameter[Any]) -> ColumnElement[bool]:
    return column.in_(select(func.json_each(listing).table_valued("value").c.value))


def _engine(url: URL, *, size: int, begin: str) -> AsyncEngine:
    url = url.set(drivername="sqlite+aiosqlite")
    arguments = {"factory": _Connection}
    engine = create_async_engine(url, connect_args=arguments, pool_size=size, max_overflow=0, pool_timeout=3)

    def connect(connection: Any, _: object) -> None:
        # The driver's own BEGIN comes too late and is never IMMEDIATE: switch it off and send ours.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    event.listen(engine.sync_engine, "connect", connect)
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


class _Connection(sqlite3.Connection):
    """Rolls back when closed. A cancelled caller's cursors may live on, and with them the transaction and its locks."""

    def close(self) -> None:
        self.rollback()
        super().close()


def _statement(change: Change) -> str:
    if isinstance(change, Insert):
        return _insert(change.table, change.columns, skip_existing=change.skip_existing)
    return _update(change.table, change.keys, change.columns)


@cache
def _insert(table: Table, columns: tuple[str, ...], *, skip_existing: bool) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    places = ", ".join("?" * len(columns))
    return f'INSERT INTO "{table.name}" ({names}) VALUES ({places}){" ON CONFLICT DO NOTHING" if skip_existing else ""}'


@cache
def _update(table: Table, keys: tuple[str, ...], columns: tuple[str, ...]) -> str:
    sets = ", ".join(f'"{name}" = ?{place}' for place, name in enumerate(columns, start=len(keys) + 1))
    where = " AND ".join(f'"{name}" = ?{place}' for place, name in enumerate(keys, start=1))
    return f'UPDATE "{table.name}" SET {sets} WHERE {where}'


async def _run(connection: AsyncConnection, statement: str, rows: Sequence[Row]) -> int:
    plain = [tuple(time_text(value) if isinstance(value, datetime) else value for value in row) for row in rows]
    return (await connection.exec_driver_sql(statement, plain)).rowcount
