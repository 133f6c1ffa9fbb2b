"""What is special to RabbitMQ: it can be away, silent, full, or have something else where our queues should be."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import aio_pika
import psutil
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from private_server import free_port
from services import RabbitMQ
from stores import carry_out, migrated, stocked
from test_doctor import doctor

from adapters.rabbitmq import broker as adapter
from adapters.rabbitmq import consumer
from adapters.rabbitmq.broker import open_broker
from adapters.rabbitmq.connection import backoff, conversation
from core.errors import Conflict, Unavailable, ValidationFailed
from core.events import BINDINGS, DEAD_LETTERS, EVENTS_EXCHANGE, EXCHANGES, PRODUCT_EXCHANGE, PRODUCT_QUEUE
from core.operations import Ship
from core.publishing.relay import Relay
from entrypoints.processes.loops import check_broker
from ports.broker import Broker, Delivery, Message, Receipt, Verdict

pytestmark = pytest.mark.services

numbers = count(1)


def message(routing_key: str = "a.key", **fields: object) -> Message:
    """A message to the events exchange, with an id of its own."""
    given = {"id": f"event-{next(numbers)}", "exchange": EVENTS_EXCHANGE, "body": b"{}"} | fields
    return Message(routing_key=routing_key, **given)


def product_event() -> Message:
    """A message that the declared topology has a queue for."""
    return message("product.productcreated.product", exchange=PRODUCT_EXCHANGE)


async def eventually(receipt: Receipt, attempt: Callable[[], Awaitable[list[Receipt]]]) -> None:
    """Publish until the receipt is this one; it must be within seconds, and nobody helps the broker."""
    async with asyncio.timeout(20):
        while True:
            with suppress(Unavailable):
                if await attempt() == [receipt]:
                    return
            await asyncio.sleep(0.1)


@contextmanager
def frozen(node: RabbitMQ) -> Iterator[None]:
    """The node is there and says nothing."""
    process = psutil.Process(node.pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@asynccontextmanager
async def alarm(node: RabbitMQ) -> AsyncIterator[None]:
    """The node finds that it uses too much memory."""
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block has to end in time; unlike a timeout this does not help it to."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A node of this module's own, to be ill-treated; each test leaves it running."""
    with RabbitMQ() as server:
        yield server


@pytest.fixture(scope="module")
def shared_url(rabbitmq: RabbitMQ) -> str:
    """A vhost for those tests that need no other."""
    return rabbitmq.create_vhost()


@pytest.fixture
async def broker(shared_url: str) -> AsyncIterator[Broker]:
    """A broker with everything declared."""
    async with open_broker(shared_url) as opened:
        await opened.declare()
        yield opened


# What others see of our messages


async def test_a_message_carries_what_amqp_tools_show(broker: Broker, shared_url: str) -> None:
    """Beside our own fields a message is persistent, says it is JSON, and names this service."""
    async with await aio_pika.connect(shared_url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(EVENTS_EXCHANGE, "seen.by.others")
        await broker.publish([message("seen.by.others", type="OutOfStock")])
        seen = await queue.get()

    assert ("inventory-service", "application/json", aio_pika.DeliveryMode.PERSISTENT, "OutOfStock") == (
        seen.app_id,
        seen.content_type,
        seen.delivery_mode,
        seen.type,
    )


async def test_a_body_larger_than_a_frame_arrives_whole(broker: Broker) -> None:
    """A megabyte is cut into frames and put together again, between its neighbours."""
    sent = [message("large"), message("large", body=bytes(1_000_003)), message("large")]
    async with broker.listen(EVENTS_EXCHANGE, "large") as tap:
        receipts = await broker.publish(sent)

        assert [Receipt.CONFIRMED] * 3 == receipts
        assert sent == [await anext(tap) for _ in sent]


async def test_what_amqp_cannot_carry_fails_and_what_precedes_it_does_not(broker: Broker) -> None:
    """A type of 300 characters fails its message and the next; the one before is confirmed."""
    async with broker.listen(EVENTS_EXCHANGE, "a.key"):
        receipts = await broker.publish([message(), message(type="x" * 300), message()])

        assert [Receipt.CONFIRMED, Receipt.FAILED, Receipt.FAILED] == receipts
        assert [Receipt.CONFIRMED] == await broker.publish([message()])


async def test_a_correlation_id_too_long_for_amqp_is_left_out(broker: Broker) -> None:
    """Of two correlation ids the one of 255 bytes travels, the one of 256 does not, and both messages arrive."""
    texts = ["é" + "x" * 253, "é" + "x" * 254]
    async with broker.listen(EVENTS_EXCHANGE, "correlated") as tap:
        receipts = await broker.publish([message("correlated", correlation_id=text) for text in texts])

        assert [Receipt.CONFIRMED] * 2 == receipts
        assert [texts[0], ""] == [(await anext(tap)).correlation_id for _ in texts]


async def test_a_refused_message_failed(broker: Broker, shared_url: str) -> None:
    """A queue that is full and says so makes exactly the refused message FAILED."""
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with await aio_pika.connect(shared_url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(exclusive=True, arguments=full)
        await queue.bind(EVENTS_EXCHANGE, "full")
        taken = await broker.publish([message("full")])
        refused = await broker.publish([message("full")])

    assert ([Receipt.CONFIRMED], [Receipt.FAILED]) == (taken, refused)


async def test_a_cancelled_publish_leaves_the_broker_usable(broker: Broker) -> None:
    """After a publish was cancelled in the middle the next one is confirmed, and comes after what had left."""
    early = [message("cut.short") for _ in range(500)]
    async with broker.listen(EVENTS_EXCHANGE, "cut.short") as tap:
        publishing = asyncio.create_task(broker.publish(early))
        await asyncio.sleep(0.005)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        last = message("cut.short")
        receipts = await broker.publish([last])
        arrived = []
        while last not in arrived:
            arrived.append(await anext(tap))

    assert [Receipt.CONFIRMED] == receipts
    assert [*early[: len(arrived) - 1], last] == arrived


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
async def test_a_publish_timeout_must_be_a_number_of_seconds(text: str) -> None:
    """A publish_timeout that is no time is refused when the broker is opened, with its value."""
    with pytest.raises(ValidationFailed, match=text):
        async with open_broker(f"amqp://127.0.0.1/?publish_timeout={text}"):
            pytest.fail("It was opened.")


# What is there already


async def test_a_queue_with_other_arguments_is_a_conflict(amqp_url: str) -> None:
    """Declaring over a classic queue of the same name is refused; the detail names the queue and the remedy."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_queue(PRODUCT_QUEUE, durable=True)
        async with open_broker(amqp_url) as broker:
            with pytest.raises(Conflict, match=rf"queue {PRODUCT_QUEUE} .*inequivalent arg.*delete it"):
                await broker.declare()
        await channel.queue_delete(PRODUCT_QUEUE)


async def test_an_exchange_of_another_type_is_a_conflict(amqp_url: str) -> None:
    """Declaring over a fanout exchange of the same name is refused; the detail names the exchange and the remedy."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_exchange(DEAD_LETTERS, "fanout", durable=True)
        async with open_broker(amqp_url) as broker:
            with pytest.raises(Conflict, match=rf"exchange {DEAD_LETTERS} .*inequivalent arg .type.*delete it"):
                await broker.declare()
        await channel.exchange_delete(DEAD_LETTERS)


async def test_declare_waits_only_for_new_queues(broker: Broker) -> None:
    """A second declare does not take the settling time again."""
    with within(2):
        await broker.declare()


async def test_what_is_waiting_survives_a_declare(broker: Broker, shared_url: str) -> None:
    """Looking for the leader does not take messages from a queue."""
    await broker.publish([product_event(), product_event()])
    before = await waiting(shared_url)
    await broker.declare()

    assert before == await waiting(shared_url) >= 2


async def waiting(url: str) -> int:
    """The messages that wait in the product queue."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(PRODUCT_QUEUE, passive=True)
        return queue.declaration_result.message_count or 0


async def test_a_queue_without_a_leader_is_named(node: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quorum queue whose leader is gone is declared in vain; when the leader is back all is well."""
    monkeypatch.setattr(adapter, "LEADER_SECONDS", 2)
    leader = f"{{'%2F_{PRODUCT_QUEUE}', node()}}"
    async with open_broker(node.url) as broker:
        await broker.declare()
        await asyncio.to_thread(node.ctl, "eval", f"ra:stop_server(quorum_queues, {leader}).")
        with pytest.raises(Unavailable, match=f"queue {PRODUCT_QUEUE} has no leader"):
            await broker.declare()
        await asyncio.to_thread(node.ctl, "eval", f"ra:restart_server(quorum_queues, {leader}).")
        await broker.declare()


async def test_what_is_missing_is_named_at_the_start(amqp_url: str) -> None:
    """A process that does not prepare the broker itself names what is not there, and the command that makes it."""
    async with open_broker(amqp_url) as broker:
        with pytest.raises(Conflict, match="run `inventory migrate`") as refusal:
            await check_broker(broker)
        assert all(name in refusal.value.detail for name in (*EXCHANGES, *BINDINGS))
        await broker.declare()
        await check_broker(broker)


# When it is away


async def test_it_may_come_after_us(node: RabbitMQ) -> None:
    """Opened while the broker is away, everything is refused quickly, and works without help once it is there."""
    await asyncio.to_thread(node.stop)
    async with open_broker(node.url) as broker:
        for refused in (broker.publish([message()]), broker.ping(), broker.check(), broker.declare()):
            with within(3), pytest.raises(Unavailable, match="cannot be reached"):
                await refused
        await asyncio.to_thread(node.start)
        await eventually(Receipt.UNROUTABLE, lambda: broker.publish([message()]))
        await broker.declare()
        await broker.ping()

        assert [Receipt.CONFIRMED] == await broker.publish([product_event()])


async def test_opening_and_leaving_need_no_broker() -> None:
    """Where nobody listens a broker is opened and left at once."""
    with within(1):
        async with open_broker(f"amqp://127.0.0.1:{free_port()}/"):
            pass


async def test_a_wrong_password_is_told(node: RabbitMQ) -> None:
    """Being refused is Unavailable too, with the broker's reason and without the password."""
    async with open_broker(node.url.replace("guest@", "sesame@")) as broker:
        with pytest.raises(Unavailable, match="ACCESS_REFUSED") as refusal:
            await broker.publish([message()])

    assert "sesame" not in str(refusal.value)


async def test_it_recovers_from_a_crash(node: RabbitMQ) -> None:
    """After kill -9 the very moment a queue was declared that queue works, publishing too, and a tap goes on."""
    async with open_broker(node.url) as broker:
        await broker.declare()
        async with broker.listen(EVENTS_EXCHANGE, "a.key") as tap:
            await asyncio.to_thread(node.ctl, "delete_queue", PRODUCT_QUEUE)
            await broker.declare()
            node.kill()
            with suppress(Unavailable):
                assert [Receipt.FAILED] == await broker.publish([message()])
            with pytest.raises(Unavailable):
                await broker.ping()
            await asyncio.to_thread(node.start)
            await eventually(Receipt.CONFIRMED, lambda: broker.publish([product_event()]))
            heard = asyncio.ensure_future(anext(tap))
            async with asyncio.timeout(10):
                while not heard.done():
                    await broker.publish([message()])
                    await asyncio.sleep(0.1)
            assert "a.key" == heard.result().routing_key
            assert [] == await broker.check()


# When it is silent


@pytest.mark.parametrize("used", [True, False], ids=["channel-open", "no-channel-yet"])
async def test_a_silent_broker_costs_no_more_than_the_timeout(node: RabbitMQ, used: bool) -> None:
    """With the broker stopped in its tracks a publish ends in its time, others are refused sooner, and it recovers."""
    async with open_broker(f"{node.url}?publish_timeout=1") as broker:
        await broker.declare()
        if used:
            await broker.publish([product_event()])
        with frozen(node):
            with within(3.5), suppress(Unavailable):
                assert [Receipt.FAILED] * 1_000 == await broker.publish([product_event() for _ in range(1_000)])
            for refused in (broker.ping(), broker.publish([message()]), broker.check()):
                with within(2), pytest.raises(Unavailable):
                    await refused

        await eventually(Receipt.CONFIRMED, lambda: broker.publish([product_event()]))


async def test_giving_up_a_silent_broker_cancels_nobody(node: RabbitMQ) -> None:
    """When heartbeats stay away before the publish timeout, the publish fails; aiormq's CancelledError stays inside."""
    async with open_broker(f"{node.url}?heartbeat=1&publish_timeout=60") as broker:
        await broker.declare()
        await broker.publish([product_event()])
        with frozen(node), within(20):
            assert [Receipt.FAILED] == await broker.publish([product_event()])


async def test_a_silent_broker_is_left_quickly(node: RabbitMQ) -> None:
    """Leaving a tap and the broker takes less than 3 seconds while the node is silent, and leaves no task behind."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as opened:
        broker = await opened.enter_async_context(open_broker(node.url))
        await broker.declare()
        await opened.enter_async_context(broker.listen(EVENTS_EXCHANGE, "#"))
        with frozen(node):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await broker.publish([message() for _ in range(1_000)])
            with within(3):
                await opened.aclose()
            await asyncio.sleep(0.1)

            assert set() == asyncio.all_tasks() - before


# When it is full


async def test_an_alarm_is_named_and_nothing_overtakes(node: RabbitMQ) -> None:
    """In a memory alarm the first publish fails soon, others are refused with the reason; after it the order holds."""
    async with open_broker(node.url) as broker:
        await broker.declare()
        async with broker.listen(EVENTS_EXCHANGE, "a.key") as tap:
            early = [message() for _ in range(300)]
            async with alarm(node):
                with within(3):
                    assert [Receipt.FAILED] * 300 == await broker.publish(early)
                for refused in (broker.publish([message()]), broker.ping(), broker.check()):
                    with within(1), pytest.raises(Unavailable, match="alarm"):
                        await refused
                await broker.declare()
            last = message()
            await eventually(Receipt.CONFIRMED, lambda: broker.publish([last]))
            arrived = []
            while last not in arrived:
                arrived.append(await anext(tap))

    assert [*early[: len(arrived) - 1], last] == arrived


async def test_an_alarm_is_told_to_who_publishes_nothing(node: RabbitMQ) -> None:
    """A process that only looks how the broker is learns of an alarm within a second, and of its end."""
    async with open_broker(node.url) as broker:
        await broker.ping()
        async with alarm(node):
            for _ in range(3):
                with within(1), pytest.raises(Unavailable, match="alarm"):
                    await broker.ping()
        await until_answered(broker)
        await broker.declare()
        assert [Receipt.CONFIRMED] == await broker.publish([product_event()])


async def until_answered(broker: Broker) -> None:
    """Return when the broker answers, which is soon."""
    async with asyncio.timeout(5):
        while True:
            with suppress(Unavailable):
                return await broker.ping()
            await asyncio.sleep(0.05)


async def test_a_user_who_may_not_write_everywhere_gets_an_answer_too(node: RabbitMQ) -> None:
    """Rights that cover our own exchanges and queues are enough to look how the broker is."""
    await asyncio.to_thread(node.ctl, "add_user", "modest", "modesty")
    await asyncio.to_thread(node.ctl, "set_permissions", "modest", "", r"inventory\..*", ".*")
    async with open_broker(node.url.replace("guest:guest", "modest:modesty")) as broker:
        for _ in range(3):
            await broker.ping()


async def test_the_relay_waits_through_an_alarm(node: RabbitMQ, tmp_path: Path) -> None:
    """What comes up meanwhile waits; nothing is taken for bad; it goes out in order, soon after the alarm is over."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store, open_broker(node.url) as broker:
        await broker.declare()
        relay = Relay(store, broker, owner="one", required_events=frozenset())
        item = await stocked(store, 12)
        async with broker.listen(EVENTS_EXCHANGE, "inventory.#") as tap:
            async with alarm(node):
                await relay.start()
                await asyncio.sleep(1.5)
                await carry_out(store, *[Ship(inventory_item_id=item.id, quantity=1) for _ in range(12)])
                await asyncio.sleep(1.5)
                rows = await store.pending(100)
                assert (len(rows) > 12, await store.blocked(10)) == (True, [])
            ids = [row.event_id for row in rows]
            arrived: list[str] = []
            async with asyncio.timeout(10):
                while len(set(arrived)) < len(ids):
                    arrived.append((await anext(tap)).id)
        await relay.stop()

    assert ids == list(dict.fromkeys(arrived))


async def test_the_doctor_tells_of_an_alarm(node: RabbitMQ, tmp_path: Path) -> None:
    """RabbitMQ answers everything during an alarm, and takes no message."""
    async with alarm(node):
        visit = doctor(tmp_path, broker=node.url)

    assert "broker" in visit.problems()
    assert "takes nothing while its memory or disk alarm lasts" in visit.findings["broker"]["detail"]


# What it gives to consumers


def done(deliveries: list[Delivery]) -> Callable[[Delivery], Awaitable[Verdict]]:
    """A handler that puts what it is given into the list."""

    async def handle(delivery: Delivery) -> Verdict:
        deliveries.append(delivery)
        return Verdict.DONE

    return handle


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_crash_costs_consumers_nothing(node: RabbitMQ) -> None:
    """Kill -9 in the middle of 300 messages: all are handled, no handler is cancelled, and never too many run.

    A consumer that had nothing to do then is found again as well.
    """
    begun: list[str] = []
    letters: list[Delivery] = []
    ended: set[str] = set()
    running = most = cancelled = redelivered = 0

    async def work(delivery: Delivery) -> Verdict:
        nonlocal running, most, cancelled, redelivered
        begun.append(delivery.message.id)
        running += 1
        most = max(most, running)
        redelivered += delivery.redelivered
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        finally:
            running -= 1
        ended.add(delivery.message.id)
        return Verdict.DONE

    sent = [product_event() for _ in range(300)]
    async with open_broker(node.url) as broker:
        await broker.declare()
        await purge(node.url)
        assert [Receipt.CONFIRMED] * 300 == await broker.publish(sent)
        async with (
            broker.consume(PRODUCT_QUEUE, work, prefetch=32),
            broker.consume(DEAD_LETTERS, done(letters)),
        ):
            await until(lambda: len(ended) >= 100)
            await asyncio.to_thread(node.kill)
            assert len(ended) < 300
            await asyncio.to_thread(node.start)
            await until(lambda: len(ended) == 300)
            letter = message(exchange=DEAD_LETTERS)
            await eventually(Receipt.CONFIRMED, lambda: broker.publish([letter]))
            await until(lambda: letter.id in [each.message.id for each in letters])
        assert 0 == await waiting(node.url)

    assert {each.id for each in sent} == ended == set(begun)
    assert (32, 0, 0) == (most, running, cancelled)
    assert 0 < len(begun) - 300 <= redelivered


async def purge(url: str) -> None:
    """Forget what waits in the product queue."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await (await channel.get_queue(PRODUCT_QUEUE)).purge()


async def test_a_missing_queue_is_named_and_waited_for(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A queue may come after its consumer, and go and come again; while it is missing the log says once what to do."""
    caplog.set_level("WARNING", "adapters.rabbitmq.consumer")
    deliveries: list[Delivery] = []
    event = message(PRODUCT_QUEUE, exchange="")  # AMQP's own exchange has every queue under its name

    def told() -> int:
        return caplog.text.count(f"no queue {PRODUCT_QUEUE}; run `inventory migrate`")

    async with (
        await aio_pika.connect(amqp_url) as connection,
        connection.channel() as channel,
        open_broker(amqp_url) as broker,
        broker.consume(PRODUCT_QUEUE, done(deliveries)),
    ):
        for time_around in (1, 2):
            await until(lambda times=time_around: told() == times)
            await asyncio.sleep(1)  # in which it tries again
            await channel.declare_queue(PRODUCT_QUEUE, durable=True)
            assert [Receipt.CONFIRMED] == await broker.publish([event])
            await until(lambda number=time_around: len(deliveries) == number)
            assert time_around == told()
            await channel.queue_delete(PRODUCT_QUEUE)


FORGET = """
[ra:process_command({'%2F_inventory.product-events', node()}, rabbit_fifo:make_checkout(
    {proplists:get_value(consumer_tag, C), proplists:get_value(channel_pid, C)}, cancel, #{}
)) || C <- rabbit_amqqueue:consumers_all(<<"/">>)].
"""
"""Has the queue forget its consumers, and tell nobody."""


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside another"])
async def test_a_consumer_that_the_broker_has_forgotten(
    node: RabbitMQ, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connection and channel are well, and nothing comes any more: that is noticed, and it consumes again."""
    monkeypatch.setattr(consumer, "WATCH_SECONDS", 0.5)
    deliveries: list[Delivery] = []

    async def hold(_: object) -> None:
        pass

    async with (
        open_broker(node.url) as broker,
        await aio_pika.connect(node.url) as connection,
        connection.channel() as channel,
    ):
        await broker.declare()
        await purge(node.url)
        async with broker.consume(PRODUCT_QUEUE, done(deliveries)):
            await broker.publish([product_event()])
            await until(lambda: deliveries)
            await asyncio.to_thread(node.ctl, "eval", FORGET)
            if not alone:  # this one takes a message and holds it, so that the queue has a consumer
                await channel.set_qos(prefetch_count=1)
                await (await channel.get_queue(PRODUCT_QUEUE)).consume(hold)
            await broker.publish([product_event() for _ in range(10)])
            await until(lambda: len(deliveries) >= 10)


@pytest.mark.parametrize("waiting", [True, False], ids=["messages wait", "nothing waits"])
async def test_a_consumer_at_work_is_left_alone(
    broker: Broker, shared_url: str, waiting: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose handlers take long while more waits, and one that has nothing to do, are not taken for forgotten."""
    monkeypatch.setattr(consumer, "WATCH_SECONDS", 0.1)
    await purge(shared_url)
    free = asyncio.Event()

    async def work(_: Delivery) -> Verdict:
        await free.wait()
        return Verdict.DONE

    if waiting:
        await broker.publish([product_event() for _ in range(10)])
    async with broker.consume(PRODUCT_QUEUE, work, prefetch=2):
        await asyncio.sleep(1.5)
        free.set()

    assert "forgotten" not in caplog.text
    assert "gives out nothing" not in caplog.text


async def test_being_asked_to_end_is_taken_for_nothing_else() -> None:
    """Whoever is cancelled while a channel closes under him ends, though the library has its own error for that."""

    async def talk() -> None:
        async with conversation("What was said was not understood", seconds=5):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError as error:  # as aiormq does, see its TaskWrapper
                raise ChannelNotFoundEntity("no queue") from error

    talking = asyncio.create_task(talk())
    await asyncio.sleep(0)
    talking.cancel()
    await asyncio.wait({talking})

    assert talking.cancelled()


def test_nobody_comes_back_in_step() -> None:
    """Pauses grow to seconds, and no two are alike."""
    pauses = [backoff(failures) for failures in (0, 1, 2, 3, 50) for _ in range(200)]

    assert len(set(pauses)) > 900
    assert 0.1 <= min(pauses)
    assert 4 < max(pauses) <= 5


DYING_CONSUMER = """
import asyncio, sys
from adapters.rabbitmq.broker import open_broker
from core.events import PRODUCT_QUEUE

async def handle(delivery):
    print(delivery.message.id, flush=True)
    await asyncio.sleep(3600)

async def main():
    async with open_broker(sys.argv[1]) as broker, broker.consume(PRODUCT_QUEUE, handle):
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_what_a_dead_process_had_comes_to_another(broker: Broker, shared_url: str) -> None:
    """A message whose consumer is killed before its handler has ended is given to the next consumer as redelivered."""
    await purge(shared_url)
    event = product_event()
    await broker.publish([event])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING_CONSUMER, shared_url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert event.id == (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.wait()
    deliveries: list[Delivery] = []
    async with broker.consume(PRODUCT_QUEUE, done(deliveries)):
        await until(lambda: deliveries)

    assert [(event.id, True)] == [(each.message.id, each.redelivered) for each in deliveries]


NO_TIME = datetime(2026, 11, 23, tzinfo=UTC)
ILLEGIBLE = {
    "text": (b"caller-7", b"\xff\xfe-----7"),
    "header": (b"traceparent", b"\xff\xfe---------"),
    "time": (int(NO_TIME.timestamp()).to_bytes(8, "big"), b"\xff" * 8),
}


@pytest.mark.parametrize("part", ILLEGIBLE)
async def test_properties_that_cannot_be_read_stop_nobody(broker: Broker, shared_url: str, part: str) -> None:
    """A message with bytes where text should be, or a time without end, comes without properties and can be buried."""
    await purge(shared_url)
    body = f"illegible {part}".encode()
    properties = Basic.Properties(
        message_id="event-0", correlation_id="caller-7", headers={"traceparent": "00"}, timestamp=NO_TIME
    )
    async with await aio_pika.connect(shared_url) as connection, connection.channel() as channel:
        underlay = await channel.get_underlay_channel()
        publish = Basic.Publish(exchange=PRODUCT_EXCHANGE, routing_key=product_event().routing_key)
        header = ContentHeader(properties=properties, body_size=len(body))
        frames = ChannelFrame.marshall(underlay.number, [publish, header, ContentBody(body)])
        assert frames.payload.count(ILLEGIBLE[part][0]) == 1
        payload = frames.payload.replace(*ILLEGIBLE[part])
        await underlay.write_queue.put(ChannelFrame(payload=payload, should_close=False))
        await channel.declare_queue(PRODUCT_QUEUE, passive=True)  # answered when the message has been taken
    after = product_event()
    await broker.publish([after])
    deliveries: list[Delivery] = []
    letters: list[Delivery] = []

    async def handle(delivery: Delivery) -> Verdict:
        deliveries.append(delivery)
        return Verdict.DONE if delivery.message.id else Verdict.DEAD

    async with broker.consume(PRODUCT_QUEUE, handle), broker.consume(DEAD_LETTERS, done(letters)):
        await until(lambda: len(deliveries) == 2 and body in [each.message.body for each in letters])

    illegible = Message(id="", exchange=PRODUCT_EXCHANGE, routing_key=after.routing_key, body=body)
    assert [illegible, after] == [each.message for each in deliveries]


async def test_an_alarm_stops_no_consumer(node: RabbitMQ) -> None:
    """During a memory alarm, which stops who publishes, messages are handled as ever and do not come again."""
    deliveries: list[Delivery] = []
    async with open_broker(node.url) as broker:
        await broker.declare()
        await purge(node.url)
        await broker.publish([product_event() for _ in range(100)])
        async with alarm(node):
            assert [Receipt.FAILED] == await broker.publish([product_event()])
            async with broker.consume(PRODUCT_QUEUE, done(deliveries)):
                await until(lambda: len(deliveries) == 100)
            assert 0 == await waiting(node.url)


async def test_a_silent_broker_keeps_no_consumer(node: RabbitMQ) -> None:
    """A consumer of a node that has fallen silent is left within seconds, and leaves no task behind."""
    before = asyncio.all_tasks()
    deliveries: list[Delivery] = []
    async with AsyncExitStack() as opened:
        broker = await opened.enter_async_context(open_broker(node.url))
        await broker.declare()
        await broker.publish([product_event()])
        await opened.enter_async_context(broker.consume(PRODUCT_QUEUE, done(deliveries)))
        await until(lambda: deliveries)
        with frozen(node):
            with within(6):
                await opened.aclose()
            await asyncio.sleep(0.1)

            assert set() == asyncio.all_tasks() - before
