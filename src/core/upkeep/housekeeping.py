"""What must not grow for ever is dropped when its time is over.

Stored answers, published and skipped events, the inbox, ended dead letters with their attempts, counted deliveries,
imports, and what reconciliation found.
"""

from core.running.lease import give_back
from core.running.loop import Loops, forever
from ports.leases import Lease
from ports.store import Store

INBOX_DAYS = 90
"""How long a product event is known again; older than any message that could still be delivered."""
_EVERY_SECONDS = 60.0
_LIMIT = 1000


class Housekeeper:
    """Drops old rows a small batch at a time; one process at a time does it, by lease.

    Args:
        owner: who we are in the lease.
        answers_hours: how long an idempotency key is remembered (rule R4).
        events_days: how long a published event can be replayed (rule R22).
    """

    def __init__(self, store: Store, *, owner: str, answers_hours: float, events_days: float) -> None:
        self._store = store
        self._owner = owner
        self._answers_hours = answers_hours
        self._events_days = events_days
        self._loops = Loops()
        self._lease: Lease | None = None

    async def start(self) -> None:
        """Start sweeping."""
        self._loops.start(forever("Housekeeping", self._turn, pause=_EVERY_SECONDS, first=_EVERY_SECONDS))

    async def stop(self) -> None:
        """End, and give the lease back, so that another process goes on at once."""
        await self._loops.stop()
        await give_back(self._store, self._lease, "Housekeeping's")
        self._lease = None

    async def sweep(self) -> int:
        """Drop everything that is over, if nobody else is at it; return how many rows went."""
        dropped = 0
        while lease := await self._store.acquire("housekeeping", self._owner, seconds=_EVERY_SECONDS * 2):
            self._lease = lease
            went = await self._store.purge(
                answers_hours=self._answers_hours,
                events_days=self._events_days,
                inbox_days=INBOX_DAYS,
                limit=_LIMIT,
            )
            dropped += went
            if went < _LIMIT:
                break
        return dropped

    async def _turn(self) -> float:
        await self.sweep()
        return _EVERY_SECONDS
