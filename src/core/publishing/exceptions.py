"""The exceptions of the relay's work: events that no broker takes, and events that are to go out again.

An event at which publishing comes to a halt is tried alone. If it is refused time and again while others get through,
it is blocked: it holds back its own product, everybody else goes on, and an operator decides (reliability D14).
"""

import logging
from collections.abc import Sequence

from core.errors import Unavailable
from core.events import EVENT_VERSION, EVENTS_EXCHANGE, OutboxRow, routing_key
from ports.broker import Broker, Message, Receipt
from ports.leases import Lease
from ports.store import Store

REFUSALS_MAX = 3
_BATCH = 500
_log = logging.getLogger(__name__)


def message_of(row: OutboxRow) -> Message:
    """Return the message an event goes out as, the same each time."""
    return Message(
        id=row.event_id,
        exchange=EVENTS_EXCHANGE,
        routing_key=routing_key(row.event_type),
        body=row.body,
        type=row.event_type,
        correlation_id=row.correlation_id,
        timestamp=row.created_at,
        priority=9 if row.critical else 0,
        headers={"x-event-version": EVENT_VERSION},
    )


class Suspects:
    """Events at which publishing came to a halt: was it the event, or the broker?

    A broker that has lost a queue, or has a full one, refuses everything. So a refusal counts only when another event
    has got through since the last one.
    """

    def __init__(self, store: Store, broker: Broker) -> None:
        self._store = store
        self._broker = broker
        self._refused: dict[str, int] = {}
        self._others_since: set[str] = set()

    def witness(self, receipts: Sequence[Receipt]) -> None:
        """Note whether events get through."""
        if Receipt.CONFIRMED in receipts:
            self._others_since = set(self._refused)

    async def examine(self, row: OutboxRow, lease: Lease) -> bool | None:
        """Publish an event alone, and block it once it was refused ``REFUSALS_MAX`` times while others got through.

        Returns whether it went out, None where that says nothing of the event, because the broker is away.
        """
        try:
            (receipt,) = await self._broker.publish([message_of(row)])
            await self._broker.ping()
        except Unavailable:
            return None
        if receipt is not Receipt.FAILED:
            self._refused.pop(row.event_id, None)
            return True if receipt is Receipt.CONFIRMED else None
        known = self._refused.get(row.event_id, 0)
        if not known or row.event_id in self._others_since:
            self._refused[row.event_id] = known + 1
            self._others_since.discard(row.event_id)
        if known + 1 >= REFUSALS_MAX and self._refused[row.event_id] > known:
            del self._refused[row.event_id]
            reason = f"The broker refused it {REFUSALS_MAX} times while others got through. ({len(row.body)} bytes)"
            if await self._store.block(lease, row, reason):
                _log.error("Event %s of product %s is blocked: %s", row.event_id, row.product_id, reason)
        return False


class Replays:
    """Published events that go out again, with the same eventIds: a batch whenever there is time."""

    def __init__(self, store: Store, broker: Broker) -> None:
        self._store = store
        self._broker = broker

    async def go_on(self, lease: Lease) -> bool | None:
        """Publish the next events of the oldest replay; return whether there were any, None if the lease is lost.

        Raises:
            Unavailable: the store or the broker is away.
        """
        replay = await self._store.open_replay()
        if replay is None:
            return False
        rows = await self._store.replayed(replay, _BATCH)
        sent = rows
        if rows:
            receipts = await self._broker.publish([message_of(row) for row in rows])
            if Receipt.FAILED in receipts:
                sent = rows[: receipts.index(Receipt.FAILED)]
            if not sent:
                return False
        if not await self._store.advance_replay(lease, replay, sent):
            return None
        if not rows:
            _log.info("Replay %s is done: %d events went out again", replay.id, replay.published)
        return True
