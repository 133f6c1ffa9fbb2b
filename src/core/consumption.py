"""Product events in: decoded, applied once, and never swallowed.

What cannot be applied is parked in the dead letters with its cause; what cannot be applied *now* is tried again, with
growing pauses. Order does not matter (see ``catalog.py``), so messages are handled as they come, many in one batch.
"""

import asyncio
import logging
import random
import traceback
from contextlib import AsyncExitStack
from hashlib import sha256

import msgspec

from core.catalog import ACTOR
from core.errors import InventoryError, OutcomeUnknown, Unavailable, ValidationFailed
from core.events import PRODUCT_KEYS, PRODUCT_QUEUE, ProductEvent
from core.fields import Word
from core.operations import ApplyProductEvent, EventOutcome, EventPolicy, Request
from core.writer import Writer
from ports.broker import Broker, Delivery, Message, Verdict
from ports.store import DeadLetter, Store

_TRIES = 6
_PAUSE_SECONDS_MAX = 5.0
_BODY_BYTES_MAX = 1024 * 1024
_log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(ProductEvent)


class ProductEvents:
    """Consumes the product events' queue.

    Args:
        policy: what ProductCreated leads to.
    """

    def __init__(self, store: Store, broker: Broker, writer: Writer, policy: EventPolicy) -> None:
        self._store = store
        self._broker = broker
        self._writer = writer
        self._policy = policy
        self._consuming = AsyncExitStack()

    async def start(self) -> None:
        """Start consuming."""
        await self._consuming.enter_async_context(self._broker.consume(PRODUCT_QUEUE, self.handle))

    async def stop(self) -> None:
        """End, letting what is being handled finish."""
        await self._consuming.aclose()

    async def handle(self, delivery: Delivery) -> Verdict:
        """Apply one message, or park it; return when one of the two is done."""
        message = delivery.message
        try:
            event = decode(message)
        except ValidationFailed as error:
            return await self._park(_letter(message, error, attempts=1))
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._apply(message, event)
            except (Unavailable, OutcomeUnknown) as error:
                # Its eventId makes a second try harmless, also after a commit that was lost sight of.
                if attempts == 1:
                    _log.warning("Product event %s has to wait: %s", event.event_id, error.detail)
                # An outage of the store itself fills no dead letters: there is nowhere to park.
                if attempts >= _TRIES and await self._parked(_letter(message, error, attempts=attempts)):
                    return Verdict.DONE
            except InventoryError as error:
                return await self._park(_letter(message, error, attempts=attempts))
            await _pause(attempts)

    async def _apply(self, message: Message, event: ProductEvent) -> Verdict:
        request = Request(
            operations=(ApplyProductEvent(event=event, policy=self._policy),),
            actor=ACTOR,
            correlation_id=_correlation_id(message, event),
            size=len(message.body),
        )
        (outcome,) = await self._writer.submit(request)
        if isinstance(outcome, InventoryError):
            raise outcome
        if isinstance(outcome, EventOutcome) and outcome.reason is not None:
            _log.warning("Product event %s made no items: %s", event.event_id, outcome.reason)
        return Verdict.DONE

    async def _park(self, letter: DeadLetter) -> Verdict:
        """Park, however long it takes for the store to be there."""
        tries = 0
        while not await self._parked(letter):
            tries += 1
            await _pause(tries)
        return Verdict.DONE

    async def _parked(self, letter: DeadLetter) -> bool:
        """Park, if the store is there to park in."""
        try:
            await self._store.park(letter)
        except (Unavailable, OutcomeUnknown):
            return False
        _log.error("Message %s is parked in the dead letters: %s", letter.message.id, letter.detail)
        return True


async def _pause(tries: int) -> None:
    """Wait before the next try, longer each time, and not all at once."""
    await asyncio.sleep(random.uniform(0.1, min(_PAUSE_SECONDS_MAX, 0.2 * 2 ** min(tries, 10))))


def _letter(message: Message, error: InventoryError, *, attempts: int) -> DeadLetter:
    return DeadLetter(
        # Whoever sends two different messages under one id must not lose the second.
        fingerprint=sha256(message.id.encode() + b"\n" + message.body).hexdigest(),
        message=message,
        code=error.code,
        detail=error.detail,
        stack="".join(traceback.format_exception(error)),
        attempts=attempts,
    )


def _correlation_id(message: Message, event: ProductEvent) -> str:
    """Return the event's own, else the message's where that can be put on record, else the eventId."""
    try:
        return event.metadata.correlation_id or msgspec.convert(message.correlation_id, type=Word)
    except msgspec.ValidationError:
        return event.event_id


def decode(message: Message) -> ProductEvent:
    """Return the product event in a message.

    Raises:
        ValidationFailed: it holds none that this service understands, or one that does not belong to its routing key.
    """
    if len(message.body) > _BODY_BYTES_MAX:
        raise ValidationFailed(f"The message is larger than {_BODY_BYTES_MAX} bytes.")
    try:
        event = _decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValidationFailed(f"The message is not a product event this service understands: {error}.") from error
    expected = f"product.{event.event_type.lower()}.product"
    if message.routing_key in PRODUCT_KEYS and message.routing_key != expected:
        raise ValidationFailed(f"A {event.event_type} event came with the routing key {message.routing_key}.")
    return event
