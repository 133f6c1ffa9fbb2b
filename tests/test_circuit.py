"""The circuit breaker, on a clock of the tests' own."""

import asyncio

import pytest

from adapters.circuit import LEAST, OPEN_SECONDS, WINDOW, WINDOW_SECONDS, Breaker, Refused
from adapters.memory import MemoryCatalog
from core.catalog.watch import CatalogWatch
from ports.catalog import Condition


class Clock:
    """A clock that is set by hand (seconds)."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The breaker's clock."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """A breaker that is closed."""
    return Breaker(now=clock)


def made(breaker: Breaker, times: int, *, well: bool) -> int:
    """Try so many calls with this end; return how many were let through."""
    through = 0
    for _ in range(times):
        try:
            with breaker.call():
                through += 1
                if not well:
                    raise OSError
        except (OSError, Refused):
            pass
    return through


def test_it_opens_when_half_of_the_last_calls_failed(breaker: Breaker) -> None:
    """Not on the first few, and not while most succeed."""
    assert made(breaker, LEAST - 1, well=False) == LEAST - 1
    assert breaker.circuit == "CLOSED"
    assert made(breaker, 10, well=False) == 1
    assert breaker.circuit == "OPEN"


def test_calls_that_succeed_weigh_against_those_that_fail(breaker: Breaker) -> None:
    """After many good calls half the window must fail."""
    made(breaker, 100, well=True)

    assert made(breaker, 100, well=False) == WINDOW // 2


def test_old_failures_are_forgotten(breaker: Breaker, clock: Clock) -> None:
    """What failed half a minute ago says nothing about now."""
    made(breaker, LEAST - 1, well=False)
    clock.now += WINDOW_SECONDS + 1

    assert breaker.condition().failures == 0
    assert made(breaker, LEAST - 1, well=False) == LEAST - 1


def test_half_open_sends_one_probe(breaker: Breaker, clock: Clock) -> None:
    """While it is on its way everybody else is refused; if it fails the circuit is open for as long again."""
    made(breaker, LEAST, well=False)
    clock.now += OPEN_SECONDS

    assert breaker.circuit == "HALF_OPEN"
    with pytest.raises(OSError, match="still"), breaker.call():
        assert breaker.refuses
        assert made(breaker, 50, well=True) == 0
        raise OSError("still away")
    assert breaker.circuit == "OPEN"
    assert made(breaker, 50, well=True) == 0


def test_a_probe_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    """Everybody is let through again, with a clean record."""
    made(breaker, LEAST, well=False)
    clock.now += OPEN_SECONDS

    assert made(breaker, 10, well=True) == 10
    assert breaker.condition().failures == 0


def test_a_probe_that_is_cancelled_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    """A caller that leaves has learnt nothing."""
    made(breaker, LEAST, well=False)
    clock.now += OPEN_SECONDS

    with pytest.raises(asyncio.CancelledError), breaker.call():
        raise asyncio.CancelledError
    assert breaker.circuit == "HALF_OPEN"
    assert made(breaker, 1, well=True) == 1
    assert breaker.circuit == "CLOSED"


def test_a_call_from_before_says_nothing_about_now(breaker: Breaker, clock: Clock) -> None:
    """A slow call that began before the circuit opened does not close it, nor does it push the next probe away."""
    with breaker.call():
        made(breaker, LEAST, well=False)
        assert breaker.circuit == "OPEN"
    assert breaker.circuit == "OPEN"
    clock.now += OPEN_SECONDS
    assert breaker.circuit == "HALF_OPEN"


def test_retries_are_for_single_failures(breaker: Breaker, clock: Clock) -> None:
    """A tenth of the last calls may fail and be made again; more is an outage, and a probe is never made again."""
    made(breaker, 100, well=True)
    allowed = []
    for _ in range(4):
        made(breaker, 1, well=False)
        allowed.append(breaker.may_retry)
    made(breaker, 10, well=False)
    clock.now += OPEN_SECONDS

    assert allowed == [True, True, False, False]
    assert breaker.circuit == "HALF_OPEN"
    assert not breaker.may_retry


async def test_where_nobody_calls_it_is_well_again_by_its_own_word(breaker: Breaker, clock: Clock) -> None:
    """Nobody is there to close the circuit: half a minute after the failures, the Product Service's word counts."""

    class Broken(MemoryCatalog):
        def condition(self) -> Condition:
            return breaker.condition()

    watch = CatalogWatch(Broken(), seconds=0)
    await watch.look()
    made(breaker, LEAST, well=False)
    seen = [watch.is_well]
    for seconds in (OPEN_SECONDS, WINDOW_SECONDS):
        clock.now += seconds
        seen.append(watch.is_well)

    assert seen == [False, False, True]
    breaker.force("OPEN")
    assert not watch.is_well


def test_an_operator_has_the_last_word(breaker: Breaker) -> None:
    """Forced open nothing passes, forced closed everything does, however it fails; let go, it begins closed."""
    breaker.force("OPEN")
    assert (made(breaker, 5, well=True), breaker.condition().forced) == (0, True)
    breaker.force("CLOSED")
    assert made(breaker, 50, well=False) == 50
    breaker.force(None)
    assert (breaker.circuit, breaker.condition().failures) == ("CLOSED", 0)
