"""The stock rules against random operations: whatever is asked, in any order, the books stay right.

A machine runs a shop of three products in four warehouses through ``decide``, batch after batch. Every step is compared
with an oracle that knows nothing of rows and postings: it looks at the stock before and after, and says what must have
been told. With ``CI`` set the run is the same every time.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import msgspec
from factories import NOW, ProductFactory, WarehouseFactory
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET

from core.errors import InventoryError
from core.events import OutboxRow
from core.fields import QUANTITY_MAX
from core.operations import (
    Activate,
    Adjust,
    AmendExpected,
    CancelExpected,
    Confirm,
    Count,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    Expect,
    ExpectedPatch,
    Extend,
    Fulfil,
    FulfilBody,
    ItemPatch,
    ItemQuantity,
    Operation,
    ProductPatch,
    Receive,
    ReceiveBody,
    ReceiveExpected,
    Release,
    Reserve,
    ReserveLine,
    Result,
    Return,
    SetPolicy,
    Ship,
    StockChange,
    Transfer,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
    WarehousePatch,
)
from core.rules.book import Book, Cause
from core.rules.decisions import decide
from core.rules.reservations import expire_due
from core.rules.sourcing import STRATEGIES
from core.stock import ExpectedReceipt, Item, Product, Reservation, ReservationLine, StockTransaction

# Explaining a failure takes longer than finding it and says little about a sequence of steps.
PHASES = [phase for phase in Phase if phase is not Phase.explain]
settings.register_profile("rules", max_examples=435, stateful_step_count=40, deadline=None, phases=PHASES)
settings.register_profile("rules-ci", settings.get_profile("rules"), derandomize=True, database=None)
PROFILE = settings.get_profile("rules-ci" if os.environ.get("CI") else "rules")

STEPS = 16_000
"""How many operations must have been compared with the oracle, at least; ``test_store_properties`` adds its own."""
PRODUCTS = ("prod_1", "prod_2", "prod_3")
WAREHOUSES = ("wh_1", "wh_2", "wh_3", "wh_4")
SKUS = ("A", "B", "C")

NOBODY = 55
"""A choice from here on is something that does not exist."""
choices = st.integers(0, NOBODY + 4)
few = st.integers(0, 12)
quantities = st.integers(1, 12) | st.sampled_from([20, 40, QUANTITY_MAX])
levels = few | st.sampled_from([20, QUANTITY_MAX])
offsets = st.sampled_from([None, None, 0, 0, -1])
"""Which version a caller names: none, the current one, or one that has passed."""
seconds = st.sampled_from([1, 2, 5, 900])
due = st.sampled_from([-86_400, 0, 1, 3, 1000, 86_400])
"""When something is expected, so many seconds from now."""
maybe = levels | st.just(UNSET)


def version_of(receipt: ExpectedReceipt | None) -> int:
    """Return the version of an expected receipt, 0 where there was none."""
    return receipt.version if receipt is not None else 0


def picture(*parts: Any) -> bytes:
    """Return what these hold, down to the last field; equal pictures mean nothing has changed."""
    return msgspec.msgpack.encode(parts, enc_hook=repr)


def picture_of(book: Book) -> bytes:
    """Return the picture of everything in a book."""
    return picture(*(getattr(book, field.name) for field in fields(book)))


def available(item: Item | None) -> int:
    """Say what of an item can be promised, from the design's words alone."""
    if item is None or item.status == "INACTIVE" or item.on_hand - item.reserved < item.safety_stock:
        return 0
    return item.on_hand - item.reserved - item.safety_stock


def low(item: Item | None) -> bool:
    """Say whether an item stands in its low band."""
    return item is not None and 1 <= available(item) <= item.reorder_threshold


class Stock(NamedTuple):
    """The shop at one moment."""

    products: dict[str, Product]
    items: dict[str, Item]
    reservations: dict[str, Reservation]
    receipts: dict[str, ExpectedReceipt]

    def of(self, product_id: str) -> "Stock":
        """Return one product's part; reservations are not cut."""
        items = {id: item for id, item in self.items.items() if item.product_id == product_id}
        receipts = {id: each for id, each in self.receipts.items() if each.inventory_item_id in items}
        return Stock({product_id: self.products[product_id]}, items, self.reservations, receipts)

    @property
    def total(self) -> int:
        """Available units over all items."""
        return sum(map(available, self.items.values()))


def stock_of(book: Book) -> Stock:
    """Return what a book holds now."""
    return Stock(dict(book.products), dict(book.items), dict(book.reservations), dict(book.receipts))


def outstanding(receipt: ExpectedReceipt) -> int:
    """Say what is still to come."""
    ended = receipt.status in ("RECEIVED", "CANCELLED")
    return 0 if ended else receipt.quantity - receipt.received_quantity


def restock(stock: Stock, now: datetime) -> str:
    """Say when more is to come for sale, as an event writes it; nothing where nobody knows."""
    dates = [
        receipt.expected_at
        for receipt in stock.receipts.values()
        if outstanding(receipt) and stock.items[receipt.inventory_item_id].status == "ACTIVE"
    ]
    return min((at.isoformat().replace("+00:00", "Z") for at in dates if now < at), default="")


def true_edges(before: Stock, after: Stock, now: datetime) -> list[tuple[Any, ...]]:
    """Say what must be told of one product, given its stock before and after."""
    edges: list[tuple[Any, ...]] = []
    for id, item in after.items.items():
        old, new = available(before.items.get(id)), available(item)
        if old != new:
            edges.append(("StockLevelChanged", id, old, new, new - old))
        if low(item) and not low(before.items.get(id)):
            edges.append(("LowStockThresholdReached", id, new, item.reorder_threshold, item.target_stock_level))
    if before.total > 0 and after.total == 0:
        edges.append(("OutOfStock", sum(item.reserved for item in after.items.values()), restock(after, now)))
    if before.total == 0 and after.total > 0:
        edges.append(("BackInStock", after.total))
    for id, hold in before.reservations.items():
        if hold.status == "HELD" and after.reservations[id].status == "EXPIRED":
            edges += [
                ("ReservationExpired", line.inventory_item_id, id, unfulfilled(line))
                for line in hold.lines
                if line.inventory_item_id in after.items
            ]
    return sorted(edges)


def unfulfilled(line: ReservationLine) -> int:
    """Say what of a line is still promised."""
    return line.quantity - line.fulfilled_quantity - line.released_quantity


def goods_meant(operation: Operation | None, before: Stock, after: Stock) -> dict[str, int]:
    """Say by how much the operation, once accepted, changes what is on hand of which items."""
    match operation:
        case Receive(inventory_item_id=id, quantity=units) | Return(inventory_item_id=id, quantity=units):
            meant = {id: units}
        case Ship(inventory_item_id=id, quantity=units):
            meant = {id: -units}
        case Adjust(inventory_item_id=id, delta=units):
            meant = {id: units}
        case Count(inventory_item_id=id, counted_quantity=units):
            meant = {id: units - before.items[id].on_hand}
        case Transfer(inventory_item_id=id, quantity=units, to_warehouse_id=to):
            sku, product = before.items[id].sku, before.items[id].product_id
            there = [i for i, item in after.of(product).items.items() if (item.sku, item.warehouse_id) == (sku, to)]
            meant = {id: -units} | dict.fromkeys(there, units)
        case ReceiveExpected(receipt_id=id, body=body):
            meant = {before.receipts[id].inventory_item_id: body.quantity}
        case CreateItem(initial_quantity=units):
            meant = dict.fromkeys(after.items.keys() - before.items.keys(), units)
        case Fulfil(reservation_id=id):
            lines = zip(before.reservations[id].lines, after.reservations[id].lines, strict=True)
            meant = {new.inventory_item_id: old.fulfilled_quantity - new.fulfilled_quantity for old, new in lines}
        case _:
            meant = {}
    return {id: units for id, units in meant.items() if units}


def goods_moved(before: Stock, after: Stock) -> dict[str, int]:
    """Say by how much what is on hand has changed, of which items."""
    was = {id: item.on_hand for id, item in before.items.items()}
    moved = {id: item.on_hand - was.get(id, 0) for id, item in after.items.items()}
    return {id: units for id, units in moved.items() if units}


def edge_told(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return an event in the oracle's words."""
    type, payload = event["eventType"], event["payload"]
    names: tuple[str, ...]
    match type:
        case "StockLevelChanged":
            names = ("inventoryItemId", "previousQuantity", "newQuantity", "changeAmount")
        case "LowStockThresholdReached":
            names = ("inventoryItemId", "quantityAvailable", "reorderThreshold", "targetStockLevel")
        case "OutOfStock":
            return type, payload["totalQuantityReserved"], payload["restockExpected"] or ""
        case "BackInStock":
            names = ("totalQuantityAvailable",)
        case "ReservationExpired":
            names = ("inventoryItemId", "reservationId", "quantity")
    return type, *(payload[name] for name in names)


class Shop(RuleBasedStateMachine):
    """Three products in four warehouses, one operation after another."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.ledger: list[StockTransaction] = []
        self.outbox: list[OutboxRow] = []
        products = [ProductFactory.build(id=id) for id in PRODUCTS]
        warehouses = [WarehouseFactory.build(id=id) for id in WAREHOUSES]
        self.load(
            Book(
                now=NOW,
                products={product.id: product for product in products},
                warehouses={warehouse.id: warehouse for warehouse in warehouses},
            )
        )

    def load(self, book: Book) -> None:
        """Begin a batch with ``book``."""
        self.book = book
        self.loaded = picture(book.loaded)

    def one_of(self, ids: Iterable[str], choice: int, *, unknown: str) -> str:
        """Choose an id, now and then one that does not exist."""
        known = [*ids]
        return known[choice % len(known)] if known and choice < NOBODY else unknown

    def item(self, choice: int) -> str:
        """Choose an item."""
        return self.one_of(self.book.items, choice, unknown="inv_unknown")

    def version(self, id: str, offset: int | None) -> int | None:
        """Return the version a caller names who saw the item so many versions ago."""
        return None if offset is None or id not in self.book.items else self.book.items[id].version + offset

    def warehouse(self, choice: int) -> str:
        """Choose a warehouse."""
        return self.one_of(self.book.warehouses, choice, unknown="wh_unknown")

    def reservation(self, choice: int) -> str:
        """Choose a reservation."""
        return self.one_of(self.book.reservations, choice, unknown="res_unknown")

    def receipt(self, choice: int) -> str:
        """Choose an expected receipt."""
        return self.one_of(self.book.receipts, choice, unknown="exp_unknown")

    # -- what can be asked -----------------------------------------------------------------------------------------

    @initialize(quantities=st.lists(few, min_size=6, max_size=6))
    def stock_up(self, quantities: list[int]) -> None:
        """Begin with every product in two warehouses."""
        for place, quantity in enumerate(quantities):
            self.create_item(sku=SKUS[place // 2], product=place // 2, warehouse=place % 2, quantity=quantity, level=5)

    @rule(kind=st.sampled_from([Receive, Return]), item=choices, quantity=quantities, offset=offsets)
    def receive(self, kind: type[Receive | Return], item: int, quantity: int, offset: int | None) -> None:
        """Goods come in."""
        id = self.item(item)
        self.ask(kind(inventory_item_id=id, quantity=quantity, expected_version=self.version(id, offset)))

    @rule(item=choices, quantity=quantities)
    def ship(self, item: int, quantity: int) -> None:
        """Goods leave that nobody had reserved."""
        self.ask(Ship(inventory_item_id=self.item(item), quantity=quantity))

    @rule(item=choices, delta=st.integers(-12, 12).filter(bool), ahead_seconds=st.sampled_from([-86_400, 0, 0, 60]))
    def adjust(self, item: int, delta: int, ahead_seconds: int) -> None:
        """A correction, of which some claim to come from the future."""
        at = self.book.now + timedelta(seconds=ahead_seconds)
        self.ask(Adjust(inventory_item_id=self.item(item), delta=delta, reason="Corrected", occurred_at=at))

    @rule(item=choices, counted=levels)
    def count(self, item: int, counted: int) -> None:
        """The shelf is counted, whatever was promised."""
        self.ask(Count(inventory_item_id=self.item(item), counted_quantity=counted))

    @precondition(lambda self: any(item.reserved for item in self.book.items.values()))
    @rule(item=choices, left=few)
    def lose(self, item: int, left: int) -> None:
        """The shelf holds less than was promised."""
        promised = [one for one in self.book.items.values() if one.reserved]
        chosen = promised[item % len(promised)]
        self.ask(Count(inventory_item_id=chosen.id, counted_quantity=min(left, chosen.reserved)))

    @rule(item=choices, warehouse=choices, quantity=quantities)
    def transfer(self, item: int, warehouse: int, quantity: int) -> None:
        """Goods move, to a new item or one that is there."""
        to = self.warehouse(warehouse)
        self.ask(Transfer(inventory_item_id=self.item(item), quantity=quantity, to_warehouse_id=to))

    @rule(item=choices, warehouse=choices)
    def transfer_all(self, item: int, warehouse: int) -> None:
        """Everything that is free moves, so that last units do so often."""
        if there := self.book.items.get(self.item(item)):
            self.transfer(item, warehouse, max(there.on_hand - there.reserved, 1))

    @rule(item=choices, safety=maybe, reorder=maybe, wanted=levels)
    def set_policy(self, item: int, safety: Any, reorder: Any, wanted: int) -> None:
        """Levels change, and with them what is available or low."""
        self.ask(
            SetPolicy(
                inventory_item_id=self.item(item),
                safety_stock=safety,
                reorder_threshold=reorder,
                target_stock_level=wanted,
            )
        )

    @rule(kind=st.sampled_from([Activate, Deactivate]), item=choices)
    def switch(self, kind: type[Activate | Deactivate], item: int) -> None:
        """An item is for sale, or not."""
        self.ask(kind(inventory_item_id=self.item(item)))

    @rule(lines=st.lists(st.tuples(choices, st.integers(1, 6)), min_size=1, max_size=4), seconds=seconds)
    def reserve(self, lines: list[tuple[int, int]], seconds: int) -> None:
        """Units of some items are promised, of the same item perhaps twice."""
        asked = tuple(ReserveLine(inventory_item_id=self.item(item), quantity=quantity) for item, quantity in lines)
        self.ask(Reserve(lines=asked, expires_in_seconds=seconds))

    @rule(
        sku=st.sampled_from([*SKUS, "nowhere"]),
        product=choices,
        units=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3)),
        item=choices,
        sourcing=st.sampled_from([*STRATEGIES]),
    )
    def source(self, *, sku: str, product: int, units: tuple[int, int, int], item: int, sourcing: str) -> None:
        """A SKU, a product and an item are promised, wherever the first two come from."""
        of_sku, of_product, of_item = units
        lines = (
            ReserveLine(sku=sku, quantity=of_sku),
            ReserveLine(product_id=PRODUCTS[product % len(PRODUCTS)], quantity=of_product),
            ReserveLine(inventory_item_id=self.item(item), quantity=of_item),
        )
        self.ask(Reserve(lines=lines[product % 3 :], sourcing=sourcing))

    @rule(items=st.sets(choices, min_size=1, max_size=4))
    def reserve_all(self, items: set[int]) -> None:
        """Everything that is available of some items is promised, so that products run out by reservations."""
        ids = {self.item(item) for item in items}
        left = {id: self.book.items[id].available for id in sorted(ids) if id in self.book.items}
        asked = tuple(ReserveLine(inventory_item_id=id, quantity=units) for id, units in left.items() if units)
        if asked:
            self.ask(Reserve(lines=asked))

    @precondition(lambda self: self.book.reservations)
    @rule(reservation=choices)
    def release(self, reservation: int) -> None:
        """A reservation is given back, some a second time."""
        self.ask(Release(reservation_id=self.reservation(reservation), reason="Cancelled"))

    @precondition(lambda self: self.book.reservations)
    @rule(reservation=choices)
    def confirm(self, reservation: int) -> None:
        """A cart becomes an order."""
        self.ask(Confirm(reservation_id=self.reservation(reservation)))

    @precondition(lambda self: self.book.reservations)
    @rule(reservation=choices, seconds=seconds)
    def extend(self, reservation: int, seconds: int) -> None:
        """A hold shall last longer, or end sooner."""
        self.ask(Extend(reservation_id=self.reservation(reservation), expires_in_seconds=seconds))

    @precondition(lambda self: self.book.reservations)
    @rule(reservation=choices, lines=st.just([]) | st.lists(st.tuples(choices, st.integers(1, 3)), max_size=3))
    def fulfil(self, reservation: int, lines: list[tuple[int, int]]) -> None:
        """What was promised leaves, whole or in part, now and then more than was promised."""
        id = self.reservation(reservation)
        chosen = self.book.reservations.get(id)
        there = [line.inventory_item_id for line in chosen.lines] if chosen else []
        asked = tuple(
            ItemQuantity(inventory_item_id=self.one_of(there, item, unknown="inv_unknown"), quantity=quantity)
            for item, quantity in lines
        )
        self.ask(Fulfil(reservation_id=id, body=FulfilBody(lines=asked or None)))

    @rule(sku=st.sampled_from(SKUS), product=choices, warehouse=choices, quantity=levels, level=few)
    def create_item(self, sku: str, product: int, warehouse: int, quantity: int, level: int) -> None:
        """A SKU gets an item in one more warehouse; it may be there already, or be another product's."""
        self.ask(
            CreateItem(
                sku=sku,
                product_id=PRODUCTS[product % len(PRODUCTS)],
                warehouse_id=self.warehouse(warehouse),
                initial_quantity=quantity,
                reorder_threshold=level,
                safety_stock=level // 3,
            )
        )

    @rule(
        item=choices,
        safety=maybe,
        reorder=maybe,
        name=st.sampled_from(["Widget", UNSET]),
        metadata=st.sampled_from([{"size": "L"}, UNSET]),
        offset=offsets,
    )
    def update_item(
        self, *, item: int, safety: Any, reorder: Any, name: Any, metadata: Any, offset: int | None
    ) -> None:
        """An item is edited, sometimes with nothing new."""
        id = self.item(item)
        patch = ItemPatch(name=name, metadata=metadata, safety_stock=safety, reorder_threshold=reorder)
        self.ask(UpdateItem(inventory_item_id=id, patch=patch, if_match=self.version(id, offset)))

    @rule(product=choices, threshold=levels)
    def update_product(self, product: int, threshold: int) -> None:
        """A product is called low earlier or later."""
        id = self.one_of(PRODUCTS, product, unknown="prod_unknown")
        self.ask(UpdateProduct(product_id=id, patch=ProductPatch(low_stock_threshold=threshold)))

    @rule(warehouse=choices, active=st.booleans())
    def update_warehouse(self, warehouse: int, active: bool) -> None:
        """A warehouse closes or opens again."""
        id, patch = self.warehouse(warehouse), WarehousePatch(active=active)
        self.ask(UpdateWarehouse(warehouse_id=id, patch=patch, if_match=1 if warehouse % 2 else None))

    @rule(item=choices, quantity=quantities, seconds=due, by_sku=st.booleans())
    def expect(self, item: int, quantity: int, seconds: int, by_sku: bool) -> None:
        """Units are ordered, some for a time that is over; the supplier's clerk knows the item or its SKU."""
        id, at = self.item(item), self.book.now + timedelta(seconds=seconds)
        if by_sku and (named := self.book.items.get(id)):
            self.ask(Expect(sku=named.sku, warehouse_id=named.warehouse_id, quantity=quantity, expected_at=at))
        else:
            self.ask(Expect(inventory_item_id=id, quantity=quantity, expected_at=at))

    @precondition(lambda self: self.book.receipts)
    @rule(
        receipt=choices,
        quantity=st.integers(1, 20) | st.just(UNSET),
        seconds=st.none() | due,
        reason=st.sampled_from(["Late", None, UNSET]),
        offset=offsets,
    )
    def amend(self, *, receipt: int, quantity: Any, seconds: int | None, reason: Any, offset: int | None) -> None:
        """What is expected changes, sometimes to nothing new."""
        id, at = self.receipt(receipt), UNSET if seconds is None else self.book.now + timedelta(seconds=seconds)
        known = self.book.receipts.get(id)
        version = None if offset is None or known is None else known.version + offset
        patch = ExpectedPatch(quantity=quantity, expected_at=at, reason=reason)
        self.ask(AmendExpected(receipt_id=id, patch=patch, if_match=version))

    @precondition(lambda self: self.book.receipts)
    @rule(receipt=choices, quantity=quantities, close=st.booleans())
    def receive_expected(self, receipt: int, quantity: int, close: bool) -> None:
        """What was expected comes: a part, all, or more."""
        self.ask(ReceiveExpected(receipt_id=self.receipt(receipt), body=ReceiveBody(quantity=quantity, close=close)))

    @precondition(lambda self: self.book.receipts)
    @rule(receipt=choices)
    def cancel_expected(self, receipt: int) -> None:
        """Nothing more will come."""
        self.ask(CancelExpected(receipt_id=self.receipt(receipt)))

    @precondition(lambda self: len(self.book.warehouses) < 5)
    @rule(id=st.sampled_from(["wh_5", "wh_1"]))
    def create_warehouse(self, id: str) -> None:
        """A warehouse is opened, or exists."""
        self.ask(CreateWarehouse(name="Another", id=id))

    @precondition(lambda self: any(hold.status == "HELD" for hold in self.book.reservations.values()))
    @rule()
    def run_out(self) -> None:
        """Nobody comes back for what is held."""
        self.next_batch(seconds=1000)

    @rule(seconds=st.integers(0, 3))
    def next_batch(self, seconds: int) -> None:
        """The batch is saved; the next one loads what is there and first ends the holds that are over."""
        book = self.book
        self.ledger += book.ledger
        self.outbox += book.outbox
        self.load(
            Book(
                now=book.now + timedelta(seconds=seconds),
                products=dict(book.products),
                items=dict(book.items),
                reservations=dict(book.reservations),
                receipts={id: each.seen(book.now + timedelta(seconds=seconds)) for id, each in book.receipts.items()},
                warehouses=dict(book.warehouses),
            )
        )
        # One hold at a time: each is an operation of its own.
        for id in book.reservations:
            self.book.reservations = {id: book.reservations[id]}
            self.attempt(None, lambda: expire_due(self.book))
            book.reservations |= self.book.reservations
        self.book.reservations = book.reservations

    # -- what must be true of every step ---------------------------------------------------------------------------

    def ask(self, operation: Operation) -> None:
        """Decide ``operation``; accepted or refused, the step must be right."""
        self.attempt(operation, lambda: decide(self.book, operation, Cause("shop")))

    def attempt(self, operation: Operation | None, act: Callable[[], Result | None]) -> None:
        """Do something to the book and compare it with what was there before."""
        Shop.steps += 1
        book = self.book
        before, stock = picture_of(book), stock_of(book)
        rows, told = len(book.ledger), len(book.outbox)
        try:
            result = act()
        except InventoryError:
            assert before == picture_of(book), "a refused operation has left a trace"
            return
        new_rows = book.ledger[rows:]
        self.check_rows(stock, new_rows)
        self.check_events(stock, new_rows, book.outbox[told:])
        self.check_receipts(operation, stock, new_rows)
        arranged = {
            each.product_id for id, each in book.receipts.items() if each.version != version_of(stock.receipts.get(id))
        }
        self.check_revisions(operation, stock, arranged | {row.product_id for row in new_rows})
        self.check_promises(operation, stock)
        self.check_answer(operation, result, new_rows)
        assert goods_meant(operation, stock, stock_of(book)) == goods_moved(stock, stock_of(book))

    def check_answer(self, operation: Operation | None, result: Result | None, rows: list[StockTransaction]) -> None:
        """What is answered is what the book holds, and what was asked for."""
        book = self.book
        match operation, result:
            case Reserve(lines=lines), Reservation():
                assert sum(line.quantity for line in lines) == sum(line.quantity for line in result.lines)
                named = {line.inventory_item_id: 0 for line in lines if line.inventory_item_id is not None}
                for line in lines:
                    if line.inventory_item_id is not None:
                        named[line.inventory_item_id] += line.quantity
                promised = {line.inventory_item_id: line.quantity for line in result.lines}
                assert all(promised[id] >= units for id, units in named.items())
                assert named == promised or any(line.inventory_item_id is None for line in lines)
                assert result is book.reservations[result.id]
            case Expect() | AmendExpected() | ReceiveExpected() | CancelExpected(), ExpectedReceipt():
                assert result is book.receipts[result.id]
            case Release(), Reservation():
                assert result is book.reservations[result.id]
                assert result.status in ("RELEASED", "FULFILLED", "EXPIRED")
            case Fulfil(body=body), Reservation():
                left = not any(map(unfulfilled, result.lines))
                assert result is book.reservations[result.id]
                assert result.status == ("FULFILLED" if left else "CONFIRMED")
                assert left or body.lines
        if isinstance(result, StockChange):
            assert (tuple(rows), book.items[result.item.id]) == (result.transactions, result.item)

    def check_rows(self, before: Stock, rows: list[StockTransaction]) -> None:
        """Each changed item has one row, which leads from what it was to what it is; others are untouched."""
        book = self.book
        assert sorted(row.inventory_item_id for row in rows) == sorted(
            id for id, item in book.items.items() if item is not before.items.get(id)
        )
        for row in rows:
            old, new = before.items.get(row.inventory_item_id), book.items[row.inventory_item_id]
            on_hand, reserved, version = (old.on_hand, old.reserved, old.version) if old else (0, 0, 0)
            assert (on_hand + row.on_hand_change, reserved + row.reserved_change) == (new.on_hand, new.reserved)
            assert (new.on_hand, new.reserved) == (row.on_hand_after, row.reserved_after)
            assert available(new) == row.available_after
            assert version + 1 == new.version == row.item_version
            assert book.now == row.recorded_at == new.updated_at

    def check_events(self, before: Stock, rows: list[StockTransaction], told: list[OutboxRow]) -> None:
        """Exactly the true edges are told, in sequence, with the totals after the operation and their cause."""
        cause = {row.id: row for row in rows}
        after = stock_of(self.book)
        for id in PRODUCTS:
            events = [msgspec.json.decode(row.body) for row in told if row.product_id == id]
            assert true_edges(before.of(id), after.of(id), self.book.now) == sorted(map(edge_told, events))
            first = before.products[id].sequence + 1
            assert list(range(first, first + len(events))) == [event["metadata"]["sequence"] for event in events]
            assert first + len(events) == after.products[id].sequence + 1
            for event in events:
                self.check_totals(event["payload"], after.of(id))
                row = cause[event["metadata"]["causationId"]]
                assert row.inventory_item_id == event["aggregateId"] == event["payload"]["inventoryItemId"]
                assert row.id == event["payload"]["transactionId"] == event["metadata"]["correlationId"]
                self.check_direction(event, before.items.get(row.inventory_item_id))

    def check_totals(self, payload: Mapping[str, Any], after: Stock) -> None:
        """A payload's totals and flags are the product's after the operation."""
        (product,) = after.products.values()
        total = after.total
        is_low = 1 <= total <= product.low_stock_threshold
        assert total == payload["totalQuantityAvailable"]
        assert is_low == payload.get("isLowStock", is_low)
        assert (total == 0) == payload.get("isOutOfStock", total == 0)

    def check_direction(self, event: Mapping[str, Any], old: Item | None) -> None:
        """A product's crossing is laid to an item that moved that way."""
        moved = available(self.book.items[event["aggregateId"]]) - available(old)
        if event["eventType"] == "OutOfStock":
            assert moved < 0
        if event["eventType"] == "BackInStock":
            assert moved > 0

    def check_receipts(self, operation: Operation | None, before: Stock, rows: list[StockTransaction]) -> None:
        """Only the expected receipt that was named changes, by one version; what came of it is in one row."""
        receipts = self.book.receipts
        changed = {id for id, each in receipts.items() if each is not before.receipts.get(id)}
        named = {row.expected_receipt_id for row in rows if row.expected_receipt_id is not None}
        match operation:
            case Expect(quantity=quantity):
                (id,) = changed
                assert (receipts[id].quantity, receipts[id].received_quantity) == (quantity, 0)
                assert (receipts[id].status, receipts[id].version, id in before.receipts) == ("EXPECTED", 1, False)
            case ReceiveExpected(receipt_id=id, body=body):
                old, new = before.receipts[id], receipts[id]
                assert changed == named == {id}
                assert old.received_quantity + body.quantity == new.received_quantity
                assert outstanding(old) > 0
                assert new.status == "RECEIVED" or not (body.close or new.received_quantity >= new.quantity)
            case AmendExpected(receipt_id=id) | CancelExpected(receipt_id=id):
                assert changed <= {id}
                assert not changed or outstanding(before.receipts[id]) > 0
                assert before.receipts[id].received_quantity == receipts[id].received_quantity
                assert not isinstance(operation, CancelExpected) or outstanding(receipts[id]) == 0
            case _:
                assert not changed
        assert isinstance(operation, ReceiveExpected) or not named
        for id in changed:
            assert receipts[id].version == version_of(before.receipts.get(id)) + 1
            assert receipts[id].updated_at == self.book.now

    def check_revisions(self, operation: Operation | None, before: Stock, touched: set[str]) -> None:
        """A touched product's revision rises by one; the others are left alone."""
        if isinstance(operation, UpdateProduct):
            old_threshold = before.products[operation.product_id].low_stock_threshold
            touched = {operation.product_id} if operation.patch.low_stock_threshold != old_threshold else set()
        for id, old in before.products.items():
            new = self.book.products[id]
            assert old.revision + (id in touched) == new.revision
            assert (new is old) == (id not in touched)

    def check_promises(self, operation: Operation | None, before: Stock) -> None:
        """Only a COUNT may leave more promised than is there, and nothing is promised out of the safety stock."""
        for id, new in self.book.items.items():
            shortfall, reserved = (old.shortfall, old.reserved) if (old := before.items.get(id)) else (0, 0)
            if not isinstance(operation, Count):
                assert new.shortfall <= shortfall
            if new.reserved > reserved:
                assert isinstance(operation, Reserve)
                assert new.status == "ACTIVE"
                assert new.reserved <= new.on_hand - new.safety_stock

    # -- what must be true at any time -----------------------------------------------------------------------------

    @invariant()
    def balances_are_what_the_ledger_says(self) -> None:
        """Each item's rows are numbered without gaps and add up to its balances; recorded times never step back."""
        by_item: dict[str, list[StockTransaction]] = {id: [] for id in self.book.items}
        for row in [*self.ledger, *self.book.ledger]:
            by_item[row.inventory_item_id].append(row)
        for id, rows in by_item.items():
            item = self.book.items[id]
            assert list(range(1, item.version + 1)) == [row.item_version for row in rows]
            assert (item.on_hand, item.reserved) == (
                sum(row.on_hand_change for row in rows),
                sum(row.reserved_change for row in rows),
            )
            assert all(earlier.recorded_at <= later.recorded_at for earlier, later in pairwise(rows))

    @invariant()
    def levels_follow_from_balances(self) -> None:
        """Available and shortfall are what the design says, and nothing is negative."""
        for item in self.book.items.values():
            assert available(item) == item.available
            assert item.shortfall == (item.reserved - item.on_hand if item.reserved > item.on_hand else 0)
            assert min(item.on_hand, item.reserved, item.available, item.shortfall) >= 0

    @invariant()
    def totals_are_the_sums_over_items(self) -> None:
        """A product's totals are those of its items."""
        stock = stock_of(self.book)
        for id, product in stock.products.items():
            items = stock.of(id).items.values()
            assert (product.total_on_hand, product.total_reserved, product.total_available) == (
                sum(item.on_hand for item in items),
                sum(item.reserved for item in items),
                sum(item.available for item in items),
            )

    @invariant()
    def reserved_is_what_live_reservations_hold(self) -> None:
        """What is reserved of an item is what held and confirmed reservations have not shipped yet."""
        held = dict.fromkeys(self.book.items, 0)
        for reservation in self.book.reservations.values():
            for line in reservation.lines if reservation.status in ("HELD", "CONFIRMED") else ():
                held[line.inventory_item_id] += unfulfilled(line)
        assert held == {id: item.reserved for id, item in self.book.items.items()}

    @invariant()
    def what_is_expected_adds_up(self) -> None:
        """What came of an expected receipt is in the ledger, what is to come in the product's total; its item's."""
        came = dict.fromkeys(self.book.receipts, 0)
        for row in [*self.ledger, *self.book.ledger]:
            if row.expected_receipt_id is not None:
                came[row.expected_receipt_id] += row.on_hand_change
        to_come = dict.fromkeys(self.book.products, 0)
        for id, receipt in self.book.receipts.items():
            item, over = self.book.items[receipt.inventory_item_id], receipt.received_quantity - receipt.quantity
            assert (came[id], outstanding(receipt)) == (receipt.received_quantity, receipt.outstanding_quantity)
            assert (receipt.product_id, receipt.sku, receipt.warehouse_id) == (
                *(item.product_id, item.sku),
                item.warehouse_id,
            )
            assert receipt.discrepancy == (over if receipt.status == "RECEIVED" else 0)
            assert receipt.is_overdue == (outstanding(receipt) > 0 and receipt.expected_at <= self.book.now)
            assert (receipt.status in ("EXPECTED", "CANCELLED")) == (came[id] == 0)
            assert (receipt.status in ("EXPECTED", "PARTIALLY_RECEIVED")) == (receipt.outstanding_quantity > 0)
            to_come[receipt.product_id] += receipt.outstanding_quantity
        assert to_come == {id: product.total_expected for id, product in self.book.products.items()}

    @invariant()
    def no_hold_outlives_its_end(self) -> None:
        """What is held ends in the future, what is confirmed never, and what has ended holds nothing."""
        for reservation in self.book.reservations.values():
            if reservation.status == "HELD":
                assert reservation.expires_at is not None
                assert reservation.expires_at > self.book.now
            elif reservation.status == "CONFIRMED":
                assert reservation.expires_at is None
            else:
                assert not any(map(unfulfilled, reservation.lines))

    @invariant()
    def events_are_numbered_without_gaps(self) -> None:
        """Over all batches a product's events count from one, each with an id of its own."""
        told = [*self.outbox, *self.book.outbox]
        for id, product in self.book.products.items():
            numbers = [row.sequence for row in told if row.product_id == id]
            assert list(range(1, product.sequence + 1)) == numbers
        assert len(told) == len({row.event_id for row in told})

    @invariant()
    def every_place_has_one_item(self) -> None:
        """A SKU has at most one item in a warehouse, and the book finds it."""
        for item in self.book.items.values():
            assert item is self.book.at(item.sku, item.warehouse_id)

    @invariant()
    def what_was_loaded_is_untouched(self) -> None:
        """Deciding replaces entities, so a store can compare with what it has loaded."""
        assert self.loaded == picture(self.book.loaded)


def test_random_operations_keep_the_books_right() -> None:
    """After any operations in any order balances, ledger, totals, reservations and events agree."""
    Shop.steps = 0
    run_state_machine_as_test(Shop, settings=PROFILE)

    print(f"{Shop.steps} steps")
    assert Shop.steps >= STEPS
