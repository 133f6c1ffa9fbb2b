"""Product events that a Product Service brings itself, by HTTP: the same envelope, inbox and dead letters as a queue's.

What is wrong with the event is the sender's to know, at once; what cannot be done *now* is the sender's to repeat, as
often as it likes, because an eventId is applied once. Only what fails although both are well is parked.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from core.catalog.products import Products
from core.consuming.consumption import apply
from core.consuming.letters import LATER, letter_of
from core.errors import InventoryError, NotFound, ValidationFailed
from core.events import PRODUCT_EXCHANGE, ProductEvent
from core.writing.writer import Writer
from ports.broker import Message
from ports.dead_letters import LetterFilter
from ports.store import Store

_ENDED = ("RESOLVED",)


class EventStatus(Struct, frozen=True, rename="camel", kw_only=True):
    """What became of a product event.

    APPLIED; SKIPPED, on record without making items, for a ``reason``; PARKED in the dead letters, where operators find
    it, for a ``reason`` with its ``code``; DISCARDED by an operator from there. ``at`` is when.
    """

    event_id: str
    status: Literal["APPLIED", "SKIPPED", "PARKED", "DISCARDED"]
    code: str | None
    reason: str | None
    at: datetime


class Reception:
    """Takes product events from whoever brings them.

    Args:
        process: who we are, for the record of attempts.
    """

    def __init__(self, store: Store, writer: Writer, products: Products, *, process: str) -> None:
        self._store = store
        self._writer = writer
        self._products = products
        self._process = process

    async def take(self, event: ProductEvent, body: bytes, *, correlation_id: str | None) -> EventStatus:
        """Apply an event, or park it, and return which; ``body`` is what it was read from.

        One that was taken before changes nothing and is told as it went then.

        Raises:
            ValidationFailed: the event can never be applied as it stands.
            Unavailable: nothing was done, by the store's or the Product Service's fault; bring it again.
            ProductServiceProtocolError: the same, because the Product Service's answer cannot be used.
            OutcomeUnknown: bring it again to know.
        """
        message = Message(
            id=event.event_id,
            exchange=PRODUCT_EXCHANGE,
            routing_key=f"product.{event.event_type.lower()}.product",
            body=body,
            type=event.event_type,
            correlation_id=correlation_id or "",
            timestamp=event.timestamp,
        )
        try:
            await apply(self._writer, message, event, self._products)
        except (ValidationFailed, *LATER):
            raise
        except InventoryError as error:
            await self._store.park(letter_of(message, error, attempts=1, process=self._process))
        return await self.status(event.event_id)

    async def status(self, event_id: str) -> EventStatus:
        """Return what became of an event, however it came.

        Raises:
            NotFound: none of that id was dealt with, or it is too long ago.
            Unavailable: the store is away.
        """
        if (seen := await self._store.received(event_id)) is not None:
            return EventStatus(
                event_id=event_id, status=seen.verdict, code=None, reason=seen.reason, at=seen.received_at
            )
        for letter in await self._store.letters(LetterFilter(id=event_id), limit=10):
            if letter.event_id == event_id and letter.status not in _ENDED:
                status: Literal["DISCARDED", "PARKED"] = "DISCARDED" if letter.status == "DISCARDED" else "PARKED"
                return EventStatus(
                    event_id=event_id, status=status, code=letter.code, reason=letter.detail, at=letter.last_failed_at
                )
        raise NotFound(f"No product event {event_id} was dealt with here.", eventId=event_id)
