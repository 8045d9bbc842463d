"""Bearer tokens from a file, which has only their SHA-256."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from .access_errors import AccessConfigError, TokenExpired
from .identity import Identity
from .names import Name
from .toml_file import read_toml

FLAG = "--token-file"


class _Token(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tenant: Name
    subject: Name
    operator: bool = False
    metrics: bool = False  # for the metrics port alone
    expires: AwareDatetime | None = None


class _TokenFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: list[_Token] = []


class StaticTokens:
    """The file's tokens by their hash. A token is long and random, so its plain SHA-256 does not reveal it."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            AccessConfigError: it cannot be used.
        """
        self.path = path
        self._tokens: dict[str, _Token] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again.

        Raises:
            AccessConfigError: it cannot be used; the tokens stay as they were.
        """
        read = read_toml(FLAG, self.path, _TokenFile).tokens
        tokens = {token.sha256: token for token in read}
        if len(tokens) < len(read):
            raise AccessConfigError(f"{FLAG} {self.path}: two tokens have the same sha256")
        for each in read:
            if each.metrics and each.operator:
                raise AccessConfigError(
                    f"{FLAG} {self.path}: {each.subject!r} has operator and metrics: give one"
                )
        self._tokens = tokens

    def find(self, token: str) -> Identity | None:
        """Whose token it is; None if it is not in the file.

        Raises:
            TokenExpired: it is, and is no longer valid.
        """
        known = self._tokens.get(sha256_of(token))
        if known is None:
            return None
        if known.expires is not None and datetime.now(UTC) >= known.expires:
            raise TokenExpired(
                f"the token of {known.subject!r} has expired: ask the server's operator for a new one",
                expired=known.expires.isoformat(),
            )
        return Identity(known.tenant, known.subject, known.operator)

    def for_metrics(self, token: str) -> bool:
        """True if it is in the file, and for the metrics port alone."""
        known = self._tokens.get(sha256_of(token))
        return known is not None and known.metrics


def sha256_of(token: str) -> str:
    """The hash of a token as in the file, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()
