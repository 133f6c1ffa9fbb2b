"""Files by HTTP: taken as they come, carried out in the background, looked at meanwhile, and given out again."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from in_process import OPERATOR, Api, ask, serving, token
from service import Service
from stores import migrated, stocked

from core.files.imports import Imports

RECEIPTS = b"sku,warehouseId,quantity\nA,wh_1,5\nZ,wh_1,5\nA,wh_1,x\n"
CSV = {"content-type": "text/csv; charset=utf-8"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A service with ten of a product."""
    async with serving(tmp_path) as api:
        await stocked(api.store, 10, sku="A")
        yield api


@pytest.fixture
async def operator(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """Who manages stock."""
    async with api.client(OPERATOR, subject="olga") as client:
        yield client


async def finished(api: Api, client: httpx2.AsyncClient, location: str) -> Any:
    """Let the background work, and return the import."""
    while await (await api.container.get(Imports)).turn():
        pass
    return (await client.get(location)).raise_for_status().json()["data"]


async def test_a_file_is_a_job(api: Api, operator: httpx2.AsyncClient) -> None:
    """202 with where to look; counts, errors by page and as a file; in the name of whoever sent it."""
    answer = await operator.post("/imports?partial=true&name=monday.csv", content=RECEIPTS, headers=CSV)
    assert answer.status_code == 202
    location = answer.headers["location"]
    begun = answer.json()["data"]
    assert (begun["status"], begun["bytes"], location) == ("QUEUED", len(RECEIPTS), f"/imports/{begun['id']}")

    job = await finished(api, operator, location)
    assert {"status": "DONE", "kind": "receipts", "rows": 3, "done": 3, "refused": 2}.items() <= job.items()
    assert (job["actor"], job["name"]) == ("olga", "monday.csv")

    first = (await operator.get(f"{location}/errors?limit=1")).json()
    second = (await operator.get(f"{location}/errors?limit=1&cursor={first['nextCursor']}")).json()
    told = [(each["line"], each["code"]) for each in (*first["data"], *second["data"])]
    assert told == [(3, "not_found"), (4, "validation_failed")] and second["nextCursor"] is None
    file = await operator.get(f"{location}/errors.csv")
    assert file.headers["content-type"].startswith("text/csv")
    assert file.text.splitlines()[:2] == [
        "line,code,detail",
        "3,not_found,There is no inventory item of SKU Z in warehouse wh_1.",
    ]
    assert (await operator.get("/inventory-items?sku=A")).json()["data"][0]["quantityOnHand"] == 15


async def test_sent_once_more_it_is_the_same_job(api: Api, operator: httpx2.AsyncClient) -> None:
    """After a lost connection, or weeks later; unless it is asked for again."""
    good = b"sku,warehouseId,quantity\nA,wh_1,5\n"
    first = (await operator.post("/imports", content=good, headers=CSV)).json()["data"]
    await finished(api, operator, f"/imports/{first['id']}")
    second = await operator.post("/imports", content=good, headers=CSV)
    assert second.json()["data"]["id"] == first["id"] and second.json()["data"]["status"] == "DONE"
    again = (await operator.post("/imports?again=true", content=good, headers=CSV)).json()["data"]
    assert again["id"] != first["id"]
    assert (await operator.get("/imports?limit=1")).json()["nextCursor"] == again["id"]

    cancelled = await operator.post(f"/imports/{again['id']}/cancel", json={"reason": "by mistake"})
    assert (cancelled.status_code, cancelled.json()["data"]["status"]) == (200, "CANCELLED")
    twice = await operator.post(f"/imports/{again['id']}/cancel", json={"reason": "by mistake"})
    assert (twice.status_code, twice.json()["code"]) == (409, "invalid_state")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 415), ({"content-type": "application/json"}, 415), ({**CSV, "content-encoding": "gzip"}, 415)],
)
async def test_what_is_no_file_is_refused(operator: httpx2.AsyncClient, headers: dict[str, str], status: int) -> None:
    """By its type, before anything of it is kept."""
    assert (await operator.post("/imports", content=RECEIPTS, headers=headers)).status_code == status
    assert (await operator.get("/imports")).json()["data"] == []


async def test_a_file_comes_in_pieces_and_may_break_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than other bodies may have; what breaks off or is too much leaves nothing."""
    bearer = {"authorization": f"Bearer {token(OPERATOR)}", **CSV}
    head, rows = b"sku,warehouseId,quantity\n", [b"A,wh_1,5\n" * 10_000] * 4
    taken = await ask(api.app, "POST", "/imports", query=b"dryRun=true", headers=bearer, body=[head, *rows])
    assert (taken.status, taken.json()["data"]["bytes"]) == (202, len(head) + 360_000)

    monkeypatch.setattr("core.files.imports.UPLOAD_MAX", 100_000)
    large = await ask(api.app, "POST", "/imports", headers=bearer, body=[head, *rows])
    assert (large.status, large.json()["code"]) == (413, "content_too_large")
    gone = await ask(api.app, "POST", "/imports", headers=bearer, body=None)
    assert gone.status == 400
    assert len(await api.store.import_jobs(limit=5)) == 1


async def test_stock_is_given_as_a_file(api: Api, operator: httpx2.AsyncClient) -> None:
    """In either format, filtered; what is exported says of itself that it is known already."""
    items = await operator.get("/exports/items?warehouseId=wh_1")
    assert items.headers["content-disposition"] == 'attachment; filename="items.csv"'
    lines = (await operator.get("/exports/counts?format=jsonl")).text.splitlines()
    assert len(lines) == 1 and '"countedQuantity":10' in lines[0]
    assert len((await operator.get("/exports/items?sku=none")).text.splitlines()) == 1
    assert (await operator.get("/exports/none")).status_code == 404
    assert (await operator.get("/exports/warehouses?sku=A")).status_code == 400

    back = (await operator.post("/imports", content=items.content, headers=CSV)).json()["data"]
    assert (await finished(api, operator, f"/imports/{back['id']}"))["status"] == "REFUSED"
    (error,) = (await operator.get(f"/imports/{back['id']}/errors")).json()["data"]
    assert error["code"] == "already_exists"


async def test_an_import_outlives_its_process(tmp_path: Path) -> None:
    """Killed in the middle, the service goes on with it when it is there again; every row is done once."""
    url = f"sqlite:///{tmp_path}/inventory.db"
    async with migrated(url) as store:
        await stocked(store, 0, sku="A")
    content = b"sku,warehouseId,quantity,referenceNumber\n" + b"".join(b"A,wh_1,1,PO-%d\n" % n for n in range(5_000))
    with Service("serve", store=url, broker="memory://") as service:
        with service.client() as client:
            location = client.post("/imports", content=content, headers=CSV).raise_for_status().headers["location"]
            while not 0 < (done := client.get(location).json()["data"]["done"]):
                pass
        service.kill()
        service.start()
        with service.client() as client:
            while (job := client.get(location).json()["data"])["endedAt"] is None:
                pass
            (item,) = client.get("/inventory-items?sku=A").json()["data"]
    assert 0 < done < 5_000
    assert (job["status"], job["done"], job["refused"], item["quantityOnHand"]) == ("DONE", 5_000, 0, 5_000)
