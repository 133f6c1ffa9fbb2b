"""Group commit: requests do not open transactions, they join the next batch.

A lane takes what waits, locks the products, decides one operation after another in memory, writes everything in one
commit and gives each caller its own outcome. The fast lane never waits for a lock; what it misses moves to the patient
lane, which does (rule R2). No timer: an idle lane takes a single request at once, and while a batch is being committed
the next one gathers. Rules R1 to R6.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from core.errors import Busy, Conflict, InventoryError, OutcomeUnknown, Unavailable, ValidationFailed
from core.operations import Outcome, Request
from core.rules.book import Book
from core.rules.sourcing import STRATEGIES, Strategy
from core.running.loop import Loops
from core.writing.batch import Batch, Stale, Work
from core.writing.lane import BATCH_OPERATIONS, Lane
from ports.store import Store, Transaction

QUEUE_OPERATIONS = 20_000
QUEUE_BYTES = 64 * 1024 * 1024
_ATTEMPTS = 4
_KNOWN_MAX = 200_000
_log = logging.getLogger(__name__)


class Writer:
    """The one way to change stock: ``submit`` a request, get the outcome of each of its operations.

    Belongs to one event loop; many writers, in many processes, may work on one store.

    Args:
        store: where stock is kept.
        sourcing: the strategies by name.
        committed: told of every book that was committed or may have been, before its callers are answered. It must not
            fail.
    """

    def __init__(
        self,
        store: Store,
        *,
        sourcing: Mapping[str, Strategy] = STRATEGIES,
        committed: Callable[[Book], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._sourcing = sourcing
        self._committed = committed
        self._fast = Lane(self._hurry)
        self._patient = Lane(self._insist)
        self._lanes = (self._fast, self._patient)
        self._loops = Loops()
        self._stopping = False
        # item id -> product id, and products known to exist: spares a statement a batch; verified under the lock.
        self._product_of: dict[str, str] = {}
        self._products: set[str] = set()

    async def start(self) -> None:
        """Start the lanes."""
        self._stopping = False
        self._loops.start(*(lane.run() for lane in self._lanes), self._watch())

    async def stop(self) -> None:
        """Finish what is queued, then end. New requests are refused as ``Unavailable``."""
        self._stopping = True
        for lane in self._lanes:
            await lane.drain()
        await self._loops.stop()

    async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
        """Return the outcome of each operation, in order; a refusal is a value, not raised.

        All operations of a request are one batch and one commit, but each is decided on its own. A caller that is
        cancelled before its request was taken leaves no trace; afterwards it is carried out (rule R5).

        Args:
            request: at most ``BATCH_OPERATIONS`` operations.
            timeout: seconds the request may wait for its turn.

        Raises:
            ValidationFailed: too many operations.
            Unavailable: nothing was done: the queue is full, the turn did not come, or the store is away.
            OutcomeUnknown: the store was lost while committing.
            IdempotencyKeyReused: the key came before with another request.
        """
        if len(request.operations) > BATCH_OPERATIONS:
            raise ValidationFailed(f"At most {BATCH_OPERATIONS} operations fit in one request; split it.")
        work = Work(request, time.monotonic() + timeout)
        self._enqueue(work)
        return await work.future

    def _enqueue(self, work: Work) -> None:
        if self._stopping:
            raise Unavailable("The service is stopping; try again shortly.", retry_after=1)
        waiting = sum(lane.operations for lane in self._lanes)
        if waiting >= QUEUE_OPERATIONS or sum(lane.bytes for lane in self._lanes) + work.bytes > QUEUE_BYTES:
            raise Unavailable("Too many changes are waiting; try again shortly.", retry_after=1)
        self._fast.add(work)

    async def _watch(self) -> None:
        """Refuse what has waited too long, also while a lane is stuck."""
        while True:
            await asyncio.sleep(0.2)
            for lane in self._lanes:
                lane.expire()

    async def _hurry(self, works: list[Work]) -> None:
        """Carry out what nobody else has locked; the rest moves to the patient lane."""
        for work in await self._commit(works, wait=False):
            self._patient.add(work)

    async def _insist(self, works: list[Work]) -> None:
        """Wait for the locks, and refuse what somebody holds too long."""
        try:
            await self._commit(works, wait=True)
        except Busy as busy:
            # The others go on, but for those that are done because the batch was carried out by halves; who is still
            # locked out gets one more turn, because a lock may also be held for a moment only.
            left = [work for work in works if not work.future.done()]
            for work in await self._commit(left, wait=False):
                work.moved += 1
                if work.moved > 1:
                    work.refuse(busy)
                else:
                    self._patient.add(work)

    # -- one batch ---------------------------------------------------------------------------------------------------

    async def _commit(self, works: Sequence[Work], *, wait: bool) -> list[Work]:
        """Carry out ``works`` and answer each; return those whose products are locked by somebody else."""
        try:
            return await self._persist(works, wait=wait)
        except InventoryError as error:
            if wait and isinstance(error, Busy):
                raise
            hopeless = isinstance(error, Unavailable | OutcomeUnknown) and not isinstance(error, Busy)
            if hopeless or len(works) == 1:
                for work in works:
                    work.refuse(error)
                return []
        except Exception:
            if len(works) == 1:
                # Rule R3: alone and still failing, so it is this request. An alarm, not a batch of victims.
                _log.exception("A request failed unexpectedly and was refused")
                works[0].refuse(InventoryError("Something unexpected happened; nothing was done."))
                return []
        half = len(works) // 2
        return await self._commit(works[:half], wait=wait) + await self._commit(works[half:], wait=wait)

    async def _persist(self, works: Sequence[Work], *, wait: bool) -> list[Work]:
        """Try until the store takes the batch: rows may move under us, connections may be lost."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._attempt(works, wait=wait)
            except Stale:
                self._product_of.clear()
            except Conflict:
                # Somebody was faster at making the same thing. Read again: then the rules refuse that operation alone.
                if attempt > 1:
                    raise
            except Busy:
                raise
            except Unavailable:
                if attempt == _ATTEMPTS or time.monotonic() > max(work.deadline for work in works):
                    raise
                await asyncio.sleep(0.02 * 4**attempt)
        raise Unavailable("The stock kept changing while this was decided; try again.", retry_after=1)

    async def _attempt(self, works: Sequence[Work], *, wait: bool) -> list[Work]:
        await self._add_products(works)
        settled = None
        try:
            async with self._store.transaction() as transaction:
                await self._resolve(transaction, works)
                asked = set().union(*(work.products for work in works))
                locked = await transaction.lock(asked, wait=wait) if asked else set()
                # Having waited, what is still missing does not exist; the rules will say so. Unless it was here before:
                # a store that was put back to an earlier state has lost rows that are in our memory.
                if wait and (lost := (asked - locked) & self._products):
                    self._products -= lost
                    raise Stale
                ready = works if wait else [work for work in works if work.products <= locked]
                missed = [work for work in works if not wait and not work.products <= locked]
                settled = await Batch(ready, self._sourcing).carry_out(transaction, locked) if ready else None
                if settled is None:
                    await transaction.rollback()
        except (OutcomeUnknown, asyncio.CancelledError):
            # It may be committed all the same. If not, its floors send readers to the store until the next change.
            if settled is not None:
                self._committed(settled.book)
            raise
        if settled is not None:
            self._committed(settled.book)
            self._learn(settled.book)
            for work, outcomes in settled.results:
                work.answer(outcomes) if isinstance(outcomes, list) else work.refuse(outcomes)
            if settled.book.outbox:
                await self._announce()
        return missed

    async def _announce(self) -> None:
        """Ring for the relay. Committed is committed: whatever happens here must not make the batch happen again."""
        try:
            await self._store.announce()
        except Exception:
            _log.exception("Announcing a commit failed; the relay finds it by polling")

    async def _add_products(self, works: Sequence[Work]) -> None:
        """Give products their row before anybody locks it (rule R1)."""
        new = set().union(*(work.needs.new_products for work in works)) - self._products
        if new:
            await self._store.add_products(new)
            self._products |= new

    async def _resolve(self, transaction: Transaction, works: Sequence[Work]) -> None:
        """Find out which products each request touches."""
        items = set().union(*(work.needs.wanted.item_ids for work in works))
        reservations = set().union(*(work.needs.wanted.reservation_ids for work in works))
        receipts = set().union(*(work.needs.wanted.receipt_ids for work in works))
        unknown = [id for id in items if id not in self._product_of]
        asked = unknown or reservations or receipts
        found = await transaction.resolve(unknown, reservations, receipts) if asked else {}
        skus = set().union(*(work.needs.wanted.skus for work in works))
        of_sku = await transaction.products_of(skus) if skus else {}
        for id in unknown:
            if id in found:
                (self._product_of[id],) = found[id]
        for work in works:
            needs = work.needs
            work.products = set(needs.products)
            work.products |= {self._product_of[id] for id in needs.wanted.item_ids if id in self._product_of}
            work.products |= set().union(*(found.get(id, set()) for id in needs.wanted.reservation_ids))
            work.products |= set().union(*(found.get(id, set()) for id in needs.wanted.receipt_ids))
            work.products |= set().union(*(of_sku.get(sku, set()) for sku in needs.wanted.skus))

    def _learn(self, book: Book) -> None:
        if len(self._product_of) > _KNOWN_MAX:
            self._product_of.clear()
        if len(self._products) > _KNOWN_MAX:
            self._products.clear()
        self._product_of |= {item.id: item.product_id for item in book.items.values()}
