"""Adapters from outside: a store that counts its transactions, a broker that is a file, a cache that tells its finds.

All a stranger needs is the Protocols in ``ports`` and an entry point each; ``stranger:///folder`` is where they write.
"""

import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapters.memory import MemoryCache
from adapters.sql.store import open_store as open_sql_store
from ports.broker import Handler, Message, Receipt
from ports.cache import Cache, Entry
from ports.store import Store, Transaction


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator["CountingStore"]:
    """Open a store in the URL's folder."""
    folder = Path(urlsplit(url).path)
    async with open_sql_store(f"sqlite:///{folder}/stock.db") as store:
        yield CountingStore(store, folder / "transactions")


class CountingStore:
    """SQLite, plus a file that grows by a byte for every transaction."""

    def __init__(self, store: Store, tally: Path) -> None:
        self._store = store
        self._tally = tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See the port."""
        async with self._store.transaction() as transaction:
            yield transaction
        with self._tally.open("a") as tally:
            tally.write(".")


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator["FileBroker"]:
    """Open the broker whose messages are lines of ``events`` in the URL's folder."""
    yield FileBroker(Path(urlsplit(url).path, "events"))


class FileBroker:
    """Takes everything, delivers nothing back."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """See the port."""
        with self._file.open("a") as file:
            for message in messages:
                line = {"routingKey": message.routing_key, "event": json.loads(message.body)}
                file.write(json.dumps(line) + "\n")
        return [Receipt.CONFIRMED] * len(messages)

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[Message]]:
        """See the port."""
        yield _nothing()

    @asynccontextmanager
    async def consume(self, queue: str, handle: Handler, *, prefetch: int = 64) -> AsyncIterator[None]:
        """See the port."""
        yield

    async def declare(self) -> None:
        """See the port."""
        self._file.touch()

    async def check(self) -> list[str]:
        """See the port."""
        return [] if self._file.exists() else [str(self._file)]

    async def ping(self) -> None:
        """See the port."""


@asynccontextmanager
async def open_cache(url: str) -> AsyncIterator[Cache]:
    """Open a cache that notes in the URL's folder what it is asked for."""
    yield TellingCache(Path(urlsplit(url).path, "asked"))


class TellingCache(MemoryCache):
    """A cache in memory, plus a line in a file for every key that is asked for."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    async def get(self, keys: Collection[str]) -> dict[str, Entry]:
        """See the port."""
        with self._file.open("a") as file:
            file.writelines(f"{key}\n" for key in keys)
        return await super().get(keys)


async def _nothing() -> AsyncIterator[Message]:
    return
    yield
