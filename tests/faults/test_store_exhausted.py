"""PostgreSQL has no room, no connection left, no way back, or a quarrel over locks: refused for a moment, never wrong.

Nothing is restarted in any of them: when the fault is over, what failed succeeds.
"""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlsplit

import asyncpg
import pytest
from audit import books, deadlocks
from proxy import Proxy
from services import Postgres
from sqlalchemy import text
from stores import at_work, key, migrated, only, stocked, submit

from adapters.registry import connect
from adapters.sql.store import SqlStore
from core.errors import Busy, OutcomeUnknown, Unavailable
from core.operations import Receive, StockChange
from core.stock import Item

pytestmark = pytest.mark.services

BOUND_SECONDS = 12.0
"""The longest a caller may be kept: a deadline of 5 s, the time to give up a connection, and a busy machine."""
TABLESPACE_BYTES = 2_000_000


@pytest.fixture
async def url(postgres_url: str) -> AsyncIterator[str]:
    """A store's URL; what the test leaves there must add up."""
    async with migrated(postgres_url):
        pass
    yield postgres_url
    (await books(postgres_url)).check()


@pytest.fixture
async def item(url: str) -> Item:
    """An item of which nothing is there."""
    async with connect("store", url) as store:
        return await stocked(store, 0)


async def execute(url: str, *statements: str) -> None:
    """Run statements, each for itself."""
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.mark.parametrize("fault", ["silent", "half open"])
async def test_a_way_that_says_nothing_keeps_nobody_for_ever(fault: str, url: str, item: Item) -> None:
    """Fault F16: who asks is told within the bound, and once the way is good again the pool heals by itself."""
    receive = Receive(inventory_item_id=item.id, quantity=1)
    async with Proxy(url) as way, connect("store", way.url) as store, at_work(store) as writer:
        await submit(writer, receive, key=key("before"))
        if fault == "silent":
            way.black_hole()
        else:
            way.passable = False
            way.forsake()
        started = time.monotonic()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await submit(writer, receive, key=key("meanwhile"), timeout=5.0)
        assert time.monotonic() - started < BOUND_SECONDS

        way.heal()
        await until_done(lambda: submit(writer, receive, key=key("meanwhile")))
        changes = [only(await submit(writer, receive, key=key(name))) for name in ("meanwhile", "after")]
    assert [2, 3] == [change.item.on_hand for change in changes if isinstance(change, StockChange)]


async def until_done(ask: Callable[[], Awaitable[object]]) -> object:
    """Ask until the answer is not that it cannot be done now."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await ask()
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.2)


@pytest.fixture
def little_room(postgres: Postgres) -> Iterator[Path]:
    """A folder of the database's own on a disk of 2 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("A small disk can only be mounted by root.")
    folder = Path(mkdtemp(prefix="inventory-test-"))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TABLESPACE_BYTES}", "none", folder], check=True)
    try:
        if postgres.user:
            shutil.chown(folder, postgres.user, postgres.user)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


async def test_a_full_disk_commits_nothing_in_part(url: str, item: Item, little_room: Path) -> None:
    """Fault F18: with no room for ledger rows writes are refused and reads go on; room made, all is well."""
    space = f"full_{urlsplit(url).path[-6:]}"
    await execute(
        url,
        f"CREATE TABLESPACE {space} LOCATION '{little_room}'",
        f"ALTER TABLE stock_transaction SET TABLESPACE {space}",
    )
    filler = little_room / "filler"
    async with connect("store", url) as store, at_work(store) as writer:
        receive = Receive(inventory_item_id=item.id, quantity=1, reason="r" * 400)
        try:
            filler.write_bytes(b"x" * (shutil.disk_usage(little_room).free - 4096))
            done = 0
            with pytest.raises(Unavailable):
                for _ in range(300):
                    await submit(writer, receive)
                    done += 1
            found = await store.item(item.id)
            assert found is not None
            assert found.on_hand == done
        finally:
            filler.unlink()
        assert isinstance(only(await submit(writer, receive)), StockChange)
    (await books(url)).check()
    await execute(url, "ALTER TABLE stock_transaction SET TABLESPACE pg_default", f"DROP TABLESPACE {space}")


async def test_no_connection_left_is_a_refusal_for_a_moment(url: str, item: Item) -> None:
    """Fault F18: others hold every connection our user may have; when they leave, the same store serves again."""
    name = f"few_{urlsplit(url).path[-6:]}"
    await execute(
        url,
        f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 3",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    ours = urlsplit(url)
    ours = ours._replace(netloc=f"{name}@{ours.netloc.rpartition('@')[2]}").geturl()
    others = [await asyncpg.connect(ours) for _ in range(3)]
    receive = Receive(inventory_item_id=item.id, quantity=1)
    async with connect("store", ours) as store, at_work(store) as writer:
        with pytest.raises(Unavailable):
            await submit(writer, receive, timeout=5.0)
        for other in others:
            await other.close()
        await until_done(lambda: submit(writer, receive, key=key("after")))
    assert [1] == [row["on_hand"] for row in (await books(url)).items]
    await execute(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.mark.parametrize("kind", ["lock", "deadlock"])
async def test_a_quarrel_over_locks_is_over_with_it(kind: str, url: str, item: Item) -> None:
    """Fault F19: a stranger holds our rows and wants the product, too. Who had to give way is done in the end, once;
    who is held up for too long is told that it is busy.
    """
    await execute(url, f"ALTER DATABASE {urlsplit(url).path[1:]} SET deadlock_timeout = '200ms'")
    receive = Receive(inventory_item_id=item.id, quantity=1)
    stranger = await asyncpg.connect(url)
    await stranger.execute("SET deadlock_timeout = '20s'")  # so that it is ours that has to give way
    async with connect("store", url) as store, at_work(store) as writer:
        trouble = stranger.transaction()
        await trouble.start()
        await stranger.execute("SELECT 1 FROM inventory_item FOR UPDATE")
        asking = [asyncio.create_task(submit(writer, receive, key=key(f"k{number}"))) for number in range(5)]
        await asyncio.sleep(0.1)
        if kind == "deadlock":
            await stranger.execute("SELECT 1 FROM product FOR UPDATE")
        else:
            await asyncio.wait(asking)
        await trouble.rollback()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        for number in range(5):
            await until_done(lambda number=number: submit(writer, receive, key=key(f"k{number}")))
    await stranger.close()
    busy = [isinstance(each, Busy) for each in outcomes]
    assert all(busy) if kind == "lock" else all(isinstance(each, list | Busy) for each in outcomes)
    assert [5] == [row["on_hand"] for row in (await books(url)).items]
    assert (await deadlocks(url) > 0) == (kind == "deadlock")


async def test_others_hear_of_a_commit_as_soon_as_there_is_a_connection_to_tell_them(url: str) -> None:
    """A bell that could not be rung, for every connection was in use, is rung later, though nothing new happens."""
    one_connection = f"{url}?pool=1"
    async with connect("store", one_connection) as store, connect("store", url) as other:
        assert isinstance(store, SqlStore)
        async with other.announcements() as announcements:
            heard = asyncio.ensure_future(anext(announcements))
            async with store.database.reading() as connection:
                await connection.execute(text("SELECT 1"))
                await store.announce()
                await asyncio.sleep(3.5)  # a connection is waited for 3 s
                assert not heard.done()
            await asyncio.wait_for(heard, BOUND_SECONDS)
