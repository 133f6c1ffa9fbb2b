"""The same shop as in ``test_rules_properties``, kept in a real store by writers that race, wait and die.

The rules ask for the same operations; here they go to writers, alone or several at once, and what must be true is asked
of the database after every step: by plain SQL (``audit``) and of what the store loads. A request carries a key, so that
its caller asks again after a crash, and the ledger must show it once, as it was answered.

What a step meets depends on who is faster, so no choice of hypothesis's may depend on the stock: rules that have a
precondition over there have none here.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from audit import books
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from msgspec import UNSET
from msgspec.structs import replace
from sqlalchemy import delete, update
from stores import CAUSE, batch, key, migrated
from test_rules_properties import (
    PHASES,
    PRODUCTS,
    SKUS,
    WAREHOUSES,
    Shop,
    choices,
    due,
    few,
    offsets,
    quantities,
    seconds,
    unfulfilled,
)

from adapters.sql import tables
from adapters.sql.store import SqlStore
from core.errors import InventoryError
from core.events import OutboxRow, ProductEvent, ProductPayload
from core.operations import (
    AmendExpected,
    ApplyProductEvent,
    CancelExpected,
    Change,
    CreateItem,
    CreateWarehouse,
    EventPolicy,
    Expect,
    Extend,
    Operation,
    Outcome,
    Receive,
    ReceiveExpected,
    Request,
    Reserve,
    StockChange,
)
from core.rules.decisions import decide
from core.stock import ExpectedReceipt, Item, Reservation, StockTransaction
from core.upkeep.expiry import Sweeper
from core.writing.writer import Writer
from ports.store import Wanted

T = TypeVar("T")
STEPS = {"sqlite": 2_500, "postgresql": 1_500}
"""How many operations each database must have been asked for, at least."""
_PER_RUN = 60


class Market(Shop):
    """Three products and then some, in one database, by two writers at a time."""

    store: ClassVar[SqlStore]
    url: ClassVar[str]
    runner: ClassVar[asyncio.Runner]
    seen: ClassVar[dict[str, int]]

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Operation] = []
        self.crowd = 1
        self.as_one_request = False
        self.dies_after: float | None = None
        self.in_the_way: str | None = None
        self.workers: list[tuple[Writer, set[asyncio.Task[Any]]]] = []
        self.number = 0
        self.do(self.begin())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the machine's event loop; the writers live on it and stand still in between."""
        return self.runner.run(work)

    async def begin(self) -> None:
        """Start with four warehouses and nothing else."""
        async with self.store.database.writing() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                await connection.execute(delete(table))
            await connection.commit()
        await self.hire()
        await self.carry_out([CreateWarehouse(id=id, name=id) for id in WAREHOUSES])
        await self.look()

    async def hire(self) -> None:
        """Set two writers to work, and note their tasks."""
        for _ in range(2):
            others = asyncio.all_tasks()
            writer = Writer(self.store)
            await writer.start()
            self.workers.append((writer, asyncio.all_tasks() - others))

    async def die(self) -> None:
        """Let the writers vanish where they stand, as a killed process does."""
        tasks = [task for _, mine in self.workers for task in mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.workers.clear()

    def teardown(self) -> None:
        """At closing time every hold ends."""
        try:
            self.serve()
            self.run_out(0)
            self.next_batch(0)
            assert all(reservation.status != "HELD" for reservation in self.book.reservations.values())
        finally:
            self.do(self.die())

    # -- what can happen beside the shop's operations --------------------------------------------------------------

    @initialize(quantities=st.lists(few, min_size=6, max_size=6))
    def stock_up(self, quantities: list[int]) -> None:
        """Begin as the shop does, all at once."""
        self.crowd = len(quantities)
        super().stock_up(quantities)

    @rule(size=st.sampled_from([5, 10, 15, 20]), as_one_request=st.booleans())
    def crowd_in(self, size: int, as_one_request: bool) -> None:
        """From now on so many operations come at once: as requests of their own, or as one."""
        self.crowd, self.as_one_request = size, as_one_request

    @rule(milliseconds=st.sampled_from([0, 1, 2, 3, 5, 8, 13]))
    def crash(self, milliseconds: int) -> None:
        """The next ones meet writers that will be gone in a moment."""
        self.dies_after = milliseconds / 1000

    @rule(product=choices)
    def stand_in_the_way(self, product: int) -> None:
        """The next ones meet somebody who has a product locked, has written to it, and gives up."""
        self.in_the_way = self.one_of(self.book.products, product, unknown="prod_unknown")

    @rule(number=st.integers(1, 3), warehouse=choices, quantity=few)
    def new_product(self, number: int, warehouse: int, quantity: int) -> None:
        """A product that nobody has heard of gets its first item, or another one."""
        place = self.warehouse(warehouse)
        id, sku = f"prod_new_{number}", f"NEW-{number}"
        self.ask(CreateItem(sku=sku, product_id=id, warehouse_id=place, initial_quantity=quantity))

    @rule(
        type=st.sampled_from(["ProductCreated", "ProductUpdated", "ProductDeleted"]),
        number=st.integers(0, 5),
        name=st.sampled_from(["Widget", "Gadget"]),
    )
    def hear(self, type: Any, number: int, name: str) -> None:
        """The Product Service says something of a product."""
        known = number < len(PRODUCTS)
        product = PRODUCTS[number] if known else f"prod_new_{number - 2}"
        sku = SKUS[number] if known else f"HEARD-{number}"
        event = ProductEvent(
            event_id=f"event-{self.number}-{len(self.waiting)}",
            event_type=type,
            event_version="1.0",
            timestamp=self.book.now,
            payload=ProductPayload(product_id=product, sku=sku, name=name),
        )
        self.ask(ApplyProductEvent(event=event, policy=EventPolicy(warehouse_ids=WAREHOUSES[:2])))

    @rule(reservation=choices)
    def run_out(self, reservation: int) -> None:
        """One hold, or every hold, is over; nobody has looked yet."""
        held = [hold.id for hold in self.book.reservations.values() if hold.status == "HELD"]
        over = held if reservation == 0 else held[reservation % len(held) :][:1] if held else []
        self.do(self.end(over))

    async def end(self, reservations: Sequence[str]) -> None:
        """Move the end of these holds into the past."""
        table = tables.reservation
        async with self.store.database.writing() as connection:
            chosen = table.c.id.in_(reservations)
            await connection.execute(update(table).where(chosen).values(expires_at=table.c.created_at))
            await connection.commit()

    @rule(seconds=st.integers(0, 3))
    def next_batch(self, seconds: int) -> None:
        """What was asked is done at once, and the sweeper comes by."""
        self.serve()
        self.do(self.sweep())

    async def sweep(self) -> None:
        """After a sweep nothing is due."""
        await Sweeper(self.store, self.workers[0][0]).sweep()
        assert await self.store.due(10) == []
        await self.look()

    @rule(item=choices, left=few)
    def lose(self, item: int, left: int) -> None:
        """The shelf holds less than was promised, if anything was."""
        if any(one.reserved for one in self.book.items.values()):
            super().lose(item, left)

    @rule(reservation=choices)
    def release(self, reservation: int) -> None:
        """A reservation is given back, if there is one."""
        super().release(reservation)

    @rule(reservation=choices)
    def confirm(self, reservation: int) -> None:
        """A cart becomes an order, if there is one."""
        super().confirm(reservation)

    @rule(reservation=choices, seconds=seconds)
    def extend(self, reservation: int, seconds: int) -> None:
        """A hold shall last longer, if there is one."""
        super().extend(reservation, seconds)

    @rule(reservation=choices, lines=st.just([]) | st.lists(st.tuples(choices, st.integers(1, 3)), max_size=3))
    def fulfil(self, reservation: int, lines: list[tuple[int, int]]) -> None:
        """What was promised leaves, if anything was."""
        super().fulfil(reservation, lines)

    @rule(
        receipt=choices,
        quantity=st.integers(1, 20) | st.just(UNSET),
        seconds=st.none() | due,
        reason=st.sampled_from(["Late", None, UNSET]),
        offset=offsets,
    )
    def amend(self, *, receipt: int, quantity: Any, seconds: int | None, reason: Any, offset: int | None) -> None:
        """What is expected changes, if anything is."""
        super().amend(receipt=receipt, quantity=quantity, seconds=seconds, reason=reason, offset=offset)

    @rule(receipt=choices, quantity=quantities, close=st.booleans())
    def receive_expected(self, receipt: int, quantity: int, close: bool) -> None:
        """What was expected comes, if anything was."""
        super().receive_expected(receipt, quantity, close)

    @rule(receipt=choices)
    def cancel_expected(self, receipt: int) -> None:
        """Nothing more will come, if anything would."""
        super().cancel_expected(receipt)

    @rule(id=st.sampled_from(["wh_5", "wh_1"]))
    def create_warehouse(self, id: str) -> None:
        """A warehouse is opened, or exists."""
        super().create_warehouse(id)

    # -- asking the writers ----------------------------------------------------------------------------------------

    def ask(self, operation: Operation) -> None:
        """Queue ``operation`` until the crowd is complete. No hold ends by itself: that is for ``run_out``."""
        if isinstance(operation, Reserve | Extend):
            operation = replace(operation, expires_in_seconds=3600)
        self.waiting.append(operation)
        self.seen["steps"] += 1
        if len(self.waiting) >= self.crowd:
            self.serve()

    def serve(self) -> None:
        """Have everything done that waits, and look at the database."""
        operations, self.waiting = self.waiting, []
        if operations:
            self.do(self.carry_out(operations))

    async def carry_out(self, operations: Sequence[Operation]) -> None:
        """Submit everything at once, dead writers or not, and compare the answers with the ledger."""
        groups = [tuple(operations)] if self.as_one_request else [(operation,) for operation in operations]
        requests = [self.request(group) for group in groups]
        dies_after, self.dies_after = self.dies_after, None
        in_the_way, self.in_the_way = self.in_the_way, None
        asking = [asyncio.create_task(self.submit(request, turn)) for turn, request in enumerate(requests)]
        if in_the_way is not None:
            await self.obstruct(in_the_way)
        if dies_after is not None:
            await asyncio.wait(asking, timeout=dies_after)
            self.seen["crashes"] += any(not task.done() for task in asking)
            await self.die()
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await self.hire()
            asking = [asyncio.create_task(self.submit(request, turn)) for turn, request in enumerate(requests)]
        answers = await asyncio.gather(*asking)
        await self.look()
        for request, outcomes in zip(requests, answers, strict=True):
            self.check_outcomes(request, outcomes)

    def request(self, operations: tuple[Operation, ...]) -> Request:
        """Return a request with a key and a correlation id of its own."""
        self.number += 1
        name = f"request-{self.number}"
        return Request(operations=operations, actor="shop", correlation_id=name, key=key(name))

    async def submit(self, request: Request, turn: int) -> list[Outcome]:
        """Ask one of the writers; the second one comes into it when many ask."""
        return await self.workers[turn % 5 // 4][0].submit(request, timeout=30)

    async def obstruct(self, product: str) -> None:
        """Lock a product, write to it, and give up."""
        try:
            async with batch(self.store, product, whole_products={product}) as (transaction, book):
                for item in [*book.items.values()]:
                    if item.product_id in book.products:
                        decide(book, Receive(inventory_item_id=item.id, quantity=1), CAUSE)
                assert await transaction.save(book, [])
                await asyncio.sleep(0.003)
                raise LookupError("gives up")
        except LookupError:
            self.seen["obstacles"] += 1

    async def look(self) -> None:
        """Read everything, by plain SQL and by the store's own loading."""
        found = await books(self.url)
        found.check()
        self.ledger = [StockTransaction(**row) for row in found.ledger]
        assert all(row.actor != CAUSE.actor for row in self.ledger), "what was given up is there"
        names = [name for name in OutboxRow.__struct_fields__ if name != "position"]
        self.outbox = [OutboxRow(**{name: row[name] for name in names}) for row in found.outbox]
        products = {row["id"] for row in found.products}
        async with self.store.transaction() as transaction:
            ids = {"reservation_ids": {*found.reservations}, "receipt_ids": {*found.receipts}}
            wanted = Wanted(whole_products=products, all_warehouses=True, **ids)
            self.load(await transaction.load(products, wanted))
            await transaction.rollback()
        self.seen["looks"] += 1

    def check_outcomes(self, request: Request, outcomes: Sequence[Outcome]) -> None:
        """What a caller was told is what the ledger shows of the request, once; of a refusal it shows nothing."""
        rows = {row.id: row for row in self.ledger if row.correlation_id == request.correlation_id}
        untold = dict(rows)
        for operation, outcome in zip(request.operations, outcomes, strict=True):
            self.seen["refused" if isinstance(outcome, InventoryError) else "accepted"] += 1
            if isinstance(outcome, StockChange):
                assert all(untold.pop(row.id).item_version == row.item_version for row in outcome.transactions)
            if isinstance(outcome, Item) and isinstance(operation, CreateItem):
                assert untold.pop(self.row_of(outcome).id).item_version == 1
            if isinstance(outcome, Reservation) and isinstance(operation, Reserve):
                promised = [
                    row for row in rows.values() if row.reservation_id == outcome.id and row.reserved_change > 0
                ]
                assert sorted(
                    (untold.pop(row.id).inventory_item_id, row.reserved_change) for row in promised
                ) == sorted((line.inventory_item_id, line.quantity) for line in outcome.lines)
            if isinstance(outcome, ExpectedReceipt) and isinstance(operation, ReceiveExpected):
                came = [row for row in untold.values() if row.expected_receipt_id == outcome.id]
                assert untold.pop(came[0].id).on_hand_change == operation.body.quantity
        traced = Change | CreateItem | Reserve | Expect | AmendExpected | ReceiveExpected | CancelExpected
        if all(isinstance(operation, traced) for operation in request.operations):
            assert not untold, "the ledger shows more than was answered"
        if len(request.operations) == 1:
            # An event may rename an item and revive it: two rows, but of two types.
            assert len(rows) == len({(row.inventory_item_id, row.type) for row in rows.values()}), "done twice"
        if all(isinstance(outcome, InventoryError) for outcome in outcomes):
            assert not rows

    def row_of(self, item: Item) -> StockTransaction:
        """Return the ledger row that made this version of an item."""
        (row,) = [row for row in self.ledger if (row.inventory_item_id, row.item_version) == (item.id, item.version)]
        return row

    @invariant()
    def no_hold_outlives_its_end(self) -> None:
        """What is held has an end, what is confirmed has none, and what has ended holds nothing.

        A hold that is over may wait for the sweeper.
        """
        for reservation in self.book.reservations.values():
            assert (reservation.expires_at is not None) == (reservation.status in ("HELD", "EXPIRED"))
            if reservation.status not in ("HELD", "CONFIRMED"):
                assert not any(map(unfulfilled, reservation.lines))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop that stands still between the steps."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def machine(request: pytest.FixtureRequest, runner: asyncio.Runner, tmp_path: Path) -> Iterator[type[Market]]:
    """The machine on an empty store."""
    embedded = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/inventory.db" if embedded else request.getfixturevalue("postgres_url")
    opened = migrated(url)
    store = runner.run(opened.__aenter__())
    seen = dict.fromkeys(("steps", "accepted", "refused", "crashes", "obstacles", "looks"), 0)
    yield type("Market", (Market,), {"store": store, "url": url, "runner": runner, "seen": seen})
    runner.run(opened.__aexit__(None, None, None))


def profile(runs: int) -> settings:
    """So many runs of a day each; the same every time with ``CI`` set."""
    return settings(
        max_examples=runs,
        stateful_step_count=_PER_RUN,
        deadline=None,
        phases=PHASES,
        suppress_health_check=[*HealthCheck],
        derandomize=bool(os.environ.get("CI")),
        database=None,
    )


@pytest.mark.timeout(400)  # thousands of real commits, on whatever disk there is
def test_random_operations_keep_the_store_right(machine: type[Market], request: pytest.FixtureRequest) -> None:
    """Whatever comes at once, whoever dies or stands in the way, the database tells one story."""
    wanted = STEPS[request.node.callspec.params["machine"]]
    run_state_machine_as_test(machine, settings=profile(wanted // 44))

    print(machine.seen)
    assert machine.seen["steps"] >= wanted
    assert min(machine.seen.values()) > 0
