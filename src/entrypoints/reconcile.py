"""``inventory reconcile``: look now, with a progress bar where a person is watching, and look at what was found."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from core.errors import NotFound
from core.findings import Finding, Part, Run
from core.reconciliation import Progress as Told
from core.reconciliation import Reconciliation
from entrypoints.config import Config
from entrypoints.terminal import console, print_json, time_text, with_store
from ports.store import Store

ACTOR = "inventory-cli"
_PAGE = 1_000
_SHOWN_MAX = 100
_PARTS: dict[Part, str] = {
    "stock": "products",
    "receipts": "expected receipts",
    "ledger": "ledger rows",
    "events": "events",
}


def run(config: Config, *, deep: bool, as_json: bool) -> int:
    """Reconcile and print what was found; return the exit code.

    Raises:
        Busy: another reconciliation is going on.
        Unavailable: the store is away.
    """

    async def look(store: Store) -> tuple[Run, list[Finding]]:
        with _progress() as told:
            reconciliation = Reconciliation(store, minutes=0)
            run = await reconciliation.run(trigger="manual", actor=ACTOR, deep=deep, progress=told)
        return run, await _all(store, run)

    run, findings = with_store(config, look)
    _print(run, findings, as_json=as_json)
    return 1 if run.findings else 0


def list_runs(config: Config, *, limit: int, as_json: bool) -> None:
    """Print the last runs, newest first."""
    runs = with_store(config, lambda store: store.reconciliations(limit))
    if as_json:
        print_json(runs)
        return
    table = Table("run", "started", "by", "looked at", "products", "items", "found", "new", "resolved")
    for each in runs:
        found = _counts(each) if each.ended_at else "not finished"
        scope = "everything" if each.deep else "how things stand"
        numbers = (each.products, each.items, found, each.raised, each.resolved)
        cells = (each.id, time_text(each.started_at), f"{each.actor} ({each.trigger})", scope, *map(str, numbers))
        table.add_row(*map(Text, cells))
    console().print(table)


def show(config: Config, run_id: str | None, *, as_json: bool) -> None:
    """Print a run and what stood while it was on; without an id the last run, and what stands now.

    Raises:
        NotFound: there is no such run.
    """

    async def read(store: Store) -> tuple[Run | None, list[Finding]]:
        if run_id is None:
            runs = await store.reconciliations(1)
            return (runs[0] if runs else None), await _all(store, None)
        if (run := await store.reconciliation(run_id)) is None:
            raise NotFound(f"There is no reconciliation {run_id}; `inventory reconcile list` names them.")
        return run, await _all(store, run)

    _print(*with_store(config, read), as_json=as_json)


async def _all(store: Store, run: Run | None) -> list[Finding]:
    found = page = await store.findings(run, limit=_PAGE)
    while len(page) == _PAGE:
        page = await store.findings(run, after=found[-1], limit=_PAGE)
        found = found + page
    return found


# -- what is told while it runs --------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Told]:
    """Yield what takes the progress: a bar for each part on a terminal, else a line for each; on standard error."""
    if not sys.stderr.isatty():
        yield _tell_plainly
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[Part, Any] = {}

        def tell(part: Part, looked_at: int, about: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(f"Looking at {_PARTS[part]}", total=about)
            bars.update(tasks[part], completed=looked_at, total=about)

        yield tell


def _tell_plainly(part: Part, looked_at: int, about: int) -> None:
    if looked_at == about:
        click.echo(f"looked at {looked_at} {_PARTS[part]}", err=True)


# -- what is printed in the end --------------------------------------------------------------------------------------


def _print(run: Run | None, findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json({"run": run, "findings": findings})
        return
    screen = console()
    if findings:
        table = Table("kind", "product", "item", "expected", "found", "first seen", "last seen", "resolved")
        for each in findings[:_SHOWN_MAX]:
            seen = (each.first_seen_at, each.last_seen_at, each.resolved_at)
            whose = (each.kind, each.product_id, each.inventory_item_id or "")
            cells = (*whose, _values(each.expected), _values(each.found), *map(time_text, seen))
            table.add_row(*map(Text, cells))
        screen.print(table)
    if len(findings) > _SHOWN_MAX:
        screen.print(f"… and {len(findings) - _SHOWN_MAX} more; --json has them all.")
    screen.print(Text("Nothing has been reconciled yet." if run is None else _sentence(run)), soft_wrap=True)


def _sentence(run: Run) -> str:
    if run.ended_at is None:
        return f"{run.id} began {time_text(run.started_at)} and has not ended: it is going on or was broken off."
    took = (run.ended_at - run.started_at).total_seconds()
    looked = f"{run.id} looked at {run.products} products and {run.items} items in {took:.1f} s"
    return f"{looked} and found: {_counts(run)}. {run.raised} new, {run.resolved} resolved."


def _counts(run: Run) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(run.findings.items())) or "nothing"


def _values(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "nothing"
