"""The schema: migrations and models say the same, on both databases, forwards and backwards, and the database itself
refuses what a bug would let through.
"""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from stores import carry_out, hold, stocked

from adapters.registry import connect
from adapters.sql import schema, tables
from adapters.sql.store import SqlStore
from core.errors import Unavailable
from core.operations import Count

MIGRATIONS = Path(schema.__file__).parent.parent / "migrations"
NONSENSE = (
    "UPDATE inventory_item SET on_hand = -1, shortfall = 2, available = 0",
    "UPDATE inventory_item SET reserved = -1, available = on_hand + 1",
    "UPDATE inventory_item SET reserved = on_hand + 1, available = 0",
    "UPDATE inventory_item SET reserved = on_hand + 1, available = 0, shortfall = 2",
    "UPDATE inventory_item SET on_hand = 0, available = 0",
    "UPDATE inventory_item SET shortfall = 1",
    "UPDATE inventory_item SET safety_stock = -1, available = available + 1",
    "UPDATE inventory_item SET safety_stock = 1",
    "UPDATE inventory_item SET available = available + 1",
    "UPDATE inventory_item SET status = 'INACTIVE'",
    "UPDATE product SET total_on_hand = -1",
    "UPDATE product SET total_reserved = -1",
    "UPDATE product SET total_available = -1",
    "UPDATE reservation_line SET quantity = 0",
    "UPDATE reservation_line SET fulfilled_quantity = quantity + 1",
    "UPDATE reservation_line SET fulfilled_quantity = -1",
    "UPDATE reservation_line SET released_quantity = quantity + 1",
    "UPDATE reservation_line SET released_quantity = -1",
    "UPDATE reservation_line SET fulfilled_quantity = quantity, released_quantity = quantity",
)
"""Of an item with ten units on hand, one of them reserved."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/inventory.db"
    postgres_url: str = request.getfixturevalue("postgres_url")
    return postgres_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    """A store on it."""
    async with connect("store", url) as store:
        assert isinstance(store, SqlStore)
        yield store


async def test_up_down_and_up_again(store: SqlStore) -> None:
    """Migrations name what they run; going back leaves no table, and forwards again a schema that works."""
    revisions = [script.revision for script in scripts().walk_revisions()][::-1]
    assert await store.pending_migrations() == revisions

    assert await store.migrate() == revisions
    assert await store.pending_migrations() == await store.migrate() == []
    await stocked(store, 10)

    async with store.database.migrating() as connection:
        await schema.migrate(connection, to="base")
    assert await store.pending_migrations() == revisions
    async with store.database.reading() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["alembic_version"]

    assert await store.migrate() == revisions
    await stocked(store, 10)


async def test_models_and_migrations_say_the_same(store: SqlStore) -> None:
    """Alembic finds nothing to generate."""

    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), tables.metadata)

    await store.migrate()

    async with store.database.reading() as connection:
        assert await connection.run_sync(differences) == []


def test_the_newest_migration_is_the_one_we_ask_for() -> None:
    """``schema.HEAD`` spares loading alembic at every start; it must not be forgotten."""
    assert scripts().get_current_head() == schema.HEAD


async def test_processes_that_migrate_at_once_take_turns(url: str) -> None:
    """Two processes start on an empty database: one migrates, the other finds it done, none fails."""
    program = f"""
import asyncio
from adapters.registry import connect
async def main():
    async with connect("store", {url!r}) as store:
        print(*await store.migrate())
asyncio.run(main())
"""
    command = (sys.executable, "-c", program)
    starts = (asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1) for _ in range(2))
    processes = await asyncio.gather(*starts)

    said = await asyncio.gather(*(process.communicate() for process in processes))

    assert [error for _, error in said] == [b"", b""]
    nothing, everything = sorted(out.decode().split() for out, _ in said)
    assert nothing == []
    assert everything[-1] == schema.HEAD


async def test_a_migration_is_done_whole_or_not_at_all(store: SqlStore) -> None:
    """A process that dies in the middle leaves the database as it was."""

    async def die() -> None:
        async with store.database.migrating() as connection:
            await schema.migrate(connection)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        await die()

    async with store.database.reading() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == []
    assert (await store.migrate())[-1] == schema.HEAD


async def test_without_a_schema_nothing_is_pretended(store: SqlStore) -> None:
    """Reads and writes of a database that was not migrated say what to do; they do not find it empty."""
    with pytest.raises(Unavailable, match="inventory migrate"):
        await store.products(["prod_1"])
    with pytest.raises(Unavailable, match="inventory migrate"):
        await store.add_products(["prod_1"])


async def test_an_oversell_written_by_hand_is_refused(store: SqlStore, url: str) -> None:
    """Whatever a bug or a person at the database's prompt tries, balances keep their meaning (rule R9)."""
    await store.migrate()
    await hold(store, await stocked(store, 10))

    accepted = [statement for statement in NONSENSE if not await refused(url, statement)]

    assert accepted == []


async def test_a_shortfall_that_was_counted_is_allowed(store: SqlStore) -> None:
    """The guard is no tighter than the rules: a count below what is reserved is kept, with its shortfall."""
    await store.migrate()
    item = await stocked(store, 10)
    await hold(store, item)

    await carry_out(store, Count(inventory_item_id=item.id, counted_quantity=0))

    after = await store.item(item.id)
    assert after is not None
    assert (after.on_hand, after.reserved, after.shortfall) == (0, 1, 1)


async def test_a_database_ahead_of_us_wants_nothing(store: SqlStore, url: str) -> None:
    """While a newer version is rolled out the old one goes on: what it does not know is not pending (rule R29)."""
    await store.migrate()
    await by_hand(url, "UPDATE alembic_version SET version_num = '9999'")

    assert await store.pending_migrations() == []
    assert await store.migrate() == []


# -- steps -----------------------------------------------------------------------------------------------------------


def scripts() -> ScriptDirectory:
    """The revisions there are."""
    return ScriptDirectory(str(MIGRATIONS))


async def refused(url: str, statement: str) -> bool:
    """Whether a CHECK of the database refuses a statement."""
    try:
        await by_hand(url, statement)
    except asyncpg.CheckViolationError:
        return True
    except sqlite3.IntegrityError as error:
        return "CHECK" in str(error)
    return False


async def by_hand(url: str, statement: str) -> None:
    """Run one statement past all of our code."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            file.execute(statement)
        return
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
