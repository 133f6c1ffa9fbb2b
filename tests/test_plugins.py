"""Somebody else's store, broker and cache: a package is installed, URLs name it, the service runs on it unchanged."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from service import Service

STRANGER = Path(__file__).with_name("stranger")


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the package where only this test's processes find it."""
    target = tmp_path / "site"
    install = [os.environ.get("UV", "uv"), "pip", "install", "--quiet", "--offline", "--python", sys.executable]
    options = ["--no-deps", "--no-build-isolation", "--no-cache", "--target", str(target)]
    subprocess.run([*install, *options, str(STRANGER)], check=True, timeout=60)
    monkeypatch.setenv("PYTHONPATH", str(target))


@pytest.mark.usefixtures("stranger")
def test_a_strangers_adapters_need_no_change_here(tmp_path: Path) -> None:
    """A stock change over HTTP goes through the stranger's store, its event and its reads through the other two."""
    url = f"stranger://{tmp_path}"

    with Service("serve", store=url, broker=url, cache=url) as service, service.client() as client:
        client.post("/warehouses", json={"id": "wh_1", "name": "North"}).raise_for_status()
        item = {"sku": "S-1", "productId": "prod_1", "warehouseId": "wh_1", "initialQuantity": 70}
        made = client.post("/inventory-items", json=item).raise_for_status().json()["data"]
        changed, back = events(tmp_path / "events", 2)
        client.get("/inventory-items/by-product/prod_1").raise_for_status()

    assert "product:prod_1" in (tmp_path / "asked").read_text().split()
    assert len((tmp_path / "transactions").read_text()) >= 2
    assert changed["routingKey"] == "inventory.stocklevelchanged.inventoryitem"
    assert changed["event"]["aggregateId"] == made["id"]
    assert changed["event"]["payload"]["newQuantity"] == 70
    assert back["event"]["eventType"] == "BackInStock"


def events(file: Path, count: int) -> list[dict[str, Any]]:
    """Wait for so many events in the broker's file."""
    deadline = time.monotonic() + 10
    while len(lines := file.read_text().splitlines()) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return [json.loads(line) for line in lines]
