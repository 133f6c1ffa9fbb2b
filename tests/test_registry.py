"""Finding the adapter that a URL names among the installed packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from adapters.registry import connect
from core.errors import ValidationFailed


def offer(folder: Path, package: str, scheme: str, target: str) -> None:
    """Leave in ``folder`` what an installed package with one broker leaves."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[inventory.broker]\n{scheme} = {target}\n")


async def test_a_url_opens_the_adapter_of_its_scheme() -> None:
    """``memory://`` is a broker that works, for as long as the block lasts."""
    async with connect("broker", "memory://") as broker:
        await broker.declare()

        assert await broker.check() == []


async def test_what_follows_a_plus_is_the_adapters_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sqs+eu://`` is opened by the package that offers ``sqs``, with the URL as it stands."""
    offer(tmp_path, "sqs-broker", "sqs", "sqs_broker:open_broker")
    (tmp_path / "sqs_broker.py").write_text(
        "from contextlib import asynccontextmanager\n@asynccontextmanager\nasync def open_broker(url):\n    yield url\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async with connect("broker", "sqs+eu://queue") as opened:
        assert opened == "sqs+eu://queue"


def test_an_unknown_scheme_is_told_with_those_there_are() -> None:
    """The sentence names the setting, the scheme, and what is installed."""
    with pytest.raises(ValidationFailed) as error:
        connect("store", "mysql://db/stock")

    assert "INVENTORY_STORE names the scheme mysql, which no installed package offers" in str(error.value)
    assert "installed are: postgres://, postgresql://, sqlite://" in str(error.value)


@pytest.mark.parametrize("url", ["", "inventory.db", "/var/stock.db", "://x", "1sql://x"])
def test_what_has_no_scheme_is_no_url(url: str) -> None:
    """A path or nothing at all is refused as such, not as an unknown adapter."""
    with pytest.raises(ValidationFailed, match="INVENTORY_BROKER is not a URL"):
        connect("broker", url)


def test_two_packages_with_one_scheme_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one to trust with the events is not for us to guess."""
    offer(tmp_path, "fast-broker", "kafka", "fast:open_broker")
    offer(tmp_path, "other-broker", "kafka", "other:open_broker")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ValidationFailed, match="kafka:// is offered by fast-broker and other-broker"):
        connect("broker", "kafka://host")


def test_an_adapter_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose driver is missing is one sentence, not a traceback."""
    offer(tmp_path, "half-broker", "half", "no_such_module:open_broker")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ValidationFailed, match="the adapter for half:// cannot be loaded: No module named"):
        connect("broker", "half://host")


def test_only_the_chosen_adapter_is_imported() -> None:
    """Who runs on memory and SQLite does not pay for AMQP or PostgreSQL drivers."""
    program = (
        "import sys; from adapters.registry import connect; connect('broker', 'memory://');"
        "print([name for name in ('aio_pika', 'asyncpg', 'sqlalchemy') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert printed.stdout.strip() == "[]"
