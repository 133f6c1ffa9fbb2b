"""The exchanges and queues of rule R20, which every broker has."""

from core.events import DEAD_LETTERS, EVENTS_EXCHANGE, PRODUCT_EXCHANGE, PRODUCT_QUEUE

EXCHANGES = (EVENTS_EXCHANGE, PRODUCT_EXCHANGE, DEAD_LETTERS)
PRODUCT_KEYS = ("product.productcreated.product", "product.productupdated.product", "product.productdeleted.product")

BINDINGS = {PRODUCT_QUEUE: (PRODUCT_EXCHANGE, PRODUCT_KEYS), DEAD_LETTERS: (DEAD_LETTERS, ("#",))}
"""By queue: the exchange it is bound to, and the patterns."""
