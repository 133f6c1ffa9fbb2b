"""The promise, end to end: whoever races for the last units, through however many processes, nobody oversells.

Real clients on hundreds of connections against the real command; then the store itself is asked, in plain SQL. There is
no broker all the while: stock is sold all the same.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from audit import books, deadlocks
from clients import Clients
from load import Answer, Call
from service import Fleet, Service, no_broker
from stores import migrated

UNITS = 200
SECONDS = 60


class Shop:
    """The service on one store, by as many processes as it may be."""

    def __init__(self, store: str, fleet: Fleet, folder: Path) -> None:
        self.store = store
        self.fleet = fleet
        self._folder = folder

    def create(self, path: str, **body: Any) -> Any:
        """Create what ``body`` says and return it."""
        with self.fleet.members[0].client() as client:
            answer = client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            return answer.json()["data"]

    def load(self, name: str, calls: list[Call], *, turned: int = 0) -> dict[str, Answer]:
        """Have two client processes make the calls on 200 connections each; ``turned`` changes who serves which."""
        urls = self.fleet.urls[turned:] + self.fleet.urls[:turned]
        with Clients(calls, urls=urls, folder=self._folder / name, processes=2, connections=200) as clients:
            clients.go()
            return clients.finish(seconds=SECONDS)


def served(topology: str, store: str) -> Fleet:
    """Services on ``store``: one command with four workers, four commands, or one process that does everything."""
    if topology == "four apis":
        broker = no_broker()
        return Fleet([Service("api", store=store, broker=broker) for _ in range(4)])
    if topology == "four workers":
        return Fleet([Service("serve", store=store, broker=no_broker(), workers=4)])
    return Fleet([Service("serve", store=store, broker="memory://")])


ON_POSTGRESQL = [pytest.param(name, marks=pytest.mark.services) for name in ("four workers", "four apis")]
in_every_shape = pytest.mark.parametrize("topology", [*ON_POSTGRESQL, "sqlite"])


@pytest.fixture
async def store(topology: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store for services of this shape."""
    embedded = topology == "sqlite"
    url: str = f"sqlite:///{tmp_path}/inventory.db" if embedded else request.getfixturevalue("postgres_url")
    async with migrated(url):
        return url


@in_every_shape
async def test_the_last_units_are_sold_once(topology: str, store: str, tmp_path: Path) -> None:
    """400 want one unit each of 200: 200 get one, 200 hear why not, and asking again with the same keys changes
    nothing, to the byte.
    """
    with served(topology, store) as fleet:
        shop = Shop(store, fleet, tmp_path)
        shop.create("/warehouses", id="wh_1", name="North")
        item = shop.create(
            "/inventory-items", sku="LAST", productId="prod_last", warehouseId="wh_1", initialQuantity=UNITS
        )
        body = {"lines": [{"inventoryItemId": item["id"], "quantity": 1}]}
        calls = [Call("POST", "/reservations", body, f"one-{number}") for number in range(2 * UNITS)]

        answers = shop.load("first", calls)
        assert Counter(answer.status for answer in answers.values()) == {201: UNITS, 409: UNITS}
        assert {answer.code for answer in answers.values() if answer.status == 409} == {"insufficient_stock"}
        after = await books(shop.store)
        after.check()
        (row,) = after.items
        assert [row[name] for name in ("on_hand", "reserved", "available", "version")] == [UNITS, UNITS, 0, UNITS + 1]
        assert after.reservations.keys() == {answer.data["id"] for answer in answers.values() if answer.status == 201}
        assert len(after.events("OutOfStock")) == 1

        again = shop.load("again", calls, turned=1)
        assert {key: answer.body for key, answer in again.items()} == {
            key: answer.body for key, answer in answers.items()
        }
        assert vars(await books(shop.store)) == vars(after)
    assert await deadlocks(store) == 0


@in_every_shape
async def test_overlapping_baskets_are_all_or_nothing(topology: str, store: str, tmp_path: Path) -> None:
    """400 baskets over the same 20 items: each is granted whole or refused for a reason that still holds, and what is
    released is there again.
    """
    with served(topology, store) as fleet:
        shop = Shop(store, fleet, tmp_path)
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        stock = {item["id"]: item["quantityOnHand"] for item in _stocked(shop, dice)}
        baskets = {f"basket-{number}": _basket(dice, list(stock)) for number in range(400)}

        answers = shop.load("baskets", [Call("POST", "/reservations", body, key) for key, body in baskets.items()])
        granted = {key: answer.data["id"] for key, answer in answers.items() if answer.status == 201}
        refused = {key: answer.code for key, answer in answers.items() if key not in granted}
        assert set(refused.values()) == {"insufficient_stock"}
        after = await books(shop.store)
        after.check()
        assert {id: after.granted()[id] for id in granted.values()} == {
            granted[key]: _units(baskets[key]) for key in granted
        }
        assert after.reservations.keys() == set(granted.values())
        available = {item["id"]: item["available"] for item in after.items}
        # Nothing came back meanwhile, so whoever was refused rightly would be refused still.
        assert all(any(units > available[id] for id, units in _units(baskets[key]).items()) for key in refused)

        released = set(list(granted.values())[::2])
        releases = [Call("POST", f"/reservations/{id}/release", None, f"release-{id}") for id in released]
        assert {answer.status for answer in shop.load("releases", releases).values()} == {200}
        end = await books(shop.store)
        end.check()
        assert {id for id, row in end.reservations.items() if row["status"] == "RELEASED"} == released
        assert all(item["on_hand"] == stock[item["id"]] for item in end.items)
    assert await deadlocks(store) == 0


def _stocked(shop: Shop, dice: random.Random) -> list[Any]:
    """20 items: 8 products in three warehouses, four of which are missing in the last one."""
    for warehouse in ("wh_1", "wh_2", "wh_3"):
        shop.create("/warehouses", id=warehouse, name=warehouse)
    places = [(product, house) for house in (1, 2, 3) for product in range(8)][:20]
    return [
        shop.create(
            "/inventory-items",
            sku=f"SKU-{product}",
            productId=f"prod_{product}",
            warehouseId=f"wh_{house}",
            initialQuantity=dice.randint(5, 40),
        )
        for product, house in places
    ]


def _basket(dice: random.Random, items: list[str]) -> dict[str, Any]:
    """Up to five lines, now and then two on the same item."""
    chosen = [dice.choice(items) for _ in range(dice.randint(1, 5))]
    return {"lines": [{"inventoryItemId": item, "quantity": dice.randint(1, 3)} for item in chosen]}


def _units(basket: dict[str, Any]) -> dict[str, int]:
    units: Counter[str] = Counter()
    for line in basket["lines"]:
        units[line["inventoryItemId"]] += line["quantity"]
    return dict(units)
