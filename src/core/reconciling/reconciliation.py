"""Do the records agree? Ledger and balances, reservations, totals, events, and our products and the Product Service's.

A product is read in one statement, as of one moment, while stock is being sold: nothing is locked and nobody waits.
What disagrees is looked at again a little later, and only what disagrees both times is a finding. When all has been
looked through, findings are repaired as the policy says (``repairs.py``).

How things stand now takes a time that grows with the number of items, whatever their history: an item is held against
its last ledger row. A *deep* run reads the history as well, a bounded number of rows at a time, and proves that every
balance is the sum of its ledger; and it asks the Product Service for every product. By itself the service looks at how
things stand every time, and at everything once a day. A run that is broken off goes on where it was.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from core.errors import Busy, ProductServiceProtocolError, ProductServiceUnavailable
from core.findings import OF_CATALOG, PARTS, QUICK, Discrepancy, Limits, Part, Repair, Repairs, Run, Status, Trigger
from core.ids import new_id
from core.reconciling.repairs import Repairer, brakes
from core.reconciling.survey import CatalogSurvey, OwnRecords
from core.rules.book import SYSTEM
from core.running.lease import held
from core.running.loop import Loops, forever
from ports.leases import Lease
from ports.reconciliation import RECONCILIATION, ComparedPage
from ports.store import Store

LEASE_SECONDS = 30.0
DEEP_SECONDS = 86_400.0
SECOND_LOOK_SECONDS = 1.0
RECORD_SECONDS = 1.0
"""How often a run that finds nothing puts on record how far it is."""
REPAIRED_AT_ONCE = 50
"""So many products are repaired together."""
_POLL_SECONDS = 1.0
_log = logging.getLogger(__name__)

REPAIR = "repair"
"""What a run is at when it has looked through every part."""
LIMITS = Limits()
Progress = Callable[[str, int, int], None]
"""Called with a part, or "repair", how much of it has been looked at, and about how much there is."""


class _Cancelled(Exception):
    """Somebody has ended the run: here it is as it is on record."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.id)
        self.run = run


class Reconciliation:
    """Runs by itself every so many minutes, in one of all the processes that try, and whenever it is asked to.

    Args:
        repairer: repairs; without one, runs only find.
        survey: asks the Product Service; None where there is none.
        minutes: from the beginning of one run to the next, whoever asked for it; 0 for only when asked.
        repairs: what runs that come by themselves may repair.
        limits: when repairing stops before it has begun.
        rate: so many products or rows are looked at in a second at most; 0 for as many as can be.
        second_look_seconds: how long to wait before what disagrees is looked at again.
    """

    def __init__(
        self,
        store: Store,
        repairer: Repairer | None = None,
        survey: CatalogSurvey | None = None,
        *,
        minutes: float,
        repairs: Repairs = "plan",
        limits: Limits = LIMITS,
        rate: int = 0,
        second_look_seconds: float = SECOND_LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._repairer = repairer
        self._survey = survey
        self._seconds = minutes * 60
        self._repairs: Repairs = repairs
        self._limits = limits
        self._rate = rate
        self._own = OwnRecords(store, second_look_seconds=second_look_seconds)
        self._due_at = 0.0
        self._loops = Loops()

    async def start(self) -> None:
        """Start running every interval, and when asked to."""
        self._loops.start(forever("Reconciling", self._take_turn, pause=_POLL_SECONDS))

    async def stop(self) -> None:
        """End; a run that is going on is broken off, to be taken up by whoever comes next."""
        await self._loops.stop()

    async def turn(self) -> Run | None:
        """Go on with a run that was asked for or broken off, or run if it is time to; return the run.

        Raises:
            Busy: another run is going on.
            Unavailable: the store is away.
        """
        if (waiting := await self._store.idle_reconciliation()) is not None:
            return await self._carry_out(waiting.id, _as_asked(waiting))
        if not self._seconds or time.monotonic() < self._due_at:
            return None
        if (left := self._seconds - await self._store.since_reconciled()) > 0:
            self._due_at = time.monotonic() + left  # or later, if another runs meanwhile
            return None
        deep = await self._store.since_reconciled(deep=True) >= DEEP_SECONDS
        return await self.run(trigger="interval", actor=SYSTEM, deep=deep, repairs=self._repairs)

    async def run(
        self,
        *,
        trigger: Trigger,
        actor: str,
        deep: bool = True,
        repairs: Repairs = "plan",
        progress: Progress | None = None,
    ) -> Run:
        """Look now, store what is found, repair what may be, and return the run.

        One of the same kind that was broken off is taken up where it was. Only a ``deep`` run calls findings resolved
        that it does not see any more: another has not looked everywhere.

        Raises:
            Busy: another run is going on.
            Unavailable: the store is away; the run stays without an end.
        """
        new = {"trigger": trigger, "actor": actor, "deep": deep, "repairs": repairs}
        waiting = await self._store.idle_reconciliation()
        if waiting is not None and (waiting.status, waiting.deep, waiting.repairs) == ("RUNNING", deep, repairs):
            return await self._carry_out(waiting.id, new, progress)
        return await self._carry_out(new_id("rec"), new, progress)

    async def _carry_out(self, id: str, new: Mapping[str, Any], progress: Progress | None = None) -> Run:
        """Carry out a run that is on record, or a ``new`` one."""
        owner = new_id("rec")  # not the run's: whoever takes a run up is somebody else
        async with held(self._store, RECONCILIATION, owner, seconds=LEASE_SECONDS) as lease:
            run = None if lease is None else await self._store.begin_reconciliation(lease, id, **new)
            if lease is None or run is None:
                raise _taken()
            if not run.is_open:  # somebody has ended it in the meantime
                return run
            work = _Work(self._store, run, lease, rate=self._rate, progress=progress)
            try:
                await self._look(work)
                run = await work.end(await self._repair(work))
            except _Cancelled as cancelled:
                return cancelled.run
        _tell(run)
        return run

    async def _look(self, work: "_Work") -> None:
        """Look through every part that is left."""
        for part in PARTS if work.run.deep else QUICK:
            source = self._survey if part in OF_CATALOG else self._own
            if part in work.run.done or source is None:
                continue
            await work.begin(part, await self._store.compared_size("stock" if part in OF_CATALOG else part))
            try:
                async for page in source.pages(part, work.run.place):
                    await work.seen(part, page)
                source.check()
            except (ProductServiceUnavailable, ProductServiceProtocolError) as error:
                work.alarm(f"What the Product Service has could not be compared to the end: {error.detail}")
            else:
                await work.finish(part)

    async def _repair(self, work: "_Work") -> Status:
        """Do about what was found what the policy says, the findings of some products at a time."""
        tallies = await self._store.tallies(work.run)
        if self._repairer is None or not tallies:
            return "DONE"
        well = self._survey is not None and await self._survey.is_well()
        stops = brakes(work.run, tallies, self._limits, well=well)
        for alarm in stops.alarms:
            work.alarm(alarm)
        await work.begin(REPAIR, sum(each.count for each in tallies))
        while findings := await self._store.findings_of(work.run, after=work.run.place, products=REPAIRED_AT_ONCE):
            repairs = await self._repairer.repair(work.run, findings, stops)
            await work.repaired(findings[-1].product_id, repairs, len(findings))
        return "HALTED" if stops.alarms else "DONE"

    async def _take_turn(self) -> float:
        with suppress(Busy):  # another process is at it
            await self.turn()
        return _POLL_SECONDS


class _Work:
    """A run being carried out: how far it is, what of that is put on record and when, and whether it is still ours."""

    def __init__(self, store: Store, run: Run, lease: Lease, *, rate: int, progress: Progress | None) -> None:
        self.run = run
        self._store = store
        self._lease = lease
        self._rate = rate
        self._progress = progress
        self._record_at = 0.0
        self._begun = time.monotonic()
        self._passed = 0

    async def begin(self, part: str, about: int) -> None:
        """Turn to a part; one that was broken off goes on where it was."""
        place, looked_at = (self.run.place, self.run.looked_at) if self.run.part == part else (None, 0)
        self.run = replace(self.run, part=part, place=place, looked_at=looked_at, about=about)

    async def seen(self, part: Part, page: ComparedPage) -> None:
        """Take in a page, and rest for as long as the rate asks."""
        run, of_stock = self.run, part == "stock"
        self.run = replace(
            run,
            # Until the part is finished, its last page is looked at again by whoever takes the run up.
            place=run.place if page.next_after is None else page.next_after,
            looked_at=run.looked_at + page.looked_at,
            products=run.products + (page.looked_at if of_stock else 0),
            items=run.items + page.items,
            present=run.present + page.present,
            absent=run.absent + page.absent,
        )
        await self._keep(found=page.discrepancies)
        self._show(whole=page.next_after is None)
        await self._rest(page.looked_at)

    async def finish(self, part: Part) -> None:
        """Leave a part that was looked through."""
        self.run = replace(self.run, done=(*self.run.done, part), part=None, place=None)
        await self._keep()

    async def repaired(self, product_id: str, repairs: Sequence[Repair], count: int) -> None:
        """Take in what became of findings, the last of them about this product."""
        self.run = replace(self.run, place=product_id, looked_at=self.run.looked_at + count)
        await self._keep(repairs=repairs)
        self._show()
        await self._rest(count)

    def alarm(self, sentence: str) -> None:
        """Tell whoever looks at the run, and the log, that something is wrong."""
        if sentence not in self.run.alarms:
            self.run = replace(self.run, alarms=(*self.run.alarms, sentence))
            _log.error("Reconciliation %s: %s", self.run.id, sentence)

    async def end(self, status: Status) -> Run:
        """Put the end on record."""
        ended = replace(self.run, status=status, part=None, place=None)
        return self._ours(await self._store.end_reconciliation(self._lease, ended))

    async def _keep(self, *, found: Sequence[Discrepancy] = (), repairs: Sequence[Repair] = ()) -> None:
        """Put on record how far it is: at once where there is more to it, else now and then."""
        if found or repairs or time.monotonic() >= self._record_at:
            self._ours(await self._store.advance_reconciliation(self._lease, self.run, found=found, repairs=repairs))
            self._record_at = time.monotonic() + RECORD_SECONDS

    def _ours(self, recorded: Run | None) -> Run:
        if recorded is None:
            raise _taken()
        if recorded.status == "CANCELLED":
            raise _Cancelled(recorded)
        return recorded

    def _show(self, *, whole: bool = False) -> None:
        run = self.run
        if self._progress is not None and run.part is not None:
            self._progress(run.part, run.looked_at, run.looked_at if whole else max(run.about, run.looked_at))

    async def _rest(self, passed: int) -> None:
        self._passed += passed
        if self._rate and (ahead := self._passed / self._rate - (time.monotonic() - self._begun)) > 0:
            await asyncio.sleep(ahead)


def _as_asked(run: Run) -> dict[str, Any]:
    return {"trigger": run.trigger, "actor": run.actor, "deep": run.deep, "repairs": run.repairs}


def _taken() -> Busy:
    return Busy("Another reconciliation is going on; wait until it has ended, and look at what it found.")


def _tell(run: Run) -> None:
    looked = f"Reconciliation {run.id} looked at {run.products} products and {run.items} items"
    if run.findings:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(run.findings.items()))
        became = ", ".join(f"{count} {outcome}" for outcome, count in sorted(run.outcomes.items())) or "nothing done"
        message = "%s and found %s; %d of it new (%s). See `inventory reconcile show`."
        _log.warning(message, looked, counts, run.raised, became)
    else:
        _log.info("%s and found nothing", looked)
