"""What is special to RabbitMQ: it can be away, silent, full, or have something else where our queues should be."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count

import aio_pika
import psutil
import pytest
from private_server import free_port
from services import RabbitMQ

from adapters import rabbitmq as adapter
from adapters.rabbitmq.broker import open_broker
from core.errors import Conflict, Unavailable, ValidationFailed
from core.events import DEAD_LETTERS, EVENTS_EXCHANGE, PRODUCT_EXCHANGE, PRODUCT_QUEUE
from ports.broker import Broker, Message, Receipt

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
    """A correlation id of 300 characters fails its message and the next; the one before is confirmed."""
    async with broker.listen(EVENTS_EXCHANGE, "a.key"):
        receipts = await broker.publish([message(), message(correlation_id="x" * 300), message()])

        assert [Receipt.CONFIRMED, Receipt.FAILED, Receipt.FAILED] == receipts
        assert [Receipt.CONFIRMED] == await broker.publish([message()])


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
