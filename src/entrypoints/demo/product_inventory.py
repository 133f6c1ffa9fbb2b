"""What the Product Service knows of stock: the specification's ``ProductInventoryService``, in Python.

Availability is kept by the specification's keys and for its times, and dropped when an event tells of a change. Which
keys a product has is kept beside them, so that nothing is ever searched. Events only say *that* something changed; what
it is now is asked. So an event that was lost costs freshness and never truth: the next one of the product, a screen's
regular look, or the time to live brings it back.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from msgspec import Struct

from core.errors import InventoryError
from core.reading.availability import DisplayStatus
from core.stock import ProductInventory

LOW_STOCK_THRESHOLD = 10
LOW_SECONDS, ELSE_SECONDS = 60.0, 300.0
KEPT_MAX = 10_000
REFRESH_SECONDS = 15.0
"""How often what is on somebody's screen is asked for anew, whatever events say."""
CATCH_UP_SECONDS = (0.05, 0.2)
"""How long to wait before asking again for what an event told of and the answer does not know yet."""
_log = logging.getLogger(__name__)


class ShownAvailability(Struct, frozen=True, rename="camel", kw_only=True):
    """What a shopper is shown; ``assumed`` tells that nobody could be asked."""

    is_available: bool
    display_status: DisplayStatus
    message: str
    lead_time_estimate: str | None = None
    assumed: bool = False


ASSUMED = ShownAvailability(is_available=True, display_status="IN_STOCK", message="In Stock", assumed=True)
"""Shown when the Inventory Service is away: rather an order that is refused than none."""


class Inventory(Protocol):
    """The Inventory Service, as it is asked."""

    async def by_product(self, product_id: str) -> ProductInventory:
        """Return what there is of a product.

        Raises:
            InventoryError: it is away, or does not know the product.
        """
        ...

    async def lead_time(self, product_id: str, quantity: int) -> str | None:
        """Return how long so many of it take, such as ``1-2 days``; None when nobody can say.

        Raises:
            InventoryError: it is away, or does not know the product.
        """
        ...


class _Place(Struct):
    sequence: int


class _Whose(Struct, rename="camel"):
    product_id: str


class _Heard(Struct, rename="camel"):
    """As much of an event as matters here: whose stock it tells of, and where it stands in that product's order."""

    metadata: _Place
    payload: _Whose


_heard = msgspec.json.Decoder(_Heard).decode


class AvailabilityCache:
    """The last ``KEPT_MAX`` answers, each for its time; those of a product go together."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._held: OrderedDict[str, tuple[ShownAvailability, float, str]] = OrderedDict()
        self._keys: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, product_id: str, quantity: int) -> ShownAvailability | None:
        """Return what is kept and not too old."""
        shown, until, _ = self._held.get(_key(product_id, quantity), (None, 0.0, ""))
        return shown if until > self._now() else None

    def put(self, product_id: str, quantity: int, shown: ShownAvailability, *, seconds: float) -> None:
        """Keep an answer for so long; the oldest makes room."""
        key = _key(product_id, quantity)
        self._held[key] = shown, self._now() + seconds, product_id
        self._held.move_to_end(key)
        self._keys.setdefault(product_id, set()).add(key)
        if len(self._held) > KEPT_MAX:
            oldest, (_, _, whose) = self._held.popitem(last=False)
            self._keys[whose].discard(oldest)
            if not self._keys[whose]:
                del self._keys[whose]

    def drop(self, product_id: str) -> None:
        """Forget all of a product, for whatever quantities it was asked."""
        for key in self._keys.pop(product_id, ()):
            del self._held[key]


def _key(product_id: str, quantity: int) -> str:
    return f"product_availability_{product_id}_{quantity}"


class Screen:
    """Somebody's page: the products on it, and which of them have changed since it was last told."""

    def __init__(self, product_ids: Collection[str]) -> None:
        self.product_ids = frozenset(product_ids)
        self._changed: set[str] = set()
        self._something = asyncio.Event()

    def tell(self, product_id: str) -> None:
        """Note a change, once however often it happens before the page is told."""
        if product_id in self.product_ids:
            self._changed.add(product_id)
            self._something.set()

    async def take(self) -> set[str]:
        """Return what has changed, as soon as something has."""
        await self._something.wait()
        self._something.clear()
        changed, self._changed = self._changed, set()
        return changed


class ProductInventoryService:
    """Answers what to show of a product, from the cache or from the Inventory Service, and tells screens of changes.

    ``gaps`` and ``stale`` count the events that came after a lost one, and those that told nothing new.

    Args:
        inventory: whom to ask.
        now: a clock that only goes forward (seconds).
    """

    def __init__(self, inventory: Inventory, *, now: Callable[[], float] = time.monotonic) -> None:
        self.gaps = 0
        self.stale = 0
        self._inventory = inventory
        self._cache = AvailabilityCache(now)
        self._sequences: dict[str, int] = {}
        self._read: dict[str, ProductInventory] = {}
        self._screens: set[Screen] = set()
        self._failing = False

    async def availability(self, product_id: str, requested_quantity: int = 1) -> ShownAvailability:
        """Return what to show of a product to somebody who wants so many; never fails."""
        if (held := self._cache.get(product_id, requested_quantity)) is not None:
            return held
        try:
            inventory = await self._ask(product_id)
            shown = await self._calculate(product_id, inventory, requested_quantity)
        except InventoryError as error:
            if not self._failing:  # an outage is one line, however many ask
                _log.error("Failed to get availability for product %s: %s", product_id, error.detail)
            self._failing = True
            return ASSUMED
        self._failing = False
        if self._learn(product_id, inventory):
            seconds = LOW_SECONDS if inventory.is_low_stock else ELSE_SECONDS
            self._cache.put(product_id, requested_quantity, shown, seconds=seconds)
        return shown

    async def left(self, product_id: str) -> tuple[int | None, datetime | None]:
        """Return how many there are at this moment and when more are expected; None where nobody knows."""
        try:
            inventory = await self._inventory.by_product(product_id)
        except InventoryError:
            return None, None
        return inventory.total_quantity_available, inventory.restock_expected

    def hear(self, body: bytes) -> None:
        """Take note of an event: what is kept of its product is not true any more."""
        try:
            event = _heard(body)
        except msgspec.MsgspecError:
            _log.warning("An event of the Inventory Service cannot be read and is passed over")
            return
        product_id, sequence = event.payload.product_id, event.metadata.sequence
        last = self._sequences.get(product_id)
        if last is not None and sequence <= last:
            self.stale += 1
            return
        if last is not None and sequence > last + 1:
            self.gaps += 1
        self._sequences[product_id] = sequence
        self.invalidate(product_id)

    def invalidate(self, product_id: str) -> None:
        """Forget what is kept of a product, and tell the screens it is on."""
        self._cache.drop(product_id)
        for screen in self._screens:
            screen.tell(product_id)

    @contextmanager
    def watching(self, product_ids: Collection[str]) -> Iterator[Screen]:
        """Be a screen while the block runs."""
        screen = Screen(product_ids)
        self._screens.add(screen)
        try:
            yield screen
        finally:
            self._screens.discard(screen)

    async def keep_fresh(self) -> None:
        """Look again, for ever, at what is on screens: some changes have no event, and events may be lost."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            for product_id in {id for screen in self._screens for id in screen.product_ids}:
                await self.refresh(product_id)

    async def refresh(self, product_id: str) -> None:
        """Ask for a product whatever is kept of it; what is shown stays when nobody answers."""
        try:
            inventory = await self._ask(product_id)
        except InventoryError as error:
            _log.info("Product %s could not be looked at again: %s", product_id, error.detail)
        else:
            self._learn(product_id, inventory)

    async def _ask(self, product_id: str) -> ProductInventory:
        """Return an answer that is as new as what has been heard, if one can be had by waiting a moment."""
        for pause in CATCH_UP_SECONDS:
            inventory = await self._inventory.by_product(product_id)
            if inventory.sequence >= self._sequences.get(product_id, 0):
                return inventory
            await asyncio.sleep(pause)
        return await self._inventory.by_product(product_id)

    def _learn(self, product_id: str, inventory: ProductInventory) -> bool:
        """Take note of an answer, and return whether it is still the newest there is of the product."""
        heard, known = self._sequences.get(product_id), self._read.get(product_id)
        if heard is not None and inventory.sequence < heard:
            return False
        self._sequences[product_id] = inventory.sequence
        self._read[product_id] = inventory
        missed = heard is not None and inventory.sequence > heard
        if missed or (known is not None and known.sequence == inventory.sequence and known != inventory):
            self.invalidate(product_id)  # no event has told of this
        return True

    async def _calculate(self, product_id: str, inventory: ProductInventory, requested: int) -> ShownAvailability:
        """Decide as the specification's ``calculateAvailability`` does, in its words."""
        available = inventory.total_quantity_available
        if available == 0:
            restock = inventory.restock_expected
            return ShownAvailability(
                is_available=False,
                display_status="OUT_OF_STOCK",
                message="Out of Stock",
                lead_time_estimate=f"Expected back in stock {date_of(restock)}" if restock else None,
            )
        if available < requested:
            return ShownAvailability(
                is_available=True, display_status="LIMITED_AVAILABILITY", message=f"Only {available} available"
            )
        if available <= LOW_STOCK_THRESHOLD:
            message = f"Only {available} left in stock - order soon"
            return ShownAvailability(is_available=True, display_status="LOW_STOCK", message=message)
        lead_time = await self._inventory.lead_time(product_id, requested)
        return ShownAvailability(
            is_available=True, display_status="IN_STOCK", message="In Stock", lead_time_estimate=lead_time
        )


def date_of(instant: datetime) -> str:
    """Say a day as a shopper reads it: 3 December 2026."""
    return f"{instant.astimezone(UTC).day} {instant.astimezone(UTC):%B %Y}"
