"""What reconciliation repairs: by policy, through everybody's use cases, within brakes, and never twice."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from audit import books
from planted import PLANTS, Place, plant, unchecked
from planted_run import reconciled
from stores import at_work, carry_out, only, stocked, submit

from adapters.memory import MemoryCatalog
from core.acts import Act
from core.errors import Conflict, NotFound
from core.events import ProductEvent, ProductPayload, ProductVariant
from core.findings import Limits, Repair, Repairs, Run
from core.operations import Activate, ApplyProductEvent, EventPolicy, ItemPatch, Receive, UpdateItem
from core.reconciling import reconciliation
from core.reconciling.reconciliation import Reconciliation
from core.reconciling.repairs import Repairer
from core.reconciling.survey import CatalogSurvey
from core.writing.writer import Writer
from ports.catalog import CatalogProduct
from ports.store import Store

MAKING = EventPolicy(warehouse_ids=("wh_1",))
LIMITS = Limits(changes_max=1_000, percent_max=100)
REPAIRED = {
    "a balance",
    "a version",
    "the last row",
    "a line gone",
    "a line of more",
    "a line let go",
    "a reservation ended",
    "totals",
    "a total",
    "what came",
    "where it came from",
    "what came long ago",
    "what is to come",
    "the last event",
    "a sequence",
    "an event never made",
}
"""Of what can be planted, what a rule can put right."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """An empty store without CHECKs."""
    server = request.param == "postgresql"
    url = request.getfixturevalue("postgres_url") if server else f"sqlite:///{tmp_path}/inventory.db"
    async with unchecked(url) as place:
        yield place


def reconciler(
    store: Store, writer: Writer, catalog: MemoryCatalog | None = None, limits: Limits = LIMITS, rate: int = 0
) -> Reconciliation:
    """Return what reconciles at once."""
    survey = None if catalog is None else CatalogSurvey(store, catalog, settle_seconds=0)
    repairer = Repairer(store, writer, survey, making=MAKING)
    return Reconciliation(store, repairer, survey, minutes=0, limits=limits, rate=rate, second_look_seconds=0)


async def repair(
    place: Place, catalog: MemoryCatalog | None = None, *, repairs: Repairs = "all", limits: Limits = LIMITS
) -> tuple[Run, dict[tuple[str, str], Repair]]:
    """Reconcile and repair; return the run and what became of each finding."""
    async with at_work(place.store) as writer:
        reconciliation = reconciler(place.store, writer, catalog, limits)
        run = await reconciliation.run(trigger="manual", actor="tests", repairs=repairs)
    made = await place.store.repairs(run, limit=1_000)
    return run, {(each.kind, each.subject): each for each in made}


def outcomes(made: dict[tuple[str, str], Repair]) -> dict[str, str]:
    """What became of each kind; there is one finding of each."""
    return {kind: each.outcome for (kind, _), each in made.items()}


# -- our own records -------------------------------------------------------------------------------------------------


async def test_what_follows_from_records_is_put_right_and_then_nothing_is_found(place: Place) -> None:
    """Every finding a rule can decide is REPAIRED with its values before and after; a second run writes nothing."""
    subjects = await plant(place, *REPAIRED)

    first, made = await repair(place)
    before = await place.select("SELECT count(*) AS rows FROM stock_transaction")
    second, again = await repair(place)

    assert {name for name in REPAIRED if made[str(PLANTS[name].kind), subjects[name]].outcome != "REPAIRED"} == set()
    assert len(made) == len(REPAIRED) == first.outcomes["REPAIRED"]
    assert all(each.before != each.after for each in made.values())
    assert (first.status, second.status, second.findings, again) == ("DONE", "DONE", {}, {})
    assert before == await place.select("SELECT count(*) AS rows FROM stock_transaction")


async def test_the_repaired_books_add_up(place: Place) -> None:
    """Read past all of our own code: ledger, balances, reservations, receipts, totals and events tell one story."""
    await plant(place, "a balance", "a version", "a total", "what came", "a sequence")
    await repair(place)

    found = await books(place.url)
    found._check_ledger()
    found._check_reservations()
    found._check_receipts()
    found._check_totals()
    items = {item["id"]: item for item in found.items}
    corrections = [row for row in found.ledger if row["type"] == "CORRECTION"]
    assert {row["reference_type"] for row in corrections} == {"RECONCILIATION"}
    assert all(items[row["inventory_item_id"]]["available"] == row["available_after"] for row in corrections)


async def test_what_no_record_decides_is_left_to_people(place: Place) -> None:
    """History is never altered, and an item without a ledger has nothing to go back to; each says so."""
    subjects = await plant(place, "rows between", "a change", "every row", "an event between", "an event that waits")
    run, made = await repair(place)

    assert {each.outcome for each in made.values()} == {"DEFERRED"}
    assert len(made) == len(subjects) == run.outcomes["DEFERRED"]
    assert "History is never altered" in str(made["VERSION_GAP", subjects["rows between"]].reason)
    assert "inventory outbox show" in str(made["EVENT_STUCK", subjects["an event that waits"]].reason)
    assert len(await place.store.findings(limit=10)) == len(subjects)


async def test_consumers_hear_of_what_they_were_never_told(place: Place) -> None:
    """By a StockLevelChanged with the next sequence, which tells how the item stands."""
    subjects = await plant(place, "an event never made")
    last = (await place.select("SELECT sequence FROM product"))[0]["sequence"]
    await repair(place)

    rows = await place.select("SELECT * FROM outbox ORDER BY sequence")
    told = only([row for row in rows if row["sequence"] > last])
    assert (told["sequence"], told["event_type"]) == (last + 1, "StockLevelChanged")
    assert told["aggregate_id"] == subjects["an event never made"]
    assert b'"newQuantity":7' in bytes(told["body"])


async def test_a_plan_repairs_nothing_and_says_what_would_be(place: Place) -> None:
    """And what is safe is less than everything: a balance is not put back without being told to."""
    await plant(place, "a balance", "a total")
    planned, plan = await repair(place, repairs="plan")
    _, safe = await repair(place, repairs="safe")

    assert set(outcomes(plan).values()) == {"PLANNED"}
    assert outcomes(safe) == {"LEDGER_MISMATCH": "PLANNED", "TOTALS_MISMATCH": "REPAIRED"}
    assert "run with --repair all" in str(next(each for each in safe.values() if each.outcome == "PLANNED").reason)
    assert planned.outcomes == {"PLANNED": 2}


async def test_too_much_to_repair_repairs_nothing_and_raises_an_alarm(place: Place) -> None:
    """Of a few items ten are never too many."""
    await plant(place, "a balance", "a total", "a line gone")
    halted, held = await repair(place, limits=Limits(changes_min=2))
    done, _ = await repair(place, limits=Limits(changes_min=3))

    assert (halted.status, set(outcomes(held).values())) == ("HALTED", {"DEFERRED"})
    assert "3 findings in our own records are more than the 2" in only(halted.alarms)
    assert (done.status, done.outcomes) == ("DONE", {"REPAIRED": 3})
    assert Limits().allow(100) == 10 and Limits().allow(50_000) == 500 and Limits().allow(10**9) == 1_000


async def test_repairing_twice_under_one_run_changes_nothing_twice(place: Place) -> None:
    """Killed after a repair and before it was on record, a run does it again and gets the first answer."""
    await plant(place, "a line gone")
    async with at_work(place.store) as writer:
        work = reconciler(place.store, writer)
        run = await work.run(trigger="manual", actor="tests", repairs="all")
        ledger = await place.select("SELECT * FROM stock_transaction")
        await place.alter(
            "UPDATE reconciliation_run SET status = 'RUNNING', ended_at = NULL, part = 'repair', place = NULL",
            "DELETE FROM reconciliation_repair",
            "UPDATE reconciliation_finding SET resolved_at = NULL",
        )
        again = await work.turn()

    assert again is not None
    assert (again.id, again.outcomes) == (run.id, {"REPAIRED": 1})
    assert ledger == await place.select("SELECT * FROM stock_transaction")


async def test_a_run_that_is_taken_up_repairs_what_has_come_since(place: Place, catalog: MemoryCatalog) -> None:
    """Killed after a repair, it finds another item on sale as well: that is no repetition of what it did."""
    await mug(place.store, catalog, RED, BLUE)
    await tell(place.store, "ProductDeleted", "mug")
    catalog._products.pop("mug")
    red, blue = [Activate(inventory_item_id=item.id) for item in (await place.store.products(["mug"]))["mug"].items]
    await carry_out(place.store, red, product="mug")
    await repair(place, catalog)
    run, made = await repair(place, catalog)
    assert outcomes(made)["PRODUCT_DELETED"] == "REPAIRED"

    await carry_out(place.store, red, blue, product="mug")
    await place.alter(
        f"UPDATE reconciliation_run SET status = 'RUNNING', ended_at = NULL, part = 'repair' WHERE id = '{run.id}'",
        "DELETE FROM reconciliation_repair",
        "UPDATE reconciliation_finding SET resolved_at = NULL",
    )
    again, made = await repair(place, catalog)

    assert (again.id, again.status, outcomes(made)["PRODUCT_DELETED"]) == (run.id, "DONE", "REPAIRED")
    assert set((await statuses(place.store, "mug")).values()) == {"INACTIVE"}


async def test_of_runs_that_are_asked_for_at_once_one_is(place: Place) -> None:
    """The others are told which, though nobody has reconciled before."""
    act = Act(actor="alice", reason="to see")
    await asyncio.gather(*(place.store.reconciliations(1) for _ in range(4)))  # the pool is filled
    asked = [place.store.request_reconciliation(f"rec_{n}", deep=True, repairs="safe", act=act) for n in range(4)]
    answers = await asyncio.gather(*asked, return_exceptions=True)

    (run,) = await place.store.reconciliations(10)
    assert [each for each in answers if isinstance(each, Run)] == [run]
    refused = [each for each in answers if isinstance(each, Conflict)]
    assert [each.extra for each in refused] == [{"runId": run.id}] * 3
    assert (await place.store.idle_reconciliation()) == run


async def test_a_run_goes_on_where_it_was_broken_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has been through is not looked at again, and counts."""
    monkeypatch.setattr(reconciliation, "RECORD_SECONDS", 0)
    await plant(place, "a total", "what came long ago")
    async with at_work(place.store) as writer:
        slow = asyncio.create_task(reconciler(place.store, writer, rate=1).run(trigger="manual", actor="tests"))
        while not (runs := await place.store.reconciliations(1)) or not runs[0].looked_at:
            await asyncio.sleep(0.02)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        (broken,) = await place.store.reconciliations(2)
        assert (broken.status, broken.part, broken.findings) == ("RUNNING", "stock", {})
        run = await reconciler(place.store, writer).run(trigger="manual", actor="tests")

    assert (run.id, run.status) == (broken.id, "DONE")
    assert run.findings == {"TOTALS_MISMATCH": 1, "RECEIVED_MISMATCH": 1}


async def test_a_run_is_asked_for_and_cancelled(place: Place) -> None:
    """One at a time; whoever reconciles does it within a turn, and stops when it is cancelled."""
    await plant(place, "a total")
    act = Act(actor="alice", reason="to see")
    asked = await place.store.request_reconciliation("rec_1", deep=True, repairs="safe", act=act)
    with pytest.raises(Conflict, match="rec_1 has not ended"):
        await place.store.request_reconciliation("rec_2", deep=True, repairs="safe", act=act)
    async with at_work(place.store) as writer:
        done = await reconciler(place.store, writer).turn()
        assert done is not None
        assert (asked.status, done.id, done.status, done.actor) == ("REQUESTED", "rec_1", "DONE", "alice")
        assert done.outcomes == {"REPAIRED": 1}

        await place.store.request_reconciliation("rec_3", deep=True, repairs="safe", act=act)
        slow = asyncio.create_task(reconciler(place.store, writer, rate=1).turn())
        while (await place.store.reconciliations(1))[0].status == "REQUESTED":
            await asyncio.sleep(0.02)
        await place.store.cancel_reconciliation("rec_3", act)
        ended = await slow
    assert ended is not None and ended.status == "CANCELLED"
    with pytest.raises(Conflict, match="has ended"):
        await place.store.cancel_reconciliation("rec_3", act)
    with pytest.raises(NotFound):
        await place.store.cancel_reconciliation("rec_9", act)
    acts = await place.select("SELECT actor, action, subject, reason FROM audit ORDER BY id")
    assert [(row["action"], row["subject"]) for row in acts] == [
        ("reconciliation.request", "rec_1"),
        ("reconciliation.request", "rec_3"),
        ("reconciliation.cancel", "rec_3"),
    ]


# -- the catalogue ---------------------------------------------------------------------------------------------------


RED, BLUE = ProductVariant("var_1", "MUG-RED", "Mug, red"), ProductVariant("var_2", "MUG-BLUE", "Mug, blue")


@pytest.fixture
def catalog() -> MemoryCatalog:
    """A Product Service with one product nobody here has anything to do with."""
    catalog = MemoryCatalog()
    catalog.put(CatalogProduct(id="other", sku="OTHER", name="Other"))
    return catalog


async def mug(store: Store, catalog: MemoryCatalog, *variants: ProductVariant, id: str = "mug") -> None:
    """Have a product at the Product Service, and hear of it."""
    await stocked(store, 1, sku=f"FILLER-{id}", product=f"filler-{id}")
    catalog.put(CatalogProduct(id=f"filler-{id}", sku=f"FILLER-{id}", name=f"FILLER-{id}"))
    catalog.put(CatalogProduct(id=id, sku="MUG", name="Mug"), *variants)
    await tell(store, "ProductCreated", id, *variants)


async def tell(store: Store, type: Any, id: str, *variants: ProductVariant) -> None:
    """Apply a product event of a minute ago."""
    sku = None if variants else "MUG"
    event = ProductEvent(
        event_id=f"{type}-{id}",
        event_type=type,
        event_version="1.0.0",
        timestamp=datetime.now(UTC) - timedelta(minutes=1),
        payload=ProductPayload(product_id=id, sku=sku, name="Mug", variants=variants),
    )
    await carry_out(store, ApplyProductEvent(event=event, policy=MAKING), product=id)


async def statuses(store: Store, id: str) -> dict[str, str]:
    """How a product's items stand, by SKU."""
    return {item.sku: item.status for item in (await store.products([id]))[id].items}


async def test_names_and_skus_follow_the_product_service(place: Place, catalog: MemoryCatalog) -> None:
    """A lost ProductUpdated is made up for; so is a name that somebody edited here."""
    await mug(place.store, catalog, RED, BLUE)
    items = (await place.store.products(["mug"]))["mug"].items
    blue = only([item for item in items if item.sku == "MUG-BLUE"])
    await carry_out(place.store, UpdateItem(inventory_item_id=blue.id, patch=ItemPatch(name="Navy mug")), product="mug")
    catalog._products.pop("other")
    catalog.put(CatalogProduct(id="mug", sku="MUG", name="Mug"), ProductVariant("var_1", "CUP-RED", "Cup, red"), BLUE)
    run, made = await repair(place, catalog, repairs="safe")
    second, _ = await repair(place, catalog, repairs="safe")

    assert outcomes(made) == {"SKU_DRIFT": "REPAIRED", "NAME_DRIFT": "REPAIRED"}
    named = {item.sku: item.name for item in (await place.store.products(["mug"]))["mug"].items}
    assert named == {"CUP-RED": "Cup, red", "MUG-BLUE": "Mug, blue"}
    assert (run.present, run.absent, second.findings) == (2, 0, {})


async def test_variants_without_items_get_them(place: Place, catalog: MemoryCatalog) -> None:
    """Those that were added, and products that nobody told us of at all, by the Product Service's list."""
    await mug(place.store, catalog, RED)
    catalog.put(CatalogProduct(id="mug", sku="MUG", name="Mug"), RED, BLUE)
    _, made = await repair(place, catalog, repairs="safe")

    assert {key: each.outcome for key, each in made.items()} == {
        ("ITEMS_MISSING", "mug"): "REPAIRED",
        ("ITEMS_MISSING", "other"): "REPAIRED",
    }
    assert await statuses(place.store, "mug") == {"MUG-RED": "ACTIVE", "MUG-BLUE": "ACTIVE"}
    assert await statuses(place.store, "other") == {"OTHER": "ACTIVE"}
    assert (await repair(place, catalog, repairs="safe"))[0].findings == {}


async def test_absence_is_believed_the_second_time(place: Place, catalog: MemoryCatalog) -> None:
    """A product that is gone is taken off sale when two runs have missed it, and only by who repairs all."""
    await mug(place.store, catalog)
    await mug(place.store, catalog, RED, id="cup")
    catalog._products.pop("mug")
    catalog._products.pop("other")
    await tell(place.store, "ProductDeleted", "cup")
    item = only((await place.store.products(["cup"]))["cup"].items)
    await carry_out(place.store, Activate(inventory_item_id=item.id), product="cup")
    catalog._products.pop("cup")

    first, once = await repair(place, catalog)
    assert outcomes(once) == {"PRODUCT_GONE": "DEFERRED", "PRODUCT_DELETED": "DEFERRED"}
    assert "ACTIVE" in (await statuses(place.store, "mug")).values()
    _, careful = await repair(place, catalog, repairs="safe")
    assert set(outcomes(careful).values()) == {"PLANNED"}
    _, twice = await repair(place, catalog)

    assert outcomes(twice) == {"PRODUCT_GONE": "REPAIRED", "PRODUCT_DELETED": "REPAIRED"}
    assert await statuses(place.store, "mug") == {"MUG": "INACTIVE"}
    assert await statuses(place.store, "cup") == {"MUG-RED": "INACTIVE"}
    assert (first.present, first.absent) == (2, 2)
    catalog.put(CatalogProduct(id="mug", sku="MUG", name="Mug"))
    _, back = await repair(place, catalog, repairs="safe")
    assert outcomes(back) == {"PRODUCT_RETURNED": "REPAIRED"}
    assert await statuses(place.store, "mug") == {"MUG": "ACTIVE"}


async def test_a_product_service_that_has_nothing_is_not_believed(
    place: Place, catalog: MemoryCatalog, caplog: pytest.LogCaptureFixture
) -> None:
    """404 for everything deactivates nothing, however often, and raises an alarm (F23)."""
    for number in range(3):
        await mug(place.store, catalog, ProductVariant(f"v{number}", f"S-{number}", "S"), id=f"mug-{number}")
    catalog._products.clear()
    runs = [(await repair(place, catalog))[0] for _ in range(3)]

    assert {run.status for run in runs} == {"HALTED"}
    assert all("has none of the 6 products" in only(run.alarms) for run in runs)
    assert [run.outcomes for run in runs] == [{"DEFERRED": 6}] * 3
    assert {row["status"] for row in await place.select("SELECT status FROM inventory_item")} == {"ACTIVE"}
    assert any(record.levelname == "ERROR" and "has none" in record.getMessage() for record in caplog.records)


async def test_a_product_service_that_goes_away_proves_nothing(place: Place, catalog: MemoryCatalog) -> None:
    """The run says so, and resolves nothing that it could not look at."""
    await mug(place.store, catalog, RED)
    catalog.put(CatalogProduct(id="mug", sku="MUG", name="Mug"), ProductVariant("var_1", "MUG-RED", "Rouge"))
    catalog._products.pop("other")
    await repair(place, catalog, repairs="plan")
    catalog.away = True
    run, _ = await repair(place, catalog, repairs="plan")

    assert "could not be compared to the end" in only(run.alarms)
    assert "catalog" not in run.done
    assert [each.kind for each in await place.store.findings(limit=10)] == ["NAME_DRIFT"]


async def test_what_is_on_its_way_is_waited_for(place: Place, catalog: MemoryCatalog) -> None:
    """An event that arrives between the two looks leaves nothing to find."""
    await mug(place.store, catalog, RED)
    catalog._products.pop("other")
    catalog.put(CatalogProduct(id="mug", sku="MUG", name="Mug"), RED, BLUE)
    async with at_work(place.store) as writer:
        survey = CatalogSurvey(place.store, catalog, settle_seconds=0.6)
        work = Reconciliation(place.store, None, survey, minutes=0, second_look_seconds=0)
        running = asyncio.create_task(work.run(trigger="manual", actor="tests"))
        await asyncio.sleep(0.3)
        event = ProductEvent(
            event_id="late",
            event_type="ProductCreated",
            event_version="1.0.0",
            timestamp=datetime.now(UTC),
            payload=ProductPayload(product_id="mug", variants=(RED, BLUE)),
        )
        await carry_out(place.store, ApplyProductEvent(event=event, policy=MAKING), product="mug")
        run = await running

    assert run.findings == {}
    assert writer is not None


async def test_who_sells_meanwhile_is_not_in_the_way(place: Place) -> None:
    """Corrected while others write to the same products: what they did counts, and the books agree in the end."""
    subjects = await plant(place, "a line of more", "a total")
    item = subjects["a line of more"]
    other = (await place.store.products(["prod a total"]))["prod a total"].items[0].id
    async with at_work(place.store) as writer:

        async def receive() -> None:
            for number in range(40):
                await submit(writer, Receive(inventory_item_id=(item, other)[number % 2], quantity=1))

        sellers = [asyncio.create_task(receive()) for _ in range(4)]
        run = await reconciler(place.store, writer).run(trigger="manual", actor="tests", repairs="all")
        await asyncio.gather(*sellers)
        after = await reconciler(place.store, writer).run(trigger="manual", actor="tests", repairs="all")

    assert (run.findings, run.outcomes) == ({"RESERVED_MISMATCH": 1, "TOTALS_MISMATCH": 1}, {"REPAIRED": 2})
    assert after.findings == {}
    received = await place.select("SELECT count(*) AS rows FROM stock_transaction WHERE on_hand_change = 1")
    assert received[0]["rows"] == 160


# -- a whole shop ----------------------------------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.timeout(300)
async def test_a_shop_is_put_right_while_it_sells(postgres_url: str) -> None:
    """200 things wrong, of ten kinds, among 5,000 items: all found, none invented, all repaired; then nothing is.

    What the Product Service does not have is repaired by the second run. `python tests/planted_run.py 100000 1000` does
    it at full size.
    """
    outcome = await reconciled(postgres_url, 5_000, 200)
    first, second, third = outcome.runs

    gone = {(kind, subject) for kind, subject in outcome.planted if kind == "PRODUCT_GONE"}
    assert outcome.seen == [outcome.planted, gone, set()]
    assert first.outcomes == {"REPAIRED": 180, "DEFERRED": 20}
    assert (second.outcomes, third.outcomes, third.findings) == ({"REPAIRED": 20}, {}, {})
    assert outcome.rows_before_last == outcome.rows_after_last
    assert outcome.sold > 100
