"""What the Product Service tells of its products, and what follows for our items (rule R21).

Events come in any order and more than once. So what is kept of a product is a ``Catalog``: a merge of everything heard,
in which the newer of two statements wins, whichever came first. Items are then brought in line with the catalog; any
order of the same events ends in the same catalog, hence in the same items.
"""

from collections.abc import Callable
from datetime import timedelta

from msgspec.structs import replace

from core.errors import SkuConflict, ValidationFailed
from core.events import ProductEvent
from core.operations import ApplyProductEvent, EventOutcome, EventPolicy
from core.rules.book import Book, Cause, Posting
from core.rules.receipts import record
from core.stock import Catalog, Item, Product, Status, Variant

FUTURE = timedelta(minutes=5)
"""How far ahead of our clock an event's timestamp may be."""
ACTOR = "product-service"


def merged(catalog: Catalog, event: ProductEvent, *, creates: bool) -> Catalog:
    """Return the catalog with what ``event`` says, where that is newer than what was said before.

    One that ``creates`` asks for its variants' items.
    """
    seen = event.seen
    if event.event_type == "ProductDeleted":
        return replace(catalog, deleted=max(catalog.deleted or seen, seen))
    variants = dict(catalog.variants)
    for id, (sku, name) in event.skus.items():
        variant = variants.get(id) or Variant(sku=sku, name=name, named=seen)
        if seen > variant.named:
            variant = replace(variant, sku=sku, name=name, named=seen)
        if creates:
            variant = replace(variant, created=max(variant.created or seen, seen))
        variants[id] = variant
    return replace(catalog, variants=variants)


def apply_product_event(book: Book, operation: ApplyProductEvent, cause: Cause) -> EventOutcome:
    """Merge an event into its product's catalog and bring the items in line.

    Raises:
        ValidationFailed: the event says it comes from the future.
        SkuConflict: a SKU it names is in use, by another product that claims it or by another variant.
    """
    event = operation.event
    if event.event_id in book.events_seen:
        book.told_again.add(event.payload.product_id)
        return EventOutcome(verdict="DUPLICATE")
    if event.timestamp > book.now + FUTURE:
        raise ValidationFailed("The event's timestamp is more than 5 minutes ahead of this service's clock.")
    before = book.products[event.payload.product_id]
    creates = operation.ensure or event.event_type == "ProductCreated"
    after = merged(before.catalog, event, creates=creates)
    items = book.of_product(before.id)
    renamed = _renamed(before.catalog, after)
    moving = _taken_over(book, items, renamed, after, before.id)
    cause = Cause(ACTOR, event.metadata.correlation_id or cause.correlation_id)
    book.products[before.id] = replace(
        before,
        catalog=after,
        status="INACTIVE" if after.is_deleted else "ACTIVE",
        revision=before.revision + 1,
        updated_at=book.now,
    )
    for item in moving:
        _remap(book, item, before.id, after, cause)
    _rename(book, items, renamed, cause)
    reason = _ensure(book, after, operation, cause) if creates else None
    _set_status(book, items, before.catalog, after, cause)
    outcome = EventOutcome(verdict="SKIPPED" if reason else "APPLIED", reason=reason)
    book.events_seen.add(event.event_id)
    book.inbox.append((event, outcome))
    return outcome


def _by_sku(catalog: Catalog) -> dict[str, Variant]:
    """Return what was last said of each SKU: a lone product's may become the SKU of one of its variants."""
    return {variant.sku: variant for variant in sorted(catalog.variants.values(), key=lambda variant: variant.named)}


def _renamed(before: Catalog, after: Catalog) -> dict[str, Variant]:
    """Return what becomes of each SKU that was or is the product's."""
    latest = _by_sku(after)
    return {before.variants.get(id, variant).sku: latest[variant.sku] for id, variant in after.variants.items()}


def _status(catalog: Catalog) -> Callable[[str], Status]:
    """Return how a SKU's items stand by the catalog; those no event asked for follow the product."""
    asked: dict[str, bool] = {}
    for variant in catalog.variants.values():
        if variant.created is not None:
            asked[variant.sku] = asked.get(variant.sku, False) or catalog.is_alive(variant)
    others = not catalog.is_deleted
    return lambda sku: "ACTIVE" if asked.get(sku, others) else "INACTIVE"


def _taken_over(
    book: Book, items: list[Item], renamed: dict[str, Variant], after: Catalog, product_id: str
) -> list[Item]:
    """Return other products' items whose SKU is this product's now; changes nothing.

    Raises:
        SkuConflict: their product claims the SKU still, or two items of this product would have it in one warehouse.
    """
    moving = []
    arriving: dict[str, set[str]] = {variant.sku: set() for variant in after.variants.values()}
    for item in items:
        if (variant := renamed.get(item.sku)) is not None and variant.sku != item.sku:
            if item.warehouse_id in arriving[variant.sku]:
                raise _in_use(variant.sku, item)
            arriving[variant.sku].add(item.warehouse_id)
    for sku, places in arriving.items():
        for item in book.of(sku=sku, product_id=None):
            other = None if item.product_id == product_id else book.products.get(item.product_id)
            if item.warehouse_id in places or (other is not None and _claims(other, sku)):
                raise _in_use(sku, item)
            if other is not None:
                moving.append(item)
    return moving


def _in_use(sku: str, item: Item) -> SkuConflict:
    return SkuConflict(
        f"SKU {sku} is in use by item {item.id} of product {item.product_id}; release it there first.",
        sku=sku,
        productId=item.product_id,
        inventoryItemId=item.id,
    )


def _claims(product: Product, sku: str) -> bool:
    """Tell whether a product holds on to a SKU: one nobody told us of was made by hand, its SKUs are its own."""
    catalog = product.catalog
    named = [variant for variant in catalog.variants.values() if variant.sku == sku]
    return not catalog.is_deleted and (bool(named) or not catalog.variants)


def _remap(book: Book, item: Item, product_id: str, catalog: Catalog, cause: Cause) -> None:
    """Move an item with its stock from one product to another: all of it leaves there, all of it arrives here.

    What is expected of it goes with it, before anybody is told when more will come.
    """
    for receipt in [each for each in book.receipts.values() if each.inventory_item_id == item.id]:
        record(book, receipt, replace(receipt, product_id=product_id))
    leaving = Posting(book, cause, None)
    leaving.reason = f"SKU moved to product {product_id}"
    gone = leaving.post(item, "REMAP_OUT", on_hand=-item.on_hand, reserved=-item.reserved)
    leaving.close()
    arriving = Posting(book, cause, None)
    arriving.reason = f"SKU moved from product {item.product_id}"
    here = replace(gone, product_id=product_id, name=_by_sku(catalog)[item.sku].name)
    status = _status(catalog)(item.sku)
    arriving.post(here, "REMAP_IN", on_hand=item.on_hand, reserved=item.reserved, status=status)
    arriving.close()


def _rename(book: Book, items: list[Item], renamed: dict[str, Variant], cause: Cause) -> None:
    posting = Posting(book, cause, None)
    posting.reason = "SKU or name changed by the Product Service"
    for item in items:
        variant = renamed.get(item.sku)
        if variant is not None and (item.sku, item.name) != (variant.sku, variant.name):
            posting.post(item, "DETAILS", sku=variant.sku, name=variant.name)
    posting.close()


def _ensure(book: Book, catalog: Catalog, operation: ApplyProductEvent, cause: Cause) -> str | None:
    """Make the items an event asks for, where they are missing; return why some were not made, if so."""
    policy, event = operation.policy, operation.event
    if not policy.auto_create:
        return "Creating items for new products is switched off (INVENTORY_AUTO_CREATE_ON_PRODUCT_CREATION)."
    if not policy.warehouse_ids:
        return "There are no default warehouses; name some in INVENTORY_DEFAULT_WAREHOUSES."
    posting = Posting(book, cause, None)
    posting.reason = "Item created for a new product"
    unknown = [id for id in policy.warehouse_ids if id not in book.warehouses]
    latest, status = _by_sku(catalog), _status(catalog)
    for sku in dict.fromkeys(catalog.variants[id].sku for id in event.skus):
        for warehouse_id in policy.warehouse_ids:
            if warehouse_id not in unknown and book.at(sku, warehouse_id) is None:
                posting.post(_item(book, latest[sku], warehouse_id, operation), "STATUS", status=status(sku))
    posting.close()
    return f"Default warehouses that do not exist: {', '.join(unknown)}; create them." if unknown else None


def _item(book: Book, variant: Variant, warehouse_id: str, operation: ApplyProductEvent) -> Item:
    policy: EventPolicy = operation.policy
    return book.new_item(
        sku=variant.sku,
        product_id=operation.event.payload.product_id,
        warehouse_id=warehouse_id,
        name=variant.name,
        reorder_threshold=policy.reorder_threshold,
        target_stock_level=policy.target_stock_level,
        metadata={"createdFromProductEvent": True, "productEventId": operation.event.event_id},
    )


def _set_status(book: Book, items: list[Item], before: Catalog, after: Catalog, cause: Cause) -> None:
    """Follow the catalog where it says otherwise than before; until then an operator's choice stands."""
    posting = Posting(book, cause, None)
    posting.reason = "Product deleted" if after.is_deleted else "Product created"
    was, now = _status(before), _status(after)
    for old in items:
        item = book.items[old.id]
        if was(old.sku) != now(item.sku) != item.status:
            posting.post(item, "STATUS", status=now(item.sku))
    posting.close()
