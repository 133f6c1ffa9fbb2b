"""The token this service calls another with: made when it is needed, kept, and made anew before it ends."""

import time
from collections.abc import Callable

from adapters.tokens.signing import SigningKey, mint

ROLE = "inventory-service"
LIFETIME_SECONDS = 300
USED_SECONDS = 240
"""For how long one token is used; what is left of its life is for requests on their way and clocks that disagree."""


class ServiceToken:
    """Call it for a token with the role ``inventory-service``, signed by a shared secret or a private key of ours."""

    def __init__(
        self, secret: str | SigningKey, *, issuer: str, audience: str, now: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._token = ""
        self._made_at = float("-inf")
        self()

    def __call__(self) -> str:
        """Return a token that is good for a minute at least."""
        # Both ways, because a clock that was set back makes a token seem young that is old elsewhere.
        if not 0 <= self._now() - self._made_at < USED_SECONDS:
            self._made_at = self._now()
            self._token = mint(
                self._secret,
                issuer=self._issuer,
                audience=self._audience,
                subject="inventory-service",
                roles=[ROLE],
                lifetime=LIFETIME_SECONDS,
                now=self._now,
            )
        return self._token
