"""What the Product Service is asked before stock is kept of a product, and what follows from its answer.

It is asked before anything is submitted to the writer: no lock and no transaction waits for somebody else's network.
"""

import logging
from typing import Literal

from core.errors import ProductServiceUnavailable
from ports.catalog import ProductCatalog
from ports.store import Store

Policy = Literal["strict", "lenient", "off"]
_log = logging.getLogger(__name__)


class Products:
    """Judges products by the Product Service's catalogue.

    Args:
        policy: what a product that nobody here has heard of must be. "strict": known to the Product Service now.
            "lenient": the same, but while the Product Service is away the caller is believed. "off": nothing.
    """

    def __init__(self, catalog: ProductCatalog, store: Store, *, policy: Policy) -> None:
        self._catalog = catalog
        self._store = store
        self._policy = policy

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
        _log.warning("Product %s is taken on trust: the Product Service is away", product_id)

    async def _heard_of(self, product_id: str) -> bool:
        """Tell whether the Product Service, or somebody who was admitted, has named the product before."""
        known = (await self._store.products([product_id])).get(product_id)
        return known is not None and known.product.is_known and not known.product.catalog.is_deleted
