"""Lists a page at a time: filters, and the cursor that says where the last page ended."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Select

from core.errors import ValidationFailed
from ports.store import Page

T = TypeVar("T")


def narrowed(statement: Select[Any], table: Any, filter: Struct, cursor: str | None, kind: str) -> Select[Any]:
    """Add what the filter's fields ask of the columns of their names, and where the cursor stands."""
    for name, value in asdict(filter).items():
        if value is not None and name in table:
            statement = statement.where(table[name] == value)
    return statement if cursor is None else statement.where(table.id > read_cursor(cursor, kind))


def page(rows: list[T], limit: int, kind: str, key: Callable[[T], str]) -> Page[T]:
    """Return the first ``limit`` of ``rows``, which are one more where there is another page."""
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(tuple(rows), _write_cursor(kind, key(rows[-1])) if more else None)


def _write_cursor(kind: str, value: str) -> str:
    return urlsafe_b64encode(f"{kind}:{value}".encode()).decode().rstrip("=")


def read_cursor(cursor: str, kind: str) -> str:
    """Return the key of the last page's last row.

    Raises:
        ValidationFailed: the cursor is not one of this kind of list's.
    """
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except ValueError:
        raise bad_cursor() from None
    head, _, value = text.partition(":")
    if head != kind or not value.isprintable():
        raise bad_cursor()
    return value


def bad_cursor() -> ValidationFailed:
    """Return the refusal of a cursor."""
    return ValidationFailed("The cursor is not one of this list's; start without one.")
