"""Files carried out: every row is checked first, then they go through the writer like any other request, many at once.

One process at a time works, by lease. Each batch of rows has an idempotency key made of the import's id and the line it
begins in: whoever goes on after a crash repeats at most what was under way, and that changes nothing.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import suppress

from msgspec.structs import replace

from core.acts import Act
from core.catalog.products import Products
from core.errors import InventoryError, OutcomeUnknown, Unavailable, ValidationFailed
from core.files.checks import NOWHERE, Checker, Known
from core.files.kinds import operation
from core.files.sheets import Row, Sheet
from core.operations import IdempotencyKey, Operation, Outcome, Request
from core.running.lease import held
from core.running.loop import Loops, forever
from core.writing.writer import Writer
from ports.imports import PART_BYTES, Import, ImportOrder, RowError
from ports.leases import Lease
from ports.store import IMPORTS, Store

ROWS_MAX = 1_000_000
UPLOAD_MAX = 256 * 1024 * 1024
LEASE_SECONDS = 10.0
BATCH_ROWS = 250
"""How many rows are one commit; never another number for an import that has begun, for its keys go by it."""
_BATCHES_AT_ONCE = 3
_CHECKED_AT_ONCE = 1_000
_SLICE = 16 * 1024
_WAIT_SECONDS = 30.0
_IDLE_SECONDS = 1.0
_log = logging.getLogger(__name__)

Progress = Callable[[Import], None]


class TooLarge(ValidationFailed):
    """The file is larger than an import takes; split it."""


class _Ended(Exception):
    """The import was cancelled, or somebody else has taken it over."""


class Imports:
    """Takes files and carries them out.

    Args:
        owner: who we are in the lease.
    """

    def __init__(self, store: Store, writer: Writer, products: Products, *, owner: str) -> None:
        self._store = store
        self._writer = writer
        self._products = products
        self._owner = owner
        self._loops = Loops()

    async def start(self) -> None:
        """Start carrying out what is queued."""
        self._loops.start(forever("Importing", self._take_turn, pause=_IDLE_SECONDS))

    async def stop(self) -> None:
        """End; what was under way is gone on with by whoever comes next."""
        await self._loops.stop()

    async def take(self, order: ImportOrder, pieces: AsyncIterable[bytes], act: Act) -> Import:
        """Store a file as it comes and queue it; return the earlier import of the same content, if there is one.

        Raises:
            TooLarge: it is; nothing is kept of it.
            Unavailable: the store is away.
        """
        job = await self._store.begin_import(order, act)
        digest, size, number, waiting = hashlib.sha256(), 0, 0, b""
        try:
            async for piece in pieces:
                digest.update(piece)
                size += len(piece)
                if size > UPLOAD_MAX:
                    raise TooLarge(f"A file of more than {UPLOAD_MAX // 1024 // 1024} MB cannot be imported; split it.")
                waiting += piece
                while len(waiting) >= PART_BYTES:
                    await self._store.add_part(job.id, number, waiting[:PART_BYTES])
                    number, waiting = number + 1, waiting[PART_BYTES:]
            if waiting:
                await self._store.add_part(job.id, number, waiting)
            return await self._store.finish_upload(job.id, digest=digest.hexdigest(), size=size, again=order.again)
        except BaseException:
            with suppress(InventoryError):
                await self._store.abandon_upload(job.id)
            raise

    async def turn(self, progress: Progress = lambda _: None) -> bool:
        """Carry out the oldest import that is open, unless somebody else does; return whether we did.

        Raises:
            Unavailable: the store or the Product Service is away; the next turn goes on.
            OutcomeUnknown: the store was lost; the same.
        """
        if await self._store.open_import() is None:
            return False
        async with held(self._store, IMPORTS, self._owner, seconds=LEASE_SECONDS) as lease:
            if lease is None:
                return False
            try:
                # Only now: whoever had the lease before may have ended it.
                if (job := await self._store.open_import()) is not None:
                    await _Run(self._store, self._writer, self._products, lease, job, progress).go()
            except _Ended:
                _log.info("Import %s was ended by somebody else", job.id if job else "")
        return True

    async def _take_turn(self) -> float:
        return 0.0 if await self.turn() else _IDLE_SECONDS


class _Run:
    """An import in our hands."""

    def __init__(
        self, store: Store, writer: Writer, products: Products, lease: Lease, job: Import, progress: Progress
    ) -> None:
        self._store = store
        self._writer = writer
        self._products = products
        self._lease = lease
        self._job = job
        self._progress = progress

    async def go(self) -> None:
        """Check the rows, unless that is done, and import them, unless that is not to be."""
        if self._job.status != "IMPORTING":
            await self._check()
        if self._job.status == "IMPORTING":
            await self._import()
        job = self._job
        _log.info("Import %s is %s: %d rows done, %d refused", job.id, job.status, job.done, job.refused)

    # -- checking ----------------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        await self._save(replace(self._job, status="CHECKING", checked=0, refused=0))
        checker, sheet = Checker(self._store, self._products), Sheet(self._job.kind, self._job.format)
        try:
            async for rows in self._rows(sheet, _CHECKED_AT_ONCE):
                errors = [verdict.error for verdict in await checker.check(rows) if verdict.error]
                checked, refused = self._job.checked + len(rows), self._job.refused + len(errors)
                await self._save(replace(self._job, checked=checked, refused=refused, kind=sheet.kind), errors)
                if checked > ROWS_MAX:
                    raise ValidationFailed(f"A file of more than {ROWS_MAX:,} rows cannot be imported; split it.")
            if not self._job.checked:
                raise ValidationFailed("The file has no rows.")
        except ValidationFailed as error:
            await self._save(replace(self._job, status="REFUSED", reason=error.detail))
            return
        await self._save(_checked(replace(self._job, rows=self._job.checked)))

    # -- importing ---------------------------------------------------------------------------------------------------

    async def _import(self) -> None:
        under_way: deque[tuple[int, asyncio.Task[list[RowError]]]] = deque()
        passed = 0
        try:
            async for rows in self._rows(Sheet(self._job.kind, self._job.format), BATCH_ROWS):
                behind, passed = passed, passed + len(rows)
                if passed <= self._job.done:
                    continue
                under_way.append((len(rows), asyncio.create_task(self._submit(rows, behind=behind))))
                if len(under_way) == _BATCHES_AT_ONCE:
                    await self._settle(*under_way.popleft())
            while under_way:
                await self._settle(*under_way.popleft())
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        await self._save(replace(self._job, status="DONE"))

    async def _settle(self, count: int, batch: "asyncio.Task[list[RowError]]") -> None:
        """Record what became of the next batch."""
        errors = await batch
        done, refused = self._job.done + count, self._job.refused + len(errors)
        await self._save(replace(self._job, done=done, refused=refused), errors)

    async def _submit(self, rows: Sequence[Row], *, behind: int) -> list[RowError]:
        """Carry out a batch that has so many rows behind it, and return why some of it were refused, now or before."""
        invalid = await self._invalid(rows, behind) if self._job.partial else {}
        errors = list(invalid.values())
        valid = [row for row in rows if row.line not in invalid]
        if valid:
            known = await Known.of(self._store, [row.said for row in valid])
            operations = [operation(row.said, known.item_of(row.said) or NOWHERE) for row in valid]
            for row, outcome in zip(valid, await self._write(valid[0].line, operations), strict=True):
                if isinstance(outcome, InventoryError):
                    errors.append(RowError(row.line, outcome.code, outcome.detail))
        return errors

    async def _write(self, line: int, operations: Sequence[Operation]) -> Sequence[Outcome]:
        request = Request(
            operations=tuple(operations),
            actor=self._job.actor,
            correlation_id=self._job.id,
            key=IdempotencyKey(IMPORTS, self._job.id, f"line {line}", b""),
            size=512 * len(operations),
        )
        try:
            return await self._writer.submit(request, timeout=_WAIT_SECONDS)
        except (Unavailable, OutcomeUnknown):
            raise
        except InventoryError as error:  # nothing of the batch was done
            return [error] * len(operations)

    async def _invalid(self, rows: Sequence[Row], behind: int) -> dict[int, RowError]:
        """Return what was found while checking, of these rows, by line.

        Raises:
            _Ended: somebody else has imported them; what was refused then is among what was found.
        """
        first, last = rows[0].line, rows[-1].line
        found = await self._store.import_errors(self._job.id, after=first - 1, limit=len(rows))
        job = await self._store.import_job(self._job.id)
        if job is None or job.done > behind:
            raise _Ended
        return {error.line: error for error in found if error.line <= last}

    # -- both --------------------------------------------------------------------------------------------------------

    async def _rows(self, sheet: Sheet, at_once: int) -> AsyncIterator[list[Row]]:
        """Yield the rows of the file, so many at once; always the same ones together."""
        waiting: list[Row] = []
        number = 0
        while (part := await self._store.import_part(self._job.id, number)) is not None:
            for start in range(0, len(part), _SLICE):
                waiting += sheet.feed(part[start : start + _SLICE])
                while len(waiting) >= at_once:
                    yield waiting[:at_once]
                    waiting = waiting[at_once:]
                await asyncio.sleep(0)
            number += 1
        waiting += sheet.end()
        if waiting:
            yield waiting

    async def _save(self, job: Import, errors: Sequence[RowError] = ()) -> None:
        """Record how far it is.

        Raises:
            _Ended: it is not ours any more.
        """
        if (saved := await self._store.save_import(self._lease, job, errors)) is None:
            raise _Ended
        self._job = saved
        self._progress(saved)


def _checked(job: Import) -> Import:
    """Return an import whose rows have all been checked, as it goes on."""
    if job.dry_run:
        return replace(job, status="REFUSED" if job.refused else "DONE")
    if job.refused and not job.partial:
        return replace(job, status="REFUSED", reason=f"{job.refused} rows are not valid, so nothing was imported.")
    return replace(job, status="IMPORTING", refused=0)
