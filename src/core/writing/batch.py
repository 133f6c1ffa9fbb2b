"""One batch: requests that are locked, decided and saved together, and what each of them needs for that."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from core.errors import IdempotencyKeyReused, InventoryError, NotFound, Unavailable, ValidationFailed
from core.operations import (
    AmendExpected,
    Answer,
    ApplyProductEvent,
    CancelExpected,
    Change,
    Confirm,
    CreateItem,
    CreateWarehouse,
    Expect,
    Expire,
    Extend,
    Fulfil,
    Operation,
    Outcome,
    ReceiveExpected,
    Rectify,
    Release,
    Request,
    Reserve,
    StoredAnswer,
    Transfer,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
)
from core.rules.book import Book, Cause
from core.rules.decisions import decide
from core.rules.reservations import expire_due
from core.rules.sourcing import Strategy
from core.stock import Item
from ports.store import Transaction, Wanted


class Stale(Exception):
    """What was read under the locks does not hold: the batch must be done again."""


class Work:
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
        """Give the caller its outcomes, if it is still there."""
        if not self.future.done():
            self.future.set_result(outcomes)

    def refuse(self, error: InventoryError) -> None:
        """Raise at the caller, if it is still there."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self, now: float) -> None:
        """Refuse a request whose time is over at ``now``."""
        if self.deadline < now:
            self.refuse(Unavailable("The change had to wait too long and was not started.", retry_after=1))


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
            case Expect():
                wanted.item_ids |= {operation.inventory_item_id} if operation.inventory_item_id else set()
                wanted.skus |= {operation.sku} if operation.sku else set()
            case AmendExpected() | ReceiveExpected() | CancelExpected():
                wanted.receipt_ids.add(operation.receipt_id)
            case CreateItem():
                needs.new_products.add(operation.product_id)
                needs.products.add(operation.product_id)
                wanted.places.add((operation.sku, operation.warehouse_id))
                wanted.warehouse_ids.add(operation.warehouse_id)
            case ApplyProductEvent():
                _add_product_event(needs, operation)
            case UpdateProduct() | Rectify():
                _add_product(needs, operation)
            case CreateWarehouse():
                wanted.warehouse_ids |= {operation.id} if operation.id else set()
            case UpdateWarehouse():
                wanted.warehouse_ids.add(operation.warehouse_id)
            case Change() | UpdateItem():
                wanted.item_ids.add(operation.inventory_item_id)
                if isinstance(operation, Transfer):
                    wanted.warehouse_ids.add(operation.to_warehouse_id)
    return needs


def _add_product(needs: _Needs, operation: UpdateProduct | Rectify) -> None:
    needs.products.add(operation.product_id)
    if isinstance(operation, Rectify):
        needs.wanted.whole_products.add(operation.product_id)
        needs.wanted.evidence.add(operation.product_id)


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
        case Rectify():
            return 20
        case ApplyProductEvent():
            return 4 * max(len(operation.event.skus), 1) * max(len(operation.policy.warehouse_ids), 1)
        case _:
            return 4


class Batch:
    """One attempt to decide and save a set of requests under locks that are held."""

    def __init__(self, works: Sequence[Work], sourcing: Mapping[str, Strategy]) -> None:
        self._works = works
        self._sourcing = sourcing
        self.results: list[tuple[Work, list[Outcome] | InventoryError]] = []
        self.book = Book(now=datetime.min.replace(tzinfo=UTC))
        self._answers: list[StoredAnswer] = []

    async def carry_out(self, transaction: Transaction, locked: set[str]) -> "Batch":
        """Load, decide, save.

        Raises:
            Stale: something moved; roll back and do it again.
        """
        self.book = await transaction.load(locked, self._wanted())
        if any(item.product_id not in locked for item in self._touchable()):
            raise Stale
        self.book.sourcing = self._sourcing
        expire_due(self.book)
        # What records say of each other holds for what was read, not for what is decided here: corrections come first.
        for work in sorted(self._works, key=lambda work: not work.needs.wanted.evidence):
            self.results.append((work, self._outcomes(work)))
        if not await transaction.save(self.book, self._answers):
            raise Stale
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
            receipt_ids=set().union(*(wanted.receipt_ids for wanted in needs)),
            warehouse_ids=set().union(*(wanted.warehouse_ids for wanted in needs)),
            places=set().union(*(wanted.places for wanted in needs)),
            whole_products=transfers.union(*(wanted.whole_products for wanted in needs)),
            skus=set().union(*(wanted.skus for wanted in needs)),
            keys={work.request.key for work in self._works if work.request.key is not None},
            event_ids=set().union(*(wanted.event_ids for wanted in needs)),
            evidence=set().union(*(wanted.evidence for wanted in needs)),
            all_warehouses=any(wanted.all_warehouses for wanted in needs),
        )

    def _touchable(self) -> list[Item]:
        """Items that an operation, its SKU, a reservation or receipt names; others were only looked at."""
        skus = set().union(*(work.needs.wanted.skus for work in self._works))
        named = set().union(*(work.needs.wanted.item_ids for work in self._works))
        asked = set().union(*(work.needs.wanted.reservation_ids for work in self._works))
        held = (held for id, held in self.book.reservations.items() if id in asked)
        named |= {line.inventory_item_id for reservation in held for line in reservation.lines}
        receipts = set().union(*(work.needs.wanted.receipt_ids for work in self._works)) & self.book.receipts.keys()
        named |= {self.book.receipts[id].inventory_item_id for id in receipts}
        return [item for item in self.book.items.values() if item.id in named or item.sku in skus]

    def _outcomes(self, work: Work) -> list[Outcome] | InventoryError:
        request, key = work.request, work.request.key
        if key is not None and (before := self.book.answers.get(key.scope)) is not None:
            if before.key.fingerprint != key.fingerprint:
                return IdempotencyKeyReused("This Idempotency-Key came before with another request; use a new key.")
            self.book.told_again |= work.products | work.needs.wanted.warehouse_ids
            return Answer.tell(before.answer, request.operations)
        cause = Cause(request.actor, request.correlation_id)
        outcomes = [self._decide(operation, cause) for operation in request.operations]
        if key is not None and not all(isinstance(outcome, NotFound | ValidationFailed) for outcome in outcomes):
            # Also the twin's answer, should the same key come twice in this batch.
            answer = self.book.answers[key.scope] = StoredAnswer(key, Answer.store(outcomes))
            self._answers.append(answer)
        return outcomes

    def _decide(self, operation: Operation, cause: Cause) -> Outcome:
        try:
            return decide(self.book, operation, cause)
        except InventoryError as refusal:
            return refusal
