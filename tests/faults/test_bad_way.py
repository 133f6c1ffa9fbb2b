"""RabbitMQ by a way that breaks frames, cuts them up, swallows them or goes half open: what was told is there."""

import asyncio

import aio_pika
import pytest
from proxy import Proxy

from adapters.registry import connect
from core.errors import Unavailable
from core.events import EVENTS_EXCHANGE
from ports.broker import Broker, Message, Receipt

pytestmark = pytest.mark.services

MESSAGES = 30
FRAME_END = b"\xce"


def spoil(way: Proxy, fault: str) -> None:
    """Make the way bad."""
    if fault == "corrupt":
        way.flip = ("up", FRAME_END)
    elif fault == "slices":
        way.slice_bytes = 3
    elif fault == "silent":
        way.black_hole()
        asyncio.get_running_loop().call_later(8, way.heal)
    else:
        way.forsake()


@pytest.mark.parametrize("fault", ["corrupt", "slices", "silent", "half open"])
async def test_a_bad_way_to_the_broker_loses_nothing(fault: str, amqp_url: str) -> None:
    """Who publishes until it is confirmed has every message there, in order of the first time, whole."""
    told = [
        Message(id=f"m-{number}", exchange=EVENTS_EXCHANGE, routing_key="a.key", body=b"%d" % number * 50)
        for number in range(MESSAGES)
    ]
    async with connect("broker", amqp_url) as broker:
        await broker.declare()
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        tap = await channel.declare_queue("tests.tap")
        await tap.bind(EVENTS_EXCHANGE, "#")
        async with Proxy(amqp_url) as way, connect("broker", way.url) as broker:
            await broker.publish(told[:1])
            spoil(way, fault)
            for message in told[1:]:
                await confirmed(broker, message)
        arrived = []
        while message := await tap.get(no_ack=True, fail=False):
            arrived.append((message.message_id, message.body))
    assert list(dict.fromkeys(arrived)) == [(message.id, message.body) for message in told]


async def confirmed(broker: Broker, message: Message) -> None:
    """Publish until the broker has it."""
    async with asyncio.timeout(60):
        while True:
            try:
                if [Receipt.CONFIRMED] == await broker.publish([message]):
                    return
            except Unavailable:
                pass
            await asyncio.sleep(0.1)
