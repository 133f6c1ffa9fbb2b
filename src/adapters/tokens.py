"""Tokens: who is calling us, and how we say who we are (rule R31).

PyJWT does the cryptography. Reading a token and judging its claims is done here, because the library lets pass what a
service must not: a name that occurs twice (the last one wins, and the roles become admin), times that are strings, no
expiry at all, an audience shared with others, roles in one string, one token in two spellings.
"""

import binascii
import json
import os
import re
import secrets
import stat
import tempfile
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError
from msgspec import Meta, Struct

from core.errors import Unauthorized, ValidationFailed

TOKEN_BYTES_MAX = 8_192
CACHED_TOKENS_MAX = 1_024

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REFUSED_HEADERS = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "b64"})
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_JWK_ALGORITHMS = {("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA", ("RSA", ""): "RS256"}
_SIGNING = {
    ("EC", "P-256"): ("ES256", ("crv", "kty", "x", "y")),
    ("OKP", "Ed25519"): ("EdDSA", ("crv", "kty", "x")),
    ("RSA", ""): ("RS256", ("e", "kty", "n")),
}
"""The algorithm of a key, and the members its thumbprint is made of."""

T = TypeVar("T")
Kid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]


class Principal(Struct, frozen=True):
    """Who a good token speaks for; ``expires_at`` is in Unix seconds."""

    issuer: str
    subject: str
    roles: frozenset[str]
    expires_at: int


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
    """The keys that tokens are verified with. A ring never changes: for other keys make another ring and Verifier."""

    def __init__(self, *, secrets: Iterable[str] = (), jwks: str = "") -> None:
        """Take HS256 ``secrets`` (see ``split_secrets``), and the path of a JWKS file of public keys.

        Raises:
            ValidationFailed: a secret or a key is unfit, the file cannot be used, or there is no key at all.
        """
        self._secrets = tuple(_secret_key(secret, "INVENTORY_AUTH_SECRET") for secret in secrets)
        self._named = _read_jwks(jwks) if jwks else {}
        if not self._secrets and not self._named:
            raise ValidationFailed("No key to verify tokens with: set INVENTORY_AUTH_SECRET or INVENTORY_AUTH_JWKS.")

    def candidates(self, algorithm: str, kid: str) -> tuple[Key, ...]:
        """Return the keys that may have signed a token with this header: every secret, or the one key named."""
        if algorithm == "HS256":
            return self._secrets
        key = self._named.get(kid)
        return (key,) if key is not None and key.algorithm == algorithm else ()


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
        self._keys = keys
        self._audience = audience
        self._lifetime_max = lifetime_max
        self._leeway = leeway
        self._now = now
        # Every request comes by here, mostly with a token seen before. Refusals are raised, so they are not remembered;
        # and one token has one spelling (see ``_decode``), so the raw string can be the key.
        self._checked = lru_cache(maxsize=CACHED_TOKENS_MAX)(self._check)

    def verify(self, token: str) -> Principal:
        """Return whom ``token`` (the compact form, without ``Bearer``) speaks for.

        Raises:
            Unauthorized: the token is not acceptable; the detail says why and repeats nothing of it.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise Unauthorized(f"The token is longer than {TOKEN_BYTES_MAX} bytes.")
        principal = self._checked(token)
        # Here and nowhere else, because it is the one check whose answer changes for a token once found good.
        if self._now() >= principal.expires_at + self._leeway:
            raise Unauthorized("The token has expired; get a new one.")
        return principal

    def _check(self, token: str) -> Principal:
        if _COMPACT.fullmatch(token) is None:
            raise Unauthorized("The token is not three base64url segments between dots.")
        content, _, signature = token.rpartition(".")
        head, _, body = content.partition(".")
        header = _header(_json_object(head, "header"))
        keys = self._keys.candidates(header.alg, header.kid)
        if not keys:
            raise Unauthorized("No key of this service goes with the token's algorithm and key id.")
        seal = _decode(signature, "signature")
        if not any(key.signed(content.encode(), seal) for key in keys):
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


class SigningKey:
    """A private key that tokens are signed with; its ``kid`` is the thumbprint of its public part (RFC 7638)."""

    def __init__(self, path: str) -> None:
        """Read the PEM file ``path``: an EC P-256 (ES256), Ed25519 (EdDSA) or RSA key (RS256).

        Raises:
            ValidationFailed: the file cannot be read, or holds no such key, or a small one.
        """
        try:
            self.material: Any = load_pem_private_key(Path(path).read_bytes(), password=None)
            public = json.loads(_jwk_of(self.material))
            self.algorithm, members = _SIGNING[public["kty"], public.get("crv", "")]
        except OSError as error:
            raise ValidationFailed(f"The key file {path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError, UnsupportedAlgorithm):
            raise ValidationFailed(
                f"The key file {path} is unfit: it must be a PEM file, without a password, of an EC P-256, Ed25519 or "
                "RSA private key."
            ) from None
        if (small := jwt.get_algorithm_by_name(self.algorithm).check_key_length(self.material)) is not None:
            raise ValidationFailed(f"The key in {path} is too small. {small}")
        thumbprint = json.dumps({name: public[name] for name in members}, separators=(",", ":"), sort_keys=True)
        self.kid = urlsafe_b64encode(sha256(thumbprint.encode()).digest()).rstrip(b"=").decode()


def _jwk_of(key: Any) -> str:
    public = key.public_key()
    for algorithm in (ECAlgorithm, OKPAlgorithm, RSAAlgorithm):
        with suppress(InvalidKeyError, AttributeError):
            return str(algorithm.to_jwk(public))
    raise ValueError("no kind of key that signs here")


def mint(
    secret: str | SigningKey,
    *,
    issuer: str,
    audience: str,
    subject: str,
    roles: Sequence[str],
    lifetime: int,
    now: Callable[[], float] = time.time,
) -> str:
    """Return a token signed with ``secret`` (HS256, or by the key), good from now on for ``lifetime`` seconds.

    Raises:
        ValidationFailed: the secret is unfit, or the lifetime is not positive.
    """
    if isinstance(secret, str):
        _secret_key(secret, "the signing setting")
    if lifetime <= 0:
        raise ValidationFailed("A token's lifetime must be at least one second.")
    issued = int(now())
    claims = {"iss": issuer, "aud": audience, "sub": subject, "roles": list(roles), "iat": issued}
    claims |= {"exp": issued + lifetime, "jti": secrets.token_urlsafe(16)}
    if isinstance(secret, str):
        return jwt.encode(claims, secret, algorithm="HS256")
    return jwt.encode(claims, secret.material, algorithm=secret.algorithm, headers={"kid": secret.kid})


def split_secrets(setting: str) -> list[str]:
    """Return the secrets of a comma-separated setting: all of them verify, the first one signs.

    To rotate, put the new one behind the old one everywhere, then in front, and drop the old one when its last token
    has expired.
    """
    return [secret.strip() for secret in setting.split(",")]


def generate_secret(path: Path) -> str:
    """Return the secret kept in the file ``path``; when there is none, make it first, readable by its owner only.

    Processes that race for it all return the same secret.

    Raises:
        ValidationFailed: the file cannot be read or made, others may read it, or what it holds is unfit.
    """
    try:
        if not path.exists():
            _write_once(path, secrets.token_urlsafe(32))
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read().strip()
    except OSError as error:
        reason = f"The secret file {path} cannot be read or made ({error.strerror})"
        raise ValidationFailed(f"{reason}: put it elsewhere, or set INVENTORY_AUTH_SECRET.") from error
    except UnicodeError:
        raise ValidationFailed(f"The secret file {path} is not text; remove it to get a new one.") from None
    if os.name == "posix" and mode & 0o077:
        raise ValidationFailed(f"Others may read the secret file {path}: remove it to get a new one, or chmod 600 it.")
    _secret_key(secret, str(path))
    return secret


def _write_once(path: Path, secret: str) -> None:
    """Make the file whole or not at all, and never over one that is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first, and its secret is the one to use
    finally:
        Path(draft).unlink()


def _secret_key(secret: str, source: str) -> Key:
    method = jwt.get_algorithm_by_name("HS256")
    try:
        return Key("HS256", method, method.prepare_key(secret))
    except (jwt.PyJWTError, UnicodeError):
        fault = f"A secret in {source} is unfit: it must be random text of at least 32 bytes, not a key file or a JWK."
    raise ValidationFailed(fault)


def _read_jwks(source: str) -> dict[str, Key]:
    if "://" in source:
        raise ValidationFailed("INVENTORY_AUTH_JWKS must name a file: key sets by URL are not supported yet.")
    try:
        key_set = _JSON.decode(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValidationFailed(f"INVENTORY_AUTH_JWKS: {source} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError):
        raise ValidationFailed(f"INVENTORY_AUTH_JWKS: {source} is not JSON with unique names.") from None
    jwks = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(jwks, list) or not jwks:
        raise ValidationFailed(f'INVENTORY_AUTH_JWKS: {source} is not a key set; it must hold {{"keys": [...]}}.')
    named: dict[str, Key] = {}
    for position, jwk in enumerate(jwks, 1):
        try:
            kid, key = _public_key(jwk)
            if kid in named:
                raise ValueError("its kid is that of an earlier key")
        except ValueError as error:
            raise ValidationFailed(f"INVENTORY_AUTH_JWKS: key {position} of {source} is unfit: {error}.") from None
        named[kid] = key
    return named


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
        fields = _JSON.decode(_decode(segment, part).decode())
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
