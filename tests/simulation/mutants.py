"""Faults in our own code, put there on purpose: a simulation that finds none of them would prove nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace
from simulation.database import Database

from core.consuming.consumption import ProductEvents
from core.consuming.redelivery import Redelivery
from core.errors import OutcomeUnknown
from core.events import OutboxRow
from core.operations import Operation, Outcome, Request
from core.publishing.exceptions import message_of
from core.publishing.relay import Relay
from core.reading.snapshots import Snapshots
from core.rules.book import Cause
from core.writing.batch import Batch
from core.writing.writer import Writer


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Let one of ``MUTANTS`` live."""
    owner, attribute, mutant = MUTANTS[name]
    original = getattr(owner, attribute)
    setattr(owner, attribute, mutant)
    try:
        yield
    finally:
        setattr(owner, attribute, original)


async def _mark_first(self: Any) -> float:
    if await self._lead() is None:
        return 1.0
    rows = await self._store.pending(500)
    await self._mark(rows)
    if rows:
        await self._broker.publish([message_of(row) for row in rows])
    return 0.0 if rows else 1.0


def _believe_all(self: Any, rows: Sequence[OutboxRow], receipts: object) -> list[OutboxRow]:
    return list(rows)


_decide = Batch._decide
_submit, _persist = Writer.submit, Writer._persist


def _forget_events(self: Batch, operation: Operation, cause: Cause) -> Outcome:
    self.book.events_seen.clear()
    outcome = _decide(self, operation, cause)
    self.book.inbox.clear()
    return outcome


async def _drop_key(self: Writer, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
    return await _submit(self, replace(request, key=None), timeout=timeout)


async def _do_again(self: Writer, works: Any, *, wait: bool) -> Any:
    try:
        return await _persist(self, works, wait=wait)
    except OutcomeUnknown:
        return await _persist(self, works, wait=wait)


async def _park_nothing(self: Any, letter: object) -> bool:
    return True


_failed = Redelivery._failed


def _resolve_failed(self: Any, claimed: Any, error: Any, *, retry_seconds: float | None = None) -> Any:
    return replace(_failed(self, claimed, error), letter=None)


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "events are marked before they are published": (Relay, "_turn", _mark_first),
    "what was not confirmed counts as published": (Relay, "_settle", _believe_all),
    "a relay that lost its lease may still mark": (Database, "holds", lambda self, lease: True),
    "product events are applied without the inbox": (Batch, "_decide", _forget_events),
    "idempotency keys are not looked at": (Writer, "submit", _drop_key),
    "an unknown outcome is tried again": (Writer, "_persist", _do_again),
    "what cannot be applied is swallowed": (ProductEvents, "_parked", _park_nothing),
    "a dead letter that fails again is resolved": (Redelivery, "_failed", _resolve_failed),
    "readers are shown what was before a commit": (Snapshots, "committed", lambda self, book: None),
}
