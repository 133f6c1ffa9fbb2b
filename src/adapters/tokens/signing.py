"""Making tokens, and the secrets and private keys that they are signed with."""

import json
import os
import secrets
import stat
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from adapters.tokens.keys import secret_key
from core.errors import ValidationFailed

_SIGNING = {
    ("EC", "P-256"): ("ES256", ("crv", "kty", "x", "y")),
    ("OKP", "Ed25519"): ("EdDSA", ("crv", "kty", "x")),
    ("RSA", ""): ("RS256", ("e", "kty", "n")),
}
"""The algorithm of a key, and the members its thumbprint is made of."""


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
        secret_key(secret, "the signing setting")
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
    secret_key(secret, str(path))
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


def _jwk_of(key: Any) -> str:
    public = key.public_key()
    for algorithm in (ECAlgorithm, OKPAlgorithm, RSAAlgorithm):
        with suppress(InvalidKeyError, AttributeError):
            return str(algorithm.to_jwk(public))
    raise ValueError("no kind of key that signs here")
