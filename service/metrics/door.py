"""Who may see the pages with figures: operators, and tokens that are for the metrics port alone."""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Mapping
from typing import Any

from streamcell.service.access.authenticator import Authenticator, asks_who_calls
from streamcell.service.access.watched import Watched
from streamcell.service.errors import ServiceError
from streamcell.service.settings import Settings

# A browser asks for name and password; the name counts for nothing, the password is the token.
_CHALLENGE = 'Basic realm="StreamCell: the token is the password", charset="UTF-8"'
_BASIC = "basic "
# grpc's names of the kinds of subject alternative names, by ssl's.
_KINDS = {"URI": "peer_uri", "DNS": "peer_dns", "email": "peer_email"}

# Status, headers, body.
Answer = tuple[str, dict[str, str], bytes]


class Door:
    """Checks who may see figures, if the server has authentication and `--metrics-open` is off."""

    def __init__(self, settings: Settings, watched: Watched) -> None:
        """Read tokens, keys and policy; `watched` reads them again when they change.

        Raises:
            AccessConfigError: they cannot be used; the text names the file or the address.
        """
        asks = asks_who_calls(settings) and not settings.metrics_open
        self._authenticator = Authenticator(settings, watched) if asks else None

    def refusal(self, headers: Mapping[str, str], connection: object) -> Answer | None:
        """The answer to a caller who may not see figures; None if it may.

        Args:
            headers: the request's.
            connection: its socket; TLS's has the client's certificate.
        """
        if self._authenticator is None:
            return None
        credential = headers.get("Authorization")
        metadata = () if credential is None else (("authorization", _bearer(credential)),)
        try:
            self._authenticator.check_viewer(metadata, lambda: _peer(connection))
        except ServiceError as error:
            unknown = error.code.name == "UNAUTHENTICATED"
            more = {"WWW-Authenticate": _CHALLENGE} if unknown else {}
            return (
                "401 Unauthorized" if unknown else "403 Forbidden",
                {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **more},
                f"{error}\n".encode(errors="replace"),
            )
        return None


def _bearer(credential: str) -> str:
    """Turns `Basic` with a token as password into `Bearer`; leaves everything else unchanged."""
    if credential[: len(_BASIC)].lower() != _BASIC:
        return credential
    try:
        told = base64.b64decode(credential[len(_BASIC) :].strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return credential
    return f"Bearer {told.partition(':')[2]}"


def _peer(connection: object) -> dict[str, list[bytes]]:
    """The names in the client's certificate, which TLS has verified."""
    found: dict[str, list[bytes]] = {}
    certificate: Mapping[str, Any] | None = None
    if isinstance(connection, ssl.SSLSocket):
        certificate = connection.getpeercert()
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        if kind in _KINDS:
            found.setdefault(_KINDS[kind], []).append(str(name).encode())
    return found
