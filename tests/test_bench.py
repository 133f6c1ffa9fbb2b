"""``just bench``: not how fast anything is, but that it measures, and says what it measured."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import httpx2
import msgspec
import pytest
from service import environment
from services import Postgres, RabbitMQ

BENCH = Path(__file__).parent.parent / "bench"


def bench(*arguments: str, **environ: str) -> str:
    """Run it as the recipe does, and return what it printed."""
    command = [sys.executable, str(BENCH / "run.py"), *arguments]
    told = subprocess.run(
        command, env=environment() | environ, capture_output=True, text=True, timeout=250, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def test_the_rows_are_listed() -> None:
    """Each with what is measured, and the issue's floor and aim."""
    listed = bench("--list").splitlines()

    assert len({line.split()[0] for line in listed}) == len(listed) >= 13
    (hot,) = [line for line in listed if line.startswith("hot ")]
    assert hot.endswith("(requests/s; floor 5, aim 10)")


@pytest.mark.timeout(300)
def test_a_row_is_measured(postgres: Postgres, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """A real service is started; the table and the document have the figure."""
    servers = {"INVENTORY_TEST_POSTGRESQL_URL": postgres.url, "INVENTORY_TEST_RABBITMQ_URL": rabbitmq.create_vhost()}
    printed = bench("--quick", "--only", "ready", "--results", str(tmp_path), **servers)

    assert "from `inventory serve` to ready" in printed
    (file,) = tmp_path.glob("*.json")
    (found,) = msgspec.json.decode(file.read_bytes())["rows"]
    assert found["name"] == "ready" and 0 < found["value"] == found["ours"][0]


def test_the_bare_route_answers_the_bytes_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To what is read and to what is written alike."""
    monkeypatch.syspath_prepend(BENCH)
    from http_rows import BareHttp

    (tmp_path / "answer").write_bytes(b'{"data":85}')
    with BareHttp(tmp_path / "answer") as server:
        answers = [
            httpx2.get(f"{server.url}/inventory-items/by-product/prod_1", trust_env=False),
            httpx2.post(f"{server.url}/reservations", json={"lines": []}, trust_env=False),
        ]
    assert [answer.content for answer in answers] == [b'{"data":85}'] * 2


def test_the_chart_is_a_picture_of_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is well-formed, and a bar is as long as its row came to the aim, also where less is better."""
    monkeypatch.syspath_prepend(BENCH)
    from chart import BARS, FULL, draw
    from rows import Measured, Row, absolute

    def measure(_: object) -> Measured:
        return absolute([1])

    more = Row(name="more", what="rate & <so on>", unit="x", floor=1, aim=2, measure=measure)
    less = Row(name="less", what="delay", unit="ms", floor=8, aim=4, of_ratio=False, less=True, measure=measure)
    drawn = draw({"more": absolute([1, 2, 9]), "less": absolute([16])}, {"more": more, "less": less}, caption="here")

    bars = [each for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("rect")]
    assert [each.get("class") for each in bars] == ["reached", "below"]
    assert [float(each.get("width") or 0) for each in bars] == pytest.approx([BARS / FULL, BARS / FULL / 4], abs=0.1)
