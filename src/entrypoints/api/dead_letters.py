"""Dead letters for operators: find them, look at them, and have them tried again, edited or discarded.

Whoever acts on a letter claims it: of two, one wins and the other gets 409. Each act is on record with who and why.
"""

from typing import Annotated, Any

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import get, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Meta, Struct

from core.acts import Act
from core.consuming.dead_letters import DeadLetters
from core.errors import NotFound, ValidationFailed
from core.fields import Id as IdField
from core.fields import Text
from entrypoints.api.bodies import AnyRequest, Strict
from entrypoints.api.headers import header
from entrypoints.api.parameters import (
    Cause,
    CorrelationFilter,
    Cursor,
    ErrorCode,
    EventTypeFilter,
    GroupFilter,
    Id,
    LetterState,
    Limit,
    NameFilter,
    ProductFilter,
    Since,
    SkuFilter,
    Until,
    cursor_id,
    instant,
)
from entrypoints.api.replies import Reply, answers, ok, page
from ports.dead_letters import Letter, LetterDetail, LetterFilter, LetterGroup, Retry
from ports.store import Page, Store

BODY_MAX = 1024 * 1024
_LETTER = answers(Letter, name="DeadLetterSuccess")
_DETAIL = answers(LetterDetail, name="DeadLetterDetailSuccess")
_RETRY = answers(Retry, name="DeadLetterRetrySuccess")


class Decision(Struct, frozen=True, forbid_unknown_fields=True):
    """Why; there is no decision without it."""

    reason: Text


class RetryOne(Struct, frozen=True, forbid_unknown_fields=True):
    """Why it should work now."""

    reason: Text | None = None


class Edit(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole event as it should have been, and why. Its eventId stays."""

    body: dict[str, Any]
    reason: Text


class Note(Struct, frozen=True, forbid_unknown_fields=True):
    """A note for whoever looks next; null takes it off."""

    note: Text | None


class RetryMany(Struct, frozen=True, forbid_unknown_fields=True):
    """Which unresolved letters to try again: ``ids``, or a ``filter`` (a group is the filter ``groupId``).

    With ``canary`` one is tried first, and the others are left alone if it fails.
    """

    ids: Annotated[tuple[IdField, ...], Meta(min_length=1, max_length=1000)] | None = None
    filter: LetterFilter | None = None
    canary: bool = True
    reason: Text | None = None

    def __post_init__(self) -> None:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("name either ids or a filter; an empty filter means all that are unresolved")


class DeadLettersPlugin(InitPlugin):
    """Messages that failed, in the hands of operators."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        handlers = [list_letters, list_groups, get_letter, retry_one, edit, discard, restore, note]
        handlers += [retry_many, list_retries, get_retry, cancel]
        router = DishkaRouter("/admin/dead-letters", route_handlers=handlers, tags=["Dead letters"])
        app_config.route_handlers.append(router)
        return app_config


# -- looking -----------------------------------------------------------------------------------------------------------


@get(operation_id="listDeadLetters", responses=answers(Letter, name="DeadLetterList", listed=True))
async def list_letters(
    store: FromDishka[Store],
    *,
    status: LetterState = None,
    name: NameFilter = None,
    correlation_id: CorrelationFilter = None,
    event_type: EventTypeFilter = None,
    code: ErrorCode = None,
    text: Cause = None,
    group_id: GroupFilter = None,
    sku: SkuFilter = None,
    product_id: ProductFilter = None,
    since: Since = None,
    until: Until = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Reply:
    """List dead letters, the newest first; filters narrow each other. `since` and `until` bound the last failure."""
    wanted = LetterFilter(
        status=status,
        id=name,
        correlation_id=correlation_id,
        type=event_type,
        code=code,
        text=text,
        group_id=group_id,
        sku=sku,
        product_id=product_id,
        since=instant(since, "since"),
        until=instant(until, "until"),
    )
    rows = await store.letters(wanted, after=cursor_id(cursor), limit=limit + 1)
    return page(Page(tuple(rows[:limit]), rows[limit - 1].id if len(rows) > limit else None))


@get("/groups", operation_id="groupDeadLetters", responses=answers(LetterGroup, name="DeadLetterGroups", listed=True))
async def list_groups(store: FromDishka[Store], status: LetterState = "UNRESOLVED", limit: Limit = 50) -> Reply:
    """Count dead letters by what failed, the most frequent first. `groupId` filters lists and retries."""
    return page(Page(tuple(await store.letter_groups(LetterFilter(status=status), limit=limit)), None))


@get("/{id:str}", operation_id="getDeadLetter", responses=_DETAIL)
async def get_letter(letter_id: Id, letters: FromDishka[DeadLetters]) -> Reply:
    """Return a dead letter with body, headers, stack, every attempt, what was done to it, and `applied`.

    `applied` is null unless its event has had its effect already, for instance by another delivery.
    """
    return ok(await letters.letter(letter_id))


# -- acting on one -----------------------------------------------------------------------------------------------------


@post("/{id:str}/retry", operation_id="retryDeadLetter", status_code=200, responses=_DETAIL)
async def retry_one(
    request: AnyRequest, letter_id: Id, letters: FromDishka[DeadLetters], data: Strict[RetryOne | None] = None
) -> Reply:
    """Try a dead letter now. The answer is the letter afterwards: RESOLVED, or why it failed again."""
    return ok(await letters.retry(letter_id, act(request, data.reason if data else None)))


@post(
    "/{id:str}/edit",
    operation_id="editDeadLetter",
    status_code=200,
    responses=_DETAIL,
    request_max_body_size=BODY_MAX,
)
async def edit(request: AnyRequest, letter_id: Id, data: Strict[Edit], letters: FromDishka[DeadLetters]) -> Reply:
    """Replace a dead letter by one with another body and try that. The answer is the new letter; both are linked."""
    return ok(await letters.edit(letter_id, data.body, act(request, data.reason)))


@post("/{id:str}/discard", operation_id="discardDeadLetter", status_code=200, responses=_LETTER)
async def discard(request: AnyRequest, letter_id: Id, data: Strict[Decision], store: FromDishka[Store]) -> Reply:
    """Decide against a dead letter. It can be restored for 90 days."""
    return ok(await store.discard_letter(letter_id, act(request, data.reason)))


@post("/{id:str}/restore", operation_id="restoreDeadLetter", status_code=200, responses=_LETTER)
async def restore(request: AnyRequest, letter_id: Id, data: Strict[Decision], store: FromDishka[Store]) -> Reply:
    """Take back that a dead letter was discarded."""
    return ok(await store.restore_letter(letter_id, act(request, data.reason)))


@post("/{id:str}/note", operation_id="noteDeadLetter", status_code=200, responses=_LETTER)
async def note(request: AnyRequest, letter_id: Id, data: Strict[Note], store: FromDishka[Store]) -> Reply:
    """Put a note on a dead letter, or take it off."""
    return ok(await store.note_letter(letter_id, data.note, act(request, None)))


# -- acting on many ----------------------------------------------------------------------------------------------------


@post(
    "/retries",
    operation_id="retryDeadLetters",
    status_code=202,
    responses=answers(Retry, name="DeadLetterRetryBegun", status=202),
)
async def retry_many(request: AnyRequest, data: Strict[RetryMany], store: FromDishka[Store]) -> Reply:
    """Have many dead letters tried again by the consumers, 20,000 at most. The answer is where to watch it."""
    which = data.filter if data.ids is None else data.ids
    assert which is not None
    retry = await store.begin_retry(which, act(request, data.reason), canary=data.canary)
    return ok(retry, status=202, location=f"/admin/dead-letters/retries/{retry.id}")


@get("/retries", operation_id="listDeadLetterRetries", responses=answers(Retry, name="DeadLetterRetries", listed=True))
async def list_retries(store: FromDishka[Store], limit: Limit = 50) -> Reply:
    """List the last retries of many, newest first."""
    return page(Page(tuple(await store.retries(limit=limit)), None))


@get("/retries/{id:str}", operation_id="getDeadLetterRetry", responses=_RETRY)
async def get_retry(retry_id: Id, store: FromDishka[Store]) -> Reply:
    """Return how far a retry is: of `total` so many `succeeded`, `failed` again, or are `left`."""
    retry = await store.retry(retry_id)
    if retry is None:
        raise NotFound(f"There is no retry {retry_id}.", retryId=retry_id)
    return ok(retry)


@post("/retries/{id:str}/cancel", operation_id="cancelDeadLetterRetry", status_code=200, responses=_RETRY)
async def cancel(request: AnyRequest, retry_id: Id, data: Strict[Decision], store: FromDishka[Store]) -> Reply:
    """Stop a retry. What is in hand is still finished, what is left is unresolved again."""
    return ok(await store.cancel_retry(retry_id, act(request, data.reason)))


def act(request: AnyRequest, reason: str | None) -> Act:
    """Return the act that a request asks for, by whom it comes from.

    Raises:
        ValidationFailed: it came with an idempotency key.
    """
    if header(request.scope, "idempotency-key") is not None:
        raise ValidationFailed("Idempotency-Key means nothing here, a second act of the kind is refused; leave it out.")
    correlation_id = request.scope["state"]["caller_correlation_id"]
    return Act(actor=request.user.subject, reason=reason, correlation_id=correlation_id)
