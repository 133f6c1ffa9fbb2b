"""The ``inventory`` command. Every command imports what it needs when it runs, so that asking for help is quick.

Exit codes: 0 done (Ctrl-C and SIGTERM too), 1 problems found, 2 usage or a setting, 3 a service is away.
"""

import sys

import rich_click as click

from entrypoints.cli.dead_letters import dead_letters
from entrypoints.cli.operating import config, doctor, token
from entrypoints.cli.outbox import outbox
from entrypoints.cli.processes import api, consumer, demo, migrate, reconciler, serve
from entrypoints.cli.reconcile import reconcile
from entrypoints.cli.stock import stock


@click.group()
@click.version_option(package_name="inventory-service", prog_name="inventory")
def inventory() -> None:
    """The canonical source of stock: never oversells, never loses an event, explains every unit.

    Settings come from options, INVENTORY_* variables, inventory.toml, in this order; see `inventory config show`.
    """


for _command in (
    *(demo, serve, api, consumer, reconciler, migrate),
    *(doctor, token, reconcile, dead_letters, outbox, stock, config),
):
    inventory.add_command(_command)


def main() -> None:
    """Run the command; what a user can put right is one sentence, never a traceback."""
    try:
        inventory()
    except Exception as error:
        from core.errors import InventoryError, Unavailable, ValidationFailed

        codes: tuple[tuple[type[Exception], int], ...] = (
            (ValidationFailed, 2),
            (OSError, 2),
            (Unavailable, 3),
            (InventoryError, 1),
        )
        for kind, code in codes:
            if isinstance(error, kind):
                click.echo(f"inventory: {error}", err=True)
                sys.exit(code)
        raise
