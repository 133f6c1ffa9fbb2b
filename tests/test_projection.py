"""What can be promised over time, held against a clerk who walks through the days; and what is displayed of it."""

import time
from datetime import timedelta
from itertools import pairwise

import pytest
from factories import NOW, ItemFactory
from hypothesis import given
from hypothesis import strategies as st

from core.reading.availability import decide, shipping
from core.reading.projection import Step, available_by, earliest, project
from core.stock import Hold, Item, LeadTime, Supply, Warehouse

HOUR = timedelta(hours=1)


@st.composite
def items(draw: st.DrawFn) -> list[Item]:
    """Up to four items, some short, some inactive."""
    return [
        ItemFactory.build(
            id=f"inv_{number}",
            on_hand=draw(st.integers(0, 12)),
            reserved=draw(st.integers(0, 15)),
            safety_stock=draw(st.integers(0, 5)),
            status=draw(st.sampled_from(["ACTIVE", "ACTIVE", "INACTIVE"])),
        )
        for number in range(draw(st.integers(0, 4)))
    ]


moments = st.integers(-3, 12).map(lambda hours: NOW + hours * HOUR)
gains = st.lists(st.tuples(st.sampled_from([f"inv_{n}" for n in range(5)]), st.integers(1, 9), moments), max_size=12)


def counted(items: list[Item], supplies: list[Supply], holds: list[Hold], at: object) -> int:
    """What a clerk finds on the shelves at an instant, having done by then all that was due by then."""
    total = 0
    for item in items:
        if item.status != "ACTIVE":
            continue
        on_hand, reserved = item.on_hand, item.reserved
        for supply in supplies:
            if supply.inventory_item_id == item.id and NOW < supply.expected_at <= at:
                on_hand += supply.quantity
        for hold in holds:
            if hold.inventory_item_id == item.id and hold.expires_at <= at:
                reserved -= hold.quantity
        total += max(0, on_hand - reserved - item.safety_stock)
    return total


@given(items(), gains, gains, st.integers(1, 60))
def test_the_projection_is_what_a_clerk_would_count(
    stock: list[Item], comes: list[tuple[str, int, object]], frees: list[tuple[str, int, object]], wanted: int
) -> None:
    """At every hour the same number, from the same hour on enough, and no step that is none."""
    supplies = [Supply(*each) for each in comes]
    holds = [Hold(*each) for each in frees]
    steps = project(stock, supplies, holds, NOW)
    hours = [NOW + hour * HOUR for hour in range(14)]

    assert [available_by(steps, at) for at in hours] == [counted(stock, supplies, holds, at) for at in hours]
    first = next((at for at in hours if counted(stock, supplies, holds, at) >= wanted), None)
    assert earliest(steps, wanted) == first
    assert available_by(steps, NOW - HOUR) == steps[0].quantity_available
    assert steps[0].at == NOW
    for before, after in pairwise(steps):
        assert before.at < after.at
        assert before.quantity_available < after.quantity_available


def test_what_is_short_is_made_good_first() -> None:
    """Safety stock and a shortfall take the first units that come; other items are not touched by that."""
    short = ItemFactory.build(id="short", on_hand=2, reserved=5, safety_stock=4)
    well = ItemFactory.build(id="well", on_hand=3)
    supplies = [Supply("short", 6, NOW + HOUR), Supply("short", 10, NOW + 2 * HOUR)]

    assert project([short, well], supplies, [], NOW) == [Step(NOW, 3), Step(NOW + 2 * HOUR, 12)]


def test_a_thousand_supplies_are_quick() -> None:
    """Far from being noticed in an answer."""
    stock = [ItemFactory.build(id=f"inv_{number}", on_hand=number) for number in range(10)]
    supplies = [Supply(f"inv_{n % 10}", 1 + n % 7, NOW + (n * 37 % 1_000 + 1) * HOUR) for n in range(1_000)]
    started = time.perf_counter()
    steps = project(stock, supplies, [], NOW)
    print(f"{(time.perf_counter() - started) * 1000:.2f} ms")

    assert len(steps) == 1_001
    assert steps[-1].quantity_available == 45 + sum(supply.quantity for supply in supplies)


@pytest.mark.parametrize(
    ("available", "requested", "threshold", "status", "message"),
    [
        (0, 1, 10, "OUT_OF_STOCK", "Out of Stock"),
        (0, 5, 0, "OUT_OF_STOCK", "Out of Stock"),
        (4, 5, 10, "LIMITED_AVAILABILITY", "Only 4 available"),
        (40, 50, 10, "LIMITED_AVAILABILITY", "Only 40 available"),
        (5, 5, 10, "LOW_STOCK", "Only 5 left in stock - order soon"),
        (10, 1, 10, "LOW_STOCK", "Only 10 left in stock - order soon"),
        (11, 1, 10, "IN_STOCK", "In Stock"),
        (1, 1, 0, "IN_STOCK", "In Stock"),
    ],
)
def test_what_is_displayed(available: int, requested: int, threshold: int, status: str, message: str) -> None:
    """In the order of rule R26, with the specification's words."""
    decision = decide(available, requested, threshold)
    assert (decision.status, decision.message) == (status, message)


def test_who_ships() -> None:
    """The first in priority as far as it goes; nobody when there is not enough."""
    houses = [
        Warehouse(
            id=f"wh_{n}",
            name="",
            priority=9 - n,
            lead_time_days=LeadTime(1, 2),
            active=True,
            version=1,
            created_at=NOW,
            updated_at=NOW,
        )
        for n in (1, 2)
    ]
    stock = [
        ItemFactory.build(id=f"inv_{n}", sku=f"S-{n}", warehouse_id=f"wh_{1 + n % 2}", on_hand=n) for n in (1, 2, 3)
    ]

    assert shipping(stock, houses, 5) == {"wh_2": 4, "wh_1": 1}
    assert shipping(stock, houses, 7) == {}
