"""The Product Service over HTTP: a stranger on the other side of a network that loses, delays and garbles.

Every call ends within its deadline, whatever comes back; what comes back is untrusted until it has the agreed shape.
Only reads are made, so that a call may be made twice; how often, ``circuit.py`` decides.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
import stamina
import structlog
from msgspec import Meta, Struct
from msgspec.structs import replace

from adapters.circuit import Breaker, Refused
from core.errors import (
    ProductNotFound,
    ProductServiceProtocolError,
    ProductServiceUnavailable,
    ValidationFailed,
)
from core.events import CORRELATION_ID, ProductVariant
from core.fields import Text, Word
from ports.catalog import CatalogPage, CatalogProduct, Condition, ProductCatalog

KNOWN_MAX = 1_000
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_AUTH = frozenset({401, 403})
_CORRELATION_ID = re.compile(r"[\x20-\x7e]{1,128}")
_UNAVAILABLE = "The Product Service cannot be asked now"

T = TypeVar("T")


class Limits(Struct, frozen=True, kw_only=True):
    """How long and how much: times in seconds, ``total`` for a call with all that belongs to it.

    At most ``at_once`` calls are on their way and ``waiting_max`` wait for their turn; ``bytes_max`` of an answer are
    read. A call is made up to ``tries`` times, with pauses drawn between 0 and ``pause``, ``2 * pause``, ….
    """

    connect: float = 1.0
    read: float = 2.0
    total: float = 3.0
    tries: int = 3
    pause: float = 0.1
    pause_max: float = 1.0
    at_once: int = 16
    waiting_max: int = 1_024
    bytes_max: int = 1024 * 1024
    open_seconds: float = 0.5


class _Product(Struct, rename="camel"):
    """A product as the wire has it; the specification leaves open whether its id is called ``id`` or ``productId``."""

    id: Word | None = None
    product_id: Word | None = None
    sku: Word | None = None
    name: Text | None = None


class _Envelope(Struct, Generic[T]):
    success: Literal[True]
    data: T


class _Listing(Struct, rename="camel"):
    success: Literal[True]
    data: Annotated[tuple[_Product, ...], Meta(max_length=10_000)]
    next_cursor: Annotated[str, Meta(min_length=1, max_length=1_000)] | None = None


_as_listing = msgspec.json.Decoder(_Listing).decode
_as_product = msgspec.json.Decoder(_Envelope[_Product]).decode
_as_variants = msgspec.json.Decoder(_Envelope[Annotated[tuple[ProductVariant, ...], Meta(max_length=500)]]).decode


class _Failed(Exception):
    """An attempt did not end well, and another may; ``after`` is what the other side asked for, in seconds."""

    def __init__(self, reason: str, *, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@asynccontextmanager
async def open_catalog(
    url: str,
    *,
    token: Callable[[], str],
    health_path: str = "/health",
    list_path: str = "",
    deadline: float = 3.0,
    limits: Limits | None = None,
) -> AsyncIterator[ProductCatalog]:
    """Open the Product Service at the base URL ``url``, which may have a path. Nothing is sent yet.

    Args:
        url: ``http://`` or ``https://``, without query, fragment and user.
        token: returns the token to call with.
        health_path: where it says how it is, behind the base URL.
        list_path: where it lists its products, behind the base URL; empty where it does not.
        deadline: how long a call may take (seconds).
        limits: how long and how much, instead of what follows from the deadline.

    Raises:
        ValidationFailed: the URL cannot be used.
    """
    limits = limits or Limits(connect=min(deadline, 1.0), read=min(deadline, 2.0), total=deadline)
    base = _base(url)
    stamina.instrumentation.set_on_retry_hooks(())  # it would log every second try of every call in an outage
    async with httpx2.AsyncClient(
        timeout=httpx2.Timeout(limits.read, connect=limits.connect, pool=limits.total),
        limits=httpx2.Limits(max_connections=limits.at_once * 2, max_keepalive_connections=limits.at_once),
        follow_redirects=False,
        trust_env=False,  # a netrc file would replace our token
    ) as client:
        yield HttpCatalog(client, base, token=token, health_path=health_path, list_path=list_path, limits=limits)


def _base(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValidationFailed(f"INVENTORY_CATALOG is not a URL: {error}.") from None
    if not parsed.host or parsed.query or parsed.fragment or parsed.userinfo:
        raise ValidationFailed(
            "INVENTORY_CATALOG must be a base URL such as https://products.example/api: with a host, and without user, "
            "query and fragment."
        )
    return str(parsed).rstrip("/")


class HttpCatalog:
    """Asks over one pool of connections."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        base: str,
        *,
        token: Callable[[], str],
        health_path: str,
        list_path: str,
        limits: Limits,
    ) -> None:
        self._client = client
        self._base = base
        self._token = token
        self._health = f"{base}/{health_path.lstrip('/')}"
        self._list = f"{base}/{list_path.lstrip('/')}" if list_path else None
        self._limits = limits
        self._breaker = Breaker(open_seconds=limits.open_seconds)
        self._turns = asyncio.Semaphore(limits.at_once)
        self._inside = 0
        self._known: dict[str, CatalogProduct] = {}

    async def product(self, id: str) -> CatalogProduct:
        """See the port."""
        try:
            answer = await self._get(self._path(id), id, _as_product)
        except ProductServiceUnavailable:
            if id in self._known and self._breaker.circuit != "CLOSED":
                return replace(self._known[id], stale=True)
            raise
        self._known.pop(id, None)  # the one heard of last stands last
        self._known[id] = product = CatalogProduct(id=id, sku=answer.sku, name=answer.name)
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        return product

    async def variants(self, id: str) -> tuple[ProductVariant, ...]:
        """See the port."""
        return await self._get(f"{self._path(id)}/variants", id, _as_variants)

    async def listed(self, cursor: str | None, *, limit: int) -> CatalogPage | None:
        """See the port: ``?limit=&cursor=``, answered with ``data`` and ``nextCursor``, as our own lists are."""
        if self._list is None:
            return None
        after = "" if cursor is None else f"&cursor={quote(cursor, safe='')}"
        mark = "&" if "?" in self._list else "?"
        try:
            return await self._get(f"{self._list}{mark}limit={limit}{after}", "", _as_page)
        except ProductNotFound:
            raise ProductServiceProtocolError(
                "The Product Service lists no products at INVENTORY_CATALOG_LIST_PATH; correct it, or leave it empty."
            ) from None

    async def ping(self) -> None:
        """See the port. Without a token, and without a second try: whoever asks does so regularly."""
        try:
            async with asyncio.timeout(self._limits.read):
                async with self._client.stream("GET", self._health) as answer:
                    status = answer.status_code
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ProductServiceUnavailable(f"The Product Service does not say how it is: {_reason(error)}.") from error
        if not 200 <= status < 300:
            raise ProductServiceUnavailable(f"The Product Service says that it is not well: status {status}.")

    def condition(self) -> Condition:
        """See the port."""
        return self._breaker.condition()

    def force(self, circuit: Literal["OPEN", "CLOSED"] | None) -> None:
        """See the port."""
        self._breaker.force(circuit)

    def _path(self, id: str) -> str:
        if id in (".", ".."):
            # In a path they mean something else, and encoding them is undone on the way.
            raise ProductNotFound("No product can have this id.", productId=id)
        return f"{self._base}/products/{quote(id, safe='')}"

    async def _get(self, url: str, id: str, decode: Callable[[bytes], _Envelope[T]]) -> T:
        """Return the ``data`` of an answer, of a product that is the one asked for."""
        deadline = asyncio.get_running_loop().time() + self._limits.total
        if self._inside >= self._limits.at_once + self._limits.waiting_max:
            raise ProductServiceUnavailable(f"{_UNAVAILABLE}: too many calls are on their way.", retry_after=1)
        self._inside += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
            try:
                return await self._tried(url, id, decode, deadline)
            finally:
                self._turns.release()
        except TimeoutError:
            raise ProductServiceUnavailable(f"{_UNAVAILABLE}: it takes too long.", retry_after=1) from None
        finally:
            self._inside -= 1

    async def _tried(self, url: str, id: str, decode: Callable[[bytes], _Envelope[T]], deadline: float) -> T:
        pause, failure = self._limits.pause, None

        def again(error: Exception) -> float | bool:
            """Say when to try again: drawn between 0 and a growing limit, and not before we are asked to."""
            nonlocal pause, failure
            failure = error if isinstance(error, _Failed) else failure
            if not isinstance(error, _Failed) or not self._breaker.may_retry:
                return False
            delay = max(error.after, random.uniform(0, pause))
            pause = min(pause * 2, self._limits.pause_max)
            return delay if asyncio.get_running_loop().time() + delay < deadline else False

        try:
            async for attempt in stamina.retry_context(on=again, attempts=self._limits.tries, timeout=None):
                with attempt:
                    return await self._attempt(url, id, decode, deadline)
        except _Failed as failed:
            failure = failed
        except Refused:
            pass  # at once, or between two tries
        if failure is None:
            raise ProductServiceUnavailable(
                f"{_UNAVAILABLE}: it has not answered lately.", retry_after=self._limits.open_seconds
            )
        raise ProductServiceUnavailable(f"{_UNAVAILABLE}: {failure}.", retry_after=max(failure.after, 1)) from failure

    async def _attempt(self, url: str, id: str, decode: Callable[[bytes], _Envelope[T]], deadline: float) -> T:
        missing: ProductNotFound | None = None
        with self._breaker.call():
            try:
                async with asyncio.timeout_at(deadline):
                    status, body, after = await self._exchange(url)
            except (TimeoutError, httpx2.HTTPError) as error:
                raise _Failed(_reason(error)) from error
            if status == 404:  # an answer as good as any other
                missing = ProductNotFound(f"The Product Service has no product {id}.", productId=id)
            elif status in _RETRIED:
                raise _Failed(f"it answered {status}", after=after)
            elif status != 200:
                _refused(status)
            else:
                return _checked(body, id, decode)
        raise missing

    async def _exchange(self, url: str) -> tuple[int, bytes, float]:
        """Return status, body, and for how long to stay away (seconds)."""
        headers = {"authorization": f"Bearer {self._token()}", "accept": "application/json", **_correlation()}
        headers["accept-encoding"] = "identity"
        async with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                return answer.status_code, b"", _retry_after(answer.headers.get("retry-after", ""))
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise ProductServiceProtocolError("The Product Service compresses its answer without being asked to.")
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > self._limits.bytes_max:
                    raise ProductServiceProtocolError(
                        f"The Product Service's answer is larger than {self._limits.bytes_max} bytes."
                    )
            return 200, bytes(body), 0.0


def _as_page(body: bytes) -> _Envelope[CatalogPage]:
    listing = _as_listing(body)
    ids = tuple(id for each in listing.data if (id := each.id or each.product_id) is not None)
    if len(ids) < len(listing.data):
        raise msgspec.ValidationError("a product of the list has no id")
    return _Envelope(True, CatalogPage(ids, listing.next_cursor))


def _checked(body: bytes, id: str, decode: Callable[[bytes], _Envelope[T]]) -> T:
    try:
        data = decode(body).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProductServiceProtocolError(
            f"The Product Service's answer has not the form that was agreed: {error}."
        ) from error
    if isinstance(data, _Product) and {data.id, data.product_id} - {None} != {id}:
        raise ProductServiceProtocolError("The Product Service answered with another product than it was asked for.")
    if isinstance(data, tuple) and len({variant.variant_id for variant in data}) < len(data):
        raise ProductServiceProtocolError("The Product Service's answer names a variant twice.")
    return data


def _refused(status: int) -> NoReturn:
    if status in _AUTH:
        raise ProductServiceProtocolError(
            f"The Product Service refuses our token (status {status}); compare INVENTORY_CATALOG_SECRET or _KEY, and "
            "INVENTORY_CATALOG_AUDIENCE, with what it expects."
        )
    what = "redirects, which is not followed" if 300 <= status < 400 else "answers what was not agreed"
    raise ProductServiceProtocolError(f"The Product Service {what} (status {status}); check INVENTORY_CATALOG.")


def _retry_after(value: str) -> float:
    """Read seconds; a date is as good as none, because clocks differ."""
    return min(float(value), 3_600.0) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", value) else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return "no answer in time"
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__


def _correlation() -> dict[str, str]:
    """Return the id of what this is done for: the event's that is being applied, else as it stands in the log."""
    id: Any = CORRELATION_ID.get() or structlog.contextvars.get_contextvars().get("correlation_id", "")
    return {"x-correlation-id": id} if isinstance(id, str) and _CORRELATION_ID.fullmatch(id) else {}
