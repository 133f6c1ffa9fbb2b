"""Reconciliation in operators' hands, by HTTP and by command: asked for, watched, cancelled, on record."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from in_process import ADMIN, OPERATOR, Api, serving
from planted import Place, plant
from service import COMMAND, environment

from core.reconciling.reconciliation import Reconciliation


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A service with a product whose totals are wrong, and another whose balance is."""
    async with serving(tmp_path, reconcile_minutes=0) as api:
        await plant(Place(f"sqlite:///{tmp_path}/inventory.db", api.store), "a total", "a balance")
        yield api


@pytest.fixture
async def admin(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """An administrator."""
    async with api.client(ADMIN, subject="alice") as client:
        yield client


async def test_a_run_is_asked_for_watched_and_shown(api: Api, admin: httpx2.AsyncClient) -> None:
    """202 with where to look; whoever reconciles does it; the operator sees findings, ages, repairs and who."""
    asked = await admin.post("/admin/reconciliation", json={"repairs": "safe", "reason": "after the restore"})
    assert (asked.status_code, asked.json()["data"]["status"]) == (202, "REQUESTED")
    await (await api.container.get(Reconciliation)).turn()
    async with api.client(OPERATOR) as operator:
        report = (await operator.get(asked.headers["location"])).json()["data"]
        listed = (await operator.get("/admin/reconciliation")).json()["data"]

    assert listed == [report["run"]]
    assert (report["run"]["status"], report["run"]["actor"], report["run"]["outcomes"]) == (
        "DONE",
        "alice",
        {"PLANNED": 1, "REPAIRED": 1},
    )
    repairs = {each["kind"]: each for each in report["repairs"]}
    assert repairs["TOTALS_MISMATCH"]["before"] == {"quantityReserved": 4}
    assert repairs["TOTALS_MISMATCH"]["after"] == {"quantityReserved": 3}
    assert repairs["LEDGER_MISMATCH"]["outcome"] == "PLANNED"
    assert [(each["kind"], each["nature"], each["new"]) for each in report["tallies"]] == [
        ("LEDGER_MISMATCH", "conflicting", 1),
        ("TOTALS_MISMATCH", "stale", 1),
    ]


async def test_readers_see_a_repair_at_once(api: Api, admin: httpx2.AsyncClient) -> None:
    """What was read before is not told again."""
    path = "/inventory-items/by-product/prod a balance"
    before = (await admin.get(path)).json()["data"]["totalQuantityAvailable"]
    await admin.post("/admin/reconciliation", json={"repairs": "all", "reason": "x"})
    await (await api.container.get(Reconciliation)).turn()

    assert (before, (await admin.get(path)).json()["data"]["totalQuantityAvailable"]) == (18, 17)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("", {}, 400, "validation_failed"),
        ("", {"reason": "x", "repairs": "everything"}, 400, "validation_failed"),
        ("/rec_none/cancel", {"reason": "x"}, 404, "not_found"),
        ("/rec_none/cancel", {}, 400, "validation_failed"),
    ],
)
async def test_refusals_have_stable_codes(
    admin: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    """Without a reason nothing is done, and nothing to what is not there."""
    answer = await admin.post(f"/admin/reconciliation{path}", json=body)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_one_at_a_time_and_operators_only_look(api: Api, admin: httpx2.AsyncClient) -> None:
    """A second one is refused until the first has ended or was cancelled; cancelling twice is refused as well."""
    body = {"reason": "x"}
    first = await admin.post("/admin/reconciliation", json=body)
    second = await admin.post("/admin/reconciliation", json=body)
    cancelled = await admin.post(f"{first.headers['location']}/cancel", json=body)
    again = await admin.post(f"{first.headers['location']}/cancel", json=body)
    async with api.client(OPERATOR) as operator:
        refused = [await operator.post(f"/admin/reconciliation{path}", json=body) for path in ("", "/rec_1/cancel")]
        missing = await operator.get("/admin/reconciliation/rec_9")

    assert (second.status_code, second.json()["code"]) == (409, "invalid_state")
    assert (cancelled.json()["data"]["status"], again.status_code) == ("CANCELLED", 409)
    assert [each.status_code for each in refused] == [403, 403]
    assert missing.status_code == 404


async def test_the_command_leaves_repairs_to_a_service_that_reads_from_memory(api: Api, tmp_path: Path) -> None:
    """It asks for a run and watches; the service does it, so that its readers hear of it. A plan it makes itself."""
    lease = await api.store.acquire("relay", "a service", seconds=60)
    assert lease is not None
    service = await api.container.get(Reconciliation)
    await service.start()

    async def run(*arguments: str) -> tuple[int, Any]:
        settings = {"store": f"sqlite:///{tmp_path}/inventory.db"}
        command = (COMMAND, "reconcile", "run", "--json", *arguments)
        process = await asyncio.create_subprocess_exec(*command, env=environment(**settings), stdout=-1, stderr=-1)
        output, _ = await process.communicate()
        return process.returncode or 0, json.loads(output)

    try:
        planned_code, planned = await run("--dry-run")
        code, done = await run("--repair", "all")
    finally:
        await service.stop()

    assert (planned_code, planned["run"]["trigger"], planned["run"]["outcomes"]) == (1, "manual", {"PLANNED": 2})
    assert (code, done["run"]["trigger"], done["run"]["outcomes"]) == (0, "request", {"REPAIRED": 2})
