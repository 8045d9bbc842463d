"""Addresses to listen on: in grpc's notation, and tested before models are loaded."""

from __future__ import annotations

import errno
import os
import socket

_WAYS_ON = {
    errno.EADDRINUSE: "another process listens there: stop it, or choose a port by {port_flag}; 0 takes a free one",
    errno.EACCES: "ports below 1024 need rights that this user lacks: choose another by {port_flag}",
    errno.EADDRNOTAVAIL: (
        "it is no address of this machine: {host_flag} 127.0.0.1 is for this machine alone, 0.0.0.0 and :: for every "
        "network"
    ),
    errno.EAFNOSUPPORT: "this machine has no IPv6: choose an IPv4 address by {host_flag}",
}


def joined(host: str, port: int) -> str:
    """Host and port as one text, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(host: str, port: int, error: OSError, flag: str = "--port") -> OSError:
    """The error of a port that cannot be bound, which says why and what to do.

    Args:
        host: as it was given.
        port: as it was given.
        error: what binding it has raised.
        flag: the flag that sets the port, --port or --metrics-port.
    """
    flags = {"port_flag": flag, "host_flag": flag.replace("port", "host") if "metrics" in flag else "--host"}
    what = " for metrics" if "metrics" in flag else ""
    if isinstance(error, socket.gaierror):
        reason = f"no machine is called so: {error.strerror}; {flags['host_flag']} takes an address of this machine"
    elif error.errno in _WAYS_ON:
        reason = f"{os.strerror(error.errno)}: {_WAYS_ON[error.errno].format(**flags)}"
    else:
        reason = str(error)
    return OSError(f"cannot listen on {joined(host, port)}{what}: {reason}")


def check_free(host: str, port: int, flag: str = "--port") -> None:
    """Bind the port and let it go again.

    Another process may take a free port a moment later. But if the port is taken now, the server says so at once, not
    after minutes of loading models.

    Args:
        host: an address or a name of this machine.
        port: 0 for any.
        flag: as for `cannot_listen`.

    Raises:
        OSError: it cannot be bound; the text says why and what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise cannot_listen(host, port, error, flag) from error
    failures: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
                probe.bind(address)
                if port:
                    probe.listen(1)
        except OSError as error:
            failures.append(error)
    # A name such as localhost may have an address of a family that this machine lacks.
    taken = [each for each in failures if each.errno == errno.EADDRINUSE]
    if taken or len(failures) == len(found):
        raise cannot_listen(host, port, (taken or failures)[0], flag) from failures[0]
