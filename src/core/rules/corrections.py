"""Putting a product's records right: what is derived follows again from what it is derived from.

The ledger is the record that is trusted most, then reservations, then items; none of its rows is altered. An item that
was not as its ledger and its reservations say gets a CORRECTION row, so that the past explains the present again, and
whoever listens is told by events as of any other change.
"""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from core.errors import Conflict, NotFound
from core.findings import Discrepancy, FindingKind, Values
from core.operations import Correction, Rectified, Rectify
from core.rules.book import Book, Cause, Evidence, Posting
from core.rules.receipts import record
from core.stock import Item, Product

FILLED_MAX = 50
"""So many lost events of a product are made up for by telling again how it stands."""
_ITEM = {
    "on_hand": "quantityOnHand",
    "reserved": "quantityReserved",
    "available": "quantityAvailable",
    "version": "version",
}
_TOTALS = {
    "total_on_hand": "quantityOnHand",
    "total_reserved": "quantityReserved",
    "total_available": "quantityAvailable",
    "total_expected": "quantityExpected",
}


def rectify(book: Book, operation: Rectify, cause: Cause) -> Rectified:
    """Correct what the evidence says of the kinds that are asked for.

    Raises:
        NotFound: there is no such product.
        Conflict: it has changed since the evidence was read.
    """
    product = book.products.get(operation.product_id)
    if product is None:
        raise NotFound(f"Nothing is known of product {operation.product_id}.", productId=operation.product_id)
    if product is not book.loaded[f"product:{product.id}"]:
        raise Conflict("The product changed in this very moment; correct it again.", productId=product.id)
    return _Rectification(book, operation, cause).carry_out()


class _Rectification:
    """One product being corrected: items first, then what comes of those."""

    def __init__(self, book: Book, operation: Rectify, cause: Cause) -> None:
        self._book = book
        self._id = operation.product_id
        self._kinds = operation.kinds
        self._evidence = book.evidence.get(self._id, Evidence())
        self._corrections: list[Correction] = []
        self._cause = cause
        self._run_id = operation.run_id
        self._untold = [id for id in operation.announce if id in book.items]
        self._fillers: list[str] = []
        self._posting = self._begin()

    def carry_out(self) -> Rectified:
        before = self._book.products[self._id]
        for item in self._book.of_product(self._id):
            self._correct(item)
        self._receive()
        self._count(before)
        self._follow_on(before)
        self._posting.close()
        self._tell_again()
        after = self._book.products[self._id]
        self._note("TOTALS_MISMATCH", self._id, _differing(before, after, _TOTALS))
        if self._corrections and after.revision == before.revision:
            now = self._book.now
            self._book.products[self._id] = replace(after, revision=after.revision + 1, updated_at=now)
        return Rectified(corrections=tuple(self._corrections))

    def _begin(self) -> Posting:
        posting = Posting(self._book, self._cause, None)
        posting.reason = "Records brought in line by a reconciliation"
        posting.reference_type, posting.reference_number = "RECONCILIATION", self._run_id
        return posting

    def _of(self, kind: FindingKind, subject: str) -> Discrepancy | None:
        found = self._evidence.discrepancies if kind in self._kinds else ()
        return next((each for each in found if (each.kind, each.subject) == (kind, subject)), None)

    def _correct(self, item: Item) -> None:
        """Put an item back to where its ledger left it, and from there to what reservations hold of it."""
        ledger, held = self._of("LEDGER_MISMATCH", item.id), self._of("RESERVED_MISMATCH", item.id)
        base = item
        if ledger is not None and "version" in ledger.expected:  # without any row there is nothing to go back to
            fields = {name: ledger.expected[word] for name, word in _ITEM.items() if word in ledger.expected}
            base = replace(item, **fields | {"available": item.available})
        elif held is None:
            return
        reserved = int(held.expected["quantityReserved"]) if held is not None else base.reserved
        self._book.put(base)
        fixed = self._posting.post(base, "CORRECTION", reserved=reserved - base.reserved)
        before, after = _differing(item, fixed, _ITEM)
        if base is not item:
            was: Values = {**before, "ledgerVersion": base.version}
            self._note("LEDGER_MISMATCH", item.id, (was, {**after, "ledgerVersion": fixed.version}))
        if held is not None:
            self._note("RESERVED_MISMATCH", item.id, (before, after))

    def _receive(self) -> None:
        """Let expected receipts have received what the ledger says; of ended ones that is all."""
        for id, units in self._evidence.came.items() if "RECEIVED_MISMATCH" in self._kinds else ():
            receipt = self._book.receipts[id]
            after = receipt.changed(self._book.now, ended=not receipt.is_open, received_quantity=units)
            record(self._book, receipt, after)
            words = {"received_quantity": "receivedQuantity", "outstanding_quantity": "outstandingQuantity"}
            before, changed = _differing(receipt, after, words)
            named: Values = {"expectedReceiptId": id}
            self._note("RECEIVED_MISMATCH", receipt.inventory_item_id, (named | before, named | changed))

    def _count(self, before: Product) -> None:
        """Let the totals be such that, with what is posted, they come to the sums over the items."""
        found = self._of("TOTALS_MISMATCH", self._id)
        if found is None and not self._posting.rows:
            return
        book, items = self._book, self._book.of_product(self._id)
        product = book.products[self._id]
        expected = found.expected.get("quantityExpected") if found is not None else None
        moved = [(self._posting.before[row.inventory_item_id], row) for row in self._posting.rows]
        gained = sum(row.available_after - old.available for old, row in moved if old is not None)
        book.products[self._id] = replace(
            product,
            total_on_hand=sum(item.on_hand for item in items),
            total_reserved=sum(item.reserved for item in items) - sum(row.reserved_change for _, row in moved),
            total_available=sum(item.available for item in items) - gained,
            total_expected=product.total_expected
            + (int(expected) - before.total_expected if expected is not None else 0),
        )

    def _follow_on(self, before: Product) -> None:
        """Let the next event follow the last one there is; the numbers of lost ones are given to what is told again."""
        found = self._of("SEQUENCE_GAP", self._id)
        items = sorted(self._book.of_product(self._id), key=lambda item: item.id)
        last = int(found.expected["sequence"]) if found is not None else before.sequence
        lost = before.sequence - last
        if found is None or lost > FILLED_MAX or (lost > 0 and not items):
            return
        product = self._book.products[self._id]
        self._book.products[self._id] = replace(product, sequence=last)
        self._fillers = [items[number % len(items)].id for number in range(lost)]
        end = last + max(lost, 0)
        was: Values = {"sequence": before.sequence, "eventSequence": last}
        self._note("SEQUENCE_GAP", self._id, (was, {"sequence": end, "eventSequence": end}))

    def _tell_again(self) -> None:
        """Announce items as they are after all corrections; the ledger says why."""
        for id in (*self._untold, *self._fillers):
            posting = self._begin()
            posting.announced.add(id)
            item = posting.post(self._book.items[id], "CORRECTION")
            posting.close()
            if id in self._untold:
                self._note("EVENT_MISSING", id, ({}, {"quantityAvailable": item.available}))

    def _note(self, kind: FindingKind, subject: str, values: tuple[Values, Values]) -> None:
        if any(values):
            before, after = values
            self._corrections.append(Correction(kind=kind, subject=subject, before=before, after=after))


def _differing(before: Any, after: Any, words: dict[str, str]) -> tuple[Values, Values]:
    """Return the values that differ, as they were and as they are, by their words on the wire."""
    names: Sequence[str] = [name for name in words if getattr(before, name) != getattr(after, name)]
    was, now = ({words[name]: getattr(each, name) for name in names} for each in (before, after))
    return was, now
