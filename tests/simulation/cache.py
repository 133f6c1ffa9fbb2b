"""A shared cache that is slow, forgets floors and values, and lets signs of life come late or not at all."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from simulation.virtual import Process
from simulation.world import World

from core.errors import Unavailable
from ports.cache import Change, Entry

_SIGN_SECONDS = 0.15


class SharedCache:
    """What is kept, and who listens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kept: dict[str, Entry] = {}
        self.listeners: dict[Process, asyncio.Queue[dict[str, int] | None]] = {}

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Keep what is not older than what is kept."""
        for key, entry in entries.items():
            if key not in self.kept or entry.revision >= self.kept[key].revision:
                self.kept[key] = entry

    def raise_floors(self, floors: Mapping[str, int]) -> None:
        """Let nothing below be kept, and tell."""
        for key, floor in floors.items():
            if key not in self.kept or floor > self.kept[key].revision:
                self.kept[key] = Entry(floor, b"", 600.0)
        for listener in self.listeners.values():
            listener.put_nowait(dict(floors))

    def forget(self) -> None:
        """Lose everything, as a cache may that was started again: floors too."""
        self.world.tell("cache", "forgets everything")
        self.kept.clear()
        for process in [*self.listeners]:
            self.disconnect(process)

    def disconnect(self, process: Process) -> None:
        """End a subscription."""
        if (listener := self.listeners.pop(process, None)) is not None:
            listener.put_nowait(None)


class SimulatedCache:
    """See ``ports.cache.Cache``: what one process has of it."""

    def __init__(self, world: World, cache: SharedCache, process: Process) -> None:
        self._world = world
        self._cache = cache
        self._process = process

    async def get(self, keys: Collection[str]) -> dict[str, Entry]:
        """See the port."""

        def get() -> dict[str, Entry]:
            return {key: self._cache.kept[key] for key in sorted(keys) if key in self._cache.kept}

        try:
            found = await self._world.ask(self._process, "cache", "get from the cache", get)
        except Unavailable:
            return {}
        return {key: entry for key, entry in found.items() if entry.body}

    async def put(self, entries: Mapping[str, Entry]) -> None:
        """See the port."""
        try:
            await self._world.ask(self._process, "cache", "put into the cache", lambda: self._cache.put(entries))
        except Unavailable:
            return

    async def raise_floors(self, floors: Mapping[str, int]) -> None:
        """See the port."""
        raised = dict(floors)
        await self._world.ask(self._process, "cache", "raise floors", lambda: self._cache.raise_floors(raised))

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        """See the port."""
        listener: asyncio.Queue[dict[str, int] | None] = asyncio.Queue()
        await self._world.ask(
            self._process, "cache", "subscribe", lambda: self._cache.listeners.__setitem__(self._process, listener)
        )
        yield _Told(listener)


class _Told:
    """Floors as they were told; a sign of life is as old as the queue was empty."""

    def __init__(self, listener: "asyncio.Queue[dict[str, int] | None]") -> None:
        self._listener = listener
        self._as_of = time.monotonic()

    def __aiter__(self) -> "_Told":
        return self

    async def __anext__(self) -> Change:
        floors: dict[str, int] | None = {}
        try:
            async with asyncio.timeout(_SIGN_SECONDS):
                floors = await self._listener.get()
        except TimeoutError:
            pass
        if floors is None:
            raise Unavailable("The subscription was lost.")
        if self._listener.empty():
            self._as_of = time.monotonic()
        return Change(floors, self._as_of)
