"""What every store keeps of the traffic with the Product Service: events that came, and checks that are owed."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from stores import carry_out, migrated, only

from core.events import ProductEvent, ProductPayload
from core.operations import ApplyProductEvent, EventPolicy
from ports.store import Store


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of the kind that is tested."""
    sqlite = request.param == "sqlite"
    async with migrated(f"sqlite:///{tmp_path}/stock.db" if sqlite else request.getfixturevalue("postgres_url")) as it:
        yield it


async def test_what_became_of_an_event_is_told(store: Store) -> None:
    """By its id, with the reason why it made no items; nothing of one that did not come."""
    at = datetime(2026, 11, 26, 10, 0, 0, 5, tzinfo=UTC)
    event = ProductEvent(
        event_id="Evt é",
        event_type="ProductCreated",
        event_version="1.0.0",
        timestamp=at,
        payload=ProductPayload(product_id="prod_1", sku="S"),
    )
    await carry_out(store, ApplyProductEvent(event=event, policy=EventPolicy(auto_create=False)))

    seen = await store.received("Evt é")
    assert seen is not None
    assert (seen.event_type, seen.product_id, seen.verdict, seen.occurred_at) == (
        *("ProductCreated", "prod_1", "SKIPPED"),
        at,
    )
    assert "switched off" in (seen.reason or "")
    assert seen.received_at > at
    assert await store.received("evt é") is None


async def test_a_check_is_owed_once_and_until_it_is_settled(store: Store) -> None:
    """However often it is said; one that found the product is gone."""
    for id in ("prod_1", "prod_2", "prod_1"):
        await store.owe_check(id)
    assert await store.owed_checks(limit=10, again_after_seconds=60) == ["prod_1", "prod_2"]
    assert await store.owed_checks(limit=1, again_after_seconds=60) == ["prod_1"]

    await store.settle_check("prod_1", missing=False)
    await store.settle_check("prod_9", missing=False)
    left = only(await store.product_checks(limit=10))
    assert (left.product_id, left.status, left.checked_at) == ("prod_2", "PENDING", None)


async def test_a_check_that_came_to_nothing_is_owed_behind_the_others(store: Store) -> None:
    """It is the last one to be tried again."""
    for id in ("prod_1", "prod_2"):
        await store.owe_check(id)
    await store.postpone_check("prod_1")

    assert await store.owed_checks(limit=10, again_after_seconds=60) == ["prod_2", "prod_1"]
    assert [check.status for check in await store.product_checks(limit=10)] == ["PENDING", "PENDING"]


async def test_what_is_missing_stays_on_record_and_is_checked_again(store: Store) -> None:
    """After a while, behind those that were never checked."""
    for id in ("prod_1", "prod_2"):
        await store.owe_check(id)
    await store.settle_check("prod_1", missing=True)

    assert await store.owed_checks(limit=10, again_after_seconds=60) == ["prod_2"]
    assert await store.owed_checks(limit=10, again_after_seconds=-60) == ["prod_2", "prod_1"]
    first, second = await store.product_checks(limit=10)
    assert (first.product_id, first.status, second.status) == ("prod_1", "MISSING", "PENDING")
    assert first.checked_at is not None
    await store.owe_check("prod_1")
    assert [check.status for check in await store.product_checks(limit=10)] == ["MISSING", "PENDING"]
