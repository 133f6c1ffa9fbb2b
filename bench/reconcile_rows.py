"""Reconciliation: how much it looks at in a second, what that takes of memory, and what asking somebody else costs."""

from planted_run import fill
from private_server import LOOPBACK, free_port
from rig import Rig, await_, execute
from rows import Measured, Sample, absolute, alternate, row
from stores import migrated

_CALLS = 2_000


@row(
    "reconcile",
    "self-reconciliation of 1,000,000 items, with their history",
    unit="items/s",
    floor=20_000,
    aim=40_000,
    of_ratio=False,
)
def reconcile(rig: Rig) -> Measured:
    deep, quick = _reconciled(rig)
    return absolute(
        [each["items"] / each["seconds"] for each in deep],
        what=f"self-reconciliation of {deep[0]['items']:,.0f} items, with their history",
        notes=[
            f"as they stand, without history: {max(each['items'] / each['seconds'] for each in quick):,.0f} items/s"
        ],
    )


@row("reconcile-mb", "resident memory it takes beyond idle", unit="MB", floor=60, aim=30, of_ratio=False, less=True)
def reconcile_memory(rig: Rig) -> Measured:
    deep, _ = _reconciled(rig)
    return absolute(
        [each["peak"] - each["idle"] for each in deep],
        what=f"resident memory beyond idle, reconciling {deep[0]['items']:,.0f} items",
        notes=[f"idle: {deep[0]['idle']:.0f} MB"],
    )


@row("catalogue", "a question to the Product Service / a bare httpx2 GET", unit="s", floor=1.5, aim=1.2, less=True)
def catalogue(rig: Rig) -> Measured:
    port = free_port()
    with rig.beside("catalog_calls.py", "serve", port):
        url = f"http://{LOOPBACK}:{port}"
        return alternate(
            lambda: Sample(rig.python("catalog_calls.py", "ours", _CALLS, url)),
            lambda: Sample(rig.python("catalog_calls.py", "bare", _CALLS, url)),
            rounds=rig.scale.rounds,
            notes=["one after another, from an answer that is always the same"],
        )


_FOUND: dict[int, tuple[list[dict[str, float]], list[dict[str, float]]]] = {}


def _reconciled(rig: Rig) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Reconcile one store some times, deep and quick; both rows are about the same runs."""
    if id(rig) not in _FOUND:
        with rig.database() as store:
            await_(_filled(store, rig.scale.reconciled))
            execute(store, "VACUUM ANALYZE")
            execute(store, "CHECKPOINT")
            rounds = range(min(rig.scale.rounds, 3))
            deep, quick = ([rig.python("reconciling.py", store, parts) for _ in rounds] for parts in ("deep", "quick"))
        _FOUND[id(rig)] = deep, quick
    return _FOUND[id(rig)]


async def _filled(store: str, items: int) -> None:
    async with migrated(store):
        await fill(store, items)
