"""Messages that could not be dealt with, kept with their cause."""

from typing import Any

import msgspec
from sqlalchemy import select

from adapters.sql import tables
from adapters.sql.database import Database, upsert
from core.ids import new_id
from ports.broker import Message
from ports.store import DeadLetter


class SqlDeadLetters:
    """The part of ``ports.store.Store`` that keeps what failed."""

    database: Database

    async def park(self, letter: DeadLetter) -> None:
        """An upsert by fingerprint."""
        table, message = tables.dead_letter, letter.message
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            fresh = upsert(connection, table).values(
                id=new_id("dl"),
                fingerprint=_storable(letter.fingerprint),
                message_id=_storable(message.id),
                event_type=_storable(message.type),
                exchange=_storable(message.exchange),
                routing_key=_storable(message.routing_key),
                correlation_id=_storable(message.correlation_id),
                headers=msgspec.json.encode(message.headers).decode(),
                body=message.body,
                **{name: _storable(getattr(letter, name)) for name in ("code", "detail", "stack")},
                attempts=letter.attempts,
                first_failed_at=now,
                last_failed_at=now,
            )
            again: dict[str, Any] = {
                name: fresh.excluded[name] for name in ("code", "detail", "stack", "last_failed_at")
            }
            again["attempts"] = table.c.attempts + fresh.excluded.attempts
            await connection.execute(fresh.on_conflict_do_update(index_elements=[table.c.fingerprint], set_=again))
            await self.database.commit(connection, transaction_id)

    async def dead_letters(self, *, limit: int) -> list[DeadLetter]:
        """By the time of the last failure."""
        table = tables.dead_letter
        latest = select(table).order_by(table.c.last_failed_at.desc(), table.c.id).limit(limit)
        async with self.database.reading() as connection:
            return [_dead_letter(row) for row in await connection.execute(latest)]


def _storable(text: str) -> str:
    """PostgreSQL cannot store NUL, and a message that nobody understands may be quoted in its cause."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _dead_letter(row: Any) -> DeadLetter:
    message = Message(
        id=row.message_id,
        exchange=row.exchange,
        routing_key=row.routing_key,
        body=row.body,
        type=row.event_type,
        correlation_id=row.correlation_id,
        headers=msgspec.json.decode(row.headers, type=dict[str, str]),
    )
    return DeadLetter(
        fingerprint=row.fingerprint,
        message=message,
        code=row.code,
        detail=row.detail,
        stack=row.stack,
        attempts=row.attempts,
    )
