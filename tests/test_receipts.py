"""The rules of expected receipts by example: what is expected, what comes of it, and when more is expected."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from factories import NOW, ItemFactory, ProductFactory, ReceiptFactory, book_of
from msgspec.structs import replace

from core.errors import Conflict, NotFound, PreconditionFailed, ValidationFailed
from core.events import ProductEvent, ProductPayload, ProductVariant
from core.fields import BALANCE_MAX
from core.operations import (
    Activate,
    AmendExpected,
    Answer,
    ApplyProductEvent,
    CancelExpected,
    Deactivate,
    EventPolicy,
    Expect,
    ExpectedPatch,
    Operation,
    Receive,
    ReceiveBody,
    ReceiveExpected,
    Ship,
)
from core.rules.book import Book, Cause
from core.rules.decisions import decide
from core.stock import Catalog, ExpectedReceipt, Item, Seen, Supply, Variant, restock_expected

DAY = timedelta(days=1)
TOMORROW = NOW + DAY


def done(book: Book, operation: Operation) -> ExpectedReceipt:
    """Decide an operation that must be accepted, and return its expected receipt."""
    result = decide(book, operation, Cause("clerk", "corr-1"))
    assert isinstance(result, ExpectedReceipt)
    assert result is book.receipts[result.id]
    return result


def expected(book: Book, item: Item, quantity: int = 40, **fields: Any) -> ExpectedReceipt:
    """Put an expected receipt on record, for tomorrow unless told otherwise."""
    fields = {"expected_at": TOMORROW} | fields
    return done(book, Expect(inventory_item_id=item.id, quantity=quantity, **fields))


def received(book: Book, receipt: ExpectedReceipt, quantity: int, **fields: Any) -> ExpectedReceipt:
    """Receive so many units of it."""
    return done(book, ReceiveExpected(receipt_id=receipt.id, body=ReceiveBody(quantity=quantity, **fields)))


def amended(book: Book, receipt: ExpectedReceipt, **fields: Any) -> ExpectedReceipt:
    """Amend it."""
    return done(book, AmendExpected(receipt_id=receipt.id, patch=ExpectedPatch(**fields)))


def cancelled(book: Book, receipt: ExpectedReceipt, reason: str | None = None) -> ExpectedReceipt:
    """Cancel it."""
    return done(book, CancelExpected(receipt_id=receipt.id, reason=reason))


def counts(receipt: ExpectedReceipt) -> tuple[str, int, int, int]:
    """Return status, received, outstanding and discrepancy."""
    return receipt.status, receipt.received_quantity, receipt.outstanding_quantity, receipt.discrepancy


def told(book: Book) -> list[tuple[str, Any]]:
    """Return (event type, restockExpected) of the events so far."""
    events = [msgspec.json.decode(row.body) for row in book.outbox]
    return [(event["eventType"], event["payload"].get("restockExpected")) for event in events]


# -- the life of an expected receipt ---------------------------------------------------------------------------------


def test_what_is_expected_is_not_stock() -> None:
    """It changes no balance and tells no event; a reader of the product sees a new revision and what is to come."""
    item = ItemFactory.build(on_hand=5)
    book = book_of(item)
    receipt = expected(book, item, 40, reference_type="PURCHASE_ORDER", reference_number="PO-1", reason="Reorder")

    assert ("EXPECTED", 0, 40, 0) == counts(receipt)
    assert (item.id, "prod_1", "wh_1", "WIDGET-2", 1) == (
        receipt.inventory_item_id,
        receipt.product_id,
        receipt.warehouse_id,
        receipt.sku,
        receipt.version,
    )
    assert ([], [], {item.id: item}) == (book.ledger, book.outbox, book.items)
    product = book.products["prod_1"]
    assert (40, 1, 0) == (product.total_expected, product.revision, product.sequence)


def test_the_item_may_be_named_by_sku_and_warehouse() -> None:
    """A purchase order knows SKUs; where there is no item of it in that warehouse, it says so."""
    item = ItemFactory.build()
    book = book_of(item)
    named = Expect(sku=item.sku, warehouse_id="wh_1", quantity=1, expected_at=TOMORROW)
    assert item.id == done(book, named).inventory_item_id
    with pytest.raises(NotFound, match="SKU WIDGET-2 in warehouse wh_2"):
        decide(book, Expect(sku=item.sku, warehouse_id="wh_2", quantity=1, expected_at=TOMORROW), Cause("clerk"))


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"sku": "A"},
        {"warehouse_id": "wh_1"},
        {"inventory_item_id": "inv_1", "sku": "A"},
        {"inventory_item_id": "inv_1", "warehouse_id": "wh_1"},
    ],
)
def test_an_item_is_named_in_one_way(names: dict[str, str]) -> None:
    """Neither half a name nor two names."""
    with pytest.raises(ValueError, match="inventoryItemId, or by sku and warehouseId"):
        Expect(quantity=1, expected_at=TOMORROW, **names)


def test_what_comes_in_parts_is_received_in_parts() -> None:
    """Each part is a RECEIPT of the order's reference that names the expected receipt; the last one ends it."""
    item = ItemFactory.build(on_hand=5)
    book = book_of(item)
    receipt = expected(book, item, 40, reference_type="PURCHASE_ORDER", reference_number="PO-1", reason="Reorder")
    first = received(book, receipt, 30)
    last = received(book, receipt, 10, reason="The rest", occurred_at=NOW - DAY)

    assert [("PARTIALLY_RECEIVED", 30, 10, 0), ("RECEIVED", 40, 0, 0)] == [counts(first), counts(last)]
    assert [
        ("RECEIPT", 30, "PURCHASE_ORDER", "PO-1", "Reorder", receipt.id, NOW),
        ("RECEIPT", 10, "PURCHASE_ORDER", "PO-1", "The rest", receipt.id, NOW - DAY),
    ] == [
        (
            *(row.type, row.on_hand_change, row.reference_type, row.reference_number),
            *(row.reason, row.expected_receipt_id, row.occurred_at),
        )
        for row in book.ledger
    ]
    product = book.products["prod_1"]
    assert (45, 0, 3) == (product.total_on_hand, product.total_expected, product.revision)


def test_without_a_reference_the_ledger_names_the_expected_receipt() -> None:
    """Whoever reads the event or the ledger finds the way back."""
    item = ItemFactory.build()
    book = book_of(item)
    receipt = expected(book, item)
    received(book, receipt, 1)

    (row,) = book.ledger
    assert ("EXPECTED_RECEIPT", receipt.id) == (row.reference_type, row.reference_number)


@pytest.mark.parametrize(("quantity", "close", "discrepancy"), [(55, False, 15), (25, True, -15), (40, True, 0)])
def test_more_or_less_than_expected_stays_on_record(quantity: int, close: bool, discrepancy: int) -> None:
    """The shelf is right: what came is stock, and the difference is the receipt's discrepancy."""
    item = ItemFactory.build()
    book = book_of(item)
    receipt = received(book, expected(book, item, 40), quantity, close=close)

    assert ("RECEIVED", quantity, 0, discrepancy) == counts(receipt)
    assert 40 == receipt.quantity
    assert (quantity, 0) == (book.items[item.id].on_hand, book.products["prod_1"].total_expected)


def test_what_is_amended_decides_what_is_still_to_come() -> None:
    """Fields left out stay, null clears, and an order reduced to what has come is complete."""
    item = ItemFactory.build()
    book = book_of(item)
    receipt = received(book, expected(book, item, 40, reference_number="PO-1", reason="Reorder"), 30)
    more = amended(book, receipt, quantity=50, expected_at=NOW + 2 * DAY, reason=None)

    assert ("PARTIALLY_RECEIVED", 30, 20, 0) == counts(more)
    assert (NOW + 2 * DAY, "PO-1", None, 3) == (more.expected_at, more.reference_number, more.reason, more.version)
    assert 20 == book.products["prod_1"].total_expected
    assert ("RECEIVED", 30, 0, 0) == counts(amended(book, more, quantity=30))
    assert 0 == book.products["prod_1"].total_expected


def test_an_amendment_that_says_nothing_new_changes_nothing() -> None:
    """No version, no revision."""
    item = ItemFactory.build()
    book = book_of(item)
    receipt = expected(book, item)
    before = book.products["prod_1"]

    assert receipt == amended(book, receipt, quantity=40, expected_at=TOMORROW) == amended(book, receipt)
    assert before is book.products["prod_1"]


def test_only_the_version_that_was_seen_is_amended() -> None:
    """If-Match with another version is refused and says which one is current; nothing changes."""
    item = ItemFactory.build()
    book = book_of(item)
    receipt = expected(book, item)
    with pytest.raises(PreconditionFailed) as refused:
        decide(book, AmendExpected(receipt_id=receipt.id, patch=ExpectedPatch(quantity=1), if_match=2), Cause("clerk"))
    assert {"currentVersion": 1} == refused.value.extra
    assert receipt is book.receipts[receipt.id]
    amend = AmendExpected(receipt_id=receipt.id, patch=ExpectedPatch(quantity=1), if_match=1)
    assert 1 == done(book, amend).quantity


def test_a_cancelled_one_brings_nothing_more() -> None:
    """What has come stays: then it is RECEIVED, short. Cancelling again answers what is."""
    item = ItemFactory.build()
    book = book_of(item)
    never, part = expected(book, item, 40), received(book, expected(book, item, 40), 30)

    gone, short = cancelled(book, never, "Supplier closed"), cancelled(book, part)

    assert [("CANCELLED", 0, 0, 0), ("RECEIVED", 30, 0, -10)] == [counts(gone), counts(short)]
    assert ("Supplier closed", 2) == (gone.reason, gone.version)
    product = book.products["prod_1"]
    assert (30, 0) == (product.total_on_hand, product.total_expected)
    assert gone is cancelled(book, gone, "Again")
    assert product is book.products["prod_1"]


def test_an_ended_one_takes_nothing_more() -> None:
    """Receiving or amending what has ended is refused with its status, and leaves everything as it was."""
    item = ItemFactory.build()
    book = book_of(item)
    for ended in (cancelled(book, expected(book, item)), received(book, expected(book, item), 40)):
        rows, product = len(book.ledger), book.products["prod_1"]
        for operation in (
            ReceiveExpected(receipt_id=ended.id, body=ReceiveBody(quantity=1)),
            AmendExpected(receipt_id=ended.id, patch=ExpectedPatch(quantity=99)),
        ):
            with pytest.raises(Conflict) as refused:
                decide(book, operation, Cause("clerk"))
            assert ended.status == refused.value.extra["status"]
        assert (rows, product, ended) == (len(book.ledger), book.products["prod_1"], book.receipts[ended.id])


def test_what_does_not_exist_is_not_found() -> None:
    """Neither an item nor an expected receipt."""
    for operation in (
        Expect(inventory_item_id="inv_NOBODY", quantity=1, expected_at=TOMORROW),
        AmendExpected(receipt_id="exp_NOBODY", patch=ExpectedPatch()),
        ReceiveExpected(receipt_id="exp_NOBODY", body=ReceiveBody(quantity=1)),
        CancelExpected(receipt_id="exp_NOBODY"),
    ):
        with pytest.raises(NotFound, match="NOBODY"):
            decide(book_of(), operation, Cause("clerk"))


def test_a_receipt_obeys_what_every_receipt_obeys() -> None:
    """Nothing is received in the future, and no balance outgrows its range; refused, nothing has changed."""
    item = ItemFactory.build(on_hand=BALANCE_MAX)
    book = book_of(item)
    receipt = expected(book, item)
    for body, error in (
        (ReceiveBody(quantity=1), Conflict),
        (ReceiveBody(quantity=1, occurred_at=TOMORROW), ValidationFailed),
    ):
        with pytest.raises(error):
            decide(book, ReceiveExpected(receipt_id=receipt.id, body=body), Cause("clerk"))
    assert ([], receipt) == (book.ledger, book.receipts[receipt.id])


def test_goods_that_were_expected_come_in_for_inactive_items_too() -> None:
    """What happens in the world is recorded; it is not for sale."""
    item = ItemFactory.build(status="INACTIVE")
    book = book_of(item)
    received(book, expected(book, item), 40)
    assert (40, 0) == (book.items[item.id].on_hand, book.items[item.id].available)


def test_instants_are_kept_in_utc() -> None:
    """Whatever offset a caller uses; one that leaves the calendar is refused."""
    item = ItemFactory.build()
    receipt = expected(book_of(item), item, expected_at=datetime.fromisoformat("2027-01-01T00:00:00+02:00"))
    assert (datetime(2026, 12, 31, 22, tzinfo=UTC), UTC) == (receipt.expected_at, receipt.expected_at.tzinfo)
    for kind in (Expect, ExpectedPatch, ReceiveBody):
        name = "occurredAt" if kind is ReceiveBody else "expectedAt"
        body = {"quantity": 1, "inventoryItemId": "inv_1", name: "0001-01-01T00:00:00+14:00"}
        fields = {key: value for key, value in body.items() if kind is Expect or key != "inventoryItemId"}
        with pytest.raises(msgspec.ValidationError, match=f"{name} must be an instant of this calendar"):
            msgspec.convert(fields, kind)


def test_an_answer_is_told_again_as_it_was() -> None:
    """Under its idempotency key an expected receipt comes back equal to the first time."""
    item = ItemFactory.build()
    book = book_of(item)
    receipt = expected(book, item)
    operations = [
        Expect(inventory_item_id=item.id, quantity=1, expected_at=TOMORROW),
        AmendExpected(receipt_id=receipt.id, patch=ExpectedPatch()),
        ReceiveExpected(receipt_id=receipt.id, body=ReceiveBody(quantity=1)),
        CancelExpected(receipt_id=receipt.id),
    ]
    outcomes = [receipt] * len(operations)
    assert outcomes == Answer.tell(Answer.store(outcomes), operations)


# -- when more is expected -------------------------------------------------------------------------------------------


def test_what_is_overdue_promises_no_date() -> None:
    """It is still expected, but only the next date that has not passed is told."""
    item = ItemFactory.build()
    book = book_of(item)
    late = expected(book, item, expected_at=NOW)
    assert (True, None) == (late.is_overdue, book.restock_expected("prod_1"))

    soon = expected(book, item, expected_at=NOW + 3 * DAY)
    expected(book, item, expected_at=NOW + 5 * DAY)

    assert (False, NOW + 3 * DAY) == (soon.is_overdue, book.restock_expected("prod_1"))
    assert TOMORROW == amended(book, late, expected_at=TOMORROW).expected_at == book.restock_expected("prod_1")


def test_only_what_will_be_for_sale_counts() -> None:
    """Neither what comes for an inactive item, nor what has ended, nor what is another product's."""
    item, closed = ItemFactory.build(), ItemFactory.build(sku="B", status="INACTIVE")
    other = ItemFactory.build(sku="C", product_id="prod_2")
    book = book_of(item, closed, other)
    expected(book, closed, expected_at=NOW + DAY)
    cancelled(book, expected(book, item, expected_at=NOW + 2 * DAY))
    received(book, expected(book, item, expected_at=NOW + 3 * DAY), 40)
    expected(book, other, expected_at=NOW + 4 * DAY)
    assert (None, NOW + 4 * DAY) == (book.restock_expected("prod_1"), book.restock_expected("prod_2"))

    decide(book, Activate(inventory_item_id=closed.id), Cause("clerk"))
    assert NOW + DAY == book.restock_expected("prod_1")


def test_readers_decide_by_the_same_rule() -> None:
    """A snapshot's supplies lead to the date the event would tell, and to the next one as time passes."""
    item = ItemFactory.build()
    supplies = [Supply(item.id, 1, NOW + days * DAY) for days in (2, 1, 3)] + [Supply("inv_other", 1, NOW + DAY / 2)]
    at = [restock_expected([item], supplies, NOW + days * DAY) for days in (0, 1, 2, 3)]
    assert [NOW + DAY, NOW + 2 * DAY, NOW + 3 * DAY, None] == at


def test_out_of_stock_tells_when_more_is_expected() -> None:
    """The earliest date of all warehouses, as of the moment the last unit went."""
    item, south = ItemFactory.build(on_hand=5), ItemFactory.build(warehouse_id="wh_2")
    book = book_of(item, south)
    expected(book, item, expected_at=NOW + 2 * DAY)
    expected(book, south, expected_at=NOW + DAY)
    decide(book, Ship(inventory_item_id=item.id, quantity=5), Cause("clerk"))
    assert [("StockLevelChanged", None), ("OutOfStock", "2026-11-24T12:00:00Z")] == told(book)


def test_an_item_taken_off_sale_takes_its_date_along() -> None:
    """Deactivating the last item for sale leaves nothing to come for sale."""
    item = ItemFactory.build(on_hand=5)
    book = book_of(item)
    expected(book, item)
    decide(book, Deactivate(inventory_item_id=item.id), Cause("clerk"))
    assert ("OutOfStock", None) == told(book)[-1]


def test_what_came_first_is_back_in_stock() -> None:
    """The events of a receipt are those of any receipt."""
    item = ItemFactory.build()
    book = book_of(item)
    received(book, expected(book, item), 40)
    decide(book, Receive(inventory_item_id=item.id, quantity=1), Cause("clerk"))
    assert ["StockLevelChanged", "BackInStock", "StockLevelChanged"] == [type for type, _ in told(book)]


def test_what_is_expected_of_an_item_goes_with_it_to_another_product() -> None:
    """The SKU moves, and what is expected of it; the product it leaves does not promise it any more (rule R21)."""
    item = ItemFactory.build(product_id="prod_2", on_hand=5)
    book = book_of(item)
    seen = Seen(NOW - DAY, "before")
    catalog = Catalog(variants={"": Variant(sku="OTHER", name="Other", named=seen, created=seen)})
    book.products["prod_2"] = ProductFactory.build(id="prod_2", total_on_hand=5, total_available=5, catalog=catalog)
    receipt = expected(book, item, 40)
    event = ProductEvent(
        event_id="event-1",
        event_type="ProductCreated",
        event_version="1.0",
        timestamp=NOW,
        payload=ProductPayload(product_id="prod_1", variants=(ProductVariant("v1", item.sku, "Widget"),)),
    )
    decide(book, ApplyProductEvent(event=event, policy=EventPolicy(warehouse_ids=("wh_1",))), Cause("clerk"))

    assert ["REMAP_OUT", "REMAP_IN"] == [row.type for row in book.ledger]
    assert (0, 40) == (book.products["prod_2"].total_expected, book.products["prod_1"].total_expected)
    assert ("OutOfStock", None) in told(book)
    assert (None, TOMORROW) == (book.restock_expected("prod_2"), book.restock_expected("prod_1"))
    assert "prod_1" == book.receipts[receipt.id].product_id
    assert 1 == book.receipts[receipt.id].version


def test_a_book_that_has_loaded_a_receipt_compares_with_it() -> None:
    """What was loaded stays readable, whatever is decided."""
    item = ItemFactory.build()
    receipt = ReceiptFactory.build(inventory_item_id=item.id)
    book = book_of(item)
    product = replace(book.products["prod_1"], total_expected=receipt.outstanding_quantity)
    book = Book(now=NOW, products={"prod_1": product}, items={item.id: item}, receipts={receipt.id: receipt})
    received(book, receipt, 1)
    assert receipt is book.loaded[receipt.id] is not book.receipts[receipt.id]
