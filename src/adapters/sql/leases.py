"""Leases: who alone may do what, until when, and the fence that keeps out whoever has lost his."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, case, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import tables
from adapters.sql.database import Database, upsert
from ports.leases import Lease


class SqlLeases:
    """The part of ``ports.store.Store`` by which one process at a time does something."""

    database: Database

    async def acquire(self, name: str, owner: str, *, seconds: float) -> Lease | None:
        """One upsert decides; the token rises when the owner changes."""
        table = tables.lease
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            expires_at = now + timedelta(seconds=seconds)
            fresh = upsert(connection, table).values(name=name, owner=owner, token=1, position=0, expires_at=expires_at)
            ours = table.c.owner == fresh.excluded.owner
            statement = fresh.on_conflict_do_update(
                index_elements=[table.c.name],
                set_={
                    "owner": fresh.excluded.owner,
                    "expires_at": fresh.excluded.expires_at,
                    "token": case((ours, table.c.token), else_=table.c.token + 1),
                },
                where=or_(ours, table.c.expires_at <= now),
            ).returning(table.c.token)
            token = await connection.scalar(statement)
            await connection.commit()
        return None if token is None else Lease(name, owner, token)

    async def release(self, lease: Lease) -> None:
        """Let it run out now; the next owner's token is higher all the same."""
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            ended = {"expires_at": now - timedelta(seconds=1), "owner": ""}
            await connection.execute(update(tables.lease).where(held(lease)).values(ended))
            await connection.commit()


def held(lease: Lease) -> Any:
    """Select the row of a lease that is still ours: touching it in a transaction is the fence."""
    table = tables.lease.c
    return and_(table.name == lease.name, table.owner == lease.owner, table.token == lease.token)


async def lock(connection: AsyncConnection, name: str, now: datetime) -> None:
    """Let one transaction at a time go on, and no owner come or go meanwhile; a lease nobody ever had is made first."""
    table = tables.lease
    free = upsert(connection, table).values(name=name, owner="", token=0, position=0, expires_at=now)
    await connection.execute(free.on_conflict_do_nothing())
    await connection.execute(select(table.c.name).where(table.c.name == name).with_for_update())


async def holds(connection: AsyncConnection, lease: Lease) -> bool:
    """Whether a lease is still ours; if so it cannot change hands before this transaction has ended."""
    ours = select(tables.lease.c.name).where(held(lease)).with_for_update()
    return await connection.scalar(ours) is not None
