"""The stock rules by example, one story each. ``test_rules_properties.py`` looks for what nobody thought of."""

from datetime import timedelta
from typing import Any, TypeVar

import pytest
from factories import NOW, ItemFactory, ProductFactory, ReservationFactory, WarehouseFactory, book_of, line_of
from msgspec import UNSET

from core.errors import (
    AlreadyExists,
    Conflict,
    InsufficientStock,
    ItemInactive,
    NotFound,
    PreconditionFailed,
    ReservationExpired,
    SkuConflict,
    ValidationFailed,
    VersionConflict,
)
from core.fields import BALANCE_MAX
from core.operations import (
    Activate,
    Adjust,
    Confirm,
    Count,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    Expire,
    Extend,
    Fulfil,
    FulfilBody,
    ItemPatch,
    ItemQuantity,
    Operation,
    ProductPatch,
    Receive,
    Release,
    Reserve,
    ReserveLine,
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
from core.stock import Item, LeadTime, Product, Reservation, Warehouse

R = TypeVar("R")


def done(book: Book, operation: Operation, kind: type[R]) -> R:
    """Decide an operation that must be accepted, and return its result."""
    result = decide(book, operation, Cause("clerk", "corr-1"))
    assert isinstance(result, kind)
    return result


def changed(book: Book, operation: Operation) -> Item:
    """Decide a stock operation and return its item afterwards."""
    return done(book, operation, StockChange).item


def reserved(book: Book, *wanted: tuple[Item, int], **fields: Any) -> Reservation:
    """Reserve these quantities."""
    lines = tuple(ReserveLine(inventory_item_id=item.id, quantity=quantity) for item, quantity in wanted)
    return done(book, Reserve(lines=lines, **fields), Reservation)


def fulfil(reservation: Reservation, *leaving: tuple[Item, int]) -> Fulfil:
    """Return the operation by which these quantities of a reservation leave."""
    lines = tuple(ItemQuantity(inventory_item_id=item.id, quantity=quantity) for item, quantity in leaving)
    return Fulfil(reservation_id=reservation.id, body=FulfilBody(lines=lines))


def told(book: Book) -> list[tuple[str, str]]:
    """Return (event type, item id) of the events so far, and forget them."""
    events = [(row.event_type, row.aggregate_id) for row in book.outbox]
    book.outbox.clear()
    return events


def levels(item: Item) -> tuple[int, int, int, int]:
    """Return on hand, reserved, available and shortfall."""
    return item.on_hand, item.reserved, item.available, item.shortfall


# -- goods in, out, corrected, counted --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "type", "change"),
    [
        (Receive(inventory_item_id="inv_1", quantity=25), "RECEIPT", 25),
        (Return(inventory_item_id="inv_1", quantity=2), "RETURN", 2),
        (Ship(inventory_item_id="inv_1", quantity=30), "SHIPMENT", -30),
        (Adjust(inventory_item_id="inv_1", delta=-4, reason="Broken"), "ADJUSTMENT", -4),
        (Adjust(inventory_item_id="inv_1", delta=4, reason="Found"), "ADJUSTMENT", 4),
        (Count(inventory_item_id="inv_1", counted_quantity=40), "COUNT", -10),
    ],
)
def test_an_operation_moves_on_hand_and_writes_one_row(operation: Operation, type: str, change: int) -> None:
    """The ledger row says what changed and what was left after it."""
    book = book_of(ItemFactory.build(id="inv_1", on_hand=50, reserved=5, safety_stock=3))
    item = changed(book, operation)
    (row,) = book.ledger

    assert (50 + change, 5, 42 + change, 0) == levels(item)
    assert (type, change, 0) == (row.type, row.on_hand_change, row.reserved_change)
    assert (item.on_hand, 5, item.available) == (row.on_hand_after, row.reserved_after, row.available_after)
    assert item == book.items["inv_1"]


def test_a_row_says_who_why_and_when() -> None:
    """Actor, correlation, reason and reference are recorded; what happened earlier is still recorded now (R12)."""
    item = ItemFactory.build(version=7)
    book = book_of(item)
    earlier = NOW - timedelta(days=2)
    operation = Receive(
        inventory_item_id=item.id,
        quantity=25,
        reason="Replenishment",
        reference_type="PURCHASE_ORDER",
        reference_number="PO-12345",
        occurred_at=earlier,
    )
    (row,) = done(book, operation, StockChange).transactions

    assert ("clerk", "corr-1", 8) == (row.actor, row.correlation_id, row.item_version)
    assert ("Replenishment", "PURCHASE_ORDER", "PO-12345") == (row.reason, row.reference_type, row.reference_number)
    assert (item.id, "prod_1", "wh_1", "WIDGET-2") == (
        row.inventory_item_id,
        row.product_id,
        row.warehouse_id,
        row.sku,
    )
    assert (earlier, NOW) == (row.occurred_at, row.recorded_at)


def test_without_a_correlation_id_the_transaction_is_its_own() -> None:
    """A caller that sent no correlation id gets the ledger row's (rule R16)."""
    item = ItemFactory.build()
    book = book_of(item)
    decide(book, Receive(inventory_item_id=item.id, quantity=1), Cause("clerk"))

    assert book.ledger[0].id == book.ledger[0].correlation_id == book.outbox[0].correlation_id


def test_nothing_happens_in_the_future() -> None:
    """``occurredAt`` may lie in the past, not ahead of the clock (rule R12)."""
    item = ItemFactory.build()
    with pytest.raises(ValidationFailed):
        decide(
            book_of(item),
            Receive(inventory_item_id=item.id, quantity=1, occurred_at=NOW + timedelta(minutes=1)),
            Cause("clerk"),
        )


def test_an_expected_version_must_be_the_current_one() -> None:
    """A conditional operation is refused once the item has moved on, and names the current version."""
    item = ItemFactory.build(version=7)
    book = book_of(item)
    changed(book, Receive(inventory_item_id=item.id, quantity=1, expected_version=7))
    with pytest.raises(VersionConflict) as refusal:
        changed(book, Receive(inventory_item_id=item.id, quantity=1, expected_version=7))

    assert {"currentVersion": 8} == refusal.value.extra


@pytest.mark.parametrize(
    "operation",
    [
        Receive(inventory_item_id="inv_0", quantity=1),
        Reserve(lines=(ReserveLine(inventory_item_id="inv_0", quantity=1),)),
        UpdateItem(inventory_item_id="inv_0", patch=ItemPatch(name="New")),
        Release(reservation_id="res_0"),
        Confirm(reservation_id="res_0"),
        Extend(reservation_id="res_0", expires_in_seconds=60),
        Fulfil(reservation_id="res_0"),
        Expire(reservation_id="res_0"),
        UpdateProduct(product_id="prod_0", patch=ProductPatch(low_stock_threshold=1)),
        UpdateWarehouse(warehouse_id="wh_0", patch=WarehousePatch(active=False)),
        CreateItem(sku="A", product_id="prod_1", warehouse_id="wh_0"),
        Transfer(inventory_item_id="inv_1", quantity=1, to_warehouse_id="wh_0"),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_what_does_not_exist_cannot_be_changed(operation: Operation) -> None:
    """An unknown item, reservation, product or warehouse is NotFound."""
    with pytest.raises(NotFound):
        decide(book_of(ItemFactory.build(id="inv_1", on_hand=5)), operation, Cause("clerk"))


@pytest.mark.parametrize(
    "operation",
    [
        Ship(inventory_item_id="inv_1", quantity=6),
        Adjust(inventory_item_id="inv_1", delta=-6, reason="Broken"),
        Transfer(inventory_item_id="inv_1", quantity=6, to_warehouse_id="wh_2"),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_promised_units_do_not_leave(operation: Operation) -> None:
    """Going below what is reserved is refused, with the numbers and the way out: a COUNT (rule R9)."""
    with pytest.raises(InsufficientStock, match="COUNT") as refusal:
        decide(book_of(ItemFactory.build(id="inv_1", on_hand=10, reserved=5)), operation, Cause("clerk"))

    assert {"inventoryItemId": "inv_1", "requested": 6, "available": 5} == refusal.value.extra


def test_safety_stock_may_leave_but_not_be_promised() -> None:
    """SHIP, ADJUST and TRANSFER may use safety stock, a reservation may not (rule R9)."""
    item = ItemFactory.build(on_hand=10, safety_stock=8)
    book = book_of(item)
    with pytest.raises(InsufficientStock):
        reserved(book, (item, 3))

    assert 9 == changed(book, Ship(inventory_item_id=item.id, quantity=1)).on_hand
    assert 7 == changed(book, Adjust(inventory_item_id=item.id, delta=-2, reason="Broken")).on_hand
    assert 4 == changed(book, Transfer(inventory_item_id=item.id, quantity=3, to_warehouse_id="wh_2")).on_hand


def test_only_a_count_makes_a_shortfall() -> None:
    """The shelf is right: counting less than is promised leaves a shortfall, and every unit that comes in lowers it."""
    item = ItemFactory.build(on_hand=10, reserved=8)
    book = book_of(item)

    assert (5, 8, 0, 3) == levels(changed(book, Count(inventory_item_id=item.id, counted_quantity=5)))
    with pytest.raises(InsufficientStock):
        changed(book, Ship(inventory_item_id=item.id, quantity=1))
    assert (7, 8, 0, 1) == levels(changed(book, Receive(inventory_item_id=item.id, quantity=2)))


def test_a_count_that_finds_nothing_new_is_still_recorded() -> None:
    """That somebody counted is worth a row, though no event."""
    item = ItemFactory.build(on_hand=10)
    book = book_of(item)
    changed(book, Count(inventory_item_id=item.id, counted_quantity=10))

    assert [("COUNT", 0)] == [(row.type, row.on_hand_change) for row in book.ledger]
    assert [] == told(book)


def test_balances_have_a_ceiling() -> None:
    """No balance grows beyond what every reader of JSON can hold exactly; the last unit still fits."""
    full = ItemFactory.build(on_hand=BALANCE_MAX)
    almost = ItemFactory.build(on_hand=BALANCE_MAX - 1, warehouse_id="wh_2")
    book = book_of(full, almost)

    assert BALANCE_MAX == changed(book, Return(inventory_item_id=almost.id, quantity=1)).on_hand
    for operation in (
        Receive(inventory_item_id=full.id, quantity=1),
        Return(inventory_item_id=full.id, quantity=1),
        Adjust(inventory_item_id=full.id, delta=1, reason="Found"),
        Transfer(inventory_item_id=full.id, quantity=1, to_warehouse_id="wh_2"),
    ):
        with pytest.raises(Conflict, match="more than"):
            changed(book, operation)


def test_goods_move_for_inactive_items_too() -> None:
    """What happens in the world is recorded whether or not the item is for sale; none of it becomes available."""
    item = ItemFactory.build(on_hand=10, status="INACTIVE")
    book = book_of(item)
    changed(book, Receive(inventory_item_id=item.id, quantity=5))

    assert (12, 0, 0, 0) == levels(changed(book, Ship(inventory_item_id=item.id, quantity=3)))
    assert [] == told(book)


# -- transfers --------------------------------------------------------------------------------------------------------


def test_a_transfer_is_two_rows_and_makes_the_item_there() -> None:
    """The first transfer of a SKU to a warehouse makes its item there, like the source but for the safety stock."""
    item = ItemFactory.build(on_hand=10, safety_stock=2, reorder_threshold=4, metadata={"size": "L"})
    book = book_of(item)
    source = changed(book, Transfer(inventory_item_id=item.id, quantity=6, to_warehouse_id="wh_2"))
    target = book.at("WIDGET-2", "wh_2")
    assert target is not None

    assert (4, 6) == (source.on_hand, target.on_hand)
    assert [("TRANSFER_OUT", item.id, -6, 2), ("TRANSFER_IN", target.id, 6, 1)] == [
        (row.type, row.inventory_item_id, row.on_hand_change, row.item_version) for row in book.ledger
    ]
    assert ("prod_1", "Widget", 0, 4, {"size": "L"}, "ACTIVE") == (
        target.product_id,
        target.name,
        target.safety_stock,
        target.reorder_threshold,
        target.metadata,
        target.status,
    )


def test_a_transfer_finds_the_item_that_is_there() -> None:
    """A second transfer goes to the same item, also within one batch."""
    item = ItemFactory.build(on_hand=10)
    book = book_of(item)
    for quantity in (1, 2):
        changed(book, Transfer(inventory_item_id=item.id, quantity=quantity, to_warehouse_id="wh_2"))

    assert {"wh_1": 7, "wh_2": 3} == {item.warehouse_id: item.on_hand for item in book.items.values()}


def test_a_transfer_of_the_last_units_is_neither_out_nor_back() -> None:
    """Edges compare the product before and after the whole operation (rule R14)."""
    item = ItemFactory.build(on_hand=30)
    book = book_of(item)
    changed(book, Transfer(inventory_item_id=item.id, quantity=30, to_warehouse_id="wh_2"))
    target = book.at("WIDGET-2", "wh_2")
    assert target is not None

    assert [("StockLevelChanged", item.id), ("StockLevelChanged", target.id)] == told(book)
    assert 30 == book.products["prod_1"].total_available


def test_a_transfer_into_safety_stock_can_run_a_product_out() -> None:
    """Where the units arrive below the safety stock, nothing can be sold any more; the source is the cause."""
    item = ItemFactory.build(on_hand=5)
    other = ItemFactory.build(warehouse_id="wh_2", safety_stock=100)
    book = book_of(item, other)
    changed(book, Transfer(inventory_item_id=item.id, quantity=5, to_warehouse_id="wh_2"))

    assert [("StockLevelChanged", item.id), ("OutOfStock", item.id)] == told(book)


def test_a_transfer_goes_somewhere_else() -> None:
    """A transfer to the item's own warehouse is a mistake."""
    item = ItemFactory.build(on_hand=5)
    with pytest.raises(ValidationFailed):
        changed(book_of(item), Transfer(inventory_item_id=item.id, quantity=1, to_warehouse_id="wh_1"))


def test_a_closed_warehouse_takes_no_new_stock() -> None:
    """Neither a transfer nor a new item goes to an inactive warehouse."""
    item = ItemFactory.build(on_hand=5)
    book = book_of(item, warehouses=[WarehouseFactory.build(id="wh_3", active=False)])

    with pytest.raises(Conflict, match="inactive"):
        changed(book, Transfer(inventory_item_id=item.id, quantity=1, to_warehouse_id="wh_3"))
    with pytest.raises(Conflict, match="inactive"):
        done(book, CreateItem(sku="A", product_id="prod_1", warehouse_id="wh_3"), Item)


@pytest.mark.parametrize("locked", [True, False], ids=["locked", "not locked"])
def test_a_transfer_never_crosses_products(locked: bool) -> None:
    """Where the SKU belongs to another product in the target warehouse, the goods would change product: refused.

    Whether the batch happens to hold that other product's lock makes no difference.
    """
    item = ItemFactory.build(on_hand=5)
    stranger = ItemFactory.build(warehouse_id="wh_2", product_id="prod_2")
    book = book_of(item, stranger)
    if not locked:
        del book.products["prod_2"]
    with pytest.raises(SkuConflict):
        changed(book, Transfer(inventory_item_id=item.id, quantity=1, to_warehouse_id="wh_2"))

    assert (item, stranger, []) == (book.items[item.id], book.items[stranger.id], book.ledger)


# -- policy and status ------------------------------------------------------------------------------------------------


def test_a_policy_changes_what_it_names() -> None:
    """SET_POLICY leaves the other levels alone and writes a row of zeros."""
    item = ItemFactory.build(on_hand=20)
    book = book_of(item)
    after = changed(book, SetPolicy(inventory_item_id=item.id, safety_stock=5))

    assert (5, 10, 50, 15) == (
        after.safety_stock,
        after.reorder_threshold,
        after.target_stock_level,
        after.available,
    )
    assert [("POLICY", 0, 0, 15)] == [
        (row.type, row.on_hand_change, row.reserved_change, row.available_after) for row in book.ledger
    ]


def test_an_inactive_item_has_nothing_available() -> None:
    """DEACTIVATE takes what is available away and leaves the balances; ACTIVATE gives it back."""
    item = ItemFactory.build(on_hand=30, reserved=5)
    book = book_of(item)

    assert (30, 5, 0, 0) == levels(changed(book, Deactivate(inventory_item_id=item.id)))
    assert [("StockLevelChanged", item.id), ("OutOfStock", item.id)] == told(book)
    assert (30, 5, 25, 0) == levels(changed(book, Activate(inventory_item_id=item.id)))
    assert [("StockLevelChanged", item.id), ("BackInStock", item.id)] == told(book)
    assert ["STATUS", "STATUS"] == [row.type for row in book.ledger]


@pytest.mark.parametrize(("status", "operation"), [("ACTIVE", Activate), ("INACTIVE", Deactivate)])
def test_a_status_that_is_set_already_changes_nothing(status: str, operation: type[Activate | Deactivate]) -> None:
    """Activating the active writes no row and raises no version."""
    item = ItemFactory.build(status=status)
    book = book_of(item)
    result = done(book, operation(inventory_item_id=item.id), StockChange)

    assert StockChange((), item) == result
    assert ([], 0) == (book.ledger, book.products["prod_1"].revision)


# -- reservations -----------------------------------------------------------------------------------------------------


def test_a_reservation_holds_units_for_a_while() -> None:
    """Reserved units stay on hand and are not available; the hold knows its end, its reference and its lines."""
    item = ItemFactory.build(on_hand=30)
    book = book_of(item)
    held = reserved(book, (item, 4), expires_in_seconds=60, reference_type="ORDER", reference_number="SO-9")
    (row,) = book.ledger

    assert ("HELD", NOW + timedelta(seconds=60), "ORDER", "SO-9") == (
        held.status,
        held.expires_at,
        held.reference_type,
        held.reference_number,
    )
    assert (line_of(item, 4),) == held.lines
    assert held == book.reservations[held.id]
    assert (30, 4, 26, 0) == levels(book.items[item.id])
    assert ("RESERVATION", 0, 4, held.id) == (row.type, row.on_hand_change, row.reserved_change, row.reservation_id)


def test_the_last_unit_is_promised_once() -> None:
    """The second of two reservations for the last unit is refused and told what is left."""
    item = ItemFactory.build(on_hand=1)
    book = book_of(item)
    reserved(book, (item, 1))
    with pytest.raises(InsufficientStock) as refusal:
        reserved(book, (item, 1))

    assert {"lines": [{"inventoryItemId": item.id, "requested": 1, "available": 0}]} == refusal.value.extra


def test_many_lines_are_all_or_nothing() -> None:
    """One line too many refuses them all, and the refusal lists every short line."""
    plenty, few, none = (ItemFactory.build(sku=sku, on_hand=on_hand) for sku, on_hand in (("A", 9), ("B", 1), ("C", 0)))
    book = book_of(plenty, few, none)
    with pytest.raises(InsufficientStock) as refusal:
        reserved(book, (plenty, 1), (few, 2), (none, 1))

    assert [few.id, none.id] == [line["inventoryItemId"] for line in refusal.value.extra["lines"]]
    assert [0, 0, 0] == [item.reserved for item in book.items.values()]
    assert ([], [], {}) == (book.ledger, book.outbox, book.reservations)


def test_lines_on_one_item_are_added_up() -> None:
    """Two lines that fit one by one but not together are refused; that fit together, they become one line."""
    item = ItemFactory.build(on_hand=5)
    book = book_of(item)
    with pytest.raises(InsufficientStock):
        reserved(book, (item, 3), (item, 3))

    assert (line_of(item, 5),) == reserved(book, (item, 3), (item, 2)).lines


def test_an_inactive_item_cannot_be_reserved() -> None:
    """Only a reservation asks whether an item is for sale."""
    item = ItemFactory.build(on_hand=5, status="INACTIVE")
    with pytest.raises(ItemInactive):
        reserved(book_of(item), (item, 1))


def test_a_reservation_over_products_settles_each() -> None:
    """Each product gets its own totals, sequence and revision."""
    one, other = ItemFactory.build(on_hand=30), ItemFactory.build(product_id="prod_2", sku="B", on_hand=40)
    book = book_of(one, other)
    reserved(book, (one, 1), (other, 2))

    assert {"prod_1": (29, 1, 1, 1), "prod_2": (38, 2, 1, 1)} == {
        id: (product.total_available, product.total_reserved, product.sequence, product.revision)
        for id, product in book.products.items()
    }


def test_a_release_gives_back_what_was_held() -> None:
    """Releasing a hold makes its units available again, under the reservation's reference and the caller's reason."""
    item = ItemFactory.build(on_hand=30)
    book = book_of(item)
    held = reserved(book, (item, 4), reference_type="ORDER", reference_number="SO-9")
    ended = done(book, Release(reservation_id=held.id, reason="Cancelled"), Reservation)
    row = book.ledger[-1]

    assert ("RELEASED", None, (line_of(item, 4, released=4),)) == (ended.status, ended.expires_at, ended.lines)
    assert ended == book.reservations[held.id]
    assert (30, 0, 30, 0) == levels(book.items[item.id])
    assert ("RELEASE", -4, held.id, "Cancelled", "ORDER", "SO-9") == (
        row.type,
        row.reserved_change,
        row.reservation_id,
        row.reason,
        row.reference_type,
        row.reference_number,
    )


def test_a_release_after_part_was_shipped_ends_fulfilled() -> None:
    """Only what has not left is given back, and the reservation counts as fulfilled (rule R11)."""
    part, whole = ItemFactory.build(on_hand=10, reserved=3), ItemFactory.build(sku="B", on_hand=10)
    lines = (line_of(part, 5, fulfilled=2), line_of(whole, 4, fulfilled=4))
    book = book_of(part, whole, reservations=[ReservationFactory.build(status="CONFIRMED", lines=lines)])
    ended = done(book, Release(reservation_id="res_1"), Reservation)

    assert "FULFILLED" == ended.status
    assert (line_of(part, 5, fulfilled=2, released=3), line_of(whole, 4, fulfilled=4)) == ended.lines
    assert [(part.id, -3)] == [(row.inventory_item_id, row.reserved_change) for row in book.ledger]


@pytest.mark.parametrize("status", ["RELEASED", "FULFILLED", "EXPIRED"])
def test_releasing_what_has_ended_answers_its_state(status: str) -> None:
    """A release repeated, or too late, changes nothing and is no error (rule R11)."""
    item = ItemFactory.build(on_hand=10)
    ended = ReservationFactory.build(status=status, lines=(line_of(item, 5),))
    book = book_of(item, reservations=[ended])

    assert ended == done(book, Release(reservation_id="res_1"), Reservation)
    assert ([], item) == (book.ledger, book.items[item.id])


def test_a_release_that_cannot_be_whole_changes_nothing() -> None:
    """Should an item of a reservation be missing from the book, none of its lines is given back."""
    here, missing = ItemFactory.build(on_hand=9, reserved=2), ItemFactory.build(sku="B", reserved=1)
    held = ReservationFactory.build(lines=(line_of(here, 2), line_of(missing, 1)))
    book = book_of(here, reservations=[held])
    with pytest.raises(NotFound):
        decide(book, Release(reservation_id="res_1"), Cause("clerk"))

    assert ([], here) == (book.ledger, book.items[here.id])


def test_a_confirmed_reservation_does_not_expire() -> None:
    """Confirming ends the hold's clock, once; nothing of the stock changes (rule R11)."""
    item = ItemFactory.build(on_hand=30)
    book = book_of(item)
    held = reserved(book, (item, 4), expires_in_seconds=60)
    confirmed = done(book, Confirm(reservation_id=held.id), Reservation)

    assert ("CONFIRMED", None, NOW) == (confirmed.status, confirmed.expires_at, confirmed.confirmed_at)
    assert confirmed == done(book, Confirm(reservation_id=held.id), Reservation)
    book.now = NOW + timedelta(days=400)
    expire_due(book)
    assert ("CONFIRMED", 4) == (book.reservations[held.id].status, book.items[item.id].reserved)


def test_a_hold_is_extended_from_now() -> None:
    """The new end counts from the moment of asking, also when it comes earlier than the old one (rule R11)."""
    item = ItemFactory.build(on_hand=30)
    book = book_of(item)
    held = reserved(book, (item, 4), expires_in_seconds=900)
    book.now = later = NOW + timedelta(seconds=10)
    extended = done(book, Extend(reservation_id=held.id, expires_in_seconds=60), Reservation)

    assert ("HELD", later + timedelta(seconds=60)) == (extended.status, extended.expires_at)
    done(book, Confirm(reservation_id=held.id), Reservation)
    with pytest.raises(Conflict, match="does not expire"):
        done(book, Extend(reservation_id=held.id, expires_in_seconds=60), Reservation)


def test_fulfilling_takes_the_promised_units_off_the_shelf() -> None:
    """On hand and reserved fall together, so what is available stays and nobody is told anything."""
    item = ItemFactory.build(on_hand=30, safety_stock=5)
    book = book_of(item)
    held = reserved(book, (item, 4), reference_type="ORDER", reference_number="SO-9")
    told(book)
    ended = done(book, Fulfil(reservation_id=held.id, body=FulfilBody(reason="Packed")), Reservation)
    row = book.ledger[-1]

    assert ("FULFILLED", (line_of(item, 4, fulfilled=4),)) == (ended.status, ended.lines)
    assert (26, 0, 21, 0) == levels(book.items[item.id])
    assert [] == told(book)
    assert ("FULFILMENT", -4, -4, held.id, "Packed", "SO-9") == (
        row.type,
        row.on_hand_change,
        row.reserved_change,
        row.reservation_id,
        row.reason,
        row.reference_number,
    )


def test_fulfilling_a_part_confirms_the_rest() -> None:
    """What has not left stays promised without an end; the last part fulfils the reservation (rule R11)."""
    item, other = ItemFactory.build(on_hand=30), ItemFactory.build(sku="B", on_hand=30)
    book = book_of(item, other)
    held = reserved(book, (item, 4), (other, 2))
    part = done(book, fulfil(held, (item, 1), (item, 2)), Reservation)

    assert ("CONFIRMED", None, NOW) == (part.status, part.expires_at, part.confirmed_at)
    assert (line_of(item, 4, fulfilled=3), line_of(other, 2)) == part.lines
    book.now += timedelta(hours=1)
    whole = done(book, Fulfil(reservation_id=held.id), Reservation)
    assert ("FULFILLED", NOW) == (whole.status, whole.confirmed_at)
    assert [(26, 0, 26, 0), (28, 0, 28, 0)] == [levels(item) for item in book.items.values()]


def test_no_more_leaves_than_was_promised() -> None:
    """Lines are added up; more than held, or an item the reservation does not name, is refused as a whole."""
    item, other = ItemFactory.build(on_hand=30), ItemFactory.build(sku="B", on_hand=30)
    book = book_of(item, other)
    held = reserved(book, (item, 4))
    for lines in ([(item, 5)], [(item, 3), (item, 2)], [(item, 1), (other, 1)]):
        with pytest.raises(Conflict, match="holds"):
            done(book, fulfil(held, *lines), Reservation)

    assert (30, 4, 26, 0) == levels(book.items[item.id])
    assert held == book.reservations[held.id]


def test_no_more_leaves_than_is_there() -> None:
    """After a count found less than promised, only what is on the shelf can be fulfilled (rule R9)."""
    item = ItemFactory.build(on_hand=10)
    book = book_of(item)
    held = reserved(book, (item, 8))
    changed(book, Count(inventory_item_id=item.id, counted_quantity=5))
    with pytest.raises(InsufficientStock) as refusal:
        done(book, Fulfil(reservation_id=held.id), Reservation)

    assert {"inventoryItemId": item.id, "requested": 8, "available": 5} == refusal.value.extra
    done(book, fulfil(held, (item, 5)), Reservation)
    assert (0, 3, 0, 3) == levels(book.items[item.id])


@pytest.mark.parametrize(
    ("status", "error"), [("RELEASED", Conflict), ("FULFILLED", Conflict), ("EXPIRED", ReservationExpired)]
)
@pytest.mark.parametrize(
    "step",
    [
        Confirm(reservation_id="res_1"),
        Extend(reservation_id="res_1", expires_in_seconds=60),
        Fulfil(reservation_id="res_1"),
    ],
    ids=lambda step: type(step).__name__,
)
def test_what_has_ended_cannot_go_on(step: Operation, status: str, error: type[Conflict]) -> None:
    """An ended reservation takes no further step; an expired one says so by its own code (rule R11)."""
    book = book_of(reservations=[ReservationFactory.build(status=status)])
    with pytest.raises(error) as refusal:
        decide(book, step, Cause("clerk"))

    assert error.code == refusal.value.code


def test_a_hold_ends_at_its_instant() -> None:
    """A microsecond before its end a hold can be confirmed, at its end it is over (rules R10, R11)."""
    item = ItemFactory.build(on_hand=30)
    book = book_of(item)
    held = reserved(book, (item, 4), expires_in_seconds=60)
    book.now = NOW + timedelta(seconds=60) - timedelta(microseconds=1)
    expire_due(book)
    assert held == done(book, Expire(reservation_id=held.id), Reservation)

    book.now = NOW + timedelta(seconds=60)
    expire_due(book)
    ended = done(book, Expire(reservation_id=held.id), Reservation)
    assert ("EXPIRED", (line_of(item, 4, released=4),)) == (ended.status, ended.lines)
    assert ended == done(book, Release(reservation_id=held.id), Reservation)
    book.now += timedelta(seconds=1)
    expire_due(book)
    assert ended == book.reservations[held.id]
    with pytest.raises(ReservationExpired):
        done(book, Confirm(reservation_id=held.id), Reservation)


def test_expiry_is_recorded_and_told() -> None:
    """The units are free again, by the service's own hand, with the edges that follow and one event a line."""
    item, other = ItemFactory.build(on_hand=4), ItemFactory.build(sku="B", on_hand=6)
    book = book_of(item, other)
    held = reserved(book, (item, 4), (other, 6), expires_in_seconds=60)
    told(book)
    book.now = NOW + timedelta(seconds=60)
    expire_due(book)

    assert [(4, 0, 4, 0), (6, 0, 6, 0)] == [levels(item) for item in book.items.values()]
    assert [("EXPIRY", -4, held.id, "inventory-service"), ("EXPIRY", -6, held.id, "inventory-service")] == [
        (row.type, row.reserved_change, row.reservation_id, row.actor) for row in book.ledger[2:]
    ]
    assert [
        ("StockLevelChanged", item.id),
        ("StockLevelChanged", other.id),
        ("LowStockThresholdReached", item.id),
        ("LowStockThresholdReached", other.id),
        ("BackInStock", other.id),
        ("ReservationExpired", item.id),
        ("ReservationExpired", other.id),
    ] == told(book)


def test_a_hold_over_products_expires_as_they_are_locked() -> None:
    """A line whose product is not locked waits; the hold is EXPIRED when its last line is free (rule R10)."""
    here, there = ItemFactory.build(on_hand=20), ItemFactory.build(product_id="prod_2", sku="B", on_hand=20)
    book = book_of(here, there)
    held = reserved(book, (here, 1), (there, 2), expires_in_seconds=60)
    book.now = NOW + timedelta(seconds=60)
    elsewhere = book.products.pop("prod_2")
    expire_due(book)
    assert ("HELD", 0, 2) == (
        book.reservations[held.id].status,
        book.items[here.id].reserved,
        book.items[there.id].reserved,
    )

    book.products["prod_2"] = elsewhere
    expire_due(book)
    assert ("EXPIRED", 0) == (book.reservations[held.id].status, book.items[there.id].reserved)
    assert 1 == len([row for row in book.ledger if row.type == "EXPIRY" and row.inventory_item_id == here.id])


# -- where promised units come from -----------------------------------------------------------------------------------


def spread(*on_hand: int) -> tuple[Book, list[Item]]:
    """Return a book with the SKU ``A`` in so many warehouses, the first of them first in line."""
    items = [
        ItemFactory.build(sku="A", warehouse_id=f"wh_{place}", on_hand=units) for place, units in enumerate(on_hand, 1)
    ]
    houses = [WarehouseFactory.build(id=item.warehouse_id, priority=place) for place, item in enumerate(items)]
    return book_of(*items, warehouses=houses), items


@pytest.mark.parametrize(
    ("strategy", "quantity", "expected"),
    [
        ("WAREHOUSE_PRIORITY", 5, {"wh_1": 2, "wh_2": 3}),
        ("FEWEST_SPLITS", 2, {"wh_1": 2}),
        ("FEWEST_SPLITS", 5, {"wh_3": 5}),
        ("FEWEST_SPLITS", 12, {"wh_2": 3, "wh_3": 9}),
        ("MOST_STOCK", 2, {"wh_3": 2}),
        ("MOST_STOCK", 12, {"wh_2": 3, "wh_3": 9}),
    ],
)
def test_a_line_by_sku_is_sourced(strategy: str, quantity: int, expected: dict[str, int]) -> None:
    """Where a line leaves the choice, the strategy chooses and splits it over warehouses."""
    book, _ = spread(2, 4, 9)
    held = done(book, Reserve(lines=(ReserveLine(sku="A", quantity=quantity),), sourcing=strategy), Reservation)

    assert expected == {line.warehouse_id: line.quantity for line in held.lines}
    assert expected == {item.warehouse_id: item.reserved for item in book.items.values() if item.reserved}


def test_a_choice_can_be_explained() -> None:
    """On request the answer says what was considered; the reservation itself does not keep it."""
    book, items = spread(2, 4)
    asked = Reserve(lines=(ReserveLine(product_id="prod_1", quantity=3),), explain=True)
    held = done(book, asked, Reservation)
    assert held.explanation is not UNSET
    ((choice),) = held.explanation

    assert [(items[0].id, 2, 2), (items[1].id, 4, 1)] == [
        (each.inventory_item_id, each.available, each.taken) for each in choice.considered
    ]
    assert book.reservations[held.id].explanation is UNSET


def test_sourcing_keeps_to_where_it_may() -> None:
    """A line's warehouse, the request's warehouses, closed warehouses and inactive items narrow the choice."""
    book, items = spread(2, 4, 9)
    line = ReserveLine(sku="A", quantity=1)
    assert "wh_3" == done(book, Reserve(lines=(line,), warehouse_ids=("wh_3",)), Reservation).lines[0].warehouse_id
    narrow = ReserveLine(sku="A", quantity=1, warehouse_id="wh_2")
    assert "wh_2" == done(book, Reserve(lines=(narrow,)), Reservation).lines[0].warehouse_id

    done(book, UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(active=False)), Warehouse)
    changed(book, Deactivate(inventory_item_id=items[1].id))
    assert "wh_3" == done(book, Reserve(lines=(line,)), Reservation).lines[0].warehouse_id
    with pytest.raises(InsufficientStock):
        done(book, Reserve(lines=(narrow,)), Reservation)


def test_lines_do_not_take_each_others_units() -> None:
    """What a line names itself is set aside before others choose; together they get no more than there is."""
    book, items = spread(3, 3)
    anywhere, here = ReserveLine(sku="A", quantity=3), ReserveLine(inventory_item_id=items[0].id, quantity=2)
    held = done(book, Reserve(lines=(anywhere, here)), Reservation)
    assert {items[0].id: 3, items[1].id: 2} == {line.inventory_item_id: line.quantity for line in held.lines}

    with pytest.raises(InsufficientStock) as refusal:
        done(book, Reserve(lines=(ReserveLine(sku="A", quantity=2),)), Reservation)
    assert {"lines": [{"sku": "A", "requested": 2, "available": 1}]} == refusal.value.extra


def test_what_cannot_be_sourced_is_refused() -> None:
    """An unknown strategy, an unknown SKU and one that is nowhere for sale are three different refusals."""
    book, (item,) = spread(3)
    with pytest.raises(ValidationFailed, match="FEWEST_SPLITS"):
        done(book, Reserve(lines=(ReserveLine(sku="A", quantity=1),), sourcing="COIN"), Reservation)
    with pytest.raises(NotFound):
        done(book, Reserve(lines=(ReserveLine(sku="B", quantity=1),)), Reservation)
    changed(book, Deactivate(inventory_item_id=item.id))
    with pytest.raises(ItemInactive):
        done(book, Reserve(lines=(ReserveLine(sku="A", quantity=1),)), Reservation)


@pytest.mark.parametrize("units", [[4, 1], [6, -1], [5], [2, 2]])
def test_a_strategy_cannot_oversell(units: list[int]) -> None:
    """A stranger's strategy that takes more than there is, less than nothing or the wrong sum gets nothing."""
    book, items = spread(3, 9)
    book.sourcing = {"ROGUE": lambda candidates, _: list(zip(candidates, units, strict=False))}
    with pytest.raises(RuntimeError, match="ROGUE"):
        done(book, Reserve(lines=(ReserveLine(sku="A", quantity=5),), sourcing="ROGUE"), Reservation)

    assert items == list(book.items.values())


# -- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "operation", "expected"),
    [
        (50, Ship(inventory_item_id="inv_1", quantity=39), ["StockLevelChanged"]),
        (50, Ship(inventory_item_id="inv_1", quantity=40), ["StockLevelChanged", "LowStockThresholdReached"]),
        (50, Ship(inventory_item_id="inv_1", quantity=50), ["StockLevelChanged", "OutOfStock"]),
        (9, Ship(inventory_item_id="inv_1", quantity=1), ["StockLevelChanged"]),
        (9, Receive(inventory_item_id="inv_1", quantity=1), ["StockLevelChanged"]),
        (9, Receive(inventory_item_id="inv_1", quantity=2), ["StockLevelChanged"]),
        (0, Receive(inventory_item_id="inv_1", quantity=50), ["StockLevelChanged", "BackInStock"]),
        (
            0,
            Receive(inventory_item_id="inv_1", quantity=5),
            ["StockLevelChanged", "LowStockThresholdReached", "BackInStock"],
        ),
        (50, SetPolicy(inventory_item_id="inv_1", reorder_threshold=49), []),
        (50, SetPolicy(inventory_item_id="inv_1", reorder_threshold=50), ["LowStockThresholdReached"]),
        (5, SetPolicy(inventory_item_id="inv_1", reorder_threshold=6), []),
        (50, SetPolicy(inventory_item_id="inv_1", safety_stock=45), ["StockLevelChanged", "LowStockThresholdReached"]),
        (50, SetPolicy(inventory_item_id="inv_1", safety_stock=60), ["StockLevelChanged", "OutOfStock"]),
        (50, SetPolicy(inventory_item_id="inv_1", target_stock_level=60), []),
    ],
)
def test_events_are_told_at_edges_only(start: int, operation: Operation, expected: list[str]) -> None:
    """Low is entered from above and from zero, by stock or policy alike; both bounds belong to it (R14, R15)."""
    book = book_of(ItemFactory.build(id="inv_1", on_hand=start))
    changed(book, operation)

    assert expected == [type for type, _ in told(book)]


def test_activation_can_enter_the_low_band() -> None:
    """An item that comes back for sale with few units is low (rule R14)."""
    item = ItemFactory.build(on_hand=3, status="INACTIVE")
    book = book_of(item)
    changed(book, Activate(inventory_item_id=item.id))

    assert ["StockLevelChanged", "LowStockThresholdReached", "BackInStock"] == [type for type, _ in told(book)]


def test_a_product_is_out_only_when_all_its_items_are() -> None:
    """One item running out says nothing about the product while another has units; the last one is named (R15)."""
    one, other = ItemFactory.build(on_hand=20), ItemFactory.build(sku="B", warehouse_id="wh_2", on_hand=20)
    book = book_of(one, other)
    changed(book, Ship(inventory_item_id=one.id, quantity=20))
    assert [("StockLevelChanged", one.id)] == told(book)
    changed(book, Ship(inventory_item_id=other.id, quantity=20))
    assert [("StockLevelChanged", other.id), ("OutOfStock", other.id)] == told(book)
    changed(book, Receive(inventory_item_id=one.id, quantity=20))
    assert [("StockLevelChanged", one.id), ("BackInStock", one.id)] == told(book)


def test_a_reservation_of_everything_runs_a_product_out_once() -> None:
    """However many lines: one operation, at most one OutOfStock per product, one revision."""
    one, other = ItemFactory.build(on_hand=2), ItemFactory.build(sku="B", on_hand=3)
    book = book_of(one, other)
    reserved(book, (one, 2), (other, 3))

    assert [("StockLevelChanged", one.id), ("StockLevelChanged", other.id), ("OutOfStock", other.id)] == told(book)
    assert 1 == book.products["prod_1"].revision


def test_what_safety_stock_swallows_is_no_change() -> None:
    """Events speak of available units: a receipt that only fills the safety stock is silent."""
    item = ItemFactory.build(on_hand=0, safety_stock=10)
    book = book_of(item)
    changed(book, Receive(inventory_item_id=item.id, quantity=10))

    assert [] == told(book)
    assert (10, 0, 1) == (
        book.products["prod_1"].total_on_hand,
        book.products["prod_1"].total_available,
        book.products["prod_1"].revision,
    )


@pytest.mark.parametrize(
    ("available", "low", "out"), [(0, False, True), (1, True, False), (10, True, False), (11, False, False)]
)
def test_a_products_bands_include_their_bounds(available: int, low: bool, out: bool) -> None:
    """Low is one unit up to the threshold, both included; out is zero (rule R15)."""
    product = ProductFactory.build(total_available=available)

    assert (low, out) == (product.is_low_stock, product.is_out_of_stock)


# -- items, products, warehouses --------------------------------------------------------------------------------------


def test_an_item_created_empty_is_silent() -> None:
    """Creating an item at zero writes its first row and tells nobody; the first stock brings it back (rule R14)."""
    book = book_of()
    item = done(book, CreateItem(sku="A", product_id="prod_1", warehouse_id="wh_1"), Item)

    assert (1, "A", "ACTIVE", 0) == (item.version, item.name, item.status, item.available)
    assert [("STATUS", 0, 1)] == [(row.type, row.on_hand_change, row.item_version) for row in book.ledger]
    assert [] == told(book)
    changed(book, Receive(inventory_item_id=item.id, quantity=20))
    assert [("StockLevelChanged", item.id), ("BackInStock", item.id)] == told(book)


def test_an_item_created_with_stock_is_a_receipt() -> None:
    """Initial stock is received, less what the safety stock keeps (rule R14)."""
    book = book_of()
    operation = CreateItem(
        sku="A", product_id="prod_1", warehouse_id="wh_1", name="Widget", initial_quantity=8, safety_stock=5
    )
    item = done(book, operation, Item)

    assert (8, 0, 3, 0) == levels(item)
    assert [("RECEIPT", 8, 1)] == [(row.type, row.on_hand_change, row.item_version) for row in book.ledger]
    assert ["StockLevelChanged", "LowStockThresholdReached", "BackInStock"] == [type for type, _ in told(book)]
    assert item == book.items[item.id] == book.at("A", "wh_1")


def test_a_sku_has_one_item_in_a_warehouse() -> None:
    """A second item is refused, naming the first; another product's SKU is a conflict; other warehouses are free."""
    item = ItemFactory.build()
    book = book_of(item)
    with pytest.raises(AlreadyExists) as refusal:
        done(book, CreateItem(sku="WIDGET-2", product_id="prod_1", warehouse_id="wh_1"), Item)
    with pytest.raises(SkuConflict):
        done(book, CreateItem(sku="WIDGET-2", product_id="prod_2", warehouse_id="wh_1"), Item)

    assert {"inventoryItemId": item.id} == refusal.value.extra
    assert "wh_2" == done(book, CreateItem(sku="WIDGET-2", product_id="prod_1", warehouse_id="wh_2"), Item).warehouse_id


@pytest.mark.parametrize(
    ("patch", "type"),
    [
        (ItemPatch(name="New"), "DETAILS"),
        (ItemPatch(metadata={"size": "L"}), "DETAILS"),
        (ItemPatch(safety_stock=1), "POLICY"),
        (ItemPatch(name="New", reorder_threshold=3), "POLICY"),
    ],
)
def test_an_edit_is_a_row_too(patch: ItemPatch, type: str) -> None:
    """Every version of an item has its ledger row, with zero deltas where only words changed."""
    item = ItemFactory.build(on_hand=20)
    book = book_of(item)
    edited = done(book, UpdateItem(inventory_item_id=item.id, patch=patch, if_match=1), Item)

    assert (2, [(type, 0, 0, 2)]) == (
        edited.version,
        [(row.type, row.on_hand_change, row.reserved_change, row.item_version) for row in book.ledger],
    )
    assert edited == book.items[item.id]


@pytest.mark.parametrize("patch", [ItemPatch(), ItemPatch(name="Widget", metadata={"pack": 1}, safety_stock=0)])
def test_an_edit_that_says_nothing_new_changes_nothing(patch: ItemPatch) -> None:
    """What is as it should be gets no new version."""
    item = ItemFactory.build(metadata={"pack": 1})
    book = book_of(item)

    assert item == done(book, UpdateItem(inventory_item_id=item.id, patch=patch), Item)
    assert ([], 0) == (book.ledger, book.products["prod_1"].revision)


@pytest.mark.parametrize("value", [True, 1.0, [1]])
def test_metadata_is_compared_as_json_is(value: Any) -> None:
    """``1``, ``1.0`` and ``true`` are equal in Python and different in JSON: the edit counts."""
    item = ItemFactory.build(metadata={"pack": 1})
    patch = ItemPatch(metadata={"pack": value})
    edited = done(book_of(item), UpdateItem(inventory_item_id=item.id, patch=patch), Item)

    assert (type(value), value) == (type(edited.metadata["pack"]), edited.metadata["pack"])


@pytest.mark.parametrize(
    "operation",
    [
        UpdateItem(inventory_item_id="inv_1", patch=ItemPatch(name="New"), if_match=2),
        UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(active=False), if_match=2),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_an_edit_may_insist_on_the_version_it_saw(operation: Operation) -> None:
    """If-Match that names another version is a failed precondition, with the current one."""
    with pytest.raises(PreconditionFailed) as refusal:
        decide(book_of(ItemFactory.build(id="inv_1")), operation, Cause("clerk"))

    assert {"currentVersion": 1} == refusal.value.extra


def test_a_products_threshold_can_be_edited() -> None:
    """The edit is visible in reads, so the revision rises; it is no event of any item."""
    book = book_of(ItemFactory.build(on_hand=20))
    product = done(book, UpdateProduct(product_id="prod_1", patch=ProductPatch(low_stock_threshold=20)), Product)

    assert (20, True, 1, 0) == (
        product.low_stock_threshold,
        product.is_low_stock,
        product.revision,
        product.sequence,
    )
    assert ([], product) == (told(book), book.products["prod_1"])


def test_a_warehouse_can_be_opened_once() -> None:
    """A warehouse gets an id of ours or keeps the caller's, which must be new."""
    book = book_of()
    ours = done(book, CreateWarehouse(name="East"), Warehouse)
    theirs = done(book, CreateWarehouse(name="West", id="wh_west", lead_time_days=LeadTime(2, 4)), Warehouse)
    with pytest.raises(AlreadyExists):
        done(book, CreateWarehouse(name="West", id="wh_west"), Warehouse)

    assert ours.id.startswith("wh_")
    assert (True, 1, LeadTime(1, 3), LeadTime(2, 4)) == (
        ours.active,
        ours.version,
        ours.lead_time_days,
        theirs.lead_time_days,
    )
    assert {ours.id: ours, theirs.id: theirs}.items() <= book.warehouses.items()


def test_a_warehouse_keeps_what_an_edit_leaves_out() -> None:
    """A patch replaces what it names and raises the version."""
    book = book_of()
    before = book.warehouses["wh_1"]
    after = done(book, UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch(priority=1), if_match=1), Warehouse)

    assert (1, 2, before.name, before.lead_time_days, True) == (
        after.priority,
        after.version,
        after.name,
        after.lead_time_days,
        after.active,
    )
    assert after == book.warehouses["wh_1"]


# -- the book ---------------------------------------------------------------------------------------------------------


def test_what_was_loaded_stays_readable() -> None:
    """A store compares with what it loaded; deciding replaces entities and never alters them."""
    item = ItemFactory.build(on_hand=20)
    book = book_of(item)
    product = book.products["prod_1"]
    changed(book, Ship(inventory_item_id=item.id, quantity=3))

    assert (item, product) == (book.loaded[item.id], book.loaded["product:prod_1"])
    assert (20, 17) == (item.on_hand, book.items[item.id].on_hand)
