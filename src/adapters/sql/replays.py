"""The outbox's exceptions: events that cannot go out, and events that go out again."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import acts, tables
from adapters.sql.database import Database
from adapters.sql.dead_letters import storable
from adapters.sql.leases import holds, lock
from core.acts import Act
from core.errors import Conflict, NotFound
from core.events import OutboxRow
from core.ids import new_id
from ports.leases import Lease
from ports.outbox import RELAY
from ports.replays import BlockedEvent, Replay, ReplayRange

_OUTBOX = tables.outbox
_REPLAY = tables.outbox_replay
_ROW = tuple(_OUTBOX.c[name] for name in OutboxRow.__struct_fields__)
_BLOCKED = _OUTBOX.c.blocked_at.is_not(None)


class SqlReplays:
    """The part of ``ports.store.Store`` that ``ports/outbox.py`` describes."""

    database: Database

    async def block(self, lease: Lease, row: OutboxRow, reason: str) -> bool:
        """In one transaction with a look at the lease."""
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            if not await holds(connection, lease):
                return False
            values = {"blocked_at": now, "blocked_reason": storable(reason)}
            await connection.execute(update(_OUTBOX).where(*_is(row)).values(values))
            await connection.commit()
        return True

    async def blocked(self, limit: int) -> list[BlockedEvent]:
        """By the index of what is blocked; what waits behind each is counted."""
        async with self.database.reading() as connection:
            found = _blocked_events().order_by(_OUTBOX.c.blocked_at, _OUTBOX.c.id).limit(limit)
            return [BlockedEvent(**row._asdict()) for row in await connection.execute(found)]

    async def release_blocked(self, event_id: str, act: Act, *, skip: bool) -> BlockedEvent:
        """One that is skipped counts as published and has no place in the stream."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            found = (await connection.execute(_blocked_events().where(_OUTBOX.c.event_id == event_id))).one_or_none()
            values = {"blocked_at": None} | ({"published_at": now} if skip else {})
            freed = update(_OUTBOX).where(_OUTBOX.c.event_id == event_id, _BLOCKED).values(values)
            if found is None or not (await connection.execute(freed)).rowcount:
                raise NotFound(f"There is no blocked event {event_id}.", eventId=event_id)
            action = "outbox.skip" if skip else "outbox.release"
            await acts.record(connection, now, act, action, event_id, productId=found.product_id)
            await self.database.commit(connection, transaction_id)
        return BlockedEvent(**found._asdict())

    async def begin_replay(self, chosen: ReplayRange, act: Act) -> Replay:
        """Times become positions, which rise with them. The relay's lease is locked: of two alike one begins."""
        first, last, total = await self._chosen(chosen)
        if total < 1:
            raise Conflict("No published event that is still kept is in this range; widen it.")
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            await lock(connection, RELAY, now)
            same = [_REPLAY.c.ended_at.is_(None), _REPLAY.c.product_id.is_not_distinct_from(chosen.product_id)]
            same += [_REPLAY.c.from_position <= last, _REPLAY.c.to_position >= first]
            if (id := await connection.scalar(select(_REPLAY.c.id).where(*same).limit(1))) is not None:
                raise Conflict(f"Replay {id} of this range is running; watch that one, or cancel it.", replayId=id)
            replay = Replay(
                id=new_id("rpl"),
                status="RUNNING",
                actor=act.actor,
                reason=act.reason,
                product_id=chosen.product_id,
                from_position=first,
                to_position=last,
                position=first - 1,
                total=total,
                published=0,
                started_at=now,
                ended_at=None,
            )
            fields = {name: getattr(replay, name) for name in Replay.__struct_fields__}
            await connection.execute(insert(_REPLAY).values(fields))
            positions = {"fromPosition": first, "toPosition": last}
            await acts.record(
                connection, now, act, "outbox.replay", replay.id, productId=chosen.product_id, total=total, **positions
            )
            await self.database.commit(connection, transaction_id)
        await self.database.announce()
        return replay

    async def _chosen(self, chosen: ReplayRange) -> tuple[int, int, int]:
        """Return the first and the last position of a range, and how many events that are."""
        position, product_id = _OUTBOX.c.position, _OUTBOX.c.product_id
        kept = select(position).where(position.is_not(None)).limit(1)
        async with self.database.reading() as connection:
            low = await connection.scalar(kept.order_by(position)) or 0
            high = await connection.scalar(kept.order_by(position.desc())) or -1
            first, last = max(low, chosen.from_position or 0), high
            if chosen.to_position is not None:
                last = min(last, chosen.to_position)
            if chosen.since is not None:
                first = max(first, await _first_since(connection, chosen.since, low, high))
            if chosen.until is not None:
                last = min(last, await _first_since(connection, chosen.until, low, high) - 1)
            if chosen.product_id is None:  # positions have no gaps, and counting millions takes too long
                return first, last, last - first + 1
            counted = select(func.min(position), func.max(position), func.count())
            counted = counted.where(product_id == chosen.product_id, position.between(first, last))
            least, most, total = (await connection.execute(counted)).one()
        return least or 0, most or 0, total

    async def open_replay(self) -> Replay | None:
        """In order of beginning."""
        async with self.database.reading() as connection:
            first = select(_REPLAY).where(_REPLAY.c.ended_at.is_(None)).order_by(_REPLAY.c.id).limit(1)
            row = (await connection.execute(first)).one_or_none()
        return None if row is None else Replay(**row._asdict())

    async def replayed(self, replay: Replay, limit: int) -> list[OutboxRow]:
        """By position."""
        table = _OUTBOX.c
        where = [table.position > replay.position, table.position <= replay.to_position]
        if replay.product_id is not None:
            where.append(table.product_id == replay.product_id)
        async with self.database.reading() as connection:
            rows = await connection.execute(select(*_ROW).where(*where).order_by(table.position).limit(limit))
            return [OutboxRow(*row) for row in rows]

    async def advance_replay(self, lease: Lease, replay: Replay, rows: Sequence[OutboxRow]) -> bool:
        """In one transaction with a look at the lease."""
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            if not await holds(connection, lease):
                return False
            values: dict[str, Any] = {"published": _REPLAY.c.published + len(rows)}
            values |= {"position": rows[-1].position} if rows else {"status": "DONE", "ended_at": now}
            running = and_(_REPLAY.c.id == replay.id, _REPLAY.c.ended_at.is_(None))
            await connection.execute(update(_REPLAY).where(running).values(values))
            await connection.commit()
        return True

    async def cancel_replay(self, id: str, act: Act) -> Replay:
        """Whoever ends it first has done so."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            ended = update(_REPLAY).where(_REPLAY.c.id == id, _REPLAY.c.ended_at.is_(None))
            ended = ended.values(status="CANCELLED", ended_at=now)
            changed = (await connection.execute(ended)).rowcount
            row = (await connection.execute(select(_REPLAY).where(_REPLAY.c.id == id))).one_or_none()
            if row is None:
                raise NotFound(f"There is no replay {id}.", replayId=id)
            if not changed:
                raise Conflict(f"Replay {id} has ended already ({row.status}).", replayId=id, state=row.status)
            await acts.record(connection, now, act, "outbox.cancel", id, published=row.published)
            await self.database.commit(connection, transaction_id)
        return Replay(**row._asdict())

    async def replay(self, id: str) -> Replay | None:
        """By primary key."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(_REPLAY).where(_REPLAY.c.id == id))).one_or_none()
        return None if row is None else Replay(**row._asdict())

    async def replays(self, limit: int) -> list[Replay]:
        """In order of id, which is the order of beginning."""
        async with self.database.reading() as connection:
            newest = select(_REPLAY).order_by(_REPLAY.c.id.desc()).limit(limit)
            return [Replay(**row._asdict()) for row in await connection.execute(newest)]


def _is(row: OutboxRow) -> tuple[Any, ...]:
    return _OUTBOX.c.product_id == row.product_id, _OUTBOX.c.sequence == row.sequence, _OUTBOX.c.published_at.is_(None)


def _blocked_events() -> Any:
    behind = _OUTBOX.alias().c
    waiting = select(func.count()).where(behind.product_id == _OUTBOX.c.product_id, behind.published_at.is_(None))
    return select(
        *(_OUTBOX.c[name] for name in ("event_id", "event_type", "product_id", "sequence", "created_at", "blocked_at")),
        func.length(_OUTBOX.c.body).label("bytes"),
        _OUTBOX.c.blocked_reason.label("reason"),
        waiting.scalar_subquery().label("waiting"),
    ).where(_BLOCKED)


async def _first_since(connection: AsyncConnection, at: datetime, low: int, high: int) -> int:
    """Find by halving the first of these positions whose event went out at ``at`` or later, the one after them if none.

    There is no index of times, and an outbox may hold months.
    """
    table, end = _OUTBOX.c, high + 1
    while low < end:
        middle = (low + end) // 2
        after = select(table.position, table.published_at).where(table.position >= middle)
        row = (await connection.execute(after.order_by(table.position).limit(1))).one_or_none()
        if row is None or row.published_at >= at:
            end = middle
        else:
            low = row.position + 1
    return low
