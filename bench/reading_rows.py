"""What readers get, and how soon: from near and from Redis, of another process's writes, of the future, and live."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles

import httpx2
import msgspec
from http_rows import bare_http, on_bare
from rig import Rig, Site
from rows import Measured, absolute, alternate, row
from service import Fleet, Service, token

from core.reading.snapshots import KEPT_MAX

_SUPPLIES = 1_000
_WRITES_A_SECOND = 5


@row("warm", "by-product warm in the process / bare route, same bytes", unit="requests/s", floor=0.6, aim=0.8)
def warm(rig: Rig) -> Measured:
    with rig.serving(items_each=2, cache="memory://") as site, bare_http(rig, site) as bare:
        _read_all(site)
        return alternate(
            lambda: site.load("reads", site.products),
            lambda: on_bare(rig, bare, "reads", site.products),
            rounds=rig.scale.rounds,
        )


@row("redis", "by-product warm in Redis only / bare route, same bytes", unit="requests/s", floor=0.2, aim=0.3)
def redis(rig: Rig) -> Measured:
    products = KEPT_MAX + KEPT_MAX // 10
    url = rig.redis.create_database()
    with rig.serving(products=products, cache=url) as site, bare_http(rig, site) as bare:
        scanned = 0
        while scanned < products:
            scanned += site.run("scan", site.products, seconds=10).requests
        return alternate(
            lambda: site.load("scan", site.products),
            lambda: on_bare(rig, bare, "scan", site.products),
            rounds=rig.scale.rounds,
            notes=[f"{products:,} products in turn, of which a process keeps the last {KEPT_MAX:,} it read"],
        )


@row(
    "availability", "availability with display decision / bare route, same bytes", unit="requests/s", floor=0.5, aim=0.7
)
def availability(rig: Rig) -> Measured:
    with rig.serving(items_each=2, cache="memory://") as site:
        path = f"/inventory-items/{site.items.read_text().split()[0]}/availability?quantity=2"
        _read_all(site)
        with bare_http(rig, site, path) as bare:
            return alternate(
                lambda: site.load("availability", site.items),
                lambda: on_bare(rig, bare, "availability", site.items),
                rounds=rig.scale.rounds,
            )


@row("elsewhere", "another process shows a write, p99", unit="ms", floor=50, aim=10, of_ratio=False, less=True)
def elsewhere(rig: Rig) -> Measured:
    cache = rig.redis.create_database()
    with rig.site(products=10) as site:
        two = [Service("api", store=site.store, broker=site.broker, cache=cache) for _ in range(2)]
        with Fleet(two), two[0].client() as here, two[1].client() as there:
            item, product = (file.read_text().split()[0] for file in (site.items, site.products))
            p99s = []
            for _ in range(rig.scale.rounds):
                delays = [_seen_after(here, there, item, product) for _ in range(100 * rig.scale.seconds // 2)]
                p99s.append(quantiles(delays, n=100)[98])
            return absolute(
                p99s, notes=[f"p50 {median(delays):.1f} ms; from the answer here until a reader there has it"]
            )


def _seen_after(here: httpx2.Client, there: httpx2.Client, item: str, product: str) -> float:
    before = _total(there, product)
    operation = {"type": "RECEIVE", "inventoryItemId": item, "quantity": 1}
    here.post("/stock-operations", json=operation).raise_for_status()
    began = time.perf_counter()
    while _total(there, product) == before:
        pass
    return (time.perf_counter() - began) * 1000


def _total(client: httpx2.Client, product: str) -> int:
    answer = client.get(f"/inventory-items/by-product/{product}").raise_for_status()
    return int(answer.json()["data"]["totalQuantityAvailable"])


@row(
    "atp",
    "availability to promise, 1,000 dated supplies, service time p99",
    unit="ms",
    floor=5,
    aim=1,
    of_ratio=False,
    less=True,
)
def atp(rig: Rig) -> Measured:
    with rig.serving(products=1, cache="memory://") as site, site.service.client() as client:
        item = site.items.read_text().strip()
        for day in range(_SUPPLIES):
            expected = {"inventoryItemId": item, "quantity": 1_000_000, "expectedAt": _in(days=day + 1)}
            client.post("/expected-receipts", json=expected).raise_for_status()
        p99s, halves, loads = [], [], []
        for _ in range(rig.scale.rounds):
            before = len(site.service.logged())
            loads.append(site.run("projection", site.products, connections=1))
            times = _logged_ms(site.service.logged()[before:], "/products/{productId}/availability")
            p99s.append(quantiles(times, n=100)[98])
            halves.append(median(times))
        over_http = f"{median(load.p50_ms for load in loads):.2f} and {median(load.p99_ms for load in loads):.2f} ms"
        return absolute(
            p99s, notes=[f"p50 {median(halves):.2f} ms, token and all; on one connection of wrk {over_http} (p50, p99)"]
        )


def _logged_ms(log: str, route: str) -> list[float]:
    """How long each request of a route was in the service's hands, as its access log tells."""
    lines = [msgspec.json.decode(line) for line in log.splitlines() if line.startswith("{")]
    return [line["ms"] for line in lines if line.get("route") == route]


def _in(*, days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


@row(
    "live-memory",
    "memory a client that follows the live events",
    unit="KB",
    floor=64,
    aim=24,
    of_ratio=False,
    less=True,
)
def live_memory(rig: Rig) -> Measured:
    count = rig.scale.listeners
    with rig.serving(products=100) as site:
        grown = []
        for _ in range(rig.scale.rounds):
            before = site.resident_mb()
            with _following(rig, site, count):
                grown.append(max(site.resident_mb() - before, 0.0) * 1000 / count)
            # What one round has left the next one takes up again: the first is the honest one.
        return Measured(values=grown[:1], ours=grown[:1], notes=[f"{count:,} clients on one process"])


@row(
    "live",
    "commit to 1,000 clients that follow the live events, p99",
    unit="ms",
    floor=250,
    aim=100,
    of_ratio=False,
    less=True,
)
def live(rig: Rig) -> Measured:
    count = rig.scale.listeners
    with rig.serving(products=100) as site, site.service.client() as client:
        items = site.items.read_text().split()
        p99s, halves = [], []
        for _ in range(rig.scale.rounds):
            with _following(rig, site, count) as delays:
                for number in range(rig.scale.seconds * _WRITES_A_SECOND):
                    operation = {"type": "RECEIVE", "inventoryItemId": items[number % len(items)], "quantity": 1}
                    client.post("/stock-operations", json=operation).raise_for_status()
                    time.sleep(1 / _WRITES_A_SECOND)
                time.sleep(1.0)
            halves.append(median(delays))
            p99s.append(quantiles(delays, n=100)[98])
        told = f"p50 {median(halves):.0f} ms; {_WRITES_A_SECOND} events/s, each to {count:,} clients of one process"
        return absolute(p99s, notes=[told])


@contextmanager
def _following(rig: Rig, site: Site, count: int) -> Iterator[list[float]]:
    """Have so many clients follow while the block runs; the list of delays (ms) is filled when it is left."""
    delays: list[float] = []
    with rig.beside("listeners.py", site.service.url, count, *(token(subject=f"shop-{n}") for n in range(4))) as told:
        yield delays
        delays += told()


def _read_all(site: Site) -> None:
    """Have every product read once."""
    with site.service.client() as client:
        for product in site.products.read_text().split():
            client.get(f"/inventory-items/by-product/{product}").raise_for_status()
