"""The OpenAPI document: complete enough to generate a client from it.

Litestar lists operations and parameters. Bodies and answers are described by msgspec, which decodes and encodes them
and so cannot be wrong about them; what can be refused, headers and examples are added here, from the same tables and
classes that answer requests.
"""

from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any, NamedTuple, get_args

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.routes import HTTPRoute

from core.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    InsufficientStock,
    InventoryError,
    ItemInactive,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    ProductNotFound,
    ProductServiceProtocolError,
    ProductServiceUnavailable,
    ReservationExpired,
    SkuConflict,
    Unauthorized,
    Unavailable,
    UnsupportedVersion,
    ValidationFailed,
    VersionConflict,
)
from entrypoints.api.examples import ANSWERS, EXAMPLES, PROBLEMS
from entrypoints.api.problems import (
    MEDIA_TYPE,
    ContentTooLarge,
    Problem,
    RequestTimeout,
    UnsupportedMediaType,
    document,
    status_of,
)
from entrypoints.api.schemas import Schemas

_MATCHED = ("updateWarehouse", "updateInventoryItem", "updateExpectedReceipt")
_REMEMBERED = ("getWarehouse", "getInventoryItem", "getInventoryByProduct")
_STREAMED = ("streamEvents",)
_TAGGED = {
    **dict.fromkeys(("createWarehouse", "createInventoryItem", "createExpectedReceipt"), 201),
    **dict.fromkeys((*_MATCHED, *_REMEMBERED), 200),
    **dict.fromkeys(("getExpectedReceipt", "receiveExpectedReceipt", "cancelExpectedReceipt"), 200),
}
_LOCATED = (
    "createWarehouse",
    "createInventoryItem",
    "reserve",
    "createExpectedReceipt",
    "retryDeadLetters",
    "replayEvents",
    "reconcile",
    "takeProductEvent",
    "importStock",
)
_NAMES_NOTHING = ("createWarehouse", "forceCircuit", "takeProductEvent", "reconcile")
_NEVER_AWAY = ("live", "explainProblem", "getProductService", "forceCircuit")
_CLAIMED = (
    *("retryDeadLetter", "editDeadLetter", "discardDeadLetter", "restoreDeadLetter", "noteDeadLetter"),
    *("retryDeadLetters", "cancelDeadLetterRetry", "releaseBlockedEvent", "replayEvents", "cancelReplay"),
    "cancelImport",
    *("reconcile", "cancelReconciliation"),
)
"""What is claimed with the act: a second one is refused, and so are idempotency keys."""
_UNKEYED = ("forceCircuit", "takeProductEvent", "importStock", *_CLAIMED)
_UPLOADS: dict[str, dict[str, str]] = {
    "importStock": {
        "text/csv": "sku,warehouseId,quantity,referenceNumber\r\nWIDGET-2,wh_01HXYZ789GHI,25,PO-12345\r\n",
        "application/x-ndjson": '{"sku": "WIDGET-2", "warehouseId": "wh_01HXYZ789GHI", "countedQuantity": 48}\n',
    }
}
"""What takes a file as it is, and an example of each form."""
_DOWNLOADS: dict[str, dict[str, str]] = {
    "exportStock": {
        "text/csv": "sku,productId,warehouseId,quantityOnHand\r\nWIDGET-2,prod_01FXYZ789ABC,wh_01HXYZ789GHI,75\r\n",
        "application/x-ndjson": '{"sku": "WIDGET-2", "warehouseId": "wh_01HXYZ789GHI", "countedQuantity": 48}\n',
    },
    "downloadImportErrors": {
        "text/csv": "line,code,detail\r\n7,not_found,There is no warehouse wh_01HXYZ000XYZ.\r\n",
    },
}
"""What answers with a file, and an example of each form."""
_ABROAD: dict[str, tuple[type[InventoryError], ...]] = {
    "createInventoryItem": (ProductNotFound, ProductServiceUnavailable, ProductServiceProtocolError),
    "takeProductEvent": (ProductServiceUnavailable, ProductServiceProtocolError, OutcomeUnknown),
}
"""What else can be refused where others may be asked first."""
_CONFLICTS: dict[str, tuple[type[InventoryError], ...]] = {
    "createWarehouse": (AlreadyExists,),
    "createInventoryItem": (AlreadyExists, SkuConflict, Conflict),
    "changeStock": (InsufficientStock, SkuConflict, VersionConflict, Conflict),
    "reserve": (InsufficientStock, ItemInactive),
    "confirmReservation": (ReservationExpired, Conflict),
    "extendReservation": (ReservationExpired, Conflict),
    "fulfilReservation": (InsufficientStock, ReservationExpired, Conflict),
    **dict.fromkeys(("updateExpectedReceipt", "receiveExpectedReceipt"), (Conflict,)),
    **dict.fromkeys(("updateWarehouse", "updateInventoryItem", "updateProduct", "releaseReservation"), ()),
    **dict.fromkeys(("createExpectedReceipt", "cancelExpectedReceipt", "forceCircuit"), ()),
    **dict.fromkeys(_CLAIMED, (Conflict,)),
    **dict.fromkeys(("noteDeadLetter", "releaseBlockedEvent", "takeProductEvent", "importStock"), ()),
    "editDeadLetter": (Conflict, UnsupportedVersion),
}
_ANY_CONFLICT = (AlreadyExists, Conflict, InsufficientStock, ItemInactive, ReservationExpired, SkuConflict)
_TEXTS = {
    400: "The request is not valid.",
    401: "No acceptable token.",
    403: "The token's roles do not allow this.",
    404: "Something named does not exist.",
    408: "The body did not come in time.",
    409: "The state of the stock refuses it; `code` says why.",
    412: "If-Match does not name the current version.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    422: "The idempotency key came before with another request.",
    500: "Something went wrong in the service.",
    502: "The Product Service's answer cannot be used.",
    503: "Try again shortly.",
}
_CORRELATION_ID = "checkout-4711"


class _Operation(NamedTuple):
    """An operation: its entry in the document, and who answers it."""

    entry: dict[str, Any]
    handler: HTTPRouteHandler

    @property
    def id(self) -> str:
        return str(self.entry["operationId"])

    @property
    def writes(self) -> bool:
        return "GET" not in self.handler.http_methods

    @property
    def body(self) -> Any:
        """The type of the body, None where there is none."""
        field = self.handler.parsed_fn_signature.parameters.get("data")
        return field.annotation if field is not None else None

    @property
    def answers(self) -> dict[int, ResponseSpec]:
        return {
            status: answer
            for status, answer in (self.handler.responses or {}).items()
            if status < 300 and answer.data_container is not None
        }


def complete(app: Litestar, drawn: dict[str, Any]) -> dict[str, Any]:
    """Complete the document that Litestar has ``drawn`` of ``app``, and return it."""
    operations = list(_operations(app, drawn))
    schemas = Schemas(
        asked=[operation.body for operation in operations if operation.body is not None],
        told=[Problem, *(answer.data_container for each in operations for answer in each.answers.values())],
    )
    for operation in operations:
        entry = operation.entry
        # A docstring's first sentence stands in the list, the rest with the details.
        first, _, rest = " ".join(entry.pop("description", "").split()).partition(". ")
        entry["summary"] = first.rstrip(".")
        if rest:
            entry["description"] = rest
        entry["parameters"] = [*map(_without_null, entry.get("parameters", ())), *_request_headers(operation)]
        if operation.body is not None:
            entry["requestBody"] = _body(operation, schemas)
        if operation.id in _UPLOADS:
            entry["requestBody"] = {"content": _files(_UPLOADS[operation.id]), "required": True}
        entry["responses"] = {str(status): answer for status, answer in sorted(_responses(operation, schemas).items())}
    drawn["components"]["schemas"] = dict(sorted(schemas.components.items()))
    return drawn


def _operations(app: Litestar, drawn: dict[str, Any]) -> Iterator[_Operation]:
    for route in app.routes:
        ways = drawn["paths"].get(route.path_format, {})
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else ():
            for method in handler.http_methods:
                if handler.resolve_include_in_schema() and method.lower() in ways:
                    yield _Operation(ways[method.lower()], handler)


def _body(operation: _Operation, schemas: Schemas) -> dict[str, Any]:
    examples = {name: {"value": value} for name, value in EXAMPLES.get(operation.id, {}).items()}
    content = {"schema": schemas.of(operation.body)} | ({"examples": examples} if examples else {})
    return {"content": {"application/json": content}, "required": NoneType not in get_args(operation.body)}


def _files(forms: dict[str, str]) -> dict[str, Any]:
    return {
        name: {"schema": _TEXT | {"format": "binary"}, "examples": {"file": {"value": example}}}
        for name, example in forms.items()
    }


def _responses(operation: _Operation, schemas: Schemas) -> dict[int, dict[str, Any]]:
    responses: dict[int, dict[str, Any]] = {}
    for status, answer in operation.answers.items():
        headers = [_ECHO]
        if _TAGGED.get(operation.id) == status:
            headers.append(_ETAG | ({"required": False} if "asOf" in str(operation.entry["parameters"]) else {}))
        if operation.id in _LOCATED:
            headers.append(_LOCATION)
        content: dict[str, Any] = {"schema": schemas.of(answer.data_container)}
        if examples := _examples(answer.data_container):
            content["examples"] = examples
        described = (
            {"text/event-stream": _sent(content)} if operation.id in _STREAMED else {"application/json": content}
        )
        responses[status] = _response(answer.description, headers, described)
    if operation.id in _DOWNLOADS:
        responses[200] = _response("A file.", [_ECHO, _FILE_NAME], _files(_DOWNLOADS[operation.id]))
    if operation.id in _REMEMBERED:
        responses[304] = _response("What the caller has is current.", [_ECHO, _ETAG], None)
    for status, kinds in _by_status(_refusals(operation)).items():
        told = {kind.code: {"value": document(PROBLEMS[kind], _CORRELATION_ID)} for kind in kinds}
        content = {"schema": schemas.of(Problem), "examples": told}
        responses[status] = _response(_TEXTS[status], [_ECHO, *_REFUSAL_HEADERS.get(status, ())], {MEDIA_TYPE: content})
    return responses


def _refusals(operation: _Operation) -> Iterator[type[InventoryError]]:
    yield from (ValidationFailed, InventoryError)
    if operation.handler.security:
        yield from (Unauthorized, Forbidden)
    if operation.id not in _NEVER_AWAY:
        yield Unavailable
    names_something = "{" in str(operation.handler.paths) or operation.body is not None
    if names_something and operation.id not in _NAMES_NOTHING:
        yield NotFound
    if operation.writes:
        yield from _CONFLICTS.get(operation.id, _ANY_CONFLICT)
        yield from () if operation.id in _UNKEYED else (IdempotencyKeyReused, OutcomeUnknown)
    if operation.id in _CLAIMED:
        yield OutcomeUnknown
    yield from _ABROAD.get(operation.id, ())
    if operation.body is not None or operation.id in _UPLOADS:
        yield from (RequestTimeout, ContentTooLarge, UnsupportedMediaType)
    if operation.id in _UPLOADS:
        yield OutcomeUnknown
    if operation.id in _MATCHED:
        yield PreconditionFailed


def _by_status(kinds: Iterable[type[InventoryError]]) -> dict[int, list[type[InventoryError]]]:
    grouped: dict[int, list[type[InventoryError]]] = {}
    for kind in kinds:
        grouped.setdefault(status_of(kind), []).append(kind)
    return grouped


def _examples(envelope: Any) -> dict[str, Any]:
    """Return an example of each kind of answer there can be, by the kind's name; a stream's event has no envelope."""
    if envelope in ANSWERS:
        return {envelope.__name__: {"value": ANSWERS[envelope]}}
    examples = {}
    for kind in get_args(envelope) or (envelope,):
        data = kind.__annotations__["data"]
        listed = get_args(data)
        if (shape := listed[0] if listed else data) in ANSWERS:
            told = ANSWERS[shape]
            value = {"success": True, "data": [told] if listed else told} | ({"nextCursor": None} if listed else {})
            examples[shape.__name__] = {"value": value}
    return examples


def _sent(content: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a stream's event as it is sent: lines of text, of which ``data`` holds ours."""
    data = _TEXT | {"contentMediaType": "application/json", "contentSchema": content["schema"]}
    examples = {
        name: {
            "value": {
                "id": "4711",
                "event": example["value"].event_type,
                "data": msgspec.json.encode(example["value"]).decode(),
            }
        }
        for name, example in content["examples"].items()
    }
    schema = {"type": "object", "properties": {"id": _TEXT, "event": _TEXT, "data": data}}
    return {"schema": schema, "examples": examples}


def _without_null(parameter: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter whose absence is not called null: a query cannot say that."""
    schema = dict(parameter["schema"])
    for choice in schema.pop("oneOf", ()):
        if choice != {"type": "null"}:
            schema |= choice
    if "pattern" in schema:  # no JSON text can hold a lone surrogate, and few regular expressions can name one
        schema["pattern"] = schema["pattern"].replace(r"\ud800-\udfff", "")
    if isinstance(schema.get("type"), list):
        schema["type"] = "string"
        schema["enum"] = [value for value in schema["enum"] if value is not None]
    return parameter | {"schema": schema}


# -- headers -----------------------------------------------------------------------------------------------------------


def _request_headers(operation: _Operation) -> Iterator[dict[str, Any]]:
    yield _asks("X-Correlation-Id", "The caller's name for what it does; echoed.", r"^[ -~]{1,128}$", _CORRELATION_ID)
    if operation.writes and operation.id not in _UNKEYED:
        yield _asks("Idempotency-Key", "Repeats with the same key get the first answer.", r"^[!-~]{1,255}$", "9f4c1e")
    if operation.id in _MATCHED:
        yield _asks("If-Match", "Only if this is still the version.", r'^(\*|"[^"]*")$', '"7"')
    if operation.id in _REMEMBERED:
        yield _asks("If-None-Match", "304 if this is still the version.", None, '"7"')
    if operation.id in _STREAMED:
        yield _asks("Last-Event-ID", "Begin after the event of this id.", "^[0-9]{0,18}$", "4711")


def _asks(name: str, description: str, pattern: str | None, example: str) -> dict[str, Any]:
    schema = {"type": "string"} | ({"pattern": pattern} if pattern else {}) | {"examples": [example]}
    return {"name": name, "in": "header", "description": description, "required": False, "schema": schema}


def _tells(name: str, description: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"name": name, "description": description, "required": True, "schema": schema | {"examples": [example]}}


def _response(description: str, headers: list[dict[str, Any]], content: dict[str, Any] | None) -> dict[str, Any]:
    named = {header["name"]: {key: header[key] for key in header if key != "name"} for header in headers}
    return {"description": description, "headers": named} | ({"content": content} if content else {})


_TEXT = {"type": "string"}
_ECHO = _tells("X-Correlation-Id", "The request's own, or a name given to it.", _TEXT, _CORRELATION_ID)
_ETAG = _tells("ETag", "The version told; for If-Match and If-None-Match.", _TEXT | {"pattern": '^"[0-9.]+"$'}, '"7"')
_LOCATION = _tells("Location", "The path of what was created.", _TEXT, "/reservations/res_01HXYZ")
_FILE_NAME = _tells("Content-Disposition", "What to call the file.", _TEXT, 'attachment; filename="items.csv"')
_REFUSAL_HEADERS = {
    401: [_tells("WWW-Authenticate", "How to authenticate.", _TEXT | {"const": "Bearer"}, "Bearer")],
    503: [_tells("Retry-After", "When to try again (seconds).", {"type": "integer", "minimum": 1}, 1)],
}
