"""Walking through what can be compared, page by page: our own records, and the Product Service's catalogue beside ours.

What disagrees is looked at again a little later, and only what disagrees both times is told. Of our own records a page
is one moment, so the second look is soon; between two services an event may be on its way, so there it is later.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence

from msgspec.structs import replace

from core.errors import ProductNotFound, ProductServiceProtocolError, ProductServiceUnavailable
from core.events import ProductVariant
from core.findings import Discrepancy, Part
from core.reconciling.drift import There, drifted, unknown
from ports.catalog import CatalogProduct, ProductCatalog
from ports.reconciliation import ComparedPage
from ports.store import ProductStock, Store

PAGES: dict[Part, int] = {
    "stock": 2_000,
    "outbox": 5_000,
    "receipts": 5_000,
    "ledger": 20_000,
    "events": 20_000,
    "catalog": 100,
    "listing": 100,
}
"""How much of each part one statement reads, or is asked for at a time: products, or rows."""
SPAN = 2_000
"""So many products of the catalogue wait together for their second look."""
_AT_ONCE = 8
_log = logging.getLogger(__name__)


class OwnRecords:
    """The store's records, held against each other."""

    def __init__(self, store: Store, *, second_look_seconds: float) -> None:
        self._store = store
        self._pause = second_look_seconds

    async def pages(self, part: Part, after: str | None) -> AsyncIterator[ComparedPage]:
        """Look through a part, from a place on."""
        while True:
            page = await self._confirmed(part, after)
            yield page
            if (after := page.next_after) is None:
                return

    def check(self) -> None:
        """Return: of our own records nothing is ever left out."""

    async def _confirmed(self, part: Part, after: str | None) -> ComparedPage:
        """Return a page with those discrepancies that a second look sees as well."""
        page = await self._store.compare(part, after=after, limit=PAGES[part])
        if not page.discrepancies:
            return page
        await asyncio.sleep(self._pause)
        # The second page may end earlier than the first; it is the one to go on from, so that nothing is left out.
        again = await self._store.compare(part, after=after, limit=PAGES[part])
        return replace(again, discrepancies=_both(page.discrepancies, again.discrepancies))


class CatalogSurvey:
    """Our products, held against the Product Service's.

    Args:
        settle_seconds: for how long what was changed there may be on its way here.
    """

    def __init__(self, store: Store, catalog: ProductCatalog, *, settle_seconds: float) -> None:
        self._store = store
        self._catalog = catalog
        self._pause = settle_seconds
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._unusable = 0

    async def there(self, id: str) -> There | None:
        """Ask what the Product Service has of a product; None for nothing.

        Raises:
            ProductServiceUnavailable: it cannot be asked now.
            ProductServiceProtocolError: its answer cannot be used.
        """
        async with self._turns:
            try:
                product = await self._catalog.product(id)
            except ProductNotFound:
                return None
            if product.stale:
                raise ProductServiceUnavailable("The Product Service cannot be asked now.", retry_after=1)
            return There(product, await self._variants(product))

    async def _variants(self, product: CatalogProduct) -> tuple[ProductVariant, ...]:
        try:
            return await self._catalog.variants(product.id)
        except ProductNotFound:  # deleted a moment ago, which the second look sees; or there are no variants at all
            return ()

    def check(self) -> None:
        """Return if every product could be compared since this was asked last.

        Raises:
            ProductServiceProtocolError: of some the answer could not be used.
        """
        count, self._unusable = self._unusable, 0
        if count:
            raise ProductServiceProtocolError(f"the answers for {count} products cannot be used; the log says why.")

    async def is_well(self) -> bool:
        """Ask whether the Product Service says that it is well, and calls to it fare well."""
        try:
            await self._catalog.ping()
        except ProductServiceUnavailable:
            return False
        return self._catalog.condition().circuit == "CLOSED"

    async def pages(self, part: Part, after: str | None) -> AsyncIterator[ComparedPage]:
        """Look through a part, from a place on; the place moves on when the second look has been taken.

        Raises:
            ProductServiceUnavailable: it cannot be asked now.
        """
        source = self._ours(after) if part == "catalog" else self._listed(after)
        waiting: list[Discrepancy] = []
        place, seen = after, 0
        async for page in source:
            waiting += page.discrepancies
            seen += page.looked_at
            last = page.next_after is None
            if not last and seen < SPAN:
                yield replace(page, discrepancies=(), next_after=place)
                continue
            place, seen = page.next_after, 0
            confirmed, waiting = await self._confirmed(part, waiting), []
            yield replace(page, discrepancies=confirmed)

    async def _ours(self, after: str | None) -> AsyncIterator[ComparedPage]:
        while True:
            ids = await self._store.product_ids(after=after, limit=PAGES["catalog"])
            stocks = await self._known(ids)
            asked = await self._all_there(stocks)
            found = [each for id, there in asked.items() for each in drifted(stocks[id], there)]
            absent = sum(there is None for there in asked.values())
            after = ids[-1] if len(ids) == PAGES["catalog"] else None
            yield ComparedPage(len(ids), 0, tuple(found), after, present=len(asked) - absent, absent=absent)
            if after is None:
                return

    async def _listed(self, after: str | None) -> AsyncIterator[ComparedPage]:
        while True:
            page = await self._catalog.listed(after, limit=PAGES["listing"])
            if page is None:
                return
            known = await self._known(page.ids)
            asked = await self._all_there([id for id in page.ids if id not in known])
            found = tuple(unknown(there) for there in asked.values() if there is not None and there.skus)
            yield ComparedPage(len(page.ids), 0, found, page.next_cursor)
            if (after := page.next_cursor) is None:
                return

    async def _confirmed(self, part: Part, suspects: Sequence[Discrepancy]) -> tuple[Discrepancy, ...]:
        if not suspects:
            return ()
        await asyncio.sleep(self._pause)
        again: list[Discrepancy] = []
        ids = list(dict.fromkeys(each.product_id for each in suspects))
        for begin in range(0, len(ids), PAGES[part]):
            batch = ids[begin : begin + PAGES[part]]
            stocks = await self._known(batch)
            for id, there in (await self._all_there(batch)).items():
                if id in stocks:
                    again += drifted(stocks[id], there)
                elif there is not None:
                    again.append(unknown(there))
        return _both(suspects, again)

    async def _known(self, ids: Sequence[str]) -> dict[str, ProductStock]:
        """Return those that anybody has told us of; a row alone may be left of a creation that was refused."""
        found = await self._store.products(ids)
        return {id: found[id] for id in ids if id in found and found[id].product.is_known}

    async def _all_there(self, ids: Iterable[str]) -> dict[str, There | None]:
        """Ask for each; those whose answer cannot be used are left out, and counted."""
        ids = list(ids)
        answers = await asyncio.gather(*map(self._usable, ids))
        return {id: answer[0] for id, answer in zip(ids, answers, strict=True) if answer is not None}

    async def _usable(self, id: str) -> tuple[There | None] | None:
        try:
            return (await self.there(id),)
        except ProductServiceProtocolError as error:
            self._unusable += 1
            _log.warning("Product %s cannot be compared: %s", id, error.detail)
            return None


def _both(first: Iterable[Discrepancy], second: Iterable[Discrepancy]) -> tuple[Discrepancy, ...]:
    """Return what was seen twice, as it was seen the second time; of one kind and subject the first one of a page."""
    suspects = {(each.kind, each.subject) for each in first}
    confirmed = {(each.kind, each.subject): each for each in reversed([*second])}
    return tuple(confirmed[each] for each in confirmed.keys() & suspects)
