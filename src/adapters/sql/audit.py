def _compare(
    kind: Kind, source: FromClause, product: ColumnElement[str], item: ColumnElement[str] | None, pairs: _Pairs
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
        columns += [cast(expected, BigInteger).label(f"{name}_expected"), cast(found, BigInteger).label(f"{name}_found")]
    differs = or_(*(expected.is_distinct_from(found) for expected, found in pairs.values()))
    return select(*columns).select_from(source).where(differs)


def _stock(of_page: ColumnElement[bool], in_page: ColumnElement[bool]) -> CompoundSelect[Any]:
    """How the products of a page stand, each table found by an index, in time that history does not stretch."""
    product, item = tables.product, tables.inventory_item
    return union_all(
        _last_rows().where(of_page),
        _compare(
            "RESERVED_MISMATCH", item, item.c.product_id, item.c.id, {"reserved": (_held(), item.c.reserved)}
        ).where(of_page),
        _totals(in_page),
        _last_events().where(in_page, product.c.sequence > 0),
    )


def _last_rows() -> Select[Any]:
    """Items and the ledger row that should have made them so."""
    item, entry, newest = tables.inventory_item, tables.stock_transaction, tables.stock_transaction.alias()
    last = select(func.max(newest.c.item_version)).where(newest.c.inventory_item_id == item.c.id)
    place = and_(
        entry.c.inventory_item_id == item.c.id, entry.c.item_version == last.correlate(item).scalar_subquery()
    )
    pairs = {name: (entry.c[f"{name}_after"], item.c[name]) for name in ("on_hand", "reserved", "available")}
    pairs["version"] = (entry.c.item_version, item.c.version)
    return _compare("LEDGER_MISMATCH", item.outerjoin(entry, place), item.c.product_id, item.c.id, pairs)


def _held() -> ColumnElement[int]:
    """What open reservations hold of the item of the enclosing statement."""
    item, line, head = tables.inventory_item, tables.reservation_line, tables.reservation
    left = line.c.quantity - line.c.fulfilled_quantity - line.c.released_quantity
    held = select(func.coalesce(func.sum(left), 0)).where(
        line.c.inventory_item_id == item.c.id,
        line.c.quantity > line.c.fulfilled_quantity + line.c.released_quantity,
        head.c.id == line.c.reservation_id,
        head.c.status.in_(_OPEN),
    )
    return held.correlate(item).scalar_subquery()


def _totals(in_page: ColumnElement[bool]) -> Select[Any]:
    product, item = tables.product, tables.inventory_item
    names = ("on_hand", "reserved", "available")
    sums = (
        select(
            product.c.id,
            *(product.c[f"total_{name}"] for name in names),
            *(func.coalesce(func.sum(item.c[name]), 0).label(name) for name in names),
        )
        .outerjoin_from(product, item, item.c.product_id == product.c.id)
        .where(in_page)
        .group_by(product.c.id)
        .subquery()
    )
    pairs: _Pairs = {name: (sums.c[name], sums.c[f"total_{name}"]) for name in names}
    return _compare("TOTALS_MISMATCH", sums, sums.c.id, None, pairs)


def _last_events() -> Select[Any]:
    """Products and their last event; one whose events are no longer kept has none to compare with."""
    product, row = tables.product, tables.outbox
    last = select(func.max(row.c.sequence)).where(row.c.product_id == product.c.id).correlate(product).scalar_subquery()
    pairs: _Pairs = {"sequence": (func.coalesce(last, product.c.sequence), product.c.sequence)}
    return _compare("SEQUENCE_GAP", product, product.c.id, None, pairs)


# -- history ---------------------------------------------------------------------------------------------------------


async def _history(connection: AsyncConnection, part: Part, after: str | None, limit: int) -> AuditPage:
    """Look at the next rows, each beside the row before it; ``after`` is the last one of the page before."""
    table, owner, number = _CHAINS[part]
    key = tuple_(table.c[owner], table.c[number])
    begin = msgspec.json.decode(after, type=tuple[str, int]) if after else ("", 0)
    page = select(table.c[owner], table.c[number]).where(key > _key(begin)).order_by(*key.clauses).limit(limit).cte()
    last = select(page, select(func.count()).select_from(page).scalar_subquery().label("count"))
    end = (await connection.execute(last.order_by(page.c[owner].desc(), page.c[number].desc()).limit(1))).first()
    if end is None:
        return AuditPage(0, 0, (), None)
    # Again from the last row of the page before, which is the first one's neighbour.
    rows = and_(key >= _key(begin), key <= _key((end[0], end[1])))
    found = await connection.execute(_ledger(rows, begin) if part == "ledger" else _events(rows, begin))
    next_after = msgspec.json.encode((end[0], end[1])).decode() if end.count == limit else None
    return AuditPage(end.count, 0, tuple(map(_discrepancy, found)), next_after)


_CHAINS: dict[Part, tuple[Table, str, str]] = {
    "ledger": (tables.stock_transaction, "inventory_item_id", "item_version"),
    "events": (tables.outbox, "product_id", "sequence"),
}


def _key(place: tuple[str, int]) -> Any:
    return tuple_(literal(place[0], Text), literal(place[1], BigInteger))


def _chained(part: Part, rows: ColumnElement[bool], *names: str) -> FromClause:
    """The rows with what the row before of the same owner had in these columns, as ``before_…``."""
    table, owner, number = _CHAINS[part]
    names = (number, *names)
    over = {"partition_by": table.c[owner], "order_by": table.c[number]}
    before = [func.lag(table.c[name]).over(**over).label(f"before_{name}") for name in names]
    columns = {owner, "product_id", *names, *(name.replace("_after", "_change") for name in names)}
    return select(*(table.c[name] for name in sorted(columns)), *before).where(rows).subquery()


def _ledger(rows: ColumnElement[bool], begin: tuple[str, int]) -> CompoundSelect[Any]:
    """A version is one more than the version before, and its balances are those before and what it changed."""
    row = _chained("ledger", rows, "on_hand_after", "reserved_after").c
    source, item = row.item_version.table, row.inventory_item_id
    follows = func.coalesce(row.before_item_version, 0) + 1
    version: _Pairs = {"version": (follows, row.item_version)}
    balances: _Pairs = {
        name: (func.coalesce(row[f"before_{name}_after"], 0) + row[f"{name}_change"], row[f"{name}_after"])
        for name in ("on_hand", "reserved")
    }
    new = tuple_(item, row.item_version) > _key(begin)
    return union_all(
        _compare("VERSION_GAP", source, row.product_id, item, version).where(new),
        # After a gap the balances are anybody's guess; the gap is the finding.
        _compare("LEDGER_MISMATCH", source, row.product_id, item, version | balances).where(
            new, row.item_version == follows
        ),
    )


def _events(rows: ColumnElement[bool], begin: tuple[str, int]) -> Select[Any]:
    """A sequence is one more than the one before, from the first that is still kept."""
    row = _chained("events", rows).c
    follows = func.coalesce(row.before_sequence + 1, row.sequence)
    pairs: _Pairs = {"sequence": (follows, row.sequence)}
    new = tuple_(row.product_id, row.sequence) > _key(begin)
    return _compare("SEQUENCE_GAP", row.sequence.table, row.product_id, None, pairs).where(new)


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


