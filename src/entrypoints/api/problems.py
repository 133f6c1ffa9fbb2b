"""Everything that can go wrong, in one shape: problem documents (RFC 9457).

They carry ``success``, ``code`` and ``correlationId`` as well. This module holds the one table from error to HTTP
status (rule R27).
"""

import re
from math import ceil
from typing import Any, Literal

import msgspec
import structlog
from litestar import Request, Router, get
from litestar.config.app import AppConfig
from litestar.exceptions import HTTPException, ValidationException
from litestar.params import FromPath
from litestar.plugins import InitPlugin
from litestar.response import Response
from litestar.types import Scope
from msgspec import Struct

from core.errors import (
    KINDS,
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    InventoryError,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    ProductServiceProtocolError,
    Unauthorized,
    Unavailable,
    ValidationFailed,
)
from entrypoints.api.replies import Reply, answers, ok

MEDIA_TYPE = "application/problem+json"
_REGEX = re.compile(r"matching regex '.*'")
_log = structlog.get_logger("api")


class MethodNotAllowed(InventoryError):
    """The path exists, this method on it does not; the Allow header names those that do."""

    code = "method_not_allowed"
    title = "The method is not allowed here"


class RequestTimeout(InventoryError):
    """The body did not come in time and nothing was done; send the request again, with the same idempotency key."""

    code = "request_timeout"
    title = "The body did not come in time"


class ContentTooLarge(InventoryError):
    """The body is larger than this route reads; split it."""

    code = "content_too_large"
    title = "The body is too large"


class UnsupportedMediaType(InventoryError):
    """The body is not ``application/json``, or it is compressed; send it as plain JSON."""

    code = "unsupported_media_type"
    title = "The body's type is not supported"


STATUS: dict[type[InventoryError], int] = {
    InventoryError: 500,
    ValidationFailed: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    Conflict: 409,
    PreconditionFailed: 412,
    ContentTooLarge: 413,
    UnsupportedMediaType: 415,
    IdempotencyKeyReused: 422,
    ProductServiceProtocolError: 502,
    Unavailable: 503,
    OutcomeUnknown: 503,
}
_KINDS = {401: Unauthorized, 403: Forbidden, 404: NotFound, 405: MethodNotAllowed, 409: Conflict, 413: ContentTooLarge}
_SENTENCES = {
    404: "There is nothing at this path; GET /schema lists what there is.",
    405: "This path does not take this method; the Allow header names those it takes.",
    413: "The body is too large; send fewer operations at a time.",
}


class Problem(Struct, rename="camel", kw_only=True):
    """An error; further members hold the numbers behind ``detail``."""

    type: str
    title: str
    status: int
    detail: str
    success: Literal[False] = False
    code: str
    correlation_id: str


class ProblemKind(Struct, frozen=True, rename="camel"):
    """What a problem's ``type`` stands for."""

    type: str
    code: str
    title: str
    status: int
    description: str


class ProblemsPlugin(InitPlugin):
    """Answers every exception with a problem document, and explains the documents' types."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Take over all exceptions."""
        app_config.exception_handlers = {Exception: _answer}
        app_config.route_handlers.append(Router("/problems", route_handlers=[explain], tags=["Service"]))
        return app_config


@get("/{name:str}", operation_id="explainProblem", responses=answers(ProblemKind, name="ProblemKindSuccess"))
async def explain(name: FromPath[str]) -> Reply:
    """Say what the problem type `/problems/{name}` means."""
    code = name.replace("-", "_")
    kind = next((kind for kind in _kinds() if kind.code == code), None)
    if kind is None:
        raise NotFound("There is no problem of that name.")
    description = " ".join((kind.__doc__ or "").split())
    return ok(ProblemKind(type_of(kind), kind.code, kind.title, status_of(kind), description))


def type_of(kind: type[InventoryError]) -> str:
    """Return the URI reference that names a kind of error."""
    return f"/problems/{kind.code.replace('_', '-')}"


def status_of(kind: type[InventoryError]) -> int:
    """Return the HTTP status of a kind of error: its own in the table, or that of the next class up."""
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def document(error: InventoryError, correlation_id: str) -> dict[str, Any]:
    """Return ``error`` as a problem document; ``extra`` adds members and never replaces one."""
    members = {
        "type": type_of(type(error)),
        "title": error.title,
        "status": status_of(type(error)),
        "detail": error.detail,
        "success": False,
        "code": error.code,
        "correlationId": correlation_id,
    }
    return members | {_camel(name): value for name, value in error.extra.items() if name not in members}


def reply(error: InventoryError, scope: Scope) -> Reply:
    """Return the HTTP answer for ``error``."""
    state: dict[str, Any] = scope["state"]
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, Unavailable | OutcomeUnknown):
        headers.append((b"retry-after", b"%d" % max(ceil(error.extra.get("retry_after", 1)), 1)))
    body = msgspec.json.encode(document(error, state["correlation_id"]))
    return Reply(body, status=status_of(type(error)), media_type=MEDIA_TYPE.encode(), headers=headers)


def _answer(request: Request[Any, Any, Any], exc: Exception) -> Response[Any]:
    answer = reply(_understood(exc, request.scope), request.scope)
    if isinstance(exc, HTTPException) and exc.headers:
        answer.add_headers(exc.headers)
    return answer.as_response()


def _understood(exc: Exception, scope: Scope) -> InventoryError:
    if isinstance(exc, InventoryError) and STATUS[InventoryError] != status_of(type(exc)):
        return exc
    if isinstance(exc, ValidationException) and isinstance(exc.extra, list):
        return _parameters_failed(exc.extra, scope)
    if isinstance(exc, HTTPException) and exc.status_code < STATUS[InventoryError]:
        sentence = _SENTENCES.get(exc.status_code, f"{exc.detail.removesuffix('.')}.")
        return _KINDS.get(exc.status_code, ValidationFailed)(sentence)
    # What went wrong is for the log alone: it may hold anything.
    _log.error("unexpected error", exc_info=exc, path=scope.get("path_template"))
    return InventoryError("Something went wrong in the service; its log has it under this correlation id.")


def _parameters_failed(faults: list[Any], scope: Scope) -> InventoryError:
    if any(fault.get("source") == "path" for fault in faults):
        return NotFound("An id in this path has a form that no id has, so it names nothing.")
    if any(fault.get("source") == "body" for fault in faults):
        return ValidationFailed("This needs a body: send a JSON object.")
    fields = scope["route_handler"].parsed_fn_signature.parameters
    names = [getattr(fields[fault["key"]].kwarg_definition, "name", None) or fault["key"] for fault in faults]
    sentences = [f"{name}: {readable(fault['message'])}." for name, fault in zip(names, faults, strict=True)]
    return ValidationFailed("Query parameter " + " Query parameter ".join(sentences))


def readable(message: str) -> str:
    """Return a message of msgspec's without the regular expression, which explains nothing to most readers."""
    return _REGEX.sub("of the form that /schema documents", message)


def _kinds() -> list[type[InventoryError]]:
    return [*KINDS.values(), MethodNotAllowed, RequestTimeout, ContentTooLarge, UnsupportedMediaType]


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.title() for word in rest)
