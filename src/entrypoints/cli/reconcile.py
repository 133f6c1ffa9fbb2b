"""``inventory reconcile`` and its options."""

import sys
from typing import TYPE_CHECKING

import rich_click as click

from entrypoints.cli.options import with_as_json, with_limit, with_reason, with_settings

if TYPE_CHECKING:
    from entrypoints.config import Config


@click.group()
def reconcile() -> None:
    """Compare ledger, balances, reservations, totals, events and the Product Service's catalogue; repair; look back."""


@reconcile.command("run")
@click.option("--quick", is_flag=True, help="How things stand, without their history; resolves no findings.")
@click.option("--dry-run", is_flag=True, help="Find, say what would be repaired, and repair nothing.")
@click.option("--repair", type=click.Choice(("safe", "all")), help="all: also what takes stock away or off sale.")
@click.option("--max-changes", type=click.IntRange(0, 10**6), help="Repair nothing if there is more to repair.")
@click.option("--max-percent", type=click.IntRange(0, 100), help="Nor if that is more of what was looked at.")
@click.option("--rate", type=click.IntRange(min=0), default=0, help="Products and rows a second; 0: no limit.")
@with_as_json
@with_settings("store", "cache", "data_dir")
def reconcile_run(
    config: "Config",
    *,
    quick: bool,
    dry_run: bool,
    repair: str | None,
    max_changes: int | None,
    max_percent: int | None,
    rate: int,
    as_json: bool,
) -> None:
    """Compare everything now, while stock is being sold, and repair what may be. Exit code 1: something is left."""
    from msgspec.structs import replace

    from core.errors import ValidationFailed
    from entrypoints.commands.reconcile import run

    if dry_run and repair:
        raise ValidationFailed("--dry-run repairs nothing; leave out --repair.")
    asked = {
        "reconcile_repair": "plan" if dry_run else repair,
        "reconcile_changes_max": max_changes,
        "reconcile_percent_max": max_percent,
        "reconcile_rate": rate,
    }
    config = replace(config, **{name: value for name, value in asked.items() if value is not None})
    sys.exit(run(config, deep=not quick, as_json=as_json))


@reconcile.command("list")
@with_limit
@with_as_json
@with_settings("store", "data_dir")
def reconcile_list(config: "Config", *, limit: int, as_json: bool) -> None:
    """List the last runs, newest first."""
    from entrypoints.commands.reconcile import list_runs

    list_runs(config, limit=limit, as_json=as_json)


@reconcile.command("cancel")
@click.argument("run")
@with_reason
@with_settings("store", "data_dir")
def reconcile_cancel(config: "Config", run: str, *, reason: str) -> None:
    """End a run that is going on, was asked for or was broken off; what it has repaired stays."""
    from entrypoints.commands.reconcile import cancel

    cancel(config, run, reason=reason)


@reconcile.command("show")
@click.argument("run", required=False)
@with_as_json
@with_settings("store", "data_dir")
def reconcile_show(config: "Config", run: str | None, *, as_json: bool) -> None:
    """Show a run and what it saw; without RUN, the last one and everything that stands now."""
    from entrypoints.commands.reconcile import show

    show(config, run, as_json=as_json)
