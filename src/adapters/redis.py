"""Redis, one cache for all processes: versioned writes by scripts, changes by publish and subscribe.

A value is its revision, a line break and the body; a floor is one without a body. ``redis://…?prefix=shop`` names the
keys where several services share a Redis. Plain connections, because what a pool or a retry does behind one's back
takes a minute to fail (reliability C1) or gives one caller's reply to the next (C3): here a command that does not end
in time ends its connection, and a Redis that failed is not asked anything for ``PAUSE_SECONDS``, or until it shows that
it lives.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoScriptError, RedisError, ResponseError

from core.errors import Unavailable, ValidationFailed
from ports.cache import FLOOR_SECONDS, Cache, Change, Entry

PATIENCE_SECONDS = 0.15
PAUSE_SECONDS = 5.0
PING_SECONDS = 0.05
SILENCE_SECONDS = 5.0
_AT_ONCE = 500
_PREFIX = "inventory"
_WARN_SECONDS = 60.0
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_cache(url: str) -> AsyncIterator[Cache]:
    """Open ``redis://`` or ``rediss://``. Connects when first used, so a Redis that is away does no harm.

    Raises:
        ValidationFailed: the URL cannot be understood.
    """
    cache = RedisCache(*_read(url))
    try:
        yield cache
    finally:
        await cache.close()


def _read(url: str) -> tuple[ConnectionPool, str]:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    prefix = query.pop("prefix", _PREFIX)
    try:
        options: dict[str, Any] = {"protocol": 2, "driver_info": None, "retry": Retry(NoBackoff(), 0)}
        pool = ConnectionPool.from_url(parts._replace(query=urlencode(query)).geturl(), **options)
        with suppress(KeyError):
            pool.make_connection()  # type: ignore[no-untyped-call] # it refuses options that it does not know
    except (TypeError, ValueError):
        raise ValidationFailed("The cache's URL cannot be read; write redis://user:password@host:6379/0.") from None
    return pool, f"{prefix}:{pool.connection_kwargs.get('db', 0)}"


class RedisCache:
    """See ``ports.cache.Cache``. One connection reads and one writes, so that neither waits behind the other."""

    def __init__(self, pool: ConnectionPool, prefix: str) -> None:
        self._connection: Callable[[], AbstractConnection] = pool.make_connection
        self._key = f"{prefix}:".encode()
        self._channel = f"{prefix}:changes".encode()
        self._reads = _Line(self._connection)
        self._writes = _Line(self._connection)
        self._failed_at = self._forgiven_at = self._warned_at = -math.inf
        self._away = False

    async def get(self, keys: Collection[str]) -> dict[str, Entry]:
        """See the port."""
        found: dict[str, Entry] = {}
        try:
            for some in _in_parts(keys):
                replies = await self._ask(self._reads, _GET, some)
                for key, (value, milliseconds) in zip(some, replies, strict=True):
                    if (entry := _entry(value, milliseconds)) is not None:
                        found[key] = entry
        except (Unavailable, TypeError, ValueError):
            return {}
        return found

    async def put(self, entries: Mapping[str, Entry]) -> None:
        """See the port."""
        with suppress(Unavailable):
            for some in _in_parts(entries):
                values = [(entry.revision, entry.body, entry.seconds) for entry in map(entries.__getitem__, some)]
                await self._ask(self._writes, _PUT, some, *_arguments(values))

    async def raise_floors(self, floors: Mapping[str, int]) -> None:
        """See the port."""
        for some in _in_parts(floors):
            told = msgspec.json.encode({key: floors[key] for key in some})
            values = [(floors[key], b"", FLOOR_SECONDS) for key in some]
            await self._ask(self._writes, _RAISE, some, *_arguments(values), self._channel, told)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        """See the port."""
        connection = self._connection()
        try:
            with _translated():
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await connection.send_command("SUBSCRIBE", self._channel)
                    await connection.read_response()
            pinging = asyncio.create_task(_ping(connection))
            try:
                yield self._heard(connection)
            finally:
                pinging.cancel()
                await asyncio.gather(pinging, return_exceptions=True)
        finally:
            await _end(connection)

    async def ping(self) -> None:
        """See the port."""
        await self._ask(self._reads, _PING, ())

    async def close(self) -> None:
        """Close the connections."""
        await self._reads.close()
        await self._writes.close()

    async def _ask(self, line: "_Line", script: "_Script", keys: Iterable[str], *arguments: bytes | int) -> Any:
        if time.monotonic() < self._failed_at + PAUSE_SECONDS:
            raise Unavailable("The cache was away a moment ago.")
        try:
            with _translated():
                async with asyncio.timeout(PATIENCE_SECONDS):
                    reply = await line.run(script, [self._key + key.encode() for key in keys], arguments)
        except Unavailable as error:
            if not isinstance(error.__cause__, ResponseError):  # a refusal costs nobody time
                self._failed_at = time.monotonic()
            if not self._away and time.monotonic() > self._warned_at + _WARN_SECONDS:
                self._warned_at = time.monotonic()
                _log.warning("The cache is away, reads go to the store: %s", error.detail)
            self._away = True
            raise
        self._away = False
        return reply

    async def _heard(self, connection: AbstractConnection) -> AsyncIterator[Change]:
        as_of = -math.inf
        while True:
            with _translated():
                kind, *_, told = await connection.read_response(timeout=SILENCE_SECONDS)
                if kind == b"pong":
                    as_of = float(told)
                    self._forgive(as_of)
                floors = msgspec.json.decode(told, type=dict[str, int]) if kind == b"message" else {}
            yield Change(floors, as_of)

    def _forgive(self, asked_at: float) -> None:
        """Ask a Redis again that has failed and answered promptly since; but once in a pause."""
        now = time.monotonic()
        prompt = self._failed_at < asked_at and now < asked_at + PATIENCE_SECONDS / 2
        if prompt and self._failed_at > -math.inf and now > self._forgiven_at + PAUSE_SECONDS:
            self._failed_at, self._forgiven_at = -math.inf, now


class _Script:
    """A script the server keeps; it is sent again to one that has forgotten it."""

    def __init__(self, text: str) -> None:
        from hashlib import sha1

        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest()


class _Line:
    """A connection that carries one command at a time. What breaks off a command ends the connection with it.

    Every command here may be done twice, so one that meets a connection that has died of old age is.
    """

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()

    async def run(self, script: _Script, keys: list[bytes], arguments: Iterable[bytes | int]) -> Any:
        async with self._lock:
            rest = (len(keys), *keys, *arguments)
            try:
                try:
                    return await self._say("EVALSHA", script.digest, *rest)
                except NoScriptError:
                    return await self._say("EVAL", script.text, *rest)
            except ConnectionLost:
                return await self._say("EVAL", script.text, *rest)

    async def _say(self, *command: Any) -> Any:
        connection, self._connection = self._connection or self._make(), None
        try:
            await connection.send_command(*command)
            reply = await connection.read_response()
        except ResponseError:
            self._connection = connection
            raise
        except BaseException:
            await _end(connection)
            raise
        self._connection = connection
        return reply

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await _end(self._connection)


async def _end(connection: AbstractConnection) -> None:
    with suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


async def _ping(connection: AbstractConnection) -> None:
    """Ask for signs of life; each carries when it was asked for, and comes after every change told before that."""
    with suppress(RedisError, OSError):
        while True:
            await connection.send_command("PING", repr(time.monotonic()))
            await asyncio.sleep(PING_SECONDS)


class _translated:  # noqa: N801
    """Turns every way to fail into ``Unavailable``."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RedisError | OSError | TimeoutError | ValueError | TypeError):
            reason = str(error) or "no answer in time"
            raise Unavailable(f"The cache cannot be used: {reason.rstrip('.')}.") from error


def _in_parts(keys: Iterable[str]) -> Iterator[list[str]]:
    left = iter(keys)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _arguments(values: Iterable[tuple[int, bytes, float]]) -> Iterator[bytes | int]:
    for revision, body, seconds in values:
        yield b"%d\n%b" % (revision, body)
        yield max(int(seconds * 1000), 1)


def _entry(value: Any, milliseconds: Any) -> Entry | None:
    """Read a value. A floor has no body, and what is not ours (no revision, no end) is nothing."""
    if not isinstance(value, bytes) or milliseconds <= 0:
        return None
    revision, _, body = value.partition(b"\n")
    return Entry(int(revision), body, milliseconds / 1000) if body and revision.isdigit() else None


_HELD = """
local function held(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and tonumber(string.match(value, '^(%d+)\\n')) or -1
end
"""
_GET = _Script("""
local found = {}
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  found[i] = {type(value) == 'string' and value or false, redis.call('PTTL', key)}
end
return found
""")
_PUT = _Script(
    _HELD
    + """
for i, key in ipairs(KEYS) do
  if tonumber(string.match(ARGV[2 * i - 1], '^%d+')) >= held(key) then
    redis.call('SET', key, ARGV[2 * i - 1], 'PX', ARGV[2 * i])
  end
end
"""
)
# Told first, and deleted where nothing can be written any more: an old value is worse than none.
_RAISE = _Script(
    _HELD
    + """
redis.call('PUBLISH', ARGV[2 * #KEYS + 1], ARGV[2 * #KEYS + 2])
for i, key in ipairs(KEYS) do
  if tonumber(string.match(ARGV[2 * i - 1], '^%d+')) > held(key) then
    local done = redis.pcall('SET', key, ARGV[2 * i - 1], 'PX', ARGV[2 * i])
    if done.err then redis.call('DEL', key) end
  end
end
"""
)
_PING = _Script("return 1")
