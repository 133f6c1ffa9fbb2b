"""Dead letters tried again: those whose pause is over, and those an operator wants tried.

Any number of processes share the work. A letter is taken in hand, its attempt counted, before it is tried; many are
tried at once, and the writer applies them in few commits. Order does not matter (``core/rules/product_events.py``), and
an event that has had its effect already has no second one.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from core.catalog.products import Products
from core.consuming.consumption import apply, decode
from core.consuming.letters import LATER, CrashLoop, letter_of, pause
from core.errors import InventoryError, OutcomeUnknown, Unavailable
from core.ids import new_id
from core.operations import EventOutcome
from core.running.loop import Loops, forever
from core.writing.writer import Writer
from ports.broker import Message
from ports.dead_letters import Claimed, Settlement
from ports.store import Store

CLAIM_SECONDS = 60.0
TRY_SECONDS = 30.0
"""How long one try may take. Longer, and the claim would lapse, as if the letter had ended this process."""
LAPSES_MAX = 3
_LETTERS = 512
_BYTES = 16 * 1024 * 1024
_IDLE_SECONDS = 1.0
_SETTLE_TRIES = 8
_ELSEWHERE_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_log = logging.getLogger(__name__)


class Redelivery:
    """Tries dead letters again.

    Args:
        process: who we are, for claims and the record of attempts.
    """

    def __init__(self, store: Store, writer: Writer, products: Products, *, process: str) -> None:
        self._store = store
        self._writer = writer
        self._products = products
        self._process = process
        self._loops = Loops()

    async def start(self) -> None:
        """Start trying what is due."""
        self._loops.start(forever("Trying dead letters", self._take_turn, pause=_IDLE_SECONDS))

    async def stop(self) -> None:
        """End; what is in hand then is given back, and due again at once."""
        await self._loops.stop()

    async def turn(self) -> int:
        """Try what is due, some hundreds at most, and return how many that were.

        Raises:
            Unavailable: the store is away.
        """
        async with self.claiming() as claim:
            due = await self._store.claim_due(claim, limit=_LETTERS, bytes_max=_BYTES, seconds=CLAIM_SECONDS)
            if due:
                await self.attend(claim, due)
        await self._store.advance_retries()
        return len(due)

    @asynccontextmanager
    async def claiming(self) -> AsyncIterator[str]:
        """Yield a name that no other claim has; what it holds is given back where the block is cancelled."""
        claim = f"{self._process}:{new_id('claim')}"
        try:
            yield claim
        except asyncio.CancelledError:  # this process was told to end, which is no fault of the letters
            with suppress(Unavailable, OutcomeUnknown):
                await self._store.give_back_letters(claim)
            raise

    async def attend(self, claim: str, letters: Sequence[Claimed]) -> None:
        """Try letters in hand and record what became of each."""
        settlements = await asyncio.gather(*(self._try(letter) for letter in letters))
        for tries in range(1, _SETTLE_TRIES + 1):
            try:
                await self._store.settle_letters(claim, self._process, settlements)
                break
            except (Unavailable, OutcomeUnknown):
                if tries == _SETTLE_TRIES:
                    raise
                await asyncio.sleep(random.uniform(0.1, min(5.0, 0.2 * 2**tries)))
        failed = sum(settlement.letter is not None for settlement in settlements)
        _log.info("Of %d dead letters %d failed again", len(letters), failed)

    async def _try(self, claimed: Claimed) -> Settlement:
        try:
            if claimed.lapses >= LAPSES_MAX:
                raise CrashLoop(f"It was in hand {claimed.lapses} times and nobody told what became of it.")
            outcome = await self._applied(claimed.message)
        except LATER as error:
            # Its eventId makes another try harmless, also after a commit that was lost sight of.
            return self._failed(claimed, error, retry_seconds=pause(claimed.attempts))
        except InventoryError as error:
            return self._failed(claimed, error, retry_seconds=None)
        except Exception:
            _log.exception("Dead letter %s failed unexpectedly", claimed.id)
            return self._failed(claimed, InventoryError("Something unexpected happened; the log has it."))
        return Settlement(claimed=claimed, outcome=outcome.verdict, detail=outcome.reason or "")

    async def _applied(self, message: Message) -> EventOutcome:
        try:
            async with asyncio.timeout(TRY_SECONDS):
                return await apply(self._writer, message, decode(message), self._products)
        except TimeoutError:
            raise OutcomeUnknown(f"It was not done within {TRY_SECONDS:g} s, and may be yet.") from None

    def _failed(self, claimed: Claimed, error: InventoryError, *, retry_seconds: float | None = None) -> Settlement:
        letter = letter_of(
            claimed.message, error, attempts=claimed.attempts, process=self._process, retry_seconds=retry_seconds
        )
        return Settlement(claimed=claimed, outcome=error.code, detail=error.detail, letter=letter)

    async def _take_turn(self) -> float:
        return 0.0 if await self.turn() else _IDLE_SECONDS * random.uniform(0.5, 1.5)


class Elsewhere(Redelivery):
    """Leaves every try to the process that runs: what this one did to the stock, that one's readers would not hear."""

    async def turn(self) -> int:
        """Try nothing."""
        return 0

    async def attend(self, claim: str, letters: Sequence[Claimed]) -> None:
        """Give letters back, and return when somebody has tried them.

        Raises:
            Unavailable: nobody has, for a while; they wait all the same.
        """
        await self._store.give_back_letters(claim)
        try:
            async with asyncio.timeout(_ELSEWHERE_SECONDS):
                for claimed in letters:
                    await self._until_tried(claimed)
        except TimeoutError:
            raise Unavailable("No process has tried it yet; start one, and it does so by itself.") from None

    async def _until_tried(self, claimed: Claimed) -> None:
        while True:
            letter = await self._store.letter(claimed.id)
            if letter is None or (letter.attempts >= claimed.attempts and letter.status != "RETRYING"):
                return
            await asyncio.sleep(_LOOK_SECONDS)
