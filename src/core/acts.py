"""Who did what by hand, and why: what is kept of every operator's act, in the same commit as the act."""

from datetime import datetime
from typing import Any

from msgspec import Struct


class Act(Struct, frozen=True, kw_only=True):
    """An operator's act as it is asked for: who, why, and under which name across services."""

    actor: str
    reason: str | None = None
    correlation_id: str | None = None


class ActRecord(Struct, frozen=True, rename="camel", kw_only=True):
    """An act on record. ``subject`` is the id of what it was done to, ``details`` what else there is to know."""

    id: str
    at: datetime
    actor: str
    action: str
    subject: str
    reason: str | None
    correlation_id: str | None
    details: dict[str, Any]
