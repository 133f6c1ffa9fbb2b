"""PostgreSQL through asyncpg: arrays for sets, row locks, NOTIFY for the bell, a deadline on everything."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import cache
from secrets import token_hex
from typing import Any, TypeVar

from asyncpg import InterfaceError, PostgresError
from msgspec import Struct
from sqlalchemy import ARRAY, ColumnElement, NullPool, Table, Text, any_, bindparam, event, func, select, text, tuple_
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from adapters.sql.database import Asked, Change, Look, Query, Update
from adapters.sql.faults import faults
from adapters.sql.tables import stock_transaction
from core.errors import InventoryError, OutcomeUnknown, Unavailable, ValidationFailed
from ports.leases import Lease
from ports.store import Condition

T = TypeVar("T")
_CHANNEL = "inventory_outbox"
_MIGRATION_LOCK = 7_364_201
_SETTLE_SECONDS = 5.0
_NO_SUCH_TRANSACTION = "22023"
_IS_NULL = "23502"
_LOST = (
    "The database was lost in the middle of the commit. Ask again with the same Idempotency-Key: it will be done once, "
    "or its answer told again."
)
_NOTIFY_GAP_SECONDS = 0.02
_NOTIFY_AGAIN_SECONDS = 1.0
_SESSION = {
    "application_name": "inventory-service",
    "timezone": "UTC",
    # Plans are kept, and one that was made while a table was small would read all of it for each batch of a first
    # import, until the next ANALYZE. Hot statements find their rows by an index, so a few hundred rows are enough for a
    # good plan; below that it may be a join over a whole index. What does read whole tables says so
    # (``reconciliation.py``).
    "enable_seqscan": "off",
    "random_page_cost": "1.1",
    "jit": "off",
    "lock_timeout": "1000",
    "statement_timeout": "2500",
    "idle_in_transaction_session_timeout": "10000",
}
_ARRAYS = {
    "BigInteger": "bigint[]",
    "Boolean": "boolean[]",
    "Integer": "integer[]",
    "LargeBinary": "bytea[]",
    "Text": "text[]",
    "UtcTime": "timestamptz[]",
}


_MARK = """
  WITH counter AS (
    SELECT position FROM lease WHERE name = $1 AND owner = $2 AND token = $3 FOR NO KEY UPDATE
  ), marked AS (
    UPDATE outbox SET published_at = statement_timestamp(), position = counter.position + event.place
      FROM counter, unnest($4::text[], $5::bigint[]) WITH ORDINALITY AS event (product_id, sequence, place)
     WHERE outbox.product_id = event.product_id AND outbox.sequence = event.sequence
       AND coalesce(published_at, 'infinity') = 'infinity'
    RETURNING 1
  )
UPDATE lease
   SET position = position + CASE (SELECT count(*) FROM marked)
         WHEN cardinality($4) THEN cardinality($4) ELSE (SELECT 0 WHERE NOT EXISTS (SELECT FROM counter)) END
 WHERE name = $1 AND owner = $2 AND token = $3
RETURNING true
"""


class PostgresDatabase:
    """See ``Database``. ``?pool=20`` in the URL sets how many connections a process has, beside what listens."""

    def __init__(self, url: URL) -> None:
        query = dict(url.query)
        pool = str(query.pop("pool", "10"))
        if not pool.isdecimal() or not 1 <= int(pool) <= 1000:
            raise ValidationFailed(f"The store URL's pool is {pool}; give a number of connections, 1 to 1000.")
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
        self._url = url.set(drivername="postgresql+asyncpg", query=query)
        # The server's deadlines come first; these are for a server that does not answer at all.
        connecting = {"timeout": 3, "command_timeout": 3, "server_settings": _SESSION}
        self._engine = create_async_engine(
            self._url,
            pool_size=int(pool),
            max_overflow=0,
            pool_timeout=3,
            pool_recycle=1800,
            pool_use_lifo=True,
            connect_args=connecting,
        )
        self._beside = create_async_engine(self._url, poolclass=NullPool, connect_args=connecting)
        event.listen(self._engine.sync_engine, "handle_error", _invalidate)
        self._queries: dict[Query, _Compiled] = {}
        self._looks: dict[tuple[Query, ...], str] = {}
        self._bell: asyncio.Task[None] | None = None
        self._listeners: set[asyncio.Event] = set()
        self._name = token_hex(8)
        self._notify = f"NOTIFY {_CHANNEL}, '{self._name}'"
        self._unheard = False

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Begin on a pooled connection; SQLAlchemy sends BEGIN with the first statement."""
        with faults():
            async with self._engine.connect() as connection:
                try:
                    yield connection
                except (TimeoutError, OSError):
                    # What the server still does with this connection is anybody's guess: it must not be used again.
                    await connection.invalidate()
                    raise
                finally:
                    # A COMMIT that was broken off leaves a transaction that SQLAlchemy knows nothing of any more.
                    if not (connection.invalidated or connection.in_transaction()) and _is_open(connection):
                        await connection.invalidate()

    reading = writing

    async def commit(
        self, connection: AsyncConnection, transaction_id: str | None, *, witness: str | None = None
    ) -> None:
        """Commit, and settle a lost answer by asking the server for the transaction's fate."""
        try:
            with faults():
                await connection.commit()
        except InventoryError as error:
            with suppress(Exception):
                await connection.invalidate()
            if transaction_id is None or not await self._settle(transaction_id, witness):
                detail = "The change was not committed; nothing was done. Try again."
                raise Unavailable(detail, retry_after=1) from error

    async def _settle(self, transaction_id: str, witness: str | None) -> bool:
        """Tell whether the transaction was committed.

        A server that crashed before it had written anything down of a transaction gives its id to another one later:
        "committed" may be said of that one. What the transaction itself has written cannot be mistaken.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while True:
                    with suppress(Unavailable):
                        if (status := await self._status(transaction_id)) == "aborted":
                            return False
                        if status != "in progress":
                            return await self._wrote(witness)
                    await asyncio.sleep(0.05)
        raise OutcomeUnknown(_LOST)

    async def _status(self, transaction_id: str) -> str | None:
        status = text("SELECT pg_xact_status(CAST(CAST(:id AS text) AS xid8))")
        try:
            async with self.reading() as connection:
                found: str | None = await connection.scalar(status, {"id": transaction_id})
                return found
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _NO_SUCH_TRANSACTION:
                raise
            return "aborted"  # lost in a crash, and its id not given to another one yet

    async def _wrote(self, witness: str | None) -> bool:
        """Whether this ledger row is there; to be asked after the status, so that a commit in between is seen."""
        if witness is None:
            raise OutcomeUnknown(_LOST)
        async with self.reading() as connection:
            row = select(stock_transaction.c.id).where(stock_transaction.c.id == witness)
            return await connection.scalar(row) is not None

    def among(self, column: ColumnElement[Any], values: Collection[str]) -> ColumnElement[bool]:
        """``column = ANY(array)``."""
        return column == any_(bindparam(None, list(values), type_=ARRAY(Text)))

    def listed(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """``column = ANY(array)``."""
        return column == any_(bindparam(name, type_=ARRAY(Text)))

    def now(self) -> ColumnElement[Any]:
        """``statement_timestamp()``: the clock itself no index can be searched by."""
        return func.statement_timestamp()

    def listed_together(self, columns: Sequence[ColumnElement[Any]], names: Sequence[str]) -> ColumnElement[bool]:
        """``(a, b) IN (SELECT … FROM unnest(arrays))``.

        Not a list for each column: a plan for any lists may then read everything that shares the first column's value.
        """
        arrays = [bindparam(name, type_=ARRAY(Text)) for name in names]
        return tuple_(*columns).in_(select(*func.unnest(*arrays).table_valued(*names).render_derived().c))

    async def fetch(self, connection: AsyncConnection, query: Query, **values: Any) -> list[dict[str, Any]]:
        """By the driver's own prepared statements."""
        known = self._compiled(query)
        rows = await self._ask_at_once(connection, lambda driver: driver.fetch(known.text, *known.given(values)))
        return [dict(row) for row in rows]

    def _compiled(self, query: Query) -> "_Compiled":
        if (known := self._queries.get(query)) is None:
            statement = query.build(self)
            compiled = statement.compile(dialect=self._engine.dialect)
            names = getattr(compiled, "positiontup", None) or ()
            values = {name: compiled.params[name] for name in names}
            known = self._queries[query] = _Compiled(str(compiled), values, statement.selected_columns.keys())
        return known

    async def look(self, connection: AsyncConnection, *asked: Asked) -> Look:
        """All in one statement, the rows of each query an array of records."""
        key = tuple(query for query, _ in asked)
        queries = [self._compiled(query) for query in key]
        if (statement := self._looks.get(key)) is None:
            statement = self._looks[key] = _together(queries)
        given = [value for query, (_, values) in zip(queries, asked, strict=True) for value in query.given(values)]
        now, id, *found = await self._ask(connection, lambda driver: driver.fetchrow(statement, *given))
        rows = [
            [dict(zip(query.columns, row, strict=True)) for row in rows]
            for query, rows in zip(queries, found, strict=True)
        ]
        return Look(now, id, rows)

    async def write(self, connection: AsyncConnection, *changes: Change) -> list[int]:
        """All in one statement, whose parts PostgreSQL carries out in the order in which they are counted."""
        if not changes:
            return []
        statement = _written(tuple(_shape(change) for change in changes))
        columns = [list(column) for change in changes for column in zip(*change.rows, strict=True)]
        return list(await self._ask(connection, lambda driver: driver.fetchrow(statement, *columns)))

    async def _ask(self, connection: AsyncConnection, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Ask the driver itself, inside the connection's transaction: half of the way through SQLAlchemy is spared."""
        if not _driver(connection).is_in_transaction():
            await connection.exec_driver_sql("SELECT 1")  # SQLAlchemy begins with its first statement
        return await self._ask_at_once(connection, ask)

    async def _ask_at_once(self, connection: AsyncConnection, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Ask the driver, in the connection's transaction if it has begun one: a lone read needs none.

        What the driver raises looks as if it had come by way of SQLAlchemy.
        """
        driver = _driver(connection)
        try:
            return await ask(driver)
        except (PostgresError, InterfaceError) as error:
            lost = driver.is_closed() or _is_done_with(error)
            if lost:
                await connection.invalidate()
            raise DBAPIError(None, None, error, connection_invalidated=lost) from error

    async def mark(self, connection: AsyncConnection, lease: Lease, events: Sequence[tuple[str, int]]) -> bool:
        """One statement, which is its own transaction: a relay's turn is short, and there and back is most of it.

        The counter may not be NULL, so a count that is not as it should be takes everything back. Where the lease has
        just gone to another owner it is not ours to count, and stays; ``coalesce`` keeps the index of all that waits
        out of it, which a long backlog makes long.
        """
        products, sequences = map(list, zip(*events, strict=True))
        given = (lease.name, lease.owner, lease.token, products, sequences)
        try:
            return bool(await self._ask_at_once(connection, lambda driver: driver.fetchval(_MARK, *given)))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _IS_NULL:
                raise
            return True

    async def lock_products(self, connection: AsyncConnection, ids: Sequence[str], *, wait: bool) -> set[str]:
        """``SELECT … FOR NO KEY UPDATE``, and nothing else in that statement: a waiter would read old values."""
        skip = "" if wait else " SKIP LOCKED"
        found = await connection.exec_driver_sql(
            f"SELECT id FROM product WHERE id = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE{skip}", (list(ids),)
        )
        return set(found.scalars())

    async def clock(self, connection: AsyncConnection) -> tuple[datetime, str | None]:
        """Return the server's clock and this transaction's xid8."""
        asked = "SELECT clock_timestamp(), pg_current_xact_id()::text"
        row = await self._ask(connection, lambda driver: driver.fetchrow(asked))
        return row[0], row[1]

    async def condition(self, connection: AsyncConnection) -> Condition:
        """Ask what a standby answers as well: ``clock`` asks for a transaction's id, of which it has none to give."""
        asked = "SELECT clock_timestamp(), current_setting('transaction_read_only') = 'on'"
        row: Any = (await connection.exec_driver_sql(asked)).one()
        return Condition(row[0], row[1])

    async def announce(self) -> None:
        """Wake this process's listeners at once, and the others' by NOTIFY, at most once in 20 ms.

        From a connection of its own: in a batch it would serialise every commit.
        """
        for rung in self._listeners:
            rung.set()
        self._unheard = True
        if self._bell is None or self._bell.done():
            self._bell = asyncio.create_task(self._ring())

    async def _ring(self) -> None:
        while self._unheard:
            self._unheard = False
            try:
                async with self.writing() as connection:
                    await self._ask_at_once(connection, lambda driver: driver.execute(self._notify))
            except InventoryError:
                self._unheard = True
                await asyncio.sleep(_NOTIFY_AGAIN_SECONDS)
            await asyncio.sleep(_NOTIFY_GAP_SECONDS)

    @asynccontextmanager
    async def announcements(self) -> AsyncIterator[AsyncIterator[None]]:
        """LISTEN on a connection beside the pool; a lost one ends the iteration, the listener asks for another."""
        with faults():
            async with self._beside.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                driver = (await connection.get_raw_connection()).driver_connection
                if driver is None:
                    raise Unavailable("The database connection was lost.")
                rung = asyncio.Event()
                lost = asyncio.Event()

                def ring(_connection: object, _pid: int, _channel: str, name: str) -> None:
                    if name != self._name:  # our own bell has rung here already
                        rung.set()

                def lose(*_: object) -> None:
                    lost.set()
                    rung.set()

                driver.add_termination_listener(lose)
                await driver.add_listener(_CHANNEL, ring)
                self._listeners.add(rung)
                try:
                    yield _rings(rung, lost)
                finally:
                    self._listeners.discard(rung)
                    with suppress(Exception):
                        await driver.remove_listener(_CHANNEL, ring)
                    driver.remove_termination_listener(lose)

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """One migration at a time, by an advisory lock, on a connection without a request's deadlines."""
        engine = create_async_engine(self._url, poolclass=NullPool, connect_args={"timeout": 3})
        with faults():
            async with engine.begin() as connection:
                await connection.exec_driver_sql("SET LOCAL lock_timeout = 60000")
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
                yield connection

    async def close(self) -> None:
        """Close the pool."""
        if self._bell is not None:
            self._bell.cancel()
            with suppress(asyncio.CancelledError):
                await self._bell
        await self._engine.dispose()


def _driver(connection: AsyncConnection) -> Any:
    return connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]


def _is_open(connection: AsyncConnection) -> bool:
    driver = _driver(connection)
    return driver is not None and not driver.is_closed() and bool(driver.is_in_transaction())


async def _rings(rung: asyncio.Event, lost: asyncio.Event) -> AsyncIterator[None]:
    while not lost.is_set():
        await rung.wait()
        rung.clear()
        if not lost.is_set():
            yield


class _Compiled(Struct, frozen=True):
    """A query's text, its values in order by name, and the names of its columns."""

    text: str
    values: dict[str, Any]
    columns: list[str]

    def given(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the values in the order in which the text wants them, its own constants among them."""
        return [values.get(name, constant) for name, constant in self.values.items()]


def _together(queries: Sequence[_Compiled]) -> str:
    parts, place = ["clock_timestamp()", "pg_current_xact_id()::text"], 0
    for query in queries:
        parts.append(f"ARRAY(SELECT q FROM ({_shifted(query.text, place)}) AS q)")
        place += len(query.values)
    return f"SELECT {', '.join(parts)}"


def _shifted(text: str, by: int) -> str:
    """Return a query whose values are counted from ``by`` + 1 on."""
    return re.sub(r"\$(\d+)", lambda found: f"${int(found[1]) + by}", text)


_Shape = tuple[Table, tuple[str, ...], tuple[str, ...], str]


def _shape(change: Change) -> _Shape:
    """Return what a change's statement is made of: table, keys of an update, columns, tail."""
    if isinstance(change, Update):
        return change.table, change.keys, change.columns, ""
    return change.table, (), change.columns, " ON CONFLICT DO NOTHING" if change.skip_existing else ""


@cache
def _written(shapes: tuple[_Shape, ...]) -> str:
    parts, place = [], 1
    for table, keys, columns, tail in shapes:
        arrays = _arrays(table, keys + columns, place)
        place += len(keys + columns)
        parts.append((_update(table, keys, columns, arrays) if keys else _insert(table, columns, arrays)) + tail)
    named = ", ".join(f"w{number} AS ({part} RETURNING 1)" for number, part in enumerate(parts))
    return f"WITH {named} SELECT {', '.join(f'(SELECT count(*) FROM w{number})' for number in range(len(parts)))}"


def _insert(table: Table, columns: tuple[str, ...], arrays: str) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f'INSERT INTO "{table.name}" ({names}) SELECT * FROM unnest({arrays})'


def _update(table: Table, keys: tuple[str, ...], columns: tuple[str, ...], arrays: str) -> str:
    # A key may be set as well (a version): the incoming columns are named by place, not by name.
    names = ", ".join(f"v{place}" for place in range(len(keys + columns)))
    sets = ", ".join(f'"{name}" = v.v{place}' for place, name in enumerate(columns, start=len(keys)))
    where = " AND ".join(f't."{name}" = v.v{place}' for place, name in enumerate(keys))
    return f'UPDATE "{table.name}" AS t SET {sets} FROM unnest({arrays}) AS v({names}) WHERE {where}'


def _arrays(table: Table, columns: tuple[str, ...], start: int) -> str:
    kinds = (_ARRAYS[type(table.c[name].type).__name__] for name in columns)
    return ", ".join(f"${place}::{kind}" for place, kind in enumerate(kinds, start=start))


def _invalidate(context: ExceptionContext) -> None:
    if _is_done_with(context.original_exception):
        context.is_disconnect = True


def _is_done_with(error: BaseException) -> bool:
    """Tell whether a connection is of no use any more: after a failover every ping succeeds and every write fails."""
    state = str(getattr(error, "sqlstate", None) or "")
    return state == "25006" or state.startswith("57P0")
