"""The demo's stock: three warehouses and two hundred products, the first of them the specification's own example.

The same every time, so that two people look at the same numbers; only what is expected is some days from today.
"""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from core.errors import InventoryError
from core.events import ProductVariant
from core.operations import CreateItem, CreateWarehouse, Expect, Operation, Request, Reserve, ReserveLine
from core.stock import Item, LeadTime
from core.writing.writer import Writer
from entrypoints.demo.goods import StoredProduct
from ports.store import ItemFilter, Store

PRODUCTS = 200
EXAMPLE_PRODUCT = "prod_01FXYZ789ABC"
_PER_REQUEST = 50
_SEATTLE, _PORTLAND, _DENVER = "wh_01HXYZ789GHI", "wh_01HXYZ890PQR", "wh_01HXYZ901STU"
_WAREHOUSES = (
    CreateWarehouse(id=_SEATTLE, name="North Seattle Fulfillment Center", priority=1, lead_time_days=LeadTime(1, 2)),
    CreateWarehouse(id=_PORTLAND, name="South Portland Distribution Center", priority=2, lead_time_days=LeadTime(2, 3)),
    CreateWarehouse(id=_DENVER, name="Denver Cross-Dock", priority=3, lead_time_days=LeadTime(3, 5)),
)
WAREHOUSE_IDS = ",".join(warehouse.id or "" for warehouse in _WAREHOUSES)
"""Where the demo makes items of new products."""
_MATERIALS = ("Oak", "Walnut", "Steel", "Copper", "Linen", "Wool", "Glass", "Cork", "Marble", "Bamboo")
_THINGS = ("Lamp", "Kettle", "Chair", "Notebook", "Backpack", "Mug", "Clock", "Blanket", "Tray", "Vase")


async def load(writer: Writer, advance: Callable[[int], None]) -> None:
    """Create the sample stock; ``advance`` is told how many products are done since the last call.

    Raises:
        InventoryError: the writer refused or could not.
    """
    await _submit(writer, list(_WAREHOUSES))
    example = await _submit(writer, list(_example()))
    await _submit(writer, [_hold(item, quantity) for item, quantity in zip(example, (3, 2), strict=True)])
    await _submit(writer, [_order("WIDGET-2", _SEATTLE, days=7)])
    advance(1)
    made: list[Operation] = []
    products = 0
    for creates in _others():
        made += creates
        made += [
            _order(item.sku, item.warehouse_id, days=3 + len(made) % 14)
            for item in creates
            if not item.initial_quantity
        ]
        products += 1
        if len(made) >= _PER_REQUEST:
            await _submit(writer, made)
            advance(products)
            made, products = [], 0
    await _submit(writer, made)
    advance(products)


async def products(store: Store) -> list[StoredProduct]:
    """Return the products behind all stock there is, for the Product Service to have; several SKUs are its variants."""
    skus: dict[str, dict[str, str]] = {}
    cursor = None
    while True:
        page = await store.items(ItemFilter(), cursor=cursor, limit=500)
        for item in page.rows:
            skus.setdefault(item.product_id, {})[item.sku] = item.name
        if (cursor := page.next_cursor) is None:
            return [_product(id, names) for id, names in skus.items()]


def _product(id: str, names: dict[str, str]) -> StoredProduct:
    sku, name = next(iter(names.items()))
    variants = tuple(ProductVariant(sku, sku, name) for sku, name in names.items()) if len(names) > 1 else ()
    return StoredProduct(id=id, sku=sku, name=name, variants=variants)


def _example() -> Iterator[CreateItem]:
    """The by-product answer of the specification: 60 and 25 available, 3 and 2 reserved."""
    for warehouse_id, quantity in ((_SEATTLE, 63), (_PORTLAND, 27)):
        yield CreateItem(
            sku="WIDGET-2",
            product_id=EXAMPLE_PRODUCT,
            warehouse_id=warehouse_id,
            name="Widget, model 2",
            initial_quantity=quantity,
        )


def _hold(item: object, quantity: int) -> Reserve:
    if not isinstance(item, Item):
        raise TypeError("an item was expected")
    return Reserve(
        lines=(ReserveLine(inventory_item_id=item.id, quantity=quantity),),
        reference_type="ORDER",
        reference_number="SO-1",
        expires_in_seconds=86_400,
    )


def _order(sku: str, warehouse_id: str, *, days: int) -> Expect:
    """Fifty units are to come in so many days, at eight in the morning."""
    at = datetime.now(UTC).replace(hour=8, minute=0, second=0, microsecond=0) + timedelta(days=days)
    return Expect(
        sku=sku,
        warehouse_id=warehouse_id,
        quantity=50,
        expected_at=at,
        reference_type="PURCHASE_ORDER",
        reference_number=f"PO-{at:%m%d}-{warehouse_id[-3:]}",
    )


def _others() -> Iterator[list[CreateItem]]:
    dice = random.Random(20)
    for number in range(2, PRODUCTS + 1):
        material, thing = dice.choice(_MATERIALS), dice.choice(_THINGS)
        yield [
            CreateItem(
                sku=f"{material[:3]}-{thing[:3]}-{number:03}".upper(),
                product_id=f"prod_DEMO{number:04}",
                warehouse_id=warehouse.id or "",
                name=f"{material} {thing}",
                # Some are out, some are low: the states a storefront must show.
                initial_quantity=dice.choice((0, 4, 8, 25, 60, 120, 400)),
                safety_stock=dice.choice((0, 0, 0, 2)),
            )
            for warehouse in dice.sample(_WAREHOUSES, dice.randint(1, 3))
        ]


async def _submit(writer: Writer, operations: list[Operation]) -> list[object]:
    outcomes = await writer.submit(Request(operations=tuple(operations), actor="demo"), timeout=30.0)
    for outcome in outcomes:
        if isinstance(outcome, InventoryError):
            raise outcome
    return list(outcomes)
