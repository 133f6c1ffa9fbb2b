"""Answers: one envelope, encoded once.

Litestar's own responses carry cookies, background tasks and a media type negotiation that no route here needs; leaving
them out halves the framework's share of a request.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from ports.store import Page

JSON = b"application/json"
_encode = msgspec.json.Encoder().encode


class Reply(ASGIResponse):
    """A finished answer: status, headers, bytes."""

    __slots__ = ("_headers", "_payload", "_status")

    def __init__(
        self,
        payload: bytes,
        *,
        status: int = 200,
        media_type: bytes = JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Keep what is to be sent; the base class's preparations are not needed."""
        self._payload = payload
        self._status = status
        self._headers = [*headers]
        if status not in (204, 304):
            self._headers += [(b"content-type", media_type), (b"content-length", b"%d" % len(payload))]

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Send these headers too."""
        self._headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    def as_response(self) -> Response[Any]:
        """Return it as what Litestar expects of an exception handler."""
        return _Ready(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._payload, "more_body": False})


class _Ready(Response[Any]):
    def __init__(self, reply: Reply) -> None:
        super().__init__(content=None)
        self._reply = reply

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> ASGIResponse:
        return self._reply


class Success(Struct):
    """The envelope of every successful answer."""

    success: bool
    data: Any


class Listing(Struct, rename="camel"):
    """The envelope of every list; ``next_cursor`` is null on the last page."""

    success: bool
    data: Any
    next_cursor: str | None


def ok(data: Any, *, status: int = 200, version: int | str | None = None, location: str | None = None) -> Reply:
    """Return ``data`` in its envelope; ``version`` becomes the ETag, ``location`` the path of what was created."""
    headers = []
    if version is not None:
        headers.append((b"etag", f'"{version}"'.encode()))
    if location is not None:
        headers.append((b"location", location.encode()))
    return Reply(_encode(Success(True, data)), status=status, headers=headers)


def page(rows: Page[Any]) -> Reply:
    """Return a page of a list."""
    return Reply(_encode(Listing(True, rows.rows, rows.next_cursor)))


def not_modified(version: int | str) -> Reply:
    """Tell the caller that what it has is current."""
    return Reply(b"", status=304, headers=[(b"etag", f'"{version}"'.encode())])


def answers(
    data: Any, *, name: str, status: int = 200, listed: bool = False, then: Any = None
) -> dict[int, ResponseSpec]:
    """Describe an envelope around ``data`` for the OpenAPI document, under a ``name`` of its own.

    ``then`` is what ``asOf`` asks for, in an envelope of its own.
    """
    envelope = _envelope(name, data, listed=listed)
    if then is not None:
        envelope |= _envelope(f"{name}AsOf", then, listed=False)
    return {status: ResponseSpec(envelope, description="Done.", generate_examples=False)}


@cache
def _envelope(name: str, data: Any, *, listed: bool) -> Any:
    fields: list[tuple[str, Any]] = [("success", Literal[True]), ("data", list[data] if listed else data)]
    if listed:
        fields.append(("nextCursor", str | None))
    return msgspec.defstruct(name, fields)
