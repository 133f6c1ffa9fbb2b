"""The comparisons of a reconciliation. A page of them is one statement, so it sees one moment.

How products stand is found by indexes, in time that their history does not stretch. History is read along its unique
index of owner and number: what is committed of it never changes, and, the product's lock being held until the commit,
no number is seen before the one below it.
"""

from collections.abc import Callable, Collection
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    FromClause,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.sql import tables
from adapters.sql.database import Database
from core.findings import Discrepancy, FindingKind, Part
from ports.reconciliation import ComparedPage

Place = tuple[str, int]
"""A row's place in the history: whose it is, and its number."""
_Pairs = dict[str, tuple[ColumnElement[Any], ColumnElement[Any]]]
_WORDS = {
    "on_hand": "quantityOnHand",
    "reserved": "quantityReserved",
    "available": "quantityAvailable",
    "expected": "quantityExpected",
    "received": "receivedQuantity",
    "version": "version",
    "sequence": "sequence",
}
"""What can be compared, and its word on the wire."""
_PLACES = ("version", "sequence")
"""They say where the two were compared, so they are told also when they agree."""
_BALANCES = ("on_hand", "reserved", "available")
STUCK = timedelta(minutes=5)
"""How long an event may wait to be published; an outage of the broker takes no longer than that as a rule."""
_OPEN = ("HELD", "CONFIRMED")


async def standing(connection: AsyncConnection, *, after: str, last: str) -> tuple[Discrepancy, ...]:
    """Look at how products stand, from the one after ``after`` to ``last``: their rows lie side by side."""
    found = await connection.execute(_between(), {"after": after, "last": last})
    return tuple(map(_discrepancy, found))


@cache
def _between() -> CompoundSelect[Any]:
    """Built once: to build it takes longer than to look at hundreds of products."""
    after, last = bindparam("after", type_=Text), bindparam("last", type_=Text)
    return _standing(lambda id: and_(id > after, id <= last))


async def of_products(database: Database, connection: AsyncConnection, ids: Collection[str]) -> tuple[Discrepancy, ...]:
    """Look at how these products stand."""
    found = await connection.execute(_standing(lambda id: database.among(id, ids)))
    return tuple(map(_discrepancy, found))


async def product_ids(connection: AsyncConnection, *, after: str | None, limit: int) -> list[str]:
    """Return the next products."""
    id = tables.product.c.id
    page = select(id).where(id > (after or "")).order_by(id).limit(limit)
    return list((await connection.execute(page)).scalars())


async def item_count(connection: AsyncConnection, *, after: str, last: str) -> int:
    """Count the items of these products."""
    of = tables.inventory_item.c.product_id
    return await connection.scalar(select(func.count()).where(of > after, of <= last)) or 0


def _standing(chosen: Callable[[ColumnElement[str]], ColumnElement[bool]]) -> CompoundSelect[Any]:
    """Look at the products that are ``chosen`` by their id, which items and products have in columns of their own."""
    in_page, of_page = chosen(tables.product.c.id), chosen(tables.inventory_item.c.product_id)
    return union_all(
        _last_rows().where(of_page),
        _reserved().where(of_page),
        _received().where(of_page, tables.expected_receipt.c.outstanding_quantity > tables.NOTHING),
        _totals(in_page, of_page),
        _last_events().where(in_page),
    )


async def stuck(database: Database, connection: AsyncConnection, *, after: str | None, limit: int) -> ComparedPage:
    """Look at the next events that wait to be published, and longer than any relay or broker may take."""
    event = tables.outbox.c
    now, _ = await database.clock(connection)
    too_long = or_(event.created_at < now - STUCK, event.blocked_at.is_not(None))
    page = select(event.id, event.product_id, event.sequence).where(
        event.published_at.is_(None), event.id > int(after or 0)
    )
    rows = (await connection.execute(page.where(too_long).order_by(event.id).limit(limit))).all()
    first: dict[str, int] = {}
    for row in rows:
        first[row.product_id] = min(row.sequence, first.get(row.product_id, row.sequence))
    found = tuple(
        Discrepancy(
            kind="EVENT_STUCK", product_id=id, inventory_item_id=None, expected={}, found={"sequence": sequence}
        )
        for id, sequence in first.items()
    )
    return ComparedPage(len(rows), 0, found, str(rows[-1].id) if len(rows) == limit else None)


async def came(database: Database, connection: AsyncConnection, ids: Collection[str]) -> dict[str, dict[str, int]]:
    """Return by product what the ledger says came of its expected receipts, by id, where those say otherwise."""
    receipt, item, entry = tables.expected_receipt, tables.inventory_item, tables.stock_transaction
    sums = select(func.coalesce(func.sum(entry.c.on_hand_change), 0)).where(entry.c.expected_receipt_id == receipt.c.id)
    total = cast(sums.correlate(receipt).scalar_subquery(), BigInteger)
    of_item = receipt.join(item, item.c.id == receipt.c.inventory_item_id)
    differing = select(item.c.product_id, receipt.c.id, total).select_from(of_item)
    found: dict[str, dict[str, int]] = {}
    differs = (database.among(item.c.product_id, ids), total != receipt.c.received_quantity)
    for product_id, id, units in await connection.execute(differing.where(*differs)):
        found.setdefault(product_id, {})[id] = int(units)
    return found


async def receipts(database: Database, connection: AsyncConnection, *, after: str | None, limit: int) -> ComparedPage:
    """Look at the next expected receipts, by id, whether they have ended or not."""
    receipt = tables.expected_receipt.c
    page = select(receipt.id).where(receipt.id > (after or "")).order_by(receipt.id).limit(limit)
    ids = list((await connection.execute(page)).scalars())
    found = await connection.execute(_received().where(database.among(receipt.id, ids)))
    return ComparedPage(len(ids), 0, tuple(map(_discrepancy, found)), ids[-1] if len(ids) == limit else None)


async def history_end(connection: AsyncConnection, part: Part, *, after: Place, limit: int) -> tuple[Place, int]:
    """Return where the next rows end, and how many they are; at ``after`` itself where there are none."""
    table, owner, number = _CHAINS[part]
    key = tuple_(table.c[owner], table.c[number])
    page = select(*key.clauses).where(key > _key(after)).order_by(*key.clauses).limit(limit).cte()
    last = select(page, select(func.count()).select_from(page).scalar_subquery().label("rows"))
    end = (await connection.execute(last.order_by(page.c[owner].desc(), page.c[number].desc()).limit(1))).first()
    return (after, 0) if end is None else ((end[0], end[1]), end.rows)


async def history(connection: AsyncConnection, part: Part, *, after: Place, end: Place) -> tuple[Discrepancy, ...]:
    """Look at rows, each beside the row before it."""
    table, owner, number = _CHAINS[part]
    key = tuple_(table.c[owner], table.c[number])
    # Once more from the last row of the page before: it is the neighbour of the first one here.
    rows = and_(key >= _key(after), key <= _key(end))
    found = await connection.execute(_ledger(rows, after) if part == "ledger" else _events(rows, after))
    return tuple(map(_discrepancy, found))


def size(part: Part) -> Select[Any]:
    """Select about how much there is: versions count ledger rows, and the outbox's ids its events, but for gaps."""
    if part == "stock":
        return select(func.count()).select_from(tables.product)
    if part == "receipts":
        return select(func.count()).select_from(tables.expected_receipt)
    if part == "outbox":
        return select(func.count()).where(tables.outbox.c.published_at.is_(None))
    if part == "ledger":
        return select(func.sum(tables.inventory_item.c.version))
    return select(func.max(tables.outbox.c.id) - func.min(tables.outbox.c.id) + 1)


def _compare(
    kind: FindingKind, source: FromClause, product: ColumnElement[str], item: ColumnElement[str] | None, pairs: _Pairs
) -> Select[Any]:
    """Select where expected and found values differ. All of these have the same columns and can be put in one union."""
    columns: list[ColumnElement[Any]] = [
        literal(kind, Text).label("kind"),
        product.label("product_id"),
        cast(null() if item is None else item, Text).label("item_id"),
    ]
    nothing = (null(), null())
    for name in _WORDS:
        expected, found = pairs.get(name, nothing)
        columns += [
            cast(expected, BigInteger).label(f"{name}_expected"),
            cast(found, BigInteger).label(f"{name}_found"),
        ]
    differs = or_(*(expected.is_distinct_from(found) for expected, found in pairs.values()))
    return select(*columns).select_from(source).where(differs)


# -- how things stand ------------------------------------------------------------------------------------------------


def _last_rows() -> Select[Any]:
    """Items and the ledger row that should have made them so."""
    item, entry, newest = tables.inventory_item, tables.stock_transaction, tables.stock_transaction.alias()
    last = select(func.max(newest.c.item_version)).where(newest.c.inventory_item_id == item.c.id)
    place = and_(entry.c.inventory_item_id == item.c.id, entry.c.item_version == last.correlate(item).scalar_subquery())
    pairs: _Pairs = {name: (entry.c[f"{name}_after"], item.c[name]) for name in _BALANCES}
    pairs["version"] = (entry.c.item_version, item.c.version)
    return _compare("LEDGER_MISMATCH", item.outerjoin(entry, place), item.c.product_id, item.c.id, pairs)


def _reserved() -> Select[Any]:
    """Items and what open reservations hold of them."""
    item, line, head = tables.inventory_item, tables.reservation_line, tables.reservation
    gone = line.c.fulfilled_quantity + line.c.released_quantity
    held = select(func.coalesce(func.sum(line.c.quantity - gone), 0)).where(
        line.c.inventory_item_id == item.c.id,
        line.c.quantity > gone,  # word for word what the index on lines says
        head.c.id == line.c.reservation_id,
        head.c.status.in_(_OPEN),
    )
    pairs: _Pairs = {"reserved": (held.correlate(item).scalar_subquery(), item.c.reserved)}
    return _compare("RESERVED_MISMATCH", item, item.c.product_id, item.c.id, pairs)


def _received() -> Select[Any]:
    """Expected receipts and the ledger rows that came of them."""
    receipt, item, entry = tables.expected_receipt, tables.inventory_item, tables.stock_transaction
    came = select(func.coalesce(func.sum(entry.c.on_hand_change), 0)).where(entry.c.expected_receipt_id == receipt.c.id)
    pairs: _Pairs = {"received": (came.correlate(receipt).scalar_subquery(), receipt.c.received_quantity)}
    of_item = receipt.join(item, item.c.id == receipt.c.inventory_item_id)
    return _compare("RECEIVED_MISMATCH", of_item, item.c.product_id, item.c.id, pairs)


def _totals(in_page: ColumnElement[bool], of_page: ColumnElement[bool]) -> Select[Any]:
    """Products and the sums over their items, and over what is still to come of those."""
    product, item = tables.product, tables.inventory_item
    receipt, own = tables.expected_receipt, tables.inventory_item.alias()
    expected = (
        select(func.coalesce(func.sum(receipt.c.outstanding_quantity), 0))
        .join_from(own, receipt, receipt.c.inventory_item_id == own.c.id)
        .where(own.c.product_id == product.c.id, receipt.c.outstanding_quantity > tables.NOTHING)
    )
    sums = (
        select(
            product.c.id,
            *(product.c[f"total_{name}"] for name in (*_BALANCES, "expected")),
            expected.correlate(product).scalar_subquery().label("expected"),
            *(func.coalesce(func.sum(item.c[name]), 0).label(name) for name in _BALANCES),
        )
        .outerjoin_from(product, item, and_(item.c.product_id == product.c.id, of_page))
        .where(in_page)
        .group_by(product.c.id)
        .subquery()
    )
    pairs: _Pairs = {name: (sums.c[name], sums.c[f"total_{name}"]) for name in (*_BALANCES, "expected")}
    return _compare("TOTALS_MISMATCH", sums, sums.c.id, None, pairs)


def _last_events() -> Select[Any]:
    """Products and their last event; one whose events are no longer kept has none to compare with."""
    product, row = tables.product, tables.outbox
    last = select(func.max(row.c.sequence)).where(row.c.product_id == product.c.id).correlate(product).scalar_subquery()
    pairs: _Pairs = {"sequence": (func.coalesce(last, product.c.sequence), product.c.sequence)}
    return _compare("SEQUENCE_GAP", product, product.c.id, None, pairs)


# -- history ---------------------------------------------------------------------------------------------------------


_CHAINS: dict[Part, tuple[Table, str, str]] = {
    "ledger": (tables.stock_transaction, "inventory_item_id", "item_version"),
    "events": (tables.outbox, "product_id", "sequence"),
}


def _key(place: Place) -> Any:
    return tuple_(literal(place[0], Text), literal(place[1], BigInteger))


def _chained(part: Part, rows: ColumnElement[bool], *names: str, beside: Collection[str] = ()) -> CTE:
    """Select these columns of the rows, and as ``before_…`` what the row before, of the same owner, has in them."""
    table, owner, number = _CHAINS[part]
    before = [
        func.lag(table.c[name]).over(partition_by=table.c[owner], order_by=table.c[number]).label(f"before_{name}")
        for name in names
    ]
    columns = dict.fromkeys((owner, number, "product_id", *names, *beside))
    return select(*(table.c[name] for name in columns), *before).where(rows).cte()


def _ledger(rows: ColumnElement[bool], begin: Place) -> CompoundSelect[Any]:
    """A version is one more than the version before, and its balances are those before and what it changed."""
    names, changes = ("item_version", "on_hand_after", "reserved_after"), ("on_hand_change", "reserved_change")
    chain = _chained("ledger", rows, *names, "available_after", beside=(*changes, "recorded_at"))
    row, item = chain.c, chain.c.inventory_item_id
    follows = func.coalesce(row.before_item_version, 0) + 1
    version: _Pairs = {"version": (follows, row.item_version)}
    balances: _Pairs = {
        name: (func.coalesce(row[f"before_{name}_after"], 0) + row[f"{name}_change"], row[f"{name}_after"])
        for name in ("on_hand", "reserved")
    }
    gaps = _compare("VERSION_GAP", chain, row.product_id, item, version)
    # What a row after a gap should say is anybody's guess; the gap is the finding.
    breaks = _compare("LEDGER_MISMATCH", chain, row.product_id, item, version | balances)
    new = tuple_(item, row.item_version) > _key(begin)
    return union_all(gaps.where(new), breaks.where(new, row.item_version == follows), _untold(chain, new))


def _untold(chain: CTE, new: ColumnElement[bool]) -> Select[Any]:
    """Find items of whose last change here nobody was told: no event of theirs is as young, and older ones are kept.

    Of the changes before it nobody needs to know any more.
    """
    row, event = chain.c, tables.outbox.c
    before = func.coalesce(row.before_available_after, 0)
    place = func.row_number().over(partition_by=row.inventory_item_id, order_by=row.item_version.desc()).label("place")
    last = select(chain, before.label("before"), place).where(new, before != row.available_after).subquery().c
    kept = select(event.created_at).where(event.product_id == last.product_id).order_by(event.sequence).limit(1)
    told = select(event.created_at).where(
        event.product_id == last.product_id,
        event.aggregate_id == last.inventory_item_id,
        event.event_type == "StockLevelChanged",
    )
    told_last = told.order_by(event.sequence.desc()).limit(1).scalar_subquery()
    pairs: _Pairs = {
        "version": (last.item_version, last.item_version),
        "available": (last.available_after, last.before),
    }
    untold = _compare("EVENT_MISSING", last.place.table, last.product_id, last.inventory_item_id, pairs)
    return untold.where(
        last.place == 1,
        kept.scalar_subquery() < last.recorded_at,
        or_(told_last.is_(None), told_last < last.recorded_at),
    )


def _events(rows: ColumnElement[bool], begin: Place) -> Select[Any]:
    """A sequence is one more than the one before, from the first that is still kept."""
    chain = _chained("events", rows, "sequence")
    row = chain.c
    pairs: _Pairs = {"sequence": (func.coalesce(row.before_sequence + 1, row.sequence), row.sequence)}
    new = tuple_(row.product_id, row.sequence) > _key(begin)
    return _compare("SEQUENCE_GAP", chain, row.product_id, None, pairs).where(new)


# -- findings --------------------------------------------------------------------------------------------------------


def _discrepancy(row: Any) -> Discrepancy:
    values = row._asdict()
    compared = {name: (values[f"{name}_expected"], values[f"{name}_found"]) for name in _WORDS}
    told = {_WORDS[name]: pair for name, pair in compared.items() if pair[0] != pair[1] or name in _PLACES}
    return Discrepancy(
        kind=row.kind,
        product_id=row.product_id,
        inventory_item_id=row.item_id,
        expected={word: expected for word, (expected, _) in told.items() if expected is not None},
        found={word: found for word, (_, found) in told.items() if found is not None},
    )
