"""The outbox: committed events on their way to the broker, and the stream of those that went out."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from core.events import OutboxRow
from ports.leases import Lease

BACKLOG_MAX = 10_000
RELAY = "relay"
"""The lease of the relay, which counts the positions of the stream."""


class Backlog(Struct, frozen=True):
    """The events that wait to be published: how many, ``BACKLOG_MAX`` standing for more, and since when."""

    count: int
    oldest_at: datetime | None


class OutboxStore(Protocol):
    """Where events wait; each of a relay's steps is a short transaction of its own."""

    async def pending(self, limit: int, *, skip: Collection[str] = ()) -> list[OutboxRow]:
        """Return unpublished events: products with a waiting critical event first, then the oldest (rules R17, R18).

        Each product's come from its lowest sequence on, in order. Products in ``skip`` are left out.
        """
        ...

    async def mark_published(self, lease: Lease, rows: Sequence[OutboxRow]) -> bool:
        """Give published rows the next positions of the stream, in the order given (rule R22).

        Returns False, marking nothing, when ``lease`` is no longer ours (fencing).
        """
        ...

    async def position(self) -> int:
        """Return the position of the last published event, 0 before the first."""
        ...

    async def published(self, after: int, *, limit: int) -> list[OutboxRow]:
        """Return published events beyond a position, in the order of theirs.

        Everything at or before the last one's position is published; what is no longer kept leaves a gap at the
        beginning.
        """
        ...

    async def backlog(self) -> Backlog:
        """Measure what waits to be published. Cheap at any length."""
        ...

    async def announce(self) -> None:
        """Wake the relay, wherever it runs. Best effort: polling is the net (rule R18)."""
        ...

    def announcements(self) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Yield once for every announcement, several in quick succession counting as one; best effort."""
        ...
