"""Request bodies: JSON as strict as a ledger needs it, decoded once, straight into the operation asked for.

Handlers declare a body as ``data: Strict[Type]``, which puts it into the OpenAPI document; Litestar's own decoding is
replaced here, because it lets pass what two readers could understand differently: a name that occurs twice, numbers in
quotes, any content type.
"""

import asyncio
import json
import re
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from litestar import Request
from litestar.enums import RequestEncodingType
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.params import BodyKwarg, SkipValidationMarker
from litestar.types import Empty
from msgspec import Meta, Struct

from adapters.tokens.verifier import Principal
from core.errors import ValidationFailed
from core.operations import StockOperation
from core.writing.lane import BATCH_OPERATIONS
from entrypoints.api.headers import header
from entrypoints.api.problems import RequestTimeout, UnsupportedMediaType, readable

BODY_MAX = 64 * 1024
BODY_SECONDS = 10
DEPTH_MAX = 32

T = TypeVar("T")
AnyRequest: TypeAlias = Request[Any, Any, Any]
"""A request as handlers take it."""
Strict: TypeAlias = Annotated[T, BodyKwarg(media_type=RequestEncodingType.JSON), SkipValidationMarker()]

_JSON_TYPE = re.compile(r'application/json *(?:; *charset *= *"?utf-8"?)?', re.IGNORECASE)
# An odd number of backslashes before u0000; PostgreSQL cannot store what it stands for.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Batch(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Stock operations sent together: one commit, each answered on its own."""

    operations: Annotated[tuple[StockOperation, ...], Meta(min_length=1, max_length=BATCH_OPERATIONS)]


class StrictRequest(Request[Principal, Any, Any]):
    """A request whose body is decoded by the rules above."""

    async def body(self) -> bytes:
        """Return the body's bytes. Read here: Litestar's own way makes four objects of each header first.

        Raises:
            RequestTimeout: it did not come in time.
            ValidationFailed: it did not come to its end.
            RequestEntityTooLarge: it is larger than the route takes.
        """
        if self._body is Empty:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    self._body = await self._read()
            except TimeoutError:
                raise RequestTimeout(f"The body did not come within {BODY_SECONDS} seconds; send it again.") from None
        return self._body

    async def _read(self) -> bytes:
        largest = self.route_handler.resolve_request_max_body_size() or BODY_MAX
        announced = header(self.scope, "content-length") or ""
        if announced.isdecimal() and int(announced) > largest:
            raise RequestEntityTooLarge
        body = b""
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ValidationFailed("The body ended before it was complete.")
            body += message["body"]
            if len(body) > largest:
                raise RequestEntityTooLarge
            if not message.get("more_body", False):
                return body

    async def json(self) -> Any:
        """Return the body as what the handler's ``data`` parameter is declared to be.

        Raises:
            UnsupportedMediaType: it is not plain JSON.
            ValidationFailed: it is not valid.
        """
        if _JSON_TYPE.fullmatch(header(self.scope, "content-type") or "") is None:
            raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
        if header(self.scope, "content-encoding") not in (None, "identity"):
            raise UnsupportedMediaType("Send the body without Content-Encoding.")
        declared = self.route_handler.parsed_fn_signature.parameters["data"].annotation
        return decode(await self.body(), declared)


def decode(body: bytes, declared: Any) -> Any:
    """Return ``body`` as an instance of the type ``declared``.

    Raises:
        ValidationFailed: it is not, and the detail says where.
    """
    try:
        document = _JSON.decode(body.decode())
        _check(body, document)
        if declared == StockOperation | Batch:
            declared = Batch if isinstance(document, dict) and "operations" in document else StockOperation
        return _decoder(declared).decode(body)
    except UnicodeDecodeError:
        detail = "The body is not UTF-8."
    except json.JSONDecodeError as error:
        detail = f"The body is not JSON: {error.msg} at character {error.pos}."
    except RecursionError:
        detail = f"The body is nested more than {DEPTH_MAX} levels deep."
    except msgspec.ValidationError as error:
        message, _, where = readable(str(error)).partition(" - at ")
        detail = f"The body is not valid at {where}: {message}." if where else f"The body is not valid: {message}."
    except ValueError as error:
        detail = f"The body is not JSON: {error}."
    raise ValidationFailed(detail)


@lru_cache
def _decoder(declared: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(declared)


def _check(body: bytes, document: Any) -> None:
    if b"\\u0000" in body and _NUL.search(body):
        raise ValidationFailed("The body must not hold the character NUL.")
    layer = [document]
    for _ in range(DEPTH_MAX):
        layer = [child for node in layer for child in _children(node)]
        if not layer:
            return
    raise RecursionError


def _children(node: Any) -> list[Any]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in inner if isinstance(child, dict | list)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return fields


_JSON = json.JSONDecoder(object_pairs_hook=_unique)
