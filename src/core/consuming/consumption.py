"""Product events in: decoded, applied once, and never swallowed.

What cannot be applied is parked in the dead letters with its cause; what cannot be applied *now* is tried a few times,
then parked to be tried again by itself (``redelivery.py``), with growing pauses. While the store is away consuming
pauses. Order does not matter (see ``core/rules/product_events.py``), so messages are handled as they come, many in one
batch.
"""

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from core.catalog.products import Products
from core.consuming.letters import (
    BODY_BYTES_MAX,
    LATER,
    CrashLoop,
    GivenUp,
    field,
    fingerprint_of,
    letter_of,
    pause,
    readable,
)
from core.errors import (
    InventoryError,
    OutcomeUnknown,
    ProductServiceUnavailable,
    Unavailable,
    UnsupportedVersion,
    ValidationFailed,
)
from core.events import DEAD_LETTERS, PRODUCT_KEYS, PRODUCT_QUEUE, ProductEvent, on_behalf_of
from core.fields import Word
from core.operations import EventOutcome, Request
from core.rules.product_events import ACTOR
from core.writing.writer import Writer
from ports.broker import Broker, Delivery, Message, Verdict
from ports.dead_letters import DeadLetter
from ports.store import Store

_TRIES = 3
_REDELIVERIES_MAX = 3
_BURIED = 16
_PAUSE_SECONDS_MAX = 5.0
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9}){0,3}")
_log = logging.getLogger(__name__)
T = TypeVar("T")
_decoder = msgspec.json.Decoder(ProductEvent)


class ProductEvents:
    """Consumes the product events' queue, and what the broker has given up.

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
        self._room = _Room()
        self._probing = asyncio.Lock()

    async def start(self) -> None:
        """Start consuming."""
        await self._consuming.enter_async_context(self._broker.consume(PRODUCT_QUEUE, self.handle))
        await self._consuming.enter_async_context(self._broker.consume(DEAD_LETTERS, self.bury, prefetch=_BURIED))

    async def stop(self) -> None:
        """End, letting what is being handled finish."""
        await self._consuming.aclose()

    async def handle(self, delivery: Delivery) -> Verdict:
        """Apply one message, or park it; return when one of the two is done.

        One that somebody had before is handled while no other is, its attempt on record first: should it end this
        process, nobody else is to blame, and after a few such ends it goes to the dead letters (reliability D13).
        """
        attempts = 0
        while True:
            attempts += 1
            if delivery.redelivered:
                verdict = await self._deal_alone_with(delivery.message, attempts)
            else:
                async with self._room.together():
                    verdict = await self._deal_with(delivery.message, attempts)
            if verdict is not None:
                return verdict
            await _pause(attempts)  # outside the room: an outage may last, and whoever waits to be alone would wait too

    async def bury(self, delivery: Delivery) -> Verdict:
        """Keep a message from the broker's dead letters, once, however often it is delivered."""
        message, headers = delivery.message, delivery.message.headers
        queue, why = headers.get("x-first-death-queue", ""), headers.get("x-first-death-reason", "")
        detail = f"The broker's queue {queue or DEAD_LETTERS} gave it up ({why or 'sent there'})."
        kind = CrashLoop if why in ("rejected", "delivery_limit") else GivenUp
        message = replace(message, exchange=headers.get("x-first-death-exchange", message.exchange))
        # Delivered before, it may be kept already, and it may be what ends whoever looks into it.
        again = delivery.redelivered
        letter = letter_of(message, kind(detail), attempts=0 if again else 1, process=self._process, glance=not again)
        verdict = await self._park(letter)
        await self._forget(letter.fingerprint)
        return verdict

    async def _deal_alone_with(self, message: Message, attempts: int) -> Verdict | None:
        fingerprint = fingerprint_of(message)
        async with self._room.alone():
            try:
                times = await self._insisting(lambda: self._store.count_delivery(fingerprint))
                if times > _REDELIVERIES_MAX:
                    _log.error("Message %s was delivered %d times and not dealt with", message.id, times)
                    return Verdict.DEAD
                verdict = await self._deal_with(message, attempts)
                if verdict is not None:
                    await self._forget(fingerprint)
                else:  # it ended nobody, and is counted again at its next try
                    await self._insisting(lambda: self._store.forget_deliveries(fingerprint))
                return verdict
            except asyncio.CancelledError:  # this process was told to end, which is no fault of the message
                await self._forget(fingerprint)
                raise

    async def _deal_with(self, message: Message, attempts: int) -> Verdict | None:
        """Try once, and return what to tell the broker, None where there has to be another try."""
        while True:
            try:
                await apply(self._writer, message, decode(message), self._products)
                return Verdict.DONE
            except LATER as error:
                # Its eventId makes a second try harmless, also after a commit that was lost sight of.
                if attempts == 1:
                    _log.warning("Product event %s has to wait: %s", message.id, error.detail)
                if await self._store_was_away():
                    continue  # an outage says nothing about the message
                # An outage fills no dead letters: of the store there is nowhere to park, of the Product Service it
                # would be every event there is.
                outage = isinstance(error, ProductServiceUnavailable)
                letter = self._letter(message, error, attempts=attempts, retry_seconds=pause(attempts))
                parked = attempts >= _TRIES and not outage and await self._parked(letter)
                return Verdict.DONE if parked else None
            except InventoryError as error:
                return await self._park(self._letter(message, error, attempts=attempts))

    async def _forget(self, fingerprint: str) -> None:
        with suppress(Unavailable, OutcomeUnknown):  # whatever became of the message stays so
            await self._store.forget_deliveries(fingerprint)

    async def _store_was_away(self) -> bool:
        """If the store does not answer, wait until it does: one asks, the others wait for that one."""
        if await self._store_answers():
            return False
        async with self._probing:
            tries = 0
            while not await self._store_answers():
                tries += 1
                if tries == 1:
                    _log.warning("Consuming pauses: the store is away")
                await _pause(tries)
        return True

    async def _store_answers(self) -> bool:
        try:
            await self._store.ping()
        except Unavailable:
            return False
        return True

    def _letter(
        self, message: Message, error: InventoryError, *, attempts: int, retry_seconds: float | None = None
    ) -> DeadLetter:
        return letter_of(message, error, attempts=attempts, process=self._process, retry_seconds=retry_seconds)

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
        if letter.retry_seconds is None:
            _log.error("Message %s is parked in the dead letters: %s", letter.message.id, letter.detail)
        else:
            _log.warning("Message %s is tried again in %.0f s", letter.message.id, letter.retry_seconds)
        return True

    async def _insisting(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what the store says, as soon as it is there to say it."""
        tries = 0
        while True:
            try:
                return await ask()
            except (Unavailable, OutcomeUnknown):
                tries += 1
                await _pause(tries)


class _Room:
    """Where messages are handled: many together, or one alone."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0
        self._closed = False

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            try:
                await self._changed.wait_for(lambda: not self._inside)
            except BaseException:
                self._closed = False
                self._changed.notify_all()
                raise
        try:
            yield
        finally:
            async with self._changed:
                self._closed = False
                self._changed.notify_all()


async def _pause(tries: int) -> None:
    """Wait before the next try, longer each time, and not all at once."""
    await asyncio.sleep(random.uniform(0.1, min(_PAUSE_SECONDS_MAX, 0.2 * 2 ** min(tries, 10))))


async def apply(writer: Writer, message: Message, event: ProductEvent, products: Products) -> EventOutcome:
    """Have the product event of a message applied, and return what that led to.

    Raises:
        InventoryError: it was refused, or nothing was done; see ``Products.operation`` and ``Writer.submit``.
    """
    correlation_id = _correlation_id(message, event)
    with on_behalf_of(correlation_id):
        operation = await products.operation(event)
    request = Request(
        operations=(operation,),
        actor=ACTOR,
        correlation_id=correlation_id,
        size=len(message.body),
    )
    (outcome,) = await writer.submit(request)
    if isinstance(outcome, InventoryError):
        raise outcome
    assert isinstance(outcome, EventOutcome)  # what ApplyProductEvent leads to
    if outcome.reason is not None:
        _log.warning("Product event %s made no items: %s", event.event_id, outcome.reason)
    return outcome


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
    if len(message.body) > BODY_BYTES_MAX:
        raise ValidationFailed(f"The message is larger than {BODY_BYTES_MAX} bytes.")
    try:
        event = _decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        version = field(readable(message.body), "eventVersion")
        if isinstance(version, str) and _VERSION.fullmatch(version) and not version.startswith("1."):
            detail = f"eventVersion {version!r} is not supported; this service reads 1.x. Retry it after an upgrade."
            raise UnsupportedVersion(detail) from error
        raise ValidationFailed(f"The message is not a product event this service understands: {error}.") from error
    expected = f"product.{event.event_type.lower()}.product"
    if message.routing_key in PRODUCT_KEYS and message.routing_key != expected:
        raise ValidationFailed(f"A {event.event_type} event came with the routing key {message.routing_key}.")
    return event
