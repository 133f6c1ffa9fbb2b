"""What an operator does about a dead letter that needs more than one step of the store: try it now, edit it and try."""

from difflib import unified_diff
from typing import Any

import msgspec
from msgspec.structs import replace

from core.acts import Act
from core.consuming.consumption import decode
from core.consuming.letters import letter_of
from core.consuming.redelivery import CLAIM_SECONDS, Redelivery
from core.errors import Conflict, InventoryError, NotFound, ValidationFailed
from ports.broker import Message
from ports.dead_letters import LetterDetail
from ports.store import Store

_DIFFERENCE_CHARACTERS_MAX = 20_000


class DeadLetters:
    """Dead letters in an operator's hands; lists, notes and decisions are the store's own (``ports/dead_letters``)."""

    def __init__(self, store: Store, redelivery: Redelivery) -> None:
        self._store = store
        self._redelivery = redelivery

    async def letter(self, id: str) -> LetterDetail:
        """Return all there is to know of a letter.

        Raises:
            NotFound: there is none of that id.
        """
        letter = await self._store.letter(id)
        if letter is None:
            raise NotFound(f"There is no dead letter {id}.", deadLetterId=id)
        return letter

    async def retry(self, id: str, act: Act) -> LetterDetail:
        """Try an unresolved letter now, and return it as it is afterwards.

        Raises:
            NotFound: there is none of that id.
            Conflict: somebody else was faster.
        """
        async with self._redelivery.claiming() as claim:
            claimed = await self._store.claim_letter(id, claim, act, seconds=CLAIM_SECONDS)
            await self._redelivery.attend(claim, [claimed])
        return await self.letter(id)

    async def edit(self, id: str, body: dict[str, Any], act: Act) -> LetterDetail:
        """Replace an unresolved letter by one with this body, try that one, and return it as it is afterwards.

        The original is resolved and linked; the difference is kept with the act.

        Raises:
            NotFound: there is no letter of that id.
            ValidationFailed: the body is no product event, has another eventId, or is what it was.
            Conflict: the event has had its effect already, or somebody else was faster.
        """
        letter = await self.letter(id)
        if letter.applied is not None:
            raise Conflict(f"Event {letter.event_id} has had its effect already; discard the letter.", deadLetterId=id)
        message = Message(
            id=letter.message_id,
            exchange=letter.exchange,
            routing_key=letter.routing_key,
            body=msgspec.json.encode(body),
            type=letter.event_type,
            correlation_id=letter.correlation_id,
            headers=letter.headers,
        )
        event = decode(message)
        if letter.event_id and event.event_id != letter.event_id:
            raise ValidationFailed(f"The eventId must stay {letter.event_id}: it is what makes a second try harmless.")
        difference = _difference(letter, body)
        if not difference:
            raise ValidationFailed("The body is what it was; to try it again unchanged, retry the letter.")
        fresh = replace(
            letter_of(message, InventoryError(letter.detail), attempts=0), code=letter.code, stack=letter.stack
        )
        async with self._redelivery.claiming() as claim:
            claimed = await self._store.replace_letter(
                id, fresh, claim, act, difference=difference, seconds=CLAIM_SECONDS
            )
            await self._redelivery.attend(claim, [claimed])
        return await self.letter(claimed.id)


def _difference(letter: LetterDetail, body: dict[str, Any]) -> str:
    """Return what was changed, line by line of the JSON laid out; of what is no JSON, all of it."""
    try:
        before = _laid_out(msgspec.json.decode(letter.body))
    except (msgspec.DecodeError, RecursionError):
        before = letter.body.splitlines()
    return "\n".join(unified_diff(before, _laid_out(body), "before", "after", lineterm=""))[:_DIFFERENCE_CHARACTERS_MAX]


def _laid_out(document: Any) -> list[str]:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode().splitlines()
