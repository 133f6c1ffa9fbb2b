"""What product events do to products and items (rule R21): by example, and whatever their order and number."""

import os
from datetime import timedelta
from typing import Any

import pytest
from factories import NOW, ItemFactory, ProductFactory, book_of, line_of
from factories import ReservationFactory as Held
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from core.book import Book, Cause
from core.errors import InventoryError, SkuConflict, ValidationFailed
from core.events import ProductEvent, ProductMetadata, ProductPayload, ProductVariant
from core.operations import ApplyProductEvent, EventOutcome, EventPolicy, Fulfil
from core.rules import decide
from core.stock import Catalog, Item, Product

settings.register_profile("catalog", max_examples=300, deadline=None)
settings.register_profile("catalog-ci", settings.get_profile("catalog"), derandomize=True, database=None)
PROFILE = settings.get_profile("catalog-ci" if os.environ.get("CI") else "catalog")

APPLIED = EventOutcome(verdict="APPLIED")
Variants = dict[str, tuple[str, str]]
V1: Variants = {"v1": ("WIDGET-2", "Widget")}


def heard(
    kind: str, minute: float, variants: Variants | None = None, *, id: str = "", product: str = "prod_1"
) -> ProductEvent:
    """Return an event of so many minutes from now about variants, as SKU and name by id; ``""`` is a lone product."""
    named = dict(variants or {})
    sku, name = named.pop("", (None, None))
    return ProductEvent(
        event_id=id or f"{product} {kind} {minute}",
        event_type=f"Product{kind}",  # type: ignore[arg-type]
        event_version="1.0.0",
        timestamp=NOW + timedelta(minutes=minute),
        payload=ProductPayload(
            product_id=product,
            sku=sku,
            name=name,
            variants=tuple(ProductVariant(id, *words) for id, words in named.items()),
        ),
    )


def shelves(*items: Item, others: tuple[str, ...] = (), **fields: Any) -> Book:
    """Return a book of these items and of products without any, none of which the Product Service spoke of yet."""
    book = book_of(*items, **fields)
    book.products |= {id: ProductFactory.build(id=id) for id in others}
    book.products = {id: replace(product, catalog=Catalog()) for id, product in book.products.items()}
    return book


def hear(book: Book, *events: ProductEvent, **policy: Any) -> EventOutcome:
    """Apply events that must be accepted, and return what the last one led to."""
    policy = {"warehouse_ids": ("wh_1", "wh_2")} | policy
    for event in events:
        outcome = decide(book, ApplyProductEvent(event=event, policy=EventPolicy(**policy)), Cause("clerk", "corr-1"))
    assert isinstance(outcome, EventOutcome)
    return outcome


def stock_of(book: Book) -> set[tuple[str, str, str, str]]:
    """Return (SKU, warehouse, status, name) of every item."""
    return {(item.sku, item.warehouse_id, item.status, item.name) for item in book.items.values()}


def told(book: Book) -> list[tuple[str, str]]:
    """Return (event type, product id) of what was published so far, and forget it."""
    events = [(row.event_type, row.product_id) for row in book.outbox]
    book.outbox.clear()
    return events


def totals(product: Product) -> tuple[int, int, int]:
    """Return on hand, reserved and available over all items."""
    return product.total_on_hand, product.total_reserved, product.total_available


def refused(book: Book, event: ProductEvent, kind: type[InventoryError]) -> InventoryError:
    """Apply an event that must be refused and leave everything as it was; return the refusal."""
    before = (dict(book.products), dict(book.items), list(book.ledger), list(book.outbox), list(book.inbox))
    with pytest.raises(kind) as refusal:
        hear(book, event)
    assert before == (book.products, book.items, book.ledger, book.outbox, book.inbox)
    assert event.event_id not in book.events_seen
    return refusal.value


# -- any order, any number of times -----------------------------------------------------------------------------------


SKUS = {"v1": ("WIDGET-2", "WIDGET-3"), "v2": ("GADGET",), "": ("GADGET",)}
names = st.sampled_from(("Widget", "Gadget"))
some_variants = st.fixed_dictionaries(
    {}, optional={id: st.tuples(st.sampled_from(skus), names) for id, skus in SKUS.items() if id}
).filter(bool) | st.fixed_dictionaries({"": st.tuples(st.sampled_from(SKUS[""]), names)})


@st.composite
def histories(draw: st.DrawFn) -> list[ProductEvent]:
    """Draw events of one product; several may be of the same instant, then their ids decide."""
    kinds = draw(st.lists(st.sampled_from(("Created", "Created", "Updated", "Deleted")), min_size=1, max_size=8))
    return [
        heard(kind, draw(st.integers(-3, 0)), draw(some_variants) if kind != "Deleted" else None, id=f"evt-{number}")
        for number, kind in enumerate(kinds)
    ]


def by_hand(index: int) -> list[Item]:
    """Return what somebody has put on the shelves before any event: of a variant's SKU, and of one nobody names."""
    made = [
        ItemFactory.build(sku="GADGET", warehouse_id="wh_2", name="Widget", on_hand=3),
        ItemFactory.build(sku="HANDMADE", name="Handmade", on_hand=2),
    ]
    return [made[place] for place in range(2) if index >> place & 1]


@settings(PROFILE)
@given(histories(), st.integers(0, 3), st.data())
def test_order_and_repetition_do_not_matter(events: list[ProductEvent], shelf: int, data: st.DataObject) -> None:
    """Every shuffle with repetitions ends in the catalog and the items of the run in order."""
    in_order, shuffled = shelves(*by_hand(shelf)), shelves(*by_hand(shelf))
    hear(in_order, *sorted(events, key=lambda event: event.seen))
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=4))
    hear(shuffled, *data.draw(st.permutations(events + repeated)))

    assert in_order.products["prod_1"].catalog == shuffled.products["prod_1"].catalog
    assert stock_of(in_order) == stock_of(shuffled)
    assert (in_order.products["prod_1"].status, totals(in_order.products["prod_1"])) == (
        shuffled.products["prod_1"].status,
        totals(shuffled.products["prod_1"]),
    )
    assert sorted(event.event_id for event in events) == sorted(event.event_id for event, _ in shuffled.inbox)
