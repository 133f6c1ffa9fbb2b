"""``inventory demo``: start, load the samples, say what to try, and show events as they go out."""

import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import rich_click as click
from dishka import AsyncContainer
from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adapters.tokens.keys import KeyRing
from adapters.tokens.signing import mint, split_secrets
from adapters.tokens.verifier import Verifier
from core.events import EVENTS_EXCHANGE
from core.writing.writer import Writer
from entrypoints.config import Config, load, with_secret
from entrypoints.demo import samples
from entrypoints.demo.goods import StoredProduct
from entrypoints.demo.inventory_client import InventoryClient, open_inventory
from entrypoints.demo.product_service import MANAGER, ProductService
from entrypoints.demo.storefront import Storefront
from entrypoints.processes import process, serve
from entrypoints.processes.serve import url_of
from ports.broker import Broker, Message
from ports.store import ItemFilter, Store

TOKEN_SECONDS = 86_400
PORTS_TRIED = 50
_ROLES = ("product-service", "inventory-operator")
_CURL = "curl -s -w '\\n'"
_JSON = '-H "Content-Type: application/json"'
_out = Console(soft_wrap=True, highlight=False)


@click.command("demo")
@click.option("--host", help="The address to serve on.")
@click.option("--port", type=int, help="The port to serve on; the next free one when it is taken.")
@click.option("--data-dir", help="Where the demo keeps its data.")
@click.option("--log-level", default="error", show_default=True, help="From where on a log line is written.")
@click.option("--reset", is_flag=True, help="Throw the demo's data away and start over.")
def command(host: str | None, port: int | None, data_dir: str | None, log_level: str, reset: bool) -> None:
    """Run the whole service here, with sample stock. Needs nothing installed, keeps its data, ends with Ctrl-C."""
    arguments = {"host": host, "port": port, "data_dir": data_dir, "log_level": log_level}
    home = Path(load(arguments).data_dir)
    arguments |= {"store": f"sqlite:///{home}/demo.db", "broker": "memory://", "workers": 1}
    arguments |= {"default_warehouses": samples.WAREHOUSE_IDS}
    secret = secrets.token_urlsafe(32)
    listener = _beside(load(arguments))
    arguments |= {"catalog": url_of(listener), "catalog_secret": secret}
    config = with_secret(load({**arguments, "auth_lifetime_max": TOKEN_SECONDS}))
    if reset:
        for file in home.glob("demo.db*"):
            file.unlink()
    stage = _Stage(config, home, listener)
    serve.run(config, command="demo", ports_tried=PORTS_TRIED, prepare=stage.prepare, opened=stage.open)
    _out.print("\nStopped. The data is kept; [bold]--reset[/] starts over.")


def _beside(config: Config) -> socket.socket:
    """Take a port for the storefront: the one after the service's, or one near it."""
    port = config.port + 1 if 0 < config.port < 65_535 - PORTS_TRIED else 0
    listener = serve.listen(replace(config, port=port), attempts=PORTS_TRIED)
    listener.listen()
    return listener


class _Stage:
    """What the demo puts around the service: samples and a Product Service first, then a card, then events."""

    def __init__(self, config: Config, home: Path, listener: socket.socket) -> None:
        self._config = config
        self._home = home
        self._listener = listener
        self._item_id = ""
        self._inventory: InventoryClient | None = None

    async def prepare(self, container: AsyncContainer, ends: AsyncExitStack) -> None:
        """Load the samples once, and watch the events from now on."""
        broker, store = await container.get(Broker), await container.get(Store)
        await broker.declare()
        shown, heard = [await ends.enter_async_context(broker.listen(EVENTS_EXCHANGE, "#")) for _ in range(2)]
        if not await store.warehouses():
            await self._load(await container.get(Writer))
        await self._stand_in(await samples.products(store), broker, heard, ends)
        page = await store.items(ItemFilter(product_id=samples.EXAMPLE_PRODUCT), cursor=None, limit=1)
        self._item_id = page.rows[0].id if page.rows else "inv_…"
        await ends.enter_async_context(process.background(_show(shown, since=datetime.now(UTC))))

    async def _load(self, writer: Writer) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_out) as progress:
            task = progress.add_task("Loading sample products", total=samples.PRODUCTS)
            await samples.load(writer, lambda done: progress.advance(task, done))

    async def _stand_in(
        self, products: Iterable[StoredProduct], broker: Broker, heard: AsyncIterator[Message], ends: AsyncExitStack
    ) -> None:
        """Run the Product Service with these products and its storefront, which hears of their stock."""
        verifier = Verifier(
            KeyRing(secrets=[self._config.catalog_secret]),
            issuer=self._config.auth_issuer,
            audience=self._config.catalog_audience,
            lifetime_max=TOKEN_SECONDS,
        )
        self._inventory = await ends.enter_async_context(open_inventory(self._token))
        storefront = Storefront({product.id: product for product in products}, self._inventory)
        stand_in = ProductService(verifier, publish=broker.publish, storefront=storefront)
        for work in (stand_in.hear(heard), storefront.inventory.keep_fresh()):
            await ends.enter_async_context(process.background(work))
        await ends.enter_async_context(stand_in.serving(self._listener))

    def _token(self, role: str) -> str:
        """Return a token for one call to the Inventory Service."""
        secret = split_secrets(self._config.auth_secret)[0]
        return self._mint(role, secret, self._config.auth_audience, subject="storefront", lifetime=60)

    def open(self, url: str) -> None:
        """Let the storefront sell, and say where everything is and what to try."""
        if self._inventory is not None:
            self._inventory.url = url
        if self._config.port and not url.endswith(f":{self._config.port}"):
            _out.print(f"[yellow]Port {self._config.port} is taken; the next free one is used.[/]")
        _out.print(f"\n[bold green]The Inventory Service is at {url}[/]   (API page: {url}/schema)")
        _out.print(f"[bold green]A storefront that sells from it is at {self._config.catalog}[/]")
        _out.print(f"Its data is in {(self._home / 'demo.db').resolve()}. Ctrl-C stops it.\n", markup=False)
        for title, command in self._lines(url):
            _out.print(f"[dim]# {title}[/]")
            _out.print(f"{command}\n", markup=False)
        _out.print("[dim]Events appear below as they are published.[/]")

    def _lines(self, url: str) -> Iterator[tuple[str, str]]:
        """Yield what to try, and the line to copy for it."""
        config = self._config
        ours = split_secrets(config.auth_secret)[0], config.auth_audience
        query, manage = (self._header_file(role, *ours) for role in _ROLES)
        sell = self._header_file(MANAGER, config.catalog_secret, config.catalog_audience)
        post, stock = f"{_CURL} -H @{manage} {_JSON}", f"{url}/inventory-items"
        line = f'{{"inventoryItemId":"{self._item_id}","quantity":2}}'
        receipt = f'{{"type":"RECEIVE","inventoryItemId":"{self._item_id}","quantity":25,"referenceNumber":"PO-12345"}}'
        order = f'{{"lines":[{line}],"referenceNumber":"SO-2"}}'
        cup = '{"sku":"CUP","name":"Cup"}'
        yield (
            "How much of a product is there, and where?",
            f"{_CURL} -H @{query} {stock}/by-product/{samples.EXAMPLE_PRODUCT}",
        )
        yield "Can I have ten?", f'{_CURL} -H @{query} "{stock}/{self._item_id}/availability?quantity=10"'
        yield "Receive 25 units:", f"{post} -d '{receipt}' {url}/stock-operations"
        yield "Reserve two for an order:", f"{post} -d '{order}' {url}/reservations"
        yield (
            "A new product in the (stand-in) Product Service, whose items are made at once:",
            f"{_CURL} -H @{sell} {_JSON} -d '{cup}' {config.catalog}/products",
        )

    def _header_file(self, role: str, secret: str, audience: str) -> Path:
        """Write a fresh token where ``curl -H @file`` finds it: short lines to copy, no secret on the screen."""
        token = self._mint(role, secret, audience, subject="demo", lifetime=TOKEN_SECONDS)
        file = (self._home / f"{role}.header").resolve()
        file.unlink(missing_ok=True)  # its mode is that of its making
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as header:
            header.write(f"Authorization: Bearer {token}\n")
        return file

    def _mint(self, role: str, secret: str, audience: str, *, subject: str, lifetime: int) -> str:
        issuer = self._config.auth_issuer[0]
        return mint(secret, issuer=issuer, audience=audience, subject=subject, roles=[role], lifetime=lifetime)


async def _show(messages: AsyncIterator[Message], *, since: datetime) -> None:
    """Print an event a line; those of the samples were before ``since``."""
    async for message in messages:
        event = msgspec.json.decode(message.body)
        if datetime.fromisoformat(event["timestamp"]) >= since:
            _out.print(f"[dim]{time.strftime('%H:%M:%S')}[/] [cyan]{message.type}[/] {escape(_sentence(event))}")


def _sentence(event: dict[str, dict[str, object]]) -> str:
    payload = event["payload"]
    where = f"{payload['sku']} in {payload['warehouseId']}"
    if "changeAmount" in payload:
        quantities = f"{payload['previousQuantity']} → {payload['newQuantity']} available"
        return f"{where}: {quantities}, {payload['totalQuantityAvailable']} in all ({payload['transactionType']})"
    return f"{where}: {payload['totalQuantityAvailable']} available in all"
