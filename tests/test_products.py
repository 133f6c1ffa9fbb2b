"""What the Product Service is asked, and what follows: from its events and from ours to stock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standin import ours, standing_in
from stores import at_work, carry_out, dead_letters, migrated, only, stocked

from adapters.memory import MemoryBroker, MemoryCatalog
from adapters.registry import connect
from core.catalog.products import AGAIN_SECONDS, Policy, Products
from core.consuming.consumption import ProductEvents, apply, decode
from core.errors import InventoryError, ProductNotFound, ProductServiceProtocolError, ProductServiceUnavailable
from core.events import PRODUCT_EXCHANGE, ProductVariant
from core.operations import CreateWarehouse, EventPolicy, Receive, Request
from core.stock import Item
from core.writing.writer import Writer
from ports.broker import Delivery, Message, Verdict
from ports.catalog import CatalogProduct
from ports.store import ItemFilter, Store

RED, BLUE = ProductVariant("var_1", "MUG-RED", "Mug, red"), ProductVariant("var_2", "MUG-BLUE", "Mug, blue")
MUG = CatalogProduct(id="prod_1", sku="MUG", name="Mug")
MAKING = EventPolicy(warehouse_ids=("wh_1", "wh_2"))


class Counting(MemoryCatalog):
    """A catalogue that counts what it is asked, and may answer nonsense."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.broken = False

    async def product(self, id: str) -> CatalogProduct:
        """Tell, or fail."""
        self._ask(f"product {id}")
        return await super().product(id)

    async def variants(self, id: str) -> tuple[ProductVariant, ...]:
        """Tell, or fail."""
        self._ask(f"variants {id}")
        return await super().variants(id)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.broken:
            raise ProductServiceProtocolError("Nonsense.")


class House:
    """A store with two warehouses, a writer, a catalogue, and the consumer of product events over them."""

    def __init__(self, store: Store, writer: Writer, policy: Policy = "lenient") -> None:
        self.store = store
        self.writer = writer
        self.catalog = Counting()
        self.products = Products(self.catalog, store, policy=policy, making=MAKING)
        self.events = ProductEvents(store, MemoryBroker(), writer, self.products)

    def judging(self, policy: Policy) -> Products:
        """Return a judge by another policy."""
        return Products(self.catalog, self.store, policy=policy, making=MAKING)

    async def tell(self, message: Message) -> None:
        """Have a message handled."""
        assert await self.events.handle(Delivery(message, redelivered=False)) is Verdict.DONE

    async def items(self) -> dict[tuple[str, str], Item]:
        """Return every item by SKU and warehouse."""
        rows = (await self.store.items(ItemFilter(), cursor=None, limit=100)).rows
        return {(item.sku, item.warehouse_id): item for item in rows}


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """One that is not patient."""
    monkeypatch.setattr("core.consuming.consumption._PAUSE_SECONDS_MAX", 0.1)
    async with migrated(f"sqlite:///{tmp_path}/stock.db") as store:
        await carry_out(store, *(CreateWarehouse(id=f"wh_{number}", name="N") for number in (1, 2)))
        async with at_work(store) as writer:
            yield House(store, writer)


def event(kind: str, minutes: int = 0, **payload: Any) -> Message:
    """Return what the Product Service says of its product, so many minutes after the first word."""
    body = {
        "eventId": f"evt-{kind}-{minutes}",
        "eventType": f"Product{kind}",
        "eventVersion": "1.0.0",
        "timestamp": datetime.now(UTC) - timedelta(hours=1) + timedelta(minutes=minutes),
        "payload": {"productId": "prod_1", "sku": "MUG", "name": "Mug"} | payload,
    }
    key = f"product.product{kind.lower()}.product"
    return Message(id=body["eventId"], exchange=PRODUCT_EXCHANGE, routing_key=key, body=msgspec.json.encode(body))


SKUS = {("MUG-RED", "wh_1"), ("MUG-RED", "wh_2"), ("MUG-BLUE", "wh_1"), ("MUG-BLUE", "wh_2")}

# -- events ------------------------------------------------------------------------------------------------------------


async def test_a_creation_without_variants_is_asked_for_them(house: House) -> None:
    """One item a variant and default warehouse, named as the variant is."""
    house.catalog.put(MUG, RED, BLUE)
    await house.tell(event("Created"))
    items = await house.items()

    assert (items.keys(), house.catalog.asked) == (SKUS, ["variants prod_1"])
    assert items["MUG-RED", "wh_1"].name == "Mug, red"


async def test_what_is_asked_for_an_event_carries_its_correlation_id(house: House) -> None:
    """From the queue and from the dead letters alike, and nothing of it is left for what comes after."""
    told = msgspec.json.decode(event("Created").body) | {"metadata": {"correlationId": "order-9"}}
    message = msgspec.structs.replace(event("Created"), body=msgspec.json.encode(told))
    async with standing_in() as (service, url), connect("catalog", url, token=ours) as catalog:
        products = Products(catalog, house.store, policy="lenient", making=MAKING)
        await apply(house.writer, message, decode(message), products)
        with suppress(ProductNotFound):
            await catalog.product("prod_8")

    assert [asked.correlation_id for asked in service.asked] == ["order-9", None]


async def test_a_product_without_variants_is_its_own(house: House) -> None:
    """The Product Service has none, or knows nothing of the product any more: the event's word is enough."""
    house.catalog.put(MUG)
    await house.tell(event("Created"))
    await house.tell(event("Created", 1, productId="prod_2", sku="CUP"))

    assert {"MUG", "CUP"} == {sku for sku, _ in await house.items()}


async def test_what_an_event_says_is_not_asked_for(house: House) -> None:
    """Variants in the payload, an update of what is known, a deletion: nobody is asked, and the outage harms nobody."""
    house.catalog.away = True
    await house.tell(event("Created", variants=[msgspec.to_builtins(RED)]))
    await house.tell(event("Updated", 1, variants=[msgspec.to_builtins(RED) | {"name": "Scarlet"}]))
    await house.tell(event("Deleted", 2))
    items = await house.items()

    assert not house.catalog.asked
    assert {(item.name, item.status) for item in items.values()} == {("Scarlet", "INACTIVE")}


async def test_an_update_of_an_unknown_product_is_its_creation(house: House) -> None:
    """Its items are made as the Product Service has it now; the creation, coming late, changes nothing."""
    house.catalog.put(MUG, RED, BLUE)
    await house.tell(event("Updated", 5, name="Old name"))
    made = await house.items()
    await house.tell(event("Created"))

    assert made.keys() == SKUS
    assert await house.items() == made


async def test_what_the_product_service_leaves_out_the_event_says(house: House) -> None:
    """A product that is known there by its id alone has the variants the event tells of."""
    house.catalog.put(CatalogProduct(id="prod_1"))
    await house.tell(event("Updated", sku=None, variants=[{"variantId": "v1", "sku": "MUG-RED", "name": "Red"}]))

    assert {sku for sku, _ in await house.items()} == {"MUG-RED"}


async def test_an_update_of_a_deleted_product_makes_nothing(house: House) -> None:
    """A tombstone is knowledge, too; and of what the Product Service does not have nothing is made."""
    house.catalog.put(MUG, RED)
    await house.tell(event("Deleted"))
    await house.tell(event("Updated", 1))
    await house.tell(event("Updated", 1, productId="prod_2"))

    assert await house.items() == {}


async def test_an_outage_fills_no_dead_letters(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that need the Product Service wait for it, however long, and are applied when it is back."""
    monkeypatch.setattr("core.consuming.consumption._TRIES", 2)
    house.catalog.put(MUG, RED, BLUE)
    house.catalog.away = True
    waiting = asyncio.create_task(house.tell(event("Created")))
    async with asyncio.timeout(10):
        while len(house.catalog.asked) < 5:
            await asyncio.sleep(0.01)
    assert not waiting.done()
    house.catalog.away = False
    async with asyncio.timeout(10):
        await waiting

    assert (await house.items()).keys() == SKUS
    assert await dead_letters(house.store) == []


async def test_nonsense_is_parked_when_it_does_not_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that cannot be used is asked for again, then the event is kept with that cause, and nothing made."""
    monkeypatch.setattr("core.consuming.consumption._TRIES", 3)
    house.catalog.broken = True
    await house.tell(event("Created"))

    letter = only(await dead_letters(house.store))
    assert (letter.code, letter.attempts) == ("product_service_protocol_error", 3)
    assert await house.items() == {}


async def test_no_lock_waits_for_the_network(house: House) -> None:
    """While the Product Service is being asked about a product, that product is sold."""
    item = await stocked(house.store, sku="MUG-RED")
    house.catalog.put(MUG, RED, BLUE)
    sold: list[object] = []

    async def sell() -> None:
        request = Request(operations=(Receive(inventory_item_id=item.id, quantity=1),), actor="clerk")
        sold.extend(await house.writer.submit(request, timeout=2))

    ask = house.catalog.variants

    async def asked(id: str) -> tuple[ProductVariant, ...]:
        await sell()
        return await ask(id)

    house.catalog.variants = asked  # type: ignore[method-assign]
    await house.tell(event("Created"))

    assert not isinstance(only(sold), InventoryError)
    assert (await house.items())["MUG-RED", "wh_1"].on_hand == 11


async def test_off_never_asks(house: House) -> None:
    """Without a Product Service an event is what it says."""
    events = ProductEvents(house.store, MemoryBroker(), house.writer, house.judging("off"))
    await events.handle(Delivery(event("Created"), redelivered=False))

    assert {sku for sku, _ in await house.items()} == {"MUG"}
    assert not house.catalog.asked


# -- products taken on trust -------------------------------------------------------------------------------------------


async def test_who_is_known_here_is_admitted_unasked(house: House) -> None:
    """By an event or by its stock; not by a tombstone."""
    house.catalog.away = True
    await stocked(house.store)
    await house.judging("strict").admit("prod_1")

    await house.tell(event("Deleted", productId="prod_2"))
    with pytest.raises(ProductServiceUnavailable):
        await house.judging("strict").admit("prod_2")


async def test_a_word_of_yesterday_is_not_enough_for_strict(house: House) -> None:
    """What the Product Service said before its circuit opened: lenient takes it, and checks later."""
    house.catalog.put(MUG)
    house.catalog.force("OPEN")
    with pytest.raises(ProductServiceUnavailable):
        await house.judging("strict").admit("prod_1")
    await house.products.admit("prod_1")

    assert [check.product_id for check in await house.store.product_checks(limit=10)] == ["prod_1"]


async def test_what_was_taken_on_trust_is_checked_when_it_is_back(house: House) -> None:
    """One that exists is owed nothing more; one that does not stays on record with its stock."""
    house.catalog.away = True
    for id, sku in (("prod_1", "MUG"), ("prod_2", "CUP"), ("prod_3", "")):
        await house.products.admit(id)
        if sku:
            await stocked(house.store, product=id, sku=sku)
    with pytest.raises(ProductServiceUnavailable):
        await house.products.check()
    assert len(await house.store.product_checks(limit=10)) == 3

    house.catalog.away = False
    house.catalog.put(MUG)
    assert await house.products.check() == 3
    missing = only(await house.store.product_checks(limit=10))
    assert (missing.product_id, missing.status) == ("prod_2", "MISSING")
    assert {item.status for item in (await house.items()).values()} == {"ACTIVE"}
    assert await house.products.check() == 0
    assert await house.store.owed_checks(limit=10, again_after_seconds=AGAIN_SECONDS) == []


async def test_what_cannot_be_checked_keeps_nobody_from_its_turn(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is answered with nonsense is asked for again after all others."""
    monkeypatch.setattr("core.catalog.products._CHECKS_AT_ONCE", 1)
    house.catalog.away = True
    for id in ("prod_1", "prod_2"):
        await house.products.admit(id)
    house.catalog.away = False
    house.catalog.broken = True
    assert await house.products.check() == 0
    house.catalog.broken = False
    assert await house.products.check() == 1

    assert house.catalog.asked[-2:] == ["product prod_1", "product prod_2"]
    assert [check.product_id for check in await house.store.product_checks(limit=10)] == ["prod_1"]


async def test_checks_happen_by_themselves(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so often, over outages of any length."""
    monkeypatch.setattr("core.catalog.products.CHECK_SECONDS", 0.01)
    house.catalog.away = True
    await house.products.admit("prod_1")
    await house.products.start()
    try:
        await asyncio.sleep(0.05)
        house.catalog.away = False
        house.catalog.put(MUG)
        async with asyncio.timeout(10):
            while await house.store.product_checks(limit=10):
                await asyncio.sleep(0.01)
    finally:
        await house.products.stop()


async def test_everything_missing_takes_nothing_off_sale(house: House) -> None:
    """A Product Service that has lost its mind answers 404 to everything: no item changes, and each product is told."""
    for number in range(20):
        house.catalog.away = True
        await house.products.admit(f"prod_{number}")
        await stocked(house.store, product=f"prod_{number}", sku=f"SKU-{number}")
    house.catalog.away = False
    before = await house.items()
    await house.products.check()

    assert await house.items() == before
    assert [check.status for check in await house.store.product_checks(limit=100)] == ["MISSING"] * 20
    with pytest.raises(ProductNotFound):
        await house.products.admit("prod_new")
