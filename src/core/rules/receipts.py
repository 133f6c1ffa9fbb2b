"""The rules of expected receipts: put on record, amended, received in parts, cancelled.

What is expected is not stock: it changes no balance and tells no event, only when more is expected. What comes is a
RECEIPT in the ledger like any other, which names the expected receipt. It may be more or less than was expected: the
shelf is right, and the discrepancy stays on record.
"""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from core.errors import Conflict, NotFound
from core.fields import given
from core.ids import new_id
from core.operations import AmendExpected, CancelExpected, Expect, ReceiptStep, ReceiveExpected
from core.rules.book import Book, Cause, Posting, check_match
from core.rules.movements import check_occurred, check_room
from core.stock import ExpectedReceipt, Item


def expect(book: Book, operation: Expect, _: Cause) -> ExpectedReceipt:
    """Put an expected receipt on record.

    Raises:
        NotFound: there is no such item.
    """
    item = _item(book, operation)
    receipt = ExpectedReceipt(
        id=new_id("exp"),
        inventory_item_id=item.id,
        product_id=item.product_id,
        warehouse_id=item.warehouse_id,
        sku=item.sku,
        quantity=operation.quantity,
        received_quantity=0,
        outstanding_quantity=0,
        expected_at=operation.expected_at,
        status="EXPECTED",
        reference_type=operation.reference_type,
        reference_number=operation.reference_number,
        reason=operation.reason,
        version=0,
        created_at=book.now,
        updated_at=book.now,
    )
    return _put(book, receipt, receipt.changed(book.now))


def _item(book: Book, operation: Expect) -> Item:
    if operation.inventory_item_id is not None:
        return book.item(operation.inventory_item_id)
    sku, warehouse_id = operation.sku or "", operation.warehouse_id or ""
    if (item := book.at(sku, warehouse_id)) is None:
        raise NotFound(
            f"There is no inventory item of SKU {sku} in warehouse {warehouse_id}; create it first.",
            sku=sku,
            warehouseId=warehouse_id,
        )
    return item


def _named(book: Book, operation: ReceiptStep) -> ExpectedReceipt:
    if (receipt := book.receipts.get(operation.receipt_id)) is None:
        raise NotFound(f"There is no expected receipt {operation.receipt_id}.", expectedReceiptId=operation.receipt_id)
    return receipt


def _open(book: Book, operation: ReceiptStep) -> ExpectedReceipt:
    receipt = _named(book, operation)
    if not receipt.is_open:
        raise Conflict(
            f"Expected receipt {receipt.id} is {receipt.status}; nothing more is expected of it. "
            "Goods that came after all are a RECEIVE stock operation.",
            expectedReceiptId=receipt.id,
            status=receipt.status,
        )
    return receipt


def _put(book: Book, before: ExpectedReceipt, receipt: ExpectedReceipt) -> ExpectedReceipt:
    """Make ``receipt`` the current state of its id; a reader of the product sees the change (rule R13)."""
    record(book, before, receipt)
    product = book.products[receipt.product_id]
    book.products[product.id] = replace(product, revision=product.revision + 1, updated_at=book.now)
    return receipt


def record(book: Book, before: ExpectedReceipt, receipt: ExpectedReceipt) -> None:
    """Make ``receipt`` the current state of its id, and what its product expects the sum over its receipts again."""
    for each, sign in ((before, -1), (receipt, 1)):
        product = book.products[each.product_id]
        expected = product.total_expected + sign * each.outstanding_quantity
        book.products[product.id] = replace(product, total_expected=expected)
    book.receipts[receipt.id] = receipt


def _amend(book: Book, operation: AmendExpected, _: Cause) -> ExpectedReceipt:
    receipt = _named(book, operation)
    check_match(operation.if_match, receipt.version)
    _open(book, operation)
    fields = given(operation.patch)
    if all(getattr(receipt, name) == value for name, value in fields.items()):
        return receipt
    return _put(book, receipt, receipt.changed(book.now, **fields))


def _receive(book: Book, operation: ReceiveExpected, cause: Cause) -> ExpectedReceipt:
    receipt, body = _open(book, operation), operation.body
    item = book.item(receipt.inventory_item_id)
    check_occurred(book, body.occurred_at)
    check_room(item, body.quantity)
    posting = Posting(book, cause, body)
    posting.reason = body.reason or receipt.reason
    # The order is what people look for; without one, the ledger row names what it has.
    posting.reference_type = receipt.reference_type if receipt.reference_number else "EXPECTED_RECEIPT"
    posting.reference_number = receipt.reference_number or receipt.id
    posting.post(item, "RECEIPT", on_hand=body.quantity, expected_receipt_id=receipt.id)
    received = receipt.received_quantity + body.quantity
    after = receipt.changed(book.now, ended=body.close, received_quantity=received)
    record(book, receipt, after)
    posting.close()
    return after


def _cancel(book: Book, operation: CancelExpected, _: Cause) -> ExpectedReceipt:
    receipt = _named(book, operation)
    if not receipt.is_open:
        return receipt
    reason = operation.reason or receipt.reason
    return _put(book, receipt, receipt.changed(book.now, ended=True, reason=reason))


RECEIPT_STEPS: dict[type, Callable[[Book, Any, Cause], ExpectedReceipt]] = {
    AmendExpected: _amend,
    ReceiveExpected: _receive,
    CancelExpected: _cancel,
}
"""What may happen to an expected receipt, by operation."""
