"""Stock for tests. What a test does not name is dull: consistent balances, one warehouse, one product, one instant."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from polyfactory import PostGenerated, Use
from polyfactory.factories.msgspec_factory import MsgspecFactory

from core.ids import new_id
from core.rules.book import Book
from core.stock import (
    Catalog,
    ExpectedReceipt,
    Item,
    LeadTime,
    Product,
    Reservation,
    ReservationLine,
    StockTransaction,
    Warehouse,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def _available(_: str, balances: dict[str, Any]) -> int:
    free = balances["on_hand"] - balances["reserved"] - balances["safety_stock"]
    return max(free, 0) if balances["status"] == "ACTIVE" else 0


def _shortfall(_: str, balances: dict[str, Any]) -> int:
    return max(int(balances["reserved"] - balances["on_hand"]), 0)


class WarehouseFactory(MsgspecFactory[Warehouse]):
    """An open warehouse, ``wh_1``."""

    id = "wh_1"
    name = "North Seattle"
    priority = 100
    lead_time_days = LeadTime(1, 3)
    active = True
    version = 1
    created_at = NOW
    updated_at = NOW


class ProductFactory(MsgspecFactory[Product]):
    """A product without stock, ``prod_1``; ``book_of`` adds up the totals."""

    id = "prod_1"
    total_on_hand = 0
    total_reserved = 0
    total_available = 0
    total_expected = 0
    low_stock_threshold = 10
    status = "ACTIVE"
    sequence = 0
    revision = 0
    catalog = Catalog()
    updated_at = NOW


class ItemFactory(MsgspecFactory[Item]):
    """An active item of ``prod_1`` in ``wh_1``; what is available and short follows from the balances."""

    id = Use(new_id, "inv")
    sku = "WIDGET-2"
    product_id = "prod_1"
    warehouse_id = "wh_1"
    name = "Widget"
    on_hand = 0
    reserved = 0
    available = PostGenerated(_available)
    safety_stock = 0
    shortfall = PostGenerated(_shortfall)
    reorder_threshold = 10
    target_stock_level = 50
    status = "ACTIVE"
    metadata = Use(dict[str, Any])
    version = 1
    created_at = NOW
    updated_at = NOW


class TransactionFactory(MsgspecFactory[StockTransaction]):
    """A ledger row of arbitrary values, which do not belong together."""

    __random_seed__ = 1
    occurred_at = NOW
    recorded_at = NOW


class ReservationFactory(MsgspecFactory[Reservation]):
    """A hold of nothing for 15 minutes, ``res_1``."""

    id = "res_1"
    status = "HELD"
    reference_type = "ORDER"
    reference_number = "SO-9"
    lines = ()
    expires_at = NOW + timedelta(minutes=15)
    confirmed_at = None
    created_at = NOW
    updated_at = NOW


class ReceiptFactory(MsgspecFactory[ExpectedReceipt]):
    """Forty units that are to come tomorrow, ``exp_1``."""

    id = "exp_1"
    inventory_item_id = "inv_1"
    product_id = "prod_1"
    warehouse_id = "wh_1"
    sku = "WIDGET-2"
    quantity = 40
    received_quantity = 0
    outstanding_quantity = 40
    discrepancy = 0
    expected_at = NOW + timedelta(days=1)
    is_overdue = False
    status = "EXPECTED"
    reference_type = "PURCHASE_ORDER"
    reference_number = "PO-12345"
    reason = None
    version = 1
    created_at = NOW
    updated_at = NOW


def line_of(item: Item, quantity: int, *, fulfilled: int = 0, released: int = 0) -> ReservationLine:
    """Return a reservation's line on ``item``."""
    return ReservationLine(
        inventory_item_id=item.id,
        product_id=item.product_id,
        warehouse_id=item.warehouse_id,
        sku=item.sku,
        quantity=quantity,
        fulfilled_quantity=fulfilled,
        released_quantity=released,
    )


def book_of(*items: Item, warehouses: Iterable[Warehouse] = (), reservations: Iterable[Reservation] = ()) -> Book:
    """Return a book that has loaded these, the items' products with true totals, and warehouses ``wh_1``, ``wh_2``."""
    by_product: dict[str, list[Item]] = {"prod_1": []}
    for item in items:
        by_product.setdefault(item.product_id, []).append(item)
    products = [
        ProductFactory.build(
            id=id,
            total_on_hand=sum(item.on_hand for item in group),
            total_reserved=sum(item.reserved for item in group),
            total_available=sum(item.available for item in group),
        )
        for id, group in by_product.items()
    ]
    houses = [WarehouseFactory.build(), WarehouseFactory.build(id="wh_2", name="South Portland"), *warehouses]
    return Book(
        now=NOW,
        products={product.id: product for product in products},
        items={item.id: item for item in items},
        reservations={reservation.id: reservation for reservation in reservations},
        warehouses={warehouse.id: warehouse for warehouse in houses},
    )
