"""What every store promises of dead letters (``ports/dead_letters.py``), asked of each adapter by its URL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stores import dead_letters, empty, migrated, only

from adapters.registry import connect
from core.acts import Act
from core.errors import Conflict, NotFound
from ports.broker import Message
from ports.dead_letters import BODY_SHOWN_BYTES, Claimed, DeadLetter, LetterFilter, Settlement
from ports.store import Store

ANY = LetterFilter()
ALICE = Act(actor="alice", reason="it is mended", correlation_id="corr-a")
BOB = Act(actor="bob", reason="so be it")
AT_ONCE: dict[str, Any] = {"limit": 100, "bytes_max": 10_000, "seconds": 60.0}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """An empty database of each kind with two stores open on it, as two processes would have."""
    server = request.param == "postgresql"
    url = request.getfixturevalue("database") if server else f"sqlite:///{tmp_path}/inventory.db"
    async with migrated(url) as store, connect("store", url) as other:
        if server:
            await empty(url)
        yield store, other


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    """One of the two."""
    return stores[0]


def failed(number: int = 1, **words: Any) -> DeadLetter:
    """Return the failure of a message of this number."""
    message = {"id": f"evt-{number}", "exchange": "product.events", "routing_key": "product.productcreated.product"}
    body = words.pop("body", b'{"eventId": "evt"}')
    fields = {
        "fingerprint": f"f-{number}",
        "message": Message(**message, body=body, type="ProductCreated", correlation_id=f"corr-{number}"),
        "code": "sku_conflict",
        "detail": f"SKU-{number} is in use.",
        "stack": "Traceback",
        "attempts": 1,
        "cause": "… is in use.",
        "event_id": f"event-{number}",
        "product_id": f"prod_{number}",
        "skus": (f"SKU-{number}", "a%b"),
        "process": "consumer-1",
    }
    return DeadLetter(**fields | words)


async def parked(store: Store, *letters: DeadLetter) -> list[str]:
    """Park these and return their ids."""
    ids = []
    for letter in letters:
        await store.park(letter)
        ids.append(only(await store.letters(LetterFilter(id=letter.message.id), limit=2)).id)
    return ids


def settled(claimed: Claimed, again: DeadLetter | None = None) -> Settlement:
    """Return that a letter was applied, or failed again."""
    return Settlement(claimed=claimed, outcome="APPLIED" if again is None else again.code, letter=again)


# -- looking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {"status": "UNRESOLVED", "sku": "SKU-2"},
        {"id": "evt-2"},
        {"id": "event-2"},
        {"correlation_id": "corr-2"},
        {"type": "ProductCreated", "product_id": "prod_2"},
        {"code": "validation_failed"},
        {"text": "such a"},
        {"sku": "SKU-2"},
        {"group_id": failed(2, code="validation_failed", cause="no such").group_id},
    ],
    ids=str,
)
async def test_letters_are_found_by_any_of_their_words(store: Store, words: dict[str, Any]) -> None:
    """One of three, by each filter; what is compared is compared to the letter."""
    await parked(store, failed(1), failed(2, code="validation_failed", detail="no such a%", cause="no such"), failed(3))

    found = await store.letters(LetterFilter(**words), limit=10)
    assert ["evt-2"] == [letter.message_id for letter in found]
    for near in ({"text": "SUCH A"}, {"text": "such_a"}, {"sku": "sku-2"}, {"sku": "SKU-"}, {"status": "DISCARDED"}):
        assert [] == await store.letters(LetterFilter(**near), limit=10)


async def test_letters_are_found_by_the_time_they_failed(store: Store) -> None:
    """From an instant on, and before one."""
    await parked(store, failed(1))
    at = only(await store.letters(ANY, limit=10)).last_failed_at

    def bounds(**words: datetime) -> LetterFilter:
        return LetterFilter(**words)

    assert 1 == len(await store.letters(bounds(since=at, until=at + timedelta(microseconds=1)), limit=10))
    assert [] == await store.letters(bounds(until=at), limit=10)
    assert [] == await store.letters(bounds(since=at + timedelta(microseconds=1)), limit=10)


async def test_pages_of_letters_are_stable_while_letters_come(store: Store) -> None:
    """Newest first; what comes meanwhile is on no later page."""
    ids = await parked(store, *(failed(number) for number in range(5)))
    first = await store.letters(ANY, limit=2)
    await parked(store, failed(9))
    rest = await store.letters(ANY, after=first[-1].id, limit=10)

    assert ids[::-1] == [letter.id for letter in first + rest]


async def test_letters_that_failed_alike_are_a_group(store: Store) -> None:
    """However many, with the first and the last failure and one to look at."""
    await parked(store, *(failed(number) for number in range(3)), failed(7, code="internal", cause="bang"))
    letters = await store.letters(ANY, limit=10)

    alike, alone = await store.letter_groups(ANY, limit=10)
    assert (3, "sku_conflict", "… is in use.") == (alike.count, alike.code, alike.cause)
    assert (alike.first_failed_at, alike.last_failed_at) == (letters[-1].first_failed_at, letters[1].last_failed_at)
    assert (1, letters[0].id) == (alone.count, alone.example_id)
    assert [alike] == await store.letter_groups(ANY, limit=1)
    assert {"UNRESOLVED": 4} == await store.letter_counts()


async def test_a_letter_tells_all(store: Store) -> None:
    """Body, headers, stack, every attempt; a body that is no text is base64, a long one is cut between characters."""
    (id,) = await parked(store, failed(1))
    await store.park(failed(1, attempts=2, detail="again"))
    text, binary = await parked(store, failed(2, body="ä".encode() * BODY_SHOWN_BYTES), failed(3, body=b"\xff\x00"))

    letter = await store.letter(id)
    assert letter is not None
    assert ("utf-8", '{"eventId": "evt"}', 18, "Traceback", "product.events") == (
        letter.body_encoding,
        letter.body,
        letter.body_bytes,
        letter.stack,
        letter.exchange,
    )
    assert [(3, "again"), (1, "SKU-1 is in use.")] == [(each.number, each.detail) for each in letter.history]
    assert {"consumer-1"} == {each.process for each in letter.history}
    assert letter.applied is None
    cut, coded = await store.letter(text), await store.letter(binary)
    assert cut is not None
    assert coded is not None
    assert ("utf-8", "ä" * (BODY_SHOWN_BYTES // 2), 2 * BODY_SHOWN_BYTES) == (
        cut.body_encoding,
        cut.body,
        cut.body_bytes,
    )
    assert ("base64", "/wA=") == (coded.body_encoding, coded.body)
    assert await store.letter("dl_none") is None


# -- deciding ---------------------------------------------------------------------------------------------------------


async def test_a_decision_is_on_record_and_can_be_taken_back(store: Store) -> None:
    """Discarded with a reason, restored with another, noted; each says who, when and why."""
    (id,) = await parked(store, failed(1))
    assert "DISCARDED" == (await store.discard_letter(id, ALICE)).status
    await store.park(failed(1))
    assert "DISCARDED" == only(await store.letters(ANY, limit=2)).status
    assert "UNRESOLVED" == (await store.restore_letter(id, BOB)).status
    assert "look here" == (await store.note_letter(id, "look here", ALICE)).note

    letter = await store.letter(id)
    assert letter is not None
    assert [
        ("dead-letter.note", "alice", "it is mended", "corr-a"),
        ("dead-letter.restore", "bob", "so be it", None),
        ("dead-letter.discard", "alice", "it is mended", "corr-a"),
    ] == [(act.action, act.actor, act.reason, act.correlation_id) for act in letter.acts]
    assert all(abs((act.at - datetime.now(UTC)).total_seconds()) < 60 for act in letter.acts)


async def test_what_cannot_be_decided_is_refused_and_leaves_no_record(store: Store) -> None:
    """A letter that does not exist, one that is not discarded, one that was discarded by somebody who was faster."""
    (id,) = await parked(store, failed(1))
    for step in (store.discard_letter, store.restore_letter):
        with pytest.raises(NotFound, match="dl_none"):
            await step("dl_none", ALICE)
    with pytest.raises(Conflict, match="waits for a decision"):
        await store.restore_letter(id, ALICE)
    await store.discard_letter(id, ALICE)
    for step in (store.discard_letter, claims(store)):
        with pytest.raises(Conflict, match="was discarded"):
            await step(id, BOB)

    letter = await store.letter(id)
    assert letter is not None
    assert ["dead-letter.discard"] == [act.action for act in letter.acts]


def claims(store: Store) -> Any:
    """Return how a letter is claimed, with the arguments of a decision."""

    async def claim(id: str, act: Act) -> Claimed:
        return await store.claim_letter(id, f"claim of {act.actor}", act, seconds=60)

    return claim


async def test_of_many_who_act_on_a_letter_one_wins(stores: tuple[Store, Store]) -> None:
    """Fault F31: whatever they want to do; one act is on record."""
    (id,) = await parked(stores[0], failed(1))
    steps = [step for store in stores for step in (store.discard_letter, claims(store))] * 3
    acts = (Act(actor=f"operator {number}") for number in range(len(steps)))

    outcomes = await asyncio.gather(*map(lambda step, act: step(id, act), steps, acts), return_exceptions=True)

    assert [Conflict] * (len(steps) - 1) == [type(each) for each in outcomes if isinstance(each, Exception)]
    letter = await stores[1].letter(id)
    assert letter is not None
    assert 1 == len(letter.acts)


async def test_what_has_ended_is_dropped_in_the_end(store: Store) -> None:
    """Discarded letters go with the inbox rows of their time; those that wait for somebody stay."""
    ids = await parked(store, failed(1), failed(2))
    await store.discard_letter(ids[0], ALICE)

    assert 0 == await store.purge(answers_hours=1, events_days=1, inbox_days=1)
    assert 2 == await store.purge(answers_hours=1, events_days=1, inbox_days=0)
    assert [ids[1]] == [letter.id for letter in await store.letters(ANY, limit=10)]


# -- trying again -----------------------------------------------------------------------------------------------------


async def test_a_claimed_letter_is_settled_by_who_has_it(stores: tuple[Store, Store]) -> None:
    """Applied it is resolved; what another claim says of it counts for nothing."""
    store, other = stores
    (id,) = await parked(store, failed(1))
    claimed = await store.claim_letter(id, "mine", ALICE, seconds=60)
    assert (id, b'{"eventId": "evt"}', 2, 0) == (claimed.id, claimed.message.body, claimed.attempts, claimed.lapses)

    assert 0 == await other.settle_letters("theirs", "c2", [settled(claimed, failed(1))])
    assert 1 == await store.settle_letters("mine", "c1", [settled(claimed)])
    assert 0 == await store.settle_letters("mine", "c1", [settled(claimed)])
    letter = await store.letter(id)
    assert letter is not None
    assert ("RESOLVED", 2, None) == (letter.status, letter.attempts, letter.next_attempt_at)
    assert [("APPLIED", "c1"), ("sku_conflict", "consumer-1")] == [
        (each.outcome, each.process) for each in letter.history
    ]


async def test_a_letter_that_fails_again_has_its_new_cause(store: Store) -> None:
    """It waits for an operator, or for its next attempt, as was said."""
    ids = await parked(store, failed(1), failed(2))
    for id, seconds in zip(ids, (None, 60.0), strict=True):
        claimed = await store.claim_letter(id, "mine", ALICE, seconds=60)
        again = failed(code="internal", detail="bang\x00", cause="b", retry_seconds=seconds)
        await store.settle_letters("mine", "c1", [settled(claimed, again)])

    waiting, unresolved = await store.letters(ANY, limit=2)
    assert ("UNRESOLVED", None, "internal", again.group_id) == (
        unresolved.status,
        unresolved.next_attempt_at,
        unresolved.code,
        unresolved.group_id,
    )
    assert waiting.next_attempt_at is not None
    assert ("WAITING", 60) == (
        waiting.status,
        round((waiting.next_attempt_at - waiting.last_failed_at).total_seconds()),
    )


async def test_what_is_due_is_taken_once(stores: tuple[Store, Store]) -> None:
    """By whoever is first, the attempt counted before it is made; what is not due yet, or unresolved, stays."""
    now = [failed(number, retry_seconds=-1.0) for number in range(20)]
    await parked(stores[0], *now, failed(50, retry_seconds=60.0), failed(51))

    takes = (each.claim_due(f"claim {n}", limit=7, bytes_max=10_000, seconds=60) for n, each in enumerate(stores * 3))
    taken = [letter for share in await asyncio.gather(*takes) for letter in share]
    taken += await stores[0].claim_due("last", **AT_ONCE)

    assert sorted(letter.message.id for letter in now) == sorted(claimed.message.id for claimed in taken)
    assert {2} == {claimed.attempts for claimed in taken}
    assert [] == await stores[0].claim_due("after", **AT_ONCE)


async def test_what_is_taken_at_once_is_bounded_in_bytes(store: Store) -> None:
    """One body that is larger than all may be comes alone."""
    await parked(store, *(failed(number, body=b"x" * 600, retry_seconds=-1.0) for number in range(5)))

    taken = [await store.claim_due(f"c{size}", limit=9, bytes_max=size, seconds=60) for size in (100, 1_300, 9_000)]
    assert [1, 2, 2] == [len(letters) for letters in taken]


async def test_a_claim_that_lapses_is_taken_again_alone(store: Store) -> None:
    """Whoever had it may have died of it: it comes after the others, by itself, and its lapses are counted."""
    await parked(store, *(failed(number, retry_seconds=-1.0) for number in range(3)))
    lost = await store.claim_due("dead", limit=2, bytes_max=10_000, seconds=-1)
    fresh = await store.claim_due("c1", **AT_ONCE)
    alone = [await store.claim_due(f"c{number}", **AT_ONCE) for number in (2, 3)]

    assert ([0, 0], [0]) == ([each.lapses for each in lost], [each.lapses for each in fresh])
    assert [(each.id, 1, 3) for each in lost] == [(each.id, each.lapses, each.attempts) for (each,) in alone]
    assert 0 == await store.settle_letters("dead", "c9", [settled(each) for each in lost])
    assert 1 == await store.settle_letters("c2", "c9", [settled(each) for each in alone[0]])


async def test_what_is_given_back_is_due_at_once_and_has_not_lapsed(stores: tuple[Store, Store]) -> None:
    """Whoever ends in order gives back what is in hand and its own, and no attempt is counted for it."""
    await parked(stores[0], *(failed(number, retry_seconds=-1.0) for number in range(3)))
    taken = await stores[0].claim_due("mine", limit=2, bytes_max=10_000, seconds=60)
    await stores[1].claim_due("theirs", **AT_ONCE)
    await stores[0].settle_letters("mine", "c1", [settled(taken[0])])

    assert [1, 0] == [await stores[0].give_back_letters("mine") for _ in range(2)]
    again = only(await stores[1].claim_due("last", **AT_ONCE))
    assert (taken[1].id, taken[1].attempts, 0) == (again.id, again.attempts, again.lapses)


async def test_an_edited_letter_takes_the_place_of_the_original(store: Store) -> None:
    """Both are linked, the difference is on record; a message that is a letter already is not made one again."""
    first, second = await parked(store, failed(1), failed(2))

    claimed = await store.replace_letter(first, failed(3, body=b"{}"), "mine", ALICE, difference="-a\n+b", seconds=60)
    old, new = await store.letter(first), await store.letter(claimed.id)
    assert old is not None
    assert new is not None
    assert ("RESOLVED", new.id, None) == (old.status, old.replaced_by, old.edited_from)
    assert ("RETRYING", first, "{}", 1) == (new.status, new.edited_from, new.body, new.attempts)
    assert {"replacedBy": new.id, "difference": "-a\n+b"} == only(old.acts).details
    with pytest.raises(Conflict, match="of its own already"):
        await store.replace_letter(second, failed(3), "mine", BOB, difference="", seconds=60)
    kept = await store.letter(second)
    assert kept is not None
    assert ("UNRESOLVED", ()) == (kept.status, kept.acts)


# -- many together ----------------------------------------------------------------------------------------------------


async def tried(store: Store, again: DeadLetter | None = None) -> int:
    """Settle all that is due, and return how many that was."""
    claimed = await store.claim_due("mine", **AT_ONCE)
    await store.settle_letters("mine", "c1", [settled(each, again) for each in claimed])
    await store.advance_retries()
    return len(claimed)


async def test_a_canary_goes_first(store: Store) -> None:
    """The others follow when it has succeeded; how far it is can be seen all the time."""
    ids = await parked(store, *(failed(number) for number in range(5)), failed(9, code="internal"))
    await store.discard_letter(ids[4], BOB)

    retry = await store.begin_retry(LetterFilter(code="sku_conflict"), ALICE, canary=True)
    assert ("CANARY", 4, 4, ids[0], "alice") == (retry.status, retry.total, retry.left, retry.canary_id, retry.actor)
    await store.advance_retries()
    assert 1 == await tried(store)
    followed = await store.retry(retry.id)
    assert followed is not None
    assert ("RUNNING", 1, 3) == (followed.status, followed.succeeded, followed.left)
    assert 3 == await tried(store)
    (done,) = await store.retries(limit=10)
    assert ("DONE", 4, 0, 0) == (done.status, done.succeeded, done.failed, done.left)
    assert done.ended_at is not None
    assert {"RESOLVED": 4, "DISCARDED": 1, "UNRESOLVED": 1} == await store.letter_counts()
    canary = await store.letter(ids[0])
    assert canary is not None
    assert {"filter": {"code": "sku_conflict"}, "total": 4} == only(canary.acts).details


async def test_a_canary_that_fails_stops_the_rest(store: Store) -> None:
    """They are as they were."""
    ids = await parked(store, *(failed(number) for number in range(3)))
    retry = await store.begin_retry(ids[1:], ALICE, canary=True)
    assert 1 == await tried(store, failed(1))

    stopped = await store.retry(retry.id)
    assert stopped is not None
    assert ("STOPPED", 0, 1, 0) == (stopped.status, stopped.succeeded, stopped.failed, stopped.left)
    assert {"UNRESOLVED": 3} == await store.letter_counts()
    assert [1, 2, 1] == [letter.attempts for letter in await dead_letters_by_id(store)]


async def dead_letters_by_id(store: Store) -> list[Any]:
    """Return the letters, oldest first."""
    return (await store.letters(ANY, limit=100))[::-1]


async def test_a_retry_can_be_cancelled(store: Store) -> None:
    """What is in hand is finished and counted, the rest goes back; cancelling twice is refused."""
    ids = await parked(store, *(failed(number) for number in range(4)))
    retry = await store.begin_retry(ids, ALICE, canary=False)
    assert "RUNNING" == retry.status
    claimed = await store.claim_due("mine", limit=1, bytes_max=9_999, seconds=60)
    cancelled = await store.cancel_retry(retry.id, BOB)
    assert ("CANCELLED", 1) == (cancelled.status, cancelled.left)
    await store.settle_letters("mine", "c1", [settled(each) for each in claimed])

    after = await store.retry(retry.id)
    assert after is not None
    assert (1, 0) == (after.succeeded, after.left)
    assert {"RESOLVED": 1, "UNRESOLVED": 3} == await store.letter_counts()
    with pytest.raises(Conflict, match="CANCELLED"):
        await store.cancel_retry(retry.id, BOB)
    with pytest.raises(NotFound):
        await store.cancel_retry("rty_none", BOB)


async def test_two_retries_of_the_same_letters_share_none(stores: tuple[Store, Store]) -> None:
    """Fault F31: every letter belongs to one of them; who comes too late for all is told so."""
    await parked(stores[0], *(failed(number) for number in range(20)))

    begun = await asyncio.gather(
        *(store.begin_retry(ANY, act, canary=False) for store, act in zip(stores * 2, (ALICE, BOB) * 2, strict=True)),
        return_exceptions=True,
    )
    totals = [retry.total for retry in begun if not isinstance(retry, BaseException)]
    assert 20 == sum(totals)
    assert all(isinstance(each, Conflict) for each in begun if isinstance(each, BaseException))
    with pytest.raises(Conflict, match="None of these"):
        await stores[1].begin_retry(ANY, BOB, canary=True)


async def test_a_retry_takes_no_more_than_it_may(store: Store) -> None:
    """The oldest first; the rest can be retried next."""
    ids = await parked(store, *(failed(number) for number in range(3)))
    retry = await store.begin_retry(ANY, ALICE, canary=False, limit=2)

    assert 2 == retry.total
    assert ids[2:] == [letter.id for letter in await store.letters(LetterFilter(status="UNRESOLVED"), limit=9)]


async def test_what_waits_for_itself_waits_for_an_operator_once_it_fails_for_good(store: Store) -> None:
    """A message that is delivered again and can never be applied is not tried on."""
    await store.park(failed(1, retry_seconds=60.0))
    await store.park(failed(1, code="validation_failed"))

    letter = only(await store.letters(ANY, limit=2))
    assert ("UNRESOLVED", None, "validation_failed", 2) == (
        letter.status,
        letter.next_attempt_at,
        letter.code,
        letter.attempts,
    )
    assert b'{"eventId": "evt"}' == only(await dead_letters(store)).message.body


async def test_a_letter_on_the_wire_is_in_camel_case(store: Store) -> None:
    """What is listed is what the API sends."""
    await parked(store, failed(1))
    wire = msgspec.to_builtins(only(await store.letters(ANY, limit=1)))

    assert {"messageId", "eventId", "groupId", "firstFailedAt", "nextAttemptAt", "productId"} <= wire.keys()


async def test_deliveries_of_a_message_are_counted_until_it_is_dealt_with(stores: tuple[Store, Store]) -> None:
    """By all processes together; what nobody asks for any more is dropped in the end."""
    counts = await asyncio.gather(*(store.count_delivery("f-1") for store in stores * 3))
    assert [1, 2, 3, 4, 5, 6] == sorted(counts)
    assert 1 == await stores[0].count_delivery("f-2")

    await stores[0].forget_deliveries("f-1")
    assert 1 == await stores[1].count_delivery("f-1")
    assert 2 == await stores[0].purge(answers_hours=1, events_days=1, inbox_days=0)
