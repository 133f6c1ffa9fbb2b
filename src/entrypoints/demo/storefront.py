"""The shop window of the stand-in: pages rendered here, kept live by server-sent events, and orders that reserve.

The browser gets pages, words and product ids; tokens stay here. Every page works without JavaScript; with it, what
changes is shown as it changes.
"""

import asyncio
import re
import secrets
from collections import OrderedDict
from importlib import resources
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from core.errors import InventoryError
from entrypoints.demo import pages
from entrypoints.demo.goods import StoredProduct
from entrypoints.demo.inventory_client import InventoryClient, OrderRefused
from entrypoints.demo.pages import Notice
from entrypoints.demo.product_inventory import ProductInventoryService, date_of
from entrypoints.demo.wire import Answer, Request, head, send

PAGE = 24
SCREEN_MAX = 100
QUANTITY_MAX = 999
HEARTBEAT_SECONDS = 10.0
ORDERS_KEPT = 1_000
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ORDER = re.compile(rf"SO(-[{_LETTERS}]{{4}}){{3}}")
_ASSETS = {"storefront.css": "text/css", "storefront.js": "text/javascript", "icon.svg": "image/svg+xml"}
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class _Order(Struct, frozen=True):
    product_id: str
    quantity: int


class _Ordered(Struct, frozen=True, rename="camel"):
    """What the script is told of an order, and the number for the next one."""

    success: bool
    message: str
    next_order: str


class _Unfit(Exception):
    """The request cannot be served; the text says what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Storefront:
    """Shows the products, and sells them.

    Args:
        products: what is sold, by id; shared with whoever changes it.
        client: where orders are placed.
    """

    def __init__(self, products: dict[str, StoredProduct], client: InventoryClient) -> None:
        self.products = products
        self.inventory = ProductInventoryService(client)
        self._client = client
        self._orders: OrderedDict[str, _Order] = OrderedDict()

    def serves(self, path: str) -> bool:
        """Whether a path is a page of the shop."""
        return path == "/" or path.startswith(("/shop/", "/assets/")) or path == "/live"

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection can be used further."""
        parts = [unquote(part) for part in urlsplit(request.path).path.split("/")[1:]]
        if parts == ["live"] and request.method == "GET":
            await self._follow(request, reader, writer)
            return False
        try:
            answer = await self._page(request, parts)
        except _Unfit as unfit:
            answer = _html(unfit.status, pages.message("That did not work", str(unfit)))
        await send(writer, answer)
        return True

    async def _page(self, request: Request, parts: list[str]) -> Answer:
        match request.method, *parts:
            case "GET", "":
                return await self._list(request)
            case "GET", "assets", name if name in _ASSETS:
                body = (resources.files("entrypoints.demo") / "static" / name).read_bytes()
                return Answer(body=body, headers=_SAFE | {"Content-Type": _ASSETS[name], "Cache-Control": "no-cache"})
            case "GET", "shop", id if id in self.products:
                notice = self._thanks(id, _first(request.query, "order"))
                return await self._one(id, _quantity(request.query), notice=notice)
            case "GET", "shop", id, "availability" if id in self.products:
                shown = await self.inventory.availability(id, _quantity(request.query))
                return _json(200, pages.Shown.of(shown))
            case "POST", "shop", id, "buy" if id in self.products:
                _check_origin(request)
                return await self._buy(request, id)
        raise _Unfit(404, "There is nothing here. The shop window has everything there is.")

    async def _list(self, request: Request) -> Answer:
        words = (_first(request.query, "q") or "").strip()[:80]
        found = [p for p in self.products.values() if words.casefold() in f"{p.name} {p.sku}".casefold()]
        last = max(-(-len(found) // PAGE), 1)
        number = min(int(text) if (text := _first(request.query, "page")).isdecimal() and len(text) < 9 else 1, last)
        shelf = found[(max(number, 1) - 1) * PAGE :][:PAGE]
        shown = await asyncio.gather(*(self.inventory.availability(product.id) for product in shelf))
        cards = [pages.card(product, each, order=_new_order()) for product, each in zip(shelf, shown, strict=True)]
        return _html(200, pages.shelf(cards, words=words, number=max(number, 1), last=last, count=len(found)))

    async def _one(
        self, id: str, quantity: int, *, status: int = 200, notice: Notice | None = None, order: str = ""
    ) -> Answer:
        product, shown = self.products[id], await self.inventory.availability(id, quantity)
        card = pages.card(product, shown, quantity=quantity, order=order or _new_order(), notice=notice)
        return _html(status, pages.single(product, card))

    def _thanks(self, id: str, number: str) -> Notice | None:
        order = self._orders.get(number)
        if order is None or order.product_id != id:
            return None
        return Notice(good=True, text=self._bought(number, order))

    def _bought(self, number: str, order: _Order) -> str:
        return f"Thank you: {order.quantity} of {self.products[order.product_id].name}. Your order is {number}."

    # -- orders ------------------------------------------------------------------------------------------------------

    async def _buy(self, request: Request, id: str) -> Answer:
        """Place an order; the form's number makes it the same one however often it is sent."""
        quantity, number = _quantity(request.form), _first(request.form, "order")
        if _ORDER.fullmatch(number) is None:
            number = _new_order()
        scripted = "application/json" in request.headers.get("accept", "")
        try:
            await self._client.order(number, id, quantity)
        except OrderRefused:
            return await self._refused(id, quantity, scripted=scripted)
        except InventoryError:
            text = (
                "Orders cannot be taken at the moment. Press Buy again in a minute: it will be one order all the same."
            )
            if scripted:
                return _json(503, _Ordered(False, text, number))
            return await self._one(id, quantity, status=503, notice=Notice(good=False, text=text), order=number)
        self._orders[number] = order = _Order(id, quantity)
        if len(self._orders) > ORDERS_KEPT:
            self._orders.popitem(last=False)
        if scripted:
            return _json(200, _Ordered(True, self._bought(number, order), _new_order()))
        # Elsewhere, so that loading the page again does not order again.
        where = f"/shop/{quote(id, safe='')}?{urlencode({'order': number})}"
        return Answer(status=303, headers=_SAFE | {"Location": where})

    async def _refused(self, id: str, quantity: int, *, scripted: bool) -> Answer:
        """Say how many there are instead, and when there will be more."""
        await self.inventory.refresh(id)  # what was shown has just been proved wrong, or soon will be
        left, restock = await self.inventory.left(id)
        there = {None: "it is not for sale just now", 0: "it has sold out", 1: "only 1 is left"}
        why = there.get(left, f"only {left} are left")
        text = f"{quantity} of {self.products[id].name} cannot be had: {why}."
        text += f" More are expected on {date_of(restock)}." if restock else ""
        if scripted:
            return _json(409, _Ordered(False, text, _new_order()))
        return await self._one(id, quantity, status=409, notice=Notice(good=False, text=text))

    # -- live --------------------------------------------------------------------------------------------------------

    async def _follow(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell a page which of its products have changed, for as long as it is open; what they are now, it asks."""
        headers = _SAFE | {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "Connection": "close"}
        with self.inventory.watching(request.query.get("product", [])[:SCREEN_MAX]) as screen:
            writer.write(head(200, None, headers) + b"retry: 1000\n\n")
            while not reader.at_eof():
                await writer.drain()
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        changed = await screen.take()
                except TimeoutError:
                    changed = set()
                told = b"".join(b"event: changed\ndata: %b\n\n" % msgspec.json.encode(id) for id in changed)
                writer.write(told or b":\n\n")


def _first(values: dict[str, list[str]], name: str) -> str:
    return values.get(name, [""])[0]


def _quantity(values: dict[str, list[str]]) -> int:
    text = _first(values, "quantity") or "1"
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 3 and int(text) > 0):
        raise _Unfit(400, f"The quantity must be a whole number from 1 to {QUANTITY_MAX}. Go back and correct it.")
    return int(text)


def _check_origin(request: Request) -> None:
    """Let no page of anybody else's order with this browser."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    if origin is not None and urlsplit(origin).netloc != host:
        raise _Unfit(403, "Orders are taken from this shop's own pages only. Open it, and order there.")


def _new_order() -> str:
    """Draw a number: short enough to read out, and of sixty bits, so that it is nobody else's."""
    return "-".join(("SO", *("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(3))))


def _html(status: int, page: str) -> Answer:
    headers = _SAFE | {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}
    return Answer(status=status, body=page.encode(), headers=headers)


def _json(status: int, value: Struct) -> Answer:
    return Answer(status=status, body=msgspec.json.encode(value), headers=_SAFE | {"Cache-Control": "no-store"})
