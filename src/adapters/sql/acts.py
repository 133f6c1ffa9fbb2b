"""The table ``audit``: who did what by hand, written in the transaction of the act itself."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import tables
from adapters.sql.database import Database
from core.acts import Act, ActRecord
from core.ids import new_id


async def record(
    connection: AsyncConnection, now: datetime, act: Act, action: str, subject: str, **details: object
) -> None:
    """Put an act on record, to be committed with what was done."""
    row = {
        "id": new_id("act"),
        "at": now,
        "actor": act.actor,
        "action": action,
        "subject": subject,
        "reason": act.reason,
        "correlation_id": act.correlation_id,
        "details": msgspec.json.encode(details).decode(),
    }
    await connection.execute(insert(tables.audit).values(row))


async def records(
    database: Database, connection: AsyncConnection, subjects: Collection[str], *, limit: int
) -> tuple[ActRecord, ...]:
    """Return what was done to these, newest first."""
    table = tables.audit
    newest = select(table).where(database.among(table.c.subject, subjects)).order_by(table.c.id.desc()).limit(limit)
    return tuple(_record(row) for row in await connection.execute(newest))


def _record(row: Any) -> ActRecord:
    fields = row._asdict()
    return ActRecord(**fields | {"details": msgspec.json.decode(fields["details"])})
