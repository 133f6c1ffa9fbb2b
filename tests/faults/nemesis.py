"""What can befall the processes, the servers and the ways between them: one fault after another, and some at once.

A seed settles which come, in which order, how long each lasts, and whom they strike. Every fault heals by itself.
Bytes are not corrupted here: without TLS nothing tells a wrong quantity from a right one.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import asyncpg
import psutil
from private_server import Server
from proxy import ACK, COMMIT, COMMITTED, DELIVER, PUBLISH, Cut, Proxy
from service import Service
from services import Postgres, RabbitMQ

from core.publishing.relay import LEASE_SECONDS

PAUSE_SECONDS = (1.0, 4.0)


class Process(NamedTuple):
    """One of our processes and its own ways to the servers."""

    name: str
    service: Service
    store: Proxy
    broker: Proxy


class World(NamedTuple):
    """All that can be struck."""

    processes: Sequence[Process]
    postgres: Postgres
    rabbitmq: RabbitMQ


class Strike(NamedTuple):
    """A fault that befell somebody: when (seconds from the start), and for how long."""

    at: float
    fault: str
    whom: str
    seconds: float


class Nemesis:
    """Strikes at random; nothing and nobody is struck twice at the same time."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self._busy: set[str] = set()
        self._begun = time.monotonic()
        self.strikes: list[Strike] = []

    async def rage(self, seconds: float) -> None:
        """Strike for so long, and return when everything has healed.

        Raises:
            AssertionError: a process had ended by itself.
        """
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() - self._begun < seconds:
                fault, whom, target = self._choose()
                if whom not in self._busy:
                    self._busy.add(whom)
                    tasks.create_task(self._strike(fault, whom, target))
                    await asyncio.sleep(self._dice.uniform(*PAUSE_SECONDS))

    def _choose(self) -> tuple["Fault", str, Any]:
        kind = self._dice.choices(tuple(FAULTS), weights=(4, 4, 1, 1))[0]
        fault = self._dice.choice(FAULTS[kind])
        if kind == "postgresql":
            return fault, kind, self._world.postgres
        if kind == "rabbitmq":
            return fault, kind, self._world.rabbitmq
        process = self._dice.choice(self._world.processes)
        if kind == "process":
            return fault, process.name, process.service
        way = self._dice.choice(("store", "broker")) if process.name.startswith("consumer") else "store"
        return fault, f"{process.name}'s way to the {way}", getattr(process, way)

    async def _strike(self, fault: "Fault", whom: str, target: Any) -> None:
        if isinstance(target, Server):
            assert target.running, f"{whom} has ended by itself."
        started = time.monotonic()
        await fault(target, random.Random(self._dice.random()))
        now = time.monotonic()
        name = fault.__name__.replace("_", " ").strip()
        self.strikes.append(Strike(started - self._begun, name, whom, now - started))
        self._busy.discard(whom)


Fault = Callable[[Any, random.Random], Awaitable[None]]


# -- anything that runs ----------------------------------------------------------------------------------------------


async def killed(server: Server, dice: random.Random) -> None:
    """``kill -9``, all its processes at once; it is started again a moment later."""
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(dice.uniform(0, 3))
    await asyncio.to_thread(server.start)


async def restarted(server: Server, dice: random.Random) -> None:
    """Told to end, and started again."""
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(dice.uniform(0, 1))
    await asyncio.to_thread(server.start)


async def asleep(server: Server, dice: random.Random) -> None:
    """SIGSTOP, for a while."""
    with stopped(server):
        await asyncio.sleep(dice.uniform(0.5, 5))


async def asleep_longer_than_the_lease(server: Server, _: random.Random) -> None:
    """SIGSTOP until another relay must have taken over."""
    with stopped(server):
        await asyncio.sleep(LEASE_SECONDS + 2)


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """All its processes are stopped while the block runs."""
    process = psutil.Process(server.pid)
    process.suspend()  # first, so that it has no more children
    family = [process, *process.children(recursive=True)]
    try:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.suspend()
        yield
    finally:
        for member in reversed(family):
            with suppress(psutil.NoSuchProcess):
                member.resume()


# -- a way -----------------------------------------------------------------------------------------------------------


async def reset(way: Proxy, _: random.Random) -> None:
    """Every connection is broken."""
    way.reset()


async def forsaken(way: Proxy, _: random.Random) -> None:
    """Every connection is broken at the far end, and nobody says so."""
    way.forsake()


async def shut(way: Proxy, dice: random.Random) -> None:
    """Nothing gets through and nobody is let in."""
    way.shut()
    await asyncio.sleep(dice.uniform(0.5, 5))
    way.heal()


async def silent(way: Proxy, dice: random.Random) -> None:
    """A black hole, for a while; then all that was swallowed arrives late."""
    way.black_hole()
    await asyncio.sleep(dice.uniform(0.5, 8))
    way.heal()


async def slow(way: Proxy, dice: random.Random) -> None:
    """Everything takes longer."""
    way.latency = dice.uniform(0.02, 0.2)
    await asyncio.sleep(dice.uniform(2, 6))
    way.heal()


async def sliced(way: Proxy, dice: random.Random) -> None:
    """Everything comes in small pieces."""
    way.slice_bytes = dice.randint(1, 40)
    await asyncio.sleep(dice.uniform(2, 6))
    way.heal()


async def cut(way: Proxy, dice: random.Random) -> None:
    """Broken at the worst moment: at a commit or its answer, at a publish, a delivery, or an acknowledgement."""
    places = [Cut("up", COMMIT), Cut("up", COMMIT, half=True), Cut("down", COMMITTED)]
    if way.url.startswith("amqp"):
        places = [Cut("up", PUBLISH), Cut("up", ACK), Cut("up", ACK, half=True), Cut("down", ACK), Cut("down", DELIVER)]
    way.was_cut.clear()
    way.next_cut = dice.choice(places)
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            await way.was_cut.wait()
    way.heal()


# -- a server --------------------------------------------------------------------------------------------------------


async def read_only(postgres: Postgres, dice: random.Random) -> None:
    """As after a failover: every new transaction may only read."""
    await execute(postgres, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    await asyncio.sleep(dice.uniform(1, 4))
    writable = "SET default_transaction_read_only = off"
    await execute(postgres, writable, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")


async def rid_of_its_clients(postgres: Postgres, _: random.Random) -> None:
    """An administrator ends every connection."""
    await execute(
        postgres, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datid <> 0"
    )


async def out_of_memory(rabbitmq: RabbitMQ, dice: random.Random) -> None:
    """The memory alarm: it reads nothing from who publishes."""
    await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.00001")
    await asyncio.sleep(dice.uniform(2, 8))
    await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")


async def execute(postgres: Postgres, *statements: str) -> None:
    """Run statements as an administrator, each for itself."""
    connection = await asyncpg.connect(postgres.url, timeout=30)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


FAULTS: dict[str, tuple[Fault, ...]] = {
    "process": (killed, killed, restarted, asleep, asleep_longer_than_the_lease),
    "way": (reset, forsaken, shut, silent, slow, sliced, cut, cut, cut),
    "postgresql": (killed, restarted, asleep, read_only, rid_of_its_clients),
    "rabbitmq": (killed, restarted, asleep, out_of_memory),
}
"""By whom they strike; what is named twice comes twice as often."""
