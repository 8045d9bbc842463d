"""Sends the replies of a batch to one connection in one segment, not in one each.

grpc's core hands each reply to the kernel by itself, which makes a segment of it, sends it and wakes its reader. While
TCP_CORK is set on the socket (tcp(7)), the kernel keeps what fills no segment, and sends it when the option is cleared.
The core shows no sockets. `tcp_figures.py`, which asks the kernel about them once a second, finds them among the
process's descriptors; here a descriptor is used only while its socket has the cookie that it had then. So no option
stays set on another socket that has the number now.

Nothing is held for long: who holds releases in a `finally`, and the kernel by itself sends after 200 ms. Two threads
may hold one connection: the release of the first ends it for both, and the release of the second is the last call.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from mypy_extensions import mypyc_attr

# Replies to one connection from which holding pays: it takes seven system calls, a segment of its own a reply more.
WORTH = 3
# Options of Linux: TCP_CORK of linux/tcp.h, and SO_COOKIE of asm-generic/socket.h, a number that the machine gives to
# no second socket.
_CORK, _COOKIE, _COOKIE_BYTES = 3, 57, 8


class Socket(NamedTuple):
    """A connected socket: its descriptor, which is not ours and may be closed at any moment, and its cookie."""

    fd: int
    cookie: bytes


def cookie_of(seen: socket.socket) -> bytes:
    """The cookie of a socket.

    Raises:
        OSError: this kernel has none for it.
    """
    return seen.getsockopt(socket.SOL_SOCKET, _COOKIE, _COOKIE_BYTES)


@mypyc_attr(allow_interpreted_subclasses=True)
class Segments:
    """The sockets of this process's clients, by peer. Any thread may call every method."""

    def __init__(self) -> None:
        self._sockets: dict[str, Socket] = {}

    def learn(self, known: Iterable[str], found: Mapping[str, Socket]) -> None:
        """Take over the sockets that a look has `found`; those of `known` peers that are not among them have gone."""
        self._sockets.update(found)
        for peer in known:
            if peer not in found:
                self._sockets.pop(peer, None)

    def hold(self, peers: Iterable[str]) -> list[Socket]:
        """Hold back what is sent to those of `peers` that occur often enough; `release` what this returns."""
        held: list[Socket] = []
        sockets = self._sockets
        if not sockets:
            return held
        try:
            for peer, replies in Counter(peers).items():
                if replies >= WORTH and (found := sockets.get(peer)) is not None:
                    held.append(found)  # first: what is in the list is released, whatever happens
                    self._cork(found, 1)
        except BaseException:
            self.release(held)
            raise
        return held

    def release(self, held: list[Socket]) -> None:
        """Send what has been held back."""
        for each in held:
            self._cork(each, 0)

    def _cork(self, found: Socket, on: int) -> None:
        """Set TCP_CORK of a socket; nothing if it has been closed."""
        try:
            # Of this family, whose addresses are longer: others fit, too.
            seen = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=found.fd)
        except OSError:  # the number names no socket now
            return
        try:
            with suppress(OSError):
                if self._cookie(seen) != found.cookie:
                    return
                seen.setsockopt(socket.IPPROTO_TCP, _CORK, on)
                if on and self._cookie(seen) != found.cookie:
                    # It was closed at this very moment; the option is another socket's, in which nobody else sets it.
                    seen.setsockopt(socket.IPPROTO_TCP, _CORK, 0)
        finally:
            seen.detach()

    def _cookie(self, seen: socket.socket) -> bytes:
        return cookie_of(seen)


# One for all servers in this process, as their sockets are.
SEGMENTS = Segments()
