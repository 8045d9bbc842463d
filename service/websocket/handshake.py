"""Who may open a WebSocket: pages of known origins, with a known subprotocol, and a token if they have one."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from streamcell.service.errors import cut, shown

JSON, PROTO = "streamcell.v1.json", "streamcell.v1.proto"
BEARER = "streamcell.bearer."

_MOST_TOKEN_CHARACTERS = 8192


class Headers(Protocol):
    """A request's headers."""

    def get_all(self, name: str) -> list[str]: ...


class Refusal(Exception):
    """The request is answered with an HTTP status and a text; `reason`: which of the metrics' it counts as."""

    def __init__(self, status: HTTPStatus, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


class Admission(NamedTuple):
    """What a handshake has agreed on: the subprotocol, and the metadata of the call."""

    subprotocol: str
    metadata: tuple[tuple[str, str], ...]


def admitted(headers: Headers, origins: Sequence[str]) -> Admission:
    """Check a request with these headers; `origins`: the setting's.

    Raises:
        Refusal: it may not open one; the text says why and what to do.
    """
    _check_origin(headers.get_all("Origin"), headers.get_all("Host"), origins)
    offered = [each.strip() for line in headers.get_all("Sec-WebSocket-Protocol") for each in line.split(",")]
    spoken = next((each for each in offered if each in (JSON, PROTO)), None)
    if spoken is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "subprotocol", f"name a subprotocol: {JSON} or {PROTO}")
    tokens = [_decoded(each.removeprefix(BEARER)) for each in offered if each.startswith(BEARER)]
    for value in headers.get_all("Authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":  # a client that is no browser
            tokens.append(token.strip())
    return Admission(spoken, tuple(("authorization", f"Bearer {_checked(token)}") for token in tokens))


def _check_origin(origins: Sequence[str], hosts: Sequence[str], allowed: Sequence[str]) -> None:
    if not origins:  # no browser: these always send one
        return
    # A name of the same host proves nothing: whoever owns a name can have it mean this machine (DNS rebinding).
    if len(origins) == 1 and (origins[0] in allowed or (len(hosts) == 1 and _same(origins[0], hosts[0]))):
        return
    raise Refusal(
        HTTPStatus.FORBIDDEN,
        "origin",
        f"pages of {shown(origins[0])} may not connect: start the server with --websocket-origins {cut(origins[0])} "
        "if they are to",
    )


def _same(origin: str, host: str) -> bool:
    """True if both name one address of numbers, or localhost."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        page_host, here_host = page.hostname, here.hostname
    except ValueError:
        return False
    if page.scheme not in ("http", "https") or not page_host or page_host != here_host:
        return False
    if page_host == "localhost":
        return True
    try:
        ipaddress.ip_address(page_host)
    except ValueError:
        return False
    return True


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise Refusal(
            HTTPStatus.UNAUTHORIZED, "token", f"{BEARER}TOKEN: the token is not base64url of ASCII text"
        ) from error


def _checked(token: str) -> str:
    if not token or len(token) > _MOST_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
        raise Refusal(
            HTTPStatus.UNAUTHORIZED, "token", "the token is empty, too long, or has characters of control"
        )
    return token
