"""The rules of a reservation's life: promised, confirmed, fulfilled in parts, given back, run out (rules R10, R11)."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from core.errors import Conflict, InsufficientStock, ItemInactive, NotFound, ReservationExpired, ValidationFailed
from core.ids import new_id
from core.operations import (
    Confirm,
    Expire,
    Extend,
    Fulfil,
    FulfilBody,
    Release,
    ReservationStep,
    Reserve,
    ReserveLine,
)
from core.rules.book import SYSTEM, Book, Cause, Posting
from core.rules.sourcing import Candidate, Strategy
from core.stock import Choice, Considered, Item, Reservation, ReservationLine


def reserve(book: Book, operation: Reserve, cause: Cause) -> Reservation:
    """Promise the units of all lines, or of none.

    Raises:
        NotFound, ItemInactive, InsufficientStock, ValidationFailed: refused; nothing changed.
    """
    wanted, choices = _sourced(book, operation)
    items = {id: book.items[id] for id in wanted}
    posting = Posting(book, cause, operation)
    reservation = Reservation(
        id=new_id("res"),
        status="HELD",
        reference_type=operation.reference_type,
        reference_number=operation.reference_number,
        lines=tuple(
            ReservationLine(
                inventory_item_id=id,
                product_id=item.product_id,
                warehouse_id=item.warehouse_id,
                sku=item.sku,
                quantity=wanted[id],
            )
            for id, item in items.items()
        ),
        expires_at=book.now + timedelta(seconds=operation.expires_in_seconds),
        created_at=book.now,
        updated_at=book.now,
    )
    for id, item in items.items():
        posting.post(item, "RESERVATION", reserved=wanted[id], reservation_id=reservation.id)
    posting.close()
    book.reservations[reservation.id] = reservation
    return replace(reservation, explanation=tuple(choices)) if operation.explain else reservation


def _sourced(book: Book, operation: Reserve) -> tuple[dict[str, int], list[Choice]]:
    """Return the units to take of each item, and why; nothing is taken yet.

    Lines that name an item come first, then those with the fewest candidates: one that may take from anywhere must not
    take what another can only have here. First fit, not a search: lines that overlap otherwise than by nesting may be
    refused although another split would serve them.
    """
    strategy = _strategy(book, operation)
    wanted: dict[str, int] = {}
    for line in operation.lines:
        if line.inventory_item_id is not None:
            wanted[line.inventory_item_id] = wanted.get(line.inventory_item_id, 0) + line.quantity
    short = [each for id, quantity in wanted.items() if (each := _short_of(_for_sale(book, id), quantity))]
    choices: list[Choice] = []
    open_lines = [(number, line) for number, line in enumerate(operation.lines) if line.inventory_item_id is None]
    asked = [(number, line, _candidates(book, operation, line)) for number, line in open_lines]
    for number, line, items in sorted(asked, key=lambda each: len(each[2])):
        free = [(item, item.available - wanted.get(item.id, 0)) for item in items]
        candidates = [Candidate(item, book.warehouses[item.warehouse_id], units) for item, units in free if units > 0]
        available = sum(candidate.available for candidate in candidates)
        if available < line.quantity:
            short.append({**_name(line), "requested": line.quantity, "available": available})
            continue
        chosen = strategy(candidates, line.quantity)
        taken = {candidate.item.id: units for candidate, units in chosen}
        fits = all(0 < units <= candidate.available for candidate, units in chosen)
        if not fits or sum(taken.values()) != line.quantity:
            raise RuntimeError(f"sourcing strategy {operation.sourcing} took {taken} for {line.quantity}")
        for id, units in taken.items():
            wanted[id] = wanted.get(id, 0) + units
        choices.append(Choice(line=number, strategy=operation.sourcing, considered=_considered(candidates, taken)))
    if short:
        first = short[0]
        raise InsufficientStock(
            f"{first['available']} of {next(iter(first.values()))} are available, {first['requested']} were asked for; "
            "nothing was reserved.",
            lines=short,
        )
    return wanted, choices


def _for_sale(book: Book, id: str) -> Item:
    item = book.item(id)
    if item.status != "ACTIVE":
        raise ItemInactive(f"Item {item.id} is inactive and cannot be reserved.", inventoryItemId=item.id)
    return item


def _short_of(item: Item, quantity: int) -> dict[str, Any] | None:
    if quantity <= item.available:
        return None
    return {"inventoryItemId": item.id, "requested": quantity, "available": item.available}


def _strategy(book: Book, operation: Reserve) -> Strategy:
    if (strategy := book.sourcing.get(operation.sourcing)) is None:
        known = ", ".join(sorted(book.sourcing))
        raise ValidationFailed(f"There is no sourcing strategy {operation.sourcing}; choose one of: {known}.")
    return strategy


def _name(line: ReserveLine) -> dict[str, str]:
    return {"sku": line.sku} if line.sku is not None else {"productId": line.product_id or ""}


def _candidates(book: Book, operation: Reserve, line: ReserveLine) -> list[Item]:
    """Return the items that may serve a line: of its SKU or product, for sale, where the caller allows."""
    items = [each for each in book.of(sku=line.sku, product_id=line.product_id) if each.product_id in book.products]
    if not items:
        ((kind, name),) = _name(line).items()
        raise NotFound(f"There is no inventory item of {kind} {name}.", **{kind: name})
    active = [item for item in items if item.status == "ACTIVE"]
    if not active:
        raise ItemInactive("Every inventory item of this line is inactive and cannot be reserved.", **_name(line))
    allowed = {line.warehouse_id} if line.warehouse_id is not None else set(book.warehouses)
    if operation.warehouse_ids is not None:
        allowed &= set(operation.warehouse_ids)
    return [item for item in active if item.warehouse_id in allowed and book.warehouses[item.warehouse_id].active]


def _considered(candidates: list[Candidate], taken: dict[str, int]) -> tuple[Considered, ...]:
    return tuple(
        Considered(
            inventory_item_id=candidate.item.id,
            warehouse_id=candidate.warehouse.id,
            warehouse_priority=candidate.warehouse.priority,
            available=candidate.available,
            taken=taken.get(candidate.item.id, 0),
        )
        for candidate in sorted(candidates, key=lambda candidate: candidate.rank)
    )


def expire_due(book: Book) -> None:
    """Free what the due holds in the book still hold of the locked products, with ledger rows and events (rule R10).

    A hold may also have lines on products that are not locked here: those wait for a batch that locks them. The hold
    is EXPIRED when its last line is free.
    """
    for reservation in [*book.reservations.values()]:
        if reservation.status == "HELD" and reservation.expires_at and reservation.expires_at <= book.now:
            _expire(book, reservation)


def _expire(book: Book, reservation: Reservation) -> None:
    posting = Posting(book, Cause(SYSTEM), reservation)
    lines = list(reservation.lines)
    for place, line in enumerate(lines):
        item = book.items.get(line.inventory_item_id)
        if line.held and item is not None and item.product_id in book.products:
            posting.expired[item.id] = (reservation, line.held)
            posting.post(item, "EXPIRY", reserved=-line.held, reservation_id=reservation.id)
            lines[place] = replace(line, released_quantity=line.released_quantity + line.held)
    posting.close()
    over = not any(line.held for line in lines)
    book.reservations[reservation.id] = replace(
        reservation,
        lines=tuple(lines),
        status="EXPIRED" if over else "HELD",
        updated_at=book.now if over else reservation.updated_at,
    )


def _named(book: Book, operation: ReservationStep) -> Reservation:
    if (reservation := book.reservations.get(operation.reservation_id)) is None:
        raise NotFound(f"There is no reservation {operation.reservation_id}.", reservationId=operation.reservation_id)
    return reservation


def _live(book: Book, operation: ReservationStep) -> Reservation:
    reservation = _named(book, operation)
    over = reservation.expires_at is not None and reservation.expires_at <= book.now
    if reservation.status == "EXPIRED" or (reservation.status == "HELD" and over):
        raise ReservationExpired(
            f"Reservation {reservation.id} expired; its units are free again. Reserve anew.",
            reservationId=reservation.id,
            expiresAt=reservation.expires_at,
        )
    if reservation.status in ("RELEASED", "FULFILLED"):
        raise Conflict(
            f"Reservation {reservation.id} is {reservation.status}; nothing can be done with it any more.",
            reservationId=reservation.id,
            status=reservation.status,
        )
    return reservation


def _step(book: Book, reservation: Reservation, **changes: Any) -> Reservation:
    reservation = replace(reservation, updated_at=book.now, **changes)
    book.reservations[reservation.id] = reservation
    return reservation


def _confirm(book: Book, operation: Confirm, _: Cause) -> Reservation:
    reservation = _live(book, operation)
    if reservation.status == "CONFIRMED":
        return reservation
    return _step(book, reservation, status="CONFIRMED", expires_at=None, confirmed_at=book.now)


def _extend(book: Book, operation: Extend, _: Cause) -> Reservation:
    reservation = _live(book, operation)
    if reservation.status == "CONFIRMED":
        raise Conflict(f"Reservation {reservation.id} is confirmed and does not expire.", reservationId=reservation.id)
    return _step(book, reservation, expires_at=book.now + timedelta(seconds=operation.expires_in_seconds))


def _fulfil(book: Book, operation: Fulfil, cause: Cause) -> Reservation:
    reservation = _live(book, operation)
    leaving = _leaving(book, reservation, operation.body)
    posting = Posting(book, cause, reservation)
    posting.reason = operation.body.reason
    lines = list(reservation.lines)
    for place, line in enumerate(lines):
        if quantity := leaving.get(line.inventory_item_id, 0):
            item = book.item(line.inventory_item_id)
            posting.post(item, "FULFILMENT", on_hand=-quantity, reserved=-quantity, reservation_id=reservation.id)
            lines[place] = replace(line, fulfilled_quantity=line.fulfilled_quantity + quantity)
    posting.close()
    return _step(
        book,
        reservation,
        lines=tuple(lines),
        status="CONFIRMED" if any(line.held for line in lines) else "FULFILLED",
        expires_at=None,
        confirmed_at=reservation.confirmed_at or book.now,
    )


def _leaving(book: Book, reservation: Reservation, body: FulfilBody) -> dict[str, int]:
    """Return the units to leave by item, all checked: held by the reservation, and on the shelf (rule R9)."""
    held = {line.inventory_item_id: line.held for line in reservation.lines}
    leaving = dict.fromkeys((line.inventory_item_id for line in body.lines or ()), 0)
    for line in body.lines or ():
        leaving[line.inventory_item_id] += line.quantity
    for id, quantity in (leaving := leaving or held).items():
        if quantity > held.get(id, 0):
            raise Conflict(
                f"Reservation {reservation.id} holds {held.get(id, 0)} of item {id}, not {quantity}.",
                inventoryItemId=id,
                requested=quantity,
                held=held.get(id, 0),
            )
        if quantity > (on_hand := book.item(id).on_hand):
            raise InsufficientStock(
                f"Item {id} has {on_hand} on hand and {quantity} should leave; receive or COUNT what is there first.",
                inventoryItemId=id,
                requested=quantity,
                available=on_hand,
            )
    return leaving


def _release(book: Book, operation: Release, cause: Cause) -> Reservation:
    reservation = _named(book, operation)
    if reservation.status not in ("HELD", "CONFIRMED"):
        return reservation
    posting = Posting(book, cause, reservation)
    posting.reason = operation.reason
    held = [(book.item(line.inventory_item_id), line.held) for line in reservation.lines if line.held]
    for item, quantity in held:
        posting.post(item, "RELEASE", reserved=-quantity, reservation_id=reservation.id)
    posting.close()
    lines = tuple(replace(line, released_quantity=line.released_quantity + line.held) for line in reservation.lines)
    shipped = any(line.fulfilled_quantity for line in lines)
    return _step(book, reservation, lines=lines, status="FULFILLED" if shipped else "RELEASED", expires_at=None)


def _look(book: Book, operation: Expire, _: Cause) -> Reservation:
    return _named(book, operation)


STEPS: dict[type, Callable[[Book, Any, Cause], Reservation]] = {
    Release: _release,
    Confirm: _confirm,
    Extend: _extend,
    Fulfil: _fulfil,
    Expire: _look,
}
"""What may happen to a reservation, by operation."""
