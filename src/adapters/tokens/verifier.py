"""Tokens: who is calling us, and how we say who we are (rule R31).

PyJWT does the cryptography. Reading a token and judging its claims is done here, because the library lets pass what a
service must not: a name that occurs twice (the last one wins, and the roles become admin), times that are strings, no
expiry at all, an audience shared with others, roles in one string, one token in two spellings.
"""

import binascii
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from adapters.tokens.keys import STRICT_JSON, KeyRing, Kid
from core.errors import Unauthorized, ValidationFailed

TOKEN_BYTES_MAX = 8_192
CACHED_TOKENS_MAX = 1_024

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REFUSED_HEADERS = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "b64"})

T = TypeVar("T")


class Principal(Struct, frozen=True):
    """Who a good token speaks for; ``expires_at`` is in Unix seconds."""

    issuer: str
    subject: str
    roles: frozenset[str]
    expires_at: int


class UnknownKey(Unauthorized):
    """The token names a public key that is not among those known."""


class _Header(Struct):
    alg: str
    kid: Kid = ""
    typ: str = "JWT"


class _Claims(Struct):
    iss: str
    aud: str | list[str]
    sub: Annotated[str, Meta(min_length=1, max_length=255)]
    exp: int
    iat: int
    roles: Annotated[list[str], Meta(max_length=32)]
    nbf: int = 0
    jti: str = ""


class Verifier:
    """Decides whether a token is good. Safe to use from several threads."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str | Collection[str],
        audience: str,
        lifetime_max: int = 3_600,
        leeway: int = 30,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Trust ``keys`` for tokens of any ``issuer`` named, meant for ``audience`` alone.

        ``lifetime_max`` and ``leeway`` are in seconds; the leeway is for clocks that disagree, in both directions.

        Raises:
            ValidationFailed: an issuer or the audience is empty.
        """
        self._issuers = frozenset([issuer] if isinstance(issuer, str) else issuer)
        if not self._issuers or not all(self._issuers) or not audience:
            raise ValidationFailed("INVENTORY_AUTH_ISSUER and INVENTORY_AUTH_AUDIENCE must not be empty.")
        self._audience = audience
        self._lifetime_max = lifetime_max
        self._leeway = leeway
        self._now = now
        self.use(keys)

    def use(self, keys: KeyRing) -> None:
        """Trust ``keys`` from now on and no others: tokens that were found good by other keys are judged anew."""
        self.keys = keys
        # Every request comes by here, mostly with a token seen before. Refusals are raised, so they are not remembered;
        # and one token has one spelling (see ``_decode``), so the raw string can be the key. A new memory and not an
        # emptied one: whoever is checking with the old keys must not put into it what he finds.
        self._checked = lru_cache(maxsize=CACHED_TOKENS_MAX)(partial(self._check, keys))

    def verify(self, token: str) -> Principal:
        """Return whom ``token`` (the compact form, without ``Bearer``) speaks for.

        Raises:
            Unauthorized: the token is not acceptable; the detail says why and repeats nothing of it.
            UnknownKey: so it is, and by a public key that has come up since it might be.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise Unauthorized(f"The token is longer than {TOKEN_BYTES_MAX} bytes.")
        principal = self._checked(token)
        # Here and nowhere else, because it is the one check whose answer changes for a token once found good.
        if self._now() >= principal.expires_at + self._leeway:
            raise Unauthorized("The token has expired; get a new one.")
        return principal

    def _check(self, keys: KeyRing, token: str) -> Principal:
        if _COMPACT.fullmatch(token) is None:
            raise Unauthorized("The token is not three base64url segments between dots.")
        content, _, signature = token.rpartition(".")
        head, _, body = content.partition(".")
        header = _header(_json_object(head, "header"))
        candidates = keys.candidates(header.alg, header.kid)
        if not candidates:
            refusal = UnknownKey if keys.lacks(header.alg, header.kid) else Unauthorized
            raise refusal("No key of this service goes with the token's algorithm and key id.")
        seal = _decode(signature, "signature")
        if not any(key.signed(content.encode(), seal) for key in candidates):
            raise Unauthorized("The token's signature is wrong.")
        return self._principal(_shaped(_json_object(body, "payload"), _Claims, "payload"))

    def _principal(self, claims: _Claims) -> Principal:
        faults = (
            (claims.iss not in self._issuers, "The token's issuer is not one that this service trusts."),
            (claims.aud not in (self._audience, [self._audience]), "The token is not meant for this service alone."),
            (
                not 0 < claims.exp - claims.iat <= self._lifetime_max,
                f"The token must live for 1 to {self._lifetime_max} seconds, from iat to exp.",
            ),
            (
                max(claims.iat, claims.nbf) > self._now() + self._leeway,
                "The token is not valid yet; wait, or set the clock of its issuer.",
            ),
            (
                not all(map(str.isprintable, (claims.sub, *claims.roles))),
                "The token's sub or roles hold characters that cannot be printed.",
            ),
        )
        for wrong, detail in faults:
            if wrong:
                raise Unauthorized(detail)
        return Principal(claims.iss, claims.sub, frozenset(claims.roles), claims.exp)


def _header(fields: dict[str, Any]) -> _Header:
    refused = _REFUSED_HEADERS & fields.keys()
    if refused:
        raise Unauthorized(f"The token's header carries {min(refused)}, which this service never follows.")
    header = _shaped(fields, _Header, "header")
    if header.typ.lower() not in ("jwt", "at+jwt"):
        raise Unauthorized("The token's typ is neither JWT nor at+jwt.")
    return header


def _shaped(fields: dict[str, Any], shape: type[T], part: str) -> T:
    try:
        return msgspec.convert(fields, shape)
    except msgspec.ValidationError as error:
        raise Unauthorized(f"The token's {part} is not acceptable: {error}.") from None


def _json_object(segment: str, part: str) -> dict[str, Any]:
    try:
        fields = STRICT_JSON.decode(_decode(segment, part).decode())
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise Unauthorized(f"The token's {part} is not a JSON object with unique names.")
    return fields


def _decode(segment: str, part: str) -> bytes:
    try:
        content = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error:
        content = b""
    # Encoded again and compared, because unused bits at the end would give one token several spellings.
    if urlsafe_b64encode(content).rstrip(b"=") != segment.encode():
        raise Unauthorized(f"The token's {part} is not base64url.")
    return content
