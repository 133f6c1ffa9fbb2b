"""From a request to the writer: who asks, under which name, and what became of it."""

from typing import Any

from litestar import Request

from core.errors import InventoryError, ValidationFailed
from core.operations import AmendExpected, Operation, Outcome, UpdateItem, UpdateWarehouse
from core.operations import Request as Submission
from core.writing.writer import Writer
from entrypoints.api.headers import header, idempotency_key

_VERSIONED = (UpdateItem, UpdateWarehouse, AmendExpected)
_OVERHEAD = 512
"""Bytes that the smallest request weighs while it waits."""


async def submit(request: Request[Any, Any, Any], writer: Writer, operations: tuple[Operation, ...]) -> list[Outcome]:
    """Carry out ``operations`` for the caller of ``request`` and return the outcome of each.

    Raises:
        ValidationFailed: the idempotency key is not acceptable, or If-Match came where nothing looks at it.
        InventoryError: nothing was carried out; see ``Writer.submit``.
    """
    scope = request.scope
    if not isinstance(operations[0], _VERSIONED) and header(scope, "if-match") is not None:
        raise ValidationFailed("If-Match means nothing here; say expectedVersion in the operation, or leave it out.")
    principal = request.user
    body = await request.body()
    submission = Submission(
        operations=operations,
        actor=principal.subject,
        correlation_id=scope["state"]["caller_correlation_id"],
        key=idempotency_key(scope, principal, body),
        size=len(body) + _OVERHEAD,
    )
    return await writer.submit(submission)


async def perform(request: Request[Any, Any, Any], writer: Writer, operation: Operation) -> Any:
    """Carry out one operation and return its result.

    Raises:
        InventoryError: it was refused; see ``submit`` as well.
    """
    (outcome,) = await submit(request, writer, (operation,))
    if isinstance(outcome, InventoryError):
        raise outcome
    return outcome
