"""Events on the wire: the specification's example field for field, and what we add to it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from factories import ItemFactory, book_of

from core import events
from core.events import OutboxRow
from core.ids import is_id
from core.operations import Count, Operation, Receive, Release, Reserve, ReserveLine, SetPolicy, Ship
from core.rules.book import Book, Cause
from core.rules.decisions import decide
from core.rules.reservations import expire_due
from core.stock import Reservation

AT = datetime(2023, 5, 20, 10, 15, tzinfo=UTC)
PLACE = {
    "id": "inv_01GXYZ234DEF",
    "sku": "WIDGET-2",
    "product_id": "prod_01FXYZ789ABC",
    "warehouse_id": "wh_01HXYZ789GHI",
}
ITEM = ItemFactory.build(**PLACE, on_hand=50)
SUBJECT = {
    "inventoryItemId": "inv_01GXYZ234DEF",
    "sku": "WIDGET-2",
    "productId": "prod_01FXYZ789ABC",
    "warehouseId": "wh_01HXYZ789GHI",
}
RECEIPT = Receive(
    inventory_item_id=ITEM.id,
    quantity=25,
    reason="Scheduled stock replenishment",
    reference_number="PO-12345",
    reference_type="PURCHASE_ORDER",
)


def specified(event_id: str, transaction_id: str) -> dict[str, Any]:
    """Return the specification's StockLevelChanged example with the two ids that are drawn anew each time."""
    return {
        "eventId": event_id,
        "eventType": "StockLevelChanged",
        "eventVersion": "1.0.0",
        "aggregateId": "inv_01GXYZ234DEF",
        "aggregateType": "InventoryItem",
        "timestamp": "2023-05-20T10:15:00Z",
        "metadata": {"correlationId": transaction_id, "source": "inventory-service"},
        "payload": {
            "inventoryItemId": "inv_01GXYZ234DEF",
            "sku": "WIDGET-2",
            "productId": "prod_01FXYZ789ABC",
            "warehouseId": "wh_01HXYZ789GHI",
            "previousQuantity": 50,
            "newQuantity": 75,
            "changeAmount": 25,
            "changeReason": "Scheduled stock replenishment",
            "transactionId": transaction_id,
            "transactionType": "RECEIPT",
            "referenceNumber": "PO-12345",
            "referenceType": "PURCHASE_ORDER",
        },
    }


def rows_of(book: Book, *operations: Operation, correlation_id: str | None = None) -> list[OutboxRow]:
    """Decide ``operations`` at the example's instant and return their outbox rows."""
    book.now = AT
    for operation in operations:
        decide(book, operation, Cause("someone", correlation_id))
    return book.outbox


def emitted(book: Book, *operations: Operation, correlation_id: str | None = None) -> list[dict[str, Any]]:
    """Decide ``operations`` and return their events as a subscriber reads them."""
    return [msgspec.json.decode(row.body) for row in rows_of(book, *operations, correlation_id=correlation_id)]


def test_a_receipt_is_told_as_in_the_specification() -> None:
    """The receipt behind the specification's example is published field for field as there, plus our additions."""
    book = book_of(ITEM)
    (event,) = emitted(book, RECEIPT)
    cause = book.ledger[0].id
    expected = specified(event["eventId"], cause)
    expected["metadata"] |= {"sequence": 1, "causationId": cause}
    expected["payload"] |= {"totalQuantityAvailable": 75, "isLowStock": False, "isOutOfStock": False}

    assert expected == event
    assert is_id(cause)
    assert cause.startswith("tx_")
    assert 7 == UUID(event["eventId"]).version


def test_fields_stand_in_the_order_of_the_specification() -> None:
    """Whoever reads the bytes by eye finds the specification's fields first and in its order."""
    book = book_of(ITEM)
    (event,) = emitted(book, RECEIPT)
    expected = specified("", "")

    assert list(expected) == list(event)
    assert list(expected["metadata"]) == list(event["metadata"])[:2]
    assert list(expected["payload"]) == list(event["payload"])[:12]


def test_a_callers_correlation_id_is_carried() -> None:
    """Correlation is the caller's where it sent one; causation stays the ledger row (rule R16)."""
    book = book_of(ITEM)
    (event,) = emitted(book, RECEIPT, correlation_id="order-77")

    assert "order-77" == event["metadata"]["correlationId"]
    assert book.ledger[0].id == event["metadata"]["causationId"]


def test_what_nobody_gave_is_null_and_the_reason_is_said_anyway() -> None:
    """Without references their keys are there and null; without a reason the change itself is named."""
    (event,) = emitted(book_of(ITEM), Receive(inventory_item_id=ITEM.id, quantity=1))
    payload = event["payload"]

    assert (None, None) == (payload["referenceNumber"], payload["referenceType"])
    assert "Stock received" == payload["changeReason"]


def test_low_stock_says_how_low_and_what_to_order() -> None:
    """LowStockThresholdReached carries quantity, threshold, target and the product's totals."""
    book = book_of(ITEM)
    _, event = emitted(book, Ship(inventory_item_id=ITEM.id, quantity=43))

    assert "LowStockThresholdReached" == event["eventType"]
    assert event["payload"] == SUBJECT | {
        "quantityAvailable": 7,
        "reorderThreshold": 10,
        "targetStockLevel": 50,
        "transactionId": book.ledger[0].id,
        "totalQuantityAvailable": 7,
        "isLowStock": True,
        "isOutOfStock": False,
    }


def test_out_of_stock_says_what_is_still_promised() -> None:
    """OutOfStock carries the totals, reserved units included, and when more is expected (not known yet: null)."""
    book = book_of(ITEM)
    _, event = emitted(book, Reserve(lines=(ReserveLine(inventory_item_id=ITEM.id, quantity=50),)))

    assert "OutOfStock" == event["eventType"]
    assert event["payload"] == SUBJECT | {
        "transactionId": book.ledger[0].id,
        "totalQuantityAvailable": 0,
        "totalQuantityReserved": 50,
        "restockExpected": None,
    }


def test_back_in_stock_says_how_much_is_there() -> None:
    """BackInStock carries the item's quantity and the product's total."""
    book = book_of(ItemFactory.build(**PLACE, on_hand=0))
    *_, event = emitted(book, RECEIPT)

    assert "BackInStock" == event["eventType"]
    assert event["payload"] == SUBJECT | {
        "quantityAvailable": 25,
        "transactionId": book.ledger[0].id,
        "totalQuantityAvailable": 25,
    }


def test_an_expiry_says_whose_hold_it_was() -> None:
    """ReservationExpired names the hold, its reference and the units of this item that are free again."""
    book = book_of(ITEM)
    line = ReserveLine(inventory_item_id=ITEM.id, quantity=4)
    asked = Reserve(lines=(line,), reference_type="ORDER", reference_number="SO-9", expires_in_seconds=60)
    held = decide(book, asked, Cause("someone"))
    assert isinstance(held, Reservation)
    book.now += timedelta(seconds=60)
    expire_due(book)
    event = msgspec.json.decode(book.outbox[-1].body)

    assert "ReservationExpired" == event["eventType"]
    assert event["payload"] == SUBJECT | {
        "reservationId": held.id,
        "quantity": 4,
        "referenceType": "ORDER",
        "referenceNumber": "SO-9",
        "transactionId": book.ledger[-1].id,
        "totalQuantityAvailable": 50,
    }


def test_totals_count_every_sku_and_warehouse() -> None:
    """The totals in a payload are the product's, not the item's."""
    elsewhere = ItemFactory.build(product_id=ITEM.product_id, sku="WIDGET-3", on_hand=4)
    (event,) = emitted(book_of(ITEM, elsewhere), RECEIPT)

    assert (75, 79) == (event["payload"]["newQuantity"], event["payload"]["totalQuantityAvailable"])


def test_sequence_counts_a_products_events() -> None:
    """Each event of a product is numbered one higher than the one before, over operations (rule R13)."""
    told = emitted(
        book_of(ITEM),
        Ship(inventory_item_id=ITEM.id, quantity=50),
        RECEIPT,
        SetPolicy(inventory_item_id=ITEM.id, reorder_threshold=30),
    )

    assert [
        ("StockLevelChanged", 1),
        ("OutOfStock", 2),
        ("StockLevelChanged", 3),
        ("BackInStock", 4),
        ("LowStockThresholdReached", 5),
    ] == [(event["eventType"], event["metadata"]["sequence"]) for event in told]


def test_an_outbox_row_agrees_with_its_body() -> None:
    """What the relay orders and routes by is what the body says."""
    rows = rows_of(book_of(ITEM), Ship(inventory_item_id=ITEM.id, quantity=50), RECEIPT)

    for row in rows:
        event = msgspec.json.decode(row.body)
        assert (event["eventId"], event["eventType"], event["aggregateId"]) == (
            row.event_id,
            row.event_type,
            row.aggregate_id,
        )
        assert (event["metadata"]["sequence"], event["metadata"]["correlationId"], event["payload"]["productId"]) == (
            row.sequence,
            row.correlation_id,
            row.product_id,
        )
        assert (AT, 0) == (row.created_at, row.position)
    assert len(rows) == len({row.event_id for row in rows}) == 4


def test_every_payload_can_be_read_back() -> None:
    """The Struct named by ``eventType`` decodes the payload we publish, so a subscriber may share our types."""
    book = book_of(ITEM)
    held = decide(book, Reserve(lines=(ReserveLine(inventory_item_id=ITEM.id, quantity=50),)), Cause("someone"))
    assert isinstance(held, Reservation)
    told = emitted(book, Release(reservation_id=held.id), Count(inventory_item_id=ITEM.id, counted_quantity=3))

    assert {"StockLevelChanged", "LowStockThresholdReached", "OutOfStock", "BackInStock"} == {
        event["eventType"] for event in told
    }
    for event in told:
        read = msgspec.convert(event["payload"], getattr(events, event["eventType"]), strict=True)
        assert event["payload"] == msgspec.to_builtins(read)


@pytest.mark.parametrize(
    ("event_type", "key"),
    [
        ("StockLevelChanged", "inventory.stocklevelchanged.inventoryitem"),
        ("LowStockThresholdReached", "inventory.lowstockthresholdreached.inventoryitem"),
        ("OutOfStock", "inventory.outofstock.inventoryitem"),
        ("BackInStock", "inventory.backinstock.inventoryitem"),
        ("ReservationExpired", "inventory.reservationexpired.inventoryitem"),
    ],
)
def test_routing_keys_are_the_specifications(event_type: str, key: str) -> None:
    """The routing key is ``inventory.<type in lower case>.inventoryitem``."""
    assert key == events.routing_key(event_type)


def test_names_on_the_broker_are_the_specifications() -> None:
    """Exchanges and queues bear the names that other services are configured with."""
    assert ("inventory.events", "product.events") == (events.EVENTS_EXCHANGE, events.PRODUCT_EXCHANGE)
    assert ("inventory.product-events", "inventory.dead-letters") == (events.PRODUCT_QUEUE, events.DEAD_LETTERS)


def test_only_running_out_and_coming_back_are_critical() -> None:
    """OutOfStock and BackInStock put their product first in line, nothing else does (rule R17)."""
    low, out = (Ship(inventory_item_id=ITEM.id, quantity=quantity) for quantity in (45, 5))
    rows = rows_of(book_of(ITEM), low, out, RECEIPT)
    expected = {
        "StockLevelChanged": False,
        "LowStockThresholdReached": False,
        "OutOfStock": True,
        "BackInStock": True,
    }

    assert expected == {row.event_type: row.critical for row in rows}
