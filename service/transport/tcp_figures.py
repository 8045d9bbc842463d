"""The kernel's figures on this process's TCP connections and memory, read without grpc's core.

Linux only; elsewhere, and for Unix sockets, nothing is known, and half-received messages are not counted.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Container
from contextlib import suppress

from .segments import Socket, cookie_of

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received, present since Linux 4.1.
_INFO_BYTES, _ACKED_AT = 136, 120
_FDS = "/proc/self/fd"


def memory_bytes() -> int:
    """Bytes of the process's anonymous memory, resident or swapped; 0 if unknown."""
    try:
        with open("/proc/self/status", "rb") as file:
            lines = [line.split() for line in file]
            kib = {words[0]: int(words[1]) for words in lines if words[:1] in ([b"RssAnon:"], [b"VmSwap:"])}
    except OSError:
        return 0
    return sum(kib.values()) * 1024


class ResidentMemory:
    """Reads the process's resident anonymous memory at a twentieth of the cost of `memory_bytes`."""

    def __init__(self) -> None:
        """Open the kernel's figures of the present process; they stay its own if it forks."""
        try:
            self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def __call__(self) -> int:
        """Bytes; 0 if unknown."""
        try:
            # Pages: the address space's, resident ones, and of these the ones of files and shared memory.
            _, resident, shared, *_ = os.pread(self._file, 128, 0).split()
        except OSError:
            return 0
        return (int(resident) - int(shared)) * self._page_bytes

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def trim_memory() -> None:
    """Return memory that malloc keeps for later to the system, so that `memory_bytes` is what is in use. glibc only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peer_name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """A socket's address in grpc's notation."""
    host, port = address[:2]
    if ":" not in host:
        return f"ipv4:{host}:{port}"
    if host.startswith("::ffff:") and "." in host:
        return f"ipv4:{host[7:]}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"


class TcpFigures:
    """Finds connections by their peers.

    Attributes:
        port: the port that the server listens on; 0: unknown, and any connection with such a peer counts.
        sockets: the sockets found by the last `of`; empty while `port` is unknown.
    """

    def __init__(self) -> None:
        self.port = 0
        self.sockets: dict[str, Socket] = {}

    def of(self, peers: Container[str]) -> dict[str, tuple[int, int]]:
        """For each connected peer: bytes received and read, and bytes acknowledged.

        The first may be too many by what comes or is read while the kernel is asked; the second never gets less.
        """
        try:
            numbers = [int(name) for name in os.listdir(_FDS)]
        except OSError:
            numbers = []
        found = {}
        sockets = {}
        for fd in numbers:
            figures = _figures(fd, peers, self.port)
            if figures is not None:
                peer, received, acked, cookie = figures
                found[peer] = received, acked
                if cookie:
                    sockets[peer] = Socket(fd, cookie)
        self.sockets = sockets
        return found


def _figures(fd: int, peers: Container[str], port: int) -> tuple[str, int, int, bytes] | None:
    """The figures of one descriptor: peer, bytes received and acknowledged, and the socket's cookie if `port` is known.

    It is not ours and may be closed at any moment, so whoever refers to it later compares the cookie.
    """
    try:
        # Of this family, whose addresses are longer: others fit, too.
        seen = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return None
    try:
        address = seen.getpeername()
        if not isinstance(address, tuple):
            return None
        peer = peer_name(address)
        # A client may have connected from the same port to another one of this process, for metrics.
        if peer not in peers or (port and seen.getsockname()[1] != port):
            return None
        # Read the unread bytes first: bytes that arrive in between count as read now or the next time.
        unread = array.array("i", [0])
        fcntl.ioctl(fd, termios.FIONREAD, unread)
        info = seen.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) < _INFO_BYTES:
            return None
        acked, received = struct.unpack_from("QQ", info, _ACKED_AT)
        cookie = b""
        if port:
            with suppress(OSError):  # some kernels have none
                cookie = cookie_of(seen)
    except OSError:
        return None
    finally:
        seen.detach()
    return peer, received - unread[0], acked, cookie
