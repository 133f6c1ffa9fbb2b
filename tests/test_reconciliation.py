"""Reconciliation: what disagrees is found, once, and nothing else is, whoever writes meanwhile."""

import asyncio
import json
import logging
import os
import pty
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from audit import books
from planted import IN_HISTORY, LAST, PLANTS, Place, plant, unchecked
from private_server import LOOPBACK
from service import COMMAND, environment
from stores import at_work, hold, migrated, only, stocked, submit

from adapters.registry import connect
from adapters.sql.store import SqlStore
from core.errors import Busy, InventoryError
from core.findings import OF_CATALOG, PARTS, Finding, Run
from core.operations import (
    Activate,
    Adjust,
    Confirm,
    Count,
    Deactivate,
    Fulfil,
    Operation,
    Receive,
    Release,
    Reserve,
    ReserveLine,
    Ship,
    Transfer,
)
from core.reconciling import reconciliation
from core.reconciling.reconciliation import Reconciliation
from core.reconciling.survey import PAGES
from core.stock import Item, Reservation
from core.writing.writer import Writer
from entrypoints.commands.reconcile import Report, _print
from entrypoints.config import Config, SettingError
from entrypoints.processes import reconciler
from ports.store import Store

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services)
OPERATIONS = 150
OWN = [part for part in PARTS if part not in OF_CATALOG]


@pytest.fixture(params=["sqlite", POSTGRESQL])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """An empty store without CHECKs."""
    server = request.param == "postgresql"
    url = request.getfixturevalue("database") if server else f"sqlite:///{tmp_path}/inventory.db"
    async with unchecked(url) as place:
        yield place


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let one statement read only so much of each part."""

    def read(count: int) -> None:
        for part in PARTS:
            monkeypatch.setitem(PAGES, part, count)

    return read


async def reconcile(store: Store, *, deep: bool = True, pause: float = 0.0) -> Run:
    """Reconcile at once."""
    return await Reconciliation(store, minutes=0, second_look_seconds=pause).run(
        trigger="manual", actor="tests", deep=deep
    )


async def standing(store: Store) -> list[tuple[str, str]]:
    """Kind and subject of what stands."""
    return [(finding.kind, finding.subject) for finding in await store.findings(limit=1_000)]


# -- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [2, 500])
async def test_everything_planted_is_found_once_and_nothing_else(
    page: int, place: Place, small_pages: Callable[[int], None]
) -> None:
    """Each kind, with what was expected and what was found, wherever pages begin and end."""
    small_pages(page)
    subjects = await plant(place, *PLANTS)

    run = await reconcile(place.store)

    planted = {name: each for name, each in PLANTS.items() if each.kind}
    found = {(each.kind, each.subject): each for each in await place.store.findings(limit=1_000)}
    assert sorted(found) == sorted((each.kind, subjects[name]) for name, each in planted.items())
    for name, each in planted.items():
        finding = found[each.kind, subjects[name]]
        assert finding.product_id == f"prod {name}"
        if each.expected is not None:
            assert (name, finding.expected, finding.found) == (name, each.expected, each.found)
    assert sum(run.findings.values()) == run.raised == len(planted)
    assert (run.products, run.items) == (len(PLANTS), 2 * len(PLANTS))
    assert run.ended_at is not None


async def test_a_quick_run_finds_what_stands_and_resolves_nothing(place: Place) -> None:
    """It does not read history, so it must not say of anything there that it is gone."""
    subjects = await plant(place, *PLANTS)
    stands = {(str(PLANTS[name].kind), subjects[name]) for name in PLANTS.keys() - IN_HISTORY if PLANTS[name].kind}

    quick = await reconcile(place.store, deep=False)
    assert set(await standing(place.store)) == stands

    deep = await reconcile(place.store)
    again = await reconcile(place.store, deep=False)
    assert (quick.raised, deep.raised, again.raised) == (len(stands), len(IN_HISTORY), 0)
    assert deep.resolved == again.resolved == 0
    assert len(await standing(place.store)) == len(stands) + len(IN_HISTORY)


async def test_pages_of_findings_go_on_where_the_last_one_ended(place: Place) -> None:
    """By kind and subject, none left out and none twice."""
    await plant(place, "a balance", "a change", "totals", "rows between")
    await reconcile(place.store)
    together = await place.store.findings(limit=10)

    apart, last = [], None
    while page := await place.store.findings(after=last, limit=1):
        apart += page
        last = page[-1]

    assert len(together) == 4
    assert apart == together


# -- from run to run -------------------------------------------------------------------------------------------------


async def test_the_same_is_not_raised_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A second run sees the same and only says when; both say how much there is, and how much of it is new."""
    await plant(place, "a balance", "totals")
    with caplog.at_level(logging.INFO, "core.reconciling.reconciliation"):
        first = await reconcile(place.store)
        before = await place.store.findings(limit=10)
        second = await reconcile(place.store)
    after = await place.store.findings(limit=10)

    assert (first.raised, second.raised) == (2, 0)
    assert first.findings == second.findings == {"LEDGER_MISMATCH": 1, "TOTALS_MISMATCH": 1}
    assert [each.first_seen_at for each in after] == [each.first_seen_at for each in before]
    assert all(new.last_seen_at > old.last_seen_at for new, old in zip(after, before, strict=True))
    assert {each.run_id for each in after} == {second.id}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [("2 of it new" in each, "0 of it new" in each) for each in warnings] == [(True, False), (False, True)]
    assert all("1 LEDGER_MISMATCH, 1 TOTALS_MISMATCH" in each for each in warnings)


async def test_what_was_put_right_is_resolved(place: Place) -> None:
    """By the next run that looks at everything; each run still shows what stood while it was on, and what comes back
    is new.
    """
    await plant(place, "a total", "a change")
    first = await reconcile(place.store)
    await place.alter("UPDATE product SET total_reserved = 3")
    second = await reconcile(place.store)

    assert (second.resolved, second.raised, second.findings) == (1, 0, {"LEDGER_MISMATCH": 1})
    assert [kind for kind, _ in await standing(place.store)] == ["LEDGER_MISMATCH"]
    seen = await place.store.findings(first, limit=10)
    assert [(each.kind, each.resolved_at is None) for each in seen] == [
        ("LEDGER_MISMATCH", True),
        ("TOTALS_MISMATCH", False),
    ]
    assert [each.kind for each in await place.store.findings(second, limit=10)] == ["LEDGER_MISMATCH"]

    await place.alter("UPDATE product SET total_reserved = 4 WHERE id = 'prod a total'")
    third = await reconcile(place.store)
    back = (await place.store.findings(third, limit=10))[1]
    assert (third.raised, back.resolved_at) == (1, None)
    assert back.first_seen_at >= third.started_at


async def test_what_is_gone_at_the_second_look_is_no_finding(place: Place) -> None:
    """Only what is seen twice counts."""
    await plant(place, "a total", "a change")
    running = asyncio.create_task(reconcile(place.store, pause=0.5))
    await asyncio.sleep(0.25)
    await place.alter("UPDATE product SET total_reserved = 3")

    assert (await running).findings == {"LEDGER_MISMATCH": 1}
    assert [kind for kind, _ in await standing(place.store)] == ["LEDGER_MISMATCH"]


async def test_old_runs_and_what_was_resolved_long_ago_are_dropped(place: Place) -> None:
    """After 30 days; what stands stays, however old."""
    await plant(place, "a total", "a change")
    first = await reconcile(place.store)
    await place.alter("UPDATE product SET total_reserved = 3")
    second = await reconcile(place.store)
    assert {run.id for run in await place.store.reconciliations(10)} == {first.id, second.id}

    long_ago = _sql(timedelta(days=-31))
    await place.alter(
        f"UPDATE reconciliation_run SET started_at = {long_ago} WHERE id = '{first.id}'",
        f"UPDATE reconciliation_finding SET first_seen_at = {long_ago}",
        f"UPDATE reconciliation_finding SET resolved_at = {long_ago} WHERE resolved_at IS NOT NULL",
    )
    third = await reconcile(place.store)
    assert len(await place.store.reconciliations(10)) == 3, "ending a run takes longer the more there is to drop"
    assert await purged(place.store) == 2
    assert [run.id for run in await place.store.reconciliations(10)] == [third.id, second.id]
    assert [row["kind"] for row in await place.select("SELECT kind FROM reconciliation_finding")] == ["LEDGER_MISMATCH"]
    assert third.raised == 0


async def purged(store: Store, limit: int = 1_000) -> int:
    """Drop what is over; return how many rows went."""
    return await store.purge(answers_hours=48, events_days=30, inbox_days=90, limit=limit)


async def test_the_repairs_of_an_old_run_go_a_few_at_a_time(place: Place) -> None:
    """The run goes with the last of them; one that has not ended stays."""
    run, young = await reconcile(place.store), await reconcile(place.store)
    row = "'KIND', 'subject {0}', 'product', 'PLANNED', NULL, '{{}}', '{{}}', " + _sql(timedelta())
    await place.alter(
        *(f"INSERT INTO reconciliation_repair VALUES ('{run.id}', {row.format(number)})" for number in range(5)),
        f"INSERT INTO reconciliation_repair VALUES ('{young.id}', {row.format(0)})",
        f"UPDATE reconciliation_run SET started_at = {_sql(timedelta(days=-31))} WHERE id = '{run.id}'",
    )

    await place.alter(f"UPDATE reconciliation_run SET status = 'RUNNING' WHERE id = '{run.id}'")
    assert await purged(place.store) == 0
    await place.alter(f"UPDATE reconciliation_run SET status = 'DONE' WHERE id = '{run.id}'")
    assert [await purged(place.store, limit=2) for _ in range(4)] == [2, 2, 2, 0]
    assert [each.id for each in await place.store.reconciliations(10)] == [young.id]
    assert len(await place.store.repairs(young, limit=10)) == 1


def _sql(ago: timedelta) -> str:
    return f"'{(datetime.now(UTC) + ago).isoformat(timespec='microseconds')}'"


# -- while others write ----------------------------------------------------------------------------------------------


async def test_nothing_is_invented_while_others_write(place: Place, small_pages: Callable[[int], None]) -> None:
    """Two processes' writers change everything at once: not even a first look sees anything but what was planted."""
    small_pages(50)
    subjects = await plant(place, "a change", "a total")
    planted = {(str(PLANTS[name].kind), subject) for name, subject in subjects.items()}
    items = [
        await stocked(place.store, 50, sku=f"SKU-{product}", product=f"prod_{product}", warehouse=warehouse)
        for product in range(6)
        for warehouse in ("wh_1", "wh_2")
    ]
    seen: set[tuple[str, str]] = set()
    done: list[str] = []
    rounds = 0
    async with connect("store", place.url) as other, at_work(place.store) as first, at_work(other) as second:
        clients = [asyncio.create_task(_trade(writer, items, done)) for writer in (first, second) * 4]
        while len(done) < OPERATIONS or rounds < 5:
            for part in OWN:
                seen |= await _look(place.store, part)
            rounds += 1
        run = await reconcile(place.store)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    assert seen == set(await standing(place.store)) == planted
    assert sum(run.findings.values()) == 2
    assert {"Reservation", "StockChange"} <= set(done)
    print(f"{len(done)} operations, {rounds} rounds")


async def _look(store: Store, part: Any) -> set[tuple[str, str]]:
    """Everything that one look at a part sees."""
    seen, after = set(), None
    while True:
        page = await store.compare(part, after=after, limit=PAGES[part])
        seen |= {(each.kind, each.subject) for each in page.discrepancies}
        if (after := page.next_after) is None:
            return seen


async def _trade(writer: Writer, items: list[Item], done: list[str]) -> None:
    """Do anything to anything, and note what worked."""
    dice = random.Random()
    held: list[str] = []
    while True:
        (outcome,) = await submit(writer, _any(dice, items, held))
        if isinstance(outcome, InventoryError):
            continue
        done.append(type(outcome).__name__)
        if isinstance(outcome, Reservation) and outcome.status in ("HELD", "CONFIRMED"):
            held.append(outcome.id)


def _any(dice: random.Random, items: list[Item], held: list[str]) -> Operation:
    item = dice.choice(items)
    there = "wh_2" if item.warehouse_id == "wh_1" else "wh_1"
    lines = tuple(ReserveLine(inventory_item_id=each.id, quantity=2) for each in dice.sample(items, 3))
    choices: list[Operation] = [
        *(Reserve(lines=lines) for _ in range(5)),
        Receive(inventory_item_id=item.id, quantity=9),
        Ship(inventory_item_id=item.id, quantity=2),
        Adjust(inventory_item_id=item.id, delta=-1, reason="broken"),
        Count(inventory_item_id=item.id, counted_quantity=dice.randint(0, 60)),
        Transfer(inventory_item_id=item.id, quantity=1, to_warehouse_id=there),
        Deactivate(inventory_item_id=item.id),
        *(Activate(inventory_item_id=item.id) for _ in range(3)),
    ]
    if held:
        id = held.pop(dice.randrange(len(held)))
        choices += [step(reservation_id=id) for step in (Release, Release, Fulfil, Fulfil, Confirm)]
    return dice.choice(choices)


async def test_dropping_old_events_leaves_no_gap(place: Place) -> None:
    """However many go at a time, and wherever the database keeps them, what is left begins at one and goes on."""
    await plant(place, "nothing")
    lease = await place.store.acquire("relay", "test", seconds=60)
    assert lease is not None
    assert await place.store.mark_published(lease, await place.store.pending(100))
    await place.alter("UPDATE outbox SET aggregate_id = 'moved' WHERE sequence <= 2")
    await asyncio.sleep(0.01)

    assert await place.store.purge(answers_hours=1, events_days=0, inbox_days=1, limit=3) == 3
    assert await _look(place.store, "events") == set()
    assert [row["sequence"] for row in await place.select("SELECT sequence FROM outbox ORDER BY sequence")] == [
        *range(4, LAST + 1)
    ]


# -- one at a time, and in time --------------------------------------------------------------------------------------


async def test_there_is_one_run_at_a_time(place: Place) -> None:
    """Who comes while a run is on is told so, and nothing is put on record of it."""
    await plant(place, "a total")
    running = asyncio.create_task(reconcile(place.store, pause=0.5))
    await asyncio.sleep(0.25)
    async with connect("store", place.url) as other:
        with pytest.raises(Busy, match="Another reconciliation is going on"):
            await reconcile(other)

    run = await running
    assert [each.id for each in await place.store.reconciliations(10)] == [run.id]
    assert (await reconcile(place.store)).raised == 0


async def test_who_has_lost_the_lease_stops(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was asleep while another took over gives way, and resolves nothing that the other has seen."""
    await plant(place, "a total")
    monkeypatch.setattr(reconciliation, "LEASE_SECONDS", 0.1)
    asleep = asyncio.create_task(reconcile(place.store, pause=0.6))
    await asyncio.sleep(0.3)
    await place.alter(f"UPDATE lease SET owner = 'another', token = 9, expires_at = {_sql(timedelta(minutes=1))}")

    with pytest.raises(Busy):
        await asleep
    (run,) = await place.store.reconciliations(10)
    assert run.ended_at is None


@pytest.mark.parametrize("slow", [{"second_look_seconds": 1.0}, {"second_look_seconds": 0, "rate": 1}])
async def test_a_run_that_rests_keeps_its_lease(
    place: Place, monkeypatch: pytest.MonkeyPatch, slow: dict[str, Any]
) -> None:
    """For longer than a lease lasts, before a second look as well as for the rate: it stays the only one."""
    await plant(place, "a total")
    monkeypatch.setattr(reconciliation, "LEASE_SECONDS", 0.3)
    work = Reconciliation(place.store, minutes=0, **slow)
    run = asyncio.create_task(work.run(trigger="manual", actor="tests", deep=False))
    await asyncio.sleep(0.8)
    assert not run.done()
    assert await place.store.acquire("reconciliation", "another", seconds=60) is None

    assert ((await run).status, (await run).findings) == ("DONE", {"TOTALS_MISMATCH": 1})
    assert await place.store.acquire("reconciliation", "another", seconds=60)


async def test_a_run_that_is_broken_off_has_no_end_and_is_taken_up(place: Place) -> None:
    """Being told to stop gives the lease back at once; who comes next goes on with it, or gives it up for another."""
    await plant(place, "a total")
    loop = Reconciliation(place.store, minutes=15, second_look_seconds=30)
    await loop.start()
    await until(lambda: place.store.reconciliations(1))
    await loop.stop()
    (broken,) = await place.store.reconciliations(10)
    assert (broken.ended_at, broken.trigger, broken.actor) == (None, "interval", "inventory-service")

    quick = await reconcile(place.store, deep=False)
    assert (quick.findings, quick.raised) == ({"TOTALS_MISMATCH": 1}, 1)
    assert [each.status for each in await place.store.reconciliations(10)] == ["DONE", "CANCELLED"]
    await place.alter(f"UPDATE reconciliation_run SET status = 'RUNNING', ended_at = NULL WHERE id = '{broken.id}'")
    run = await Reconciliation(place.store, minutes=15, second_look_seconds=0).turn()
    assert run is not None
    assert (run.id, run.status, run.findings) == (broken.id, "DONE", {"TOTALS_MISMATCH": 1})


async def test_it_runs_every_interval_and_looks_at_everything_once_a_day(place: Place) -> None:
    """Whoever ran last; a deep run that never ended does not count as one."""
    loop = Reconciliation(place.store, minutes=15, second_look_seconds=0)

    async def next_turn(**ago: float) -> tuple[bool, str] | None:
        if ago:
            await place.alter(f"UPDATE reconciliation_run SET started_at = {_sql(-timedelta(**ago))}")
        neighbour = Reconciliation(place.store, minutes=15, second_look_seconds=0)  # who has not seen when it is due
        run = await neighbour.turn()
        return (run.deep, run.trigger) if run else None

    first = await loop.turn()
    assert first is not None
    assert first.deep
    assert await next_turn() is None
    assert await next_turn(minutes=14) is None
    assert await next_turn(minutes=16) == (False, "interval")
    assert await next_turn(hours=23) == (False, "interval")
    assert await next_turn(hours=25) == (True, "interval")
    await place.alter("UPDATE reconciliation_run SET ended_at = NULL, status = 'CANCELLED' WHERE deep")
    assert await next_turn(minutes=16) == (True, "interval")


async def test_until_it_is_due_the_store_is_not_asked_when(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process looks every second, for what was asked for; its own next run it knows of."""
    since, asked = SqlStore.since_reconciled, 0

    async def counted(self: SqlStore, *, deep: bool = False) -> float:
        nonlocal asked
        asked += 1
        return await since(self, deep=deep)

    await reconcile(place.store)
    monkeypatch.setattr(SqlStore, "since_reconciled", counted)
    loop = Reconciliation(place.store, minutes=0.005, second_look_seconds=0)
    await place.alter(f"UPDATE reconciliation_run SET started_at = {_sql(timedelta(seconds=1.5))}")
    assert [await loop.turn() for _ in range(5)] == [None] * 5
    assert asked == 1
    await asyncio.sleep(1.9)
    assert await loop.turn() is not None


async def test_an_interval_of_0_is_never(place: Place) -> None:
    """Starting it starts nothing."""
    loop = Reconciliation(place.store, minutes=0)
    await loop.start()
    await asyncio.sleep(0.1)
    await loop.stop()

    assert await place.store.reconciliations(1) == []


# -- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Place]:
    """A SQLite store for commands that run in ``tmp_path``."""
    url = f"sqlite:///{tmp_path}/inventory.db"
    async with migrated(url) as store:
        yield Place(url, store)


def inventory(*arguments: str, store: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [COMMAND, *arguments], env=environment(store=store), text=True, check=False, timeout=60, **streams
    )


@contextmanager
def process(*arguments: str, log: Path, **settings: Any) -> Iterator[psutil.Popen]:
    """Run a command beside the test and kill what is left of it in the end."""
    with log.open("w") as file:
        started = psutil.Popen([COMMAND, *arguments], env=environment(**settings), stdout=file, stderr=file)
    try:
        yield started
    finally:
        with suppress(psutil.NoSuchProcess):
            started.kill()
        started.wait()


async def until(condition: Callable[[], Any]) -> Any:
    """Return what an awaited condition says as soon as it says something, 20 seconds at most."""
    async with asyncio.timeout(20):
        while not (value := await condition()):
            await asyncio.sleep(0.05)
    return value


async def test_the_commands_say_what_was_found(shop: Place) -> None:
    """``run`` ends with 1 when there is something, and with 0 after a progress bar when not; ``show`` and ``list`` tell
    of it afterwards.
    """
    subjects = await plant(shop, "a total", "a change")
    found = inventory("reconcile", "run", "--dry-run", "--json", store=shop.url)
    told = json.loads(found.stdout)
    shown = inventory("reconcile", "show", store=shop.url)
    await shop.alter(
        "UPDATE product SET total_reserved = 3",
        "UPDATE stock_transaction SET on_hand_change = 5 WHERE on_hand_change = 6",
    )
    clean, drawn = on_a_terminal("reconcile", "run", store=shop.url)
    runs = json.loads(inventory("reconcile", "list", "--json", store=shop.url).stdout)

    assert (found.returncode, shown.returncode, clean.returncode) == (1, 0, 0)
    looked = ("2 products", "0 events that wait", "2 expected receipts", "12 ledger rows", "20 events")
    looked += ("2 findings again, to repair them",)
    assert found.stderr.splitlines() == [f"looked at {part}" for part in looked]
    assert {(each["kind"], each["inventoryItemId"] or each["productId"]) for each in told["findings"]} == {
        ("TOTALS_MISMATCH", subjects["a total"]),
        ("LEDGER_MISMATCH", subjects["a change"]),
    }
    assert told["run"]["findings"] == {"TOTALS_MISMATCH": 1, "LEDGER_MISMATCH": 1}
    assert all(word in shown.stdout for word in ("quantityReserved 3", "quantityReserved 4", "prod a total", "2 new"))
    assert "found: nothing. 0 new, 2 resolved" in only(clean.stdout.splitlines())
    assert all(words in drawn for words in ("Looking at products", "2/2", "Looking at ledger rows", "12/12"))
    assert [(run["findings"], run["actor"], run["deep"]) for run in runs] == [
        ({}, "inventory-cli", True),
        ({"TOTALS_MISMATCH": 1, "LEDGER_MISMATCH": 1}, "inventory-cli", True),
    ]


def on_a_terminal(*arguments: str, store: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a command whose standard error is a terminal, and return what was drawn on it as well."""
    screen, terminal = pty.openpty()
    with ThreadPoolExecutor(max_workers=1) as watcher:
        drawn = watcher.submit(_watch, screen)
        done = inventory(*arguments, store=store, stderr=terminal)
        os.close(terminal)
        return done, drawn.result()


def _watch(screen: int) -> str:
    drawn = b""
    with os.fdopen(screen, "rb", buffering=0) as output, suppress(OSError):  # raised when nobody writes to it any more
        while piece := output.read(10_000):
            drawn += piece
    return drawn.decode()


@pytest.mark.parametrize(
    ("store", "code", "sentence"),
    [
        (f"postgresql://nobody@{LOOPBACK}:1/none", 3, "cannot be reached"),
        ("sqlite:///{folder}/new.db", 2, "run `inventory migrate`"),
    ],
)
def test_without_a_store_that_is_fit_for_it_it_says_so(store: str, code: int, sentence: str, tmp_path: Path) -> None:
    """One sentence, and an exit code that is not that of findings."""
    ended = inventory("reconcile", "run", store=store.format(folder=tmp_path))

    assert (ended.returncode, ended.stdout) == (code, "")
    assert sentence in only(ended.stderr.splitlines())


async def test_a_run_that_is_killed_has_no_end_and_the_next_one_takes_it_up(shop: Place, tmp_path: Path) -> None:
    """``kill -9`` between the two looks: nothing is found yet, and, its lease over, the next run finds it."""
    await plant(shop, "a total")
    with process("reconcile", "run", "--dry-run", log=tmp_path / "log", store=shop.url) as killed:
        await until(lambda: shop.store.reconciliations(1))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert await standing(shop.store) == []
    with pytest.raises(Busy):
        await reconcile(shop.store)
    await shop.alter(f"UPDATE lease SET expires_at = {_sql(timedelta(seconds=-1))}")

    run = await reconcile(shop.store)
    assert (run.findings, run.raised) == ({"TOTALS_MISMATCH": 1}, 1)
    assert [(each.id, each.status) for each in await shop.store.reconciliations(10)] == [(run.id, "DONE")]


async def test_a_run_that_is_told_to_stop_does_not_say_that_all_is_well(shop: Place, tmp_path: Path) -> None:
    """SIGTERM ends it with 130, and the next one need not wait."""
    await plant(shop, "a total")
    with process("reconcile", "run", log=tmp_path / "log", store=shop.url) as stopped:
        await until(lambda: shop.store.reconciliations(1))
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(10) == 130

    assert (await reconcile(shop.store)).raised == 1


@pytest.mark.parametrize("command", ["reconciler", "serve"])
async def test_the_process_reconciles_by_itself_and_stops_when_told(command: str, tmp_path: Path) -> None:
    """It needs no tables when it starts: ``serve`` makes them, ``reconciler`` waits for them."""
    url, log = f"sqlite:///{tmp_path}/inventory.db", tmp_path / "log"
    with process(command, log=log, store=url, data_dir=tmp_path, port=0) as started:
        await until(lambda: _said(log, '"event": "ready"'))
        async with migrated(url) as store:
            item = await stocked(store, 10)
            await hold(store, item)
            (run,) = await until(lambda: _ended(store))
            assert (run.trigger, run.findings) == ("interval", {})
        started.send_signal(signal.SIGTERM)
        assert started.wait(10) == 0
    (await books(url)).check()


async def _said(log: Path, words: str) -> bool:
    return words in await asyncio.to_thread(log.read_text)


async def _ended(store: Store) -> list[Run]:
    return [run for run in await store.reconciliations(1) if run.ended_at]


def test_what_was_found_is_shown_as_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """An id that looks like markup is an id."""
    at = datetime(2026, 11, 26, tzinfo=UTC)
    run = Run(id="run_1", trigger="manual", actor="[/]", deep=False, started_at=at)
    finding = Finding(
        kind="TOTALS_MISMATCH",
        product_id="[/]",
        inventory_item_id=None,
        expected={},
        found={},
        run_id="run_1",
        first_seen_at=at,
        last_seen_at=at,
        resolved_at=None,
    )
    _print(Report(run, [], [finding], []), as_json=False)

    assert "[/]" in capsys.readouterr().out


def test_a_reconciler_with_nothing_to_do_does_not_start() -> None:
    """An interval of 0 is never; a process of its own would sit there for nothing."""
    with pytest.raises(SettingError, match="INVENTORY_RECONCILE_MINUTES is 0"):
        reconciler.run(Config(reconcile_minutes=0))
