"""What the store keeps of the traffic with the Product Service beside the stock: events that came, and checks owed.

A check is owed for a product that was taken on trust, because the Product Service was away when it first came up.
"""

from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from core.acts import Act


class ReceivedEvent(Struct, frozen=True, rename="camel", kw_only=True):
    """A product event that was dealt with: APPLIED, or SKIPPED for a ``reason``."""

    event_id: str
    event_type: str
    product_id: str
    verdict: Literal["APPLIED", "SKIPPED"]
    reason: str | None
    occurred_at: datetime
    received_at: datetime


class ProductCheck(Struct, frozen=True, rename="camel", kw_only=True):
    """A product taken on trust: PENDING until the Product Service was asked, MISSING when it has none of that id.

    ``checked_at`` is when the Product Service was last asked, None for not yet.
    """

    product_id: str
    status: Literal["PENDING", "MISSING"]
    owed_at: datetime
    checked_at: datetime | None


class ProductRecords(Protocol):
    """The part of the store that keeps them."""

    async def received(self, event_id: str) -> ReceivedEvent | None:
        """Return what became of a product event, if it was dealt with and is still on record."""
        ...

    async def owe_check(self, product_id: str) -> None:
        """Put on record that a product is to be checked; once, however often it is said."""
        ...

    async def owed_checks(self, *, limit: int, again_after_seconds: float) -> list[str]:
        """Return the products to be checked, the longest unchecked first; missing ones again after so long."""
        ...

    async def settle_check(self, product_id: str, *, missing: bool) -> None:
        """Record what a check found; one that found the product is owed no more."""
        ...

    async def postpone_check(self, product_id: str) -> None:
        """Record that a check came to nothing: it is still owed, after all others."""
        ...

    async def record_act(self, act: Act, action: str, subject: str, **details: object) -> None:
        """Put on record an operator's act that changes nothing else in the store (table ``audit``)."""
        ...

    async def product_checks(self, *, limit: int) -> list[ProductCheck]:
        """Return the checks that are owed or found nothing, the oldest first."""
        ...
