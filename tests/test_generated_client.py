"""A client generated from the service's own OpenAPI document, at work: what the document says is what happens."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from service import Service, token

PACKAGE = "inventory_client"
GENERATOR = Path(sys.executable).with_name("openapi-python-client")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service in one process."""
    store = f"sqlite:///{tmp_path_factory.mktemp('client')}/stock.db"
    with Service("serve", store=store, broker="memory://") as service:
        yield service


@pytest.fixture(scope="module")
def generated(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The client's package, generated without a warning."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(
        httpx2.get(f"{service.url}/schema/openapi.json", trust_env=False).raise_for_status().content
    )
    # It would format the code; and it knows files by one type alone.
    files = dict.fromkeys(("text/csv", "application/x-ndjson"), "application/octet-stream")
    (folder / "config.json").write_text(json.dumps({"post_hooks": [], "content_type_overrides": files}))
    options = ["--path", "openapi.json", "--output-path", PACKAGE, "--meta", "none", "--config", "config.json"]
    command = [GENERATOR, "generate", *options, "--fail-on-warning"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder / PACKAGE
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


class Client:
    """The generated client: models by name, operations by tag and name."""

    def __init__(self, url: str, token: str) -> None:
        package = importlib.import_module(PACKAGE)
        self.models = importlib.import_module(f"{PACKAGE}.models")
        self._client = package.AuthenticatedClient(base_url=url, token=token, raise_on_unexpected_status=True)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(*error)

    def ask(self, operation: str, *arguments: Any, **words: Any) -> Any:
        """Return what the answer was parsed to, and the status and headers it came with."""
        module = importlib.import_module(f"{PACKAGE}.api.{operation}")
        return module.sync_detailed(*arguments, client=self._client, **words)

    def data(self, operation: str, kind: str, *arguments: Any, **words: Any) -> Any:
        """Return the data of a success, which must have been parsed to the model of this name."""
        answer = self.ask(operation, *arguments, **words).parsed
        assert type(answer).__name__ == kind, answer
        assert answer.success is True
        return answer.data


@pytest.fixture
def client(service: Service, generated: Path) -> Iterator[Client]:
    """An administrator's client."""
    with Client(service.url, token()) as client:
        yield client


def test_it_gets_through_a_day(client: Client) -> None:
    """Warehouse, item, receipt, reservation to its end, the two queries, the ledger: typed all the way."""
    models = client.models
    house = client.data(
        "warehouses.create_warehouse", "WarehouseCreated", body=models.CreateWarehouse(name="North", priority=1)
    )
    body = models.CreateItem(sku="WIDGET", product_id="prod_1", warehouse_id=house.id)
    item = client.data("inventory_items.create_inventory_item", "InventoryItemCreated", body=body)
    change = client.data(
        "stock_operations.change_stock",
        "StockChangeSuccess",
        body=models.Receive(type_="RECEIVE", inventory_item_id=item.id, quantity=20, reason="Opening stock"),
        idempotency_key="receipt-1",
    )
    assert (change.item.quantity_available, change.transactions[0].type_) == (20, "RECEIPT")
    held = client.data(
        "reservations.reserve",
        "ReservationCreated",
        body=models.Reserve(lines=[models.ReserveLine(quantity=3, sku="WIDGET")], reference_number="SO-9"),
    )
    confirmed = client.data("reservations.confirm_reservation", "ReservationSuccess", held.id)
    assert (confirmed.status, confirmed.expires_at, confirmed.confirmed_at.tzinfo is None) == ("CONFIRMED", None, False)
    part = models.FulfilBody(lines=[models.ItemQuantity(inventory_item_id=item.id, quantity=1)])
    rest = client.data("reservations.fulfil_reservation", "ReservationSuccess", held.id, body=part)
    assert (rest.status, rest.lines[0].fulfilled_quantity) == ("CONFIRMED", 1)
    assert client.data("reservations.fulfil_reservation", "ReservationSuccess", held.id).status == "FULFILLED"
    stock = client.data("queries.get_inventory_by_product", "ProductInventorySuccess", "prod_1")
    assert (stock.total_quantity_available, stock.warehouse_inventory[0].warehouse_name) == (17, "North")
    available = client.data("queries.check_availability", "AvailabilitySuccess", item.id, quantity=17)
    assert (available.is_available, available.lead_time_estimate) == (True, "1-3 days")
    ledger = client.data("stock_operations.list_transactions", "TransactionList", item.id)
    assert [row.type_ for row in ledger] == ["FULFILMENT", "FULFILMENT", "RESERVATION", "RECEIPT", "STATUS"]
    then = client.data(
        "inventory_items.get_inventory_item", "InventoryItemSuccessAsOf", item.id, as_of=change.item.updated_at
    )
    assert (then.quantity_on_hand, then.recorded_at) == (20, change.transactions[0].recorded_at)


def test_it_understands_refusals(client: Client, service: Service) -> None:
    """Every refusal is a typed problem: its code, and the numbers behind its sentence."""
    models = client.models
    house = client.data("warehouses.create_warehouse", "WarehouseCreated", body=models.CreateWarehouse(name="South"))
    body = models.CreateItem(sku="GADGET", product_id="prod_2", warehouse_id=house.id, initial_quantity=5)
    item = client.data("inventory_items.create_inventory_item", "InventoryItemCreated", body=body)
    ship = models.Ship(type_="SHIP", inventory_item_id=item.id, quantity=6)
    refused = client.ask("stock_operations.change_stock", body=ship, x_correlation_id="checkout-4711").parsed
    assert isinstance(refused, models.Problem)
    assert (refused.status, refused.code, refused.correlation_id) == (409, "insufficient_stock", "checkout-4711")
    assert (refused["requested"], refused["available"], refused["inventoryItemId"]) == (6, 5, item.id)
    fine = models.Ship(type_="SHIP", inventory_item_id=item.id, quantity=5)
    results = client.data("stock_operations.change_stock", "BatchSuccess", body=models.Batch([ship, fine])).results
    assert [(result.success, type(result.error).__name__) for result in results] == [
        (False, "Problem"),
        (True, "Unset"),
    ]
    patch = {"body": models.ItemPatch(safety_stock=1), "if_match": '"1"'}
    stale = client.ask("inventory_items.update_inventory_item", item.id, **patch)
    assert (stale.status_code, stale.parsed.code) == (412, "version_conflict")
    same = client.ask("inventory_items.get_inventory_item", item.id, if_none_match='"2"')
    assert (same.status_code, same.headers["etag"]) == (304, '"2"')
    assert client.ask("reservations.get_reservation", "res_1").parsed.code == "not_found"
    with Client(service.url, "nobody") as other:
        stranger = other.ask("warehouses.list_warehouses")
    assert (stranger.parsed.code, stranger.headers["www-authenticate"]) == ("unauthorized", "Bearer")
