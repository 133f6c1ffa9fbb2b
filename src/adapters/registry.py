"""Adapters are plugins: a URL's scheme names an entry point, ours and a stranger's alike.

A package that lists ``mysql`` in the entry-point group ``inventory.store`` makes ``INVENTORY_STORE=mysql://…`` work;
nothing here knows which adapters exist. Only the chosen one is imported.
"""

import re
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from typing import Any, Literal, overload

from core.errors import ValidationFailed
from ports.broker import Broker
from ports.cache import Cache
from ports.catalog import ProductCatalog
from ports.store import Store


@overload
def connect(port: Literal["store"], url: str) -> AbstractAsyncContextManager[Store]: ...
@overload
def connect(port: Literal["broker"], url: str) -> AbstractAsyncContextManager[Broker]: ...
@overload
def connect(port: Literal["cache"], url: str) -> AbstractAsyncContextManager[Cache]: ...
@overload
def connect(port: Literal["catalog"], url: str, **options: Any) -> AbstractAsyncContextManager[ProductCatalog]: ...
def connect(port: str, url: str, **options: Any) -> AbstractAsyncContextManager[Any]:
    """Return what opens ``port`` at ``url``; entering it yields the port, leaving it closes.

    The scheme is what stands before the first ``:`` or ``+``. ``options`` are what does not belong into a URL.

    Raises:
        ValidationFailed: no installed package offers the scheme, or several do, or the one that does cannot be loaded.
    """
    setting = f"INVENTORY_{port.upper()}"
    group = f"inventory.{port}"
    found = re.match(r"([a-z][a-z0-9.-]*)(?:\+[^:]*)?:", url)
    offers = [offer for offer in entry_points(group=group) if found and offer.name == found[1]]
    if not offers:
        named = f"names the scheme {found[1]}, which no installed package offers" if found else "is not a URL"
        schemes = ", ".join(sorted({f"{offer.name}://" for offer in entry_points(group=group)})) or "none"
        raise ValidationFailed(f"{setting} {named}; installed are: {schemes}.")
    if len(offers) > 1:
        packages = " and ".join(sorted(offer.dist.name if offer.dist else offer.value for offer in offers))
        raise ValidationFailed(f"{setting}: {offers[0].name}:// is offered by {packages}; uninstall all but one.")
    try:
        opener = offers[0].load()
    except (ImportError, AttributeError) as error:
        raise ValidationFailed(f"{setting}: the adapter for {offers[0].name}:// cannot be loaded: {error}.") from error
    opened: AbstractAsyncContextManager[Any] = opener(url, **options)
    return opened
