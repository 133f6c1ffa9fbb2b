"""``inventory reconcile``: look now, with a progress bar where a person is watching, and look at what was found."""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich_click as click
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from core.errors import NotFound
from core.findings import Finding, Repair, Run, Tally
from core.ids import new_id
from core.reconciling.reconciliation import REPAIR, Reconciliation
from core.reconciling.reconciliation import Progress as Told
from entrypoints.commands.terminal import (
    NAME,
    act,
    console,
    print_json,
    progress,
    run_to_end,
    somebody_runs,
    time_text,
    with_store,
)
from entrypoints.commands.working import opened
from entrypoints.config import Config, check_processes
from entrypoints.processes.loops import start_writing
from ports.store import Store

_PAGE = 1_000
_WATCH_SECONDS = 0.5
_SHOWN_MAX = 100
_PARTS: dict[str, str] = {
    "stock": "products",
    "outbox": "events that wait",
    "receipts": "expected receipts",
    "ledger": "ledger rows",
    "events": "events",
    "catalog": "products at the Product Service",
    "listing": "the Product Service's list",
    REPAIR: "findings again, to repair them",
}


class Report(Struct, frozen=True):
    """A run, how much of what stood while it was on there is by kind and age, and what it did about that."""

    run: Run | None
    tallies: Sequence[Tally]
    findings: Sequence[Finding]
    repairs: Sequence[Repair]


def run(config: Config, *, deep: bool, as_json: bool) -> int:
    """Reconcile, repair what the settings say, and print what was found; return the exit code.

    Raises:
        Busy: another reconciliation is going on.
        Unavailable: the store is away.
    """

    async def main() -> Report:
        async with opened(config) as (container, store, ends):
            with _progress() as told:
                if config.repairs != "plan" and await _must_be_done_elsewhere(config, store):
                    return await _report(store, await _have_done(config, store, deep=deep, told=told))
                await start_writing(container, ends)
                reconciliation = await container.get(Reconciliation)
                ended = await reconciliation.run(
                    trigger="manual", actor=NAME, deep=deep, repairs=config.repairs, progress=told
                )
            return await _report(store, ended)

    report = run_to_end(main())
    _print(report, as_json=as_json)
    left = [finding for finding in report.findings if finding.resolved_at is None]
    return 1 if left or report.run is None or report.run.status != "DONE" else 0


async def _must_be_done_elsewhere(config: Config, store: Store) -> bool:
    """Tell whether a service runs that keeps what it reads in its own memory, and would not hear of our repairs."""
    return check_processes(config, "serve").cache.startswith("memory:") and await somebody_runs(store)


async def _have_done(config: Config, store: Store, *, deep: bool, told: Told) -> Run:
    """Ask the service that runs to do it, and watch until it has."""
    asked = await store.request_reconciliation(
        new_id("rec"), deep=deep, repairs=config.repairs, act=act("inventory reconcile run")
    )
    while (run := await store.reconciliation(asked.id) or asked).is_open:
        if run.part is not None:
            told(run.part, run.looked_at, max(run.about, run.looked_at))
        await asyncio.sleep(_WATCH_SECONDS)
    return run


def cancel(config: Config, run_id: str, *, reason: str) -> None:
    """End a run.

    Raises:
        NotFound, Conflict: there is none of that id, or it has ended.
    """
    ended = with_store(config, lambda store: store.cancel_reconciliation(run_id, act(reason)))
    click.echo(f"{ended.id} is cancelled")


def list_runs(config: Config, *, limit: int, as_json: bool) -> None:
    """Print the last runs, newest first."""
    runs = with_store(config, lambda store: store.reconciliations(limit))
    if as_json:
        print_json(runs)
        return
    table = Table("run", "started", "by", "looked at", "products", "items", "found", "new", "resolved")
    for each in runs:
        found = _counts(each.findings) if each.ended_at else "not finished"
        scope = f"{'everything' if each.deep else 'how things stand'}, {each.status}"
        numbers = (each.products, each.items, found, each.raised, each.resolved)
        cells = (each.id, time_text(each.started_at), f"{each.actor} ({each.trigger})", scope, *map(str, numbers))
        table.add_row(*map(Text, cells))
    console().print(table)


def show(config: Config, run_id: str | None, *, as_json: bool) -> None:
    """Print a run and what stood while it was on; without an id the last run, and what stands now.

    Raises:
        NotFound: there is no such run.
    """

    async def read(store: Store) -> Report:
        if run_id is None:
            runs = await store.reconciliations(1)
            return replace(await _report(store, runs[0] if runs else None), findings=await _all(store, None))
        if (run := await store.reconciliation(run_id)) is None:
            raise NotFound(f"There is no reconciliation {run_id}; `inventory reconcile list` names them.")
        return await _report(store, run)

    _print(with_store(config, read), as_json=as_json)


async def _report(store: Store, run: Run | None) -> Report:
    if run is None:
        return Report(None, (), (), ())
    repairs = page = await store.repairs(run, limit=_PAGE)
    while len(page) == _PAGE:
        page = await store.repairs(run, after=repairs[-1], limit=_PAGE)
        repairs = repairs + page
    return Report(run, await store.tallies(run), await _all(store, run), repairs)


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
    with progress("{task.description}", TimeElapsedColumn()) as bars:
        tasks: dict[str, Any] = {}

        def tell(part: str, looked_at: int, about: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(f"Looking at {_PARTS[part]}", total=about)
            bars.update(tasks[part], completed=looked_at, total=about)

        yield tell


def _tell_plainly(part: str, looked_at: int, about: int) -> None:
    if looked_at == about:
        click.echo(f"looked at {looked_at} {_PARTS[part]}", err=True)


# -- what is printed in the end --------------------------------------------------------------------------------------


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    screen, run = console(), report.run
    _print_findings(screen, report)
    if report.tallies:
        ages = Table("kind", "is", "new", "within a day", "within a week", "older")
        for each in report.tallies:
            ages.add_row(each.kind, each.nature, *map(str, (each.new, each.day, each.week, each.older)))
        screen.print(ages)
    for alarm in run.alarms if run is not None else ():
        screen.print(Text(f"Alarm: {alarm}"), soft_wrap=True)
    screen.print(Text("Nothing has been reconciled yet." if run is None else _sentence(run)), soft_wrap=True)


def _print_findings(screen: Console, report: Report) -> None:
    """A line for each, and what was done about it."""
    findings = report.findings
    made = {(each.kind, each.subject): each for each in report.repairs}
    if findings:
        table = Table("kind", "product", "item", "expected", "found", "first seen", "last seen", "resolved", "done")
        for each in findings[:_SHOWN_MAX]:
            seen = (each.first_seen_at, each.last_seen_at, each.resolved_at)
            whose = (each.kind, each.product_id, each.inventory_item_id or "")
            values = (_values(each.expected), _values(each.found))
            cells = (*whose, *values, *map(time_text, seen), _done(made.get((each.kind, each.subject))))
            table.add_row(*map(Text, cells))
        screen.print(table)
    if len(findings) > _SHOWN_MAX:
        screen.print(f"… and {len(findings) - _SHOWN_MAX} more; --json has them all.")


def _done(repair: Repair | None) -> str:
    if repair is None:
        return ""
    changed = f": {_values(repair.before)} → {_values(repair.after)}" if repair.after else ""
    return f"{repair.outcome}{changed}{f' ({repair.reason})' if repair.reason else ''}"


def _sentence(run: Run) -> str:
    if run.ended_at is None:
        return f"{run.id} began {time_text(run.started_at)} and has not ended: it is going on or was broken off."
    took = (run.ended_at - run.started_at).total_seconds()
    looked = f"{run.id} looked at {run.products} products and {run.items} items in {took:.1f} s"
    done = f" {_counts(run.outcomes)}." if run.outcomes else ""
    state = "" if run.status == "DONE" else f" It is {run.status}."
    return f"{looked} and found: {_counts(run.findings)}. {run.raised} new, {run.resolved} resolved.{done}{state}"


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"


def _values(values: Mapping[str, int | str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "nothing"
