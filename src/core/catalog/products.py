"""What the Product Service is asked of its products, and what follows from its answers.

It is asked before anything is submitted to the writer: no lock and no transaction waits for somebody else's network.
"""

import logging
from typing import Literal

from msgspec.structs import replace

from core.errors import ProductNotFound, ProductServiceProtocolError, ProductServiceUnavailable
from core.events import ProductEvent, ProductPayload
from core.operations import ApplyProductEvent, EventPolicy
from core.running.loop import Loops, forever
from ports.catalog import ProductCatalog
from ports.store import Store

Policy = Literal["strict", "lenient", "off"]
CHECK_SECONDS = 10.0
"""From one look at the checks that are owed to the next."""
AGAIN_SECONDS = 3_600.0
"""When a product that was missing is looked for again."""
_CHECKS_AT_ONCE = 100
_log = logging.getLogger(__name__)


class Products:
    """Judges products by the Product Service's catalogue, and completes what it says of them.

    Args:
        policy: what a product that nobody here has heard of must be. "strict": known to the Product Service now.
            "lenient": the same, but while the Product Service is away the caller is believed, and the product checked
            later. "off": nothing, and the Product Service is never asked.
        making: what a new product leads to.
    """

    def __init__(self, catalog: ProductCatalog, store: Store, *, policy: Policy, making: EventPolicy) -> None:
        self._catalog = catalog
        self._store = store
        self._policy = policy
        self._making = making
        self._loops = Loops()

    # -- before stock is kept of a product ---------------------------------------------------------------------------

    async def admit(self, product_id: str) -> None:
        """Return if stock of a product may be kept.

        Raises:
            ProductNotFound: the Product Service does not have it.
            ProductServiceUnavailable: it cannot be asked, and the policy is strict.
            ProductServiceProtocolError: its answer cannot be used.
            Unavailable: the store is away.
        """
        if self._policy == "off" or await self._heard_of(product_id):
            return
        try:
            product = await self._catalog.product(product_id)
        except ProductServiceUnavailable:
            if self._policy == "strict":
                raise
        else:
            if not product.stale:
                return
            if self._policy == "strict":
                raise ProductServiceUnavailable("The Product Service cannot be asked now.", retry_after=1)
        # Before the item is made: a check too many is harmless, one too few is never noticed.
        await self._store.owe_check(product_id)
        _log.warning("Product %s is taken on trust: the Product Service is away", product_id)

    async def _heard_of(self, product_id: str) -> bool:
        """Tell whether the Product Service, or somebody who was admitted, has named the product before."""
        known = (await self._store.products([product_id])).get(product_id)
        return known is not None and known.product.is_known and not known.product.catalog.is_deleted

    # -- when the Product Service tells of one ------------------------------------------------------------------------

    async def operation(self, event: ProductEvent) -> ApplyProductEvent:
        """Return the operation that applies an event, completed by what its payload leaves out.

        A ProductCreated without variants is asked for them; a ProductUpdated of a product nobody here has heard of is
        as good as its creation, which must have been lost, or comes later and changes nothing then.

        Raises:
            ProductServiceUnavailable: it cannot be asked now.
            ProductServiceProtocolError: its answer cannot be used.
            Unavailable: the store is away.
        """
        operation = ApplyProductEvent(event=event, policy=self._making)
        if self._policy == "off":
            return operation
        id, payload = event.payload.product_id, event.payload
        try:
            if event.event_type == "ProductCreated" and not payload.variants:
                variants = await self._catalog.variants(id)
                return replace(operation, event=replace(event, payload=replace(payload, variants=variants)))
            if event.event_type == "ProductUpdated" and not await self._known(id):
                return replace(operation, event=replace(event, payload=await self._fetched(payload)), ensure=True)
        except ProductNotFound:
            # It was deleted since, and that event is on its way; or this Product Service has variants of none.
            _log.info("The Product Service does not have product %s of event %s", id, event.event_id)
        return operation

    async def _known(self, product_id: str) -> bool:
        known = (await self._store.products([product_id])).get(product_id)
        return known is not None and known.product.is_known

    async def _fetched(self, payload: ProductPayload) -> ProductPayload:
        """Return what the Product Service has of a product, over what an event said."""
        product = await self._catalog.product(payload.product_id)
        variants = await self._catalog.variants(payload.product_id)
        return replace(
            payload,
            sku=product.sku or payload.sku,
            name=product.name or payload.name,
            variants=variants or payload.variants,
        )

    # -- when it is back ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start checking what was taken on trust."""
        if self._policy != "off":
            self._loops.start(forever("Checking products", self._turn, pause=CHECK_SECONDS))

    async def stop(self) -> None:
        """End."""
        await self._loops.stop()

    async def check(self) -> int:
        """Ask for every product that is owed a check, and return how many were found or found missing.

        A missing one keeps its items: absence is no deletion. It is on record, and looked for again.

        Raises:
            ProductServiceUnavailable: the Product Service is still away; what is left is checked the next time.
            Unavailable: the store is away.
        """
        checked = 0
        for id in await self._store.owed_checks(limit=_CHECKS_AT_ONCE, again_after_seconds=AGAIN_SECONDS):
            try:
                product = await self._catalog.product(id)
            except ProductNotFound:
                missing = await self._known(id)
            except ProductServiceProtocolError as error:
                _log.warning("Product %s cannot be checked: %s", id, error.detail)
                await self._store.postpone_check(id)  # or a hundred such would keep every other from its turn
                continue
            else:
                missing = False
                if product.stale:
                    raise ProductServiceUnavailable("The Product Service is still away.")
            await self._store.settle_check(id, missing=missing)
            checked += 1
            if missing:
                _log.error("Product %s was taken on trust, and the Product Service does not have it", id)
        return checked

    async def _turn(self) -> float:
        return 0.0 if await self.check() >= _CHECKS_AT_ONCE else CHECK_SECONDS
