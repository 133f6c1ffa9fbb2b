"""Events that cannot go out, and events that are to go out again: the exceptions of the relay's work.

The part of the store that keeps them; what the relay does all day is in ``outbox.py``.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from core.acts import Act
from core.events import OutboxRow
from core.fields import Instant, Level, ProductId, in_utc
from ports.leases import Lease

ReplayStatus = Literal["RUNNING", "DONE", "CANCELLED"]


class BlockedEvent(Struct, frozen=True, rename="camel", kw_only=True):
    """An event that no broker takes. It holds back ``waiting`` events, all of its own product."""

    event_id: str
    event_type: str
    product_id: str
    sequence: int
    bytes: int
    reason: str
    created_at: datetime
    blocked_at: datetime
    waiting: int


class ReplayRange(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Which published events: all bounds narrow, the first of two included; ``until`` is excluded."""

    from_position: Level | None = None
    to_position: Level | None = None
    since: Instant | None = None
    until: Instant | None = None
    product_id: ProductId | None = None

    def __post_init__(self) -> None:
        in_utc(self, "since", "until")


class Replay(Struct, frozen=True, rename="camel", kw_only=True):
    """Published events going out again, with the same eventIds, in the order of their positions.

    ``position`` is the last one that went out again, ``published`` how many of ``total`` did.
    """

    id: str
    status: ReplayStatus
    actor: str
    reason: str | None
    product_id: str | None
    from_position: int
    to_position: int
    position: int
    total: int
    published: int
    started_at: datetime
    ended_at: datetime | None


class ReplayStore(Protocol):
    """Where the outbox's exceptions are kept. What takes a lease does nothing once that is another's (fencing)."""

    async def block(self, lease: Lease, row: OutboxRow, reason: str) -> bool:
        """Let ``pending`` leave out the event, and its product's later ones, until it is released.

        Returns False, having done nothing, when ``lease`` is no longer ours.
        """
        ...

    async def blocked(self, limit: int) -> list[BlockedEvent]:
        """Return the blocked events, the longest blocked first."""
        ...

    async def release_blocked(self, event_id: str, act: Act, *, skip: bool) -> BlockedEvent:
        """Have a blocked event tried again, or, to ``skip`` it, never published; then its product's events go on.

        Raises:
            NotFound: there is no blocked event of that id (any more).
        """
        ...

    async def begin_replay(self, chosen: ReplayRange, act: Act) -> Replay:
        """Have published events published again by whoever relays.

        Raises:
            Conflict: no published event that is still kept is in the range.
        """
        ...

    async def open_replay(self) -> Replay | None:
        """Return the oldest replay that has not ended."""
        ...

    async def replayed(self, replay: Replay, limit: int) -> list[OutboxRow]:
        """Return the next events of a replay."""
        ...

    async def advance_replay(self, lease: Lease, replay: Replay, rows: Sequence[OutboxRow]) -> bool:
        """Record that these went out again, or, none, that it is done.

        Returns False, having done nothing, when ``lease`` is no longer ours.
        """
        ...

    async def cancel_replay(self, id: str, act: Act) -> Replay:
        """End a replay.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended.
        """
        ...

    async def replay(self, id: str) -> Replay | None:
        """Return a replay as it stands."""
        ...

    async def replays(self, limit: int) -> list[Replay]:
        """Return the last replays, newest first."""
        ...
