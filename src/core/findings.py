"""What a reconciliation looks for, and what is kept of each one: the run, and the findings it leaves behind."""

from datetime import datetime
from typing import Literal, get_args

from msgspec import Struct

Kind = Literal[
    "LEDGER_MISMATCH", "RESERVED_MISMATCH", "RECEIVED_MISMATCH", "TOTALS_MISMATCH", "SEQUENCE_GAP", "VERSION_GAP"
]
Trigger = Literal["interval", "manual"]
Part = Literal["stock", "receipts", "ledger", "events"]
"""What can be looked through: every product as it stands now; every expected receipt, those that have ended as well;
every row of the ledger; every event that is kept."""

PARTS: tuple[Part, ...] = get_args(Part)


class Discrepancy(Struct, frozen=True, rename="camel", kw_only=True):
    """Two records of the same thing that disagree.

    ``expected`` is what follows from the record that is trusted more (the ledger, the reservations, the items, the row
    before), ``found`` what stands where it is derived: the values that differ, and the version or sequence of the place
    where the two were compared. Both use the words of the wire.

    - LEDGER_MISMATCH: an item is not as its last ledger row left it, or a row not what the row before it leads to.
    - RESERVED_MISMATCH: an item has more or less reserved than open reservations hold of it.
    - RECEIVED_MISMATCH: an expected receipt of an item has received more or less than its ledger rows say.
    - TOTALS_MISMATCH: a product's totals are not the sums over its items, or over what is expected of them.
    - SEQUENCE_GAP: an event of a product is missing between others, or its last one is not the product's ``sequence``.
    - VERSION_GAP: an item's ledger leaves out a version.
    """

    kind: Kind
    product_id: str
    inventory_item_id: str | None
    expected: dict[str, int]
    found: dict[str, int]

    @property
    def subject(self) -> str:
        """The id of what it is about: the item, else the product. It is known again by kind and subject."""
        return self.inventory_item_id or self.product_id


class Finding(Discrepancy, frozen=True, rename="camel", kw_only=True):
    """A discrepancy that was confirmed, from the first run that saw it on; ``run_id`` is the last one that did.

    One that went away and came back is first seen again when it comes back.
    """

    run_id: str
    first_seen_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None


class Run(Struct, frozen=True, rename="camel", kw_only=True):
    """One reconciliation. Without ``ended_at`` it is going on or was broken off.

    ``deep`` says that it looks at every part, and not only at how things stand now. ``findings`` counts what it saw by
    kind, ``raised`` how much of that nobody saw before, ``resolved`` what was seen before and is gone.
    """

    id: str
    trigger: Trigger
    actor: str
    deep: bool
    started_at: datetime
    ended_at: datetime | None = None
    products: int = 0
    items: int = 0
    findings: dict[Kind, int] = {}
    raised: int = 0
    resolved: int = 0
