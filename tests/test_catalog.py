"""What product events do to products and items (rule R21): by example, and whatever their order and number."""

import os
from datetime import timedelta
from typing import Any

import pytest
from factories import NOW, ItemFactory, ProductFactory, ReservationFactory, book_of, line_of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from core.errors import InventoryError, SkuConflict, ValidationFailed
from core.events import ProductEvent, ProductMetadata, ProductPayload, ProductVariant
from core.operations import ApplyProductEvent, EventOutcome, EventPolicy, Fulfil, Result
from core.rules.book import Book, Cause
from core.rules.decisions import decide
from core.stock import Catalog, Item, Product

settings.register_profile("catalog", max_examples=150, deadline=None)
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
    outcome: Result = APPLIED
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


# -- created ----------------------------------------------------------------------------------------------------------


def test_created_makes_an_item_in_every_default_warehouse() -> None:
    """Each is empty, on sale, with the policy's levels, and says which event it comes from."""
    book = shelves()
    event = replace(heard("Created", 0, V1, id="evt-1"), metadata=ProductMetadata(correlation_id="corr-7"))

    assert APPLIED == hear(book, event, reorder_threshold=4, target_stock_level=20)
    assert {("WIDGET-2", place, "ACTIVE", "Widget") for place in ("wh_1", "wh_2")} == stock_of(book)
    for item in book.items.values():
        assert (0, 4, 20, 1) == (item.on_hand, item.reorder_threshold, item.target_stock_level, item.version)
        assert {"createdFromProductEvent": True, "productEventId": "evt-1"} == item.metadata
    assert {("product-service", "corr-7")} == {(row.actor, row.correlation_id) for row in book.ledger}
    assert [] == told(book)


def test_a_product_without_variants_is_its_own() -> None:
    """The specification's payload, a SKU and a name, makes items as one variant does."""
    book = shelves()
    hear(book, heard("Created", 0, {"": ("WIDGET-2", "Widget")}), warehouse_ids=("wh_1",))

    assert {("WIDGET-2", "wh_1", "ACTIVE", "Widget")} == stock_of(book)


def test_created_leaves_the_stock_that_is_there() -> None:
    """An item of that SKU keeps its balances, levels and metadata; only its name is the Product Service's business."""
    item = ItemFactory.build(name="Wigdet", on_hand=7, reorder_threshold=3)
    book = shelves(item)
    hear(book, heard("Created", 0, V1), warehouse_ids=("wh_1",))

    (after,) = book.items.values()
    assert item.changed(NOW, name="Widget") == after


def test_an_event_that_came_before_changes_nothing() -> None:
    """Its eventId was seen in an earlier batch or in this one: it is a duplicate, whatever it says."""
    book = shelves()
    book.events_seen.add("evt-1")

    assert EventOutcome(verdict="DUPLICATE") == hear(book, heard("Created", 0, V1, id="evt-1"))
    assert ({}, [], 0) == (book.items, book.inbox, book.products["prod_1"].revision)
    assert APPLIED == hear(book, heard("Created", 0, V1, id="evt-2"))
    assert EventOutcome(verdict="DUPLICATE") == hear(book, heard("Deleted", 1, id="evt-2"))
    assert "ACTIVE" == book.products["prod_1"].status


@pytest.mark.parametrize(
    ("policy", "made", "reason"),
    [
        ({"auto_create": False}, set(), "switched off"),
        ({"warehouse_ids": ()}, set(), "no default warehouses"),
        ({"warehouse_ids": ("wh_404", "wh_405")}, set(), "wh_404, wh_405"),
        ({"warehouse_ids": ("wh_404", "wh_1")}, {"wh_1"}, "wh_404"),
    ],
)
def test_items_that_cannot_be_made_are_skipped_with_the_reason(
    policy: dict[str, Any], made: set[str], reason: str
) -> None:
    """It is no failure: the event counts as dealt with, the catalog knows the product, and the reason is on record."""
    book = shelves()
    outcome = hear(book, heard("Created", 0, V1), **policy)

    assert "SKIPPED" == outcome.verdict
    assert reason in (outcome.reason or "")
    assert made == {item.warehouse_id for item in book.items.values()}
    assert [outcome] == [kept for _, kept in book.inbox]
    assert {"v1"} == book.products["prod_1"].catalog.variants.keys()


def test_only_created_makes_items() -> None:
    """Updated of something unknown is remembered: a Created that is older makes the item by the newer name."""
    book = shelves()

    assert APPLIED == hear(book, heard("Updated", 0, {"v1": ("WIDGET-3", "New")}))
    assert {} == book.items
    hear(book, heard("Created", -1, V1), warehouse_ids=("wh_1",))
    assert {("WIDGET-3", "wh_1", "ACTIVE", "New")} == stock_of(book)


# -- updated ----------------------------------------------------------------------------------------------------------


def test_name_and_sku_follow_the_newest_event() -> None:
    """What is older says nothing; of one instant the greater eventId is the newer. A renamed item is the same item."""
    book = shelves()
    hear(book, heard("Created", -3, V1), warehouse_ids=("wh_1",))
    (id,) = book.items
    hear(book, heard("Updated", -1, {"v1": ("WIDGET-3", "New")}, id="evt-5"))
    hear(book, heard("Updated", -2, {"v1": ("OLD", "Old")}), heard("Updated", -1, {"v1": ("OLD", "Old")}, id="evt-4"))

    assert {("WIDGET-3", "wh_1", "ACTIVE", "New")} == stock_of(book)
    hear(book, heard("Updated", -1, {"v1": ("WIDGET-3", "Newer")}, id="evt-6"))
    assert {("WIDGET-3", "wh_1", "ACTIVE", "Newer")} == stock_of(book)
    assert ([id], "DETAILS") == ([*book.items], book.ledger[-1].type)
    assert (None, id) == (book.at("WIDGET-2", "wh_1"), getattr(book.at("WIDGET-3", "wh_1"), "id", None))


def test_a_sku_may_be_handed_on_between_variants() -> None:
    """Each variant's items move once, also where one takes the SKU that another gives up in the same event."""
    book = shelves()
    hear(book, heard("Created", -3, {"v1": ("A", "One")}), warehouse_ids=("wh_1",))
    hear(book, heard("Created", -2, {"v2": ("B", "Two")}), warehouse_ids=("wh_2",))
    hear(book, heard("Updated", -1, {"v1": ("B", "One"), "v2": ("C", "Two")}))

    assert {("B", "wh_1", "ACTIVE", "One"), ("C", "wh_2", "ACTIVE", "Two")} == stock_of(book)


def test_a_lone_products_sku_may_become_a_variants() -> None:
    """Two claims of one product on one SKU are one item, called by what was said last."""
    book = shelves()
    hear(book, heard("Created", -2, {"": ("WIDGET-2", "Widget")}), heard("Updated", -1, {"v1": ("WIDGET-2", "Blue")}))
    hear(book, heard("Created", 0, {"": ("WIDGET-2", "Widget")}), heard("Updated", 1, {"v1": ("WIDGET-2", "Red")}))

    assert {("WIDGET-2", place, "ACTIVE", "Red") for place in ("wh_1", "wh_2")} == stock_of(book)


# -- deleted and revived ----------------------------------------------------------------------------------------------


def test_deletion_of_something_unknown_leaves_a_tombstone() -> None:
    """A Created that is older, or as old with a lesser id, makes its items but does not put them on sale."""
    book = shelves()

    assert APPLIED == hear(book, heard("Deleted", 0, id="evt-5"))
    assert "INACTIVE" == book.products["prod_1"].status
    hear(book, heard("Created", -1, V1), heard("Created", 0, {"v2": ("GADGET", "Gadget")}, id="evt-4"))
    assert {"INACTIVE"} == {item.status for item in book.items.values()}
    assert "INACTIVE" == book.products["prod_1"].status


def test_only_a_newer_created_revives() -> None:
    """Neither an Updated, however new, nor an older Created brings a deleted product back; a newer Created does."""
    book = shelves()
    hear(book, heard("Created", -4, V1), heard("Deleted", -2), heard("Updated", -1, V1), heard("Created", -3, V1))

    assert ({"INACTIVE"}, "INACTIVE") == (
        {item.status for item in book.items.values()},
        book.products["prod_1"].status,
    )
    hear(book, heard("Created", 0, V1))
    assert ({"ACTIVE"}, "ACTIVE", 2) == (
        {item.status for item in book.items.values()},
        book.products["prod_1"].status,
        len(book.items),
    )


def test_a_revived_product_brings_back_what_it_names() -> None:
    """A variant that the newer Created leaves out stays off sale; items made by hand go and come with the product."""
    book = shelves(ItemFactory.build(sku="HANDMADE", name="Handmade", on_hand=1))
    both = V1 | {"v2": ("GADGET", "Gadget")}
    hear(book, heard("Created", -3, both), heard("Deleted", -2), warehouse_ids=("wh_1",))

    assert {"INACTIVE"} == {item.status for item in book.items.values()}
    hear(book, heard("Created", -1, V1), warehouse_ids=("wh_1",))
    assert {"WIDGET-2": "ACTIVE", "GADGET": "INACTIVE", "HANDMADE": "ACTIVE"} == {
        item.sku: item.status for item in book.items.values()
    }


def test_stock_of_a_deleted_product_stays_recorded_and_is_not_for_sale() -> None:
    """Nothing is available, which is told like any other change, and so is its return (rule R14)."""
    one, other = ItemFactory.build(on_hand=30, reserved=5), ItemFactory.build(warehouse_id="wh_2", on_hand=20)
    book = shelves(one, other)
    hear(book, heard("Created", -2, V1))

    assert [] == told(book)
    hear(book, heard("Deleted", -1))
    assert (50, 5, 0) == totals(book.products["prod_1"])
    assert [("StockLevelChanged", "prod_1")] * 2 + [("OutOfStock", "prod_1")] == told(book)
    hear(book, heard("Created", 0, V1))
    assert (50, 5, 45) == totals(book.products["prod_1"])
    assert [("StockLevelChanged", "prod_1")] * 2 + [("BackInStock", "prod_1")] == told(book)
    assert {"STATUS"} == {row.type for row in book.ledger}


def test_what_an_operator_took_off_sale_stays_off() -> None:
    """Events that say nothing new of a product's life leave the status of its items alone."""
    item = ItemFactory.build(status="INACTIVE", on_hand=5)
    book = shelves(item)
    hear(book, heard("Created", -2, V1), heard("Updated", -1, {"v1": ("WIDGET-3", "New")}), heard("Created", 0, V1))

    assert "INACTIVE" == book.items[item.id].status


# -- refused ----------------------------------------------------------------------------------------------------------


def test_an_event_from_the_future_is_refused() -> None:
    """Five minutes are a clock that is fast; more would hold back every later event."""
    book = shelves()

    assert "5 minutes" in refused(book, heard("Deleted", 5.01), ValidationFailed).detail
    assert APPLIED == hear(book, heard("Deleted", 5))


@pytest.mark.parametrize(
    "shelf",
    [
        [heard("Created", -2, V1, product="prod_2")],
        [heard("Updated", -2, V1, product="prod_2")],
        [ItemFactory.build(product_id="prod_2")],
        [heard("Created", -2, {"v1": ("OLD", "Widget"), "v2": ("WIDGET-2", "Gadget")})],
        [heard("Created", -2, {"v1": ("OLD", "Widget")}), ItemFactory.build(product_id="prod_2", warehouse_id="wh_2")],
        [
            heard("Created", -3, {"v1": ("OLD", "Widget")}),
            heard("Created", -3, V1, product="prod_2"),
            heard("Deleted", -2, product="prod_2"),
        ],
    ],
    ids=["theirs", "claimed", "made by hand", "another variant's", "by hand elsewhere", "two in one place"],
)
def test_a_collision_of_skus_changes_nothing(shelf: list[ProductEvent | Item]) -> None:
    """A SKU that somebody holds on to is named with its holder, and the whole event is refused (rule R21)."""
    items = [entry for entry in shelf if isinstance(entry, Item)]
    book = shelves(*items, others=() if items else ("prod_2",))
    hear(book, *[entry for entry in shelf if not isinstance(entry, Item)])
    if not book.items:  # who merely claims a SKU has to have stock of it for anybody to collide with
        book.put(ItemFactory.build(product_id="prod_2"))
    refusal = refused(book, heard("Updated", 0, V1), SkuConflict)

    assert "WIDGET-2" == refusal.extra["sku"]
    assert ("WIDGET-2", refusal.extra["productId"]) == (
        book.items[refusal.extra["inventoryItemId"]].sku,
        book.items[refusal.extra["inventoryItemId"]].product_id,
    )


def test_two_variants_cannot_come_to_share_a_place() -> None:
    """An event by which two items of a warehouse would get one SKU is a collision, though nobody has that SKU yet."""
    book = shelves()
    hear(book, heard("Created", -2, {"v1": ("A", "One"), "v2": ("B", "Two")}))

    refused(book, heard("Updated", -1, {"v1": ("C", "One"), "v2": ("C", "Two")}), SkuConflict)


# -- a SKU changes hands ----------------------------------------------------------------------------------------------


def test_a_sku_moves_to_another_product_with_its_stock() -> None:
    """It leaves the one and arrives at the other, whole: rows, totals and events on both sides, one item throughout."""
    item = ItemFactory.build(product_id="prod_2", on_hand=30, reserved=5, safety_stock=2)
    stays = ItemFactory.build(product_id="prod_2", sku="GADGET", name="Gadget", on_hand=4)
    book = shelves(item, stays)
    hear(book, heard("Created", -3, {"v1": ("OLD", "Old"), "v2": ("GADGET", "Gadget")}, product="prod_2"))
    hear(book, heard("Updated", -2, {"v1": ("OLDER", "Old")}, product="prod_2"))
    book.ledger.clear()
    hear(book, heard("Created", -1, {"v1": ("WIDGET-2", "Blue")}), warehouse_ids=("wh_1",))

    assert [("REMAP_OUT", "prod_2", -30, -5), ("REMAP_IN", "prod_1", 30, 5)] == [
        (row.type, row.product_id, row.on_hand_change, row.reserved_change) for row in book.ledger
    ]
    assert ((4, 0, 4), (30, 5, 23)) == (totals(book.products["prod_2"]), totals(book.products["prod_1"]))
    assert [("StockLevelChanged", "prod_2"), ("StockLevelChanged", "prod_1"), ("BackInStock", "prod_1")] == told(book)
    here = book.items[item.id]
    assert ("prod_1", "Blue", 30, 5, 23, 3) == (
        here.product_id,
        here.name,
        here.on_hand,
        here.reserved,
        here.available,
        here.version,
    )
    assert [here] == book.of_product("prod_1")
    assert item.id not in {left.id for left in book.of_product("prod_2")}


def test_a_deleted_products_sku_is_free() -> None:
    """Its stock was not for sale; where it goes it is, and the product it leaves was out of stock already."""
    item = ItemFactory.build(product_id="prod_2", on_hand=30)
    book = shelves(item)
    hear(book, heard("Created", -3, V1, product="prod_2"), heard("Deleted", -2, product="prod_2"))
    told(book)
    hear(book, heard("Created", -1, {"v1": ("OLD", "Widget")}), heard("Updated", 0, {"": ("WIDGET-2", "Blue")}))

    assert [("StockLevelChanged", "prod_1"), ("BackInStock", "prod_1")] == told(book)
    assert {("wh_1", "prod_1", "ACTIVE", 30), ("wh_2", "prod_1", "ACTIVE", 0)} == {
        (entry.warehouse_id, entry.product_id, entry.status, entry.available)
        for entry in book.of(sku="WIDGET-2", product_id=None)
    }


def test_the_last_stock_that_moves_away_is_out_of_stock_there() -> None:
    """Leaving takes the old product to zero like a sale, and an inactive new one gets stock that is not for sale."""
    item = ItemFactory.build(product_id="prod_2", on_hand=30)
    book = shelves(item)
    hear(book, heard("Created", -3, {"v1": ("OTHER", "Other")}, product="prod_2"), heard("Deleted", -2))
    hear(book, heard("Updated", -1, V1))

    assert [("StockLevelChanged", "prod_2"), ("OutOfStock", "prod_2")] == told(book)
    assert ("prod_1", "INACTIVE", 30, 0) == (
        book.items[item.id].product_id,
        book.items[item.id].status,
        book.items[item.id].on_hand,
        book.items[item.id].available,
    )


def test_a_promise_is_kept_by_the_product_the_sku_moved_to() -> None:
    """What was reserved before the move can be fulfilled after it."""
    item = ItemFactory.build(product_id="prod_2", on_hand=30, reserved=5)
    book = shelves(item, reservations=[ReservationFactory.build(lines=(line_of(item, 5),))])
    hear(book, heard("Created", -3, {"v1": ("OTHER", "Other")}, product="prod_2"), heard("Created", -2, V1))
    decide(book, Fulfil(reservation_id="res_1"), Cause("clerk"))

    assert (25, 0, 25) == totals(book.products["prod_1"])
    assert (0, 0, 0) == totals(book.products["prod_2"])
