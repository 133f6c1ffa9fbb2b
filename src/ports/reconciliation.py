"""The part of the store that reconciles: comparing its own records, and keeping runs, findings and repairs."""

from collections.abc import Collection
from typing import Protocol

from msgspec import Struct

from core.acts import Act
from core.findings import Discrepancy, Finding, Part, Repair, Repairs, Run, Tally, Trigger
from ports.leases import Lease

RECONCILIATION = "reconciliation"
"""The lease of whoever reconciles."""


class ComparedPage(Struct, frozen=True):
    """So many products (or, of history, rows) looked at, the items among them, and what disagrees there.

    ``next_after`` is where to go on, None when this was the last page. Of products asked for elsewhere ``present`` were
    there and ``absent`` were not.
    """

    looked_at: int
    items: int
    discrepancies: tuple[Discrepancy, ...]
    next_after: str | None
    present: int = 0
    absent: int = 0


class ReconciliationStore(Protocol):
    """Where records are compared, and what is kept of it. What takes a lease does nothing once that is another's."""

    async def compare(self, part: Part, *, after: str | None, limit: int) -> ComparedPage:
        """Compare the records of the next ``limit`` products of a part, or rows of its history.

        What is found was so at one moment: nothing in a page can disagree because it was changed meanwhile. Takes no
        lock. One of "stock" reads no history; how long it takes does not depend on it.
        """
        ...

    async def compare_products(self, product_ids: Collection[str]) -> tuple[Discrepancy, ...]:
        """Compare how these products stand, as ``compare`` does of "stock"."""
        ...

    async def compared_size(self, part: Part) -> int:
        """Estimate how much ``compare`` will look at in all of a part, without counting history."""
        ...

    async def product_ids(self, *, after: str | None, limit: int) -> list[str]:
        """Return the next products, by id."""
        ...

    async def begin_reconciliation(
        self, lease: Lease, id: str, *, trigger: Trigger, actor: str, deep: bool, repairs: Repairs
    ) -> Run | None:
        """Put a run on record, or set one that was asked for or broken off to work; return it as it is on record.

        Any other that was broken off is CANCELLED. None, having done nothing, when ``lease`` is no longer ours.
        """
        ...

    async def advance_reconciliation(
        self, lease: Lease, run: Run, *, found: Collection[Discrepancy] = (), repairs: Collection[Repair] = ()
    ) -> Run | None:
        """Record how far a run is, what it has seen since, and what it has done about it; return it as it is on record.

        What is known by kind and subject is not raised anew; what is REPAIRED is resolved. One that was CANCELLED in
        the meantime is returned as that, and nothing is recorded. None, having done nothing, when ``lease`` is no
        longer ours.
        """
        ...

    async def end_reconciliation(self, lease: Lease, run: Run) -> Run | None:
        """Record a run's end and what it looked at; return it with what it found.

        A deep run's end resolves every finding that was last seen before it began, of the kinds whose parts it is
        ``done`` with. None, having done nothing, when ``lease`` is no longer ours.
        """
        ...

    async def request_reconciliation(self, id: str, *, deep: bool, repairs: Repairs, act: Act) -> Run:
        """Ask for a run of whoever reconciles.

        Raises:
            Conflict: another has not ended.
        """
        ...

    async def cancel_reconciliation(self, id: str, act: Act) -> Run:
        """End a run that is asked for, going on or broken off; what it has repaired stays.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended.
        """
        ...

    async def idle_reconciliation(self) -> Run | None:
        """Return the run that was asked for, or broken off, and that nobody is at; the one that began first."""
        ...

    async def since_reconciled(self, *, deep: bool = False) -> float:
        """Return how many seconds ago the last run began, or the last ``deep`` one that has ended; inf for never."""
        ...

    async def reconciliations(self, limit: int) -> list[Run]:
        """Return the last runs, newest first."""
        ...

    async def reconciliation(self, id: str) -> Run | None:
        """Return a run."""
        ...

    async def findings(self, run: Run | None = None, *, after: Finding | None = None, limit: int) -> list[Finding]:
        """Return what stands, or what stood while ``run`` was on, by kind and subject; ``after`` is where to go on."""
        ...

    async def findings_of(self, run: Run, *, after: str | None, products: int) -> list[Finding]:
        """Return what a run has seen of the next so many products beyond ``after``, by product, kind and subject."""
        ...

    async def tallies(self, run: Run) -> list[Tally]:
        """Count what stood while a run was on, by kind and age."""
        ...

    async def repairs(self, run: Run, *, after: Repair | None = None, limit: int) -> list[Repair]:
        """Return what a run did about its findings, by kind and subject; ``after`` is where to go on."""
        ...
