"""A lease held for as long as something takes, however long that is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from core.errors import InventoryError, Unavailable
from ports.leases import Lease
from ports.store import Store

_log = logging.getLogger(__name__)


@asynccontextmanager
async def held(store: Store, name: str, owner: str, *, seconds: float) -> AsyncIterator[Lease | None]:
    """Hold a lease while the block runs, renewed beside it; None where another has it.

    Should it be lost all the same, the block finds out where the store does nothing for it any more (fencing).

    Raises:
        Unavailable: the store is away; nothing was begun.
    """
    lease = await store.acquire(name, owner, seconds=seconds)
    if lease is None:
        yield None
        return
    renewing = asyncio.create_task(_renew(store, lease, seconds))
    try:
        yield lease
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with suppress(InventoryError):
            await store.release(lease)


async def give_back(store: Store, lease: Lease | None, whose: str) -> None:
    """Give back what there is of a lease, so that another process goes on at once; the log says ``whose`` it was."""
    if lease is not None:
        try:
            await store.release(lease)
        except Unavailable:
            _log.info("%s lease could not be given back; it runs out by itself", whose)


async def _renew(store: Store, lease: Lease, seconds: float) -> None:
    """Renew a lease in time for a second try, until it is another's."""
    renewed: Lease | None = lease
    while renewed == lease:
        await asyncio.sleep(seconds / 3)
        with suppress(InventoryError):
            renewed = await store.acquire(lease.name, lease.owner, seconds=seconds)
