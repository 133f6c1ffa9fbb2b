"""Files by HTTP: sent in, carried out by whoever moves events, looked at meanwhile; and stock sent out as a file."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get, post
from litestar.config.app import AppConfig
from litestar.params import FromPath
from litestar.plugins import InitPlugin
from litestar.types import Receive, Scope, Send

from core.errors import NotFound, ValidationFailed
from core.files.exports import export
from core.files.imports import Imports, TooLarge
from core.files.kinds import EXPORTS
from core.files.sheets import write_rows
from entrypoints.api.bodies import BODY_SECONDS, Strict
from entrypoints.api.dead_letters import Decision, act
from entrypoints.api.headers import header
from entrypoints.api.parameters import (
    Again,
    Cursor,
    DryRun,
    FileFormat,
    FileKind,
    FileName,
    Id,
    Limit,
    Partial,
    ProductFilter,
    SkuFilter,
    StatusFilter,
    StockFilter,
    WarehouseFilter,
    cursor_id,
)
from entrypoints.api.problems import ContentTooLarge, RequestTimeout, UnsupportedMediaType
from entrypoints.api.replies import Reply, answers, ok, page
from ports.imports import Format, Import, ImportOrder, RowError, SheetKind
from ports.store import ItemFilter, Page, Store

AnyRequest = Request[Any, Any, Any]
FORMATS: dict[str, Format] = {"text/csv": "csv", "application/x-ndjson": "jsonl"}
_MEDIA: dict[Format, bytes] = {"csv": b"text/csv; charset=utf-8", "jsonl": b"application/x-ndjson"}
_IMPORT = answers(Import, name="ImportSuccess")
_ERRORS_AT_ONCE = 1_000
_LINE_DIGITS = 9


class ImportsPlugin(InitPlugin):
    """Takes files, tells how far they are, and gives files."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        handlers = [import_stock, list_imports, get_import, list_errors, download_errors, cancel]
        app_config.route_handlers += [
            DishkaRouter("/imports", route_handlers=handlers, tags=["Files"]),
            DishkaRouter("/exports", route_handlers=[export_stock], tags=["Files"]),
        ]
        return app_config


@post(operation_id="importStock", status_code=202, responses=answers(Import, name="ImportBegun", status=202))
async def import_stock(
    request: AnyRequest,
    imports: FromDishka[Imports],
    *,
    kind: FileKind = None,
    name: FileName = None,
    dry_run: DryRun = False,
    partial: Partial = False,
    again: Again = False,
) -> Reply:
    """Import a file of receipts, counts, items or warehouses: as `text/csv`, or JSON lines as `application/x-ndjson`.

    It is checked and carried out in the background; the answer names where to look how far it is. Nothing is imported
    while a row is not valid, unless `partial`. A file that was imported before is answered with that import, unless
    `again`; so a lost connection is no reason not to send it once more. At most 256 MB and a million rows.
    """
    media_type = (header(request.scope, "content-type") or "").partition(";")[0].strip().lower()
    if (format := FORMATS.get(media_type)) is None:
        raise UnsupportedMediaType(f"Send the file as Content-Type: {' or '.join(FORMATS)}.")
    if header(request.scope, "content-encoding") not in (None, "identity"):
        raise UnsupportedMediaType("Send the file without Content-Encoding.")
    order = ImportOrder(kind=kind, format=format, name=name, dry_run=dry_run, partial=partial, again=again)
    try:
        job = await imports.take(order, _pieces(request), act(request, None))
    except TooLarge as error:
        raise ContentTooLarge(error.detail) from None
    return ok(job, status=202, location=f"/imports/{job.id}")


async def _pieces(request: AnyRequest) -> AsyncIterator[bytes]:
    """Yield the body as it comes; nothing of it is kept here."""
    while True:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await request.receive()
        except TimeoutError:
            raise RequestTimeout(f"The file did not go on for {BODY_SECONDS} seconds; send it again.") from None
        if message["type"] != "http.request":
            raise ValidationFailed("The file ended before it was complete.")
        if piece := message["body"]:
            yield piece
        if not message.get("more_body", False):
            return


@get(operation_id="listImports", responses=answers(Import, name="ImportList", listed=True))
async def list_imports(store: FromDishka[Store], cursor: Cursor = None, limit: Limit = 50) -> Reply:
    """List imports, newest first. They are kept 90 days."""
    jobs = await store.import_jobs(before=cursor_id(cursor), limit=limit + 1)
    return page(Page(tuple(jobs[:limit]), jobs[limit - 1].id if len(jobs) > limit else None))


@get("/{id:str}", operation_id="getImport", responses=_IMPORT)
async def get_import(import_id: Id, store: FromDishka[Store]) -> Reply:
    """Return how far an import is: rows checked, then done, and how many of them were refused."""
    return ok(await _job(store, import_id))


@get("/{id:str}/errors", operation_id="listImportErrors", responses=answers(RowError, name="RowErrorList", listed=True))
async def list_errors(import_id: Id, store: FromDishka[Store], cursor: Cursor = None, limit: Limit = 50) -> Reply:
    """List why rows were refused, by the line they begin in; `/imports/{id}/errors.csv` has them all in one file."""
    if cursor is not None and not (cursor.isdecimal() and len(cursor) <= _LINE_DIGITS):
        raise ValidationFailed("The cursor is not one of this list's; start without one.")
    await _job(store, import_id)
    errors = await store.import_errors(import_id, after=int(cursor or 0), limit=limit + 1)
    return page(Page(tuple(errors[:limit]), str(errors[limit - 1].line) if len(errors) > limit else None))


@get("/{id:str}/errors.csv", operation_id="downloadImportErrors")
async def download_errors(import_id: Id, store: FromDishka[Store]) -> Reply:
    """Return why rows were refused, all of them, as a file."""
    await _job(store, import_id)

    async def pieces() -> AsyncIterator[bytes]:
        after, header = 0, True
        while errors := await store.import_errors(import_id, after=after, limit=_ERRORS_AT_ONCE):
            rows = ({"line": each.line, "code": each.code, "detail": each.detail} for each in errors)
            yield write_rows(rows, "csv", header=header)
            after, header = errors[-1].line, False

    return _Download(pieces(), f"{import_id}-errors.csv", "csv")


@post("/{id:str}/cancel", operation_id="cancelImport", status_code=200, responses=_IMPORT)
async def cancel(request: AnyRequest, import_id: Id, data: Strict[Decision], store: FromDishka[Store]) -> Reply:
    """End an import; what is done stays done."""
    return ok(await store.cancel_import(import_id, act(request, data.reason)))


@get("/{kind:str}", operation_id="exportStock")
async def export_stock(
    kind: FromPath[str],
    store: FromDishka[Store],
    *,
    format: FileFormat = "csv",
    product_id: ProductFilter = None,
    sku: SkuFilter = None,
    warehouse_id: WarehouseFilter = None,
    status: StatusFilter = None,
    stock: StockFilter = None,
) -> Reply:
    """Return items with their balances, a list to count by, or warehouses, as a file that can be imported again."""
    known: dict[str, SheetKind] = {each: each for each in EXPORTS}
    if kind not in known:
        raise NotFound(f"There is no such export; there are {', '.join(EXPORTS)}.")
    filter = ItemFilter(product_id=product_id, sku=sku, warehouse_id=warehouse_id, status=status, stock=stock)
    return _Download(export(store, known[kind], format, filter), f"{kind}.{format}", format)


async def _job(store: Store, id: str) -> Import:
    if (job := await store.import_job(id)) is None:
        raise NotFound(f"There is no import {id}.", importId=id)
    return job


class _Download(Reply):
    """A file, sent as it is read; what goes wrong before its first piece is answered, later the connection breaks."""

    __slots__ = ("_pieces",)

    def __init__(self, pieces: AsyncIterator[bytes], name: str, format: Format) -> None:
        super().__init__(b"")
        self._pieces = pieces
        self._headers = [
            (b"content-type", _MEDIA[format]),
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is, as it comes."""
        piece = await anext(self._pieces, b"")
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await anext(self._pieces, b"")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
