"""The outbox in operators' hands, by HTTP and by command: what waits, what is blocked, and publishing again."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from in_process import ADMIN, OPERATOR, Api, serving
from service import COMMAND, environment
from stores import stocked

from core.acts import Act
from core.events import OutboxRow
from core.publishing.exceptions import Replays
from entrypoints.wiring import Relay
from ports.broker import Broker
from ports.leases import Lease
from ports.store import Store


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A service with two products, whose events wait."""
    async with serving(tmp_path) as api:
        await (await api.container.get(Broker)).declare()
        for product in ("a", "b"):
            await stocked(api.store, 5, product=product, sku=product.upper())
        yield api


@pytest.fixture
async def admin(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """An administrator."""
    async with api.client(ADMIN, subject="alice") as client:
        yield client


async def leased(store: Store) -> Lease:
    """Return the relay's lease."""
    lease = await store.acquire("relay", "test", seconds=60)
    assert lease is not None
    return lease


async def blocked(store: Store) -> OutboxRow:
    """Block the first event that waits, and return it."""
    (row, *_) = await store.pending(10)
    lease = await leased(store)
    assert await store.block(lease, row, "The broker refused it.")
    await store.release(lease)
    return row


async def published(api: Api) -> int:
    """Have a relay publish what waits, and return how many events have a position."""
    relay = await api.container.get(Relay)
    await relay.start()
    async with asyncio.timeout(20):
        while await api.store.pending(1):
            await asyncio.sleep(0.02)
    await relay.stop()
    return (await api.store.backlog()).count


async def test_a_blocked_event_is_seen_and_let_go(api: Api, admin: httpx2.AsyncClient) -> None:
    """It is named with how many wait behind it; released its product goes on; there is nothing to release twice."""
    row = await blocked(api.store)
    assert {row.product_id} != {each.product_id for each in await api.store.pending(10)}
    assert row.product_id not in {each.product_id for each in await api.store.pending(10)}
    async with api.client(OPERATOR) as operator:
        state = (await operator.get("/admin/outbox")).json()["data"]
        assert (row.event_id, row.product_id, True) == (
            state["blocked"][0]["eventId"],
            state["blocked"][0]["productId"],
            state["blocked"][0]["waiting"] >= 1,
        )
        refused = await operator.post(f"/admin/outbox/blocked/{row.event_id}/release", json={"reason": "x"})
        assert (403, "forbidden") == (refused.status_code, refused.json()["code"])
    for status in (200, 404):
        answer = await admin.post(f"/admin/outbox/blocked/{row.event_id}/release", json={"reason": "larger frames"})
        assert status == answer.status_code
    assert row.event_id in {each.event_id for each in await api.store.pending(10)}
    assert [] == (await admin.get("/admin/outbox")).json()["data"]["blocked"]


async def test_a_skipped_event_is_dropped_in_the_end(api: Api, tmp_path: Path) -> None:
    """With the others, although it has no place in the stream."""
    row = await blocked(api.store)
    await api.store.release_blocked(row.event_id, Act(actor="alice", reason="x"), skip=True)
    assert 0 == await published(api)
    with closing(sqlite3.connect(tmp_path / "inventory.db")) as file:
        (kept,) = file.execute("SELECT count(*) FROM outbox").fetchone()
        assert 0 == await api.store.purge(answers_hours=1, events_days=1, inbox_days=1)
        assert kept == await api.store.purge(answers_hours=1, events_days=0, inbox_days=1)
        assert (0,) == file.execute("SELECT count(*) FROM outbox").fetchone()


async def test_who_has_lost_the_lease_blocks_nothing(api: Api) -> None:
    """Fencing holds for the exceptions, too."""
    (row, *_) = await api.store.pending(1)
    lost = Lease("relay", "test", (await leased(api.store)).token + 1)

    assert not await api.store.block(lost, row, "x")
    assert [] == await api.store.blocked(9)


async def test_events_are_replayed_and_watched(api: Api, admin: httpx2.AsyncClient) -> None:
    """202 with where to look; by product; what is over cannot be cancelled, what is not can."""
    assert 0 == await published(api)
    begun = await admin.post("/admin/outbox/replay", json={"productId": "a", "reason": "the queue was deleted"})
    assert (202, "RUNNING") == (begun.status_code, begun.json()["data"]["status"])
    replays, lease = Replays(api.store, await api.container.get(Broker)), await leased(api.store)
    while await replays.go_on(lease):
        pass
    done = (await admin.get(begun.headers["location"])).json()["data"]
    assert ("DONE", done["total"]) == (done["status"], done["published"])
    assert done["total"] > 0
    late = await admin.post(f"{begun.headers['location']}/cancel", json={"reason": "too late"})
    assert (409, "invalid_state") == (late.status_code, late.json()["code"])
    again = (await admin.post("/admin/outbox/replay", json={"fromPosition": 1, "reason": "all"})).json()["data"]
    stopped = await admin.post(f"/admin/outbox/replays/{again['id']}/cancel", json={"reason": "stop"})
    assert "CANCELLED" == stopped.json()["data"]["status"]
    assert not await replays.go_on(lease)
    listed = (await admin.get("/admin/outbox/replays")).json()["data"]
    assert [again["id"], done["id"]] == [each["id"] for each in listed]


async def test_a_replay_that_was_asked_for_twice_runs_once(api: Api, admin: httpx2.AsyncClient) -> None:
    """Whoever lost the answer is told which one runs; a key in its place would be believed and do nothing."""
    assert 0 == await published(api)
    body = {"fromPosition": 1, "reason": "the queue was deleted"}
    keyed = await admin.post("/admin/outbox/replay", json=body, headers={"idempotency-key": "k"})
    assert (400, "validation_failed") == (keyed.status_code, keyed.json()["code"])
    first, second = await asyncio.gather(*(admin.post("/admin/outbox/replay", json=body) for _ in range(2)))
    begun, refused = sorted((first, second), key=lambda answer: answer.status_code)
    assert (202, 409, "invalid_state") == (begun.status_code, refused.status_code, refused.json()["code"])
    assert begun.json()["data"]["id"] in refused.json()["detail"]
    one = await admin.post("/admin/outbox/replay", json={"productId": "a", "reason": "another scope"})
    assert 202 == one.status_code


async def test_who_has_lost_the_lease_replays_no_further(api: Api, admin: httpx2.AsyncClient) -> None:
    """It says so, rather than publish the same events again and again."""
    assert 0 == await published(api)
    begun = await admin.post("/admin/outbox/replay", json={"productId": "a", "reason": "the queue was deleted"})
    lease = await leased(api.store)
    replays = Replays(api.store, await api.container.get(Broker))

    assert None is await replays.go_on(Lease(lease.name, lease.owner, lease.token + 1))
    state = (await admin.get(begun.headers["location"])).json()["data"]
    assert ("RUNNING", 0) == (state["status"], state["published"])


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("replay", {"reason": "x"}, 400, "validation_failed"),
        ("replay", {"fromPosition": 1}, 400, "validation_failed"),
        ("replay", {"fromPosition": -1, "reason": "x"}, 400, "validation_failed"),
        ("replay", {"since": "2026-01-01T00:00:00", "reason": "x"}, 400, "validation_failed"),
        ("replay", {"productId": "none", "reason": "x"}, 409, "invalid_state"),
        ("replays/rpl_none/cancel", {"reason": "x"}, 404, "not_found"),
        ("blocked/none/release", {"reason": "x"}, 404, "not_found"),
        ("blocked/none/release", {}, 400, "validation_failed"),
    ],
)
async def test_refusals_have_stable_codes(
    admin: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    """A range that names nothing, and things that are not there."""
    answer = await admin.post(f"/admin/outbox/{path}", json=body)

    assert (status, code) == (answer.status_code, answer.json()["code"])


async def test_the_command_shows_releases_and_replays(api: Api, tmp_path: Path) -> None:
    """On the store itself, whatever processes run."""
    row = await blocked(api.store)

    async def run(*arguments: str) -> tuple[int, str]:
        settings = {"store": f"sqlite:///{tmp_path}/inventory.db", "broker": "memory://"}
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "outbox", *arguments), env=environment(**settings), stdout=-1, stderr=-1
        )
        output, trouble = await process.communicate()
        return process.returncode or 0, (output or trouble).decode()

    code, shown = await run("show")
    assert (0, True) == (code, row.event_id in shown and "1 are blocked" in shown)
    code, told = await run("release", row.event_id, "--skip", "--reason", "nobody needs it")
    assert (0, True) == (code, "is skipped" in told)
    await published(api)
    code, begun = await run("replay", "--from-position", "1", "--no-wait", "--reason", "x", "--json")
    assert (0, "RUNNING", 1) == (code, json.loads(begun)["status"], json.loads(begun)["fromPosition"])
    assert 2 == (await run("replay", "--reason", "x"))[0]
