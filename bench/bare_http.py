"""The least that the service's HTTP could cost: ``python bare_http.py PORT FILE`` answers the file's bytes.

Granian is embedded as in ``inventory serve``; there are no tokens, no log, no use case.
"""

import asyncio
import sys
from pathlib import Path

from litestar import Litestar, MediaType, Response, get, post
from litestar.params import FromPath, FromQuery
from msgspec.structs import replace

from entrypoints.config import Config
from entrypoints.processes import process
from entrypoints.processes.serve import HttpServer, listen


def app(answer: bytes) -> Litestar:
    """Return the bare routes, two to read and one to write, under the service's paths."""

    @get("/inventory-items/by-product/{product_id:str}")
    async def read(product_id: FromPath[str]) -> Response[bytes]:
        return Response(answer, media_type=MediaType.JSON)

    @get("/inventory-items/{item_id:str}/availability")
    async def available(item_id: FromPath[str], quantity: FromQuery[int]) -> Response[bytes]:
        return Response(answer, media_type=MediaType.JSON)

    @post("/reservations")
    async def write() -> Response[bytes]:
        return Response(answer, media_type=MediaType.JSON)

    return Litestar([read, available, write], openapi_config=None, logging_config=None)


async def main(stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    server = HttpServer(app(ANSWER), listen(replace(Config(), port=int(PORT))))
    serving = asyncio.create_task(server.serve())
    await stop.wait()
    server.stop()
    await serving


if __name__ == "__main__":
    PORT, FILE = sys.argv[1:]
    ANSWER = Path(FILE).read_bytes()
    process.run(main)
