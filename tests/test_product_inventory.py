"""What the Product Service keeps of availability: how long, until which event, and what when nobody answers."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from core.errors import Unavailable
from core.stock import ProductInventory
from entrypoints.demo import product_inventory
from entrypoints.demo.product_inventory import ASSUMED, AvailabilityCache, ProductInventoryService, ShownAvailability

RESTOCK = datetime(2026, 12, 3, 8, tzinfo=UTC)


class Warehouse:
    """An Inventory Service of one number; counts how often it is asked, and answers from ``answers`` first."""

    def __init__(self) -> None:
        self.now = ProductInventory(85, 5, False, False, (), sequence=5)
        self.answers: list[ProductInventory] = []
        self.asked = 0
        self.away = False
        self.slow: asyncio.Event | None = None

    def becomes(self, total: int, *, sequence: int, restock: datetime | None = None) -> None:
        self.now = ProductInventory(total, 0, 0 < total <= 10, total == 0, (), sequence, restock)

    async def by_product(self, product_id: str) -> ProductInventory:
        self.asked += 1
        if self.away:
            raise Unavailable("The Inventory Service is away.")
        answer = self.answers.pop(0) if self.answers else self.now
        if self.slow is not None:
            await self.slow.wait()
        return answer

    async def lead_time(self, product_id: str, quantity: int) -> str | None:
        return "1-2 days"


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


class Shop:
    """The service under test with all it stands on."""

    def __init__(self) -> None:
        self.warehouse = Warehouse()
        self.clock = Clock()
        self.service = ProductInventoryService(self.warehouse, now=self.clock)

    async def shown(self, quantity: int = 1, product_id: str = "prod_1") -> ShownAvailability:
        return await self.service.availability(product_id, quantity)

    def hear(self, sequence: int, product_id: str = "prod_1") -> None:
        event = {"eventType": "StockLevelChanged", "metadata": {"sequence": sequence}}
        self.service.hear(msgspec.json.encode(event | {"payload": {"productId": product_id}}))


@pytest.fixture
def shop() -> Shop:
    """Eighty-five units in stock, and nobody has asked yet."""
    return Shop()


@pytest.mark.parametrize(
    ("total", "wanted", "status", "message", "lead_time", "available"),
    [
        (85, 1, "IN_STOCK", "In Stock", "1-2 days", True),
        (11, 11, "IN_STOCK", "In Stock", "1-2 days", True),
        (10, 1, "LOW_STOCK", "Only 10 left in stock - order soon", None, True),
        (10, 11, "LIMITED_AVAILABILITY", "Only 10 available", None, True),
        (40, 41, "LIMITED_AVAILABILITY", "Only 40 available", None, True),
        (0, 1, "OUT_OF_STOCK", "Out of Stock", "Expected back in stock 3 December 2026", False),
    ],
)
async def test_it_decides_as_the_specification_does(
    shop: Shop, total: int, wanted: int, status: str, message: str, lead_time: str | None, available: bool
) -> None:
    """Status, words and lead time are those of the specification's code, for every side of every threshold."""
    shop.warehouse.becomes(total, sequence=6, restock=RESTOCK)

    shown = await shop.shown(wanted)

    assert (status, message, lead_time, available) == (
        shown.display_status,
        shown.message,
        shown.lead_time_estimate,
        shown.is_available,
    )


@pytest.mark.parametrize(("total", "seconds"), [(5, 60), (85, 300), (0, 300)])
async def test_an_answer_is_kept_for_its_time(shop: Shop, total: int, seconds: float) -> None:
    """A minute when stock is low, five otherwise; then it is asked again, so that a lost event heals."""
    shop.warehouse.becomes(total, sequence=5)
    before = await shop.shown()
    shop.warehouse.becomes(3, sequence=6)  # and its event is lost

    shop.clock.seconds += seconds - 0.1
    kept = await shop.shown()
    shop.clock.seconds += 0.2
    after = await shop.shown()

    assert (before, 2) == (kept, shop.warehouse.asked)
    assert after.message == "Only 3 left in stock - order soon"


async def test_an_event_drops_all_of_its_product_and_nothing_else(shop: Shop) -> None:
    """Every quantity of the product is asked anew; a product whose id begins alike is not."""
    for quantity in (1, 2, 50):
        await shop.shown(quantity)
        await shop.shown(quantity, "prod_1_2")
    asked = shop.warehouse.asked
    shop.warehouse.becomes(40, sequence=6)
    shop.hear(6)

    assert (await shop.shown(50)).display_status == "LIMITED_AVAILABILITY"
    for quantity in (1, 2):
        await shop.shown(quantity)
    assert asked + 3 == shop.warehouse.asked
    assert (await shop.shown(50, "prod_1_2")).display_status == "IN_STOCK"
    assert asked + 3 == shop.warehouse.asked


async def test_an_event_that_tells_nothing_new_changes_nothing(shop: Shop) -> None:
    """Late and repeated events do not empty the cache."""
    await shop.shown()
    for sequence in (5, 4, 1):
        shop.hear(sequence)
    await shop.shown()

    assert (shop.warehouse.asked, shop.service.stale, shop.service.gaps) == (1, 3, 0)


async def test_the_next_event_heals_what_a_lost_one_left(shop: Shop) -> None:
    """Event 6 emptied the shelf and was lost; event 7, of whatever kind, shows the gap and brings the truth."""
    await shop.shown()
    shop.warehouse.becomes(0, sequence=7, restock=RESTOCK)
    assert (await shop.shown()).display_status == "IN_STOCK"  # nobody has told

    shop.hear(7)

    assert (await shop.shown()).display_status == "OUT_OF_STOCK"
    assert shop.service.gaps == 1


async def test_an_answer_older_than_what_was_heard_is_asked_again(shop: Shop) -> None:
    """A process that does not know of the change yet is given a moment, then the answer is new."""
    await shop.shown()
    shop.hear(6)
    shop.warehouse.answers = [shop.warehouse.now]  # still at 5
    shop.warehouse.becomes(4, sequence=6)

    assert (await shop.shown()).display_status == "LOW_STOCK"
    assert shop.warehouse.asked == 3


async def test_an_answer_that_stays_old_is_shown_and_not_kept(shop: Shop) -> None:
    """Who never catches up is believed for the moment only."""
    shop.hear(9)

    assert (await shop.shown()).display_status == "IN_STOCK"
    asked = shop.warehouse.asked
    await shop.shown()
    assert shop.warehouse.asked > asked


async def test_a_slow_answer_does_not_outlive_an_event(shop: Shop) -> None:
    """An answer read before the event, and delivered after it, is not what the next shopper sees."""
    shop.warehouse.slow = asyncio.Event()
    asking = asyncio.create_task(shop.shown())
    await asyncio.sleep(0)
    shop.warehouse.becomes(0, sequence=6)
    shop.hear(6)
    shop.warehouse.slow.set()
    await asking

    assert (await shop.shown()).display_status == "OUT_OF_STOCK"


async def test_answers_of_one_product_agree(shop: Shop) -> None:
    """Reading one quantity shows that another's answer is old, though no event has told."""
    await shop.shown(1)
    shop.warehouse.becomes(4, sequence=6)
    await shop.shown(2)

    assert (await shop.shown(1)).message == "Only 4 left in stock - order soon"


async def test_it_fails_open(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody answers: the specification's default is shown and told as assumed; it is not kept, and the log has it."""
    shop.warehouse.away = True
    assert await shop.shown(3) == ASSUMED
    assert msgspec.to_builtins(ASSUMED) == {
        "isAvailable": True,
        "displayStatus": "IN_STOCK",
        "message": "In Stock",
        "leadTimeEstimate": None,
        "assumed": True,
    }
    assert "Failed to get availability for product prod_1" in caplog.text

    shop.warehouse.away = False
    assert not (await shop.shown(3)).assumed


async def test_what_is_kept_outlasts_an_outage(shop: Shop) -> None:
    """While the time to live lasts, what was known is shown rather than assumed; a screen's look changes nothing."""
    shop.warehouse.becomes(0, sequence=6)
    await shop.shown()
    shop.warehouse.away = True
    await shop.service.refresh("prod_1")

    assert (await shop.shown()).display_status == "OUT_OF_STOCK"


async def test_a_screen_is_told_of_its_products_once(shop: Shop) -> None:
    """However many events come before it looks; other products are not its business."""
    with shop.service.watching(["prod_1", "prod_2"]) as screen:
        for sequence in (6, 7, 8):
            shop.hear(sequence)
            shop.hear(sequence, "prod_3")
        told = await screen.take()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(screen.take(), 0.01)

    assert told == {"prod_1"}


async def test_a_look_at_the_screen_finds_what_no_event_tells(shop: Shop) -> None:
    """A new restock date has no event, and a lost one is the last there was: both come with the next look, once."""
    shop.warehouse.becomes(0, sequence=6)
    await shop.shown()
    with shop.service.watching(["prod_1"]) as screen:
        shop.warehouse.becomes(0, sequence=6, restock=RESTOCK)
        await shop.service.refresh("prod_1")
        assert await screen.take() == {"prod_1"}
        assert (await shop.shown()).lead_time_estimate == "Expected back in stock 3 December 2026"

        shop.warehouse.becomes(50, sequence=9)
        await shop.service.refresh("prod_1")
        assert await screen.take() == {"prod_1"}
        await shop.service.refresh("prod_1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(screen.take(), 0.01)


async def test_an_event_nobody_can_read_is_passed_over(shop: Shop) -> None:
    """It ends nothing, and the next one is heard."""
    await shop.shown()
    shop.service.hear(b"{}")
    shop.service.hear(b"\xff")
    shop.warehouse.becomes(0, sequence=6)
    shop.hear(6)

    assert (await shop.shown()).display_status == "OUT_OF_STOCK"


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers make room, and the keys kept beside them go with them."""
    monkeypatch.setattr(product_inventory, "KEPT_MAX", 3)
    cache = AvailabilityCache(Clock())
    for number in range(10):
        cache.put(f"prod_{number}", 1, ASSUMED, seconds=60)
        cache.put(f"prod_{number}", 2, ASSUMED, seconds=60)

    assert len(cache) == 3
    assert set(cache._keys) == {"prod_8", "prod_9"}
    assert cache.get("prod_9", 1) == ASSUMED
    assert cache.get("prod_7", 1) is None
