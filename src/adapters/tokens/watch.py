"""Public keys as their owner publishes them: fetched, kept, looked at again, and judged by the latest set.

Nobody whose key is known ever waits for the other side. A key that has come up since is found by looking again when a
token names it, at most once every ``COOLDOWN_SECONDS``, however many such tokens come.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Literal

from adapters.tokens.keys import public_keys
from adapters.tokens.verifier import Principal, UnknownKey, Verifier
from core.errors import Unavailable

COOLDOWN_SECONDS = 10.0
RETRY_SECONDS = 0.5
KEPT_SECONDS = 86_400.0
"""For how long the last good set is used while no other can be had; it may hold keys that were revoked since."""

KeysState = Literal["ok", "stale", "unavailable"]
"""``stale``: the last good set is used, because no other can be had; ``unavailable``: there is none to use."""

_log = logging.getLogger(__name__)


class KeyWatch:
    """Keeps a ``verifier``'s public keys as a URL has them; without a URL, those it has.

    Args:
        verifier: whose keys they are. Its shared secrets stay as they are.
        fetch: returns the key set as it is now, or raises Unavailable; None where there is no URL.
        seconds: from one look to the next.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        verifier: Verifier,
        fetch: Callable[[], Awaitable[str]] | None = None,
        *,
        seconds: float = 300.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._verifier = verifier
        self._fetch = fetch
        self._seconds = seconds
        self._clock = clock
        self._content = ""
        self._fetched_at = self._tried_at = float("-inf")
        self._flight: asyncio.Task[None] | None = None
        self.trouble = "They have not been fetched yet."
        """Why the last look brought nothing; empty if it did."""

    async def verify(self, token: str) -> Principal:
        """Return whom ``token`` speaks for; if its key is unknown, look for new ones first.

        Raises:
            Unauthorized: the token is not acceptable.
            Unavailable: it names a key that is not known, and what keys there are cannot be found out now.
        """
        try:
            return self._verifier.verify(token)
        except UnknownKey:
            if self._fetch is None:
                raise
        await self._look_again()
        try:
            return self._verifier.verify(token)
        except UnknownKey:
            if self.state == "ok":
                raise
        raise Unavailable("The keys to verify this token with cannot be had now; try again shortly.", retry_after=5)

    async def keep(self) -> None:
        """Look every so often until cancelled; after a failure sooner, and less often with each further one."""
        if self._fetch is None:
            return
        failures = 0
        try:
            while True:
                await asyncio.wait({self._look()})
                failures = failures + 1 if self.trouble else 0
                retry = RETRY_SECONDS * 2 ** min(failures, 6) if failures else self._seconds
                await asyncio.sleep(min(retry, self._seconds) * random.uniform(0.75, 1.25))
        finally:
            if self._flight is not None:
                self._flight.cancel()

    @property
    def state(self) -> KeysState:
        """What the keys are worth."""
        if self._fetch is None or not self.trouble:
            return "ok"
        return "stale" if self._content else "unavailable"

    async def _look_again(self) -> None:
        under_way = self._flight is not None and not self._flight.done()
        if under_way or self._clock() - self._tried_at >= COOLDOWN_SECONDS:
            await asyncio.wait({self._look()})

    def _look(self) -> "asyncio.Task[None]":
        """Return the look that is under way, or begin one: whoever waits for it does not own it."""
        if self._flight is None or self._flight.done():
            self._tried_at = self._clock()
            self._flight = asyncio.create_task(self._load())
        return self._flight

    async def _load(self) -> None:
        told, self.trouble = self.trouble, await self._loaded()
        if not self.trouble:
            self._fetched_at = self._clock()
            if told:
                _log.info("The keys to verify tokens with have been fetched")
            return
        if self.trouble != told:
            kept = "the last ones are used" if self._content else "tokens that need them are refused"
            _log.warning("The keys to verify tokens with cannot be fetched; %s: %s", kept, self.trouble)
        if self._content and self._clock() - self._fetched_at >= KEPT_SECONDS:
            _log.error("The last keys are %d hours old and used no longer", KEPT_SECONDS / 3600)
            self._verifier.use(self._verifier.keys.with_public({}))
            self._content = ""

    async def _loaded(self) -> str:
        """Fetch and use; return why that failed, or nothing."""
        assert self._fetch is not None
        try:
            content = await self._fetch()
            if content != self._content:
                self._use(content)
        except Unavailable as error:
            return error.detail
        except ValueError as error:
            return f"What is there {error}."
        except Exception:
            _log.exception("Fetching the keys to verify tokens with failed")
            return "Something unexpected happened; the log has it."
        return ""

    def _use(self, content: str) -> None:
        keys = public_keys(content)
        if not keys.named:  # nobody revokes everything by publishing nothing: that is a mistake, and soon put right
            raise ValueError(f"holds no key that can be used; {keys.unfit[0]}")
        for fault in keys.unfit:
            _log.info("Of the keys to verify tokens with, %s", fault)
        self._verifier.use(self._verifier.keys.with_public(keys.named))
        self._content = content
        _log.info("Tokens are verified with the keys %s", ", ".join(sorted(keys.named)))
