"""Questions about stock: how many, where, by when. Reads only; changes go through the writer."""

from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from msgspec import UNSET, Struct

from core.errors import NotFound
from core.reading.availability import (
    Availability,
    Counted,
    Explanation,
    ProductAvailability,
    decide,
    lead_time,
    shipping,
)
from core.reading.projection import Step, available_by, earliest, project
from core.reading.snapshots import Sight, Snapshots
from core.stock import (
    Balance,
    Hold,
    Item,
    ProductBalance,
    ProductInventory,
    WarehouseInventory,
    restock_expected,
)
from ports.store import Store

T = TypeVar("T")
ANSWERS_MAX = 16
"""How many different answers about one product are kept near."""
_GLANCES = 3


class Found(Generic[T]):
    """An answer, and the entity tag that names what it was made of. ``encoded`` is for who sends it more than once."""

    __slots__ = ("data", "encoded", "tag")

    def __init__(self, data: T, tag: str) -> None:
        self.data = data
        self.tag = tag
        self.encoded: Any = None


class Question(Struct, frozen=True):
    """What was asked: of a product or of an item, and the key under which its answer is kept."""

    product_id: str
    item_id: str | None
    key: Any


class Inventory:
    """The specification's two questions. Belongs to one event loop."""

    def __init__(self, store: Store, snapshots: Snapshots) -> None:
        self._store = store
        self._snapshots = snapshots

    def near(self, question: Question) -> Found[Any] | None:
        """Return the answer to a question if it was given before and is kept near; it takes no time."""
        if question.item_id is not None:
            sight = self._snapshots.near_of(question.item_id)
        else:
            sight = self._snapshots.near(question.product_id)
        return sight.answers.get(question.key) if sight is not None else None

    async def by_product(self, product_id: str) -> Found[ProductInventory]:
        """Return a product's stock in all warehouses; zeros for a product that has no items.

        The same object for as long as the answer is the same and kept near.

        Raises:
            NotFound: nothing is known of the product.
            Unavailable: the store is away.
        """
        sight = self._snapshots.near(product_id) or await self._product(product_id)
        answer: Found[ProductInventory] | None = sight.answers.get(None)
        if answer is None:
            tag = f"{sight.stock.product.revision}.{sight.table.revision}"
            answer = sight.answers[None] = Found(_by_product(sight), tag)
        return answer

    async def availability(
        self, item_id: str, *, quantity: int, all_warehouses: bool, explain: bool = False
    ) -> Found[Availability]:
        """Say whether ``quantity`` units of the item's SKU can be had now, here or in all warehouses together.

        Raises:
            NotFound: there is no such item.
            Unavailable: the store is away.
        """
        sight = await self._snapshots.product_of(item_id)
        if sight is None:
            raise NotFound(f"There is no inventory item {item_id}.", inventoryItemId=item_id)
        question = (item_id, quantity, all_warehouses)
        if not explain and (known := sight.answers.get(question)) is not None:
            answer: Found[Availability] = known
            return answer
        (asked,) = (item for item in sight.stock.items if item.id == item_id)
        same_sku = tuple(item for item in sight.stock.items if item.sku == asked.sku)
        view = View(sight, same_sku if all_warehouses else (asked,), quantity)
        return view.answer(question, Availability(**view.facts(), **view.explained(wanted=explain)))

    async def product_availability(
        self, product_id: str, *, sku: str | None, quantity: int, by: datetime | None, explain: bool = False
    ) -> Found[ProductAvailability]:
        """Say whether ``quantity`` units of a product, or one SKU of it, can be had: now, by an instant, or from when.

        Raises:
            NotFound: nothing is known of the product, or it has no such SKU.
            Unavailable: the store is away.
        """
        sight = self._snapshots.near(product_id) or await self._product(product_id)
        question = (sku, quantity)
        if not explain and by is None and (known := sight.answers.get(question)) is not None:
            answer: Found[ProductAvailability] = known
            return answer
        view = _of_product(sight, sku, quantity)
        if view.is_available and by is None:
            facts = {**view.facts(), "product_id": product_id, "sku": sku, "earliest_available": sight.read_at}
            return view.answer(question, ProductAvailability(**facts, **view.explained(wanted=explain)))
        sight, holds = await self._with_holds(sight)
        view = _of_product(sight, sku, quantity)
        steps = project(view.items, sight.stock.supplies, holds, view.now)
        return Found(
            ProductAvailability(
                **view.facts(),
                **view.explained(wanted=explain, steps=steps),
                product_id=product_id,
                sku=sku,
                earliest_available=earliest(steps, quantity),
                available_by=UNSET if by is None else available_by(steps, by),
            ),
            view.tag,
        )

    async def _with_holds(self, sight: Sight) -> tuple[Sight, tuple[Hold, ...]]:
        """Return the product with what is held of it, both as of one revision where it stands still for a moment."""
        product_id = sight.stock.product.id
        for _ in range(_GLANCES):
            if not sight.stock.product.total_reserved:
                return sight, ()
            revision, holds = await self._store.holds(product_id)
            if revision == sight.stock.product.revision:
                break
            sight = await self._snapshots.fresh(product_id) or sight
        return sight, holds

    async def item_as_of(self, item_id: str, at: datetime) -> Balance:
        """Return what was on record of an item at ``at``.

        Raises:
            NotFound: there is no such item, or it was not on record yet.
            Unavailable: the store is away.
        """
        if not (found := await self._store.balances([item_id], at)):
            raise NotFound(f"Nothing was on record of inventory item {item_id} then.", inventoryItemId=item_id)
        return found[0]

    async def product_as_of(self, product_id: str, at: datetime) -> ProductBalance:
        """Return what was on record of a product's items at ``at``.

        Raises:
            NotFound: nothing is known of the product.
            Unavailable: the store is away.
        """
        stock = (await self._store.products([product_id])).get(product_id)
        if stock is None or not stock.product.is_known:
            raise NotFound(f"Nothing is known of product {product_id}.", productId=product_id)
        balances = await self._store.balances([item.id for item in stock.items], at)
        # An item whose SKU moved here later was another product's then.
        items = [balance for balance in balances if balance.product_id == product_id]
        return ProductBalance(
            product_id=product_id,
            as_of=at,
            on_hand=sum(item.on_hand for item in items),
            reserved=sum(item.reserved for item in items),
            available=sum(item.available for item in items),
            items=tuple(items),
        )

    async def _product(self, product_id: str) -> Sight:
        if (sight := await self._snapshots.product(product_id)) is None:
            raise NotFound(f"Nothing is known of product {product_id}.", productId=product_id)
        return sight


def _by_product(sight: Sight) -> ProductInventory:
    product, warehouses = sight.stock.product, sight.table.by_id
    return ProductInventory(
        total_quantity_available=product.total_available,
        total_quantity_reserved=product.total_reserved,
        is_low_stock=product.is_low_stock,
        is_out_of_stock=product.is_out_of_stock,
        warehouse_inventory=tuple(
            WarehouseInventory(
                item.id, item.warehouse_id, warehouses[item.warehouse_id].name, item.available, item.reserved
            )
            for item in sight.stock.items
        ),
        sequence=product.sequence,
        restock_expected=restock_expected(sight.stock.items, sight.stock.supplies, datetime.now(UTC)),
    )


class View:
    """Some items of a product, looked at with a quantity in mind."""

    def __init__(self, sight: Sight, items: tuple[Item, ...], quantity: int) -> None:
        self.sight = sight
        self.items = items
        self.quantity = quantity
        self.now = datetime.now(UTC)
        self.available = sum(item.available for item in items)
        self.is_available = self.available >= quantity
        self.decision = decide(self.available, quantity, sight.stock.product.low_stock_threshold)
        self.ships = shipping(items, sight.table.by_id.values(), quantity)
        self.tag = f"{sight.stock.product.revision}.{sight.table.revision}"

    def facts(self) -> dict[str, Any]:
        """Return what every availability tells."""
        restock = restock_expected(self.items, self.sight.stock.supplies, self.now)
        warehouses = [self.sight.table.by_id[id] for id in self.ships]
        return {
            "is_available": self.is_available,
            "available_quantity": self.available,
            "requested_quantity": self.quantity,
            "lead_time_estimate": lead_time(self.decision, warehouses, restock),
            "restock_expected": restock,
            "display_status": self.decision.status,
            "message": self.decision.message,
            "low_stock_threshold": self.sight.stock.product.low_stock_threshold,
        }

    def explained(self, *, wanted: bool, steps: list[Step] | None = None) -> dict[str, Any]:
        """Return the explanation, if it is wanted."""
        if not wanted:
            return {}
        product, left = self.sight.stock.product, dict(self.ships)
        counted = []
        for item in self.items:
            ships = min(item.available, left.get(item.warehouse_id, 0))
            left[item.warehouse_id] = left.get(item.warehouse_id, 0) - ships
            counted.append(
                Counted(
                    inventory_item_id=item.id,
                    sku=item.sku,
                    warehouse_id=item.warehouse_id,
                    warehouse_name=self.sight.table.by_id[item.warehouse_id].name,
                    quantity_on_hand=item.on_hand,
                    quantity_reserved=item.reserved,
                    safety_stock=item.safety_stock,
                    quantity_available=item.available,
                    status=item.status,
                    ships=ships,
                )
            )
        explanation = Explanation(
            rule=self.decision.rule,
            revision=product.revision,
            sequence=product.sequence,
            read_at=self.sight.read_at,
            age_seconds=round(max((self.now - self.sight.read_at).total_seconds(), 0.0), 3),
            source=self.sight.source,
            items=tuple(counted),
            projection=UNSET if steps is None else tuple(steps),
        )
        return {"explanation": explanation}

    def answer(self, question: Any, data: T) -> Found[T]:
        """Return the answer, and keep it where it can be told again."""
        answer = Found(data, self.tag)
        explanation = getattr(data, "explanation", UNSET)
        if explanation is UNSET and len(self.sight.answers) < ANSWERS_MAX:
            self.sight.answers[question] = answer
        return answer


def _of_product(sight: Sight, sku: str | None, quantity: int) -> View:
    items = sight.stock.items
    if sku is not None and not (items := tuple(item for item in items if item.sku == sku)):
        product_id = sight.stock.product.id
        raise NotFound(f"Product {product_id} has no SKU {sku}.", productId=product_id, sku=sku)
    return View(sight, items, quantity)
