"""Path and query parameters: what they may hold, and that nothing else comes with them.

A path that cannot name anything is 404; a query that cannot be meant is 400. Litestar checks the values; names that are
unknown or come twice are checked here, because it would drop or pick one without a word.
"""

from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec
from litestar.config.app import AppConfig
from litestar.params import PathParameter, QueryParameter
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from core.errors import ValidationFailed
from core.fields import QUANTITY_MAX, Instant, utc
from core.ids import ID_PATTERN, is_id
from core.stock import ExpectedReceiptStatus, ReservationStatus, TransactionType
from ports.dead_letters import LetterStatus

# Beside control characters also lone surrogates: a URL can hold them on some servers, a database never.
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*$(?!\n)"
_WORD_MAX = 128
_SUBJECT_MAX = 255

Id: TypeAlias = Annotated[str, PathParameter(name="id", pattern=ID_PATTERN)]
ProductId: TypeAlias = Annotated[
    str,
    PathParameter(
        name="productId",
        min_length=1,
        max_length=_WORD_MAX,
        pattern=_PRINTABLE,
        description="The Product Service's id, percent-encoded; one that contains a slash cannot stand in a path.",
    ),
]
EventId: TypeAlias = Annotated[
    str,
    PathParameter(
        name="eventId",
        min_length=1,
        max_length=_WORD_MAX,
        pattern=_PRINTABLE,
        description="The event's id, percent-encoded; one that contains a slash cannot stand in a path.",
    ),
]
Quantity: TypeAlias = Annotated[int, QueryParameter(ge=1, le=QUANTITY_MAX, description="Desired quantity.")]
CheckAllWarehouses: TypeAlias = Annotated[
    bool, QueryParameter(name="checkAllWarehouses", description="Check across all warehouses.")
]
Explain: TypeAlias = Annotated[
    bool, QueryParameter(description="Tell the rule, its numbers, and how fresh they are and where from.")
]
SkuChoice: TypeAlias = Annotated[
    str | None,
    QueryParameter(name="sku", max_length=_WORD_MAX, pattern=_PRINTABLE, description="Only this SKU of the product."),
]
EventKind: TypeAlias = Annotated[
    Literal["StockLevelChanged", "LowStockThresholdReached", "OutOfStock", "BackInStock", "ReservationExpired"] | None,
    QueryParameter(name="type", description="Only events of this type."),
]
Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=200, description="How many rows at most.")]
Cursor: TypeAlias = Annotated[
    str | None, QueryParameter(pattern=r"^[!-~]{1,500}$(?!\n)", description="nextCursor of the page before.")
]
ProductFilter: TypeAlias = Annotated[
    str | None, QueryParameter(name="productId", max_length=_WORD_MAX, pattern=_PRINTABLE)
]
SkuFilter: TypeAlias = Annotated[str | None, QueryParameter(name="sku", max_length=_WORD_MAX, pattern=_PRINTABLE)]
ReferenceType: TypeAlias = Annotated[
    str | None, QueryParameter(name="referenceType", max_length=_WORD_MAX, pattern=_PRINTABLE)
]
ReferenceNumber: TypeAlias = Annotated[
    str | None, QueryParameter(name="referenceNumber", max_length=_WORD_MAX, pattern=_PRINTABLE)
]
TransactionKind: TypeAlias = Annotated[TransactionType | None, QueryParameter(name="type")]
ActorFilter: TypeAlias = Annotated[
    str | None, QueryParameter(name="actor", max_length=_SUBJECT_MAX, pattern=_PRINTABLE)
]
_WHEN = "RFC 3339 with an offset, such as 2026-11-23T10:00:00Z."
AsOf: TypeAlias = Annotated[
    str | None, QueryParameter(name="asOf", format="date-time", description=f"What was on record then. {_WHEN}")
]
By: TypeAlias = Annotated[
    str | None,
    QueryParameter(name="by", format="date-time", description=f"Also tell how many can be had by then. {_WHEN}"),
]
Since: TypeAlias = Annotated[
    str | None, QueryParameter(name="since", format="date-time", description=f"Recorded then or later. {_WHEN}")
]
Until: TypeAlias = Annotated[
    str | None, QueryParameter(name="until", format="date-time", description=f"Recorded before then. {_WHEN}")
]
ConfirmedBefore: TypeAlias = Annotated[
    str | None,
    QueryParameter(name="confirmedBefore", format="date-time", description=f"Confirmed earlier than that. {_WHEN}"),
]
ReservationState: TypeAlias = Annotated[ReservationStatus | None, QueryParameter(name="status")]
ReceiptState: TypeAlias = Annotated[ExpectedReceiptStatus | None, QueryParameter(name="status")]
OverdueFilter: TypeAlias = Annotated[
    bool | None, QueryParameter(name="overdue", description="Still expected although its time has passed, or not.")
]
ItemFilter: TypeAlias = Annotated[str | None, QueryParameter(name="inventoryItemId", pattern=ID_PATTERN)]
WarehouseFilter: TypeAlias = Annotated[str | None, QueryParameter(name="warehouseId", pattern=ID_PATTERN)]
StatusFilter: TypeAlias = Annotated[Literal["ACTIVE", "INACTIVE"] | None, QueryParameter(name="status")]
StockFilter: TypeAlias = Annotated[
    Literal["low", "out"] | None,
    QueryParameter(name="stock", description="low: in their low band; out: with nothing available."),
]

LetterState: TypeAlias = Annotated[LetterStatus | None, QueryParameter(name="status")]
NameFilter: TypeAlias = Annotated[
    str | None,
    QueryParameter(
        name="id",
        max_length=_WORD_MAX,
        pattern=_PRINTABLE,
        description="Of the letter, of its message or of its event.",
    ),
]
CorrelationFilter: TypeAlias = Annotated[
    str | None, QueryParameter(name="correlationId", max_length=_WORD_MAX, pattern=_PRINTABLE)
]
EventTypeFilter: TypeAlias = Annotated[
    str | None, QueryParameter(name="type", max_length=_WORD_MAX, pattern=_PRINTABLE, description="The event's type.")
]
ErrorCode: TypeAlias = Annotated[
    str | None, QueryParameter(name="code", max_length=_WORD_MAX, pattern=_PRINTABLE, description="The error's code.")
]
Cause: TypeAlias = Annotated[
    str | None,
    QueryParameter(
        name="text", max_length=_SUBJECT_MAX, pattern=_PRINTABLE, description="What stands in the error's sentence."
    ),
]
GroupFilter: TypeAlias = Annotated[str | None, QueryParameter(name="groupId", pattern=r"^[0-9a-z_]{1,64}$(?!\n)")]

FileKind: TypeAlias = Annotated[
    Literal["warehouses", "items", "receipts", "counts"] | None,
    QueryParameter(name="kind", description="What the rows are; left out, the columns tell."),
]
FileFormat: TypeAlias = Annotated[Literal["csv", "jsonl"], QueryParameter(name="format")]
FileName: TypeAlias = Annotated[
    str | None,
    QueryParameter(
        name="name", min_length=1, max_length=_WORD_MAX, pattern=_PRINTABLE, description="What to call the file."
    ),
]
DryRun: TypeAlias = Annotated[bool, QueryParameter(name="dryRun", description="Look at every row and change nothing.")]
Partial: TypeAlias = Annotated[bool, QueryParameter(description="Import the valid rows although others are not.")]
Again: TypeAlias = Annotated[bool, QueryParameter(description="Import a file that was imported before.")]


def cursor_id(cursor: str | None) -> str | None:
    """Read the cursor of a list whose cursors are its ids.

    Raises:
        ValidationFailed: it is none.
    """
    if cursor is not None and not is_id(cursor):
        raise ValidationFailed("The cursor is not one of this list's; start without one.")
    return cursor


def instant(text: str | None, name: str) -> datetime | None:
    """Read a point in time from a query parameter.

    Raises:
        ValidationFailed: it is not one, says no offset, or leaves the calendar in UTC.
    """
    if text is None:
        return None
    try:
        return utc(msgspec.convert(text, Instant), f"Query parameter {name}")
    except msgspec.ValidationError:
        raise ValidationFailed(f"Query parameter {name} must be {_WHEN} (A plus sign is written %2B.)") from None
    except ValueError as error:
        raise ValidationFailed(f"{error}.") from None


class ParametersPlugin(InitPlugin, ReceiveRoutePlugin):
    """Refuses query parameters that a route does not declare, and repeated ones."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Put the check in front of every handler."""
        app_config.middleware.append(_ExactQuery)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Note the names each handler declares."""
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                fields = handler.parsed_fn_signature.parameters.items()
                declared = {
                    kwarg.name or name: field.annotation
                    for name, field in fields
                    if isinstance(kwarg := field.kwarg_definition, QueryParameter)
                }
                handler.opt = {**handler.opt, "query": _Query(frozenset(declared), frozenset(_choices(declared)))}


class _Query(NamedTuple):
    """The names of a route's query parameters, and those of them that are one of a few words."""

    names: frozenset[str]
    choices: frozenset[str]


def _choices(declared: dict[str, Any]) -> Iterator[str]:
    for name, annotation in declared.items():
        if any(get_origin(part) is Literal for part in (annotation, *get_args(annotation))):
            yield name


class _ExactQuery:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"]:
            _check(scope["query_string"], scope["route_handler"].opt["query"])
        await self._app(scope, receive, send)


@lru_cache(1024)
def _check(query: bytes, known: _Query) -> None:
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise ValidationFailed("The query is not percent-encoded UTF-8.") from None
    seen = set()
    for name, value in pairs:
        if name not in known.names:
            listed = ", ".join(sorted(known.names)) or "none"
            raise ValidationFailed(f"There is a query parameter that this path does not know; it takes: {listed}.")
        if name in seen:
            raise ValidationFailed(f"Query parameter {name} came more than once.")
        if value == "null" and name in known.choices:  # msgspec would take it for an absent one, and filter nothing
            raise ValidationFailed(f"Query parameter {name} must be one of the words that /schema documents.")
        seen.add(name)
