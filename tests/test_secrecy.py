"""The net under all tests: a secret in a log fails whoever logged it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import ADMIN, token
from secrecy import check, leaks, secret

from adapters.telemetry import mask

HUSH = "nobody-must-ever-read-this"
LEAKY = f"""
import logging
from secrecy import secret

def test_silent():
    logging.getLogger("x").warning("amqp://user:hush@host/ is away, which the service's mask will hide")

def test_leaky():
    logging.getLogger("x").warning("the password is %s", secret("{HUSH}"))

def test_printing():
    print(secret("{HUSH}"))
"""


@pytest.mark.parametrize(
    "text",
    [
        f"caller came with {token(ADMIN)}",
        f"Authorization: Bearer {token(ADMIN)}",
        "authorization: basic dXNlcjpwYXNzd29yZGFuZG1vcmU=",
        "connecting to postgresql://user:hush@host/stock",
        f"the setting is {secret('a word that only this test knows')}",
    ],
)
def test_a_secret_is_found_and_not_repeated(text: str) -> None:
    """Whatever form it has; the message names its kind and its place."""
    (first, *_) = leaks(text)
    assert text[:9] in first
    assert text[-16:] not in first
    with pytest.raises(AssertionError, match="A process logged"):
        check(text)


@pytest.mark.parametrize(
    "text",
    ["connecting to postgresql://user@host/stock", "amqp://user:***@host", "at 10:30 mail me@home", "Bearer of news"],
)
def test_what_is_no_secret_is_not_found(text: str) -> None:
    """Masked passwords and ordinary words pass."""
    assert [] == leaks(text)


def test_what_telemetry_masks_is_clean() -> None:
    """The service's own masks leave nothing that the net would find."""
    assert [] == leaks(mask(f"GET postgresql://user:hush@host Bearer {token(ADMIN)}"))


def test_a_leaky_test_fails_and_its_neighbour_does_not(tmp_path: Path) -> None:
    """In a run of its own, with the net: two of three end badly, and the report of that repeats nothing."""
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    options = ["-p", "secrecy", "-p", "no:cacheprovider", "--show-capture=no", "--rootdir=."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_leaky.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "3 passed, 2 errors" in done.stdout
    assert HUSH not in done.stdout
