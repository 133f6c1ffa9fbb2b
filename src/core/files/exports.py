"""What is in stock as a file of rows, which ``imports.py`` reads again; a page of the store at a time."""

from collections.abc import AsyncIterator

from core.errors import ValidationFailed
from core.files.kinds import EXPORTS, LAYOUTS
from core.files.sheets import write_rows
from ports.imports import Format, SheetKind
from ports.store import ItemFilter, Store

_PAGE = 1_000


async def export(store: Store, kind: SheetKind, format: Format, filter: ItemFilter) -> AsyncIterator[bytes]:
    """Yield the file in pieces, items in order of creation; each page is as it was when it was read.

    Raises:
        ValidationFailed: there is no such export, or warehouses were to be filtered.
        Unavailable: the store is away.
    """
    if (told := EXPORTS.get(kind)) is None:
        raise ValidationFailed(f"There is no export of {kind}; there are {', '.join(EXPORTS)}.")
    if kind == "warehouses":
        if filter != ItemFilter():
            raise ValidationFailed("An export of warehouses has all of them; leave the filters out.")
        yield write_rows(map(told, await store.warehouses()), format, header=True) or _header(kind, format)
        return
    page = await store.items(filter, cursor=None, limit=_PAGE)
    yield write_rows(map(told, page.rows), format, header=True) or _header(kind, format)
    while page.next_cursor is not None:
        page = await store.items(filter, cursor=page.next_cursor, limit=_PAGE)
        yield write_rows(map(told, page.rows), format, header=False)


def _header(kind: SheetKind, format: Format) -> bytes:
    return f"{','.join(LAYOUTS[kind].columns)}\r\n".encode() if format == "csv" else b""
