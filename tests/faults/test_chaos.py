"""Two minutes in which something always goes wrong, on real servers; ``just chaos`` does it for as long as wanted."""

import random

import chaos
import pytest

SECONDS = 120


@pytest.mark.services
@pytest.mark.timeout(480)  # starting, healing and draining take as long again on a busy machine
async def test_two_minutes_of_chaos_lose_and_double_nothing() -> None:
    """Faults F1 to F8, F10 to F12, F15 to F17, F29: all that was acknowledged is there, once, and every event arrived
    in order.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    report = await chaos.run(seed, seconds=SECONDS)
    print(report)
    assert report.wrong == []
    assert len(report.strikes) > SECONDS / 10
    assert all(tally.acknowledged > SECONDS / 2 for tally in report.tallies.values())
