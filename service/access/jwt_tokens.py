"""JSON Web Tokens (RFC 7519): identifies callers by tokens that an identity provider has signed."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import jwt

from .access_errors import NotAuthenticated, TokenExpired
from .identity import Identity
from .key_set import KeySet
from .names import is_name

_KEPT = 1024  # tokens that have been verified
_MOST_BYTES = 16 * 1024

_WHY: dict[type[Exception], str] = {
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidIssuedAtError: "it was issued in the future",
    jwt.InvalidAlgorithmError: "its algorithm is not the key's",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.MissingRequiredClaimError: "it lacks one of the claims exp, iss, aud, sub",
}


class JwtTokens:
    """Verifies tokens, and remembers verified ones until they expire."""

    def __init__(
        self, keys: KeySet, *, issuer: str, audience: str, leeway_s: float, tenant_claim: str
    ) -> None:
        """Make it.

        Args:
            keys: the issuer's.
            issuer, audience: the required `iss`, and what `aud` must be or contain.
            leeway_s: by how much the issuer's clock may differ.
            tenant_claim: the claim that names the tenant, if a token has it.
        """
        self._keys = keys
        self._issuer, self._audience = issuer, audience
        self._leeway_s = leeway_s
        self._tenant_claim = tenant_claim
        self._known: dict[bytes, tuple[Identity, float]] = {}
        self._known_by = keys.changes

    def identity(self, token: str) -> Identity:
        """Whose token it is; `tenant` is empty if it names none.

        Raises:
            TokenExpired: `exp` has passed.
            NotAuthenticated: anything else is wrong with it; the text says what, and quotes nothing of the token.
        """
        if self._known_by != self._keys.changes:
            self._known, self._known_by = {}, self._keys.changes
        # If the keys change while a token is verified, it goes where nobody looks any more.
        kept = self._known
        digest = hashlib.sha256(token.encode()).digest()
        known = kept.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        if len(token) > _MOST_BYTES:
            raise NotAuthenticated(f"a token may have {_MOST_BYTES} bytes")
        identity, expires_s = self._verified(token)
        if len(kept) >= _KEPT:
            kept.clear()
        kept[digest] = identity, expires_s
        return identity

    def _verified(self, token: str) -> tuple[Identity, float]:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise NotAuthenticated(
                "the token is not known here, and no JWT: send the one that you were given"
            ) from error
        kid = header.get("kid")
        key = self._keys.find(kid if isinstance(kid, str) else None)
        if key is None:
            raise NotAuthenticated(
                "the JWT names a key that its issuer does not publish, or none: get a new token, and try again in 10 s"
            )
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenExpired("the JWT has expired: get a new one from its issuer") from error
        except jwt.PyJWTError as error:
            raise NotAuthenticated(
                f"the JWT is not accepted: {_WHY.get(type(error), 'it cannot be read')}"
            ) from error
        subject, tenant = claims["sub"], claims.get(self._tenant_claim, "")
        if not is_name(subject) or (tenant != "" and not is_name(tenant)):
            raise NotAuthenticated(
                f"the JWT is not accepted: sub and {self._tenant_claim} are texts of 1 to 128 characters without spaces"
            )
        return Identity(tenant, subject, operator=False), float(claims["exp"]) + self._leeway_s
