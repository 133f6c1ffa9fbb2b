"""``just chaos``: three API and two consumer processes on PostgreSQL and RabbitMQ, and something always goes wrong.

In the end everything is healed and drained, and then it must add up: what was acknowledged is there, nothing is there
twice, every event has arrived in its product's order, and whoever asked again was told the same.
"""

import argparse
import asyncio
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from audit import select  # noqa: E402
from history import History, Tally  # noqa: E402
from nemesis import Nemesis, Process, Strike, World  # noqa: E402
from proxy import Proxy  # noqa: E402
from service import COMMAND, Service, environment, migrate  # noqa: E402
from services import Postgres, RabbitMQ  # noqa: E402
from verdict import judge  # noqa: E402
from workload import PRODUCTS, Customers, ProductService, Subscriber  # noqa: E402

STOCKED = 12
DRAIN_SECONDS = 90


class Report:
    """What happened in a run, and what was wrong in the end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.seconds = 0.0
        self.strikes: list[Strike] = []
        self.tallies: dict[str, Tally] = {}
        self.troubles: dict[int | None, int] = {}
        self.drained = 0.0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.seconds:.0f} s, {len(self.strikes)} faults, drained in {self.drained:.1f} s"]
        lines += [f"  {at:6.1f} s, for {seconds:4.1f} s: {whom}: {fault}" for at, fault, whom, seconds in self.strikes]
        told = ", ".join(f"{many} × {status or 'no answer'}" for status, many in self.troubles.items())
        lines += [f"  asked again after: {told or 'nothing'}", f"  errors in the logs: {dict(self.errors) or 'none'}"]
        lines.append(f"{'':16}" + "".join(f"{name:>13}" for name in Tally._fields))
        for queue, tally in self.tallies.items():
            numbers = [value if isinstance(value, int) else len(value) for value in tally]
            lines.append(f"{queue:16}" + "".join(f"{number:13,}" for number in numbers))
        return "\n".join([*lines, *(f"WRONG: {what}" for what in self.wrong)])


async def run(seed: int, *, seconds: float) -> Report:
    """Let it go on for so long, heal, drain and look; everything that is started ends with it."""
    report, dice = Report(seed), random.Random(seed)
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inventory-test-")))
        history = stack.enter_context(History(folder / "history.jsonl"))
        postgres, rabbitmq = stack.enter_context(Postgres()), stack.enter_context(RabbitMQ())
        store, broker = postgres.create_database(), rabbitmq.create_vhost()
        migrate(store, broker)
        subscriber = Subscriber(broker, history)
        await subscriber.declare()
        await asyncio.sleep(2)  # queues as young as this may not survive a crash (D16)
        kinds = ("api", "api", "api", "consumer", "consumer")
        processes = await asyncio.gather(*(_process(stack, kind, store, broker) for kind in kinds))
        items = await asyncio.to_thread(_stocked, processes[0].service)
        customers = Customers([process.service.url for process in processes[:3]], items, history, dice)
        products = ProductService(broker, history, dice)
        nemesis = Nemesis(World(processes, postgres, rabbitmq), dice)
        async with asyncio.TaskGroup() as tasks:
            drained = asyncio.Event()
            tasks.create_task(subscriber.listen(drained))
            await _live(customers, products, nemesis, seconds)
            healed = time.monotonic()
            committed, wrong = await _drain(store, history, subscriber)
            report.wrong += wrong
            drained.set()
        report.strikes, report.troubles = sorted(nemesis.strikes), customers.troubles
        report.drained = time.monotonic() - healed
        report.tallies, wrong = await judge(store, customers, products, history, committed)
        report.wrong += wrong
        report.wrong += await asyncio.to_thread(_reconciled, store)
        report.wrong += [f"{process.name} ended by itself" for process in processes if not process.service.running]
        await asyncio.gather(*(asyncio.to_thread(process.service.stop) for process in processes))
        report.errors = _errors([process.service for process in processes])
    report.seconds = time.monotonic() - started
    return report


async def _process(stack: AsyncExitStack, command: str, store: str, broker: str) -> Process:
    ways = [await stack.enter_async_context(Proxy(url)) for url in (store, broker)]
    settings = {"default_warehouses": "wh_1,wh_2", "reconcile_minutes": 0, "cache": "none:"}
    service = Service(command, store=ways[0].url, broker=ways[1].url, **settings)
    # In threads: this one has to keep the ways open.
    stack.push_async_exit(lambda *error: asyncio.to_thread(service.__exit__, *error))
    await asyncio.to_thread(service.__enter__)
    return Process(f"{command} {service.port}", service, *ways)


def _stocked(api: Service) -> list[str]:
    """Two warehouses, and items with a little stock in the first."""
    items = []
    with api.client() as client:
        for id in ("wh_1", "wh_2"):
            client.post("/warehouses", json={"id": id, "name": id}).raise_for_status()
        for number in range(STOCKED):
            item = {"sku": f"S-{number}", "productId": f"stock_{number % 8}", "warehouseId": "wh_1"}
            made = client.post("/inventory-items", json=item | {"initialQuantity": 5}).raise_for_status()
            items.append(str(made.json()["data"]["id"]))
    return items


async def _live(customers: Customers, products: ProductService, nemesis: Nemesis, seconds: float) -> None:
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        working = [tasks.create_task(customers.shop(over)), tasks.create_task(products.tell(over))]
        await nemesis.rage(seconds)
        over.set()
        async with asyncio.timeout(DRAIN_SECONDS):
            await asyncio.gather(*working)


async def _drain(store: str, history: History, subscriber: Subscriber) -> tuple[list[str], list[str]]:
    """Wait until nothing is under way any more; return the events there are then, and what still is under way when
    patience ends. Holds go on expiring: what comes later is nobody's to hear.
    """
    told = set(history.ids(PRODUCTS, "acknowledged"))
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        outbox, inbox, letters = await select(
            store,
            "SELECT event_id, published_at FROM outbox",
            "SELECT event_id FROM inbox",
            "SELECT event_id FROM dead_letter WHERE status = 'WAITING'",
        )
        waiting = sum(row["published_at"] is None for row in outbox)
        unheard = len({row["event_id"] for row in outbox} - subscriber.seen)
        unapplied = len(told - {row["event_id"] for row in inbox})
        committed = [str(row["event_id"]) for row in outbox]
        if not waiting + unheard + unapplied + len(letters):
            return committed, []
        if time.monotonic() > deadline:
            left = {"unpublished": waiting, "unheard": unheard, "not applied": unapplied, "parked": len(letters)}
            return committed, [f"after {DRAIN_SECONDS} s: {left}"]
        await asyncio.sleep(0.2)


def _reconciled(store: str) -> list[str]:
    """Let our own reconciliation look; return what it says where it found anything."""
    command = [COMMAND, "reconcile", "run"]
    done = subprocess.run(
        command, env=environment(store=store), capture_output=True, text=True, check=False, timeout=120
    )
    return [] if done.returncode == 0 else [f"reconciliation: {done.stdout}{done.stderr}"]


def _errors(services: Sequence[Service]) -> Counter[str]:
    """Count what was logged as an error, by its sentence: not wrong in itself, but nothing a fault explains."""
    lines = (line for service in services for line in service.logged().splitlines() if '"level": "error"' in line)
    return Counter(str(json.loads(line)["event"]) for line in lines)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments.add_argument("--minutes", type=float, default=2.0)
    given = arguments.parse_args()
    logging.disable()  # the clients of this process are told of every fault, too
    print(f"seed {given.seed}", flush=True)
    report = asyncio.run(run(given.seed, seconds=given.minutes * 60))
    print(report)
    sys.exit(1 if report.wrong else 0)
