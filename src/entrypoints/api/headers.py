"""What we read from request headers, straight from the ASGI scope: this runs for every request."""

import re
from hashlib import sha256
from typing import Any

from litestar.types import HTTPScope, Scope

from adapters.tokens.verifier import Principal
from core.errors import ValidationFailed
from core.operations import IdempotencyKey

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_STRONG = re.compile(r'"([0-9]{1,18})"')
_TAG = re.compile(r'(?:W/)?"([^"]*)"')
NO_VERSION = -1
"""Equal to no version: what an If-Match means that cannot match."""


def header(scope: Scope, name: str) -> str | None:
    """Return the value of the header ``name`` (lower case), None where there is none.

    Raises:
        ValidationFailed: it came more than once, and two readers could take different ones for the truth.
    """
    state: dict[str, Any] = scope["state"]
    if (headers := state.get("headers")) is None:
        headers = state["headers"] = _by_name(scope)
    values: list[str] = headers.get(name, [])
    if len(values) > 1:
        raise ValidationFailed(f"The header {name} came {len(values)} times; send it once.")
    return values[0] if values else None


def _by_name(scope: Scope) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return headers


def if_match(scope: Scope) -> int | None:
    """Return the version that If-Match demands, None where any will do.

    Raises:
        ValidationFailed: the header is not one entity tag.
    """
    value = header(scope, "if-match")
    if value is None or value == "*":
        return None
    strong = _STRONG.fullmatch(value)
    if strong is not None:
        return int(strong[1])
    if _TAG.fullmatch(value) is None:
        raise ValidationFailed('If-Match must be one entity tag as this service sends it, such as "7", or *.')
    return NO_VERSION


def knows(scope: Scope, version: int | str) -> bool:
    """Tell whether If-None-Match names ``version``: the caller has it already."""
    values = [value for key, value in scope["headers"] if key == b"if-none-match"]
    if not values:
        return False
    text = b",".join(values).decode("latin-1")
    return text.strip() == "*" or str(version) in _TAG.findall(text)


def idempotency_key(scope: HTTPScope, principal: Principal, body: bytes) -> IdempotencyKey | None:
    """Return the caller's name for this request, None where it gave none. The fingerprint is rule R4's.

    Raises:
        ValidationFailed: the key is not 1 to 255 visible ASCII characters.
    """
    key = header(scope, "idempotency-key")
    if key is None:
        return None
    if _KEY.fullmatch(key) is None:
        raise ValidationFailed("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    parts = (scope["method"].encode(), scope["path"].encode(), (header(scope, "if-match") or "").encode(), body)
    # Each part behind its length: no two requests can read the same.
    fingerprint = sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()
    return IdempotencyKey(principal.issuer, principal.subject, key, fingerprint)
