"""Product events in: applied once, or parked with their cause; nothing is swallowed and nothing gives up too early."""

import asyncio
import gzip
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from stores import at_work, carry_out, dead_letters, migrated, only, stocked, unasked

from adapters.memory import MemoryBroker
from core.consuming.consumption import ProductEvents, decode
from core.consuming.letters import fingerprint_of
from core.errors import InventoryError, OutcomeUnknown, ProductServiceUnavailable, Unavailable
from core.events import DEAD_LETTERS, PRODUCT_EXCHANGE, PRODUCT_QUEUE, ProductEvent
from core.operations import CreateWarehouse, EventPolicy, Outcome, Request
from core.stock import Item
from core.writing.writer import Writer
from ports.broker import Delivery, Message, Verdict
from ports.dead_letters import DeadLetter, LetterFilter
from ports.store import ItemFilter, Store

POLICY = EventPolicy(warehouse_ids=("wh_1",))
CREATED = "product.productcreated.product"


def body(**words: Any) -> dict[str, Any]:
    """Return a ProductCreated as the specification has it; ``words`` replace parts of it, None takes one away."""
    whole = {
        "eventId": "evt-1",
        "eventType": "ProductCreated",
        "eventVersion": "1.0.0",
        "aggregateId": "prod_1",
        "aggregateType": "Product",
        "timestamp": "2026-11-20T12:00:00Z",
        "metadata": {"correlationId": "corr-7", "source": "product-service"},
        "payload": payload(),
    } | words
    return {name: value for name, value in whole.items() if value is not None}


def payload(**words: Any) -> dict[str, Any]:
    """Return the payload of a product without variants."""
    return {"productId": "prod_1", "sku": "WIDGET", "name": "Widget"} | words


def sent(content: Any, *, key: str = CREATED, **words: Any) -> Message:
    """Return a message with this body: bytes as they are, anything else as JSON."""
    raw = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Message(**{"id": "evt-1", "exchange": PRODUCT_EXCHANGE, "routing_key": key, "body": raw} | words)


class MoodyWriter(Writer):
    """A writer that fails as it was told, then works; with ``late`` it fails when the change is done already."""

    def __init__(self, store: Store, *failures: Exception, late: bool = False) -> None:
        super().__init__(store)
        self.failures = list(failures)
        self._late = late

    async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
        """Fail, or do it."""
        outcomes = await super().submit(request, timeout=timeout) if self._late or not self.failures else []
        if self.failures:
            raise self.failures.pop()
        return outcomes


class AbsentStore(Store):
    """A store that is away the first times somebody parks a message in it."""

    def __init__(self, times: int) -> None:
        self.letters: list[DeadLetter] = []
        self._times = times

    async def park(self, letter: DeadLetter) -> None:
        """Keep it, or be away."""
        if self._times:
            self._times -= 1
            raise Unavailable("The database is away.")
        self.letters.append(letter)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file is."""
    return tmp_path / "inventory.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store with one warehouse."""
    async with migrated(f"sqlite:///{path}") as store:
        await carry_out(store, CreateWarehouse(id="wh_1", name="North"))
        yield store


@pytest.fixture
async def events(store: Store) -> AsyncIterator[ProductEvents]:
    """The consumer on that store, working."""
    async with at_work(store) as writer:
        yield ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are short."""
    monkeypatch.setattr("core.consuming.consumption._PAUSE_SECONDS_MAX", 0.1)


async def handled(events: ProductEvents, message: Message) -> None:
    """Have a message handled, which it always is in the end."""
    assert await events.handle(Delivery(message, redelivered=False)) is Verdict.DONE


async def stock_of(store: Store) -> tuple[Item, ...]:
    """Return every item."""
    return (await store.items(ItemFilter(), cursor=None, limit=100)).rows


def inbox(path: Path) -> list[tuple[str, str, str | None]]:
    """Return (eventId, verdict, reason) of every event that was dealt with."""
    with closing(sqlite3.connect(path)) as file:
        return file.execute("SELECT event_id, verdict, reason FROM inbox ORDER BY event_id").fetchall()


# -- applied ----------------------------------------------------------------------------------------------------------


async def test_what_is_published_is_applied(store: Store, path: Path) -> None:
    """From the broker's queue into the stock, with the event's name on the item and on the ledger row."""
    broker = MemoryBroker()
    await broker.declare()
    async with at_work(store) as writer:
        events = ProductEvents(store, broker, writer, unasked(store, POLICY))
        await events.start()
        try:
            await broker.publish([sent(body(), correlation_id="other")])
            async with asyncio.timeout(10):
                while not (items := await stock_of(store)):
                    await asyncio.sleep(0.01)
        finally:
            await events.stop()

    item = only(items)
    assert ("prod_1", "WIDGET", "wh_1", "Widget", 0) == (
        item.product_id,
        item.sku,
        item.warehouse_id,
        item.name,
        item.on_hand,
    )
    assert {"createdFromProductEvent": True, "productEventId": "evt-1"} == item.metadata
    row = only((await store.ledger(item.id, cursor=None, limit=10)).rows)
    assert ("product-service", "corr-7") == (row.actor, row.correlation_id)
    assert [("evt-1", "APPLIED", None)] == inbox(path)
    assert [] == await dead_letters(store)


async def test_41_a_second_delivery_changes_nothing(store: Store, events: ProductEvents, path: Path) -> None:
    """One eventId is applied once, also when it comes twice at the same time or says something else."""
    await asyncio.gather(*(handled(events, sent(body())) for _ in range(20)))
    before = await store.products(["prod_1"])
    await handled(events, sent(body()))
    await handled(events, sent(body(payload=payload(sku="OTHER", productId="prod_2"))))

    assert before == await store.products(["prod_1"])
    assert 1 == len(await stock_of(store))
    assert [("evt-1", "APPLIED", None)] == inbox(path)
    assert [] == await dead_letters(store)


async def test_an_event_that_makes_no_items_is_dealt_with(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is on record as skipped and warned of; it is not a failure."""
    async with at_work(store) as writer:
        events = ProductEvents(store, MemoryBroker(), writer, unasked(store, EventPolicy()))
        with caplog.at_level(logging.WARNING):
            await handled(events, sent(body()))

    ((_, verdict, reason),) = inbox(path)
    assert "SKIPPED" == verdict
    assert "INVENTORY_DEFAULT_WAREHOUSES" in (reason or "")
    assert str(reason) in caplog.text
    assert [] == await dead_letters(store)


ODD = {
    "43 a timestamp of 1970": sent(body(timestamp="1970-01-01T00:00:00Z")),
    "43 a timestamp that is not UTC": sent(body(timestamp="2026-11-20T23:59:59.999999+14:00")),
    "44 a negative quantity": sent(body(payload=payload(initialQuantity=-5))),
    "44 an overflowing quantity": sent(body(payload=payload(initialQuantity=10**30))),
    "45 a forged death and trace": sent(body(), headers={"x-death": "[{}]", "traceparent": "00-\x00"}),
    "45 a wrong content type": sent(body(), headers={"content-type": "image/png"}, type="ProductDeleted"),
    "45 a correlation id for nobody's records": sent(body(metadata={}), correlation_id="\x00" * 200),
    "45 no message id": sent(body(), id=""),
    "45 a foreign routing key": sent(body(), key="elsewhere"),
}


@pytest.mark.parametrize("message", ODD.values(), ids=ODD.keys())
async def test_what_is_odd_but_clear_is_applied(store: Store, events: ProductEvents, message: Message) -> None:
    """Only what decides about stock is judged; nothing in an event or beside it puts stock on a shelf."""
    await handled(events, message)

    item = only(await stock_of(store))
    assert ("WIDGET", 0, "ACTIVE") == (item.sku, item.on_hand, item.status)
    row = only((await store.ledger(item.id, cursor=None, limit=10)).rows)
    assert row.correlation_id in ("corr-7", "evt-1")
    assert [] == await dead_letters(store)


async def test_44_markup_in_a_name_is_just_a_name(store: Store, events: ProductEvents) -> None:
    """It is kept to the letter, and showing it safely is for whoever shows it."""
    name = "<script>alert('1')</script> & <b>"
    await handled(events, sent(body(payload=payload(name=name))))

    assert name == only(await stock_of(store)).name


async def test_43_times_are_compared_as_instants(store: Store, events: ProductEvents) -> None:
    """An event that looks later in its own zone and is not loses to the newer one."""
    newer = body(eventId="evt-2", eventType="ProductUpdated", payload=payload(name="New"))
    older = body(timestamp="2026-11-20T13:00:00+02:00")
    await handled(events, sent(newer, key="product.productupdated.product"))
    await handled(events, sent(older))

    assert "New" == only(await stock_of(store)).name


# -- parked -----------------------------------------------------------------------------------------------------------


BAD = {
    "41 no eventId": sent(body(eventId=None)),
    "41 an eventId that is no text": sent(body(eventId=1)),
    "41 an empty eventId": sent(body(eventId="")),
    "41 an eventId of 129 characters": sent(body(eventId="x" * 129)),
    "41 an eventId with NUL": sent(body(eventId="evt\x00")),
    "41 an eventType against its routing key": sent(body(eventType="ProductDeleted")),
    "41 an eventType nobody knows": sent(body(eventType="ProductRenamed")),
    "42 eventVersion 2.0.0": sent(body(eventVersion="2.0.0")),
    "42 eventVersion x": sent(body(eventVersion="x")),
    "42 eventVersion with NUL": sent(body(eventVersion="2\x00")),
    "42 no eventVersion": sent(body(eventVersion=None)),
    "43 a timestamp of 2099": sent(body(timestamp="2099-01-01T00:00:00Z")),
    "43 a timestamp of nowhere": sent(body(timestamp="2026-11-20T12:00:00")),
    "43 a timestamp as a number": sent(body(timestamp=1763640000)),
    "43 no timestamp": sent(body(timestamp=None)),
    "44 a SKU of 10 KB": sent(body(payload=payload(sku="S" * 10_240))),
    "44 a name with NUL": sent(body(payload=payload(name="Wid\x00get"))),
    "44 neither SKU nor variants": sent(body(payload={"productId": "prod_1", "name": "Widget"})),
    "44 a variant twice": sent(
        body(payload=payload(variants=[{"variantId": "v1", "sku": sku, "name": sku} for sku in "AB"]))
    ),
    "44 no product": sent(body(payload={"sku": "WIDGET", "name": "Widget"})),
    "45 an empty body": sent(b""),
    "45 not JSON": sent(b"ProductCreated"),
    "45 JSON that is no object": sent(b"[1, 2]"),
    "45 gzip": sent(gzip.compress(msgspec.json.encode(body()))),
    "45 16 MB": sent(body(payload=payload(name="x" * 16 * 2**20))),
    "45 invalid UTF-8": sent(msgspec.json.encode(body()).replace(b"Widget", b"W\xff\xfe")),
    "45 a lone surrogate": sent(msgspec.json.encode(body()).replace(b"Widget", b"\\ud800")),
    "45 NUL": sent(b"\x00" * 16),
    "45 more than one value": sent(msgspec.json.encode(body()) * 2),
    "45 a hundred thousand levels": sent(b'{"payload":' * 100_000),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
async def test_what_cannot_be_understood_is_parked(
    store: Store, events: ProductEvents, path: Path, message: Message
) -> None:
    """Once, with cause and exact body; when it comes again its attempts are added up. Nothing of it is applied."""
    await handled(events, message)
    letter = only(await dead_letters(store))

    code = "unsupported_version" if b'"2.0.0"' in message.body else "validation_failed"
    assert (code, 1) == (letter.code, letter.attempts)
    assert (message.body, message.routing_key, message.id) == (
        letter.message.body,
        letter.message.routing_key,
        letter.message.id,
    )
    assert letter.detail
    assert "ValidationFailed" in letter.stack or "UnsupportedVersion" in letter.stack
    await handled(events, message)
    assert [2] == [kept.attempts for kept in await dead_letters(store)]
    assert ((), []) == (await stock_of(store), inbox(path))


async def test_an_event_of_the_next_five_minutes_is_applied(store: Store, events: ProductEvents) -> None:
    """A sender's clock may be fast."""
    soon = datetime.now(UTC) + timedelta(minutes=4)
    await handled(events, sent(body(timestamp=soon.isoformat())))

    assert 1 == len(await stock_of(store))


async def test_a_sku_of_another_product_is_parked(store: Store, events: ProductEvents, path: Path) -> None:
    """The dead letter names the holder; the stock is as it was; after the SKU is free the same event is applied."""
    item = await stocked(store, 5, sku="WIDGET", product="prod_2")
    await handled(events, sent(body()))
    letter = only(await dead_letters(store))

    assert ("sku_conflict", 1, msgspec.json.encode(body())) == (letter.code, letter.attempts, letter.message.body)
    assert item.id in letter.detail
    assert "prod_2" in letter.detail
    assert ((item,), []) == (await stock_of(store), inbox(path))
    gone = body(eventId="evt-2", eventType="ProductDeleted", payload={"productId": "prod_2"})
    await handled(events, sent(gone, key="product.productdeleted.product", id="evt-2"))
    await handled(events, sent(body()))
    assert ("prod_1", 5, 5) == (
        only(await stock_of(store)).product_id,
        only(await stock_of(store)).on_hand,
        only(await stock_of(store)).available,
    )


async def test_two_bad_messages_of_one_id_are_both_kept(store: Store, events: ProductEvents) -> None:
    """Whoever reuses an id loses nothing by it, and neither does whoever sets none."""
    for content in (b"one", b"two"):
        await handled(events, sent(content))
        await handled(events, sent(content, id=""))

    letters = await dead_letters(store)
    assert [(b"one", ""), (b"one", "evt-1"), (b"two", ""), (b"two", "evt-1")] == sorted(
        (letter.message.body, letter.message.id) for letter in letters
    )


# -- tried again ------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_applied_now_is_tried_again(store: Store, path: Path) -> None:
    """A store that is away for a moment costs a pause, not a dead letter."""
    writer = MoodyWriter(store, Unavailable("The database is away."), OutcomeUnknown("It was lost while committing."))
    await writer.start()
    try:
        await handled(ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY)), sent(body()))
    finally:
        await writer.stop()

    assert ([], 1) == (writer.failures, len(await stock_of(store)))
    assert [("evt-1", "APPLIED", None)] == inbox(path)
    assert [] == await dead_letters(store)


async def test_a_commit_that_was_lost_sight_of_counts_once(store: Store, path: Path) -> None:
    """The second try finds the event in the inbox."""
    writer = MoodyWriter(store, OutcomeUnknown("It was lost while committing."), late=True)
    await writer.start()
    try:
        await handled(ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY)), sent(body()))
    finally:
        await writer.stop()

    assert 1 == only(await stock_of(store)).version
    assert [("evt-1", "APPLIED", None)] == inbox(path)
    assert [] == await dead_letters(store)


@pytest.mark.usefixtures("impatient")
async def test_what_does_not_succeed_is_parked_to_be_tried_again(store: Store) -> None:
    """After three tries a product that stays locked holds up the queue no longer, and no operator is needed yet."""
    writer = MoodyWriter(store, *[Unavailable("Somebody holds the product.")] * 10)
    await handled(ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY)), sent(body()))

    letter = only(await store.letters(LetterFilter(), limit=9))
    assert ("WAITING", "unavailable", "Somebody holds the product.", 3) == (
        letter.status,
        letter.code,
        letter.detail,
        letter.attempts,
    )
    assert letter.next_attempt_at is not None
    assert 7 == len(writer.failures)


async def test_an_outage_pauses_consuming_and_counts_no_attempt(store: Store, impatient: None) -> None:
    """Fault F15: while the store does not answer one asks and the others wait; then all are applied."""
    asked = 0

    class Away(Store):
        async def ping(self) -> None:
            nonlocal asked
            asked += 1
            if asked < 30:
                raise Unavailable("The database is away.")

    writer = MoodyWriter(store, *[Unavailable("The database is away.")] * 20)
    await writer.start()
    try:
        events = ProductEvents(Away(), MemoryBroker(), writer, unasked(store, POLICY))  # type: ignore[abstract]
        await asyncio.gather(*(handled(events, sent(told(number), id=f"evt-{number}")) for number in range(20)))
    finally:
        await writer.stop()

    assert ([], 20) == (writer.failures, len(await stock_of(store)))
    assert [] == await dead_letters(store)


def told(number: int) -> dict[str, Any]:
    """Return what is said of a product of this number."""
    content = payload(productId=f"prod_{number}", sku=f"SKU-{number}")
    return body(eventId=f"evt-{number}", payload=content)


# -- delivered again --------------------------------------------------------------------------------------------------


async def test_a_message_that_comes_again_is_handled_alone(store: Store) -> None:
    """Its attempt is on record before it is handled, and nobody else is in the room; then others go on."""
    inside: list[str] = []
    most: dict[str, int] = {}

    class Watching(MoodyWriter):
        async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
            name = request.operations[0].event.event_id  # type: ignore[union-attr]
            inside.append(name)
            await asyncio.sleep(0.01)
            most[name] = max(len(inside), most.get(name, 0))
            try:
                return await super().submit(request, timeout=timeout)
            finally:
                inside.remove(name)

    writer = Watching(store)
    await writer.start()
    try:
        events = ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY))
        deliveries = [Delivery(sent(told(n), id=f"evt-{n}"), redelivered=n % 4 == 0) for n in range(16)]
        assert {Verdict.DONE} == set(await asyncio.gather(*(events.handle(each) for each in deliveries)))
    finally:
        await writer.stop()

    assert {1} == {most[f"evt-{n}"] for n in range(0, 16, 4)}
    assert max(most.values()) > 1
    assert 16 == len(await stock_of(store))
    assert [1] * 4 == [await store.count_delivery(fingerprint_of(each.message)) for each in deliveries[::4]]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("again", [False, True])
async def test_who_waits_for_the_product_service_keeps_nobody_out(store: Store, again: bool) -> None:
    """Fault F21: while an event cannot be judged, others that come for the first time or again are handled."""

    class Judging(MoodyWriter):
        async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
            if request.operations[0].event.event_id == "evt-0":  # type: ignore[union-attr]
                raise ProductServiceUnavailable("It did not answer.")
            return await super().submit(request, timeout=timeout)

    writer = Judging(store)
    await writer.start()
    try:
        events = ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY))
        waits = asyncio.create_task(events.handle(Delivery(sent(told(0), id="evt-0"), redelivered=again)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            for number in range(1, 5):
                message = sent(told(number), id=f"evt-{number}")
                assert Verdict.DONE is await events.handle(Delivery(message, redelivered=number % 2 == 1))
        assert not waits.done()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
    finally:
        await writer.stop()

    assert 4 == len(await stock_of(store))
    assert 1 == await store.count_delivery(fingerprint_of(sent(told(0), id="evt-0")))


async def test_a_process_that_is_told_to_end_blames_no_message(store: Store) -> None:
    """However often this service is deployed while a message waits, none of it counts as an end by that message."""

    class Stuck(MoodyWriter):
        async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
            trying.set()
            return await asyncio.Future()

    trying = asyncio.Event()
    message = sent(body())
    events = ProductEvents(store, MemoryBroker(), Stuck(store), unasked(store, POLICY))
    for _ in range(5):
        trying.clear()
        handling = asyncio.create_task(events.handle(Delivery(message, redelivered=True)))
        async with asyncio.timeout(5):
            await trying.wait()
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling

    assert 1 == await store.count_delivery(fingerprint_of(message))


async def test_a_message_that_keeps_coming_again_is_given_up_and_kept_once(store: Store) -> None:
    """Faults F9, F26: on the fourth redelivery it goes to the broker's dead letters, and from there to ours, once."""
    broker = MemoryBroker()
    await broker.declare()
    async with at_work(store) as writer:
        events = ProductEvents(store, broker, writer, unasked(store, POLICY))
        message = sent(body())
        for _ in range(3):  # a process that counted the attempt and died
            await store.count_delivery(fingerprint_of(message))
        assert Verdict.DEAD is await events.handle(Delivery(message, redelivered=True))
        headers = {"x-first-death-queue": PRODUCT_QUEUE, "x-first-death-exchange": PRODUCT_EXCHANGE}
        dead = replace(message, exchange=DEAD_LETTERS, headers=headers | {"x-first-death-reason": "rejected"})
        for again in (False, True, True):  # whoever kept it died before it could say so
            assert Verdict.DONE is await events.bury(Delivery(dead, redelivered=again))

        letter = only(await store.letters(LetterFilter(), limit=9))
        assert ("UNRESOLVED", "crash_loop", 1, "evt-1") == (
            letter.status,
            letter.code,
            letter.attempts,
            letter.event_id,
        )
        kept = only(await dead_letters(store))
        assert (PRODUCT_EXCHANGE, message.body) == (kept.message.exchange, kept.message.body)
        assert 1 == await store.count_delivery(fingerprint_of(message))
    assert () == await stock_of(store)


async def test_what_is_in_the_brokers_dead_letters_is_kept(store: Store) -> None:
    """Fault F13, F45: whatever got there, by whichever way, is in the table, and the queue is empty."""
    broker = MemoryBroker()
    await broker.declare()
    async with at_work(store) as writer:
        events = ProductEvents(store, broker, writer, unasked(store, POLICY))
        await events.start()
        try:
            await broker.publish([Message(id="m", exchange=DEAD_LETTERS, routing_key="x", body=b"\xff\x00")])
            async with asyncio.timeout(10):
                while not (found := await store.letters(LetterFilter(), limit=9)):
                    await asyncio.sleep(0.01)
        finally:
            await events.stop()

    assert ("given_up", "m", DEAD_LETTERS) == (
        only(found).code,
        only(found).message_id,
        only(await dead_letters(store)).message.exchange,
    )


@pytest.mark.parametrize("failure", [InventoryError("Something unexpected happened."), ValueError()])
async def test_a_failure_nobody_expected_is_not_swallowed(store: Store, failure: Exception) -> None:
    """What the writer refuses without an explanation is parked; what is wrong with us makes the broker ask again."""
    writer = MoodyWriter(store, failure)
    events = ProductEvents(store, MemoryBroker(), writer, unasked(store, POLICY))
    if isinstance(failure, InventoryError):
        await handled(events, sent(body()))
        assert ["internal"] == [letter.code for letter in await dead_letters(store)]
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - whichever it is
            await events.handle(Delivery(sent(body()), redelivered=False))
        assert [] == await dead_letters(store)


@pytest.mark.usefixtures("impatient")
async def test_an_outage_of_the_store_fills_no_dead_letters(store: Store) -> None:
    """While there is nowhere to park it is tried on, and applied when the store is back."""
    away = AbsentStore(times=100)  # type: ignore[abstract]
    writer = MoodyWriter(store, *[Unavailable("The database is away.")] * 9)
    await writer.start()
    try:
        await handled(ProductEvents(away, MemoryBroker(), writer, unasked(away, POLICY)), sent(body()))
    finally:
        await writer.stop()

    assert ([], 1) == (away.letters, len(await stock_of(store)))


@pytest.mark.usefixtures("impatient")
async def test_parking_is_tried_until_the_store_is_back(store: Store) -> None:
    """What can never be applied keeps its own cause, however long it had to wait for a place."""
    away = AbsentStore(times=8)  # type: ignore[abstract]
    events = ProductEvents(away, MemoryBroker(), MoodyWriter(store), unasked(away, POLICY))
    await handled(events, sent(b"garbage"))

    letter = only(away.letters)
    assert ("validation_failed", 1, b"garbage") == (letter.code, letter.attempts, letter.message.body)


@pytest.mark.usefixtures("impatient")
async def test_an_outage_may_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tries there have been, there is a next one after a pause of some seconds at most."""
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("core.consuming.consumption.asyncio.sleep", note)
    away = AbsentStore(times=2_000)  # type: ignore[abstract]
    await handled(ProductEvents(away, MemoryBroker(), Writer(away), unasked(away, POLICY)), sent(b"garbage"))

    assert (1, 2_000) == (len(away.letters), len(pauses))
    assert max(pauses) <= 5


# -- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Created", "Updated", "Deleted"])
def test_the_specifications_events_are_understood(kind: str) -> None:
    """Whatever else envelope and payload hold is not ours to judge."""
    content = body(eventType=f"Product{kind}", payload=payload(price={"amount": 1}), extra=[1])
    event = decode(sent(content, key=f"product.product{kind.lower()}.product"))

    assert isinstance(event, ProductEvent)
    assert (f"Product{kind}", {"": ("WIDGET", "Widget")}) == (event.event_type, event.skus)
