"""What every store promises of imports (``ports/imports.py``), asked of each adapter by its URL."""

import asyncio

import pytest
from msgspec.structs import replace
from stores import answers, key, only, stocked

from core.acts import Act
from core.errors import Conflict, NotFound
from core.operations import IdempotencyKey, StoredAnswer
from core.rules.book import Book
from ports.imports import Import, ImportOrder, RowError
from ports.leases import Lease
from ports.store import IMPORTS, Store, Wanted

ALICE = Act(actor="alice")


async def leased(store: Store, owner: str = "us") -> Lease:
    """Return the lease of whoever imports."""
    lease = await store.acquire(IMPORTS, owner, seconds=60)
    assert lease is not None
    return lease


async def queued(store: Store, *parts: bytes, digest: str = "d", **order: bool) -> Import:
    """Return an import with this content, or the one that it repeats."""
    begun = await store.begin_import(ImportOrder(**order), ALICE)
    assert begun.status == "UPLOADING"
    first = await store.open_import()
    assert first is None or first.id != begun.id
    for number, body in enumerate(parts):
        await store.add_part(begun.id, number, body)
    return await store.finish_upload(
        begun.id, digest=digest, size=sum(map(len, parts)), again=order.get("again", False)
    )


async def test_content_is_kept_in_parts_until_the_end(store: Store) -> None:
    """Any bytes; they are gone when the import has ended, and what it came to stays."""
    job = await queued(store, b"\0\xff", b"b")
    assert [await store.import_part(job.id, number) for number in range(3)] == [b"\0\xff", b"b", None]
    assert (job.status, job.bytes, job.actor) == ("QUEUED", 3, "alice")

    lease = await leased(store)
    done = await store.save_import(lease, replace(job, status="DONE", checked=1, done=1))

    assert done is not None and done.ended_at is not None
    assert await store.import_part(job.id, 0) is None
    assert await store.open_import() is None
    assert await store.import_jobs(limit=5) == [done] == [await store.import_job(job.id)]


async def test_the_same_content_is_one_import(store: Store) -> None:
    """Unless it was refused or cancelled, looked at only, or is asked for again."""
    first = await queued(store, b"a")
    assert (await queued(store, b"a")).id == first.id
    assert len(await store.import_jobs(limit=9)) == 1
    assert (await queued(store, b"a", dry_run=True)).id != first.id
    assert (await queued(store, b"a", again=True)).id != first.id

    lease = await leased(store)
    await store.save_import(lease, replace(first, status="REFUSED"))
    second = await queued(store, b"a")
    assert second.id != first.id
    await store.cancel_import(second.id, ALICE)
    assert (await queued(store, b"a")).id not in (first.id, second.id)


async def test_the_same_content_at_once_is_one_import(store: Store) -> None:
    """Of uploads that end in the same moment one is queued, and the others are told of it."""
    uploads = await asyncio.gather(*(store.begin_import(ImportOrder(), ALICE) for _ in range(4)))
    jobs = await asyncio.gather(*(store.finish_upload(job.id, digest="d", size=0, again=False) for job in uploads))

    assert [job.status for job in jobs] == ["QUEUED"] * 4
    assert [job.id for job in await store.import_jobs(limit=9)] == [only({job.id for job in jobs})]


async def test_the_oldest_open_import_comes_first(store: Store) -> None:
    """Lists go the other way, page by page."""
    first, second, third = [await queued(store, b"a", digest=digest) for digest in "abc"]
    assert await store.open_import() == first
    await store.cancel_import(first.id, ALICE)

    assert await store.open_import() == second
    assert [job.id for job in await store.import_jobs(limit=2)] == [third.id, second.id]
    assert [job.id for job in await store.import_jobs(before=second.id, limit=2)] == [first.id]


async def test_errors_are_kept_by_line_and_begin_anew_with_the_check(store: Store) -> None:
    """A line has one; a page goes on behind a line."""
    job, lease = await queued(store, b"a"), await leased(store)
    errors = [RowError(line, "not_found", f"line {line}") for line in (9, 2, 5)]
    await store.save_import(lease, replace(job, status="CHECKING", checked=9, refused=3), errors)
    await store.save_import(lease, replace(job, status="CHECKING", checked=9, refused=3), errors[:1])
    assert [error.line for error in await store.import_errors(job.id, limit=2)] == [2, 5]
    assert await store.import_errors(job.id, after=5, limit=2) == [errors[0]]

    await store.save_import(lease, replace(job, status="CHECKING"))
    assert await store.import_errors(job.id, limit=9) == []


async def test_who_lost_the_lease_or_the_import_changes_nothing(store: Store) -> None:
    """A process that was asleep for too long is told so, and so is one whose import was cancelled."""
    job, old = await queued(store, b"a"), await leased(store)
    await store.release(old)
    new = await leased(store, "them")
    assert await store.save_import(old, replace(job, status="DONE"), [RowError(1, "x", "y")]) is None
    assert await store.import_job(job.id) == job and await store.import_errors(job.id, limit=9) == []

    cancelled = await store.cancel_import(job.id, ALICE)
    assert cancelled.status == "CANCELLED" and cancelled.ended_at is not None
    assert await store.save_import(new, replace(job, status="IMPORTING")) is None
    with pytest.raises(Conflict, match="ended already"):
        await store.cancel_import(job.id, ALICE)
    with pytest.raises(NotFound):
        await store.cancel_import("imp_none", ALICE)


async def test_an_upload_that_breaks_off_leaves_nothing(store: Store) -> None:
    """At once where it is noticed, within a day where nobody lived to notice."""
    noticed = await store.begin_import(ImportOrder(), ALICE)
    await store.add_part(noticed.id, 0, b"a")
    await store.abandon_upload(noticed.id)
    assert await store.import_jobs(limit=9) == [] and await store.import_part(noticed.id, 0) is None


async def test_what_was_queued_is_not_abandoned(store: Store) -> None:
    """Whoever did not hear that it was may say so too late: it is on record, whatever became of it."""
    job = await queued(store, b"a")
    await store.abandon_upload(job.id)
    assert await store.import_job(job.id) == job and await store.import_part(job.id, 0) == b"a"

    begun = await store.save_import(await leased(store), replace(job, status="IMPORTING"))
    await store.abandon_upload(job.id)
    assert await store.import_job(job.id) == begun
    assert (await queued(store, b"a")).id == job.id


async def test_what_an_ended_import_leaves_goes_a_few_rows_at_a_time(store: Store) -> None:
    """And the import with the last of them; one that has not ended stays as it is."""
    job, other = await queued(store, b"a"), await queued(store, b"a", digest="e")
    errors = [RowError(line, "not_found", "") for line in range(1, 6)]
    lease = await leased(store)
    open_one = await store.save_import(lease, replace(other, status="CHECKING", checked=5, refused=5), errors)
    await store.save_import(lease, replace(job, status="REFUSED", checked=5, refused=5), errors)
    left = [await store.import_jobs(limit=9)]
    for went in (2, 2, 2, 0):
        assert await store.purge(answers_hours=48, events_days=30, inbox_days=0, limit=2) == went
        left.append(await store.import_jobs(limit=9))

    assert [len(each) for each in left] == [2, 2, 2, 1, 1]
    assert left[-1] == [open_one]
    assert await store.import_errors(job.id, limit=9) == [] and len(await store.import_errors(other.id, limit=9)) == 5


async def test_the_keys_of_an_open_import_are_not_forgotten(store: Store) -> None:
    """However long it waits: it goes on by them. Those of an ended one, and anybody's else, go in their time."""
    job = await queued(store, b"a")
    mine = IdempotencyKey(IMPORTS, job.id, "line 2", b"")
    async with store.transaction() as transaction:
        book = await transaction.load(set(), Wanted())
        assert isinstance(book, Book)
        assert await transaction.save(book, [StoredAnswer(each, b"[]") for each in (mine, key("other"))])

    async def left() -> set[str]:
        await store.purge(answers_hours=0, events_days=30, inbox_days=90)
        return {answer.key.key for answer in await answers(store, mine, key("other"))}

    assert await left() == {"line 2"}
    await store.cancel_import(job.id, ALICE)
    assert await left() == set()


async def test_items_are_found_by_id_or_sku(store: Store) -> None:
    """Each once; what there is not is left out."""
    one = await stocked(store, sku="A")
    two = await stocked(store, sku="A", warehouse="wh_2")
    other = await stocked(store, sku="B")

    assert {item.id for item in await store.find_items([one.id, "inv_none"], ["A", "none"])} == {one.id, two.id}
    assert await store.find_items([other.id], []) == [other]
    assert await store.find_items([], []) == []
