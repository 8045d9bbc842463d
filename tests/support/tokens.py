"""Bearer tokens of every kind, and a file of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from streamcell.service.access.static_tokens import sha256_of

ISSUER, AUDIENCE = "https://issuer.example", "streamcell"


def token_file(path: Path, *tokens: tuple[str, str], operators: tuple[str, ...] = ()) -> Path:
    """A file of `tokens`, (tenant, subject) each; a token's text is "token-of-SUBJECT"."""
    entries = [
        f'[[tokens]]\nsha256 = "{sha256_of(f"token-of-{subject}")}"\ntenant = "{tenant}"\nsubject = "{subject}"\n'
        f"operator = {str(subject in operators).lower()}\n"
        for tenant, subject in tokens
    ]
    path.write_text("\n".join(entries))
    return path


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carry a token."""
    return (("authorization", f"Bearer {token}"),)


class Issuer:
    """An identity provider: a key of a kind, its public part, and tokens."""

    def __init__(self, kid: str = "k1", kind: str = "EC") -> None:
        self.kid = kid
        key: Any
        if kind == "RSA":
            key, self.algorithm = rsa.generate_private_key(65537, 2048), "RS256"
        elif kind == "OKP":
            key, self.algorithm = ed25519.Ed25519PrivateKey.generate(), "EdDSA"
        else:
            key, self.algorithm = ec.generate_private_key(ec.SECP256R1()), "ES256"
        self.key = key
        self._form: Any = jwt.get_algorithm_by_name(self.algorithm)

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public key."""
        return {**self._form.to_jwk(self.key.public_key(), as_dict=True), "kid": self.kid, **changes}

    def private_jwk(self) -> dict[str, Any]:
        """What an issuer must not publish."""
        return {**self._form.to_jwk(self.key, as_dict=True), "kid": self.kid}

    def token(self, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token for "feed" of tenant "acme", good for a minute; a claim that is None is left out."""
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "feed", "tenant": "acme", "exp": time.time() + 60, **changes,
        }  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        named = {"kid": self.kid, **(headers or {})}
        return jwt.encode(
            kept, self.key, self.algorithm, {name: text for name, text in named.items() if text}
        )


def key_set(*keys: dict[str, Any]) -> str:
    """A JSON Web Key Set."""
    return json.dumps({"keys": keys})
