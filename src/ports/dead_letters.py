"""Dead letters: messages that could not be dealt with, kept with their cause until somebody mends or discards them.

The part of the store that keeps them. Whoever works on a letter claims it first: of two, one wins and the other is
refused. Every act of an operator is on record in the same commit (table ``audit``).
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Literal, Protocol

from msgspec import Struct

from core.acts import Act, ActRecord
from core.fields import Instant, ProductId, Text, Word, in_utc
from ports.broker import Message

LetterStatus = Literal["UNRESOLVED", "WAITING", "RETRYING", "RESOLVED", "DISCARDED"]
RetryStatus = Literal["CANARY", "RUNNING", "DONE", "STOPPED", "CANCELLED"]
RETRY_LETTERS_MAX = 20_000
BODY_SHOWN_BYTES = 256 * 1024


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A message that could not be dealt with, and why; one a ``fingerprint``, however often it fails.

    ``cause`` is ``detail`` without what differs from message to message: letters of one code and cause are a group.
    ``event_id``, ``product_id`` and ``skus`` are what could be read of the body. With ``retry_seconds`` the letter is
    tried again by itself after so long, without it waits for an operator. ``process`` is who failed.
    """

    fingerprint: str
    message: Message
    code: str
    detail: str
    stack: str
    attempts: int
    cause: str = ""
    event_id: str = ""
    product_id: str | None = None
    skus: tuple[str, ...] = ()
    retry_seconds: float | None = None
    process: str = ""

    @property
    def group_id(self) -> str:
        """The name of the group of letters that failed alike."""
        return sha256(f"{self.code}\n{self.cause}".encode("utf-8", "replace")).hexdigest()[:16]


class Letter(Struct, frozen=True, rename="camel", kw_only=True):
    """A dead letter as a list shows it.

    - UNRESOLVED: it waits for an operator.
    - WAITING: it is tried at ``next_attempt_at``, or, without, when the canary of its retry has succeeded.
    - RETRYING: a process has it in hand, until ``next_attempt_at`` at most.
    - RESOLVED: it was applied, or replaced by an edited one.
    - DISCARDED: an operator decided against it; it can be restored until it is dropped, 90 days after.
    """

    id: str
    status: LetterStatus
    message_id: str
    event_id: str
    event_type: str
    correlation_id: str
    product_id: str | None
    skus: tuple[str, ...]
    code: str
    detail: str
    group_id: str
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime
    next_attempt_at: datetime | None
    ended_at: datetime | None
    retry_id: str | None
    edited_from: str | None
    replaced_by: str | None
    note: str | None


class Attempt(Struct, frozen=True, rename="camel"):
    """One try at a letter: ``outcome`` is an error's code, or APPLIED, SKIPPED, DUPLICATE; ``process`` who tried."""

    number: int
    at: datetime
    outcome: str
    detail: str
    process: str


class Applied(Struct, frozen=True, rename="camel"):
    """That an event has had its effect already, by the inbox."""

    verdict: str
    reason: str | None
    received_at: datetime


class LetterDetail(Letter, frozen=True, rename="camel", kw_only=True):
    """All there is to know of a letter; ``history`` and ``acts`` are the newest hundred each, newest first.

    ``body`` is text where it is UTF-8, else base64, of the first ``BODY_SHOWN_BYTES`` of ``body_bytes``.
    """

    exchange: str
    routing_key: str
    headers: dict[str, str]
    body: str
    body_encoding: Literal["utf-8", "base64"]
    body_bytes: int
    stack: str
    history: tuple[Attempt, ...]
    applied: Applied | None
    acts: tuple[ActRecord, ...]


class LetterGroup(Struct, frozen=True, rename="camel"):
    """Letters that failed alike: how many, since when and until when, and one of them to look at."""

    group_id: str
    code: str
    cause: str
    count: int
    first_failed_at: datetime
    last_failed_at: datetime
    example_id: str


class LetterFilter(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Which letters; None means any. All of it narrows, and is compared to the letter.

    ``id`` is the letter's own, its message's or its event's; ``text`` stands somewhere in its detail; ``since`` and
    ``until`` bound its last failure, the first included.
    """

    status: LetterStatus | None = None
    id: Word | None = None
    correlation_id: Word | None = None
    type: Word | None = None
    code: Word | None = None
    text: Text | None = None
    group_id: Word | None = None
    sku: Word | None = None
    product_id: ProductId | None = None
    since: Instant | None = None
    until: Instant | None = None

    def __post_init__(self) -> None:
        in_utc(self, "since", "until")


class Claimed(Struct, frozen=True):
    """A letter in hand, with the message to try; ``attempts`` counts the try that is about to be made.

    ``lapses`` is how often it was in hand before and nobody told what became of it: whoever had it may have died of it.
    """

    id: str
    message: Message
    attempts: int
    retry_id: str | None
    lapses: int


class Settlement(Struct, frozen=True, kw_only=True):
    """What became of a try. ``letter`` says how it failed, None that it did not; ``outcome`` as in ``Attempt``."""

    claimed: Claimed
    outcome: str
    detail: str = ""
    letter: DeadLetter | None = None


class Retry(Struct, frozen=True, rename="camel", kw_only=True):
    """Letters that are tried again together.

    CANARY: one of them is tried first. RUNNING: the others are. DONE: none waits any more. STOPPED: the canary failed,
    the others were left alone. CANCELLED: an operator stopped it; what was in hand then was still finished.
    """

    id: str
    status: RetryStatus
    actor: str
    reason: str | None
    canary_id: str | None
    total: int
    succeeded: int
    failed: int
    left: int
    started_at: datetime
    ended_at: datetime | None


class DeadLetterStore(Protocol):
    """Where dead letters are kept. Times are the database's."""

    async def park(self, letter: DeadLetter) -> None:
        """Keep a failed message; one that is kept already gets the new cause, and its attempts are added up.

        What is decided of it stays: one that was discarded stays so.
        """
        ...

    async def count_delivery(self, fingerprint: str) -> int:
        """Count, before it is handled, that a message was delivered again; return how often that was."""
        ...

    async def forget_deliveries(self, fingerprint: str) -> None:
        """Forget how often a message was delivered again, now that it is dealt with."""
        ...

    async def letters(self, filter: LetterFilter, *, after: str | None = None, limit: int) -> list[Letter]:
        """List letters, the newest first; ``after`` is the id of the last one that is known."""
        ...

    async def letter_groups(self, filter: LetterFilter, *, limit: int) -> list[LetterGroup]:
        """Count letters by what failed, the most frequent first."""
        ...

    async def letter_counts(self) -> Mapping[str, int]:
        """Count letters by status; those without any are left out."""
        ...

    async def letter(self, id: str) -> LetterDetail | None:
        """Return all there is to know of a letter."""
        ...

    # -- claims ------------------------------------------------------------------------------------------------------

    async def claim_letter(self, id: str, claim: str, act: Act, *, seconds: float) -> Claimed:
        """Take an unresolved letter in hand for ``seconds``, under the name ``claim``.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not unresolved (any more).
        """
        ...

    async def replace_letter(
        self, id: str, letter: DeadLetter, claim: str, act: Act, *, difference: str, seconds: float
    ) -> Claimed:
        """Resolve a letter by an edited one, which is linked to it, and take that one in hand as ``claim_letter`` does.

        Raises:
            NotFound: there is no letter of that id.
            Conflict: it is not unresolved (any more), or the edited message is a letter of its own already.
        """
        ...

    async def claim_due(self, claim: str, *, limit: int, bytes_max: int, seconds: float) -> list[Claimed]:
        """Take in hand what is due, the longest due first, and count the attempt, before it is made.

        So a message that kills whoever handles it cannot be tried for ever. What another process took in hand and has
        not settled in its time is due again, after the others and alone. Bodies are ``bytes_max`` together, or one
        larger one.
        """
        ...

    async def settle_letters(self, claim: str, process: str, settlements: Sequence[Settlement]) -> int:
        """Record what became of claimed letters; return of how many: those still in hand under ``claim``."""
        ...

    async def give_back_letters(self, claim: str) -> int:
        """Let others have, at once, what is still in hand under ``claim``; return how many. None of it has lapsed."""
        ...

    # -- what operators decide ---------------------------------------------------------------------------------------

    async def begin_retry(
        self, which: LetterFilter | Collection[str], act: Act, *, canary: bool, limit: int = RETRY_LETTERS_MAX
    ) -> Retry:
        """Claim all unresolved letters of these, ``limit`` at most, to be tried again; the oldest is the canary.

        Raises:
            Conflict: none of them is unresolved.
        """
        ...

    async def advance_retries(self) -> None:
        """Take every retry that has not ended to its next stage, where what it waits for has come."""
        ...

    async def cancel_retry(self, id: str, act: Act) -> Retry:
        """Give back what a retry has not taken in hand.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended.
        """
        ...

    async def retry(self, id: str) -> Retry | None:
        """Return a retry as it stands."""
        ...

    async def retries(self, *, limit: int) -> list[Retry]:
        """Return the last retries, newest first."""
        ...

    async def discard_letter(self, id: str, act: Act) -> Letter:
        """Decide against an unresolved letter.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not unresolved (any more).
        """
        ...

    async def restore_letter(self, id: str, act: Act) -> Letter:
        """Make a discarded letter unresolved again.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not discarded (any more).
        """
        ...

    async def note_letter(self, id: str, note: str | None, act: Act) -> Letter:
        """Put a note on a letter, or take it off.

        Raises:
            NotFound: there is none of that id.
        """
        ...
