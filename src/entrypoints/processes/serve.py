"""``inventory serve`` and ``inventory api``: HTTP on granian, inside our own event loop.

Granian's own worker processes leave no place to end streams and tasks before the server stops; embedded, the order is
ours: no new connections, requests in flight finish, then the relay, the writer and the connections end.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import structlog
from dishka import AsyncContainer
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from adapters.tokens.watch import KeyWatch
from core.catalog.watch import CatalogWatch
from core.errors import InventoryError, Unavailable
from core.reading.feed import Feed
from entrypoints.api.app import create_app
from entrypoints.api.health import say_leaving
from entrypoints.config import Config, SettingError
from entrypoints.processes import process
from entrypoints.processes.loops import relaying, start_writing
from entrypoints.processes.reconciler import reconciling
from entrypoints.processes.workers import keep_workers, stop_with_parent
from entrypoints.wiring import make_container
from ports.store import Store

BACKLOG = 1_024
CONNECTIONS_MAX = 4_096
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which proxies commonly keep a connection, so that it is they who close it."""
_log = structlog.get_logger("inventory")


def run(
    config: Config,
    *,
    command: str,
    inherited: int | None = None,
    ports_tried: int = 1,
    prepare: Callable[[AsyncContainer, AsyncExitStack], Awaitable[None]] | None = None,
    opened: Callable[[str], None] | None = None,
) -> None:
    """Serve HTTP until told to stop; any ``command`` but ``api`` migrates, relays events and reconciles besides.

    Neither the store nor the broker needs to be there: what has to be prepared is tried until it works, and readiness
    tells.

    Args:
        config: the settings; ``check_processes`` and ``with_secret`` have seen them.
        command: what was asked for: ``serve``, ``api`` or ``demo``.
        inherited: the file descriptor of a socket to serve on, in a further worker (see ``workers``).
        ports_tried: how many ports to try, from the configured one on.
        prepare: called with the writer running and before anybody is served; what it enters on the stack ends after
            the last request.
        opened: called with the service's URL once it is served.

    Raises:
        SettingError: the address cannot be had.
        ValidationFailed: a URL or key is unfit.
    """
    listener = listen(config, attempts=ports_tried) if inherited is None else socket.socket(fileno=inherited)
    url = url_of(listener)
    process.announce(config, command, url=url)
    container = make_container(config)

    async def main(stop: asyncio.Event) -> None:
        if inherited is not None:
            stop_with_parent(stop.set)
        async with AsyncExitStack() as ends:
            ends.push_async_callback(process.in_time, container.close)
            keys = await container.get(KeyWatch)  # now, so that an unfit key is told before anybody is served
            await ends.enter_async_context(process.background(keys.keep(), stop))
            if command != "api":
                with suppress(Unavailable):  # it is tried again beside the service
                    await (await container.get(Store)).migrate()
            await start_writing(container, ends)
            watch = await container.get(CatalogWatch)
            ends.push_async_callback(process.in_time, watch.stop)
            if prepare is not None:
                await prepare(container, ends)
            if command != "api":
                await ends.enter_async_context(relaying(container, stop, prepares=True))
                await ends.enter_async_context(reconciling(container, stop))
            await watch.start()
            feed = await container.get(Feed)
            await feed.start()
            ends.push_async_callback(process.in_time, feed.stop)
            app = create_app(container)

            async def leave() -> None:
                say_leaving(app)  # and go on serving until whoever sends requests has heard it
                await asyncio.sleep(config.drain_seconds)
                await feed.stop()

            served = HttpServer(app, listener).serve_until(stop, lambda: _opened(url, opened), leave)
            await asyncio.gather(served, keep_workers(config, listener, stop))

    process.run(main)


def _opened(url: str, then: Callable[[str], None] | None) -> None:
    process.ready(url=url)
    if then is not None:
        then(url)


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
        is_unix = False
        self._shd = SocketHolder(os.dup(self._listener.fileno()), is_unix, BACKLOG)  # type: ignore[assignment,call-arg]

    async def serve_until(
        self, stop: asyncio.Event, opened: Callable[[], None], drain: Callable[[], Awaitable[object]]
    ) -> None:
        """Serve, call ``opened``, wait for ``stop``, and let requests in flight finish, for ``END_SECONDS`` at most.

        ``drain`` ends what would go on for ever: the server does not stop while a stream is open.

        Raises:
            InventoryError: the server ended by itself. ``stop`` is set then.
        """
        serving = asyncio.create_task(self.serve())
        serving.add_done_callback(lambda _: stop.set())
        while not (stop.is_set() or self._listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # granian does not say when it listens; the kernel does
        if not stop.is_set():
            opened()
        await stop.wait()
        if serving.done():
            raise InventoryError("The HTTP server ended by itself; the log says why.")
        _log.info("stopping")
        await drain()
        self._listener.close()  # else connections would still be let in, and wait for nobody
        self.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait({serving}, timeout=process.END_SECONDS)
        if not serving.done():
            _log.warning("requests in flight were cut off", after_seconds=process.END_SECONDS)
            serving.cancel()
            await asyncio.wait({serving})
