"""What every store promises of expected receipts (``ports/store.py``), asked of each adapter by its URL."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from stores import batch, carry_out, only, stocked

from core.errors import ValidationFailed
from core.operations import (
    AmendExpected,
    CancelExpected,
    Expect,
    ExpectedPatch,
    Operation,
    ReceiveBody,
    ReceiveExpected,
    Ship,
)
from core.rules.book import Cause
from core.rules.decisions import decide
from core.stock import ExpectedReceipt, Item, Supply
from ports.store import ItemFilter, ReceiptFilter, Store

DAY = timedelta(days=1)


def later(days: float) -> datetime:
    """So many days from now."""
    return datetime.now(UTC) + days * DAY


async def step(store: Store, operation: Operation, *receipts: str, product: str = "prod_1") -> ExpectedReceipt:
    """Decide an operation on expected receipts and commit it."""
    async with batch(store, product, whole_products={product}, receipt_ids={*receipts}) as (transaction, book):
        result = decide(book, operation, Cause("clerk"))
        assert await transaction.save(book, [])
    assert isinstance(result, ExpectedReceipt)
    return result


async def expected(store: Store, item: Item, days: float = 1, quantity: int = 40, **fields: Any) -> ExpectedReceipt:
    """Put an expected receipt of so many days from now on record."""
    operation = Expect(inventory_item_id=item.id, quantity=quantity, expected_at=later(days), **fields)
    return await step(store, operation, product=item.product_id)


async def test_what_is_expected_is_kept_to_the_last_field(store: Store) -> None:
    """What is read is what was answered, through all of its life."""
    item = await stocked(store, 5)
    receipt = await expected(store, item, reference_type="PURCHASE_ORDER", reference_number="PO-1", reason="Reorder")
    assert await store.expected_receipt(receipt.id) == receipt

    amend = AmendExpected(receipt_id=receipt.id, patch=ExpectedPatch(quantity=50, reason=None), if_match=1)
    amended = await step(store, amend, receipt.id)
    assert await store.expected_receipt(receipt.id) == amended

    receive = ReceiveExpected(receipt_id=receipt.id, body=ReceiveBody(quantity=30))
    received = await step(store, receive, receipt.id)
    assert await store.expected_receipt(receipt.id) == received
    assert (received.status, received.version, received.outstanding_quantity) == ("PARTIALLY_RECEIVED", 3, 20)

    short = await step(store, CancelExpected(receipt_id=receipt.id), receipt.id)
    assert await store.expected_receipt(receipt.id) == short
    assert (short.status, short.discrepancy) == ("RECEIVED", -20)
    newest = (await store.ledger(item.id, cursor=None, limit=1)).rows[0]
    assert (newest.type, newest.on_hand_change, newest.expected_receipt_id) == ("RECEIPT", 30, receipt.id)
    assert await store.expected_receipt("exp_NOBODY") is None


async def test_expected_receipts_resolve_to_their_products(store: Store) -> None:
    """Beside items; unknown ids are left out."""
    item = await stocked(store, product="prod_1")
    receipt = await expected(store, item)
    async with store.transaction() as transaction:
        found = await transaction.resolve([item.id], [], [receipt.id, "exp_NOBODY"])
    assert dict(found) == {item.id: {"prod_1"}, receipt.id: {"prod_1"}}


async def test_a_batch_finds_what_its_products_expect(store: Store) -> None:
    """Open receipts and their items come with the lock on their product; ended ones when they are named."""
    item, south = await stocked(store, 5), await stocked(store, 0, warehouse="wh_2")
    other = await stocked(store, 5, product="prod_2", sku="OTHER")
    near, far = await expected(store, item, 1), await expected(store, south, 2)
    ended = await step(store, CancelExpected(receipt_id=(await expected(store, item, 3)).id))
    await expected(store, other, 4)

    async with batch(store, "prod_1") as (transaction, book):
        assert book.products["prod_1"].total_expected == 80
        assert book.receipts == {near.id: near, far.id: far}
        assert book.items.keys() == {item.id, south.id}
        assert book.restock_expected("prod_1") == near.expected_at
        await transaction.rollback()
    async with batch(store, "prod_1", receipt_ids={ended.id}) as (transaction, book):
        assert book.receipts.keys() == {near.id, far.id, ended.id}
        await transaction.rollback()


async def test_of_two_batches_that_amend_one_version_the_second_does_it_again(store: Store) -> None:
    """A row that is not as it was loaded is not overwritten."""
    item = await stocked(store, 5)
    receipt = await expected(store, item)
    async with batch(store, "prod_1") as (transaction, book):
        decide(book, AmendExpected(receipt_id=receipt.id, patch=ExpectedPatch(quantity=50)), Cause("clerk"))
        book.loaded[receipt.id] = replace(receipt, version=7)
        assert not await transaction.save(book, [])
        await transaction.rollback()
    assert await store.expected_receipt(receipt.id) == receipt


async def test_readers_see_what_is_still_to_come(store: Store) -> None:
    """One snapshot holds a product, each of its items once, and its open receipts; of a SKU likewise."""
    item, south = await stocked(store, 5), await stocked(store, 7, warehouse="wh_2")
    blue = await stocked(store, 1, sku="BLUE")
    await stocked(store, 1, product="prod_2", sku="OTHER")
    first, second = await expected(store, item, 2), await expected(store, item, 1)
    of_blue = await expected(store, blue, 3, quantity=5)
    await step(store, CancelExpected(receipt_id=(await expected(store, south)).id))

    found = await store.products(["prod_1", "prod_2", "prod_3"])

    assert found.keys() == {"prod_1", "prod_2"}
    stock = found["prod_1"]
    assert [each.id for each in stock.items] == sorted((item.id, south.id, blue.id))
    assert (stock.product.total_available, stock.product.total_expected, stock.product.revision) == (13, 85, 8)
    of_item = {Supply(item.id, 40, first.expected_at), Supply(item.id, 40, second.expected_at)}
    assert {*stock.supplies} == of_item | {Supply(blue.id, 5, of_blue.expected_at)}
    assert (len(found["prod_2"].items), found["prod_2"].supplies) == (1, ())


async def test_filters_narrow_the_list(store: Store) -> None:
    """Each filter, and those of the item behind it."""
    item, south = await stocked(store, 5), await stocked(store, 5, warehouse="wh_2")
    other = await stocked(store, 5, product="prod_2", sku="OTHER")
    late = await expected(store, item, -1, reference_type="PURCHASE_ORDER", reference_number="PO-1")
    soon = await expected(store, south, 1, reference_number="PO-1")
    ended = await step(store, CancelExpected(receipt_id=(await expected(store, item, -2)).id))
    of_other = await expected(store, other, 1)
    everything = [late, soon, ended, of_other]
    for words, wanted in (
        ({}, everything),
        ({"product_id": "prod_1"}, [late, soon, ended]),
        ({"sku": "OTHER"}, [of_other]),
        ({"warehouse_id": "wh_2"}, [soon]),
        ({"inventory_item_id": item.id}, [late, ended]),
        ({"status": "EXPECTED"}, [late, soon, of_other]),
        ({"reference_number": "PO-1"}, [late, soon]),
        ({"reference_type": "PURCHASE_ORDER", "reference_number": "PO-1"}, [late]),
        ({"overdue": True}, [late]),
        ({"overdue": False}, [soon, ended, of_other]),
        ({"overdue": False, "product_id": "prod_1", "status": "EXPECTED"}, [soon]),
        ({"sku": "NOTHING"}, []),
    ):
        page = await store.expected_receipts(ReceiptFilter(**words), cursor=None, limit=10)  # type: ignore[arg-type]
        assert (words, list(page.rows), page.next_cursor) == (words, wanted, None)
    assert [each.is_overdue for each in everything] == [True, False, False, False]


async def test_pages_follow_one_another(store: Store) -> None:
    """In order of creation, none left out and none twice; another list's cursor is refused."""
    item = await stocked(store, 5)
    receipts = [await expected(store, item, days) for days in (3, 2, 1)]
    seen, cursor = [], None
    while True:
        page = await store.expected_receipts(ReceiptFilter(), cursor=cursor, limit=2)
        seen += page.rows
        if (cursor := page.next_cursor) is None:
            break
    assert seen == receipts
    of_items = (await store.items(ItemFilter(), cursor=None, limit=1)).next_cursor
    for cursor in ("", "x", of_items or "aXRlbTphAGI"):
        with pytest.raises(ValidationFailed):
            await store.expected_receipts(ReceiptFilter(), cursor=cursor, limit=1)


async def test_out_of_stock_is_kept_with_its_date(store: Store) -> None:
    """A batch that sells the last unit knows when more is expected."""
    item = await stocked(store, 5)
    receipt = await expected(store, item)
    await carry_out(store, Ship(inventory_item_id=item.id, quantity=5))
    bodies = [row.body for row in await store.pending(10) if row.event_type == "OutOfStock"]
    date = receipt.expected_at.isoformat().replace("+00:00", "Z")
    assert f'"restockExpected":"{date}"'.encode() in only(bodies)
