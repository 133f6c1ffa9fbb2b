"""Expected receipts: what is to come and when, what came of it, and what will not come."""

from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import get, patch, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Struct

from core.errors import NotFound
from core.fields import Text
from core.operations import AmendExpected, CancelExpected, Expect, ExpectedPatch, ReceiveBody, ReceiveExpected
from core.stock import ExpectedReceipt
from core.writing.writer import Writer
from entrypoints.api.bodies import AnyRequest, Strict
from entrypoints.api.headers import if_match
from entrypoints.api.parameters import (
    Cursor,
    Id,
    ItemFilter,
    Limit,
    OverdueFilter,
    ProductFilter,
    ReceiptState,
    ReferenceNumber,
    ReferenceType,
    SkuFilter,
    WarehouseFilter,
)
from entrypoints.api.replies import Reply, answers, ok, page
from entrypoints.api.writing import perform
from ports.store import ReceiptFilter, Store

_ANSWER = answers(ExpectedReceipt, name="ExpectedReceiptSuccess")


class CancelBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Why nothing more will come."""

    reason: Text | None = None


class ReceiptsPlugin(InitPlugin):
    """The life of an expected receipt."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        handlers = [expect, list_receipts, get_receipt, amend, receive, cancel]
        router = DishkaRouter("/expected-receipts", route_handlers=handlers, tags=["Expected receipts"])
        app_config.route_handlers.append(router)
        return app_config


@post(
    operation_id="createExpectedReceipt",
    responses=answers(ExpectedReceipt, name="ExpectedReceiptCreated", status=201),
)
async def expect(request: AnyRequest, data: Strict[Expect], writer: FromDishka[Writer]) -> Reply:
    """Put on record that units are to come. The item is named by its id, or by `sku` and `warehouseId`."""
    receipt: ExpectedReceipt = await perform(request, writer, data)
    return _told(receipt, status=201, location=f"/expected-receipts/{receipt.id}")


@get(operation_id="listExpectedReceipts", responses=answers(ExpectedReceipt, name="ExpectedReceiptList", listed=True))
async def list_receipts(
    store: FromDishka[Store],
    *,
    product_id: ProductFilter = None,
    sku: SkuFilter = None,
    warehouse_id: WarehouseFilter = None,
    item_id: ItemFilter = None,
    status: ReceiptState = None,
    reference_type: ReferenceType = None,
    reference_number: ReferenceNumber = None,
    overdue: OverdueFilter = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Reply:
    """List expected receipts in order of creation; filters narrow each other."""
    wanted = ReceiptFilter(
        product_id=product_id,
        sku=sku,
        warehouse_id=warehouse_id,
        inventory_item_id=item_id,
        status=status,
        reference_type=reference_type,
        reference_number=reference_number,
        overdue=overdue,
    )
    return page(await store.expected_receipts(wanted, cursor=cursor, limit=limit))


@get("/{id:str}", operation_id="getExpectedReceipt", responses=_ANSWER)
async def get_receipt(receipt_id: Id, store: FromDishka[Store]) -> Reply:
    """Return an expected receipt. Its ETag is its version, for If-Match; it becomes overdue without a new one."""
    receipt = await store.expected_receipt(receipt_id)
    if receipt is None:
        raise NotFound(f"There is no expected receipt {receipt_id}.", expectedReceiptId=receipt_id)
    return _told(receipt)


@patch("/{id:str}", operation_id="updateExpectedReceipt", responses=_ANSWER)
async def amend(request: AnyRequest, receipt_id: Id, data: Strict[ExpectedPatch], writer: FromDishka[Writer]) -> Reply:
    """Amend what is still expected; what is left out stays. With If-Match, only the version named.

    A quantity that has come already completes it.
    """
    change = AmendExpected(receipt_id=receipt_id, patch=data, if_match=if_match(request.scope))
    return _told(await perform(request, writer, change))


@post("/{id:str}/receive", operation_id="receiveExpectedReceipt", status_code=200, responses=_ANSWER)
async def receive(request: AnyRequest, receipt_id: Id, data: Strict[ReceiveBody], writer: FromDishka[Writer]) -> Reply:
    """Record what came, less or more than expected: a RECEIPT in the ledger. With `close`, no more will come.

    What came beyond or short of the quantity stays on record as `discrepancy`.
    """
    return _told(await perform(request, writer, ReceiveExpected(receipt_id=receipt_id, body=data)))


@post("/{id:str}/cancel", operation_id="cancelExpectedReceipt", status_code=200, responses=_ANSWER)
async def cancel(
    request: AnyRequest, receipt_id: Id, writer: FromDishka[Writer], data: Strict[CancelBody | None] = None
) -> Reply:
    """Say that nothing (more) will come; an ended one stays as it is. The body may be left out.

    One of which something has come is RECEIVED then, short of what was expected.
    """
    reason = data.reason if data is not None else None
    return _told(await perform(request, writer, CancelExpected(receipt_id=receipt_id, reason=reason)))


def _told(receipt: ExpectedReceipt, **words: Any) -> Reply:
    return ok(receipt, version=receipt.version, **words)
