"""Files on their way into the stock. A file's content is kept in parts, so that any process can go on with it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Delete, delete, insert, or_, select, tuple_, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import acts, tables
from adapters.sql.database import Database, Insert
from adapters.sql.dead_letters import storable
from adapters.sql.faults import is_queued_already
from adapters.sql.leases import holds
from core.acts import Act
from core.errors import Conflict, NotFound
from core.ids import new_id
from ports.imports import Import, ImportOrder, RowError
from ports.leases import Lease

_IMPORT, _PART, _ERROR = tables.stock_import, tables.stock_import_part, tables.stock_import_error
_COLUMNS = tuple(_IMPORT.c[name] for name in Import.__struct_fields__)
_ENDED = ("DONE", "REFUSED", "CANCELLED")
_OPEN = _IMPORT.c.ended_at.is_(None)


class SqlImports:
    """The part of ``ports.store.Store`` that ``ports/imports.py`` describes."""

    database: Database

    async def begin_import(self, order: ImportOrder, act: Act) -> Import:
        """Which act it was stands in the row itself."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            job = Import(
                id=new_id("imp"),
                status="UPLOADING",
                kind=order.kind,
                format=order.format,
                name=order.name,
                dry_run=order.dry_run,
                partial=order.partial,
                actor=act.actor,
                digest=None,
                bytes=0,
                rows=None,
                checked=0,
                done=0,
                refused=0,
                reason=None,
                created_at=now,
                ended_at=None,
            )
            await connection.execute(insert(_IMPORT).values(_values(job)))
            await self.database.commit(connection, transaction_id)
        return job

    async def add_part(self, id: str, number: int, body: bytes) -> None:
        """One small transaction a part: nobody waits behind a slow upload."""
        async with self.database.writing() as connection:
            await connection.execute(insert(_PART).values(import_id=id, number=number, body=body))
            await connection.commit()

    async def finish_upload(self, id: str, *, digest: str, size: int, again: bool) -> Import:
        """The content's key is unique: of two alike one is queued, whichever comes first."""
        try:
            return await self._finish_upload(id, digest=digest, size=size, again=again)
        except DBAPIError as error:
            if not is_queued_already(error):
                raise
            return await self._finish_upload(id, digest=digest, size=size, again=again)

    async def _finish_upload(self, id: str, *, digest: str, size: int, again: bool) -> Import:
        async with self.database.writing() as connection:
            _, transaction_id = await self.database.clock(connection)
            queued = {"status": "QUEUED", "digest": digest, "bytes": size}
            job = await self._one(connection, id)
            if not (job.dry_run or again):
                queued["content_key"] = digest
                taken = select(_IMPORT.c.id).where(_IMPORT.c.content_key == digest)
                if (earlier := await connection.scalar(taken)) is not None:
                    await _forget(connection, id)
                    job = await self._one(connection, earlier)
                    await self.database.commit(connection, transaction_id)
                    return job
            await connection.execute(update(_IMPORT).where(_IMPORT.c.id == id).values(queued))
            job = await self._one(connection, id)
            await self.database.commit(connection, transaction_id)
        return job

    async def abandon_upload(self, id: str) -> None:
        """Its row and its parts."""
        async with self.database.writing() as connection:
            await _forget(connection, id)
            await connection.commit()

    async def import_part(self, id: str, number: int) -> bytes | None:
        """By primary key."""
        async with self.database.reading() as connection:
            part = select(_PART.c.body).where(_PART.c.import_id == id, _PART.c.number == number)
            body: bytes | None = await connection.scalar(part)
        return body

    async def open_import(self) -> Import | None:
        """In order of beginning."""
        async with self.database.reading() as connection:
            first = select(*_COLUMNS).where(_OPEN, _IMPORT.c.status != "UPLOADING").order_by(_IMPORT.c.id).limit(1)
            row = (await connection.execute(first)).one_or_none()
        return None if row is None else Import(**row._asdict())

    async def save_import(self, lease: Lease, job: Import, errors: Sequence[RowError] = ()) -> Import | None:
        """In one transaction with a look at the lease."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            if not await holds(connection, lease):
                return None
            values = _values(job)
            if ended := job.status in _ENDED:
                values["ended_at"] = now
            if job.status == "REFUSED":  # what was not done may be tried again
                values["content_key"] = None
            if not (
                await connection.execute(update(_IMPORT).where(_IMPORT.c.id == job.id, _OPEN).values(values))
            ).rowcount:
                return None
            if not job.checked:
                await connection.execute(delete(_ERROR).where(_ERROR.c.import_id == job.id))
            if errors:
                columns = ("import_id", "line", "code", "detail")
                rows = [(job.id, error.line, error.code, storable(error.detail)) for error in errors]
                await self.database.write(connection, Insert(_ERROR, columns, rows, skip_existing=True))
            if ended:
                await connection.execute(delete(_PART).where(_PART.c.import_id == job.id))
            job = await self._one(connection, job.id)
            await self.database.commit(connection, transaction_id)
        return job

    async def cancel_import(self, id: str, act: Act) -> Import:
        """Whoever ends it first has done so."""
        async with self.database.writing() as connection:
            now, transaction_id = await self.database.clock(connection)
            values = {"status": "CANCELLED", "ended_at": now, "content_key": None}
            ended = update(_IMPORT).where(_IMPORT.c.id == id, _OPEN).values(values)
            changed = (await connection.execute(ended)).rowcount
            job = await self._one(connection, id)
            if not changed:
                raise Conflict(f"Import {id} has ended already ({job.status}).", importId=id, state=job.status)
            await connection.execute(delete(_PART).where(_PART.c.import_id == id))
            await acts.record(connection, now, act, "import.cancel", id, done=job.done)
            await self.database.commit(connection, transaction_id)
        return job

    async def import_job(self, id: str) -> Import | None:
        """By primary key."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(*_COLUMNS).where(_IMPORT.c.id == id))).one_or_none()
        return None if row is None else Import(**row._asdict())

    async def import_jobs(self, *, before: str | None = None, limit: int) -> list[Import]:
        """In order of id, which is the order of beginning."""
        newest = select(*_COLUMNS).order_by(_IMPORT.c.id.desc()).limit(limit)
        if before is not None:
            newest = newest.where(_IMPORT.c.id < before)
        async with self.database.reading() as connection:
            return [Import(**row._asdict()) for row in await connection.execute(newest)]

    async def import_errors(self, id: str, *, after: int = 0, limit: int) -> list[RowError]:
        """By primary key."""
        columns = (_ERROR.c.line, _ERROR.c.code, _ERROR.c.detail)
        found = select(*columns).where(_ERROR.c.import_id == id, _ERROR.c.line > after)
        async with self.database.reading() as connection:
            return [RowError(*row) for row in await connection.execute(found.order_by(_ERROR.c.line).limit(limit))]

    async def _one(self, connection: AsyncConnection, id: str) -> Import:
        row = (await connection.execute(select(*_COLUMNS).where(_IMPORT.c.id == id))).one_or_none()
        if row is None:
            raise NotFound(f"There is no import {id}.", importId=id)
        return Import(**row._asdict())


def forget_imports(ended_before: datetime, *, unfinished: datetime, limit: int) -> tuple[Delete, ...]:
    """Return what drops imports that ended then, and uploads that were left unfinished; what belongs to them first."""
    left = (_IMPORT.c.status == "UPLOADING") & (_IMPORT.c.created_at < unfinished)
    over = select(_IMPORT.c.id).where(or_(_IMPORT.c.ended_at < ended_before, left))
    part, error = (_PART.c.import_id, _PART.c.number), (_ERROR.c.import_id, _ERROR.c.line)
    parts = select(*part).where(_PART.c.import_id.in_(over)).limit(limit)
    errors = select(*error).where(_ERROR.c.import_id.in_(over)).limit(limit)
    bare = over.where(*(~select(of).where(of == _IMPORT.c.id).exists() for of in (part[0], error[0]))).limit(limit)
    return (
        delete(_PART).where(tuple_(*part).in_(parts)),
        delete(_ERROR).where(tuple_(*error).in_(errors)),
        delete(_IMPORT).where(_IMPORT.c.id.in_(bare)),
    )


async def _forget(connection: AsyncConnection, id: str) -> None:
    """Drop an upload, and nothing that was queued: of that, rows may have been imported."""
    upload = delete(_IMPORT).where(_IMPORT.c.id == id, _IMPORT.c.status == "UPLOADING")
    if (await connection.execute(upload)).rowcount:
        await connection.execute(delete(_PART).where(_PART.c.import_id == id))


def _values(job: Import) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Import.__struct_fields__}
