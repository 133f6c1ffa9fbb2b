"""What is known of a product now, from as near as can be trusted: this process, the shared cache, the store.

What is kept in the process is used only while its subscription to changes is proven by a sign of life (rule R24), and
never below a floor: the highest revision this process has seen or made, so that no reader of it goes back (rule R25).
A question that nothing near can answer joins the next read; those that arrive while one is on its way wait for the one
after it, so that nobody is answered from before the question was asked, and everybody shares one statement.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from core.errors import Unavailable
from core.rules.book import Book
from core.running.loop import Loops
from core.stock import Catalog, Item, Warehouse
from ports.cache import FLOOR_SECONDS, Cache, Entry
from ports.store import ProductStock, Store

TRUST_SECONDS = 0.2
LOW_SECONDS = 60.0
CALM_SECONDS = 300.0
KEPT_MAX = 20_000
_KNOWN_MAX = 200_000
_AT_ONCE = 500
_TABLE = "warehouses"
_log = logging.getLogger(__name__)

T = TypeVar("T")
Source = Literal["process", "cache", "store"]


class Table(Struct, frozen=True):
    """Every warehouse by id. Its revision is the sum of their versions: it rises with whatever happens to one."""

    revision: int
    by_id: dict[str, Warehouse]

    @classmethod
    def of(cls, warehouses: Iterable[Warehouse]) -> "Table":
        """Return the table of these."""
        by_id = {warehouse.id: warehouse for warehouse in warehouses}
        return cls(sum(warehouse.version for warehouse in by_id.values()), by_id)

    def covers(self, stock: ProductStock) -> bool:
        """Whether it knows where every item is; if not, it is older than the stock."""
        return all(item.warehouse_id in self.by_id for item in stock.items)


class _Read(Struct, Generic[T], frozen=True):
    """A value on its way: when the store was read, where this comes from, and until when (monotonic) it may be used."""

    value: T
    revision: int
    read_at: datetime
    source: Source
    until: float


class Sight:
    """A product as it is seen: its stock, the warehouses, and when and where that was read.

    ``answers`` are what a reader has made of it and wants to find again.
    """

    __slots__ = ("answers", "read_at", "source", "stock", "table", "until")

    def __init__(self, read: "_Read[ProductStock]", table: Table, *, source: Source) -> None:
        self.stock = read.value
        self.table = table
        self.read_at = read.read_at
        self.source = source
        self.until = read.until
        self.answers: dict[Any, Any] = {}


class _Packed(Struct, frozen=True):
    """What the shared cache holds under a key."""

    read_at: datetime
    stock: ProductStock | None = None
    warehouses: tuple[Warehouse, ...] = ()


class Snapshots:
    """The nearest trustworthy sight of products. Belongs to one event loop."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache
        self._kept: dict[str, Sight] = {}
        self._table: _Read[Table] | None = None
        self._floors: dict[str, int] = {}
        self._product_of: dict[str, str] = {}
        self._trusted_until = 0.0
        self._subscriptions = 0
        self._lapsed_at = self._forgot_at = -FLOOR_SECONDS
        self._asked: dict[str, asyncio.Future[Sight | None]] = {}
        self._flight: asyncio.Task[None] | None = None
        self._unwritten: dict[str, int] = {}
        self._puts: dict[str, _Read[Any]] = {}
        self._own_tables = self._told_tables = 0
        self._work = asyncio.Event()
        self._edited = asyncio.Event()
        self._loops = Loops()

    async def start(self) -> None:
        """Start listening to changes and writing to the cache; before that, only what is asked for is read."""
        self._loops.start(self._listen(), self._write(), self._tell_tables())

    async def stop(self) -> None:
        """Write the floors that are left, if the cache takes them, and end."""
        await self._loops.stop()
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._write_floors()

    # -- reading -----------------------------------------------------------------------------------------------------

    def near(self, product_id: str) -> Sight | None:
        """Return what is kept here of a product, if it can be trusted now."""
        sight, table = self._kept.get(_key(product_id)), self._table
        if sight is None or table is None:
            return None
        now = time.monotonic()
        if now >= self._trusted_until or now >= sight.until or now >= table.until:
            return None
        if sight.table is not table.value:
            if not table.value.covers(sight.stock):
                return None
            sight.table, sight.answers = table.value, {}
        return sight

    def near_of(self, item_id: str) -> Sight | None:
        """Return what is kept here of an item's product, if it can be trusted now and the item is still there."""
        known = self._product_of.get(item_id)
        sight = self.near(known) if known is not None else None
        return sight if sight is not None and _holds(sight, item_id) else None

    async def product(self, product_id: str) -> Sight | None:
        """Return the sight of a product, None when the store does not know it.

        Raises:
            Unavailable: nothing near knows, and the store is away.
        """
        return self.near(product_id) or await self._join(product_id)

    async def fresh(self, product_id: str) -> Sight | None:
        """Return the sight of a product as the store has it now, None when the store does not know it.

        Raises:
            Unavailable: the store is away.
        """
        read = (await self._from_store([product_id])).get(product_id)
        if read is None:
            return None
        return Sight(read, (await self._table_from_store()).value, source="store")

    async def product_of(self, item_id: str) -> Sight | None:
        """Return the sight of the product an item belongs to, None when there is no such item.

        Raises:
            Unavailable: nothing near knows, and the store is away.
        """
        known = self._product_of.get(item_id)
        if known is not None and (sight := await self.product(known)) and _holds(sight, item_id):
            return sight
        # Not heard of yet; or its SKU has moved to another product.
        if (item := await self._store.item(item_id)) is None:
            return None
        self._learn([item])
        sight = await self.product(item.product_id)
        return sight if sight and _holds(sight, item_id) else None

    async def _join(self, product_id: str) -> Sight | None:
        future = self._asked.get(product_id)
        if future is None:
            future = self._asked[product_id] = asyncio.get_running_loop().create_future()
        if self._flight is None or self._flight.done():
            self._flight = asyncio.create_task(self._fly())
        # A caller that leaves must not take the others' answer with it.
        return await asyncio.shield(future)

    async def _fly(self) -> None:
        while asked := dict(islice(self._asked.items(), _AT_ONCE)):
            for product_id in asked:
                del self._asked[product_id]
            try:
                seen = await self._look(asked)
            except asyncio.CancelledError:
                # A library may cancel whoever waits for it; only whoever stops the flight may end it.
                _refuse(asked.values(), Unavailable("The read was interrupted; try again.", retry_after=1))
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
            except Exception as error:
                _refuse(asked.values(), error)
            else:
                for product_id, future in asked.items():
                    future.set_result(seen.get(product_id))

    async def _look(self, product_ids: Collection[str]) -> dict[str, Sight]:
        """Return those of the products that exist, each from as near as it can be had."""
        seen = {id: sight for id in product_ids if (sight := self.near(id))}
        missing = [id for id in product_ids if id not in seen]
        if not missing:
            return seen
        heard = self._subscriptions
        table, reads = await self._from_cache(missing)
        if left := [id for id in missing if id not in reads]:
            reads |= await self._from_store(left)
        # After the items, so that none of them is in a warehouse younger than this.
        if table is None or not all(table.value.covers(read.value) for read in reads.values()):
            table = await self._table_from_store()
        for id, read in reads.items():
            seen[id] = Sight(read, table.value, source=read.source)
            # What was told while nobody listened is missing from a read begun before.
            if read.revision >= self._floors.get(_key(id), 0) and heard == self._subscriptions:
                self._keep(_key(id), read, table.value)
        return seen

    async def _from_cache(
        self, product_ids: Iterable[str]
    ) -> tuple[_Read[Table] | None, dict[str, _Read[ProductStock]]]:
        now = time.monotonic()
        table = self._table if self._table and now < min(self._table.until, self._trusted_until) else None
        keys = {_key(id): id for id in product_ids}
        if now - self._forgot_at < FLOOR_SECONDS and now - self._lapsed_at < FLOOR_SECONDS:
            # Floors were forgotten here, and may be missing there: only what has a floor can be judged.
            keys = {key: id for key, id in keys.items() if key in self._floors}
        heard, own = self._subscriptions, self._own_tables
        wanted = [*keys, _TABLE] if table is None and own == self._told_tables else [*keys]
        found = await self._cache.get(wanted) if wanted else {}
        reads: dict[str, _Read[ProductStock]] = {}
        for key, entry in found.items():
            read = _unpack(key, entry)
            if read is None or read.revision < self._floors.get(key, 0):
                continue
            if key == _TABLE:
                table = read
                self._keep_table(read, heard=heard, own=own)
            else:
                reads[keys[key]] = read
        return table, reads

    async def _from_store(self, product_ids: Collection[str]) -> dict[str, _Read[ProductStock]]:
        read_at, started = datetime.now(UTC), time.monotonic()
        reads = {}
        for id, stock in (await self._store.products(product_ids)).items():
            if stock.product.is_known:
                slim = _slim(stock)
                reads[id] = _Read(slim, slim.product.revision, read_at, "store", started + _seconds(slim, read_at))
                self._put(_key(id), reads[id])
        return reads

    async def _table_from_store(self) -> _Read[Table]:
        read_at, started = datetime.now(UTC), time.monotonic()
        heard, own = self._subscriptions, self._own_tables
        table = Table.of(await self._store.warehouses())
        read = _Read(table, table.revision, read_at, "store", started + CALM_SECONDS)
        if own == self._own_tables:
            self._put(_TABLE, read)
        self._keep_table(read, heard=heard, own=own)
        return read

    def _keep_table(self, read: _Read[Table], *, heard: int, own: int) -> None:
        """Keep a table, unless something happened to it while it was read."""
        if read.revision >= self._floors.get(_TABLE, 0) and (heard, own) == (self._subscriptions, self._own_tables):
            self._raise({_TABLE: read.revision})
            self._table = read

    def _keep(self, key: str, read: _Read[ProductStock], table: Table) -> None:
        self._raise({key: read.revision})
        self._kept.pop(key, None)
        self._kept[key] = Sight(read, table, source="process")
        if len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._learn(read.value.items)

    def _learn(self, items: Iterable[Item]) -> None:
        if len(self._product_of) > _KNOWN_MAX:
            self._product_of.clear()
        self._product_of |= {item.id: item.product_id for item in items}

    # -- floors ------------------------------------------------------------------------------------------------------

    def committed(self, book: Book) -> None:
        """Take note of what a batch has changed, before its callers are answered.

        From here on no reader of this process is shown less; the other processes are told in the background, and again
        until it has worked (rule R23).
        """
        floors = {_key(id): revision for id, revision in book.revisions().items()}
        self._raise(floors)
        _merge(self._unwritten, floors)
        if book.warehouses_changed():
            self._own_tables += 1
            self._table = None
            self._edited.set()
        self._work.set()

    def _raise(self, floors: Mapping[str, int]) -> None:
        _merge(self._floors, floors)
        for key, floor in floors.items():
            if (kept := self._kept.get(key)) is not None and kept.stock.product.revision < floor:
                del self._kept[key]
        if self._table is not None and self._table.revision < floors.get(_TABLE, 0):
            self._table = None
        while len(self._floors) > _KNOWN_MAX:
            del self._floors[next(iter(self._floors))]
            self._forgot_at = time.monotonic()

    async def _listen(self) -> None:
        """Follow the changes; trust lasts as long as the last sign of life is young."""
        away = False
        while True:
            try:
                async with self._cache.changes() as changes:
                    self._subscriptions += 1
                    self._kept.clear()
                    self._table = None
                    if away:
                        _log.info("Changes of stock elsewhere are heard again")
                    away = False
                    async for change in changes:
                        self._raise(change.floors)
                        self._trust(change.as_of + TRUST_SECONDS)
            except Unavailable as error:
                if not away:
                    _log.warning(
                        "Changes of stock elsewhere are not heard, nothing kept here is used: %s", error.detail
                    )
                away = True
            except Exception:
                _log.exception("Listening to changes of stock failed and goes on")
            self._trust(0.0)
            await asyncio.sleep(0.2)

    def _trust(self, until: float) -> None:
        if max(self._trusted_until, until) < (now := time.monotonic()):
            self._lapsed_at = now
        self._trusted_until = until

    # -- writing to the cache ----------------------------------------------------------------------------------------

    def _put(self, key: str, read: _Read[Any]) -> None:
        if read.revision >= self._floors.get(key, 0) and len(self._puts) < KEPT_MAX:
            self._puts[key] = read
            self._work.set()

    async def _write(self) -> None:
        """Write floors first, then values; all that has gathered at once."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._write_floors()
                await self._write_values()
            except Unavailable:
                self._puts.clear()
                self._work.set()
                await asyncio.sleep(0.25)
            except Exception:
                _log.exception("Writing to the cache failed and goes on")
                await asyncio.sleep(1.0)

    async def _tell_tables(self) -> None:
        """Ask for the table's revision after our own commits: only the store knows it, and no other floor waits."""
        while True:
            await self._edited.wait()
            self._edited.clear()
            own = self._own_tables
            try:
                floor = {_TABLE: (await self._table_from_store()).revision}
            except Exception as error:
                if not isinstance(error, Unavailable):
                    _log.exception("Reading the warehouses failed and is tried again")
                self._edited.set()
                await asyncio.sleep(0.25)
                continue
            self._raise(floor)
            _merge(self._unwritten, floor)
            self._told_tables = own
            self._work.set()

    async def _write_floors(self) -> None:
        floors, self._unwritten = self._unwritten, {}
        if not floors:
            return
        try:
            await self._cache.raise_floors(floors)
        except BaseException:
            _merge(floors, self._unwritten)
            self._unwritten = dict(islice(floors.items(), max(len(floors) - _KNOWN_MAX, 0), None))
            raise

    async def _write_values(self) -> None:
        puts, self._puts = self._puts, {}
        now = time.monotonic()
        entries = {key: Entry(read.revision, _pack(read), read.until - now) for key, read in puts.items()}
        if entries:
            await self._cache.put(entries)


def _refuse(futures: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        future.set_exception(error)
        future.exception()  # not "never retrieved" where everybody has left


def _key(product_id: str) -> str:
    return f"product:{product_id}"


def _merge(floors: dict[str, int], more: Mapping[str, int]) -> None:
    """Raise ``floors`` by ``more``; what has risen stands at the end, what has not for long at the beginning."""
    for key, floor in more.items():
        if floor > floors.get(key, -1):
            floors.pop(key, None)
            floors[key] = floor


def _pack(read: _Read[Any]) -> bytes:
    if isinstance(read.value, ProductStock):
        return msgspec.json.encode(_Packed(read.read_at, stock=read.value))
    return msgspec.json.encode(_Packed(read.read_at, warehouses=tuple(read.value.by_id.values())))


def _slim(stock: ProductStock) -> ProductStock:
    """Leave out what no question is about and may be large."""
    items = tuple(replace(item, metadata={}) if item.metadata else item for item in stock.items)
    return replace(stock, product=replace(stock.product, catalog=Catalog()), items=items)


def _unpack(key: str, entry: Entry) -> _Read[Any] | None:
    """Read what the cache holds, and believe it only if it is what was asked for (rule R23)."""
    try:
        packed = msgspec.json.decode(entry.body, type=_Packed)
    except (msgspec.MsgspecError, ValueError):
        return None
    until = time.monotonic() + min(entry.seconds, CALM_SECONDS)
    if key == _TABLE:
        table = Table.of(packed.warehouses)
        return (
            _Read(table, table.revision, packed.read_at, "cache", until) if table.revision == entry.revision else None
        )
    stock = packed.stock
    if stock is None or (_key(stock.product.id), stock.product.revision) != (key, entry.revision):
        return None
    return _Read(stock, entry.revision, packed.read_at, "cache", until)


def _seconds(stock: ProductStock, now: datetime) -> float:
    """How long it may be used: what is nearly sold out goes soon (rule R25), and a date that has come says nothing."""
    dates = [supply.expected_at for supply in stock.supplies if supply.expected_at > now]
    longest = LOW_SECONDS if stock.product.is_low_stock else CALM_SECONDS
    return min(longest, (min(dates) - now).total_seconds()) if dates else longest


def _holds(sight: Sight, item_id: str) -> bool:
    return any(item.id == item_id for item in sight.stock.items)
