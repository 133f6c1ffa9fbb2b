"""What runs beside the requests does not end unseen."""

import asyncio
import logging
from functools import partial

import pytest

from adapters.handling import Handed, Settle, handling
from core.running.loop import Loops
from entrypoints.processes import process
from ports.broker import Delivery, Message, Verdict


async def failing() -> None:
    """Fail after a moment."""
    await asyncio.sleep(0)
    raise ValueError("It never worked.")


async def test_background_work_that_fails_ends_the_process() -> None:
    """In order: it is told to stop, and fails once it has."""
    stop = asyncio.Event()
    ended = False
    with pytest.raises(ValueError, match="never worked"):
        async with process.background(failing(), stop), asyncio.timeout(5):
            await stop.wait()
            ended = True

    assert ended


async def test_background_work_that_ends_or_is_ended_is_no_failure() -> None:
    """Neither sets the event, and leaving the block raises nothing."""
    stop = asyncio.Event()
    for work in (asyncio.sleep(0), asyncio.sleep(60)):
        async with process.background(work, stop):
            await asyncio.sleep(0.01)

    assert not stop.is_set()


async def test_a_loop_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By name, with what it failed of; one that is stopped is not."""
    loops = Loops()
    loops.start(failing(), asyncio.sleep(60))
    await asyncio.sleep(0.01)
    await loops.stop()

    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.getMessage() == "failing failed and has ended"
    assert line.exc_info is not None


async def test_a_message_that_cannot_be_taken_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free again, and the next one is handled."""
    monkeypatch.setattr("adapters.handling.PAUSE_SECONDS", 0.0)
    handled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    arrived = asyncio.Queue[str]()
    for id in ("unreadable", "good"):
        arrived.put_nowait(id)

    async def take() -> Handed:
        if (id := await arrived.get()) == "unreadable":
            raise ValueError("It cannot be read.")
        settle: Settle = partial(asyncio.sleep, 0)
        return Delivery(Message(id=id, exchange="", routing_key="", body=b""), redelivered=False), settle

    async def handle(delivery: Delivery) -> Verdict:
        handled.set_result(delivery.message.id)
        return Verdict.DONE

    async with handling("q", take, handle, at_once=1), asyncio.timeout(5):
        assert await handled == "good"
