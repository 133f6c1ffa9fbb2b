"""The Product Service's catalogue: what products there are, and their variants. Only ever asked, never told."""

from typing import Literal, Protocol

from msgspec import Struct

from core.events import ProductVariant

Circuit = Literal["CLOSED", "OPEN", "HALF_OPEN"]


class CatalogProduct(Struct, frozen=True, rename="camel", kw_only=True):
    """A product as the Product Service knows it; ``stale`` when it could not be asked, and this is the last known."""

    id: str
    sku: str | None = None
    name: str | None = None
    stale: bool = False


class CatalogPage(Struct, frozen=True):
    """The ids of some products of a list, and where to go on; ``next_cursor`` is None on the last page."""

    ids: tuple[str, ...]
    next_cursor: str | None


class Condition(Struct, frozen=True, rename="camel", kw_only=True):
    """How a catalogue stands, as seen from this process.

    ``circuit`` OPEN means that calls are refused here without being sent, HALF_OPEN that the next one is sent to see;
    ``forced`` that an operator has set it so. ``failures`` counts failed calls among the last ``calls``.
    """

    circuit: Circuit
    forced: bool
    calls: int
    failures: int


class ProductCatalog(Protocol):
    """A catalogue. Safe to use from many tasks of one event loop; every call ends within the adapter's deadline."""

    async def product(self, id: str) -> CatalogProduct:
        """Return a product; while the circuit is open the last known one, marked stale, where there is one.

        Raises:
            ProductNotFound: there is none of that id.
            ProductServiceUnavailable: it could not be asked.
            ProductServiceProtocolError: what it answered cannot be used.
        """
        ...

    async def variants(self, id: str) -> tuple[ProductVariant, ...]:
        """Return a product's variants, none for a product without any; never stale.

        Raises:
            ProductNotFound: there is no product of that id.
            ProductServiceUnavailable: it could not be asked.
            ProductServiceProtocolError: what it answered cannot be used.
        """
        ...

    async def listed(self, cursor: str | None, *, limit: int) -> CatalogPage | None:
        """Return the next products of the catalogue's own list, about ``limit``; None where it offers none.

        Raises:
            ProductServiceUnavailable: it could not be asked.
            ProductServiceProtocolError: what it answered cannot be used.
        """
        ...

    async def ping(self) -> None:
        """Return when the Product Service says that it is well. The circuit is neither asked nor told.

        Raises:
            ProductServiceUnavailable: it does not.
        """
        ...

    def condition(self) -> Condition:
        """Tell how things stand, without asking anybody."""
        ...

    def force(self, circuit: Literal["OPEN", "CLOSED"] | None) -> None:
        """Hold the circuit open or closed whatever happens, in this process; None lets it decide by itself again."""
        ...
