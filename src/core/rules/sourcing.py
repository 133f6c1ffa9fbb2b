"""Where promised units come from, when a line names a SKU or a product and not an item.

A strategy is a pure function from candidates and a quantity to what is taken of whom. It is called under the locks,
with candidates that together have enough. Others are plugins in the entry-point group ``inventory.sourcing``.
"""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from core.stock import Item, Warehouse


class Candidate(Struct, frozen=True):
    """An item that could serve a line, with the units of it that nobody has been promised yet."""

    item: Item
    warehouse: Warehouse
    available: int

    @property
    def rank(self) -> tuple[int, str, str]:
        """The warehouse's place in line; ids make it the same every time."""
        return self.warehouse.priority, self.warehouse.id, self.item.id


Taken = list[tuple[Candidate, int]]
Strategy = Callable[[Sequence[Candidate], int], Taken]


def warehouse_priority(candidates: Sequence[Candidate], quantity: int) -> Taken:
    """Empty the warehouse of the lowest priority number first, then the next."""
    return _take(sorted(candidates, key=lambda candidate: candidate.rank), quantity)


def most_stock(candidates: Sequence[Candidate], quantity: int) -> Taken:
    """Take from where most is left, so that small stocks last."""
    return _take(sorted(candidates, key=_fullest), quantity)


def fewest_splits(candidates: Sequence[Candidate], quantity: int) -> Taken:
    """Ship from as few places as can be; among equals, the lowest priority number."""
    taken: Taken = []
    left = sorted(candidates, key=_fullest)
    while quantity:
        enough = [candidate for candidate in left if candidate.available >= quantity]
        chosen = min(enough, key=lambda candidate: candidate.rank) if enough else left[0]
        left.remove(chosen)
        units = min(chosen.available, quantity)
        taken.append((chosen, units))
        quantity -= units
    return taken


def _fullest(candidate: Candidate) -> Any:
    return -candidate.available, candidate.rank


def _take(ordered: Sequence[Candidate], quantity: int) -> Taken:
    taken: Taken = []
    for candidate in ordered:
        if units := min(candidate.available, quantity):
            taken.append((candidate, units))
            quantity -= units
    return taken


STRATEGIES: dict[str, Strategy] = {
    "WAREHOUSE_PRIORITY": warehouse_priority,
    "FEWEST_SPLITS": fewest_splits,
    "MOST_STOCK": most_stock,
}
"""The strategies everybody has, by the name a reservation asks for them with."""
