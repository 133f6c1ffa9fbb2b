"""Where our items and the Product Service's catalogue have drifted apart: compared product by product."""

from collections.abc import Iterator

from msgspec import Struct

from core.events import ProductPayload, ProductVariant
from core.findings import Discrepancy, FindingKind, Values
from ports.catalog import CatalogProduct
from ports.store import ProductStock


class There(Struct, frozen=True):
    """A product as the Product Service has it."""

    product: CatalogProduct
    variants: tuple[ProductVariant, ...]

    @property
    def payload(self) -> ProductPayload:
        """What an event of the product would say."""
        product = self.product
        return ProductPayload(product_id=product.id, sku=product.sku, name=product.name, variants=self.variants)

    @property
    def skus(self) -> dict[str, tuple[str, str | None]]:
        """SKU and name by variant id; a product without variants is its own, called ``""``."""
        if self.variants:
            return {each.variant_id: (each.sku, each.name) for each in self.variants}
        return {} if self.product.sku is None else {"": (self.product.sku, self.product.name)}


def drifted(stock: ProductStock, there: There | None) -> tuple[Discrepancy, ...]:
    """Return where a product of ours disagrees with what the Product Service has of it, None for nothing.

    An item that is off sale although its product is there is an operator's choice, and no discrepancy.
    """
    product = stock.product
    if there is None:
        active = sum(item.status == "ACTIVE" for item in stock.items)
        kind: FindingKind = "PRODUCT_DELETED" if product.catalog.is_deleted else "PRODUCT_GONE"
        return (_of(stock, kind, {"activeItems": 0}, {"activeItems": active}),) if active else ()
    if product.catalog.is_deleted:
        return (_of(stock, "PRODUCT_RETURNED", {"status": "ACTIVE"}, {"status": "INACTIVE"}),)
    return tuple(_names(stock, there))


def _names(stock: ProductStock, there: There) -> Iterator[Discrepancy]:
    """Compare what items are called; those of a SKU that is another's by now are expected to follow their variant."""
    named = there.skus
    names = dict(named.values())
    ids = {variant.sku: id for id, variant in stock.product.catalog.variants.items()}
    here = {item.sku for item in stock.items}
    for item in stock.items if named else ():
        if item.sku in names:
            if (name := names[item.sku]) is not None and name != item.name:
                yield _of(stock, "NAME_DRIFT", {"name": name}, {"name": item.name}, item.id)
            continue
        becomes = named.get(ids.get(item.sku, "no variant of ours"))
        if becomes is not None:
            here.add(becomes[0])
        if becomes is not None or item.status == "ACTIVE":
            yield _of(stock, "SKU_DRIFT", {"sku": becomes[0]} if becomes else {}, {"sku": item.sku}, item.id)
    if missing := [sku for sku in names if sku not in here]:
        yield _of(stock, "ITEMS_MISSING", {"sku": ", ".join(missing)}, {})


def _of(
    stock: ProductStock, kind: FindingKind, expected: Values, found: Values, item_id: str | None = None
) -> Discrepancy:
    return Discrepancy(
        kind=kind, product_id=stock.product.id, inventory_item_id=item_id, expected=expected, found=found
    )


def unknown(there: There) -> Discrepancy:
    """Return that there is nothing here of a product that the Product Service has."""
    skus = ", ".join(sku for sku, _ in there.skus.values())
    return Discrepancy(
        kind="ITEMS_MISSING", product_id=there.product.id, inventory_item_id=None, expected={"sku": skus}, found={}
    )
