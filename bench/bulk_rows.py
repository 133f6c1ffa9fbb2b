"""Much at once: a file of receipts, a backlog after an outage, and dead letters tried again."""

import subprocess
import time
from pathlib import Path

from event_rows import ALL_RELAYED, beside_bare_publishing, fill_outbox, relayed
from rig import Rig, Site, execute
from rows import Measured, Sample, absolute, alternate, row
from service import COMMAND, environment

_LOOK_SECONDS = 0.1
_LETTERS = """
INSERT INTO dead_letter
  (id, fingerprint, message_id, event_type, exchange, routing_key, correlation_id, headers, body, code, detail, stack,
   attempts, first_failed_at, last_failed_at, status, cause, group_id, event_id, product_id, skus, lapses)
SELECT 'dl_' || {first} + n, 'f' || {first} + n, 'm' || {first} + n, 'ProductCreated', 'product.events',
       'product.productcreated.product', 'bench', '{{}}',
       convert_to(json_build_object('eventId', 'letter-' || {first} + n, 'eventType', 'ProductCreated',
         'eventVersion', '1.0.0', 'timestamp', '2026-11-20T12:00:00Z', 'payload', json_build_object(
           'productId', 'letter-' || {first} + n, 'sku', 'LETTER-' || {first} + n, 'name', 'Widget'))::text, 'UTF8'),
       'unavailable', 'bench', '', 1, clock_timestamp(), clock_timestamp(), 'UNRESOLVED', 'bench', 'bench',
       'letter-' || {first} + n, 'letter-' || {first} + n, '[]', 0
  FROM generate_series(0, {count} - 1) AS n
"""


@row("import", "rows of a file imported / the same rows one request after another", unit="rows/s", floor=10, aim=50)
def stock_import(rig: Rig) -> Measured:
    return _beside_requests(rig, connections=1)


@row("import-many", "rows of a file imported / the same rows over 128 connections", unit="rows/s")
def stock_import_many(rig: Rig) -> Measured:
    return _beside_requests(rig, connections=128)


def _beside_requests(rig: Rig, *, connections: int) -> Measured:
    count = rig.scale.imported
    with rig.serving() as site:

        def ours() -> Sample:
            file = _receipts(rig, site, count)
            with site.cpu() as cpu:
                began = time.perf_counter()
                _imported(site, file)
                took = time.perf_counter() - began
            return Sample(count / took, cpu.each(count))

        def requests() -> Sample:
            return site.load("receipts", site.items, connections=connections)

        return alternate(ours, requests, rounds=min(rig.scale.rounds, 3), notes=[f"{count:,} receipts by the command"])


def _receipts(rig: Rig, site: Site, count: int) -> Path:
    """Write a file that nobody has imported yet."""
    items = site.items.read_text().split()
    file, run = rig.folder / "receipts.csv", time.time_ns()
    lines = (f"{items[number % len(items)]},1,PO-{run}-{number}\n" for number in range(count))
    file.write_text("inventoryItemId,quantity,referenceNumber\n" + "".join(lines))
    return file


def _imported(site: Site, file: Path) -> None:
    command = [COMMAND, "stock", "import", file, "--json"]
    settings = environment(store=site.store, broker=site.broker)
    told = subprocess.run(command, env=settings, capture_output=True, check=False)
    if told.returncode:
        raise RuntimeError(f"The file was not imported: {told.stdout[-500:]!r} {told.stderr[-500:]!r}")


@row("drain", "events relayed after an outage / bare confirmed publishing", unit="events/s", floor=0.7, aim=1)
def drain(rig: Rig) -> Measured:
    count = rig.scale.drained

    def ours(site: Site, first: int) -> Sample:
        site.service.stop()
        fill_outbox(site, rig.scale.products, count, first)
        site.service.start()
        site.wait_until(ALL_RELAYED)
        return Sample(relayed(site, first))

    return beside_bare_publishing(rig, ours, count, rounds=min(rig.scale.rounds, 3), note="wait when it starts")


@row("drain-memory", "most resident memory while draining / 1.1 x idle + 50 MB", unit="MB", floor=1, aim=0.9, less=True)
def drain_memory(rig: Rig) -> Measured:
    count = rig.scale.drained
    with rig.serving() as site:
        site.wait_until(ALL_RELAYED)
        site.service.stop()
        site.service.start()
        time.sleep(3.0)
        idle = site.resident_mb()
        fill_outbox(site, rig.scale.products, count, 1_000_000)
        most = idle
        while site.value("SELECT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)"):
            most = max(most, site.resident_mb())
            time.sleep(_LOOK_SECONDS)
    allowed = 1.1 * idle + 50
    return Measured(
        values=[most / allowed],
        ours=[most],
        baseline=[allowed],
        notes=[f"idle {idle:.0f} MB; {count:,} events"],
    )


@row("letters", "dead letters tried again in bulk", unit="letters/s", floor=500, aim=1_000, of_ratio=False)
def letters(rig: Rig) -> Measured:
    count = rig.scale.letters
    with rig.site(products=10, default_warehouses="wh_1") as site, site.service, site.service.client() as client:
        rates, looks = [], set()
        for number in range(min(rig.scale.rounds, 3)):
            execute(site.store, _LETTERS.format(first=number * count, count=count))
            body = {"filter": {"status": "UNRESOLVED"}, "canary": False, "reason": "bench"}
            began = time.perf_counter()
            location = client.post("/admin/dead-letters/retries", json=body).raise_for_status().headers["location"]
            while (retry := client.get(location).raise_for_status().json()["data"])["endedAt"] is None:
                looks.add(retry["succeeded"])
                time.sleep(_LOOK_SECONDS)
            rates.append(count / (time.perf_counter() - began))
            if retry["succeeded"] != count:
                raise RuntimeError(f"Not every letter was applied: {retry}")
        return absolute(
            rates, notes=[f"{count:,} ProductCreated a round; {len(looks)} different counts were shown meanwhile"]
        )
