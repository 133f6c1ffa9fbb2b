"""Reservations: promise units to a cart, confirm, extend, fulfil in whole or part, give back."""

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import get, post
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from msgspec import Struct

from core.errors import NotFound
from core.fields import Text
from core.operations import Confirm, Extend, ExtendBody, Fulfil, FulfilBody, Release, Reserve
from core.stock import Reservation
from core.writing.writer import Writer
from entrypoints.api.bodies import AnyRequest, Strict
from entrypoints.api.parameters import (
    ConfirmedBefore,
    Cursor,
    Id,
    Limit,
    ReferenceNumber,
    ReferenceType,
    ReservationState,
    instant,
)
from entrypoints.api.replies import Reply, answers, ok, page
from entrypoints.api.writing import perform
from ports.store import ReservationFilter, Store

_ANSWER = answers(Reservation, name="ReservationSuccess")


class ReleaseBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Why the units are given back."""

    reason: Text | None = None


class ReservationsPlugin(InitPlugin):
    """The life of a reservation."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        handlers = [reserve, list_reservations, get_reservation, confirm, extend, fulfil, release]
        app_config.route_handlers.append(DishkaRouter("/reservations", route_handlers=handlers, tags=["Reservations"]))
        return app_config


@post(operation_id="reserve", responses=answers(Reservation, name="ReservationCreated", status=201))
async def reserve(request: AnyRequest, data: Strict[Reserve], writer: FromDishka[Writer]) -> Reply:
    """Promise units to a cart or order: all lines or none. The hold ends by itself after `expiresInSeconds`."""
    reservation: Reservation = await perform(request, writer, data)
    return ok(reservation, status=201, location=f"/reservations/{reservation.id}")


@get(operation_id="listReservations", responses=answers(Reservation, name="ReservationList", listed=True))
async def list_reservations(
    store: FromDishka[Store],
    reference_type: ReferenceType = None,
    reference_number: ReferenceNumber = None,
    status: ReservationState = None,
    confirmed_before: ConfirmedBefore = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Reply:
    """List reservations, oldest first; filters narrow each other.

    `status=CONFIRMED&confirmedBefore=…` finds orders that were confirmed long ago and have not left yet.
    """
    wanted = ReservationFilter(
        reference_type=reference_type,
        reference_number=reference_number,
        status=status,
        confirmed_before=instant(confirmed_before, "confirmedBefore"),
    )
    return page(await store.reservations(wanted, cursor=cursor, limit=limit))


@get("/{id:str}", operation_id="getReservation", responses=_ANSWER)
async def get_reservation(reservation_id: Id, store: FromDishka[Store]) -> Reply:
    """Return a reservation with its lines."""
    reservation = await store.reservation(reservation_id)
    if reservation is None:
        raise NotFound(f"There is no reservation {reservation_id}.", reservationId=reservation_id)
    return ok(reservation)


@post("/{id:str}/confirm", operation_id="confirmReservation", status_code=200, responses=_ANSWER)
async def confirm(request: AnyRequest, reservation_id: Id, writer: FromDishka[Writer]) -> Reply:
    """Turn the hold into a commitment that does not expire. Confirming twice changes nothing."""
    return ok(await perform(request, writer, Confirm(reservation_id=reservation_id)))


@post("/{id:str}/extend", operation_id="extendReservation", status_code=200, responses=_ANSWER)
async def extend(
    request: AnyRequest, reservation_id: Id, writer: FromDishka[Writer], data: Strict[ExtendBody | None] = None
) -> Reply:
    """Let the hold last `expiresInSeconds` from now. The body may be left out."""
    seconds = (data or ExtendBody()).expires_in_seconds
    return ok(await perform(request, writer, Extend(reservation_id=reservation_id, expires_in_seconds=seconds)))


@post("/{id:str}/fulfil", operation_id="fulfilReservation", status_code=200, responses=_ANSWER)
async def fulfil(
    request: AnyRequest, reservation_id: Id, writer: FromDishka[Writer], data: Strict[FulfilBody | None] = None
) -> Reply:
    """Record that promised goods left: the lines given, or everything still held where the body is left out."""
    return ok(await perform(request, writer, Fulfil(reservation_id=reservation_id, body=data or FulfilBody())))


@post("/{id:str}/release", operation_id="releaseReservation", status_code=200, responses=_ANSWER)
async def release(
    request: AnyRequest, reservation_id: Id, writer: FromDishka[Writer], data: Strict[ReleaseBody | None] = None
) -> Reply:
    """Give back what the reservation still holds; an ended one stays as it is. The body may be left out."""
    reason = data.reason if data is not None else None
    return ok(await perform(request, writer, Release(reservation_id=reservation_id, reason=reason)))
