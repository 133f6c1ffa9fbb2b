"""Stock in motion: operations on items, and the ledger they leave."""

from typing import Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import get, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Struct

from core.errors import InventoryError, NotFound
from core.operations import Outcome, StockChange, StockOperation
from core.stock import StockTransaction
from core.writing.writer import Writer
from entrypoints.api.bodies import AnyRequest, Batch, Strict
from entrypoints.api.parameters import (
    ActorFilter,
    Cursor,
    Id,
    Limit,
    ReferenceNumber,
    ReferenceType,
    Since,
    TransactionKind,
    Until,
    instant,
)
from entrypoints.api.problems import Problem, document
from entrypoints.api.replies import Reply, answers, ok, page
from entrypoints.api.writing import perform, submit
from ports.store import LedgerFilter, Store

BATCH_BODY_MAX = 256 * 1024


class BatchResult(Struct, omit_defaults=True):
    """What became of one operation of a batch: ``data`` where it was carried out, ``error`` where it was refused."""

    success: bool
    data: StockChange | None = None
    error: Problem | None = None


class BatchResults(Struct):
    """The outcomes of a batch, in the order of its operations."""

    results: list[BatchResult]


class MovementsPlugin(InitPlugin):
    """Changes stock, and tells how it came to be what it is."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        app_config.route_handlers += [
            DishkaRouter("/stock-operations", route_handlers=[change_stock], tags=["Stock operations"]),
            DishkaRouter("/inventory-items", route_handlers=[list_transactions], tags=["Stock operations"]),
        ]
        return app_config


@post(
    operation_id="changeStock",
    request_max_body_size=BATCH_BODY_MAX,
    responses=answers(StockChange, name="StockChangeSuccess", status=201)
    | answers(BatchResults, name="BatchSuccess", status=200),
)
async def change_stock(request: AnyRequest, data: Strict[StockOperation | Batch], writer: FromDishka[Writer]) -> Reply:
    """Carry out one stock operation (201), or a batch of them, each answered on its own (200)."""
    if not isinstance(data, Batch):
        return ok(await perform(request, writer, data), status=201)
    outcomes = await submit(request, writer, data.operations)
    correlation_id: str = request.scope["state"]["correlation_id"]
    return ok({"results": [_result(outcome, correlation_id) for outcome in outcomes]})


def _result(outcome: Outcome, correlation_id: str) -> dict[str, Any]:
    if isinstance(outcome, InventoryError):
        return {"success": False, "error": document(outcome, correlation_id)}
    return {"success": True, "data": outcome}


@get(
    "/{id:str}/transactions",
    operation_id="listTransactions",
    responses=answers(StockTransaction, name="TransactionList", listed=True),
)
async def list_transactions(
    item_id: Id,
    store: FromDishka[Store],
    type: TransactionKind = None,
    reference_type: ReferenceType = None,
    reference_number: ReferenceNumber = None,
    actor: ActorFilter = None,
    since: Since = None,
    until: Until = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Reply:
    """List an item's ledger, newest first; filters narrow each other. Pages are stable while rows are added."""
    wanted = LedgerFilter(
        type=type,
        reference_type=reference_type,
        reference_number=reference_number,
        actor=actor,
        since=instant(since, "since"),
        until=instant(until, "until"),
    )
    rows = await store.ledger(item_id, filter=wanted, cursor=cursor, limit=limit)
    if not rows.rows and await store.item(item_id) is None:
        raise NotFound(f"There is no inventory item {item_id}.", inventoryItemId=item_id)
    return page(rows)
