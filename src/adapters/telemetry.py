"""Seeing inside: one JSON object a line on standard error, or coloured text where a person is watching.

Everything comes by here, our own lines and the libraries' alike, and nothing leaves with a secret in it: tokens,
``Authorization`` headers and the passwords in URLs are masked last, when the line is complete.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "***"

_SUSPECT = re.compile(r"[:?&=]|eyJ|[Bb][Ee][Aa]|[Bb][Aa][Ss]")
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Greedy up to the last @: an unescaped @ or / in a password must not leave half of it standing.
    (re.compile(r"(://[^:/?#\s@]*):[^\s]*@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"([?&](?:\w*password|passwd|secret|token)=)[^&#\s]*", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), HIDDEN),
    (re.compile(r"\b(bearer|basic) [\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
)
_SECRET_NAME = re.compile(r"authorization|password|secret|cookie|^token$", re.IGNORECASE)
_FIRST = ("timestamp", "level", "logger", "event", "correlation_id", "request_id")
_CHATTY = {
    "aio_pika": logging.CRITICAL,  # an outage is one line of our adapter's, not one for every attempt to connect
    "aiormq": logging.CRITICAL,
    "aiosqlite": logging.WARNING,
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "sqlalchemy": logging.WARNING,
}


class _Stream(Protocol):
    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class _Line:
    """Where structlog's finished lines go. Not by way of ``logging``, which would take as long as all the rest."""

    def __init__(self, stream: _Stream, name: str = "") -> None:
        self.name = name
        self._stream = stream

    def msg(self, line: str) -> None:
        _put(self._stream, line + "\n")

    debug = info = warning = error = critical = exception = msg


class _AccessLog:
    """The access log by the shortest way: there is a line for every request, and structlog's machinery costs as much.

    Lines of one turn of the event loop are written together.
    """

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode

    def write(self, fields: Mapping[str, Any]) -> None:
        line: dict[str, Any] = {"timestamp": datetime.now(UTC), "level": "info", "logger": "access", "event": "request"}
        for name, value in fields.items():
            line[name] = mask(value) if isinstance(value, str) else value
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(self._encode(line))

    def _flush(self) -> None:
        text = b"\n".join(self._lines).decode()
        self._lines.clear()
        _put(self._stream, text + "\n")


def _put(stream: _Stream, text: str) -> None:
    """Write, or leave it where that cannot be: a log that nobody takes, or a full disk, stops nobody's work."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        return


_access_log: _AccessLog | None = None


def log_request(fields: Mapping[str, Any]) -> None:
    """Write a request's line in the access log; called in its event loop."""
    if _access_log is not None:
        _access_log.write(fields)
    else:
        structlog.get_logger("access").info("request", **fields)


def mask(text: str) -> str:
    """Return ``text`` with what looks like a token, a credential or a URL's password replaced by ``***``."""
    if _SUSPECT.search(text):  # one quick look, because nearly every value of nearly every line is innocent
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return text


def configure_logging(level: str = "info") -> None:
    """Send structlog's and the standard library's records to standard error, from ``level`` on."""
    global _access_log  # noqa: PLW0603 - as structlog's configuration, it is the process's
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = sys.stderr
    _access_log = None if stream.isatty() or number > logging.INFO else _AccessLog(stream)
    render: Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if stream.isatty()
        else structlog.processors.JSONRenderer()
    )
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    after: list[Processor] = [structlog.processors.format_exc_info, _masked, render]
    structlog.configure(
        processors=[*before, *after],
        logger_factory=lambda *names: _Line(stream, *names),
        wrapper_class=structlog.make_filtering_bound_logger(number),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *after],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    for name, least in _CHATTY.items():
        logging.getLogger(name).setLevel(max(number, least))


def _masked(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    names = [name for name in _FIRST if name in line] + [name for name in line if name not in _FIRST]
    return {name: _hide(name, line[name]) for name in names}


def _hide(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return HIDDEN if value and _is_secret(name) else mask(value)
    if isinstance(value, Mapping):
        return {key: _hide(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_hide(name, inner) for inner in value]
    return mask(repr(value))


@lru_cache(maxsize=1_024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None
