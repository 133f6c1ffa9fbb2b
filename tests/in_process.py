"""The HTTP API in the test's own process: the real application and wiring over SQLite and the in-process broker."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
from dishka import AsyncContainer
from litestar import Litestar
from litestar.plugins import InitPlugin
from secrecy import secret

from adapters.tokens.signing import mint
from core.reading.snapshots import Snapshots
from core.writing.writer import Writer
from entrypoints.api.app import create_app
from entrypoints.config import Config
from entrypoints.wiring import make_container
from ports.store import Store

SECRET = secret("a secret that only these tests know and long enough")
ADMIN, OPERATOR, PRODUCT_SERVICE = "inventory-admin", "inventory-operator", "product-service"


class Answer(NamedTuple):
    """What came back over bare ASGI; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, decoded."""
        return msgspec.json.decode(self.body)


class Api(NamedTuple):
    """A running application and what is behind it."""

    app: Litestar
    container: AsyncContainer
    store: Store

    def client(self, *roles: str, subject: str = "tester") -> httpx2.AsyncClient:
        """Return a client that carries a token with these roles, or none without a role."""
        headers = {"Authorization": f"Bearer {token(*roles, subject=subject)}"} if roles else {}
        transport = httpx2.ASGITransport(app=self.app)  # type: ignore[arg-type]
        return httpx2.AsyncClient(transport=transport, base_url="http://inventory.test", headers=headers)


@asynccontextmanager
async def serving(
    folder: Path, *, migrate: bool = True, plugins: Sequence[InitPlugin] = (), **settings: Any
) -> AsyncIterator[Api]:
    """Run the API on a new SQLite file in ``folder``, with further ``settings``."""
    container = make_container(Config(store=f"sqlite:///{folder}/inventory.db", auth_secret=SECRET, **settings))
    store = await container.get(Store)
    if migrate:
        await store.migrate()
    writer = await container.get(Writer)
    await writer.start()
    snapshots = await container.get(Snapshots)
    await snapshots.start()
    try:
        yield Api(create_app(container, plugins=plugins), container, store)
    finally:
        await writer.stop()
        await snapshots.stop()
        await container.close()


def token(*roles: str, subject: str = "tester") -> str:
    """Return a good token with these roles."""
    return mint(
        SECRET, issuer="inventory-service", audience="inventory-service", subject=subject, roles=roles, lifetime=3600
    )


async def ask(
    app: Litestar,
    method: str,
    path: str,
    *,
    query: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] | Mapping[str, str] = (),
    body: Sequence[bytes] | None = (b"",),
) -> Answer:
    """Send what a well-behaved client library would not: any path, any bytes in headers, a body in pieces.

    A ``body`` of None breaks off: the caller is gone. ``query`` is as it stands in the URL, ``path`` decoded.
    """
    pairs = (
        [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        if isinstance(headers, Mapping)
        else list(headers)
    )
    pieces = list(body or ())
    sent: list[Any] = []

    async def receive() -> Any:
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": b"",
        "root_path": "",
        "query_string": query,
        "headers": pairs,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))
