"""One seed: a world is made, things go wrong in it, it heals, comes to rest, and is checked."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from random import Random
from typing import Any, TypeVar

from msgspec import Struct
from simulation.checks import broken_promises
from simulation.service import Node, Servers
from simulation.traffic import POISON, Traffic
from simulation.virtual import Process, Stuck, VirtualLoop, determined
from simulation.world import Faults, World

from ports.outbox import RELAY

T = TypeVar("T")
KINDS = (
    *("is killed", "is told to end", "is stopped", "is away", "is disconnected", "forgets everything"),
    *("commit was done, but", "mark published was done, but", "publish", "block event", "park", "claim letters"),
    *("count delivery", "wait for locks", "took the relay's lease", "heard again", "dies of a product"),
)
"""What must happen in some of many seeds, or they would show nothing."""
_REST_SECONDS = 900.0
_SHOWN = 400


class Run(Struct, frozen=True):
    """What came of a seed: what promises were broken, and what happened."""

    seed: int
    broken: tuple[str, ...]
    trace: tuple[tuple[float, str, str, object], ...]
    faults: Faults

    @property
    def digest(self) -> str:
        """The same for two runs in which the same happened."""
        return sha256("\n".join(f"{at} {who} {what}" for at, who, what, _ in self.trace).encode()).hexdigest()

    @property
    def happened(self) -> set[str]:
        """Which kinds of things happened, by the first words of the trace."""
        return {kind for kind in KINDS for _, _, what, _ in self.trace if what.startswith(kind)}

    def story(self) -> str:
        """Tell what happened, the end of it in full."""
        left_out = [f"… {len(self.trace) - _SHOWN} steps before"] if len(self.trace) > _SHOWN else []
        steps = [_line(step) for step in self.trace[-_SHOWN:]]
        promises = [f"  {promise}" for promise in self.broken]
        head = [f"Seed {self.seed} broke no promise."]
        if promises:
            head = [f"Seed {self.seed} broke promises (again with: just simulate --seed {self.seed}):", *promises]
        return "\n".join([*left_out, *steps, *head, f"  {self.faults}"])


def run(seed: int, *, logs: bool = False) -> Run:
    """Run one seed; with ``logs``, what the service would have logged is in the trace."""
    loop = VirtualLoop()
    world = World(loop, seed)
    with determined(loop, seed), _logging(world if logs else None):
        town = _Town(world)
        try:
            loop.run(town.live())
        except Stuck as stuck:
            world.violated(str(stuck))
        world.violations += [f"in the loop: {failure}" for failure in loop.failures]
        world.over = True
        loop.clear()
    return Run(seed, tuple(world.violations), tuple(world.trace), town.faults)


class _Town:
    """The whole world of a seed."""

    def __init__(self, world: World) -> None:
        self.faults = _drawn(world.chances)
        self._world = world
        self._draw = world.chances
        self._nodes: list[Node] = []
        self._healed = False

    async def live(self) -> None:
        """From the first process to the last check."""
        world = self._world
        servers = self._servers = Servers(world)
        world.batch = self._draw.choice((1, 2, 5, 500))
        world.crash = self._crash
        reads = self._draw.random() < 0.3
        kinds = [("both-1", reads, True), ("api-1", reads, False), ("consumer-1", False, True)]
        kinds = kinds[: self._draw.choice((2, 3))]
        self._nodes = [Node(servers, name, reads=reads, moves=moves) for name, reads, moves in kinds]
        traffic = Traffic(servers, self._nodes)
        await traffic.prepare()
        world.faults = self.faults
        world.deadly = {POISON} if self._draw.random() < 0.2 else set()
        trouble = asyncio.create_task(self._trouble())
        users = [traffic.client(self._draw.randint(4, 8)) for _ in range(3)]
        users += [traffic.reader(20)] if reads else []
        await asyncio.gather(*users, traffic.product_service(self._draw.randint(4, 12)))
        trouble.cancel()
        await self._heal()
        if await self._come_to_rest():
            world.violations += broken_promises(servers.database, servers.exchange, traffic)
        else:
            world.violated(f"there was no rest: {self._unrest()}")

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        """Every now and then something happens to a process or to a server."""
        rate = self._draw.choice((0.2, 0.7, 1.5))
        kinds = [
            *(self._kill, self._end, self._freeze, self._freeze_relay, self._outage),
            *(self._cut, self._forget, self._refuse),
        ]
        kinds = self._draw.sample(kinds, self._draw.randint(1, len(kinds)))
        while True:
            await asyncio.sleep(self._draw.expovariate(rate))
            self._world.outside(self._draw.choice(kinds)(self._draw.choice(self._nodes)))

    async def _kill(self, node: Node) -> None:
        node.kill()

    async def _end(self, node: Node) -> None:
        if node.is_up:
            await node.end()

    async def _freeze(self, node: Node) -> None:
        """SIGSTOP, for a moment or past its leases and connections."""
        await self._stop(node.process, self._draw.choice((0.3, 3.0, 12.0, 20.0)) * (0.5 + self._draw.random()))

    async def _freeze_relay(self, _: Node) -> None:
        """SIGSTOP past its lease for whoever relays, with something in hand: another goes on with that meanwhile."""
        if relays := await self._soon(self._busy_relays):
            await self._stop(relays[0], 20.0 * (1 + self._draw.random()))

    def _busy_relays(self) -> list[Process]:
        database = self._servers.database
        owner, _, _ = database.leases.get(RELAY, ("", 0, 0.0))
        return [node.process for node in self._nodes if node.process.name == owner and database.waiting]

    async def _stop(self, process: Process, seconds: float) -> None:
        self._world.tell(process.name, f"is stopped for {seconds:.1f} s")
        process.stop()
        await asyncio.sleep(min(seconds, 10.0))
        if seconds > 10.0:
            self._servers.disconnect(process)
            await asyncio.sleep(seconds - 10.0)
        self._world.tell(process.name, "goes on")
        process.go_on()

    async def _outage(self, _: Node) -> None:
        server = self._draw.choice(("store", "broker", "cache"))
        self._world.tell(server, "is away")
        self._world.away.add(server)
        await asyncio.sleep(self._draw.choice((0.2, 2.0, 6.0)))
        self._world.tell(server, "is back")
        self._world.away.discard(server)

    async def _cut(self, node: Node) -> None:
        self._servers.disconnect(node.process)

    async def _forget(self, _: Node) -> None:
        self._servers.cache.forget()

    async def _refuse(self, node: Node) -> None:
        """One of the next events is one that the broker takes from nobody, until an operator has seen to it."""
        if waiting := await self._soon(lambda: [*self._servers.database.waiting]):
            self._servers.exchange.refused.add(self._draw.choice(waiting))

    async def _soon(self, look: Callable[[], list[T]]) -> list[T]:
        """Return what there is, as soon as it is there; nothing where that takes long or the world heals first."""
        for _ in range(100):
            if self._healed:
                break
            if found := look():
                return found
            await asyncio.sleep(0.005)
        return []

    def _crash(self, process: Process) -> None:
        for node in self._nodes:
            if node.process is process:
                node.kill()

    # -- and how it ends ---------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        world = self._world
        world.tell("world", "heals")
        self._healed = True
        world.faults = Faults()
        world.away.clear()
        world.deadly.clear()
        self._servers.exchange.refused.clear()
        for node in self._nodes:
            node.process.go_on()
        if self._draw.random() < 0.5:
            self._nodes[0].kill()
            for node in self._nodes[1:]:
                node.retire()
            del self._nodes[1:]

    async def _come_to_rest(self) -> bool:
        """Wait until nothing is left to do; meanwhile an operator retries dead letters and releases what is blocked."""
        database, loop = self._servers.database, self._world.loop
        until, acted_at = loop.time() + _REST_SECONDS, 0.0
        while loop.time() < until:
            await asyncio.sleep(1.0)
            database.blocked.clear()
            if not self._unrest():
                if acted_at:
                    return True
                acted_at = loop.time()
                self._world.tell("operator", f"retries {database.letters.retry_unresolved(loop.time())} dead letters")
        return False

    def _unrest(self) -> list[str]:
        """Say what is still to be done."""
        database, exchange = self._servers.database, self._servers.exchange
        left = {
            "nobody is up": not all(node.is_up for node in self._nodes),
            "messages": not exchange.is_empty,
            "events": database.waiting,
            "holds": database.due(database.now()),
            "letters": [
                kept.id for kept in database.letters.by_fingerprint.values() if kept.status in ("WAITING", "RETRYING")
            ],
            "transactions": any(process.alive for process, open_ in database.sessions.items() if open_),
        }
        return [name for name, what in left.items() if what]


def _drawn(draw: Random) -> Faults:
    """Return a seed's faults: of each kind none, few or many."""

    def chance(few: float, many: float) -> float:
        return draw.choice((0.0, 0.0, few, many))

    return Faults(
        question_lost=chance(0.005, 0.03),
        answer_lost=chance(0.005, 0.03),
        killed_before=chance(0.001, 0.005),
        killed_after=chance(0.001, 0.005),
        publish_cut=chance(0.05, 0.4),
        publish_refused=chance(0.02, 0.2),
        delivered_twice=chance(0.1, 0.5),
        out_of_order=chance(0.1, 0.5),
        slow=chance(0.005, 0.03),
    )


@contextmanager
def _logging(world: World | None) -> Iterator[None]:
    """Have what is logged in the trace, or nowhere."""
    root, handler = logging.getLogger(), _Tell(world) if world else logging.NullHandler()
    before = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.NOTSET if world else logging.CRITICAL)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:], level, disabled = before
        root.setLevel(level)
        logging.disable(disabled)


class _Tell(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.tell("log", self.format(record))


def _line(step: tuple[float, str, str, Any]) -> str:
    at, who, what, more = step
    said = "" if more is None or more == "" else f" → {more!r}"[:300]
    return f"{at:10.4f}  {who:14} {what}{said}"
