"""What every catalogue does, whatever is behind it. An adapter joins with one line in ``SCHEMES``."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from standin import ours, standing_in

from adapters.memory import MemoryCatalog
from adapters.product_service import Limits
from adapters.registry import connect
from core.errors import ProductNotFound, ProductServiceUnavailable
from core.events import ProductVariant
from entrypoints.demo.misbehaviour import Misbehaviour
from entrypoints.demo.product_service import ProductService, StoredProduct
from ports.catalog import CatalogProduct, ProductCatalog

SCHEMES = ["memory", "http"]
RED, BLUE = ProductVariant("var_1", "MUG-RED", "Mug, red"), ProductVariant("var_2", "MUG-BLUE", "Mug, blue")


class Subject:
    """A catalogue, and the Product Service behind it to be changed."""

    def __init__(self, catalog: ProductCatalog, service: ProductService | None) -> None:
        self.catalog = catalog
        self._service = service

    def put(self, id: str, sku: str, name: str, *variants: ProductVariant) -> None:
        """Give the Product Service a product."""
        if self._service is None:
            assert isinstance(self.catalog, MemoryCatalog)
            self.catalog.put(CatalogProduct(id=id, sku=sku, name=name), *variants)
        else:
            self._service.products[id] = StoredProduct(id=id, sku=sku, name=name, variants=variants)

    def away(self, away: bool = True) -> None:
        """Make the Product Service be away, or be back."""
        if self._service is None:
            assert isinstance(self.catalog, MemoryCatalog)
            self.catalog.away = away
        else:
            self._service.misbehaviour = Misbehaviour("error") if away else None


@pytest.fixture(params=SCHEMES)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """A catalogue with one product, which has two variants."""
    if request.param == "memory":
        async with connect("catalog", "memory://", token=ours) as catalog:
            subject = Subject(catalog, None)
            subject.put("prod_1", "MUG", "Mug", RED, BLUE)
            yield subject
    else:
        async with (
            standing_in() as (service, url),
            connect(
                "catalog", url, token=ours, list_path="/products", limits=Limits(pause=0.01, open_seconds=0.05)
            ) as catalog,
        ):
            yield Subject(catalog, service)


async def test_a_product_and_its_variants(subject: Subject) -> None:
    """What the Product Service has is told, and is not stale."""
    product = await subject.catalog.product("prod_1")

    assert CatalogProduct(id="prod_1", sku="MUG", name="Mug", stale=False) == product
    assert (RED, BLUE) == await subject.catalog.variants("prod_1")


async def test_a_product_without_variants_has_none(subject: Subject) -> None:
    """That is an answer, and not an error."""
    subject.put("prod_2", "PLATE", "Plate")

    assert await subject.catalog.variants("prod_2") == ()


@pytest.mark.parametrize("id", ["prod_9", "a/b", "..", ".", "Größe 1 & ?#%2F", "x" * 128])
async def test_what_it_does_not_have_is_not_found(subject: Subject, id: str) -> None:
    """Whatever the id looks like; the error names it."""
    for question in (subject.catalog.product, subject.catalog.variants):
        with pytest.raises(ProductNotFound) as error:
            await question(id)
        assert error.value.extra["productId"] == id


@pytest.mark.parametrize("id", ["a/b", "Größe 1 & ?#%2F", "x" * 128])
async def test_ids_may_hold_anything(subject: Subject, id: str) -> None:
    """What would mean something in a URL reaches the Product Service as it stands."""
    subject.put(id, "ODD", "Odd", RED)

    assert (await subject.catalog.product(id)).id == id
    assert (RED,) == await subject.catalog.variants(id)


async def test_what_changes_there_is_seen_here(subject: Subject) -> None:
    """An answer is as fresh as the Product Service, while that answers."""
    await subject.catalog.product("prod_1")
    subject.put("prod_1", "CUP", "Cup")

    assert (await subject.catalog.product("prod_1")).sku == "CUP"


async def test_away_is_unavailable_and_heals_by_itself(subject: Subject) -> None:
    """While the Product Service is away calls are refused with a hint; when it is back they work, without a restart."""
    subject.away()
    for _ in range(12):
        with pytest.raises(ProductServiceUnavailable):
            await subject.catalog.variants("prod_1")
    with pytest.raises(ProductServiceUnavailable):
        await subject.catalog.ping()

    subject.away(away=False)
    async with asyncio.timeout(5):
        while True:
            try:
                await subject.catalog.variants("prod_1")
                break
            except ProductServiceUnavailable:
                await asyncio.sleep(0.02)
    await subject.catalog.ping()
    assert subject.catalog.condition().circuit == "CLOSED"


async def test_an_open_circuit_tells_the_last_known_product(subject: Subject) -> None:
    """Forced open, nothing is asked: a product seen before is told as stale, everything else is unavailable."""
    fresh = await subject.catalog.product("prod_1")
    subject.catalog.force("OPEN")

    stale = await subject.catalog.product("prod_1")
    condition = subject.catalog.condition()
    for question in (subject.catalog.variants("prod_1"), subject.catalog.product("prod_9")):
        with pytest.raises(ProductServiceUnavailable):
            await question

    assert (stale.sku, stale.stale, fresh.stale) == (fresh.sku, True, False)
    assert (condition.circuit, condition.forced) == ("OPEN", True)
    subject.catalog.force(None)
    assert not (await subject.catalog.product("prod_1")).stale
    assert subject.catalog.condition().circuit == "CLOSED"


async def test_its_products_are_listed(subject: Subject) -> None:
    """A page at a time, each once; away it is unavailable."""
    for id in ("a/b", "prod_2", "prod_3"):
        subject.put(id, id, "Thing")

    ids: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = await subject.catalog.listed(cursor, limit=2)
        assert page is not None
        ids += page.ids
        cursor, pages = page.next_cursor, pages + 1
    subject.away()
    with pytest.raises(ProductServiceUnavailable):
        await subject.catalog.listed(None, limit=2)

    assert (ids, pages) == (["a/b", "prod_1", "prod_2", "prod_3"], 2)
