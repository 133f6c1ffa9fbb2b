"""Requests by the thousand, made from the OpenAPI document: whatever comes in, what goes out is as documented."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from service import Service, token

COMMAND = Path(sys.executable).with_name("schemathesis")
CHECKS = Path(__file__).with_name("openapi_checks.py")
SEED = 20261126
OPTIONS = ("--max-examples=3", "--no-color", "--warnings=off")
# What an administrator meets everybody meets who may; for the others it matters what they may not.
PHASES = {
    "inventory-admin": "examples,coverage,fuzzing",
    "inventory-operator": "fuzzing",
    "product-service": "fuzzing",
    "": "fuzzing",
}
# Refusals that a good request can meet: what they say depends on what happened before.
CONFIGURATION = """
max-stream-events = 1

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "401", "403", "404", "409", "412", "422"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "412", "413", "415", "422"]

[phases.stateful]
enabled = false
"""


pytestmark = pytest.mark.timeout(600)  # less than a minute on two cores that do nothing else


class Run(NamedTuple):
    """How a run ended, and what it said."""

    code: int
    report: str


class Stock(NamedTuple):
    """A service with something in it, and the ids of that."""

    service: Service
    ids: dict[str, str]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The whole service in one process, with an item and holds on it."""
    store = f"sqlite:///{tmp_path_factory.mktemp('schemathesis')}/stock.db"
    with Service("serve", store=store, broker="memory://") as service, service.client() as client:

        def create(path: str, **body: Any) -> str:
            answer = client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["data"]["id"])

        for id in ("wh_1", "wh_other"):
            create("/warehouses", id=id, name=id)
        item = create(
            "/inventory-items", sku="WIDGET", productId="prod_1", warehouseId="wh_1", initialQuantity=1_000_000
        )
        hold = create("/reservations", lines=[{"inventoryItemId": item, "quantity": 1_000}])
        receipt = create("/expected-receipts", inventoryItemId=item, quantity=1_000, expectedAt="2099-01-01T00:00:00Z")
        ids = {"inventory-items": item, "warehouses": "wh_1", "reservations": hold, "expected-receipts": receipt}
        yield Stock(service, ids)


def _configuration(ids: dict[str, str]) -> str:
    """Say which ids exist: four of five requests name one of those, the others one that may be anything."""
    parts = [CONFIGURATION]
    for name, id in ids.items():
        parts.append(f'[dictionaries.{name}]\nvalues = ["{id}"]')
        known = f'{{ dictionary = "{name}", probability = 0.8 }}'
        parts.append(f'[[operations]]\ninclude-path-regex = "^/{name}/"\nparameters = {{ "path.id" = {known} }}')
    known = '{ dictionary = "products", probability = 0.8 }'
    parts.append('[dictionaries.products]\nvalues = ["prod_1"]')
    parts.append(f'[[operations]]\ninclude-path-regex = "productId"\nparameters = {{ "path.productId" = {known} }}')
    parts.append('[[operations]]\ninclude-path = "/events"\nrequest-timeout = 5.0')
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def runs(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """What came of a run as each role, all at the same time; the last has no token."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "schemathesis.toml").write_text(_configuration(stock.ids))
    command = [COMMAND, "run", f"{stock.service.url}/schema/openapi.json", f"--seed={SEED}", *OPTIONS]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(CHECKS)}

    def run(role: str) -> Run:
        options = [f"--phases={PHASES[role]}"]
        options += [f"--header=Authorization: Bearer {token(role)}"] if role else []
        with (folder / f"{role}.txt").open("w+") as report:
            done = subprocess.run(
                [*command, *options], cwd=folder, env=environment, stdout=report, stderr=report, check=False
            )
            report.seek(0)
            return Run(done.returncode, report.read())

    with ThreadPoolExecutor() as threads:
        return dict(zip(PHASES, threads.map(run, PHASES), strict=True))


@pytest.mark.parametrize("role", PHASES)
def test_every_answer_is_as_documented(runs: dict[str, Run], role: str) -> None:
    """No 5xx; status, type, schema, headers and code as documented; good requests are taken and bad ones refused."""
    print(runs[role].report)
    assert runs[role].code == 0
    (generated,) = re.findall(r"(\d+) generated", runs[role].report)
    assert int(generated) >= (2_000 if "coverage" in PHASES[role] else 80)
