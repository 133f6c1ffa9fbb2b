"""The rules of stock operations on one item: what each does to its balances, and when it is refused (rule R9).

Goods that move in the world are recorded for inactive items too; only a reservation asks whether an item is for sale.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from core.errors import Conflict, InsufficientStock, SkuConflict, ValidationFailed, VersionConflict
from core.fields import BALANCE_MAX
from core.ids import new_id
from core.operations import (
    Activate,
    Adjust,
    Change,
    Count,
    Deactivate,
    Receive,
    Return,
    SetPolicy,
    Ship,
    StockChange,
    Transfer,
)
from core.rules.book import Book, Cause, Posting
from core.stock import Item


def change(book: Book, operation: Change, cause: Cause) -> StockChange:
    """Carry out a stock operation.

    Raises:
        NotFound, VersionConflict, ValidationFailed, InsufficientStock, SkuConflict, Conflict: refused; nothing changed.
    """
    item = book.item(operation.inventory_item_id)
    if operation.expected_version is not None and operation.expected_version != item.version:
        raise VersionConflict(
            f"The item is at version {item.version}, not {operation.expected_version}: read it again and decide anew.",
            currentVersion=item.version,
        )
    check_occurred(book, operation.occurred_at)
    posting = Posting(book, cause, operation)
    CHANGES[type(operation)](posting, item, operation)
    posting.close()
    return StockChange(tuple(posting.rows), book.items[item.id])


def _receive(posting: Posting, item: Item, operation: Receive) -> None:
    check_room(item, operation.quantity)
    posting.post(item, "RECEIPT", on_hand=operation.quantity)


def _return(posting: Posting, item: Item, operation: Return) -> None:
    check_room(item, operation.quantity)
    posting.post(item, "RETURN", on_hand=operation.quantity)


def _ship(posting: Posting, item: Item, operation: Ship) -> None:
    _check_unreserved(item, operation.quantity)
    posting.post(item, "SHIPMENT", on_hand=-operation.quantity)


def _adjust(posting: Posting, item: Item, operation: Adjust) -> None:
    if operation.delta < 0:
        _check_unreserved(item, -operation.delta)
    check_room(item, operation.delta)
    posting.post(item, "ADJUSTMENT", on_hand=operation.delta)


def _count(posting: Posting, item: Item, operation: Count) -> None:
    posting.post(item, "COUNT", on_hand=operation.counted_quantity - item.on_hand)


def _transfer(posting: Posting, item: Item, operation: Transfer) -> None:
    book = posting.book
    if operation.to_warehouse_id == item.warehouse_id:
        raise ValidationFailed("toWarehouseId is the warehouse the item is in; name another.")
    warehouse = book.open_warehouse(operation.to_warehouse_id)
    _check_unreserved(item, operation.quantity)
    target = book.at(item.sku, warehouse.id)
    if target is not None and target.product_id != item.product_id:
        raise SkuConflict(
            f"SKU {item.sku} belongs to another product in warehouse {warehouse.id}; move it there first."
        )
    if target is None:
        target = replace(
            item,
            id=new_id("inv"),
            warehouse_id=warehouse.id,
            on_hand=0,
            reserved=0,
            available=0,
            shortfall=0,
            safety_stock=0,
            version=0,
            created_at=book.now,
        )
    check_room(target, operation.quantity)
    posting.post(item, "TRANSFER_OUT", on_hand=-operation.quantity)
    posting.post(target, "TRANSFER_IN", on_hand=operation.quantity)


def _set_policy(posting: Posting, item: Item, operation: SetPolicy) -> None:
    policy = {
        name: value
        for name in ("safety_stock", "reorder_threshold", "target_stock_level")
        if (value := getattr(operation, name)) is not UNSET and value != getattr(item, name)
    }
    if policy:
        posting.post(item, "POLICY", **policy)


def _activate(posting: Posting, item: Item, _: Activate) -> None:
    if item.status != "ACTIVE":
        posting.post(item, "STATUS", status="ACTIVE")


def _deactivate(posting: Posting, item: Item, _: Deactivate) -> None:
    if item.status != "INACTIVE":
        posting.post(item, "STATUS", status="INACTIVE")


CHANGES: dict[type, Callable[[Posting, Item, Any], None]] = {
    Receive: _receive,
    Return: _return,
    Ship: _ship,
    Adjust: _adjust,
    Count: _count,
    Transfer: _transfer,
    SetPolicy: _set_policy,
    Activate: _activate,
    Deactivate: _deactivate,
}


def _check_unreserved(item: Item, quantity: int) -> None:
    """Refuse to take units that are promised; safety stock may go (rule R9)."""
    if item.on_hand - quantity < item.reserved:
        raise InsufficientStock(
            f"Item {item.id} has {item.on_hand} on hand, {item.reserved} of them reserved: {quantity} cannot leave. "
            "If the shelf really holds less than that, record it with a COUNT.",
            inventoryItemId=item.id,
            requested=quantity,
            available=max(item.on_hand - item.reserved, 0),
        )


def check_occurred(book: Book, at: datetime | None) -> None:
    """Refuse what is said to happen later than now; a second is for clocks that differ.

    Raises:
        ValidationFailed: it lies in the future.
    """
    if at is not None and at > book.now + timedelta(seconds=1):
        raise ValidationFailed("occurredAt lies in the future; say when it happened, or leave it out.")


def check_room(item: Item, quantity: int) -> None:
    """Refuse units that no balance can hold.

    Raises:
        Conflict: the item would hold more than ``BALANCE_MAX``.
    """
    if item.on_hand + quantity > BALANCE_MAX:
        raise Conflict(f"Item {item.id} would hold more than {BALANCE_MAX} units; check the quantity.")
