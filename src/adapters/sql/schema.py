"""The schema's version: which migrations the database lacks, and running them. Alembic is loaded only to migrate."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

HEAD = "0007"
"""The newest revision under ``adapters/migrations/versions``; a test compares."""
_MIGRATIONS = Path(__file__).parent.parent / "migrations"


async def pending(connection: AsyncConnection) -> list[str]:
    """Name the revisions still to run, oldest first."""
    current = await connection.run_sync(_current)
    if current == HEAD:
        return []
    return _after(current)


async def migrate(connection: AsyncConnection, *, to: str = "head") -> list[str]:
    """Run what is pending, on a connection that is alone with the schema, and name it."""
    todo = await pending(connection)
    if todo or to != "head":
        await connection.run_sync(_run, to)
    return todo


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    current: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return current


def _after(current: str | None) -> list[str]:
    from alembic.script import ScriptDirectory

    known = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
    if current is None:
        return known
    # A revision that is not known is a newer version's, being rolled out beside us: it only adds (rule R29).
    return known[known.index(current) + 1 :] if current in known else []


def _run(connection: Connection, to: str) -> None:
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    if to == "head":
        command.upgrade(config, to)
    else:
        command.downgrade(config, to)


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config
