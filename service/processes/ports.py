"""Reserves a port that several processes share, while they start and end."""

from __future__ import annotations

import socket


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket bound to `port` of `host`, 0 for a free port. It takes no connections; others may share the port.

    Sockets with SO_REUSEPORT of one user share a port even if they belong to different servers, so this first checks
    that no other server uses it.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if port:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    return held
