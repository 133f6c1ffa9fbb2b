"""``docs/faults.md`` names a test for every fault of the matrix, and the tests it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TABLE = [line for line in (ROOT / "docs/faults.md").read_text(encoding="utf-8").splitlines() if line.startswith("| F")]
NAMED = sorted({name for line in TABLE for name in re.findall(r"`(tests/[\w/.]+::\w+)`", line)})


def test_every_fault_has_its_row() -> None:
    """F1 to F33, but for F23, which is the catalogue's; each row names a test."""
    numbers = {int(number) for line in TABLE for number in re.findall(r"F(\d+)", line.split("|")[1])}
    assert numbers == set(range(1, 34)) - {23}
    assert [] == [line for line in TABLE if "::" not in line and "chaos" not in line]


@pytest.mark.parametrize("name", NAMED)
def test_it_exists(name: str) -> None:
    """Under this very name, in this very file."""
    path, _, function = name.partition("::")
    assert re.search(rf"^(async )?def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
