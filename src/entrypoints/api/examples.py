"""Examples for the OpenAPI document: request bodies by operation id, answers by type, refusals by kind.

A test sends every body; answers and refusals are made by the classes that make the real ones.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from core.catalog.watch import CatalogHealth
from core.consuming.reception import EventStatus
from core.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    InsufficientStock,
    InventoryError,
    ItemInactive,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    ProductNotFound,
    ProductServiceProtocolError,
    ProductServiceUnavailable,
    ReservationExpired,
    SkuConflict,
    Unauthorized,
    Unavailable,
    UnsupportedVersion,
    ValidationFailed,
    VersionConflict,
)
from core.events import EVENT_VERSION, SOURCE, Event, Metadata, OutOfStock
from core.operations import StockChange
from core.reading.availability import Availability, Counted, Explanation, ProductAvailability
from core.reading.projection import Step
from core.stock import (
    Balance,
    Catalog,
    ExpectedReceipt,
    Item,
    LeadTime,
    Product,
    ProductBalance,
    ProductInventory,
    Reservation,
    ReservationLine,
    Seen,
    StockTransaction,
    Variant,
    Warehouse,
    WarehouseInventory,
)
from entrypoints.api import letter_examples
from entrypoints.api.health import Dependencies, Health, Live
from entrypoints.api.movements import BatchResult, BatchResults
from entrypoints.api.problems import (
    ContentTooLarge,
    MethodNotAllowed,
    Problem,
    ProblemKind,
    RequestTimeout,
    UnsupportedMediaType,
    document,
)
from ports.catalog import Condition
from ports.product_records import ProductCheck

_ITEM = "inv_01GXYZ234DEF"
_PRODUCT = "prod_01FXYZ789ABC"
_WAREHOUSE = "wh_01HXYZ789GHI"
_RESERVATION = "res_01HXYZ567JKL"
_AT = datetime(2026, 11, 23, 10, tzinfo=UTC)

EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    **letter_examples.BODIES,
    "createWarehouse": {
        "warehouse": {"name": "North Seattle", "priority": 1, "leadTimeDays": {"min": 1, "max": 2}},
    },
    "updateWarehouse": {"close it": {"active": False}},
    "createInventoryItem": {
        "item": {
            "sku": "WIDGET-2",
            "productId": "prod_01FXYZ789ABC",
            "warehouseId": "wh_01HXYZ789GHI",
            "name": "Widget, large",
            "initialQuantity": 50,
            "reorderThreshold": 10,
            "targetStockLevel": 50,
        },
    },
    "updateInventoryItem": {"policy": {"safetyStock": 5, "reorderThreshold": 20}},
    "updateProduct": {"threshold": {"lowStockThreshold": 25}},
    "changeStock": {
        "receive": {
            "type": "RECEIVE",
            "inventoryItemId": _ITEM,
            "quantity": 25,
            "reason": "Scheduled stock replenishment",
            "referenceType": "PURCHASE_ORDER",
            "referenceNumber": "PO-12345",
        },
        "count": {"type": "COUNT", "inventoryItemId": _ITEM, "countedQuantity": 48},
        "transfer": {
            "type": "TRANSFER",
            "inventoryItemId": _ITEM,
            "quantity": 5,
            "toWarehouseId": "wh_01HXYZ890PQR",
        },
        "batch": {
            "operations": [
                {"type": "SHIP", "inventoryItemId": _ITEM, "quantity": 1},
                {"type": "ADJUST", "inventoryItemId": _ITEM, "delta": -2, "reason": "Damaged"},
            ]
        },
    },
    "reserve": {
        "order": {
            "referenceType": "ORDER",
            "referenceNumber": "SO-9",
            "expiresInSeconds": 900,
            "lines": [{"inventoryItemId": _ITEM, "quantity": 2}],
        },
        "from wherever it is": {
            "referenceType": "ORDER",
            "referenceNumber": "SO-10",
            "lines": [{"sku": "WIDGET-2", "quantity": 3}],
            "sourcing": "FEWEST_SPLITS",
            "explain": True,
        },
    },
    "extendReservation": {"half an hour": {"expiresInSeconds": 1800}},
    "fulfilReservation": {"a part": {"lines": [{"inventoryItemId": _ITEM, "quantity": 1}]}},
    "releaseReservation": {"cancelled": {"reason": "Order cancelled"}},
    "createExpectedReceipt": {
        "purchase order": {
            "inventoryItemId": _ITEM,
            "quantity": 40,
            "expectedAt": "2026-12-01T08:00:00Z",
            "referenceType": "PURCHASE_ORDER",
            "referenceNumber": "PO-12345",
        },
        "by SKU": {
            "sku": "WIDGET-2",
            "warehouseId": "wh_01HXYZ789GHI",
            "quantity": 40,
            "expectedAt": "2026-12-01T08:00:00+01:00",
        },
    },
    "updateExpectedReceipt": {"late": {"expectedAt": "2026-12-08T08:00:00Z", "reason": "Held at customs"}},
    "receiveExpectedReceipt": {
        "a part": {"quantity": 30},
        "all there is": {"quantity": 38, "close": True, "reason": "Two broken in transit"},
    },
    "cancelExpectedReceipt": {"not delivered": {"reason": "Discontinued by the supplier"}},
    "takeProductEvent": {
        "created": {
            "eventId": "e1b2c3d4-e5f6-7890-abcd-ef0123456789",
            "eventType": "ProductCreated",
            "eventVersion": "1.0.0",
            "timestamp": "2026-11-23T10:00:00Z",
            "metadata": {"correlationId": "checkout-4711", "source": "product-service"},
            "payload": {"productId": _PRODUCT, "sku": "WIDGET-2", "name": "Widget, model 2"},
        },
    },
    "forceCircuit": {
        "ask no more": {"circuit": "OPEN", "reason": "They are restoring"},
        "let it decide": {"circuit": "AUTO"},
    },
}

_REFUSALS: tuple[InventoryError, ...] = (
    InventoryError("Something went wrong in the service; its log has it under this correlation id."),
    ValidationFailed("The body is not valid at $.quantity: Expected `int` >= 1."),
    UnsupportedVersion("eventVersion '2.0.0' is not supported; this service reads 1.x. Retry it after an upgrade."),
    Unauthorized("Send a token: Authorization: Bearer followed by the token."),
    Forbidden("This needs one of the roles: inventory-admin, inventory-operator."),
    NotFound(f"There is no inventory item {_ITEM}.", inventoryItemId=_ITEM),
    MethodNotAllowed("This path does not take this method; the Allow header names those it takes."),
    RequestTimeout("The body did not come within 10 seconds; send it again."),
    Conflict(f"Reservation {_RESERVATION} is confirmed and does not expire.", reservationId=_RESERVATION),
    InsufficientStock(
        f"Item {_ITEM} has 3 available and 5 were asked for.", inventoryItemId=_ITEM, requested=5, available=3
    ),
    ItemInactive(f"Item {_ITEM} is inactive and cannot be reserved.", inventoryItemId=_ITEM),
    ReservationExpired(
        f"Reservation {_RESERVATION} expired; its units are free again. Reserve anew.",
        reservationId=_RESERVATION,
        expiresAt=_AT,
    ),
    VersionConflict("The item is at version 8, not 7: read it again and decide anew.", currentVersion=8),
    PreconditionFailed(
        "If-Match names version 7, the current version is 8: read it again and decide anew.", currentVersion=8
    ),
    SkuConflict("SKU WIDGET-2 belongs to product prod_01FXYZ000XYZ; use another SKU."),
    AlreadyExists(f"There is a warehouse {_WAREHOUSE} already.", warehouseId=_WAREHOUSE),
    ContentTooLarge("The body is too large; send fewer operations at a time."),
    UnsupportedMediaType("Send the body as Content-Type: application/json."),
    IdempotencyKeyReused("This Idempotency-Key came before with another request; use a new key for a new request."),
    ProductNotFound(f"The Product Service has no product {_PRODUCT}.", productId=_PRODUCT),
    ProductServiceUnavailable("The Product Service cannot be asked now: no answer in time."),
    ProductServiceProtocolError("The Product Service answered with another product than it was asked for."),
    Unavailable("The store is away; try again shortly."),
    OutcomeUnknown("The commit may or may not have happened; ask again with the same Idempotency-Key."),
)
PROBLEMS = {type(error): error for error in _REFUSALS}

_STOCKED = Item(
    id=_ITEM,
    sku="WIDGET-2",
    product_id=_PRODUCT,
    warehouse_id=_WAREHOUSE,
    name="Widget, large",
    on_hand=75,
    reserved=2,
    available=73,
    safety_stock=0,
    shortfall=0,
    reorder_threshold=10,
    target_stock_level=50,
    status="ACTIVE",
    metadata={},
    version=3,
    created_at=_AT - timedelta(days=1),
    updated_at=_AT,
)
_RECEIPT = StockTransaction(
    id="tx_01HXYZ123MNO",
    inventory_item_id=_ITEM,
    product_id=_PRODUCT,
    warehouse_id=_WAREHOUSE,
    sku="WIDGET-2",
    item_version=3,
    type="RECEIPT",
    on_hand_change=25,
    reserved_change=0,
    on_hand_after=75,
    reserved_after=2,
    available_after=73,
    reason="Scheduled stock replenishment",
    reference_type="PURCHASE_ORDER",
    reference_number="PO-12345",
    reservation_id=None,
    actor="warehouse-app",
    correlation_id="checkout-4711",
    occurred_at=_AT,
    recorded_at=_AT,
)
_BALANCE = Balance(
    inventory_item_id=_ITEM,
    sku="WIDGET-2",
    product_id=_PRODUCT,
    warehouse_id=_WAREHOUSE,
    on_hand=50,
    reserved=2,
    available=48,
    version=2,
    transaction_id="tx_01HXYZ122MNO",
    recorded_at=_AT - timedelta(hours=1),
)
_SEEN = Seen(_AT, "evt_01HXYZ")
_CHANGE = StockChange((_RECEIPT,), _STOCKED)
_SHORT = msgspec.convert(document(InsufficientStock("Only 3 are available."), "checkout-4711"), Problem)
_TOLD: tuple[Any, ...] = (
    Live(),
    Health("ok", Dependencies("ok", "ok", "ok", "ok", "ok")),
    CatalogHealth(
        status="ok",
        reason=None,
        checked_at=_AT,
        calls=Condition(circuit="CLOSED", forced=False, calls=20, failures=1),
    ),
    EventStatus(event_id="e1b2c3d4", status="APPLIED", code=None, reason=None, at=_AT),
    ProductCheck(product_id=_PRODUCT, status="PENDING", owed_at=_AT, checked_at=None),
    ProblemKind("/problems/not-found", "not_found", "Not found", 404, "The thing named does not exist; name another."),
    Warehouse(
        id=_WAREHOUSE,
        name="North Seattle",
        priority=1,
        lead_time_days=LeadTime(1, 2),
        active=True,
        version=1,
        created_at=_AT,
        updated_at=_AT,
    ),
    _STOCKED,
    _RECEIPT,
    _CHANGE,
    BatchResults([BatchResult(True, _CHANGE), BatchResult(False, error=_SHORT)]),
    _BALANCE,
    ProductBalance(product_id=_PRODUCT, as_of=_AT, on_hand=50, reserved=2, available=48, items=(_BALANCE,)),
    Product(
        id=_PRODUCT,
        total_on_hand=75,
        total_reserved=2,
        total_available=73,
        low_stock_threshold=10,
        status="ACTIVE",
        sequence=3,
        revision=4,
        catalog=Catalog(variants={"": Variant(sku="WIDGET-2", name="Widget, large", named=_SEEN, created=_SEEN)}),
        updated_at=_AT,
    ),
    ProductInventory(73, 2, False, False, (WarehouseInventory(_ITEM, _WAREHOUSE, "North Seattle", 73, 2),), 3),
    Availability(
        is_available=True,
        available_quantity=73,
        requested_quantity=2,
        lead_time_estimate="1-2 days",
        restock_expected=None,
        display_status="IN_STOCK",
        message="In Stock",
        low_stock_threshold=10,
    ),
    Event(
        event_id="01939f6e-7c2a-7d3b-9a51-0f2f6d1c9e10",
        event_type="OutOfStock",
        event_version=EVENT_VERSION,
        aggregate_id=_ITEM,
        aggregate_type="InventoryItem",
        timestamp=_AT,
        metadata=Metadata("checkout-4711", SOURCE, 9, "tx_01HXYZ122MNO"),
        payload=OutOfStock(
            inventory_item_id=_ITEM,
            sku="WIDGET-2",
            product_id=_PRODUCT,
            warehouse_id=_WAREHOUSE,
            transaction_id="tx_01HXYZ122MNO",
            total_quantity_available=0,
            total_quantity_reserved=2,
            restock_expected=None,
        ),
    ),
    ProductAvailability(
        product_id=_PRODUCT,
        sku=None,
        is_available=False,
        available_quantity=3,
        requested_quantity=5,
        lead_time_estimate=None,
        restock_expected=_AT + timedelta(days=2),
        display_status="LIMITED_AVAILABILITY",
        message="Only 3 available",
        low_stock_threshold=10,
        earliest_available=_AT + timedelta(days=2),
        available_by=28,
        explanation=Explanation(
            rule="available 3 < requested 5",
            revision=12,
            sequence=9,
            read_at=_AT,
            age_seconds=0.0,
            source="store",
            items=(
                Counted(
                    inventory_item_id=_ITEM,
                    sku="WIDGET-2",
                    warehouse_id=_WAREHOUSE,
                    warehouse_name="North Seattle",
                    quantity_on_hand=5,
                    quantity_reserved=2,
                    safety_stock=0,
                    quantity_available=3,
                    status="ACTIVE",
                    ships=0,
                ),
            ),
            projection=(Step(_AT, 3), Step(_AT + timedelta(days=2), 28)),
        ),
    ),
    Reservation(
        id=_RESERVATION,
        status="HELD",
        reference_type="ORDER",
        reference_number="SO-9",
        lines=(
            ReservationLine(
                inventory_item_id=_ITEM, product_id=_PRODUCT, warehouse_id=_WAREHOUSE, sku="WIDGET-2", quantity=2
            ),
        ),
        expires_at=_AT + timedelta(minutes=15),
        created_at=_AT,
        updated_at=_AT,
    ),
    ExpectedReceipt(
        id="exp_01HXYZ345PQR",
        inventory_item_id=_ITEM,
        product_id=_PRODUCT,
        warehouse_id=_WAREHOUSE,
        sku="WIDGET-2",
        quantity=40,
        received_quantity=30,
        outstanding_quantity=10,
        expected_at=_AT + timedelta(days=8),
        status="PARTIALLY_RECEIVED",
        reference_type="PURCHASE_ORDER",
        reference_number="PO-12345",
        reason=None,
        version=2,
        created_at=_AT,
        updated_at=_AT + timedelta(days=7),
    ),
)
ANSWERS: dict[type, Any] = {type(told): told for told in (*_TOLD, *letter_examples.ANSWERS)}
