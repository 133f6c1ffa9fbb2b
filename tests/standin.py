"""The stand-in Product Service in the hands of the tests."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from secrecy import secret

from adapters.tokens.keys import KeyRing
from adapters.tokens.signing import mint
from adapters.tokens.verifier import Verifier
from core.events import ProductVariant
from entrypoints.demo.product_service import NewProduct, ProductService

SECRET = secret("what the Product Service and the Inventory Service share")
AUDIENCE = "product-service"


def verifier() -> Verifier:
    """Judge tokens as the stand-in does."""
    return Verifier(KeyRing(secrets=[SECRET]), issuer="inventory-service", audience=AUDIENCE)


def sign(*roles: str) -> str:
    """Return a token for the stand-in."""
    return mint(SECRET, issuer="inventory-service", audience=AUDIENCE, subject="tests", roles=roles, lifetime=60)


def ours() -> str:
    """Return the token this service calls with."""
    return sign("inventory-service")


@asynccontextmanager
async def standing_in(host: str = "127.0.0.1", **words: Any) -> AsyncIterator[tuple[ProductService, str]]:
    """Run a stand-in with one product, which has two variants; yield it and its base URL."""
    service = ProductService(verifier(), **words)
    variants = (ProductVariant("var_1", "MUG-RED", "Mug, red"), ProductVariant("var_2", "MUG-BLUE", "Mug, blue"))
    await service.create(NewProduct(id="prod_1", sku="MUG", name="Mug", variants=variants))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    async with service.serving(socket.create_server((host, 0), family=family)) as url:
        yield service, url
