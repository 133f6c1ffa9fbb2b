"""What a field may hold, said once for operations, events and the API document."""

from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from msgspec.structs import asdict, force_setattr

from core.ids import ID_PATTERN

QUANTITY_MAX = 1_000_000_000
BALANCE_MAX = 1_000_000_000_000
"""No balance grows beyond this; far from any column's range and exact in every JSON reader."""

# No control characters: PostgreSQL cannot store NUL, and nothing here is meant to span lines. (A bare ``$`` would let a
# trailing newline pass; ``\\Z`` is unknown to JavaScript, which reads these patterns in the OpenAPI document.)
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)"

Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
Level = Annotated[int, Meta(ge=0, le=QUANTITY_MAX)]
Delta = Annotated[int, Meta(ge=-QUANTITY_MAX, le=QUANTITY_MAX, extra_json_schema={"not": {"const": 0}})]
Text = Annotated[str, Meta(min_length=1, max_length=500, pattern=PRINTABLE)]
Word = Annotated[str, Meta(min_length=1, max_length=128, pattern=PRINTABLE)]
Id = Annotated[str, Meta(pattern=ID_PATTERN)]
ProductId = Word
HoldSeconds = Annotated[int, Meta(ge=1, le=86_400)]
Instant = Annotated[datetime, Meta(tz=True)]


def in_utc(asked: Struct, *names: str) -> None:
    """Bring the instants in these fields of a Struct that is being made to UTC; a field may hold None.

    Raises:
        ValueError: one leaves the calendar that way.
    """
    for name in names:
        if (value := getattr(asked, name)) is not None:
            force_setattr(asked, name, utc(value, name))


def utc(instant: datetime, name: str) -> datetime:
    """Bring the instant called ``name`` to UTC.

    Raises:
        ValueError: it leaves the calendar that way.
    """
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{name} must be an instant of this calendar") from None


def given(patch: Struct) -> dict[str, Any]:
    """Return the fields of a patch that were given; the others are to stay as they are."""
    return {name: value for name, value in asdict(patch).items() if value is not UNSET}
