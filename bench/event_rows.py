"""Events out and in, on a real RabbitMQ, beside bare aio-pika on the same one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles

import msgspec
from bare_amqp import CONSUMED_QUEUE
from rig import WAREHOUSES, Rig, Site, await_, bind, execute
from rows import Measured, Sample, absolute, alternate, row

BARE_EXCHANGE, BARE_QUEUE = "bare.events", "bare"
CONSUMER_CONNECTIONS = 10
RATE = 500
_CONNECTIONS = 50
ALL_RELAYED = "SELECT NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)"
# Materialized, or a planner that knows nothing of new rows counts them all once for each of them.
_RELAYED = """
  WITH went AS MATERIALIZED (SELECT published_at AS at FROM outbox WHERE sequence >= {first}),
       began AS MATERIALIZED (SELECT min(at) AS at FROM went)
SELECT count(*) FILTER (WHERE went.at > began.at) / extract(epoch FROM max(went.at) - min(began.at)) FROM went, began
"""
_CONSUMED = """
  WITH came AS MATERIALIZED (SELECT received_at AS at FROM inbox WHERE event_id IN ({ids})),
       began AS MATERIALIZED (SELECT min(at) AS at FROM came)
SELECT count(*) FILTER (WHERE came.at > began.at) / extract(epoch FROM max(came.at) - min(began.at)) FROM came, began
"""
_BACKLOG = """
INSERT INTO outbox
  (product_id, sequence, event_id, event_type, aggregate_id, correlation_id, critical, body, created_at)
SELECT 'prod_' || n % {products}, {first} + n / {products}, gen_random_uuid(), event_type, aggregate_id, correlation_id,
       false, body, clock_timestamp()
  FROM generate_series(0, {count} - 1) AS n,
       (SELECT * FROM outbox WHERE event_type = 'StockLevelChanged' LIMIT 1) AS example
"""


@row("relay", "events relayed / bare confirmed publishing", unit="events/s", floor=0.7, aim=1)
def relay(rig: Rig) -> Measured:
    count = rig.scale.relayed

    def ours(site: Site, first: int) -> Sample:
        with site.cpu() as cpu:
            fill_outbox(site, rig.scale.products, count, first)
            site.wait_until(ALL_RELAYED)
        return Sample(relayed(site, first), cpu.each(count))

    return beside_bare_publishing(rig, ours, count, rounds=rig.scale.rounds, note="a round")


def beside_bare_publishing(
    rig: Rig, ours: Callable[[Site, int], Sample], count: int, *, rounds: int, note: str
) -> Measured:
    """Serve a site and measure rounds of ``ours``, on events from a sequence on, beside bare publishing of as many."""
    with rig.serving() as site:
        site.wait_until(ALL_RELAYED)
        size = site.value("SELECT length(body) FROM outbox WHERE event_type = 'StockLevelChanged' LIMIT 1")
        firsts = iter(range(1_000_000, 2**62, 1_000_000))

        def relaying() -> Sample:
            await_(bind(site.broker))
            return ours(site, next(firsts))

        def bare() -> Sample:
            await_(bind(site.broker, BARE_EXCHANGE, BARE_QUEUE))
            told = rig.python("bare_amqp.py", "publish", site.broker, BARE_EXCHANGE, "any", count, size)
            return Sample(told["rate"])

        return alternate(relaying, bare, rounds=rounds, notes=[f"{count:,} events of {size} bytes {note}"])


def fill_outbox(site: Site, products: int, count: int, first: int) -> None:
    """Let so many events wait, spread over the products, whose sequences go on at ``first``."""
    execute(site.store, _BACKLOG.format(count=count, first=first, products=products))


def relayed(site: Site, first: int) -> float:
    """How many of the events from ``first`` on went out in a second."""
    return float(site.value(_RELAYED.format(first=first)))


@row("consume", "product events consumed / bare consumer with one INSERT", unit="events/s", floor=0.5, aim=2)
def consume(rig: Rig) -> Measured:
    count = rig.scale.consumed
    with rig.site(products=10, default_warehouses=WAREHOUSES[0]) as site, site.service, rig.database() as database:
        firsts = iter(range(0, 2**62, count))

        def ours() -> Sample:
            first = next(firsts)
            site.service.stop()
            rig.python("bare_amqp.py", "fill", site.broker, first, count)
            site.service.start()
            before = _known(site, first)
            with site.cpu() as cpu:
                site.wait_until(f"SELECT count(*) >= {first + count} FROM inbox")
            ids = f"SELECT 'new-' || n FROM generate_series({first}, {first + count - 1}) AS n"
            return Sample(float(site.value(_CONSUMED.format(ids=ids))), cpu.each(max(count - before, 1)))

        def bare(connections: int = CONSUMER_CONNECTIONS) -> Sample:
            told = rig.python("bare_amqp.py", "consume", site.broker, database, CONSUMED_QUEUE, count, connections)
            return Sample(told["rate"])

        measured = alternate(ours, bare, rounds=rig.scale.rounds)
        rig.python("bare_amqp.py", "fill", site.broker, next(firsts), count)
        return msgspec.structs.replace(
            measured,
            notes=[
                f"ProductCreated, each makes one item; the bare consumer has {CONSUMER_CONNECTIONS} connections to "
                f"PostgreSQL and with one alone does {bare(1).value:,.0f}/s"
            ],
        )


@row("latency", "commit to subscriber at 500 writes/s, p99", unit="ms", floor=50, aim=15, of_ratio=False, less=True)
def latency(rig: Rig) -> Measured:
    with rig.serving() as site:
        pause = _paced(site)
        p99s, halves, rates = [], [], []
        for _ in range(rig.scale.rounds):
            with _subscribed(rig, site) as delays:
                load = site.run("reservations", site.items, connections=_CONNECTIONS, pause=pause)
            rates.append(load.rate)
            halves.append(median(delays))
            p99s.append(quantiles(delays, n=100)[98])
        reached = f"commit to subscriber at {median(rates):,.0f} writes/s, p99"
        return absolute(p99s, what=reached, notes=[f"p50 {median(halves):.1f} ms; the pace wanted is {RATE} writes/s"])


def _known(site: Site, first: int) -> int:
    return int(site.value("SELECT count(*) FROM inbox")) - first


def _paced(site: Site) -> str:
    """The pause between two requests of a connection at which all of them make ``RATE`` together (ms)."""
    even = _CONNECTIONS / RATE * 1000
    load = site.run("reservations", site.items, connections=_CONNECTIONS, pause=str(even))
    return str(max(even - (_CONNECTIONS / load.rate * 1000 - even), 1))


@contextmanager
def _subscribed(rig: Rig, site: Site) -> Iterator[list[float]]:
    """Listen to events while the block runs; the list is filled when it is left."""
    delays: list[float] = []
    with rig.beside("subscriber.py", site.broker) as told:
        yield delays
        delays += told()
