"""What a shopper is told: whether so many can be had, in the words of the specification, and why (rule R26)."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from core.reading.projection import Step
from core.stock import Item, Warehouse, lead_time_text

DisplayStatus = Literal["IN_STOCK", "LOW_STOCK", "LIMITED_AVAILABILITY", "OUT_OF_STOCK"]


class Counted(Struct, frozen=True, rename="camel", kw_only=True):
    """An item that was counted, its numbers, and how many of the requested units would ship from there."""

    inventory_item_id: str
    sku: str
    warehouse_id: str
    warehouse_name: str
    quantity_on_hand: int
    quantity_reserved: int
    safety_stock: int
    quantity_available: int
    status: str
    ships: int


class Explanation(Struct, frozen=True, rename="camel", kw_only=True):
    """Why an availability is what it is: the rule that decided, its numbers, and how fresh they are.

    The stock was read from the store at ``read_at``, ``age_seconds`` ago, and found in this ``source``: this process,
    the shared cache or the store itself. ``projection`` says what can be promised from when on, where that was asked.
    """

    rule: str
    revision: int
    sequence: int
    read_at: datetime
    age_seconds: float
    source: Literal["process", "cache", "store"]
    items: tuple[Counted, ...]
    projection: tuple[Step, ...] | UnsetType = UNSET


class Availability(Struct, frozen=True, rename="camel", kw_only=True):
    """The specification's answer to "can I have so many of this", and what to display."""

    is_available: bool
    available_quantity: int
    requested_quantity: int
    lead_time_estimate: str | None
    restock_expected: datetime | None
    display_status: DisplayStatus
    message: str
    low_stock_threshold: int
    explanation: Explanation | UnsetType = UNSET


class ProductAvailability(Availability, frozen=True, rename="camel", kw_only=True):
    """The same of a product, or of one of its SKUs, and what can be promised over time.

    ``earliest_available`` is from when on the requested quantity can be had, as far as anything is known to come;
    ``available_by`` is how many can be had by the instant that was asked about.
    """

    product_id: str
    sku: str | None
    earliest_available: datetime | None
    available_by: int | UnsetType = UNSET


class Decision(Struct, frozen=True):
    """What to display, and the comparison that decided it."""

    status: DisplayStatus
    message: str
    rule: str


def decide(available: int, requested: int, threshold: int) -> Decision:
    """Decide what to display of ``available`` units when ``requested`` are asked for, in the order of rule R26."""
    if available == 0:
        return Decision("OUT_OF_STOCK", "Out of Stock", "available = 0")
    if available < requested:
        rule = f"available {available} < requested {requested}"
        return Decision("LIMITED_AVAILABILITY", f"Only {available} available", rule)
    if available <= threshold:
        rule = f"available {available} <= lowStockThreshold {threshold}"
        return Decision("LOW_STOCK", f"Only {available} left in stock - order soon", rule)
    return Decision("IN_STOCK", "In Stock", f"available {available} > lowStockThreshold {threshold}")


def lead_time(decision: Decision, shipping: Sequence[Warehouse], restock: datetime | None) -> str | None:
    """Say how long it takes: from the warehouses that would ship, or until there is something again."""
    if decision.status == "OUT_OF_STOCK":
        return f"Expected back in stock {restock:%Y-%m-%d}" if restock else None
    return lead_time_text(shipping)


def shipping(items: Iterable[Item], warehouses: Iterable[Warehouse], quantity: int) -> dict[str, int]:
    """Return how many of ``quantity`` units each warehouse would ship, the first in priority as far as it goes.

    Empty when there are not so many.
    """
    left = {item.warehouse_id: 0 for item in items}
    for item in items:
        left[item.warehouse_id] += item.available
    if sum(left.values()) < quantity:
        return {}
    ships = {}
    for warehouse in sorted(warehouses, key=lambda warehouse: (warehouse.priority, warehouse.id)):
        if quantity > 0 and (here := min(left.get(warehouse.id, 0), quantity)):
            ships[warehouse.id] = here
            quantity -= here
    return ships
