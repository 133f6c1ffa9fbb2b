"""The processes: what runs until it is told to stop, and the preparations for it."""

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from entrypoints.cli.options import SETTINGS, with_settings

if TYPE_CHECKING:
    from entrypoints.config import Config


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: Sequence[str]) -> None:
    """Run the whole service here, with sample stock: nothing to install, nothing to set."""
    _stoppable()
    from entrypoints.demo.command import command

    command.main(arguments, prog_name="inventory demo", standalone_mode=False)


@click.command()
@with_settings(*SETTINGS)
def serve(config: "Config") -> None:
    """Run everything in one process: HTTP, events out and in, and the store prepared first."""
    _stoppable()
    from entrypoints.config import check_processes, with_secret

    config = check_processes(config, "serve")
    config = with_secret(config)
    from entrypoints.processes.serve import run

    run(config, command="serve")


@click.command()
@click.option("--inherited-listener", type=int, hidden=True)
@with_settings(*SETTINGS)
def api(config: "Config", inherited_listener: int | None) -> None:
    """Serve HTTP and end holds that run out; a consumer beside it relays the events."""
    _stoppable()
    from entrypoints.config import check_processes, with_secret

    config = check_processes(config, "api")
    config = with_secret(config)
    from entrypoints.processes.serve import run

    run(config, command="api", inherited=inherited_listener)


@click.command()
@with_settings("store", "broker", "cache", "data_dir", "log_level")
def consumer(config: "Config") -> None:
    """Relay events to the broker and apply product events; no HTTP."""
    _stoppable()
    from entrypoints.config import check_processes

    config = check_processes(config, "consumer")
    from entrypoints.processes.consumer import run

    run(config)


@click.command()
@with_settings("store", "cache", "data_dir", "log_level")
def reconciler(config: "Config") -> None:
    """Look every INVENTORY_RECONCILE_MINUTES whether the records agree, and repair; of several, one does."""
    _stoppable()
    from entrypoints.config import check_processes

    config = check_processes(config, "reconciler")
    from entrypoints.processes.reconciler import run

    run(config)


@click.command()
@with_settings("store", "broker", "data_dir")
def migrate(config: "Config") -> None:
    """Bring the store's tables up to date and declare the broker's exchanges and queues. Doing it twice is harmless."""
    import asyncio

    from adapters.registry import connect
    from adapters.telemetry import configure_logging

    configure_logging("error")

    async def both() -> None:
        async with connect("store", config.store) as store:
            ran = await store.migrate()
        click.echo(f"store: {', '.join(ran)} applied" if ran else "store: up to date")
        if config.broker.startswith("memory:"):
            click.echo("broker: nothing to declare in memory")
            return
        async with connect("broker", config.broker) as broker:
            await broker.declare()
        click.echo("broker: exchanges and queues are declared")

    asyncio.run(both())


def _stoppable() -> None:
    """Make being told to stop no failure while the process is still loading; later it takes the signals itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
