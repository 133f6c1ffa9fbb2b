"""The kit itself: a way is bad in just the manner it is told to be, and the count finds what it is there to find."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from history import Entry, History, out_of_order, total_queue
from proxy import Cut, Proxy


@pytest.fixture
async def way() -> AsyncIterator[Proxy]:
    """A way to a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1_000):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Proxy(f"echo://user@127.0.0.1:{port}/path") as way:
        yield way
    server.close()


class Talk:
    """A connection through the way."""

    def __init__(self, way: Proxy) -> None:
        self._port = int(way.url.rpartition(":")[2].partition("/")[0])

    async def __aenter__(self) -> "Talk":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def say(self, words: bytes, *, seconds: float = 5.0) -> bytes | None:
        """Return what comes back; nothing where the connection is broken, None for silence."""
        try:
            async with asyncio.timeout(seconds):
                self.writer.write(words)
                return await self.reader.readexactly(len(words))
        except TimeoutError:
            return None
        except (OSError, asyncio.IncompleteReadError):
            return b""


async def test_a_good_way_changes_nothing(way: Proxy) -> None:
    """What goes in comes out, also in slices, and only the URL's port is another."""
    async with Talk(way) as talk:
        assert await talk.say(b"one") == b"one"
        way.slice_bytes = 1
        assert await talk.say(b"two" * 100) == b"two" * 100
    assert way.url.startswith("echo://user@127.0.0.1:")
    assert way.url.endswith("/path")


async def test_a_slow_way_takes_its_time(way: Proxy) -> None:
    """There and back: twice the latency at least."""
    way.latency = 0.1
    async with Talk(way) as talk:
        started = time.monotonic()
        assert await talk.say(b"one") == b"one"
        assert time.monotonic() - started >= 0.2


async def test_a_black_hole_is_silent_and_a_heal_delivers_late(way: Proxy) -> None:
    """The connection stays, and what was said arrives in the end."""
    async with Talk(way) as talk:
        way.black_hole()
        assert await talk.say(b"one", seconds=0.3) is None
        way.heal()
        assert await talk.reader.readexactly(3) == b"one"


async def test_a_reset_or_shut_way_breaks_what_there_is(way: Proxy) -> None:
    """After a reset one may come again; while it is shut nobody is let in."""
    async with Talk(way) as talk:
        assert await talk.say(b"one") == b"one"
        way.reset()
        assert await talk.say(b"two") == b""
    async with Talk(way) as talk:
        assert await talk.say(b"three") == b"three"
        way.shut()
        assert await talk.say(b"four") == b""
    async with Talk(way) as talk:
        assert await talk.say(b"five") == b""


async def test_a_forsaken_client_is_told_nothing(way: Proxy) -> None:
    """Half open: the far end has gone, the near one talks into the void."""
    async with Talk(way) as talk:
        assert await talk.say(b"one") == b"one"
        way.forsake()
        assert await talk.say(b"two", seconds=0.3) is None
        assert await talk.say(b"three", seconds=0.3) is None


@pytest.mark.parametrize("half", [False, True])
async def test_a_cut_happens_once_and_at_its_place(way: Proxy, half: bool) -> None:
    """What comes before gets through, the place itself does not, and the next connection passes it."""
    way.next_cut = Cut("up", b"COMMIT", half=half)
    async with Talk(way) as talk:
        assert await talk.say(b"BEGIN") == b"BEGIN"
        assert await talk.say(b"COMMIT") == b""
    assert way.was_cut.is_set()
    async with Talk(way) as talk:
        assert await talk.say(b"COMMIT") == b"COMMIT"


async def test_what_is_held_waits_at_its_place(way: Proxy) -> None:
    """Nothing breaks; after a heal what was held goes on, and after a reset it never arrives."""
    way.next_cut = Cut("up", b"COMMIT", hold=True)
    async with Talk(way) as talk:
        assert await talk.say(b"COMMIT", seconds=0.3) is None
        assert way.was_cut.is_set()
        way.heal()
        assert await talk.reader.readexactly(6) == b"COMMIT"


async def test_a_bit_is_flipped_once(way: Proxy) -> None:
    """The last byte of the place, on the way that was named."""
    way.flip = ("down", b"b")
    async with Talk(way) as talk:
        assert await talk.say(b"abc") == b"acc"
        assert await talk.say(b"abc") == b"abc"


def test_the_count_finds_what_was_planted() -> None:
    """One of each: lost, unexpected, doubled, recovered."""
    tally = total_queue(["kept", "lost", "late", "never"], ["kept", "lost"], ["kept", "kept", "late", "stray"])
    assert tally == (4, 2, ["lost"], ["stray"], ["kept"], ["late"], ())


def test_order_is_that_of_the_first_time() -> None:
    """Told again late is no matter; a gap and what comes after its successor are."""

    def seen(*places: int) -> list[str]:
        return out_of_order(Entry("q", "received", f"e{place}", "prod_1", place) for place in places)

    assert seen(1, 2, 1, 3, 2) == []
    assert seen(1, 3, 2) == ["e3", "e2"]


def test_half_a_line_was_never_said(tmp_path: Path) -> None:
    """What a writer had not finished when it died is not counted."""
    with History(tmp_path / "log") as history:
        history.write(Entry("q", "attempted", "one"))
        history.write(Entry("q", "acknowledged", "one"))
        with history.path.open("a") as file:
            file.write('["q", "attempted", "tw')
        assert history.ids("q", "attempted") == ["one"]
