"""``inventory serve`` and ``inventory api``: HTTP on granian, inside our own event loop.

Granian's own worker processes leave no place to end streams and tasks before the server stops; embedded, the order is
ours: no new connections, requests in flight finish, then the relay, the writer and the connections end.
"""

import asyncio
import errno
import logging
import os
import socket
from contextlib import AsyncExitStack, suppress
from typing import Any

import structlog
from dishka import AsyncContainer
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketHolder
from granian.server.embed import Server

from adapters.tokens import Verifier
from core.errors import Unavailable
from core.writer import Writer
from entrypoints import process
from entrypoints.api.app import create_app
from entrypoints.config import Config, SettingError
from entrypoints.consumer import relaying
from entrypoints.wiring import make_container
from entrypoints.workers import stop_with_parent, working
from ports.store import Store

BACKLOG = 1_024
CONNECTIONS_MAX = 4_096
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which proxies commonly keep a connection, so that it is they who close it."""
_log = structlog.get_logger("inventory")


def run(config: Config, *, command: str, inherited: int | None = None) -> None:
    """Serve HTTP until told to stop; ``serve`` prepares the store, relays events and keeps house besides.

    Neither the store nor the broker needs to be there: what is prepared is tried until it works, and readiness tells.

    Args:
        inherited: the file descriptor of a socket to serve on, in a further worker (see ``workers``).

    Raises:
        SettingError: the address cannot be had.
        ValidationFailed: a URL or key is unfit.
    """
    listener = listen(config) if inherited is None else socket.socket(fileno=inherited)
    process.announce(config, command, url=url_of(listener))
    container = make_container(config)

    async def main(stop: asyncio.Event) -> None:
        if inherited is not None:
            stop_with_parent(stop.set)
        async with AsyncExitStack() as ends:
            ends.push_async_callback(process.in_time, container.close)
            await container.get(Verifier)
            await _start(container, command, ends)
            await ends.enter_async_context(working(config, listener))
            await _serve_http(create_app(container), listener, stop)

    process.run(main)


def listen(config: Config, *, attempts: int = 1) -> socket.socket:
    """Take the configured port, or, with more ``attempts``, the first free one of those that follow.

    The socket is bound and does not listen yet: clients are refused until the service is ready.

    Raises:
        SettingError: there is no such address here, or no port is free.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise SettingError(f"INVENTORY_HOST cannot be {config.host!r}: {error}.") from error
    for attempt in range(attempts):
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], config.port + attempt, *address[2:]))
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                where = f"{config.host}:{config.port + attempt}"
                raise SettingError(f"{where} cannot be served on: {error.strerror}.") from error
        else:
            return listener
    raise SettingError(f"Port {config.port} is taken by another process; choose one with --port or INVENTORY_PORT.")


def url_of(listener: socket.socket) -> str:
    """Return the address of a bound socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _start(container: AsyncContainer, command: str, ends: AsyncExitStack) -> None:
    if command == "serve":
        store = await container.get(Store)
        try:
            await store.migrate()
        except Unavailable:
            migrating = process.until_done(store.migrate, "migrating the store")
            await ends.enter_async_context(process.Background(migrating))
    writer = await container.get(Writer)
    await writer.start()
    ends.push_async_callback(process.in_time, writer.stop)
    if command == "serve":
        await ends.enter_async_context(relaying(container, declare=True))


class HttpServer(Server):
    """Granian, on a socket that is bound already."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            http1_settings=HTTP1Settings(header_read_timeout=KEEP_ALIVE_SECONDS * 1_000, max_buffer_size=64 * 1_024),
            runtime_threads=1,
            runtime_blocking_threads=1,
        )
        # Granian has just given its loggers handlers of their own; ours say it in our format.
        for name in ("_granian", "granian.access"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.ERROR)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        # A copy, because granian closes what it is given, and further workers may have to be started later.
        self._shd = SocketHolder(os.dup(self._listener.fileno()), False, BACKLOG)


async def _serve_http(app: Any, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until ``stop``, then let requests in flight finish, for ``END_SECONDS`` at most."""
    server = HttpServer(app, listener)
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    while not (serving.done() or listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        await asyncio.sleep(0.002)
    process.ready(url=url_of(listener))
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping")
    server.stop()
    await asyncio.wait({serving}, timeout=process.END_SECONDS)
    if not serving.done():
        _log.warning("requests in flight were cut off", after_seconds=process.END_SECONDS)
        serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
