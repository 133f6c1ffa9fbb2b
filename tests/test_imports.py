"""Files imported: checked before anything is done, done once whatever happens, and told row by row."""

import asyncio
import csv
import json
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from service import COMMAND, Service, environment
from stores import at_work, migrated, stocked, unasked

import core.files.imports
from adapters.memory import MemoryCatalog
from adapters.sql.store import SqlStore
from core.acts import Act
from core.catalog.products import Products
from core.errors import Unavailable
from core.files.exports import export
from core.files.imports import BATCH_ROWS, Imports, TooLarge
from core.operations import EventPolicy, Outcome, Request
from core.writing.writer import Writer
from ports.imports import Import, ImportOrder, RowError, SheetKind
from ports.leases import Lease
from ports.store import IMPORTS, ItemFilter, LedgerFilter, Store

ALICE = Act(actor="alice")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with ten of a product in one warehouse."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        await stocked(store, 10, sku="A")
        yield store


def importing(store: Store, writer: Writer, *, owner: str = "us") -> Imports:
    """Return what carries out files."""
    return Imports(store, writer, unasked(store, EventPolicy()), owner=owner)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """Yield a file as it may come."""
    for start in range(0, len(content), 1_000):
        yield content[start : start + 1_000]


async def imported(store: Store, *lines: str, **order: Any) -> tuple[Import, list[RowError]]:
    """Import a file to its end; return it with its errors."""
    async with at_work(store) as writer:
        imports = importing(store, writer)
        job = await imports.take(ImportOrder(**order), pieces("\n".join(lines).encode()), ALICE)
        while await imports.turn():
            pass
    ended = await store.import_job(job.id)
    assert ended is not None
    return ended, await store.import_errors(job.id, limit=1_000)


async def on_hand(store: Store, sku: str = "A") -> dict[str, int]:
    """Return the balances of a SKU by warehouse."""
    return {item.warehouse_id: item.on_hand for item in await store.find_items([], [sku])}


async def test_receipts_leave_ledger_rows_like_any_other(store: Store) -> None:
    """With the import as correlation id, whoever brought the file as actor, and the reference of the line."""
    job, errors = await imported(
        store, "sku,warehouseId,quantity,referenceType,referenceNumber", "A,wh_1,5,PURCHASE_ORDER,PO-1", "A,wh_1,7,,"
    )

    assert (job.status, job.kind, job.rows, job.done, job.refused, errors) == ("DONE", "receipts", 2, 2, 0, [])
    assert await on_hand(store) == {"wh_1": 22}
    (item,) = await store.find_items([], ["A"])
    rows = (await store.ledger(item.id, filter=LedgerFilter(type="RECEIPT"), cursor=None, limit=5)).rows
    told = [(row.on_hand_change, row.reference_number, row.actor, row.correlation_id) for row in rows[:2]]
    assert told == [(7, None, "alice", job.id), (5, "PO-1", "alice", job.id)]


async def test_warehouses_items_and_counts(store: Store) -> None:
    """Each kind becomes its operation; the columns tell which."""
    for lines in (
        ["name,id,priority,leadTimeMin,leadTimeMax", "Two,wh_2,5,2,4"],
        ["sku,productId,warehouseId,name,initialQuantity,metadata", 'B,prod_2,wh_2,Bee,6,"{""a"":[1]}"'],
        ["sku,warehouseId,countedQuantity,reason", "B,wh_2,4,Inventur", "A,wh_1,0,"],
    ):
        job, errors = await imported(store, *lines)
        assert (job.status, errors) == ("DONE", [])

    warehouse = next(each for each in await store.warehouses() if each.id == "wh_2")
    assert (warehouse.priority, warehouse.lead_time_days.max) == (5, 4)
    (item,) = await store.find_items([], ["B"])
    assert (item.name, item.on_hand, item.metadata, item.version) == ("Bee", 4, {"a": [1]}, 2)
    assert await on_hand(store) == {"wh_1": 0}


BAD = ("sku,warehouseId,quantity", "A,wh_1,5", "A,wh_1,5", "Z,wh_1,5", "A,wh_9,5", "A,wh_1,x", "A,wh_1,6")
WHY = [(3, "duplicate_row"), (4, "not_found"), (5, "not_found"), (6, "validation_failed")]


async def test_nothing_is_imported_while_a_row_is_not_valid(store: Store) -> None:
    """All that is wrong is told at once, with lines and codes; the corrected file is another one."""
    job, errors = await imported(store, *BAD)

    assert [(error.line, error.code) for error in errors] == WHY
    assert (job.status, job.refused, job.reason) == ("REFUSED", 4, "4 rows are not valid, so nothing was imported.")
    assert await on_hand(store) == {"wh_1": 10}


async def test_the_valid_rows_are_imported_when_asked_for(store: Store) -> None:
    """The others are told; and the same file is refused no second time, but done."""
    job, errors = await imported(store, *BAD, partial=True)
    again, _ = await imported(store, *BAD, partial=True)

    assert [(error.line, error.code) for error in errors] == WHY
    assert (job.status, job.rows, job.done, job.refused, job.succeeded) == ("DONE", 6, 6, 4, 2)
    assert again == job
    assert await on_hand(store) == {"wh_1": 21}


async def test_a_dry_run_changes_nothing(store: Store) -> None:
    """It says of the same file what an import would, and the import comes after it all the same."""
    good = ("sku,warehouseId,quantity", "A,wh_1,5")
    looked, errors = await imported(store, *BAD, dry_run=True)
    fine, _ = await imported(store, *good, dry_run=True)

    assert [(error.line, error.code) for error in errors] == WHY
    assert (looked.status, looked.done, fine.status, fine.done) == ("REFUSED", 0, "DONE", 0)
    assert await on_hand(store) == {"wh_1": 10}
    assert (await imported(store, *good))[0].done == 1


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("sku,productId,warehouseId", "A,prod_1,wh_1"), "already_exists"),
        (("sku,productId,warehouseId", "A,prod_9,wh_2"), "sku_conflict"),
        (("sku,productId,warehouseId", "N,prod_1,wh_2", "N,prod_2,wh_1"), "sku_conflict"),
        (("sku,productId,warehouseId", "N,prod_1,wh_9"), "not_found"),
        (("sku,productId,warehouseId", "N,prod_1,wh_2", "N,prod_1,wh_2"), "duplicate_row"),
        (("name,id", "One,wh_1"), "already_exists"),
        (("name,id", "New,", "New,"), "duplicate_row"),
        (("sku,inventoryItemId,warehouseId,countedQuantity", "A,,wh_1,4", "A,,wh_1,5"), "duplicate_row"),
    ],
)
async def test_what_the_store_speaks_against_is_found_before(store: Store, lines: Sequence[str], code: str) -> None:
    """In the last line each time."""
    await stocked(store, 0, sku="other", warehouse="wh_2")

    _, errors = await imported(store, *lines)

    assert [(error.line, error.code) for error in errors] == [(len(lines), code)]


async def test_what_the_rules_refuse_is_told_by_line(store: Store) -> None:
    """Though it could not be known before; the others of its batch are done."""
    job, errors = await imported(
        store, "sku,warehouseId,quantity,occurredAt", "A,wh_1,5,", "A,wh_1,6,2199-01-01T00:00:00Z", "A,wh_1,7,"
    )

    assert [(error.line, error.code) for error in errors] == [(3, "validation_failed")]
    assert "lies in the future" in errors[0].detail
    assert (job.status, job.done, job.refused) == ("DONE", 3, 1)
    assert await on_hand(store) == {"wh_1": 22}


async def test_a_file_that_is_none_is_refused_with_a_reason(store: Store) -> None:
    """And so is one without rows."""
    semicolons, _ = await imported(store, "sku;warehouseId;quantity", "A;wh_1;5")
    nothing, _ = await imported(store, "sku,warehouseId,quantity", "")

    assert semicolons.status == "REFUSED" and "commas" in (semicolons.reason or "")
    assert (nothing.status, nothing.reason) == ("REFUSED", "The file has no rows.")


async def test_a_file_that_is_too_large_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as soon as it is, not when it has come."""
    monkeypatch.setattr("core.files.imports.UPLOAD_MAX", 3_000)
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * 1_000

    async with at_work(store) as writer:
        with pytest.raises(TooLarge, match="split it"):
            await importing(store, writer).take(ImportOrder(), endless(), ALICE)
    assert asked == 4
    assert await store.import_jobs(limit=5) == []


# -- whatever happens --------------------------------------------------------------------------------------------------

ROWS = 10 * BATCH_ROWS
MANY = ("sku,warehouseId,quantity,referenceNumber", *(f"A,wh_1,1,PO-{number}" for number in range(ROWS)))


class Faulty(Writer):
    """A writer whose answers are lost now and then: the batch is committed, and nobody is told."""

    turns = 0

    async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
        """Lose every third answer."""
        outcomes = await super().submit(request, timeout=timeout)
        self.turns += 1
        if self.turns % 3 == 0:
            raise Unavailable("The answer was lost.")
        return outcomes


async def test_a_lost_answer_does_nothing_twice(store: Store) -> None:
    """The batch is asked for again by the key it had."""
    writer = Faulty(store)
    await writer.start()
    imports = importing(store, writer)
    job = await imports.take(ImportOrder(), pieces("\n".join(MANY).encode()), ALICE)
    lost = 0
    while (now := await store.import_job(job.id)) is not None and now.ended_at is None:
        try:
            await imports.turn()
        except Unavailable:
            lost += 1
    await writer.stop()

    assert lost >= 2
    assert (now and now.status, now and now.done) == ("DONE", ROWS)
    assert await on_hand(store) == {"wh_1": 10 + ROWS}


async def test_one_process_at_a_time(store: Store) -> None:
    """Who comes second does nothing, and takes over when the first is gone."""
    async with at_work(store) as writer:
        job = await importing(store, writer).take(ImportOrder(), pieces(b"sku,warehouseId,quantity\nA,wh_1,5"), ALICE)
        lease = await store.acquire(IMPORTS, "them", seconds=60)
        assert lease is not None
        assert not await importing(store, writer).turn()
        await store.release(lease)
        assert await importing(store, writer).turn()
    assert (await store.import_job(job.id) or job).status == "DONE"


class Slow(Products):
    """A judge that takes its time over each product."""

    async def admit(self, product_id: str) -> None:
        """Take longer than three leases."""
        await asyncio.sleep(1.0)
        await super().admit(product_id)


async def test_a_slow_check_keeps_its_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a thousand rows take: or two processes would begin to check again and again."""
    monkeypatch.setattr(core.files.imports, "LEASE_SECONDS", 0.3)
    judge = Slow(MemoryCatalog(), store, policy="off", making=EventPolicy())
    async with at_work(store) as writer:
        imports = Imports(store, writer, judge, owner="us")
        file = b"sku,productId,warehouseId,initialQuantity\nB,prod_2,wh_1,5"
        job = await imports.take(ImportOrder(), pieces(file), ALICE)
        turn = asyncio.create_task(imports.turn())
        await asyncio.sleep(0.7)
        assert await store.acquire(IMPORTS, "them", seconds=60) is None
        assert await turn
    assert (await store.import_job(job.id) or job).status == "DONE"
    assert await store.acquire(IMPORTS, "them", seconds=60) is not None


MOSTLY_BAD = ("sku,warehouseId,quantity", *(f"A{'' if row % 50 == 0 else 'Z'},wh_1,{1 + row}" for row in range(1_500)))


async def test_what_the_check_found_is_read_along_with_the_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million errors are never in memory together."""
    read = SqlStore.import_errors
    pages: list[int] = []

    async def reading(self: SqlStore, id: str, *, after: int = 0, limit: int) -> list[RowError]:
        page = await read(self, id, after=after, limit=limit)
        pages.append(len(page))
        return page

    monkeypatch.setattr(SqlStore, "import_errors", reading)
    async with at_work(store) as writer:
        imports = importing(store, writer)
        job = await imports.take(ImportOrder(partial=True), pieces("\n".join(MOSTLY_BAD).encode()), ALICE)
        while await imports.turn():
            pass

    ended = await store.import_job(job.id)
    assert ended is not None and (ended.status, ended.done, ended.refused) == ("DONE", 1_500, 1_470)
    assert await on_hand(store) == {"wh_1": 10 + sum(1 + row for row in range(0, 1_500, 50))}
    assert len(pages) == 1_500 / BATCH_ROWS and max(pages) <= BATCH_ROWS


async def test_who_was_overtaken_imports_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another has refused since is not taken for what the check found: the rest would go by another key."""
    read = SqlStore.import_errors

    async def overtaken(self: SqlStore, id: str, *, after: int = 0, limit: int) -> list[RowError]:
        await self.release(Lease(IMPORTS, "us", 1))
        lease, job = await self.acquire(IMPORTS, "them", seconds=60), await self.import_job(id)
        assert lease is not None and job is not None
        await self.save_import(lease, replace(job, done=2, refused=1), [RowError(2, "insufficient_stock", "")])
        return await read(self, id, after=after, limit=limit)

    async with at_work(store) as writer:
        imports = importing(store, writer)
        file = b"sku,warehouseId,quantity\nA,wh_1,5\nA,wh_1,6"
        job = await imports.take(ImportOrder(partial=True), pieces(file), ALICE)
        monkeypatch.setattr(SqlStore, "import_errors", overtaken)
        assert await imports.turn()

    assert await on_hand(store) == {"wh_1": 10}
    assert (await store.import_job(job.id) or job).status == "IMPORTING"


async def test_cancelling_stops_it_where_it_is(store: Store) -> None:
    """What is done stays done, and nobody goes on."""
    async with at_work(store) as writer:
        imports = importing(store, writer)
        job = await imports.take(ImportOrder(), pieces("\n".join(MANY).encode()), ALICE)
        turn = asyncio.create_task(imports.turn())
        while (now := await store.import_job(job.id) or job).done < 2 * BATCH_ROWS:
            await asyncio.sleep(0.001)
        await store.cancel_import(job.id, ALICE)
        assert await turn
        assert not await imports.turn()
    stopped = await store.import_job(job.id) or now
    assert stopped.status == "CANCELLED" and 2 * BATCH_ROWS <= stopped.done < ROWS
    assert stopped.done <= (await on_hand(store))["wh_1"] - 10 < ROWS


@asynccontextmanager
async def _new(folder: Path) -> AsyncIterator[Store]:
    async with migrated(f"sqlite:///{folder}/other.db") as store:
        yield store


async def test_what_is_exported_stocks_another_store(store: Store, tmp_path: Path) -> None:
    """Warehouses and items, in either format, with names that a spreadsheet would take for formulas."""
    await imported(store, "name,id", "=SUM(A1),wh_2")
    await imported(store, "sku,productId,warehouseId,name,initialQuantity", '+B,prod_2,wh_2,"a, ""b""",7')

    async def file(kind: SheetKind, format: Any) -> bytes:
        return b"".join([piece async for piece in export(store, kind, format, ItemFilter())])

    async with _new(tmp_path) as other:
        for kind, format in (("warehouses", "jsonl"), ("items", "csv")):
            text = (await file(kind, format)).decode()  # type: ignore[arg-type]
            job, errors = await imported(other, text, kind=kind, format=format)
            assert (job.status, errors) == ("DONE", [])
        assert await file("counts", "csv") != b""
        kept = ("sku", "product_id", "warehouse_id", "name", "on_hand")
        was, now = [
            sorted(tuple(getattr(item, name) for name in kept) for item in await each.find_items([], ["A", "+B"]))
            for each in (store, other)
        ]
    assert was == now
    assert {warehouse.name for warehouse in await store.warehouses()} >= {"=SUM(A1)"}


# -- the command -------------------------------------------------------------------------------------------------------


def inventory(*arguments: str, store: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run ``inventory stock``."""
    return subprocess.run(
        [COMMAND, "stock", *arguments],
        env=environment(store=store, **settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_killed_and_repeated_a_file_is_imported_once(tmp_path: Path) -> None:
    """By ``kill -9`` in the middle: the same command goes on where it was, and a third time does nothing."""
    url, file = f"sqlite:///{tmp_path}/inventory.db", tmp_path / "many.csv"
    rows = 20 * BATCH_ROWS
    file.write_text("\n".join([MANY[0], *(f"A,wh_1,1,PO-{number}" for number in range(rows))]))
    async with migrated(url) as store:
        await stocked(store, 0, sku="A")
    with subprocess.Popen(  # noqa: ASYNC220
        [COMMAND, "stock", "import", file], env=environment(store=url), stdout=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + 50
        while (done := _done(tmp_path / "inventory.db")) < 2 * BATCH_ROWS and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        first.kill()
    assert 0 < done < rows

    second = inventory("import", str(file), "--json", store=url)
    third = inventory("import", str(file), store=url)

    assert second.returncode == third.returncode == 0, second.stderr + third.stderr
    assert json.loads(second.stdout)["import"]["done"] == rows
    assert "imported" in third.stderr and "--again" in third.stderr
    async with migrated(url) as store:
        assert await on_hand(store) == {"wh_1": rows}


def _done(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        (done,) = connection.execute("SELECT coalesce(max(done), 0) FROM stock_import").fetchone()
    return int(done)


async def test_the_command_tells_what_was_refused(tmp_path: Path) -> None:
    """A table, JSON or a file; exit code 1; one sentence and 2 for what is no file."""
    url, bad, why = f"sqlite:///{tmp_path}/inventory.db", tmp_path / "bad.csv", tmp_path / "why.csv"
    bad.write_text("\n".join(BAD))
    async with migrated(url) as store:
        await stocked(store, 0, sku="A")

    told = inventory("import", str(bad), "--dry-run", "--errors", str(why), store=url)
    assert told.returncode == 1
    assert "duplicate_row" in told.stdout and "6 rows of receipts looked at, 4 would be refused" in told.stdout
    with why.open() as file:
        assert [(int(row["line"]), row["code"]) for row in csv.DictReader(file)] == WHY
    as_json = json.loads(inventory("import", str(bad), "--partial", "--json", store=url).stdout)
    assert (as_json["import"]["status"], len(as_json["errors"])) == ("DONE", 4)
    assert "bad.csv" in inventory("imports", store=url).stdout
    assert inventory("import", str(tmp_path / "none.csv"), store=url).returncode == 2
    assert inventory("cancel", "imp_none", store=url).returncode == 1
    assert inventory("export", "items", store=url).stdout.splitlines()[0].startswith("inventoryItemId,sku,productId")


async def test_a_process_that_reads_from_memory_imports_itself(tmp_path: Path) -> None:
    """Else its readers would not hear of it: they are told what the command brought in, at once."""
    url, file = f"sqlite:///{tmp_path}/inventory.db", tmp_path / "new.csv"
    file.write_text("sku,warehouseId,quantity\nA,wh_1,5\n")
    async with migrated(url) as store:
        await stocked(store, 10, sku="A")
    settings = {"broker": "memory://", "cache": "memory://"}
    with Service("serve", store=url, **settings) as service, service.client() as client:

        def available() -> int:
            answer = client.get("/inventory-items/by-product/prod_1").raise_for_status()
            return int(answer.json()["data"]["totalQuantityAvailable"])

        assert available() == 10
        done = inventory("import", str(file), store=url, **settings)
        assert done.returncode == 0, done.stderr
        assert available() == 15


def test_a_batch_has_one_size() -> None:
    """An import that was begun by another version goes on by keys that name the first line of each batch."""
    assert BATCH_ROWS == 250
