"""The Product Service fails under a hundred questions a second (F21, F22): it is left alone, and all heals alone."""

import asyncio
import time
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from standin import ours, standing_in

from adapters.product_service import Limits
from adapters.registry import connect
from core.errors import InventoryError
from entrypoints.demo.misbehaviour import Misbehaviour
from ports.catalog import ProductCatalog

PER_SECOND = 100
OPEN_SECONDS = 0.5
PATIENT = Limits(read=2, total=4, open_seconds=OPEN_SECONDS)
BRISK = Limits(read=0.5, total=1, open_seconds=OPEN_SECONDS)
SLACK_SECONDS = 2
"""What a machine that is busy with other tests may add to any time."""


class Asked(NamedTuple):
    """A question: how long it took (seconds), and the error's class and sentence."""

    seconds: float
    error: str
    detail: str


async def ask(catalog: ProductCatalog) -> Asked:
    """Ask what no memory of ours can answer."""
    started = time.monotonic()
    try:
        await catalog.variants("prod_1")
    except InventoryError as error:
        return Asked(time.monotonic() - started, type(error).__name__, error.detail)
    return Asked(time.monotonic() - started, "", "")


async def pressed(catalog: ProductCatalog, seconds: float) -> list[Asked]:
    """Ask a hundred times a second, whoever still waits for an answer, and return what came of it."""
    questions = []
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        if len(questions) < passed * PER_SECOND:
            questions.append(asyncio.create_task(ask(catalog)))
        await asyncio.sleep(0.002)
    return list(await asyncio.gather(*questions))


@pytest.mark.parametrize(
    ("fault", "limits", "seconds", "error"),
    [
        ("error", PATIENT, 10, "ProductServiceUnavailable"),
        ("hang", BRISK, 10, "ProductServiceUnavailable"),
        ("reset", PATIENT, 10, "ProductServiceUnavailable"),
        ("garbage", PATIENT, 4, "ProductServiceProtocolError"),
    ],
)
async def test_it_is_left_alone_and_heals_alone(fault: Any, limits: Limits, seconds: float, error: str) -> None:
    """Attempts stay within 1.1 times the calls let through, a probe goes alone, errors are typed and in time."""
    async with standing_in() as (service, url), connect("catalog", url, token=ours, limits=limits) as catalog:
        await pressed(catalog, 1)
        service.asked.clear()
        service.misbehaviour = Misbehaviour(fault)
        asked = await pressed(catalog, seconds)
        attempts = list(service.asked)
        service.misbehaviour = None
        healed = time.monotonic()
        while (await ask(catalog)).error:
            await asyncio.sleep(0.01)
        healed = time.monotonic() - healed
        after = await pressed(catalog, 1)

    through = [each for each in asked if "lately" not in each.detail and "too many" not in each.detail]
    longest = max(each.seconds for each in asked)
    print(f"\n{fault}: {len(asked)} questions, {len(through)} let through, {len(attempts)} attempts, ", end="")
    print(f"longest {longest:.2f} s, healed in {healed:.2f} s, {Counter(each.error for each in asked)}")
    assert {each.error for each in through} == {error}
    assert {each.error for each in asked} <= {error, "ProductServiceUnavailable"}
    assert len(attempts) <= 1.1 * len(through)
    assert longest < limits.total + SLACK_SECONDS
    assert healed < OPEN_SECONDS + SLACK_SECONDS
    assert {each.error for each in after} == {""}
    # Once it has opened, one at a time and half a second apart.
    gaps = [later.at - sooner.at for sooner, later in pairwise(attempts)]
    opened = max(place for place, gap in enumerate(gaps, start=1) if gap < OPEN_SECONDS * 0.9)
    assert len(gaps[opened:]) >= 3
    assert attempts[opened].at - attempts[0].at < seconds / 2
