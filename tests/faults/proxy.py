"""A way to a server that goes bad on command: slow, shut, silent, reset, half open, in slices, or cut on a frame.

Clients are given its URL instead of the server's. What is told to it holds for the connections there are and for new
ones, until it is told something else; a cut happens once.
"""

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from private_server import LOOPBACK

Direction = Literal["up", "down"]
"""Up is to the server, down to the client."""

COMMIT = b"COMMIT;"
"""Up: PostgreSQL is asked to commit."""
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""Down: PostgreSQL has committed (``CommandComplete``)."""
PUBLISH = b"\x00\x3c\x00\x28"
"""Up: AMQP's ``Basic.Publish``."""
ACK = b"\x00\x3c\x00\x50"
"""AMQP's ``Basic.Ack``: down the broker confirms, up a consumer acknowledges."""
DELIVER = b"\x00\x3c\x00\x3c"
"""Down: AMQP's ``Basic.Deliver``."""


class Cut(NamedTuple):
    """At these bytes the connection breaks; they and what follows do not get through.

    ``half`` breaks the client's end only: the server does not learn of it. ``hold`` breaks nothing: from these bytes
    on the way is a black hole.
    """

    direction: Direction
    at: bytes
    half: bool = False
    hold: bool = False


class Link(NamedTuple):
    """The two ends of one connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter


class Proxy:
    """Forwards connections to the server of a URL, which is on this machine.

    Attributes:
        url: the server's, as seen through here.
        latency: how long everything is held up on each way (seconds), plus up to half of that by chance.
        slice_bytes: into how small pieces what passes is cut; 0 for as it comes.
        passable: whether new connections are let in.
        next_cut: where to cut; None once it is done, and ``was_cut`` is set then.
        flip: the bytes of which the next occurrence has a bit flipped in its last byte; None once it is done.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._links: set[Link] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.latency = 0.0
        self.slice_bytes = 0
        self.passable = True
        self.next_cut: Cut | None = None
        self.was_cut = asyncio.Event()
        self.flip: tuple[Direction, bytes] | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        self.url: str = self._target._replace(netloc=f"{user}@{LOOPBACK}:{port}").geturl()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.heal()
        self.reset()
        await asyncio.sleep(0.05)

    @property
    def connections(self) -> int:
        """How many go through it."""
        return len(self._links)

    def heal(self) -> None:
        """Be a good way again; what was held back goes on its way."""
        self.latency, self.slice_bytes, self.passable, self.next_cut, self.flip = 0.0, 0, True, None, None
        self._open.set()

    def black_hole(self) -> None:
        """Swallow everything without a word, connections stay; a heal delivers it late, as a network would."""
        self._open.clear()

    def reset(self) -> None:
        """Break every connection, at both ends, without a goodbye."""
        for link in self._links:
            _break(link.client, link.server)

    def shut(self) -> None:
        """Break every connection and let none in."""
        self.passable = False
        self.reset()

    def forsake(self) -> None:
        """Break every connection at the server's end only: the client is told nothing and talks into the void."""
        for link in self._links:
            _break(link.server)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if not self.passable:
            _break(to_client)
            return
        with suppress(OSError):
            from_server, to_server = await asyncio.open_connection(LOOPBACK, self._target.port)
            link = Link(to_client, to_server)
            self._links.add(link)
            try:
                # When one way ends the other may go on: half open is a state, too.
                await asyncio.gather(self._pump(from_client, link, "up"), self._pump(from_server, link, "down"))
            finally:
                self._links.discard(link)
                to_server.close()
        to_client.close()

    async def _pump(self, reader: asyncio.StreamReader, link: Link, direction: Direction) -> None:
        end = link.server if direction == "up" else link.client
        with suppress(OSError):
            while data := await reader.read(65_536):
                if self.latency:
                    await asyncio.sleep(self.latency * random.uniform(1.0, 1.5))
                await self._open.wait()
                if self._cut(data, link, direction):
                    return
                await self._open.wait()
                with suppress(OSError):  # where the end has gone it goes into the void
                    await self._write(end, self._flipped(data, direction))
        if not end.is_closing() and not (direction == "down" and link.server.is_closing()):
            end.close()

    async def _write(self, end: asyncio.StreamWriter, data: bytes) -> None:
        size = self.slice_bytes or len(data)
        for start in range(0, len(data), size):
            end.write(data[start : start + size])
            await end.drain()

    def _cut(self, data: bytes, link: Link, direction: Direction) -> bool:
        cut = self.next_cut
        if cut is None or cut.direction != direction or cut.at not in data:
            return False
        self.next_cut = None
        self.was_cut.set()
        if cut.hold:
            self.black_hole()
            return False
        _break(link.client, *[link.server] * (not cut.half))
        return True

    def _flipped(self, data: bytes, direction: Direction) -> bytes:
        if self.flip is None or self.flip[0] != direction or (found := data.find(self.flip[1])) < 0:
            return data
        place = found + len(self.flip[1]) - 1
        self.flip = None
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _break(*ends: asyncio.StreamWriter) -> None:
    for end in ends:
        with suppress(OSError):
            # With nothing to linger for, closing is a reset.
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.transport.abort()
