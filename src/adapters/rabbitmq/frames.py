"""What is done to AMQP frames before pamqp reads them: one message that it cannot read must not stop all others.

Anybody who may publish can send properties that are no UTF-8, or a time in the year 584,556,019, and the broker passes
them on. pamqp's answer would end the connection, the message would come again at once, and so on for ever.
"""

import asyncio
import logging

from pamqp.constants import FRAME_HEADER, FRAME_HEADER_SIZE
from pamqp.header import ContentHeader

FLAGS = slice(12, 14)
"""Where a content header says which properties follow."""

log = logging.getLogger(__name__)


class FrameReader:
    """Reads for aiormq, which asks for a frame in three pieces: its type, its channel and length, the rest."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._head = b""

    def at_eof(self) -> bool:
        """Whether there is nothing more to read."""
        return self._reader.at_eof()

    async def read(self) -> bytes:
        """Read all there is."""
        return await self._reader.read()

    async def readexactly(self, size: int) -> bytes:
        """Read so many bytes."""
        piece = await self._reader.readexactly(size)
        if len(self._head) < FRAME_HEADER_SIZE:
            self._head += piece
            return piece
        kind, self._head = self._head[0], b""
        return _legible(piece) if kind == FRAME_HEADER else piece


def _legible(header: bytes) -> bytes:
    """Return the content header as it is if it can be read, else one of the same size that lists no properties."""
    try:
        ContentHeader().unmarshal(header[:-1])
    except Exception as error:  # whatever it is, pamqp would fail in the same way
        log.warning("A message has properties that cannot be read, and is taken without: %s", error)
        blank = bytearray(header)
        blank[FLAGS] = bytes(2)
        return bytes(blank)
    return header
