"""Leases: rights to do something alone, on the database's clock."""

from typing import Protocol

from msgspec import Struct


class Lease(Struct, frozen=True):
    """A right to do something alone, until ``owner`` stops renewing it. ``token`` rises with every change of owner."""

    name: str
    owner: str
    token: int


class LeaseStore(Protocol):
    """Where leases are kept."""

    async def acquire(self, name: str, owner: str, *, seconds: float) -> Lease | None:
        """Take or renew the lease ``name`` for ``seconds`` on the database's clock; None while another holds it."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give a lease back, if it is still ours."""
        ...
