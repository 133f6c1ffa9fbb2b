"""Example request bodies for the OpenAPI document, by operation id; a test sends every one of them."""

from typing import Any

_ITEM = "inv_01GXYZ234DEF"

EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
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
}
