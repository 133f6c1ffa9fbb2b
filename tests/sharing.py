"""One server of each kind for all the processes that pytest-xdist runs tests in.

The process that starts those processes keeps the servers: it starts one when the first test asks for it, and takes all
of them down when the run has ended, in any way whatever (``private_server``).
"""

import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from threading import Thread
from typing import TypeVar

from private_server import LOOPBACK, Server
from services import Postgres, RabbitMQ, Redis

AnyServer = TypeVar("AnyServer", bound=Server)
_KINDS: tuple[type[Server], ...] = (Postgres, RabbitMQ, Redis)


class Keeper:
    """Starts servers for other processes, and stops them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key = secrets.token_bytes(16)
        self._listener = Listener((LOOPBACK, 0), authkey=self._key)
        self._starts = ThreadPoolExecutor(len(_KINDS))
        self._started: dict[str, Future[Server]] = {}
        self._service = Thread(target=self._serve, daemon=True)
        self._service.start()

    def close(self) -> None:
        """Stop what was started."""
        with Client(self._listener.address, authkey=self._key) as last:
            last.send("")
        self._service.join()
        self._starts.shutdown()
        self._listener.close()
        self._stack.close()

    @property
    def address(self) -> tuple[str, int, str]:
        """Where ``borrowed`` finds it: simple values, as pytest-xdist hands them on."""
        host, port = self._listener.address
        return host, port, self._key.hex()

    def _serve(self) -> None:
        while kind := (asking := self._listener.accept()).recv():
            if kind not in self._started:
                self._started[kind] = self._starts.submit(self._start, kind)
            self._started[kind].add_done_callback(partial(_answer, asking))
        asking.close()

    def _start(self, kind: str) -> Server:
        (cls,) = (cls for cls in _KINDS if cls.__name__ == kind)
        return self._stack.enter_context(cls())


def borrowed(kind: type[AnyServer], address: tuple[str, int, str]) -> AnyServer:
    """The server of this kind that all use; the first one to ask waits until it is started.

    Raises:
        RuntimeError: it did not start.
    """
    host, port, key = address
    with Client((host, port), authkey=bytes.fromhex(key)) as keeper:
        keeper.send(kind.__name__)
        server = keeper.recv()
    if isinstance(server, kind):
        return server
    raise server


def _answer(asking: Connection, started: Future[Server]) -> None:
    with suppress(OSError), asking:  # who asked may have died meanwhile
        asking.send(started.exception() or started.result())
