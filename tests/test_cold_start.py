"""A cold start: nothing is kept anywhere, everybody asks at once, and the store is asked for each product once."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from services import Redis
from sqlalchemy import insert
from stores import migrated, stocked
from test_snapshots import Process

from adapters.registry import connect
from adapters.sql import tables
from adapters.sql.store import SqlStore

PRODUCTS = 10_000
READERS = 200


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    """A store with ten thousand products, all alike."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        assert isinstance(store, SqlStore)
        await stocked(store, 10, product="prod_0")
        async with store.database.writing() as connection:
            row = (await connection.execute(tables.product.select())).one()._asdict()
            copies = [row | {"id": f"prod_{number}"} for number in range(1, PRODUCTS)]
            await connection.execute(insert(tables.product), copies)
            await connection.commit()
        yield store


async def test_a_flushed_redis_costs_one_read_a_product_and_process(store: SqlStore, redis: Redis) -> None:
    """Two new processes, two hundred readers each, who ask for everything twice, in any order."""
    url = redis.create_database()
    async with AsyncExitStack() as ends:
        processes = []
        for _ in range(2):
            process = Process(store, await ends.enter_async_context(connect("cache", url)))
            await process.snapshots.start()
            ends.push_async_callback(process.snapshots.stop)
            processes.append(process)
        await asyncio.sleep(0.3)
        asked = [f"prod_{number}" for number in range(PRODUCTS)] * 2
        random.Random(7).shuffle(asked)

        async def read(process: Process, start: int) -> None:
            for product_id in asked[start::READERS]:
                await process.inventory.by_product(product_id)

        async with asyncio.TaskGroup() as tasks:
            for process in processes:
                for start in range(READERS):
                    tasks.create_task(read(process, start))

    for process in processes:
        of_products = {id: count for id, count in process.store.reads.items() if id != "warehouses"}
        assert set(of_products.values()) == {1}
    assert {id for process in processes for id in process.store.reads} >= {*asked}
