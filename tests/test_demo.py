"""``inventory demo``, as a stranger meets it: one command, lines to copy, data that stays."""

import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from private_server import free_port
from showing import demo

from entrypoints.demo.command import _show
from ports.broker import Message


@pytest.mark.timeout(300)
def test_the_lines_it_prints_work_and_the_data_stays(tmp_path: Path) -> None:
    """The specification's own example, a receipt and a reservation with their events; kept, then reset."""
    port = str(free_port())
    with demo(tmp_path, "--port", port) as first:
        asked = first.copied("How much of a product is there, and where?")["data"]
        assert (asked["totalQuantityAvailable"], asked["totalQuantityReserved"]) == (85, 5)
        assert [line["quantityAvailable"] for line in asked["warehouseInventory"]] == [60, 25]
        assert datetime.fromisoformat(asked["restockExpected"]) > datetime.now(UTC)
        assert first.copied("Can I have ten?")["data"]["leadTimeEstimate"] == "1-2 days"
        assert first.copied("Receive 25 units:")["data"]["item"]["quantityAvailable"] == 85
        assert first.copied("Reserve two for an order:")["data"]["status"] == "HELD"
        first.wait_for("60 → 85 available, 110 in all (RECEIPT)")
        first.wait_for("85 → 83 available, 108 in all (RESERVATION)")
        assert first.interrupt() == 0
        assert "Stopped. The data is kept" in first.printed

    with demo(tmp_path, "--port", port) as second:
        assert "Loading sample products" not in second.printed
        kept = second.copied("How much of a product is there, and where?")["data"]
        assert kept["totalQuantityAvailable"] == 108
        assert second.interrupt() == 0

    with demo(tmp_path, "--port", port, "--reset") as third:
        fresh = third.copied("How much of a product is there, and where?")["data"]
        assert fresh["totalQuantityAvailable"] == 85


def test_a_busy_port_moves_to_the_next_free_one(tmp_path: Path) -> None:
    """It says so, and the lines it prints name the port it has."""
    with socket.create_server(("127.0.0.1", free_port())) as busy:
        port = busy.getsockname()[1]
        with demo(tmp_path, "--port", str(port)) as running:
            assert f"Port {port} is taken; the next free one is used." in running.printed
            assert running.copied("Can I have ten?")["success"] is True


async def test_a_sku_that_looks_like_markup_is_a_sku(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that somebody has called so breaks the terminal."""

    async def heard() -> AsyncIterator[Message]:
        payload = {"sku": "[/]", "warehouseId": "wh_1", "totalQuantityAvailable": 0}
        body = msgspec.json.encode({"timestamp": datetime.now(UTC), "payload": payload})
        yield Message(id="1", exchange="", routing_key="", body=body, type="OutOfStock")

    await _show(heard(), since=datetime(2026, 11, 26, tzinfo=UTC))

    assert "OutOfStock [/] in wh_1: 0 available in all" in capsys.readouterr().out


def test_tokens_are_for_nobody_else(tmp_path: Path) -> None:
    """The files with tokens and the secret can be read by their owner alone."""
    with demo(tmp_path, "--port", str(free_port())):
        files = [*(tmp_path / ".inventory").glob("*.header"), tmp_path / ".inventory" / "auth-secret"]
        assert [0o600] * 4 == [file.stat().st_mode & 0o777 for file in files]
