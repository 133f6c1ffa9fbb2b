"""What a reconciliation looks for, what it does about it, and what is kept of both: runs, findings, repairs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, get_args

from msgspec import Struct

FindingKind = Literal[
    "LEDGER_MISMATCH",
    "RESERVED_MISMATCH",
    "RECEIVED_MISMATCH",
    "TOTALS_MISMATCH",
    "SEQUENCE_GAP",
    "VERSION_GAP",
    "EVENT_MISSING",
    "EVENT_STUCK",
    "PRODUCT_GONE",
    "PRODUCT_DELETED",
    "PRODUCT_RETURNED",
    "SKU_DRIFT",
    "NAME_DRIFT",
    "ITEMS_MISSING",
]
Nature = Literal["missing", "extra", "stale", "conflicting", "in flight"]
Trigger = Literal["interval", "manual", "request"]
Repairs = Literal["plan", "safe", "all"]
Status = Literal["REQUESTED", "RUNNING", "DONE", "HALTED", "CANCELLED"]
RepairOutcome = Literal["REPAIRED", "PLANNED", "DEFERRED", "FAILED"]
Part = Literal["stock", "outbox", "receipts", "ledger", "events", "catalog", "listing"]
"""What can be looked through: every product as it stands now; every event that waits to be published; every expected
receipt, those that have ended as well; every row of the ledger; every event that is kept; every product of ours as the
Product Service has it; and the Product Service's own list of its products."""

PARTS: tuple[Part, ...] = get_args(Part)
QUICK: tuple[Part, ...] = ("stock", "outbox")
"""What tells how things stand."""
OF_CATALOG: frozenset[Part] = frozenset({"catalog", "listing"})

SEEN_IN: dict[FindingKind, frozenset[Part]] = {
    "LEDGER_MISMATCH": frozenset({"stock", "ledger"}),
    "RESERVED_MISMATCH": frozenset({"stock"}),
    "RECEIVED_MISMATCH": frozenset({"stock", "receipts"}),
    "TOTALS_MISMATCH": frozenset({"stock"}),
    "SEQUENCE_GAP": frozenset({"stock", "events"}),
    "VERSION_GAP": frozenset({"ledger"}),
    "EVENT_MISSING": frozenset({"ledger"}),
    "EVENT_STUCK": frozenset({"outbox"}),
    "PRODUCT_GONE": frozenset({"catalog"}),
    "PRODUCT_DELETED": frozenset({"catalog"}),
    "PRODUCT_RETURNED": frozenset({"catalog"}),
    "SKU_DRIFT": frozenset({"catalog"}),
    "NAME_DRIFT": frozenset({"catalog"}),
    "ITEMS_MISSING": frozenset({"catalog", "listing"}),
}
"""Where each kind is found: one that is not seen any more is gone when all of these were looked through."""

NATURES: dict[FindingKind, Nature] = {
    "LEDGER_MISMATCH": "conflicting",
    "RESERVED_MISMATCH": "stale",
    "RECEIVED_MISMATCH": "stale",
    "TOTALS_MISMATCH": "stale",
    "SEQUENCE_GAP": "missing",
    "VERSION_GAP": "missing",
    "EVENT_MISSING": "missing",
    "EVENT_STUCK": "in flight",
    "PRODUCT_GONE": "extra",
    "PRODUCT_DELETED": "extra",
    "PRODUCT_RETURNED": "stale",
    "SKU_DRIFT": "stale",
    "NAME_DRIFT": "stale",
    "ITEMS_MISSING": "missing",
}
DESTRUCTIVE: frozenset[FindingKind] = frozenset({"LEDGER_MISMATCH", "PRODUCT_GONE", "PRODUCT_DELETED"})
"""Their repair changes what is on hand, or takes items off sale."""
ABSENT: frozenset[FindingKind] = frozenset({"PRODUCT_GONE", "PRODUCT_DELETED"})
"""They rest on the Product Service not having something, which alone is no reason to act."""
FOR_PEOPLE: frozenset[FindingKind] = frozenset({"VERSION_GAP", "EVENT_STUCK"})
"""Nothing of these can be put right by a rule."""

Values = dict[str, int | str]


class Discrepancy(Struct, frozen=True, rename="camel", kw_only=True):
    """Two records of the same thing that disagree.

    ``expected`` is what follows from the record that is trusted more (the ledger, the reservations, the items, the row
    before, the Product Service), ``found`` what stands where it is derived: the values that differ, and the version or
    sequence of the place where the two were compared. Both use the words of the wire.

    - LEDGER_MISMATCH: an item is not as its last ledger row left it, or a row not what the row before it leads to.
    - RESERVED_MISMATCH: an item has more or less reserved than open reservations hold of it.
    - RECEIVED_MISMATCH: an expected receipt of an item has received more or less than its ledger rows say.
    - TOTALS_MISMATCH: a product's totals are not the sums over its items, or over what is expected of them.
    - SEQUENCE_GAP: an event of a product is missing between others, or its last one is not the product's ``sequence``.
    - VERSION_GAP: an item's ledger leaves out a version.
    - EVENT_MISSING: nobody was told of an item's last change of what is available.
    - EVENT_STUCK: an event of a product waits to be published for much too long.
    - PRODUCT_GONE: the Product Service has no such product, which is for sale here and was never reported deleted.
    - PRODUCT_DELETED: the product was deleted there, and is for sale here.
    - PRODUCT_RETURNED: the product counts as deleted here, and the Product Service has it.
    - SKU_DRIFT, NAME_DRIFT: an item is called otherwise than its variant there.
    - ITEMS_MISSING: there is no item here of a variant there.
    """

    kind: FindingKind
    product_id: str
    inventory_item_id: str | None
    expected: Values
    found: Values

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


class Repair(Struct, frozen=True, rename="camel", kw_only=True):
    """What a run did about a finding, or would do (PLANNED), or left to a later run or to people (DEFERRED), and why.

    ``before`` and ``after`` are the values that changed; REPAIRED was looked at again and agrees.
    """

    run_id: str
    kind: FindingKind
    subject: str
    product_id: str
    outcome: RepairOutcome
    reason: str | None
    before: Values
    after: Values
    at: datetime


class Limits(Struct, frozen=True, rename="camel", kw_only=True):
    """When repairing stops before it has begun: more than so many changes, or than so much of what was looked at.

    Of a few items one is a large part; ``changes_min`` are never too many.
    """

    changes_max: int = 1_000
    percent_max: float = 1.0
    changes_min: int = 10

    def allow(self, looked_at: int) -> int:
        """Return how many changes are allowed, so many items having been looked at."""
        return min(self.changes_max, max(self.changes_min, int(looked_at * self.percent_max / 100)))


class Run(Struct, frozen=True, rename="camel", kw_only=True):
    """One reconciliation; without ``ended_at`` it waits, is going on, or was broken off and will be taken up again.

    ``deep`` says that it looks at every part, and not only at how things stand now. ``findings`` counts what it saw by
    kind, ``raised`` how much of that nobody saw before, ``resolved`` what was seen before and is gone. ``repairs`` is
    what it may repair: nothing (it only plans), what is safe, or all; ``outcomes`` counts what became of that.
    HALTED: there was too much to repair, or the Product Service could not be believed; ``alarms`` say why.

    ``part``, ``looked_at`` and ``about`` tell how far it is, ``place`` where it goes on; ``done`` are the parts it has
    been through. ``present`` and ``absent`` count the products that the Product Service has and has not.
    """

    id: str
    trigger: Trigger
    actor: str
    deep: bool
    started_at: datetime
    ended_at: datetime | None = None
    status: Status = "RUNNING"
    repairs: Repairs = "plan"
    products: int = 0
    items: int = 0
    findings: Mapping[FindingKind, int] = {}
    raised: int = 0
    resolved: int = 0
    outcomes: Mapping[RepairOutcome, int] = {}
    alarms: tuple[str, ...] = ()
    part: str | None = None
    place: str | None = None
    looked_at: int = 0
    about: int = 0
    done: tuple[Part, ...] = ()
    present: int = 0
    absent: int = 0

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do."""
        return self.status in ("REQUESTED", "RUNNING")


class Tally(Struct, frozen=True, rename="camel"):
    """How many findings of a kind stood while a run was on, by age: first seen in it, within a day, a week, or before.

    ``nature`` is what is wrong with them: missing, extra, stale, conflicting, in flight.
    """

    kind: FindingKind
    nature: Nature
    new: int
    day: int
    week: int
    older: int

    @property
    def count(self) -> int:
        """How many there are of any age."""
        return self.new + self.day + self.week + self.older
