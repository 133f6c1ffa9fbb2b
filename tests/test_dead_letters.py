"""Dead letters in operators' hands: tried again, edited, decided on, by HTTP and by command, and never twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from in_process import ADMIN, OPERATOR, Api, serving
from service import COMMAND, environment
from stores import at_work, carry_out, migrated, only, stocked, unasked

from adapters.registry import connect
from core.acts import Act
from core.consuming.dead_letters import DeadLetters
from core.consuming.letters import letter_of, pause
from core.consuming.redelivery import Redelivery
from core.errors import (
    Conflict,
    InventoryError,
    NotFound,
    ProductServiceProtocolError,
    SkuConflict,
    Unavailable,
    ValidationFailed,
)
from core.events import PRODUCT_EXCHANGE
from core.operations import CreateWarehouse, EventPolicy, Outcome, Request
from core.writing.writer import Writer
from entrypoints.commands.doctor import _letters
from ports.broker import Message
from ports.dead_letters import LetterFilter
from ports.outbox import RELAY
from ports.store import ItemFilter, Store

ACT = Act(actor="alice", reason="it is mended")
POLICY = EventPolicy(warehouse_ids=("wh_1",))
UNHAPPY = SkuConflict("SKU S is in use by item inv_1.", sku="S", inventoryItemId="inv_1")


def told(number: int = 1, **words: Any) -> dict[str, Any]:
    """Return what a ProductCreated of this number says; ``words`` replace parts of it."""
    payload = {"productId": f"prod_{number}", "sku": f"SKU-{number}", "name": f"Product {number}"}
    whole = {
        "eventId": f"evt-{number}",
        "eventType": "ProductCreated",
        "eventVersion": "1.0.0",
        "timestamp": "2026-11-20T12:00:00Z",
        "payload": payload,
    }
    return whole | words


def message(body: Any, number: int = 1) -> Message:
    """Return the message with this body."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Message(
        id=f"evt-{number}", exchange=PRODUCT_EXCHANGE, routing_key="product.productcreated.product", body=raw
    )


async def parked(store: Store, body: Any = None, number: int = 1, error: InventoryError = UNHAPPY, **words: Any) -> str:
    """Park a message and return the letter's id."""
    content = told(number) if body is None else body
    await store.park(letter_of(message(content, number), error, attempts=1, **words))
    return (await store.letters(LetterFilter(id=f"evt-{number}"), limit=1))[0].id


class Moody(Writer):
    """A writer that fails as it was told."""

    def __init__(self, store: Store, failure: Exception) -> None:
        super().__init__(store)
        self.failure = failure

    async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
        """Fail."""
        raise self.failure


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with one warehouse."""
    async with migrated(f"sqlite:///{tmp_path}/inventory.db") as store:
        await carry_out(store, CreateWarehouse(id="wh_1", name="North"))
        yield store


@pytest.fixture
async def redelivery(store: Store) -> AsyncIterator[Redelivery]:
    """What tries letters again, with a writer at work."""
    async with at_work(store) as writer:
        yield Redelivery(store, writer, unasked(store, POLICY), process="c1")


@pytest.fixture
def letters(store: Store, redelivery: Redelivery) -> DeadLetters:
    """The use cases."""
    return DeadLetters(store, redelivery)


async def items(store: Store) -> list[str]:
    """Return the SKUs there are."""
    return [item.sku for item in (await store.items(ItemFilter(), cursor=None, limit=100)).rows]


# -- one letter -------------------------------------------------------------------------------------------------------


async def test_a_letter_whose_cause_is_gone_is_applied(store: Store, letters: DeadLetters) -> None:
    """It is resolved and says so; its effect is there once."""
    id = await parked(store)
    letter = await letters.retry(id, ACT)

    assert ("RESOLVED", ["SKU-1"]) == (letter.status, await items(store))
    assert letter.applied is not None
    assert "APPLIED" == letter.applied.verdict
    assert ["APPLIED", "sku_conflict"] == [each.outcome for each in letter.history]
    with pytest.raises(Conflict, match="has been dealt with"):
        await letters.retry(id, ACT)


async def test_an_event_that_was_applied_already_has_no_second_effect(store: Store, letters: DeadLetters) -> None:
    """The letter shows it beforehand, and a retry resolves it as a duplicate."""
    await letters.retry(await parked(store), ACT)
    twin = letter_of(message(json.dumps(told()).encode()), UNHAPPY, attempts=1)
    await store.park(twin)
    (id,) = [each.id for each in await store.letters(LetterFilter(status="UNRESOLVED"), limit=9)]
    assert (await letters.letter(id)).applied is not None

    letter = await letters.retry(id, ACT)
    assert ("RESOLVED", "DUPLICATE") == (letter.status, letter.history[0].outcome)
    assert ["SKU-1"] == await items(store)


async def test_a_letter_that_fails_again_says_why(store: Store, letters: DeadLetters) -> None:
    """The new cause, and one attempt more."""
    await stocked(store, 5, sku="SKU-1", product="prod_2")
    letter = await letters.retry(await parked(store, error=ValidationFailed("old")), ACT)

    assert ("UNRESOLVED", "sku_conflict", 2) == (letter.status, letter.code, letter.attempts)
    assert "prod_2" in letter.detail
    assert "SkuConflict" in letter.stack


async def test_an_event_of_a_version_that_is_not_supported_is_replayable(store: Store, letters: DeadLetters) -> None:
    """Fault F27: while this version does not read it, it stays; it is decoded anew each time."""
    id = await parked(store, told(eventVersion="2.0.0"), error=ValidationFailed("old"))
    letter = await letters.retry(id, ACT)

    assert ("UNRESOLVED", "unsupported_version") == (letter.status, letter.code)
    assert ("evt-1", "prod_1", ("SKU-1",)) == (letter.event_id, letter.product_id, letter.skus)
    assert [id] == [each.id for each in await store.letters(LetterFilter(type="ProductCreated"), limit=9)]


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[1]", b'{"payload": [], "eventId": 7}', b"{" * 100_000])
async def test_a_letter_that_nobody_understands_can_be_looked_at(
    store: Store, letters: DeadLetters, body: bytes
) -> None:
    """Whatever the body is."""
    letter = await letters.letter(await parked(store, body))

    assert ("", None, (), len(body)) == (letter.event_id, letter.product_id, letter.skus, letter.body_bytes)


async def test_causes_that_differ_in_names_only_are_one_group(store: Store) -> None:
    """What is particular to a message is no part of its cause."""
    for number in (1, 2):
        error = SkuConflict(f"SKU ABC{'D' * number} is in use by {number}x.", sku=f"ABC{'D' * number}")
        await parked(store, number=number, error=error)

    assert (2, "SKU … is in use by ….") == (
        only(await store.letter_groups(LetterFilter(), limit=9)).count,
        only(await store.letter_groups(LetterFilter(), limit=9)).cause,
    )


# -- editing ----------------------------------------------------------------------------------------------------------


async def test_an_edited_letter_is_applied_in_place_of_the_original(store: Store, letters: DeadLetters) -> None:
    """Linked to it, with the difference on record."""
    id = await parked(store, told(payload={"productId": "prod_1"}), error=ValidationFailed("no sku"))
    new = await letters.edit(id, told(), ACT)
    old = await letters.letter(id)

    assert ("RESOLVED", id, ["SKU-1"]) == (new.status, new.edited_from, await items(store))
    assert ("RESOLVED", new.id, None) == (old.status, old.replaced_by, old.note)
    difference = only(old.acts).details["difference"]
    assert '+    "sku": "SKU-1",' in difference.splitlines()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (told(eventVersion="x"), "not supported"),
        (told(payload={"productId": "prod_1"}), "must hold a sku"),
        (told(eventId="evt-9"), "must stay evt-1"),
        (told(), "is what it was"),
        (told(eventType="ProductDeleted"), "routing key"),
    ],
)
async def test_an_edit_that_mends_nothing_is_refused(
    store: Store, letters: DeadLetters, body: dict[str, Any], why: str
) -> None:
    """And the letter is as it was."""
    id = await parked(store)
    with pytest.raises(ValidationFailed, match=why):
        await letters.edit(id, body, ACT)

    assert ("UNRESOLVED", 1) == ((await letters.letter(id)).status, len(await store.letters(LetterFilter(), limit=9)))


async def test_an_edit_that_fails_again_is_a_letter_of_its_own(store: Store, letters: DeadLetters) -> None:
    """Linked to the original; editing what was applied already is refused."""
    await stocked(store, 5, sku="TAKEN", product="prod_2")
    id = await parked(store, told(payload={"productId": "prod_1"}))
    new = await letters.edit(id, told(payload={"productId": "prod_1", "sku": "TAKEN"}), ACT)
    assert ("UNRESOLVED", "sku_conflict", id) == (new.status, new.code, new.edited_from)

    best = await letters.edit(new.id, told(), ACT)
    assert ("RESOLVED", new.id) == (best.status, best.edited_from)
    await store.park(letter_of(message(json.dumps(told()).encode()), UNHAPPY, attempts=1))
    (late,) = await store.letters(LetterFilter(status="UNRESOLVED"), limit=9)
    with pytest.raises(Conflict, match="had its effect already"):
        await letters.edit(late.id, told(payload={"productId": "prod_1", "sku": "X"}), ACT)
    with pytest.raises(NotFound):
        await letters.edit("dl_none", told(), ACT)


# -- by themselves, and many ------------------------------------------------------------------------------------------


async def test_a_letter_is_tried_by_itself_when_its_pause_is_over(store: Store, redelivery: Redelivery) -> None:
    """By any process that is at it."""
    await parked(store, retry_seconds=-1.0)
    await parked(store, number=2, retry_seconds=60.0)
    await redelivery.start()
    try:
        async with asyncio.timeout(10):
            while (await store.letter_counts()).get("RESOLVED") != 1:
                await asyncio.sleep(0.02)
    finally:
        await redelivery.stop()

    assert {"RESOLVED": 1, "WAITING": 1} == await store.letter_counts()
    assert ["SKU-1"] == await items(store)


async def test_a_pause_grows_and_ends_with_an_operator(store: Store) -> None:
    """Attempts are counted in the store, whichever process makes them."""
    pauses = [pause(attempts) for attempts in range(1, 15)]
    assert all(5 <= seconds <= 600 for seconds in pauses if seconds is not None)
    assert None not in pauses
    assert (pauses[-1] or 0) > 250
    assert pause(15) is None

    async with at_work(store):
        moody = Redelivery(
            store, Moody(store, Unavailable("The product is locked.")), unasked(store, POLICY), process="c1"
        )
        first = await DeadLetters(store, moody).retry(await parked(store), ACT)
        assert ("WAITING", "unavailable", 2) == (first.status, first.code, first.attempts)
        assert first.next_attempt_at is not None
        last = await parked(store, number=2)
        await store.park(letter_of(message(told(2), 2), UNHAPPY, attempts=13))
        assert "UNRESOLVED" == (await DeadLetters(store, moody).retry(last, ACT)).status


async def test_an_answer_that_cannot_be_used_is_asked_for_again(store: Store) -> None:
    """As the consumer does that parked the letter: it says nothing of the event."""
    away = Moody(store, ProductServiceProtocolError("It answered 404 to everything."))
    moody = Redelivery(store, away, unasked(store, POLICY), process="c1")
    letter = await DeadLetters(store, moody).retry(await parked(store), ACT)

    assert ("WAITING", "product_service_protocol_error") == (letter.status, letter.code)


async def test_an_end_in_order_is_no_lapse(store: Store) -> None:
    """However often this service is deployed while letters are in hand, none of them is taken for a crash loop."""

    class Stuck(Moody):
        async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
            trying.set()
            return await asyncio.Future()

    trying = asyncio.Event()
    await parked(store, retry_seconds=-1.0)
    for _ in range(4):
        trying.clear()
        stuck = Redelivery(store, Stuck(store, ValueError()), unasked(store, POLICY), process="c1")
        await stuck.start()
        async with asyncio.timeout(10):
            await trying.wait()
        await stuck.stop()

    (claimed,) = await store.claim_due("c2", limit=9, bytes_max=9_999, seconds=60)
    assert (0, 2) == (claimed.lapses, claimed.attempts)


@pytest.mark.parametrize("edits", [False, True])
async def test_an_operators_try_that_is_broken_off_is_no_lapse(store: Store, edits: bool) -> None:
    """The letter is given back, and due again at once, without the try."""

    class Stuck(Moody):
        async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
            trying.set()
            return await asyncio.Future()

    trying = asyncio.Event()
    id = await parked(store, told(), retry_seconds=None)
    stuck = Redelivery(store, Stuck(store, ValueError()), unasked(store, POLICY), process="c1")
    letters = DeadLetters(store, stuck)
    at_it = asyncio.create_task(
        letters.edit(id, told(timestamp="2026-11-20T12:00:01Z"), ACT) if edits else letters.retry(id, ACT)
    )
    async with asyncio.timeout(10):
        await trying.wait()
    at_it.cancel()
    await asyncio.wait({at_it})

    (claimed,) = await store.claim_due("c2", limit=9, bytes_max=9_999, seconds=60)
    assert (at_it.cancelled(), claimed.lapses) == (True, 0)


async def test_no_try_outlasts_its_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is broken off, put on record, and tried again later; the others of its claim are settled."""

    class Slow(Moody):
        async def submit(self, request: Request, *, timeout: float = 5.0) -> list[Outcome]:
            if request.correlation_id == "evt-1":
                return await asyncio.Future()
            return await writer.submit(request, timeout=timeout)

    monkeypatch.setattr("core.consuming.redelivery.TRY_SECONDS", 0.2)
    async with at_work(store) as writer:
        slow = Redelivery(store, Slow(store, ValueError()), unasked(store, POLICY), process="c1")
        for number in (1, 2):
            await parked(store, number=number, retry_seconds=-1.0)
        async with asyncio.timeout(5):
            assert await slow.turn() == 2

    assert {"RESOLVED": 1, "WAITING": 1} == await store.letter_counts()
    (waiting,) = await store.letters(LetterFilter(status="WAITING"), limit=9)
    assert "outcome_unknown" == waiting.code


async def test_a_failure_nobody_expected_is_kept_as_well(store: Store) -> None:
    """It does not keep the others from being settled."""
    moody = Redelivery(store, Moody(store, ValueError("bang")), unasked(store, POLICY), process="c1")
    letter = await DeadLetters(store, moody).retry(await parked(store), ACT)

    assert ("UNRESOLVED", "internal") == (letter.status, letter.code)


async def test_a_letter_that_kills_its_handlers_is_left_alone_in_the_end(store: Store, redelivery: Redelivery) -> None:
    """Fault F26: after three claims that nobody settled it waits for an operator, untried."""
    id = await parked(store, retry_seconds=-1.0)
    for number in range(3):
        assert 1 == len(await store.claim_due(f"dead {number}", limit=9, bytes_max=9_999, seconds=-1))
    assert 1 == await redelivery.turn()

    letter = await store.letter(id)
    assert letter is not None
    assert ("UNRESOLVED", "crash_loop", []) == (letter.status, letter.code, await items(store))


async def test_a_poison_letter_among_a_hundred_stays_alone(store: Store, redelivery: Redelivery) -> None:
    """Fault F25: ninety-nine are applied, in few commits, and one is left with its cause."""
    for number in range(100):
        await parked(store, told(number, eventVersion="x") if number == 50 else None, number=number)
    retry = await store.begin_retry(LetterFilter(), ACT, canary=True)
    while retry.ended_at is None:
        await redelivery.turn()
        retry = await store.retry(retry.id) or retry

    assert ("DONE", 99, 1, 0) == (retry.status, retry.succeeded, retry.failed, retry.left)
    assert {"RESOLVED": 99, "UNRESOLVED": 1} == await store.letter_counts()
    assert 99 == len(await items(store)) == len(set(await items(store)))


# -- by HTTP ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One service for the tests of the API; each parks letters of its own."""
    async with serving(tmp_path_factory.mktemp("letters")) as api:
        yield api


@pytest.fixture
async def admin(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """An administrator."""
    async with api.client(ADMIN, subject="alice") as client:
        yield client


async def test_an_operator_finds_letters_and_decides_nothing(api: Api) -> None:
    """Lists page by page, filters, groups, detail; every act is refused as forbidden."""
    ids = [await parked(api.store, number=number) for number in (10, 11, 12)]
    async with api.client(OPERATOR) as operator:
        first = (await operator.get("/admin/dead-letters", params={"limit": 2, "text": "in use"})).json()
        assert ids[:0:-1] == [letter["id"] for letter in first["data"]]
        rest = await operator.get("/admin/dead-letters", params={"limit": 2, "cursor": first["nextCursor"]})
        assert (ids[:1], None) == ([letter["id"] for letter in rest.json()["data"]], rest.json()["nextCursor"])
        for params in ({"sku": "SKU-11"}, {"productId": "prod_11"}, {"id": "evt-11", "type": "", "since": None}):
            given = {name: value for name, value in params.items() if value}
            found = (await operator.get("/admin/dead-letters", params=given)).json()["data"]
            assert ids[1:2] == [letter["id"] for letter in found]
        (group,) = (await operator.get("/admin/dead-letters/groups")).json()["data"]
        assert (3, "sku_conflict") == (group["count"], group["code"])
        detail = (await operator.get(f"/admin/dead-letters/{ids[0]}")).json()["data"]
        assert (told(10), None, 1) == (json.loads(detail["body"]), detail["applied"], len(detail["history"]))
        for path, body in {"retry": {}, "discard": {"reason": "x"}, "note": {"note": "x"}}.items():
            refused = await operator.post(f"/admin/dead-letters/{ids[0]}/{path}", json=body)
            assert (403, "forbidden") == (refused.status_code, refused.json()["code"])


async def test_an_administrator_mends_letters(api: Api, admin: httpx2.AsyncClient) -> None:
    """Retry, edit, discard, restore and note answer with the letter; each is on record with who and why."""
    whole, broken = await parked(api.store, number=20), await parked(api.store, told(21, payload={}), number=21)

    async def act(id: str, what: str, **body: Any) -> Any:
        answer = await admin.post(f"/admin/dead-letters/{id}/{what}", json=body, headers={"x-correlation-id": "c-1"})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    assert "RESOLVED" == (await act(whole, "retry", reason="mended"))["status"]
    assert "DISCARDED" == (await act(broken, "discard", reason="hopeless"))["status"]
    assert "UNRESOLVED" == (await act(broken, "restore", reason="not quite"))["status"]
    assert "ask Bob" == (await act(broken, "note", note="ask Bob"))["note"]
    edited = await act(broken, "edit", body=told(21), reason="payload filled in")
    assert ("RESOLVED", broken) == (edited["status"], edited["editedFrom"])
    original = (await admin.get(f"/admin/dead-letters/{broken}")).json()["data"]
    assert [
        ("dead-letter.edit", "alice", "payload filled in", "c-1"),
        ("dead-letter.note", "alice", None, "c-1"),
        ("dead-letter.restore", "alice", "not quite", "c-1"),
        ("dead-letter.discard", "alice", "hopeless", "c-1"),
    ] == [(each["action"], each["actor"], each["reason"], each["correlationId"]) for each in original["acts"]]


async def test_refusals_have_stable_codes(api: Api, admin: httpx2.AsyncClient) -> None:
    """Who is too late gets 409, a reason is mandatory, what does not exist is 404."""
    id = await parked(api.store, number=30)
    asked = [
        (f"{id}/discard", {}, 400, "validation_failed"),
        (f"{id}/discard", {"reason": ""}, 400, "validation_failed"),
        (f"{id}/edit", {"body": told(30, eventVersion="9.0.0"), "reason": "x"}, 400, "unsupported_version"),
        (f"{id}/edit", {"body": [], "reason": "x"}, 400, "validation_failed"),
        ("dl_none/retry", {}, 404, "not_found"),
        ("retries/rty_none/cancel", {"reason": "x"}, 404, "not_found"),
        ("retries", {}, 400, "validation_failed"),
        ("retries", {"ids": [id], "filter": {}}, 400, "validation_failed"),
        ("retries", {"filter": {"colour": "red"}}, 400, "validation_failed"),
        ("retries", {"ids": ["dl_none"]}, 409, "invalid_state"),
        (f"{id}/discard", {"reason": "first"}, 200, None),
        (f"{id}/discard", {"reason": "second"}, 409, "invalid_state"),
        (f"{id}/retry", {}, 409, "invalid_state"),
    ]
    for path, body, status, code in asked:
        answer = await admin.post(f"/admin/dead-letters/{path}", json=body)
        assert (path, status, code) == (path, answer.status_code, answer.json().get("code"))
    for params in ({"cursor": "x"}, {"since": "yesterday"}, {"status": "LOST"}, {"groupId": "?"}):
        answer = await admin.get("/admin/dead-letters", params=params)
        assert (400, "validation_failed") == (answer.status_code, answer.json()["code"])


async def test_many_are_retried_and_watched(api: Api, admin: httpx2.AsyncClient) -> None:
    """202 with where to look; a consumer does it; a retry that is over cannot be cancelled, one that is not can."""
    for number in range(40, 45):
        await parked(api.store, number=number, error=ValidationFailed("forty"))
    (group,) = [
        each for each in (await admin.get("/admin/dead-letters/groups")).json()["data"] if each["cause"] == "forty"
    ]
    begun = await admin.post("/admin/dead-letters/retries", json={"filter": {"groupId": group["groupId"]}})
    assert (202, 5) == (begun.status_code, begun.json()["data"]["total"])
    redelivery = await api.container.get(Redelivery)
    for _ in range(3):
        await redelivery.turn()
    done = (await admin.get(begun.headers["location"])).json()["data"]
    assert ("DONE", 5, 0) == (done["status"], done["succeeded"], done["left"])
    late = await admin.post(f"{begun.headers['location']}/cancel", json={"reason": "too late"})
    assert (409, "invalid_state") == (late.status_code, late.json()["code"])

    id = await parked(api.store, number=46)
    again = (await admin.post("/admin/dead-letters/retries", json={"ids": [id], "canary": False})).json()["data"]
    stopped = await admin.post(f"/admin/dead-letters/retries/{again['id']}/cancel", json={"reason": "stop"})
    assert ("CANCELLED", 0) == (stopped.json()["data"]["status"], stopped.json()["data"]["left"])
    listed = (await admin.get("/admin/dead-letters/retries")).json()["data"]
    assert [again["id"], done["id"]] == [each["id"] for each in listed]


# -- by command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(store: Store, tmp_path: Path) -> Any:
    """Run ``inventory dead-letters …`` on that store and return (exit code, output)."""
    settings = {"store": f"sqlite:///{tmp_path}/inventory.db", "broker": "memory://", "default_warehouses": "wh_1"}

    async def run(*arguments: str, given: str = "") -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "dead-letters", *arguments), env=environment(**settings), stdin=-1, stdout=-1, stderr=-1
        )
        output, trouble = await process.communicate(given.encode())
        return process.returncode or 0, (output or trouble).decode()

    return run


async def test_the_command_does_what_an_operator_needs(store: Store, command: Any) -> None:
    """List, groups, show, discard, restore, edit and retry, with JSON for scripts and exit codes."""
    first, second = await parked(store), await parked(store, told(2, payload={}), number=2)
    many = [await parked(store, number=number, error=ValidationFailed("many")) for number in range(3, 8)]

    code, listed = await command("list", "--code", "sku_conflict", "--json")
    assert (0, [second, first]) == (code, [letter["id"] for letter in json.loads(listed)])
    code, groups = await command("list", "--groups")
    assert (0, True) == (code, "many" in groups)
    code, shown = await command("show", first)
    assert (0, True) == (code, '"SKU-1"' in shown and "applied already" in shown)
    assert 0 == (await command("discard", second, "--reason", "hopeless"))[0]
    code, refused = await command("discard", second, "--reason", "again")
    assert (1, True) == (code, "was discarded" in refused)
    assert 0 == (await command("restore", second, "--reason", "not quite"))[0]
    code, edited = await command("edit", second, "--body", "-", "--reason", "x", "--json", given=json.dumps(told(2)))
    assert (0, "RESOLVED") == (code, json.loads(edited)["status"])
    code, again = await command("retry", first)
    assert (0, True) == (code, "RESOLVED" in again)
    await parked(store, told(9, eventVersion="x"), number=9, error=ValidationFailed("many"))
    code, retried = await command("retry", "--text", "many", "--json")
    assert (1, 5, 1) == (code, json.loads(retried)["succeeded"], json.loads(retried)["failed"])
    assert {"RESOLVED": 3 + len(many), "UNRESOLVED": 1} == await store.letter_counts()
    assert sorted(f"SKU-{number}" for number in range(1, 8)) == sorted(await items(store))


async def test_the_command_leaves_tries_to_a_process_whose_memory_would_not_hear(
    store: Store, redelivery: Redelivery, command: Any
) -> None:
    """While somebody owns the relay's lease, that process tries; whoever reads there would see the old stock else."""
    ids = [await parked(store, told(1, payload={}))] + [await parked(store, number=n) for n in (2, 3, 4)]
    assert await store.acquire(RELAY, "c1", seconds=60)
    await redelivery.start()
    try:
        code, edited = await command("edit", ids[0], "--body", "-", "--reason", "x", "--json", given=json.dumps(told()))
        assert (0, "RESOLVED") == (code, json.loads(edited)["status"])
        assert 0 == (await command("retry", ids[1]))[0]
        assert 0 == (await command("retry", "--all"))[0]
    finally:
        await redelivery.stop()

    mended = [json.loads(edited)["id"], *ids[1:]]
    letters = [letter for id in mended if (letter := await store.letter(id)) is not None]
    assert [("RESOLVED", "c1")] * 4 == [(letter.status, letter.history[0].process) for letter in letters]
    assert [f"SKU-{number}" for number in range(1, 5)] == sorted(await items(store))


@pytest.mark.services
async def test_the_command_tells_a_shared_cache(store: Store, tmp_path: Path, redis_url: str) -> None:
    """What it changes has a floor there when it ends, so that every process reads anew."""
    settings = {"store": f"sqlite:///{tmp_path}/inventory.db", "cache": redis_url, "default_warehouses": "wh_1"}
    id = await parked(store)
    async with connect("cache", redis_url) as cache, cache.changes() as changes:
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "dead-letters", "retry", id), env=environment(**settings), stdout=-1
        )
        await process.communicate()
        async with asyncio.timeout(10):
            while not (floors := (await anext(changes)).floors):
                pass

    assert 0 == process.returncode
    assert any("prod_1" in key for key in floors)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["retry"], 2, "Name letters, or a filter, or --all."),
        (["list", "--since", "yesterday"], 2, "That is no filter"),
        (["show", "dl_none"], 1, "There is no dead letter dl_none"),
        (["retry", "--all"], 1, "None of these dead letters is unresolved"),
    ],
)
async def test_the_command_says_what_is_wrong(command: Any, arguments: list[str], code: int, sentence: str) -> None:
    """One sentence, and the exit code that goes with it."""
    exit_code, output = await command(*arguments)

    assert (code, True) == (exit_code, sentence in output)


async def test_the_doctor_names_what_waits_for_an_operator(store: Store) -> None:
    """How many, and where to look; what was decided on does not count."""
    assert "ok" == _letters(await store.letter_counts()).verdict
    ids = [await parked(store, number=number) for number in range(3)]
    await store.discard_letter(ids[0], ACT)

    finding = _letters(await store.letter_counts())
    assert ("warning", True) == (finding.verdict, ": 2." in finding.detail)
    assert "dead-letters list --groups" in finding.remedy
