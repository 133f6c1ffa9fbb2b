"""The stock rules: pure functions that decide one operation after another on a book of locked stock.

``decide`` either changes the book (balances, ledger rows, events) or raises and leaves it as it was. Nothing here reads
a clock, a database or a setting. Design section 3; rules R9, R11, R14.

Only a reservation asks whether an item is for sale: goods that move in the world are recorded for inactive items too.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from msgspec import UNSET
from msgspec.json import encode
from msgspec.structs import asdict, replace

from core.book import Book, Cause, Posting
from core.catalog import apply_product_event
from core.errors import (
    AlreadyExists,
    Conflict,
    InsufficientStock,
    ItemInactive,
    NotFound,
    PreconditionFailed,
    ReservationExpired,
    SkuConflict,
    ValidationFailed,
    VersionConflict,
)
from core.fields import BALANCE_MAX
from core.ids import new_id
from core.operations import (
    Activate,
    Adjust,
    ApplyProductEvent,
    Change,
    Confirm,
    Count,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    Expire,
    Extend,
    Fulfil,
    FulfilBody,
    Operation,
    Receive,
    Release,
    ReservationStep,
    Reserve,
    ReserveLine,
    Result,
    Return,
    SetPolicy,
    Ship,
    StockChange,
    Transfer,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
)
from core.sourcing import Candidate, Strategy
from core.stock import (
    Choice,
    Considered,
    Item,
    Product,
    Reservation,
    ReservationLine,
    TransactionType,
    Warehouse,
)

SYSTEM = "inventory-service"
"""The actor of what the service does by itself."""


def decide(book: Book, operation: Operation, cause: Cause) -> Result:
    """Apply ``operation`` to ``book`` and return its result.

    Raises:
        InventoryError: refused; the book is unchanged.
    """
    return _RULES[type(operation)](book, operation, cause)


# -- stock operations on one item ------------------------------------------------------------------------------------


def _change(book: Book, operation: Change, cause: Cause) -> StockChange:
    item = _item(book, operation.inventory_item_id)
    if operation.expected_version is not None and operation.expected_version != item.version:
        raise VersionConflict(
            f"The item is at version {item.version}, not {operation.expected_version}: read it again and decide anew.",
            currentVersion=item.version,
        )
    if operation.occurred_at is not None and operation.occurred_at > book.now + timedelta(seconds=1):
        raise ValidationFailed("occurredAt lies in the future; say when it happened, or leave it out.")
    posting = Posting(book, cause, operation)
    _CHANGES[type(operation)](posting, item, operation)
    posting.close()
    return StockChange(tuple(posting.rows), book.items[item.id])


def _receive(posting: Posting, item: Item, operation: Receive) -> None:
    _check_room(item, operation.quantity)
    posting.post(item, "RECEIPT", on_hand=operation.quantity)


def _return(posting: Posting, item: Item, operation: Return) -> None:
    _check_room(item, operation.quantity)
    posting.post(item, "RETURN", on_hand=operation.quantity)


def _ship(posting: Posting, item: Item, operation: Ship) -> None:
    _check_unreserved(item, operation.quantity)
    posting.post(item, "SHIPMENT", on_hand=-operation.quantity)


def _adjust(posting: Posting, item: Item, operation: Adjust) -> None:
    if operation.delta < 0:
        _check_unreserved(item, -operation.delta)
    _check_room(item, operation.delta)
    posting.post(item, "ADJUSTMENT", on_hand=operation.delta)


def _count(posting: Posting, item: Item, operation: Count) -> None:
    posting.post(item, "COUNT", on_hand=operation.counted_quantity - item.on_hand)


def _transfer(posting: Posting, item: Item, operation: Transfer) -> None:
    book = posting.book
    if operation.to_warehouse_id == item.warehouse_id:
        raise ValidationFailed("toWarehouseId is the warehouse the item is in; name another.")
    warehouse = _open_warehouse(book, operation.to_warehouse_id)
    _check_unreserved(item, operation.quantity)
    target = book.at(item.sku, warehouse.id)
    if target is not None and target.product_id != item.product_id:
        raise SkuConflict(
            f"SKU {item.sku} belongs to another product in warehouse {warehouse.id}; move it there first."
        )
    if target is None:
        target = replace(
            item,
            id=new_id("inv"),
            warehouse_id=warehouse.id,
            on_hand=0,
            reserved=0,
            available=0,
            shortfall=0,
            safety_stock=0,
            version=0,
            created_at=book.now,
        )
    _check_room(target, operation.quantity)
    posting.post(item, "TRANSFER_OUT", on_hand=-operation.quantity)
    posting.post(target, "TRANSFER_IN", on_hand=operation.quantity)


def _set_policy(posting: Posting, item: Item, operation: SetPolicy) -> None:
    policy = {
        name: value
        for name in ("safety_stock", "reorder_threshold", "target_stock_level")
        if (value := getattr(operation, name)) is not UNSET and value != getattr(item, name)
    }
    if policy:
        posting.post(item, "POLICY", **policy)


def _activate(posting: Posting, item: Item, _: Activate) -> None:
    if item.status != "ACTIVE":
        posting.post(item, "STATUS", status="ACTIVE")


def _deactivate(posting: Posting, item: Item, _: Deactivate) -> None:
    if item.status != "INACTIVE":
        posting.post(item, "STATUS", status="INACTIVE")


_CHANGES: dict[type, Callable[[Posting, Item, Any], None]] = {
    Receive: _receive,
    Return: _return,
    Ship: _ship,
    Adjust: _adjust,
    Count: _count,
    Transfer: _transfer,
    SetPolicy: _set_policy,
    Activate: _activate,
    Deactivate: _deactivate,
}


def _item(book: Book, id: str) -> Item:
    if (item := book.items.get(id)) is None:
        raise NotFound(f"There is no inventory item {id}.", inventoryItemId=id)
    return item


def _open_warehouse(book: Book, id: str) -> Warehouse:
    if (warehouse := book.warehouses.get(id)) is None:
        raise NotFound(f"There is no warehouse {id}; create it first.", warehouseId=id)
    if not warehouse.active:
        raise Conflict(f"Warehouse {id} is inactive and takes no new stock; activate it first.", warehouseId=id)
    return warehouse


def _check_unreserved(item: Item, quantity: int) -> None:
    """Refuse to take units that are promised; safety stock may go (rule R9)."""
    if item.on_hand - quantity < item.reserved:
        raise InsufficientStock(
            f"Item {item.id} has {item.on_hand} on hand, {item.reserved} of them reserved: {quantity} cannot leave. "
            "If the shelf really holds less than that, record it with a COUNT.",
            inventoryItemId=item.id,
            requested=quantity,
            available=max(item.on_hand - item.reserved, 0),
        )


def _check_room(item: Item, quantity: int) -> None:
    if item.on_hand + quantity > BALANCE_MAX:
        raise Conflict(f"Item {item.id} would hold more than {BALANCE_MAX} units; check the quantity.")


# -- reservations ----------------------------------------------------------------------------------------------------


def _reserve(book: Book, operation: Reserve, cause: Cause) -> Reservation:
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
    item = _item(book, id)
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
            item = _item(book, line.inventory_item_id)
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
        if quantity > (on_hand := _item(book, id).on_hand):
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
    held = [(_item(book, line.inventory_item_id), line.held) for line in reservation.lines if line.held]
    for item, quantity in held:
        posting.post(item, "RELEASE", reserved=-quantity, reservation_id=reservation.id)
    posting.close()
    lines = tuple(replace(line, released_quantity=line.released_quantity + line.held) for line in reservation.lines)
    shipped = any(line.fulfilled_quantity for line in lines)
    return _step(book, reservation, lines=lines, status="FULFILLED" if shipped else "RELEASED", expires_at=None)


def _look(book: Book, operation: Expire, _: Cause) -> Reservation:
    return _named(book, operation)


# -- items, products, warehouses -------------------------------------------------------------------------------------


def _create_item(book: Book, operation: CreateItem, cause: Cause) -> Item:
    _open_warehouse(book, operation.warehouse_id)
    for other in book.of(sku=operation.sku, product_id=None):
        if other.product_id != operation.product_id:
            raise SkuConflict(f"SKU {operation.sku} belongs to product {other.product_id}; use another SKU.")
    if there := book.at(operation.sku, operation.warehouse_id):
        raise AlreadyExists(
            f"There is an item for SKU {operation.sku} in warehouse {operation.warehouse_id} already.",
            inventoryItemId=there.id,
        )
    item = Item(
        id=new_id("inv"),
        sku=operation.sku,
        product_id=operation.product_id,
        warehouse_id=operation.warehouse_id,
        name=operation.name or operation.sku,
        on_hand=0,
        reserved=0,
        available=0,
        safety_stock=operation.safety_stock,
        shortfall=0,
        reorder_threshold=operation.reorder_threshold,
        target_stock_level=operation.target_stock_level,
        status="ACTIVE",
        metadata=operation.metadata,
        version=0,
        created_at=book.now,
        updated_at=book.now,
    )
    posting = Posting(book, cause, None)
    if operation.initial_quantity:
        posting.reason = "Initial stock"
        item = posting.post(item, "RECEIPT", on_hand=operation.initial_quantity)
    else:
        posting.reason = "Item created"
        item = posting.post(item, "STATUS")
    posting.close()
    return item


def _update_item(book: Book, operation: UpdateItem, cause: Cause) -> Item:
    item = _item(book, operation.inventory_item_id)
    _check_match(operation.if_match, item.version)
    fields = {name: value for name, value in asdict(operation.patch).items() if value is not UNSET}
    # Compared as JSON: to Python True, 1 and 1.0 are equal.
    fields = {name: value for name, value in fields.items() if encode(value) != encode(getattr(item, name))}
    if not fields:
        return item
    posting = Posting(book, cause, None)
    type: TransactionType = "DETAILS" if fields.keys() <= {"name", "metadata"} else "POLICY"
    item = posting.post(item, type, **fields)
    posting.close()
    return item


def _update_product(book: Book, operation: UpdateProduct, _: Cause) -> Product:
    if (product := book.products.get(operation.product_id)) is None:
        raise NotFound(f"Nothing is known of product {operation.product_id}.", productId=operation.product_id)
    if product.low_stock_threshold == operation.patch.low_stock_threshold:
        return product
    product = replace(
        product,
        low_stock_threshold=operation.patch.low_stock_threshold,
        revision=product.revision + 1,
        updated_at=book.now,
    )
    book.products[product.id] = product
    return product


def _create_warehouse(book: Book, operation: CreateWarehouse, _: Cause) -> Warehouse:
    if operation.id in book.warehouses:
        raise AlreadyExists(f"There is a warehouse {operation.id} already.", warehouseId=operation.id)
    warehouse = Warehouse(
        id=operation.id or new_id("wh"),
        name=operation.name,
        priority=operation.priority,
        lead_time_days=operation.lead_time_days,
        active=True,
        version=1,
        created_at=book.now,
        updated_at=book.now,
    )
    book.warehouses[warehouse.id] = warehouse
    return warehouse


def _update_warehouse(book: Book, operation: UpdateWarehouse, _: Cause) -> Warehouse:
    if (warehouse := book.warehouses.get(operation.warehouse_id)) is None:
        raise NotFound(f"There is no warehouse {operation.warehouse_id}.", warehouseId=operation.warehouse_id)
    _check_match(operation.if_match, warehouse.version)
    fields = {name: value for name, value in asdict(operation.patch).items() if value is not UNSET}
    if all(getattr(warehouse, name) == value for name, value in fields.items()):
        return warehouse
    warehouse = replace(warehouse, version=warehouse.version + 1, updated_at=book.now, **fields)
    book.warehouses[warehouse.id] = warehouse
    return warehouse


def _check_match(if_match: int | None, version: int) -> None:
    if if_match is not None and if_match != version:
        raise PreconditionFailed(
            f"If-Match names version {if_match}, the current version is {version}: read it again and decide anew.",
            currentVersion=version,
        )


_RULES: dict[type, Callable[[Book, Any, Cause], Result]] = {
    **dict.fromkeys(_CHANGES, _change),
    Reserve: _reserve,
    Release: _release,
    Confirm: _confirm,
    Extend: _extend,
    Fulfil: _fulfil,
    Expire: _look,
    ApplyProductEvent: apply_product_event,
    CreateItem: _create_item,
    UpdateItem: _update_item,
    UpdateProduct: _update_product,
    CreateWarehouse: _create_warehouse,
    UpdateWarehouse: _update_warehouse,
}
