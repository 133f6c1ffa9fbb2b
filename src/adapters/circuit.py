"""A circuit breaker: who does not answer is left alone, and looked in on one call at a time.

It also rations retries. Both go by the same record, the outcomes of the last calls: while more than a tenth of them
failed, nothing is tried twice, so that an outage never meets more than a few attempts beyond the calls themselves.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from ports.catalog import Circuit, Condition

WINDOW = 20
WINDOW_SECONDS = 30.0
LEAST = 5
FAILED_SHARE = 0.5
OPEN_SECONDS = 0.5
_log = logging.getLogger(__name__)


class Refused(Exception):
    """The circuit is open: the call was not made."""


class Breaker:
    """Opens when at least half of the last calls failed, and ``LEAST`` of them at least; closes when a probe succeeds.

    Args:
        open_seconds: how long it stays open before it lets one call through to see.
        whose: who is called, as the log says it.
        now: a clock that only goes forward.
    """

    def __init__(
        self,
        *,
        open_seconds: float = OPEN_SECONDS,
        whose: str = "Product Service",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_seconds = open_seconds
        self._whose = whose
        self._now = now
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._opened_at: float | None = None
        self._probing = False
        self._forced: Literal["OPEN", "CLOSED"] | None = None

    @property
    def circuit(self) -> Circuit:
        """How it stands."""
        if self._forced is not None:
            return self._forced
        if self._opened_at is None:
            return "CLOSED"
        return "HALF_OPEN" if self._now() - self._opened_at >= self._open_seconds else "OPEN"

    @property
    def refuses(self) -> bool:
        """Whether a call made now would be refused."""
        circuit = self.circuit
        return circuit == "OPEN" or (circuit == "HALF_OPEN" and self._probing)

    @property
    def may_retry(self) -> bool:
        """Whether a call that has just failed may be made again: not a probe, and not while many fail."""
        return self.circuit == "CLOSED" and self._failures() * 10 <= WINDOW

    def condition(self) -> Condition:
        """Tell how things stand."""
        failures = self._failures()
        return Condition(
            circuit=self.circuit, forced=self._forced is not None, calls=len(self._outcomes), failures=failures
        )

    def force(self, circuit: Literal["OPEN", "CLOSED"] | None) -> None:
        """Hold it open or closed; None lets it decide by itself again, beginning closed."""
        self._forced = circuit
        self._close()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make a call in the block: it failed if the block raises an Exception; one that is cancelled does not count.

        Raises:
            Refused: the circuit is open, or half open and somebody else is looking.
        """
        if self.refuses:
            raise Refused
        probing = self.circuit == "HALF_OPEN"
        self._probing = self._probing or probing
        opened_at = self._opened_at
        try:
            yield
        except Exception:
            self._record(opened_at, well=False)
            raise
        else:
            self._record(opened_at, well=True)
        finally:
            if probing:
                self._probing = False

    def _record(self, opened_at: float | None, *, well: bool) -> None:
        if self._opened_at != opened_at:
            return  # it began before the circuit changed, and says nothing about now
        self._outcomes.append((self._now(), well))
        if self._opened_at is not None:
            self._close() if well else self._open()
        elif not well and self._too_many():
            self._open()

    def _too_many(self) -> bool:
        failures = self._failures()
        return len(self._outcomes) >= LEAST and failures >= len(self._outcomes) * FAILED_SHARE

    def _failures(self) -> int:
        oldest = self._now() - WINDOW_SECONDS
        while self._outcomes and self._outcomes[0][0] < oldest:
            self._outcomes.popleft()
        return sum(not well for _, well in self._outcomes)

    def _open(self) -> None:
        if self._opened_at is None and self._forced is None:
            _log.warning("The %s's circuit is open: calls are refused, one is let through to see", self._whose)
        self._opened_at = self._now()

    def _close(self) -> None:
        if self._opened_at is not None:
            _log.warning("The %s's circuit is closed: calls are made again", self._whose)
        self._opened_at = None
        self._outcomes.clear()
