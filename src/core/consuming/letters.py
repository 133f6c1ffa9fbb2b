"""How a message that failed is kept: what it is known by, what can be told of it, when it is tried again."""

import random
import re
import traceback
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from core.errors import InventoryError, OutcomeUnknown, ProductServiceProtocolError, Unavailable
from core.fields import Word
from ports.broker import Message
from ports.dead_letters import DeadLetter

BODY_BYTES_MAX = 1024 * 1024
LATER = (Unavailable, OutcomeUnknown, ProductServiceProtocolError)
"""Failures that say nothing of the message: by whichever way it came, it is tried again."""
_CAUSE_CHARACTERS_MAX = 300
_SKUS_MAX = 500
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\b\w*\d\w*\b")
_WAIT_SECONDS = 5.0
_WAIT_SECONDS_MAX = 600.0
_ATTEMPTS = 15


class CrashLoop(InventoryError):
    """Whoever handled this message died of it or lost sight of it, several times; look at it before trying again."""

    code = "crash_loop"
    title = "The message ends its handlers"


class GivenUp(InventoryError):
    """The broker gave this message up before this service dealt with it; retry it."""

    code = "given_up"
    title = "The broker gave the message up"


def pause(attempts: int) -> float | None:
    """Return how long a letter waits after so many attempts (seconds, jittered); None: it is an operator's now."""
    if attempts % _ATTEMPTS == 0:
        return None
    longest: float = min(_WAIT_SECONDS_MAX, _WAIT_SECONDS * 2 ** min(attempts % _ATTEMPTS, 10))
    return longest * random.uniform(0.5, 1)


def letter_of(
    message: Message,
    error: InventoryError,
    *,
    attempts: int,
    process: str = "",
    retry_seconds: float | None = None,
    glance: bool = True,
) -> DeadLetter:
    """Return a failed message as it is kept, with what a ``glance`` at its body tells."""
    whole = readable(message.body) if glance else None
    event_id, product_id, skus = _told(whole)
    if not message.type:  # the property is optional, and operators search by it
        message = replace(message, type=_word(field(whole, "eventType")) or "")
    return DeadLetter(
        fingerprint=fingerprint_of(message),
        message=message,
        code=error.code,
        detail=error.detail,
        stack="".join(traceback.format_exception(error)),
        attempts=attempts,
        cause=_cause(error),
        event_id=event_id,
        product_id=product_id,
        skus=skus,
        retry_seconds=retry_seconds,
        process=process,
    )


def fingerprint_of(message: Message) -> str:
    """Return what a message is known by: whoever sends two different ones under one id must not lose the second."""
    return sha256(message.id.encode() + b"\n" + message.body).hexdigest()


def _cause(error: InventoryError) -> str:
    """Return the error's sentence without what is particular to one message."""
    text = error.detail
    for value in error.extra.values():
        text = text.replace(str(value), "…")
    return _PARTICULAR.sub("…", text)[:_CAUSE_CHARACTERS_MAX]


def _told(whole: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """Return event id, product id and SKUs as far as they can be read of a body that nobody understands."""
    payload = field(whole, "payload")
    variants = field(payload, "variants")
    named = [payload, *(variants if isinstance(variants, list) else ())]
    skus = (_word(field(each, "sku")) for each in named)
    return (
        _word(field(whole, "eventId")) or "",
        _word(field(payload, "productId")),
        tuple(dict.fromkeys(sku for sku in skus if sku is not None))[:_SKUS_MAX],
    )


def readable(body: bytes) -> Any:
    """Return the JSON in a body, None where there is none."""
    try:
        return msgspec.json.decode(body) if len(body) <= BODY_BYTES_MAX else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def field(value: Any, name: str) -> Any:
    """Return a field of what may be an object, None where there is none."""
    return value.get(name) if isinstance(value, dict) else None


def _word(value: Any) -> str | None:
    try:
        return msgspec.convert(value, type=Word)
    except msgspec.ValidationError:
        return None
