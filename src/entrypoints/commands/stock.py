"""``inventory stock``: files of rows into the stock and out of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import rich_click as click
from rich.progress import TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from core.files.exports import export
from core.files.imports import Imports
from core.files.sheets import write_rows
from entrypoints.commands.terminal import act, console, print_json, progress, run_to_end, time_text, with_store
from entrypoints.commands.working import at_work
from entrypoints.config import Config
from ports.imports import PART_BYTES, Format, Import, ImportOrder, RowError, SheetKind
from ports.store import ItemFilter, Store

_SHOWN_MAX = 100
_TOLD_MAX = 10_000
_PAGE = 1_000
_POLL_SECONDS = 0.2
_FILES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl"}
T = TypeVar("T")


def format_of(path: str | None, format: str | None) -> Format:
    """Return the format of a file: as asked for, else by its name, else CSV."""
    if format is not None:
        return "jsonl" if format == "jsonl" else "csv"
    return _FILES.get(Path(path or "").suffix.lower(), "csv")


def import_file(config: Config, path: str, order: ImportOrder, *, errors_to: str | None, as_json: bool) -> int:
    """Import a file, with a progress bar, print what became of it, and return the exit code: 1 if rows were refused.

    Broken off, the same command goes on with it, or a service that runs does.
    """

    async def work(imports: Imports, store: Store, *, here: bool) -> tuple[Import, list[RowError]]:
        with click.open_file(path, "rb") as file:
            job = await imports.take(order, _pieces(file), act(None))
        if job.ended_at is None:
            job = await _watch(imports if here else None, store, job)
        elif not as_json:
            click.echo(f"This file was imported {time_text(job.ended_at)}; --again imports it once more.", err=True)
        if errors_to is not None:
            with click.open_file(errors_to, "wb") as file:
                await _write_errors(store, job, file)
        return job, await _errors(store, job, _TOLD_MAX if as_json else _SHOWN_MAX)

    job, errors = _at_work(config, work)
    _print(job, errors, as_json=as_json)
    return 0 if job.status == "DONE" and not job.refused else 1


def export_file(config: Config, path: str, kind: SheetKind, format: Format, filter: ItemFilter) -> None:
    """Write what is in stock to a file."""

    async def work(store: Store) -> None:
        with click.open_file(path, "wb", lazy=False) as file:
            async for piece in export(store, kind, format, filter):
                file.write(piece)

    with_store(config, work)


def list_imports(config: Config, *, limit: int, as_json: bool) -> None:
    """Print the last imports, newest first."""
    jobs = with_store(config, lambda store: store.import_jobs(limit=limit))
    if as_json:
        print_json(jobs)
        return
    table = Table("import", "status", "kind", "file", "by", "begun", "rows", "done", "refused")
    for each in jobs:
        numbers = (str(each.checked if each.rows is None else each.rows), str(each.done), str(each.refused))
        words = (each.id, each.status, each.kind or "", each.name or "", each.actor, time_text(each.created_at))
        table.add_row(*map(Text, (*words, *numbers)))
    console().print(table)


def cancel(config: Config, id: str, *, reason: str | None, as_json: bool) -> None:
    """End an import; what is done stays done."""
    job = with_store(config, lambda store: store.cancel_import(id, act(reason)))
    _print(job, [], as_json=as_json)


def _at_work(config: Config, work: Callable[..., Awaitable[T]]) -> T:
    """Do ``work`` so that every reader hears of it; ``here`` tells whether importing is up to us."""

    async def main() -> T:
        async with at_work(config) as (container, store, here):
            return await work(await container.get(Imports), store, here=here)

    return run_to_end(main())


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(PART_BYTES):
        yield piece
        await asyncio.sleep(0)


async def _watch(imports: Imports | None, store: Store, job: Import) -> Import:
    """Work on imports, or watch who does, until this one has ended, and tell how far it is."""
    with progress("{task.description}", TimeElapsedColumn()) as bars:
        bar = bars.add_task("Waiting", total=None)

        def tell(now: Import) -> None:
            if now.id == job.id and now.status == "CHECKING":
                bars.update(bar, description="Checking", completed=now.checked)
            elif now.id == job.id and now.rows is not None:
                bars.update(bar, description="Importing", completed=now.done, total=now.rows)

        while job.ended_at is None:
            if imports is None or not await imports.turn(tell):
                await asyncio.sleep(_POLL_SECONDS)
            job = await store.import_job(job.id) or job
            tell(job)
    return job


async def _errors(store: Store, job: Import, most: int) -> list[RowError]:
    found: list[RowError] = []
    while len(found) < most:
        after = found[-1].line if found else 0
        if not (page := await store.import_errors(job.id, after=after, limit=min(_PAGE, most - len(found)))):
            break
        found += page
    return found


async def _write_errors(store: Store, job: Import, file: IO[bytes]) -> None:
    after, header = 0, True
    while page := await store.import_errors(job.id, after=after, limit=_PAGE):
        rows = ({"line": each.line, "code": each.code, "detail": each.detail} for each in page)
        file.write(write_rows(rows, "csv", header=header))
        after, header = page[-1].line, False


def _print(job: Import, errors: Sequence[RowError], *, as_json: bool) -> None:
    if as_json:
        print_json({"import": job, "errors": errors})
        return
    if errors:
        table = Table("line", "code", "because")
        for each in errors:
            table.add_row(*map(Text, (str(each.line), each.code, each.detail)))
        console().print(table)
    if job.refused > len(errors) > 0:
        click.echo(f"… and {job.refused - len(errors)} more; --errors FILE has them all.")
    click.echo(_sentence(job))


def _sentence(job: Import) -> str:
    what = f"{job.id}: {job.rows if job.rows is not None else job.checked} rows of {job.kind or 'unknown kind'}"
    if job.dry_run and job.reason is None:
        return f"{what} looked at, {job.refused} would be refused; nothing was changed."
    if job.status == "DONE":
        return f"{what}, {job.succeeded} imported, {job.refused} refused."
    return f"{what}: {job.status}. {job.reason or f'{job.succeeded} were imported before.'}"
