"""``inventory stock`` and its options."""

import sys
from typing import TYPE_CHECKING, Any

import rich_click as click

from entrypoints.cli.options import with_as_json, with_limit, with_settings

if TYPE_CHECKING:
    from entrypoints.config import Config
    from ports.imports import SheetKind

KINDS = ("warehouses", "items", "receipts", "counts")


@click.group()
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
@with_as_json
@with_settings("store", "cache", "data_dir")
def stock_import(
    config: "Config", file: str, *, format: str | None, errors: str | None, as_json: bool, **order: Any
) -> None:
    """Import receipts, counts, items or warehouses. Broken off, the same command goes on where it was.

    Every row is checked first; if one is not valid nothing is imported, unless --partial is given. A file is imported
    once, however often this is repeated. Exit code 1: rows were refused.
    """
    from pathlib import Path

    from entrypoints.commands.stock import format_of, import_file
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
def stock_export(config: "Config", kind: "SheetKind", *, output: str, format: str | None, **filter: Any) -> None:
    """Export items with their balances, a list to count by, or warehouses; `import` reads all three again."""
    from entrypoints.commands.stock import export_file, format_of
    from ports.store import ItemFilter

    export_file(config, output, kind, format_of(output, format), ItemFilter(**filter))


@stock.command("imports")
@with_limit
@with_as_json
@with_settings("store", "data_dir")
def stock_imports(config: "Config", *, limit: int, as_json: bool) -> None:
    """List the last imports, newest first."""
    from entrypoints.commands.stock import list_imports

    list_imports(config, limit=limit, as_json=as_json)


@stock.command("cancel")
@click.argument("import_id", metavar="IMPORT")
@click.option("--reason", help="Why.")
@with_as_json
@with_settings("store", "data_dir")
def stock_cancel(config: "Config", import_id: str, *, reason: str | None, as_json: bool) -> None:
    """End an import; what is done stays done."""
    from entrypoints.commands.stock import cancel

    cancel(config, import_id, reason=reason, as_json=as_json)
