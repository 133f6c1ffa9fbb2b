"""What surrounds the processes: who can be reached, how long it takes, what gets lost, and a record of all of it."""

from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any, TypeVar

from msgspec import Struct
from simulation.virtual import Process, VirtualLoop

from core.errors import InventoryError, Unavailable

T = TypeVar("T")


class Faults(Struct, kw_only=True):
    """How likely each fault is, every time it could happen; drawn anew for every seed, many of them nought.

    The first four are for each question to a server, the next for each publish, the others for each message or read.
    """

    question_lost: float = 0.0
    answer_lost: float = 0.0
    killed_before: float = 0.0
    killed_after: float = 0.0
    publish_cut: float = 0.0
    publish_refused: float = 0.0
    delivered_twice: float = 0.0
    out_of_order: float = 0.0
    slow: float = 0.0


class World:
    """One simulated world: a loop, a seed's chances, the faults, and a trace of what happened."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop = loop
        self.chances = Random(seed)
        self.faults = Faults()
        self.away: set[str] = set()
        """Servers that nobody can reach now: ``store``, ``broker``, ``cache``."""
        self.batch = 500
        """How many events the store hands to a relay at once, at most."""
        self.deadly: set[str] = set()
        """Products of which nobody can save a change without dying of it."""
        self.over = False
        self.trace: list[tuple[float, str, str, object]] = []
        self.violations: list[str] = []
        self.crash: Callable[[Process], None] = lambda process: process.kill()
        self._outside = Context()

    def tell(self, who: str, what: str, more: object = "") -> None:
        """Put on record what happened."""
        if not self.over:
            self.trace.append((self.loop.time(), who, what, more))

    def violated(self, what: str) -> None:
        """Put on record that a promise was broken."""
        self.tell("CHECK", what)
        self.violations.append(what)

    def happens(self, chance: float) -> bool:
        """Draw."""
        return chance > 0 and self.chances.random() < chance

    def later(self, seconds: float, callback: Callable[..., Any], *arguments: Any) -> None:
        """Have something happen outside of every process."""
        self.loop.call_later(seconds, callback, *arguments, context=self._outside)

    def outside(self, doing: Coroutine[Any, Any, Any]) -> Any:
        """Begin something outside of every process."""
        return self.loop.create_task(doing, context=self._outside.copy())

    async def ask(
        self,
        process: Process,
        server: str,
        what: str,
        effect: Callable[[], T],
        *,
        lost: type[InventoryError] = Unavailable,
    ) -> T:
        """Have a server do something, and return what it answers.

        What was sent arrives whatever becomes of who sent it: it may be killed on the way there or on the way back.

        Raises:
            Unavailable: the question was lost; or the answer, unless that is told as ``lost``.
        """
        if self.over:
            raise Unavailable("The simulation is over.")
        if self.happens(self.faults.killed_before):
            self.crash(process)
        else:
            answer = self.loop.create_future()
            self.later(self.way(), self._arrive, answer, process, server, what, effect, lost)
            return await answer
        return await self.loop.create_future()  # never: nobody is there any more

    def way(self) -> float:
        """How long something is on its way (seconds)."""
        slow = self.happens(self.faults.slow)
        return self.chances.random() * (2.0 if slow else 0.004)

    def _arrive(
        self,
        answer: Any,
        process: Process,
        server: str,
        what: str,
        effect: Callable[[], Any],
        lost: type[InventoryError],
    ) -> None:
        if server in self.away or self.happens(self.faults.question_lost):
            self._send(answer, process, what, Unavailable(f"The {server} is away."))
            return
        outcome: Any
        try:
            outcome = effect()
        except Exception as error:
            outcome = error
        if self.happens(self.faults.killed_after):
            self.crash(process)
        if self.happens(self.faults.answer_lost):
            self.tell(process.name, f"{what} was done, but the answer is lost")
            outcome = lost(f"The answer of the {server} is lost.")
        self._send(answer, process, what, outcome)

    def _send(self, answer: Any, process: Process, what: str, outcome: Any) -> None:
        self.tell(process.name, what, outcome)
        if self.happens(0.3):
            self.later(self.way(), _receive, answer, outcome)
        else:
            _receive(answer, outcome)


def _receive(answer: Any, outcome: Any) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
        answer.exception()  # not "never retrieved" where nobody is left to hear it
    else:
        answer.set_result(outcome)
