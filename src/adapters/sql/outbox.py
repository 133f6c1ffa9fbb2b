"""The relay's steps: what is to be published, and marking what was. Rules R17, R18, R22."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy import Integer, Select, bindparam, func, select

from adapters.sql import tables
from adapters.sql.database import Database, Query
from core.events import OutboxRow
from ports.leases import Lease
from ports.outbox import BACKLOG_MAX, RELAY, Backlog

_OUTBOX = tuple(tables.outbox.c[name] for name in OutboxRow.__struct_fields__ if name != "position")
_PENDING = tables.outbox.c.published_at.is_(None)


def _unpublished(database: Database) -> Select[Any]:
    table = tables.outbox.c
    blocked = select(table.product_id).where(table.blocked_at.is_not(None))
    wanted = (_PENDING, table.product_id.not_in(blocked), ~database.listed(table.product_id, "skip"))
    return select(*_OUTBOX).where(*wanted).order_by(table.id).limit(bindparam("most", type_=Integer))


_CRITICAL = Query(
    lambda _: (
        select(tables.outbox.c.product_id)
        .where(_PENDING, tables.outbox.c.critical)
        .distinct()
        .limit(bindparam("most", type_=Integer))
    )
)


@Query
def _URGENT(database: Database) -> Select[Any]:  # noqa: N802 - a query is a constant
    # The empty text keeps the index on (product_id, sequence) out of it: that holds everything ever published.
    return _unpublished(database).where(database.listed(tables.outbox.c.product_id + "", "urgent"))


_WAITING = Query(_unpublished)


class SqlOutbox:
    """The part of ``ports.store.Store`` that the relay works with."""

    database: Database

    async def pending(self, limit: int, *, skip: Collection[str] = ()) -> list[OutboxRow]:
        """What has waited longest; where there is more of that than is asked for, critical products' backlogs first."""
        values = {"skip": list(skip), "most": limit}
        async with self.database.reading() as connection:
            waiting = [OutboxRow(**row) for row in await self.database.fetch(connection, _WAITING, **values)]
            if len(waiting) < limit:
                urgent = {row.product_id for row in waiting if row.critical}
                first = [row for row in waiting if row.product_id in urgent]
            else:
                critical = await self.database.fetch(connection, _CRITICAL, most=limit)
                urgent = {row["product_id"] for row in critical}
                first = []
                if urgent:
                    backlogs = await self.database.fetch(connection, _URGENT, urgent=list(urgent), **values)
                    first = [OutboxRow(**row) for row in backlogs]
        others = [row for row in waiting if row.product_id not in urgent][: limit - len(first)]
        return [*sorted(first, key=_in_order), *sorted(others, key=_in_order)]

    async def mark_published(self, lease: Lease, rows: Sequence[OutboxRow]) -> bool:
        """Draw the positions from the lease's own row: that is the fence and the counter in one.

        Where a mark that was given up for lost has come through meanwhile, nothing is marked, for an event keeps its
        place for ever: what has no place yet is found again, published again, and marked then.
        """
        async with self.database.writing() as connection:
            return await self.database.mark(connection, lease, [(row.product_id, row.sequence) for row in rows])

    async def position(self) -> int:
        """The counter in the relay's lease: it outlives the events."""
        table = tables.lease.c
        async with self.database.reading() as connection:
            return await connection.scalar(select(table.position).where(table.name == RELAY)) or 0

    async def published(self, after: int, *, limit: int) -> list[OutboxRow]:
        """By the index of positions; they are drawn and committed one batch after another, so none comes late."""
        place = tables.outbox.c.position
        statement = select(*_OUTBOX, place).where(place > after).order_by(place).limit(limit)
        async with self.database.reading() as connection:
            return [OutboxRow(**row._asdict()) for row in await connection.execute(statement)]

    async def backlog(self) -> Backlog:
        """In the order of the index of what is pending, so that it reads no more than it counts."""
        table = tables.outbox.c
        waiting = select(table.created_at).where(_PENDING).order_by(table.id).limit(BACKLOG_MAX).subquery()
        async with self.database.reading() as connection:
            found = await connection.execute(select(func.count(), func.min(waiting.c.created_at)).select_from(waiting))
            count, oldest_at = found.one()
        return Backlog(count, oldest_at)

    async def announce(self) -> None:
        """Ring."""
        await self.database.announce()

    def announcements(self) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Listen."""
        return self.database.announcements()


def _in_order(row: OutboxRow) -> tuple[str, int]:
    return row.product_id, row.sequence
