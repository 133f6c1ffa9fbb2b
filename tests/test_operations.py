"""What the wire may ask, what is refused while decoding, and answers that are told again exactly."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from factories import (
    NOW,
    ItemFactory,
    ProductFactory,
    ReservationFactory,
    TransactionFactory,
    WarehouseFactory,
    line_of,
)
from msgspec import UNSET

from core.errors import KINDS, InsufficientStock, InventoryError, NotFound, ReservationExpired
from core.operations import (
    Activate,
    Adjust,
    Answer,
    Change,
    Confirm,
    Count,
    CreateItem,
    CreateWarehouse,
    Deactivate,
    Expire,
    Extend,
    ExtendBody,
    Fulfil,
    FulfilBody,
    IdempotencyKey,
    ItemPatch,
    ItemQuantity,
    Operation,
    Outcome,
    ProductPatch,
    Receive,
    Release,
    Reserve,
    ReserveLine,
    Return,
    SetPolicy,
    Ship,
    StockChange,
    StockOperation,
    Transfer,
    UpdateItem,
    UpdateProduct,
    UpdateWarehouse,
    WarehousePatch,
)
from core.stock import LeadTime

MOST = 1_000_000_000
PLACE = {"sku": "WIDGET-2", "productId": "prod_1", "warehouseId": "wh_1"}
LINE = {"inventoryItemId": "inv_1", "quantity": 2}
BAD_TEXT = ["", "a\x00b", "a\nb", "a\n", "\ta", "a\x1f", "a\x7f", "a\x85b"]


def decoded(type: Any, /, **fields: Any) -> Any:
    """Decode a request body as the HTTP edge does."""
    return msgspec.json.decode(msgspec.json.encode(fields), type=type)


def stock(type: str, /, **fields: Any) -> Any:
    """Decode a stock operation of the wire's ``type`` on ``inv_1``."""
    return decoded(StockOperation, type=type, **{"inventoryItemId": "inv_1", **fields})


# -- stock operations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "fields", "expected"),
    [
        ("RECEIVE", {"quantity": 25}, Receive(inventory_item_id="inv_1", quantity=25)),
        ("RETURN", {"quantity": 1}, Return(inventory_item_id="inv_1", quantity=1)),
        ("SHIP", {"quantity": 2}, Ship(inventory_item_id="inv_1", quantity=2)),
        ("ADJUST", {"delta": -3, "reason": "broken"}, Adjust(inventory_item_id="inv_1", delta=-3, reason="broken")),
        ("COUNT", {"countedQuantity": 0}, Count(inventory_item_id="inv_1", counted_quantity=0)),
        (
            "TRANSFER",
            {"quantity": 4, "toWarehouseId": "wh_2"},
            Transfer(inventory_item_id="inv_1", quantity=4, to_warehouse_id="wh_2"),
        ),
        ("SET_POLICY", {"safetyStock": 5}, SetPolicy(inventory_item_id="inv_1", safety_stock=5)),
        ("ACTIVATE", {}, Activate(inventory_item_id="inv_1")),
        ("DEACTIVATE", {}, Deactivate(inventory_item_id="inv_1")),
    ],
)
def test_type_says_which_operation_it_is(type: str, fields: dict[str, Any], expected: Change) -> None:
    """Each word of the wire decodes into its operation, and that encodes into the same body again."""
    assert expected == stock(type, **fields)
    assert expected == msgspec.json.decode(msgspec.json.encode(expected), type=StockOperation)


def test_every_operation_may_say_why_and_when() -> None:
    """Reason, reference, instant and expected version are read from their camelCase names."""
    expected = Receive(
        inventory_item_id="inv_1",
        quantity=25,
        reason="Scheduled stock replenishment",
        reference_type="PURCHASE_ORDER",
        reference_number="PO-12345",
        occurred_at=datetime(2026, 11, 22, 8, 30, tzinfo=UTC),
        expected_version=7,
    )

    assert expected == stock(
        "RECEIVE",
        quantity=25,
        reason="Scheduled stock replenishment",
        referenceType="PURCHASE_ORDER",
        referenceNumber="PO-12345",
        occurredAt="2026-11-22T09:30:00+01:00",
        expectedVersion=7,
    )


@pytest.mark.parametrize("type", ["RESERVE", "receive", "RECEIPT", "Change", "", None, 1])
def test_an_unknown_type_is_refused(type: Any) -> None:
    """A word that names no operation is refused, ledger words and other spellings included."""
    with pytest.raises(msgspec.ValidationError, match=r"\$\.type"):
        decoded(StockOperation, type=type, inventoryItemId="inv_1", quantity=1)


def test_a_missing_type_is_refused() -> None:
    """Nothing is guessed from the other fields."""
    with pytest.raises(msgspec.ValidationError, match="type"):
        decoded(StockOperation, inventoryItemId="inv_1", quantity=1)


def test_an_unknown_field_is_refused() -> None:
    """A misspelt field is an error, not silence; so is one that belongs to another operation."""
    with pytest.raises(msgspec.ValidationError, match="resaon"):
        stock("RECEIVE", quantity=1, resaon="typo")
    with pytest.raises(msgspec.ValidationError, match="delta"):
        stock("RECEIVE", quantity=1, delta=1)


@pytest.mark.parametrize("type", ["RECEIVE", "RETURN", "SHIP", "TRANSFER"])
@pytest.mark.parametrize("quantity", [0, -1, MOST + 1, 10**30, 1.0, 1.5, "1", True, None])
def test_a_quantity_is_a_whole_number_from_one_to_a_billion(type: str, quantity: Any) -> None:
    """Zero, negative, huge and non-integer quantities never reach the rules."""
    target = {"toWarehouseId": "wh_2"} if type == "TRANSFER" else {}
    with pytest.raises(msgspec.ValidationError, match="quantity"):
        stock(type, quantity=quantity, **target)


@pytest.mark.parametrize("quantity", [1, MOST])
def test_the_least_and_the_most_quantity_are_accepted(quantity: int) -> None:
    """Both ends of the range belong to it."""
    assert quantity == stock("RECEIVE", quantity=quantity).quantity


@pytest.mark.parametrize("delta", [-MOST, -1, 1, MOST])
def test_an_adjustment_goes_either_way(delta: int) -> None:
    """A delta may be negative or positive, up to a billion."""
    assert delta == stock("ADJUST", delta=delta, reason="found").delta


@pytest.mark.parametrize("delta", [0, -MOST - 1, MOST + 1])
def test_an_adjustment_by_nothing_or_too_much_is_refused(delta: int) -> None:
    """A delta of zero would be a ledger row that says nothing."""
    with pytest.raises(msgspec.ValidationError, match="delta"):
        stock("ADJUST", delta=delta, reason="found")


@pytest.mark.parametrize("why", [{}, {"reason": None}, {"reason": ""}])
def test_an_adjustment_needs_a_reason(why: dict[str, Any]) -> None:
    """Whoever corrects a balance says why."""
    with pytest.raises(msgspec.ValidationError, match="reason"):
        stock("ADJUST", delta=1, **why)


@pytest.mark.parametrize("counted", [-1, MOST + 1, None])
def test_a_count_is_zero_or_more(counted: Any) -> None:
    """A shelf can be empty, not less."""
    with pytest.raises(msgspec.ValidationError, match="countedQuantity"):
        stock("COUNT", countedQuantity=counted)


def test_a_policy_names_at_least_one_level() -> None:
    """SET_POLICY without any level is refused; zero is a level, null is none."""
    assert 0 == stock("SET_POLICY", safetyStock=0).safety_stock
    assert stock("SET_POLICY", reorderThreshold=3).target_stock_level is UNSET
    with pytest.raises(msgspec.ValidationError, match="safetyStock, reorderThreshold, targetStockLevel"):
        stock("SET_POLICY")
    with pytest.raises(msgspec.ValidationError, match="safetyStock"):
        stock("SET_POLICY", safetyStock=None)


@pytest.mark.parametrize("level", ["safetyStock", "reorderThreshold", "targetStockLevel"])
@pytest.mark.parametrize("value", [-1, MOST + 1])
def test_policy_levels_are_bounded(level: str, value: int) -> None:
    """No level is negative or above a billion."""
    with pytest.raises(msgspec.ValidationError, match=level):
        stock("SET_POLICY", **{level: value})


# -- text, ids, instants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["reason", "referenceType", "referenceNumber"])
@pytest.mark.parametrize("text", BAD_TEXT)
def test_texts_hold_no_control_characters(field: str, text: str) -> None:
    """NUL (which PostgreSQL cannot store), line breaks and the like are refused, also at the very end."""
    with pytest.raises(msgspec.ValidationError, match=field):
        stock("RECEIVE", quantity=1, **{field: text})


@pytest.mark.parametrize("field", ["sku", "productId", "name"])
@pytest.mark.parametrize("text", BAD_TEXT)
def test_names_of_items_hold_no_control_characters(field: str, text: str) -> None:
    """What a SKU, product or item may be called is bound by the same rule."""
    with pytest.raises(msgspec.ValidationError, match=field):
        decoded(CreateItem, **PLACE | {field: text})


@pytest.mark.parametrize("escape", [rb"\ud800", rb"\udc00x", b"\xff", b"\xed\xa0\x80"])
def test_what_is_no_unicode_is_refused(escape: bytes) -> None:
    """Lone surrogates and broken UTF-8 do not become text."""
    body = b'{"type": "RECEIVE", "inventoryItemId": "inv_1", "quantity": 1, "reason": "a%b"}' % escape
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(body, type=StockOperation)


def test_other_writing_is_kept_as_it_is() -> None:
    """Any script, signs and emoji pass unchanged."""
    assert "Größe „L“ 棚卸 🙂 ' \" \\" == stock("RECEIVE", quantity=1, reason="Größe „L“ 棚卸 🙂 ' \" \\").reason


@pytest.mark.parametrize(("field", "most"), [("reason", 500), ("referenceType", 128), ("referenceNumber", 128)])
def test_texts_are_bounded(field: str, most: int) -> None:
    """Lengths count characters; one too many is refused."""
    stock("RECEIVE", quantity=1, **{field: "é" * most})
    with pytest.raises(msgspec.ValidationError, match=field):
        stock("RECEIVE", quantity=1, **{field: "é" * (most + 1)})


@pytest.mark.parametrize(
    "id", ["", "inv", "inv_", "INV_1", "inv_1\n", "inv_" + "1" * 65, "inv_1;", "inv_\x00", 5, None]
)
def test_ids_have_our_form(id: Any) -> None:
    """What cannot be one of our ids is refused before anybody looks it up."""
    with pytest.raises(msgspec.ValidationError, match="inventoryItemId"):
        stock("ACTIVATE", inventoryItemId=id)
    with pytest.raises(msgspec.ValidationError, match="toWarehouseId"):
        stock("TRANSFER", quantity=1, toWarehouseId=id)


@pytest.mark.parametrize("instant", ["2026-11-22T08:30:00", "2026-11-22", "yesterday", 1_795_000_000, ""])
def test_an_instant_has_a_date_a_time_and_a_zone(instant: Any) -> None:
    """``occurredAt`` without a zone could mean any of 26 instants."""
    with pytest.raises(msgspec.ValidationError, match="occurredAt"):
        stock("RECEIVE", quantity=1, occurredAt=instant)


def test_an_instant_beyond_the_calendar_is_refused() -> None:
    """An instant that has no UTC form cannot be stored; it would fail the whole batch there (rule R3)."""
    with pytest.raises(msgspec.ValidationError, match="occurredAt"):
        stock("RECEIVE", quantity=1, occurredAt="0001-01-01T00:00:00+23:59")


@pytest.mark.parametrize("version", [-1, 1.0, "7"])
def test_an_expected_version_is_a_whole_number(version: Any) -> None:
    """A version is compared exactly, so it is read exactly."""
    with pytest.raises(msgspec.ValidationError, match="expectedVersion"):
        stock("RECEIVE", quantity=1, expectedVersion=version)


# -- reservations, items, warehouses, products ------------------------------------------------------------------------


def test_a_reservation_lasts_900_seconds_unless_said_otherwise() -> None:
    """The default hold is 15 minutes (rule R11)."""
    assert Reserve(lines=(ReserveLine(inventory_item_id="inv_1", quantity=2),)) == decoded(Reserve, lines=[LINE])
    assert 900 == decoded(Reserve, lines=[LINE]).expires_in_seconds


@pytest.mark.parametrize("seconds", [0, -1, 86_401, 1.5, None])
def test_a_hold_lasts_from_a_second_to_a_day(seconds: Any) -> None:
    """No hold is endless (rule R11)."""
    assert 86_400 == decoded(Reserve, lines=[LINE], expiresInSeconds=86_400).expires_in_seconds
    with pytest.raises(msgspec.ValidationError, match="expiresInSeconds"):
        decoded(Reserve, lines=[LINE], expiresInSeconds=seconds)


@pytest.mark.parametrize("lines", [[], [LINE] * 201, None, LINE, [LINE | {"quantity": 0}], [LINE | {"bogus": 1}]])
def test_a_reservation_has_1_to_200_good_lines(lines: Any) -> None:
    """No lines, too many, or a bad one: the whole reservation is refused."""
    assert 200 == len(decoded(Reserve, lines=[LINE] * 200).lines)
    with pytest.raises(msgspec.ValidationError):
        decoded(Reserve, lines=lines)


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"inventoryItemId": "inv_1", "sku": "A"},
        {"sku": "A", "productId": "prod_1"},
        {"inventoryItemId": "inv_1", "warehouseId": "wh_1"},
        {"warehouseId": "wh_1"},
        {"sku": ""},
        {"sku": "A", "warehouseId": "north"},
        {"sku": "A", "quantity": 0},
    ],
)
def test_a_line_names_one_thing(line: dict[str, Any]) -> None:
    """An item, a SKU or a product, not two of them; a warehouse narrows the last two."""
    for good in ({"inventoryItemId": "inv_1"}, {"sku": "A", "warehouseId": "wh_1"}, {"productId": "any thing"}):
        assert 2 == decoded(ReserveLine, quantity=2, **good).quantity
    with pytest.raises(msgspec.ValidationError):
        decoded(ReserveLine, **{"quantity": 2, **line})


@pytest.mark.parametrize("seconds", [0, 86_401, "60"])
def test_a_hold_is_extended_within_the_same_bounds(seconds: Any) -> None:
    """Extending lasts 900 seconds unless said otherwise, and a day at most (rule R11)."""
    assert ExtendBody(expires_in_seconds=900) == decoded(ExtendBody)
    with pytest.raises(msgspec.ValidationError, match="expiresInSeconds"):
        decoded(ExtendBody, expiresInSeconds=seconds)


@pytest.mark.parametrize(
    "body", [{"lines": []}, {"lines": [LINE | {"quantity": -1}]}, {"reason": "a\n"}, {"all": True}]
)
def test_a_fulfilment_names_good_lines_or_none(body: dict[str, Any]) -> None:
    """No lines means everything; an empty list would mean nothing and is refused."""
    assert FulfilBody() == decoded(FulfilBody) == Fulfil(reservation_id="res_1").body
    assert (ItemQuantity(inventory_item_id="inv_1", quantity=2),) == decoded(FulfilBody, lines=[LINE]).lines
    with pytest.raises(msgspec.ValidationError):
        decoded(FulfilBody, **body)


def test_an_item_starts_with_the_documented_defaults() -> None:
    """What a new item does not say is zero, threshold 10 and target 50, and no metadata that others share."""
    item = decoded(CreateItem, **PLACE)

    assert (0, 10, 50, 0) == (
        item.initial_quantity,
        item.reorder_threshold,
        item.target_stock_level,
        item.safety_stock,
    )
    assert (None, {}) == (item.name, item.metadata)
    assert item.metadata is not decoded(CreateItem, **PLACE).metadata


@pytest.mark.parametrize("field", ["sku", "productId", "warehouseId"])
def test_an_item_needs_its_sku_product_and_warehouse(field: str) -> None:
    """None of the three can be guessed."""
    with pytest.raises(msgspec.ValidationError, match=field):
        decoded(CreateItem, **{name: value for name, value in PLACE.items() if name != field})


@pytest.mark.parametrize(
    "fields",
    [{"initialQuantity": -1}, {"safetyStock": MOST + 1}, {"metadata": []}, {"metadata": None}, {"quantityOnHand": 1}],
)
def test_a_bad_item_is_refused(fields: dict[str, Any]) -> None:
    """Ranges, shapes and unknown fields are checked for new items too."""
    with pytest.raises(msgspec.ValidationError):
        decoded(CreateItem, **PLACE | fields)


def test_a_product_is_named_by_others() -> None:
    """A product id is any printable string of up to 128 characters (rule R28)."""
    for id in ("prod_01FXYZ789ABC", "42", "urn:x/y?z=1 2", "é" * 128):
        assert id == decoded(CreateItem, **PLACE | {"productId": id}).product_id
    with pytest.raises(msgspec.ValidationError, match="productId"):
        decoded(CreateItem, **PLACE | {"productId": "é" * 129})


@pytest.mark.parametrize(
    "patch",
    [{"name": None}, {"metadata": None}, {"safetyStock": None}, {"quantityOnHand": 1}, {"status": "INACTIVE"}],
)
def test_an_item_patch_edits_only_what_may_be_edited(patch: dict[str, Any]) -> None:
    """Balances and status change by operations alone, and null is no value."""
    assert ItemPatch(name="New") == decoded(ItemPatch, name="New")
    with pytest.raises(msgspec.ValidationError):
        decoded(ItemPatch, **patch)


@pytest.mark.parametrize("patch", [{}, {"lowStockThreshold": -1}, {"status": "INACTIVE"}])
def test_a_product_patch_sets_the_threshold(patch: dict[str, Any]) -> None:
    """A product's threshold is what can be edited here, and it is required."""
    assert ProductPatch(low_stock_threshold=0) == decoded(ProductPatch, lowStockThreshold=0)
    with pytest.raises(msgspec.ValidationError):
        decoded(ProductPatch, **patch)


def test_a_warehouse_may_bring_its_own_id() -> None:
    """The id may be the caller's, as long as it is a warehouse's."""
    assert CreateWarehouse(name="North", id="wh_north") == decoded(CreateWarehouse, name="North", id="wh_north")
    for id in ("inv_1", "wh_", "wh_1\n", "north"):
        with pytest.raises(msgspec.ValidationError, match=r"\$\.id"):
            decoded(CreateWarehouse, name="North", id=id)


@pytest.mark.parametrize("type", [CreateWarehouse, WarehousePatch])
@pytest.mark.parametrize(
    "days", [{"min": 2, "max": 1}, {"min": -1, "max": 1}, {"min": 0, "max": 3651}, {"min": 1}, None, {}]
)
def test_a_lead_time_is_a_range_of_days(type: Any, days: Any) -> None:
    """From 0 to 3650 days, the least first."""
    assert LeadTime(0, 3650) == decoded(type, name="North", leadTimeDays={"min": 0, "max": 3650}).lead_time_days
    with pytest.raises(msgspec.ValidationError):
        decoded(type, name="North", leadTimeDays=days)


@pytest.mark.parametrize("type", [CreateWarehouse, WarehousePatch])
def test_a_lead_time_has_no_unknown_fields(type: Any) -> None:
    """A misspelt field is an error inside ``leadTimeDays`` too (design section 5)."""
    with pytest.raises(msgspec.ValidationError, match="typical"):
        decoded(type, name="North", leadTimeDays={"min": 1, "max": 2, "typical": 1})


@pytest.mark.parametrize("patch", [{"active": None}, {"active": 1}, {"priority": -1}, {"id": "wh_2"}])
def test_a_bad_warehouse_patch_is_refused(patch: dict[str, Any]) -> None:
    """A warehouse keeps its id, and what is set is of its type."""
    assert WarehousePatch(active=False) == decoded(WarehousePatch, active=False)
    with pytest.raises(msgspec.ValidationError):
        decoded(WarehousePatch, **patch)


# -- answers ----------------------------------------------------------------------------------------------------------

ITEM = ItemFactory.build(on_hand=5, metadata={"size": "L", "weights": [1.5, None, True], "nested": {"é": 1}})
RESULTS: list[tuple[Operation, Outcome]] = [
    (Receive(inventory_item_id="inv_1", quantity=1), StockChange((TransactionFactory.build(),), ITEM)),
    (Transfer(inventory_item_id="inv_1", quantity=1, to_warehouse_id="wh_2"), StockChange((), ITEM)),
    (
        Reserve(lines=(ReserveLine(inventory_item_id=ITEM.id, quantity=2),)),
        ReservationFactory.build(lines=(line_of(ITEM, 2), line_of(ITEM, 3, fulfilled=1)), expires_at=NOW),
    ),
    (Release(reservation_id="res_1"), ReservationFactory.build(status="RELEASED", expires_at=None)),
    (Confirm(reservation_id="res_1"), ReservationFactory.build(status="CONFIRMED", expires_at=None, confirmed_at=NOW)),
    (Extend(reservation_id="res_1", expires_in_seconds=60), ReservationFactory.build()),
    (Fulfil(reservation_id="res_1"), ReservationFactory.build(lines=(line_of(ITEM, 3, fulfilled=1, released=2),))),
    (Expire(reservation_id="res_1"), ReservationFactory.build(status="EXPIRED")),
    (CreateItem(sku="A", product_id="p", warehouse_id="wh_1"), ITEM),
    (UpdateItem(inventory_item_id="inv_1", patch=ItemPatch()), ItemFactory.build(status="INACTIVE")),
    (UpdateProduct(product_id="p", patch=ProductPatch(low_stock_threshold=1)), ProductFactory.build()),
    (CreateWarehouse(name="North"), WarehouseFactory.build()),
    (UpdateWarehouse(warehouse_id="wh_1", patch=WarehousePatch()), WarehouseFactory.build(active=False)),
]
EXTRA = {"inventoryItemId": "inv_1", "lines": [{"requested": 2, "available": 1}], "retry_after": 0.5, "none": None}


@pytest.mark.parametrize(("operation", "outcome"), RESULTS, ids=[type(operation).__name__ for operation, _ in RESULTS])
def test_a_result_is_told_again_exactly(operation: Operation, outcome: Outcome) -> None:
    """A stored result comes back equal, of the same type, and reads the same on the wire."""
    (again,) = Answer.tell(Answer.store([outcome]), [operation])

    assert outcome == again
    assert msgspec.json.encode(outcome) == msgspec.json.encode(again)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_refusal_is_told_again_exactly(kind: type[InventoryError]) -> None:
    """A stored refusal comes back as the same class with the same sentence and numbers."""
    (again,) = Answer.tell(Answer.store([kind("Not now.", **EXTRA)]), [Activate(inventory_item_id="inv_1")])

    assert isinstance(again, InventoryError)
    assert (kind, "Not now.", EXTRA, "Not now.") == (type(again), again.detail, again.extra, str(again))


def test_every_outcome_reads_the_same_the_second_time() -> None:
    """What has no form of its own in JSON, such as an instant behind a refusal, is told again in the same letters."""
    refusal = ReservationExpired("It expired.", expiresAt=NOW)
    (again,) = Answer.tell(Answer.store([refusal]), [Confirm(reservation_id="res_1")])

    assert isinstance(again, ReservationExpired)
    assert msgspec.json.encode(refusal.extra) == msgspec.json.encode(again.extra)


def test_no_error_class_is_unknown_to_stored_answers() -> None:
    """Every subclass the core has, however deep, can be told again under its own name."""
    pending, known = [InventoryError], set()
    while pending:
        known.add(error := pending.pop())
        pending += [kind for kind in error.__subclasses__() if kind.__module__ == InventoryError.__module__]

    assert known == set(KINDS.values())
    assert all(name == error.__name__ for name, error in KINDS.items())


def test_a_strategys_own_refusal_is_told_again() -> None:
    """As it was while the strategy is installed; afterwards as the core's class that it is one of."""

    class TooFar(InsufficientStock):
        def __init__(self, kilometres: int) -> None:
            super().__init__(f"It is {kilometres} km away.", kilometres=kilometres)

    operations = [Activate(inventory_item_id="inv_1")]
    stored = Answer.store([TooFar(900)])

    (again,) = Answer.tell(stored, operations)
    (left,) = Answer.tell(stored.replace(b"TooFar", b"Forgotten"), operations)

    assert isinstance(again, InventoryError) and isinstance(left, InventoryError)
    assert (type(again), type(left)) == (TooFar, InsufficientStock)
    assert (again.detail, again.extra) == (left.detail, left.extra) == ("It is 900 km away.", {"kilometres": 900})


def test_a_refusal_of_a_class_that_nobody_has_is_told_all_the_same() -> None:
    """Answers stored before their base was, by a strategy that is gone."""
    stored = b'[{"refusal":{"kind":"Forgotten","detail":"No.","extra":{}}}]'
    (left,) = Answer.tell(stored, [Activate(inventory_item_id="inv_1")])

    assert (type(left), str(left)) == (InventoryError, "No.")


def test_a_batch_is_told_again_in_its_order() -> None:
    """Results and refusals of one request keep their places."""
    operations = [operation for operation, _ in RESULTS]
    outcomes: list[Outcome] = [outcome for _, outcome in RESULTS]
    outcomes[2], outcomes[4] = InsufficientStock("Too few.", lines=[]), NotFound("Gone.")
    again = Answer.tell(Answer.store(outcomes), operations)

    assert [type(outcome) for outcome in outcomes] == [type(outcome) for outcome in again]
    assert [outcome for outcome in outcomes if not isinstance(outcome, InventoryError)] == [
        outcome for outcome in again if not isinstance(outcome, InventoryError)
    ]


def test_an_answer_to_other_operations_is_not_told() -> None:
    """An answer with fewer or more outcomes than operations is a broken row, never a short answer."""
    with pytest.raises(ValueError, match="zip"):
        Answer.tell(Answer.store([ITEM]), [])


def test_a_key_is_unique_to_its_caller() -> None:
    """Two callers may use the same word; what was asked is no part of the scope (rule R4)."""
    key = IdempotencyKey("issuer", "shop", "k-1", b"hash")

    assert key.scope == IdempotencyKey("issuer", "shop", "k-1", b"other").scope
    assert key.scope != IdempotencyKey("issuer", "warehouse", "k-1", b"hash").scope
    assert key.scope != IdempotencyKey("another", "shop", "k-1", b"hash").scope
