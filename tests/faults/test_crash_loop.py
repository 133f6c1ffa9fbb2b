"""A message that ends whoever handles it: it alone is given up, and kept; everybody else's is applied once."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest
from audit import select
from service import migrate
from stores import carry_out, dead_letters, migrated, only

from adapters.registry import connect
from core.events import PRODUCT_EXCHANGE
from core.operations import CreateWarehouse
from ports.broker import Message, Receipt
from ports.dead_letters import LetterFilter

pytestmark = [pytest.mark.services, pytest.mark.timeout(180)]

MESSAGES = 100
POISON = 40
LIVES_MAX = 12
CONSUMER = """
import asyncio, os, sys
from adapters.registry import connect
from core.consuming.consumption import ProductEvents
from core.operations import EventPolicy
from core.writing.writer import Writer
from stores import unasked

class Mortal(Writer):
    async def submit(self, request, *, timeout=5.0):
        if request.operations[0].event.event_id == "evt-POISON":
            os._exit(9)
        return await super().submit(request, timeout=timeout)

async def main(store_url, broker_url):
    async with connect("store", store_url) as store, connect("broker", broker_url) as broker:
        writer = Mortal(store)
        await writer.start()
        events = ProductEvents(store, broker, writer, unasked(store, EventPolicy(warehouse_ids=("wh_1",))))
        await events.start()
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
""".replace("POISON", str(POISON))


def told(number: int) -> Message:
    """Return a ProductCreated of this number."""
    body = {
        "eventId": f"evt-{number}",
        "eventType": "ProductCreated",
        "eventVersion": "1.0.0",
        "timestamp": "2026-11-20T12:00:00Z",
        "payload": {"productId": f"prod_{number}", "sku": f"SKU-{number}", "name": f"Product {number}"},
    }
    key = "product.productcreated.product"
    return Message(id=f"evt-{number}", exchange=PRODUCT_EXCHANGE, routing_key=key, body=msgspec.json.encode(body))


async def test_only_the_culprit_is_given_up(postgres_url: str, amqp_url: str) -> None:
    """Faults F1, F26: a consumer dies of one message of a hundred until that one is in the dead letters, once."""
    async with migrated(postgres_url) as store:
        await carry_out(store, CreateWarehouse(id="wh_1", name="North"))
        migrate(postgres_url, amqp_url)
        async with connect("broker", amqp_url) as broker:
            receipts = await broker.publish([told(number) for number in range(MESSAGES)])
            assert {Receipt.CONFIRMED} == set(receipts)

        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        for _ in range(LIVES_MAX):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CONSUMER, postgres_url, amqp_url), env=environment
            )
            try:
                while process.returncode is None and not await store.letters(LetterFilter(), limit=2):
                    await asyncio.sleep(0.1)
                if process.returncode is None:
                    await until_applied(postgres_url)
                    break
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
        letter = only(await store.letters(LetterFilter(), limit=9))
        assert ("UNRESOLVED", "crash_loop", f"evt-{POISON}") == (letter.status, letter.code, letter.event_id)
        assert told(POISON).body == only(await dead_letters(store)).message.body
        ((row,),) = await select(postgres_url, "SELECT count(*), count(DISTINCT sku) AS skus FROM inventory_item")
        assert {"count": MESSAGES - 1, "skus": MESSAGES - 1} == dict(row)


async def until_applied(store: str) -> None:
    """Return when all but one were applied."""
    async with asyncio.timeout(60):
        while True:
            ((row,),) = await select(store, "SELECT count(*) AS events FROM inbox")
            if row["events"] == MESSAGES - 1:
                return
            await asyncio.sleep(0.2)
