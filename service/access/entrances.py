"""The two addresses: if operators have a separate one, nobody is an operator at the clients' address."""

from __future__ import annotations

from .access_errors import NotPermitted
from .authenticator import Authenticator
from .checks import Check, Metadata, Peer
from .identity import Identity

_UNIX = "unix:"
# Whoever may open the socket: its file is the server's user's alone.
_OF_SOCKET = Identity("", "unix socket", operator=True)
_USER = Identity("", "", operator=False)


def for_users(authenticator: Authenticator | None) -> Check:
    """The check for the clients' address; `authenticator`: None if it has no authentication."""

    def check(metadata: Metadata, peer: Peer) -> Identity:
        if authenticator is None:
            return _USER
        return authenticator.check(metadata, peer)._replace(operator=False)

    return check


def for_operators(authenticator: Authenticator | None, address: str) -> Check:
    """The check for the operators' address; for a Unix socket the permissions of its file are enough.

    Raises:
        ValueError: the address is no Unix socket, and the server has no authentication.
    """
    if address.startswith(_UNIX):
        return lambda metadata, peer: _OF_SOCKET
    if authenticator is None:
        raise ValueError("operators' address is no Unix socket and asks nobody who calls")

    def check(metadata: Metadata, peer: Peer) -> Identity:
        caller = authenticator.check(metadata, peer)
        if not caller.operator:
            raise NotPermitted(f"{caller.subject!r} is no operator, and this address is theirs")
        return caller

    return check
