"""What a question to the Product Service costs through our client, and through bare httpx2: calls one after another.

``ours | bare COUNT URL`` prints how long a call takes (seconds). ``serve PORT`` answers every GET with one product
until it is ended; it says ``ready`` when it does.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import httpx2
import msgspec
import uvloop

from adapters.product_service import open_catalog

_BODY = b'{"success":true,"data":{"id":"prod_1","sku":"MUG","name":"Mug"}}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
_WARM = 50


async def ours(url: str, count: int) -> float:
    """Through the adapter: token, deadline, circuit, size, shape."""
    async with open_catalog(url, token=lambda: "token") as catalog:
        return await _timed(lambda: catalog.product("prod_1"), count)


async def bare(url: str, count: int) -> float:
    """A GET with a token, and JSON decoded."""
    async with httpx2.AsyncClient(trust_env=False) as client:

        async def call() -> object:
            answer = await client.get(f"{url}/products/prod_1", headers={"authorization": "Bearer token"})
            return msgspec.json.decode(answer.content)

        return await _timed(call, count)


async def _timed(call: Callable[[], Awaitable[object]], count: int) -> float:
    for _ in range(_WARM):
        await call()
    began = time.perf_counter()
    for _ in range(count):
        await call()
    return (time.perf_counter() - began) / count


async def serve(port: int) -> None:
    """Answer until standard input ends."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(_ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port)
    async with server:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print("null")


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "serve":
        uvloop.run(serve(int(arguments[0])))
    else:
        print(json.dumps(uvloop.run({"ours": ours, "bare": bare}[kind](arguments[1], int(arguments[0])))))
