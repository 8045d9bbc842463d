"""Reserves a port that several processes share, while they start and end."""

from __future__ import annotations

import socket

from streamcell.service.addresses import cannot_listen, check_free


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket bound to `port` of `host`, 0 for a free port. It takes no connections; others may share the port.

    Sockets with SO_REUSEPORT of one user share a port even if they belong to different servers, so this first checks
    that no other server uses it.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    check_free(host, port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        held.bind(address)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    return held
