"""Our own token for the Product Service: short-lived, kept, renewed in time, by secret or key."""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from adapters.service_token import LIFETIME_SECONDS, USED_SECONDS, ServiceToken
from adapters.tokens.keys import KeyRing
from adapters.tokens.signing import SigningKey
from adapters.tokens.verifier import Verifier
from core.errors import ValidationFailed

SECRET = "a-secret-for-tests-that-is-long-enough"
NOW = 1_800_000_000
KEYS = {
    "ES256": (ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm),
    "RS256": (rsa.generate_private_key(public_exponent=65537, key_size=2048), RSAAlgorithm),
}


class Clock:
    """A clock that is set by hand."""

    now = float(NOW)

    def __call__(self) -> float:
        return self.now


def written(folder: Path, key: object, password: bytes | None = None) -> str:
    """Write a private key as PEM; return the path."""
    file = folder / "key.pem"
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))  # type: ignore[attr-defined]
    return str(file)


def test_it_is_kept_and_renewed_in_time() -> None:
    """One token serves for four minutes, then another, and each is good for a minute when it is handed out."""
    clock = Clock()
    token = ServiceToken(SECRET, issuer="us", audience="them", now=clock)
    verifier = Verifier(KeyRing(secrets=[SECRET]), issuer="us", audience="them", leeway=0, now=clock)
    first = token()
    for seconds in (1, USED_SECONDS - 1):
        clock.now = NOW + seconds
        assert token() == first
    clock.now = NOW + USED_SECONDS
    second = token()

    assert second != first
    assert verifier.verify(first).expires_at - clock.now == LIFETIME_SECONDS - USED_SECONDS
    assert verifier.verify(second).roles == {"inventory-service"}
    clock.now = NOW - 500
    assert token() != second


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_private_key_signs_and_its_public_part_verifies(tmp_path: Path, algorithm: str) -> None:
    """The Product Service finds the key in our JWKS by its thumbprint."""
    private, kind = KEYS[algorithm]
    key = SigningKey(written(tmp_path, private))
    public = kind.to_jwk(private.public_key(), as_dict=True) | {"kid": key.kid}
    public.pop("key_ops", None)
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(msgspec.json.encode({"keys": [public]}))

    token = ServiceToken(key, issuer="us", audience="them")
    verifier = Verifier(KeyRing(jwks=str(jwks)), issuer="us", audience="them")

    assert key.algorithm == algorithm
    assert PyJWK(public).key is not None
    assert verifier.verify(token()).subject == "inventory-service"


def test_the_thumbprint_is_the_standards() -> None:
    """RFC 8037, appendix A.3, names the thumbprint of its own example key."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: b"")
        patch.setattr(
            "adapters.tokens.signing.load_pem_private_key",
            lambda *_, **__: ed25519.Ed25519PrivateKey.from_private_bytes(secret),
        )
        assert SigningKey("anything").kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_unfit_keys_are_refused(tmp_path: Path) -> None:
    """No file, no key, a password, a small key, a curve that nobody agreed on: one sentence that names the file."""
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP384R1())
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("not a key")
    sentences = []
    for make in (
        lambda: str(tmp_path / "missing.pem"),
        lambda: str(nothing),
        lambda: written(tmp_path, KEYS["ES256"][0], b"password"),
        lambda: written(tmp_path, small),
        lambda: written(tmp_path, curve),
    ):
        path = make()
        with pytest.raises(ValidationFailed) as error:
            SigningKey(path)
        assert path in str(error.value)
        sentences.append(str(error.value))
    assert "cannot be read" in sentences[0]
    assert "too small" in sentences[3]


def test_an_unfit_secret_is_refused_at_once() -> None:
    """Not when the first call is made."""
    with pytest.raises(ValidationFailed, match="32 bytes"):
        ServiceToken("short", issuer="us", audience="them")
