"""A stand-in Product Service: the specification's endpoints and events, for the demo and for tests.

It asks for the role ``inventory-service`` where the specification does; its products are changed, and its faults
ordered, with the role ``product-manager``, which is its own. It keeps everything in memory.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict, replace

from adapters.tokens.verifier import Verifier
from core.errors import Unauthorized
from core.events import PRODUCT_EXCHANGE
from core.ids import new_event_id, new_id
from entrypoints.demo.goods import NewProduct, ProductEdit, StoredProduct
from entrypoints.demo.misbehaviour import Misbehaviour, spoil
from entrypoints.demo.storefront import Storefront
from entrypoints.demo.wire import HEAD_MAX, Answer, Request, read, send
from entrypoints.processes.serve import url_of
from ports.broker import Message

READER, MANAGER = "inventory-service", "product-manager"
REMEMBERED = 100_000
_encode = msgspec.json.encode


class Asked(NamedTuple):
    """A request that came: when (the loop's clock), method, path as it stood, and the caller's correlation id."""

    at: float
    method: str
    path: str
    correlation_id: str | None


class _Page(NamedTuple):
    rows: list[StoredProduct]
    after: str | None


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ProductService:
    """The stand-in. Its events carry no variants, as in the specification's example: whoever needs them asks.

    Args:
        verifier: judges the callers' tokens.
        publish: sends events to a broker; without it nobody is told of changes.
        storefront: the pages where its products are sold; without it there are none.
        prefix: what its paths begin with, such as ``/api/v2``.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        publish: Callable[[Sequence[Message]], Awaitable[object]] | None = None,
        storefront: Storefront | None = None,
        prefix: str = "",
    ) -> None:
        self.products: dict[str, StoredProduct] = {} if storefront is None else storefront.products
        self.misbehaviour: Misbehaviour | None = None
        self.asked: deque[Asked] = deque(maxlen=REMEMBERED)
        self._verifier = verifier
        self._publish = publish
        self._storefront = storefront
        self._prefix = prefix
        self._talking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[str]:
        """Serve on a bound socket while the block runs, and yield the base URL."""
        server = await asyncio.start_server(self._connected, sock=listener, limit=HEAD_MAX)
        url = url_of(listener) + self._prefix
        try:
            yield url
        finally:
            server.close()
            for task in self._talking:
                task.cancel()
            await asyncio.gather(*self._talking, return_exceptions=True)

    async def create(self, new: NewProduct) -> StoredProduct:
        """Add a product, and tell.

        Raises:
            ValueError: there is one of that id.
        """
        product = StoredProduct(id=new.id or new_id("prod"), sku=new.sku, name=new.name, variants=new.variants)
        if product.id in self.products:
            raise ValueError(f"There is a product {product.id} already.")
        self.products[product.id] = product
        await self._tell("ProductCreated", product)
        return product

    async def update(self, id: str, edit: ProductEdit) -> StoredProduct:
        """Change a product, and tell.

        Raises:
            KeyError: there is none of that id.
        """
        product = replace(self.products[id], **{k: v for k, v in asdict(edit).items() if v is not UNSET})
        self.products[id] = product
        await self._tell("ProductUpdated", product)
        return product

    async def delete(self, id: str) -> StoredProduct:
        """Remove a product, and tell.

        Raises:
            KeyError: there is none of that id.
        """
        product = self.products.pop(id)
        await self._tell("ProductDeleted", product)
        return product

    async def _tell(self, type: str, product: StoredProduct) -> None:
        if self._publish is None:
            return
        now = datetime.now(UTC)
        id = new_event_id()
        event = {
            "eventId": id,
            "eventType": type,
            "eventVersion": "1.0.0",
            "aggregateId": product.id,
            "aggregateType": "Product",
            "timestamp": now,
            "metadata": {"correlationId": id, "source": "product-service"},
            "payload": {"productId": product.id, "sku": product.sku, "name": product.name},
        }
        key = f"product.{type.lower()}.product"
        body = _encode(event)
        await self._publish(
            [Message(id=id, exchange=PRODUCT_EXCHANGE, routing_key=key, body=body, type=type, timestamp=now)]
        )

    async def hear(self, messages: AsyncIterator[Message]) -> None:
        """Hear the Inventory Service's events, for ever, unless deaf: then they are lost."""
        async for message in messages:
            if (fault := self.misbehaviour) is not None and fault.fault == "deaf":
                self._spend(fault)
            elif self._storefront is not None:
                self._storefront.inventory.hear(message.body)

    # -- HTTP --------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talking.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                while (request := await read(reader)) is not None and await self._answer(request, reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # the stand-in ends; asyncio would log it as an error of the connection
        finally:
            self._talking.discard(task)
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path = urlsplit(request.path).path.removeprefix(self._prefix)
        correlation_id = request.headers.get("x-correlation-id")
        self.asked.append(Asked(asyncio.get_running_loop().time(), request.method, path, correlation_id))
        if self._storefront is not None and self._storefront.serves(path):
            return await self._storefront.answer(request, reader, writer)
        fault = self._fault(path)
        good = await self._good(request, path)
        if fault is not None and not path.startswith("/misbehaviour"):
            return await spoil(fault, good, writer)
        await send(writer, good)
        return True

    def _fault(self, path: str) -> Misbehaviour | None:
        fault = self.misbehaviour
        if fault is None or fault.fault == "deaf" or not path.startswith(fault.path):
            return None
        self._spend(fault)
        return fault

    def _spend(self, fault: Misbehaviour) -> None:
        if fault.times is not None:
            self.misbehaviour = replace(fault, times=fault.times - 1) if fault.times > 1 else None

    async def _good(self, request: Request, path: str) -> Answer:
        try:
            status, data = await self._handle(request, [unquote(part) for part in path.split("/")[1:]])
        except _Refused as refusal:
            return _refusal(refusal.status, str(refusal))
        except Unauthorized as error:
            return _refusal(401, error.detail)
        except KeyError:
            return _refusal(404, "There is no such product.")
        except msgspec.MsgspecError as error:
            return _refusal(400, str(error))
        except ValueError as error:
            return _refusal(409, str(error))
        told = {"data": data.rows, "nextCursor": data.after} if isinstance(data, _Page) else {"data": data}
        return Answer(status=status, body=_encode({"success": True, **told}))

    async def _handle(self, request: Request, parts: list[str]) -> tuple[int, Any]:
        match request.method, *parts:
            case "GET", "health":
                return 200, {"status": "ok"}
            case "GET", "products":
                self._admit(request, READER)
                return 200, self._listed(parse_qs(urlsplit(request.path).query))
            case "GET", "products", id:
                self._admit(request, READER)
                return 200, self.products[id]
            case "GET", "products", id, "variants":
                self._admit(request, READER)
                return 200, self.products[id].variants
        self._admit(request, MANAGER)
        return await self._manage(request, parts)

    def _listed(self, asked: dict[str, list[str]]) -> "_Page":
        after, limit = asked.get("cursor", [""])[0], int(asked.get("limit", ["50"])[0])
        ids = sorted(id for id in self.products if id > after)
        rows = [self.products[id] for id in ids[:limit]]
        return _Page(rows, ids[limit - 1] if len(ids) > limit else None)

    async def _manage(self, request: Request, parts: list[str]) -> tuple[int, Any]:
        match request.method, *parts:
            case "POST", "products":
                return 201, await self.create(msgspec.json.decode(request.body, type=NewProduct))
            case "PATCH", "products", id:
                return 200, await self.update(id, msgspec.json.decode(request.body, type=ProductEdit))
            case "DELETE", "products", id:
                return 200, await self.delete(id)
            case "PUT" | "DELETE" as method, "misbehaviour":
                command = msgspec.json.decode(request.body, type=Misbehaviour) if method == "PUT" else None
                self.misbehaviour = command
                return 200, command
        raise _Refused(404, "There is nothing here.")

    def _admit(self, request: Request, role: str) -> None:
        """Let nobody past without the role."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _Refused(401, "Send a token: Authorization: Bearer followed by the token.")
        if role not in self._verifier.verify(token).roles:
            raise _Refused(403, f"This needs the role {role}.")


def _refusal(status: int, message: str) -> Answer:
    return Answer(status=status, body=_encode({"success": False, "error": {"message": message}}))
