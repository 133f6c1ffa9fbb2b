"""Dead letters in hand: claims, what became of them, and retries of many together."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import dml

from adapters.sql import acts, tables
from adapters.sql.database import Change, Database, Insert, Row, Update, upsert
from adapters.sql.dead_letters import failure_row, later, letter_row, refusal, storable, wanted
from core.acts import Act
from core.errors import Conflict, NotFound
from core.ids import new_id
from ports.broker import Message
from ports.dead_letters import RETRY_LETTERS_MAX, Claimed, DeadLetter, LetterFilter, Retry, Settlement

_LETTER = tables.dead_letter
_RETRY = tables.dead_letter_retry
_IN_HAND = ("WAITING", "RETRYING")
_CLAIMED = tuple(
    _LETTER.c[name]
    for name in (
        *("id", "message_id", "event_type", "exchange", "routing_key", "correlation_id", "headers", "body"),
        *("attempts", "retry_id", "lapses"),
    )
)
_FAILED = ("code", "detail", "stack", "cause", "group_id", "last_failed_at", "next_attempt_at")
_TRIED = ("dead_letter_id", "number", "at", "outcome", "detail", "process")


class SqlRetries:
    """The part of ``ports.store.Store`` that has dead letters tried again."""

    database: Database

    async def claim_letter(self, id: str, claim: str, act: Act, *, seconds: float) -> Claimed:
        """Whoever changes the status first has it."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            taken = _taken(claim, now, seconds).where(_LETTER.c.id == id, _LETTER.c.status == "UNRESOLVED")
            row = (await connection.execute(taken.values(retry_id=None).returning(*_CLAIMED))).one_or_none()
            if row is None:
                raise await refusal(connection, id)
            await acts.record(connection, now, act, "dead-letter.retry", id)
            await self.database.commit(connection, transaction_id)
        return _claimed(row)

    async def replace_letter(
        self, id: str, letter: DeadLetter, claim: str, act: Act, *, difference: str, seconds: float
    ) -> Claimed:
        """Both rows in one transaction."""
        new = new_id("dl")
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            resolved = update(_LETTER).where(_LETTER.c.id == id, _LETTER.c.status == "UNRESOLVED")
            resolved = resolved.values(status="RESOLVED", ended_at=now, replaced_by=new)
            if not (await connection.execute(resolved)).rowcount:
                raise await refusal(connection, id)
            row = letter_row(letter, now) | {"edited_from": id, "attempts": 0}
            fresh = upsert(connection, _LETTER).values(id=new, **row).on_conflict_do_nothing()
            if not (await connection.execute(fresh)).rowcount:
                raise Conflict("The edited message is a dead letter of its own already; retry that one.")
            taken = _taken(claim, now, seconds).where(_LETTER.c.id == new).returning(*_CLAIMED)
            claimed = (await connection.execute(taken)).one()
            await acts.record(connection, now, act, "dead-letter.edit", id, replacedBy=new, difference=difference)
            await self.database.commit(connection, transaction_id)
        return _claimed(claimed)

    async def claim_due(self, claim: str, *, limit: int, bytes_max: int, seconds: float) -> list[Claimed]:
        """Look first, so that no more bodies are read than are taken; what another process looks at is passed over."""
        due, size = _LETTER.c.next_attempt_at, func.length(_LETTER.c.body)
        async with self.database.reading() as connection:
            now = (await self.database.condition(connection)).now
            if await connection.scalar(select(_LETTER.c.id).where(due <= now).limit(1)) is None:
                return []
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            lapsed = _LETTER.c.status == "RETRYING"
            waiting = select(_LETTER.c.id, size, lapsed).where(due <= now, _LETTER.c.status.in_(_IN_HAND))
            waiting = waiting.order_by(lapsed, due, _LETTER.c.id).limit(limit).with_for_update(skip_locked=True)
            ids = _first((await connection.execute(waiting)).all(), bytes_max)
            taken = _taken(claim, now, seconds).where(self.database.among(_LETTER.c.id, ids)).returning(*_CLAIMED)
            claimed = [_claimed(row) for row in await connection.execute(taken)] if ids else []
            await self.database.commit(connection, transaction_id)
        return claimed

    async def settle_letters(self, claim: str, process: str, settlements: Sequence[Settlement]) -> int:
        """Set-based, of what is still ours; the counts of their retries in the same transaction."""
        asked = {each.claimed.id: each for each in settlements}
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            ours = select(_LETTER.c.id).where(self.database.among(_LETTER.c.id, asked), _LETTER.c.claim == claim)
            ours = ours.order_by(_LETTER.c.id).with_for_update()
            held = [asked[id] for id in (await connection.execute(ours)).scalars()]
            await self.database.write(connection, *_settled(held, process, now))
            await _count(connection, held)
            await self.database.commit(connection, transaction_id)
        return len(held)

    async def give_back_letters(self, claim: str) -> int:
        """The attempt that was counted for it is taken off again."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            back = update(_LETTER).where(_LETTER.c.status == "RETRYING", _LETTER.c.claim == claim)
            back = back.values(status="WAITING", claim=None, attempts=_LETTER.c.attempts - 1, next_attempt_at=now)
            given = (await connection.execute(back)).rowcount
            await self.database.commit(connection, transaction_id)
        return given

    # -- many together -----------------------------------------------------------------------------------------------

    async def begin_retry(
        self, which: LetterFilter | Collection[str], act: Act, *, canary: bool, limit: int = RETRY_LETTERS_MAX
    ) -> Retry:
        """Locked, then claimed; those that somebody else is deciding on right now are left out.

        Not in one statement: joined row by row, a choice that skips what is locked is made anew, beyond the limit.
        """
        id, first, table = new_id("rty"), None, _LETTER.c
        where = wanted(which) if isinstance(which, LetterFilter) else [self.database.among(table.id, which)]
        chosen = select(table.id).where(*where, table.status == "UNRESOLVED").order_by(table.id).limit(limit)
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            ids = list((await connection.execute(chosen.with_for_update(skip_locked=True))).scalars())
            if not (total := len(ids)):
                raise Conflict("None of these dead letters is unresolved; look at them again.")
            claimed = update(_LETTER).where(self.database.among(table.id, ids))
            claimed = claimed.values(status="WAITING", retry_id=id, next_attempt_at=None if canary else now)
            await connection.execute(claimed)
            if canary:
                first = await connection.scalar(select(func.min(table.id)).where(table.retry_id == id))
                await connection.execute(update(_LETTER).where(table.id == first).values(next_attempt_at=now))
            retry = Retry(
                id=id,
                status="CANARY" if canary else "RUNNING",
                actor=act.actor,
                reason=act.reason,
                canary_id=first,
                total=total,
                succeeded=0,
                failed=0,
                left=total,
                started_at=now,
                ended_at=None,
            )
            await connection.execute(insert(_RETRY).values(_retry_row(retry)))
            asked = which if isinstance(which, LetterFilter) else {"ids": sorted(which)}
            filter = {name: value for name, value in msgspec.to_builtins(asked).items() if value is not None}
            await acts.record(connection, now, act, "dead-letters.retry", id, filter=filter, total=total)
            await self.database.commit(connection, transaction_id)
        return retry

    async def advance_retries(self) -> None:
        """Those that are at it; of two processes one does it."""
        open_ = select(_RETRY).where(_RETRY.c.ended_at.is_(None))
        async with self.database.reading() as connection:
            if (await connection.execute(open_.limit(1))).first() is None:
                return
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            for row in (await connection.execute(open_.with_for_update(skip_locked=True))).all():
                if row.status == "CANARY":
                    await _judge_canary(connection, row, now)
                else:
                    waiting = select(_LETTER.c.id).where(_LETTER.c.retry_id == row.id, _LETTER.c.status.in_(_IN_HAND))
                    if await connection.scalar(waiting.limit(1)) is None:
                        await _end(connection, row.id, "DONE", now)
            await self.database.commit(connection, transaction_id)

    async def cancel_retry(self, id: str, act: Act) -> Retry:
        """What waits goes back."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            await _end(connection, id, "CANCELLED", now)
            row = (await connection.execute(select(_RETRY).where(_RETRY.c.id == id))).one_or_none()
            if row is None:
                raise NotFound(f"There is no retry {id}.", retryId=id)
            if row.status != "CANCELLED" or row.ended_at != now:
                raise Conflict(f"Retry {id} has ended already ({row.status}).", retryId=id, state=row.status)
            await acts.record(connection, now, act, "dead-letters.cancel", id, given_back=row.cancelled)
            await self.database.commit(connection, transaction_id)
        return _retry(row)

    async def retry(self, id: str) -> Retry | None:
        """By primary key."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(_RETRY).where(_RETRY.c.id == id))).one_or_none()
        return None if row is None else _retry(row)

    async def retries(self, *, limit: int) -> list[Retry]:
        """In order of id, which is the order of beginning."""
        async with self.database.reading() as connection:
            newest = select(_RETRY).order_by(_RETRY.c.id.desc()).limit(limit)
            return [_retry(row) for row in await connection.execute(newest)]


def _settled(held: Sequence[Settlement], process: str, now: datetime) -> list[Change]:
    """Return what became of letters as rows, and the attempts that were made."""
    done: list[Row] = [(each.claimed.id, "RESOLVED", None, 0, None, now) for each in held if each.letter is None]
    failed: list[Row] = []
    for each in held:
        if each.letter is not None:
            row = failure_row(each.letter, now)
            status = "UNRESOLVED" if row["next_attempt_at"] is None else "WAITING"
            failed.append((each.claimed.id, status, None, 0, *(row[name] for name in _FAILED)))
    tried: list[Row] = [
        (each.claimed.id, each.claimed.attempts, now, each.outcome, storable(each.detail), process) for each in held
    ]
    changes: list[Change] = [
        Update(_LETTER, ("id",), ("status", "claim", "lapses", "next_attempt_at", "ended_at"), done),
        Update(_LETTER, ("id",), ("status", "claim", "lapses", *_FAILED), failed),
        Insert(tables.dead_letter_attempt, _TRIED, tried, skip_existing=True),
    ]
    return [change for change in changes if change.rows]


def _taken(claim: str, now: datetime, seconds: float) -> dml.Update:
    attempts = _LETTER.c.attempts + 1
    values = {"status": "RETRYING", "claim": claim, "attempts": attempts, "next_attempt_at": later(now, seconds)}
    lapses = _LETTER.c.lapses + case((_LETTER.c.status == "RETRYING", 1), else_=0)
    return update(_LETTER).values(**values, lapses=lapses)


def _first(rows: Sequence[Any], bytes_max: int) -> list[str]:
    """Return the ids of the first of these rows; of those that lapsed, one."""
    ids: list[str] = []
    for id, size, lapsed in rows:
        if ids and (size > bytes_max or lapsed):
            break
        ids.append(id)
        bytes_max -= size
        if lapsed:
            break
    return ids


def _claimed(row: Any) -> Claimed:
    message = Message(
        id=row.message_id,
        exchange=row.exchange,
        routing_key=row.routing_key,
        body=row.body,
        type=row.event_type,
        correlation_id=row.correlation_id,
        headers=msgspec.json.decode(row.headers, type=dict[str, str]),
    )
    return Claimed(row.id, message, row.attempts, row.retry_id, row.lapses)


async def _count(connection: AsyncConnection, held: Sequence[Settlement]) -> None:
    """Add to the counts of the retries these belonged to; one that waits for another try has not come to its end."""
    counts = Counter(
        (each.claimed.retry_id, "succeeded" if each.letter is None else "failed")
        for each in held
        if each.claimed.retry_id is not None and (each.letter is None or each.letter.retry_seconds is None)
    )
    for (id, name), count in sorted(counts.items()):
        await connection.execute(update(_RETRY).where(_RETRY.c.id == id).values({name: _RETRY.c[name] + count}))


async def _judge_canary(connection: AsyncConnection, row: Any, now: datetime) -> None:
    """Let the others follow a canary that has succeeded, and leave them alone if it failed."""
    status = await connection.scalar(select(_LETTER.c.status).where(_LETTER.c.id == row.canary_id))
    if status in _IN_HAND:
        return
    if status != "RESOLVED":
        await _end(connection, row.id, "STOPPED", now)
        return
    held = [_LETTER.c.retry_id == row.id, _LETTER.c.status == "WAITING"]
    await connection.execute(update(_LETTER).where(*held).values(next_attempt_at=now))
    await connection.execute(update(_RETRY).where(_RETRY.c.id == row.id).values(status="RUNNING"))


async def _end(connection: AsyncConnection, id: str, status: str, now: datetime) -> None:
    """End a retry that has not ended, and give back what it has not taken in hand."""
    ended = update(_RETRY).where(_RETRY.c.id == id, _RETRY.c.ended_at.is_(None))
    if not (await connection.execute(ended.values(status=status, ended_at=now))).rowcount:
        return
    left: list[ColumnElement[bool]] = [_LETTER.c.retry_id == id, _LETTER.c.status == "WAITING"]
    back = update(_LETTER).where(*left).values(status="UNRESOLVED", next_attempt_at=None)
    cancelled = (await connection.execute(back)).rowcount
    await connection.execute(update(_RETRY).where(_RETRY.c.id == id).values(cancelled=cancelled))


def _retry_row(retry: Retry) -> dict[str, Any]:
    names = ("id", "status", "actor", "reason", "canary_id", "total", "succeeded", "failed", "started_at", "ended_at")
    return {name: getattr(retry, name) for name in names} | {"cancelled": 0}


def _retry(row: Any) -> Retry:
    fields = row._asdict()
    left = row.total - row.succeeded - row.failed - fields.pop("cancelled")
    return Retry(**fields, left=left)
