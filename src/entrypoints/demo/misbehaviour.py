"""What the stand-in can do wrong, on command: every way in which a real Product Service, or its proxy, has failed.

On bare streams, because an HTTP server lets nobody break off an answer or reset a connection.
"""

import asyncio
from typing import Annotated, Literal

from msgspec import Meta, Struct

from entrypoints.demo.wire import Answer, head, send

HUGE_BYTES = 50 * 1024 * 1024
Fault = Literal[
    "slow",
    "error",
    "busy",
    "garbage",
    "truncated",
    "wrong-id",
    "redirect",
    "huge",
    "hang",
    "reset",
    "missing",
    "deaf",
]


class Misbehaviour(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A fault, on every path that begins with ``path``, for the next ``times`` requests or until it is taken back.

    ``seconds`` is how long "slow" takes before it answers well, and what "busy" (429) says in Retry-After. "missing"
    is 404 for everything, "wrong-id" a product that was not asked for. "deaf" answers well, and does not hear the next
    ``times`` events of the Inventory Service.
    """

    fault: Fault
    seconds: Annotated[float, Meta(ge=0, le=600)] = 1.0
    path: str = "/"
    times: Annotated[int, Meta(ge=1)] | None = None


async def spoil(fault: Misbehaviour, good: Answer, writer: asyncio.StreamWriter) -> bool:
    """Send what the fault makes of a good answer; return whether the connection can be used further."""
    match fault.fault:
        case "slow":
            await asyncio.sleep(fault.seconds)
            await send(writer, good)
        case "hang":
            await asyncio.sleep(600)
        case "reset":
            writer.write(head(200, 1_000, {}) + b'{"success":')
            writer.transport.abort()
        case "truncated":
            writer.write(head(200, len(good.body), {}) + good.body[: len(good.body) // 2])
            return False
        case "huge":
            await _send_huge(writer)
        case _:
            await send(writer, _wrong(fault, good))
    return fault.fault not in ("hang", "reset", "huge")


def _wrong(fault: Misbehaviour, good: Answer) -> Answer:
    """Return an answer that is whole, and bad."""
    match fault.fault:
        case "busy":
            return Answer(status=429, body=b"Slow down", headers={"Retry-After": f"{fault.seconds:g}"})
        case "garbage":
            return Answer(body=b"<html><body>Welcome to nginx!</body></html>", headers={"Content-Type": "text/html"})
        case "wrong-id":
            return Answer(body=b'{"success":true,"data":{"id":"prod_SOMETHINGELSE","sku":"ELSE","name":"Else"}}')
        case "redirect":
            return Answer(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})
        case "missing":
            return Answer(status=404, body=b'{"success":false,"error":{"code":"NOT_FOUND"}}')
        case _:
            return Answer(status=500, body=b"Internal Server Error", headers={"Content-Type": "text/plain"})


async def _send_huge(writer: asyncio.StreamWriter) -> None:
    writer.write(head(200, HUGE_BYTES, {}) + b'{"success":true,"data":{"name":"')
    for _ in range(HUGE_BYTES // 65_536):
        writer.write(b"x" * 65_536)
        await writer.drain()
