"""What a database's complaint means to a caller: one table from driver errors to the core's (rule R3)."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core.errors import AlreadyExists, Busy, InventoryError, SkuConflict, Unavailable, ValidationFailed

_AWAY = "The database cannot be reached right now; nothing was done. Try again shortly."
_NO_TABLE = ("42P01", "42703")
_INFRASTRUCTURE = ("08", "25006", "28", "3D", "40", "42501", "53", "57", "58")
"""SQLSTATE prefixes that speak of the database's condition, never of the data."""
_SKU_TAKEN = (SkuConflict, "The SKU is in use in that warehouse by now; read its items and decide again.")
_WAREHOUSE_TAKEN = (AlreadyExists, "There is a warehouse of that id by now; choose another id.")
_TAKEN: dict[str, tuple[type[InventoryError], str]] = {
    "inventory_item_sku_warehouse_id_key": _SKU_TAKEN,
    "inventory_item.sku, inventory_item.warehouse_id": _SKU_TAKEN,
    "warehouse_pkey": _WAREHOUSE_TAKEN,
    "warehouse.id": _WAREHOUSE_TAKEN,
}
"""What a violated constraint means, by the name each database gives it."""
_UNSTORABLE = ("22021", "22P05", "22003")
"""SQLSTATEs of text and numbers that no column can hold."""


_LEFT_BEHIND = (
    "stock_transaction_inventory_item_id_item_version_key",
    "stock_transaction.inventory_item_id, stock_transaction.item_version",
    "outbox_product_id_sequence_key",
    "outbox.product_id, outbox.sequence",
)
"""What is violated where an item or a product went on meanwhile, by the name each database gives it."""
_QUEUED_ALREADY = ("stock_import_content_key_key", "stock_import.content_key")
"""What is violated where a file of the same content was queued in the same moment."""


@contextmanager
def faults() -> Iterator[None]:
    """Translate what the driver raises inside the block; what is not in the table passes unchanged.

    Raises:
        Busy: a lock did not come in time.
        Unavailable: the connection, the server or the disk failed.
        SkuConflict, AlreadyExists, ValidationFailed: a row is the caller's to correct.
    """
    try:
        yield
    except DBAPIError as error:
        if (translated := _translate(error)) is None:
            raise
        raise translated from error
    except (PoolTimeout, TimeoutError, OSError) as error:
        raise Unavailable(_AWAY, retry_after=1) from error


def is_left_behind(error: DBAPIError) -> bool:
    """Tell whether a complaint is that somebody else has written this version's row already."""
    return any(name in str(error.orig) for name in _LEFT_BEHIND)


def is_queued_already(error: DBAPIError) -> bool:
    """Tell whether a complaint is that an import of the same content is on record by now."""
    return any(name in str(error.orig) for name in _QUEUED_ALREADY)


def _translate(error: DBAPIError) -> InventoryError | None:
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state == "57014":
        return Busy("The database took too long over this; nothing was done. Ask for less, or again.", retry_after=1)
    if state == "55P03":
        return Busy("This product is being changed by somebody who holds it too long; try again.", retry_after=1)
    if state in _NO_TABLE or _sqlite_lacks(error):
        return Unavailable("The database lacks tables of this version; run `inventory migrate`.", retry_after=5)
    if error.connection_invalidated or state.startswith(_INFRASTRUCTURE) or _sqlite_away(error):
        return Unavailable(_AWAY, retry_after=1)
    if state in _UNSTORABLE:
        return ValidationFailed("The request holds text or a number that cannot be stored.")
    text = str(error.orig)
    return next((kind(detail) for name, (kind, detail) in _TAKEN.items() if name in text), None)


def _sqlite_away(error: DBAPIError) -> bool:
    # Locked, full, read-only, I/O: SQLite tells all of them as OperationalError, as it does a missing table.
    return isinstance(_sqlite_cause(error), sqlite3.OperationalError)


def _sqlite_lacks(error: DBAPIError) -> bool:
    cause = _sqlite_cause(error)
    return isinstance(cause, sqlite3.OperationalError) and "no such" in str(cause)


def _sqlite_cause(error: DBAPIError) -> BaseException | None:
    return error.orig.__cause__ or error.orig if error.orig else None
