"""The keys that tokens are verified with: shared secrets, and sets of public keys (RFC 7517) from a file or a URL."""

import json
from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Self

import jwt
import msgspec
from jwt.algorithms import Algorithm
from msgspec import Meta, Struct

from core.errors import ValidationFailed

_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_JWK_ALGORITHMS = {("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA", ("RSA", ""): "RS256"}
_URL_SCHEMES = ("https", "http")

Kid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]


class _Jwk(Struct):
    kty: str
    kid: Kid
    crv: str = ""
    alg: str | None = None
    use: Literal["sig"] = "sig"
    key_ops: list[Literal["verify"]] = []


class Key:
    """A verification key, bound to one algorithm. Not a Struct: a secret must not show in a ``repr``."""

    __slots__ = ("_material", "_method", "algorithm")

    def __init__(self, algorithm: str, method: Algorithm, material: Any) -> None:
        self.algorithm = algorithm
        self._method = method
        self._material = material
        if method.check_key_length(material):
            raise jwt.InvalidKeyError("The key is too small.")

    def signed(self, content: bytes, signature: bytes) -> bool:
        """Tell whether ``signature`` over ``content`` was made by this key's owner."""
        return self._method.verify(content, self._material, signature)


class KeyRing:
    """The keys that tokens are verified with. A ring never changes: for other public keys ask it for another ring."""

    def __init__(self, *, secrets: Iterable[str] = (), jwks: str = "") -> None:
        """Take HS256 ``secrets`` (see ``split_secrets``), and the path of a JWKS file of public keys, or its URL.

        What is at a URL is not fetched here: the ring has no public keys yet, and ``KeyWatch`` brings them.

        Raises:
            ValidationFailed: a secret or a key is unfit, the file cannot be used, or there is no key to come.
        """
        self._secrets = tuple(secret_key(secret, "INVENTORY_AUTH_SECRET") for secret in secrets)
        self._named: Mapping[str, Key] = {}
        if jwks and not is_url(jwks):
            self._named = _read_file(jwks)
        if not self._secrets and not jwks:
            raise ValidationFailed("No key to verify tokens with: set INVENTORY_AUTH_SECRET or INVENTORY_AUTH_JWKS.")

    def with_public(self, named: Mapping[str, Key]) -> Self:
        """Return a ring of the same secrets and, in place of its public keys, these by their ``kid``."""
        other = copy(self)
        other._named = named
        return other

    def candidates(self, algorithm: str, kid: str) -> tuple[Key, ...]:
        """Return the keys that may have signed a token with this header: every secret, or the one key named."""
        if algorithm == "HS256":
            return self._secrets
        key = self._named.get(kid)
        return (key,) if key is not None and key.algorithm == algorithm else ()

    def lacks(self, algorithm: str, kid: str) -> bool:
        """Tell whether a token with this header may be good by a public key that has come up since."""
        return algorithm in _JWK_ALGORITHMS.values() and kid != "" and kid not in self._named


class PublicKeys(NamedTuple):
    """What a key set holds: the fit keys by their ``kid``, and of each other one a sentence that says why it is not."""

    named: Mapping[str, Key]
    unfit: tuple[str, ...]


def is_url(jwks: str) -> bool:
    """Whether a key set is to be fetched.

    Raises:
        ValidationFailed: it has a scheme by which nothing is fetched.
    """
    scheme, separator, _ = jwks.partition("://")
    if separator and scheme.lower() not in _URL_SCHEMES:
        raise ValidationFailed("INVENTORY_AUTH_JWKS must name a file, or a URL that begins with https:// or http://.")
    return bool(separator)


def secret_key(secret: str, source: str) -> Key:
    """Return the HS256 key of a shared secret.

    Raises:
        ValidationFailed: it is unfit; the detail names ``source`` and repeats nothing of the secret.
    """
    method = jwt.get_algorithm_by_name("HS256")
    try:
        return Key("HS256", method, method.prepare_key(secret))
    except (jwt.PyJWTError, UnicodeError):
        fault = f"A secret in {source} is unfit: it must be random text of at least 32 bytes, not a key file or a JWK."
    raise ValidationFailed(fault)


def public_keys(content: str) -> PublicKeys:
    """Read a key set. One key that is unfit does not spoil the others (RFC 7517, section 5).

    Raises:
        ValueError: it is no key set, or holds no key at all.
    """
    try:
        key_set = STRICT_JSON.decode(content)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON with unique names") from None
    jwks = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(jwks, list) or not jwks:
        raise ValueError('is not a key set; it must hold {"keys": [...]}')
    named: dict[str, Key] = {}
    unfit: list[str] = []
    for position, jwk in enumerate(jwks, 1):
        try:
            kid, key = _public_key(jwk)
            if kid in named:
                raise ValueError("its kid is that of an earlier key")
        except ValueError as error:
            unfit.append(f"key {position} is unfit: {error}")
        else:
            named[kid] = key
    return PublicKeys(named, tuple(unfit))


def _read_file(path: str) -> Mapping[str, Key]:
    """Read a file, which is ours: one unfit key in it is a mistake to be told, not a stranger's business."""
    try:
        keys = public_keys(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValidationFailed(f"INVENTORY_AUTH_JWKS: {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        reason = "is not JSON with unique names" if isinstance(error, UnicodeError) else error
        raise ValidationFailed(f"INVENTORY_AUTH_JWKS: {path} {reason}.") from None
    if keys.unfit:
        raise ValidationFailed(f"INVENTORY_AUTH_JWKS: in {path} {keys.unfit[0]}.")
    return keys.named


def _public_key(jwk: Any) -> tuple[str, Key]:
    if isinstance(jwk, dict) and _PRIVATE_MEMBERS & jwk.keys():
        raise ValueError("it holds private members; replace it if others saw them, and list its public part only")
    shape = msgspec.convert(jwk, _Jwk)
    algorithm = _JWK_ALGORITHMS.get((shape.kty, shape.crv))
    if algorithm is None or shape.alg not in (algorithm, None):
        raise ValueError("only EC P-256 (ES256), OKP Ed25519 (EdDSA) and RSA (RS256) keys are accepted")
    try:
        parsed = jwt.PyJWK(jwk, algorithm)
        return shape.kid, Key(algorithm, parsed.Algorithm, parsed.key)
    except jwt.PyJWTError:
        raise ValueError("its numbers make no key, or an RSA key below 2048 bits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""Refuses a name that occurs twice, which the library would take the last one of."""
