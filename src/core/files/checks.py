"""What would become of the rows of a file: looked at before anything of it is done, against what the store has."""

import asyncio
from collections.abc import Mapping, Sequence

from msgspec import Struct

from core.catalog.products import Products
from core.errors import (
    AlreadyExists,
    Conflict,
    InventoryError,
    NotFound,
    SkuConflict,
    Unavailable,
    ValidationFailed,
)
from core.files.kinds import AnyRow, CountRow, Place, ReceiptRow, WarehouseRow, operation, subject
from core.files.sheets import Row
from core.operations import CreateItem, Operation
from ports.imports import RowError
from ports.store import Store

NOWHERE = "inv_0"
"""An item that is nowhere: the rules refuse what names it."""
_ASKED_AT_ONCE = 20


class RowVerdict(Struct, frozen=True):
    """What would become of the row that begins in ``line``: an operation, or a refusal."""

    line: int
    operation: Operation | None = None
    error: RowError | None = None


class Checker:
    """Looks at the rows of one file, in order."""

    def __init__(self, store: Store, products: Products) -> None:
        self._store = store
        self._products = products
        # What was seen, by hash: of a million rows, two that differ and seem the same are one chance in thirty million.
        self._seen: dict[int, int] = {}
        self._owners: dict[str, str] = {}
        self._refused: dict[str, InventoryError | None] = {}

    async def check(self, rows: Sequence[Row]) -> list[RowVerdict]:
        """Return a verdict on each row.

        Raises:
            Unavailable: the store or the Product Service is away.
        """
        said = [row.said for row in rows if row.said is not None]
        known = await Known.of(self._store, said)
        await self._admit({row.product_id for row in said if isinstance(row, CreateItem)})
        return [self._verdict(row, known) for row in rows]

    def _verdict(self, row: Row, known: "Known") -> RowVerdict:
        try:
            if row.said is None:
                raise ValidationFailed(row.fault)
            item_id = known.item_of(row.said)
            known.check(row.said, item_id)
            if isinstance(row.said, CreateItem):
                self._check_product(row.said)
        except InventoryError as refusal:
            return RowVerdict(row.line, error=RowError(row.line, refusal.code, refusal.detail))
        before = self._seen.setdefault(hash(subject(row.said, item_id or "")), row.line)
        if before != row.line:
            return RowVerdict(
                row.line, error=RowError(row.line, "duplicate_row", f"It says again what line {before} says.")
            )
        return RowVerdict(row.line, operation(row.said, item_id or NOWHERE))

    def _check_product(self, row: CreateItem) -> None:
        if (refusal := self._refused.get(row.product_id)) is not None:
            raise refusal
        if (owner := self._owners.setdefault(row.sku, row.product_id)) != row.product_id:
            raise SkuConflict(f"SKU {row.sku} belongs to product {owner} in an earlier line; use another SKU.")

    async def _admit(self, product_ids: set[str]) -> None:
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(product_id: str) -> None:
            async with gate:
                try:
                    await self._products.admit(product_id)
                    self._refused[product_id] = None
                except Unavailable:
                    raise
                except InventoryError as refusal:
                    self._refused[product_id] = refusal

        await asyncio.gather(*(ask(id) for id in sorted(product_ids - self._refused.keys())))


class Known(Struct):
    """What the store has of what some rows name."""

    ids: frozenset[str]
    places: Mapping[Place, str]
    owners: Mapping[str, str]
    warehouses: Mapping[str, bool]

    @classmethod
    async def of(cls, store: Store, rows: Sequence[AnyRow]) -> "Known":
        """Look it up.

        Raises:
            Unavailable: the store is away.
        """
        moved = [row for row in rows if isinstance(row, ReceiptRow | CountRow)]
        ids = {row.inventory_item_id for row in moved if row.inventory_item_id}
        skus = {row.place[0] for row in moved if row.place} | {row.sku for row in rows if isinstance(row, CreateItem)}
        items = await store.find_items(ids, skus) if ids or skus else []
        return cls(
            frozenset(item.id for item in items),
            {(item.sku, item.warehouse_id): item.id for item in items},
            {item.sku: item.product_id for item in items},
            {warehouse.id: warehouse.active for warehouse in await store.warehouses()},
        )

    def item_of(self, row: AnyRow) -> str | None:
        """Return the id of the item that a row names, None where it names none that exists."""
        if not isinstance(row, ReceiptRow | CountRow):
            return None
        id = row.inventory_item_id or self.places.get(row.place or ("", ""))
        return id if id in self.ids else None

    def check(self, row: AnyRow, item_id: str | None) -> None:
        """Return if nothing here speaks against a row.

        Raises:
            NotFound, Conflict: it names what does not exist, or makes what does.
        """
        if isinstance(row, CreateItem):
            self._check_item(row)
        elif isinstance(row, WarehouseRow):
            if row.id in self.warehouses:
                raise AlreadyExists(f"There is a warehouse {row.id} already.")
        elif item_id is None:
            named = row.inventory_item_id or f"of SKU {row.sku} in warehouse {row.warehouse_id}"
            raise NotFound(f"There is no inventory item {named}.")

    def _check_item(self, row: CreateItem) -> None:
        if (active := self.warehouses.get(row.warehouse_id)) is None:
            raise NotFound(f"There is no warehouse {row.warehouse_id}; create it first.")
        if not active:
            raise Conflict(f"Warehouse {row.warehouse_id} is inactive and takes no new stock; activate it first.")
        if (owner := self.owners.get(row.sku, row.product_id)) != row.product_id:
            raise SkuConflict(f"SKU {row.sku} belongs to product {owner}; use another SKU.")
        if (there := self.places.get((row.sku, row.warehouse_id))) is not None:
            raise AlreadyExists(f"SKU {row.sku} is in warehouse {row.warehouse_id} already, as item {there}.")
