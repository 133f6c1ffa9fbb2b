"""Examples for the OpenAPI document: what is asked and told of dead letters, the outbox and imports."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import asdict

from core.acts import ActRecord
from core.findings import Finding, Repair, Run, Tally
from entrypoints.api.outbox import OutboxState
from entrypoints.api.reconciliation import RunReport
from ports.dead_letters import Attempt, Letter, LetterDetail, LetterGroup, Retry
from ports.imports import Import, RowError
from ports.replays import BlockedEvent, Replay

BODIES: dict[str, dict[str, dict[str, Any]]] = {
    "retryDeadLetter": {"the cause is gone": {"reason": "SKU released by the other product"}},
    "editDeadLetter": {
        "correct the SKU": {
            "body": {
                "eventId": "evt_01FXYZ",
                "eventType": "ProductCreated",
                "eventVersion": "1.0.0",
                "timestamp": "2026-11-20T12:00:00Z",
                "payload": {"productId": "prod_01FXYZ789ABC", "sku": "WIDGET-3", "name": "Widget"},
            },
            "reason": "The SKU was mistyped",
        }
    },
    "discardDeadLetter": {"obsolete": {"reason": "The product was never sold"}},
    "restoreDeadLetter": {"by mistake": {"reason": "It was discarded by mistake"}},
    "noteDeadLetter": {"note": {"note": "Asked the catalogue team"}, "none": {"note": None}},
    "retryDeadLetters": {
        "a group": {"filter": {"groupId": "5f2a9c0d1e3b4a67"}, "reason": "Fixed by release 1.4"},
        "these": {"ids": ["dl_01GXYZ234DEF", "dl_01GXYZ234DEG"], "canary": False},
    },
    "cancelDeadLetterRetry": {"enough": {"reason": "Too many fail again"}},
    "releaseBlockedEvent": {
        "try again": {"reason": "The broker takes larger messages now"},
        "never publish it": {"reason": "Nobody needs it", "skip": True},
    },
    "replayEvents": {
        "positions": {"fromPosition": 100, "toPosition": 250, "reason": "A consumer lost its state"},
        "a product's since then": {
            "productId": "prod_01FXYZ789ABC",
            "since": "2026-11-20T10:00:00Z",
            "reason": "The queue was deleted",
        },
    },
    "cancelImport": {"by mistake": {"reason": "It was yesterday's file"}},
    "cancelReplay": {"enough": {"reason": "The wrong range"}},
    "reconcile": {
        "look at everything": {"reason": "After the restore of last night"},
        "put right what is safe": {"deep": False, "repairs": "safe", "reason": "The totals are off"},
    },
    "cancelReconciliation": {"enough": {"reason": "It was started by mistake"}},
}

_AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
_DETAIL = "SKU WIDGET-3 is in use by item inv_01GXYZ234DEF of product prod_01FXYZ000XYZ; release it there first."
_LETTER = Letter(
    id="dl_01GXYZ234DEF",
    status="UNRESOLVED",
    message_id="evt_01FXYZ",
    event_id="evt_01FXYZ",
    event_type="ProductCreated",
    correlation_id="catalogue-17",
    product_id="prod_01FXYZ789ABC",
    skus=("WIDGET-3",),
    code="sku_conflict",
    detail=_DETAIL,
    group_id="5f2a9c0d1e3b4a67",
    attempts=1,
    first_failed_at=_AT,
    last_failed_at=_AT,
    next_attempt_at=None,
    ended_at=None,
    retry_id=None,
    edited_from=None,
    replaced_by=None,
    note="Asked the catalogue team",
)
_NOTED = ActRecord(
    id="act_01GXYZ234DEF",
    at=_AT + timedelta(hours=1),
    actor="alice",
    action="dead-letter.note",
    subject=_LETTER.id,
    reason=None,
    correlation_id=None,
    details={"note": _LETTER.note},
)
_BLOCKED = BlockedEvent(
    event_id="01a21a1f-29eb-7514-b18d-bc369be81fbd",
    event_type="StockLevelChanged",
    product_id="prod_01FXYZ789ABC",
    sequence=17,
    bytes=745,
    reason="The broker refused it 3 times while others got through. (745 bytes)",
    created_at=_AT,
    blocked_at=_AT + timedelta(seconds=3),
    waiting=3,
)
_RUN = Run(
    id="rec_01GXYZ234DEF",
    trigger="request",
    actor="alice",
    deep=True,
    repairs="safe",
    status="DONE",
    started_at=_AT,
    ended_at=_AT + timedelta(seconds=9),
    products=12_000,
    items=15_000,
    findings={"TOTALS_MISMATCH": 1},
    raised=1,
    outcomes={"REPAIRED": 1},
    done=("stock", "outbox", "receipts", "ledger", "events"),
)
ANSWERS: tuple[Any, ...] = (
    _LETTER,
    LetterDetail(
        **asdict(_LETTER),
        exchange="product.events",
        routing_key="product.productcreated.product",
        headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        body=(body := msgspec.json.encode(BODIES["editDeadLetter"]["correct the SKU"]["body"]).decode()),
        body_encoding="utf-8",
        body_bytes=len(body),
        stack="Traceback (most recent call last):\n  …\ncore.errors.SkuConflict: SKU WIDGET-3 is in use …",
        history=(Attempt(1, _AT, "sku_conflict", _DETAIL, "consumer-1-71-9f3b2c1d"),),
        applied=None,
        acts=(_NOTED,),
    ),
    LetterGroup(
        group_id="5f2a9c0d1e3b4a67",
        code="sku_conflict",
        cause="SKU … is in use by item … of product …; release it there first.",
        count=42,
        first_failed_at=_AT,
        last_failed_at=_AT + timedelta(minutes=5),
        example_id=_LETTER.id,
    ),
    Retry(
        id="rty_01GXYZ234DEF",
        status="RUNNING",
        actor="alice",
        reason="Fixed by release 1.4",
        canary_id=_LETTER.id,
        total=42,
        succeeded=30,
        failed=1,
        left=11,
        started_at=_AT,
        ended_at=None,
    ),
    Import(
        id="imp_01GXYZ234DEF",
        status="IMPORTING",
        kind="receipts",
        format="csv",
        name="deliveries.csv",
        dry_run=False,
        partial=True,
        actor="alice",
        digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        bytes=61_240,
        rows=1_200,
        checked=1_200,
        done=750,
        refused=1,
        reason=None,
        created_at=_AT,
        ended_at=None,
    ),
    RowError(17, "not_found", "There is no inventory item of SKU WIDGET-9 in warehouse wh_01HXYZ789GHI."),
    OutboxState(3, _AT, [_BLOCKED]),
    _BLOCKED,
    Replay(
        id="rpl_01GXYZ234DEF",
        status="RUNNING",
        actor="alice",
        reason="A consumer lost its state",
        product_id=None,
        from_position=100,
        to_position=250,
        position=180,
        total=151,
        published=81,
        started_at=_AT,
        ended_at=None,
    ),
    _RUN,
    RunReport(
        _RUN,
        [Tally(kind="TOTALS_MISMATCH", nature="stale", new=1, day=0, week=0, older=0)],
        [
            Finding(
                kind="TOTALS_MISMATCH",
                product_id="prod_01FXYZ789ABC",
                inventory_item_id=None,
                expected={"quantityReserved": 5},
                found={"quantityReserved": 6},
                run_id=_RUN.id,
                first_seen_at=_AT,
                last_seen_at=_AT,
                resolved_at=_AT + timedelta(seconds=7),
            )
        ],
        [
            Repair(
                run_id=_RUN.id,
                kind="TOTALS_MISMATCH",
                subject="prod_01FXYZ789ABC",
                product_id="prod_01FXYZ789ABC",
                outcome="REPAIRED",
                reason=None,
                before={"quantityReserved": 6},
                after={"quantityReserved": 5},
                at=_AT + timedelta(seconds=7),
            )
        ],
    ),
)
