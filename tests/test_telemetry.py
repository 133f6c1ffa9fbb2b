"""Log lines: what they are made of, and what must never be in one."""

import json
import logging
import sys
from io import StringIO
from typing import Any

import pytest
import structlog

from adapters.telemetry import configure_logging, mask

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Logging as a process has it, into a string; afterwards as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging("info")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: StringIO) -> list[dict[str, Any]]:
    """Return the lines written so far, decoded."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pass@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("amqp://:pass@host", "amqp://:***@host"),
        ("amqp://user:p@ss/word@host/vhost", "amqp://user:***@host/vhost"),
        ("two amqp://a:b@c and amqp://d:e@f", "two amqp://a:***@c and amqp://d:***@f"),
        ("postgresql://host/db?user=u&password=secret&ssl=1", "postgresql://host/db?user=u&password=***&ssl=1"),
        (f"refused {JWT}.", "refused ***."),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer ***"),
        ("authorization=basic dXNlcjpwYXNz", "authorization=basic ***"),
    ],
)
def test_secrets_are_masked(text: str, shown: str) -> None:
    """Passwords in URLs, tokens and credentials are replaced, and what stands around them stays."""
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text", ["sqlite:///stock.db", "http://127.0.0.1:8000/health", "a basic fact", "amqp://guest@host", "5:30"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A line whose half is stars helps nobody."""
    assert mask(text) == text


def test_a_line_is_json_with_its_context(stream: StringIO) -> None:
    """A line says when, how grave, who, what, and for which request."""
    with structlog.contextvars.bound_contextvars(correlation_id="c-1", request_id="r-1"):
        structlog.get_logger("access").info("request", status=200)
    [line] = lines(stream)

    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "level": "info",
        "logger": "access",
        "event": "request",
        "correlation_id": "c-1",
        "request_id": "r-1",
        "status": 200,
    }


def test_the_librarys_lines_look_like_ours(stream: StringIO) -> None:
    """The standard library's records carry context, extra fields and tracebacks in the same shape."""
    with structlog.contextvars.bound_contextvars(correlation_id="c-1"):
        try:
            raise ValueError("no route to amqp://user:pass@host")
        except ValueError:
            logging.getLogger("core.publishing.relay").exception("failed on %s", "x", extra={"product_id": "p-1"})
    [line] = lines(stream)

    assert (line["event"], line["level"], line["logger"]) == ("failed on x", "error", "core.publishing.relay")
    assert (line["correlation_id"], line["product_id"]) == ("c-1", "p-1")
    assert "ValueError: no route to amqp://user:***@host" in line["exception"]


def test_no_field_gives_a_secret_away(stream: StringIO) -> None:
    """Whatever is logged under a telling name or inside something else is hidden, at any depth."""
    structlog.get_logger("x").info(
        "settings", store="postgresql://u:hidden@h/db", secret="hidden", nested={"headers": {"Authorization": "hidden"}}
    )
    structlog.get_logger("x").info("objects", tokens=[JWT], error=ValueError("amqp://u:hidden@h"))

    assert "hidden" not in stream.getvalue()
    assert JWT not in stream.getvalue()
    assert len(lines(stream)) == 2


def test_a_line_break_starts_no_new_line(stream: StringIO) -> None:
    """What a caller sent cannot forge a line of its own."""
    logging.getLogger("x").warning("bad name: %s", 'a\n{"event": "forged"}')

    assert len(lines(stream)) == 1


def test_the_level_holds_for_all(stream: StringIO) -> None:
    """Below the level nothing is written, whoever says it; the drivers' chatter needs a level more."""
    structlog.get_logger("x").debug("ours")
    logging.getLogger("x").debug("theirs")
    logging.getLogger("sqlalchemy.engine").info("SELECT")

    assert lines(stream) == []
