"""What is kept of reconciliations: the runs, and the findings, which are known again by kind and subject."""

import math
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import asdict, replace
from sqlalchemy import Select, and_, case, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import audit, tables
from adapters.sql.database import Database, upsert
from core.findings import Discrepancy, Finding, Part, Run, Trigger
from ports.store import AuditPage

_KEPT = timedelta(days=30)
_DROPPED_MAX = 1_000


class SqlReconciliation:
    """The part of ``ports.store.Store`` that reconciles."""

    database: Database

    async def audit(self, part: Part, *, after: str | None, limit: int) -> AuditPage:
        """See ``audit``."""
        async with self.database.reading() as connection:
            if connection.dialect.name == "postgresql":
                # A page is found by indexes. How little of an index it needs is more than the planner can guess.
                await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            if part == "stock":
                return await audit.standing(self.database, connection, after=after, limit=limit)
            if part == "receipts":
                return await audit.receipts(self.database, connection, after=after, limit=limit)
            return await audit.history(connection, part, after=after, limit=limit)

    async def audit_size(self, part: Part) -> int:
        """See ``audit``."""
        async with self.database.reading() as connection:
            return int(await connection.scalar(audit.size(part)) or 0)

    async def begin_reconciliation(self, id: str, *, trigger: Trigger, actor: str, deep: bool) -> Run:
        """On the database's clock."""
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            run = Run(id=id, trigger=trigger, actor=actor, deep=deep, started_at=now)
            await connection.execute(insert(tables.reconciliation_run).values(_run_row(run)))
            await connection.commit()
        return run

    async def save_findings(self, run_id: str, discrepancies: Collection[Discrepancy]) -> None:
        """An upsert; one that was resolved begins anew."""
        table = tables.reconciliation_finding
        async with self.database.writing() as connection:
            now, _ = await self.database.clock(connection)
            fresh = upsert(connection, table)
            seen = {name: fresh.excluded[name] for name in ("expected", "found", "run_id", "last_seen_at")}
            first = case((table.c.resolved_at.is_(None), table.c.first_seen_at), else_=fresh.excluded.first_seen_at)
            statement = fresh.on_conflict_do_update(
                index_elements=[table.c.kind, table.c.subject],
                set_={**seen, "first_seen_at": first, "resolved_at": None},
            )
            await connection.execute(statement, [_finding_row(each, run_id, now) for each in discrepancies])
            await connection.commit()

    async def end_reconciliation(self, run: Run) -> Run:
        """Resolve by time, not by what this run remembers: it cannot undo what one that took over has seen since."""
        table = tables.reconciliation_finding
        gone = and_(table.c.resolved_at.is_(None), table.c.run_id != run.id, table.c.last_seen_at < run.started_at)
        new = func.coalesce(func.sum(case((table.c.first_seen_at >= run.started_at, 1), else_=0)), 0)
        seen = select(table.c.kind, func.count(), new).where(table.c.run_id == run.id).group_by(table.c.kind)
        async with self.database.writing() as connection:
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
            )
            runs = tables.reconciliation_run
            await connection.execute(update(runs).where(runs.c.id == run.id).values(_run_row(run)))
            await _forget(connection, now - _KEPT)
            await connection.commit()
        return run

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
        columns = [table.c[name] for name in Finding.__struct_fields__]
        statement = select(*columns).order_by(table.c.kind, table.c.subject).limit(limit)
        if run is None:
            statement = statement.where(table.c.resolved_at.is_(None))
        else:
            seen = table.c.run_id == run.id
            if run.ended_at is not None:
                seen |= and_(table.c.first_seen_at <= run.ended_at, table.c.last_seen_at >= run.started_at)
            statement = statement.where(seen)
        if after is not None:
            statement = statement.where(tuple_(table.c.kind, table.c.subject) > tuple_(after.kind, after.subject))
        async with self.database.reading() as connection:
            return [_finding(row) for row in await connection.execute(statement)]


def _finding_row(each: Discrepancy, run_id: str, now: datetime) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "subject": each.subject,
        "product_id": each.product_id,
        "inventory_item_id": each.inventory_item_id,
        "expected": msgspec.json.encode(each.expected).decode(),
        "found": msgspec.json.encode(each.found).decode(),
        "run_id": run_id,
        "first_seen_at": now,
        "last_seen_at": now,
    }


def _finding(row: Any) -> Finding:
    fields = row._asdict()
    return Finding(**fields | {name: msgspec.json.decode(fields[name]) for name in ("expected", "found")})


def _run_row(run: Run) -> dict[str, Any]:
    return asdict(run) | {"findings": msgspec.json.encode(run.findings).decode()}


def _run(row: Any) -> Run:
    return Run(**row._asdict() | {"findings": msgspec.json.decode(row.findings)})


async def _forget(connection: AsyncConnection, before: datetime) -> None:
    """Drop what is too old to be of use to anybody."""
    runs, findings = tables.reconciliation_run, tables.reconciliation_finding
    await connection.execute(delete(runs).where(runs.c.started_at < before))
    identity = (findings.c.kind, findings.c.subject)
    old = select(*identity).where(findings.c.resolved_at < before).limit(_DROPPED_MAX)
    await connection.execute(delete(findings).where(tuple_(*identity).in_(old)))
