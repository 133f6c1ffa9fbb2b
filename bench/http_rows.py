"""Rates over HTTP: authenticated, 128 connections, an Idempotency-Key on every write, events relayed meanwhile."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

import httpx2
from private_server import LOOPBACK, Server
from rig import HERE, Cpu, Rig, Site
from rows import Measured, Sample, alternate, row
from service import environment

from entrypoints.config import SETTINGS

UNCACHED = {"cache": "none:"} if "cache" in SETTINGS else {}
_SPREAD = 2_000
_BULK_CONNECTIONS = 16
"""Of 100 operations each: as many as keep the batches full, and few enough that none waits for its turn too long."""


class BareHttp(Server):
    """The bare route in a process of its own (see ``bare_http.py``).

    Args:
        answer: the file with the bytes it answers.
    """

    package = "python"
    program = Path(sys.executable).name
    folders = str(Path(sys.executable).parent).lstrip("/")
    stop_signal = SIGTERM

    def __init__(self, answer: Path) -> None:
        super().__init__()
        self._answer = answer

    def _own_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        self.log.touch()

    def _launch(self) -> None:
        self._spawn(sys.executable, HERE / "bare_http.py", str(self.port), self._answer, env=environment())

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/inventory-items/by-product/any", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False


@row("hot", "reservations of one hot product / pgbench, one row", unit="requests/s", floor=5, aim=10)
def hot(rig: Rig) -> Measured:
    with rig.serving() as site, rig.natural() as natural:
        measured = alternate(lambda: site.load("reservations", site.hot), lambda: natural(1), rounds=rig.scale.rounds)
        return noted(site, measured)


@row("spread", "reservations over 2,000 products / pgbench, 2,000 rows", unit="requests/s", floor=0.4, aim=1)
def spread(rig: Rig) -> Measured:
    with rig.serving() as site, rig.natural() as natural:
        measured = alternate(
            lambda: site.load("reservations", site.items), lambda: natural(_SPREAD), rounds=rig.scale.rounds
        )
        return noted(site, measured)


@row("operations", "stock operations, 100 a request / pgbench, 2,000 rows", unit="operations/s", floor=2, aim=5)
def operations(rig: Rig) -> Measured:
    with rig.serving() as site, rig.natural() as natural:
        measured = alternate(
            lambda: site.load("operations", site.items, each=100, connections=_BULK_CONNECTIONS),
            lambda: natural(_SPREAD),
            rounds=rig.scale.rounds,
        )
        return noted(site, measured)


@row("by-product", "by-product from the store / bare route, same bytes", unit="requests/s", floor=0.15, aim=0.3)
def by_product(rig: Rig) -> Measured:
    with rig.serving(items_each=2, **UNCACHED) as site, bare_http(rig, site) as bare:
        return alternate(
            lambda: site.load("reads", site.products),
            lambda: on_bare(rig, bare, "reads", site.products),
            rounds=rig.scale.rounds,
        )


@row("bare-post", "reservations over 2,000 products / bare POST route", unit="requests/s")
def bare_post(rig: Rig) -> Measured:
    with rig.serving() as site, bare_http(rig, site) as bare:
        return alternate(
            lambda: site.load("reservations", site.items),
            lambda: on_bare(rig, bare, "reservations", site.products),
            rounds=rig.scale.rounds,
        )


@row("two-workers", "reservations over 2,000 products, two workers / one", unit="requests/s")
def two_workers(rig: Rig) -> Measured:
    with rig.serving(workers=2) as two, rig.serving() as one:
        return alternate(
            lambda: two.load("reservations", two.items),
            lambda: one.load("reservations", one.items),
            rounds=rig.scale.rounds,
        )


@contextmanager
def bare_http(rig: Rig, site: Site, path: str = "") -> Iterator[BareHttp]:
    """Serve the bytes that the site answers at ``path``, about its first product when left out, by a bare route."""
    with site.service.client() as client:
        path = path or f"/inventory-items/by-product/{site.products.read_text().split()[0]}"
        answer = client.get(path).raise_for_status()
    file = rig.folder / f"{site.service.port}-answer"
    file.write_bytes(answer.content)
    with BareHttp(file) as server:
        yield server


def on_bare(rig: Rig, bare: BareHttp, load: str, ids: Path) -> Sample:
    """Load the bare route for a round."""
    with Cpu({"server": bare}) as cpu:
        found = rig.wrk(bare.url, load, ids)
    return Sample(found.rate, cpu.each(found.requests))


def noted(site: Site, measured: Measured) -> Measured:
    """Add how far the relay had come when the last round ended."""
    total, waiting = (
        site.value("SELECT count(*) FROM outbox"),
        site.value("SELECT count(*) FROM outbox WHERE published_at IS NULL"),
    )
    return Measured(
        values=measured.values,
        ours=measured.ours,
        baseline=measured.baseline,
        cpu=measured.cpu,
        notes=[f"of {total:,} events {total - waiting:,} had been relayed at the end"],
    )
