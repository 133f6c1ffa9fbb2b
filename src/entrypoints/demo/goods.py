"""Products, as the stand-in keeps them and as they are told to it."""

from msgspec import UNSET, Struct, UnsetType

from core.events import ProductVariant
from core.fields import Text, Word


class StoredProduct(Struct, frozen=True, rename="camel", kw_only=True):
    """A product as the stand-in keeps and tells it."""

    id: str
    sku: Word
    name: Text
    variants: tuple[ProductVariant, ...] = ()


class NewProduct(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What a product is made of; an id is made up where none is given."""

    sku: Word
    name: Text
    id: Word | None = None
    variants: tuple[ProductVariant, ...] = ()


class ProductEdit(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What changes of a product."""

    sku: Word | UnsetType = UNSET
    name: Text | UnsetType = UNSET
    variants: tuple[ProductVariant, ...] | UnsetType = UNSET
