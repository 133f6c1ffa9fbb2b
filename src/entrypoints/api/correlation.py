"""The outermost layer: every request, routed or not, gets its ids, its log context and one line in the access log.

``X-Correlation-Id`` is the caller's name for what it does across services; it comes back in the answer, in errors, in
events and in the log. One that is not 1 to 128 printable ASCII characters is refused, because passing it on mutilated
would link nothing. Without one, the request's own id stands in, in answers and log only (rule R16).
"""

import re
from time import perf_counter
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from adapters.telemetry import log_request
from core.errors import ValidationFailed
from core.ids import new_request_id
from entrypoints.api import problems
from entrypoints.api.headers import header

_PRINTABLE = re.compile(r"[\x20-\x7e]{1,128}")


class Correlation:
    """Wraps an ASGI application.

    Leaves in ``scope["state"]``: ``request_id``, ``caller_correlation_id`` (None without one), ``correlation_id`` (what
    is echoed), and whatever else it was given for every request.
    """

    def __init__(self, app: ASGIApp, **state: Any) -> None:
        """Wrap ``app`` and give every request ``state``."""
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        # A new dict, whatever the server put there: some share one between requests.
        state = scope["state"] = {**self._state}
        app = self._app
        given = None
        try:
            given = _given(scope)
        except ValidationFailed as error:
            app = _refusal(error)
        request_id = new_request_id()
        echoed = given or request_id
        state |= {"request_id": request_id, "caller_correlation_id": given, "correlation_id": echoed}
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-correlation-id", echoed.encode())]
            await send(message)

        tokens = bind_contextvars(correlation_id=echoed, request_id=request_id)
        started = perf_counter()
        try:
            await app(scope, receive, answer)
        finally:
            log_request(_line(scope, status, started))
            reset_contextvars(**tokens)


def _given(scope: Scope) -> str | None:
    value = header(scope, "x-correlation-id")
    if value is not None and _PRINTABLE.fullmatch(value) is None:
        raise ValidationFailed("X-Correlation-Id must be 1 to 128 printable ASCII characters.")
    return value


def _refusal(error: ValidationFailed) -> ASGIApp:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await problems.reply(error, scope)(scope, receive, send)

    return refuse


def _line(scope: Scope, status: int, started: float) -> dict[str, Any]:
    """Return what the log tells of a request: never its path, query or body, which may hold anything."""
    state: dict[str, str] = scope["state"]
    user = scope.get("user")
    return {
        "correlation_id": state["correlation_id"],
        "request_id": state["request_id"],
        "method": scope.get("method"),
        "route": scope.get("path_template"),
        "status": status,
        "ms": round((perf_counter() - started) * 1000, 2),
        "subject": user.subject if user is not None else None,
    }
