"""What is over and may go: told answers, events that went out and came in, letters, runs and imports that ended."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, delete, select, tuple_

from adapters.sql import tables
from adapters.sql.database import Database
from adapters.sql.imports import forget_imports
from adapters.sql.reconciliation import forget_reconciliations

_RUNS_KEPT = timedelta(days=30)


class SqlHousekeeping:
    """The part of ``ports.store.Store`` that keeps it from growing."""

    database: Database

    async def purge(self, *, answers_hours: float, events_days: float, inbox_days: float, limit: int = 1000) -> int:
        """Small batches, each its own transaction, so that nobody waits behind them (rule R4)."""
        keys, inbox, outbox = tables.idempotency_key.c, tables.inbox.c, tables.outbox.c
        letter, attempt = tables.dead_letter.c, tables.dead_letter_attempt.c
        async with self.database.reading() as connection:
            now, _ = await self.database.clock(connection)
        old = select(keys.issuer, keys.subject, keys.key).where(keys.created_at < now - timedelta(hours=answers_hours))
        imports = tables.stock_import.c  # which may have to wait long, and must not be done twice then
        old = old.where(keys.subject.not_in(select(imports.id).where(imports.ended_at.is_(None))))
        heard = select(inbox.event_id).where(inbox.received_at < now - timedelta(days=inbox_days))
        # In the order they went out, so that what is left of a product has no gaps; and only the first are looked at.
        first = select(outbox.id, outbox.published_at).where(outbox.position.is_not(None))
        first_sent = first.order_by(outbox.position).limit(limit).subquery()
        sent = select(first_sent.c.id).where(first_sent.c.published_at < now - timedelta(days=events_days))
        # What an operator had skipped went nowhere and has no position.
        oldest = select(outbox.id, outbox.published_at, outbox.position).order_by(outbox.id).limit(limit).subquery()
        skipped = select(oldest.c.id).where(
            oldest.c.position.is_(None), oldest.c.published_at < now - timedelta(days=events_days)
        )
        # As long as an event is known again, so that what is restored late still has no second effect.
        ended = select(letter.id).where(letter.ended_at < now - timedelta(days=inbox_days))
        over = ended.order_by(letter.ended_at).limit(limit)
        delivery = tables.delivery.c
        counted = select(delivery.fingerprint).where(delivery.last_at < now - timedelta(days=inbox_days))
        gone = 0
        for statement in (
            delete(tables.idempotency_key).where(_scope_in(old.limit(limit))),
            delete(tables.inbox).where(inbox.event_id.in_(heard.limit(limit))),
            delete(tables.outbox).where(outbox.id.in_(sent)),
            delete(tables.outbox).where(outbox.id.in_(skipped)),
            delete(tables.dead_letter_attempt).where(attempt.dead_letter_id.in_(over)),
            delete(tables.dead_letter).where(letter.id.in_(over)),
            delete(tables.delivery).where(tables.delivery.c.fingerprint.in_(counted.limit(limit))),
            *forget_imports(now - timedelta(days=inbox_days), unfinished=now - timedelta(days=1), limit=limit),
            *forget_reconciliations(now - _RUNS_KEPT, limit=limit),
        ):
            async with self.database.writing() as connection:
                gone += (await connection.execute(statement)).rowcount
                await connection.commit()
        return gone


def _scope_in(old: Select[Any]) -> Any:
    keys = tables.idempotency_key.c
    return tuple_(keys.issuer, keys.subject, keys.key).in_(old)
