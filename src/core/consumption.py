"""Product events in: decoded, applied once, and never swallowed.

What cannot be applied is parked in the dead letters with its cause; what cannot be applied *now* is tried again, with
growing pauses. Order does not matter (see ``catalog.py``), so messages are handled as they come, many in one batch.
"""

import asyncio
import logging
import random
import re
import traceback
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import msgspec

from core.catalog import ACTOR
from core.errors import (
    InventoryError,
    OutcomeUnknown,
    ProductServiceProtocolError,
    ProductServiceUnavailable,
    Unavailable,
    UnsupportedVersion,
    ValidationFailed,
)
from core.events import PRODUCT_KEYS, PRODUCT_QUEUE, ProductEvent
from core.fields import Word
from core.operations import EventOutcome, Request
from core.products import Products
from core.writer import Writer
from ports.broker import Broker, Delivery, Message, Verdict
from ports.dead_letters import DeadLetter
from ports.store import Store

_TRIES = 6
_PAUSE_SECONDS_MAX = 5.0
_BODY_BYTES_MAX = 1024 * 1024
_CAUSE_CHARACTERS_MAX = 300
_SKUS_MAX = 500
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9}){0,3}")
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\b\w*\d\w*\b")
_log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(ProductEvent)


class ProductEvents:
    """Consumes the product events' queue.

    Args:
        process: who we are, for the record of attempts.
    """

    def __init__(self, store: Store, broker: Broker, writer: Writer, products: Products, *, process: str = "") -> None:
        self._store = store
        self._broker = broker
        self._writer = writer
        self._products = products
        self._process = process
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
            return await self._park(self._letter(message, error, attempts=1))
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._apply(message, event)
            except (Unavailable, OutcomeUnknown, ProductServiceProtocolError) as error:
                # Its eventId makes a second try harmless, also after a commit that was lost sight of.
                if attempts == 1:
                    _log.warning("Product event %s has to wait: %s", event.event_id, error.detail)
                # An outage fills no dead letters: of the store there is nowhere to park, of the Product Service it
                # would be every event there is.
                hopeless = attempts >= _TRIES and not isinstance(error, ProductServiceUnavailable)
                if hopeless and await self._parked(self._letter(message, error, attempts=attempts)):
                    return Verdict.DONE
            except InventoryError as error:
                return await self._park(self._letter(message, error, attempts=attempts))
            await _pause(attempts)

    async def _apply(self, message: Message, event: ProductEvent) -> Verdict:
        await apply(self._writer, message, event, self._products)
        return Verdict.DONE

    def _letter(self, message: Message, error: InventoryError, *, attempts: int) -> DeadLetter:
        return letter_of(message, error, attempts=attempts, process=self._process)

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


async def apply(writer: Writer, message: Message, event: ProductEvent, products: Products) -> EventOutcome:
    """Have the product event of a message applied, and return what that led to.

    Raises:
        InventoryError: it was refused, or nothing was done; see ``Products.operation`` and ``Writer.submit``.
    """
    request = Request(
        operations=(await products.operation(event),),
        actor=ACTOR,
        correlation_id=_correlation_id(message, event),
        size=len(message.body),
    )
    (outcome,) = await writer.submit(request)
    if isinstance(outcome, InventoryError):
        raise outcome
    assert isinstance(outcome, EventOutcome)  # what ApplyProductEvent leads to
    if outcome.reason is not None:
        _log.warning("Product event %s made no items: %s", event.event_id, outcome.reason)
    return outcome


def letter_of(
    message: Message, error: InventoryError, *, attempts: int, process: str = "", retry_seconds: float | None = None
) -> DeadLetter:
    """Return a failed message as it is kept, with what can be told of it."""
    event_id, product_id, skus = _glance(message.body)
    return DeadLetter(
        fingerprint=fingerprint_of(message),
        message=message,
        code=error.code,
        detail=error.detail,
        stack="".join(traceback.format_exception(error)),
        attempts=attempts,
        cause=_cause(error),
        event_id=event_id,
        product_id=product_id,
        skus=skus,
        retry_seconds=retry_seconds,
        process=process,
    )


def fingerprint_of(message: Message) -> str:
    """Return what a message is known by: whoever sends two different ones under one id must not lose the second."""
    return sha256(message.id.encode() + b"\n" + message.body).hexdigest()


def _cause(error: InventoryError) -> str:
    """Return the error's sentence without what is particular to one message."""
    text = error.detail
    for value in error.extra.values():
        text = text.replace(str(value), "…")
    return _PARTICULAR.sub("…", text)[:_CAUSE_CHARACTERS_MAX]


def _glance(body: bytes) -> tuple[str, str | None, tuple[str, ...]]:
    """Return event id, product id and SKUs as far as they can be read of a body that nobody understands."""
    whole = _readable(body)
    payload = _field(whole, "payload")
    variants = _field(payload, "variants")
    named = [payload, *(variants if isinstance(variants, list) else ())]
    skus = (_word(_field(each, "sku")) for each in named)
    return (
        _word(_field(whole, "eventId")) or "",
        _word(_field(payload, "productId")),
        tuple(dict.fromkeys(sku for sku in skus if sku is not None))[:_SKUS_MAX],
    )


def _readable(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if len(body) <= _BODY_BYTES_MAX else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _word(value: Any) -> str | None:
    try:
        return msgspec.convert(value, type=Word)
    except msgspec.ValidationError:
        return None


def _correlation_id(message: Message, event: ProductEvent) -> str:
    """Return the event's own, else the message's where that can be put on record, else the eventId."""
    try:
        return event.metadata.correlation_id or msgspec.convert(message.correlation_id, type=Word)
    except msgspec.ValidationError:
        return event.event_id


def decode(message: Message) -> ProductEvent:
    """Return the product event in a message.

    Raises:
        UnsupportedVersion: it holds one of a version that this service does not read.
        ValidationFailed: it holds none that this service understands, or one that does not belong to its routing key.
    """
    if len(message.body) > _BODY_BYTES_MAX:
        raise ValidationFailed(f"The message is larger than {_BODY_BYTES_MAX} bytes.")
    try:
        event = _decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        version = _field(_readable(message.body), "eventVersion")
        if isinstance(version, str) and _VERSION.fullmatch(version) and not version.startswith("1."):
            detail = f"eventVersion {version!r} is not supported; this service reads 1.x. Retry it after an upgrade."
            raise UnsupportedVersion(detail) from error
        raise ValidationFailed(f"The message is not a product event this service understands: {error}.") from error
    expected = f"product.{event.event_type.lower()}.product"
    if message.routing_key in PRODUCT_KEYS and message.routing_key != expected:
        raise ValidationFailed(f"A {event.event_type} event came with the routing key {message.routing_key}.")
    return event
