"""HTTP on bare streams, as much of it as the stand-in needs: a server would let nobody break off an answer."""

import asyncio
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from msgspec import Struct

HEAD_MAX, BODY_MAX = 16 * 1024, 256 * 1024
REASONS = {
    200: "OK",
    201: "Created",
    302: "Found",
    303: "See Other",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Content Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, list[str]]:
        """What stands behind the question mark."""
        return parse_qs(urlsplit(self.path).query)

    @property
    def form(self) -> dict[str, list[str]]:
        """What a form has sent; bytes that are no text are replaced."""
        return parse_qs(self.body.decode(errors="replace"))


class Answer(Struct, frozen=True, kw_only=True):
    """An answer about to be sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}


async def read(reader: asyncio.StreamReader) -> Request | None:
    """Read a request; None where the caller has gone or says nothing this understands."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if length > BODY_MAX or "transfer-encoding" in headers:
        return None
    return Request(method, path, headers, await reader.readexactly(length))


async def send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """Send an answer whole."""
    writer.write(head(answer.status, len(answer.body), answer.headers) + answer.body)
    await writer.drain()


def head(status: int, length: int | None, headers: dict[str, str]) -> bytes:
    """Return what comes before the body; without a length, the body ends with the connection."""
    lines = {"Content-Type": "application/json"} | ({} if length is None else {"Content-Length": str(length)}) | headers
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} {REASONS[status]}\r\n{text}\r\n".encode()
