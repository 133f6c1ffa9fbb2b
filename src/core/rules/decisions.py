"""The rules: pure functions that decide one operation after another on a book of locked stock.

``decide`` either changes the book (balances, ledger rows, events) or raises and leaves it as it was. Nothing here reads
a clock, a database or a setting. Stock operations are ruled by ``movements.py``, reservations by ``reservations.py``,
expected receipts by ``receipts.py``, product events by ``product_events.py``, corrections by ``corrections.py``; items,
products and warehouses here.
"""

from collections.abc import Callable
from typing import Any

from msgspec.json import encode
from msgspec.structs import replace

from core.errors import AlreadyExists, NotFound, SkuConflict
from core.fields import given
from core.ids import new_id
from core.operations import (
    ApplyProductEvent,
    CreateItem,
    CreateWarehouse,
    Expect,
    Operation,
    Rectify,
    Reserve,
    Result,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
)
from core.rules.book import Book, Cause, Posting, check_match
from core.rules.corrections import rectify
from core.rules.movements import CHANGES, change
from core.rules.product_events import apply_product_event
from core.rules.receipts import RECEIPT_STEPS, expect
from core.rules.reservations import STEPS, reserve
from core.stock import Item, Product, TransactionType, Warehouse


def decide(book: Book, operation: Operation, cause: Cause) -> Result:
    """Apply ``operation`` to ``book`` and return its result.

    Raises:
        InventoryError: refused; the book is unchanged.
    """
    return _RULES[type(operation)](book, operation, cause)


def _create_item(book: Book, operation: CreateItem, cause: Cause) -> Item:
    book.open_warehouse(operation.warehouse_id)
    for other in book.of(sku=operation.sku, product_id=None):
        if other.product_id != operation.product_id:
            raise SkuConflict(f"SKU {operation.sku} belongs to product {other.product_id}; use another SKU.")
    if there := book.at(operation.sku, operation.warehouse_id):
        raise AlreadyExists(
            f"There is an item for SKU {operation.sku} in warehouse {operation.warehouse_id} already.",
            inventoryItemId=there.id,
        )
    item = book.new_item(
        sku=operation.sku,
        product_id=operation.product_id,
        warehouse_id=operation.warehouse_id,
        name=operation.name or operation.sku,
        safety_stock=operation.safety_stock,
        reorder_threshold=operation.reorder_threshold,
        target_stock_level=operation.target_stock_level,
        metadata=operation.metadata,
    )
    posting = Posting(book, cause, None)
    if operation.initial_quantity:
        posting.reason = "Initial stock"
        item = posting.post(item, "RECEIPT", on_hand=operation.initial_quantity)
    else:
        posting.reason = "Item created"
        item = posting.post(item, "STATUS")
    posting.close()
    return item


def _update_item(book: Book, operation: UpdateItem, cause: Cause) -> Item:
    item = book.item(operation.inventory_item_id)
    check_match(operation.if_match, item.version)
    fields = given(operation.patch)
    # Compared as JSON: to Python True, 1 and 1.0 are equal.
    fields = {name: value for name, value in fields.items() if encode(value) != encode(getattr(item, name))}
    if not fields:
        return item
    posting = Posting(book, cause, None)
    type: TransactionType = "DETAILS" if fields.keys() <= {"name", "metadata"} else "POLICY"
    item = posting.post(item, type, **fields)
    posting.close()
    return item


def _update_product(book: Book, operation: UpdateProduct, _: Cause) -> Product:
    if (product := book.products.get(operation.product_id)) is None:
        raise NotFound(f"Nothing is known of product {operation.product_id}.", productId=operation.product_id)
    if product.low_stock_threshold == operation.patch.low_stock_threshold:
        return product
    product = replace(
        product,
        low_stock_threshold=operation.patch.low_stock_threshold,
        revision=product.revision + 1,
        updated_at=book.now,
    )
    book.products[product.id] = product
    return product


def _create_warehouse(book: Book, operation: CreateWarehouse, _: Cause) -> Warehouse:
    if operation.id in book.warehouses:
        raise AlreadyExists(f"There is a warehouse {operation.id} already.", warehouseId=operation.id)
    warehouse = Warehouse(
        id=operation.id or new_id("wh"),
        name=operation.name,
        priority=operation.priority,
        lead_time_days=operation.lead_time_days,
        active=True,
        version=1,
        created_at=book.now,
        updated_at=book.now,
    )
    book.warehouses[warehouse.id] = warehouse
    return warehouse


def _update_warehouse(book: Book, operation: UpdateWarehouse, _: Cause) -> Warehouse:
    if (warehouse := book.warehouses.get(operation.warehouse_id)) is None:
        raise NotFound(f"There is no warehouse {operation.warehouse_id}.", warehouseId=operation.warehouse_id)
    check_match(operation.if_match, warehouse.version)
    fields = given(operation.patch)
    if all(getattr(warehouse, name) == value for name, value in fields.items()):
        return warehouse
    warehouse = replace(warehouse, version=warehouse.version + 1, updated_at=book.now, **fields)
    book.warehouses[warehouse.id] = warehouse
    return warehouse


_RULES: dict[type, Callable[[Book, Any, Cause], Result]] = {
    **dict.fromkeys(CHANGES, change),
    **STEPS,
    **RECEIPT_STEPS,
    Reserve: reserve,
    Expect: expect,
    ApplyProductEvent: apply_product_event,
    Rectify: rectify,
    CreateItem: _create_item,
    UpdateItem: _update_item,
    UpdateProduct: _update_product,
    CreateWarehouse: _create_warehouse,
    UpdateWarehouse: _update_warehouse,
}
