"""The kinds of files that can be imported, and what a row of each becomes: always one of the ordinary operations.

A column is called as on the wire. What only an export tells beside (balances, say) is known, and not read.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from core.fields import Id, Instant, Level, Quantity, Text, Word, in_utc
from core.operations import Count, CreateItem, CreateWarehouse, Operation, Receive
from core.stock import Item, LeadTime
from ports.imports import SheetKind

Place = tuple[str, str]
"""(sku, warehouse id)"""

_REGEX = re.compile(r"matching regex '.*'")
_WHOLE = re.compile(r"[0-9]{1,30}")


class _Row(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    pass


class WarehouseRow(_Row, frozen=True):
    """A warehouse to open."""

    name: Text
    id: str | None = None
    priority: int = 100
    lead_time_min: int = 1
    lead_time_max: int = 3


class _Moved(_Row, frozen=True):
    inventory_item_id: Id | None = None
    sku: Word | None = None
    warehouse_id: Id | None = None
    reason: Text | None = None
    reference_type: Word | None = None
    reference_number: Word | None = None
    occurred_at: Instant | None = None

    def __post_init__(self) -> None:
        if self.inventory_item_id is None and (self.sku is None or self.warehouse_id is None):
            raise ValueError("name the item by inventoryItemId, or by sku and warehouseId")
        in_utc(self, "occurred_at")

    @property
    def place(self) -> Place | None:
        """Where its item is, if it is not named by its id."""
        return None if self.inventory_item_id else (self.sku or "", self.warehouse_id or "")

    def facts(self) -> dict[str, Any]:
        """What it says beside the item and the quantity."""
        names = ("reason", "reference_type", "reference_number", "occurred_at")
        return {name: getattr(self, name) for name in names}


class ReceiptRow(_Moved, frozen=True, kw_only=True):
    """Goods that came in."""

    quantity: Quantity


class CountRow(_Moved, frozen=True, kw_only=True):
    """A shelf that was counted."""

    counted_quantity: Level


AnyRow = WarehouseRow | CreateItem | ReceiptRow | CountRow


class Layout(Struct, frozen=True):
    """What a file of a kind looks like.

    ``required`` are the columns without which it is none of this kind, ``told`` those that an export has beside.
    """

    row: type[Struct]
    required: frozenset[str]
    whole: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return self.row.__struct_encode_fields__


_POLICY = frozenset({"initialQuantity", "reorderThreshold", "targetStockLevel", "safetyStock"})
_TOLD = frozenset({"quantityOnHand", "quantityReserved", "quantityAvailable", "shortfall", "status", "version"})
_TOLD_TIMES = frozenset({"createdAt", "updatedAt"})
LAYOUTS: dict[SheetKind, Layout] = {
    "warehouses": Layout(
        WarehouseRow,
        frozenset({"name"}),
        frozenset({"priority", "leadTimeMin", "leadTimeMax"}),
        frozenset({"active", "version"}) | _TOLD_TIMES,
    ),
    "items": Layout(
        CreateItem,
        frozenset({"sku", "productId", "warehouseId"}),
        _POLICY,
        frozenset({"inventoryItemId"}) | _TOLD | _TOLD_TIMES,
    ),
    "receipts": Layout(ReceiptRow, frozenset({"quantity"}), frozenset({"quantity"}), frozenset({"productId"})),
    "counts": Layout(
        CountRow, frozenset({"countedQuantity"}), frozenset({"countedQuantity"}), _TOLD | {"productId", "name"}
    ),
}


def kind_of(columns: frozenset[str]) -> SheetKind | None:
    """Return the kind of a file with these columns, None where it could be none, or several."""
    fitting = [
        kind for kind, layout in LAYOUTS.items() if layout.required <= columns <= layout.told.union(layout.columns)
    ]
    return fitting[0] if len(fitting) == 1 else None


def read_cells(kind: SheetKind, cells: Mapping[str, str]) -> Any:
    """Return the row of a kind that the cells of a line say; an empty cell says nothing.

    Raises:
        ValueError: they say none; the message names the column.
    """
    layout = LAYOUTS[kind]
    values: dict[str, Any] = {}
    for name, text in cells.items():
        if text == "" or name in layout.told:
            continue
        values[name] = text
        if name in layout.whole:
            values[name] = _whole(name, text)
        elif name == "metadata":
            values[name] = _metadata(text)
    return read_values(kind, values)


def read_values(kind: SheetKind, values: Mapping[str, Any]) -> Any:
    """Return the row of a kind that these values say.

    Raises:
        ValueError: they say none; the message names the column.
    """
    layout = LAYOUTS[kind]
    wanted = {name: value for name, value in values.items() if name not in layout.told and value is not None}
    try:
        row = msgspec.convert(wanted, layout.row)
        if isinstance(row, WarehouseRow):
            operation(row, "")  # the ranges are the operation's
    except msgspec.ValidationError as error:
        message, _, where = _REGEX.sub("of the form that /schema documents", str(error)).partition(" - at `$.")
        raise ValueError(f"{where.rstrip('`')}: {message}" if where else message) from None
    return row


def operation(row: AnyRow, item_id: str) -> Operation:
    """Return what a row asks for; ``item_id`` is the item it names, if it names one.

    Raises:
        msgspec.ValidationError: a warehouse's numbers are out of range.
    """
    match row:
        case CreateItem():
            return row
        case ReceiptRow():
            return Receive(inventory_item_id=item_id, quantity=row.quantity, **row.facts())
        case CountRow():
            return Count(inventory_item_id=item_id, counted_quantity=row.counted_quantity, **row.facts())
        case WarehouseRow():
            days = {"min": row.lead_time_min, "max": row.lead_time_max}
            fields = {"name": row.name, "priority": row.priority, "leadTimeDays": days}
            return msgspec.convert(fields | ({"id": row.id} if row.id else {}), CreateWarehouse)


def subject(row: AnyRow, item_id: str) -> tuple[Any, ...]:
    """Return what must not come twice in one file.

    The same delivery to the same item, a second count of a shelf, a second item of a SKU in a warehouse.
    """
    match row:
        case CreateItem():
            return row.sku, row.warehouse_id
        case ReceiptRow():
            return item_id, row.quantity, *row.facts().values()
        case CountRow():
            return (item_id,)
        case WarehouseRow():
            return (row.id,) if row.id else ("", row.name)


def _whole(name: str, text: str) -> int:
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"{name}: {text[:40]!r} is not a whole number, written with digits alone")
    return int(text)


def _metadata(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"metadata: it is not a JSON object: {error}") from None


# -- what an export tells ----------------------------------------------------------------------------------------------


def item_values(item: Item) -> dict[str, Any]:
    """Return an item as a row of an export, from which another store can be stocked."""
    values: dict[str, Any] = msgspec.to_builtins(item)
    return {
        "inventoryItemId": values.pop("id"),
        **{name: values.pop(name) for name in ("sku", "productId", "warehouseId", "name")},
        "initialQuantity": values["quantityOnHand"],
        **values,
    }


def count_values(item: Item) -> dict[str, Any]:
    """Return an item as a line of a list to count by; what is counted is yet to be written in."""
    values: dict[str, Any] = msgspec.to_builtins(item)
    names = ("sku", "warehouseId", "name", "productId", "quantityAvailable", "quantityReserved", "quantityOnHand")
    return {
        "inventoryItemId": item.id,
        "countedQuantity": item.on_hand,
        **{name: values[name] for name in names},
    }


def warehouse_values(warehouse: Any) -> dict[str, Any]:
    """Return a warehouse as a row of an export."""
    values: dict[str, Any] = msgspec.to_builtins(warehouse)
    days = LeadTime(**values.pop("leadTimeDays"))
    ordered = {name: values.pop(name) for name in ("id", "name", "priority")}
    return {**ordered, "leadTimeMin": days.min, "leadTimeMax": days.max, **values}


Told = Callable[[Any], dict[str, Any]]
EXPORTS: dict[SheetKind, Told] = {"warehouses": warehouse_values, "items": item_values, "counts": count_values}
