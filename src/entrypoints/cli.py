"""The ``inventory`` command. Every command imports what it needs when it runs, so that asking for help is quick.

Exit codes: 0 done (Ctrl-C and SIGTERM too), 1 problems found, 2 usage or a setting, 3 a service is away.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from msgspec import Struct

    from entrypoints.config import Config
    from ports.dead_letters import LetterFilter
    from ports.imports import Kind

T = TypeVar("T", bound="Struct")
ROLES = ("product-service", "product-events", "inventory-operator", "inventory-admin", "inventory-service")
KINDS = ("warehouses", "items", "receipts", "counts")

_SETTINGS = {
    "host": "The address to serve HTTP on.",
    "port": "The port to serve HTTP on; 0 takes a free one.",
    "store": "The store's URL.",
    "broker": "The broker's URL.",
    "cache": "The cache's URL.",
    "data_dir": "Where embedded mode keeps its files.",
    "log_level": "debug, info, warning or error.",
}


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that set settings; it gets the ``Config`` that follows as ``config``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def configured(config: str | None, **arguments: Any) -> None:
            from entrypoints.config import load

            settings = {name: arguments.pop(name) for name in names}
            command(config=load(settings, toml_path=config), **arguments)

        decorated: Callable[..., None] = click.option("--config", metavar="FILE", help="A settings file.")(configured)
        for name in reversed(names):
            option = click.option(f"--{name.replace('_', '-')}", metavar="TEXT", help=_SETTINGS[name])
            decorated = option(decorated)
        return decorated

    return decorate


@click.group()
@click.version_option(package_name="inventory-service", prog_name="inventory")
def inventory() -> None:
    """The canonical source of stock: never oversells, never loses an event, explains every unit.

    Settings come from options, INVENTORY_* variables, inventory.toml, in this order; see `inventory config show`.
    """


@inventory.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: Sequence[str]) -> None:
    """Run the whole service here, with sample stock: nothing to install, nothing to set."""
    _stoppable()
    from entrypoints.demo.command import command

    command.main(arguments, prog_name="inventory demo", standalone_mode=False)


@inventory.command()
@with_settings(*_SETTINGS)
def serve(config: "Config") -> None:
    """Run everything in one process: HTTP, events out and in, and the store prepared first."""
    _stoppable()
    from entrypoints.config import check_processes, with_secret

    config = check_processes(config, "serve")
    config = with_secret(config)
    from entrypoints.serve import run

    run(config, command="serve")


@inventory.command()
@click.option("--inherited-listener", type=int, hidden=True)
@with_settings(*_SETTINGS)
def api(config: "Config", inherited_listener: int | None) -> None:
    """Serve HTTP and end holds that run out; a consumer beside it relays the events."""
    _stoppable()
    from entrypoints.config import check_processes, with_secret

    config = check_processes(config, "api")
    config = with_secret(config)
    from entrypoints.serve import run

    run(config, command="api", inherited=inherited_listener)


@inventory.command()
@with_settings("store", "broker", "cache", "data_dir", "log_level")
def consumer(config: "Config") -> None:
    """Relay events to the broker and apply product events; no HTTP."""
    _stoppable()
    from entrypoints.config import check_processes

    config = check_processes(config, "consumer")
    from entrypoints.consumer import run

    run(config)


@inventory.command()
@with_settings("store", "cache", "data_dir", "log_level")
def reconciler(config: "Config") -> None:
    """Look every INVENTORY_RECONCILE_MINUTES whether the records agree, and repair; of several, one does."""
    _stoppable()
    from entrypoints.config import check_processes

    config = check_processes(config, "reconciler")
    from entrypoints.reconciler import run

    run(config)


@inventory.command()
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


@inventory.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "broker", "cache", "data_dir")
def doctor(config: "Config", *, as_json: bool) -> None:
    """Try store, broker, cache, Product Service and tokens; say what is wrong and what to do. Changes nothing."""
    from entrypoints.doctor import run

    run(config, as_json=as_json)


@inventory.command()
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="May be repeated.")
@click.option("--subject", default="inventory-cli", show_default=True, help="Whom the token speaks for.")
@click.option("--lifetime", type=click.IntRange(min=1), help="Seconds; as long as accepted when left out.")
@with_settings("store", "broker", "data_dir")
def token(config: "Config", roles: Sequence[str], subject: str, lifetime: int | None) -> None:
    """Print a token for calling the service."""
    from entrypoints.config import SettingError, with_secret

    config = with_secret(config)
    from adapters.tokens.signing import mint, split_secrets

    if not config.auth_secret:
        raise SettingError(
            "Tokens are signed with INVENTORY_AUTH_SECRET, which is not set; INVENTORY_AUTH_JWKS only verifies."
        )
    if lifetime is not None and lifetime > config.auth_lifetime_max:
        raise SettingError(
            f"--lifetime {lifetime} is more than the service accepts: INVENTORY_AUTH_LIFETIME_MAX is "
            f"{config.auth_lifetime_max} seconds."
        )
    click.echo(
        mint(
            split_secrets(config.auth_secret)[0],
            issuer=config.auth_issuer[0],
            audience=config.auth_audience,
            subject=subject,
            roles=roles,
            lifetime=lifetime or config.auth_lifetime_max,
        )
    )


@inventory.group()
def reconcile() -> None:
    """Compare ledger, balances, reservations, totals, events and the Product Service's catalogue; repair; look back."""


@reconcile.command("run")
@click.option("--quick", is_flag=True, help="How things stand, without their history; resolves no findings.")
@click.option("--dry-run", is_flag=True, help="Find, say what would be repaired, and repair nothing.")
@click.option("--repair", type=click.Choice(("safe", "all")), help="all: also what takes stock away or off sale.")
@click.option("--max-changes", type=click.IntRange(0, 10**6), help="Repair nothing if there is more to repair.")
@click.option("--max-percent", type=click.IntRange(0, 100), help="Nor if that is more of what was looked at.")
@click.option("--rate", type=click.IntRange(min=0), default=0, help="Products and rows a second; 0: no limit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    from entrypoints.reconcile import run

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
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def reconcile_list(config: "Config", *, limit: int, as_json: bool) -> None:
    """List the last runs, newest first."""
    from entrypoints.reconcile import list_runs

    list_runs(config, limit=limit, as_json=as_json)


@reconcile.command("cancel")
@click.argument("run")
@click.option("--reason", required=True, help="Why.")
@with_settings("store", "data_dir")
def reconcile_cancel(config: "Config", run: str, *, reason: str) -> None:
    """End a run that is going on, was asked for or was broken off; what it has repaired stays."""
    from entrypoints.reconcile import cancel

    cancel(config, run, reason=reason)


@reconcile.command("show")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def reconcile_show(config: "Config", run: str | None, *, as_json: bool) -> None:
    """Show a run and what it saw; without RUN, the last one and everything that stands now."""
    from entrypoints.reconcile import show

    show(config, run, as_json=as_json)


@inventory.group("dead-letters")
def dead_letters() -> None:
    """Look at the messages that failed, try them again, edit, discard or restore them."""


def _converted(options: dict[str, Any], kind: type[T]) -> T:
    """Return the options that were given as what they are on the wire."""
    import msgspec

    from core.errors import ValidationFailed

    wire = dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
    try:
        return msgspec.convert({wire[name]: value for name, value in options.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise ValidationFailed(f"That is no filter: {error}.") from error


def _with_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose letters; it gets the ``LetterFilter`` that follows as ``filter``."""
    options = {
        "--status": "UNRESOLVED, WAITING, RETRYING, RESOLVED or DISCARDED.",
        "--id": "The id of the letter, of its message or of its event.",
        "--correlation-id": "The correlation id.",
        "--type": "The event's type.",
        "--code": "The error's code.",
        "--text": "What stands in the error's sentence.",
        "--group-id": "The group, as `list --groups` names it.",
        "--sku": "A SKU in it.",
        "--product-id": "The product.",
        "--since": "Failed last then or later, such as 2026-11-23T10:00:00Z.",
        "--until": "Failed last before then.",
    }

    @wraps(command)
    def filtered(**arguments: Any) -> None:
        from ports.dead_letters import LetterFilter

        names = [name.lstrip("-").replace("-", "_") for name in options]
        filter = _converted({name: arguments.pop(name) for name in names}, LetterFilter)
        command(filter=filter, **arguments)

    decorated: Callable[..., None] = filtered
    for name, text in reversed(options.items()):
        decorated = click.option(name, metavar="TEXT", help=text)(decorated)
    return decorated


@dead_letters.command("list")
@_with_filter
@click.option("--groups", is_flag=True, help="Count what failed alike and is unresolved, or has --status.")
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def letters_list(config: "Config", filter: "LetterFilter", *, groups: bool, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    from entrypoints.dead_letters import list_groups, list_letters

    if groups:
        list_groups(config, filter, limit=limit, as_json=as_json)
    else:
        list_letters(config, filter, limit=limit, as_json=as_json)


@dead_letters.command("show")
@click.argument("letter")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def letters_show(config: "Config", letter: str, *, as_json: bool) -> None:
    """Show a dead letter: body, cause, every attempt, what was done to it, whether it was applied already."""
    from entrypoints.dead_letters import show

    show(config, letter, as_json=as_json)


@dead_letters.command("retry")
@click.argument("letters", nargs=-1)
@_with_filter
@click.option("--all", "everything", is_flag=True, help="All that are unresolved.")
@click.option("--canary/--no-canary", default=True, show_default=True, help="Try one of many first.")
@click.option("--reason", help="Why it should work now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "broker", "data_dir")
def letters_retry(
    config: "Config",
    filter: "LetterFilter",
    *,
    letters: Sequence[str],
    everything: bool,
    canary: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Try dead letters again: one, several, or those of a filter. Exit code 1: some failed again."""
    from core.errors import ValidationFailed
    from entrypoints.dead_letters import retry_many, retry_one
    from ports.dead_letters import LetterFilter

    if bool(letters) + (filter != LetterFilter()) + everything != 1:
        raise ValidationFailed("Name letters, or a filter, or --all.")
    if len(letters) == 1:
        sys.exit(retry_one(config, letters[0], reason=reason, as_json=as_json))
    sys.exit(retry_many(config, letters or filter, reason=reason, canary=canary, as_json=as_json))


@dead_letters.command("edit")
@click.argument("letter")
@click.option("--body", metavar="FILE", help="The whole event as it should be, - for standard input; else an editor.")
@click.option("--reason", required=True, help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "broker", "data_dir")
def letters_edit(config: "Config", letter: str, *, body: str | None, reason: str, as_json: bool) -> None:
    """Replace a dead letter by one with another body and try that. Exit code 1: it failed again."""
    from entrypoints.dead_letters import edit, read_body

    sys.exit(edit(config, letter, read_body(config, letter, body), reason=reason, as_json=as_json))


@dead_letters.command("discard")
@click.argument("letters", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def letters_discard(config: "Config", letters: Sequence[str], *, reason: str, as_json: bool) -> None:
    """Decide against dead letters; they can be restored for 90 days."""
    from entrypoints.dead_letters import discard

    discard(config, letters, reason=reason, as_json=as_json)


@dead_letters.command("restore")
@click.argument("letters", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def letters_restore(config: "Config", letters: Sequence[str], *, reason: str, as_json: bool) -> None:
    """Take back that dead letters were discarded."""
    from entrypoints.dead_letters import restore

    restore(config, letters, reason=reason, as_json=as_json)


@inventory.group()
def outbox() -> None:
    """Look at events on their way out, release blocked ones, publish others again."""


@outbox.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def outbox_show(config: "Config", *, as_json: bool) -> None:
    """Show what waits to be published, and the events that no broker takes."""
    from entrypoints.outbox import show

    show(config, as_json=as_json)


@outbox.command("release")
@click.argument("event")
@click.option("--skip", is_flag=True, help="Never publish it, instead of trying again.")
@click.option("--reason", required=True, help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def outbox_release(config: "Config", event: str, *, skip: bool, reason: str, as_json: bool) -> None:
    """Let a blocked event's product go on."""
    from entrypoints.outbox import release

    release(config, event, reason=reason, skip=skip, as_json=as_json)


@outbox.command("replay")
@click.option("--from-position", type=click.IntRange(min=0), help="The first position.")
@click.option("--to-position", type=click.IntRange(min=0), help="The last position.")
@click.option("--since", help="Published then or later, such as 2026-11-23T10:00:00Z.")
@click.option("--until", help="Published before then.")
@click.option("--product-id", help="Events of this product only.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Watch until the relay has done it.")
@click.option("--reason", required=True, help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def outbox_replay(config: "Config", *, wait: bool, reason: str, as_json: bool, **bounds: Any) -> None:
    """Have the relay publish events again, with the same eventIds. Published events are kept 30 days."""
    from core.errors import ValidationFailed
    from entrypoints.outbox import replay
    from ports.replays import ReplayRange

    chosen = _converted(bounds, ReplayRange)
    if chosen == ReplayRange():
        raise ValidationFailed("Name at least one bound.")
    replay(config, chosen, reason=reason, wait=wait, as_json=as_json)


@inventory.group()
def stock() -> None:
    """Bring files of stock in, and take stock out as a file."""


@stock.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--kind", type=click.Choice(KINDS), help="What the rows are; left out, the columns tell.")
@click.option("--format", type=click.Choice(("csv", "jsonl")), help="Left out, the file's name tells.")
@click.option("--dry-run", is_flag=True, help="Look at every row and change nothing.")
@click.option("--partial", is_flag=True, help="Import the valid rows although others are not.")
@click.option("--again", is_flag=True, help="Import it although it was imported before.")
@click.option("--errors", metavar="FILE", help="Write line, code and reason of every refused row to a CSV file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "cache", "data_dir")
def stock_import(
    config: "Config", file: str, *, format: str | None, errors: str | None, as_json: bool, **order: Any
) -> None:
    """Import receipts, counts, items or warehouses. Broken off, the same command goes on where it was.

    Every row is checked first; if one is not valid nothing is imported, unless --partial is given. A file is imported
    once, however often this is repeated. Exit code 1: rows were refused.
    """
    from pathlib import Path

    from entrypoints.stock import format_of, import_file
    from ports.imports import ImportOrder

    name = None if file == "-" else "".join(each for each in Path(file).name if each.isprintable())[:128]
    asked = ImportOrder(format=format_of(file, format), name=name, **order)
    sys.exit(import_file(config, file, asked, errors_to=errors, as_json=as_json))


@stock.command("export")
@click.argument("kind", type=click.Choice(("items", "counts", "warehouses")), default="items")
@click.option("--output", metavar="FILE", default="-", help="Where to; standard output when left out.")
@click.option("--format", type=click.Choice(("csv", "jsonl")), help="Left out, the file's name tells, else CSV.")
@click.option("--product-id", help="Items of this product only.")
@click.option("--sku", help="Items of this SKU only.")
@click.option("--warehouse-id", help="Items in this warehouse only.")
@click.option("--status", type=click.Choice(("ACTIVE", "INACTIVE")), help="Items that are so only.")
@click.option("--stock", type=click.Choice(("low", "out")), help="Items in their low band, or with nothing available.")
@with_settings("store", "data_dir")
def stock_export(config: "Config", kind: "Kind", *, output: str, format: str | None, **filter: Any) -> None:
    """Export items with their balances, a list to count by, or warehouses; `import` reads all three again."""
    from entrypoints.stock import export_file, format_of
    from ports.store import ItemFilter

    export_file(config, output, kind, format_of(output, format), ItemFilter(**filter))


@stock.command("imports")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def stock_imports(config: "Config", *, limit: int, as_json: bool) -> None:
    """List the last imports, newest first."""
    from entrypoints.stock import list_imports

    list_imports(config, limit=limit, as_json=as_json)


@stock.command("cancel")
@click.argument("import_id", metavar="IMPORT")
@click.option("--reason", help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings("store", "data_dir")
def stock_cancel(config: "Config", import_id: str, *, reason: str | None, as_json: bool) -> None:
    """End an import; what is done stays done."""
    from entrypoints.stock import cancel

    cancel(config, import_id, reason=reason, as_json=as_json)


@inventory.group()
def config() -> None:
    """Look at the settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings(*_SETTINGS)
def show(config: "Config", *, as_json: bool) -> None:
    """Show every setting, its value, and where it comes from; secrets are masked."""
    if as_json:
        import msgspec

        shown = {line.name: line._asdict() for line in config.show()}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "from", "meaning")
    for line in config.show():
        table.add_row(*map(Text, line))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _stoppable() -> None:
    """Make being told to stop no failure while the process is still loading; later it takes the signals itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


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


if __name__ == "__main__":
    main()
