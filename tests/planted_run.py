"""A shop of any size in which so much is made wrong, of every kind, while others sell: what is made of it.

``python tests/planted_run.py 100000 1000`` does it at full size on a PostgreSQL of its own and prints the report.
"""

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from services import Postgres
from stores import at_work, migrated, submit

from adapters.memory import MemoryCatalog
from core.errors import InventoryError
from core.events import ProductVariant
from core.findings import FindingKind, Limits, Run
from core.operations import EventPolicy, Receive, Reserve, ReserveLine
from core.reconciling.reconciliation import Reconciliation
from core.reconciling.repairs import Repairer
from core.reconciling.survey import CatalogSurvey
from core.writing.writer import Writer
from ports.catalog import CatalogProduct
from ports.store import Store

_SQL = Path(__file__).with_name("planted.sql")
_SELLERS = 4
Key = tuple[str, str]

PLANTED: dict[FindingKind, str] = {
    "LEDGER_MISMATCH": "UPDATE inventory_item SET on_hand = on_hand + 5, available = available + 5 WHERE id = '{item}';"
    "UPDATE product SET total_on_hand = total_on_hand + 5, total_available = total_available + 5"
    " WHERE id = '{product}'",
    "RESERVED_MISMATCH": "DELETE FROM reservation_line WHERE inventory_item_id = '{item}'",
    "RECEIVED_MISMATCH": "UPDATE expected_receipt SET received_quantity = 4, outstanding_quantity = 36"
    " WHERE inventory_item_id = '{item}'; UPDATE product SET total_expected = 36 WHERE id = '{product}'",
    "TOTALS_MISMATCH": "UPDATE product SET total_reserved = total_reserved + 1 WHERE id = '{product}'",
    "SEQUENCE_GAP": "UPDATE product SET sequence = sequence + 1 WHERE id = '{product}'",
    "EVENT_MISSING": "DELETE FROM outbox WHERE product_id = '{product}' AND sequence = 3;"
    "UPDATE product SET sequence = 2 WHERE id = '{product}'",
    "PRODUCT_GONE": "",
    "SKU_DRIFT": "",
    "NAME_DRIFT": "",
    "ITEMS_MISSING": "",
}
"""What is done to the store for each kind; those of the catalogue are done to that."""


class Outcome(NamedTuple):
    """What was planted, the runs that followed, and what each of them saw."""

    planted: set[Key]
    runs: list[Run]
    seen: list[set[Key]]
    sold: int
    rows_before_last: tuple[int, int]
    rows_after_last: tuple[int, int]


async def fill(url: str, items: int) -> None:
    """Make the shop."""
    server = await asyncpg.connect(url)
    await server.execute(_SQL.read_text().format(items=items))
    await server.execute("ANALYZE")
    await server.close()


async def plant(url: str, catalog: MemoryCatalog, items: int, count: int) -> tuple[set[Key], list[str]]:
    """Make ``count`` things wrong, spread over the shop; return their findings, and the items nothing was done to."""
    numbers = list(range(1, items + 1))
    # Of what has reservations and expected receipts, so that each kind can be planted anywhere.
    rich = [number for number in numbers if number % 10 < 2]
    chosen = random.Random(7).sample(rich, count)
    kinds = list(PLANTED)
    planted: set[Key] = set()
    statements: list[str] = []
    theirs: dict[int, FindingKind] = {number: kinds[place % len(kinds)] for place, number in enumerate(chosen)}
    for number in numbers:
        _put(catalog, number, theirs.get(number))
    for number, kind in theirs.items():
        item, product = f"inv_{number:08}", f"prod_{number:08}"
        if PLANTED[kind]:
            statements.append(PLANTED[kind].format(item=item, product=product))
        about_product = kind in ("TOTALS_MISMATCH", "SEQUENCE_GAP", "PRODUCT_GONE", "ITEMS_MISSING")
        planted.add((kind, product if about_product else item))
    server = await asyncpg.connect(url)
    await server.execute(";".join(statements))
    await server.close()
    return planted, [f"inv_{number:08}" for number in numbers if number not in theirs]


def _put(catalog: MemoryCatalog, number: int, kind: FindingKind | None) -> None:
    if kind == "PRODUCT_GONE":
        return
    sku, name = f"SKU-{number:08}", f"Thing {number}"
    variants = [
        ProductVariant(
            "v1", f"NEW-{number:08}" if kind == "SKU_DRIFT" else sku, "Renamed" if kind == "NAME_DRIFT" else name
        )
    ]
    if kind == "ITEMS_MISSING":
        variants.append(ProductVariant("v2", f"TWO-{number:08}", "Second"))
    catalog.put(CatalogProduct(id=f"prod_{number:08}", sku=sku, name=name), *variants)


async def reconciled(url: str, items: int, count: int, *, selling: bool = True) -> Outcome:
    """Fill, plant, and reconcile three times: what is gone is believed the second time, and the third finds nothing."""
    catalog = MemoryCatalog()
    async with migrated(url) as store, at_work(store) as writer:
        await fill(url, items)
        planted, others = await plant(url, catalog, items, count)
        sold, closed = [0], asyncio.Event()
        sellers = [asyncio.create_task(_sell(writer, others, sold, closed)) for _ in range(_SELLERS if selling else 0)]
        runs: list[Run] = []
        seen: list[set[Key]] = []
        before = after = (0, 0)
        for last in (False, False, True):
            if last:
                closed.set()
                await asyncio.gather(*sellers)
                before = await _rows(url)
            run = await _run(store, writer, catalog)
            found = {(each.kind, each.subject) for each in await _repairs(store, run)}
            runs.append(run)
            seen.append(found)
            after = await _rows(url)
    return Outcome(planted, runs, seen, sold[0], before, after)


async def _run(store: Store, writer: Writer, catalog: MemoryCatalog) -> Run:
    survey = CatalogSurvey(store, catalog, settle_seconds=0.2)
    repairer = Repairer(store, writer, survey, making=EventPolicy(warehouse_ids=("wh_1",)))
    limits = Limits(percent_max=10)
    work = Reconciliation(store, repairer, survey, minutes=0, limits=limits, second_look_seconds=0.05)
    return await work.run(trigger="manual", actor="planted", repairs="all")


async def _repairs(store: Store, run: Run) -> list[Any]:
    found = page = await store.repairs(run, limit=1_000)
    while len(page) == 1_000:
        page = await store.repairs(run, after=found[-1], limit=1_000)
        found = found + page
    return found


async def _rows(url: str) -> tuple[int, int]:
    server = await asyncpg.connect(url)
    counts = [int(await server.fetchval(f"SELECT count(*) FROM {table}")) for table in ("stock_transaction", "outbox")]
    await server.close()
    return counts[0], counts[1]


async def _sell(writer: Writer, items: list[str], sold: list[int], closed: asyncio.Event) -> None:
    dice = random.Random()
    while not closed.is_set():
        line = ReserveLine(inventory_item_id=dice.choice(items), quantity=1)
        for operation in (Receive(inventory_item_id=dice.choice(items), quantity=1), Reserve(lines=(line,))):
            (outcome,) = await submit(writer, operation)
            sold[0] += not isinstance(outcome, InventoryError)
        await asyncio.sleep(0.01)


async def main(items: int, count: int) -> None:
    """Do it on a server of its own, and print what came of it."""
    with Postgres(None) as postgres:
        began = time.monotonic()
        outcome = await reconciled(postgres.create_database(), items, count)
        print(
            f"{items} items, {count} planted, {outcome.sold} writes meanwhile, {time.monotonic() - began:.0f} s in all"
        )
        first = outcome.seen[0]
        print(f"found {len(first & outcome.planted)}, missed {sorted(outcome.planted - first)[:5]}")
        print(f"invented {sorted(first - outcome.planted)[:5]}")
        for run in outcome.runs:
            took = (run.ended_at - run.started_at).total_seconds() if run.ended_at else 0
            print(f"{run.id} {run.status} in {took:.1f} s: {dict(run.findings)} {dict(run.outcomes)} {run.alarms}")
        print(f"rows before and after the last run: {outcome.rows_before_last} {outcome.rows_after_last}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
