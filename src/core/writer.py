"""Group commit: requests do not open transactions, they join the next batch.

A lane takes what waits, locks the products, decides one operation after another in memory, writes everything in one
commit and gives each caller its own outcome. The fast lane never waits for a lock; what it misses moves to the patient
lane, which does (rule R2). No timer: an idle lane takes a single request at once, and while a batch is being committed
the next one gathers. Rules R1 to R6.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from core.book import Book, Cause
from core.errors import (
    Busy,
    Conflict,
    IdempotencyKeyReused,
    InventoryError,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    ValidationFailed,
)
from core.operations import (
    Answer,
    ApplyProductEvent,
    Change,
    Confirm,
    CreateItem,
    CreateWarehouse,
    Expire,
    Extend,
    Fulfil,
    Operation,
    Outcome,
    Release,
    Request,
    Reserve,
    Transfer,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
)
from core.reservations import expire_due
from core.rules import decide
from core.sourcing import STRATEGIES, Strategy
from core.stock import Item
from ports.store import Store, StoredAnswer, Transaction, Wanted

BATCH_OPERATIONS = 256
BATCH_ROWS = 2_000
QUEUE_OPERATIONS = 20_000
QUEUE_BYTES = 64 * 1024 * 1024
_ATTEMPTS = 4
_KNOWN_MAX = 200_000
_Scope = tuple[str, str, str]
_log = logging.getLogger(__name__)


class _Stale(Exception):
    """What was read under the locks does not hold: the batch must be done again."""


class _Work:
    """A request on its way: what it needs, when it is too late for it, and who waits."""

    __slots__ = ("bytes", "deadline", "future", "moved", "needs", "products", "request", "rows")

    def __init__(self, request: Request, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self.needs = _needs(request.operations)
        self.products: set[str] = set()
        self.rows = sum(_rows(operation) for operation in request.operations)
        self.bytes = request.size
        self.moved = 0

    def answer(self, outcomes: list[Outcome]) -> None:
        if not self.future.done():
            self.future.set_result(outcomes)

    def refuse(self, error: InventoryError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self, now: float) -> None:
        if self.deadline < now:
            self.refuse(Unavailable("The change had to wait too long and was not started.", retry_after=1))


class Writer:
    """The one way to change stock: ``submit`` a request, get the outcome of each of its operations.

    Belongs to one event loop; many writers, in many processes, may work on one store.
    """

    def __init__(self, store: Store, *, sourcing: Mapping[str, Strategy] = STRATEGIES) -> None:
        self._store = store
        self._sourcing = sourcing
        self._patient = _Lane(self, wait=True)
        self._fast = _Lane(self, wait=False)
        self._lanes = (self._fast, self._patient)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        # item id -> product id, and products known to exist: spares a statement a batch; verified under the lock.
        self._product_of: dict[str, str] = {}
        self._products: set[str] = set()

    async def start(self) -> None:
        """Start the lanes."""
        self._stopping = False
        self._tasks = [asyncio.create_task(lane.run()) for lane in self._lanes]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """Finish what is queued, then end. New requests are refused as ``Unavailable``."""
        self._stopping = True
        for lane in self._lanes:
            await lane.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        work = _Work(request, time.monotonic() + timeout)
        self._enqueue(work)
        return await work.future

    def _enqueue(self, work: _Work) -> None:
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

    # -- one batch ---------------------------------------------------------------------------------------------------

    async def commit(self, works: Sequence[_Work], *, wait: bool) -> list[_Work]:
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
        return await self.commit(works[:half], wait=wait) + await self.commit(works[half:], wait=wait)

    async def _persist(self, works: Sequence[_Work], *, wait: bool) -> list[_Work]:
        """Try until the store takes the batch: rows may move under us, connections may be lost."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._attempt(works, wait=wait)
            except _Stale:
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

    async def _attempt(self, works: Sequence[_Work], *, wait: bool) -> list[_Work]:
        await self._add_products(works)
        async with self._store.transaction() as transaction:
            await self._resolve(transaction, works)
            asked = set().union(*(work.products for work in works))
            locked = await transaction.lock(asked, wait=wait) if asked else set()
            # Having waited, what is still missing does not exist; the rules will say so. Unless it was here before: a
            # store that was put back to an earlier state has lost rows that are in our memory.
            if wait and (lost := (asked - locked) & self._products):
                self._products -= lost
                raise _Stale
            ready = works if wait else [work for work in works if work.products <= locked]
            missed = [work for work in works if not wait and not work.products <= locked]
            settled = await _Batch(ready, self._sourcing).carry_out(transaction, locked) if ready else None
            if settled is None:
                await transaction.rollback()
        if settled is not None:
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

    async def _add_products(self, works: Sequence[_Work]) -> None:
        """Give products their row before anybody locks it (rule R1)."""
        new = set().union(*(work.needs.new_products for work in works)) - self._products
        if new:
            await self._store.add_products(new)
            self._products |= new

    async def _resolve(self, transaction: Transaction, works: Sequence[_Work]) -> None:
        """Find out which products each request touches."""
        items = set().union(*(work.needs.wanted.item_ids for work in works))
        reservations = set().union(*(work.needs.wanted.reservation_ids for work in works))
        unknown = [id for id in items if id not in self._product_of]
        found = await transaction.resolve(unknown, reservations) if unknown or reservations else {}
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
            work.products |= set().union(*(of_sku.get(sku, set()) for sku in needs.wanted.skus))

    def _learn(self, book: Book) -> None:
        if len(self._product_of) > _KNOWN_MAX:
            self._product_of.clear()
        if len(self._products) > _KNOWN_MAX:
            self._products.clear()
        self._product_of |= {item.id: item.product_id for item in book.items.values()}


class _Needs:
    """What a request's operations must have locked and loaded."""

    __slots__ = ("new_products", "products", "wanted")

    def __init__(self) -> None:
        self.wanted = Wanted()
        self.products: set[str] = set()
        self.new_products: set[str] = set()


def _needs(operations: Iterable[Operation]) -> _Needs:
    needs = _Needs()
    wanted = needs.wanted
    for operation in operations:
        match operation:
            case Reserve():
                _add_lines(needs, operation)
            case Release() | Confirm() | Extend() | Fulfil() | Expire():
                wanted.reservation_ids.add(operation.reservation_id)
            case CreateItem():
                needs.new_products.add(operation.product_id)
                needs.products.add(operation.product_id)
                wanted.places.add((operation.sku, operation.warehouse_id))
                wanted.warehouse_ids.add(operation.warehouse_id)
            case ApplyProductEvent():
                _add_product_event(needs, operation)
            case UpdateProduct():
                needs.products.add(operation.product_id)
            case CreateWarehouse():
                wanted.warehouse_ids |= {operation.id} if operation.id else set()
            case UpdateWarehouse():
                wanted.warehouse_ids.add(operation.warehouse_id)
            case Change() | UpdateItem():
                wanted.item_ids.add(operation.inventory_item_id)
                if isinstance(operation, Transfer):
                    wanted.warehouse_ids.add(operation.to_warehouse_id)
    return needs


def _add_lines(needs: _Needs, operation: Reserve) -> None:
    for line in operation.lines:
        if line.inventory_item_id is not None:
            needs.wanted.item_ids.add(line.inventory_item_id)
            continue
        needs.wanted.all_warehouses = True
        if line.sku is not None:
            needs.wanted.skus.add(line.sku)
        elif line.product_id is not None:
            needs.products.add(line.product_id)
            needs.wanted.whole_products.add(line.product_id)


def _add_product_event(needs: _Needs, operation: ApplyProductEvent) -> None:
    event = operation.event
    needs.new_products.add(event.payload.product_id)
    needs.products.add(event.payload.product_id)
    needs.wanted.whole_products.add(event.payload.product_id)
    needs.wanted.skus |= {sku for sku, _ in event.skus.values()}
    needs.wanted.event_ids.add(event.event_id)
    needs.wanted.warehouse_ids |= set(operation.policy.warehouse_ids)


def _rows(operation: Operation) -> int:
    """Estimate the rows an operation writes: balance, ledger and an event or two for every item it touches."""
    match operation:
        case Reserve():
            return 4 * len(operation.lines)
        case Release() | Fulfil() | Expire():
            return 20  # its lines are not known yet; most have few
        case ApplyProductEvent():
            return 4 * max(len(operation.event.skus), 1) * max(len(operation.policy.warehouse_ids), 1)
        case _:
            return 4


class _Batch:
    """One attempt to decide and save a set of requests under locks that are held."""

    def __init__(self, works: Sequence[_Work], sourcing: Mapping[str, Strategy]) -> None:
        self._works = works
        self._sourcing = sourcing
        self.results: list[tuple[_Work, list[Outcome] | InventoryError]] = []
        self.book = Book(now=datetime.min.replace(tzinfo=UTC))
        self._answers: list[StoredAnswer] = []

    async def carry_out(self, transaction: Transaction, locked: set[str]) -> "_Batch":
        """Load, decide, save.

        Raises:
            _Stale: something moved; roll back and do it again.
        """
        self.book = await transaction.load(locked, self._wanted())
        if any(item.product_id not in locked for item in self._touchable()):
            raise _Stale
        self.book.sourcing = self._sourcing
        expire_due(self.book)
        keys = [work.request.key for work in self._works if work.request.key is not None]
        stored = {answer.key.scope: answer for answer in await transaction.answers(keys)}
        for work in self._works:
            self.results.append((work, self._outcomes(work.request, stored)))
        if not await transaction.save(self.book, self._answers):
            raise _Stale
        return self

    def _wanted(self) -> Wanted:
        needs = [work.needs.wanted for work in self._works]
        transfers = {
            product
            for work in self._works
            if any(isinstance(operation, Transfer) for operation in work.request.operations)
            for product in work.products
        }
        return Wanted(
            item_ids=set().union(*(wanted.item_ids for wanted in needs)),
            reservation_ids=set().union(*(wanted.reservation_ids for wanted in needs)),
            warehouse_ids=set().union(*(wanted.warehouse_ids for wanted in needs)),
            places=set().union(*(wanted.places for wanted in needs)),
            whole_products=transfers.union(*(wanted.whole_products for wanted in needs)),
            skus=set().union(*(wanted.skus for wanted in needs)),
            event_ids=set().union(*(wanted.event_ids for wanted in needs)),
            all_warehouses=any(wanted.all_warehouses for wanted in needs),
        )

    def _touchable(self) -> list[Item]:
        """Items that an operation, its SKU or a reservation names; others were only looked at."""
        skus = set().union(*(work.needs.wanted.skus for work in self._works))
        named = set().union(*(work.needs.wanted.item_ids for work in self._works))
        asked = set().union(*(work.needs.wanted.reservation_ids for work in self._works))
        held = (held for id, held in self.book.reservations.items() if id in asked)
        named |= {line.inventory_item_id for reservation in held for line in reservation.lines}
        return [item for item in self.book.items.values() if item.id in named or item.sku in skus]

    def _outcomes(self, request: Request, stored: dict[_Scope, StoredAnswer]) -> list[Outcome] | InventoryError:
        key = request.key
        if key is not None and (before := stored.get(key.scope)) is not None:
            if before.key.fingerprint != key.fingerprint:
                return IdempotencyKeyReused("This Idempotency-Key came before with another request; use a new key.")
            return Answer.tell(before.answer, request.operations)
        cause = Cause(request.actor, request.correlation_id)
        outcomes = [self._decide(operation, cause) for operation in request.operations]
        if key is not None and not all(isinstance(outcome, NotFound | ValidationFailed) for outcome in outcomes):
            # Also the twin's answer, should the same key come twice in this batch.
            stored[key.scope] = StoredAnswer(key, Answer.store(outcomes))
            self._answers.append(stored[key.scope])
        return outcomes

    def _decide(self, operation: Operation, cause: Cause) -> Outcome:
        try:
            return decide(self.book, operation, cause)
        except InventoryError as refusal:
            return refusal


class _Lane:
    """A queue and the loop that empties it, a batch at a time."""

    def __init__(self, writer: Writer, *, wait: bool) -> None:
        self._writer = writer
        self._wait = wait
        self._queue: deque[_Work] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.operations = 0
        self.bytes = 0

    def add(self, work: _Work) -> None:
        """Queue ``work`` at the end."""
        self._queue.append(work)
        self.operations += len(work.request.operations)
        self.bytes += work.bytes
        self._idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Empty the queue for ever; whatever a batch meets, the lane goes on."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._take():
                try:
                    await self._carry_out(batch)
                except asyncio.CancelledError:
                    # A library may cancel whoever waits for it; only whoever stops the lane may end it.
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    for work in batch:
                        work.refuse(OutcomeUnknown("The change was interrupted; ask again with the same key."))
                except Exception as error:
                    _log.exception("A batch failed unexpectedly")
                    for work in batch:
                        work.refuse(Unavailable(f"The change could not be carried out: {type(error).__name__}."))
            self._idle.set()

    async def drain(self) -> None:
        """Return when nothing waits here."""
        await self._idle.wait()

    def expire(self) -> None:
        """Refuse what has waited too long."""
        now = time.monotonic()
        for work in self._queue:
            work.expire(now)
        while self._queue and self._queue[0].future.done():
            self._pop()

    def _take(self) -> list[_Work]:
        batch: list[_Work] = []
        operations = rows = 0
        now = time.monotonic()
        while self._queue and (not batch or _fits(self._queue[0], operations, rows)):
            work = self._pop()
            work.expire(now)
            if not work.future.done():
                batch.append(work)
                operations += len(work.request.operations)
                rows += work.rows
        return batch

    def _pop(self) -> _Work:
        work = self._queue.popleft()
        self.operations -= len(work.request.operations)
        self.bytes -= work.bytes
        return work

    async def _carry_out(self, batch: list[_Work]) -> None:
        if not self._wait:
            for work in await self._writer.commit(batch, wait=False):
                self._writer._patient.add(work)
            return
        try:
            await self._writer.commit(batch, wait=True)
        except Busy as busy:
            # Somebody holds one of these products too long. The others go on, but for those that are done because the
            # batch was carried out by halves; who is still locked out gets one more turn, because a lock may also be
            # held for a moment only.
            left = [work for work in batch if not work.future.done()]
            for work in await self._writer.commit(left, wait=False):
                work.moved += 1
                if work.moved > 1:
                    work.refuse(busy)
                else:
                    self.add(work)


def _fits(work: _Work, operations: int, rows: int) -> bool:
    return operations + len(work.request.operations) <= BATCH_OPERATIONS and rows + work.rows <= BATCH_ROWS
