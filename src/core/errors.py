"""Every refusal the service can answer with, named by what the caller may do next.

``code`` is the stable word of the wire (rule R27); which HTTP status or broker verdict it becomes is the edge's
business. ``detail`` is a sentence that says what to do; ``extra`` holds the numbers behind it.
"""

from typing import Any, ClassVar


class InventoryError(Exception):
    """The base of every expected failure."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class NotFound(InventoryError):
    """The thing named does not exist; name another."""

    code = "not_found"
    title = "Not found"


class ValidationFailed(InventoryError):
    """The request can never succeed as it stands; correct it."""

    code = "validation_failed"
    title = "The request is not valid"


class UnsupportedVersion(ValidationFailed):
    """An event's version is one that this version of the service does not read; try it again after an upgrade."""

    code = "unsupported_version"
    title = "The event's version is not supported"


class Unauthorized(InventoryError):
    """No acceptable token came with the request; bring one."""

    code = "unauthorized"
    title = "Authentication is required"


class Forbidden(InventoryError):
    """The token is good, its roles do not allow this."""

    code = "forbidden"
    title = "The token's roles do not allow this"


class Conflict(InventoryError):
    """The state of the stock refuses the request now; look at the state and decide again."""

    code = "invalid_state"
    title = "The current state does not allow this"


class InsufficientStock(Conflict):
    """Fewer units are available than were asked for."""

    code = "insufficient_stock"
    title = "Not enough stock"


class ItemInactive(Conflict):
    """The inventory item is not for sale."""

    code = "item_inactive"
    title = "The inventory item is inactive"


class ReservationExpired(Conflict):
    """The hold ran out before it was used."""

    code = "reservation_expired"
    title = "The reservation has expired"


class VersionConflict(Conflict):
    """``expectedVersion`` is not the item's version any more; read it again."""

    code = "version_conflict"
    title = "The item has changed since it was read"


class PreconditionFailed(Conflict):
    """``If-Match`` does not name the current version; read it again."""

    code = "version_conflict"
    title = "The resource has changed since it was read"


class SkuConflict(Conflict):
    """The SKU is in use by another product in that warehouse."""

    code = "sku_conflict"
    title = "The SKU belongs to another product"


class AlreadyExists(Conflict):
    """What should be created is there already."""

    code = "already_exists"
    title = "It exists already"


class IdempotencyKeyReused(InventoryError):
    """The idempotency key came before with another request."""

    code = "idempotency_key_reused"
    title = "The idempotency key was used for another request"


class Unavailable(InventoryError):
    """Nothing was done and nothing is wrong with the request; try again shortly.

    ``retry_after`` (seconds) in ``extra`` is a hint.
    """

    code = "unavailable"
    title = "The service cannot do this right now"


class Busy(Unavailable):
    """Somebody else holds the product's lock for too long."""


class ProductNotFound(NotFound):
    """The Product Service has no product of that id; name another, or create it there first."""

    code = "product_not_found"
    title = "The Product Service does not have the product"


class ProductServiceUnavailable(Unavailable):
    """The Product Service did not answer in time, and this cannot be done without it; try again shortly."""

    code = "product_service_unavailable"
    title = "The Product Service is away"


class ProductServiceProtocolError(InventoryError):
    """The Product Service's answer is not what was agreed; its operator, or whoever set its URL here, must act."""

    code = "product_service_protocol_error"
    title = "The Product Service's answer cannot be used"


class OutcomeUnknown(InventoryError):
    """The commit may or may not have happened; ask again with the same idempotency key."""

    code = "outcome_unknown"
    title = "It is not known whether this was done"


def _kinds(base: type[InventoryError]) -> dict[str, type[InventoryError]]:
    kinds = {base.__name__: base}
    for child in base.__subclasses__():
        kinds |= _kinds(child)
    return kinds


KINDS = _kinds(InventoryError)
"""Every error class of the core by name."""


def error_named(*names: str) -> type[InventoryError]:
    """Return the error class of the first name that one has: how a stored refusal is told again.

    A sourcing strategy's own class counts, as long as the strategy is installed.
    """
    kinds = KINDS if names[0] in KINDS else _kinds(InventoryError) | KINDS
    return next((kinds[name] for name in names if name in kinds), InventoryError)
