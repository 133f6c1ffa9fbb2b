"""Product events that came, and products that were taken on trust."""

from datetime import timedelta

from sqlalchemy import delete, or_, select, update

from adapters.sql import acts, tables
from adapters.sql.database import Database, upsert
from core.acts import Act
from ports.product_records import ProductCheck, ReceivedEvent


class SqlProductRecords:
    """See ``ports.product_records.ProductRecords``."""

    database: Database

    async def received(self, event_id: str) -> ReceivedEvent | None:
        """By primary key."""
        async with self.database.reading() as connection:
            found = await connection.execute(select(tables.inbox).where(tables.inbox.c.event_id == event_id))
            row = found.one_or_none()
        return ReceivedEvent(**row._mapping) if row is not None else None

    async def owe_check(self, product_id: str) -> None:
        """An insert that does nothing the second time."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            row = upsert(connection, tables.product_check).values(
                product_id=product_id, status="PENDING", owed_at=now, checked_at=None
            )
            await connection.execute(row.on_conflict_do_nothing())
            await self.database.commit(connection, transaction_id)

    async def owed_checks(self, *, limit: int, again_after_seconds: float) -> list[str]:
        """By the time of the last check, none coming first."""
        check = tables.product_check.c
        async with self.database.reading() as connection:
            now, _ = await self.database.clock(connection)
            due = or_(check.status == "PENDING", check.checked_at < now - timedelta(seconds=again_after_seconds))
            owed = select(check.product_id).where(due).order_by(check.checked_at.nulls_first(), check.owed_at)
            return list((await connection.execute(owed.limit(limit))).scalars())

    async def settle_check(self, product_id: str, *, missing: bool) -> None:
        """Delete, or mark."""
        table = tables.product_check
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            one = table.c.product_id == product_id
            if missing:
                await connection.execute(update(table).where(one).values(status="MISSING", checked_at=now))
            else:
                await connection.execute(delete(table).where(one))
            await self.database.commit(connection, transaction_id)

    async def postpone_check(self, product_id: str) -> None:
        """By the time it was tried."""
        table = tables.product_check
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            await connection.execute(update(table).where(table.c.product_id == product_id).values(checked_at=now))
            await self.database.commit(connection, transaction_id)

    async def record_act(self, act: Act, action: str, subject: str, **details: object) -> None:
        """A row of its own."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            await acts.record(connection, now, act, action, subject, **details)
            await self.database.commit(connection, transaction_id)

    async def product_checks(self, *, limit: int) -> list[ProductCheck]:
        """By age."""
        table = tables.product_check
        oldest = select(table).order_by(table.c.owed_at, table.c.product_id).limit(limit)
        async with self.database.reading() as connection:
            return [ProductCheck(**row._mapping) for row in await connection.execute(oldest)]
