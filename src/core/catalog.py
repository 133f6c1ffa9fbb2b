"""What the Product Service tells of its products, and what follows for our items (rule R21).

Events come in any order and more than once. So what is kept of a product is a ``Catalog``: a merge of everything heard,
in which the newer of two statements wins, whichever came first. Items are then brought in line with the catalog; any
order of the same events ends in the same catalog, hence in the same items.
"""

from datetime import timedelta

from msgspec.structs import replace

from core.book import Book, Cause, Posting
from core.errors import SkuConflict, ValidationFailed
from core.events import ProductEvent
from core.ids import new_id
from core.operations import ApplyProductEvent, EventOutcome, EventPolicy
from core.stock import Catalog, Item, Product, Status, Variant

FUTURE = timedelta(minutes=5)
"""How far ahead of our clock an event's timestamp may be."""
ACTOR = "product-service"


def merged(catalog: Catalog, event: ProductEvent) -> Catalog:
    """Return the catalog with what ``event`` says, where that is newer than what was said before."""
    seen = event.seen
    if event.event_type == "ProductDeleted":
        return replace(catalog, deleted=max(catalog.deleted or seen, seen))
    variants = dict(catalog.variants)
    for id, (sku, name) in event.skus.items():
        variant = variants.get(id) or Variant(sku=sku, name=name, named=seen)
        if seen > variant.named:
            variant = replace(variant, sku=sku, name=name, named=seen)
        if event.event_type == "ProductCreated":
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
        return EventOutcome(verdict="DUPLICATE")
    if event.timestamp > book.now + FUTURE:
        raise ValidationFailed("The event's timestamp is more than 5 minutes ahead of this service's clock.")
    before = book.products[event.payload.product_id]
    after = merged(before.catalog, event)
    moving = _taken_over(book, before, after)
    cause = Cause(ACTOR, event.metadata.correlation_id or cause.correlation_id)
    book.products[before.id] = replace(
        before,
        catalog=after,
        status="INACTIVE" if after.is_deleted else "ACTIVE",
        revision=before.revision + 1,
        updated_at=book.now,
    )
    for item, alive in moving:
        _remap(book, item, before.id, alive=alive, cause=cause)
    _rename(book, before, after, cause)
    reason = _ensure(book, after, operation, cause) if event.event_type == "ProductCreated" else None
    _set_status(book, before, after, cause)
    outcome = EventOutcome(verdict="SKIPPED" if reason else "APPLIED", reason=reason)
    book.events_seen.add(event.event_id)
    book.inbox.append((event, outcome))
    return outcome


def _taken_over(book: Book, product: Product, after: Catalog) -> list[tuple[Item, bool]]:
    """Return other products' items whose SKU is this product's now, and whether they are for sale; changes nothing.

    Raises:
        SkuConflict: their product claims the SKU still, or another item of this product has it.
    """
    moving = []
    for id, variant in after.variants.items():
        old = product.catalog.variants.get(id, variant)
        renamed = book.of_product(product.id, old.sku) if old.sku != variant.sku else []
        places = {item.warehouse_id for item in renamed}
        for item in book.of(sku=variant.sku, product_id=None):
            other = None if item.product_id == product.id else book.products.get(item.product_id)
            if item.warehouse_id in places or (other is not None and _claims(other, variant.sku)):
                raise _in_use(variant, item)
            if other is not None:
                moving.append((item, after.is_alive(variant)))
    return moving


def _in_use(variant: Variant, item: Item) -> SkuConflict:
    return SkuConflict(
        f"SKU {variant.sku} is in use by item {item.id} of product {item.product_id}; release it there first.",
        sku=variant.sku,
        productId=item.product_id,
        inventoryItemId=item.id,
    )


def _claims(product: Product, sku: str) -> bool:
    """Tell whether a product holds on to a SKU: one nobody told us of was made by hand, its SKUs are its own."""
    catalog = product.catalog
    named = [variant for variant in catalog.variants.values() if variant.sku == sku]
    return not catalog.is_deleted and (bool(named) or not catalog.variants)


def _remap(book: Book, item: Item, product_id: str, *, alive: bool, cause: Cause) -> None:
    """Move an item with its stock from one product to another: all of it leaves there, all of it arrives here."""
    leaving = Posting(book, cause, None)
    leaving.reason = f"SKU moved to product {product_id}"
    gone = leaving.post(item, "REMAP_OUT", on_hand=-item.on_hand, reserved=-item.reserved)
    leaving.close()
    arriving = Posting(book, cause, None)
    arriving.reason = f"SKU moved from product {item.product_id}"
    status: Status = "ACTIVE" if alive else "INACTIVE"
    here = replace(gone, product_id=product_id)
    arriving.post(here, "REMAP_IN", on_hand=item.on_hand, reserved=item.reserved, status=status)
    arriving.close()


def _rename(book: Book, before: Product, after: Catalog, cause: Cause) -> None:
    posting = Posting(book, cause, None)
    posting.reason = "SKU or name changed by the Product Service"
    for id, variant in after.variants.items():
        old = before.catalog.variants.get(id, variant)
        for item in book.of_product(before.id, old.sku):
            if (item.sku, item.name) != (variant.sku, variant.name):
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
    for id in event.skus:
        variant = catalog.variants[id]
        for warehouse_id in policy.warehouse_ids:
            if warehouse_id not in unknown and book.at(variant.sku, warehouse_id) is None:
                item = _item(book, variant, warehouse_id, operation)
                posting.post(replace(item, status="ACTIVE" if catalog.is_alive(variant) else "INACTIVE"), "STATUS")
    posting.close()
    return f"Default warehouses that do not exist: {', '.join(unknown)}; create them." if unknown else None


def _item(book: Book, variant: Variant, warehouse_id: str, operation: ApplyProductEvent) -> Item:
    policy: EventPolicy = operation.policy
    return Item(
        id=new_id("inv"),
        sku=variant.sku,
        product_id=operation.event.payload.product_id,
        warehouse_id=warehouse_id,
        name=variant.name,
        on_hand=0,
        reserved=0,
        available=0,
        safety_stock=0,
        shortfall=0,
        reorder_threshold=policy.reorder_threshold,
        target_stock_level=policy.target_stock_level,
        status="ACTIVE",
        metadata={"createdFromProductEvent": True, "productEventId": operation.event.event_id},
        version=0,
        created_at=book.now,
        updated_at=book.now,
    )


def _set_status(book: Book, before: Product, after: Catalog, cause: Cause) -> None:
    """Activate and deactivate with the variants; with the whole product go the items made by hand, too."""
    posting = Posting(book, cause, None)
    posting.reason = "Product deleted" if after.is_deleted else "Product created"
    wanted: dict[str, bool] = {}
    if after.is_deleted and not before.catalog.is_deleted:
        wanted = {item.id: False for item in book.of_product(before.id)}
    for id, variant in after.variants.items():
        old = before.catalog.variants.get(id)
        alive = after.is_alive(variant)
        if old is not None and before.catalog.is_alive(old) != alive:
            wanted |= {item.id: alive for item in book.of_product(before.id, variant.sku)}
    for id, alive in wanted.items():
        status: Status = "ACTIVE" if alive else "INACTIVE"
        if book.items[id].status != status:
            posting.post(book.items[id], "STATUS", status=status)
    posting.close()
