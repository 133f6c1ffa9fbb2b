"""Many who follow the live events: ``python listeners.py URL COUNT TOKEN…``, until its standard input closes.

It says ``ready`` once everybody listens, and in the end prints, for each event and client, the milliseconds from the
instant in the event to its arrival. Only one in ten clients reads what it gets; the others just take it.
"""

import asyncio
import json
import os
import sys
import time
from datetime import datetime
from urllib.parse import urlsplit

import uvloop

_READ = 10


class Follower(asyncio.Protocol):
    """One client: bare HTTP, because a thousand of anything else would be what is measured."""

    def __init__(self, request: bytes, *, reads: bool) -> None:
        self._request = request
        self._reads = reads
        self.arrived: list[tuple[float, bytes]] = []
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            if b"retry:" in data:
                self.ready.set_result(None)
        elif self._reads:
            self.arrived.append((time.time(), data))


async def main(url: str, count: int, tokens: list[str]) -> None:
    at = urlsplit(url)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, lambda: os.read(0, 64) or closed.set())
    followers = []
    for number in range(count):
        head = (
            f"GET /events HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {tokens[number % len(tokens)]}\r\n\r\n"
        )
        follower = Follower(head.encode(), reads=number % _READ == 0)
        await asyncio.get_running_loop().create_connection(lambda each=follower: each, at.hostname, at.port)
        await asyncio.wait_for(follower.ready, 30)
        followers.append(follower)
    print("ready", flush=True)
    await closed.wait()
    print(json.dumps([delay for follower in followers for delay in _delays(follower.arrived)]))


def _delays(arrived: list[tuple[float, bytes]]) -> list[float]:
    found = []
    for at, data in arrived:
        for line in data.split(b"\n"):
            if line.startswith(b"data: {"):
                told = datetime.fromisoformat(json.loads(line[6:])["timestamp"]).timestamp()
                found.append((at - told) * 1000)
    return found


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
