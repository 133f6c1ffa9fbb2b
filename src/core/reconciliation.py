"""Do the records agree? Ledger and balances, reservations and what is reserved, items and totals, events and sequence.

A product is read in one statement, as of one moment, while stock is being sold: nothing is locked and nobody waits.
What disagrees is looked at again a little later, and only what disagrees both times is a finding.

How things stand now takes a time that grows with the number of items, whatever their history: an item is held against
its last ledger row. A *deep* run reads the history as well, a bounded number of rows at a time, and proves that every
balance is the sum of its ledger: each row leads to the next, and the last one to the balance. By itself the service
looks at how things stand every time, and into the history once a day.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from msgspec.structs import replace

from core.book import SYSTEM
from core.errors import Busy, Unavailable
from core.findings import PARTS, Part, Run, Trigger
from core.ids import new_id
from core.loop import Loops, forever
from ports.outbox import Lease
from ports.store import AuditPage, Store

LEASE_SECONDS = 30.0
DEEP_SECONDS = 86_400.0
SECOND_LOOK_SECONDS = 1.0
PAGES: dict[Part, int] = {"stock": 500, "receipts": 5_000, "ledger": 20_000, "events": 20_000}
"""How much of each part one statement reads: products, or rows."""
_POLL_SECONDS = 30.0
_log = logging.getLogger(__name__)

Progress = Callable[[Part, int, int], None]
"""Called with a part, how much of it has been looked at, and about how much there is."""


class Reconciliation:
    """Runs by itself every so many minutes, in one of all the processes that try, and whenever it is asked to.

    Args:
        minutes: from the beginning of one run to the next, whoever asked for it; 0 for never.
        second_look_seconds: how long to wait before what disagrees is looked at again.
    """

    def __init__(self, store: Store, *, minutes: float, second_look_seconds: float = SECOND_LOOK_SECONDS) -> None:
        self._store = store
        self._seconds = minutes * 60
        self._pause = second_look_seconds
        self._loops = Loops()

    async def start(self) -> None:
        """Start running every interval."""
        if self._seconds:
            self._loops.start(forever("Reconciling", self._take_turn, pause=min(_POLL_SECONDS, self._seconds)))

    async def stop(self) -> None:
        """End; a run that is going on is broken off and stays without an end."""
        await self._loops.stop()

    async def turn(self) -> Run | None:
        """Run if it is time to, and return the run.

        Raises:
            Busy: another run is going on.
            Unavailable: the store is away.
        """
        if await self._store.since_reconciled() < self._seconds:
            return None
        deep = await self._store.since_reconciled(deep=True) >= DEEP_SECONDS
        return await self.run(trigger="interval", actor=SYSTEM, deep=deep)

    async def run(self, *, trigger: Trigger, actor: str, deep: bool = True, progress: Progress | None = None) -> Run:
        """Look now, store what is found, and return the run.

        Only a ``deep`` run calls findings resolved that it does not see any more: another has not looked everywhere.

        Raises:
            Busy: another run is going on.
            Unavailable: the store is away; the run stays without an end.
        """
        id = new_id("rec")
        async with _alone(self._store, id) as stay_alone:
            run = await self._store.begin_reconciliation(id, trigger=trigger, actor=actor, deep=deep)
            for part in PARTS if deep else PARTS[:1]:
                async for page in self._pages(part, run, progress):
                    if part == "stock":
                        run = replace(run, products=run.products + page.looked_at, items=run.items + page.items)
                    await stay_alone()
            run = await self._store.end_reconciliation(run)
        _tell(run)
        return run

    async def _pages(self, part: Part, run: Run, progress: Progress | None) -> AsyncIterator[AuditPage]:
        """Look through a part and store what is found in it."""
        about = await self._store.audit_size(part) if progress else 0
        looked_at, after = 0, None
        while True:
            page = await self._confirmed(part, after)
            if page.discrepancies:
                await self._store.save_findings(run.id, page.discrepancies)
            yield page
            looked_at, after = looked_at + page.looked_at, page.next_after
            if progress:
                progress(part, looked_at, looked_at if after is None else max(about, looked_at))
            if after is None:
                return

    async def _confirmed(self, part: Part, after: str | None) -> AuditPage:
        """Return a page with those discrepancies that a second look sees as well."""
        page = await self._store.audit(part, after=after, limit=PAGES[part])
        if not page.discrepancies:
            return page
        suspects = {(each.kind, each.subject) for each in page.discrepancies}
        await asyncio.sleep(self._pause)
        # The second page may end earlier than the first; it is the one to go on from, so that nothing is left out.
        page = await self._store.audit(part, after=after, limit=PAGES[part])
        confirmed = {(each.kind, each.subject): each for each in reversed(page.discrepancies)}
        return replace(page, discrepancies=tuple(confirmed[each] for each in confirmed.keys() & suspects))

    async def _take_turn(self) -> float:
        with suppress(Busy):  # another process is at it
            await self.turn()
        return min(_POLL_SECONDS, self._seconds)


@asynccontextmanager
async def _alone(store: Store, run_id: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold the lease while the block runs; it is to call what it is given now and then, to stay the only one."""
    lease: Lease | None = None
    renew_at = 0.0

    async def acquire() -> None:
        nonlocal lease, renew_at
        if (now := time.monotonic()) < renew_at:
            return
        renew_at = now + LEASE_SECONDS / 3
        if (lease := await store.acquire("reconciliation", run_id, seconds=LEASE_SECONDS)) is None:
            raise Busy("Another reconciliation is going on; wait until it has ended, and look at what it found.")

    await acquire()
    try:
        yield acquire
    finally:
        if lease is not None:
            with suppress(Unavailable):
                await store.release(lease)


def _tell(run: Run) -> None:
    looked = f"Reconciliation {run.id} looked at {run.products} products and {run.items} items"
    if run.findings:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(run.findings.items()))
        _log.warning("%s and found %s; %d of it new. See `inventory reconcile show`.", looked, counts, run.raised)
    else:
        _log.info("%s and found nothing", looked)
