"""What commands that look into the store or work on it have in common: opening it, being broken off, printing."""

import asyncio
import getpass
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from secrets import token_hex
from typing import Any, TypeVar

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

from adapters.registry import connect
from adapters.telemetry import configure_logging
from core.acts import Act
from core.errors import ValidationFailed
from entrypoints.config import Config
from ports.outbox import RELAY
from ports.store import Store

NAME = "inventory-cli"
"""Who a command is, to whoever reads what was done."""
T = TypeVar("T")


def with_store(config: Config, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do ``work`` on the store, which must have all its tables."""

    async def main() -> T:
        async with connect("store", config.store) as store:
            await check_tables(store)
            return await work(store)

    return run_to_end(main())


def run_to_end(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main``. Being told to stop is not having come to an end: that ends the process with 130, as in a shell."""
    configure_logging("error")

    async def stoppable() -> T:
        if (task := asyncio.current_task()) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return asyncio.run(stoppable())
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("inventory: broken off", err=True)
        sys.exit(130)


async def check_tables(store: Store) -> None:
    """Return if the store has all its tables.

    Raises:
        ValidationFailed: it lacks some; the detail names the remedy.
    """
    if pending := await store.pending_migrations():
        raise ValidationFailed(f"The store lacks the migrations {', '.join(pending)}; run `inventory migrate`.")


async def somebody_runs(store: Store) -> bool:
    """Tell whether a service is at work on the store: whoever moves events owns the relay's lease."""
    lease = await store.acquire(RELAY, f"inventory-cli-{token_hex(8)}", seconds=1.0)
    if lease is not None:
        await store.release(lease)
    return lease is None


def act(reason: str | None) -> Act:
    """Return an act of whoever uses the command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return Act(actor=f"{NAME}/{user}", reason=reason)


def progress(description: str, *more: ProgressColumn) -> Progress:
    """Return bars on standard error, each with a ``description`` and how much of it is done; none in a pipe."""
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), *more)
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def print_json(value: object) -> None:
    """Print JSON, laid out."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def console() -> Console:
    """Return where tables are printed: as wide as the terminal, or, in a pipe, wide enough for every column."""
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def time_text(value: Any) -> str:
    """Return an instant as tables show it; nothing for None."""
    return value.strftime("%Y-%m-%d %H:%M:%S") if value else ""
