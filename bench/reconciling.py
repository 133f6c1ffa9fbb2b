"""One reconciliation of a store's own records, in a process of its own, as the command does it: how long, how large.

``URL PARTS`` with ``deep`` or ``quick``. Prints one JSON document: seconds, items, and resident memory idle and at most
(MB).
"""

import asyncio
import json
import sys
import time

import psutil
import uvloop

from core.reconciling.reconciliation import Reconciliation
from entrypoints.config import Config
from entrypoints.wiring import make_container
from ports.store import Store

_LOOK_SECONDS = 0.05


async def main(url: str, parts: str) -> dict[str, float]:
    """Reconcile and return what it took."""
    container = make_container(Config(store=url, reconcile_rate=0))
    store, reconciliation = await container.get(Store), await container.get(Reconciliation)
    await store.ping()
    process = psutil.Process()
    idle = peak = process.memory_info().rss

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(_LOOK_SECONDS)

    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    run = await reconciliation.run(trigger="manual", actor="bench", deep=parts == "deep")
    took = time.perf_counter() - began
    watching.cancel()
    if run.findings:
        raise RuntimeError(f"The store was to be in order: {run.findings}")
    await container.close()
    return {"seconds": took, "items": run.items, "idle": idle / 1e6, "peak": peak / 1e6}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(*sys.argv[1:]))))
