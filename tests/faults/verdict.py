"""Whether all that was said in a run of chaos is so: counted against what the store holds, in plain SQL."""

import json
from collections import Counter
from typing import Any

from audit import Books, Row, books, select
from history import History, Tally, out_of_order, total_queue
from workload import EVENTS, PRODUCTS, WRITES, Customers, ProductService

_SHOWN_MAX = 5


async def judge(
    store: str, customers: Customers, products: ProductService, history: History, committed: list[str]
) -> tuple[dict[str, Tally], list[str]]:
    """Return the count of each queue, and a sentence for everything that is wrong.

    ``committed`` are the events there were when everything had been drained.
    """
    found = await books(store)
    inbox, letters, items = await select(
        store,
        "SELECT event_id FROM inbox",
        # One parked for a while, and applied by itself since, is as it should be.
        "SELECT event_id, code FROM dead_letter WHERE status <> 'RESOLVED'",
        "SELECT product_id, warehouse_id, name, status FROM inventory_item WHERE product_id LIKE 'prod_%'",
    )
    received = list(history.entries(EVENTS, "received"))
    attempted = [row["event_id"] for row in found.outbox]
    heard = total_queue(attempted, committed, [entry.id for entry in received])
    tallies = {
        WRITES: total_queue(*_said(history, WRITES), _effects(found)),
        EVENTS: heard._replace(reordered=out_of_order(received)),
        PRODUCTS: total_queue(*_said(history, PRODUCTS), [row["event_id"] for row in inbox]),
    }
    wrong = [f"dead letter {row['event_id']}: {row['code']}" for row in letters]
    wrong += [f"{key} was answered in two ways" for key in customers.unlike]
    wrong += _unkept(customers, found) + _unlike(products, items) + _unfit(found)
    for queue, tally in tallies.items():
        # An event may be published twice, with the same id: that is what the outbox promises.
        for name in ("lost", "unexpected", "reordered", *["duplicated"] * (queue != EVENTS)):
            wrong += [f"{queue}: {name} {id}" for id in getattr(tally, name)[:_SHOWN_MAX]]
    return tallies, wrong


def _said(history: History, queue: str) -> tuple[list[str], list[str]]:
    return history.ids(queue, "attempted"), history.ids(queue, "acknowledged")


def _effects(found: Books) -> list[str]:
    """Return the key of every call that had effect, as often as it had.

    A call has one ledger row of a type on an item, or none where there was nothing to change; its stored answer is one.
    """
    rows = Counter((row["correlation_id"], row["type"], row["inventory_item_id"]) for row in _called(found))
    times = Counter({row["key"]: 1 for row in found.answers if "result" in json.loads(row["answer"])[0]})
    for (key, *_), many in rows.items():
        times[key] = max(times[key], many)
    return list(times.elements())


def _called(found: Books) -> list[Row]:
    return [row for row in found.ledger if row["correlation_id"].startswith("call-") and row["type"] != "EXPIRY"]


def _unkept(customers: Customers, found: Books) -> list[str]:
    """Return what somebody was told and is not so."""
    ledger = {row["id"]: row["correlation_id"] for row in found.ledger}
    fulfilled = {row["correlation_id"] for row in found.ledger if row["type"] == "FULFILMENT"}
    wrong = []
    for key, answered in customers.answers.items():
        path, status = answered.call.path, answered.status
        if status not in (200, 201, 409):
            wrong.append(f"{key} was answered {status}: {answered.body}")
        if status == 409:
            continue
        data: Any = answered.data if status < 300 else {}
        told = [transaction["id"] for transaction in data.get("transactions", ())]
        if any(ledger.get(id) != key for id in told):
            wrong.append(f"{key} was told of ledger rows that are not there")
        if path.startswith("/reservations") and data and data["id"] not in found.reservations:
            wrong.append(f"{key} was told of a reservation that is not there")
        if path.endswith("/fulfil") and data and key not in fulfilled:
            wrong.append(f"{key} was told of a fulfilment that is not there")
    return wrong


def _unlike(products: ProductService, items: list[Row]) -> list[str]:
    """Return the products whose items are not as their last event has them."""
    wrong = []
    for product, (kind, name) in products.last.items():
        own = [row for row in items if row["product_id"] == product]
        status = "INACTIVE" if kind == "Deleted" else "ACTIVE"
        names = {row["name"] for row in own} if kind == "Deleted" else {name}
        expected = [(warehouse, status) for warehouse in ("wh_1", "wh_2")]
        if sorted((row["warehouse_id"], row["status"]) for row in own) != expected or names != {
            row["name"] for row in own
        }:
            wrong.append(f"{product} was last {kind} as {name!r}, and its items are {own}")
    return wrong


def _unfit(found: Books) -> list[str]:
    """Return what of the books does not fit together."""
    positions = sorted(row["position"] for row in found.outbox if row["published_at"])
    wrong = [] if positions == list(range(1, len(positions) + 1)) else ["the events' positions have gaps"]
    keys = {row["key"] for row in found.answers}
    wrong += [
        f"{row['correlation_id']} has effect and no answer"
        for row in _called(found)
        if row["correlation_id"] not in keys
    ]
    try:
        found.check()
    except AssertionError as error:
        wrong.append(f"the books do not add up: {error}")
    return wrong
