"""Tokens: the good ones pass, and each known trick is refused for the reason it should be."""

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adapters.tokens.keys import KeyRing
from adapters.tokens.signing import generate_secret, mint, split_secrets
from adapters.tokens.verifier import CACHED_TOKENS_MAX, TOKEN_BYTES_MAX, Principal, Verifier
from core.errors import Unauthorized, ValidationFailed

NOW = 1_800_000_000
ISSUER = "https://issuer.example"
AUDIENCE = "inventory-service"
SECRET = "a-secret-for-tests-that-is-long-enough"
RETIRED = "an-old-secret-for-tests-long-enough-too"

EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_PEM = EC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "some-caller",
    "roles": ["product-service"],
    "iat": NOW,
    "exp": NOW + 600,
}
CALLER = Principal(ISSUER, "some-caller", frozenset({"product-service"}), NOW + 600)


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.time = float(NOW)

    def __call__(self) -> float:
        return self.time


def b64(content: bytes) -> str:
    """Encode as JOSE does."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def sealed(header: str, payload: str, key: bytes = SECRET.encode(), encoding: str = "utf-8") -> str:
    """Sign exactly this text with HMAC, whatever the header says."""
    content = f"{b64(header.encode(encoding))}.{b64(payload.encode(encoding))}"
    return f"{content}.{b64(hmac.digest(key, content.encode(), hashlib.sha256))}"


def token(header: Mapping[str, Any] = MappingProxyType({}), key: bytes = SECRET.encode(), **claims: Any) -> str:
    """A token that is good in all but what the arguments change; a claim given as ``...`` is left out."""
    kept = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    return sealed(json.dumps({"alg": "HS256", "typ": "JWT", **header}), json.dumps(kept), key)


def public_jwk(private: Any, algorithm: str, **members: Any) -> dict[str, Any]:
    """The JWK of a private key's public part."""
    jwk: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return jwk | members


EC_JWK = public_jwk(EC_KEY, "ES256", kid="ec-1", alg="ES256", use="sig")
ED_JWK = public_jwk(ED_KEY, "EdDSA", kid="ed.1")
RSA_JWK = public_jwk(RSA_KEY, "RS256", kid="rsa_1", alg="RS256")


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


@pytest.fixture
def jwks(tmp_path: Path) -> str:
    """A JWKS file with a key of each kind."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [EC_JWK, ED_JWK, RSA_JWK]}))
    return str(path)


@pytest.fixture
def verifier(jwks: str, clock: Clock) -> Verifier:
    """A verifier of every kind of key."""
    return make_verifier(KeyRing(secrets=[SECRET], jwks=jwks), clock)


def make_verifier(keys: KeyRing, clock: Callable[[], float], **options: Any) -> Verifier:
    """Make a verifier for this service."""
    settings: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "now": clock}
    return Verifier(keys, **settings | options)


def corrupt_tail(text: str) -> str:
    """Change only the bits of the last character that base64 does not use."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


GOOD = token()
CONTENT = GOOD.rpartition(".")[0]
ES256 = {"alg": "ES256", "kid": "ec-1"}
ES_CONTENT = token(ES256).rpartition(".")[0]
DEEP = "[" * 2_000 + "]" * 2_000

BAD: dict[str, tuple[str, str]] = {
    "1-none": (token({"alg": "none"}), "No key"),
    "1-none-unsigned": (token({"alg": "none"}).rpartition(".")[0] + ".", "three base64url segments"),
    "2-nOnE": (token({"alg": "nOnE"}), "No key"),
    "3-empty-signature": (CONTENT + ".", "three base64url segments"),
    "3-no-signature": (CONTENT, "three base64url segments"),
    "4-hs256-with-public-pem": (token({"kid": "ec-1"}, EC_PEM), "signature is wrong"),
    "5-hs256-with-public-jwk": (token({"kid": "ec-1"}, json.dumps(EC_JWK).encode()), "signature is wrong"),
    "6-es256-zero-signature": (f"{ES_CONTENT}.{b64(bytes(64))}", "signature is wrong"),
    "6-es256-short-signature": (f"{ES_CONTENT}.{b64(b'1')}", "signature is wrong"),
    "6-es256-signed-with-secret": (token(ES256), "signature is wrong"),
    "7-embedded-jwk": (token({"jwk": EC_JWK}), "jwk"),
    "7-embedded-x5c": (token({"x5c": ["MIIB"]}), "x5c"),
    "8-jku": (token({"jku": "http://127.0.0.1:1/keys"}), "jku"),
    "8-jku-before-all-else": (token({"jku": "http://127.0.0.1:1/", "alg": 7, "kid": "/"}, b"x"), "jku"),
    "9-x5u": (token({"x5u": "http://127.0.0.1:1/cert"}), "x5u"),
    "9-x5u-before-all-else": (token({"x5u": "http://127.0.0.1:1/", "alg": 7, "kid": "/"}, b"x"), "x5u"),
    "10-kid-traversal": (token({"kid": "../../dev/null"}), "kid"),
    "11-kid-sql": (token({"kid": "1' OR '1'='1"}), "kid"),
    "12-kid-10-kb": (token({"kid": "k" * 10_240}), "longer than"),
    "12-kid-65": (token({"kid": "k" * 65}), "kid"),
    "12-kid-empty": (token({"kid": ""}), "kid"),
    "12-kid-newline": (token({"kid": "ec-1\n"}), "kid"),
    "12-kid-number": (token({"kid": 1}), "kid"),
    "13-crit": (token({"crit": ["exp"]}), "crit"),
    "13-crit-b64": (token({"b64": True}), "b64"),
    "14-typ-other": (token({"typ": "logout+jwt"}), "typ"),
    "14-typ-null": (token({"typ": None}), "typ"),
    "15-no-exp": (token(exp=...), "exp"),
    "15-no-iat": (token(iat=...), "iat"),
    "15-no-sub": (token(sub=...), "sub"),
    "15-no-roles": (token(roles=...), "roles"),
    "16-exp-string": (token(exp=str(NOW + 600)), "exp"),
    "16-exp-float": (token(exp=NOW + 600.0), "exp"),
    "16-exp-bool": (token(exp=True), "exp"),
    "16-exp-null": (token(exp=None), "exp"),
    "16-exp-nan": (token(exp=float("nan")), "payload"),
    "16-iat-string": (token(iat=str(NOW)), "iat"),
    "16-iat-bool": (token(iat=True), "iat"),
    "16-nbf-null": (token(nbf=None), "nbf"),
    "16-nbf-float": (token(nbf=float(NOW)), "nbf"),
    "16-jti-number": (token(jti=5), "jti"),
    "17-exp-in-10-years": (token(exp=NOW + 315_360_000), "live for"),
    "17-exp-before-iat": (token(iat=NOW + 20, exp=NOW + 20), "live for"),
    "17-exp-googol": (token(exp=10**100), "live for"),
    "17-exp-5000-digits": (sealed('{"alg":"HS256"}', '{"exp":' + "9" * 5_000 + "}"), "payload"),
    "18-exp-31-seconds-ago": (token(iat=NOW - 600, exp=NOW - 31), "expired"),
    "19-nbf-in-31-seconds": (token(nbf=NOW + 31), "not valid yet"),
    "19-iat-in-31-seconds": (token(iat=NOW + 31), "not valid yet"),
    "20-aud-missing": (token(aud=...), "aud"),
    "20-aud-array-with-others": (token(aud=[AUDIENCE, "order-service"]), "not meant for"),
    "20-aud-array-empty": (token(aud=[]), "not meant for"),
    "20-aud-array-nested": (token(aud=[[AUDIENCE]]), "aud"),
    "20-aud-other": (token(aud="order-service"), "not meant for"),
    "20-aud-case": (token(aud="Inventory-Service"), "not meant for"),
    "20-aud-part": (token(aud="inventory"), "not meant for"),
    "21-iss-slash": (token(iss=ISSUER + "/"), "issuer"),
    "21-iss-array": (token(iss=[ISSUER]), "iss"),
    "21-iss-missing": (token(iss=...), "iss"),
    "21-iss-part": (token(iss="https://issuer"), "issuer"),
    "22-retired-secret": (token(key=RETIRED.encode()), "signature is wrong"),
    "22-retired-kid": (token({"alg": "ES256", "kid": "ec-0"}), "No key"),
    "22-asymmetric-without-kid": (jwt.encode(CLAIMS, EC_KEY, "ES256"), "No key"),
    "22-kid-of-another-algorithm": (jwt.encode(CLAIMS, EC_KEY, "ES256", {"kid": "ed.1"}), "No key"),
    "22-ps256-by-rs256-key": (jwt.encode(CLAIMS, RSA_KEY, "PS256", {"kid": "rsa_1"}), "No key"),
    "22-hs512-by-our-secret": (jwt.encode(CLAIMS, SECRET * 2, "HS512"), "No key"),
    "23-sibling-audience": (token(aud="product-service"), "not meant for"),
    "23-sibling-key": (
        jwt.encode(CLAIMS, ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "ec-1"}),
        "signature is wrong",
    ),
    "24-roles-string": (token(roles="product-service-admin"), "roles"),
    "24-roles-nested": (token(roles=[["inventory-admin"]]), "roles"),
    "24-roles-object": (token(roles={"inventory-admin": True}), "roles"),
    "24-roles-33": (token(roles=[f"role-{number}" for number in range(33)]), "roles"),
    "24-roles-nul": (token(roles=["inventory-admin\0"]), "printed"),
    "24-duplicate-claim": (
        sealed('{"alg":"HS256"}', json.dumps(CLAIMS)[:-1] + ',"roles":["inventory-admin"]}'),
        "unique names",
    ),
    "24-duplicate-name-deep": (
        sealed('{"alg":"HS256"}', json.dumps(CLAIMS)[:-1] + ',"more":[{"a":{"b":1,"b":2}}]}'),
        "unique names",
    ),
    "24-duplicate-header": (sealed('{"alg":"none","alg":"HS256"}', json.dumps(CLAIMS)), "unique names"),
    "24-sub-empty": (token(sub=""), "sub"),
    "24-sub-256": (token(sub="s" * 256), "sub"),
    "24-sub-newline": (token(sub="some\ncaller"), "printed"),
    "24-sub-lone-surrogate": (token(sub="\ud800"), "printed"),
    "24-sub-number": (token(sub=7), "sub"),
    "25-padded-signature": (GOOD + "=", "three base64url segments"),
    "25-twice-padded-signature": (GOOD + "==", "three base64url segments"),
    "25-unused-bits": (corrupt_tail(GOOD), "not base64url"),
    "25-impossible-length": (GOOD + "AA", "not base64url"),
    "25-newline": (GOOD + "\n", "three base64url segments"),
    "25-space": (" " + GOOD, "three base64url segments"),
    "25-standard-alphabet": (GOOD[:-2] + "+/", "three base64url segments"),
    "25-four-segments": (GOOD + ".AAAA", "three base64url segments"),
    "27-empty": ("", "three base64url segments"),
    "27-bearer-without-token": ("bearer", "three base64url segments"),
    "27-bearer-and-space": ("Bearer ", "three base64url segments"),
    "27-scheme-left-on": ("Bearer " + GOOD, "three base64url segments"),
    "28-over-8-kb": (token(more="m" * TOKEN_BYTES_MAX), "longer than"),
    "header-array": (sealed("[]", json.dumps(CLAIMS)), "header"),
    "header-no-alg": (sealed("{}", json.dumps(CLAIMS)), "alg"),
    "header-utf-16": (sealed('{"alg":"HS256"}', json.dumps(CLAIMS), encoding="utf-16"), "header"),
    "header-bom": (sealed('{"alg":"HS256"}', json.dumps(CLAIMS), encoding="utf-8-sig"), "header"),
    "payload-array": (sealed('{"alg":"HS256"}', "[]"), "payload"),
    "payload-deep": (sealed('{"alg":"HS256"}', DEEP), "payload"),
    "payload-infinity": (token(more=[float("inf")]), "payload"),
    "payload-trailing": (sealed('{"alg":"HS256"}', json.dumps(CLAIMS) + "{}"), "payload"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_token_is_refused(verifier: Verifier, bad: str, reason: str) -> None:
    """A known trick is refused, for its own reason, twice, beside the remembered good token, and nothing is echoed."""
    assert CALLER == verifier.verify(GOOD)

    for _ in range(2):
        with pytest.raises(Unauthorized, match=reason) as refusal:
            verifier.verify(bad)

    echoes = {SECRET, RETIRED, "some-caller", "127.0.0.1", "dev/null", "OR '1'", "order-service", "inventory-admin"}
    told = refusal.value.detail
    assert not [echo for echo in (echoes | set(bad.split("."))) if len(echo) > 6 and echo in told]


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_8_9_no_address_in_a_token_is_called(verifier: Verifier, name: str) -> None:
    """Whoever puts an address into a token does not make the service call it."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/keys"
        with pytest.raises(Unauthorized, match=name):
            verifier.verify(token({name: url, "alg": "ES256", "kid": "theirs"}))
        with pytest.raises(TimeoutError):
            canary.accept()


def test_every_changed_character_is_noticed(verifier: Verifier) -> None:
    """No single character of a good token can be changed without refusal."""
    for position, character in enumerate(GOOD):
        changed = GOOD[:position] + ("A" if character != "A" else "B") + GOOD[position + 1 :]

        with pytest.raises(Unauthorized):
            verifier.verify(changed)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(SECRET, "HS256", None), (EC_KEY, "ES256", "ec-1"), (ED_KEY, "EdDSA", "ed.1"), (RSA_KEY, "RS256", "rsa_1")],
    ids=["HS256", "ES256", "EdDSA", "RS256"],
)
def test_each_algorithm_is_accepted(verifier: Verifier, key: Any, algorithm: str, kid: str | None) -> None:
    """A token of each accepted algorithm names its caller."""
    made = jwt.encode(CLAIMS, key, algorithm, {"kid": kid} if kid else None)

    assert CALLER == verifier.verify(made)


@pytest.mark.parametrize(
    "header", [{"typ": "at+jwt"}, {"typ": "AT+JWT"}, {"typ": "jwt"}, {"kid": "any.Kid_1-x"}, {"x5t": "thumb"}]
)
def test_harmless_headers_are_accepted(verifier: Verifier, header: dict[str, str]) -> None:
    """Usual spellings of typ, a plain kid on HS256, and unknown names in the header do no harm."""
    assert CALLER == verifier.verify(token(header))


def test_typ_may_be_absent(verifier: Verifier) -> None:
    """A header without typ is accepted."""
    assert CALLER == verifier.verify(sealed('{"alg":"HS256"}', json.dumps(CLAIMS)))


def test_optional_claims_and_single_audience_list(verifier: Verifier) -> None:
    """nbf, jti, claims of others, and a list with only our audience are accepted."""
    assert CALLER == verifier.verify(token(nbf=NOW, jti="id", azp=1.5, aud=[AUDIENCE]))


def test_limits_are_inclusive(verifier: Verifier) -> None:
    """A subject of 255 characters, 32 roles, and no roles at all are accepted."""
    roles = [f"role-{number}" for number in range(32)]

    assert frozenset(roles) == verifier.verify(token(sub="s" * 255, roles=roles)).roles
    assert frozenset() == verifier.verify(token(roles=[])).roles


def test_minted_token_is_accepted(verifier: Verifier, clock: Clock) -> None:
    """What we mint we accept, and no two minted tokens are the same."""
    terms: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "me", "roles": ["a", "b"]}
    first, second = (mint(SECRET, **terms, lifetime=60, now=clock) for _ in range(2))

    assert Principal(ISSUER, "me", frozenset({"a", "b"}), NOW + 60) == verifier.verify(first)
    assert first != second


@pytest.mark.parametrize(("secret", "lifetime"), [("short", 60), (EC_PEM.decode(), 60), (SECRET, 0), (SECRET, -1)])
def test_mint_refuses(secret: str, lifetime: int) -> None:
    """A weak secret, a key file for a secret, and a lifetime that is over at once are refused."""
    with pytest.raises(ValidationFailed) as refusal:
        mint(secret, issuer=ISSUER, audience=AUDIENCE, subject="me", roles=[], lifetime=lifetime)

    assert secret not in refusal.value.detail


def test_rotation_of_secrets(clock: Clock) -> None:
    """While both secrets are listed both verify; a dropped one does not."""
    old, new = token(key=RETIRED.encode()), token()
    both = make_verifier(KeyRing(secrets=split_secrets(f"{SECRET}, {RETIRED}")), clock)
    rotated = make_verifier(KeyRing(secrets=[SECRET]), clock)

    assert CALLER == both.verify(old) == both.verify(new) == rotated.verify(new)
    with pytest.raises(Unauthorized, match="signature"):
        rotated.verify(old)


def test_hs256_needs_a_secret(jwks: str, clock: Clock) -> None:
    """With public keys only, an HS256 token signed with a public key's text has no key that goes with it."""
    verifier = make_verifier(KeyRing(jwks=jwks), clock)

    with pytest.raises(Unauthorized, match="No key"):
        verifier.verify(token({"kid": "ec-1"}, EC_PEM))


def test_issuers_are_matched_whole(clock: Clock) -> None:
    """Each of several issuers is accepted by its whole name, and one name given as a string is not a set of letters."""
    several = make_verifier(KeyRing(secrets=[SECRET]), clock, issuer=[ISSUER, "other"])

    assert "other" == several.verify(token(iss="other")).issuer
    with pytest.raises(Unauthorized, match="issuer"):
        make_verifier(KeyRing(secrets=[SECRET]), clock, issuer="other").verify(token(iss="o"))


@pytest.mark.parametrize("options", [{"issuer": ""}, {"issuer": []}, {"issuer": ["a", ""]}, {"audience": ""}])
def test_empty_issuer_or_audience_is_refused(clock: Clock, options: dict[str, Any]) -> None:
    """A verifier that would accept anonymous issuers or no audience cannot be made."""
    with pytest.raises(ValidationFailed, match="must not be empty"):
        make_verifier(KeyRing(secrets=[SECRET]), clock, **options)


@pytest.mark.parametrize(
    "claims",
    [{"iat": NOW - 600, "exp": NOW - 29}, {"nbf": NOW + 30}, {"iat": NOW + 30, "exp": NOW + 60}],
    ids=["exp", "nbf", "iat"],
)
def test_leeway_is_granted(verifier: Verifier, claims: dict[str, Any]) -> None:
    """Clocks may differ by up to 30 seconds, in either direction."""
    assert "some-caller" == verifier.verify(token(**claims)).subject


@pytest.mark.parametrize(
    "claims",
    [{"iat": NOW - 600, "exp": NOW - 30}, {"nbf": NOW + 31}, {"iat": NOW + 31, "exp": NOW + 60}],
    ids=["exp", "nbf", "iat"],
)
def test_leeway_ends(verifier: Verifier, claims: dict[str, Any]) -> None:
    """One second beyond the leeway the token is refused."""
    with pytest.raises(Unauthorized):
        verifier.verify(token(**claims))


@pytest.mark.parametrize("lifetime_max", [3_600, 86_400])
def test_lifetime_limit(clock: Clock, lifetime_max: int) -> None:
    """The longest lifetime is accepted whole and not a second more."""
    verifier = make_verifier(KeyRing(secrets=[SECRET]), clock, lifetime_max=lifetime_max)

    assert NOW + lifetime_max == verifier.verify(token(exp=NOW + lifetime_max)).expires_at
    with pytest.raises(Unauthorized, match="live for"):
        verifier.verify(token(exp=NOW + lifetime_max + 1))


def test_remembered_token_expires(verifier: Verifier, clock: Clock) -> None:
    """A token found good before is refused from 30 seconds after its end."""
    assert verifier.verify(GOOD) is verifier.verify(GOOD)

    clock.time = NOW + 629.9
    assert CALLER == verifier.verify(GOOD)
    clock.time = NOW + 630
    with pytest.raises(Unauthorized, match="expired"):
        verifier.verify(GOOD)


def test_refusal_is_not_remembered(verifier: Verifier, clock: Clock) -> None:
    """A token refused because it is too early is accepted when its time has come."""
    early = token(nbf=NOW + 300)
    with pytest.raises(Unauthorized, match="not valid yet"):
        verifier.verify(early)

    clock.time = NOW + 300
    assert CALLER == verifier.verify(early)


def test_memory_of_tokens_is_bounded(verifier: Verifier) -> None:
    """Only the latest tokens are remembered; a forgotten one is verified anew and still good."""
    first = verifier.verify(GOOD)
    others = [verifier.verify(token(jti=str(number))) for number in range(CACHED_TOKENS_MAX)]
    again = verifier.verify(GOOD)

    assert [CALLER] * CACHED_TOKENS_MAX == others
    assert first == again
    assert first is not again


@pytest.mark.parametrize(
    "setting",
    ["", "short", f"{SECRET},", f"short,{SECRET}", EC_PEM.decode(), json.dumps(EC_JWK), "k" * 31, "\udcff" * 40],
    ids=["empty", "short", "empty-second", "short-first", "pem", "jwk", "31-bytes", "not-text"],
)
def test_unfit_secret_is_refused(setting: str) -> None:
    """A secret that is weak or is a public key names its setting and is not repeated."""
    with pytest.raises(ValidationFailed, match="INVENTORY_AUTH_SECRET") as refusal:
        KeyRing(secrets=split_secrets(setting))

    assert not [secret for secret in split_secrets(setting) if secret and secret in refusal.value.detail]


def test_secret_does_not_show() -> None:
    """Neither a ring nor its keys show the secret when printed."""
    ring = KeyRing(secrets=[SECRET])

    assert SECRET not in repr((ring, ring.candidates("HS256", "")))


def test_no_keys_is_refused() -> None:
    """A ring without any key, which would refuse everybody, is a mistake in the settings."""
    with pytest.raises(ValidationFailed, match="INVENTORY_AUTH_SECRET or INVENTORY_AUTH_JWKS"):
        KeyRing()


WEAK_RSA_JWK = public_jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024), "RS256", kid="weak")
PRIVATE_JWK = jwt.get_algorithm_by_name("ES256").to_jwk(EC_KEY, as_dict=True) | {"kid": "private"}
OCT_JWK = {"kty": "oct", "k": b64(SECRET.encode()), "kid": "oct"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([PRIVATE_JWK], "key 1 .* private members"),
        ([EC_JWK, OCT_JWK], "key 2 .* private members"),
        ([{"kty": "oct", "kid": "oct"}], "only EC P-256"),
        ([WEAK_RSA_JWK], "below 2048"),
        ([public_jwk(EC_KEY, "ES256")], "kid"),
        ([EC_JWK | {"kid": "../x"}], "kid"),
        ([EC_JWK, ED_JWK | {"kid": "ec-1"}], "key 2 .* earlier key"),
        ([EC_JWK | {"use": "enc"}], "use"),
        ([EC_JWK | {"key_ops": ["encrypt"]}], "key_ops"),
        ([EC_JWK | {"alg": "HS256"}], "only EC P-256"),
        ([EC_JWK | {"alg": "ES384"}], "only EC P-256"),
        ([RSA_JWK | {"alg": "PS256"}], "only EC P-256"),
        ([EC_JWK | {"crv": "P-384"}], "only EC P-256"),
        ([ED_JWK | {"crv": "Ed448"}], "only EC P-256"),
        ([EC_JWK | {"x": b64(bytes(31))}], "make no key"),
        ([EC_JWK | {"x": EC_JWK["y"], "y": EC_JWK["x"]}], "make no key"),
        ([EC_JWK | {"x": 5}], "make no key"),
        (["key"], "key 1"),
        ([], "not a key set"),
        ({}, "not a key set"),
    ],
)
def test_unfit_key_set_is_refused(tmp_path: Path, keys: Any, reason: str) -> None:
    """A key set with one unfit key is refused whole, naming the key by its place."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": keys}))

    with pytest.raises(ValidationFailed, match=reason) as refusal:
        KeyRing(jwks=str(path))

    assert str(PRIVATE_JWK["d"]) not in refusal.value.detail
    assert OCT_JWK["k"] not in refusal.value.detail


@pytest.mark.parametrize(
    ("content", "reason"), [("", "not JSON"), ("[]", "not a key set"), ('{"keys":[],"keys":[]}', "unique names")]
)
def test_unreadable_key_set_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    """A file that is no key set is refused with the reason."""
    path = tmp_path / "jwks.json"
    path.write_text(content)

    with pytest.raises(ValidationFailed, match=reason):
        KeyRing(jwks=str(path))


def test_missing_key_set_is_refused(tmp_path: Path) -> None:
    """A key set that is not there is named in the refusal."""
    with pytest.raises(ValidationFailed, match=r"nowhere\.json cannot be read"):
        KeyRing(jwks=str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("url", ["file:///jwks", "ftp://issuer.example/jwks"])
def test_a_key_set_is_not_fetched_by_any_scheme(url: str) -> None:
    """A file is read, and what begins with https or http fetched; anything else is a mistake."""
    with pytest.raises(ValidationFailed, match="must name a file, or a URL"):
        KeyRing(jwks=url)


def test_secret_file_is_made_once(tmp_path: Path) -> None:
    """The first call makes the file and its directory, for the owner only; later calls read it."""
    path = tmp_path / "data" / "inner" / "secret"

    secret = generate_secret(path)

    assert secret == path.read_text() == generate_secret(path)
    assert 0o600 == path.stat().st_mode & 0o777
    assert [path] == list(path.parent.iterdir())
    assert len(secret) >= 32
    KeyRing(secrets=[secret])


def test_secrets_differ(tmp_path: Path) -> None:
    """Two files hold two secrets."""
    assert generate_secret(tmp_path / "one") != generate_secret(tmp_path / "two")


def test_secret_file_written_by_hand(tmp_path: Path) -> None:
    """A secret somebody wrote with an editor is used without its line end."""
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text(SECRET + "\n")

    assert SECRET == generate_secret(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_open_secret_file_is_refused(tmp_path: Path, mode: int) -> None:
    """A secret file that is open to others is refused, with the way out and without the secret."""
    path = tmp_path / "secret"
    secret = generate_secret(path)
    path.chmod(mode)

    with pytest.raises(ValidationFailed, match="chmod 600") as refusal:
        generate_secret(path)

    assert secret not in refusal.value.detail


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40])
def test_unfit_secret_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty, weak or unreadable secret file is named, not replaced."""
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(content)

    with pytest.raises(ValidationFailed, match=str(path)):
        generate_secret(path)

    assert content == path.read_bytes()


def test_secret_file_that_cannot_be_made(tmp_path: Path) -> None:
    """Where no file can be, the refusal names the other way to give a secret."""
    (tmp_path / "file").touch()

    with pytest.raises(ValidationFailed, match="set INVENTORY_AUTH_SECRET"):
        generate_secret(tmp_path / "file" / "secret")


def test_racing_for_the_secret_file(tmp_path: Path) -> None:
    """Eight that start at once end with the one secret that is in the file."""
    start = threading.Barrier(8)

    def race(path: Path) -> str:
        start.wait()
        return generate_secret(path)

    with ThreadPoolExecutor(8) as pool:
        for number in range(25):
            path = tmp_path / str(number) / "secret"

            secrets = set(pool.map(race, [path] * 8))

            assert {path.read_text()} == secrets
            assert [path] == list(path.parent.iterdir())
