"""The Inventory Service, as the stand-in calls it over HTTP: a shop that asks, and a checkout that reserves.

Two tokens, because they are two parties: the Product Service may only ask (role ``product-service``); who takes orders
manages stock (role ``inventory-operator``). Neither leaves this process.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
import stamina
from msgspec import Struct

from adapters.circuit import Breaker, Refused
from core.errors import Conflict, InventoryError, NotFound, Unavailable
from core.stock import ProductInventory

READ_SECONDS, WRITE_SECONDS = 1.5, 6.0
TRIES = 3
HOLD_SECONDS = 120
"""For how long units wait for the confirmation that follows at once."""
AT_ONCE = 16
_PAUSES: Any = {"attempts": TRIES, "wait_initial": 0.05, "wait_jitter": 0.1, "wait_max": 0.5}
T = TypeVar("T")


class _Envelope(Struct, Generic[T]):
    data: T


class _LeadTime(Struct, rename="camel"):
    lead_time_estimate: str | None


class _Reserved(Struct):
    id: str


class _Problem(Struct):
    code: str = "internal"
    detail: str = "The Inventory Service refuses without a word."


_as_inventory = msgspec.json.Decoder(_Envelope[ProductInventory]).decode
_as_lead_time = msgspec.json.Decoder(_Envelope[_LeadTime]).decode
_as_reserved = msgspec.json.Decoder(_Envelope[_Reserved]).decode


class OrderRefused(Conflict):
    """There is not as much as was ordered, or it is not sold any more."""


class InventoryClient:
    """Asks and orders at the Inventory Service at ``url``, which may be said later: until then it is away.

    Args:
        client: the connections to it.
        token: returns a token with a role.
    """

    def __init__(self, client: httpx2.AsyncClient, token: Callable[[str], str], *, url: str = "") -> None:
        self.url = url
        self._client = client
        self._token = token
        self._breaker = Breaker(whose="Inventory Service")
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def by_product(self, product_id: str) -> ProductInventory:
        """See ``Inventory``."""
        path = f"/inventory-items/by-product/{quote(product_id, safe='')}"
        return (await self._get(path, _as_inventory)).data

    async def lead_time(self, product_id: str, quantity: int) -> str | None:
        """See ``Inventory``."""
        path = f"/products/{quote(product_id, safe='')}/availability?quantity={quantity}"
        return (await self._get(path, _as_lead_time)).data.lead_time_estimate

    async def order(self, number: str, product_id: str, quantity: int) -> None:
        """Reserve so many of a product and confirm, once however often it is called with the order's ``number``.

        Raises:
            OrderRefused: there is not as much, or it is not sold any more.
            Unavailable: the Inventory Service does not answer; call again with the same number to find out.
        """
        line = {"productId": product_id, "quantity": quantity}
        hold = {"referenceType": "ORDER", "referenceNumber": number, "expiresInSeconds": HOLD_SECONDS, "lines": [line]}
        reserved = _as_reserved(await self._post("/reservations", hold, key=f"{number}:reserve")).data
        await self._post(f"/reservations/{reserved.id}/confirm", None, key=f"{number}:confirm")

    async def _get(self, path: str, decode: Callable[[bytes], T]) -> T:
        if not self.url:
            raise Unavailable("The Inventory Service has not opened yet.")
        missing = None
        try:
            with self._breaker.call():
                try:
                    return decode(await self._send("GET", path, "product-service", READ_SECONDS))
                except NotFound as error:
                    missing = error  # an answer like any other, and no sign of an outage
            raise missing
        except Refused:
            raise Unavailable("The Inventory Service has not answered of late.") from None
        except msgspec.MsgspecError as error:
            raise InventoryError(f"The Inventory Service's answer is not what was agreed: {error}.") from None

    async def _post(self, path: str, body: object, *, key: str) -> bytes:
        if not self.url:
            raise Unavailable("The Inventory Service has not opened yet.")
        headers = {"idempotency-key": key, "content-type": "application/json"}
        content = b"" if body is None else msgspec.json.encode(body)
        try:
            return await self._send("POST", path, "inventory-operator", WRITE_SECONDS, headers=headers, content=content)
        except (Conflict, NotFound) as error:
            raise OrderRefused(error.detail) from None

    async def _send(self, method: str, path: str, role: str, seconds: float, **words: Any) -> bytes:
        """Return the body of a good answer; who does not answer is asked again, until ``seconds`` are over."""
        words["headers"] = words.get("headers", {}) | {"authorization": f"Bearer {self._token(role)}"}
        try:
            async with asyncio.timeout(seconds), self._turns:
                async for attempt in stamina.retry_context(on=Unavailable, **_PAUSES):
                    with attempt:
                        return await self._try(method, self.url + path, words)
        except TimeoutError:
            raise Unavailable("The Inventory Service does not answer in time.") from None
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, method: str, url: str, words: dict[str, Any]) -> bytes:
        try:
            answer = await self._client.request(method, url, **words)
        except httpx2.HTTPError as error:
            raise Unavailable(f"The Inventory Service does not answer: {type(error).__name__}.") from error
        if answer.is_success:
            return answer.content
        try:
            problem = msgspec.json.decode(answer.content, type=_Problem)
        except msgspec.MsgspecError:
            problem = _Problem()
        kind = {404: NotFound, 409: Conflict, 422: Conflict}.get(answer.status_code)
        if kind is None:
            kind = Unavailable if answer.status_code >= 500 else InventoryError
        raise kind(problem.detail)


@asynccontextmanager
async def open_inventory(token: Callable[[str], str], *, url: str = "") -> AsyncIterator[InventoryClient]:
    """Open connections to the Inventory Service while the block runs; nothing is sent yet."""
    async with httpx2.AsyncClient(timeout=READ_SECONDS, follow_redirects=False, trust_env=False) as client:
        yield InventoryClient(client, token, url=url)
