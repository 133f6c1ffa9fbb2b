"""Availability to promise, over time: what there will be when holds expire and expected receipts come.

Nothing here takes away: what is reserved is taken away already, so the more time passes, the more there is. An item
that has promised more than it has, or has less than its safety stock, first makes that good. What is overdue may come
at any time, so nobody is promised it; what belongs to an inactive item is not for sale.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import itemgetter

from msgspec import Struct

from core.stock import Hold, Item, Supply

_AT = itemgetter(0)


class Step(Struct, frozen=True, rename="camel", gc=False):
    """So many can be promised from ``at`` on, until the next step."""

    at: datetime
    quantity_available: int


def project(items: Iterable[Item], supplies: Iterable[Supply], holds: Iterable[Hold], now: datetime) -> list[Step]:
    """Return what can be promised of these items together: now, and from every instant on at which it changes.

    A hold that is over and not given back yet counts as given back now.
    """
    free = {item.id: item.on_hand - item.reserved - item.safety_stock for item in items if item.status == "ACTIVE"}
    gains = [(max(hold.expires_at, now), hold.inventory_item_id, hold.quantity) for hold in holds]
    gains += [(at, each.inventory_item_id, each.quantity) for each in supplies if (at := each.expected_at) > now]
    gains.sort(key=_AT)  # the supplies are in order already
    total = sum(units for units in free.values() if units > 0)
    steps = [Step(now, total)]
    for at, item_id, quantity in gains:
        if (before := free.get(item_id)) is None:
            continue
        after = free[item_id] = before + quantity
        if after <= 0:  # only makes good what is owed
            continue
        total += after if before <= 0 else quantity
        if at == steps[-1].at:
            steps[-1] = Step(at, total)
        else:
            steps.append(Step(at, total))
    return steps


def available_by(steps: Sequence[Step], at: datetime) -> int:
    """Return how many can be promised by ``at``; what is past is as now."""
    return max(step.quantity_available for step in steps if step is steps[0] or step.at <= at)


def earliest(steps: Sequence[Step], quantity: int) -> datetime | None:
    """Return from when on ``quantity`` units can be promised, None when nothing that is known brings so many."""
    return next((step.at for step in steps if step.quantity_available >= quantity), None)
