"""What the rows measure on: the tests' own throw-away servers, sites of the service on them, and the load generators.

PostgreSQL has its default durability, RabbitMQ takes every event into a bound queue, and the service is the real
command with its default settings (its log included).
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import aio_pika
import asyncpg
import msgspec
import psutil
from msgspec import Struct
from private_server import Server, apt_install
from rows import Sample
from service import Service, token
from services import Postgres, RabbitMQ, Redis
from stores import at_work, migrated, submit

from adapters.registry import connect
from core.events import EVENTS_EXCHANGE
from core.operations import CreateItem, CreateWarehouse, Operation
from core.stock import Item

HERE = Path(__file__).parent
WAREHOUSES = ("wh_1", "wh_2")
STOCK = 100_000_000
"""Units of every item: no round comes to their end."""
QUEUE = "bench"
QUEUE_ARGUMENTS = {"x-max-length": 100_000}
_PER_REQUEST, _AT_ONCE = 100, 100
T = TypeVar("T")


class Scale(Struct, frozen=True, kw_only=True):
    """How long everything takes."""

    rounds: int
    seconds: int
    products: int = 2_000
    relayed: int
    """Events that wait in the outbox for the relay."""
    consumed: int
    """Product events that wait in the queue."""
    history: tuple[int, int]
    """Ledger rows of the young and of the old store."""
    imported: int
    """Rows of the file that is imported."""
    listeners: int
    """Who follow the live events at once."""
    letters: int
    """Dead letters that are tried again."""
    drained: int
    """Events that wait after an outage."""
    reconciled: int
    """Items that are held against all that is on record of them."""
    writes: tuple[int, int]
    """Writes before the first and before the second look at the memory."""


FULL = Scale(
    rounds=5,
    seconds=6,
    relayed=50_000,
    consumed=10_000,
    history=(10_000, 2_000_000),
    imported=100_000,
    listeners=1_000,
    letters=10_000,
    drained=100_000,
    reconciled=1_000_000,
    writes=(20_000, 200_000),
)
QUICK = Scale(
    rounds=1,
    seconds=2,
    relayed=3_000,
    consumed=1_000,
    history=(2_000, 20_000),
    imported=2_000,
    listeners=50,
    letters=200,
    drained=3_000,
    reconciled=20_000,
    writes=(500, 2_000),
)


class Load(Struct, frozen=True):
    """What wrk found."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    lost: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class Rig:
    """The servers of one run, each started when it is first asked for and gone at the end."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self.folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="inventory-bench-")))
        return self

    def __exit__(self, *error: Any) -> None:
        self._ends.__exit__(*error)

    @cached_property
    def postgres(self) -> Postgres:
        """PostgreSQL; INVENTORY_TEST_POSTGRESQL_URL names another, as for the tests."""
        return self._ends.enter_context(Postgres(os.environ.get("INVENTORY_TEST_POSTGRESQL_URL")))

    @cached_property
    def rabbitmq(self) -> RabbitMQ:
        """RabbitMQ; INVENTORY_TEST_RABBITMQ_URL names another, as for the tests."""
        return self._ends.enter_context(RabbitMQ(os.environ.get("INVENTORY_TEST_RABBITMQ_URL")))

    @cached_property
    def redis(self) -> Redis:
        """Redis; INVENTORY_TEST_REDIS_URL names another, as for the tests."""
        return self._ends.enter_context(Redis(os.environ.get("INVENTORY_TEST_REDIS_URL")))

    @contextmanager
    def database(self) -> Iterator[str]:
        """Lend an empty database."""
        url = self.postgres.create_database()
        try:
            yield url
        finally:
            self.postgres.drop_database(url)

    @contextmanager
    def site(self, *, products: int | None = None, items_each: int = 1, **settings: Any) -> Iterator["Site"]:
        """Prepare a store and a vhost of their own with so many products; the service is yet to be started.

        Args:
            products: how many (the scale's).
            items_each: in how many warehouses each is.
            settings: the service's, by name, such as ``workers=2``.
        """
        with self.database() as store:
            broker = self.rabbitmq.create_vhost()
            made = await_(_stock(store, products or self.scale.products, items_each))
            await_(_declare(broker))
            yield Site(self, Service("serve", store=store, broker=broker, **settings), broker, made)

    @contextmanager
    def serving(self, **settings: Any) -> Iterator["Site"]:
        """Prepare a site and serve it."""
        with self.site(**settings) as site, site.service:
            yield site

    @contextmanager
    def natural(self) -> Iterator[Callable[[int], Sample]]:
        """Lend pgbench's natural reservations: called with how many rows they are spread over."""
        with self.database() as url:
            execute(url, (HERE / "natural_schema.sql").read_text())
            yield partial(self._pgbench, url)

    def wrk(self, url: str, load: str, ids: Path, *, connections: int = 128, seconds: int = 0, pause: str = "") -> Load:
        """Load a service for so many seconds (the scale's), as ``load.lua`` says.

        Raises:
            RuntimeError: wrk is not there, or an answer was not a success.
        """
        if shutil.which("wrk") is None:
            apt_install("wrk")
        threads = min(2, connections)
        told = subprocess.run(
            [
                "wrk",
                f"-t{threads}",
                f"-c{connections}",
                f"-d{seconds or self.scale.seconds}",
                "--timeout=30s",
                "-sload.lua",
                url,
            ],
            cwd=HERE,
            env=os.environ | {"ITEMS": str(ids), "TOKEN": token(), "LOAD": load, "PAUSE": pause},
            capture_output=True,
            text=True,
            check=True,
        )
        found = msgspec.json.decode(told.stdout.splitlines()[-1], type=Load)
        if found.refused or found.lost:
            raise RuntimeError(f"Not every request for {load} at {url} was answered with success: {found}")
        return found

    def python(self, script: str, *arguments: object, timeout: float = 600) -> Any:
        """Run one of our scripts in a process of its own and return what it printed, decoded."""
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=timeout)
        return msgspec.json.decode(told.stdout)

    @contextmanager
    def beside(self, script: str, *arguments: object) -> Iterator[Callable[[], Any]]:
        """Run one of our scripts, which says when it is ready; the callable ends it and returns what it printed.

        Raises:
            RuntimeError: it could not start.
        """
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                if process.stdout is None or process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"{script} could not start.")
                yield lambda: msgspec.json.decode(process.communicate(timeout=60)[0])
            finally:
                process.kill()

    def _pgbench(self, url: str, rows: int) -> Sample:
        pgbench = Postgres.installed() / "pgbench"
        options = ["-n", "-c32", "-j1", "-Mprepared", f"-T{self.scale.seconds}", f"-Drows={rows}", "-fnatural.sql"]
        with Cpu({"PostgreSQL": self.postgres}) as cpu:
            told = subprocess.run([pgbench, *options, url], cwd=HERE, capture_output=True, text=True, check=True).stdout
        if (rate := re.search(r"tps = ([\d.]+)", told)) is None or (
            done := re.search(r"actually processed: (\d+)", told)
        ) is None:
            raise RuntimeError(f"pgbench said nothing of its rate:\n{told}")
        return Sample(float(rate[1]), cpu.each(int(done[1])))


class Site:
    """A store with stock in it, its vhost with a queue that takes every event, and the service on both."""

    def __init__(self, rig: Rig, service: Service, broker: str, items: Sequence[Item]) -> None:
        self._rig = rig
        self.service = service
        self.store = service.store
        self.broker = broker
        self.items = self._listed("items", [item.id for item in items])
        self.hot = self._listed("hot", [items[0].id])
        self.products = self._listed("products", list(dict.fromkeys(item.product_id for item in items)))

    def load(self, load: str, ids: Path, *, each: int = 1, **how: Any) -> Sample:
        """Load the service for a round; ``each`` is how many units of the rate one request is."""
        with self.cpu() as cpu:
            found = self.run(load, ids, **how)
        return Sample(found.rate * each, cpu.each(found.requests * each))

    def run(self, load: str, ids: Path, **how: Any) -> Load:
        """Run wrk against the service; see ``Rig.wrk``.

        Raises:
            RuntimeError: an answer was not a success; the message has what the service logged of the last such one.
        """
        try:
            return self._rig.wrk(self.service.url, load, ids, **how)
        except RuntimeError as error:
            refusals = [line for line in self.service.logged().splitlines() if re.search(r'"status": ?[45]', line)]
            raise RuntimeError(f"{error}; the log says {refusals[-1:]}") from error

    def cpu(self) -> "Cpu":
        """Measure who takes how much CPU time while the block runs."""
        return Cpu({"service": self.service, "PostgreSQL": self._rig.postgres, "RabbitMQ": self._rig.rabbitmq})

    def resident_mb(self) -> float:
        """The resident memory of all the service's processes (MB)."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.service.pids()) / 1e6

    def value(self, query: str) -> Any:
        """Return the value a query selects."""
        return value(self.store, query)

    def wait_until(self, query: str, *, seconds: float = 600) -> None:
        """Return when a query selects true.

        Raises:
            TimeoutError: it did not in time.
        """
        await_(_until(self.store, query, seconds))

    def _listed(self, name: str, ids: Sequence[str]) -> Path:
        file = self._rig.folder / f"{self.service.port}-{name}"
        file.write_text("\n".join(ids))
        return file


class Cpu:
    """The CPU time that servers take, with all their processes, while the block runs; without what is not ours."""

    def __init__(self, servers: dict[str, Server]) -> None:
        self._servers = {name: server for name, server in servers.items() if server.owned}

    def __enter__(self) -> Self:
        self._before = self._taken()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = {name: after - self._before[name] for name, after in self._taken().items()}

    def each(self, units: int) -> dict[str, float]:
        """Microseconds a unit."""
        return {name: seconds / units * 1e6 for name, seconds in self.seconds.items()}

    def _taken(self) -> dict[str, float]:
        return {name: _cpu_seconds(server.pid) for name, server in self._servers.items()}


def _cpu_seconds(pid: int) -> float:
    process = psutil.Process(pid)
    taken = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            taken += sum(member.cpu_times()[:4])  # those of children that have ended are their parent's
        except psutil.NoSuchProcess:
            continue
    return taken


def await_(coroutine: Any) -> Any:
    """Run one coroutine to its end."""
    return asyncio.run(coroutine)


def execute(url: str, statements: str) -> None:
    """Run statements without parameters, each in a transaction of its own unless they say otherwise."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statements)
        await connection.close()

    await_(run())


def value(url: str, query: str) -> Any:
    """Return the value a query selects."""

    async def run() -> Any:
        connection = await asyncpg.connect(url)
        found = await connection.fetchval(query)
        await connection.close()
        return found

    return await_(run())


async def bind(broker: str, exchange: str = EVENTS_EXCHANGE, queue: str = QUEUE) -> None:
    """Bind a durable queue to everything an exchange gets; what nobody fetches is dropped in the end."""
    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, durable=True, arguments=QUEUE_ARGUMENTS)
        await channel.declare_exchange(exchange, "topic", durable=True)
        await declared.bind(exchange, "#")
        await declared.purge()


async def _declare(url: str) -> None:
    async with connect("broker", url) as broker:
        await broker.declare()
    await bind(url)


async def _until(url: str, query: str, seconds: float) -> None:
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(seconds):
        while not await connection.fetchval(query):
            await asyncio.sleep(0.1)
    await connection.close()


async def _stock(url: str, products: int, items_each: int) -> list[Item]:
    """Make products with ``items_each`` items, one SKU in as many warehouses, and plenty of stock; return the items."""
    creates: list[Operation] = [
        CreateItem(sku=f"SKU-{number}", product_id=f"prod_{number}", warehouse_id=place, initial_quantity=STOCK)
        for number in range(products)
        for place in WAREHOUSES[:items_each]
    ]
    async with migrated(url) as store, at_work(store) as writer:
        await submit(writer, *(CreateWarehouse(id=id, name=f"Warehouse {id}") for id in WAREHOUSES))
        parts = [creates[start : start + _PER_REQUEST] for start in range(0, len(creates), _PER_REQUEST)]
        made = []
        for start in range(0, len(parts), _AT_ONCE):
            made += await asyncio.gather(*(submit(writer, *part) for part in parts[start : start + _AT_ONCE]))
    items = [item for part in made for item in part if isinstance(item, Item)]
    if len(items) < len(creates):
        raise RuntimeError(f"Only {len(items)} of {len(creates)} items could be made: {made[-1][-1]}")
    return items
