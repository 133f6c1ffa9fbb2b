"""Published events as they come, for many who listen: one reader of the stream, one encoded frame for all of them.

Positions are the relay's (rule R22): gapless and in order, so that whoever says where it was is told everything since,
by any process. Nobody waits for a slow listener: it is dropped, and finds its place again by its last position.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct

from core.errors import Unavailable
from core.events import OutboxRow
from core.running.loop import Loops
from ports.store import Store

WAITING_MAX = 1_000
"""How many frames may wait for a listener before it is dropped."""
LISTENERS_MAX = 2_048
OWN_MAX = 512
"""How many may listen in a process, and how many of them in one name: all that asks must find a connection as well."""
PAGE = 500
SOON_SECONDS = 0.02
LATER_SECONDS = 0.2
HEARTBEAT_SECONDS = 15.0
SLOW_SECONDS = 10.0
"""How long one piece may take to leave before its listener is dropped."""
_LOOK_SECONDS = 1.0
_AFTER_BELL = 25
_HEARTBEAT = b":\n\n"
_log = logging.getLogger(__name__)


class Interest(Struct, frozen=True):
    """Which events a listener wants; None means any."""

    product_id: str | None = None
    type: str | None = None
    warehouse_id: str | None = None


class _Place(Struct, rename="camel"):
    warehouse_id: str


class _Where(Struct):
    payload: _Place


_where = msgspec.json.Decoder(_Where).decode


class Frame(Struct, frozen=True):
    """An event as it is sent, and what a listener may ask of it."""

    position: int
    type: str
    product_id: str
    warehouse_id: str
    data: bytes

    @classmethod
    def of(cls, row: OutboxRow) -> "Frame":
        """Encode a published event, once for all."""
        data = b"id: %d\nevent: %b\ndata: %b\n\n" % (row.position, row.event_type.encode(), row.body)
        return cls(row.position, row.event_type, row.product_id, _where(row.body).payload.warehouse_id, data)

    def suits(self, wanted: Interest) -> bool:
        """Whether a listener wants it."""
        return (
            wanted.product_id in (None, self.product_id)
            and wanted.type in (None, self.type)
            and wanted.warehouse_id in (None, self.warehouse_id)
        )


class Listener:
    """Who listens: what waits for it, and whether it goes on."""

    __slots__ = ("_count", "_frames", "_something", "ended", "name", "sending_since", "task", "wanted")

    def __init__(self, wanted: Interest, *, name: str = "") -> None:
        self.wanted = wanted
        self.name = name
        self.ended = False
        self.sending_since = 0.0
        """When the piece that is leaving began to (the loop's clock), 0 while none is."""
        self.task = asyncio.current_task()
        self._frames: list[bytes] = []
        self._count = 0
        self._something = asyncio.Event()

    def offer(self, data: bytes, count: int = 1) -> None:
        """Let ``data``, so many frames, wait for the listener; one for whom too much waits is dropped."""
        if self._count + count > WAITING_MAX:
            self.end()
        elif not self.ended:
            self._frames.append(data)
            self._count += count
            self._something.set()

    def end(self) -> None:
        """Let it go; what waits is not sent any more."""
        self.ended = True
        self._frames.clear()
        self._something.set()

    async def take(self) -> bytes:
        """Return everything that waits, as soon as there is something; empty when it is over."""
        await self._something.wait()
        if self.ended:
            return b""
        self._something.clear()
        frames, self._frames, self._count = self._frames, [], 0
        return frames[0] if len(frames) == 1 else b"".join(frames)


class Feed:
    """The events of all products as they are published. Reads only while somebody listens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: dict[str | None, set[Listener]] = {}
        self._all: set[Listener] = set()
        self._position = -1
        self._opening = asyncio.Lock()
        self._rung = asyncio.Event()
        self._loops = Loops()

    async def start(self) -> None:
        """Begin to serve listeners."""
        self._loops.start(self._read(), self._hear(), self._beat(), self._drop_slow())

    async def stop(self) -> None:
        """End every stream, and take no more listeners."""
        for listener in self._all:
            listener.end()
        await self._loops.stop()

    @asynccontextmanager
    async def listen(self, wanted: Interest, *, name: str = "") -> AsyncIterator[Listener]:
        """Be a listener, in the name of somebody, while the block runs; frames come once ``follow`` has caught up.

        Raises:
            Unavailable: the service is stopping, the store is away, or too many listen already.
        """
        if not self._loops.running:
            raise Unavailable("There is no event stream here now; connect again shortly.", retry_after=1)
        listener = Listener(wanted, name=name)
        async with self._opening:
            self._check_room(name)
            if not self._all:
                self._position = await self._store.position()
            self._all.add(listener)
        self._rung.set()
        try:
            yield listener
        finally:
            self._all.discard(listener)
            self._listeners.get(wanted.product_id, set()).discard(listener)
            if not self._listeners.get(wanted.product_id):
                self._listeners.pop(wanted.product_id, None)

    def _check_room(self, name: str) -> None:
        if sum(listener.name == name for listener in self._all) >= OWN_MAX:
            detail = f"{OWN_MAX} event streams are open in your name here; close those you do not need, or share one."
            raise Unavailable(detail, retry_after=10)
        if len(self._all) >= LISTENERS_MAX:
            detail = f"{LISTENERS_MAX} event streams are open here, and there is no room for more; connect again later."
            raise Unavailable(detail, retry_after=10)

    async def follow(self, listener: Listener, after: int | None) -> AsyncIterator[bytes]:
        """Yield what the listener wants of everything since ``after`` (None: from now on), until it is over.

        Each piece is one frame or several. What has been dropped from the store by now is told as a gap.

        Raises:
            Unavailable: the store is away.
        """
        here = self._position if after is None else min(after, await self._store.position())
        yield b"retry: 2000\nid: %d\n\n" % here
        while here < (there := self._position) and not listener.ended:
            rows = await self._store.published(here, limit=PAGE)
            following = rows[0].position if rows else there + 1
            if following > here + 1:
                yield b'event: Gap\ndata: {"after":%d,"next":%d}\n\n' % (here, following)
            frames = [frame for row in rows if (frame := Frame.of(row)).suits(listener.wanted)]
            here = rows[-1].position if rows else there
            if frames:
                yield b"".join(frame.data for frame in frames)
        # No await since the comparison: nothing is missed between what was read here and what is heard from now on.
        self._listeners.setdefault(listener.wanted.product_id, set()).add(listener)
        while data := await listener.take():
            yield data

    def _tell(self, rows: Sequence[OutboxRow]) -> None:
        frames = [Frame.of(row) for row in rows]
        for product_id in (None, *dict.fromkeys(frame.product_id for frame in frames)):
            pieces: dict[Interest, tuple[bytes, int]] = {}  # one for all who want the same
            for listener in self._listeners.get(product_id, ()):
                if (piece := pieces.get(listener.wanted)) is None:
                    suiting = [frame.data for frame in frames if frame.suits(listener.wanted)]
                    piece = pieces[listener.wanted] = b"".join(suiting), len(suiting)
                if piece[1]:
                    listener.offer(*piece)

    async def _read(self) -> None:
        """Read on while somebody listens: often for a while after something was committed, else now and then."""
        soon = 0
        while True:
            if self._rung.is_set():
                self._rung.clear()
                soon = _AFTER_BELL
            try:
                read = await self._read_on() if self._all else 0
            except Unavailable:
                read = 0
                await asyncio.sleep(1.0)
            except Exception:
                _log.exception("Reading published events failed and goes on")
                read = 0
                await asyncio.sleep(1.0)
            soon = _AFTER_BELL if read else max(soon - 1, 0)
            if read < PAGE:
                await self._rest(soon=soon > 0)

    async def _rest(self, *, soon: bool) -> None:
        if soon:
            await asyncio.sleep(SOON_SECONDS)
            return
        try:
            async with asyncio.timeout(LATER_SECONDS if self._all else None):
                await self._rung.wait()
        except TimeoutError:
            return

    async def _read_on(self) -> int:
        after = self._position
        rows = await self._store.published(after, limit=PAGE)
        # Unless all have left meanwhile and somebody has come who begins further on.
        if rows and self._position == after:
            self._position = rows[-1].position
            self._tell(rows)
        return len(rows)

    async def _hear(self) -> None:
        """Hear of commits, whose events are published in a moment; reading now and then is the net."""
        while True:
            try:
                async with self._store.announcements() as announcements:
                    async for _ in announcements:
                        if self._all:
                            self._rung.set()
            except Unavailable:
                pass
            except Exception:
                _log.exception("Listening for commits failed and goes on")
            await asyncio.sleep(1.0)

    async def _drop_slow(self) -> None:
        """Let those go who take nothing; one look at all of them costs less than a timer for each piece."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            late = asyncio.get_running_loop().time() - SLOW_SECONDS
            for listener in tuple(self._all):
                if 0 < listener.sending_since < late and not listener.ended:
                    listener.end()
                    if listener.task is not None:
                        listener.task.cancel()

    async def _beat(self) -> None:
        """Show every listener that it is still connected, and find those that are not."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            everybody: Collection[Listener] = tuple(self._all)
            for listener in everybody:
                listener.offer(_HEARTBEAT)
