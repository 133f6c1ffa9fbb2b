"""What must be true when everybody has come to rest, whatever happened before: the promises, one check each."""

from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256

import msgspec
from simulation.broker import Exchange
from simulation.database import Database
from simulation.traffic import Asked, Traffic

from core.errors import InventoryError
from core.events import OutboxRow
from core.operations import Outcome, Reserve, StockChange
from core.rules.product_events import merged
from core.stock import Catalog, Reservation, StockTransaction


def broken_promises(database: Database, exchange: Exchange, traffic: Traffic) -> Iterator[str]:
    """Say what is wrong, a sentence each; nothing when all is well."""
    yield from _ledger(database)
    yield from _reservations(database)
    yield from _totals(database)
    yield from _acknowledged(database, traffic)
    yield from _events(database, exchange)
    yield from _consumed(database, exchange, traffic)


def _ledger(database: Database) -> Iterator[str]:
    """Every version of an item is one row, the sums are the balances, and nothing is promised that was not there."""
    rows: dict[str, list[StockTransaction]] = defaultdict(list)
    for row in database.ledger:
        rows[row.inventory_item_id].append(row)
    if len({row.id for row in database.ledger}) != len(database.ledger):
        yield "two ledger rows have one id"
    for id, item in database.items.items():
        mine = sorted(rows.pop(id, []), key=lambda row: row.item_version)
        if [row.item_version for row in mine] != list(range(1, item.version + 1)):
            yield f"the versions of {id} are not one row each"
        sums = sum(row.on_hand_change for row in mine), sum(row.reserved_change for row in mine)
        if sums != (item.on_hand, item.reserved):
            yield f"the ledger of {id} adds up to {sums}, its balances are {(item.on_hand, item.reserved)}"
        on_hand = reserved = 0
        for row in mine:
            on_hand, reserved = on_hand + row.on_hand_change, reserved + row.reserved_change
            if (on_hand, reserved) != (row.on_hand_after, row.reserved_after):
                yield f"row {row.item_version} of {id} does not follow from the one before"
            if row.type == "RESERVATION" and reserved > on_hand:
                yield f"{id} was oversold: {reserved} promised of {on_hand}"
    if rows:
        yield f"the ledger has items that do not exist: {[*rows]}"


def _reservations(database: Database) -> Iterator[str]:
    """What items have reserved is what reservations hold; what has ended holds nothing."""
    held: dict[str, int] = defaultdict(int)
    now = database.now()
    for reservation in database.reservations.values():
        units = sum(line.held for line in reservation.lines)
        for line in reservation.lines:
            held[line.inventory_item_id] += line.held
        if (reservation.status in ("HELD", "CONFIRMED")) != (units > 0):
            yield f"{reservation.id} is {reservation.status} and holds {units}"
        if reservation.status == "HELD" and reservation.expires_at is not None and reservation.expires_at <= now:
            yield f"{reservation.id} is over and still held"
    for item in database.items.values():
        if item.reserved != held[item.id]:
            yield f"{item.id} has {item.reserved} reserved, its reservations hold {held[item.id]}"


def _totals(database: Database) -> Iterator[str]:
    for product in database.products.values():
        items = [item for item in database.items.values() if item.product_id == product.id]
        sums = tuple(sum(getattr(item, name) for item in items) for name in ("on_hand", "reserved", "available"))
        totals = product.total_on_hand, product.total_reserved, product.total_available
        if sums != totals:
            yield f"{product.id} has the totals {totals}, its items have {sums}"


def _acknowledged(database: Database, traffic: Traffic) -> Iterator[str]:
    """What was acknowledged was done exactly once, what was refused not at all, what is unknown once at most."""
    rows: dict[str, list[StockTransaction]] = defaultdict(list)
    for row in database.ledger:
        rows[row.correlation_id].append(row)
    for asked in traffic.asked:
        found = rows[asked.request.correlation_id or ""]
        name = asked.request.correlation_id
        if asked.told is None and asked.request.key is not None:
            yield f"{name} was never answered"
        elif isinstance(asked.told, list):
            yield from (f"{name}: {wrong}" for wrong in _as_told(database, asked, asked.told, found))
        elif isinstance(asked.told, InventoryError) and found:
            yield f"{name} was refused and done"
        elif asked.told is None and found and not asked.maybe:
            yield f"{name} was answered with 'nothing was done', and was done"
        reserves = sum(isinstance(operation, Reserve) for operation in asked.request.operations)
        if len({row.reservation_id for row in found if row.type == "RESERVATION"}) > reserves:
            yield f"{name} was done twice"
        if len({row.recorded_at for row in found}) > 1:
            yield f"{name} was done at two times"


def _as_told(database: Database, asked: Asked, told: list[Outcome], found: list[StockTransaction]) -> Iterator[str]:
    """Compare the ledger with what the client was told."""
    stated: set[str] = set()
    for outcome in told:
        if isinstance(outcome, StockChange):
            stated |= {row.id for row in outcome.transactions}
        elif isinstance(outcome, Reservation) and outcome.id not in database.reservations:
            yield f"{outcome.id} was acknowledged and does not exist"
    if all(isinstance(outcome, StockChange | InventoryError) for outcome in told):
        if {row.id for row in found} != stated:
            yield f"{len(stated)} ledger rows were acknowledged, {len(found)} are there"
    elif not stated <= {row.id for row in found}:
        yield "an acknowledged ledger row is not there"
    key = asked.request.key
    done = any(not isinstance(outcome, InventoryError) for outcome in told)
    if done and key is not None and key.scope not in database.answers:
        yield "its answer was not stored"


def _events(database: Database, exchange: Exchange) -> Iterator[str]:
    """Every committed event was published as it was committed, in its product's order when repeats are left out."""
    committed: dict[str, OutboxRow] = {row.event_id: row for rows in database.outbox.values() for row in rows}
    first: dict[str, list[int]] = defaultdict(list)
    heard: set[str] = set()
    for message in exchange.heard:
        row = committed.get(message.id)
        if row is None or row.body != message.body:
            yield f"event {message.id} was published and not committed so"
        elif message.id not in heard:
            heard.add(message.id)
            first[row.product_id].append(row.sequence)
    for id, rows in database.outbox.items():
        sequences = list(range(1, database.products[id].sequence + 1))
        if [row.sequence for row in rows] != sequences:
            yield f"the events of {id} have a gap"
        if first[id] != sequences:
            yield f"the events of {id} were heard as {first[id]}, committed were {len(sequences)}"
        if [row.event_id for row in rows] != sorted(
            (row.event_id for row in rows), key=lambda id: database.positions.get(id, 0)
        ):
            yield f"the positions of {id} are not in its order"
    if sorted(database.positions.values()) != list(range(1, len(committed) + 1)):
        yield "the positions of the stream have gaps"
    yield from _levels(database, committed)


def _levels(database: Database, committed: dict[str, OutboxRow]) -> Iterator[str]:
    """Each item's events lead from nothing to what is available."""
    level: dict[str, int] = defaultdict(int)
    for row in committed.values():
        if row.event_type == "StockLevelChanged":
            payload = msgspec.json.decode(row.body)["payload"]
            if level[row.aggregate_id] != payload["previousQuantity"]:
                yield f"event {row.sequence} of {row.product_id} does not follow from the one before"
            level[row.aggregate_id] = payload["newQuantity"]
    for item in database.items.values():
        if level[item.id] != item.available:
            yield f"the events of {item.id} lead to {level[item.id]}, available is {item.available}"


def _consumed(database: Database, exchange: Exchange, traffic: Traffic) -> Iterator[str]:
    """Every product event was applied once, or is parked; together they led to what they say in order."""
    letters = database.letters.by_fingerprint
    for event in traffic.events:
        if event.event_id not in database.inbox:
            yield f"{event.event_id} was swallowed"
    for message in traffic.undecodable:
        kept = letters.get(sha256(message.id.encode() + b"\n" + message.body).hexdigest())
        if kept is None or kept.status != "UNRESOLVED":
            yield f"undecodable {message.id} is not parked"
    good = {event.event_id for event in traffic.events}
    for kept in letters.values():
        if kept.letter.message.id in good and kept.status != "RESOLVED":
            yield f"the dead letter of {kept.letter.message.id} is {kept.status} ({kept.letter.code})"
    said: dict[str, Catalog] = defaultdict(Catalog)
    for event in sorted(traffic.events, key=lambda event: event.seen):
        id = event.payload.product_id
        said[id] = merged(said[id], event, creates=event.event_type == "ProductCreated")
    for id, catalog in said.items():
        if id not in database.products or database.products[id].catalog != catalog:
            yield f"what is known of {id} is not what its events say"
        known = [item for item in database.items.values() if item.product_id == id]
        if len({(item.sku, item.warehouse_id) for item in known}) != len(known):
            yield f"{id} has an item twice"
