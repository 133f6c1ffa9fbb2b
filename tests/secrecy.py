"""No log of the whole run holds a secret: each is searched where it ends, and what wrote it fails.

As a pytest plugin it searches what every test logged and printed in its own process, ``check`` what others logged;
either works in each of several processes that run tests.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from adapters.telemetry import mask

_known: set[str] = set()
_PATTERNS = {
    "a token": re.compile(r"eyJ[\w-]{10,}\.[\w-]+\.[\w-]*"),
    "a password in a URL": re.compile(r"://[^:/?#\s@]*:(?!\*\*\*@)[^\s@\"']+@"),
    "an Authorization header": re.compile(r"\b(?:bearer|basic) (?!\*\*\*)[\w.~+/=-]{20,}", re.IGNORECASE),
}


def secret(value: str) -> str:
    """Return a secret that the tests use; it is looked for from now on."""
    _known.add(value)
    return value


def leaks(text: str) -> list[str]:
    """Return what secrets there are in a text, each with what stands before it and not repeated itself."""
    return [f"{kind} after {text[max(place - 60, 0) : place]!r}" for place, kind in sorted(_found(text))]


def check(text: str) -> None:
    """Fail if there are secrets in what a process logged.

    Raises:
        AssertionError: there are; the message does not repeat them.
    """
    assert not (found := leaks(text)), f"A process logged {len(found)} secrets: {'; '.join(found[:3])}"


def _found(text: str) -> Iterator[tuple[int, str]]:
    for value in _known:
        if (place := text.find(value)) >= 0:
            yield place, "a secret"
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(text):
            yield match.start(), kind


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Fail a test, as it ends, for what was logged and printed in its own process, once masked as the service does."""
    report: pytest.TestReport = yield
    last = report.when == "teardown" and report.passed
    if last and (found := [leak for _, text in report.sections for leak in leaks(mask(text))]):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} logged {len(found)} secrets: {'; '.join(found[:3])}"
    return report
