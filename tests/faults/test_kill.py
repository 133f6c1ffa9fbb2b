"""``kill -9`` in the middle of a race for the last units: nothing that anybody was told is lost, nothing counts twice.

The clients keep asking with the same keys until every request has its answer. What each of them saw is compared with
the store, which is read in plain SQL.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from audit import Books, books
from clients import Clients
from load import Answer, Call
from service import Service, no_broker
from services import Postgres
from stores import migrated

UNITS = 200
KILLED_AT = (60, 200)


@contextmanager
def racing(service: Service, folder: Path) -> Iterator[Clients]:
    """Clients in the middle of 400 requests for one unit each of 200."""
    with service.client() as client:
        client.post("/warehouses", json={"id": "wh_1", "name": "North"}).raise_for_status()
        item = {"sku": "LAST", "productId": "prod_last", "warehouseId": "wh_1", "initialQuantity": UNITS}
        id = client.post("/inventory-items", json=item).raise_for_status().json()["data"]["id"]
    body = {"lines": [{"inventoryItemId": id, "quantity": 1}]}
    calls = [Call("POST", "/reservations", body, f"one-{number}") for number in range(2 * UNITS)]
    # Few connections, so that the load lasts long enough to be interrupted more than once.
    with Clients(calls, urls=[service.url], folder=folder / "race", connections=4, retry=True) as clients:
        clients.go()
        yield clients


@pytest.mark.parametrize("shape", ["sqlite", pytest.param("four workers", marks=pytest.mark.services)])
async def test_killing_the_service_loses_and_doubles_nothing(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """All its processes die at once, twice, and are started again."""
    if shape == "sqlite":
        service = Service("serve", store=f"sqlite:///{tmp_path}/inventory.db", broker="memory://")
    else:
        store = request.getfixturevalue("postgres_url")
        service = Service("serve", store=store, broker=no_broker(), workers=4)
    with service, racing(service, tmp_path) as clients:
        for count in KILLED_AT:
            clients.wait_for(count)
            service.kill()
            service.start()
        last = clients.finish()
        assert any(answer.error for answer in clients.answers())
        check_outcome(clients.answers(), last, await books(service.store))


@pytest.mark.services
async def test_killing_postgresql_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """It dies twice, for a moment and for longer. The service stays up, says 503 meanwhile, and recovers by itself."""
    with Postgres() as postgres:
        store = postgres.create_database()
        async with migrated(store):
            pass
        service = Service("serve", store=store, broker=no_broker(), workers=4)
        with service, racing(service, tmp_path) as clients:
            processes = service.pids()
            for count, seconds in zip(KILLED_AT, (1.0, 4.0), strict=True):
                clients.wait_for(count)
                postgres.kill()
                time.sleep(seconds)
                postgres.start()
            last = clients.finish()
            answers = clients.answers()

            assert service.pids() == processes
            assert not [answer.error for answer in answers if answer.error]
            turned_away = [answer for answer in answers if not answer.definite]
            assert turned_away
            assert {answer.code for answer in turned_away} <= {"unavailable", "outcome_unknown"}
            assert {answer.headers["content-type"] for answer in turned_away} == {"application/problem+json"}
            assert all(int(answer.headers["retry-after"]) > 0 for answer in turned_away)
            check_outcome(answers, last, await books(store))


def check_outcome(answers: list[Answer], last: dict[str, Answer], found: Books) -> None:
    """Fail unless 200 units were sold once each, and to those, and only those, who were told so."""
    assert Counter(answer.status for answer in last.values()) == {201: UNITS, 409: UNITS}
    assert {answer.status for answer in answers} <= {201, 409, 503, None}
    found.check()
    (item,) = found.items
    assert (item["on_hand"], item["reserved"], item["version"]) == (UNITS, UNITS, UNITS + 1)
    told = {answer.key: answer.data["id"] for answer in answers if answer.status == 201}
    assert found.reservations.keys() == set(told.values())
    assert len(set(told.values())) == len(told) == UNITS
    stored = [json.loads(row["answer"]) for row in found.answers]
    assert sorted(entry["result"]["id"] for (entry,) in stored if "result" in entry) == sorted(told.values())
