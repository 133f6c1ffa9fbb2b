"""The outbox relay: every committed event reaches the broker, in its product's order, at least once.

One relay at a time owns the stream, by a lease whose token fences what a paused owner would still mark. It claims,
publishes with confirms, marks; no transaction is open while it talks to the broker. A crash between confirm and mark
publishes again with the same eventId, in the same order. Rules R17 to R19, R22.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Sequence

from core.errors import Unavailable
from core.events import OutboxRow
from core.publishing.exceptions import Replays, Suspects, message_of
from core.running.lease import give_back
from core.running.loop import Loops
from ports.broker import Broker, Receipt
from ports.leases import Lease
from ports.outbox import RELAY
from ports.store import Store

LEASE_SECONDS = 15.0
_BATCH = 500
_IDLE_SECONDS = 1.0
_HELD_SECONDS = 5.0
_SUSPECT_SECONDS = 1.0
_WARN_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Relay:
    """Moves events from the store to the broker.

    Args:
        owner: who we are in the lease; no two relays may share a name.
        required_events: event types that must find a queue. One that does not waits, and holds back its own product;
            any other unroutable event counts as published (rule R19).
    """

    def __init__(self, store: Store, broker: Broker, *, owner: str, required_events: frozenset[str]) -> None:
        self._store = store
        self._broker = broker
        self._owner = owner
        self._required = required_events
        self._wake = asyncio.Event()
        self._loops = Loops()
        self._lease: Lease | None = None
        self._renew_at = self._replay_at = 0.0
        self._held: dict[str, float] = {}
        self._unroutable: Counter[str] = Counter()
        self._warn_at = 0.0
        self._away = False
        self._suspects = Suspects(store, broker)
        self._replays = Replays(store, broker)

    async def start(self) -> None:
        """Start relaying."""
        self._loops.start(self._relay(), self._hear())

    async def stop(self) -> None:
        """End after at most one batch in flight, and let another relay take over at once."""
        await self._loops.stop()
        await give_back(self._store, self._lease, "The relay's")
        self._lease = None

    async def _relay(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                pause = await self._turn()
                failures = 0
            except asyncio.CancelledError:
                # A broker that dies under a publish cancels the caller instead of telling it (reliability A3).
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                failures, pause = failures + 1, 0.2
            except Unavailable as error:
                failures += 1
                self._tell_away(error)
                pause = random.uniform(0.05, min(2.0, 0.1 * 2 ** min(failures, 6)))
            except Exception:
                failures += 1
                _log.exception("The relay failed and goes on")
                pause = min(5.0, 0.5 * failures)
            else:
                self._tell_back()
            if pause:
                await self._rest(pause, woken=not failures)

    async def _rest(self, seconds: float, *, woken: bool) -> None:
        if not woken:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _turn(self) -> float:
        """Relay one batch; return how long to rest, 0 where more is waiting."""
        if await self._lead() is None:
            return _IDLE_SECONDS
        now = time.monotonic()
        self._held = {product: until for product, until in self._held.items() if until > now}
        rows = await self._store.pending(_BATCH, skip=self._held.keys())
        if not rows:
            return 0.0 if await self._replay() else _IDLE_SECONDS
        receipts = await self._broker.publish([message_of(row) for row in rows])
        done = self._settle(rows, receipts)
        self._suspects.witness(receipts)
        # Nothing that may fail or take long stands between the broker's word and the mark.
        await self._mark(done)
        if (stuck := self._first_failed(rows, receipts)) is not None and await self._look_into(stuck):
            done.append(stuck)
        if len(rows) < _BATCH and time.monotonic() >= self._replay_at:
            await self._replay()
        return 0.0 if done else 0.2

    async def _lead(self) -> Lease | None:
        """Return our lease, taken or renewed where it is time to; None while another relay has it."""
        now = time.monotonic()
        if self._lease is None or now >= self._renew_at:
            self._lease = await self._store.acquire(RELAY, self._owner, seconds=LEASE_SECONDS)
            self._renew_at = now + LEASE_SECONDS / 3
        return self._lease

    async def _mark(self, rows: Sequence[OutboxRow]) -> None:
        if rows and self._lease is not None and not await self._store.mark_published(self._lease, rows):
            self._step_down()

    async def _look_into(self, stuck: OutboxRow) -> bool:
        """Try alone the event at which publishing came to a halt, and return whether it went out."""
        if (lease := await self._lead()) is None:
            return False
        went_out = await self._suspects.examine(stuck, lease)
        if went_out:
            await self._mark([stuck])
        elif went_out is False:  # the others may go on while this one is looked into
            self._held[stuck.product_id] = time.monotonic() + _SUSPECT_SECONDS
        return bool(went_out)

    async def _replay(self) -> bool:
        """Let a batch go out again, and return whether there was any."""
        if (lease := await self._lead()) is None:
            return False
        went_on = await self._replays.go_on(lease)
        if went_on is None:
            self._step_down()
        elif not went_on:
            self._replay_at = time.monotonic() + _IDLE_SECONDS
        return bool(went_on)

    def _step_down(self) -> None:
        _log.warning("Another relay has taken over")
        self._lease = None

    def _settle(self, rows: Sequence[OutboxRow], receipts: Sequence[Receipt]) -> list[OutboxRow]:
        """Return what counts as published: of each product everything up to the first event that does not."""
        done: list[OutboxRow] = []
        stuck: set[str] = set()
        for row, receipt in zip(rows, receipts, strict=True):
            if row.product_id in stuck:
                continue
            if receipt is Receipt.UNROUTABLE:
                self._unroutable[row.event_type] += 1
                if row.event_type in self._required:
                    self._held[row.product_id] = time.monotonic() + _HELD_SECONDS
            if receipt is Receipt.FAILED or row.product_id in self._held:
                stuck.add(row.product_id)
            else:
                done.append(row)
        self._warn_unroutable()
        return done

    def _first_failed(self, rows: Sequence[OutboxRow], receipts: Sequence[Receipt]) -> OutboxRow | None:
        """Return the event at which publishing came to a halt, unless its product waits for something else."""
        if Receipt.FAILED not in receipts:
            return None
        row = rows[receipts.index(Receipt.FAILED)]
        return None if row.product_id in self._held else row

    def _warn_unroutable(self) -> None:
        if self._unroutable and time.monotonic() >= self._warn_at:
            _log.warning("No queue is bound for some events: %s", dict(self._unroutable))
            self._unroutable.clear()
            self._warn_at = time.monotonic() + _WARN_SECONDS

    async def _hear(self) -> None:
        """Wake the loop when something was committed; polling covers for us while the bell is away."""
        while True:
            try:
                async with self._store.announcements() as announcements:
                    self._wake.set()
                    async for _ in announcements:
                        self._wake.set()
            except Unavailable:
                pass
            except Exception:
                _log.exception("Listening for commits failed and goes on")
            await asyncio.sleep(1.0)

    def _tell_away(self, error: Unavailable) -> None:
        if not self._away:
            _log.warning("Events wait in the outbox: %s", error.detail)
        self._away = True

    def _tell_back(self) -> None:
        if self._away:
            _log.info("Events are being published again")
        self._away = False
