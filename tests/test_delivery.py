"""The relay: every committed event reaches the broker, each product's in order, whatever the broker does meanwhile."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from stores import carry_out, migrated, positions, stocked

from adapters.memory import MemoryBroker
from adapters.registry import connect
from adapters.sql.tables import time_text
from core.acts import Act
from core.errors import Conflict, NotFound, Unavailable
from core.events import EVENTS_EXCHANGE, OutboxRow
from core.operations import Receive, Ship
from core.publishing.exceptions import Suspects
from core.publishing.relay import Relay
from ports.broker import Broker, Message, Receipt
from ports.replays import ReplayRange
from ports.store import Store


class CommandedBroker(Broker):
    """A broker that does as told: confirm, refuse from one on, lose one once, find no queue, be away, hang, die."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.calls = 0
        self.refuses: set[str] = set()
        self.loses: set[str] = set()
        self.routeless: set[str] = set()
        self.raises: BaseException | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """Take what comes before the first message whose id is refused; fail the rest without a look."""
        self.calls += 1
        if self.raises is not None:
            raise self.raises
        receipts = [Receipt.FAILED] * len(messages)
        for place, message in enumerate(messages):
            if message.id in self.refuses:
                break
            if message.id in self.loses:
                self.loses.remove(message.id)
                continue
            self.received.append(message)
            receipts[place] = Receipt.UNROUTABLE if message.type in self.routeless else Receipt.CONFIRMED
        await self.answers.wait()
        return receipts


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store that a second relay can open as well."""
    return f"sqlite:///{tmp_path}/inventory.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An empty store."""
    async with migrated(url) as store:
        yield store


@pytest.fixture
def broker() -> CommandedBroker:
    """A broker that so far just confirms."""
    return CommandedBroker()


@asynccontextmanager
async def relaying(
    store: Store, broker: Broker, *, owner: str = "one", required: frozenset[str] = frozenset()
) -> AsyncIterator[Relay]:
    """Run a relay."""
    relay = Relay(store, broker, owner=owner, required_events=required)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


# -- the ordinary way ------------------------------------------------------------------------------------------------


async def test_a_subscriber_gets_every_event_as_it_was_committed(store: Store) -> None:
    """Through the shipped broker: the committed bytes, addressed by type, in each product's order, once."""
    item = await stocked(store, 12)
    await stocked(store, 1, product="prod_2", sku="OTHER")
    rows = {row.event_id: row for row in await store.pending(100)}
    broker = MemoryBroker()
    await broker.declare()
    got: list[Message] = []

    async with broker.listen(EVENTS_EXCHANGE, "inventory.*.inventoryitem") as messages, relaying(store, broker):
        async with asyncio.timeout(10):
            while len(got) < len(rows):
                got.append(await anext(messages))
        for quantity in (3, 9):
            await carry_out(store, Ship(inventory_item_id=item.id, quantity=quantity))
        await store.announce()
        rows |= {row.event_id: row for row in await store.pending(100)}
        async with asyncio.timeout(10):
            while len(got) < len(rows):
                got.append(await anext(messages))
        await drained(store)

    assert {message.id: message.body for message in got} == {id: row.body for id, row in rows.items()}
    assert len(got) == len(rows)
    for message in got:
        row = rows[message.id]
        assert message.routing_key == f"inventory.{row.event_type.lower()}.inventoryitem"
        assert (message.type, message.correlation_id, message.timestamp) == (
            row.event_type,
            row.correlation_id,
            row.created_at,
        )
        assert message.priority == (9 if row.event_type in ("OutOfStock", "BackInStock") else 0)
        assert message.headers == {"x-event-version": "1.0.0"}
    assert in_order(got, "prod_1")
    assert in_order(got, "prod_2")
    assert sorted((await positions(store)).values()) == list(range(1, len(rows) + 1))


async def test_what_is_committed_while_relaying_is_relayed(store: Store, broker: CommandedBroker) -> None:
    """Commits and batches overlap; nothing is left behind and nothing comes twice."""
    items = [await stocked(store, 1000, product=f"p{number}", sku=f"S{number}") for number in range(3)]

    async with relaying(store, broker):
        for number in range(60):
            item = items[number % 3]
            await carry_out(store, Ship(inventory_item_id=item.id, quantity=1), product=item.product_id)
            await store.announce()
        await drained(store)

    assert len({message.id for message in broker.received}) == len(broker.received)
    assert all(in_order(broker.received, item.product_id) for item in items)
    assert sorted((await positions(store)).values()) == list(range(1, len(broker.received) + 1))


async def test_a_product_that_ran_out_comes_first(store: Store, broker: CommandedBroker) -> None:
    """The whole backlog of a product with a waiting critical event goes before other products' (rule R17)."""
    calm = await stocked(store, 500, product="calm")
    urgent = await stocked(store, 500, product="urgent", sku="U")
    async with relaying(store, broker):
        await drained(store)
    before = len(broker.received)
    for item, quantity in ((calm, 1), (urgent, 1), (calm, 1), (urgent, 499)):
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=quantity), product=item.product_id)

    async with relaying(store, broker):
        await drained(store)

    products = [msgspec.json.decode(message.body)["payload"]["productId"] for message in broker.received[before:]]
    assert products == ["urgent"] * 3 + ["calm"] * 2
    assert in_order(broker.received, "urgent")


async def test_a_range_of_time_is_found_by_halving(store: Store, url: str) -> None:
    """Bounds between, at and beyond the times that events went out at, whatever was purged; no event is counted."""
    item = await stocked(store, 100)
    async with relaying(store, CommandedBroker()):
        for _ in range(15):
            await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
        await drained(store)
    start = datetime(2026, 11, 1, tzinfo=UTC)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
        for number in range(20):
            at = time_text(start + timedelta(minutes=number))
            file.execute("UPDATE outbox SET published_at = ? WHERE position = ?", (at, number))
        file.execute("DELETE FROM outbox WHERE position < 3")
        (last,) = file.execute("SELECT max(position) FROM outbox").fetchone()
        file.commit()

    async def found(since: float, until: float) -> tuple[int, int, int]:
        asked = ReplayRange(since=start + timedelta(minutes=since), until=start + timedelta(minutes=until))
        replay = await store.begin_replay(asked, Act(actor="alice"))
        await store.cancel_replay(replay.id, Act(actor="alice"))
        return replay.from_position, replay.to_position, replay.total

    assert (5, 8, 4) == await found(4.5, 9)
    assert (5, 9, 5) == await found(5, 9.5)
    assert (3, last, last - 2) == await found(-60, 60)
    with pytest.raises(Conflict, match="widen it"):
        await found(6.2, 6.8)


async def test_a_replay_that_fails_delays_no_mark(store: Store) -> None:
    """What the broker has confirmed is marked before anything else is tried, so it does not go out twice."""

    class Once(CommandedBroker):
        async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
            if {message.id for message in messages} & {message.id for message in self.received}:
                raise Unavailable("The broker went away.")
            return await super().publish(messages)

    broker = Once()
    item = await stocked(store, 10)
    async with relaying(store, broker):
        await drained(store)
    await store.begin_replay(ReplayRange(from_position=1), Act(actor="alice", reason="lost"))
    await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))

    async with relaying(store, broker):
        await drained(store)

    assert len({message.id for message in broker.received}) == len(broker.received)
    assert sorted((await positions(store)).values()) == list(range(1, len(broker.received) + 1))


# -- a broker that does not do as it should --------------------------------------------------------------------------


async def test_events_wait_for_a_broker_that_is_away(store: Store, broker: CommandedBroker) -> None:
    """Nothing is lost or marked while there is no broker; when it is back everything flows."""
    item = await stocked(store, 10)
    waiting = await store.pending(100)
    broker.raises = Unavailable("The broker is away.")

    async with relaying(store, broker):
        await until(lambda: broker.calls > 2)
        assert await store.pending(100) == waiting
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
        broker.raises = None
        await drained(store)

    assert in_order(broker.received, "prod_1")
    assert len(broker.received) == len(waiting) + 1


@pytest.mark.parametrize("death", [asyncio.CancelledError("connection lost"), RuntimeError("a bug")])
async def test_the_relay_outlives_a_broker_that_dies_under_it(
    store: Store, broker: CommandedBroker, death: BaseException
) -> None:
    """A publish that ends as a cancellation nobody asked for, or in any other way, ends that attempt only (A3)."""
    await stocked(store, 10)
    broker.raises = death

    async with relaying(store, broker):
        await until(lambda: broker.calls > 1)
        broker.raises = None
        await drained(store)

    assert in_order(broker.received, "prod_1")


async def test_a_refused_event_holds_back_its_product_and_nobody_else(store: Store, broker: CommandedBroker) -> None:
    """From the refused event on its product waits; what was confirmed before it is not sent again (rule R18)."""
    first = await stocked(store, 100, product="a")
    other = await stocked(store, 100, product="b", sku="B")
    async with relaying(store, broker):
        await drained(store)
    broker.received.clear()
    for item in (first, first, first, other):
        await carry_out(store, Ship(inventory_item_id=item.id, quantity=1), product=item.product_id)
    rows = await store.pending(100)
    broker.refuses = {rows[1].event_id}

    async with relaying(store, broker):
        await until(lambda: len(broker.received) == 2)
        await until_async(lambda: waiting_ids(store), [row.event_id for row in rows[1:3]])
        broker.refuses = set()
        await drained(store)

    assert [message.id for message in broker.received] == [rows[place].event_id for place in (0, 3, 1, 2)]


async def waiting_ids(store: Store) -> list[str]:
    """Return the ids of what waits to be published."""
    return [row.event_id for row in await store.pending(100)]


async def test_an_event_that_no_broker_takes_is_blocked(
    store: Store, broker: CommandedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused while others get through, it is named, its product waits, and an operator lets it go on or skips it."""
    first = await stocked(store, 100, product="a")
    other = await stocked(store, 100, product="b", sku="B")
    async with relaying(store, broker):
        await drained(store)
    for _ in range(2):
        await carry_out(store, Ship(inventory_item_id=first.id, quantity=1), product="a")
    stuck, behind = await store.pending(100)
    broker.refuses = {stuck.event_id}
    async with relaying(store, broker):
        async with asyncio.timeout(20):
            while not (blocked := await store.blocked(10)):
                await carry_out(store, Ship(inventory_item_id=other.id, quantity=1), product="b")
                await store.announce()
                await asyncio.sleep(0.2)
        assert (stuck.event_id, "a", 2) == (blocked[0].event_id, blocked[0].product_id, blocked[0].waiting)
        assert f"Event {stuck.event_id} of product a is blocked" in caplog.text
        await until_async(lambda: store.pending(100), [])
        broker.received.clear()
        await store.release_blocked(stuck.event_id, Act(actor="alice"), skip=True)
        await until(lambda: [message.id for message in broker.received] == [behind.event_id])
        with pytest.raises(NotFound):
            await store.release_blocked(stuck.event_id, Act(actor="bob"), skip=False)


async def test_an_outage_blocks_no_event(store: Store, broker: CommandedBroker) -> None:
    """A broker that takes nothing at all says nothing about one event."""
    await stocked(store, 100)
    lease = await store.acquire("relay", "one", seconds=60)
    assert lease is not None
    (row, *_) = await store.pending(100)
    broker.refuses = {row.event_id}
    suspects = Suspects(store, broker)

    assert [False] * 9 == [await suspects.examine(row, lease) for _ in range(9)]
    assert [] == await store.blocked(10)
    broker.raises = Unavailable("It is away.")
    assert await suspects.examine(row, lease) is None


async def test_published_events_go_out_again(store: Store, broker: CommandedBroker) -> None:
    """With the same eventId and body, in order, by product or position; new ones go on meanwhile."""
    first = await stocked(store, 10, product="a")
    await stocked(store, 10, product="b", sku="B")
    async with relaying(store, broker):
        await drained(store)
        before = list(broker.received)
        places = await positions(store)
        broker.received.clear()
        of_a = await store.begin_replay(ReplayRange(product_id="a"), Act(actor="alice", reason="a cache was lost"))
        await carry_out(store, Ship(inventory_item_id=first.id, quantity=1), product="a")
        rows = await store.pending(100)
        await until_async(lambda: status_of(store, of_a.id), "DONE")
        await drained(store)
        again = [message for message in broker.received if message.id not in {row.event_id for row in rows}]
        assert [message for message in before if b'"productId":"a"' in message.body] == again
        broker.received.clear()
        tail = await store.begin_replay(ReplayRange(from_position=2, to_position=3), Act(actor="alice"))
        assert (2, 2, 3) == (tail.total, tail.from_position, tail.to_position)
        await until_async(lambda: status_of(store, tail.id), "DONE")
        assert before[1:3] == broker.received
    assert places.items() <= (await positions(store)).items()
    with pytest.raises(Conflict):
        await store.begin_replay(ReplayRange(from_position=99), Act(actor="alice"))
    with pytest.raises(Conflict, match="DONE"):
        await store.cancel_replay(tail.id, Act(actor="alice"))


async def status_of(store: Store, id: str) -> str:
    """Return how a replay stands."""
    replay = await store.replay(id)
    assert replay is not None
    return replay.status


async def test_what_comes_after_a_lost_event_does_not_count(store: Store, broker: CommandedBroker) -> None:
    """Confirmed or not, it is sent again behind the lost one: positions follow the sequence."""
    item = await stocked(store, 100)
    async with relaying(store, broker):
        await drained(store)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(4)))
    rows = await store.pending(100)
    before = len(broker.received)
    broker.loses = {rows[1].event_id}

    async with relaying(store, broker):
        await drained(store)

    first, *rest = [row.event_id for row in rows]
    assert [message.id for message in broker.received[before:]] == [first, *rest[1:], *rest]
    marks = await positions(store)
    assert sorted(marks, key=lambda event: marks[event]) == sorted(marks)


async def test_an_event_without_a_queue_counts_as_published(store: Store, broker: CommandedBroker) -> None:
    """Nobody is bound for it and nobody needs to be (rule R19)."""
    await stocked(store, 10)
    broker.routeless = {"StockLevelChanged", "BackInStock", "LowStockThresholdReached"}

    async with relaying(store, broker):
        await drained(store)

    assert len(await positions(store)) == len(broker.received) > 1


async def test_a_required_event_without_a_queue_waits(store: Store, broker: CommandedBroker) -> None:
    """It holds back what comes after it in its product, nobody else's events, and goes out once there is a queue."""
    held = await stocked(store, 5, product="held")
    free = await stocked(store, 5, product="free", sku="FREE")
    async with relaying(store, broker):
        await drained(store)
    broker.received.clear()
    for operation in (Ship(inventory_item_id=held.id, quantity=5), Receive(inventory_item_id=held.id, quantity=1)):
        await carry_out(store, operation, product="held")
    await carry_out(store, Ship(inventory_item_id=free.id, quantity=1), product="free")
    rows = [row for row in await store.pending(100) if row.product_id == "held"]
    broker.routeless = {"OutOfStock"}

    async with relaying(store, broker, required=frozenset({"OutOfStock"})):
        await until_async(lambda: left(store, "free"), [])
        left_of_held = await left(store, "held")
        assert left_of_held[0].event_type == "OutOfStock"
        assert left_of_held == rows[1:]
    broker.routeless = set()
    broker.received.clear()
    async with relaying(store, broker, required=frozenset({"OutOfStock"})):
        await drained(store)

    assert [message.id for message in broker.received] == [row.event_id for row in rows[1:]]


# -- several relays --------------------------------------------------------------------------------------------------


async def test_one_of_two_relays_does_it_and_the_other_takes_over(store: Store, url: str) -> None:
    """While the owner works the other waits; when the owner stops the other goes on at once."""
    first, second = CommandedBroker(), CommandedBroker()
    item = await stocked(store, 100)
    async with connect("store", url) as same, relaying(store, first):
        await drained(store)
        async with relaying(same, second, owner="two") as other:
            await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
            await store.announce()
            await drained(store)
            assert second.received == []
            await other.stop()

    before = len(first.received)
    await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
    async with connect("store", url) as same, relaying(same, second, owner="two"):
        await drained(store)

    assert (len(first.received), len(second.received)) == (before, 1)
    assert in_order(first.received + second.received, "prod_1")


async def test_a_paused_owner_marks_nothing_when_it_wakes(store: Store, url: str) -> None:
    """Its lease ran out in the middle of a publish and another took over: positions stay gapless, order stays."""
    paused, awake = CommandedBroker(), CommandedBroker()
    item = await stocked(store, 100)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(5)))
    total = len(await store.pending(100))
    paused.answers.clear()

    async with connect("store", url) as same, relaying(store, paused, owner="paused"):
        await until(lambda: len(paused.received) == total)
        expire_leases(url)
        async with relaying(same, awake, owner="awake"):
            await drained(store)
            marks = await positions(store)
            paused.answers.set()
            await carry_out(store, Ship(inventory_item_id=item.id, quantity=1))
            await store.announce()
            await drained(store)
            await until(lambda: len(awake.received) == total + 1)

    after = await positions(store)
    assert marks.items() <= after.items()
    assert sorted(after.values()) == list(range(1, total + 2))
    assert [message.id for message in paused.received] == [message.id for message in awake.received[:total]]
    assert len(paused.received) == total


async def test_who_is_stopped_between_confirm_and_mark_publishes_again(store: Store, broker: CommandedBroker) -> None:
    """The same events with the same ids and in the same order: a subscriber can tell that it has seen them."""
    item = await stocked(store, 100)
    await carry_out(store, *(Ship(inventory_item_id=item.id, quantity=1) for _ in range(5)))
    rows = await store.pending(100)
    broker.answers.clear()
    async with relaying(store, broker):
        await until(lambda: len(broker.received) == len(rows))
    assert await store.pending(100) == rows

    broker.answers.set()
    async with relaying(store, broker, owner="next"):
        await drained(store)

    assert [message.id for message in broker.received] == [row.event_id for row in rows] * 2
    assert sorted((await positions(store)).values()) == list(range(1, len(rows) + 1))


async def test_a_store_that_is_away_for_a_while_is_waited_for(store: Store, broker: CommandedBroker) -> None:
    """The relay needs no restart when the database comes back."""

    class FlakyStore:
        """A store whose every call fails while it is away."""

        away = True
        calls = 0

        def __getattr__(self, name: str) -> object:
            FlakyStore.calls += 1
            if FlakyStore.away:
                raise Unavailable("The database is away.")
            return getattr(store, name)

    await stocked(store, 10)
    async with relaying(FlakyStore(), broker):
        await until(lambda: FlakyStore.calls > 3)
        FlakyStore.away = False
        await drained(store)

    assert in_order(broker.received, "prod_1")


# -- steps -----------------------------------------------------------------------------------------------------------


def in_order(messages: Sequence[Message], product: str) -> bool:
    """Whether a product's events came by sequence, without gaps, from the first on."""
    bodies = [msgspec.json.decode(message.body) for message in messages]
    sequences = [body["metadata"]["sequence"] for body in bodies if body["payload"]["productId"] == product]
    return sequences == list(range(1, len(sequences) + 1)) and bool(sequences)


async def left(store: Store, product: str) -> list[OutboxRow]:
    """What of a product waits to be published."""
    return [row for row in await store.pending(1000) if row.product_id == product]


async def drained(store: Store) -> None:
    """Wait until nothing waits to be published."""
    await until_async(lambda: store.pending(1), [])


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def until_async(read: Callable[[], object], value: object) -> None:
    """Wait until something reads so."""
    async with asyncio.timeout(20):
        while await read() != value:
            await asyncio.sleep(0.01)


def expire_leases(url: str) -> None:
    """Let every lease run out, as if its owner had slept through it."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
        file.execute("UPDATE lease SET expires_at = '2020-01-01T00:00:00.000000+00:00'")
