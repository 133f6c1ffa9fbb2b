"""The outbox for operators: what waits, what no broker takes, and having published events go out again."""

from datetime import datetime

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import get, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Struct

from core.errors import NotFound
from core.fields import Text
from entrypoints.api.bodies import AnyRequest, Strict
from entrypoints.api.dead_letters import Decision, act
from entrypoints.api.parameters import EventId, Id, Limit
from entrypoints.api.replies import Reply, answers, ok, page
from ports.replays import BlockedEvent, Replay, ReplayRange
from ports.store import Page, Store

_REPLAY = answers(Replay, name="ReplaySuccess")
_BLOCKED_SHOWN = 200


class OutboxState(Struct, frozen=True, rename="camel"):
    """What waits to be published: how many, 10,000 standing for more, since when, and the events no broker takes."""

    waiting: int
    oldest_at: datetime | None
    blocked: list[BlockedEvent]


class Release(Struct, frozen=True, forbid_unknown_fields=True):
    """Why; and whether to ``skip`` the event, which is then never published, or to have it tried again."""

    reason: Text
    skip: bool = False


class ReplayBody(ReplayRange, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Which published events to publish again, by at least one bound, and why."""

    reason: Text

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = (self.from_position, self.to_position, self.since, self.until, self.product_id)
        if all(bound is None for bound in bounds):
            raise ValueError("name at least one of fromPosition, toPosition, since, until, productId")


class OutboxPlugin(InitPlugin):
    """Events on their way out, in the hands of operators."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        handlers = [show, release, replay, list_replays, get_replay, cancel]
        app_config.route_handlers.append(DishkaRouter("/admin/outbox", route_handlers=handlers, tags=["Outbox"]))
        return app_config


@get(operation_id="getOutbox", responses=answers(OutboxState, name="OutboxSuccess"))
async def show(store: FromDishka[Store]) -> Reply:
    """Return what waits to be published, and the events that no broker takes, each of which holds back its product."""
    backlog = await store.backlog()
    return ok(OutboxState(backlog.count, backlog.oldest_at, await store.blocked(_BLOCKED_SHOWN)))


@post(
    "/blocked/{eventId:str}/release",
    operation_id="releaseBlockedEvent",
    status_code=200,
    responses=answers(BlockedEvent, name="BlockedEventSuccess"),
)
async def release(request: AnyRequest, event_id: EventId, data: Strict[Release], store: FromDishka[Store]) -> Reply:
    """Let a blocked event's product go on: the event is tried again or, with `skip`, never published.

    Consumers see a skipped event as a gap in the product's `sequence`.
    """
    return ok(await store.release_blocked(event_id, act(request, data.reason), skip=data.skip))


@post(
    "/replay",
    operation_id="replayEvents",
    status_code=202,
    responses=answers(Replay, name="ReplayBegun", status=202),
)
async def replay(request: AnyRequest, data: Strict[ReplayBody], store: FromDishka[Store]) -> Reply:
    """Have the relay publish events again, with the same eventIds. Published events are kept 30 days."""
    begun = await store.begin_replay(data, act(request, data.reason))
    return ok(begun, status=202, location=f"/admin/outbox/replays/{begun.id}")


@get("/replays", operation_id="listReplays", responses=answers(Replay, name="ReplayList", listed=True))
async def list_replays(store: FromDishka[Store], limit: Limit = 50) -> Reply:
    """List the last replays, newest first."""
    return page(Page(tuple(await store.replays(limit)), None))


@get("/replays/{id:str}", operation_id="getReplay", responses=_REPLAY)
async def get_replay(replay_id: Id, store: FromDishka[Store]) -> Reply:
    """Return how far a replay is."""
    found = await store.replay(replay_id)
    if found is None:
        raise NotFound(f"There is no replay {replay_id}.", replayId=replay_id)
    return ok(found)


@post("/replays/{id:str}/cancel", operation_id="cancelReplay", status_code=200, responses=_REPLAY)
async def cancel(request: AnyRequest, replay_id: Id, data: Strict[Decision], store: FromDishka[Store]) -> Reply:
    """Stop a replay; what went out has gone out."""
    return ok(await store.cancel_replay(replay_id, act(request, data.reason)))
