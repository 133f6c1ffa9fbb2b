"""What must not grow: the time of a write with the records behind it, and the memory with the writes."""

import time

from rig import HERE, Rig, Site, execute
from rows import Measured, absolute, alternate, row

IDLE_SECONDS = 5


@row("history", "reservations at 2,000,000 ledger rows / at 10,000", unit="requests/s", floor=0.9, aim=1)
def history(rig: Rig) -> Measured:
    few, many = rig.scale.history
    # Reconciling reads all there is, in its own time; here it would fall into one round and not into the other.
    with rig.site(reconcile_minutes=0) as old, rig.site(reconcile_minutes=0) as young:
        age(old, ledger_rows=many)
        age(young, ledger_rows=few)
        with old.service, young.service:
            return alternate(
                lambda: old.load("reservations", old.items),
                lambda: young.load("reservations", young.items),
                rounds=rig.scale.rounds,
                what=f"reservations at {many:,} ledger rows / at {few:,}",
                notes=["each with its reservation, event and stored answer"],
            )


@row("memory", "resident memory of `inventory serve`, idle", unit="MB", floor=160, aim=125, of_ratio=False, less=True)
def memory(rig: Rig) -> Measured:
    with rig.site() as site:
        seen = []
        for _ in range(rig.scale.rounds):
            with site.service:
                time.sleep(IDLE_SECONDS)
                seen.append(site.resident_mb())
        return absolute(seen)


@row("leaks", "resident memory after 200,000 writes / after 20,000", unit="MB", floor=1.10, aim=1.02, less=True)
def leaks(rig: Rig) -> Measured:
    few, many = rig.scale.writes
    with rig.serving() as site:
        after_few = _resident_after(site, few)
        after_many = _resident_after(site, many)
    return Measured(
        values=[after_many / after_few],
        ours=[after_many],
        baseline=[after_few],
        what=f"resident memory after {many:,} writes / after {few:,}",
        notes=["reservations, all events relayed"],
    )


@row("ready", "from `inventory serve` to ready", unit="s", floor=2, aim=1, of_ratio=False, less=True)
def ready(rig: Rig) -> Measured:
    with rig.site(products=10) as site, site.service:
        seconds = []
        for _ in range(rig.scale.rounds):
            site.service.stop()
            began = time.monotonic()
            site.service.start()
            seconds.append(time.monotonic() - began)
        return absolute(seconds, notes=["until /health/ready says 200, asked every 50 ms; the store is migrated"])


def age(site: Site, *, ledger_rows: int) -> None:
    """Give a site's store a past, before its service has ever run."""
    execute(site.store, (HERE / "history.sql").read_text().replace(":reservations", str(ledger_rows // 2)))
    execute(site.store, "VACUUM ANALYZE")
    execute(site.store, "CHECKPOINT")


def _resident_after(site: Site, writes: int) -> float:
    """Load until there have been so many reservations, let the relay finish, and look (MB)."""
    while (done := site.value("SELECT count(*) FROM reservation")) < writes:
        site.run("reservations", site.items, seconds=2 if writes - done < 5_000 else 0)
    site.wait_until("SELECT NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)")
    time.sleep(IDLE_SECONDS)
    return site.resident_mb()
