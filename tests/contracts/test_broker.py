"""What every broker does, whatever it is made of. An adapter joins with one line in ``SCHEMES``."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from itertools import count

import pytest
from msgspec.structs import replace

from adapters.registry import connect
from core.errors import Unavailable
from core.events import DEAD_LETTERS, EVENTS_EXCHANGE, PRODUCT_EXCHANGE, PRODUCT_QUEUE
from ports.broker import Broker, Delivery, Handler, Message, Receipt, Verdict

SCHEMES = ["memory", pytest.param("amqp", marks=pytest.mark.services)]
EVERYTHING = [
    f"exchange {EVENTS_EXCHANGE}",
    f"exchange {PRODUCT_EXCHANGE}",
    f"exchange {DEAD_LETTERS}",
    f"queue {PRODUCT_QUEUE}",
    f"queue {DEAD_LETTERS}",
]
TAP_LIMIT = 10_000

numbers = count(1)


def message(routing_key: str, **fields: object) -> Message:
    """A message to the events exchange, with an id of its own."""
    given = {"id": f"event-{next(numbers)}", "exchange": EVENTS_EXCHANGE, "body": b"{}"} | fields
    return Message(routing_key=routing_key, **given)


async def take(tap: AsyncIterator[Message], number: int) -> list[Message]:
    """The next messages of a tap, which must come within seconds."""
    async with asyncio.timeout(20):
        return [await anext(tap) for _ in range(number)]


def ids(messages: Iterable[Message]) -> list[str]:
    """The ids of the messages, in their order."""
    return [each.id for each in messages]


@pytest.fixture(scope="module", params=SCHEMES)
def url(request: pytest.FixtureRequest) -> str:
    """A broker of the kind that is tested, where nothing is declared; a stranger's holds what it holds."""
    return "memory://" if request.param == "memory" else request.getfixturevalue("rabbitmq").create_vhost()


@pytest.fixture(scope="module")
async def broker(url: str) -> AsyncIterator[Broker]:
    """One for all tests that do not mind: every test uses routing keys of its own."""
    async with connect("broker", url) as opened:
        await opened.declare()
        yield opened


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_declare_creates_what_check_misses(scheme: str, request: pytest.FixtureRequest) -> None:
    """In a new broker everything is missing, after declare nothing is, and declaring again changes nothing."""
    server = request.getfixturevalue("rabbitmq") if scheme == "amqp" else None
    async with connect("broker", server.create_vhost() if server else "memory://") as broker:
        before = await broker.check()
        await broker.declare()
        after = await broker.check()
        await broker.declare()

        assert before == EVERYTHING or (server and not server.owned)
        assert [] == after == await broker.check()


async def test_what_is_declared_is_bound(broker: Broker) -> None:
    """The three kinds of product events find their queue and dead letters theirs; another key finds none."""
    kinds = ["productcreated", "productupdated", "productdeleted"]
    events = [message(f"product.{kind}.product", exchange=PRODUCT_EXCHANGE) for kind in kinds]
    other = message("product.productarchived.product", exchange=PRODUCT_EXCHANGE)
    dead = message("whatever.it.was", exchange=DEAD_LETTERS)

    receipts = await broker.publish([*events, other, dead])

    assert [Receipt.CONFIRMED] * 3 + [Receipt.UNROUTABLE, Receipt.CONFIRMED] == receipts


async def test_a_confirmed_message_arrives_whole(broker: Broker) -> None:
    """A tap brings the message with every field as it was published."""
    sent = message(
        "whole.message",
        body=bytes(range(256)),
        type="OutOfStock",
        correlation_id="caller-7",
        timestamp=datetime(2026, 11, 23, 12, 30, 15, tzinfo=UTC),
        priority=9,
        headers={"traceparent": "00-1-2-01", "Größe": "≥ 1"},
    )
    async with broker.listen(EVENTS_EXCHANGE, "whole.message") as tap:
        receipts = await broker.publish([sent])

        assert [Receipt.CONFIRMED] == receipts
        assert [sent] == await take(tap, 1)


async def test_fields_left_empty_stay_empty(broker: Broker) -> None:
    """A message with an id and nothing else, not even a body, arrives just so."""
    sent = message("empty", body=b"")
    async with broker.listen(EVENTS_EXCHANGE, "empty") as tap:
        await broker.publish([sent])

        assert [sent] == await take(tap, 1)


async def test_a_thousand_arrive_in_order(broker: Broker) -> None:
    """Messages of one publish arrive in the order given, all confirmed, and the next publish's after them."""
    sent = [message("ordered", body=b"x" * 600) for _ in range(1_200)]
    async with broker.listen(EVENTS_EXCHANGE, "ordered") as tap:
        receipts = await broker.publish(sent[:1_000]) + await broker.publish(sent[1_000:])

        assert [Receipt.CONFIRMED] * 1_200 == receipts
        assert ids(sent) == ids(await take(tap, 1_200))


async def test_many_tasks_may_publish_at_once(broker: Broker) -> None:
    """Each task's messages arrive in its order, and nothing is lost or doubled between them."""
    batches = [[message(f"task.{task}") for _ in range(50)] for task in range(8)]
    async with broker.listen(EVENTS_EXCHANGE, "task.*") as tap:
        await asyncio.gather(*(broker.publish(batch) for batch in batches))
        arrived = await take(tap, 400)

        for task, batch in enumerate(batches):
            assert ids(batch) == ids(each for each in arrived if each.routing_key == f"task.{task}")


async def test_nobody_listening_is_unroutable(broker: Broker) -> None:
    """A message that no queue is bound for is reported as gone."""
    assert [Receipt.UNROUTABLE] == await broker.publish([message("nobody.listens")])


async def test_receipts_are_in_the_order_of_the_messages(broker: Broker) -> None:
    """Among confirmed messages exactly the unroutable ones are reported so, and they do not disturb the order."""
    sent = [message("mixed.lost" if number % 3 == 1 else "mixed.found") for number in range(99)]
    async with broker.listen(EVENTS_EXCHANGE, "mixed.found") as tap:
        receipts = await broker.publish(sent)

        assert [Receipt.CONFIRMED, Receipt.UNROUTABLE, Receipt.CONFIRMED] * 33 == receipts
        found = [each for each in sent if each.routing_key == "mixed.found"]
        assert ids(found) == ids(await take(tap, 66))


async def test_an_unknown_exchange_fails_and_harms_nothing_else(broker: Broker) -> None:
    """Publishing to an exchange that was never declared fails; the next publish is as good as ever."""
    async with broker.listen(EVENTS_EXCHANGE, "sound"):
        failed = await broker.publish([message("sound", exchange="no.such.exchange"), message("sound")])
        sound = await broker.publish([message("sound")])

    assert [Receipt.FAILED, Receipt.FAILED] == failed
    assert [Receipt.CONFIRMED] == sound


async def test_nothing_to_publish_is_nothing_to_receive(broker: Broker) -> None:
    """Publishing no messages returns no receipts."""
    assert [] == await broker.publish([])


async def test_ids_must_differ_within_a_publish(broker: Broker) -> None:
    """Two messages with one id are refused together, and none of the publish is sent; later the id may come again."""
    twin = message("twin")
    async with broker.listen(EVENTS_EXCHANGE, "twin") as tap:
        with pytest.raises(ValueError, match="same id"):
            await broker.publish([message("twin"), twin, twin])
        await broker.publish([twin])
        await broker.publish([twin])

        assert [twin, twin] == await take(tap, 2)


KEYS = ["", "a", "a.b", "b.a", "a.b.c", "a.x.b", "b", "a.", "a..b", ".", "ab"]
MATCHES = {
    "#": KEYS,
    "*": ["a", "b", "ab"],
    "a": ["a"],
    "a.*": ["a.b", "a."],
    "*.b": ["a.b"],
    "a.#": ["a", "a.b", "a.b.c", "a.x.b", "a.", "a..b"],
    "#.b": ["a.b", "a.x.b", "b", "a..b"],
    "a.#.b": ["a.b", "a.x.b", "a..b"],
    "a.*.b": ["a.x.b", "a..b"],
    "*.*": ["a.b", "b.a", "a.", "."],
    "#.*": ["a", "a.b", "b.a", "a.b.c", "a.x.b", "b", "a.", "a..b", ".", "ab"],
    "#.a.#": ["a", "a.b", "b.a", "a.b.c", "a.x.b", "a.", "a..b"],
    "*.#.*": ["a.b", "b.a", "a.b.c", "a.x.b", "a.", "a..b", "."],
    "": [""],
    "a*": [],
}


@pytest.mark.parametrize("pattern", MATCHES)
async def test_patterns_are_amqps(broker: Broker, pattern: str) -> None:
    """``*`` stands for one word and ``#`` for any number, even none; within a word they mean nothing."""
    sent = [message(key) for key in KEYS]
    async with broker.listen(EVENTS_EXCHANGE, pattern) as tap:
        receipts = await broker.publish(sent)
        arrived = await take(tap, receipts.count(Receipt.CONFIRMED))

    assert MATCHES[pattern] == [
        key for key, receipt in zip(KEYS, receipts, strict=True) if receipt is Receipt.CONFIRMED
    ]
    assert MATCHES[pattern] == [each.routing_key for each in arrived]


async def test_every_tap_gets_every_message(broker: Broker) -> None:
    """Two taps with the same pattern, and a third with a wider one, each get all messages once."""
    sent = [message("shared.message") for _ in range(10)]
    async with AsyncExitStack() as taps:
        patterns = ["shared.message", "shared.message", "shared.#"]
        listening = [await taps.enter_async_context(broker.listen(EVENTS_EXCHANGE, pattern)) for pattern in patterns]
        await broker.publish(sent)

        assert [sent] * 3 == [await take(tap, 10) for tap in listening]


async def test_a_tap_brings_nothing_from_before_and_leaves_nothing_behind(broker: Broker) -> None:
    """What was published before the tap is not heard, and after it the message finds nobody again."""
    await broker.publish([message("passing")])
    async with broker.listen(EVENTS_EXCHANGE, "passing") as tap:
        heard = message("passing")
        await broker.publish([heard])

        assert [heard] == await take(tap, 1)
    assert [Receipt.UNROUTABLE] == await broker.publish([message("passing")])


async def test_a_tap_may_be_left_while_it_waits(broker: Broker) -> None:
    """A listener that is cancelled in its wait leaves at once, and its tap is gone."""

    async def listen() -> None:
        async with broker.listen(EVENTS_EXCHANGE, "waited.for") as tap:
            listening.set()
            await anext(tap)

    listening = asyncio.Event()
    listener = asyncio.create_task(listen())
    await listening.wait()
    listener.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await listener

    assert [Receipt.UNROUTABLE] == await broker.publish([message("waited.for")])


async def test_a_slow_listener_loses_what_is_too_much(broker: Broker) -> None:
    """Of more messages than a tap holds the first ones wait, the others are dropped, and then it goes on."""
    sent = [message("torrent") for _ in range(TAP_LIMIT + 500)]
    async with broker.listen(EVENTS_EXCHANGE, "torrent") as slow, broker.listen(EVENTS_EXCHANGE, "torrent") as quick:
        for start in range(0, len(sent), 500):
            await broker.publish(sent[start : start + 500])
            await take(quick, 500)
        await asyncio.sleep(0.5)  # the slow one may be told a little later than the quick one
        later = message("torrent")

        assert ids(sent[:TAP_LIMIT]) == ids(await take(slow, TAP_LIMIT))
        await broker.publish([later])
        assert [later] == await take(slow, 1)


async def test_listening_to_an_unknown_exchange_says_what_to_do(broker: Broker) -> None:
    """A tap on an exchange that is not there is refused with the command that creates it."""
    with pytest.raises(Unavailable, match="inventory migrate"):
        async with broker.listen("no.such.exchange", "#"):
            pytest.fail("There is nothing to listen to.")


# Consuming


def product_event(**fields: object) -> Message:
    """A message for the product queue."""
    return message("product.productcreated.product", **{"exchange": PRODUCT_EXCHANGE} | fields)


async def done(delivery: Delivery) -> Verdict:
    """A handler that has nothing to do."""
    return Verdict.DONE


class Recorder:
    """A handler that remembers what it was given, and then does as another does."""

    def __init__(self, handle: Handler = done) -> None:
        self.deliveries: list[Delivery] = []
        self._handle = handle

    async def __call__(self, delivery: Delivery) -> Verdict:
        self.deliveries.append(delivery)
        return await self._handle(delivery)

    async def given(self, number: int) -> list[tuple[str, bool]]:
        """The ids of so many deliveries, and whether they were redelivered, in the order they came."""
        async with asyncio.timeout(60):
            while len(self.deliveries) < number:
                await asyncio.sleep(0.01)
        return [(each.message.id, each.redelivered) for each in self.deliveries]


async def take_all(broker: Broker, queue: str) -> list[str]:
    """The ids of all that waits in the queue, up to a last message that is put behind it."""
    last = product_event() if queue == PRODUCT_QUEUE else message("last", exchange=queue)
    recorder = Recorder()
    async with broker.consume(queue, recorder, prefetch=1):
        await broker.publish([last])
        async with asyncio.timeout(60):
            while last.id not in ids(each.message for each in recorder.deliveries):
                await asyncio.sleep(0.01)
    return ids(each.message for each in recorder.deliveries if each.message != last)


@pytest.fixture
async def empty(broker: Broker) -> Broker:
    """The broker with nothing waiting in its queues."""
    for queue in (PRODUCT_QUEUE, DEAD_LETTERS):
        await take_all(broker, queue)
    return broker


async def test_every_message_is_handled_once_and_not_too_many_at_a_time(empty: Broker) -> None:
    """Of 500 messages each is handled once, and there are 32 handlers at once, as was asked for, and never more."""
    running = most = 0
    full = asyncio.Event()

    async def work(delivery: Delivery) -> Verdict:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 32:
            full.set()
        await full.wait()
        await asyncio.sleep(0.005)
        running -= 1
        return Verdict.DONE

    sent = [product_event() for _ in range(500)]
    recorder = Recorder(work)
    await empty.publish(sent)
    async with empty.consume(PRODUCT_QUEUE, recorder, prefetch=32):
        given = await recorder.given(500)

    assert [(id, False) for id in ids(sent)] == given
    assert (32, 0) == (most, running)
    assert [] == await take_all(empty, PRODUCT_QUEUE)


async def test_a_delivery_is_whole(empty: Broker) -> None:
    """A handler gets the message with every field as it was published."""
    sent = product_event(
        body=bytes(range(256)),
        type="ProductCreated",
        correlation_id="caller-7",
        timestamp=datetime(2026, 11, 23, 12, 30, 15, tzinfo=UTC),
        priority=4,
        headers={"traceparent": "00-1-2-01", "Größe": "≥ 1"},
    )
    bare = product_event(body=b"")
    recorder = Recorder()
    await empty.publish([sent, bare])
    async with empty.consume(PRODUCT_QUEUE, recorder):
        await recorder.given(2)

    assert [Delivery(sent, redelivered=False), Delivery(bare, redelivered=False)] == recorder.deliveries


@pytest.mark.parametrize(
    "failure", [RuntimeError("The store is away."), asyncio.CancelledError()], ids=["raised", "cancelled"]
)
async def test_what_failed_comes_again_after_a_pause(
    empty: Broker, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """A message whose handler failed comes again as redelivered, a second later; the log names it; others go on."""
    times = []

    async def fail_once(delivery: Delivery) -> Verdict:
        if delivery.message.id == failing.id:
            times.append(time.monotonic())
            if not delivery.redelivered:
                raise failure
        return Verdict.DONE

    failing, sound = product_event(), product_event()
    recorder = Recorder(fail_once)
    async with empty.consume(PRODUCT_QUEUE, recorder):
        await empty.publish([failing, sound])
        given = await recorder.given(3)

    assert [(failing.id, False), (sound.id, False), (failing.id, True)] == given
    assert times[1] - times[0] > 0.9
    (told,) = (record.getMessage() for record in caplog.records if record.exc_info)
    assert failing.id in told
    assert [] == await take_all(empty, PRODUCT_QUEUE)


async def test_the_dead_are_kept(empty: Broker) -> None:
    """What can never be dealt with is found whole among the dead letters, with the exchange and queue it comes from."""

    async def give_up(delivery: Delivery) -> Verdict:
        return Verdict.DEAD

    sent = product_event(body=b"\xff", type="ProductCreated", correlation_id="caller-7", headers={"traceparent": "00"})
    dying, found = Recorder(give_up), Recorder()
    async with empty.consume(PRODUCT_QUEUE, dying), empty.consume(DEAD_LETTERS, found):
        await empty.publish([sent])
        await found.given(1)

    ((letter, redelivered),) = ((each.message, each.redelivered) for each in found.deliveries)
    assert replace(sent, exchange=DEAD_LETTERS, headers=letter.headers) == letter
    death = {"exchange": PRODUCT_EXCHANGE, "queue": PRODUCT_QUEUE, "reason": "rejected"}
    assert (sent.headers | {f"x-first-death-{name}": value for name, value in death.items()}).items() <= (
        letter.headers.items()
    )
    assert (False, [(sent.id, False)]) == (redelivered, await dying.given(1))


async def test_a_dead_letter_cannot_be_lost(empty: Broker) -> None:
    """A handler of dead letters that says DEAD is given the letter again: there is nowhere else for it to go."""

    async def give_up_once(delivery: Delivery) -> Verdict:
        return Verdict.DONE if delivery.redelivered else Verdict.DEAD

    letter = message("a.letter", exchange=DEAD_LETTERS)
    recorder = Recorder(give_up_once)
    async with empty.consume(DEAD_LETTERS, recorder):
        await empty.publish([letter])

        assert [(letter.id, False), (letter.id, True)] == await recorder.given(2)


async def test_leaving_waits_for_a_running_handler(empty: Broker) -> None:
    """A handler that is running when the block is left comes to its end, and its message does not come again."""
    ended = False

    async def work(delivery: Delivery) -> Verdict:
        nonlocal ended
        await asyncio.sleep(0.5)
        ended = True
        return Verdict.DONE

    recorder = Recorder(work)
    async with empty.consume(PRODUCT_QUEUE, recorder):
        await empty.publish([product_event()])
        await recorder.given(1)

    assert ended
    assert [] == await take_all(empty, PRODUCT_QUEUE)


async def test_leaving_takes_no_more(empty: Broker) -> None:
    """While the last handler comes to its end no other begins; what waits is left to the next consumer."""

    async def work(delivery: Delivery) -> Verdict:
        await asyncio.sleep(0.5)
        return Verdict.DONE

    sent = [product_event() for _ in range(10)]
    await empty.publish(sent)
    recorder, other = Recorder(work), Recorder()
    async with empty.consume(PRODUCT_QUEUE, recorder, prefetch=1):
        await recorder.given(1)
    async with empty.consume(PRODUCT_QUEUE, other, prefetch=1):
        assert [(id, False) for id in ids(sent[1:])] == await other.given(9)

    assert [sent[0].id] == ids(each.message for each in recorder.deliveries)


async def test_leaving_cancels_a_handler_that_does_not_end(empty: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that takes longer than the patience is cancelled, and its message comes again."""
    monkeypatch.setattr("adapters.handling.END_SECONDS", 0.3)
    cancelled = False

    async def hang(delivery: Delivery) -> Verdict:
        nonlocal cancelled
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled = True
            raise
        return Verdict.DONE

    event = product_event()
    recorder, other = Recorder(hang), Recorder()
    async with asyncio.timeout(60), empty.consume(PRODUCT_QUEUE, recorder):
        await empty.publish([event])
        await recorder.given(1)
    assert cancelled
    async with empty.consume(PRODUCT_QUEUE, other):
        assert [(event.id, True)] == await other.given(1)


async def test_leaving_may_be_cut_short(empty: Broker) -> None:
    """Who is cancelled while handlers come to their end does not wait for it; their messages come again."""

    async def hang(delivery: Delivery) -> Verdict:
        await asyncio.sleep(3600)
        return Verdict.DONE

    async def consume() -> None:
        async with empty.consume(PRODUCT_QUEUE, recorder):
            await recorder.given(1)

    event = product_event()
    recorder, other = Recorder(hang), Recorder()
    await empty.publish([event])
    consumer = asyncio.create_task(consume())
    await recorder.given(1)
    await asyncio.sleep(0.5)  # by now it is leaving
    start = time.monotonic()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer

    assert time.monotonic() - start < 3
    async with empty.consume(PRODUCT_QUEUE, other):
        assert [(event.id, True)] == await other.given(1)


async def test_consumers_of_one_queue_share_its_messages(empty: Broker) -> None:
    """Two consumers get messages at the same time, and each message goes to one of them."""
    both = asyncio.Event()

    async def work(delivery: Delivery) -> Verdict:
        if one.deliveries and other.deliveries:
            both.set()
        await both.wait()
        return Verdict.DONE

    one, other = Recorder(work), Recorder(work)
    sent = [product_event() for _ in range(100)]
    await empty.publish(sent)
    async with empty.consume(PRODUCT_QUEUE, one, prefetch=4), empty.consume(PRODUCT_QUEUE, other, prefetch=4):
        async with asyncio.timeout(60):
            while len(one.deliveries) + len(other.deliveries) < 100:
                await asyncio.sleep(0.01)

    assert Counter(ids(sent)) == Counter(ids(each.message for each in one.deliveries + other.deliveries))


async def test_ping_is_answered(broker: Broker) -> None:
    """A broker that is there answers within the second."""
    async with asyncio.timeout(1.5):
        await broker.ping()


async def test_leaving_ends_everything(url: str) -> None:
    """After the block no task of the broker runs any more, whatever was being done."""
    before = asyncio.all_tasks()
    async with connect("broker", url) as broker:
        await broker.declare()
        async with broker.listen(EVENTS_EXCHANGE, "#"), broker.consume(PRODUCT_QUEUE, done):
            await broker.publish([message("last.words"), product_event()])
            with suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await broker.publish([message("cut.off") for _ in range(100)])
    await asyncio.sleep(0.1)

    assert set() == asyncio.all_tasks() - before


async def test_memory_brokers_share_nothing() -> None:
    """Each opening of memory:// is a broker of its own."""
    async with connect("broker", "memory://") as one, connect("broker", "memory://") as other:
        await one.declare()

        assert [] == await one.check()
        assert EVERYTHING == await other.check()


async def test_a_memory_queue_may_come_after_its_consumer() -> None:
    """Who consumes a queue of memory:// before it is declared gets its messages as soon as there are any."""
    recorder = Recorder()
    async with connect("broker", "memory://") as broker, broker.consume(PRODUCT_QUEUE, recorder):
        await asyncio.sleep(0.01)
        await broker.declare()
        event = product_event()
        await broker.publish([event])

        assert [(event.id, False)] == await recorder.given(1)
