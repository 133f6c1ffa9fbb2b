"""Messages that could not be dealt with, kept with their cause: what is known of them, and what is decided of them."""

from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, LargeBinary, and_, case, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import acts, tables
from adapters.sql.database import Database, upsert
from core.acts import Act
from core.errors import Conflict, InventoryError, NotFound
from core.ids import new_id
from ports.dead_letters import (
    BODY_SHOWN_BYTES,
    Applied,
    Attempt,
    DeadLetter,
    Letter,
    LetterDetail,
    LetterFilter,
    LetterGroup,
    LetterStatus,
)

_SHOWN = 100
_LETTER = tuple(tables.dead_letter.c[name] for name in Letter.__struct_fields__)
_HOW: dict[LetterStatus, str] = {
    "UNRESOLVED": "waits for a decision",
    "WAITING": "is about to be tried again",
    "RETRYING": "is being tried again",
    "RESOLVED": "has been dealt with",
    "DISCARDED": "was discarded",
}


class SqlDeadLetters:
    """The part of ``ports.store.Store`` that keeps what failed; its other half is ``SqlRetries``."""

    database: Database

    async def park(self, letter: DeadLetter) -> None:
        """An upsert by fingerprint."""
        table = tables.dead_letter
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            row = letter_row(letter, now) | {"attempts": max(letter.attempts, 1)}
            fresh = upsert(connection, table).values(id=new_id("dl"), **row)
            names = ("code", "detail", "stack", "cause", "group_id", "last_failed_at")
            again: dict[str, Any] = {name: fresh.excluded[name] for name in names}
            again["attempts"] = table.c.attempts + letter.attempts
            # What was to be tried by itself and fails for good by another delivery waits for an operator now.
            by_itself = and_(table.c.status == "WAITING", table.c.retry_id.is_(None))
            for name in ("status", "next_attempt_at"):
                again[name] = case((by_itself, fresh.excluded[name]), else_=table.c[name])
            statement = fresh.on_conflict_do_update(index_elements=[table.c.fingerprint], set_=again)
            id, attempts = (await connection.execute(statement.returning(table.c.id, table.c.attempts))).one()
            tried = {"at": now, "outcome": letter.code, "detail": storable(letter.detail), "process": letter.process}
            attempt = upsert(connection, tables.dead_letter_attempt).values(dead_letter_id=id, number=attempts, **tried)
            await connection.execute(attempt.on_conflict_do_nothing())
            await self.database.commit(connection, transaction_id)

    async def count_delivery(self, fingerprint: str) -> int:
        """An upsert, in a transaction of its own."""
        table = tables.delivery
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            fresh = upsert(connection, table).values(fingerprint=fingerprint, attempts=1, last_at=now)
            again = {"attempts": table.c.attempts + 1, "last_at": now}
            counted = fresh.on_conflict_do_update(index_elements=[table.c.fingerprint], set_=again)
            attempts: int = (await connection.execute(counted.returning(table.c.attempts))).scalar_one()
            await self.database.commit(connection, transaction_id)
        return attempts

    async def forget_deliveries(self, fingerprint: str) -> None:
        """By primary key."""
        async with self.database.writing() as connection:
            await connection.execute(delete(tables.delivery).where(tables.delivery.c.fingerprint == fingerprint))
            await connection.commit()

    async def letters(self, filter: LetterFilter, *, after: str | None = None, limit: int) -> list[Letter]:
        """In order of id, which is the order of first failure."""
        statement = select(*_LETTER).where(*wanted(filter)).order_by(tables.dead_letter.c.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(tables.dead_letter.c.id < after)
        async with self.database.reading() as connection:
            return [letter_of(row) for row in await connection.execute(statement)]

    async def letter_groups(self, filter: LetterFilter, *, limit: int) -> list[LetterGroup]:
        """One aggregate."""
        table = tables.dead_letter.c
        count = func.count()
        groups = (
            select(
                *(table.group_id, func.min(table.code), func.max(table.cause), count),
                *(func.min(table.first_failed_at), func.max(table.last_failed_at), func.max(table.id)),
            )
            .where(*wanted(filter))
            .group_by(table.group_id)
            .order_by(count.desc(), table.group_id)
            .limit(limit)
        )
        async with self.database.reading() as connection:
            return [LetterGroup(*row) for row in await connection.execute(groups)]

    async def letter_counts(self) -> Mapping[str, int]:
        """By the index of status."""
        table = tables.dead_letter.c
        async with self.database.reading() as connection:
            counts = await connection.execute(select(table.status, func.count()).group_by(table.status))
            return {row[0]: row[1] for row in counts}

    async def letter(self, id: str) -> LetterDetail | None:
        """Five small reads; only as much of the body as is shown."""
        table, attempt, inbox = tables.dead_letter, tables.dead_letter_attempt, tables.inbox
        shown = func.substr(table.c.body, 1, BODY_SHOWN_BYTES, type_=LargeBinary).label("shown")
        more = (table.c.exchange, table.c.routing_key, table.c.headers, table.c.stack)
        head = select(*_LETTER, *more, shown, func.length(table.c.body).label("body_bytes")).where(table.c.id == id)
        tries = [attempt.c[name] for name in Attempt.__struct_fields__]
        history = select(*tries).where(attempt.c.dead_letter_id == id).order_by(attempt.c.number.desc()).limit(_SHOWN)
        async with self.database.reading() as connection:
            if (row := (await connection.execute(head)).one_or_none()) is None:
                return None
            heard = select(inbox.c.verdict, inbox.c.reason, inbox.c.received_at).where(inbox.c.event_id == row.event_id)
            applied = (await connection.execute(heard)).one_or_none()
            subjects = [id, row.retry_id] if row.retry_id else [id]
            fields = row._asdict()
            body, encoding = _readable(fields.pop("shown") or b"", cut=row.body_bytes > BODY_SHOWN_BYTES)
            return LetterDetail(
                **fields | {"skus": _skus(row.skus), "headers": msgspec.json.decode(row.headers, type=dict[str, str])},
                body=body,
                body_encoding=encoding,
                history=tuple(Attempt(*each) for each in await connection.execute(history)),
                applied=None if applied is None else Applied(*applied),
                acts=await acts.records(self.database, connection, subjects, limit=_SHOWN),
            )

    async def discard_letter(self, id: str, act: Act) -> Letter:
        """Its end is when it was discarded."""
        return await self._decide(id, act, "dead-letter.discard", only="UNRESOLVED", status="DISCARDED", ended=True)

    async def restore_letter(self, id: str, act: Act) -> Letter:
        """It has no end any more."""
        return await self._decide(id, act, "dead-letter.restore", only="DISCARDED", status="UNRESOLVED", ended=False)

    async def note_letter(self, id: str, note: str | None, act: Act) -> Letter:
        """Whatever its status is."""
        table = tables.dead_letter
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            noted = update(table).where(table.c.id == id).values(note=note).returning(*_LETTER)
            if (row := (await connection.execute(noted)).one_or_none()) is None:
                raise await refusal(connection, id)
            await acts.record(connection, now, act, "dead-letter.note", id, note=note)
            await self.database.commit(connection, transaction_id)
        return letter_of(row)

    async def _decide(
        self, id: str, act: Act, action: str, *, only: LetterStatus, status: LetterStatus, ended: bool
    ) -> Letter:
        table = tables.dead_letter
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            statement = update(table).where(table.c.id == id, table.c.status == only)
            statement = statement.values(status=status, ended_at=now if ended else None)
            if (row := (await connection.execute(statement.returning(*_LETTER))).one_or_none()) is None:
                raise await refusal(connection, id)
            await acts.record(connection, now, act, action, id)
            await self.database.commit(connection, transaction_id)
        return letter_of(row)


def wanted(filter: LetterFilter) -> list[ColumnElement[bool]]:
    """Return the filter as conditions."""
    table = tables.dead_letter.c
    same = {
        table.status: filter.status,
        table.correlation_id: filter.correlation_id,
        table.event_type: filter.type,
        table.code: filter.code,
        table.group_id: filter.group_id,
        table.product_id: filter.product_id,
    }
    where: list[ColumnElement[bool]] = [column == value for column, value in same.items() if value is not None]
    if filter.id is not None:
        where.append(or_(table.id == filter.id, table.message_id == filter.id, table.event_id == filter.id))
    if filter.text is not None:
        where.append(_holds(table.detail, filter.text))
    if filter.sku is not None:
        where.append(_holds(table.skus, msgspec.json.encode(filter.sku).decode()))
    if filter.since is not None:
        where.append(table.last_failed_at >= filter.since)
    if filter.until is not None:
        where.append(table.last_failed_at < filter.until)
    return where


def _holds(column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    """LIKE would fold case on SQLite, and has wildcards."""
    return func.replace(column, text, "") != column


async def refusal(connection: AsyncConnection, id: str) -> InventoryError:
    """Say why nothing can be decided of a letter: somebody was faster, or it does not exist."""
    table = tables.dead_letter.c
    status = await connection.scalar(select(table.status).where(table.id == id))
    if status is None:
        return NotFound(f"There is no dead letter {id}.", deadLetterId=id)
    return Conflict(f"Dead letter {id} {_HOW[status]}; look at it and decide again.", deadLetterId=id, state=status)


def letter_row(letter: DeadLetter, now: datetime) -> dict[str, Any]:
    """Return a fresh letter's columns but its id."""
    message = letter.message
    waits = letter.retry_seconds is not None
    texts = {
        "fingerprint": letter.fingerprint,
        "message_id": message.id,
        "event_type": message.type,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "correlation_id": message.correlation_id,
        "event_id": letter.event_id,
    }
    return {
        **{name: storable(text) for name, text in texts.items()},
        **failure_row(letter, now),
        "headers": msgspec.json.encode(message.headers).decode(),
        "body": message.body,
        "product_id": None if letter.product_id is None else storable(letter.product_id),
        "skus": storable(msgspec.json.encode(letter.skus).decode()),
        "attempts": letter.attempts,
        "lapses": 0,
        "first_failed_at": now,
        "status": "WAITING" if waits else "UNRESOLVED",
    }


def failure_row(letter: DeadLetter, now: datetime) -> dict[str, Any]:
    """Return the columns that tell of the last failure."""
    seconds = letter.retry_seconds
    return {
        **{name: storable(getattr(letter, name)) for name in ("code", "detail", "stack", "cause", "group_id")},
        "last_failed_at": now,
        "next_attempt_at": None if seconds is None else later(now, seconds),
    }


def later(now: datetime, seconds: float) -> datetime:
    """Return the instant so many seconds after another."""
    return now + timedelta(seconds=seconds)


def storable(text: str) -> str:
    """PostgreSQL cannot store NUL, and a message that nobody understands may be quoted in its cause."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def letter_of(row: Any) -> Letter:
    """Return the letter in a row of its columns."""
    fields = row._asdict()
    return Letter(**fields | {"skus": _skus(fields["skus"])})


def _skus(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


def _readable(shown: bytes, *, cut: bool) -> tuple[str, Literal["utf-8", "base64"]]:
    for less in range(4 if cut else 1):  # a cut may go through a character
        with suppress(UnicodeDecodeError):
            return shown[: len(shown) - less].decode(), "utf-8"
    return b64encode(shown).decode(), "base64"
