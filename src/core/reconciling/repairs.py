"""What is done about findings: by policy, through the use cases everybody changes stock by, and looked at again.

Every change carries the run as its idempotency key, so a run that is taken up again changes nothing twice. What the
Product Service does not have is never deleted for that alone: two runs must have missed it, the Product Service must be
well, and it must have others of our products (reliability section 4).
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from core.errors import Conflict, InventoryError, ProductServiceProtocolError, ProductServiceUnavailable
from core.events import EVENT_VERSION, ProductEvent, ProductPayload
from core.findings import (
    ABSENT,
    DESTRUCTIVE,
    FOR_PEOPLE,
    OF_CATALOG,
    SEEN_IN,
    Discrepancy,
    Finding,
    FindingKind,
    Limits,
    Repair,
    RepairOutcome,
    Run,
    Tally,
    Values,
)
from core.operations import (
    ApplyProductEvent,
    Correction,
    Deactivate,
    EventOutcome,
    EventPolicy,
    IdempotencyKey,
    Operation,
    Outcome,
    Rectified,
    Rectify,
    Request,
)
from core.reconciling.drift import There, drifted
from core.reconciling.survey import CatalogSurvey
from core.rules.book import SYSTEM
from core.writing.writer import Writer
from ports.store import ProductStock, Store

_Standing = set[tuple[FindingKind, str]]
"""Kind and subject of what disagrees."""
_TRIES = 5
_WAIT_SECONDS = 30.0
_HISTORY = "History is never altered; look at the rows around it, and COUNT the item if its balance is in doubt."
_BY_HAND: dict[FindingKind, str] = {
    "VERSION_GAP": _HISTORY,
    "EVENT_STUCK": "The relay or an operator has to let it go on; see `inventory outbox show`.",
}


class Brakes(Struct, frozen=True):
    """What keeps a run from repairing: reasons by whether they bear on the catalogue or on our own records."""

    own: str | None = None
    catalog: str | None = None
    absence: str | None = None

    def of(self, kind: FindingKind) -> str | None:
        """Return why findings of a kind are not repaired in this run, None where nothing speaks against it."""
        if kind in ABSENT and self.absence is not None:
            return self.absence
        return self.catalog if is_of_catalog(kind) else self.own

    @property
    def alarms(self) -> tuple[str, ...]:
        """What somebody should hear of."""
        return tuple(dict.fromkeys(each for each in (self.own, self.catalog, self.absence) if each is not None))


def is_of_catalog(kind: FindingKind) -> bool:
    """Tell whether a kind is found by asking the Product Service."""
    return SEEN_IN[kind] <= OF_CATALOG


def brakes(run: Run, tallies: Iterable[Tally], limits: Limits, *, well: bool) -> Brakes:
    """Decide what is too much, or too good, to be true.

    Args:
        run: what was looked at, and what was there.
        tallies: what was found.
        limits: how much may be changed.
        well: whether the Product Service says that it is.
    """
    counts = {each.kind: each.count for each in tallies}
    wanted = {kind: count for kind, count in counts.items() if _is_wanted(run, kind)}
    absence = None
    if any(kind in counts for kind in ABSENT):
        if not run.present:
            absence = (
                f"The Product Service has none of the {run.absent} products it was asked for; that is not believed."
            )
        elif not well:
            absence = "The Product Service is not well; what it does not have is not believed."
    allowed, of_catalog = limits.allow(run.items), limits.allow(run.present + run.absent)
    own = sum(count for kind, count in wanted.items() if not is_of_catalog(kind))
    there = sum(count for kind, count in wanted.items() if is_of_catalog(kind))
    return Brakes(
        own=_too_many(own, allowed, "our own records"),
        catalog=_too_many(there, of_catalog, "the catalogue"),
        absence=absence,
    )


def _is_wanted(run: Run, kind: FindingKind) -> bool:
    return kind not in FOR_PEOPLE and run.repairs != "plan" and (run.repairs == "all" or kind not in DESTRUCTIVE)


def _too_many(count: int, allowed: int, where: str) -> str | None:
    if count <= allowed:
        return None
    return (
        f"{count} findings in {where} are more than the {allowed} that may be repaired in one run; none was. "
        "Look at them, then run again with a higher --max-changes and --max-percent."
    )


class Repairer:
    """Repairs what a run has found of some products at a time.

    Args:
        survey: asks the Product Service; None where there is none.
        making: what a new product leads to.
    """

    def __init__(self, store: Store, writer: Writer, survey: CatalogSurvey | None, *, making: EventPolicy) -> None:
        self._store = store
        self._writer = writer
        self._survey = survey
        self._making = making

    async def repair(self, run: Run, findings: Sequence[Finding], stops: Brakes) -> list[Repair]:
        """Do about these findings, which are all there are of their products, what the policy says.

        Raises:
            Unavailable: the store is away.
        """
        by_product: dict[str, list[Finding]] = {}
        repairs: list[Repair] = []
        for finding in findings:
            if (left := _left(run, finding, stops)) is not None:
                repairs.append(left)
            else:
                by_product.setdefault(finding.product_id, []).append(finding)
        own = {id: [each for each in group if not is_of_catalog(each.kind)] for id, group in by_product.items()}
        there = {id: [each for each in group if is_of_catalog(each.kind)] for id, group in by_product.items()}
        repairs += await self._rectified(run, {id: group for id, group in own.items() if group})
        done = await asyncio.gather(*(self._brought_in_line(run, group) for group in there.values() if group))
        return [*repairs, *(repair for group in done for repair in group)]

    # -- our own records -----------------------------------------------------------------------------------------------

    async def _rectified(self, run: Run, groups: dict[str, list[Finding]]) -> list[Repair]:
        answers = await asyncio.gather(*(self._rectify(run, group) for group in groups.values()))
        still = {(each.kind, each.subject) for each in await self._store.compare_products(list(groups))}
        return [
            _judged(run, finding, answer, still)
            for group, answer in zip(groups.values(), answers, strict=True)
            for finding in group
        ]

    async def _rectify(self, run: Run, group: Sequence[Finding]) -> Outcome:
        kinds = tuple(dict.fromkeys(each.kind for each in group))
        untold = tuple(each.subject for each in group if each.kind == "EVENT_MISSING")
        operation = Rectify(product_id=group[0].product_id, kinds=kinds, announce=untold, run_id=run.id)
        for attempt in range(_TRIES):
            answer = await self._submit(run, group[0], operation, name=f"{attempt}")
            if type(answer) is not Conflict:
                break
        return answer

    async def _submit(self, run: Run, finding: Finding, *operations: Operation, name: str = "0") -> Outcome:
        """Return the first refusal, or what the first operation led to."""
        key = f"{run.id}:{finding.kind}:{finding.subject}:{name}"
        request = Request(
            operations=operations,
            actor=run.actor,
            correlation_id=run.id,
            key=IdempotencyKey(SYSTEM, "reconciliation", key, b"reconciliation"),
        )
        try:
            answers = await self._writer.submit(request, timeout=_WAIT_SECONDS)
        except InventoryError as error:
            return error
        return next((each for each in answers if isinstance(each, InventoryError)), answers[0])

    # -- the catalogue -------------------------------------------------------------------------------------------------

    async def _brought_in_line(self, run: Run, group: Sequence[Finding]) -> list[Repair]:
        """Ask once more, do what follows from the answer, and see what still disagrees."""
        id, asked_at = group[0].product_id, datetime.now(UTC)
        try:
            there, fresh = await self._compare(id)
            standing = [each for each in group if (each.kind, each.subject) in fresh]
            answer = await self._follow(run, standing, there, asked_at) if standing else None
            _, still = await self._compare(id) if standing else (there, _Standing())
        except (ProductServiceUnavailable, ProductServiceProtocolError) as error:
            return [_made(run, each, "DEFERRED", error.detail) for each in group]
        return [_followed(run, each, answer, still) for each in group]

    async def _compare(self, id: str) -> tuple[There | None, _Standing]:
        assert self._survey is not None  # or there would be no such finding
        there = await self._survey.there(id)
        stock = (await self._store.products([id])).get(id)
        if stock is None or not stock.product.is_known:
            return there, {("ITEMS_MISSING", id)} if there is not None and there.skus else set()
        return there, {(each.kind, each.subject) for each in drifted(stock, there)}

    async def _follow(self, run: Run, group: Sequence[Finding], there: There | None, at: datetime) -> Outcome | None:
        kinds = {each.kind for each in group}
        first = group[0]
        if "PRODUCT_DELETED" in kinds:
            stock: ProductStock = (await self._store.products([first.product_id]))[first.product_id]
            active = [item.id for item in stock.items if item.status == "ACTIVE"]
            if not active:
                return None
            reason = "The Product Service has deleted the product"
            operations = [Deactivate(inventory_item_id=id, reason=reason) for id in active]
            # The answer is told again only of the same items: another may have been made or activated since.
            return await self._submit(run, first, *operations, name=_digest(",".join(active)))
        payload = ProductPayload(product_id=first.product_id) if there is None else there.payload
        event = ProductEvent(
            event_id=f"{run.id}-{_digest(first.product_id)}",
            event_type=_event_type(kinds),
            event_version=EVENT_VERSION,
            timestamp=at,
            payload=payload,
        )
        ensure = "ITEMS_MISSING" in kinds
        return await self._submit(run, first, ApplyProductEvent(event=event, policy=self._making, ensure=ensure))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _event_type(kinds: set[FindingKind]) -> Literal["ProductCreated", "ProductUpdated", "ProductDeleted"]:
    """Return what the Product Service would have said, had we heard it."""
    if "PRODUCT_GONE" in kinds:
        return "ProductDeleted"
    return "ProductCreated" if "PRODUCT_RETURNED" in kinds else "ProductUpdated"


# -- what became of it -------------------------------------------------------------------------------------------------


def _left(run: Run, finding: Finding, stops: Brakes) -> Repair | None:
    """Return what is put on record of a finding that is not repaired in this run; None for one that is."""
    if (by_hand := _BY_HAND.get(finding.kind)) is not None:
        return _made(run, finding, "DEFERRED", by_hand)
    if not _is_wanted(run, finding.kind):
        why = (
            None if run.repairs == "plan" else "It takes stock away or off sale; run with --repair all to have it done."
        )
        return replace(_made(run, finding, "PLANNED", why), before=finding.found, after=finding.expected)
    if (stop := stops.of(finding.kind)) is not None:
        return _made(run, finding, "DEFERRED", stop)
    if finding.kind in ABSENT and finding.first_seen_at >= run.started_at:
        return _made(run, finding, "DEFERRED", "The Product Service has to miss it in another run as well.")
    return None


def _made(run: Run, finding: Discrepancy, outcome: RepairOutcome, reason: str | None) -> Repair:
    return Repair(
        run_id=run.id,
        kind=finding.kind,
        subject=finding.subject,
        product_id=finding.product_id,
        outcome=outcome,
        reason=reason,
        before={},
        after={},
        at=datetime.now(UTC),
    )


def _judged(run: Run, finding: Finding, answer: Outcome, still: _Standing) -> Repair:
    """Say what became of a finding in our own records."""
    if isinstance(answer, InventoryError):
        return _made(run, finding, "FAILED", answer.detail)
    assert isinstance(answer, Rectified)
    stands = (finding.kind, finding.subject) in still
    for each in answer.corrections:
        if (each.kind, each.subject) == (finding.kind, finding.subject):
            return _corrected(run, finding, each, stands=stands)
    if stands:
        return _made(run, finding, "DEFERRED", "Nothing that can be trusted says what is right; decide by hand.")
    if "ledger" in SEEN_IN[finding.kind] or "events" in SEEN_IN[finding.kind]:
        return _made(run, finding, "DEFERRED", _HISTORY)
    return _made(run, finding, "REPAIRED", "It agreed by then.")


def _corrected(run: Run, finding: Finding, correction: Correction, *, stands: bool) -> Repair:
    made = _made(run, finding, "FAILED" if stands else "REPAIRED", "It still disagrees." if stands else None)
    return replace(made, before=correction.before, after=correction.after)


def _followed(run: Run, finding: Finding, answer: Outcome | None, still: _Standing) -> Repair:
    """Say what became of a finding in the catalogue."""
    if isinstance(answer, InventoryError):
        return _made(run, finding, "FAILED", answer.detail)
    if (finding.kind, finding.subject) in still:
        reason = answer.reason if isinstance(answer, EventOutcome) else None
        return _made(run, finding, "DEFERRED", reason or "The Product Service does not say what it is called there.")
    before: Values = finding.found
    return replace(_made(run, finding, "REPAIRED", None), before=before, after=finding.expected)
