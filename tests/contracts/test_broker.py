"""What every broker does, whatever it is made of. An adapter joins with one line in ``SCHEMES``."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from itertools import count

import pytest

from adapters.registry import connect
from core.errors import Unavailable
from core.events import DEAD_LETTERS, EVENTS_EXCHANGE, PRODUCT_EXCHANGE, PRODUCT_QUEUE
from ports.broker import Broker, Message, Receipt

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


async def test_ping_is_answered(broker: Broker) -> None:
    """A broker that is there answers within the second."""
    async with asyncio.timeout(1.5):
        await broker.ping()


async def test_leaving_ends_everything(url: str) -> None:
    """After the block no task of the broker runs any more, whatever was being done."""
    before = asyncio.all_tasks()
    async with connect("broker", url) as broker:
        await broker.declare()
        async with broker.listen(EVENTS_EXCHANGE, "#"):
            await broker.publish([message("last.words")])
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
