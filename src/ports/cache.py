"""The cache: what was read lately, near to whoever reads it next, and never newer or older than it says.

Nothing here is ever deleted to make it fresh: a slow reader would put the old value back. Instead every value carries
its revision, and a change raises the *floor* under a key, below which no value is kept (rule R23). A cache may be lost,
slow or wrong at any time; the store is the truth.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct

FLOOR_SECONDS = 600.0
"""How long a floor is kept: longer than any value lives and any reader takes to put one."""


class Entry(Struct, frozen=True):
    """A value, what revision of it this is, and for how many seconds it may still be used."""

    revision: int
    body: bytes
    seconds: float


class Change(Struct, frozen=True):
    """Floors that were raised, by this process or another.

    Every floor that anybody raised before ``as_of`` (``time.monotonic()``) has been told by now: a sign of life where
    ``floors`` is empty.
    """

    floors: Mapping[str, int]
    as_of: float


class Cache(Protocol):
    """A cache of versioned values. Safe to use from many tasks of one event loop."""

    async def get(self, keys: Collection[str]) -> dict[str, Entry]:
        """Return the values there are. A cache that is away, slow or confused has none; it never raises.

        It costs 0.2 seconds at most, and after such a failure nothing for 5 seconds. What a value is worth is for the
        reader to check: a body may be anything.
        """
        ...

    async def put(self, entries: Mapping[str, Entry]) -> None:
        """Keep values for their seconds, each unless a newer one, or a floor above it, is there. Never raises."""
        ...

    async def raise_floors(self, floors: Mapping[str, int]) -> None:
        """Let no value below these revisions be kept, and tell every process; floors only rise.

        Raises:
            Unavailable: it may not have been done; do it again, it is idempotent.
        """
        ...

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Hear of every floor raised from now on, with signs of life, until the block is left.

        Raises:
            Unavailable: there is no connection; or, from the iterator, it was lost. What was raised meanwhile is not
                told: nothing that was kept on the strength of this may be trusted any more.
        """
        ...

    async def ping(self) -> None:
        """Return when the cache answers.

        Raises:
            Unavailable: it does not.
        """
        ...
