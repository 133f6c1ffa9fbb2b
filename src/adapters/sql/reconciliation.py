"""What is kept of reconciliations: runs, findings, which are known again by kind and subject, and repairs."""

import asyncio
import math
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import asdict, replace
from sqlalchemy import ColumnElement, Delete, Select, and_, case, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import acts, comparisons, tables
from adapters.sql.comparisons import Place
from adapters.sql.database import Database, upsert
from adapters.sql.leases import holds, lock
from core.acts import Act
from core.errors import Conflict, NotFound
from core.findings import NATURES, SEEN_IN, Discrepancy, Finding, Part, Repair, Repairs, Run, Tally, Trigger
from ports.leases import Lease
from ports.reconciliation import RECONCILIATION, ComparedPage

_OPEN = ("REQUESTED", "RUNNING")
_PROGRESS = (
    *("status", "products", "items", "alarms", "part", "place", "looked_at", "about", "done", "present", "absent"),
    *("findings", "raised", "resolved", "outcomes", "ended_at"),
)
_AS_JSON = ("findings", "outcomes", "alarms", "done")
_AGES = ("new", "day", "week", "older")


class SqlReconciliation:
    """See ``ports.reconciliation.ReconciliationStore``."""

    database: Database

    async def compare(self, part: Part, *, after: str | None, limit: int) -> ComparedPage:
        """See ``comparisons``."""
        if part == "stock":
            return await self._standing(after or "", limit)
        if part in ("ledger", "events"):
            return await self._history(part, msgspec.json.decode(after, type=Place) if after else ("", 0), limit)
        async with self.database.reading() as connection:
            if part == "outbox":
                return await comparisons.stuck(self.database, connection, after=after, limit=limit)
            return await comparisons.receipts(self.database, connection, after=after, limit=limit)

    async def _standing(self, after: str, limit: int) -> ComparedPage:
        """The halves of a page side by side, on two connections: it is the database that computes."""
        async with self.database.reading() as connection:
            ids = await comparisons.product_ids(connection, after=after, limit=limit)
            if not ids:
                return ComparedPage(0, 0, (), None)
            items = await comparisons.item_count(connection, after=after, last=ids[-1])
        middle = ids[(len(ids) - 1) // 2]
        halves = ((after, middle), (middle, ids[-1]))
        found = await asyncio.gather(*(self._half(*half) for half in halves if half[0] != half[1]))
        discrepancies = tuple(each for half in found for each in half)
        return ComparedPage(len(ids), items, discrepancies, ids[-1] if len(ids) == limit else None)

    async def _half(self, after: str, last: str) -> tuple[Discrepancy, ...]:
        async with self.database.reading() as connection:
            return await comparisons.standing(connection, after=after, last=last)

    async def _history(self, part: Part, after: Place, limit: int) -> ComparedPage:
        """One half while the other one's end is looked for and it is read, on two connections."""
        middle, rows = await self._history_end(part, after, limit - limit // 2)
        if not rows:
            return ComparedPage(0, 0, (), None)
        first, (end, more, second) = await asyncio.gather(
            self._rows(part, after, middle), self._next(part, middle, limit // 2)
        )
        next_after = msgspec.json.encode(end).decode() if rows + more == limit else None
        return ComparedPage(rows + more, 0, (*first, *second), next_after)

    async def _next(self, part: Part, after: Place, limit: int) -> tuple[Place, int, tuple[Discrepancy, ...]]:
        end, rows = await self._history_end(part, after, limit)
        return end, rows, await self._rows(part, after, end) if rows else ()

    async def _history_end(self, part: Part, after: Place, limit: int) -> tuple[Place, int]:
        async with self.database.reading() as connection:
            return await comparisons.history_end(connection, part, after=after, limit=limit)

    async def _rows(self, part: Part, after: Place, end: Place) -> tuple[Discrepancy, ...]:
        async with self.database.reading() as connection:
            return await comparisons.history(connection, part, after=after, end=end)

    async def compare_products(self, product_ids: Collection[str]) -> tuple[Discrepancy, ...]:
        """See ``comparisons``."""
        async with self.database.reading() as connection:
            return await comparisons.of_products(self.database, connection, product_ids)

    async def compared_size(self, part: Part) -> int:
        """See ``comparisons``."""
        async with self.database.reading() as connection:
            await _reading_all(connection)
            return int(await connection.scalar(comparisons.size(part)) or 0)

    async def product_ids(self, *, after: str | None, limit: int) -> list[str]:
        """By primary key."""
        async with self.database.reading() as connection:
            return await comparisons.product_ids(connection, after=after, limit=limit)

    # -- a run's life --------------------------------------------------------------------------------------------------

    async def begin_reconciliation(
        self, lease: Lease, id: str, *, trigger: Trigger, actor: str, deep: bool, repairs: Repairs
    ) -> Run | None:
        """On the database's clock; whoever holds the lease knows that nobody is at the others."""
        runs = tables.reconciliation_run
        async with self.database.writing() as connection:
            if not await holds(connection, lease):
                return None
            now, _ = await self.database.clock(connection)
            broken = update(runs).where(runs.c.status == "RUNNING", runs.c.id != id)
            await connection.execute(broken.values(status="CANCELLED", ended_at=now))
            run = await _on_record(connection, id)
            if run is None:
                run = Run(id=id, trigger=trigger, actor=actor, deep=deep, repairs=repairs, started_at=now)
                await connection.execute(insert(runs).values(_run_row(run)))
            elif run.status == "REQUESTED":
                run = replace(run, status="RUNNING", started_at=now)
                begun = update(runs).where(runs.c.id == id)
                await connection.execute(begun.values(status=run.status, started_at=now))
            await connection.commit()
        return run

    async def advance_reconciliation(
        self, lease: Lease, run: Run, *, found: Collection[Discrepancy] = (), repairs: Collection[Repair] = ()
    ) -> Run | None:
        """Fence, progress, findings and repairs in one commit."""
        async with self.database.writing() as connection:
            if not await holds(connection, lease):
                return None
            recorded = await _on_record(connection, run.id)
            if recorded is None or not recorded.is_open:
                return recorded
            now, _ = await self.database.clock(connection)
            if found:
                await connection.execute(_seen(connection), [_finding_row(each, run.id, now) for each in found])
            if repairs:
                await _keep(connection, now, repairs)
            await _put(connection, run)
            await connection.commit()
        return run

    async def end_reconciliation(self, lease: Lease, run: Run) -> Run | None:
        """Resolve by time, not by what this run remembers: it cannot undo what one that took over has seen since."""
        table, repair = tables.reconciliation_finding, tables.reconciliation_repair
        kinds = [kind for kind, parts in SEEN_IN.items() if parts <= set(run.done)]
        unseen = and_(table.c.run_id != run.id, table.c.last_seen_at < run.started_at)
        gone = and_(table.c.resolved_at.is_(None), table.c.kind.in_(kinds), unseen)
        new = func.coalesce(func.sum(case((table.c.first_seen_at >= run.started_at, 1), else_=0)), 0)
        seen = select(table.c.kind, func.count(), new).where(table.c.run_id == run.id).group_by(table.c.kind)
        became = select(repair.c.outcome, func.count()).where(repair.c.run_id == run.id).group_by(repair.c.outcome)
        async with self.database.writing() as connection:
            if not await holds(connection, lease):
                return None
            recorded = await _on_record(connection, run.id)
            if recorded is None or not recorded.is_open:
                return recorded
            now, _ = await self.database.clock(connection)
            resolved = 0
            if run.deep:
                resolved = (await connection.execute(update(table).where(gone).values(resolved_at=now))).rowcount
            counts = (await connection.execute(seen)).all()
            run = replace(
                run,
                ended_at=now,
                findings={kind: count for kind, count, _ in counts},
                raised=sum(int(raised) for _, _, raised in counts),
                resolved=resolved,
                outcomes={row.outcome: row[1] for row in await connection.execute(became)},
            )
            await _put(connection, run)
            await connection.commit()
        return run

    async def request_reconciliation(self, id: str, *, deep: bool, repairs: Repairs, act: Act) -> Run:
        """With the act, in one commit. The lease is locked: of two at once one is asked for."""
        runs = tables.reconciliation_run
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            await lock(connection, RECONCILIATION, now)
            other = await connection.scalar(select(runs.c.id).where(runs.c.status.in_(_OPEN)).limit(1))
            if other is not None:
                raise Conflict(f"Reconciliation {other} has not ended; wait for it, or cancel it.", runId=other)
            run = Run(
                id=id,
                trigger="request",
                actor=act.actor,
                deep=deep,
                repairs=repairs,
                started_at=now,
                status="REQUESTED",
            )
            await connection.execute(insert(runs).values(_run_row(run)))
            await acts.record(connection, now, act, "reconciliation.request", id, deep=deep, repairs=repairs)
            await connection.commit()
        return run

    async def cancel_reconciliation(self, id: str, act: Act) -> Run:
        """Whoever is at it finds out when it next records how far it is."""
        runs = tables.reconciliation_run
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            ended = update(runs).where(runs.c.id == id, runs.c.status.in_(_OPEN))
            done = await connection.execute(ended.values(status="CANCELLED", ended_at=now))
            run = await _on_record(connection, id)
            if run is None:
                raise NotFound(f"There is no reconciliation {id}.")
            if not done.rowcount:
                raise Conflict(f"Reconciliation {id} has ended: it is {run.status}.", status=run.status)
            await acts.record(connection, now, act, "reconciliation.cancel", id)
            await connection.commit()
        return run

    async def idle_reconciliation(self) -> Run | None:
        """By the index of what has not ended."""
        runs, lease = tables.reconciliation_run, tables.lease.c
        async with self.database.reading() as connection:
            leased = and_(lease.name == RECONCILIATION, lease.expires_at > self.database.now())
            owned = select(lease.name).where(leased).exists()
            idle = select(runs).where(runs.c.ended_at.is_(None), runs.c.status.in_(_OPEN), ~owned)
            row = (await connection.execute(idle.order_by(runs.c.id).limit(1))).first()
        return None if row is None else _run(row)

    async def since_reconciled(self, *, deep: bool = False) -> float:
        """On the database's clock."""
        table = tables.reconciliation_run.c
        last = select(func.max(table.started_at))
        if deep:
            last = last.where(table.deep, table.ended_at.is_not(None))
        async with self.database.reading() as connection:
            then = await connection.scalar(last)
            now = (await self.database.condition(connection)).now
        return math.inf if then is None else float((now - then).total_seconds())

    async def reconciliations(self, limit: int) -> list[Run]:
        """In order of id, which is the order of beginning."""
        table = tables.reconciliation_run
        return await self._runs(select(table).order_by(table.c.id.desc()).limit(limit))

    async def reconciliation(self, id: str) -> Run | None:
        """By primary key."""
        table = tables.reconciliation_run
        found = await self._runs(select(table).where(table.c.id == id))
        return found[0] if found else None

    async def _runs(self, statement: Select[Any]) -> list[Run]:
        async with self.database.reading() as connection:
            return [_run(row) for row in await connection.execute(statement)]

    async def findings(self, run: Run | None = None, *, after: Finding | None = None, limit: int) -> list[Finding]:
        """By primary key."""
        table = tables.reconciliation_finding
        statement = _FINDINGS.order_by(table.c.kind, table.c.subject).limit(limit)
        statement = statement.where(table.c.resolved_at.is_(None) if run is None else _stood(run))
        if after is not None:
            statement = statement.where(tuple_(table.c.kind, table.c.subject) > tuple_(after.kind, after.subject))
        async with self.database.reading() as connection:
            return [_finding(row) for row in await connection.execute(statement)]

    async def findings_of(self, run: Run, *, after: str | None, products: int) -> list[Finding]:
        """The products first, so that none comes in two pieces."""
        table = tables.reconciliation_finding
        seen = and_(table.c.run_id == run.id, table.c.product_id > (after or ""))
        ids = select(table.c.product_id).where(seen).distinct().order_by(table.c.product_id).limit(products)
        statement = _FINDINGS.where(seen, table.c.product_id.in_(ids))
        async with self.database.reading() as connection:
            rows = await connection.execute(statement.order_by(table.c.product_id, table.c.kind, table.c.subject))
            return [_finding(row) for row in rows]

    async def tallies(self, run: Run) -> list[Tally]:
        """Counted by the database."""
        table = tables.reconciliation_finding
        begun = run.started_at
        first = table.c.first_seen_at
        day, week = begun - timedelta(days=1), begun - timedelta(weeks=1)
        age = case((first >= begun, "new"), (first >= day, "day"), (first >= week, "week"), else_="older").label("age")
        statement = select(table.c.kind, age, func.count()).where(_stood(run)).group_by(table.c.kind, age)
        counts: dict[Any, dict[str, int]] = {}
        async with self.database.reading() as connection:
            await _reading_all(connection)
            for kind, name, count in await connection.execute(statement):
                counts.setdefault(kind, dict.fromkeys(_AGES, 0))[name] = count
        return [Tally(kind=kind, nature=NATURES[kind], **counts[kind]) for kind in sorted(counts)]

    async def repairs(self, run: Run, *, after: Repair | None = None, limit: int) -> list[Repair]:
        """By primary key."""
        table = tables.reconciliation_repair
        statement = select(table).where(table.c.run_id == run.id).order_by(table.c.kind, table.c.subject).limit(limit)
        if after is not None:
            statement = statement.where(tuple_(table.c.kind, table.c.subject) > tuple_(after.kind, after.subject))
        async with self.database.reading() as connection:
            return [_repair(row) for row in await connection.execute(statement)]


_FINDINGS = select(*(tables.reconciliation_finding.c[name] for name in Finding.__struct_fields__))


async def _reading_all(connection: AsyncConnection) -> None:
    """Let the planner think of reading a whole table, which it is otherwise kept from."""
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = on")


async def _on_record(connection: AsyncConnection, id: str) -> Run | None:
    """Return a run, which stays as it is until the commit."""
    runs = tables.reconciliation_run
    row = (await connection.execute(select(runs).where(runs.c.id == id).with_for_update())).first()
    return None if row is None else _run(row)


def _seen(connection: AsyncConnection) -> Any:
    """Put findings on record; one that was resolved begins anew."""
    table = tables.reconciliation_finding
    fresh = upsert(connection, table)
    seen = {name: fresh.excluded[name] for name in ("expected", "found", "run_id", "last_seen_at")}
    first = case((table.c.resolved_at.is_(None), table.c.first_seen_at), else_=fresh.excluded.first_seen_at)
    return fresh.on_conflict_do_update(
        index_elements=[table.c.kind, table.c.subject], set_={**seen, "first_seen_at": first, "resolved_at": None}
    )


async def _keep(connection: AsyncConnection, now: datetime, repairs: Collection[Repair]) -> None:
    """Put repairs on record, once for each finding of a run, and resolve what was repaired."""
    table, finding = tables.reconciliation_repair, tables.reconciliation_finding
    fresh = upsert(connection, table)
    keys = (table.c.run_id, table.c.kind, table.c.subject)
    rows = [
        asdict(each) | {"at": now} | {name: _json(getattr(each, name)) for name in ("before", "after")}
        for each in repairs
    ]
    latest = {name: fresh.excluded[name] for name in ("outcome", "reason", "before", "after", "at")}
    await connection.execute(fresh.on_conflict_do_update(index_elements=keys, set_=latest), rows)
    for each in repairs:
        if each.outcome == "REPAIRED":
            this = and_(finding.c.kind == each.kind, finding.c.subject == each.subject)
            await connection.execute(update(finding).where(this).values(resolved_at=now))


async def _put(connection: AsyncConnection, run: Run) -> None:
    runs, row = tables.reconciliation_run, _run_row(run)
    kept = update(runs).where(runs.c.id == run.id)
    await connection.execute(kept.values({name: row[name] for name in _PROGRESS}))


def _stood(run: Run) -> ColumnElement[bool]:
    """Select what stood while a run was on."""
    table = tables.reconciliation_finding
    seen: ColumnElement[bool] = table.c.run_id == run.id
    if run.ended_at is not None:
        seen |= and_(table.c.first_seen_at <= run.ended_at, table.c.last_seen_at >= run.started_at)
    return seen


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _finding_row(each: Discrepancy, run_id: str, now: datetime) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "subject": each.subject,
        "product_id": each.product_id,
        "inventory_item_id": each.inventory_item_id,
        "expected": _json(each.expected),
        "found": _json(each.found),
        "run_id": run_id,
        "first_seen_at": now,
        "last_seen_at": now,
    }


def _finding(row: Any) -> Finding:
    fields = row._asdict()
    return Finding(**fields | {name: msgspec.json.decode(fields[name]) for name in ("expected", "found")})


def _repair(row: Any) -> Repair:
    fields = row._asdict()
    return Repair(**fields | {name: msgspec.json.decode(fields[name]) for name in ("before", "after")})


def _run_row(run: Run) -> dict[str, Any]:
    return asdict(run) | {name: _json(getattr(run, name)) for name in _AS_JSON}


def _run(row: Any) -> Run:
    fields = row._asdict()
    values = {name: msgspec.json.decode(fields[name]) for name in _AS_JSON}
    return Run(**fields | values | {name: tuple(values[name]) for name in ("alarms", "done")})


def forget_reconciliations(before: datetime, *, limit: int) -> tuple[Delete, ...]:
    """Return what drops runs that began then, of which the repairs go first, and findings that were resolved then."""
    run, repair, finding = (
        tables.reconciliation_run.c,
        tables.reconciliation_repair.c,
        tables.reconciliation_finding.c,
    )
    old = select(run.id).where(run.started_at < before, run.status.not_in(_OPEN))
    made = select(repair.run_id, repair.kind, repair.subject).where(repair.run_id.in_(old)).limit(limit)
    bare = old.where(~select(repair.run_id).where(repair.run_id == run.id).exists()).limit(limit)
    gone = select(finding.kind, finding.subject).where(finding.resolved_at < before).limit(limit)
    return (
        delete(tables.reconciliation_repair).where(tuple_(repair.run_id, repair.kind, repair.subject).in_(made)),
        delete(tables.reconciliation_run).where(run.id.in_(bare)),
        delete(tables.reconciliation_finding).where(tuple_(finding.kind, finding.subject).in_(gone)),
    )
